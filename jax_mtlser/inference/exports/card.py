"""The model card of an export: what it is, how it is loaded, what it was trained on, what it must not be used for."""

from collections.abc import Mapping
from typing import Any

from jax_mtlser.inference.exports.formats import ExportFormat, Weights
from jax_mtlser.inference.exports.verification import Verified

__all__ = ["NO_LICENCE", "model_card"]

NO_LICENCE = "not stated: the weights carry the terms of the pre-trained encoder and of the corpus"

_USE = """## Intended use and limits

Intended: research on speech emotion recognition, and tools whose users know that they are listened to and agreed.

The model names the emotion that a voice *sounds like* to the annotators of its training corpus. It does not know what
a person feels. Expect lower scores on other languages, accents, ages, microphones, rooms and on spontaneous speech,
and differences between groups of speakers; measure them on your own recordings before you rely on it. A probability
is a statement about the classes listed above and nothing else: speech with none of these emotions gets one all the same.

Out of scope: decisions about people (hiring, grading, credit, insurance, policing, asylum), diagnosis, lie detection,
covert monitoring.

### Regulation in the European Union

Recognising emotions from the voice is regulated by the AI Act, Regulation (EU) 2024/1689:

- **Article 5(1)(f)** prohibits placing on the market, putting into service for this purpose, or using AI systems that
  infer emotions of natural persons in the areas of **workplace and education institutions**, except for medical or
  safety reasons.
- **Annex III, point 1(c)** (with Article 6(2)) lists AI systems intended for emotion recognition as **high-risk**, as
  far as their use is permitted at all; the duties of Chapter III apply to providers and deployers.
- **Article 50(3)** obliges deployers to inform the people exposed to an emotion recognition system.

Recordings of voices are personal data (GDPR). This card is no legal advice.
"""

_JAXLIB = """jaxlib 0.10.2 computes some sums wrongly on CPUs (jax-ml/jax#39103); with that version, set
`XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=individual_dot` before jax starts."""

_HOW = {
    ExportFormat.HUGGINGFACE: """The fine-tuned encoder without its heads, for `transformers`:

```python
from transformers import AutoModel

encoder = AutoModel.from_pretrained("FOLDER")
```

For Whisper, whose model class brings a decoder, use `WhisperEncoder.from_pretrained`.""",
    ExportFormat.ORBAX: """The whole model with all its heads, for jax_mtlser:

```python
from jax_mtlser import Recognizer

print(Recognizer.load("FOLDER")("call.wav").probabilities)
```

or `jax-mtlser predict --workdir FOLDER call.wav`. `model/params` is a standard Orbax checkpoint.""",
    ExportFormat.STABLEHLO: f"""Emotion recognition alone, without jax_mtlser (`pip install jax flatbuffers safetensors`):

```python
import json
import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

program = export.deserialize(bytearray(open("FOLDER/emotion.jax_export", "rb").read()))
weights = load_file("FOLDER/weights.safetensors")
labels = json.load(open("FOLDER/labels.json"))["emotion"]
samples = np.zeros((1, 16000), np.float32)  # [B, S] at 16 kHz in [-1, 1), rows padded to one length
lengths = np.array([16000], np.int32)       # [B] samples that belong to each row
probabilities = jax.jit(program.call)(weights, samples, lengths)  # [B, C], in the order of labels
```

Any batch and any length (rows of SHORTEST); padding changes nothing. It runs on CPU, CUDA and TPU. {_JAXLIB}""",
    ExportFormat.ONNX: """Emotion recognition alone, for ONNX Runtime (`pip install onnxruntime`):

```python
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/emotion.onnx")
labels = json.load(open("FOLDER/labels.json"))["emotion"]
samples = np.zeros((BATCH, SAMPLES), np.float32)  # at 16 kHz in [-1, 1)
lengths = np.array([16000] * BATCH, np.int32)     # samples that belong to each row
(probabilities,) = session.run(None, {"samples": samples, "lengths": lengths})  # in the order of labels
```

The shape is fixed: BATCH rows of SAMPLES samples. Shorter audio is padded and told by its length; the model is
exact under padding, so this changes nothing. Longer audio has to be cut.""",
}
_STORED = {
    Weights.FLOAT32: "Weights are float32.",
    Weights.BFLOAT16: "Matrices are stored in bfloat16, vectors in float32.",
    Weights.INT8: "Large matrices are int8 with one scale for each output channel, everything else float32.",
}


def model_card(record: Mapping[str, Any], form: ExportFormat, weights: Weights, verified: Verified, folder: str) -> str:
    """The card as Markdown.

    Args:
        record: what ``export.json`` holds.
        form, weights: what was exported.
        verified: how near it is to the model.
        folder: name that the commands in it use.
    """
    model, labels = record["model"], record["labels"]
    how = _HOW[form].replace("FOLDER", folder)
    if form is ExportFormat.ONNX:
        batch, samples = record["input"]["shape"]
        how = how.replace("BATCH", str(batch)).replace("SAMPLES", str(samples))
    least, most = record["input"]["samples"]
    rows = f"at least {least} samples" if most is None else f"{least} to {most} samples"
    how = how.replace("SHORTEST", rows)
    encoder = model["encoder"]
    temperature = model["temperature"]
    parts = [
        _front_matter(record),
        f"# Speech emotion recognition: {record['training']['corpus']}, {model['member']}",
        f"A {encoder['family']} encoder ({encoder['layers']} layers of width {encoder['width']}, from "
        f"{model['pretrained'] or 'random weights'}), fine-tuned for {', '.join(model['tasks'])} with jax_mtlser.",
        f"Emotions, in the order of the probabilities: {', '.join(labels['emotion'])}. "
        + (
            f"Probabilities are calibrated (temperature {temperature:.4g})."
            if temperature
            else "Probabilities are not calibrated: the run holds no temperature."
        )
        + f" Trained on recordings of {model['seconds']['min']:g} to {model['seconds']['max']:g} s.",
        f"Licence: {record['licence']}.",
        f"## How to load it\n\n{how}\n\n{_STORED[weights]} No pickle, and no Python code runs on loading; sizes and "
        "SHA-256 of every file are in `export.json`, with configuration, versions and labels.",
        _verification(verified),
        _training(record),
        _USE.rstrip(),
        _versions(record["versions"]),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(record: Mapping[str, Any]) -> str:
    return "\n".join(
        ["---", "library_name: jax_mtlser", f"license_name: {_yaml(record['licence'])}", "license: other",
         "pipeline_tag: audio-classification", "tags: [speech-emotion-recognition, jax]", "---"]
    )  # fmt: skip


def _yaml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'"{escaped}"'


def _verification(v: Verified) -> str:
    lines = [
        "## Verified",
        "",
        f"Judged beside the float32 model on {v.utterances} recordings ({v.source}) before it was kept:",
        "",
        f"- largest difference of a probability {v.difference:.2g} (limit {v.limit:g}), batches of up to {v.batch};",
        f"- the same emotion for {100 * v.agreement:.1f} % of them"
        + (f"; accuracy {100 * v.accuracy[0]:.1f} %, exported {100 * v.accuracy[1]:.1f} %" if v.accuracy else "")
        + ".",
    ]
    return "\n".join(lines)


def _training(record: Mapping[str, Any]) -> str:
    training, protocol, scores = record["training"], record["protocol"], record["scores"]
    lines = ["## Training data and scores", ""]
    if "utterances" in training:
        emotions = ", ".join(f"{name} {count:,}" for name, count in training["emotions"].items())
        lines += [
            f"{training['corpus']}: {training['utterances']:,} utterances of {training['speakers']} speakers "
            f"({emotions}), {training['transcribed']:,} with transcripts.",
        ]
    else:
        lines += [f"{training['corpus']} (its table was not beside the model when this was exported)."]
    if counts := training["counts"]:
        lines += [
            "",
            f"This member: {counts['train']:,} for training, {counts['validation']:,} for validation, "
            f"{counts['test']:,} for testing.",
        ]
    if protocol:
        lines += ["", f"Protocol: {protocol['title']}. {protocol['sentence']}"]
        lines += [f"\n**{head}.** {text}" for head, text in protocol["warnings"].items()]
    if scores:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if value is not None)
        lines += ["", f"On its test part: {shown}."]
    if record["leakage"]:
        lines += ["", f"Leakage of the protocol: {record['leakage']}"]
    return "\n".join(lines)


def _versions(versions: Mapping[str, Mapping[str, str]]) -> str:
    names = sorted(versions["exported_with"])
    trained = versions["trained_with"]
    rows = [f"| {name} | {trained.get(name, '')} | {versions['exported_with'][name]} |" for name in names]
    return "\n".join(["## Versions", "", "| | trained | exported |", "| --- | --- | --- |", *rows])

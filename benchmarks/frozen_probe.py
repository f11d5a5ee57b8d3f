"""What a frozen encoder knows of emotion, layer by layer: logistic regression on the mean of each layer's frames.

    python benchmarks/frozen_probe.py --corpus FOLDER --checkpoint FOLDER --output benchmarks/results

Each group of ``--group-column`` (a speaker) is predicted by a regression fitted on all the others, on standardised
features. It is the baseline that fine-tuning has to beat under the same protocol. The best layer is read off the
tested utterances, so it is an optimistic figure; the concatenation of all layers is not. Needs the extra ``test``.
"""

from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jax_mtlser import runtime
from jax_mtlser.config import AudioConfig, EncoderConfig
from jax_mtlser.corpora.manifest import read_manifest
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import FILL, make_buckets, plan_in_order
from jax_mtlser.data.batches import waveform
from jax_mtlser.data.packed import pack
from jax_mtlser.models.layers import masked_mean
from jax_mtlser.models.pretrained import encoder_parameters, open_encoder
from jax_mtlser.models.speech_encoder import speech_encoder
from jax_mtlser.models.transformer import EncoderOptions


def main() -> None:
    """Extract, fit, write a JSON file and a table."""
    parser = common.parser(__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with metadata.csv, or a CSV table")
    parser.add_argument("--checkpoint", required=True, help="encoder, as for --config.model.encoder.checkpoint")
    parser.add_argument("--group-column", default="speaker")
    parser.add_argument("--inverse-regularisation", type=float, default=0.01)
    arguments = parser.parse_args()
    runtime.tune_allocator()

    manifest, features = extract(arguments.corpus, arguments.checkpoint)
    labels = np.array([utterance.emotion for utterance in manifest.utterances])
    groups = np.array([
        utterance.speaker if arguments.group_column == "speaker" else utterance.groups[arguments.group_column]
        for utterance in manifest.utterances
    ])  # fmt: skip
    names = ["input", *(f"layer {index + 1}" for index in range(features.shape[1] - 2)), "output"]
    inputs = {name: features[:, index] for index, name in enumerate(names)}
    inputs["all together"] = features.reshape(len(features), -1)
    rows = [probe(name, x, labels, groups, arguments.inverse_regularisation) for name, x in inputs.items()]
    result = {
        "corpus": manifest.name,
        "checkpoint": Path(arguments.checkpoint).name,
        "protocol": f"leave one {arguments.group_column} out, {len(set(groups))} folds, {len(labels)} utterances",
        "inverse_regularisation": arguments.inverse_regularisation,
        "probes": rows,
    }
    lines = [[row["input"], f"{100 * row['wa']:.1f}", f"{100 * row['ua']:.1f}"] for row in rows]
    text = f"{result['checkpoint']} on {manifest.name}, {result['protocol']}\n\n"
    text += common.table(["input", "WA", "UA"], lines)
    common.write(arguments.output, f"frozen_probe_{manifest.name}_{result['checkpoint']}", result, text)


def extract(corpus: Path, checkpoint: str) -> tuple[Any, np.ndarray]:
    """The utterances, and float32 [utterances, layers + 2, D]: input of the first layer, each output, the last frames."""
    encoder = open_encoder(EncoderConfig(checkpoint=checkpoint))
    assert encoder.weights is not None
    params, _ = encoder_parameters(encoder.weights, encoder.arch)
    longest = encoder.arch.max_samples()
    audio_config = AudioConfig(max_seconds=35.0 if longest is None else longest / SAMPLE_RATE)
    manifest, audio, _ = pack(read_manifest(corpus), audio_config)
    buckets = make_buckets(
        audio.lengths, np.ones(len(audio.lengths), int), num_buckets=4, batch_size=16, batch_seconds=None,
        rows_multiple=1, multiple=encoder.arch.hop(),
    )  # fmt: skip
    module = speech_encoder(encoder.arch, EncoderOptions())

    @jax.jit
    def means(params: Any, samples: Any, lengths: Any) -> Any:
        x = waveform(samples, lengths, normalize=encoder.normalize_waveform)
        output = module.apply({"params": params}, x, lengths, train=False, output_hidden_states=True)
        return jax.numpy.stack([masked_mean(h, output.mask) for h in (*output.hidden_states, output.frames)], axis=1)

    found = np.zeros((len(audio.lengths), encoder.arch.num_hidden_layers + 2, encoder.arch.hidden_size), np.float32)
    for planned in plan_in_order(range(len(audio.lengths)), buckets):
        rows = planned.rows[planned.rows != FILL]
        samples = np.zeros((len(planned.rows), buckets.bounds[planned.bucket]), np.int16)
        for place, row in enumerate(rows):
            samples[place, : audio.lengths[row]] = audio[int(row)]
        lengths = np.zeros(len(planned.rows), np.int32)
        lengths[: len(rows)] = audio.lengths[rows]
        found[rows] = np.asarray(means(params, samples, lengths))[: len(rows)]
    return manifest, found


def probe(name: str, x: np.ndarray, labels: np.ndarray, groups: np.ndarray, strength: float) -> dict[str, Any]:
    """Accuracies of a regression that never saw the tested group."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    predicted = cross_val_predict(model, x, labels, groups=groups, cv=LeaveOneGroupOut())
    by_group = {group: float((predicted == labels)[groups == group].mean()) for group in sorted(set(groups))}
    return {
        "input": name,
        "wa": float((predicted == labels).mean()),
        "ua": float(balanced_accuracy_score(labels, predicted)),
        "wa_by_group": by_group,
    }


if __name__ == "__main__":
    main()

"""Compilation and step time of each released base encoder, against transformers' PyTorch model in the same run.

    python benchmarks/encoders.py --output benchmarks/results

One training step is forward and backward through the whole encoder in float32 (the loss is the sum of the output),
without dropout and optimizer, on the same noise, random weights of the released shape. The two sides take turns;
medians are quoted. PyTorch runs eagerly with its default attention; compilation is stated apart. Needs the extra
``test``.
"""

import gc
import statistics
import time

import common
import jax
import numpy as np
import torch
import transformers

from jax_mtlser import runtime
from jax_mtlser.config import EncoderConfig
from jax_mtlser.models.pretrained import encoder_parameters, open_encoder
from jax_mtlser.models.speech_encoder import speech_encoder
from jax_mtlser.models.transformer import EncoderOptions

# Shapes of the released checkpoints; what is not named is the family's default.
ENCODERS = {
    "wav2vec2-base": (transformers.Wav2Vec2Config(), transformers.Wav2Vec2Model),
    "hubert-base": (transformers.HubertConfig(), transformers.HubertModel),
    "wavlm-base-plus": (transformers.WavLMConfig(), transformers.WavLMModel),
    "data2vec-audio-base": (transformers.Data2VecAudioConfig(), transformers.Data2VecAudioModel),
    "whisper-base": (
        transformers.WhisperConfig(
            d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048, decoder_layers=1
        ),
        transformers.models.whisper.modeling_whisper.WhisperEncoder,
    ),
}


def main() -> None:
    """Measure every encoder and write a JSON file and a table."""
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    runtime.tune_allocator()
    torch.manual_seed(0)
    rows = [measure(name, arguments.batch, arguments.seconds, arguments.repeats) for name in ENCODERS]
    result = {
        "settings": {"batch": arguments.batch, "seconds": arguments.seconds, "repeats": arguments.repeats,
                     "precision": "float32", "threads": torch.get_num_threads()},
        "encoders": rows,
    }  # fmt: skip
    common.write(arguments.output, common.name_of("encoders", "cpu"), result, to_table(result))


def measure(name: str, batch: int, seconds: float, repeats: int) -> dict[str, float | str]:
    """Compile ours, then time both sides in turns."""
    config, model_class = ENCODERS[name]
    for field in vars(config):
        if "dropout" in field or "layerdrop" in field:
            setattr(config, field, 0.0)
    config.apply_spec_augment = False
    model = model_class(config).train()
    ours, params = import_from(model)
    samples = int(seconds * 16_000)
    audio = np.random.default_rng(0).standard_normal((batch, samples)).astype(np.float32)
    whisper = config.model_type == "whisper"
    if whisper:  # both sides in Whisper's window of 30 s: the reference takes nothing shorter
        theirs_input = torch.randn(batch, config.num_mel_bins, 3000)
    else:
        theirs_input = torch.from_numpy(audio)
    lengths = np.full(batch, samples)

    def loss(params, audio, lengths):
        return ours.apply({"params": params}, audio, lengths, train=False).frames.sum()

    started = time.perf_counter()
    step = jax.jit(jax.value_and_grad(loss)).lower(params, audio, lengths).compile()
    compile_seconds = time.perf_counter() - started

    def ours_step() -> None:
        jax.block_until_ready(step(params, audio, lengths))

    def theirs_step() -> None:
        model.zero_grad()
        model(theirs_input).last_hidden_state.sum().backward()

    with common.measuring():
        times = common.take_turns({"ours": ours_step, "theirs": theirs_step}, repeats)
    medians = {side: statistics.median(values) for side, values in times.items()}
    row = {
        "encoder": name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "compile_seconds": round(compile_seconds, 2),
        "step_ms": round(1000 * medians["ours"], 1),
        "step_ms_range": [round(1000 * pick(times["ours"]), 1) for pick in (min, max)],
        "pytorch_step_ms": round(1000 * medians["theirs"], 1),
        "pytorch_step_ms_range": [round(1000 * pick(times["theirs"]), 1) for pick in (min, max)],
        "speedup_vs_transformers_eager": round(medians["theirs"] / medians["ours"], 3),
        "padding": "window of 30 s on both sides" if whisper else "none",
    }
    del step, model, params
    gc.collect()
    return row


def import_from(model: torch.nn.Module):
    """Our encoder with the weights of a PyTorch model, by way of a checkpoint."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        opened = open_encoder(EncoderConfig(checkpoint=folder))
        assert opened.weights is not None
        params, _ = encoder_parameters(opened.weights, opened.arch)
    whisper = model.config.model_type == "whisper"
    return speech_encoder(opened.arch, EncoderOptions(hf_compat=whisper)), jax.device_put(params)


def to_table(result: dict) -> str:
    """The result as Markdown."""
    settings = result["settings"]
    lines = [
        f"Encoders, forward and backward, float32, {settings['batch']} x {settings['seconds']:g} s, "
        f"{settings['threads']} threads. Median of {settings['repeats']}, sides interleaved.",
        "",
        "| encoder | parameters | compilation (s) | step (ms) | PyTorch eager (ms) | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['encoder']} | {row['parameters'] / 1e6:.1f} M | {row['compile_seconds']} | {row['step_ms']} "
        f"| {row['pytorch_step_ms']} | {row['speedup_vs_transformers_eager']} |"
        for row in result["encoders"]
    ]
    lines += ["", "Whisper: both sides in the window of 30 s, the only length that the reference takes."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

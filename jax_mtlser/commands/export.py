"""``jax-mtlser export``: a trained model in a form that others load."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jax_mtlser.commands.command import UsageError, answer_errors, set_up_process

__all__ = ["export_command"]


def export_command(argv: Sequence[str]) -> int:
    """Write a member in one of four formats, verified on real audio and with a model card."""
    from jax_mtlser.inference.exports.formats import ExportFormat, OnnxShape, Weights

    default = OnnxShape()
    parser = argparse.ArgumentParser(
        "jax-mtlser export",
        description="Write a trained model for others: verified on real audio, with a model card.",
        epilog="formats: huggingface (the encoder alone, for transformers), orbax (all heads, for this package), "
        "stablehlo (samples to emotion probabilities, for jax without this package), onnx (the same in a fixed shape)",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="run folder of a training")
    parser.add_argument("--member", help="fold of a repeat, such as r0_f0; may be left out where there is one only")
    parser.add_argument("--to", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--format", choices=[form.value for form in ExportFormat], default="huggingface")
    parser.add_argument("--weights", choices=[weights.value for weights in Weights], default="float32")
    parser.add_argument("--licence", metavar="TEXT", help="of the weights, for the model card")
    parser.add_argument("--audio", type=Path, help="recordings to verify on (default: the member's test part)")
    parser.add_argument("--batch", type=int, help=f"utterances at once, onnx only (default {default.batch})")
    parser.add_argument("--seconds", type=float, help=f"of audio each, onnx only (default {default.seconds:g})")
    arguments = parser.parse_args(list(argv[1:]))

    def run() -> int:
        form, weights = ExportFormat(arguments.format), Weights(arguments.weights)
        if arguments.to.exists() and (not arguments.to.is_dir() or any(arguments.to.iterdir())):
            raise UsageError(f"{arguments.to} is not empty; name a new folder with --to")
        if form is not ExportFormat.ONNX and (arguments.batch, arguments.seconds) != (None, None):
            raise UsageError("--batch and --seconds belong to --format onnx; other formats take any shape")
        set_up_process()
        from rich.console import Console

        from jax_mtlser.inference.exports.export import export_member
        from jax_mtlser.inference.exports.table import print_export
        from jax_mtlser.inference.trained_model import find_models

        (model,) = find_models(arguments.workdir, None if arguments.member is None else [arguments.member])
        exported = export_member(
            model,
            arguments.to,
            form,
            weights,
            licence=arguments.licence,
            audio=arguments.audio,
            shape=OnnxShape(
                default.batch if arguments.batch is None else arguments.batch,
                default.seconds if arguments.seconds is None else arguments.seconds,
            ),
        )
        print_export(exported, form, weights, arguments.to, Console())
        return 0

    return answer_errors(run)

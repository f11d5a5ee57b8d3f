"""``jax-mtlser export``: a trained model in a form that others load."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jax_mtlser.commands.command import UsageError, answer_errors, set_up_process

__all__ = ["export_command"]


def export_command(argv: Sequence[str]) -> int:
    """Write a member's fine-tuned encoder as a folder that ``transformers`` loads."""
    parser = argparse.ArgumentParser("jax-mtlser export", description="Write a trained encoder in Hugging Face layout.")
    parser.add_argument("--workdir", type=Path, required=True, help="run folder of a training")
    parser.add_argument("--member", help="fold of a repeat, such as r0_f0; may be left out where there is one only")
    parser.add_argument("--to", type=Path, required=True, help="folder to write, new or empty")
    arguments = parser.parse_args(list(argv[1:]))

    def run() -> int:
        if arguments.to.exists() and (not arguments.to.is_dir() or any(arguments.to.iterdir())):
            raise UsageError(f"{arguments.to} is not empty; name a new folder with --to")
        set_up_process()
        from jax_mtlser.inference.trained_model import TrainedModel

        trained = TrainedModel.load(arguments.workdir, arguments.member)
        trained.export_encoder(arguments.to)
        family = trained.arch.family.value
        print(f"{family} encoder, {trained.arch.num_hidden_layers} layers, without its heads: {arguments.to}")
        return 0

    return answer_errors(run)

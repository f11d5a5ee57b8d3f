"""``jax-mtlser eval``, also ``eval.py``: a finished run judged again."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jax_mtlser.commands.command import answer_errors, set_up_process

__all__ = ["eval_command"]


def eval_command(argv: Sequence[str]) -> int:
    """Judge a run again; status 1 when a number differs from the stored one."""
    parser = argparse.ArgumentParser(
        "jax-mtlser eval",
        description="Recompute a run's results from its saved models, write results and report anew, and say where a "
        "number differs from the stored one (status 1). eval.py is the same.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="run folder of a training")
    arguments = parser.parse_args(list(argv[1:]))

    def run() -> int:
        set_up_process()
        from jax_mtlser.experiments.runner import evaluate_run
        from jax_mtlser.training.progress import Display

        display = Display()
        differences = evaluate_run(arguments.workdir, display)
        for difference in differences:
            display.line(f"differs: {difference}")
        if not differences:
            display.line("all recomputed numbers equal the stored ones")
        return 1 if differences else 0

    return answer_errors(run)

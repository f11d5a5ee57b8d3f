"""``jax-mtlser compare``: whether runs differ by more than chance."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jax_mtlser.commands.command import UsageError, answer_errors

__all__ = ["compare_command"]


def compare_command(argv: Sequence[str]) -> int:
    """Compare finished runs on the utterances that all of them were tested on."""
    parser = argparse.ArgumentParser(
        "jax-mtlser compare",
        description="Paired comparison of runs that were tested on the same utterances: differences of WA, UA and macro "
        "F1 with intervals from resampling sessions, dialogues or speakers, McNemar's test, and the corrected resampled "
        "t-test where the runs share their folds.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, or RUN:VARIANT; the others are compared with the first"
    )
    parser.add_argument("--all-pairs", action="store_true", help="compare every run with every other")
    parser.add_argument(
        "--cluster",
        metavar="COLUMN",
        help="what to resample: speaker, a group column of the corpus such as session or dialogue, or utterance; by "
        "default the first of session, dialogue and speaker that is known",
    )
    parser.add_argument(
        "--common",
        action="store_true",
        help="leave out utterances that not all runs were tested on, instead of refusing",
    )
    parser.add_argument("--draws", type=int, default=10_000, help="of the bootstrap (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument(
        "-o", "--output", type=Path, action="append", default=[], metavar="FILE",
        help="write everything as .json, or one row for each pair and metric as .csv; may be given twice",
    )  # fmt: skip
    arguments = parser.parse_args(list(argv[1:]))

    def run() -> int:
        from rich.console import Console

        from jax_mtlser.evaluation.comparison import compare
        from jax_mtlser.evaluation.comparison_text import FORMATS, print_comparison, write_comparison
        from jax_mtlser.evaluation.paired_runs import load_systems

        if wrong := [path for path in arguments.output if path.suffix not in FORMATS]:
            raise UsageError(f"cannot write {wrong[0]}: name a file that ends in {' or '.join(FORMATS)}")
        if arguments.draws < 1000:
            raise UsageError(f"--draws is {arguments.draws}; percentiles need 1000 at the least")
        if arguments.seed < 0:
            raise UsageError(f"--seed is {arguments.seed}; it must be 0 or greater")
        comparison = compare(
            load_systems(arguments.runs),
            cluster=arguments.cluster,
            all_pairs=arguments.all_pairs,
            common_only=arguments.common,
            draws=arguments.draws,
            seed=arguments.seed,
        )
        console = Console(highlight=False)
        print_comparison(comparison, console)
        for path in arguments.output:
            write_comparison(comparison, path)
            console.print(f"written: {path}", markup=False, soft_wrap=True)
        return 0

    return answer_errors(run)

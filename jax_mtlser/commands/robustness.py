"""``jax-mtlser robustness``: a trained run under noise, in rooms, through telephones and codecs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jax_mtlser.commands.command import UsageError, answer_errors, set_up_process

__all__ = ["robustness_command"]


def robustness_command(argv: Sequence[str]) -> int:
    """Judge a run's test parts again under each condition; one table, one figure."""
    from jax_mtlser.data.conditions import DEFAULT_CONDITIONS, describe_kinds, parse_conditions
    from jax_mtlser.data.degradations import DegradationError

    parser = argparse.ArgumentParser(
        "jax-mtlser robustness",
        description="Judge the test parts of a trained run under noise, in rooms, and through codecs.",
        epilog=f"conditions:\n{describe_kinds()}\n\nby default:\n  {' '.join(c.name for c in DEFAULT_CONDITIONS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="run folder of a training")
    parser.add_argument(
        "--condition",
        action="append",
        metavar="KIND[:VALUE,...]",
        help="such as white:20,10,0; may be given several times",
    )
    parser.add_argument("--noise", type=Path, metavar="DIR", help="recordings of noise, for the condition noise")
    parser.add_argument("--rooms", type=Path, metavar="DIR", help="impulse responses, for the condition room")
    parser.add_argument("--seed", type=int, default=0, help="of noise, babble and rooms (default 0)")
    parser.add_argument("--variant", help="which one, where the run has variants")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="results (default WORKDIR/robustness)")
    arguments = parser.parse_args(list(argv[1:]))

    def run() -> int:
        try:
            conditions = parse_conditions(arguments.condition) if arguments.condition else DEFAULT_CONDITIONS
        except DegradationError as error:
            raise UsageError(str(error)) from None
        if arguments.seed < 0:
            raise UsageError(f"--seed is {arguments.seed}; it must be 0 or greater")
        set_up_process()
        from jax_mtlser.experiments.robustness import measure_robustness
        from jax_mtlser.training.progress import Display

        measure_robustness(
            arguments.workdir,
            conditions,
            Display(),
            noise=arguments.noise,
            rooms=arguments.rooms,
            seed=arguments.seed,
            variant=arguments.variant,
            output=arguments.output,
        )
        return 0

    return answer_errors(run)

"""``jax-mtlser leakage``: what a protocol lets training know of its test utterances."""

from collections.abc import Sequence
from pathlib import Path

from jax_mtlser.commands.command import UsageError, answer_errors, set_up_process
from jax_mtlser.commands.train import parse_train_flags
from jax_mtlser.config import validate

__all__ = ["leakage_command"]

_USAGE = """usage: jax-mtlser leakage --config FILE [--config.FIELD=VALUE ...] [--noaudio]
       jax-mtlser leakage --workdir DIR [--noaudio]

  --config FILE    configuration whose corpus and protocol are looked at; nothing is trained, no encoder is needed
  --workdir DIR    run folder of a training: its folds, beside its score
  --noaudio        do not read the recordings: copies are not looked for, and unusable recordings stay in the folds"""


def leakage_command(argv: Sequence[str]) -> int:
    """Print what training shares with the test utterances, and what guesses from labels alone score."""
    if {"-h", "--help"} & set(argv):
        print(_USAGE)
        return 0

    def run() -> int:
        arguments = [argument for argument in argv if argument != "--noaudio"]
        audio = len(arguments) == len(argv)
        names = {argument.partition("=")[0] for argument in arguments}
        if "--config" not in names:
            workdir = _workdir(arguments)
        elif "--workdir" in names:
            raise UsageError("--config and --workdir are two ways to say what to look at; use one")
        else:
            config, _ = parse_train_flags(arguments)
            validate(config)
            workdir = None
        set_up_process()
        from jax_mtlser.experiments.leakage_check import check_protocol, check_run
        from jax_mtlser.training.progress import Display

        if workdir is None:
            check_protocol(config, Display(), audio=audio)
        else:
            check_run(workdir, Display(), audio=audio)
        return 0

    return answer_errors(run)


def _workdir(arguments: Sequence[str]) -> Path:
    match arguments[1:]:
        case ["--workdir", path]:
            return Path(path)
        case [argument] if argument.startswith("--workdir="):
            return Path(argument.partition("=")[2])
    what = f"cannot understand {' '.join(arguments[1:])}; " if len(arguments) > 1 else ""
    raise UsageError(f"{what}name either a configuration or a run folder\n\n{_USAGE}")

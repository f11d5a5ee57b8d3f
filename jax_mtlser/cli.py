"""The commands: flags, process set-up, one call. ``train.py`` and ``eval.py`` are the first two of them."""

import argparse
import dataclasses
import difflib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from jax_mtlser import runtime
from jax_mtlser.config import Config, ConfigError, validate

__all__ = ["eval_command", "export_command", "main", "train_command"]

_USAGE = """jax-mtlser: multi-task speech emotion recognition

  jax-mtlser train --config FILE [--workdir DIR] [--config.FIELD=VALUE ...]   train, cross-validate, report
  jax-mtlser eval --workdir DIR                                               judge a finished run again
  jax-mtlser export --workdir DIR [--member NAME] --to FOLDER                 encoder in Hugging Face layout

train.py and eval.py in the source tree are the same commands."""

_TRAIN_USAGE = """usage: train.py --config FILE [--workdir DIR] [--config.FIELD=VALUE ...]

  --config FILE           Python file with get_config(), such as configs/demo.py
  --config.FIELD=VALUE    change one setting, such as --config.optimizer.learning_rate=2e-5
  --workdir DIR           run folder, by default runs/NAME of the configuration; the same command goes on
                          with what is not finished there"""


class UsageError(Exception):
    """A command line that cannot be understood; shown without a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``jax-mtlser``; returns the exit status."""
    argv = list(sys.argv if argv is None else argv)
    match argv[1:2]:
        case ["train"]:
            return train_command([argv[0], *argv[2:]])
        case ["eval"]:
            return eval_command([argv[0], *argv[2:]])
        case ["export"]:
            return export_command([argv[0], *argv[2:]])
        case ["-h" | "--help" | "help"]:
            print(_USAGE)
            return 0
        case []:
            print(_USAGE, file=sys.stderr)
            return 2
    near = difflib.get_close_matches(argv[1], ["train", "eval", "export"], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    print(f"jax-mtlser: there is no command {argv[1]!r}{hint}\n\n{_USAGE}", file=sys.stderr)
    return 2


def train_command(argv: Sequence[str]) -> int:
    """Train a configuration: ``argv[0]`` is the program, the rest are flags."""
    if {"-h", "--help"} & set(argv):
        print(_TRAIN_USAGE)
        return 0

    def run() -> int:
        config, workdir = parse_train_flags(argv)
        validate(config)
        _set_up_process()
        from jax_mtlser.experiments.runner import train_run
        from jax_mtlser.training.progress import Display

        return min(train_run(config, workdir, Display()), 1)

    return _answer_errors(run)


def eval_command(argv: Sequence[str]) -> int:
    """Judge a run again; status 1 when a number differs from the stored one."""
    parser = argparse.ArgumentParser("eval.py", description="Recompute a run's results from its saved models.")
    parser.add_argument("--workdir", type=Path, required=True, help="run folder of a training")
    arguments = parser.parse_args(list(argv[1:]))

    def run() -> int:
        _set_up_process()
        from jax_mtlser.experiments.runner import evaluate_run
        from jax_mtlser.training.progress import Display

        display = Display()
        differences = evaluate_run(arguments.workdir, display)
        for difference in differences:
            display.line(f"differs: {difference}")
        if not differences:
            display.line("all recomputed numbers equal the stored ones")
        return 1 if differences else 0

    return _answer_errors(run)


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
        _set_up_process()
        from jax_mtlser.inference.trained_model import TrainedModel

        trained = TrainedModel.load(arguments.workdir, arguments.member)
        trained.export_encoder(arguments.to)
        family = trained.arch.family.value
        print(f"{family} encoder, {trained.arch.num_hidden_layers} layers, without its heads: {arguments.to}")
        return 0

    return _answer_errors(run)


def parse_train_flags(argv: Sequence[str]) -> tuple[Config, Path]:
    """Read ``--config``, its overrides and ``--workdir``.

    Raises:
        UsageError: in one or two lines, with near names for a field that does not exist.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "run", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
    try:
        rest = values(list(argv))
    except KeyError as error:
        raise UsageError(_unknown_field(argv) or str(error)) from None
    except flags.Error as error:
        if ".config" in str(error) or "--config." in str(error):
            raise UsageError(_unknown_field(argv) or str(error)) from None
        raise UsageError(_refused_by_config(str(error)) or str(error)) from None
    except Exception as error:
        raise UsageError(_unknown_field(argv) or _broken_config(error)) from error
    if len(rest) > 1:
        raise UsageError(f"what is {rest[1]!r}? Settings are given as --config.FIELD=VALUE")
    config_path = _value_of("config", argv)
    if config_path is None:
        raise UsageError(f"--config is missing\n\n{_TRAIN_USAGE}")
    if not Path(config_path.partition(":")[0]).is_file():
        near = (
            sorted(str(p) for p in Path(config_path).parent.glob("*.py")) if Path(config_path).parent.is_dir() else []
        )
        hint = f"; there are {', '.join(near)}" if near else ""
        raise UsageError(f"there is no configuration file {config_path}{hint}")
    config = values.config
    if not isinstance(config, Config):
        raise UsageError(f"get_config() in {config_path} returned {type(config).__name__}, not a jax_mtlser Config")
    return config, Path(values.workdir or Path("runs") / config.name)


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The value of ``--flag VALUE`` or ``--flag=VALUE``."""
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = argument.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            return value if equals else following
    return None


def _unknown_field(argv: Sequence[str]) -> str | None:
    """Say which ``--config.…`` names no field, and which one may have been meant."""
    for argument in argv:
        name, _, _ = argument.lstrip("-").partition("=")
        name = name.removeprefix("no") if name.startswith("noconfig.") else name
        if not name.startswith("config."):
            continue
        cls: Any = Config
        path: list[str] = []
        for part in name.split(".")[1:]:
            fields = (
                {field.name: field.type for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
            )
            where = ".".join(["config", *path])
            if part not in fields:
                if not fields:
                    return f"--{name}: {where} is a value, not a group of settings"
                near = difflib.get_close_matches(part, fields, 3, 0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(fields)}"
                return f"--{name}: {where} has no setting {part!r}; {hint}"
            cls = fields[part]
            path.append(part)
    return None


def _refused_by_config(message: str) -> str | None:
    """What get_config() raised, out of the traceback that ml_collections makes a message of."""
    if "Error whilst parsing config file" not in message:
        return None
    return f"the configuration file cannot be used: {message.strip().splitlines()[-1]}"


def _broken_config(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"the configuration file cannot be read: {type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
    )


def _set_up_process() -> None:
    runtime.tune_allocator()
    runtime.enable_compilation_cache()


def _answer_errors(run: Callable[[], int]) -> int:
    """Run a command; what a user can mend is said in a few lines, anything else keeps its traceback."""
    try:
        return run()
    except (UsageError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        from jax_mtlser.training.interruption import Interrupted

        if isinstance(error, Interrupted):
            print(f"stopped by {error}", file=sys.stderr)
            return 128 + error.signal
        if type(error).__module__.startswith("jax_mtlser."):
            print(f"error: {error}", file=sys.stderr)
            return 1
        raise

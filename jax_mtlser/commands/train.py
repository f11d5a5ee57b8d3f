"""``jax-mtlser train``, also ``train.py``: a configuration file with overrides, trained and reported."""

import contextlib
import dataclasses
import difflib
import functools
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from jax_mtlser.commands.command import UsageError, answer_errors, set_up_process
from jax_mtlser.config import Config, validate
from jax_mtlser.experiments.smoke import smoke_config

__all__ = ["parse_train_flags", "train_command"]

_USAGE = """usage: jax-mtlser train --config FILE [--workdir DIR] [--members PART] [--config.FIELD=VALUE ...]

Train every member of a configuration (each fold of each repeat, or one part of them), test it, and report. Members that
are finished are left as they are, so the same command goes on with a run that was stopped. train.py is the same.

  --config FILE           Python file with get_config(), such as configs/demo.py
  --config.FIELD=VALUE    change one setting, such as --config.optimizer.learning_rate=2e-5
  --workdir DIR           run folder, by default runs/NAME of the configuration. Several processes, on machines
                          that share the folder, may run the same command: they divide the members among them
  --members PART          train a part of the members only: i/n (the i-th of n equal parts, from 1, as in a SLURM
                          array: --members=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT), or names with * and ?,
                          such as 'r0_*', several with commas between
  --stale_after SECONDS   take a member over from another machine's process after so long without a sign of life
                          (default 600; the same for all processes)
  --distributed           divide each batch among the devices of several processes, which start the same command with a
                          --workdir that all see: one for each GPU under SLURM or Open MPI, one on each host under
                          Kubernetes. Elsewhere, on each host, with the three that follow
  --coordinator HOST:PORT where process 0 listens
  --processes N           how many there are
  --process I             which one this is, from 0
  --join_timeout SECONDS  how long they wait for each other at the start (default 300)
  --config.smoke=true     all of the experiment in small: synthetic speech, tiny random encoder, one epoch"""


def train_command(argv: Sequence[str]) -> int:
    """Train a configuration: ``argv[0]`` is the program, the rest are flags."""
    if {"-h", "--help"} & set(argv):
        print(_USAGE)
        return 0

    def run() -> int:
        config, workdir = parse_train_flags(argv)
        validate(config)
        set_up_process()
        from rich.console import Console

        from jax_mtlser.experiments.runner import STALE_AFTER, train_run
        from jax_mtlser.training import processes
        from jax_mtlser.training.progress import Display

        joining = _joining(argv)
        part, stale_after = _value_of("members", argv), _value_of("stale_after", argv)
        with contextlib.nullcontext() if joining is None else processes.joined(**joining):
            failed = train_run(
                config,
                workdir,
                Display(Console(highlight=False, quiet=not processes.is_first())),
                members="1/1" if part is None else part,
                stale_after=STALE_AFTER if stale_after is None else float(stale_after),
            )
        return min(failed, 1)

    return answer_errors(run)


def parse_train_flags(argv: Sequence[str]) -> tuple[Config, Path]:
    """Read ``--config``, its overrides and ``--workdir``.

    Raises:
        UsageError: in one or two lines, with near names for a field that does not exist.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "run", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
    flags.DEFINE_string("members", None, "part of the members", flag_values=values)
    flags.DEFINE_float("stale_after", None, "seconds", lower_bound=0.0, flag_values=values)
    _define_joining(values)
    try:
        rest = values(list(argv))
    except KeyError as error:
        raise UsageError(_unknown_field(argv) or str(error)) from None
    except flags.Error as error:
        if ".config" in str(error) or "--config." in str(error):
            raise UsageError(_unknown_field(argv) or str(error)) from None
        raise UsageError(_refused_by_config(str(error)) or _unknown_flag(error) or str(error)) from None
    except Exception as error:
        raise UsageError(_unknown_field(argv) or _broken_config(error)) from error
    if len(rest) > 1:
        raise UsageError(f"what is {rest[1]!r}? Settings are given as --config.FIELD=VALUE")
    config_path = _value_of("config", argv)
    if config_path is None:
        raise UsageError(f"--config is missing\n\n{_USAGE}")
    if not Path(config_path.partition(":")[0]).is_file():
        named = Path(config_path)
        near = sorted(str(path) for path in (named if named.is_dir() else named.parent).glob("*.py"))
        hint = f"; there are {', '.join(near)}" if near else ""
        raise UsageError(f"there is no configuration file {config_path}{hint}")
    config = values.config
    if not isinstance(config, Config):
        raise UsageError(f"get_config() in {config_path} returned {type(config).__name__}, not a jax_mtlser Config")
    overrides = config_flags.get_override_values(values["config"])
    _require_not_varied(config, overrides)
    if config.smoke:
        config = smoke_config(config)
        for path, value in overrides.items():  # what is asked for is done, in small or not
            *groups, field = path.split(".")
            setattr(functools.reduce(getattr, groups, config), field, value)
    return config, Path(values.workdir or Path("runs") / config.name)


def _define_joining(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean("distributed", False, "with other processes", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("processes", None, "how many", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process", None, "which one", lower_bound=0, flag_values=values)
    flags.DEFINE_float("join_timeout", None, "seconds", lower_bound=1.0, flag_values=values)


def _joining(argv: Sequence[str]) -> dict[str, Any] | None:
    """How this process joins others: arguments of ``processes.joined``; None when it trains by itself."""
    values = flags.FlagValues()
    _define_joining(values)
    values(list(argv), known_only=True)
    named = {name: values[name].value for name in ("coordinator", "processes", "process")}
    if not values.distributed and any(value is not None for value in named.values()):
        raise UsageError("--coordinator, --processes and --process are for --distributed, which is missing")
    if not values.distributed:
        return None
    return named if values.join_timeout is None else {**named, "timeout": values.join_timeout}


def _require_not_varied(config: Config, overrides: Mapping[str, Any]) -> None:
    """Refuse a setting that would have no effect, because each variant brings its own."""
    for path in overrides:
        if by := [variant.name for variant in config.variants if path in variant.overrides]:
            raise UsageError(
                f"--config.{path} would have no effect: the variants {', '.join(by[:3])}{', ...' if by[3:] else ''} "
                "of this experiment set it. Choose among them with --members, or change the configuration file"
            )


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
                elsewhere = [] if near else [f"--config.{setting}" for setting in _settings_named(part)]
                hint = f"did you mean {' or '.join(near or elsewhere)}?"
                if not near and not elsewhere:
                    hint = f"it has {', '.join(fields)}"
                return f"--{name}: {where} has no setting {part!r}; {hint}"
            cls = fields[part]
            path.append(part)
    return None


def _unknown_flag(error: flags.Error) -> str | None:
    """Say which setting a flag that does not exist may have been meant for."""
    if not isinstance(error, flags.UnrecognizedFlagError):
        return None
    if not (meant := _settings_named(error.flagname)):
        return None
    return f"there is no flag --{error.flagname}; did you mean {' or '.join(f'--config.{path}' for path in meant)}?"


def _settings_named(name: str, cls: Any = Config, group: str = "") -> list[str]:
    """All settings of a name, wherever they stand, such as ``training.epochs``."""
    found = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            found += _settings_named(name, field.type, f"{group}{field.name}.")
        elif field.name == name:
            found.append(f"{group}{name}")
    return found


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

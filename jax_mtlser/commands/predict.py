"""``jax-mtlser predict``: a trained run asked about recordings."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jax_mtlser.commands.command import UsageError, answer_errors, set_up_process
from jax_mtlser.config import Precision

if TYPE_CHECKING:
    from jax_mtlser.inference.hearing import Windows
    from jax_mtlser.inference.requests import Found
    from jax_mtlser.inference.tables import OutputFormat
    from jax_mtlser.training.progress import Display

__all__ = ["predict_command"]

_USAGE = """jax-mtlser predict --workdir RUN PATH ... [-o OUT] [options]
       jax-mtlser predict --workdir RUN --list TABLE.csv [-o OUT] [options]
       jax-mtlser predict --workdir RUN --microphone SECONDS [-o OUT] [options]"""


def predict_command(argv: Sequence[str]) -> int:
    """Judge recordings; status 1 when none of them could be."""
    arguments = _parser().parse_args(list(argv[1:]))
    return answer_errors(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "jax-mtlser predict", usage=_USAGE, description="Emotion and gender of recordings, by a trained run."
    )
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="PATH", help="recording, or folder that is searched through")
    add("--list", type=Path, metavar="CSV", help="table with a column file and, if wanted, start and end in seconds; "
        "its other columns are kept")  # fmt: skip
    add("--microphone", type=float, metavar="SECONDS", help="record so long, and judge that")
    add("--workdir", type=Path, required=True, metavar="RUN", help="run folder of a training")
    add("--member", help="member's name, several with commas between them, or all: the mean of their probabilities; "
        "may be left out where there is one only")  # fmt: skip
    add("-o", "--output", type=Path, metavar="OUT", help=".csv, .json, .jsonl, .parquet, .rttm or .TextGrid; "
        "an interrupted call goes on when it is repeated; without it, CSV is printed")  # fmt: skip
    add("--format", choices=("csv", "json", "jsonl", "parquet", "rttm", "textgrid"), help="instead of OUT's suffix; "
        "textgrid writes one file for each recording into the folder OUT")  # fmt: skip
    add("--overwrite", action="store_true", help="replace OUT where it exists")
    add("--window", type=float, metavar="SECONDS", help="a timeline: one row for each window")
    add("--hop", type=float, metavar="SECONDS", help="from one window to the next (default: a third of the window)")
    add("--smooth", type=int, metavar="N", help="average probabilities over N neighbouring windows, odd (default: 3; "
        "1 for none)")  # fmt: skip
    add("--speaker", action="store_true", help="add the training speaker that it sounds like")
    add("--transcript", action="store_true", help="add what is said")
    add("--uncalibrated", action="store_true", help="emotion probabilities as the network gives them")
    add("--unknown-below", type=float, metavar="P", help="call emotions with less confidence unknown")
    add("--precision", choices=[precision.value for precision in Precision], default=Precision.FLOAT32.value,
        help="of the computation (default: float32)")  # fmt: skip
    add("--batch-seconds", type=float, metavar="S", help="audio that is computed at once (default: 32 on a CPU, 256 "
        "on an accelerator); less needs less memory")  # fmt: skip
    return parser


def _run(arguments: argparse.Namespace) -> int:
    output: Path | None = arguments.output
    sources = (bool(arguments.paths), arguments.list is not None, arguments.microphone is not None)
    if sum(sources) != 1:
        raise UsageError("name recordings or folders, or a table with --list, or seconds with --microphone")
    if output is None and arguments.format not in (None, "csv"):
        raise UsageError(f"--format {arguments.format} needs an output; name one with -o")
    set_up_process()
    from rich.console import Console

    from jax_mtlser.inference.predict import Prediction, predict, print_csv
    from jax_mtlser.inference.recognition import Asked
    from jax_mtlser.inference.recognizer import Recognizer
    from jax_mtlser.inference.requests import from_microphone
    from jax_mtlser.training.progress import Display

    # Standard output is the table's where no file is.
    display = Display(None if output is not None else Console(stderr=True, highlight=False))
    form = None if output is None else _form(output, arguments)
    windows = _windows(arguments)
    # A microphone is listened to when everything else is ready.
    found = None if arguments.microphone is not None else _found(arguments, display)
    recognizer = Recognizer.load(
        arguments.workdir,
        arguments.member if arguments.member in (None, "all") else arguments.member.split(","),
        calibrated=not arguments.uncalibrated,
        unknown_below=arguments.unknown_below,
        precision=Precision(arguments.precision),
        batch_seconds=arguments.batch_seconds,
    )
    asked = Asked(speaker=arguments.speaker, transcript=arguments.transcript)
    recognizer.require(asked, windows)
    if found is None:
        display.line(f"recording {arguments.microphone:g} s from the microphone")
        found = from_microphone(arguments.microphone)
    task = Prediction(recognizer, found, asked, windows)
    display.line(
        f"{_count(len(found.requests))}, judged by {', '.join(member.name for member in recognizer.members)}"
        + (f"; {recognizer.calibration}" if recognizer.emotions else "")
    )
    if output is None or form is None:
        try:
            print_csv(task)
        except BrokenPipeError:  # the reader, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
    else:
        try:
            predict(task, output, form, display)
        except OSError as error:
            raise UsageError(f"{error}; what is done is kept, and the same command goes on") from None
    for told in task.errors:
        display.line(f"  {told}")
    if task.num_errors > len(task.errors):
        display.line(f"  and {task.num_errors - len(task.errors)} more")
    display.line(
        f"{len(task.answered)} of {_count(len(found.requests))} answered"
        + (f": {output}" if output is not None else "")
    )
    return 0 if task.answered else 1


def _form(output: Path, arguments: argparse.Namespace) -> "OutputFormat":
    from jax_mtlser.inference.tables import OutputFormat, format_of, require

    form = format_of(output, arguments.format)
    require(form)
    grids = form is OutputFormat.TEXTGRID and output.is_dir()
    if output.exists() and not arguments.overwrite and (not grids or any(output.iterdir())):
        raise UsageError(f"{output} exists; name another output, or add --overwrite")
    return form


def _windows(arguments: argparse.Namespace) -> "Windows | None":
    from jax_mtlser.inference.hearing import Windows

    seconds, hop, smooth = arguments.window, arguments.hop, arguments.smooth
    if seconds is None:
        if hop is not None or smooth is not None:
            raise UsageError("--hop and --smooth belong to a timeline; add --window SECONDS")
        return None
    return Windows(seconds=seconds, hop=seconds / 3 if hop is None else hop, smooth=3 if smooth is None else smooth)


def _found(arguments: argparse.Namespace, display: "Display") -> "Found":
    from jax_mtlser.inference.requests import find_recordings, read_requests

    found = find_recordings(arguments.paths) if arguments.list is None else read_requests(arguments.list)
    if found.passed_over:
        shown = ", ".join(f"{count} {suffix}" for suffix, count in list(found.passed_over.items())[:5])
        display.line(f"passed over {sum(found.passed_over.values())} files without an audio file's name: {shown}")
    if not found.requests:
        where = ", ".join(map(str, [arguments.list] if arguments.list else arguments.paths))
        raise UsageError(f"there are no recordings in {where}")
    return found


def _count(number: int) -> str:
    return f"{number} recording{'s' if number != 1 else ''}"

"""``jax-mtlser COMMAND ...``: finds the command and hands it the rest; each lives in ``commands/``."""

import difflib
import importlib
import sys
from collections.abc import Sequence

__all__ = ["main"]

# Command: its arguments in short, what it does, and the function, imported when it is called.
_COMMANDS = {
    "train": (
        "--config FILE [--workdir DIR] [--members PART] [--config.FIELD=VALUE ...]",
        "train, cross-validate, report",
        "train:train_command",
    ),
    "corpus": (
        "[NAME=]PATH ... [--kind KIND] [--classes CLASSES] [-o FILE.csv]",
        "what a corpus on disk holds; its manifest",
        "corpus:corpus_command",
    ),
    "eval": ("--workdir DIR", "judge a finished run again", "evaluate:eval_command"),
    "leakage": (
        "--config FILE [--config.FIELD=VALUE ...] | --workdir DIR",
        "what a protocol lets training know of its test utterances",
        "leakage:leakage_command",
    ),
    "predict": (
        "--workdir RUN PATH ... [-o OUT]",
        "emotion and gender of recordings, as a table or timeline",
        "predict:predict_command",
    ),
    "demo": (
        "--workdir RUN [--host HOST] [--port PORT] [--examples DIR]",
        "a page to try a run in the browser, and an HTTP endpoint",
        "demo:demo_command",
    ),
    "compare": (
        "RUN RUN [RUN ...] [--all-pairs] [--cluster COLUMN] [-o FILE]",
        "do runs differ by more than chance?",
        "compare:compare_command",
    ),
    "export": (
        "--workdir DIR [--member NAME] --to FOLDER [--format FORMAT] [--weights WEIGHTS]",
        "a model for others: Hugging Face, Orbax, StableHLO, ONNX",
        "export:export_command",
    ),
    "robustness": (
        "--workdir DIR [--condition KIND[:VALUE,...] ...]",
        "a trained run under noise, in rooms, through codecs",
        "robustness:robustness_command",
    ),
    "cross-corpus": (
        "--workdir DIR --corpus PATH [--kind KIND] [--map LABEL=CLASS ...]",
        "a trained run on another corpus",
        "cross_corpus:cross_corpus_command",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``jax-mtlser``; returns the exit status."""
    argv = list(sys.argv if argv is None else argv)
    match argv[1:2]:
        case ["-h" | "--help" | "help"]:
            print(_usage())
            return 0
        case []:
            print(_usage(), file=sys.stderr)
            return 2
        case [name] if name in _COMMANDS:
            module, function = _COMMANDS[name][2].split(":")
            command = getattr(importlib.import_module(f"jax_mtlser.commands.{module}"), function)
            return command([argv[0], *argv[2:]])
    near = difflib.get_close_matches(argv[1], _COMMANDS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    print(f"jax-mtlser: there is no command {argv[1]!r}{hint}\n\n{_usage()}", file=sys.stderr)
    return 2


def _usage() -> str:
    lines = ["jax-mtlser: multi-task speech emotion recognition", ""]
    for name, (arguments, summary, _) in _COMMANDS.items():
        lines += [f"  jax-mtlser {name} {arguments}", f"      {summary}"]
    return "\n".join(
        [
            *lines,
            "",
            "jax-mtlser COMMAND -h says more. train.py and eval.py in the source tree are the commands train and eval.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

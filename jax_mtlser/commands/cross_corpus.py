"""``jax-mtlser cross-corpus``: a trained run judged on a corpus that it was not trained on."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jax_mtlser.commands.command import UsageError, answer_errors, set_up_process
from jax_mtlser.config import CorpusConfig, CorpusKind

__all__ = ["cross_corpus_command"]


def cross_corpus_command(argv: Sequence[str]) -> int:
    """Judge all members and their ensemble on another corpus, over the emotions that both have."""
    parser = argparse.ArgumentParser(
        "jax-mtlser cross-corpus",
        description="Judge a trained run on another corpus, over the emotions that both have.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="run folder of a training")
    parser.add_argument("--corpus", required=True, metavar="PATH", help="the other corpus")
    kinds = [kind.value for kind in CorpusKind if kind is not CorpusKind.JOINED]
    parser.add_argument("--kind", choices=kinds, help="corpus; by default guessed from the files")
    parser.add_argument("--partial", action="store_true", help="take a part of a release as it is")
    parser.add_argument(
        "--map", action="append", default=[], metavar="LABEL=CLASS",
        help="a label of the corpus that means a class of the model, such as joy=happy; may be given several times",
    )  # fmt: skip
    parser.add_argument("--variant", help="which one, where the run has variants")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="results (default WORKDIR/cross_corpus/NAME)")
    arguments = parser.parse_args(list(argv[1:]))

    def run() -> int:
        renamed: dict[str, str] = {}
        for pair in arguments.map:
            label, equals, name = pair.partition("=")
            if not (label and equals and name):
                raise UsageError(f"--map {pair}: write LABEL=CLASS, such as joy=happy")
            if renamed.setdefault(label, name) != name:
                raise UsageError(f"--map gives {label} two classes, {renamed[label]} and {name}; keep one")
        set_up_process()
        from jax_mtlser.corpora.layouts import guess_kind
        from jax_mtlser.experiments.cross_corpus import judge_other_corpus
        from jax_mtlser.training.progress import Display

        path = Path(arguments.corpus).expanduser()
        kind = CorpusKind(arguments.kind) if arguments.kind else guess_kind(path)
        corpus = CorpusConfig(kind=kind, path=str(path), partial=arguments.partial)
        judge_other_corpus(
            arguments.workdir, corpus, Display(), renamed=renamed, variant=arguments.variant, output=arguments.output
        )
        return 0

    return answer_errors(run)

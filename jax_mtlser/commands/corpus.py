"""``jax-mtlser corpus``: what a corpus on disk holds, and its manifest."""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jax_mtlser.commands.command import UsageError, answer_errors
from jax_mtlser.config import ClassSet, CorpusConfig, CorpusKind

if TYPE_CHECKING:
    from jax_mtlser.corpora.manifest import Manifest

__all__ = ["corpus_command"]

_KINDS = [kind.value for kind in CorpusKind if kind not in (CorpusKind.DEMO, CorpusKind.JOINED)]


def corpus_command(argv: Sequence[str]) -> int:
    """Print a summary of each corpus, judge it by its official release, write the manifest."""
    parser = argparse.ArgumentParser(
        "jax-mtlser corpus",
        description="Say what a corpus on disk holds and where it differs from the official release; "
        "several corpora are joined. Recordings are not decoded, only their headers are read.",
    )
    parser.add_argument("paths", nargs="+", metavar="[NAME=]PATH", help="folder of a release, or a table")
    parser.add_argument("--kind", choices=_KINDS, action="append", help="corpus; by default guessed from the files")
    parser.add_argument("--classes", choices=[each.value for each in ClassSet], default="usual", help="default: usual")
    parser.add_argument("--emotions", default="", metavar="A,B,...", help="keep these of the classes only")
    parser.add_argument("--votes", action="store_true", help="keep the annotators' votes (IEMOCAP, MSP-IMPROV)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.csv", help="write the manifest")
    arguments = parser.parse_args(list(argv[1:]))

    def run() -> int:
        if arguments.kind and len(arguments.kind) not in (1, len(arguments.paths)):
            raise UsageError(
                f"--kind is given {len(arguments.kind)} times for {len(arguments.paths)} paths; give it once or for each"
            )
        if arguments.output and arguments.output.suffix.lower() != ".csv":
            raise UsageError(f"-o {arguments.output}: manifests are written as CSV; name a file that ends in .csv")
        from jax_mtlser.corpora.join import join_manifests
        from jax_mtlser.corpora.label_maps import select_classes
        from jax_mtlser.corpora.manifest import write_manifest

        emotions = tuple(filter(None, arguments.emotions.split(",")))
        kinds = (arguments.kind or [None]) * (1 if len(arguments.kind or ()) > 1 else len(arguments.paths))
        read = [_read(path, kind, arguments.votes) for path, kind in zip(arguments.paths, kinds, strict=True)]
        config, manifest = (
            read[0]
            if len(read) == 1
            else (CorpusConfig(kind=CorpusKind.JOINED), join_manifests([each for _, each in read]))
        )
        config = dataclasses.replace(config, classes=ClassSet(arguments.classes), emotions=emotions)
        manifest = select_classes(manifest, config)
        print("\n".join(_summary(manifest)))
        for config, each in read:
            print("\n".join(f"  {line}" for line in _judgement(config, each)))
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            write_manifest(manifest, arguments.output)
            print(f"  written: {arguments.output}; read it with --config.corpus.kind=table")
        return 0

    return answer_errors(run)


def _read(argument: str, kind: str | None, votes: bool) -> "tuple[CorpusConfig, Manifest]":
    """One corpus, with all its labels, under the name that the argument may give it."""
    from jax_mtlser.corpora.layouts import guess_kind
    from jax_mtlser.corpora.load import read_corpus

    named = None if Path(argument).expanduser().exists() else re.fullmatch(r"([\w.+-]+)=(.+)", argument)
    path = Path(named[2] if named else argument).expanduser()
    config = CorpusConfig(kind=CorpusKind(kind) if kind else guess_kind(path), path=str(path), votes=votes)
    manifest = read_corpus(config)
    return config, dataclasses.replace(manifest, name=named[1]) if named else manifest


def _summary(manifest: "Manifest") -> list[str]:
    from rich.console import Console

    from jax_mtlser.corpora.summary import measure, summary_lines
    from jax_mtlser.training.progress import Display

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        return summary_lines(manifest, measure(manifest))
    with Display(console).counting("reading headers") as progress:
        return summary_lines(manifest, measure(manifest, progress))


def _judgement(config: CorpusConfig, manifest: "Manifest") -> list[str]:
    """Where a corpus, with all its labels, differs from its official release."""
    from jax_mtlser.corpora.releases import RELEASES, differences, missing_recordings

    if config.kind not in RELEASES:
        return [f"{manifest.name}: a {config.kind.value}; there is no official release to compare with"]
    release = RELEASES[config.kind]
    if not release.counts:
        return [f"{manifest.name}: {release.title}; its releases differ in size, so no counts are compared"]
    lines = differences(manifest, config.kind)
    if missing := len(missing_recordings(manifest, config.kind)):
        lines.append(f"recordings: {missing} of {len(manifest)} are missing")
    if not lines:
        return [f"{manifest.name}: all counts are those of {release.title}"]
    return [
        f"{manifest.name}: not the full release of {release.title}, found (expected):",
        *(f"  {line}" for line in lines),
        "  training on it needs --config.corpus.partial=true",
    ]

"""The leakage of a protocol, before anything is trained or beside the score of a run."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from jax_mtlser.config import Config, from_dict, to_dict
from jax_mtlser.corpora.load import load_corpus
from jax_mtlser.corpora.manifest import Manifest, ManifestError, read_manifest
from jax_mtlser.data.duplicates import first_copies
from jax_mtlser.data.labels import normalized_transcripts
from jax_mtlser.data.packed import pack
from jax_mtlser.evaluation.leakage import Leakage, LeakageMeter
from jax_mtlser.evaluation.leakage_report import print_leakage
from jax_mtlser.evaluation.protocol_text import protocol_title
from jax_mtlser.evaluation.protocols import Fold, draw_folds, fold_notes, folds_from_record, folds_record
from jax_mtlser.evaluation.results import gather_results, protocol_summary
from jax_mtlser.run_folder import RunFolder, read_json
from jax_mtlser.training.progress import Display

__all__ = ["check_protocol", "check_run"]


def check_protocol(config: Config, display: Display, *, audio: bool) -> None:
    """Draw the folds that a training would draw, and print their leakage.

    Args:
        config: validated; only corpus, audio, protocol and language are used.
        display: where the table goes.
        audio: decode the recordings, which leaves unusable ones out and finds copies.

    Raises:
        ManifestError, AudioError, ProtocolError, VocabularyError: as a training would.
    """
    with display.counting("reading the corpus") as progress:
        manifest = load_corpus(config.corpus, progress)
    manifest, copies = _usable(manifest, config, display, audio)
    transcripts = normalized_transcripts(manifest, config.model.vocabulary.language)
    drawn = draw_folds(manifest, config.protocol, transcripts)
    notes = fold_notes(manifest, config.protocol, drawn)
    summary = protocol_summary(to_dict(config), folds_record(manifest, drawn, notes))
    display.line(f"{manifest.name}: {len(manifest):,} utterances; {protocol_title(summary)}")
    folds = [fold for repeat in drawn for fold in repeat]
    display.line(_sizes(folds))
    for note in notes:
        display.line(note)
    leakage = _sum(LeakageMeter(manifest, config.protocol, transcripts, copies), folds)
    print_leakage(leakage.summary(), {}, display.console)


def check_run(workdir: Path, display: Display, *, audio: bool) -> None:
    """Print the leakage of a run's finished folds beside its score.

    Args:
        workdir: run folder.
        display: where the table goes.
        audio: look for copied recordings, for which they have to be where they were.

    Raises:
        ManifestError: no run, no finished member, or missing recordings.
    """
    run = RunFolder(workdir)
    if not run.config.exists():
        raise ManifestError(f"{workdir} is no run folder (it has no {run.config.name}); name a training's --workdir")
    config = from_dict(Config, read_json(run.config))
    manifest = read_manifest(run.corpus)
    drawn = folds_from_record(manifest, read_json(run.folds))
    results = gather_results(run)
    if not results["folds"]:
        raise ManifestError(f"{workdir} has no finished member; let train.py finish first")
    used, copies = _usable(manifest, config, display, audio)
    if len(used) < len(manifest):
        raise ManifestError(
            f"{len(manifest) - len(used)} of {len(manifest)} recordings of {workdir} cannot be read any more; "
            "restore them, or use --noaudio"
        )
    transcripts = normalized_transcripts(manifest, config.model.vocabulary.language)
    folds = [drawn[entry["repeat"]][entry["fold"]] for entry in results["folds"]]
    display.line(f"{manifest.name}: {len(manifest):,} utterances; {protocol_title(results['protocol'])}")
    display.line(_sizes(folds))
    leakage = _sum(LeakageMeter(manifest, config.protocol, transcripts, copies), folds)
    print_leakage(leakage.summary(), {"this model": results["pooled"]}, display.console)


def _usable(manifest: Manifest, config: Config, display: Display, audio: bool) -> tuple[Manifest, Sequence[int] | None]:
    """The utterances with usable recordings and the first copy of each; all, and None, without audio."""
    if not audio:
        return manifest, None
    with display.counting("decoding audio") as progress:
        manifest, packed, skipped = pack(manifest, config.audio, progress=progress)
    if skipped:
        display.line(f"{len(skipped)} left out, such as {skipped[0].id}: {skipped[0].reason}")
    return manifest, first_copies(packed)


def _sum(meter: LeakageMeter, folds: Iterable[Fold]) -> Leakage:
    return sum((meter.of(fold) for fold in folds), start=Leakage())


def _sizes(folds: Sequence[Fold]) -> str:
    parts = []
    for part in ("train", "validation", "test"):
        sizes = [len(getattr(fold, part)) for fold in folds]
        shown = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        parts.append(f"{shown} for {part}")
    return f"{len(folds)} {'fold' if len(folds) == 1 else 'folds'}: {', '.join(parts)}"

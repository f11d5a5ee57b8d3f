"""A run trained on one corpus, judged on another."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_mtlser import runtime
from jax_mtlser.config import CorpusConfig
from jax_mtlser.corpora.load import load_corpus
from jax_mtlser.corpora.manifest import Manifest, ManifestError, read_manifest
from jax_mtlser.data.packed import write_skipped
from jax_mtlser.evaluation.cross_corpus import (
    CrossCorpusError,
    LabelMatch,
    ensemble,
    match_labels,
    print_cross_corpus,
    shared_scores,
    summarise_members,
    write_cross_corpus,
)
from jax_mtlser.evaluation.metrics import ConfusionSums
from jax_mtlser.evaluation.predictions import Prediction, write_predictions
from jax_mtlser.evaluation.protocols import Fold
from jax_mtlser.experiments.experiment import Experiment
from jax_mtlser.experiments.finished_run import LoadedMember, for_evaluation, one_variant, read_run_config
from jax_mtlser.experiments.members import Member
from jax_mtlser.run_folder import MemberFolder, RunFolder, read_json
from jax_mtlser.training.checkpoint import load_model_description
from jax_mtlser.training.progress import Display

__all__ = ["judge_other_corpus"]


def judge_other_corpus(
    workdir: Path,
    corpus: CorpusConfig,
    display: Display,
    *,
    renamed: Mapping[str, str],
    variant: str | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Judge every finished member, and their ensemble, on all usable utterances of another corpus.

    Args:
        workdir: run folder.
        corpus: the other corpus.
        display: where progress goes.
        renamed: the other corpus' labels to the model's classes; labels of the same name need none.
        variant: which one to judge, where the run has variants.
        output: where the results go; default ``<run>/cross_corpus/<name of the corpus>``.

    Returns:
        What is in ``results.json``: scores of :func:`shared_scores` by member, their mean and standard deviation,
        those of the ensemble, and what was left out.

    Raises:
        RunError: no run, or no finished member, in the folder.
        CrossCorpusError: no corpus, one of the run's own, or one with too few of the model's classes. Both before
            anything is judged.
    """
    run = RunFolder(workdir)
    config, folders = one_variant(run, read_run_config(run), variant)
    labels = [load_model_description(folder.model)["labels"] for folder in folders]
    classes = _emotions(labels, workdir)
    own = read_manifest(run.corpus, name=config.name)
    manifest = _load(corpus, display)
    _require_other_recordings(manifest, own)
    match = match_labels(manifest.counts("emotion"), classes, renamed)
    experiment = Experiment.load(for_evaluation(config), display, _relabelled(manifest, match))
    counts = experiment.manifest.counts("emotion")
    shared = [name for name in classes if name in counts]  # audio that cannot be used may take a class with it
    if len(shared) < 2:
        raise CrossCorpusError(
            f"only {', '.join(shared) or 'nothing'} is left of {manifest.name} after {len(experiment.skipped)} utterances "
            f"whose audio cannot be used, the first because: {experiment.skipped[0].reason}"
        )
    output = output or workdir / "cross_corpus" / (variant or "") / manifest.name
    output.mkdir(parents=True, exist_ok=True)
    write_skipped(experiment.skipped, output / "skipped.csv")
    judged = _judge(experiment, folders, output)
    genders = [tuple(each["gender"]) for each in labels]
    together = ensemble(list(judged.values()), classes, genders[0] if len(set(genders)) == 1 else ())
    write_predictions(output / "ensemble.csv", together, {"emotion": classes, "gender": genders[0]})
    confusion = ConfusionSums.from_labels(
        [row.emotion or "" for row in together], [row.emotion_predicted or "" for row in together], classes
    )
    results = {
        "trained_on": config.name,
        "corpus": manifest.name,
        "utterances": len(experiment.manifest),
        "counts": {name: counts[name] for name in shared},
        "classes": {
            "model": list(classes),
            "shared": shared,
            "absent": [name for name in classes if name not in shared],
            "map": dict(match.mapping),
        },
        "left_out": {
            "unknown_classes": dict(match.unknown),
            "unlabelled": manifest.column("emotion").count(None),
            "audio": len(experiment.skipped),
        },
        "chance_ua": 1 / len(shared),
        "majority_wa": max(counts.values()) / len(experiment.manifest),
        "own_corpus": _own_scores(run, variant),
        **summarise_members({name: shared_scores(rows, match, shared) for name, rows in judged.items()}),
        "ensemble": shared_scores(together, match, shared),
        "confusion": {"labels": list(confusion.labels), "matrix": confusion.matrix.tolist()},
        "versions": runtime.versions(),
    }
    written = write_cross_corpus(results, output)
    print_cross_corpus(results, display.console)
    display.line("written: " + ", ".join(map(str, written)))
    return results


def _own_scores(run: RunFolder, variant: str | None) -> dict[str, Any] | None:
    """The pooled scores on the run's own corpus, where they are written already."""
    if not run.results.exists():
        return None
    results = read_json(run.results)
    if variant is None:
        return results["pooled"]
    return next(entry["pooled"] for entry in results["variants"] if entry["name"] == variant)


def _emotions(labels: list[dict[str, list[str]]], workdir: Path) -> tuple[str, ...]:
    """The classes that all members agree on."""
    different = {tuple(each["emotion"]) for each in labels}
    if len(different) > 1:
        shown = "; ".join(", ".join(names) for names in sorted(different))
        raise CrossCorpusError(
            f"the members of {workdir} have different emotions ({shown}), so they have no common scores"
        )
    classes = different.pop()
    if len(classes) < 2:
        raise CrossCorpusError(
            f"the models of {workdir} do not tell emotions apart; train on a corpus with emotion labels"
        )
    return classes


def _load(corpus: CorpusConfig, display: Display) -> Manifest:
    try:
        with display.counting("reading the corpus") as progress:
            return load_corpus(corpus, progress)
    except ManifestError as error:
        # Its advice names the setting of a training; here the same thing is an option.
        raise CrossCorpusError(str(error).replace("--config.corpus.path", "--corpus")) from None


def _require_other_recordings(manifest: Manifest, own: Manifest) -> None:
    """Refuse recordings that the members were trained on."""
    heard = {utterance.path.resolve() for utterance in own.utterances}
    if same := [u.id for u in manifest.utterances if u.path.resolve() in heard]:
        raise CrossCorpusError(
            f"{len(same)} of {len(manifest)} recordings of {manifest.name} belong to the corpus that the run was trained "
            f"on ({', '.join(same[:3])}{', ...' if len(same) > 3 else ''}); name another corpus with --corpus, or use "
            "jax-mtlser eval for the run's own test parts"
        )


def _relabelled(manifest: Manifest, match: LabelMatch) -> Manifest:
    """The utterances with a shared emotion, under the model's name for it; what it was stays in a group column."""
    return Manifest(
        manifest.name,
        tuple(
            dataclasses.replace(u, emotion=match.mapping[u.emotion], groups={**u.groups, "original_emotion": u.emotion})
            for u in manifest.utterances
            if u.emotion is not None and u.emotion in match.mapping
        ),
    )


def _judge(experiment: Experiment, folders: list[MemberFolder], output: Path) -> dict[str, list[Prediction]]:
    """What each member says about the whole corpus."""
    rows, judged = tuple(range(len(experiment.manifest))), {}
    with experiment.display.steps("judging", 0, len(folders)) as show:
        for done, folder in enumerate(folders, 1):
            result = read_json(folder.result)
            parts = Fold((), (), rows, result["seed"])
            member = Member(result["name"], result["repeat"], result["fold"], parts, result["seed"])
            loaded = LoadedMember.load(experiment, member, folder)
            # The speakers here are others, even where two corpora call them by the same names.
            judged[member.name] = [
                dataclasses.replace(row, speaker_known=False, speaker_predicted=None)
                for row in loaded.predict(rows, "test")
            ]
            write_predictions(output / f"{member.name}.csv", judged[member.name], loaded.judge.maps.to_dict())
            show(done, member.name)
    return judged

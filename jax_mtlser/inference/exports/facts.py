"""What a model card says of a member, gathered from its run folder: how it was trained, on what, how well it does."""

import os
from collections.abc import Mapping
from typing import Any

from jax_mtlser import runtime
from jax_mtlser.corpora.manifest import read_manifest
from jax_mtlser.evaluation.leakage_report import gather_leakage, verdict
from jax_mtlser.evaluation.protocol_text import protocol_sentence, protocol_title, protocol_warnings
from jax_mtlser.evaluation.results import protocol_summary
from jax_mtlser.inference.trained_model import TrainedModel
from jax_mtlser.run_folder import MemberFolder, RunFolder, read_json

__all__ = ["gather_facts"]


def gather_facts(trained: TrainedModel, member: MemberFolder) -> dict[str, Any]:
    """JSON values: ``model``, ``versions``, and as far as the folders know them ``training``, ``protocol``, ``scores``,
    ``leakage``, ``config`` (None otherwise).

    Paths of this machine are cut to their last part.
    """
    arch, run = trained.arch, RunFolder(member.path.parents[1])
    result = read_json(member.result) if member.result.is_file() else {}
    config = read_json(run.config) if run.config.is_file() else None
    facts: dict[str, Any] = {
        "model": {
            "member": trained.name,
            "encoder": {"family": arch.family.value, "layers": arch.num_hidden_layers, "width": arch.hidden_size},
            "pretrained": _without_folders(trained.description["encoder"]),
            "tasks": sorted(trained.tasks),
            "temperature": trained.temperature,
            "seconds": {"min": trained.limits.min_seconds, "max": trained.limits.max_seconds},
        },
        "versions": {"exported_with": runtime.versions(), "trained_with": trained.description["versions"]},
        "training": {"corpus": trained.description["corpus"], "counts": result.get("counts"), **_corpus(run)},
        "scores": result.get("metrics"),
        "protocol": None,
        "leakage": None,
        "config": _without_folders(config),
    }
    if config is not None and run.folds.is_file():
        protocol = protocol_summary(config, read_json(run.folds))
        facts["protocol"] = {
            "title": protocol_title(protocol),
            "sentence": protocol_sentence(protocol),
            "warnings": protocol_warnings(protocol),
        }
    if result:
        leakage = gather_leakage(run, [(result["repeat"], result["fold"])])
        facts["leakage"] = verdict(leakage, result["metrics"]["wa"]) if leakage else None
    return facts


def _corpus(run: RunFolder) -> dict[str, Any]:
    if not run.corpus.is_file():
        return {}
    manifest = read_manifest(run.corpus)
    return {
        "utterances": len(manifest),
        "speakers": len(manifest.counts("speaker")),
        "emotions": manifest.counts("emotion"),
        "genders": manifest.counts("gender"),
        "transcribed": sum(1 for text in manifest.column("text") if text),
    }


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return os.path.basename(value.rstrip("/")) if isinstance(value, str) and os.path.isabs(value) else value

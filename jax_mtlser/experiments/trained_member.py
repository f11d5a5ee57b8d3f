"""What a trained member leaves in its folder: model, predictions, result."""

import dataclasses
from typing import Any

import jax

from jax_mtlser import runtime
from jax_mtlser.config import to_dict
from jax_mtlser.data.labels import LabelMaps
from jax_mtlser.data.vocabulary import min_frames
from jax_mtlser.evaluation.calibration import calibrate_member
from jax_mtlser.evaluation.metrics import score
from jax_mtlser.evaluation.predictions import Prediction, write_predictions
from jax_mtlser.experiments.experiment import Experiment
from jax_mtlser.experiments.members import Member
from jax_mtlser.run_folder import write_json
from jax_mtlser.training import processes
from jax_mtlser.training.checkpoint import TrainingCheckpoints, save_model
from jax_mtlser.training.prediction import Judge
from jax_mtlser.training.trainee import Trained, Trainee

__all__ = ["calibration_record", "infeasible_transcripts", "predict_parts", "store_member", "summary_of_test"]

_MODEL_FORMAT = 1


def store_member(
    experiment: Experiment, member: Member, trainee: Trainee, trained: Trained, compile_seconds: float
) -> None:
    """Test a member and write what it leaves; the result comes last. Of several processes, all test, the first writes.

    Args:
        experiment: of its variant.
        member: which one.
        trainee: its folder, judge and claim.
        trained: its parameters.
        compile_seconds: spent for it.
    """
    config, judge, folder = experiment.config, trainee.judge, trainee.folder
    maps, vocabulary = judge.maps, judge.vocabulary
    description = {
        "format": _MODEL_FORMAT,
        "architecture": to_dict(experiment.encoder.arch),
        "heads": dataclasses.asdict(judge.steps.spec.model.sizes),
        "labels": maps.to_dict(),
        "vocabulary": vocabulary.to_dict() if vocabulary else None,
        "language": config.model.vocabulary.language,
        "untrained": sorted(judge.untrained),
        "audio": {name: value for name, value in to_dict(config.audio).items() if name != "cache_dir"},
        "normalize_waveform": experiment.encoder.normalize_waveform,
        "hf_compat": config.model.encoder.hf_compat,
        "head_input": config.model.head_input.value,
        "lora": {"rank": config.model.encoder.lora_rank, "alpha": config.model.encoder.lora_alpha},
        "encoder": config.model.encoder.checkpoint,
        "corpus": experiment.manifest.name,
        "versions": runtime.versions(),
    }

    processes.on_first(trainee.still_ours)
    save_model(folder.model, trained.params, description)
    predictions = predict_parts(judge, member, trained.params, trainee.corpus)
    result = {
        "name": member.name,
        "variant": member.variant or None,
        "repeat": member.repeat,
        "fold": member.fold,
        "seed": member.seed,
        "epochs": config.training.epochs,
        "selected_epoch": trained.selected_epoch,
        "selection": config.training.selection.value,
        "counts": {
            "train": len(member.parts.train),
            "validation": len(member.parts.validation),
            "test": len(member.parts.test),
            "skipped_ctc": infeasible_transcripts(experiment, judge, member),
        },
        "labels": maps.to_dict(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
        "seconds": {"compile": round(compile_seconds, 2), "train": round(trained.seconds, 2)},
        "audio_seconds_per_second": round(trained.audio_rate, 2),
        "metrics": summary_of_test(predictions),
        "calibration": calibration_record(predictions, maps),
        "versions": runtime.versions(),
    }

    def write_result() -> None:
        trainee.still_ours()
        write_predictions(folder.predictions, predictions, maps.to_dict())
        write_json(folder.result, result)
        TrainingCheckpoints.remove(folder.checkpoints)

    processes.on_first(write_result)


def predict_parts(judge: Judge, member: Member, params: Any, corpus: Any) -> list[Prediction]:
    """What a member says about its validation and its test part."""
    validation = judge(params, corpus, member.parts.validation, "validation").predictions
    return validation + judge(params, corpus, member.parts.test, "test").predictions


def summary_of_test(predictions: list[Prediction]) -> dict[str, float | None]:
    """Scores of the predictions for the test part."""
    return score([p for p in predictions if p.part == "test"]).summary()


def calibration_record(predictions: list[Prediction], maps: LabelMaps) -> dict[str, Any] | None:
    """The temperature fitted on the validation part; None without an emotion head."""
    calibration = calibrate_member(predictions, maps.emotion)
    return calibration.record() if calibration else None


def infeasible_transcripts(experiment: Experiment, judge: Judge, member: Member) -> int:
    """Training transcripts that their frames cannot spell."""
    if judge.vocabulary is None:
        return 0
    count, lengths = 0, experiment.audio.lengths
    for row in member.parts.train:
        text = experiment.transcripts[row]
        frames = experiment.encoder.arch.num_frames(int(lengths[row]))
        if text and min_frames(judge.vocabulary.encode(text)) > frames:
            count += 1
    return count

"""The whole path on real recordings, Polish letters included; needs ``MTLSER_REAL_DATA``."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny import tiny_config

from jax_mtlser.commands.train import train_command
from jax_mtlser.corpora.manifest import read_manifest, write_manifest
from jax_mtlser.experiments.runner import train_run
from jax_mtlser.inference.trained_model import TrainedModel
from jax_mtlser.models.pretrained import encoder_parameters
from jax_mtlser.run_folder import RunFolder, read_json
from jax_mtlser.training.checkpoint import load_model_description
from jax_mtlser.training.progress import Display

ROOT = Path(__file__).parents[2]


def _some_of_each_speaker(corpus, count):
    taken = dict.fromkeys(corpus.counts("speaker"), 0)
    rows = []
    for row, utterance in enumerate(corpus.utterances):
        if taken[utterance.speaker] < count:
            taken[utterance.speaker] += 1
            rows.append(row)
    return corpus.subset(rows)


@pytest.mark.slow  # the next test trains on the same recordings
def test_real_recordings_train_and_are_reported(real_data, tmp_path):
    corpus = read_manifest(real_data / "nemo16k")
    chosen = _some_of_each_speaker(corpus, 8)
    write_manifest(chosen, tmp_path / "manifest.csv")
    config = tiny_config(tmp_path, epochs=1)
    config.model.vocabulary.language = "pl"
    config.protocol = dataclasses.replace(config.protocol, only_folds=(0,))
    assert train_run(config, tmp_path / "run", Display(Console(file=io.StringIO()))) == 0
    run = RunFolder(tmp_path / "run")
    pooled = read_json(run.results)["pooled"]
    assert all(value is not None for value in pooled.values())
    vocabulary = load_model_description(run.member("r0_f0").model)["vocabulary"]
    assert set("ĄĆĘŁÓŚŻ") & set(vocabulary["symbols"])
    assert len(read_json(run.folds)["repeats"][0]["folds"][0]["test"]) == len(chosen) // 2


def test_real_whisper_weights_are_fine_tuned_on_real_recordings(real_data, tmp_path, capsys):
    """The published configuration on a few utterances: one unheard speaker is judged, the lower layers stay."""
    write_manifest(_some_of_each_speaker(read_manifest(real_data / "nemo16k"), 3), tmp_path / "manifest.csv")
    checkpoint = real_data / "whisper-tiny.en-encoder"
    flags = [
        f"--config={ROOT}/configs/whisper_tiny.py", f"--workdir={tmp_path}/run", f"--config.corpus.path={tmp_path}",
        f"--config.model.encoder.checkpoint={checkpoint}", "--config.model.encoder.freeze=layers",
        "--config.model.encoder.freeze_layers=2", "--config.protocol.only_folds=0", "--config.training.epochs=1",
        "--config.batching.num_buckets=1", "--config.batching.batch_size=4", "--config.training.data_devices=1",
    ]  # fmt: skip
    assert train_command(["train.py", *flags]) == 0, capsys.readouterr().err
    run = RunFolder(tmp_path / "run")
    pooled = read_json(run.results)["pooled"]
    assert pooled["speaker_accuracy"] is None, "the tested speaker was not heard in training"
    assert {name for name, value in pooled.items() if value is None} == {"speaker_accuracy"}
    trained = TrainedModel.load(run.path)
    loaded, dropped = encoder_parameters(checkpoint / "model.safetensors", trained.arch)
    assert dropped == []
    one, other = (tree["transformer"]["layer_1"]["feed_forward"]["output"]["kernel"]
                  for tree in (loaded, trained.params["encoder"]))  # fmt: skip
    np.testing.assert_array_equal(one, other)
    one, other = (tree["transformer"]["layer_3"]["feed_forward"]["output"]["kernel"]
                  for tree in (loaded, trained.params["encoder"]))  # fmt: skip
    assert not np.array_equal(one, other)

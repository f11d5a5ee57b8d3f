"""The whole path on real recordings, Polish letters included; needs ``MTLSER_REAL_DATA``."""

import dataclasses
import io

from rich.console import Console
from tiny import tiny_config

from jax_mtlser.corpora.manifest import read_manifest, write_manifest
from jax_mtlser.experiments.runner import train_run
from jax_mtlser.run_folder import RunFolder, read_json
from jax_mtlser.training.checkpoint import load_model_description
from jax_mtlser.training.progress import Display


def test_real_recordings_train_and_are_reported(real_data, tmp_path):
    corpus = read_manifest(real_data / "nemo16k")
    by_speaker = dict.fromkeys(corpus.counts("speaker"), 0)
    rows = []
    for row, utterance in enumerate(corpus.utterances):
        if by_speaker[utterance.speaker] < 8:
            by_speaker[utterance.speaker] += 1
            rows.append(row)
    write_manifest(corpus.subset(rows), tmp_path / "manifest.csv")
    config = tiny_config(tmp_path, epochs=1)
    config.model.vocabulary.language = "pl"
    config.protocol = dataclasses.replace(config.protocol, only_folds=(0,))
    assert train_run(config, tmp_path / "run", Display(Console(file=io.StringIO()))) == 0
    run = RunFolder(tmp_path / "run")
    pooled = read_json(run.results)["pooled"]
    assert all(value is not None for value in pooled.values())
    vocabulary = load_model_description(run.member("r0_f0").model)["vocabulary"]
    assert set("ĄĆĘŁÓŚŻ") & set(vocabulary["symbols"])
    assert len(read_json(run.folds)["repeats"][0]["folds"][0]["test"]) == len(rows) // 2

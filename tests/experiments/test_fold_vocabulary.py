"""The symbols of a fold's CTC head come from its training part alone."""

import dataclasses

from rich.console import Console
from tiny import tiny_config, write_corpus

from jax_mtlser.corpora.manifest import Manifest, read_manifest
from jax_mtlser.evaluation.protocols import grouped_folds
from jax_mtlser.experiments.experiment import Experiment
from jax_mtlser.experiments.members import members_of
from jax_mtlser.training.progress import Display


def test_letters_of_the_test_part_are_unknown(tmp_path):
    read = read_manifest(write_corpus(tmp_path))
    # Each session has a letter of its own, and a number whose word has letters of its own.
    letters = {str(session): letter for session, letter in enumerate("ĄĆĘŁŃ")}
    rows = [dataclasses.replace(u, text=f"a {letters[u.groups['session']]} 7") for u in read.utterances]
    manifest = Manifest("letters", tuple(rows))
    config = tiny_config(tmp_path)
    config.model.vocabulary.language = "pl"
    experiment = Experiment.load(config, Display(Console(quiet=True)), manifest)
    folds = grouped_folds(manifest.column("session"), manifest.column("emotion"), 0, 0, 0.2)
    for member in members_of(config.protocol, 0, [folds]):
        vocabulary = experiment.vocabulary_of(member)
        assert vocabulary
        heard = {letters[manifest.utterances[row].groups["session"]] for row in member.parts.train}
        assert set("".join(vocabulary.symbols[3:])) == {*"ASIEDM", *heard}  # seven: siedem
        assert len(heard) == 3  # of five, one session is tested and one validated on
        for row in (*member.parts.test, *member.parts.validation):
            assert vocabulary.unknown in vocabulary.encode(experiment.transcripts[row] or "")

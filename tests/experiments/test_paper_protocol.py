"""The paper's configuration end to end: an IEMOCAP-shaped release and a checkpoint in Hugging Face layout, in small."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file
from tiny import saved_parameters

from jax_mtlser.commands.train import train_command
from jax_mtlser.config import ProtocolConfig, architecture_from_dict
from jax_mtlser.evaluation.protocols import Fold
from jax_mtlser.experiments.members import members_of
from jax_mtlser.models.pretrained import encoder_parameters
from jax_mtlser.run_folder import RunFolder, read_json
from jax_mtlser.training.checkpoint import load_model_description

ROOT = Path(__file__).parents[2]
CLASSES = ("ang", "hap", "exc", "neu", "sad")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """Two sessions of twenty turns of noise each, in the official layout."""
    root = tmp_path_factory.mktemp("corpus") / "IEMOCAP_full_release"
    random = np.random.default_rng(0)
    for session in (1, 2):
        dialogue = f"Ses0{session}F_impro01"
        folder = root / f"Session{session}"
        for place in ("dialog/EmoEvaluation", "dialog/transcriptions", f"sentences/wav/{dialogue}"):
            (folder / place).mkdir(parents=True)
        labels, texts = ["% header"], []
        for number in range(20):
            turn = f"{dialogue}_{'FM'[number % 2]}{number:03d}"
            labels.append(f"[1.0000 - 2.0000]\t{turn}\t{CLASSES[number % 5]}\t[2.5000, 3.0000, 3.5000]")
            texts.append(f"{turn} [001.0000-002.0000]: Turn number {number}.")
            samples = random.standard_normal(random.integers(9_000, 16_000)) * 0.1
            soundfile.write(folder / "sentences/wav" / dialogue / f"{turn}.wav", samples, 16_000)
        (folder / "dialog/EmoEvaluation" / f"{dialogue}.txt").write_text("\n".join(labels) + "\n")
        (folder / "dialog/transcriptions" / f"{dialogue}.txt").write_text("\n".join(texts) + "\n")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small ForCTC checkpoint as transformers writes it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, conv_dim=(16, 16, 16),
        conv_kernel=(10, 8, 4), conv_stride=(5, 8, 8), num_feat_extract_layers=3, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, mask_time_length=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("checkpoint")
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return folder


def test_ten_fold_trains_from_a_release_and_a_checkpoint(release, checkpoint, tmp_path, capsys):
    flags = [
        f"--config={ROOT}/configs/ten_fold.py", f"--workdir={tmp_path}/run", f"--config.corpus.path={release}",
        "--config.corpus.partial=true",
        f"--config.model.encoder.checkpoint={checkpoint}", "--config.training.epochs=1",
        "--config.protocol.folds=2", "--config.protocol.repeats=2", "--config.protocol.only_folds=0",
        "--config.batching.num_buckets=1", "--config.training.data_devices=1",
    ]  # fmt: skip
    status = train_command(["train.py", *flags])
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert "left out of" in shown
    assert "lm_head.weight" in shown

    run = RunFolder(tmp_path / "run")
    results = read_json(run.results)
    assert [fold["name"] for fold in results["folds"]] == ["r0_f0", "r1_f0"]
    assert results["protocol"]["kind"] == "stratified"
    assert all(value is not None for value in results["pooled"].values())
    description = load_model_description(run.member("r0_f0").model)
    assert description["labels"]["emotion"] == ["angry", "happy", "neutral", "sad"]
    assert description["labels"]["speaker"] == ["01F", "01M", "02F", "02M"]
    assert len(description["vocabulary"]["symbols"]) == 32
    assert description["architecture"]["hidden_size"] == 24


def test_training_starts_from_the_checkpoints_encoder(release, checkpoint, tmp_path):
    """With a learning rate too small to move anything, the saved encoder is the checkpoint's."""
    flags = [
        "train.py", f"--config={ROOT}/configs/ten_fold.py", f"--workdir={tmp_path}/run",
        f"--config.corpus.path={release}",
        "--config.corpus.partial=true", f"--config.model.encoder.checkpoint={checkpoint}",
        "--config.training.epochs=1", "--config.protocol.folds=2", "--config.protocol.only_folds=0",
        "--config.protocol.repeats=1", "--config.batching.num_buckets=1", "--config.training.data_devices=1",
        "--config.optimizer.learning_rate=1e-30", "--config.optimizer.weight_decay=0",
    ]  # fmt: skip
    assert train_command(flags) == 0
    folder = RunFolder(tmp_path / "run").member("r0_f0").model
    arch = architecture_from_dict(load_model_description(folder)["architecture"])
    expected, _ = encoder_parameters(checkpoint / "model.safetensors", arch)
    loaded = saved_parameters(tmp_path / "run")["encoder"]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-20), loaded, expected)


def test_the_speech_recognition_head_starts_from_a_ctc_checkpoints(release, checkpoint, tmp_path, capsys):
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINHSRDLUMWCFGYPBVK'XJQZ"]
    ctc = tmp_path / "ctc"
    shutil.copytree(checkpoint, ctc)
    (ctc / "vocab.json").write_text(json.dumps({symbol: number for number, symbol in enumerate(symbols)}))
    flags = [
        "train.py", f"--config={ROOT}/configs/ten_fold.py", f"--workdir={tmp_path}/run",
        f"--config.corpus.path={release}",
        "--config.corpus.partial=true", f"--config.model.encoder.checkpoint={ctc}",
        "--config.model.vocabulary.source=checkpoint", "--config.training.epochs=1", "--config.protocol.folds=2",
        "--config.protocol.only_folds=0", "--config.protocol.repeats=1", "--config.batching.num_buckets=1",
        "--config.training.data_devices=1", "--config.optimizer.learning_rate=1e-30",
        "--config.optimizer.weight_decay=0",
    ]  # fmt: skip
    assert train_command(flags) == 0
    shown = capsys.readouterr().out
    assert "the speech recognition head starts from ctc's" in shown
    assert "left out" not in shown
    head = saved_parameters(tmp_path / "run")["asr_head"]["logits"]
    tensors = load_file(ctc / "model.safetensors")
    np.testing.assert_allclose(head["kernel"], tensors["lm_head.weight"].T, atol=1e-20)
    np.testing.assert_allclose(head["bias"], tensors["lm_head.bias"], atol=1e-20)


def test_members_of_neighbouring_seeds_share_no_seed():
    drawn = [[Fold((0,), (), (1,))] * 10] * 10
    seeds = [member.seed for seed in (0, 1, 2) for member in members_of(ProtocolConfig(), seed, drawn)]
    assert len(set(seeds)) == 300
    assert all(0 <= seed < 2**31 for seed in seeds)

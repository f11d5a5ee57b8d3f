"""Every export says what the model says; one that does not, or is not what was written, is refused."""

import csv
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from jax import export
from safetensors.numpy import load_file, save_file

from jax_mtlser import cli
from jax_mtlser.architecture import EncoderFamily, Wav2Vec2Architecture, WhisperArchitecture
from jax_mtlser.data.audio import from_int16, to_int16
from jax_mtlser.evaluation.predictions import read_predictions
from jax_mtlser.inference.exports import export as exporting
from jax_mtlser.inference.exports.export import check_files, export_member, open_export
from jax_mtlser.inference.exports.formats import ExportError, ExportFormat, OnnxShape, Weights
from jax_mtlser.inference.exports.onnx_file import FIRST_UNKNOWN_JAX
from jax_mtlser.inference.exports.quantisation import restored, stored
from jax_mtlser.inference.exports.ser_path import SerPath
from jax_mtlser.inference.exports.stablehlo import PROGRAM, WEIGHTS, read_stablehlo, write_stablehlo
from jax_mtlser.inference.recognizer import Recognizer
from jax_mtlser.inference.trained_model import ModelError, TrainedModel
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel
from jax_mtlser.run_folder import RunFolder, read_json

pytest.importorskip("flatbuffers", reason="needs flatbuffers: pip install 'jax-mtlser[export]'")

SAME, SAME_ONNX = 1e-5, 1e-4


def command(run: Path, to: Path, *flags: str, member: str = "r0_f0") -> int:
    return cli.main(["jax-mtlser", "export", f"--workdir={run}", f"--member={member}", f"--to={to}", *flags])


def noise(samples: int, seed: int) -> np.ndarray:
    return from_int16(to_int16((0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)))


def batch(*spoken: np.ndarray, spare: int = 0, beyond: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows with ``spare`` samples of padding behind the longest; what lies behind each is ``beyond``."""
    lengths = np.array([len(samples) for samples in spoken], np.int32)
    padded = np.full((len(spoken), lengths.max() + spare), beyond, np.float32)
    for row, samples in enumerate(spoken):
        padded[row, : len(samples)] = samples
    return padded, lengths


@pytest.fixture(scope="module")
def program(run, tmp_path_factory) -> Path:
    """A StableHLO export."""
    to = tmp_path_factory.mktemp("exports") / "program"
    assert command(run, to, "--format=stablehlo", "--licence=CC BY 4.0") == 0
    return to


@pytest.fixture(scope="module")
def calibrated(run, tmp_path_factory) -> Path:
    copy = RunFolder(Path(shutil.copytree(run, tmp_path_factory.mktemp("runs") / "calibrated")))
    result = copy.member("r0_f0").result
    result.write_text(json.dumps(read_json(result) | {"calibration": {"temperature": 0.25}}))
    return copy.path


# --- The same numbers everywhere --------------------------------------------------------------------------


def test_training_recognizer_predict_and_stablehlo_give_the_same_probabilities(run, corpus, tmp_path, program):
    table = tmp_path / "o.csv"
    judge, emotions = open_export(program)
    assert read_json(program / "export.json")["verified"]["stored"] <= SAME
    rows = [row for row in read_predictions(RunFolder(run).member("r0_f0").predictions) if row.part == "test"]
    paths = [corpus / "wav" / f"{row.id}.wav" for row in rows]
    listed = corpus / "listed.csv"
    listed.write_text("file\n" + "".join(f"wav/{path.name}\n" for path in paths))
    predict = ["jax-mtlser", "predict", f"--workdir={run}", "--member=r0_f0", f"--list={listed}", f"--output={table}"]
    assert cli.main(predict) == 0
    with table.open(newline="") as file:
        predicted = [[float(cells[f"p_{name}"]) for name in emotions] for cells in csv.DictReader(file)]
    recognized = [[said.probabilities[name] for name in emotions] for said in Recognizer.load(run, "r0_f0")(paths)]
    spoken = [soundfile.read(path, dtype="float32")[0] for path in paths]
    exported = judge(*batch(*spoken, spare=777))
    trained = np.array([row.emotion_probabilities for row in rows])
    assert len(trained) > 5
    for other in (predicted, recognized, exported):
        # A table holds six decimals.
        np.testing.assert_allclose(other, trained, rtol=0, atol=SAME)


@pytest.mark.parametrize("weights", [Weights.FLOAT32, Weights.BFLOAT16])
def test_an_orbax_export_is_a_member_with_all_its_heads(calibrated, corpus, tmp_path, weights):
    to = tmp_path / "clean"
    assert command(calibrated, to, "--format=orbax", f"--weights={weights.value}") == 0
    paths = sorted((corpus / "wav").iterdir())[:3]
    one, other = (Recognizer.load(*where) for where in ((calibrated, "r0_f0"), (to,)))
    assert other.calibrated
    limit = 2e-2 if weights is Weights.BFLOAT16 else SAME
    for ours, theirs in zip(
        one(paths, speaker=True, transcript=True), other(paths, speaker=True, transcript=True), strict=True
    ):
        assert theirs.probabilities == pytest.approx(ours.probabilities, abs=limit)
        assert theirs.gender_probabilities == pytest.approx(ours.gender_probabilities, abs=limit)
        assert theirs.speaker_confidence == pytest.approx(ours.speaker_confidence, abs=limit)
        if weights is Weights.FLOAT32:
            assert (theirs.transcript, theirs.speaker) == (ours.transcript, ours.speaker)
    assert cli.main(["jax-mtlser", "predict", f"--workdir={to}", str(paths[0]), f"--output={tmp_path}/o.csv"]) == 0
    assert set(check_files(to)["labels"]) == {"emotion", "gender", "speaker"}


@pytest.mark.parametrize("weights", [Weights.FLOAT32, Weights.BFLOAT16])
def test_the_encoder_alone(run, tmp_path, weights):
    to = tmp_path / "encoder"
    assert command(run, to, f"--weights={weights.value}") == 0
    types = {array.dtype.name for array in load_file(to / "model.safetensors").values()}
    assert types == ({"float32"} if weights is Weights.FLOAT32 else {"float32", "bfloat16"})
    assert read_json(to / "config.json")["model_type"] == "wav2vec2"
    assert check_files(to)["labels"] == {"emotion": ["angry", "sad"]}


def test_stablehlo_in_fewer_bits_is_smaller_and_near(run, tmp_path, program, capsys):
    whole = (program / WEIGHTS).stat().st_size
    spoken = batch(noise(9_000, 0), noise(12_345, 1))
    expected = open_export(program)[0](*spoken)
    for weights in (Weights.BFLOAT16, Weights.INT8):
        to = tmp_path / weights.value
        assert command(run, to, "--format=stablehlo", f"--weights={weights.value}") == 0
        shown = capsys.readouterr().out
        for text in (
            "on disk",
            "difference",
            "same emotion",
            "accuracy",
            "per utterance",
            f"stablehlo, {weights.value}",
        ):
            assert text in shown, text
        assert (to / WEIGHTS).stat().st_size < 0.9 * whole
        assert 0 < np.abs(open_export(to)[0](*spoken) - expected).max() < 0.1


def test_the_temperature_is_applied():
    path = ser_path("wav2vec2")
    spoken = batch(noise(3_000, 0))
    warm, plain = (np.asarray(p.judge()(*spoken)) for p in (path, dataclasses.replace(path, temperature=1.0)))
    sharpened = plain ** (1 / path.temperature)
    np.testing.assert_allclose(warm, sharpened / sharpened.sum(), rtol=0, atol=SAME)


def test_int8_is_within_half_a_step():
    rng = np.random.default_rng(0)
    params = {
        "encoder/kernel": rng.standard_normal((80, 70)).astype(np.float32),
        "encoder/bias": np.ones(9000, np.float32),
    }
    params["emotion_head/kernel"] = params["encoder/kernel"].copy()
    params["encoder/kernel"][:, 3] = 0
    kept = stored(params, Weights.INT8)
    assert kept["encoder/kernel"].dtype == np.int8
    back = restored({name: jnp.asarray(array) for name, array in kept.items()})
    assert set(back) == set(params)
    step = np.abs(params["encoder/kernel"]).max(axis=0) / 127
    assert (np.abs(back["encoder/kernel"] - params["encoder/kernel"]) <= 0.5001 * step + 1e-9).all()
    for name in ("encoder/bias", "emotion_head/kernel"):
        np.testing.assert_array_equal(back[name], params[name])


# --- Symbolic shapes --------------------------------------------------------------------------------------

_SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_CONVOLUTIONS = {"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_conv_pos_embedding_groups": 2}
FAMILIES = {
    "wav2vec2": Wav2Vec2Architecture(**_SIZES, **_CONVOLUTIONS, num_conv_pos_embeddings=12),
    "wavlm": Wav2Vec2Architecture(
        **_SIZES, **_CONVOLUTIONS, num_conv_pos_embeddings=4, family=EncoderFamily.WAVLM, num_buckets=16,
        max_bucket_distance=20,
    ),
    "whisper": WhisperArchitecture(**_SIZES, num_mel_bins=8, max_source_positions=20),
}  # fmt: skip


def ser_path(name: str) -> SerPath:
    model = MultitaskModel(FAMILIES[name], HeadSizes(emotion=3))
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 3200)), jnp.array([3200]))["params"]
    rng = np.random.default_rng(0)
    params = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            (path[-1].key in ("scale", "gain")) + 0.3 * rng.standard_normal(leaf.shape)
        ).astype(np.float32)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    return SerPath(model, params, normalize=name != "whisper", temperature=1.5)


@pytest.mark.parametrize("name", FAMILIES)
def test_any_batch_and_length_and_whatever_lies_behind_an_utterance(name, tmp_path):
    path = ser_path(name)
    write_stablehlo(tmp_path, path, Weights.FLOAT32)
    judge, own = read_stablehlo(tmp_path), path.judge()
    spoken = [noise(samples, samples) for samples in (2_500, 450, 3_111)]
    alone = np.concatenate([own(*batch(one, spare=3_200 - len(one))) for one in spoken])
    assert np.ptp(alone, axis=0).max() > 1e-2, "utterances that all get the same answer prove nothing"
    for spare, beyond in ((0, 0.0), (1_234, np.nan)):
        np.testing.assert_allclose(judge(*batch(*spoken, spare=spare, beyond=beyond)), alone, rtol=0, atol=SAME)
    np.testing.assert_allclose(judge(*batch(spoken[1])), alone[1:2], rtol=0, atol=SAME)


def test_lengths_that_an_encoder_has_no_positions_for_are_refused(tmp_path):
    path = ser_path("whisper")
    write_stablehlo(tmp_path, path, Weights.FLOAT32)
    with pytest.raises(ExportError, match=r"does not take samples of shape \[1, 6401\]"):
        read_stablehlo(tmp_path)(*batch(noise(6_401, 0)))


def test_an_export_is_loaded_without_this_package(program, tmp_path):
    spoken = batch(noise(5_000, 3), noise(8_000, 4))
    np.savez(tmp_path / "in.npz", samples=spoken[0], lengths=spoken[1])
    code = f"""
import sys, jax, numpy as np
from jax import export
from safetensors.numpy import load_file
program = export.deserialize(bytearray(open({str(program / PROGRAM)!r}, "rb").read()))
given = np.load({str(tmp_path / "in.npz")!r})
said = jax.jit(program.call)(load_file({str(program / WEIGHTS)!r}), given["samples"], given["lengths"])
np.save({str(tmp_path / "out.npy")!r}, said)
assert not [name for name in sys.modules if name.startswith(("jax_mtlser", "flax"))]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=dict(os.environ))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), open_export(program)[0](*spoken), rtol=0, atol=1e-6)


# --- ONNX -------------------------------------------------------------------------------------------------


def test_onnx_says_the_same_and_takes_one_shape(calibrated, tmp_path, capsys):
    onnxruntime = _onnx()
    to, model = tmp_path / "onnx", RunFolder(calibrated).member("r0_f0").model
    done = export_member(model, to, ExportFormat.ONNX, shape=OnnxShape(2, 0.9))
    assert done.verified.difference <= SAME_ONNX
    padded = batch(noise(9_000, 0), noise(3_000, 1), spare=5_400)
    expected = SerPath.of(TrainedModel.read(model)).judge()(*padded)
    judge, emotions = open_export(to)
    assert emotions == ("angry", "sad")
    np.testing.assert_allclose(judge(*padded), expected, rtol=0, atol=SAME_ONNX)
    session = onnxruntime.InferenceSession(to / "emotion.onnx")
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [("samples", [2, 14_400]), ("lengths", [2])]
    assert "2 rows of 14400 samples" in (to / "README.md").read_text()


def test_onnx_in_int8(calibrated, tmp_path):
    _onnx()
    done = export_member(
        RunFolder(calibrated).member("r0_f0").model, tmp_path / "onnx", ExportFormat.ONNX, Weights.INT8,
        shape=OnnxShape(1, 0.9),
    )  # fmt: skip
    assert 0 < done.verified.difference < 0.1
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == [
        "README.md", "emotion.onnx", "export.json", "labels.json"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["wavlm", "whisper"])
def test_onnx_of_other_families(name, tmp_path):
    _onnx()
    from jax_mtlser.inference.exports.onnx_file import read_onnx, write_onnx

    path = ser_path(name)
    write_onnx(tmp_path, path, Weights.FLOAT32, OnnxShape(2, 0.2))
    padded = batch(noise(3_000, 0), noise(777, 1), spare=200)
    np.testing.assert_allclose(read_onnx(tmp_path)(*padded), path.judge()(*padded), rtol=0, atol=SAME_ONNX)


def _onnx():
    if jax.__version_info__ >= FIRST_UNKNOWN_JAX:
        pytest.skip(
            f"jax2onnx does not know jax {jax.__version__}: pip install 'jax-mtlser[onnx]' in an environment of its own"
        )
    pytest.importorskip("jax2onnx", reason="needs jax2onnx: pip install 'jax-mtlser[onnx]'")
    return pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'jax-mtlser[onnx]'")


@pytest.mark.parametrize(("form", "library"), [("stablehlo", "flatbuffers"), ("onnx", "jax2onnx")])
def test_a_missing_library_is_named_with_its_extra(run, tmp_path, capsys, monkeypatch, form, library):
    if form == "onnx":
        _onnx()
    monkeypatch.setitem(sys.modules, library, None)
    assert command(run, tmp_path / "out", f"--format={form}", *(["--seconds=1"] if form == "onnx" else [])) == 1
    extra = "export" if form == "stablehlo" else "onnx"
    assert f"needs {library}, which is not installed: pip install 'jax-mtlser[{extra}]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_jax_that_the_converter_does_not_know_is_refused_before_anything_is_written(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(jax, "__version_info__", FIRST_UNKNOWN_JAX)
    assert command(run, tmp_path / "out", "--format=onnx", "--seconds=1") == 1
    assert "needs jax below 0.12" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- What is written beside it ----------------------------------------------------------------------------


def test_the_card_and_the_record_say_what_it_is(program, run, corpus):
    card, record = (program / "README.md").read_text(), read_json(program / "export.json")
    for text in (
        "angry, sad", "CC BY 4.0", "Article 5(1)(f)", "workplace and education institutions", "Annex III, point 1(c)",
        "high-risk", "Article 50(3)", "tones", "30 utterances of 3 speakers", "not calibrated", "Random folds",
        "Leakage of the protocol", "at least 400 samples", f"| jax | {jax.__version__} | {jax.__version__} |", "Out of scope",
    ):  # fmt: skip
        assert text in card, text
    assert record["labels"] == read_json(program / "labels.json") == {"emotion": ["angry", "sad"]}
    assert record["config"]["training"]["epochs"] == 1
    assert record["training"]["emotions"] == {"angry": 15, "sad": 15}
    assert record["scores"]["wa"] == read_json(RunFolder(run).member("r0_f0").result)["metrics"]["wa"]
    assert record["verified"]["utterances"] == record["training"]["counts"]["test"]
    everything = card + json.dumps(record)
    assert str(corpus.parent) not in everything, "a path of this machine"


# --- Refused ----------------------------------------------------------------------------------------------


def test_an_export_that_misses_its_limit_is_not_kept(run, tmp_path, capsys, monkeypatch):
    def spoilt(folder, path, weights):
        head = "emotion_head/logits/bias"
        write_stablehlo(
            folder,
            dataclasses.replace(path, params=path.params | {head: path.params[head] + np.float32([0.1, 0])}),
            weights,
        )

    monkeypatch.setattr(exporting, "write_stablehlo", spoilt)
    (tmp_path / "out").mkdir()
    assert command(run, tmp_path / "out", "--format=stablehlo") == 1
    assert "in a probability, and its limit is 1e-05; it is not kept" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").iterdir())


def test_without_its_recordings_others_can_be_named(run, corpus, tmp_path, capsys):
    member = shutil.copytree(RunFolder(run).member("r0_f0").path, tmp_path / "moved" / "members" / "r0_f0")
    flags = ["jax-mtlser", "export", f"--workdir={member}", "--format=orbax"]
    assert cli.main([*flags, f"--to={tmp_path}/out"]) == 1
    assert "name some with --audio" in capsys.readouterr().err
    assert cli.main([*flags, f"--to={tmp_path}/out", f"--audio={tmp_path}/moved"]) == 1
    assert "no recordings found" in capsys.readouterr().err
    assert cli.main([*flags, f"--to={tmp_path}/out", f"--audio={corpus}"]) == 0
    record = check_files(tmp_path / "out")
    assert (record["verified"]["utterances"], record["verified"]["accuracy"]) == (30, None)
    # An export is a model too.
    assert cli.main([*flags[:2], f"--workdir={tmp_path}/out", f"--to={tmp_path}/again", f"--audio={corpus}"]) == 0
    lost = RunFolder(Path(shutil.copytree(run, tmp_path / "lost")))
    lost.corpus.write_text(lost.corpus.read_text().replace("/wav/", "/gone/"))
    assert command(lost.path, tmp_path / "other") == 1
    assert "the file does not exist); restore it, or name other recordings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--weights=int8"], 1, "--weights is int8; the format huggingface can have float32, bfloat16"),
        (["--format=onnx", "--weights=bfloat16"], 1, "the format onnx can have float32, int8"),
        (["--seconds=3"], 2, "--batch and --seconds belong to --format onnx"),
        (["--format=onnx", "--batch=0"], 1, "--batch is 0; it must be 1 or more"),
        (["--format=onnx", "--seconds=0.01"], 1, "--seconds is 0.01; at least 0.025 s are needed"),
        (["--format=onnx", "--seconds=0.2"], 1, "is longer than 0.2 s, so none can verify the export"),
    ],
)
def test_wrong_calls_are_answered_in_a_line(run, tmp_path, capsys, flags, code, message):
    assert command(run, tmp_path / "out", *flags) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- Untrusted input --------------------------------------------------------------------------------------


@pytest.fixture
def tampered(program, tmp_path) -> Path:
    return Path(shutil.copytree(program, tmp_path / "tampered"))


@pytest.mark.parametrize("name", [PROGRAM, WEIGHTS, "README.md", "labels.json"])
def test_a_changed_or_missing_file_is_named(tampered, name):
    content = bytearray((tampered / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tampered / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"{name} is not the file that was exported"):
        open_export(tampered)
    (tampered / name).unlink()
    with pytest.raises(ExportError, match=f"has no {name}"):
        open_export(tampered)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"files": {"x": 1}}', '{"files": {}, "format": "stablehlo"}'])
def test_a_record_that_is_none_is_refused(tampered, record):
    (tampered / "export.json").write_text(record)
    with pytest.raises(ExportError, match="is no export of this package"):
        open_export(tampered)


def test_a_record_cannot_reach_outside_its_folder(tampered):
    record = read_json(tampered / "export.json")
    record["files"]["../outside"] = {"bytes": 1, "sha256": "0"}
    (tampered / "export.json").write_text(json.dumps(record))
    with pytest.raises(ExportError, match=r"names \.\./outside, which is not in the folder"):
        open_export(tampered)


@pytest.mark.parametrize("content", [b"", b"\x80\x04cos\nsystem\n", bytes(400)])
def test_bytes_that_are_no_program_or_no_weights_are_refused(tampered, content):
    weights = (tampered / WEIGHTS).read_bytes()
    (tampered / WEIGHTS).write_bytes(content)
    with pytest.raises(ExportError, match="is damaged or no safetensors file"):
        read_stablehlo(tampered)
    (tampered / WEIGHTS).write_bytes(weights)
    (tampered / PROGRAM).write_bytes(content)
    with pytest.raises(ExportError, match=r"is damaged or no program of jax\.export"):
        read_stablehlo(tampered)


def test_weights_of_another_program_are_refused(tampered):
    params = load_file(tampered / WEIGHTS)
    params["emotion_head/logits/bias"] = np.zeros(7, np.float32)
    save_file(params, tampered / WEIGHTS)
    with pytest.raises(ExportError, match="does not hold the weights"):
        read_stablehlo(tampered)


def test_a_program_that_calls_into_python_is_refused(tampered):
    """A callback cannot be serialised; any other foreign call can be."""

    def foreign(x):
        return jax.ffi.ffi_call("write_a_file", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    checks = [export.DisabledSafetyCheck.custom_call("write_a_file")]
    exported = export.export(jax.jit(foreign), disabled_checks=checks)(jnp.zeros(3))
    (tampered / PROGRAM).write_bytes(exported.serialize())
    with pytest.raises(ExportError, match="calls write_a_file, which no export of this package does"):
        read_stablehlo(tampered)


def test_a_damaged_orbax_export_is_told_in_a_line(run, tmp_path, capsys):
    to = tmp_path / "clean"
    assert command(run, to, "--format=orbax") == 0
    for file in (to / "model" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ModelError, match="is damaged or no model of this package"):
        Recognizer.load(to)
    with pytest.raises(ExportError, match="is not the file that was exported"):
        check_files(to)


def test_bytes_that_are_no_onnx_are_refused(tmp_path):
    _onnx()
    from jax_mtlser.inference.exports.onnx_file import MODEL, read_onnx

    for content in (b"", b"\x80\x04cos\nsystem\n"):
        (tmp_path / MODEL).write_bytes(content)
        with pytest.raises(ExportError, match=r"is damaged or no ONNX model|does not take"):
            read_onnx(tmp_path)

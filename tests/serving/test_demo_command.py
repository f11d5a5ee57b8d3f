"""``jax-mtlser demo`` as a user meets it."""

import importlib.util
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import soundfile
from sounds import noise, wav

from jax_mtlser import cli
from jax_mtlser.serving.examples import examples_in_folder, examples_of_run, in_a_row


def demo(*arguments: object) -> int:
    return cli.main(["jax-mtlser", "demo", *map(str, arguments)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-seconds", 0], "--max-seconds is 0; it must be greater than 0"),
        (["--max-megabytes", "nan"], "--max-megabytes is nan; it must be greater than 0"),
        (["--examples", "{tmp}/none"], "there is no folder .*none; name one with recordings for --examples"),
        (["--port", 99_999], "--port is 99999; it must be 0 to 65535"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid port"),
        (["--port", 0, "--examples", "{tmp}"], "has no recording that can be used and lasts at most 300 s"),
        (["--port", 0, "--member", "r9_f9"], "has no finished member 'r9_f9'"),
    ],
)
def test_wrong_calls_are_answered_in_a_line(run, tmp_path, capsys, flags, message):
    assert demo("--workdir", run, *(str(flag).format(tmp=tmp_path) for flag in flags)) in (1, 2)
    error = capsys.readouterr().err
    assert re.match(f"error: .*{message}", error), error
    assert error.count("\n") == 1


def test_a_port_in_use_is_told_before_anything_is_loaded(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert demo("--workdir", tmp_path / "none", "--port", port) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: " in capsys.readouterr().err


def test_without_the_extra_the_fix_is_told(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    assert demo("--workdir", "x") == 2
    assert "uvicorn not installed; the page needs: pip install 'jax-mtlser[demo-page]'" in capsys.readouterr().err


def test_examples_are_test_recordings_one_for_each_emotion(run, corpus):
    from jax_mtlser.evaluation.predictions import read_predictions
    from jax_mtlser.run_folder import RunFolder

    tested = [said for said in read_predictions(RunFolder(run).member("r0_f0").predictions) if said.part == "test"]
    for folder in (run, run / "members" / "r0_f0", run / "members" / "r0_f0" / "model"):
        examples = examples_of_run(folder, "r0_f0", ("angry", "sad"), 10)
        assert [example.reference for example in examples] == ["angry", "sad"]
    for example in examples:
        first = next(said for said in tested if said.emotion == example.reference)
        assert example.wav == (corpus / "wav" / f"{first.id}.wav").read_bytes()
    assert len(examples_of_run(run, "r0_f0", (), 10)) == 8
    assert examples_of_run(run, "r0_f0", ("angry", "sad"), 0.1) == []


def test_a_run_without_its_audio_has_no_examples(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    table = (copy / "corpus.csv").read_text()
    (copy / "corpus.csv").write_text(table.replace("/wav/", "/gone/"))
    assert "/gone/" in (copy / "corpus.csv").read_text()
    assert examples_of_run(copy, "r0_f0", ("angry", "sad"), 10) == []
    assert examples_of_run(tmp_path, "r0_f0", ("angry", "sad"), 10) == []


def test_examples_of_a_folder_and_all_in_a_row(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.wav").write_bytes(wav(0.5))
    (tmp_path / "0.wav").write_bytes(b"broken")
    (tmp_path / "1.wav").write_bytes(wav(3.0))
    soundfile.write(tmp_path / "2.wav", np.stack([noise(0.5, 44_100)] * 2, axis=1), 44_100)
    examples = examples_in_folder(tmp_path, 2.0)
    assert [example.name for example in examples] == list("23456789")
    assert examples[1].wav == wav(0.5)
    (row,) = in_a_row(examples[1:4], 3.0)
    (tmp_path / "row.wav").write_bytes(row.wav)
    assert soundfile.info(tmp_path / "row.wav").duration == pytest.approx(3 * 0.5 + 2 * 0.5)
    assert in_a_row(examples, 3.0) == []
    assert in_a_row(examples[:1], 3.0) == []


def test_the_command_serves_until_it_is_interrupted(run):
    code = f"import sys; from jax_mtlser.cli import main; sys.exit(main(['x', 'demo', '--workdir', {str(run)!r}, '--port', '0']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            told = process.stdout.readline()
            address = re.search(r"r0_f0 and 3 examples at (http://127\.0\.0\.1:\d+)", told)[1]
            with urllib.request.urlopen(f"{address}/health", timeout=60) as reply:
                assert reply.read() == b'{"status":"ok"}'
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert error == ""

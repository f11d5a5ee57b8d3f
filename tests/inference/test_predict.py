"""``jax-mtlser predict`` as a user meets it: any folder, any file, interrupted at any moment."""

import csv
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jax_mtlser import cli
from jax_mtlser.commands.predict import predict_command
from jax_mtlser.inference.hearing import Windows
from jax_mtlser.inference.journal import Journal, JournalError
from jax_mtlser.inference.recognizer import Checkpoint, Recognizer, Segment

ROOT = Path(__file__).parents[2]


def noise(seconds: float, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(round(1000 * seconds)).standard_normal((round(seconds * rate), channels))


def predict(*arguments: object) -> int:
    return predict_command(["jax-mtlser", *map(str, arguments)])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def claim_frames(path: Path, frames: int) -> None:
    """Overwrite the number of samples in a FLAC file's header."""
    content = bytearray(path.read_bytes())
    word = int.from_bytes(content[18:26], "big")
    content[18:26] = (word >> 36 << 36 | frames).to_bytes(8, "big")
    path.write_bytes(content)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> tuple[Path, set[str], dict[str, str]]:
    """A folder of everything: names of the good ones, and of the others what is to be said of them."""
    folder = tmp_path_factory.mktemp("zoo")
    good: set[str] = set()

    def write(name: str, samples: np.ndarray, rate: int = 16_000, **kind) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, **kind)
        good.add(name)
        return path

    for number in range(8):
        write(f"plain/{number}.wav", noise(0.3 + 0.2 * number))
    write("stereo.wav", noise(1.0, channels=2))
    write("8k.wav", noise(1.0, 8_000), 8_000)
    write("44k.flac", noise(1.0, 44_100), 44_100)
    write("48k.ogg", noise(1.2, 48_000), 48_000)
    write("24 bit.wav", noise(0.9), subtype="PCM_24")
    write("µ-law.au", noise(0.9), subtype="ULAW")
    write("long.wav", noise(30.0))
    write("wrong extension.mp3", noise(1.0), format="WAV")
    write("żółć/日本語 😀 ’é.wav", noise(0.8))
    write(f"{'very long name ' * 16}.wav", noise(0.8))
    write("loud.wav", 40 * noise(0.8), subtype="FLOAT")

    bad = {"0.05 s.wav": "too short: 0.05 s", "nothing.wav": "empty: the file has 0 bytes", "silence.wav": "silent",
           "no samples.wav": "empty: 0 samples", "text.wav": "unreadable audio", "cut.flac": "unreadable audio|truncated",
           "liar.flac": "truncated|unreadable audio", "nan.wav": "NaN", "dangling.wav": "does not exist",
           "1 Hz.wav": "sampling rate of 1 Hz", "picture.m4a": "unreadable audio"}  # fmt: skip
    soundfile.write(folder / "0.05 s.wav", noise(0.05), 16_000)
    (folder / "nothing.wav").write_bytes(b"")
    soundfile.write(folder / "silence.wav", np.zeros(16_000), 16_000)
    soundfile.write(folder / "no samples.wav", np.zeros(0), 16_000)
    (folder / "text.wav").write_text("dear diary\n" * 100)
    soundfile.write(folder / "cut.flac", noise(2.0), 16_000)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:20_000])
    soundfile.write(folder / "liar.flac", noise(1.0), 16_000)
    claim_frames(folder / "liar.flac", 2**36 - 1)
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    os.symlink(folder / "nowhere", folder / "dangling.wav")
    soundfile.write(folder / "1 Hz.wav", noise(1.0), 1)
    (folder / "picture.m4a").write_bytes(bytes(range(256)) * 40)
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.wav")
        bad["pipe.wav"] = "not a file"
    return folder, good, bad


@pytest.mark.parametrize("timeline", [False, True])
def test_good_ones_are_answered_and_bad_ones_explained(run, zoo, tmp_path, capsys, timeline):
    folder, good, bad = zoo
    flags = ["--window", 1.0, "--hop", 0.5] if timeline else []
    assert predict("--workdir", run, "--member", "r0_f0", folder, "-o", tmp_path / "o.csv", *flags) == 0
    shown = capsys.readouterr().out
    rows = read(tmp_path / "o.csv")
    names = [os.path.relpath(row["file"], folder) for row in rows]
    assert set(names) == good | set(bad)
    for name in good:
        answers = [row for row, own in zip(rows, names, strict=True) if own == name]
        assert all(row["error"] == "" for row in answers), (name, answers)
        assert len(answers) > 1 if timeline and name == "long.wav" else answers
        for row in answers:
            assert row["emotion"] in ("angry", "sad")
            assert float(row["p_angry"]) + float(row["p_sad"]) == pytest.approx(1, abs=2e-6)
            assert float(row["confidence"]) == max(float(row["p_angry"]), float(row["p_sad"]))
            assert row["gender"] in ("female", "male")
    for name, reason in bad.items():
        errors = [row["error"] for row, own in zip(rows, names, strict=True) if own == name]
        assert any(any(part in error for part in reason.split("|")) for error in errors), (name, errors)
        assert str(folder) not in errors[-1]
    assert f"{len(good)} of {len(good) + len(bad)} recordings answered" in shown
    assert not list(tmp_path.glob("*.partial"))
    if not timeline:
        whole = next(row for row, own in zip(rows, names, strict=True) if own == "long.wav")
        assert (whole["start"], whole["end"], whole["parts"]) == ("0.0", "30.0", "20")


def test_only_failures_is_a_failure(run, tmp_path, capsys):
    (tmp_path / "a.wav").write_text("none")
    assert predict("--workdir", run, "--member", "all", tmp_path / "a.wav", "-o", tmp_path / "o.jsonl") == 1
    assert "0 of 1 recording answered" in capsys.readouterr().out
    (row,) = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    assert row["error"].startswith("unreadable audio")
    assert row["emotion"] is None


def test_a_list_keeps_its_columns(run, corpus, tmp_path):
    rows = [("wav/tone00.wav", "0.1", "0.35", "sad", "x"), ("wav/none.wav", "", "", "angry", ""),
            ("wav/tone01.wav", "later", "", "", 'a "b", c')]  # fmt: skip
    table = corpus / "list.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "start", "end", "emotion", "note"), *rows])
    flags = ["--speaker", "--transcript", "-o", tmp_path / "o.csv"]
    assert predict("--workdir", run, "--member", "r0_f0", "--list", table, *flags) == 0
    found = read(tmp_path / "o.csv")
    assert list(found[0]) == [
        "file", "start", "end", "emotion", "confidence", "p_angry", "p_sad", "gender", "p_gender_female",
        "p_gender_male", "speaker", "speaker_confidence", "transcript", "parts", "error", "input_emotion", "note",
    ]  # fmt: skip
    assert [(row["file"], row["input_emotion"], row["note"]) for row in found] == [(r[0], r[3], r[4]) for r in rows]
    assert (found[0]["start"], found[0]["end"], found[0]["error"]) == ("0.1", "0.35", "")
    assert found[0]["speaker"] in ("S0", "S1", "S2")
    assert found[1]["error"] == "the file does not exist"
    assert found[2]["error"] == "start is 'later'; it must be seconds, 0 or greater"


def test_without_an_output_the_table_is_printed(run, corpus, capsys):
    assert cli.main(["jax-mtlser", "predict", "--workdir", f"{run}", "--member=r0_f0", f"{corpus}/wav/tone00.wav"]) == 0
    captured = capsys.readouterr()
    (row,) = csv.DictReader(captured.out.splitlines())
    assert row["file"].endswith("tone00.wav")
    assert "not calibrated: the run holds no temperature" in captured.err


def test_probabilities_are_calibrated_unless_asked_otherwise(calibrated_run, corpus, tmp_path, capsys):
    call = ["--workdir", calibrated_run, "--member", "r0_f0", corpus / "wav" / "tone00.wav", "-o"]
    assert predict(*call, tmp_path / "a.csv") == 0
    assert "calibrated (temperature: r0_f0 0.25)" in capsys.readouterr().out
    assert predict(*call, tmp_path / "b.csv", "--uncalibrated", "--unknown-below", 1) == 0
    assert "not calibrated, as asked" in capsys.readouterr().out
    (one,), (other,) = read(tmp_path / "a.csv"), read(tmp_path / "b.csv")
    odds = [float(row["p_sad"]) / float(row["p_angry"]) for row in (one, other)]
    assert odds[0] == pytest.approx(odds[1] ** 4, rel=1e-3)
    assert other["emotion"] == "unknown"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name recordings or folders, or a table with --list, or seconds"),
        (["{wav}", "--list", "x.csv"], "name recordings or folders, or"),
        (["{wav}", "--hop", "1"], "--hop and --smooth belong to a timeline"),
        (["{wav}", "--window", "3"], "window is 3 s; the model was trained on 0.1 to 1.5 s"),
        (["{wav}", "--window", "1", "--hop", "2"], "hop is 2 s"),
        (["{wav}", "-o", "{tmp}/o.xlsx"], "no suffix of a known format"),
        (["{wav}", "--format", "rttm"], "--format rttm needs an output"),
        (["{wav}", "-o", "{tmp}/o.TextGrid"], "a TextGrid holds one recording, and there are 30; use -o FOLDER"),
        (["{wav}", "-o", "{wav}"], "no suffix of a known format"),
        (["{wav}", "-o", "{tmp}/there.csv"], "there.csv exists; name another output, or add --overwrite"),
        (["{wav}", "-o", "{tmp}/there.csv/o.csv"], "cannot write .*: (File exists|Not a directory)"),
        (["{tmp}/empty"], "there are no recordings in"),
        (["--list", "{tmp}/none.csv"], "there is no table"),
        (["{wav}", "--member", "r0_f0,r9_f9"], "no finished member 'r9_f9'"),
        (["{wav}", "--unknown-below", "2"], "unknown_below is 2"),
    ],
)
def test_wrong_calls_are_answered_in_a_line(run, corpus, tmp_path, capsys, flags, message):
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "empty").mkdir()
    given = [flag.format(wav=corpus / "wav", tmp=tmp_path) for flag in flags]
    member = [] if "--member" in flags else ["--member", "r0_f0"]
    assert predict("--workdir", run, *member, *given) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") or "\nerror: " in error
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert (tmp_path / "there.csv").read_text() == "mine"


# --- Interruption -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(corpus) -> Path:
    """A list that is long enough to be interrupted: the corpus forty times, broken files among it."""
    table = corpus / "many.csv"
    names = [f"wav/{path.name}" for path in sorted((corpus / "wav").iterdir())] + ["wav/none.wav"]
    table.write_text("file\n" + "\n".join(names * 40) + "\n")
    return table


def call(run: Path, many: Path, output: Path, *flags: str) -> list[str]:
    return ["--workdir", f"{run}", "--member", "r0_f0", "--list", f"{many}", "-o", f"{output}", "--batch-seconds", "0.1",
            "--transcript", *flags]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(run, many, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "o.csv"
    assert predict(*call(run, many, output)) == 0
    return output


def test_a_killed_prediction_goes_on_to_the_same_file(run, many, uninterrupted, tmp_path, capsys):
    output = tmp_path / "o.csv"
    journal = tmp_path / "o.csv.partial"
    command = ["jax-mtlser", "predict", *call(run, many, output)]
    code = f"import sys; from jax_mtlser.cli import main; sys.exit(main({command!r}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (journal.exists() and any(line.strip().isdigit() for line in journal.read_bytes().splitlines()[3:])):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    with journal.open("ab") as file:  # and the last line was cut in the middle
        file.write(b'[99, {"file": "wav/to')
    assert predict(*call(run, many, output)) == 0
    shown = capsys.readouterr().out
    assert "going on after " in shown
    assert not journal.exists()
    assert output.read_bytes() == uninterrupted.read_bytes()


def test_a_changed_model_option_or_input_does_not_go_on(run, many, tmp_path, capsys, monkeypatch):
    output = tmp_path / "o.csv"

    def interrupted(self, *arguments):
        yield from ()
        yield Checkpoint(5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recognizer, "_stream", interrupted)
        assert predict(*call(run, many, output)) == 130
    assert not output.exists()
    kept = (tmp_path / "o.csv.partial").read_bytes()
    other = many.with_name("fewer.csv")
    other.write_text("file\nwav/tone00.wav\n")
    for changed, message in (
        (call(run, many, output, "--window", "1"), "windows: None there, "),
        (call(run, many, output, "--unknown-below", "0.5"), "'unknown_below': None"),
        (call(run, many, output, "--member", "r0_f1"), "model: "),
        (call(run, many, output, "--speaker"), "asked: "),
        (call(run, other, output), "recordings: 1240 "),
    ):
        assert predict(*changed) == 1
        error = capsys.readouterr().err
        assert "holds the beginning of another prediction" in error
        assert message in error
        assert error.count("  - ") == 1
    assert (tmp_path / "o.csv.partial").read_bytes() == kept


@pytest.mark.skipif(os.name != "posix", reason="needs file locks")
def test_two_processes_do_not_write_one_journal(tmp_path):
    first = Journal(tmp_path / "o.csv", {})
    with pytest.raises(JournalError, match="another process is writing"):
        Journal(tmp_path / "o.csv", {})
    first.close(remove=True)
    Journal(tmp_path / "o.csv", {}).close(remove=True)


# --- Memory -----------------------------------------------------------------------------------------------


def peak_bytes(recognizer: Recognizer, path: Path, windows=None) -> tuple[int, list]:
    tracemalloc.start()
    events = [type(event.recognition).__name__ if not isinstance(event, Checkpoint) else ""
              for event in recognizer.stream([Segment(path)], windows=windows)]  # fmt: skip
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak, events


def test_memory_does_not_grow_with_a_recording(run, tmp_path):
    recognizer = Recognizer.load(run, "r0_f0", batch_seconds=2.0)
    rate, minutes = 48_000, 10
    with soundfile.SoundFile(tmp_path / "long.wav", "w", rate, 1) as file:
        for _ in range(minutes):
            file.write(noise(60.0, rate))
    recognizer(tmp_path / "long.wav")  # compiled
    for windows, answers in ((None, 1), (Windows(seconds=1.5, hop=1.0), 600)):
        peak, events = peak_bytes(recognizer, tmp_path / "long.wav", windows)
        assert events.count("Recognition") == answers
        # The file has 58 MB, 115 MB as it is decoded, 19 MB at 16 kHz.
        assert peak < 15e6, peak


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, which tells a process' peak memory")
def test_a_thousand_files_are_answered_after_a_kill_and_in_bounded_memory(run, zoo, tmp_path):
    folder, good, bad = zoo
    rates = (8_000, 16_000, 44_100, 48_000)
    crowd = Path(shutil.copytree(folder, tmp_path / "crowd", symlinks=True, ignore=shutil.ignore_patterns("pipe.wav")))
    bad = {name: reason for name, reason in bad.items() if name != "pipe.wav"}
    good = good | {"30 min.wav"} | {f"more/{number:04}.wav" for number in range(1_000 - len(good) - len(bad) - 1)}
    (crowd / "more").mkdir()
    for number, name in enumerate(sorted(name for name in good if name.startswith("more"))):
        rate = rates[number % 4]
        soundfile.write(crowd / name, noise(0.2 + number % 17 / 10, rate, 1 + number % 2), rate)
    with soundfile.SoundFile(crowd / "30 min.wav", "w", 48_000, 1) as file:
        for _ in range(30):
            file.write(noise(60.0, 48_000))

    def command(where: Path, output: Path) -> subprocess.Popen:
        arguments = ["jax-mtlser", "predict", "--workdir", f"{run}", "--member", "r0_f0", f"{where}", "-o", f"{output}"]
        code = (
            "import re, sys; from pathlib import Path; from jax_mtlser.cli import main\n"
            f"status = main({arguments!r}); used = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())\n"
            f"Path({str(output) + '.peak'!r}).write_text(used[1]); sys.exit(status)"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    def peak_kilobytes(where: Path, output: Path) -> int:
        assert command(where, output).wait() == 0
        return int(Path(f"{output}.peak").read_text())

    # What the program itself takes.
    few = peak_kilobytes(crowd / "plain", tmp_path / "few.csv")
    output, journal = tmp_path / "o.csv", tmp_path / "o.csv.partial"
    process = command(crowd, output)
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 200):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not output.exists()
    many = peak_kilobytes(crowd, output)
    rows = {os.path.relpath(row["file"], crowd): row["error"] for row in read(output)}
    assert len(rows) == 1_000
    assert {name for name, error in rows.items() if not error} == good
    assert all(re.search(reason, rows[name]) for name, reason in bad.items())
    # The recording of 30 minutes alone has 173 MB, and twice that as it is decoded.
    assert many - few < 150_000, (few, many)


@pytest.mark.parametrize("timeline", [False, True])
def test_a_header_that_lies_costs_no_memory(recognizer, tmp_path, timeline):
    recognizer((noise(1.0), 16_000))
    soundfile.write(tmp_path / "liar.flac", noise(1.0), 16_000)
    claim_frames(tmp_path / "liar.flac", 2**36 - 1)
    soundfile.write(tmp_path / "liar.wav", noise(1.0), 16_000)
    content = bytearray((tmp_path / "liar.wav").read_bytes())
    content[4:8], content[40:44] = struct.pack("<I", 2**32 - 1), struct.pack("<I", 2**32 - 37)
    (tmp_path / "liar.wav").write_bytes(content)
    windows = Windows(seconds=1.0, hop=0.5) if timeline else None
    for name, expected in (("liar.flac", "str"), ("liar.wav", "Recognition")):
        peak, events = peak_bytes(recognizer, tmp_path / name, windows)
        assert events[-2] == expected
        assert peak < 20e6

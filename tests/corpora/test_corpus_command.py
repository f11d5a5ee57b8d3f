"""``jax-mtlser corpus``: kinds guessed from the files, the summary, the judgement and the written manifest."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from iemocap_tree import write_dialogue

from jax_mtlser.cli import main
from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.layouts import guess_kind
from jax_mtlser.corpora.manifest import read_manifest


def write(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def recording(path: Path, seconds: float, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros((round(seconds * rate), channels)), rate)
    return path


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["wav/03a01Fa.wav", "wav/notes.wav", "wav/08b10Ta.wav"], CorpusKind.EMO_DB),
        (["Actor_01/03-01-06-01-02-01-01.wav"], CorpusKind.RAVDESS),
        (["AudioWAV/1001_DFA_ANG_XX.wav", "finishedResponses.csv"], CorpusKind.CREMA_D),
        (["OAF_angry/OAF_back_angry.wav", "OAF_neutral/OA_bite_neutral.wav"], CorpusKind.TESS),
        (["AudioData/DC/a01.wav"], CorpusKind.SAVEE),
        (["0011/Angry/0011_000351.wav", "0011/0011.txt"], CorpusKind.ESD),
        (["female/F01A02.wav"], CorpusKind.SHEMO),
        (["data.tsv", "samples/EB0_anger_1.wav"], CorpusKind.NEMO),
        (["train/train_sent_emo.csv", "train/train_splits/dia0_utt0.mp4"], CorpusKind.MELD),
        (["Evalution.txt", "Audio/session1/S01A/S/MSP-IMPROV-S01A-F01-S-FM01.wav"], CorpusKind.MSP_IMPROV),
        (["Labels/labels_concensus.csv", "Audio/MSP-PODCAST_0001_0008.wav"], CorpusKind.MSP_PODCAST),
        (["IEMOCAP_full_release/Session2/dialog/EmoEvaluation/Ses02F_impro01.txt"], CorpusKind.IEMOCAP),
        (["metadata.csv", "wav/03a01Fa.wav"], CorpusKind.TABLE),
        (["manifest.jsonl"], CorpusKind.TABLE),
    ],
)
def test_kinds_are_guessed(files, kind, tmp_path):
    for name in files:
        write(tmp_path / name)
    assert guess_kind(tmp_path) is kind


def test_single_files_and_unknown_folders(tmp_path):
    assert guess_kind(write(tmp_path / "t.csv", "path\n")) is CorpusKind.TABLE
    entry = json.dumps({"key": "x-a", "dataset": "x", "wav": "a.wav", "emo": "neu"})
    assert guess_kind(write(tmp_path / "x.jsonl", entry + "\n")) is CorpusKind.EMOBOX
    write(tmp_path / "e" / "fold_1" / "x_test_fold_1.jsonl", entry + "\n")
    assert guess_kind(tmp_path / "e") is CorpusKind.EMOBOX
    write(tmp_path / "songs" / "one.wav")
    with pytest.raises(ManifestError, match=r"no corpus that is known by its files \(1 recordings, such as one\.wav\)"):
        guess_kind(tmp_path / "songs")
    with pytest.raises(ManifestError, match="there is no"):
        guess_kind(tmp_path / "nowhere")


def corpus(*arguments: object) -> int:
    return main(["jax-mtlser", "corpus", *map(str, arguments)])


def test_the_summary_of_a_part_of_iemocap(tmp_path, capsys):
    source = recording(tmp_path / "one.wav", 1.8)
    labels = {"F000": "neu", "M000": "exc", "F001": "xxx", "M001": "ang"}
    write_dialogue(tmp_path, 1, "Ses01F_impro01", labels, b"Ses01F_impro01_F000 [1.0-2.0]: Yes.\n", source)
    (tmp_path / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M001.wav").unlink()
    assert corpus(tmp_path) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "iemocap: 3 utterances, 0.00 h"
    assert out[2].split() == ["angry", "1", "33%", "0.000", "-"]
    assert out[3].split() == ["happy", "1", "33%", "0.001", "1.80"]
    rest = [line.strip() for line in out[5:]]
    assert rest[:2] == ["speakers: 2 (1 female, 1 male)", "transcripts: 1 of 3, 1 different"]
    assert "session: Session1 3" in rest
    assert "recordings: 2 x 16 kHz mono" in rest
    assert any(line.startswith("missing: 1 recordings, such as ") for line in rest)
    assert "iemocap: not the full release of IEMOCAP (Busso et al., 2008), found (expected):" in rest
    assert any("undecided 1 (2507); together 4 (10039)" in line for line in rest)
    assert "recordings: 1 of 4 are missing" in rest
    assert rest[-1] == "training on it needs --config.corpus.partial=true"


def test_joined_corpora_are_written_and_read_again(tmp_path, capsys):
    recording(tmp_path / "emo" / "03a01Wa.wav", 2.0, 44_100, 2)
    recording(tmp_path / "emo" / "08a01Na.wav", 1.0)
    write(tmp_path / "other.csv", "path,label\nx.wav,joy\ny.wav,calm\n")
    write(tmp_path / "x.wav", "no audio")
    output = tmp_path / "out" / "joined.csv"
    assert corpus(tmp_path / "emo", f"mine={tmp_path / 'other.csv'}", "--classes", "four", "-o", output) == 0
    text = capsys.readouterr().out
    assert "emo_db+mine: 3 utterances, 0.00 h" in text
    assert "corpus: emo_db 2, mine 1" in text
    assert "unreadable: 1 recordings, such as" in text
    assert "44.1 kHz 2 channels" in text
    assert "emo_db: not the full release of EMO-DB" in text
    assert "mine: a table; there is no official release to compare with" in text
    read = read_manifest(output)
    assert [u.id for u in read.utterances] == ["emo_db/03a01Wa", "emo_db/08a01Na", "mine/x"]
    assert read.column("emotion") == ["angry", "neutral", "happy"]
    assert read.utterances[0].path == tmp_path / "emo" / "03a01Wa.wav"


def test_a_complete_release_is_said_to_be_complete(tmp_path, capsys):
    numbers = {"a": 15, "d": 15, "f": 15, "h": 15, "n": 30, "sa": 15, "su": 15}
    for who in ("DC", "JE", "JK", "KL"):
        for code, count in numbers.items():
            for number in range(1, count + 1):
                write(tmp_path / who / f"{code}{number:02d}.wav")
    assert corpus(tmp_path, "--kind", "savee") == 0
    text = capsys.readouterr().out
    assert "savee: all counts are those of SAVEE (Haq & Jackson, 2010)" in text
    assert "partial" not in text


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["a", "b", "c", "--kind", "tess", "--kind", "savee"], 2, "--kind is given 2 times for 3 paths"),
        (["a", "-o", "m.json"], 2, "name a file that ends in .csv"),
        (["nowhere"], 1, "error: there is no nowhere"),
        (["nowhere", "--kind", "iemocap"], 1, "no Session1..5/dialog/EmoEvaluation"),
    ],
)
def test_mistakes_are_answered_in_a_line(arguments, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert corpus(*arguments) == status
    assert message in capsys.readouterr().err


def test_the_real_corpus(real_data, capsys):
    assert corpus(real_data / "nemo16k") == 0
    out = capsys.readouterr().out
    assert "nemo16k: 2,357 utterances, 1.62 h" in out
    assert "speakers: 7 (3 female, 4 male)" in out
    assert "sentence_id: 90 values from 1 to 90" in out
    assert "recordings: 2,357 x 16 kHz mono" in out
    assert corpus(real_data / "nemo16k", "--classes", "four", "--emotions", "happy,sad") == 0
    assert "nemo16k: 1,159 utterances" in capsys.readouterr().out

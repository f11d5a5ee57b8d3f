import itertools
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.corpora.manifest import read_manifest
from jax_mtlser.data.vocabulary import (
    Vocabulary,
    VocabularyError,
    checkpoint_vocabulary,
    min_frames,
    normalize_transcript,
    paper_vocabulary,
    transcripts_vocabulary,
)

REAL_DATA = os.environ.get("MTLSER_REAL_DATA", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Excuse me.", "EXCUSE ME"),
        ("  It’s\u00a0‘fine’,\tI`m o´kay ", "IT'S FINE I'M O'KAY"),
        ("“Hello,” she said; ''well''", "HELLO SHE SAID WELL"),
        ("'Cause rock 'n' roll ' 's", "'CAUSE ROCK N ROLL 'S"),
        ("[LAUGHTER] oh {LG} <sil> ++GARBAGE++ <BR> dear [door slam]", "OH DEAR"),
        ("[LAUGHTER]", ""),
        ("...", ""),
        ("", ""),
        ("if a < b and c > d, C++ and C++", "IF A B AND C D C AND C"),
        ("well-known - yes—no–maybe…and/or wait...what", "WELL KNOWN YES NO MAYBE AND OR WAIT WHAT"),
        ("naïve café Søren Łódź Æsir straße", "NAIVE CAFE SOREN LODZ AESIR STRASSE"),
        ("co\u00adop e\u200bmail \ufeffyes", "COOP EMAIL YES"),
        ("Ｆｕｌｌ ﬁne", "FULL FINE"),
        ("日本 Ωmega", "MEGA"),
        ("I paid 1,000 dollars", "I PAID ONE THOUSAND DOLLARS"),
        ("3.5 or 1,234.5", "THREE POINT FIVE OR ONE THOUSAND TWO HUNDRED AND THIRTY FOUR POINT FIVE"),
        ("in 1990, 1905 and 2005.", "IN NINETEEN NINETY NINETEEN OH FIVE AND TWO THOUSAND AND FIVE"),
        ("the 3rd, 21ST and 100th", "THE THIRD TWENTY FIRST AND ONE HUNDREDTH"),
        ("the 1990s, the '20s and 6s", "THE NINETEEN NINETIES THE TWENTIES AND SIXES"),
        ("007 at 10:30", "ZERO ZERO SEVEN AT TEN THIRTY"),
        ("1,00 B2B", "ONE ZERO ZERO B TWO B"),
        ("call 5551234567", "CALL FIVE FIVE FIVE ONE TWO THREE FOUR FIVE SIX SEVEN"),
        ("1990-95", "NINETEEN NINETY NINETY FIVE"),
        ("0.05", "ZERO POINT ZERO FIVE"),
        ("٣ ²", "THREE TWO"),
        ("It\x92s \x93fine\x94 \x96 well\x85so", "IT'S FINE WELL SO"),
        ("50% of AT&T, 3.5 %", "FIFTY PERCENT OF AT AND T THREE POINT FIVE PERCENT"),
        ("[BREATHING] No. [LIPSMACK] {LG} ++um++ Fifty-fifty, [GARBAGE]", "NO FIFTY FIFTY"),
    ],
)
def test_english(text, expected):
    assert normalize_transcript(text, "en") == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        (
            "de",
            "Das kostet 1.000,5 Euro, 3,5 oder 3.5.",
            "DAS KOSTET EINTAUSEND KOMMA FÜNF EURO DREI KOMMA FÜNF ODER DREI KOMMA FÜNF",
        ),
        ("de", "1.000.000 Straßen", "EINE MILLION STRASSEN"),
        ("pl", "Zażółć gęślą jaźń, 25!", "ZAŻÓŁĆ GĘŚLĄ JAŹŃ DWADZIEŚCIA PIĘĆ"),
        ("fr", "C’est l'été : 21", "C'EST L'ÉTÉ VINGT ET UN"),
        ("fr", "e\u0301te\u0301", "ÉTÉ"),
        ("tr", "ısı istanbul", "ISI İSTANBUL"),
        ("hi", "हिन्दी में", "हिन्दी में"),
        ("fa", "می\u200cخواهم ۳", "میخواهم سه"),
        ("zh", "你好，世界！", "你好 世界"),
        ("pt_BR", "16", "DEZESSEIS"),
        ("am", "1990", "አንድ ዘጠኝ ዘጠኝ ዜሮ"),
        ("ru", "\u0301 да", "ДА"),
        ("de", "50 % & mehr", "FÜNFZIG MEHR"),
        ("fa", "\ufeffمی\u200cدونین ۲۵", "میدونین بیست و پنج"),
    ],
)
def test_other_languages(language, text, expected):
    assert normalize_transcript(text, language) == expected


def test_numbers_of_a_language_that_is_not_known():
    assert normalize_transcript("你好", "zh") == "你好"
    with pytest.raises(VocabularyError, match=r"language 'zh' \(known: am, .*config\.model\.vocabulary\.language"):
        normalize_transcript("3 个", "zh")


@pytest.mark.parametrize("language", ["english", "", "EN", "e"])
def test_not_a_language_code(language):
    with pytest.raises(VocabularyError, match="is not a code such as en"):
        normalize_transcript("hello", language)


TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="abcéŁß’'`\"´ -–…/.,0123456789stndrdth[]{}<>+&%\x92\x85\u0301\u0345İıǰŉ\u200d|", max_size=30),
)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, language=st.sampled_from(["en", "de", "pl", "tr", "bn"]))
def test_normalisation_is_idempotent_and_keeps_only_what_it_says(text, language):
    once = normalize_transcript(text, language)
    assert normalize_transcript(once, language) == once
    assert once == " ".join(once.split(" ")).strip()
    assert "  " not in once
    if language == "en":
        assert set(once) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")
    else:
        assert unicodedata.is_normalized("NFC", once)
        assert {unicodedata.category(c)[0] for c in set(once) - {" ", "'"}} <= {"L", "M"}


def test_paper_symbols():
    vocabulary = paper_vocabulary()
    listed = list("|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
    assert vocabulary.symbols == ("<pad>", "<s>", "</s>", "<unk>", *listed)
    assert (len(vocabulary), vocabulary.blank, vocabulary.unknown, vocabulary.word_boundary) == (32, 0, 3, 4)
    assert vocabulary.encode("HELLO WORLD'S Ł") == [11, 5, 15, 15, 8, 4, 18, 8, 13, 15, 14, 27, 12, 4, 3]


def test_greedy_decoding():
    vocabulary = paper_vocabulary()
    frames = [0, 4, 11, 11, 5, 0, 15, 15, 0, 15, 8, 8, 4, 0, 4, 1, 2, 3, 24, 8, 6, 0, 6, 4, 0]
    assert vocabulary.decode(np.array(frames)) == "HELLO BOTT"
    assert vocabulary.decode([]) == vocabulary.decode([0, 0, 4]) == ""


def test_without_unknown_and_word_boundary():
    vocabulary = Vocabulary(("_", "A", "B"), blank=0, unknown=None, word_boundary=None)
    assert vocabulary.encode("A CAB") == [1, 1, 2]
    assert vocabulary.decode([1, 0, 1, 2, 2]) == "AAB"


def test_lower_case_vocabulary():
    vocabulary = transcripts_vocabulary(["ab'c"])
    assert vocabulary.encode("A CAB'S") == [4, 2, 6, 4, 5, 3, 1]
    assert vocabulary.decode([4, 2, 6, 4, 5]) == "A CAB"
    mixed = Vocabulary(("_", "a", "B"), blank=0, unknown=None, word_boundary=None)
    assert mixed.encode("aBAb") == [1, 2]


def frames_of(ids, blank):
    """A path through CTC: a blank between equal neighbours, some symbols held for two frames."""
    frames = []
    for position, (previous, index) in enumerate(zip([None, *ids], ids, strict=False)):
        frames += [blank] * (previous == index) + [index] * (1 + position % 2)
    return frames


@settings(deadline=None)
@given(text=TEXTS, language=st.sampled_from(["en", "pl"]), more=st.lists(TEXTS, max_size=3))
def test_decoding_inverts_encoding(text, language, more):
    text = normalize_transcript(text, language)
    vocabulary = transcripts_vocabulary([text, *(normalize_transcript(other, language) for other in more)])
    ids = vocabulary.encode(text)
    assert vocabulary.unknown not in ids
    assert vocabulary.decode(frames_of(ids, vocabulary.blank)) == text
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@given(ids=st.lists(st.integers(1, 3), max_size=8))
def test_min_frames_is_the_shortest_path(ids):
    shortest = []
    for index in ids:
        shortest += [0] * (shortest[-1:] == [index]) + [index]
    assert min_frames(ids) == len(shortest)
    assert [key for key, _ in itertools.groupby(shortest) if key] == ids


def test_transcripts_vocabulary():
    vocabulary = transcripts_vocabulary(["ŻABA I", "", "KOT'A"])
    assert vocabulary.symbols == ("<pad>", "<unk>", "|", "'", "A", "B", "I", "K", "O", "T", "Ż")
    assert (vocabulary.blank, vocabulary.unknown, vocabulary.word_boundary) == (0, 1, 2)
    assert len(transcripts_vocabulary([])) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((("a", "a"), 0, None, None), "'a' occur more than once"),
        ((("a", "b"), 2, None, None), r"\[2\] lie outside the 2 symbols"),
        ((("a", "b"), 0, 0, None), "share an id"),
    ],
)
def test_vocabulary_that_cannot_be(values, message):
    with pytest.raises(VocabularyError, match=message):
        Vocabulary(*values)


def write_checkpoint(folder, vocab, **files):
    for name, value in {"vocab": vocab, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_checkpoint_with_the_usual_names(tmp_path):
    paper = paper_vocabulary()
    folder = write_checkpoint(tmp_path, {symbol: index for index, symbol in enumerate(paper.symbols)})
    assert checkpoint_vocabulary(folder) == paper


def test_checkpoint_that_names_its_own(tmp_path):
    vocab = {"ż": 2, "a": 1, " ": 3, "[UNK]": 4, "[PAD]": 5, "|": 0}
    folder = write_checkpoint(
        tmp_path,
        vocab,
        tokenizer_config={"pad_token": "[PAD]", "word_delimiter_token": {"content": " "}, "do_lower_case": True},
        special_tokens_map={"pad_token": "<pad>", "unk_token": {"content": "[UNK]", "lstrip": False}},
    )
    vocabulary = checkpoint_vocabulary(folder)
    assert vocabulary == Vocabulary(("|", "a", "ż", " ", "[UNK]", "[PAD]"), blank=5, unknown=4, word_boundary=3)
    assert vocabulary.encode("A ŻB") == [1, 3, 2, 4]
    assert vocabulary.decode([1, 3, 2, 4, 5]) == "A Ż"


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ({"<pad>": 0, "a": 2}, r"does not number its 2 symbols from 0 to 1: see ids \[1, 2\]"),
        ({"<pad>": 0, "a": 0}, "does not number its 2 symbols"),
        ({"a": 0, "b": 1}, r"has no blank: neither '<pad>' nor '\[PAD\]'"),
        ({"eng": {"<pad>": 0}}, "is not one table of symbols and ids: 'eng'"),
        ({"<pad>": True}, "is not one table"),
        (["<pad>"], "holds a list, not a JSON object"),
    ],
)
def test_checkpoint_that_cannot_be_used(tmp_path, vocab, message):
    with pytest.raises(VocabularyError, match=message):
        checkpoint_vocabulary(write_checkpoint(tmp_path, vocab))


def test_checkpoint_without_a_table(tmp_path):
    with pytest.raises(VocabularyError, match=r"has no vocab\.json.*source=paper or transcripts"):
        checkpoint_vocabulary(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(VocabularyError, match=r"vocab\.json cannot be read as JSON"):
        checkpoint_vocabulary(tmp_path)


@pytest.mark.skipif(not REAL_DATA, reason="MTLSER_REAL_DATA does not name a folder that holds nemo16k")
def test_real_transcripts():
    manifest = read_manifest(Path(REAL_DATA) / "nemo16k")
    texts = [normalize_transcript(text or "", "pl") for text in manifest.column("text")]
    assert all(texts)
    vocabulary = transcripts_vocabulary(texts)
    assert set("".join(vocabulary.symbols[3:])) <= set("AĄBCĆDEĘFGHIJKLŁMNŃOÓPQRSŚTUVWXYZŹŻ'")
    for text in texts:
        ids = vocabulary.encode(text)
        assert vocabulary.decode(frames_of(ids, vocabulary.blank)) == text

"""Transcripts: how they are normalised, and the symbols that a CTC head writes them in."""

import dataclasses
import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import num2words

__all__ = [
    "Vocabulary",
    "VocabularyError",
    "checkpoint_vocabulary",
    "min_frames",
    "normalize_transcript",
    "paper_vocabulary",
    "transcripts_vocabulary",
]


class VocabularyError(ValueError):
    """Symbols or a language that cannot be used; the message names the file or the value."""


# --- Normalisation ---------------------------------------------------------------------------------------

# Marks that are typed where an apostrophe is meant. Double quotation marks are not among them.
_APOSTROPHES = dict.fromkeys(map(ord, "‘’‚‛ʼʹ′`´＇"), "'")
# Files in Windows' code page that were read as Latin-1 have control characters where it has quotes and dashes.
_WINDOWS = {
    code: character
    for code in range(0x80, 0xA0)
    if (character := bytes([code]).decode("cp1252", errors="ignore")) and character != chr(code)
}
# Signs that are read out; in other languages they are signs like any other.
_ENGLISH_SIGNS = str.maketrans({"&": " and ", "%": " percent ", "٪": " percent "})
# What annotators write for sounds that are not words: [LAUGHTER], {LG}, <sil>, ++GARBAGE++. No blank may
# follow the opening sign, so that "a < b" and "C++ and C++" stay.
_NON_SPEECH = re.compile(r"\[[^\[\]]*\]|\{[^{}]*\}|<(?=\S)[^<>]*(?<=\S)>|\+\+(?=\S)[^+]*(?<=\S)\+\+")
# Letters of the Latin script that have no decomposition into A-Z and an accent.
_LATIN = str.maketrans(
    {"Æ": "AE", "Œ": "OE", "Ø": "O", "Ł": "L", "Đ": "D", "Ð": "D", "Þ": "TH", "Ħ": "H", "Ŧ": "T", "ẞ": "SS"}
)
_TURKIC_UPPER = str.maketrans({"i": "İ", "ı": "I"})  # str.upper knows no languages


def normalize_transcript(text: str, language: str) -> str:
    """Bring a transcript into the form that is trained on and scored: upper-case words of letters.

    Non-speech tokens are dropped, digits (in English also & and %) are written as words, the apostrophe stays within
    words, all other signs become spaces. English is reduced to A-Z; other languages keep their letters, composed
    (NFC), and the combining marks that belong to them. Applying it twice changes nothing.

    Args:
        text: as spelled in the corpus.
        language: code such as ``en``, ``pl`` or ``pt_BR``.

    Returns:
        Words with single spaces between them; empty when nothing was said in words.

    Raises:
        VocabularyError: not a language code, or digits in a language whose numbers are not known.
    """
    base = _base_language(language)
    # Before and after NFKC, which turns some quotes into a blank and an accent and makes others.
    text = unicodedata.normalize("NFKC", text.translate(_WINDOWS).translate(_APOSTROPHES)).translate(_APOSTROPHES)
    # Format characters (soft hyphen, zero-width joiner, byte-order mark) stand inside words.
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    text = _NON_SPEECH.sub(" ", text)
    if base == "en":
        text = text.translate(_ENGLISH_SIGNS)
    text = _digits_to_words(text, language, base)
    if base in ("tr", "az"):
        text = text.translate(_TURKIC_UPPER)
    text = unicodedata.normalize("NFKC", text.upper())
    text = _english_letters(text) if base == "en" else _unicode_letters(text)
    # Doubled apostrophes, and one on each side of a word, are quotation marks.
    words = re.sub("'{2,}", " ", text).split()
    words = [word[1:-1] if word[0] == word[-1] == "'" else word for word in words]
    return " ".join(filter(None, words))


def _base_language(language: str) -> str:
    if not re.fullmatch(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?", language):
        raise VocabularyError(
            f"language {language!r} is not a code such as en, de or pt_BR; set --config.model.vocabulary.language"
        )
    return re.split("[-_]", language)[0]


def _english_letters(text: str) -> str:
    text = unicodedata.normalize("NFKD", text.translate(_LATIN))
    text = "".join(character for character in text if not unicodedata.combining(character))
    return re.sub("[^A-Z']", " ", text)


def _unicode_letters(text: str) -> str:
    kept: list[str] = []
    on_letter = False  # a mark counts only on a letter, possibly after other marks
    for character in text:
        category = unicodedata.category(character)[0]
        on_letter = category == "L" or (category == "M" and on_letter)
        kept.append(character if on_letter or character == "'" else " ")
    return "".join(kept)


# --- Numbers ---------------------------------------------------------------------------------------------

# Languages that write 3.5 and 1,000; the others of num2words write 3,5 and 1.000.
_DECIMAL_POINT = frozenset(("am", "bn", "cy", "en", "fa", "he", "ja", "kn", "ko", "te", "th"))
_POINT_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?")
_COMMA_NUMBER = re.compile(r"\d{1,3}(?:\.\d{3})+(?!\d)(?:,\d+)?|\d+(?:[.,]\d+)?")
_ENGLISH_ORDINAL = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(?:st|nd|rd|th)\b", re.IGNORECASE)
_ENGLISH_PLURAL = re.compile(r"(?<![\d.,])(\d+)s\b")
# Longer numbers are telephone and serial numbers: read out digit by digit. num2words never returns from
# Amharic thousands.
_MOST_DIGITS = 9
_MOST_DIGITS_OF = {"am": 3}


def _digits_to_words(text: str, language: str, base: str) -> str:
    if not re.search(r"\d", text):
        return text
    tongue = _number_language(language, base)
    if base == "en":
        text = _ENGLISH_ORDINAL.sub(lambda match: f" {_ordinal(match[1].replace(',', ''), tongue)} ", text)
        text = _ENGLISH_PLURAL.sub(lambda match: f" {_plural(_cardinal(match[1], tongue, base))} ", text)
    if base in _DECIMAL_POINT:
        return _POINT_NUMBER.sub(lambda match: f" {_number(match[0].replace(',', ''), tongue, base)} ", text)

    def comma_number(match: re.Match[str]) -> str:
        whole, decimal = match[0], match[0].replace(".", "").replace(",", ".")
        # 1.000 and 1.000,5 group digits; 3.5 is a decimal written the English way.
        grouped = re.fullmatch(r"\d{1,3}(?:\.\d{3})+(?:,\d+)?", whole)
        return f" {_number(decimal if grouped else whole.replace(',', '.'), tongue, base)} "

    return _COMMA_NUMBER.sub(comma_number, text)


def _number_language(language: str, base: str) -> str:
    known = num2words.CONVERTER_CLASSES
    for code in (language.replace("-", "_"), base):
        if code in known:
            return code
    raise VocabularyError(
        f"numbers cannot be written as words in language {language!r} (known: {', '.join(sorted(known))}); "
        "write them as words in the transcripts or set --config.model.vocabulary.language"
    )


def _number(number: str, tongue: str, base: str) -> str:
    """Words of ``123`` or ``123.45``."""
    whole, point, fraction = number.partition(".")
    if not point:
        return _cardinal(whole, tongue, base)
    if len(whole) + len(fraction) > _MOST_DIGITS:
        return f"{_cardinal(whole, tongue, base)} {_digit_by_digit(fraction, tongue)}"
    try:
        return num2words.num2words(Decimal(number), lang=tongue)
    except Exception:  # what converters raise for numbers they cannot say differs by language
        return f"{_cardinal(whole, tongue, base)} {_digit_by_digit(fraction, tongue)}"


def _cardinal(digits: str, tongue: str, base: str) -> str:
    if len(digits) > _MOST_DIGITS_OF.get(base, _MOST_DIGITS) or (digits[0] == "0" and len(digits) > 1):
        return _digit_by_digit(digits, tongue)
    # nineteen ninety, not one thousand nine hundred and ninety
    year = base == "en" and len(digits) == 4 and 1100 <= int(digits) < 2100
    try:
        return num2words.num2words(int(digits), lang=tongue, to="year" if year else "cardinal")
    except Exception:
        return _digit_by_digit(digits, tongue)


def _digit_by_digit(digits: str, tongue: str) -> str:
    return " ".join(num2words.num2words(int(digit), lang=tongue) for digit in digits)


def _ordinal(digits: str, tongue: str) -> str:
    if len(digits) > _MOST_DIGITS:
        return _digit_by_digit(digits, tongue)
    return num2words.num2words(int(digits), lang=tongue, to="ordinal")


def _plural(words: str) -> str:
    """Nineteen nineties, sixes, hundreds."""
    if words.endswith("y"):
        return f"{words[:-1]}ies"
    return f"{words}es" if words.endswith("x") else f"{words}s"


# --- Vocabulary ------------------------------------------------------------------------------------------

_PAPER_SYMBOLS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
_SILENT = frozenset(("<s>", "</s>", "<pad>"))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The symbols of a CTC head.

    Attributes:
        symbols: by id.
        blank: id of the CTC blank.
        unknown: id that stands for every other letter; None: such letters are dropped.
        word_boundary: id that stands for a space; None: words run together.
    """

    symbols: tuple[str, ...]
    blank: int
    unknown: int | None
    word_boundary: int | None

    def __post_init__(self) -> None:
        if len(set(self.symbols)) != len(self.symbols):
            twice = sorted({symbol for symbol in self.symbols if self.symbols.count(symbol) > 1})
            raise VocabularyError(f"symbols {', '.join(map(repr, twice))} occur more than once")
        special = [index for index in (self.blank, self.unknown, self.word_boundary) if index is not None]
        if outside := [index for index in special if not 0 <= index < len(self.symbols)]:
            raise VocabularyError(f"special ids {outside} lie outside the {len(self.symbols)} symbols")
        if len(set(special)) != len(special):
            raise VocabularyError(f"blank, unknown and word boundary share an id: {special}")

    def __len__(self) -> int:
        return len(self.symbols)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        special = {self.blank, self.unknown, self.word_boundary}
        return {symbol: index for index, symbol in enumerate(self.symbols) if index not in special}

    @functools.cached_property
    def _lower_case(self) -> bool:
        letters = [symbol for symbol in self._ids if len(symbol) == 1]
        return any(map(str.islower, letters)) and not any(map(str.isupper, letters))

    def encode(self, text: str) -> list[int]:
        """Ids of a normalised transcript, without blanks.

        A vocabulary of lower-case letters is matched in lower case.
        """
        ids = []
        for character in text.lower() if self._lower_case else text:
            index = self.word_boundary if character == " " else self._ids.get(character, self.unknown)
            if index is not None:
                ids.append(index)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Transcript of one id per frame, as greedy CTC decoding reads it.

        Repeats are collapsed, then blanks, unknown and sentence symbols are dropped. The text is in the
        normalised form, in upper case, also where the vocabulary's letters are lower-case.
        """
        silent = {self.blank, self.unknown}
        text = "".join(
            " " if index == self.word_boundary else self.symbols[index]
            for index, _ in itertools.groupby(map(int, ids))
            if index not in silent and self.symbols[index] not in _SILENT
        )
        text = " ".join(text.split())
        return text.upper() if self._lower_case else text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**dataclasses.asdict(self), "symbols": list(self.symbols)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(tuple(values["symbols"]), values["blank"], values["unknown"], values["word_boundary"])


def min_frames(ids: Sequence[int]) -> int:
    """Fewest frames in which CTC can write ``ids``: one each, and a blank between equal neighbours."""
    return len(ids) + sum(left == right for left, right in itertools.pairwise(ids))


def paper_vocabulary() -> Vocabulary:
    """The 32 symbols of ``facebook/wav2vec2-base-960h``, in its order."""
    return Vocabulary(_PAPER_SYMBOLS, blank=0, unknown=3, word_boundary=4)


def transcripts_vocabulary(texts: Iterable[str]) -> Vocabulary:
    """Blank, unknown, word boundary and the letters of normalised training transcripts, sorted."""
    letters = sorted(set().union(*texts) - {" "})
    return Vocabulary(("<pad>", "<unk>", "|", *letters), blank=0, unknown=1, word_boundary=2)


def checkpoint_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a fine-tuned checkpoint in Hugging Face's layout.

    Args:
        folder: with ``vocab.json`` ({symbol: id}) and, optionally, ``tokenizer_config.json`` or
            ``special_tokens_map.json`` that name the special symbols. The pad token is the blank.

    Raises:
        VocabularyError: no such file, not such a table, ids with gaps, no blank.
    """
    path = folder / "vocab.json"
    if not path.is_file():
        raise VocabularyError(
            f"{folder} has no vocab.json, so the checkpoint names no symbols; "
            "use --config.model.vocabulary.source=paper or transcripts"
        )
    ids = _read_object(path)
    if nested := [symbol for symbol, index in ids.items() if type(index) is not int]:
        raise VocabularyError(f"{path} is not one table of symbols and ids: {nested[0]!r} is {ids[nested[0]]!r:.60}")
    symbols = tuple(sorted(ids, key=lambda symbol: ids[symbol]))
    if [ids[symbol] for symbol in symbols] != list(range(len(ids))):
        wrong = sorted(set(range(len(ids))) ^ set(ids.values())) or ["some occur twice"]
        raise VocabularyError(
            f"{path} does not number its {len(ids)} symbols from 0 to {len(ids) - 1}: see ids {wrong[:5]}"
        )
    named = _special_tokens(folder)
    blank = _first_id(ids, named.get("pad_token"), "<pad>", "[PAD]")
    if blank is None:
        raise VocabularyError(
            f"{path} has no blank: neither {named.get('pad_token') or '<pad>'!r} nor '[PAD]' is among its {len(ids)} "
            "symbols; name it as pad_token in tokenizer_config.json"
        )
    return Vocabulary(
        symbols,
        blank=blank,
        unknown=_first_id(ids, named.get("unk_token"), "<unk>", "[UNK]"),
        word_boundary=_first_id(ids, named.get("word_delimiter_token"), "|", " "),
    )


def _first_id(ids: Mapping[str, int], *symbols: str | None) -> int | None:
    return next((ids[symbol] for symbol in symbols if symbol is not None and symbol in ids), None)


def _special_tokens(folder: Path) -> dict[str, str]:
    """Names of the special symbols; ``tokenizer_config.json`` overrides ``special_tokens_map.json``."""
    named: dict[str, str] = {}
    for path in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        for name, token in (_read_object(path) if path.is_file() else {}).items():
            # Newer files hold a token's flags beside its text.
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                named[name] = content
    return named


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise VocabularyError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value

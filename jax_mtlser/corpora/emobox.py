"""A corpus as EmoBox lists it (Ma et al., 2024): one JSON object per line, and folders with one list per part.

``data/iemocap/iemocap.jsonl`` has all utterances, ``data/iemocap/fold_1/iemocap_test_fold_1.jsonl`` those of a part,
``data/iemocap/label_map.json`` the classes. The recordings' paths start from EmoBox's own folder
(``downloads/iemocap/...``). The lists name no speakers and have no texts: read the corpus itself, and only its folds
from these lists, where these are needed.
"""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path

from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import canonical
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.corpora.tables import read_rows, read_text

__all__ = ["find_emobox", "read_emobox"]

_LIST = re.compile(r"(?P<corpus>.+)_(?P<part>train|valid|test)_fold_(?P<fold>\d+)\.jsonl")
_PARTS = {"train": "train", "valid": "dev", "test": "test"}


def read_emobox(path: Path) -> Manifest:
    """Read a corpus' lists.

    Args:
        path: the folder of a corpus in EmoBox's ``data``, or a single list.

    Returns:
        The manifest, named after the corpus, with emotions as ``label_map.json`` beside the lists joins them. Where
        there are several folds, the column ``fold`` says in which one an utterance is tested; where there is one,
        ``split`` says in which part it is (train, dev, test). Recordings that are not found stand at their path
        below the lists' folder.

    Raises:
        ManifestError: no list, a line without recording, an utterance in two parts of one fold or in two test parts.
    """
    lists = find_emobox(path)
    if not lists:
        raise ManifestError(
            f"{path} has no list of EmoBox, such as fold_1/iemocap_test_fold_1.jsonl; name the folder of a corpus in "
            "EmoBox's data with --config.corpus.path=PATH"
        )
    folder = path if path.is_dir() else path.parent
    labels = _read_label_map(folder if not folder.name.startswith("fold_") else folder.parent)
    utterances: dict[str, Utterance] = {}
    for table in lists:
        found = _LIST.fullmatch(table.name)
        _, rows = read_rows(table)
        for line, row in rows:
            utterance = _utterance(row, f"{table}, line {line}", folder, labels)
            groups = dict(utterances.get(utterance.id, utterance).groups)
            if found:
                _add_part(groups, found["fold"], _PARTS[found["part"]], f"{table}, line {line}")
            utterances[utterance.id] = dataclasses.replace(utterance, groups=groups)
    folds = {key for u in utterances.values() for key in u.groups if key.startswith("fold ")}
    rows_of = [_with_columns(utterance, len(folds), path) for utterance in utterances.values()]
    name = next((found["corpus"] for table in lists if (found := _LIST.fullmatch(table.name))), lists[0].stem)
    return Manifest(name, tuple(rows_of))


def find_emobox(path: Path) -> list[Path]:
    """The lists at a path, by fold and part; the list of all utterances where there are no folds; empty: none."""
    if path.is_file():
        return [path] if _is_list(path) else []
    found = [table for pattern in ("*.jsonl", "fold_*/*.jsonl") for table in path.glob(pattern)]
    parts = [(int(match["fold"]), table) for table in found if (match := _LIST.fullmatch(table.name))]
    return [table for _, table in sorted(parts)] or sorted(table for table in found if _is_list(table))


def _is_list(table: Path) -> bool:
    if table.suffix.lower() != ".jsonl":
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        line = file.readline()
    return all(f'"{key}"' in line for key in ("key", "wav", "emo"))


def _read_label_map(folder: Path) -> dict[str, str]:
    path = folder / "label_map.json"
    if not path.is_file():
        return {}
    try:
        labels = json.loads(read_text(path))
    except ValueError as error:
        raise ManifestError(f"{path} is not JSON: {error}") from None
    if not isinstance(labels, dict):
        raise ManifestError(f"{path} holds a {type(labels).__name__}, not an object of labels and classes")
    return {str(label): str(name) for label, name in labels.items()}


def _utterance(row: dict[str, str], where: str, folder: Path, labels: dict[str, str]) -> Utterance:
    if not row.get("key") or not row.get("wav"):
        raise ManifestError(f"{where}: no key or no wav; lines look like {{'key': ..., 'wav': ..., 'emo': ...}}")
    label = row.get("emo", "")
    return Utterance(
        id=row["key"].removeprefix(f"{row.get('dataset', '')}-"),
        path=_recording(Path(row["wav"]), folder),
        emotion=canonical(labels.get(label, label)) or None,
    )


def _recording(path: Path, folder: Path) -> Path:
    places: Iterable[Path] = (parent / path for parent in (folder, *folder.resolve().parents))
    return next((place for place in places if place.is_file()), folder / path)


def _add_part(groups: dict[str, str], fold: str, part: str, where: str) -> None:
    if groups.setdefault(f"fold {fold}", part) != part:
        raise ManifestError(f"{where}: listed for {part} and for {groups[f'fold {fold}']} of fold {fold}; list it once")


def _with_columns(utterance: Utterance, folds: int, path: Path) -> Utterance:
    """Parts by fold become the column ``fold`` or ``split``."""
    parts = {key.removeprefix("fold "): part for key, part in utterance.groups.items()}
    tested = [fold for fold, part in parts.items() if part == "test"]
    if folds > 1 and len(tested) > 1:
        raise ManifestError(f"{path}: {utterance.id} is tested in folds {', '.join(tested)}; one is possible")
    groups = {}
    if folds == 1 and parts:
        groups["split"] = next(iter(parts.values()))
    elif tested:
        groups["fold"] = tested[0]
    return dataclasses.replace(utterance, groups=groups)

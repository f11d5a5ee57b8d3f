"""Writes an export beside its place, verifies it on real audio, describes it, and only then puts it there."""

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.inference.exports.card import NO_LICENCE, model_card
from jax_mtlser.inference.exports.facts import gather_facts
from jax_mtlser.inference.exports.formats import FORMATS, LIMITS, ExportError, ExportFormat, Judge, OnnxShape, Weights
from jax_mtlser.inference.exports.huggingface import read_huggingface, write_huggingface
from jax_mtlser.inference.exports.onnx_file import read_onnx, samples_of, write_onnx
from jax_mtlser.inference.exports.orbax import read_orbax, write_orbax
from jax_mtlser.inference.exports.recordings import find_utterances
from jax_mtlser.inference.exports.ser_path import SerPath
from jax_mtlser.inference.exports.stablehlo import read_stablehlo, write_stablehlo
from jax_mtlser.inference.exports.verification import Verified, verify
from jax_mtlser.inference.trained_model import TrainedModel
from jax_mtlser.run_folder import MemberFolder, read_json, write_json, write_text

__all__ = ["Exported", "check_files", "export_member", "open_export"]

_RECORD = "export.json"
_LABELS = "labels.json"
_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        trained: the member.
        verified: what was measured.
        sizes: bytes on disk of (the run's model, the export's files).
    """

    trained: TrainedModel
    verified: Verified
    sizes: tuple[int, int]


def export_member(
    model: Path,
    to: Path,
    form: ExportFormat,
    weights: Weights = Weights.FLOAT32,
    *,
    licence: str | None = None,
    audio: Path | None = None,
    shape: OnnxShape | None = None,
) -> Exported:
    """Export a finished member.

    Args:
        model: its ``model`` folder, from :func:`~jax_mtlser.inference.trained_model.find_models`.
        to: folder that does not exist, or is empty.
        form: what is written.
        weights: how.
        licence: of the weights, for the card.
        audio: recordings to verify on; None: the member's test part.
        shape: of an ONNX export.

    Raises:
        ExportError: a combination that there is not, no audio, a library that is missing, or an export that differs
            from the model by more than its limit. Nothing is left behind.
        ModelError: no such model.
    """
    if weights not in FORMATS[form]:
        able = ", ".join(each.value for each in FORMATS[form])
        raise ExportError(f"--weights is {weights.value}; the format {form.value} can have {able}")
    member, trained = MemberFolder(model.parent), TrainedModel.read(model)
    path, shape = SerPath.of(trained), shape or OnnxShape()
    bounds = (path.shortest, trained.arch.max_samples())
    utterances, fixed = find_utterances(member, trained.limits, audio), None
    if form is ExportFormat.ONNX:
        fixed = (shape.batch, samples_of(shape, path))
        utterances = utterances.up_to(fixed[1])
    staged = to.with_name(f".{to.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        exported = _write(staged, form, weights, trained, member, path, shape)
        verified = verify(
            path.judge(),
            exported,
            utterances,
            trained.labels.emotion,
            temperature=path.temperature,
            limit=LIMITS[form, weights],
            bounds=bounds,
            fixed=fixed,
        )
        sizes = _size(model), _size(staged)
        _describe(staged, form, weights, trained, member, verified, licence or NO_LICENCE, to.name, bounds, fixed)
        if to.is_dir():
            to.rmdir()
        staged.rename(to)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return Exported(trained, verified, sizes)


def _write(
    folder: Path,
    form: ExportFormat,
    weights: Weights,
    trained: TrainedModel,
    member: MemberFolder,
    path: SerPath,
    shape: OnnxShape,
) -> Judge:
    """Write the files and read them back."""
    match form:
        case ExportFormat.HUGGINGFACE:
            write_huggingface(folder, trained, weights)
            return read_huggingface(folder, trained)
        case ExportFormat.ORBAX:
            write_orbax(folder, trained, member, weights)
            return read_orbax(folder, trained)
        case ExportFormat.STABLEHLO:
            write_stablehlo(folder, path, weights)
            return read_stablehlo(folder)
        case ExportFormat.ONNX:
            write_onnx(folder, path, weights, shape)
            return read_onnx(folder)


def _describe(
    folder: Path,
    form: ExportFormat,
    weights: Weights,
    trained: TrainedModel,
    member: MemberFolder,
    verified: Verified,
    licence: str,
    name: str,
    bounds: tuple[int, int | None],
    fixed: tuple[int, int] | None,
) -> None:
    # Names of the training's speakers go only where the head that knows them goes.
    labels = trained.labels.to_dict()
    if form is not ExportFormat.ORBAX:
        labels = {"emotion": labels["emotion"]}
    record: dict[str, Any] = {
        "version": _FORMAT_VERSION,
        "format": form.value,
        "weights": weights.value,
        "licence": licence,
        "labels": labels,
        "input": {"sample_rate": SAMPLE_RATE, "samples": list(bounds), "shape": list(fixed) if fixed else None},
        **gather_facts(trained, member),
        "verified": verified.to_dict(),
    }
    write_json(folder / _LABELS, labels)
    write_text(folder / "README.md", model_card(record, form, weights, verified, name))
    record["files"] = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in _files(folder)
    }
    write_json(folder / _RECORD, record)


def open_export(folder: Path) -> tuple[Judge, tuple[str, ...]]:
    """An export of the format ``stablehlo`` or ``onnx``, ready to judge, and the emotions in order.

    Raises:
        ExportError: no export, files that are not those that were written, or a format that is opened otherwise.
    """
    record = check_files(folder)
    readers = {ExportFormat.STABLEHLO.value: read_stablehlo, ExportFormat.ONNX.value: read_onnx}
    if record["format"] not in readers:
        raise ExportError(f"{folder} has the format {record['format']!r}; its README.md says how it is loaded")
    return readers[record["format"]](folder), tuple(record["labels"]["emotion"])


def check_files(folder: Path) -> dict[str, Any]:
    """Compare every file with what ``export.json`` says of it, and return that.

    This finds damage and incomplete copies. Who can change the files can change the record too: it is no signature.

    Raises:
        ExportError: naming the first file that differs.
    """
    try:
        record = read_json(folder / _RECORD)
        files = {str(name): str(entry["sha256"]) for name, entry in record["files"].items()}
        record["format"], record["labels"]["emotion"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ExportError(f"{folder} is no export of this package: {_RECORD} cannot be read ({reason})") from error
    for name, digest in files.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ExportError(f"{folder / _RECORD} names {name}, which is not in the folder")
        if not file.is_file():
            raise ExportError(f"{folder} has no {name}, which {_RECORD} names; copy the export again")
        if _sha256(file) != digest:
            raise ExportError(f"{file} is not the file that was exported (its SHA-256 differs); copy the export again")
    return record


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in _files(folder))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

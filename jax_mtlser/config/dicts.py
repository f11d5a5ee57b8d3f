"""Configurations as JSON-ready dicts, and back."""

import dataclasses
import enum
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from jax_mtlser.architecture import EncoderArchitecture, EncoderFamily, Wav2Vec2Architecture, WhisperArchitecture
from jax_mtlser.config.errors import ConfigError

__all__ = ["architecture_from_dict", "from_dict", "to_dict"]

_T = TypeVar("_T")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON-ready dict of a config dataclass: enums as their values, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return value.value
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(dataclasses.asdict(config))


def from_dict(cls: type[_T], values: Mapping[str, Any]) -> _T:
    """The inverse of :func:`to_dict`.

    Raises:
        ConfigError: for a field that ``cls`` does not have.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(fields)):
        raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(fields))}")

    def typed(annotation: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            return from_dict(annotation, value)
        if isinstance(annotation, enum.EnumMeta):
            return annotation(value)
        if typing.get_origin(annotation) is tuple and isinstance(value, list):
            return tuple(typed(typing.get_args(annotation)[0], item) for item in value)
        return tuple(value) if isinstance(value, list) else value

    return cls(**{name: typed(fields[name].type, value) for name, value in values.items()})


def architecture_from_dict(values: Mapping[str, Any]) -> EncoderArchitecture:
    """The architecture that :func:`to_dict` described, of the class that its family has."""
    whisper = values.get("family") == EncoderFamily.WHISPER.value
    return from_dict(WhisperArchitecture if whisper else Wav2Vec2Architecture, values)

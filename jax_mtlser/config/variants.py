"""What varies within an experiment: named sets of settings, each trained on the same folds."""

import dataclasses
import enum
import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax_mtlser.config.errors import ConfigError

__all__ = ["VARIED_GROUPS", "Variant", "apply_overrides", "field_type", "grid", "override_problems"]

# Corpus, audio and protocol are the experiment's: variants are compared on the same utterances in the same folds.
VARIED_GROUPS = ("batching", "model", "optimizer", "training", "weights")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}")


@dataclasses.dataclass(kw_only=True)
class Variant:
    """Settings that differ from the rest of the configuration.

    Attributes:
        name: begins the names of its members: ``alpha0.4`` has ``alpha0.4_r0_f0``.
        overrides: value by field, such as ``{"weights.alpha": 0.4}``. Kept in the form that JSON has: an enum by its
            value.
    """

    name: str
    overrides: dict[str, Any]

    def __post_init__(self) -> None:
        self.overrides = {path: _plain(value) for path, value in self.overrides.items()}


def grid(axes: Mapping[str, Sequence[Any]]) -> tuple[Variant, ...]:
    """Every combination of the axes' values, the last axis fastest.

    Args:
        axes: values by field. ``{"weights.alpha": (0, 0.4), "weights.gamma": (0.1,)}`` gives the variants
            ``alpha0_gamma0.1`` and ``alpha0.4_gamma0.1``.
    """
    variants = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        names = (f"{path.rpartition('.')[2]}{_shown(value)}" for path, value in chosen.items())
        variants.append(Variant(name="_".join(names), overrides=chosen))
    return tuple(variants)


def override_problems(config: type, variants: Sequence[Variant]) -> Iterator[str]:
    """What is wrong with names, fields and types of values; whether the values make sense is judged elsewhere.

    Args:
        config: the class whose fields are overridden.
        variants: to judge.
    """
    seen: set[str] = set()
    for number, variant in enumerate(variants):
        if not isinstance(variant, Variant):
            yield f"variants[{number}] is {variant!r}; use Variant(name=..., overrides=...) in the configuration file"
            continue
        if not _NAME.fullmatch(variant.name):
            yield (
                f"variants[{number}].name is {variant.name!r}; it begins folder names, so use up to 80 letters, "
                "digits, and _ . + -, beginning with a letter or digit"
            )
        if variant.name in seen:
            yield f"variants[{number}].name {variant.name!r} is given twice; each variant needs its own"
        seen.add(variant.name)
        for path, value in variant.overrides.items():
            where = f"variants[{number}] ({variant.name}): {path}"
            if path.partition(".")[0] not in VARIED_GROUPS:
                yield f"{where} cannot vary within an experiment; what can is {', '.join(VARIED_GROUPS)}"
                continue
            if path == "training.seed":
                yield f"{where} cannot vary: variants are compared from the same seeds; use --config.protocol.repeats"
                continue
            try:
                annotation = field_type(config, path)
            except ConfigError as error:
                yield f"{where}: {error}"
                continue
            if not _fits(annotation, value):
                yield f"{where} is {value!r}; it must be {_described(annotation)}"


def field_type(config: type, path: str) -> Any:
    """The type of a field, by its dotted path.

    Raises:
        ConfigError: no such field, or a group of fields.
    """
    annotation: Any = config
    for part in path.split("."):
        fields = {field.name: field.type for field in dataclasses.fields(annotation)} if _is_group(annotation) else {}
        if part not in fields:
            known = f"; {annotation.__name__} has {', '.join(fields)}" if fields else ""
            raise ConfigError(f"there is no setting {part!r}{known}")
        annotation = fields[part]
    if _is_group(annotation):
        raise ConfigError(f"{path} is a group of settings; name one of {', '.join(_names(annotation))}")
    return annotation


def apply_overrides(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The dict form of a configuration, with some fields replaced in place.

    Args:
        values: nested, as from :func:`~jax_mtlser.config.to_dict`.
        overrides: value by dotted path; the paths exist.
    """
    for path, value in overrides.items():
        *groups, name = path.split(".")
        target = values
        for group in groups:
            target = target[group]
        target[name] = _plain(value)
    return values


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _names(group: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(group)]


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:g}"


def _fits(annotation: Any, value: Any) -> bool:
    """Whether a plain value can become a field of this type."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in typing.get_args(annotation))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(typing.get_args(annotation)[0], item) for item in value)
    if isinstance(annotation, enum.EnumMeta):
        return value in _values(annotation)
    if annotation in (int, float):
        number = isinstance(value, int) or (annotation is float and isinstance(value, float))
        return number and not isinstance(value, bool)
    return annotation is Any or isinstance(value, annotation or type(None))


def _values(choices: Any) -> list[Any]:
    return [member.value for member in choices]


def _described(annotation: Any) -> str:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(map(_described, typing.get_args(annotation)))
    if isinstance(annotation, enum.EnumMeta):
        return f"one of {', '.join(map(str, _values(annotation)))}"
    named = {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None"}
    return named.get(annotation, str(annotation))

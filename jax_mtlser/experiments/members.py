"""What an experiment trains: one member per variant, repeat and fold, and which of them one process takes."""

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Sequence

import numpy as np

from jax_mtlser.config import Config, ConfigError, ProtocolConfig
from jax_mtlser.evaluation.protocols import Fold

__all__ = ["Member", "choose", "members_of", "settings_of"]


@dataclasses.dataclass(frozen=True)
class Member:
    """One training.

    Attributes:
        name: of its folder: ``r0_f0``, or ``alpha0.4_r0_f0`` where the experiment has variants.
        repeat, fold: indices, from 0.
        parts: rows of the manifest.
        seed: of weights, dropout and batch order. It depends on repeat and fold only: variants start from the same
            heads and see the same batches, so that what differs between them is their settings.
        variant: name of its settings; empty where there are no variants.
    """

    name: str
    repeat: int
    fold: int
    parts: Fold
    seed: int
    variant: str = ""


def members_of(
    config: ProtocolConfig, seed: int, drawn: Sequence[Sequence[Fold]], variants: Sequence[str] = ()
) -> list[Member]:
    """The members that the configuration asks for, by repeat, variant and fold.

    The first repeat of all variants comes before the second of any: an experiment that is stopped early can be
    compared as far as it goes.

    Args:
        config: which folds and repeats.
        seed: of the experiment.
        drawn: folds of each repeat.
        variants: their names; none: one member per fold.
    """
    return [
        Member(
            name=f"{variant}_r{repeat}_f{fold}".lstrip("_"),
            repeat=repeat,
            fold=fold,
            parts=parts,
            # Hashed: seeds of neighbouring members must not overlap with those of a run with seed + 1.
            seed=int(np.random.SeedSequence([seed, repeat, fold]).generate_state(1)[0] >> 1),
            variant=variant,
        )
        for repeat, folds in enumerate(drawn)
        if not config.only_repeats or repeat in config.only_repeats
        for variant in variants or ("",)
        for fold, parts in enumerate(folds)
        if not config.only_folds or fold in config.only_folds
    ]


def settings_of(config: Config) -> dict[str, Config]:
    """The configuration of each variant by its name; that of the experiment by "" where there are none."""
    if not config.variants:
        return {"": config}
    return {variant.name: config.under(variant) for variant in config.variants}


def choose(members: Sequence[Member], pattern: str) -> list[Member]:
    """The part of the members that ``--members`` names.

    Args:
        members: all.
        pattern: ``i/n``: every n-th, beginning with the i-th (from 1), so that n processes share them without
            talking to each other. Otherwise names with ``*``, ``?`` and ``[...]``, several with commas between.

    Raises:
        ConfigError: no such part; a pattern that fits no member.
    """
    if part := re.fullmatch(r"(\d+)/(\d+)", pattern.strip()):
        number, parts = int(part[1]), int(part[2])
        if not 1 <= number <= parts:
            raise ConfigError(
                f"--members={pattern}: parts are numbered from 1 to {parts}; in a SLURM array, use --array=1-{parts}"
            )
        return list(members[number - 1 :: parts])
    chosen: set[str] = set()
    names = [member.name for member in members]
    for single in filter(None, (text.strip() for text in pattern.split(","))):
        fitting = fnmatch.filter(names, single)
        if not fitting:
            near = difflib.get_close_matches(single, names, 3) or names[:3]
            raise ConfigError(f"--members={pattern}: {single!r} fits no member; there are {', '.join(near)}, ...")
        chosen.update(fitting)
    if not chosen:
        raise ConfigError(f"--members={pattern!r} is empty; use i/n or names such as {names[0]}")
    return [member for member in members if member.name in chosen]

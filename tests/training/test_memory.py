"""How many members fit: from what the compiled step needs, not from a guess."""

import types

import jax
import numpy as np
import pytest

from jax_mtlser.training.memory import MEMORY_SHARE, fitting_population

SAMPLES, STATE, STEP = 1_000, 400, 5_000
RESIDENT = 2 * SAMPLES


class Steps:
    """Programs that need a resident corpus and, for each member on a device, ``STEP`` bytes, with ``more`` for each pair."""

    compiled: tuple[int, ...] = ()

    def __init__(self, members: int, *, devices: int = 1, more: int = 0) -> None:
        self.on_device, self.more = -(-members // devices), more
        self.resident_bytes, self.buckets = 2 * SAMPLES, (0, 1, 2)

    def state_shapes(self):
        return {"w": jax.ShapeDtypeStruct((STATE // 4,), np.float32)}

    def compile(self, knobs, *, names, buckets) -> None:
        assert (names, buckets) == (("train",), (2,))

    def program(self, name: str, bucket: int):
        needed = RESIDENT + self.on_device * STEP + self.more * (self.on_device - 1)
        plan = types.SimpleNamespace(
            argument_size_in_bytes=needed, output_size_in_bytes=10, alias_size_in_bytes=10, temp_size_in_bytes=0
        )
        return types.SimpleNamespace(memory_analysis=lambda: plan)


def found(members_that_fit: float, *, at_most: int = 100, devices: int = 1, more: int = 0) -> int:
    memory = int((RESIDENT + members_that_fit * STEP) / MEMORY_SHARE) + 1
    return fitting_population(
        lambda members: Steps(members, devices=devices, more=more), None,
        at_most=at_most, member_devices=devices, memory=memory,
    )  # fmt: skip


@pytest.mark.parametrize(("fit", "expected"), [(0.5, 1), (1.0, 1), (2.9, 2), (3.0, 3), (40.0, 40)])
def test_as_many_as_fit(fit, expected):
    assert found(fit) == expected


def test_no_more_than_there_are():
    assert found(40.0, at_most=5) == 5


def test_what_the_program_of_several_needs_counts_not_a_multiple_of_one():
    assert found(4.0, more=STEP // 2) == 3


def test_members_are_spread_evenly_over_devices():
    assert found(2.0, devices=4) == 8
    assert found(2.0, devices=4, at_most=5) == 8  # three places stay unused
    assert found(2.0, devices=4, at_most=4) == 4

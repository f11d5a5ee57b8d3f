"""How many members fit into a device's memory: asked of the compiled programs, nothing is run."""

import os
from collections.abc import Callable
from typing import Any

import jax

from jax_mtlser.training.sharding import CompiledSteps

__all__ = ["MEMORY_SHARE", "device_memory", "fitting_population", "step_memory"]

# What XLA's plan does not know of: libraries' work space, fragmentation, a checkpoint on its way to the disk.
MEMORY_SHARE = 0.85


def device_memory() -> int:
    """Bytes that one device may use; of a CPU, the machine's memory divided among its (emulated) devices."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return int(limit)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def step_memory(program: Any) -> int:
    """Bytes of one device that a compiled training step needs, what it is given included."""
    plan = program.memory_analysis()
    return int(
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes  # the donated state comes back in place
        + plan.temp_size_in_bytes
    )


def fitting_population(
    steps_of: Callable[[int], CompiledSteps], knobs: Any, *, at_most: int, member_devices: int, memory: int
) -> int:
    """The most members whose training step, in its longest bucket, fits into the memory.

    Args:
        steps_of: programs for a number of members.
        knobs: of one member; their values do not matter.
        at_most: more would not be used.
        member_devices: devices that share the members; the number found is a multiple of it, or 1.
        memory: bytes of one device.

    Returns:
        1 when not even two fit.
    """
    budget = MEMORY_SHARE * memory

    def needed(members: int) -> int:
        steps = steps_of(members)
        # While the members' states are put together, each is there twice.
        states = -(-members // member_devices) * sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(steps.state_shapes()) if not _is_key(leaf)
        )
        longest = len(steps.buckets) - 1
        steps.compile(knobs, names=("train",), buckets=(longest,))
        return max(step_memory(steps.program("train", longest)), 2 * states)

    one = needed(1)
    resident = steps_of(1).resident_bytes
    per_device = max(int((budget - resident) // max(one - resident, 1)), 1)
    members = min(per_device, -(-at_most // member_devices)) * member_devices
    while members > 1 and needed(members) > budget:
        members = members - member_devices if members > member_devices else 1
    return members


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)

"""Mesh and compilation: where each array lies, which are donated, and one executable per bucket."""

import concurrent.futures
import contextvars
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_mtlser import runtime
from jax_mtlser.config import ConfigError
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import Buckets
from jax_mtlser.data.batches import Batch
from jax_mtlser.models import products
from jax_mtlser.models.multitask import MultitaskModel, ready_to_multiply
from jax_mtlser.training import processes
from jax_mtlser.training.population import population_step, stack_members, take_member
from jax_mtlser.training.step import (
    StepSpec,
    TrainState,
    create_state,
    eval_step,
    frozen_step,
    hear_step,
    train_step,
)

__all__ = ["CompiledSteps", "make_mesh"]

_CORES_PER_PROGRAM = 3


def make_mesh(data_devices: int = 0, member_devices: int = 1) -> Mesh:
    """The mesh of ``(member, data)`` over the devices of all processes.

    Args:
        data_devices: devices that share a member's batches; 0: all that there are for it.
        member_devices: devices that share the members of a population.

    Raises:
        ConfigError: fewer devices than asked for, or none for one of several processes.
    """
    devices = jax.devices()
    count = data_devices or max(len(devices) // member_devices, 1)
    if count * member_devices > len(devices):
        found = f"{len(devices)} device{'s' if len(devices) > 1 else ''} ({devices[0].platform})"
        where = "this machine has" if processes.alone() else f"the {jax.process_count()} processes have together"
        raise ConfigError(
            f"training.data_devices is {data_devices} and training.member_devices {member_devices}; {where} "
            f"{found}, and each member's share needs its own"
        )
    used = {device.process_index for device in devices[: count * member_devices]}
    if len(used) < jax.process_count():
        raise ConfigError(
            f"training.data_devices is {data_devices}: the devices of {len(used)} of {jax.process_count()} processes "
            "would be used; start fewer processes, or use more devices (0: all)"
        )
    # Auto: with the default, Explicit, sharding becomes part of types, and dropout and CTC do not trace.
    return jax.make_mesh(
        (member_devices, count),
        ("member", "data"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: count * member_devices],
    )


def _random_params(model: MultitaskModel, key: Any) -> Any:
    # Parameters do not depend on the length: one program serves whatever the buckets are.
    samples, lengths = jnp.zeros((1, SAMPLE_RATE), jnp.float32), jnp.full((1,), SAMPLE_RATE, jnp.int32)
    return model.init(key, samples, lengths, train=False)["params"]


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Move a tree, which every process has whole, to the devices; with several processes, each fills its own."""
    if processes.alone():
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> Any:
        whole = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)  # a random key is no NumPy array
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    # device_put would first compare all processes' values, in a sum over the devices: batches are moved by a thread,
    # and sums have to come in the same order everywhere.
    return jax.tree.map(put, tree)


class CompiledSteps:
    """The training and evaluation programs of every bucket, compiled ahead of the first step.

    Attributes:
        mesh: devices.
        members: trainings in one step; with several, states, training batches and knobs have a leading axis for them.
        resident_samples, resident_frames: see :meth:`__init__`.
        replicated, by_row: shardings of one member's state and of its batches.
        by_member, by_member_and_row: the same for a population.
        seconds: compilation time of each (name, bucket).
    """

    def __init__(
        self,
        spec: StepSpec,
        buckets: Buckets,
        mesh: Mesh,
        *,
        resident_samples: int | None,
        resident_frames: int | None = None,
        members: int = 1,
    ) -> None:
        """Describe the programs; nothing is compiled yet.

        Args:
            spec: what is compiled in.
            buckets: the shapes.
            mesh: devices.
            resident_samples: length of the corpus on the accelerator; None when batches bring their samples.
            resident_frames: length of a corpus of frames; with ``spec.frozen``.
            members: trainings in one step.
        """
        self.spec, self.buckets, self.mesh, self.members = spec, buckets, mesh, members
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.by_row = NamedSharding(mesh, PartitionSpec("data"))
        self.by_member = NamedSharding(mesh, PartitionSpec("member"))
        self.by_member_and_row = NamedSharding(mesh, PartitionSpec("member", "data"))
        self.seconds: dict[tuple[str, int], float] = {}
        self.resident_samples, self.resident_frames = resident_samples, resident_frames
        self._state_shapes: TrainState | None = None
        self._programs: dict[tuple[str, int], Any] = {}
        self.init_state = jax.jit(functools.partial(create_state, spec), out_shardings=self.replicated)
        init = functools.partial(_random_params, spec.model)
        self._init_params = jax.jit(init, out_shardings=self.replicated)
        self._stack = jax.jit(stack_members, out_shardings=self.by_member)
        self._take = jax.jit(take_member, out_shardings=self.replicated)

    def init_params(self, seed: int) -> Any:
        """Random parameters, made on the devices."""
        return self._init_params(jax.random.key(seed))

    def state_shapes(self) -> TrainState:
        """Shape, type and sharding of every array of one member's state: what is restored."""
        if self._state_shapes is None:
            shapes = jax.eval_shape(lambda: self.init_state(self.init_params(0), 0))
            self._state_shapes = self._replicated_shapes(shapes)
        return self._state_shapes

    def ready(self, params: Any) -> Any:
        """The model's parameters as :meth:`evaluate`, :meth:`hear` and :meth:`freeze` take them: cast once, not for each batch.

        What stays as it is, is no copy.
        """
        with products.formulation(plain=self.spec.plain):
            return ready_to_multiply(params, self.spec.model.options.dtype)

    def _ready_shapes(self) -> Any:
        return self._replicated_shapes(jax.eval_shape(self.ready, self.params_shapes()))

    def params_shapes(self) -> Any:
        """Shape, type and sharding of the model's parameters."""
        return self._replicated_shapes(jax.eval_shape(lambda state: state.params, self.state_shapes()))

    def compile(
        self,
        knobs: Any,
        *,
        names: Sequence[str] = ("train", "eval"),
        buckets: Sequence[int] | None = None,
        progress: Callable[[str, int, float], None] | None = None,
    ) -> None:
        """Compile every program that is not compiled yet, several at a time.

        Args:
            knobs: of one member; their values do not matter; used for ``train`` only.
            names: of ``train``, ``eval``, ``hear``, ``frozen``.
            buckets: which; None for all.
            progress: called with (name, bucket, seconds) after each program.
        """

        def build(key: tuple[str, int]) -> tuple[str, int, float]:
            name, bucket = key
            started = time.perf_counter()
            self._programs[name, bucket] = self.lower(name, bucket, knobs).compile(runtime.compiler_options())
            self.seconds[name, bucket] = time.perf_counter() - started
            return name, bucket, self.seconds[name, bucket]

        chosen = range(len(self.buckets)) if buckets is None else buckets
        every = [(name, bucket) for bucket in chosen for name in names]
        wanted = [key for key in every if key not in self._programs]
        self.state_shapes()  # once, before threads ask for it
        # XLA compiles outside the interpreter lock, a program on a few cores; more at once would only cost memory.
        at_once = max(2, runtime.available_cores() // _CORES_PER_PROGRAM)
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            # Threads start without the caller's context variables, and products.formulation() is one.
            futures = [pool.submit(contextvars.copy_context().run, build, key) for key in wanted]
            for future in concurrent.futures.as_completed(futures):
                done = future.result()
                if progress:
                    progress(*done)

    def lower(self, name: str, bucket: int, knobs: Any) -> Any:
        """The traced program of a bucket, as it is handed to XLA.

        Args:
            name: ``train``, ``eval``, ``hear`` or ``frozen``.
            bucket: its shape.
            knobs: of one member; their values do not matter; used for ``train`` only.
        """
        if name == "frozen":
            # What is kept in memory: that of another process would be out of reach.
            kept = self.by_row if processes.alone() else self.replicated
            jitted = jax.jit(functools.partial(frozen_step, self.spec), out_shardings=kept)
            return jitted.lower(self._ready_shapes()["encoder"], *self._sample_shapes(bucket))
        state, batch = self.state_shapes(), self._batch_shapes(bucket)
        bound, knobs, corpus = self.buckets.bounds[bucket], self._replicated_shapes(knobs), self._corpus_shapes()
        if name == "train" and self.members == 1:
            function = functools.partial(train_step, self.spec, bound)
            jitted = jax.jit(function, donate_argnums=0, out_shardings=self.replicated)
            return jitted.lower(state, batch, knobs, corpus)
        if name == "train":
            function = functools.partial(population_step, self.spec, bound)
            jitted = jax.jit(function, donate_argnums=0, out_shardings=self.by_member)
            batches = self._for_each_member(batch, self.by_member_and_row)
            return jitted.lower(
                self._for_each_member(state, self.by_member),
                batches,
                self._for_each_member(knobs, self.by_member),
                corpus,
            )
        if name == "hear":
            key = self._replicated_shapes(jax.eval_shape(lambda: jax.random.key(0)))
            jitted = jax.jit(functools.partial(hear_step, self.spec, bound), out_shardings=self.replicated)
            return jitted.lower(self._ready_shapes(), batch, corpus, key)
        jitted = jax.jit(functools.partial(eval_step, self.spec, bound), out_shardings=self.replicated)
        return jitted.lower(self._ready_shapes(), batch, corpus)

    def program(self, name: str, bucket: int) -> Any:
        """A compiled program, for what XLA says about it."""
        return self._programs[name, bucket]

    def train(self, bucket: int, *args: Any) -> Any:
        """Run the bucket's :func:`train_step`, or :func:`population_step`, on ``(state, batch, knobs, corpus)``.

        The state is donated.
        """
        return self._programs["train", bucket](*args)

    def evaluate(self, bucket: int, *args: Any) -> Any:
        """Run the bucket's :func:`eval_step` on ``(params, batch, corpus)``, the parameters from :meth:`ready`."""
        return self._programs["eval", bucket](*args)

    def hear(self, bucket: int, *args: Any) -> Any:
        """Run the bucket's :func:`hear_step` on ``(params, batch, corpus, key)``, the parameters from :meth:`ready`."""
        return self._programs["hear", bucket](*args)

    def freeze(self, bucket: int, *args: Any) -> Any:
        """Run the bucket's :func:`frozen_step` on ``(encoder, audio, lengths)``, its parameters from :meth:`ready`."""
        return self._programs["frozen", bucket](*args)

    @property
    def num_programs(self) -> int:
        """Programs compiled so far."""
        return len(self._programs)

    def put_batch(self, batch: Any) -> Any:
        """Move a batch to the devices, rows divided among them."""
        return _put(batch, self.by_row)

    def together(self, trees: Sequence[Any]) -> Any:
        """States, or knobs, of all members as the step takes them; that of a single member stays as it is."""
        return trees[0] if self.members == 1 else self._stack(list(trees))

    def member_of(self, tree: Any, index: int) -> Any:
        """One member's part of what the step takes or gives."""
        return tree if self.members == 1 else self._take(tree, index)

    def put_batches(self, batches: Sequence[Batch]) -> Batch:
        """Move the batches of all members to the devices."""
        if self.members == 1:
            return self.put_batch(batches[0])
        return _put(jax.tree.map(lambda *arrays: np.stack(arrays), *batches), self.by_member_and_row)

    def put(self, tree: Any) -> Any:
        """Move a tree to every device."""
        return _put(tree, self.replicated)

    def _replicated_shapes(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree)

    def _for_each_member(self, shapes: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.members, *x.shape), x.dtype, sharding=sharding), shapes
        )

    @property
    def resident_bytes(self) -> int:
        """What the corpus takes of each device."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._corpus_shapes()))

    def _corpus_shapes(self) -> Any:
        if self.resident_frames is None:
            return jax.ShapeDtypeStruct((self.resident_samples or 1,), jnp.int16, sharding=self.replicated)
        encoder, function = self.params_shapes()["encoder"], functools.partial(frozen_step, self.spec)
        frames = jax.eval_shape(function, encoder, *self._sample_shapes(0))
        return tuple(
            jax.ShapeDtypeStruct((self.resident_frames, leaf.shape[-1]), leaf.dtype, sharding=self.replicated)
            for leaf in frames
        )

    def _sample_shapes(self, bucket: int) -> tuple[Any, Any]:
        rows, bound = self.buckets.batch_sizes[bucket], self.buckets.bounds[bucket]
        return (
            jax.ShapeDtypeStruct((rows, bound), np.int16, sharding=self.by_row),
            jax.ShapeDtypeStruct((rows,), np.int32, sharding=self.by_row),
        )

    def _batch_shapes(self, bucket: int) -> Batch:
        rows, width = self.buckets.batch_sizes[bucket], self.buckets.transcript_widths[bucket]

        def shape(*dims: int, dtype: Any = np.int32) -> Any:
            return jax.ShapeDtypeStruct((rows, *dims), dtype, sharding=self.by_row)

        resident = self.resident_samples is not None or self.resident_frames is not None
        return Batch(
            audio=None if resident else shape(self.buckets.bounds[bucket], dtype=np.int16),
            offsets=shape() if resident else None,
            lengths=shape(),
            emotion=shape(),
            gender=shape(),
            speaker=shape(),
            transcript=shape(width),
            transcript_lengths=shape(),
        )

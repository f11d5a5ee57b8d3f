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

from jax_mtlser.config import ConfigError
from jax_mtlser.data.batch_plan import Buckets
from jax_mtlser.data.batches import Batch
from jax_mtlser.training.step import StepSpec, TrainState, create_state, eval_step, train_step

__all__ = ["CompiledSteps", "make_mesh"]


def make_mesh(data_devices: int = 0) -> Mesh:
    """The mesh of ``(member, data)``; one member, its batches shared by ``data_devices`` (0: all) devices.

    Raises:
        ConfigError: fewer devices than asked for.
    """
    devices = jax.devices()
    if data_devices > len(devices):
        raise ConfigError(
            f"training.data_devices is {data_devices}; this machine has {len(devices)} ({devices[0].platform})"
        )
    count = data_devices or len(devices)
    # Auto: with the default, Explicit, sharding becomes part of types, and dropout and CTC do not trace.
    return jax.make_mesh(
        (1, count), ("member", "data"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices[:count]
    )


class CompiledSteps:
    """The training and evaluation programs of every bucket, compiled ahead of the first step.

    Attributes:
        mesh: devices.
        resident_samples: see :meth:`__init__`.
        replicated, by_row: shardings of state and of batches.
        seconds: compilation time of each (name, bucket).
    """

    def __init__(self, spec: StepSpec, buckets: Buckets, mesh: Mesh, *, resident_samples: int | None) -> None:
        """Describe the programs; nothing is compiled yet.

        Args:
            spec: what is compiled in.
            buckets: the shapes.
            mesh: devices.
            resident_samples: length of the corpus on the accelerator; None when batches bring their samples.
        """
        self.spec, self.buckets, self.mesh = spec, buckets, mesh
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.by_row = NamedSharding(mesh, PartitionSpec("data"))
        self.seconds: dict[tuple[str, int], float] = {}
        self.resident_samples = resident_samples
        self._state_shapes: TrainState | None = None
        self._programs: dict[tuple[str, int], Any] = {}
        self.init_state = jax.jit(functools.partial(create_state, spec), out_shardings=self.replicated)

    def init_params(self, seed: int) -> Any:
        """Random parameters, made on the devices."""
        samples = jnp.zeros((1, self.buckets.bounds[0]), jnp.float32)
        lengths = jnp.full((1,), self.buckets.bounds[0], jnp.int32)
        model = self.spec.model
        init = jax.jit(
            lambda key: model.init(key, samples, lengths, train=False)["params"],
            out_shardings=self.replicated,
        )
        return init(jax.random.key(seed))

    def state_shapes(self) -> TrainState:
        """Shape, type and sharding of every array of a state: what is compiled for and what is restored."""
        if self._state_shapes is None:
            shapes = jax.eval_shape(lambda: self.init_state(self.init_params(0), 0))
            self._state_shapes = self._replicated_shapes(shapes)
        return self._state_shapes

    def compile(
        self,
        knobs: Any,
        *,
        names: Sequence[str] = ("train", "eval"),
        progress: Callable[[str, int, float], None] | None = None,
    ) -> None:
        """Compile every program that is not compiled yet, two at a time.

        Args:
            knobs: their values do not matter; not used for ``eval``.
            names: ``train``, ``eval`` or both.
            progress: called with (name, bucket, seconds) after each program.
        """

        def build(key: tuple[str, int]) -> tuple[str, int, float]:
            name, bucket = key
            started = time.perf_counter()
            self._programs[name, bucket] = self.lower(name, bucket, knobs).compile()
            self.seconds[name, bucket] = time.perf_counter() - started
            return name, bucket, self.seconds[name, bucket]

        every = [(name, bucket) for bucket in range(len(self.buckets)) for name in names]
        wanted = [key for key in every if key not in self._programs]
        self.state_shapes()  # once, before threads ask for it
        # XLA compiles outside the interpreter lock; more than two at once only costs memory.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            # Threads start without the caller's context variables, and products.formulation() is one.
            futures = [pool.submit(contextvars.copy_context().run, build, key) for key in wanted]
            for future in concurrent.futures.as_completed(futures):
                done = future.result()
                if progress:
                    progress(*done)

    def lower(self, name: str, bucket: int, knobs: Any) -> Any:
        """The traced program of a bucket, as it is handed to XLA.

        Args:
            name: ``train`` or ``eval``.
            bucket: its shape.
            knobs: their values do not matter; not used for ``eval``.
        """
        state, batch, bound = self.state_shapes(), self._batch_shapes(bucket), self.buckets.bounds[bucket]
        corpus = jax.ShapeDtypeStruct((self.resident_samples or 1,), jnp.int16, sharding=self.replicated)
        if name == "train":
            function = functools.partial(train_step, self.spec, bound)
            jitted = jax.jit(function, donate_argnums=0, out_shardings=self.replicated)
            return jitted.lower(state, batch, self._replicated_shapes(knobs), corpus)
        jitted = jax.jit(functools.partial(eval_step, self.spec, bound), out_shardings=self.replicated)
        return jitted.lower(state.params, batch, corpus)

    def program(self, name: str, bucket: int) -> Any:
        """A compiled program, for what XLA says about it."""
        return self._programs[name, bucket]

    def train(self, bucket: int, *args: Any) -> Any:
        """Run the bucket's :func:`train_step` on ``(state, batch, knobs, corpus)``; the state is donated."""
        return self._programs["train", bucket](*args)

    def evaluate(self, bucket: int, *args: Any) -> Any:
        """Run the bucket's :func:`eval_step` on ``(params, batch, corpus)``."""
        return self._programs["eval", bucket](*args)

    @property
    def num_programs(self) -> int:
        """Programs compiled so far."""
        return len(self._programs)

    def put_batch(self, batch: Batch) -> Batch:
        """Move a batch to the devices, rows divided among them."""
        return jax.device_put(batch, self.by_row)

    def put(self, tree: Any) -> Any:
        """Move a tree to every device."""
        return jax.device_put(tree, self.replicated)

    def _replicated_shapes(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree)

    def _batch_shapes(self, bucket: int) -> Batch:
        rows, width = self.buckets.batch_sizes[bucket], self.buckets.transcript_widths[bucket]

        def shape(*dims: int, dtype: Any = np.int32) -> Any:
            return jax.ShapeDtypeStruct((rows, *dims), dtype, sharding=self.by_row)

        resident = self.resident_samples is not None
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

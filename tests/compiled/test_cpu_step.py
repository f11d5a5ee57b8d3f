"""The compiled training step, as XLA's CPU backend has it: what is donated, static, and computed in which type."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.architecture import Wav2Vec2Architecture
from jax_mtlser.config import Freeze, OptimizerConfig
from jax_mtlser.data.batch_plan import Buckets
from jax_mtlser.models import products
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.training.optimizer import Rates
from jax_mtlser.training.program_report import ProgramReport, lowered_report, part_of, program_report
from jax_mtlser.training.sharding import CompiledSteps, make_mesh
from jax_mtlser.training.step import Knobs, StepSpec

ROWS, SAMPLES, SYMBOLS = 2, 8_000, 8
ARCH = Wav2Vec2Architecture(  # dropout, LayerDrop and SpecAugment are on
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    conv_dim=(32, 32, 32),
    conv_kernel=(10, 8, 4),
    conv_stride=(5, 8, 8),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)
SIZES = HeadSizes(emotion=4, gender=2, speaker=3, asr=7)
LOSSES = ("losses and input", "CTC")
RANDOM = ("threefry", "uniform", "bernoulli", "random_bits", "shuffle")


class Step:
    """A training step, lowered; compiled on request."""

    def __init__(self, freeze: Freeze = Freeze.NOTHING) -> None:
        model = MultitaskModel(ARCH, SIZES, EncoderOptions(dtype=jnp.bfloat16))
        buckets = Buckets((SAMPLES,), (ROWS,), (SYMBOLS,), np.zeros(1, int))
        spec = StepSpec(model, OptimizerConfig(), normalize_waveform=True, freeze=freeze)
        steps = CompiledSteps(spec, buckets, make_mesh(1), resident_samples=10 * SAMPLES)
        self.state = steps.state_shapes()
        number = jax.ShapeDtypeStruct((), jnp.float32)
        rates = Rates(**{field.name: number for field in dataclasses.fields(Rates)})
        knobs = Knobs(weights=jax.ShapeDtypeStruct((4,), jnp.float32), rates=rates)
        self.lowered = steps.lower("train", 0, knobs)

    def compiled(self, options: dict[str, Any]) -> ProgramReport:
        return program_report(self.lowered.compile(options))

    def asked_for(self) -> ProgramReport:
        """The program as it is handed to XLA."""
        return lowered_report(self.lowered)


@pytest.fixture(scope="module")
def step() -> Step:
    return Step()


@pytest.fixture(scope="module")
def report(step, as_released) -> ProgramReport:
    return step.compiled(as_released)


def test_all_shapes_are_static(report):
    assert report.dynamic_shapes == []
    assert all(loop.trips is not None for loop in report.loops)


def test_it_never_calls_the_host(report):
    assert report.host_calls == []


def test_the_donated_state_is_updated_in_place(step, report):
    # State comes first among the arguments: parameters, both moments, counters and key.
    assert report.aliases == frozenset(range(len(jax.tree.leaves(step.state))))
    assert report.output_bytes - report.alias_bytes < 10_000  # metrics, and XLA's table of results


def test_only_the_loss_of_ctc_loops_over_frames(report):
    # On CPU XLA also draws random bits in loops.
    loops = [loop for loop in report.loops if not any(word in loop.op_name for word in RANDOM)]
    frames = int(ARCH.num_frames(SAMPLES))
    assert len(loops) == 1
    assert loops[0].trips is not None
    assert loops[0].trips <= frames


@pytest.fixture(scope="module")
def for_accelerators() -> ProgramReport:
    with products.formulation(platform="gpu"):
        return Step().asked_for()


def test_number_of_products(for_accelerators):
    layer = 4 + 2 + 2  # projections and products of attention, feed-forward
    # A convolution is one product for each stride that its kernel is wide: one here, and one for samples always.
    forward = layer * ARCH.num_hidden_layers + len(ARCH.conv_dim) + 1 + 4  # projection of the features, heads
    losses = [product for product in for_accelerators.products if part_of(product.op_name) in LOSSES]
    # Backward has two for each, the gradients of both operands; samples need none.
    assert len(for_accelerators.products) - len(losses) <= 3 * forward - 1
    assert len(losses) <= 6  # of vectors, all but CTC's with its labels


def test_bfloat16_stays_bfloat16(for_accelerators):
    assert {part_of(product.op_name) for product in for_accelerators.products_of("f32")} <= {"heads", *LOSSES}
    assert all(product.left == product.right for product in for_accelerators.products)
    assert len(for_accelerators.products_of("bf16")) > len(for_accelerators.products) / 2


def test_frozen_convolutions_are_not_differentiated():
    asked = Step(Freeze.FEATURE_ENCODER).asked_for()
    assert not [p for p in asked.products if part_of(p.op_name) == "convolutions" and "transpose(" in p.op_name]

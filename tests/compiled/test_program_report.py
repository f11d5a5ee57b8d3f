"""The reader of XLA's text finds what it is there to find."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.training.hlo_text import read_program
from jax_mtlser.training.program_report import ProgramReport, lowered_report, part_of, program_report

SQUARE = jax.ShapeDtypeStruct((64, 64), jnp.float32)


def report_of(function, *shapes, **jit):
    return program_report(jax.jit(function, **jit).lower(*shapes).compile())


def test_products_by_type():
    def function(x, y):
        low = x.astype(jnp.bfloat16)
        return jnp.dot(x, y), jnp.dot(low, y.astype(jnp.bfloat16), preferred_element_type=jnp.float32)

    report = lowered_report(jax.jit(function).lower(SQUARE, SQUARE))
    assert report.product_types() == {"f32xf32": 1, "bf16xbf16": 1}
    (product,) = report.products_of("f32")
    assert product.op_name.endswith("dot_general")


def test_loops_multiply_their_kernels():
    def step(carry, _):
        return jnp.sin(carry) @ carry, jnp.sum(carry)

    report = report_of(lambda x: jax.lax.scan(step, x, None, length=7), SQUARE)
    (loop,) = report.loops
    assert loop.trips == 7
    assert loop.kernels_per_trip >= 2  # a product and at least one fusion
    assert report.num_loop_kernels == 7 * loop.kernels_per_trip
    assert report.product_types() == {"f32xf32": 7}


def test_nested_loops():
    def inner(carry, _):
        return jnp.sin(carry) @ carry, None

    def outer(carry, _):
        return jax.lax.scan(inner, carry, None, length=3)[0] + 1, None

    report = report_of(lambda x: jax.lax.scan(outer, x, None, length=5)[0], SQUARE)
    assert sorted(loop.trips for loop in report.loops) == [5, 15]
    assert report.product_types() == {"f32xf32": 15}


def test_a_loop_without_a_known_length():
    report = report_of(lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) > 0, lambda x: x @ x, x), SQUARE)
    (loop,) = report.loops
    assert loop.trips is None


def test_donated_arguments_are_aliased():
    add = lambda x, y: x + y
    assert report_of(add, SQUARE, SQUARE).aliases == frozenset()
    report = report_of(add, SQUARE, SQUARE, donate_argnums=1)
    assert report.aliases == {1}
    assert report.alias_bytes == report.output_bytes == 64 * 64 * 4


def test_calls_of_the_host_are_found():
    def function(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x) + 1

    assert len(report_of(function, SQUARE).host_calls) == 1
    assert report_of(lambda x: x + 1, SQUARE).host_calls == []


def test_moved_bytes_count_only_what_is_read():
    corpus = jax.ShapeDtypeStruct((1_000_000,), jnp.int16)
    start = jax.ShapeDtypeStruct((), jnp.int32)

    def function(corpus, start):
        return jax.lax.dynamic_slice(corpus, (start,), (100,)).astype(jnp.float32) * 2

    report = report_of(function, corpus, start)
    assert report.num_kernels == 1
    assert report.bytes_moved == 100 * 2 + 4 + 100 * 4
    assert report_of(lambda x: x * 2, SQUARE).bytes_moved == 2 * 64 * 64 * 4


def test_a_library_call_fused_with_a_slice_counts_the_slice_and_no_scratch():
    # As XLA writes it for a GPU: layer 1's kernel, read where it lies among those of four layers.
    text = """
%call (p0: bf16[4,64,64], p1: bf16[8,64]) -> (bf16[8,64], s8[4096]) {
  %p0 = bf16[4,64,64]{2,1,0} parameter(0)
  %p1 = bf16[8,64]{1,0} parameter(1)
  %slice.1 = bf16[1,64,64]{2,1,0} slice(%p0), slice={[1:2], [0:64], [0:64]}, metadata={op_name="slice"}
  %bitcast.1 = bf16[64,64]{1,0} bitcast(%slice.1), metadata={op_name="slice"}
  ROOT %call.1 = (bf16[8,64]{1,0}, s8[4096]{0}) custom-call(%p1, %bitcast.1), custom_call_target="gemm", CALL
}

ENTRY %main (a: bf16[4,64,64], b: bf16[8,64]) -> bf16[8,64] {
  %a = bf16[4,64,64]{2,1,0} parameter(0)
  %b = bf16[8,64]{1,0} parameter(1)
  %fusion.1 = (bf16[8,64]{1,0}, s8[4096]{0}) fusion(%a, %b), kind=kCustom, calls=%call
  ROOT %out = bf16[8,64]{1,0} get-tuple-element(%fusion.1), index=0
}
"""
    text = text.replace("CALL", 'metadata={op_name="jit(step)/feed_forward/dot_general"}')
    (kernel,) = ProgramReport.of(read_program(text)).kernels
    assert part_of(kernel.op_name) == "feed-forward"
    assert kernel.bytes_each == 2 * (64 * 64 + 2 * 8 * 64)


def test_bytes_that_no_library_call_returns_are_no_scratch():
    text = """
%two (p: f32[4096]) -> (f32[4096], s8[4096]) {
  %p = f32[4096]{0} parameter(0)
  %twice = f32[4096]{0} add(%p, %p)
  %small = s8[4096]{0} convert(%p)
  ROOT %both = (f32[4096]{0}, s8[4096]{0}) tuple(%twice, %small)
}

ENTRY %main (a: f32[4096]) -> (f32[4096], s8[4096]) {
  %a = f32[4096]{0} parameter(0)
  ROOT %fusion.1 = (f32[4096]{0}, s8[4096]{0}) fusion(%a), kind=kLoop, calls=%two
}
"""
    (kernel,) = ProgramReport.of(read_program(text)).kernels
    assert kernel.bytes_each == 4096 * (4 + 4 + 1)


def test_grouped_convolution_is_found():
    signal, kernel = jax.ShapeDtypeStruct((2, 50, 8), jnp.float32), jax.ShapeDtypeStruct((3, 2, 8), jnp.float32)
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1,), padding="SAME", dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=4,
    )  # fmt: skip
    assert len(report_of(convolve, signal, kernel).convolutions) == 1


def test_text_of_something_else():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        read_program("func.func @main() {}")


def test_parts():
    layer = "jit(train_step)/jvp(MultitaskModel)/encoder/transformer/transformer._run_layers/EncoderLayer"
    assert part_of(f"{layer}/attention/query/ri,io->ro/dot_general") == "attention"
    assert part_of(f"{layer}/attention/Dropout_0/jit(_threefry_fold_in)/add") == "random keys"
    assert part_of(f"{layer}/add") == "rest of the transformer"
    assert part_of("jit(train_step)/transpose(jvp(MultitaskModel))/asr_head/logits/dot_general") == "heads"
    assert part_of("jit(train_step)/jvp(ctc)/while/body/add") == "CTC"
    assert part_of("jit(train_step)/transpose(jvp(jit(log_softmax)))/neg") == "losses and input"
    assert part_of("jit(train_step)/add") == "optimizer"

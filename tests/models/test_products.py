"""Matrix products: their values, their gradients, and the types of their operands."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.models import products


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


# ---------------------------------------------------------------------------------------------------------------
# bfloat16.

SPECS = {
    "ri,io->ro": ((7, 16), (16, 5)),
    "bqhe,bkhe->bhqk": ((2, 5, 3, 8), (2, 6, 3, 8)),
    "bhqk,bkhe->bqhe": ((2, 3, 5, 6), (2, 6, 3, 8)),
}


NEEDS_BFLOAT16 = pytest.mark.skipif(
    not products.runtime.has_bfloat16_products(), reason="neither AMX nor AVX-512 BF16 on this processor"
)


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=NEEDS_BFLOAT16)])
@pytest.mark.parametrize("spec", SPECS)
def test_on_a_cpu_bfloat16_products_and_their_gradients_are_summed_in_float32(spec, native, monkeypatch):
    monkeypatch.setattr(products.runtime, "has_bfloat16_products", lambda: native)
    inputs, output = spec.split("->")
    sizes = dict(zip("bqkheriogpn", (3, 40, 70, 2, 64, 50, 96, 32, 2, 8, 5), strict=True))
    left, right, cotangent = (
        jnp.asarray(_normal(*(sizes[axis] for axis in axes), seed=number), jnp.bfloat16)
        for number, axes in enumerate((*inputs.split(","), output))
    )

    def with_gradients(left, right, dtype):
        value, pullback = jax.vjp(lambda a, b: products.einsum(spec, a, b, dtype), left, right)
        return value, *pullback(cotangent.astype(dtype))

    found = with_gradients(left, right, jnp.bfloat16)
    expected = with_gradients(left.astype(jnp.float32), right.astype(jnp.float32), jnp.float32)
    for one, other in zip(found, expected, strict=True):
        # One rounding to bfloat16 at the end: half of its last place, of 8 bits.
        np.testing.assert_allclose(np.asarray(one, np.float32), other, rtol=2**-8, atol=1e-4)


def _products_of(spec):
    """The product and its two gradients in bfloat16, traced."""

    def loss(left, right):
        return jnp.sum(products.einsum(spec, left, right, jnp.bfloat16).astype(jnp.float32) ** 2)

    shapes = SPECS[spec]
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(*(jnp.ones(shape) for shape in shapes))
    found = [equation for equation in _equations(jaxpr.jaxpr) if equation.primitive.name == "dot_general"]
    assert len(found) == 3
    return found


@pytest.mark.parametrize(("native", "operand"), [(True, jnp.bfloat16), (False, jnp.float32)])
@pytest.mark.parametrize("spec", ["bqhe,bkhe->bhqk", "bhqk,bkhe->bqhe"])
def test_on_a_cpu_attention_multiplies_bfloat16_where_the_processor_can(spec, native, operand, monkeypatch):
    monkeypatch.setattr(products.runtime, "has_bfloat16_products", lambda: native)
    with products.formulation(platform="cpu"):
        for equation in _products_of(spec):
            assert [value.aval.dtype for value in equation.invars] == [operand, operand]
            assert equation.outvars[0].aval.dtype == jnp.float32


@pytest.mark.parametrize("spec", SPECS)
def test_bfloat16_products_have_bfloat16_operands_forward_and_backward_on_accelerators(spec, monkeypatch):
    monkeypatch.setattr(products.jax, "default_backend", lambda: "gpu")
    for equation in _products_of(spec):
        assert [operand.aval.dtype for operand in equation.invars] == [jnp.bfloat16, jnp.bfloat16]
        # Their units sum up in float32 whatever they write; a float32 result would be written out and rounded later.
        assert equation.outvars[0].aval.dtype == jnp.bfloat16


@pytest.mark.parametrize("spec", SPECS)
def test_bfloat16_products_are_right_within_their_rounding(spec):
    left, right = (_normal(*shape, seed=seed) for seed, shape in enumerate(SPECS[spec]))
    weights = _normal(*jax.eval_shape(lambda x, y: jnp.einsum(spec, x, y), left, right).shape, seed=5)

    def with_gradients(left, right, weights, dtype):
        value, pullback = jax.vjp(lambda x, y: products.einsum(spec, x, y, dtype), left, right)
        return value, *pullback(jnp.asarray(weights, dtype))

    low = with_gradients(left, right, weights, jnp.bfloat16)
    full = with_gradients(left, right, weights, jnp.float32)
    # Two operands and the result are rounded, by 2**-8 of themselves at most.
    bounds = with_gradients(np.abs(left), np.abs(right), np.abs(weights), jnp.float32)
    for ours, expected, bound in zip(low, full, bounds, strict=True):
        assert (np.abs(np.asarray(ours, np.float32) - expected) <= 3.1 * 2**-8 * bound).all()


def test_float32_parameters_get_float32_gradients_from_bfloat16_products():
    x, kernel, bias = _normal(4, 8), _normal(8, 3, seed=1), _normal(3, seed=2)

    def loss(kernel, bias):
        return jnp.sum(products.affine(x, kernel, bias, jnp.bfloat16).astype(jnp.float32))

    assert [g.dtype for g in jax.grad(loss, argnums=(0, 1))(kernel, bias)] == [jnp.float32, jnp.float32]


def test_a_formulation_holds_inside_its_block_only():
    assert not products.is_plain()
    with products.formulation(plain=True):
        assert products.is_plain()
    assert not products.is_plain()


@pytest.mark.parametrize("shape", [(64, 48), (35, 16), (17, 8)])
def test_weight_gradients_in_bfloat16_do_not_depend_on_how_rows_can_be_cut(shape):
    rows, columns = shape
    x, kernel = jnp.asarray(_normal(rows, columns)), jnp.asarray(_normal(columns, 5, seed=1))

    def loss(kernel):
        return jnp.sum(products.matmul(x, kernel, jnp.bfloat16).astype(jnp.float32) * _normal(rows, 5, seed=2))

    rounded = x.astype(jnp.bfloat16).astype(jnp.float32)
    cotangent = jnp.asarray(_normal(rows, 5, seed=2)).astype(jnp.bfloat16).astype(jnp.float32)
    expected = rounded.T @ cotangent
    np.testing.assert_allclose(jax.grad(loss)(kernel), expected, atol=2**-8 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("size", [400, 7])
def test_a_power_spectrum_without_the_transform_is_the_same(size):
    x = np.random.default_rng(0).normal(size=(2, 5, size)).astype(np.float32)
    expected = np.abs(np.fft.rfft(x.astype(np.float64))) ** 2
    np.testing.assert_allclose(products.power_spectrum(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4 * size)
    with products.formulation(without_fft=True):
        traced = jax.make_jaxpr(products.power_spectrum)(x)
        np.testing.assert_allclose(products.power_spectrum(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4 * size)
    assert "fft" not in str(traced)

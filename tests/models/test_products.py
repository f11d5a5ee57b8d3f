"""Matrix products and convolutions against PyTorch, their gradients, and the types of their operands."""

import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.models import products
from jax_mtlser.training.program_report import read_program

torch = pytest.importorskip("torch")

# (kernel, stride, input channels, output channels, length): thin and wide inputs take different paths.
STRIDED = [
    (10, 5, 1, 8, 400),  # the first layer
    (3, 2, 16, 12, 41),  # the layers after it
    (2, 2, 16, 5, 37),
    (3, 2, 8, 4, 30),
    (4, 3, 3, 6, 50),
    (7, 3, 20, 6, 50),
    (2, 3, 2, 3, 29),  # a kernel shorter than its stride leaves samples out
    (2, 3, 2, 3, 30),
    (2, 5, 40, 3, 29),
    (1, 1, 40, 3, 7),
    (5, 1, 33, 2, 5),  # one output
    (10, 5, 1, 4, 10),
]


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _torch_conv(x, kernel, **options):
    """``torch.conv1d`` with this package's layouts."""
    return torch.nn.functional.conv1d(x.transpose(1, 2), kernel.permute(2, 1, 0), **options).transpose(1, 2)


def _check_with_gradients(ours, theirs, x, kernel):
    tensors = [torch.from_numpy(array).requires_grad_() for array in (x, kernel)]
    expected = theirs(*tensors)
    weights = _normal(*expected.shape, seed=9)
    (expected * torch.from_numpy(weights)).sum().backward()

    # Code generation dominates the time of these tests, and results do not rest on LLVM's optimisations.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def value_and_gradients(x, kernel):
        value, pullback = jax.vjp(ours, x, kernel)
        return value, pullback(jnp.asarray(weights))

    value, gradients = value_and_gradients(x, kernel)
    np.testing.assert_allclose(value, expected.detach().numpy(), atol=1e-5)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        scale = tensor.grad.abs().max().item()
        np.testing.assert_allclose(gradient / scale, tensor.grad.numpy() / scale, atol=1e-5)


@pytest.mark.parametrize(("width", "stride", "inputs", "outputs", "length"), STRIDED)
def test_strided_convolution_and_its_gradients_equal_pytorch(width, stride, inputs, outputs, length):
    scale = np.float32((width * inputs) ** -0.5)
    _check_with_gradients(
        lambda x, kernel: products.strided_conv(x, kernel, stride, jnp.float32),
        functools.partial(_torch_conv, stride=stride),
        _normal(2, length, inputs),
        _normal(width, inputs, outputs, seed=1) * scale,
    )


@pytest.mark.parametrize("length", [9, 10, 14, 15, 16])
def test_strided_convolution_has_as_many_outputs_as_fit(length):
    out = products.strided_conv(jnp.ones((1, length, 1)), jnp.ones((10, 1, 3)), 5, jnp.float32)
    assert out.shape == (1, (length - 10) // 5 + 1, 3)


GROUPED = [  # (kernel, group size, channels, frames)
    (16, 4, 12, 40),
    (13, 3, 15, 4),  # odd: nothing is cut off behind; and fewer frames than taps
    (9, 2, 4, 100),  # several blocks
    (5, 2, 6, 20),
    (4, 6, 6, 20),  # one group
    (128, 12, 36, 50),  # as wide as in the released models
]


@pytest.mark.parametrize("path", ["cpu", "accelerator", "plain"])
@pytest.mark.parametrize(("width", "group_size", "channels", "frames"), GROUPED)
def test_grouped_convolution_and_its_gradients_equal_pytorch(width, group_size, channels, frames, path):

    def theirs(x, kernel):
        full = _torch_conv(x, kernel, padding=width // 2, groups=channels // group_size)
        return full[:, :frames]

    def ours(x, kernel):
        with products.formulation(platform="cpu" if path == "cpu" else "gpu", plain=path == "plain"):
            return products.same_grouped_conv(x, kernel, jnp.float32)

    _check_with_gradients(
        ours,
        theirs,
        _normal(2, frames, channels),
        _normal(width, group_size, channels, seed=1) * np.float32((width * group_size) ** -0.5),
    )


@pytest.mark.parametrize(("platform", "instead"), [("cpu", "fft"), ("gpu", "dot_general")])
def test_wide_kernels_avoid_the_convolution_and_narrow_ones_do_not(platform, instead):
    def primitives(width, frames, function=lambda convolve: convolve):
        def convolve(x, kernel):
            with products.formulation(platform=platform):
                return products.same_grouped_conv(x, kernel, jnp.float32).sum()

        return _primitives(jax.make_jaxpr(function(convolve))(jnp.ones((1, frames, 4)), jnp.ones((width, 2, 4))))

    for found in (primitives(9, 600), primitives(9, 20, jax.value_and_grad)):
        assert instead in found
        assert "conv_general_dilated" not in found
    assert "conv_general_dilated" in primitives(8, 600)
    few = primitives(9, 20)
    assert ("conv_general_dilated" in few, instead in few) == ((True, False) if platform == "cpu" else (False, True))


@pytest.mark.parametrize("frames", [20, 600])
def test_fourier_transforms_never_run_side_by_side(frames):
    # Two at once on two cores wait for each other's threads for ever (jaxlib 0.11).
    def convolve(x, kernel):
        with products.formulation(platform="cpu"):
            return jnp.square(products.same_grouped_conv(x, kernel, jnp.float32)).sum()

    gradient = jax.jit(jax.value_and_grad(convolve, argnums=(0, 1)))
    program = read_program(gradient.lower(jnp.ones((1, frames, 4)), jnp.ones((9, 2, 4))).compile().as_text())
    entry = program.computations[program.entry]
    before: dict[str, set[str]] = {}  # of each instruction, the transforms that it waits for
    transforms = []
    for name, instruction in entry.items():
        before[name] = set().union(*(before.get(operand, set()) for operand in instruction.operands))
        if instruction.opcode == "fft":
            assert before[name] == set(transforms)
            transforms.append(name)
            before[name] = set(transforms)
    assert len(transforms) == 6


@pytest.mark.parametrize("frames", [40, 300])
def test_with_few_frames_or_many_a_wide_convolution_without_gradient_is_the_same(frames):
    x, kernel = _normal(2, frames, 12), _normal(16, 4, 12, seed=1) / np.float32(8)
    with products.formulation(platform="cpu"):
        found = products.same_grouped_conv(x, kernel, jnp.float32)
    with products.formulation(plain=True):
        expected = products.same_grouped_conv(x, kernel, jnp.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------
# bfloat16.

SPECS = {
    "ri,io->ro": ((7, 16), (16, 5)),
    "bqhe,bkhe->bhqk": ((2, 5, 3, 8), (2, 6, 3, 8)),
    "bhqk,bkhe->bqhe": ((2, 3, 5, 6), (2, 6, 3, 8)),
}


NEEDS_TILES = pytest.mark.skipif(not products.runtime.has_tile_products(), reason="no AMX on this processor")


@pytest.mark.parametrize("tiles", [False, pytest.param(True, marks=NEEDS_TILES)])
@pytest.mark.parametrize("spec", SPECS)
def test_on_a_cpu_bfloat16_products_and_their_gradients_are_summed_in_float32(spec, tiles, monkeypatch):
    monkeypatch.setattr(products.runtime, "has_tile_products", lambda: tiles)
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


@pytest.mark.parametrize("spec", SPECS)
def test_bfloat16_products_have_bfloat16_operands_forward_and_backward_on_accelerators(spec, monkeypatch):
    monkeypatch.setattr(products.jax, "default_backend", lambda: "gpu")

    def loss(left, right):
        return jnp.sum(products.einsum(spec, left, right, jnp.bfloat16).astype(jnp.float32) ** 2)

    shapes = SPECS[spec]
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(*(jnp.ones(shape) for shape in shapes))
    found = [equation for equation in _equations(jaxpr.jaxpr) if equation.primitive.name == "dot_general"]
    assert len(found) == 3
    for equation in found:
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


@pytest.mark.parametrize(("width", "stride", "inputs", "outputs", "length"), STRIDED[:3])
def test_bfloat16_convolutions_are_right_within_their_rounding(width, stride, inputs, outputs, length):
    x, kernel = _normal(2, length, inputs), _normal(width, inputs, outputs, seed=1)
    low, full = (products.strided_conv(x, kernel, stride, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, np.float32), full, atol=4 * 2**-8 * float(jnp.abs(full).max()))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("width", [16, 5])
def test_bfloat16_grouped_convolution_is_right_within_its_rounding(width, platform):
    x, kernel = _normal(2, 30, 8), _normal(width, 4, 8, seed=1)
    full = products.same_grouped_conv(x, kernel, jnp.float32)
    with products.formulation(platform=platform):
        low = products.same_grouped_conv(x, kernel, jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, np.float32), full, atol=3 * 2**-8 * float(jnp.abs(full).max()))


# ---------------------------------------------------------------------------------------------------------------
# Population members.


@pytest.mark.parametrize(("width", "stride", "inputs", "outputs", "length"), [STRIDED[0], STRIDED[1], STRIDED[8]])
def test_members_side_by_side_equal_members_one_by_one_without_a_grouped_convolution(
    width, stride, inputs, outputs, length
):
    x, kernels = _normal(3, 2, length, inputs), _normal(3, width, inputs, outputs, seed=1)

    def loss(x, kernel):
        return jnp.sum(products.strided_conv(x, kernel, stride, jnp.float32) ** 2)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    together = jax.vmap(gradient)(x, kernels)
    for member in range(3):
        alone = gradient(x[member], kernels[member])
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[member], b, rtol=1e-5, atol=1e-4)
    # XLA would turn a convolution under vmap into a grouped one, which is slow on every device.
    assert "conv_general_dilated" not in _primitives(jax.make_jaxpr(jax.vmap(gradient))(x, kernels))


def test_members_of_the_positional_convolution_do_not_mix():
    x, kernels = _normal(2, 1, 20, 6), _normal(2, 12, 3, 6, seed=1)
    convolve = jax.jit(functools.partial(products.same_grouped_conv, dtype=jnp.float32))
    together = jax.vmap(convolve)(x, kernels)
    for member in range(2):
        np.testing.assert_allclose(together[member], convolve(x[member], kernels[member]), atol=1e-5)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


def _primitives(closed):
    return {equation.primitive.name for equation in _equations(closed.jaxpr)}


# ---------------------------------------------------------------------------------------------------------------
# Formulations: every fast path against the plain one, by automatic differentiation.


def _value_and_gradients(function, arguments, weights):
    value, pullback = jax.vjp(function, *arguments)
    return value, *pullback(weights.astype(value.dtype))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("width", "stride", "inputs", "outputs", "length"), STRIDED)
def test_convolutions_of_every_platform_equal_the_plain_one(width, stride, inputs, outputs, length, platform):
    x, kernel = jnp.asarray(_normal(2, length, inputs)), jnp.asarray(_normal(width, inputs, outputs, seed=1))
    weights = jnp.asarray(_normal(2, (length - width) // stride + 1, outputs, seed=2))

    def convolve(x, kernel):
        return products.strided_conv(x, kernel, stride, jnp.float32)

    with products.formulation(plain=True):
        plain = _value_and_gradients(convolve, (x, kernel), weights)
    with products.formulation(platform=platform):
        fast = _value_and_gradients(convolve, (x, kernel), weights)
    for found, expected in zip(fast, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6 * float(jnp.abs(expected).max()))


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

"""Convolutions against PyTorch and against the plain formulas, their gradients, and what computes them."""

import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.models import convolutions, products
from jax_mtlser.training.hlo_text import read_program

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
    torch = pytest.importorskip("torch")
    return torch.nn.functional.conv1d(x.transpose(1, 2), kernel.permute(2, 1, 0), **options).transpose(1, 2)


def _check_with_gradients(ours, theirs, x, kernel):
    torch = pytest.importorskip("torch")
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
        lambda x, kernel: convolutions.strided_conv(x, kernel, stride, jnp.float32),
        functools.partial(_torch_conv, stride=stride),
        _normal(2, length, inputs),
        _normal(width, inputs, outputs, seed=1) * scale,
    )


@pytest.mark.parametrize("length", [9, 10, 14, 15, 16])
def test_strided_convolution_has_as_many_outputs_as_fit(length):
    out = convolutions.strided_conv(jnp.ones((1, length, 1)), jnp.ones((10, 1, 3)), 5, jnp.float32)
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
            return convolutions.same_grouped_conv(x, kernel, jnp.float32)

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
                return convolutions.same_grouped_conv(x, kernel, jnp.float32).sum()

        return _primitives(jax.make_jaxpr(function(convolve))(jnp.ones((1, frames, 4)), jnp.ones((width, 2, 4))))

    for found in (primitives(9, 600), primitives(9, 20), primitives(9, 20, jax.value_and_grad)):
        assert instead in found
        assert "conv_general_dilated" not in found
    assert "conv_general_dilated" in primitives(8, 600)


@pytest.mark.parametrize("frames", [20, 600])
@pytest.mark.parametrize("depth", [1, 3])
def test_fourier_transforms_never_run_side_by_side(frames, depth):
    # Two at once on two cores wait for each other's threads for ever (jaxlib 0.11). data2vec has several in a row.
    def convolve(x, kernels):
        with products.formulation(platform="cpu"):
            for kernel in kernels:
                x = jnp.sin(convolutions.same_grouped_conv(x, kernel, jnp.float32))
            return x.sum()

    gradient = jax.jit(jax.value_and_grad(convolve, argnums=(0, 1)))
    program = read_program(gradient.lower(jnp.ones((1, frames, 4)), [jnp.ones((9, 2, 4))] * depth).compile().as_text())
    entry = program.computations[program.entry]
    before: dict[str, set[str]] = {}  # of each instruction, the transforms that it waits for
    transforms = []
    for name, instruction in entry.items():
        before[name] = set().union(*(before.get(operand, set()) for operand in instruction.operands))
        if instruction.opcode == "fft":
            assert before[name] == set(transforms)
            transforms.append(name)
            before[name] = set(transforms)
    assert len(transforms) == 4 * depth


@pytest.mark.parametrize("frames", [5, 40, 300])
def test_a_wide_convolution_by_a_shared_spectrum_is_the_same(frames):
    x, kernel = _normal(2, frames, 12), _normal(16, 4, 12, seed=1) / np.float32(8)
    with products.formulation(platform="cpu"):
        found = convolutions.same_grouped_conv(x, kernel, jnp.float32)
        spectrum = convolutions.shared_spectrum(kernel)
        sharing = convolutions.same_grouped_conv(x, kernel, jnp.float32, spectrum)
    with products.formulation(plain=True):
        expected = convolutions.same_grouped_conv(x, kernel, jnp.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(sharing, expected, atol=1e-5)


@pytest.mark.parametrize(("width", "formulation"), [(8, {}), (16, {"platform": "gpu"}), (16, {"plain": True})])
def test_what_is_not_transformed_has_no_spectrum_to_share(width, formulation):
    with products.formulation(**formulation):
        assert convolutions.shared_spectrum(_normal(width, 4, 12)) is None


@pytest.mark.parametrize(("width", "stride", "inputs", "outputs", "length"), STRIDED[:3])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_bfloat16_convolutions_are_right_within_their_rounding(width, stride, inputs, outputs, length, platform):
    x, kernel = _normal(2, length, inputs), _normal(width, inputs, outputs, seed=1)

    def with_gradients(dtype):
        convolve = functools.partial(convolutions.strided_conv, stride=stride, dtype=dtype)
        weights = _normal(2, (length - width) // stride + 1, outputs, seed=2)
        return _value_and_gradients(convolve, (x, kernel), weights)

    with products.formulation(platform=platform):
        low = with_gradients(jnp.bfloat16)
    with products.formulation(plain=True):
        full = with_gradients(jnp.float32)
    assert [each.dtype for each in low] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for found, expected in zip(low, full, strict=True):
        bound = 4 * 2**-8 * float(jnp.abs(expected).max())
        np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=bound)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("width", [16, 5])
def test_bfloat16_grouped_convolution_is_right_within_its_rounding(width, platform):
    x, kernel = _normal(2, 30, 8), _normal(width, 4, 8, seed=1)
    full = convolutions.same_grouped_conv(x, kernel, jnp.float32)
    with products.formulation(platform=platform):
        low = convolutions.same_grouped_conv(x, kernel, jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, np.float32), full, atol=3 * 2**-8 * float(jnp.abs(full).max()))


@pytest.mark.parametrize(("width", "stride", "inputs", "outputs", "length"), [STRIDED[0], STRIDED[1], STRIDED[8]])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_members_side_by_side_equal_members_one_by_one_without_a_grouped_convolution(
    width, stride, inputs, outputs, length, platform
):
    x, kernels = _normal(3, 2, length, inputs), _normal(3, width, inputs, outputs, seed=1)

    def loss(x, kernel):
        with products.formulation(platform=platform):
            return jnp.sum(convolutions.strided_conv(x, kernel, stride, jnp.float32) ** 2)

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
    convolve = jax.jit(functools.partial(convolutions.same_grouped_conv, dtype=jnp.float32))
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


def _value_and_gradients(function, arguments, weights):
    def run(*arguments):
        value, pullback = jax.vjp(function, *arguments)
        return value, *pullback(jnp.asarray(weights, value.dtype))

    return jax.jit(run)(*arguments)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("width", "stride", "inputs", "outputs", "length"), STRIDED)
def test_convolutions_of_every_platform_equal_the_plain_one(width, stride, inputs, outputs, length, platform):
    x, kernel = jnp.asarray(_normal(2, length, inputs)), jnp.asarray(_normal(width, inputs, outputs, seed=1))
    weights = jnp.asarray(_normal(2, (length - width) // stride + 1, outputs, seed=2))

    def convolve(x, kernel):
        return convolutions.strided_conv(x, kernel, stride, jnp.float32)

    with products.formulation(plain=True):
        plain = _value_and_gradients(convolve, (x, kernel), weights)
    with products.formulation(platform=platform):
        fast = _value_and_gradients(convolve, (x, kernel), weights)
    for found, expected in zip(fast, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6 * float(jnp.abs(expected).max()))

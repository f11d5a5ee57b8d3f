"""The one-pass CTC loss against PyTorch in float64, optax and itself; its compiled form."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_mtlser.models import products
from jax_mtlser.training import ctc
from jax_mtlser.training.ctc import INFEASIBLE_LOSS, ctc_loss
from jax_mtlser.training.losses import ctc_feasible

torch = pytest.importorskip("torch")

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def _case(frames, transcripts, *, symbols, width=None, time=None, scale=1.0, seed=0):
    """logits, frame_padding, labels, label_padding; what stands behind a transcript are symbols like any other."""
    random = np.random.default_rng(seed)
    time = max(frames) if time is None else time
    width = max(map(len, transcripts)) if width is None else width
    logits = (scale * random.standard_normal((len(frames), time, symbols))).astype(np.float32)
    labels = random.integers(1, symbols, (len(frames), width)).astype(np.int32)
    for row, transcript in enumerate(transcripts):
        labels[row, : len(transcript)] = transcript
    frame_padding = np.arange(time)[None] >= np.array(frames)[:, None]
    label_padding = np.arange(width)[None] >= np.array([len(t) for t in transcripts])[:, None]
    return logits, frame_padding.astype(np.float32), labels, label_padding.astype(np.float32)


def _random_transcripts(lengths, symbols, seed=0):
    """Symbols 1 to ``symbols`` - 1, a quarter of them equal to the one before."""
    random = np.random.default_rng(seed)
    transcripts = []
    for length in lengths:
        transcript = random.integers(1, symbols, length)
        for n in range(1, length):
            if random.random() < 0.25:
                transcript[n] = transcript[n - 1]
        transcripts.append(transcript.tolist())
    return transcripts


def _speech(*, time=96, width=24, symbols=32, scale=2.0, seed=0):
    """Eight utterances of different lengths in frames and symbols, all feasible."""
    random = np.random.default_rng(seed)
    lengths = np.append(random.integers(2, width, 7), width)
    frames = np.append(np.minimum(time, 2 * lengths[:7] + random.integers(0, time // 2, 7)), time)
    transcripts = _random_transcripts(lengths, symbols, seed)
    return _case(frames.tolist(), transcripts, symbols=symbols, scale=scale, seed=seed)


@pytest.fixture(autouse=True, params=["cpu", "gpu"])
def platform(request):
    """What is traced is compiled for: frame by frame, or in blocks of frames."""
    with products.formulation(platform=request.param):
        yield request.param


def _traced_for_each_platform(function, **options):
    """``jax.jit``, which would keep what it traced for the other one."""
    programs = {platform: jax.jit(functools.partial(function), **options) for platform in (True, False)}
    return lambda *arguments, **keywords: programs[products.on_cpu()](*arguments, **keywords)


def _value_and_gradient(loss, compiled=_traced_for_each_platform):
    """Losses [B] and the gradient [B, T, V] of their sum."""

    def total(logits, *rest, blank_id=0):
        losses = loss(logits, *rest, blank_id=blank_id)
        return jnp.sum(losses), losses

    step = compiled(jax.value_and_grad(total, has_aux=True), static_argnames="blank_id")

    def run(*case, blank_id=0):
        (_, losses), gradient = step(*case, blank_id=blank_id)
        return np.asarray(losses), np.asarray(gradient)

    return run


_ours = _value_and_gradient(ctc_loss)
_optax = _value_and_gradient(optax.ctc_loss, jax.jit)
_value_only = _traced_for_each_platform(ctc_loss, static_argnums=4)


def _torch(logits, frame_padding, labels, label_padding, *, blank_id=0):
    """The same from PyTorch in float64; infinity and gradient 0 where the transcript does not fit."""
    leaf = torch.from_numpy(np.asarray(logits)).double().requires_grad_()
    frames, lengths = ((1 - np.asarray(padding)).sum(1).astype(np.int64) for padding in (frame_padding, label_padding))
    arguments = (
        leaf.log_softmax(-1).transpose(0, 1),
        torch.from_numpy(np.asarray(labels)).long(),
        torch.from_numpy(frames),
        torch.from_numpy(lengths),
    )
    losses = torch.nn.functional.ctc_loss(*arguments, blank=blank_id, reduction="none")
    torch.nn.functional.ctc_loss(*arguments, blank=blank_id, reduction="sum", zero_infinity=True).backward()
    return losses.detach().numpy(), leaf.grad.numpy()


def _assert_equals_torch(case, *, blank_id=0, rtol=1e-5, atol=1e-6, gradient_atol=2e-5):
    expected, expected_gradient = _torch(*case, blank_id=blank_id)
    fits = np.isfinite(expected)
    losses, gradient = _ours(*case, blank_id=blank_id)
    assert losses.dtype == gradient.dtype == np.float32
    np.testing.assert_allclose(losses[fits], expected[fits], rtol=rtol, atol=atol)
    np.testing.assert_array_equal(losses[~fits], np.float32(INFEASIBLE_LOSS))
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=gradient_atol)
    np.testing.assert_array_equal(gradient[~fits], 0)
    np.testing.assert_array_equal(gradient[case[1] > 0], 0)


# ---------------------------------------------------------------------------------------------------------------
# Values and gradients.


@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])
def test_values_equal_optax_and_pytorch_and_the_gradient_is_closer_than_optax_s(scale):
    case = _speech(scale=scale)
    losses, gradient = _ours(*case)
    optax_losses, optax_gradient = _optax(*case)
    expected, expected_gradient = _torch(*case)
    np.testing.assert_allclose(losses, optax_losses, rtol=1e-5)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    error = np.abs(gradient - expected_gradient)
    assert error.max() < 1e-4
    assert error.max() <= np.abs(optax_gradient - expected_gradient).max()


def test_the_gradient_is_the_slope_of_the_value():
    case = _case([5, 4, 3], [[1, 1], [2, 1, 3], []], symbols=4)
    logits, rest = case[0], case[1:]
    _, gradient = _ours(*case)
    step = 1e-2
    for seed in range(3):
        direction = np.random.default_rng(seed).standard_normal(logits.shape).astype(np.float32)
        ahead, behind = (_value_only(logits + sign * step * direction, *rest, 0) for sign in (1, -1))
        slope = (np.asarray(ahead) - np.asarray(behind)) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction, axis=(1, 2)), slope, rtol=2e-3, atol=2e-3)


def test_each_row_s_gradient_is_scaled_by_its_own_cotangent():
    case = _case([5, 4], [[1, 1], [2]], symbols=4)
    _, gradient = _ours(*case)
    weights = np.array([0.0, -3.0], np.float32)
    weighted = jax.jit(jax.grad(lambda logits: jnp.sum(weights * ctc_loss(logits, *case[1:]))))(case[0])
    np.testing.assert_allclose(weighted, weights[:, None, None] * gradient, rtol=1e-6)
    assert np.abs(weighted[1]).max() > 0.1


@pytest.mark.parametrize(
    ("frames", "transcript"),
    [
        (3, [1, 2, 3]),  # one alignment only
        (5, [2, 2, 2]),  # also one: its blanks have to stand between
        (6, [1, 1, 2]),
        (4, []),
        (1, []),
        (1, [3]),
        (0, []),
        (2, [1, 2, 3]),
        (4, [2, 2, 2]),
        (1, [1, 1]),
        (0, [1]),
    ],
)
@pytest.mark.parametrize("blank_id", [0, 2, 4])
def test_edges_equal_pytorch(frames, transcript, blank_id):
    # Beside a row without any padding, and with the blank at any place: symbols move up to make room for it.
    transcripts = [[s - 1 if s <= blank_id else s for s in t] for t in (transcript, [1, 2, 2, 4])]
    case = _case([frames, 6], transcripts, symbols=5, width=4, scale=2.0)
    _assert_equals_torch(case, blank_id=blank_id)
    np.testing.assert_allclose(_value_only(*case, blank_id), _ours(*case, blank_id=blank_id)[0], rtol=1e-6, atol=1e-7)
    fits = ctc_feasible(jnp.array([frames]), jnp.array(case[2][:1]), jnp.array([len(transcript)])).item()
    assert (_ours(*case, blank_id=blank_id)[0][0] != INFEASIBLE_LOSS) == fits


@st.composite
def _shapes(draw):
    symbols, rows = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    time, width = draw(st.integers(1, 10)), draw(st.integers(0, 4))
    blank = draw(st.integers(0, symbols - 1))
    others = [symbol for symbol in range(symbols) if symbol != blank]
    transcripts = draw(st.lists(st.lists(st.sampled_from(others), max_size=width), min_size=rows, max_size=rows))
    frames = draw(st.lists(st.integers(0, time), min_size=rows, max_size=rows))
    scale, seed = draw(st.sampled_from([0.0, 1.0, 20.0])), draw(st.integers(0, 1000))
    return _case(frames, transcripts, symbols=symbols, width=width, time=time, scale=scale, seed=seed), blank


# The platform may stay the same for all examples.
@settings(
    max_examples=10, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(_shapes())
def test_any_shape_equals_pytorch(shape):
    case, blank_id = shape
    _assert_equals_torch(case, blank_id=blank_id)


# ---------------------------------------------------------------------------------------------------------------
# Numbers at the limits.


def test_a_confident_model_has_a_small_loss_and_never_a_negative_one():
    # 1 - p**2 is what the three alignments have together (optax#1771: optax answers -8e-8).
    p = 1 / (1 + np.exp(17.0))
    logits = np.array([[[0, 17], [0, 17]]], np.float32)
    losses, gradient = _ours(logits, np.zeros((1, 2)), np.array([[1]]), np.zeros((1, 1)))
    assert 0 <= losses[0] < 1e-13
    np.testing.assert_allclose(gradient, 0, atol=2 * p)
    assert _optax(logits, np.zeros((1, 2)), np.array([[1]]), np.zeros((1, 1)))[0][0] < 0, "the comparison is moot"


def test_rounding_below_zero_is_cut_off():
    # Eight symbols with a frame each and one between that may be either neighbour: all together have probability 1.
    rows, count = 500, 8
    random = np.random.default_rng(0)
    logits = np.full((rows, 2 * count - 1, count + 1), -30, np.float32)
    logits[:, np.arange(0, 2 * count, 2), np.arange(1, count + 1)] = 30
    for neighbour in (0, 1):
        between = np.arange(count - 1)
        logits[:, 2 * between + 1, between + 1 + neighbour] = random.standard_normal((rows, count - 1))
    labels = np.tile(np.arange(1, count + 1), (rows, 1))
    losses, gradient = _ours(logits, np.zeros(logits.shape[:2]), labels, np.zeros(labels.shape))
    assert losses.min() == 0
    assert 0 < losses.max() < 2e-6, "rounding is not what this test takes it for"
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("margin", [8.0, 14.0, 30.0])
def test_a_small_loss_keeps_its_relative_precision(margin):
    logits, *rest = _speech(time=60, width=12, symbols=12, scale=1.0)
    labels, lengths = rest[1], (1 - rest[2]).sum(1).astype(int)
    logits[:, :, 0] += margin
    for row, length in enumerate(lengths):
        logits[row, 2 * np.arange(length), labels[row, :length]] += 2 * margin
    expected, _ = _torch(logits, *rest)
    assert expected.max() < 1
    losses, _ = _ours(logits, *rest)
    assert losses.min() >= 0
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-10)


def test_extreme_logits_stay_finite():
    case = _case([6, 6], [[1, 2], [1, 1, 1]], symbols=4, scale=1e4)
    losses, gradient = _ours(*case)
    np.testing.assert_allclose(losses, _torch(*case)[0], rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() <= 1


def test_what_stands_in_padding_changes_nothing():
    logits, frame_padding, labels, label_padding = _case([6, 3, 0], [[1, 2], [3], []], symbols=4, width=3)
    padded = np.where(frame_padding[..., None] > 0, np.float32(np.nan), logits)
    odd = np.where(label_padding > 0, -7, labels)
    for one, other in zip(
        _ours(logits, frame_padding, labels, label_padding),
        _ours(padded, frame_padding > 0, odd, label_padding > 0),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bad", ["logit", 4, -1])
def test_what_is_wrong_inside_a_row_shows_as_nan_in_that_row_only(bad):
    logits, frame_padding, labels, label_padding = _case([6, 5], [[1, 2], [3]], symbols=4)
    if bad == "logit":
        logits[0, 2, 1] = np.nan
    else:
        labels[0, 1] = bad
    losses, gradient = _ours(logits, frame_padding, labels, label_padding)
    assert np.isnan(losses).tolist() == [True, False]
    assert np.isnan(gradient).any(axis=(1, 2)).tolist() == [True, False]


def test_a_forbidden_symbol_is_as_if_it_were_not_there_or_makes_its_transcripts_infeasible():
    case = _case([6, 6, 6], [[1, 2], [3, 1], [1]], symbols=4)
    case[0][:, :, 3] = -np.inf
    case[0][2, 4, :2] = -np.inf  # in one frame all that the transcript could use
    losses, gradient = _ours(*case)
    without = _ours(case[0][:1, :, :3], *(x[:1] for x in case[1:]))
    np.testing.assert_allclose(losses[0], without[0][0], rtol=1e-6)
    np.testing.assert_allclose(gradient[0, :, :3], without[1][0], atol=1e-6)
    np.testing.assert_array_equal(losses[1:], np.float32(INFEASIBLE_LOSS))
    np.testing.assert_array_equal(gradient[1:], 0)
    np.testing.assert_array_equal(gradient[:, :, 3], 0)


def test_half_precision_logits_are_computed_in_float32():
    logits, *rest = _case([9, 7], [[1, 2, 2], [3]], symbols=5, scale=3.0)
    half = jnp.asarray(logits, jnp.bfloat16)
    losses, gradient = _ours(half, *rest)
    expected, expected_gradient = _ours(half.astype(jnp.float32), *rest)
    assert (losses.dtype, gradient.dtype) == (np.float32, jnp.bfloat16)
    np.testing.assert_array_equal(losses, expected)
    np.testing.assert_array_equal(gradient, expected_gradient.astype(jnp.bfloat16))


# ---------------------------------------------------------------------------------------------------------------
# Transformations and the compiled program.


@pytest.mark.parametrize("shared", [False, True], ids=["own transcripts", "shared transcripts"])
def test_members_side_by_side_equal_members_one_by_one(shared):
    transcripts = [[[1, 2, 2], []], [[3], [1, 1, 1]], [[2, 1], [1]]]
    members = [_case([6, 5], ts, symbols=4, width=3, seed=seed) for seed, ts in enumerate(transcripts)]
    if shared:
        members = [(logits, *members[0][1:]) for logits, *_ in members]
    alone = [_ours(*member) for member in members]
    stacked = [np.stack(parts) for parts in zip(*members, strict=True)]
    arguments = (stacked[0], *members[0][1:]) if shared else stacked

    def both(logits, *rest):
        losses, pull = jax.vjp(lambda x: ctc_loss(x, *rest), logits)
        return losses, pull(jnp.ones_like(losses))[0]

    together = jax.jit(jax.vmap(both, in_axes=(0, None, None, None) if shared else 0))(*arguments)
    for side_by_side, one_by_one in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(side_by_side, np.stack(one_by_one), rtol=1e-6, atol=1e-6)


def _losses_and_gradient(*case):
    losses, pull = jax.vjp(lambda logits: ctc_loss(logits, *case[1:]), case[0])
    return losses, pull(jnp.ones_like(losses))[0]


def _iterations(lowered):
    """Of each loop of a lowered program: the first number that its condition compares with."""
    return [int(n) for n in re.findall(r"stablehlo\.while.*?dense<(\d+)> : tensor<i32>", lowered.as_text(), re.DOTALL)]


@pytest.mark.parametrize("program", [ctc_loss, _losses_and_gradient], ids=["value", "value and gradient"])
def test_the_program_goes_over_the_frames_or_their_blocks_once(program, platform):
    lengths = (40, 16 * 16, 16 * 32 + 1)
    loops = [_iterations(jax.jit(functools.partial(program)).lower(*_speech(time=time, width=8))) for time in lengths]
    expected = {"cpu": [[time] for time in lengths], "gpu": [[], [], [2]]}
    assert loops == expected[platform]


def test_the_value_alone_goes_over_the_frames_in_one_direction_and_keeps_nothing(platform):
    case = _speech(time=40, width=8)
    # Wrapped anew: jit keeps what it traced for the other platform.
    programs = map(functools.partial, (ctc_loss, _losses_and_gradient))
    value, both = (jax.jit(program).lower(*case).as_text() for program in programs)
    assert ["tensor<2x8x17xf32>" in text for text in (value, both)] == [False, True]
    if platform == "cpu":
        assert [text.count("stablehlo.dynamic_update_slice") for text in (value, both)] == [0, 1]
    else:  # of 3 blocks, none is gone through frame by frame but the last
        assert "tensor<3x2x8x17xf32>" in both
        assert "tensor<3x1x8x17xf32>" not in value


@pytest.mark.parametrize(
    ("time", "transcripts"),
    [
        (1, [[1], []]),
        (15, [[1, 1, 2], [2]]),
        (16, [[1, 2, 2, 3, 3], [3, 1]]),
        (17, [[3, 2, 1, 1, 2, 3], [1]]),
        (33, [[1, 1, 2, 3, 2, 1, 3, 3, 1, 2, 1, 3], [2, 2, 2, 1]]),
        (90, [[1, 2, 2, 3, 1, 1] * 5, [3, 3, 2, 1] * 4]),
    ],
)
def test_any_number_of_blocks_equals_pytorch(monkeypatch, platform, time, transcripts):
    monkeypatch.setattr(ctc, "_BLOCK", 8)
    monkeypatch.setattr(ctc, "_UNROLL", 2)
    case = _case([time, (time + 1) // 2], transcripts, symbols=4, time=time)
    losses, gradient = jax.jit(lambda *case: _losses_and_gradient(*case))(*case)
    for got, want in zip((losses, gradient), _torch(*case), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=5e-6)
    np.testing.assert_allclose(jax.jit(lambda *case: ctc_loss(*case))(*case), losses, rtol=1e-6)


@pytest.mark.parametrize(("batch", "time"), [(2, 0), (0, 5)])
def test_nothing_to_spell_with_or_nobody_to_spell(batch, time):
    case = (
        np.zeros((batch, time, 4), np.float32),
        np.zeros((batch, time)),
        np.ones((batch, 2), np.int32),
        np.zeros((batch, 2)),
    )
    losses, gradient = jax.jit(lambda *case: _losses_and_gradient(*case))(*case)
    np.testing.assert_array_equal(losses, np.full(batch, INFEASIBLE_LOSS, np.float32))
    assert gradient.shape == case[0].shape


def test_rows_on_several_devices_do_not_talk_to_each_other():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    case = _speech(time=40, width=8)
    expected = _ours(*case)
    placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in case]
    step = jax.jit(_losses_and_gradient).lower(*placed).compile()
    assert not [name for name in COLLECTIVES if name in step.as_text()]
    for got, want in zip(step(*placed), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------
# Errors.


@pytest.mark.parametrize(
    ("shapes", "blank_id", "message"),
    [
        (((2, 6), (2, 6), (2, 3), (2, 3)), 0, r"logits \[B, T, V\].*but got \[2, 6\], \[2, 6\]"),
        (((2, 6, 4), (2, 5), (2, 3), (2, 3)), 0, r"\[2, 6, 4\], \[2, 5\]"),
        (((2, 6, 4), (2, 6), (2, 3), (2, 2)), 0, r"\[2, 3\], \[2, 2\]"),
        (((2, 6, 4), (2, 6), (1, 3), (1, 3)), 0, r"\[1, 3\], \[1, 3\]"),
        (((2, 6, 4), (2, 6), (2, 3), (2, 3)), 4, "blank_id 4 is not one of the 4 symbols; use 0 to 3"),
        (((2, 6, 4), (2, 6), (2, 3), (2, 3)), -1, "blank_id -1"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(shapes, blank_id, message):
    logits, frame_padding, labels, label_padding = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        ctc_loss(logits, frame_padding, labels.astype(np.int32), label_padding, blank_id)

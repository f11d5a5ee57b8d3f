"""Losses against PyTorch and closed forms; sums of parts are the sums of the whole."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.config import CtcNormalization
from jax_mtlser.data.batches import Batch
from jax_mtlser.models.multitask import MultitaskOutput
from jax_mtlser.training.losses import TASKS, Sum, cross_entropy, ctc, ctc_feasible, task_losses

torch = pytest.importorskip("torch")

# One shape for all random cases, so that each loss is compiled once.
ROWS, FRAMES, SYMBOLS, LABELS = 6, 12, 5, 6


def _normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------
# Cross-entropy.


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    labels=st.lists(st.integers(-1, 3), min_size=ROWS, max_size=ROWS).filter(lambda labels: max(labels) >= 0),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_cross_entropy_and_its_gradient_equal_pytorch(labels, seed, scale):
    logits = _normal(ROWS, 4, seed=seed, scale=scale)
    loss, gradient = _mean_cross_entropy(logits, jnp.array(labels))
    tensor = torch.from_numpy(logits).requires_grad_()
    expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(labels), ignore_index=-1)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-6)
    np.testing.assert_array_equal(gradient[np.array(labels) < 0], 0)


_mean_cross_entropy = jax.jit(jax.value_and_grad(lambda logits, labels: cross_entropy(logits, labels).mean()))


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_their_number():
    loss = cross_entropy(jnp.zeros((3, 7)), jnp.array([0, 6, -1]))
    assert float(loss.total) == pytest.approx(2 * math.log(7))
    assert float(loss.count) == 2


def test_without_labels_or_without_a_head_nothing_is_counted():
    unlabelled = cross_entropy(jnp.ones((3, 2)), jnp.full(3, -1))
    headless = cross_entropy(None, jnp.array([0, 1, 0]))
    for loss in (unlabelled, headless):
        assert (float(loss.total), float(loss.count), float(loss.mean())) == (0, 0, 0)
    np.testing.assert_array_equal(_mean_cross_entropy(np.ones((3, 2), np.float32), jnp.full(3, -1))[1], 0)


def test_extreme_logits_stay_finite_and_a_row_that_is_not_counted_has_no_gradient():
    logits = np.array([[1e4, -1e4], [1e30, -1e30]], np.float32)
    loss, gradient = _mean_cross_entropy(logits, jnp.array([1, -1]))
    assert float(loss) == pytest.approx(2e4)
    np.testing.assert_array_equal(gradient, [[1, -1], [0, 0]])


# ---------------------------------------------------------------------------------------------------------------
# CTC against PyTorch.


@jax.jit
def _ctc(logits, frame_lengths, labels, label_lengths):
    def total(logits):
        loss, infeasible = ctc(logits, frame_lengths, labels, label_lengths, normalization=CtcNormalization.NONE)
        return loss.total, (loss.count, infeasible)

    (value, (count, infeasible)), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    return value, count, infeasible, gradient


@st.composite
def _transcripts(draw):
    """[N] labels each: repeats are common, lengths reach from empty to more than the frames can spell."""
    rows = draw(st.lists(st.lists(st.integers(1, 3), max_size=LABELS), min_size=ROWS, max_size=ROWS))
    frames = draw(st.lists(st.integers(1, FRAMES), min_size=ROWS, max_size=ROWS))
    return rows, frames


def _packed(rows, width=LABELS):
    labels = np.zeros((len(rows), width), np.int32)
    for row, symbols in enumerate(rows):
        labels[row, : len(symbols)] = symbols
    return labels, np.array([len(symbols) for symbols in rows], np.int32)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(case=_transcripts(), seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 8.0]))
def test_ctc_and_its_gradient_equal_pytorch(case, seed, scale):
    rows, frames = case
    logits, (labels, lengths) = _normal(ROWS, FRAMES, SYMBOLS, seed=seed, scale=scale), _packed(rows)
    value, count, infeasible, gradient = _ctc(logits, np.array(frames), labels, lengths)

    tensor = torch.from_numpy(logits).requires_grad_()
    losses = torch.nn.functional.ctc_loss(
        tensor.log_softmax(-1).transpose(0, 1),
        torch.from_numpy(labels).long(),
        torch.tensor(frames),
        torch.from_numpy(lengths).long(),
        blank=0,
        reduction="none",
    )
    given_rows, possible = lengths > 0, torch.isfinite(losses).numpy()
    counted = given_rows & possible
    assert float(count) == counted.sum()
    assert float(infeasible) == (given_rows & ~possible).sum()
    np.testing.assert_array_equal(np.asarray(gradient)[~counted], 0)
    expected = losses[torch.from_numpy(counted)].sum()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-5)
    if counted.any():
        expected.backward()
        np.testing.assert_allclose(np.asarray(gradient)[counted], tensor.grad.numpy()[counted], atol=2e-5)
    behind = np.arange(FRAMES)[None] >= np.array(frames)[:, None]
    np.testing.assert_array_equal(np.asarray(gradient)[behind], 0)


@pytest.mark.parametrize(
    ("symbols", "frames", "feasible"),
    [
        ([], 0, True),
        ([1], 0, False),
        ([1], 1, True),
        ([1, 2], 2, True),
        ([1, 1], 2, False),  # a blank has to stand between
        ([1, 1], 3, True),
        ([1, 1, 1, 2, 2], 7, False),
        ([1, 1, 1, 2, 2], 8, True),
    ],
)
def test_feasible_means_that_the_frames_can_spell_it(symbols, frames, feasible):
    # Equal entries behind the transcript must not count as repeats.
    labels, lengths = _packed([symbols])
    assert ctc_feasible(jnp.array([frames]), labels, lengths).tolist() == [feasible]


def test_an_infeasible_transcript_is_counted_and_changes_nothing_else():
    logits, frames = _normal(2, 4, 3), np.array([4, 4])
    labels, lengths = _packed([[1, 1, 1], [1, 2]])
    both = _ctc(logits, frames, labels, lengths)
    alone = _ctc(logits[::-1].copy(), frames, labels[::-1].copy(), np.array([2, 0], np.int32))
    assert [float(x) for x in both[1:3]] == [1, 1]
    assert float(both[0]) == pytest.approx(float(alone[0]), rel=1e-6)
    np.testing.assert_array_equal(both[3][0], 0)
    np.testing.assert_allclose(both[3][1], alone[3][0], atol=1e-6)


def test_fill_rows_and_rows_without_a_transcript_have_exactly_no_gradient():
    labels, lengths = _packed([[], [1, 2], []])
    value, count, infeasible, gradient = _ctc(_normal(3, 5, 3), np.array([0, 5, 5]), labels, lengths)
    assert np.isfinite(value)
    assert (float(count), float(infeasible)) == (1, 0)
    np.testing.assert_array_equal(np.asarray(gradient)[[0, 2]], 0)
    assert np.abs(gradient[1]).max() > 0


def test_without_any_transcript_or_head_the_loss_is_zero():
    labels, lengths = _packed([[], []])
    value, count, infeasible, gradient = _ctc(_normal(2, 5, 3), np.array([5, 5]), labels, lengths)
    assert (float(value), float(count), float(infeasible)) == (0, 0, 0)
    np.testing.assert_array_equal(gradient, 0)
    headless, none = ctc(None, jnp.array([5, 5]), labels, lengths, normalization=CtcNormalization.NONE)
    assert (float(headless.mean()), float(none)) == (0, 0)


# ---------------------------------------------------------------------------------------------------------------
# CTC against closed forms.


_compiled_ctc = jax.jit(ctc, static_argnames=("normalization", "blank"))


def _one(logits, symbols, *, blank=0):
    """The loss of one transcript; padded to one shape, so that it is compiled once for each number of symbols."""
    padded = np.zeros((1, 9, logits.shape[1]), np.float32)
    padded[0, : len(logits)] = logits
    labels, lengths = _packed([symbols], 3)
    frames = np.array([len(logits)], np.int32)
    loss, _ = _compiled_ctc(padded, frames, labels, lengths, normalization=CtcNormalization.NONE, blank=blank)
    return float(loss.total)


def test_one_frame_and_one_symbol_cost_the_symbol_s_negative_log_probability():
    logits = _normal(1, 5)
    expected = -float(jax.nn.log_softmax(logits[0])[3])
    assert _one(logits, [3]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("symbols", "repeats"), [([1], 0), ([1, 2], 0), ([1, 1], 1), ([2, 2, 2], 2), ([1, 2, 1], 0)])
@pytest.mark.parametrize("frames", [5, 9])
def test_equal_logits_count_the_alignments(symbols, repeats, frames):
    # Of frames^symbols equally likely paths, C(T + N - R, 2N) collapse to N symbols with R repeats.
    paths = math.comb(frames + len(symbols) - repeats, 2 * len(symbols))
    expected = frames * math.log(4) - math.log(paths)
    assert _one(np.zeros((frames, 4), np.float32), symbols) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("symbols", [[1], [1, 1], [1, 3], [3, 1, 3]])
def test_ctc_is_the_probability_of_all_paths_that_spell_the_transcript(symbols, blank):
    logits = _normal(5, 4, seed=len(symbols))
    log_shares = np.asarray(jax.nn.log_softmax(logits), np.float64)
    total = 0.0
    for path in itertools.product(range(4), repeat=5):
        if [symbol for symbol, _ in itertools.groupby(path) if symbol != blank] == symbols:
            total += math.exp(sum(log_shares[frame, symbol] for frame, symbol in enumerate(path)))
    assert _one(logits, symbols, blank=blank) == pytest.approx(-math.log(total), rel=1e-5)


@pytest.mark.parametrize(
    ("normalization", "divisors"),
    [(CtcNormalization.NONE, (1, 1)), (CtcNormalization.LABELS, (3, 2)), (CtcNormalization.FRAMES, (7, 5))],
)
def test_each_utterance_is_normalised_before_the_mean_over_utterances(normalization, divisors):
    logits, frames = _normal(3, 7, 4), np.array([7, 5, 7])
    labels, lengths = _packed([[1, 2, 3], [1, 1], []], 3)
    loss, _ = _compiled_ctc(logits, frames, labels, lengths, normalization=normalization)
    plain = [_one(logits[row, : frames[row]], labels[row, : lengths[row]].tolist()) for row in range(2)]
    expected = sum(value / divisor for value, divisor in zip(plain, divisors, strict=True)) / 2
    assert float(loss.mean()) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------
# The four losses of a batch.


def _batch_and_output():
    rng = np.random.default_rng(0)
    labels, lengths = _packed([[1, 2], [], [3, 3, 3, 3], [1], [2, 1, 2], [1, 1]])
    frames = np.array([12, 12, 6, 3, 8, 0], np.int32)  # rows 2 and 5 are infeasible
    batch = Batch(
        audio=None,
        offsets=None,
        lengths=jnp.asarray(frames * 320),
        emotion=jnp.array([0, 1, 2, 3, -1, -1]),
        gender=jnp.array([0, 1, -1, 0, 1, -1]),
        speaker=jnp.full(6, -1),
        transcript=jnp.asarray(labels),
        transcript_lengths=jnp.asarray(lengths),
    )
    output = MultitaskOutput(
        emotion=jnp.asarray(rng.standard_normal((6, 4)), jnp.float32),
        gender=jnp.asarray(rng.standard_normal((6, 2)), jnp.float32),
        speaker=jnp.asarray(rng.standard_normal((6, 3)), jnp.float32),
        asr=jnp.asarray(rng.standard_normal((6, FRAMES, SYMBOLS)), jnp.float32),
        frame_lengths=jnp.asarray(frames),
        embedding=jnp.zeros((6, 2)),
        pooled=jnp.zeros((6, 2)),
    )
    return batch, output


@jax.jit
def _losses(output, batch):
    return task_losses(output, batch, normalization=CtcNormalization.LABELS, blank=0)


def test_each_task_counts_its_own_labels():
    batch, output = _batch_and_output()
    losses = _losses(output, batch)
    assert [float(getattr(losses, task).count) for task in TASKS] == [4, 4, 0, 3]
    assert float(losses.infeasible) == 2
    assert float(losses.speaker.mean()) == 0


@pytest.mark.parametrize("cuts", [(3,), (1, 3), (1, 2, 3, 4, 5)])
def test_merged_parts_are_the_whole_batch(cuts):
    batch, output = _batch_and_output()
    whole = _losses(output, batch)
    bounds = (0, *cuts, 6)
    merged = None
    for start, stop in itertools.pairwise(bounds):
        part = _losses(*(jax.tree.map(lambda x, s=slice(start, stop): x[s], tree) for tree in (output, batch)))
        merged = part if merged is None else merged + part
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), merged, whole)


def test_a_sum_of_sums_divides_once():
    parts = [Sum(jnp.float32(6.0), jnp.float32(1.0)), Sum(jnp.float32(2.0), jnp.float32(3.0))]
    merged = parts[0] + parts[1]
    assert float(merged.mean()) == 2.0, "not the mean of 6 and 2/3"


def test_a_missing_head_leaves_the_other_losses_alone():
    batch, output = _batch_and_output()
    whole = _losses(output, batch)
    without = _losses(dataclasses.replace(output, emotion=None, asr=None), batch)
    assert float(without.emotion.count) == float(without.asr.count) == float(without.infeasible) == 0
    np.testing.assert_array_equal(without.gender.total, whole.gender.total)

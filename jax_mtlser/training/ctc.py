"""CTC loss (Graves et al. 2006), forward and backward variables side by side.

Differentiating a forward recursion costs a second loop over the frames, and each iteration of each loop many small
kernels. Here the backward variables run beside the forward ones: the same recursion on the transcript read from its
end. The gradient is then a closed form in the two (equation 16 of the paper), outside any loop.

A transcript of N symbols has S = 2N + 1 states: its symbols, with a blank before, between and behind. The recursion
carries, per state, the logarithm of the probability of everything that leads to it *before* its own frame is
scored, for two reasons: the forward and the backward variable then multiply to a posterior without dividing the
frame's score out again, and a padded frame needs no special case: it scores 0 in the last state and "impossible"
elsewhere, so that the last state gathers the whole probability and keeps it.

On CPUs the recursion goes from frame to frame. An accelerator would wait longer for the launch of each frame's kernels
than for their work. There, frames are put together in blocks: of every block at once, the probability of all ways from
each state to those that its frames can reach; then the variables go from block to block; and at last from frame to frame
inside all blocks at once. That is more work and memory (of a block of K frames 2K + 1 ways per state are kept, about twice
what the variables of its frames take) in fewer kernels. The platform that is traced for decides
(:func:`~jax_mtlser.models.products.formulation`); for a CPU, the blocks take minutes to compile.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_mtlser.models import products

__all__ = ["INFEASIBLE_LOSS", "ctc_loss"]

INFEASIBLE_LOSS = 1e5
"""Loss of a transcript that its frames cannot spell, in nats."""

# Finite, so that differences are no NaN; the two or three of a frame add up to infinity only after 1e8 frames.
_LOG_ZERO = -1e30

# Frames of a block. Compiled for an H200, a step's loss and gradient for 224 frames then have some 60 kernels; a loop over
# the frames that did eight in an iteration had 168 more.
_BLOCK = 16
# Blocks per iteration of their loop; a loop of one iteration is none.
_UNROLL = 16


def ctc_loss(
    logits: Float[Array, "B T V"],
    frame_padding: Bool[Array, "B T"] | Int[Array, "B T"] | Float[Array, "B T"],
    labels: Int[Array, "B N"],
    label_padding: Bool[Array, "B N"] | Int[Array, "B N"] | Float[Array, "B N"],
    blank_id: int = 0,
) -> Float[Array, " B"]:
    """Negative log probability of each transcript, summed over all alignments that spell it.

    Computed in float32 in the log domain, whatever the dtype of the logits. What stands in padding, NaN included,
    changes neither value nor gradient. Vectorises over further axes with ``jax.vmap``; reverse-mode derivatives of
    first order only.

    The value keeps its relative precision down to nearly 0: each frame's scores are relative to the best symbol of
    the transcript in that frame, and a logarithm of a sum close to 1 is computed from what the sum has beyond 1. What
    rounding still leaves below 0 is cut off, so no loss is negative (``optax.ctc_loss`` can be: optax#1771); the
    gradient comes from the posteriors and does not see the cut.

    Args:
        logits: unnormalised log probabilities of the symbols.
        frame_padding: nonzero or True behind the last frame of each row; rows are padded on the right only.
        labels: symbols in [0, V), never the blank; one outside makes its row NaN.
        label_padding: nonzero or True behind each transcript, on the right only; a transcript may be empty.
        blank_id: the symbol that stands for no symbol.

    Returns:
        Nats per utterance, float32, 0 or greater. A transcript that its frames cannot spell (they are fewer than its
        symbols and the blanks between equal neighbours, or symbols of it have logits of -inf) has the value
        :data:`INFEASIBLE_LOSS` and a gradient of exactly 0: mask such rows (see ``ctc_feasible`` in ``losses``).

    Raises:
        ValueError: shapes that do not fit together, or ``blank_id`` outside [0, V).

    Source: Graves, Fernández, Gomez and Schmidhuber, "Connectionist temporal classification: labelling unsegmented
    sequence data with recurrent neural networks", ICML 2006, section 4.
    """
    _check(logits, frame_padding, labels, label_padding, blank_id)
    frames = jnp.sum(~jnp.asarray(frame_padding).astype(bool), axis=1)
    lengths = jnp.sum(~jnp.asarray(label_padding).astype(bool), axis=1)
    return _loss(
        jnp.asarray(logits).astype(jnp.float32), frames, jnp.asarray(labels).astype(jnp.int32), lengths, blank_id
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(
    logits: Float[Array, "B T V"],
    frames: Int[Array, " B"],
    labels: Int[Array, "B N"],
    lengths: Int[Array, " B"],
    blank_id: int,
) -> Float[Array, " B"]:
    trellis = _trellis(logits, frames, labels, lengths, blank_id)
    final = _final(trellis.symbols[None], trellis.start[None], trellis.scores[:, None])
    return _value(trellis, final[0])[0]


def _loss_and_gradient(
    logits: Float[Array, "B T V"],
    frames: Int[Array, " B"],
    labels: Int[Array, "B N"],
    lengths: Int[Array, " B"],
    blank_id: int,
) -> tuple[Float[Array, " B"], Float[Array, "B T V"]]:
    trellis = _trellis(logits, frames, labels, lengths, blank_id)
    # The direction is an axis of its own: joined with the batch, a batch on several devices would have to move.
    final, before = _walk(
        jnp.stack([trellis.symbols, jnp.flip(trellis.symbols, 1)]),
        jnp.stack([trellis.start, jnp.flip(trellis.end, 1)]),
        jnp.stack([trellis.scores, jnp.flip(trellis.scores, (0, 2))], axis=1),
    )
    loss, infeasible = _value(trellis, final[0])

    # Normalised in each frame, not by the likelihood: what rounding has added up to in the two variables is common
    # to all states of a frame and cancels.
    posteriors = jax.nn.softmax(before[:, 0] + trellis.scores + jnp.flip(before[:, 1], (0, 2)), axis=-1)  # [T, B, S]
    symbols = jax.nn.one_hot(trellis.symbols[:, 1::2], logits.shape[2], dtype=jnp.float32)
    # Full precision: GPUs would round the operands of a float32 product to 10 bits.
    occupancy = jnp.einsum("tbn,bnv->tbv", posteriors[..., 1::2], symbols, precision=lax.Precision.HIGHEST)
    occupancy = occupancy.at[..., blank_id].add(jnp.sum(posteriors[..., ::2], axis=-1))
    counted = trellis.inside & ~infeasible[None]
    gradient = jnp.where(counted[..., None], trellis.shares - occupancy, 0.0)
    return loss, gradient.transpose(1, 0, 2)


def _scale_gradient(
    blank_id: int, gradient: Float[Array, "B T V"], cotangent: Float[Array, " B"]
) -> tuple[Float[Array, "B T V"], None, None, None]:
    return gradient * cotangent[:, None, None], None, None, None


_loss.defvjp(_loss_and_gradient, _scale_gradient)


class _Trellis(NamedTuple):
    """The states of each transcript and their score in each frame; time first, as the loop goes over it."""

    symbols: Array  # [B, S] int: blank, first symbol, blank, ...; blanks behind the last state
    last: Array  # [B] int: the last state, the blank behind the transcript
    scores: Array  # [T, B, S] log share of the state's symbol, relative to the transcript's best in that frame
    shortfall: Array  # [B] nats: what all these best shares lack to 1 together
    shares: Array  # [T, B, V] softmax of the logits
    inside: Array  # [T, B] bool: not padded
    start: Array  # [B, S]: 0 in the states that an alignment may start in, impossible elsewhere
    end: Array  # [B, S]: the same for the states that it may end in


def _trellis(
    logits: Float[Array, "B T V"],
    frames: Int[Array, " B"],
    labels: Int[Array, "B N"],
    lengths: Int[Array, " B"],
    blank_id: int,
) -> _Trellis:
    states = jnp.arange(2 * labels.shape[1] + 1)[None]
    last = 2 * lengths
    labels = jnp.where(labels < 0, logits.shape[2], labels)  # to JAX, -1 would be the last symbol
    given = jnp.where(jnp.arange(labels.shape[1])[None] < lengths[:, None], labels, blank_id)
    symbols = jnp.full((labels.shape[0], states.shape[1]), blank_id, labels.dtype).at[:, 1::2].set(given)
    inside = jnp.arange(logits.shape[1])[:, None] < frames[None]
    logits = logits.transpose(1, 0, 2)

    top = jnp.max(logits, axis=-1, keepdims=True)
    odds = jnp.exp(logits - top)
    # All odds but the top's own 1, summed without it: precise where one symbol has nearly the whole share.
    is_one = odds == 1.0
    others = jnp.sum(jnp.where(is_one, 0.0, odds), axis=-1) + (jnp.sum(is_one, axis=-1) - 1)

    scores = jnp.take_along_axis(logits, symbols[None], axis=2)
    # What lies behind the transcript repeats its blank, and cannot change the maximum.
    best = jnp.maximum(jnp.max(scores, axis=-1), _LOG_ZERO)
    scores = jnp.maximum(scores - best[..., None], _LOG_ZERO)
    scores = jnp.where((states <= last[:, None])[None], scores, _LOG_ZERO)
    resting = jnp.where(states == last[:, None], 0.0, _LOG_ZERO)
    return _Trellis(
        symbols=symbols,
        last=last,
        scores=jnp.where(inside[..., None], scores, resting[None]),
        shortfall=jnp.sum(jnp.where(inside, top[..., 0] - best + jnp.log1p(others), 0.0), axis=0),
        shares=odds / (1.0 + others[..., None]),
        inside=inside,
        start=jnp.broadcast_to(jnp.where(states < 2, 0.0, _LOG_ZERO), symbols.shape),
        end=jnp.where((states == last[:, None]) | (states == last[:, None] - 1), 0.0, _LOG_ZERO),
    )


def _walk(
    symbols: Int[Array, "R B S"],
    start: Float[Array, "R B S"],
    scores: Float[Array, "T R B S"],
) -> tuple[Float[Array, "R B S"], Float[Array, "T R B S"]]:
    """The recursion of the paper's equations 6 and 10, R directions side by side, each from its first frame.

    Returns:
        The variables behind the last frame, and those before each frame.
    """
    detour = _detour(symbols)
    if _by_frame(scores):
        return lax.scan(lambda before, frame: (_through_frame(before, frame, detour), before), start, scores)
    within = _in_blocks(scores)
    last, here = _walk_blocks(start, within, detour)
    here = jnp.concatenate([here, last[None]])
    each = []  # variables before each frame of all blocks
    for frame in within:
        each.append(here)
        here = _through_frame(here, frame, detour[None])
    before = jnp.stack(each, axis=1).reshape(-1, *start.shape)[: scores.shape[0]]
    return _through_frame(before[-1], scores[-1], detour), before


def _final(
    symbols: Int[Array, "R B S"], start: Float[Array, "R B S"], scores: Float[Array, "T R B S"]
) -> Float[Array, "R B S"]:
    """The variables behind the last frame alone."""
    detour = _detour(symbols)
    if _by_frame(scores):
        return lax.scan(lambda before, frame: (_through_frame(before, frame, detour), None), start, scores)[0]
    here, _ = _walk_blocks(start, _in_blocks(scores), detour)
    for frame in scores[(scores.shape[0] - 1) // _BLOCK * _BLOCK :]:
        here = _through_frame(here, frame, detour)
    return here


def _by_frame(scores: Float[Array, "T R B S"]) -> bool:
    return products.on_cpu() or scores.size == 0


def _in_blocks(scores: Float[Array, "T R B S"]) -> Float[Array, "K N R B S"]:
    """The N blocks of K frames side by side; behind the last frame anything."""
    blocks = math.ceil(scores.shape[0] / _BLOCK)
    padded = jnp.pad(scores, [(0, blocks * _BLOCK - scores.shape[0])] + [(0, 0)] * 3)
    return jnp.moveaxis(padded.reshape(blocks, _BLOCK, *scores.shape[1:]), 1, 0)


def _walk_blocks(
    start: Float[Array, "R B S"], scores: Float[Array, "K N R B S"], detour: Float[Array, "R B S"]
) -> tuple[Float[Array, "R B S"], Float[Array, "N-1 R B S"]]:
    """Variables before the last block, and those before the others."""
    return lax.scan(_through_block, start, _paths(scores[:, :-1], detour), unroll=_UNROLL)


def _detour(symbols: Int[Array, "R B S"]) -> Float[Array, "R B S"]:
    """0 where a state may be reached past the blank before it: between different symbols.

    What stands two before the first symbol does not matter: nothing comes from there.
    """
    return jnp.where(symbols == _pad_front(symbols, 0)[..., :-2], _LOG_ZERO, 0.0)


def _through_frame(
    before: Float[Array, "*axes S"], scores: Float[Array, "*axes S"], detour: Float[Array, "*axes S"]
) -> Float[Array, "*axes S"]:
    """Variables behind a frame."""
    return _log_add(*_reached(before + scores, detour))


def _paths(scores: Float[Array, "K N R B S"], detour: Float[Array, "R B S"]) -> Float[Array, "N 2*K+1 R B S"]:
    """Of each block of K frames, the logarithm of all ways to each state from the one that lies ``d`` states before it."""
    paths = jnp.zeros_like(scores[0])[:, None]
    for frame_scores in scores:
        reached = _reached(paths + frame_scores[:, None], detour[None, None])
        paths = _log_add(*(_pad_distances(x, came, 2 - came) for came, x in enumerate(reached)))
    return paths


def _reached(here: Float[Array, "*axes S"], detour: Float[Array, "*axes S"]) -> tuple[Array, Array, Array]:
    """What comes to each state: from itself, from the one before, and past a blank."""
    padded = _pad_front(here, _LOG_ZERO)  # once for both shifts: with two, XLA's CPU code is 7 times slower
    return here, padded[..., 1:-1], padded[..., :-2] + detour


def _through_block(
    before: Float[Array, "R B S"], paths: Float[Array, "D R B S"]
) -> tuple[Float[Array, "R B S"], Float[Array, "R B S"]]:
    """Variables behind a block, and those before it."""
    farthest, states = paths.shape[0] - 1, before.shape[-1]
    padded = jnp.pad(before, [(0, 0), (0, 0), (farthest, 0)], constant_values=_LOG_ZERO)
    ways = [padded[..., farthest - d : farthest - d + states] + paths[d] for d in range(farthest + 1)]
    while len(ways) > 1:
        pairs = zip(ways[::2], ways[1::2], strict=False)
        ways = [_log_add_two(*pair) for pair in pairs] + ways[len(ways) - len(ways) % 2 :]
    return ways[0], before


def _pad_distances(x: Float[Array, "N D R B S"], front: int, behind: int) -> Float[Array, "N D+2 R B S"]:
    return jnp.pad(x, [(0, 0), (front, behind), (0, 0), (0, 0), (0, 0)], constant_values=_LOG_ZERO)


def _pad_front(x: Array, fill: float) -> Array:
    """[..., S] to [..., 2 + S]."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(2, 0)], constant_values=fill)


def _log_add(a: Array, b: Array, c: Array) -> Array:
    """log(exp(a) + exp(b) + exp(c)), precise also where it hardly exceeds the largest."""
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    most = jnp.maximum(high, c)
    middle = jnp.maximum(low, jnp.minimum(high, c))
    least = jnp.minimum(low, c)
    return most + jnp.log1p(jnp.exp(middle - most) + jnp.exp(least - most))


def _log_add_two(a: Array, b: Array) -> Array:
    most = jnp.maximum(a, b)
    return most + jnp.log1p(jnp.exp(jnp.minimum(a, b) - most))


def _value(trellis: _Trellis, final: Float[Array, "B S"]) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """The loss, and whether the transcript cannot be spelled."""
    reached = jnp.take_along_axis(final, trellis.last[:, None], axis=1)[:, 0]
    infeasible = reached < _LOG_ZERO / 2  # False for NaN, which must show
    return jnp.where(infeasible, INFEASIBLE_LOSS, jnp.maximum(trellis.shortfall - reached, 0.0)), infeasible


def _check(logits: Array, frame_padding: Array, labels: Array, label_padding: Array, blank_id: int) -> None:
    shapes = [jnp.shape(x) for x in (logits, frame_padding, labels, label_padding)]
    fit = len(shapes[0]) == 3 and len(shapes[2]) == 2 and shapes[0][0] == shapes[2][0]
    if not fit or shapes[1] != shapes[0][:2] or shapes[3] != shapes[2]:
        raise ValueError(
            "CTC takes logits [B, T, V], frame_padding [B, T], labels [B, N] and label_padding [B, N], "
            f"but got {', '.join(str(list(shape)) for shape in shapes)}; use jax.vmap for further axes"
        )
    if not 0 <= blank_id < shapes[0][2]:
        raise ValueError(f"blank_id {blank_id} is not one of the {shapes[0][2]} symbols; use 0 to {shapes[0][2] - 1}")

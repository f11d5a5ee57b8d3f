"""SpecAugment, LayerDrop and dropout: what they may touch, how often, and that each step draws anew."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.architecture import Wav2Vec2Architecture
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel
from jax_mtlser.models.spec_augment import span_mask
from jax_mtlser.models.wav2vec2_encoder import Wav2Vec2Encoder

# Code generation dominates the time of these tests, and results do not rest on LLVM's optimisations.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

ARCH = Wav2Vec2Architecture(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    conv_dim=(8,),
    conv_kernel=(10,),
    conv_stride=(10,),
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)


def _masks(lengths, size, draws, *, probability, span, min_spans):
    """[draws, B, N]."""

    def draw(key):
        return span_mask(key, jnp.asarray(lengths), size, probability=probability, span=span, min_spans=min_spans)

    return np.asarray(_jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), draws)))


def _runs(row):
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return edges[1::2] - edges[::2]


def test_spans_never_reach_beyond_the_utterance():
    lengths = np.array([100, 57, 23, 10])
    masks = _masks(lengths, 100, 200, probability=0.5, span=10, min_spans=2)
    assert not masks[:, np.arange(100)[None] >= lengths[:, None]].any()
    for row, length in enumerate(lengths):
        # The last possible position is reached, so the bound is not merely a timid one.
        assert masks[:, row, length - 1].any()
        assert masks[:, row, 0].any()
        assert min(min(_runs(mask)) for mask in masks[:, row]) >= 10, "a span was cut short"


@pytest.mark.parametrize("min_spans", [0, 2])
def test_a_clip_shorter_than_a_span_is_left_alone(min_spans):
    masks = _masks([9, 4, 1, 0], 40, 50, probability=0.9, span=10, min_spans=min_spans)
    assert not masks.any()


def test_an_axis_shorter_than_a_span_is_left_alone():
    masks = _masks([7, 3], 7, 5, probability=0.9, span=10, min_spans=2)
    assert masks.shape == (5, 2, 7)
    assert not masks.any()


def test_every_clip_with_room_gets_the_least_number_of_spans():
    # Spans of one position cannot overlap, so their number can be read off the mask.
    masks = _masks([50, 3, 2, 1], 50, 50, probability=0.0, span=1, min_spans=3)
    np.testing.assert_array_equal(masks.sum(axis=-1), np.broadcast_to([3, 3, 2, 1], (50, 4)))
    long_spans = _masks([50, 19, 10], 50, 50, probability=0.0, span=10, min_spans=2)
    assert (long_spans[:, 0].sum(axis=-1) > 10).all(), "two different starts cover more than one span"
    np.testing.assert_array_equal(long_spans[:, 1:].sum(axis=-1), 10)


def test_starts_are_distinct():
    masks = _masks([40, 40], 40, 100, probability=0.5, span=1, min_spans=0)
    np.testing.assert_array_equal(masks.sum(axis=-1), 20)


def test_starts_are_uniform():
    # 21 possible starts of one span; each position near the edge belongs to few of them.
    masks = _masks([30], 30, 6000, probability=0.0, span=10, min_spans=1)[:, 0]
    starts = np.bincount(masks.argmax(axis=-1), minlength=21) / 6000
    assert len(starts) == 21
    np.testing.assert_allclose(starts, 1 / 21, atol=5 * np.sqrt(1 / 21 / 6000))


def test_the_fraction_of_a_span_is_rounded_at_random():
    masks = _masks([25], 25, 4000, probability=0.1, span=1, min_spans=0)
    counts = masks.sum(axis=-1)
    assert set(np.unique(counts)) == {2, 3}
    assert counts.mean() == pytest.approx(2.5, abs=5 * 0.5 / np.sqrt(4000))


@pytest.mark.parametrize(
    ("probability", "span", "min_spans"), [(0.05, 10, 2), (0.065, 10, 0), (0.3, 5, 0), (0.65, 10, 1)]
)
def test_the_masked_share_is_the_reference_implementation_s(probability, span, min_spans):
    pytest.importorskip("torch")
    import torch
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

    size, draws = 150, 1000
    lengths = np.array([150, 120, 61, 30])
    ours = _masks(lengths, size, draws, probability=probability, span=span, min_spans=min_spans)
    present = torch.from_numpy(np.arange(size)[None] < lengths[:, None])
    state = np.random.get_state()  # noqa: NPY002  (the reference draws from NumPy's global stream)
    np.random.seed(0)  # noqa: NPY002
    try:
        theirs = np.stack(
            [_compute_mask_indices((4, size), probability, span, present, min_spans) for _ in range(draws)]
        )
    finally:
        np.random.set_state(state)  # noqa: NPY002
    for row, length in enumerate(lengths):
        # Own positions only: the reference may mark the last padding position of a row without spans.
        shares = [masks[:, row, :length].mean(axis=-1) for masks in (ours, theirs)]
        spread = np.sqrt(sum(share.var() for share in shares) / draws)
        expected = shares[1].mean()
        assert shares[0].mean() == pytest.approx(expected, abs=5 * spread + 0.01 * expected), (row, length)


def test_the_same_key_gives_the_same_mask_alone_and_beside_others():
    def draw(key):
        return span_mask(key, jnp.array([30, 12]), 30, probability=0.4, span=3, min_spans=1)

    keys = jax.random.split(jax.random.key(3), 4)
    together = np.asarray(_jit(jax.vmap(draw))(keys))
    alone = _jit(draw)
    for mask, key in zip(together, keys, strict=True):
        np.testing.assert_array_equal(mask, alone(key))
    assert len({mask.tobytes() for mask in together}) == 4


# ---------------------------------------------------------------------------------------------------------------
# Inside the encoder.

_OFF = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}


def _parameters(module, audio, lengths):
    """Some parameters; initialising the module takes longer than everything that is tested."""
    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), audio, lengths)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


def _encoder(**values):
    encoder = Wav2Vec2Encoder(dataclasses.replace(ARCH, **(_OFF | values)))
    audio = np.random.default_rng(0).standard_normal((2, 400)).astype(np.float32)
    lengths = jnp.array([400, 400])
    parameters = _parameters(encoder, audio, lengths)
    return encoder, parameters, audio, lengths


def test_each_layer_is_dropped_at_its_rate_and_independently():
    rate, draws = 0.3, 1000
    encoder, parameters, audio, lengths = _encoder(num_hidden_layers=2, layerdrop=rate)

    def dropped(key):
        states = encoder.apply(
            parameters, audio, lengths, train=True, output_hidden_states=True, rngs={"layerdrop": key}
        ).hidden_states
        return jnp.array([jnp.array_equal(x, y) for x, y in itertools.pairwise(states)])

    drops = np.asarray(_jit(jax.vmap(dropped))(jax.random.split(jax.random.key(1), draws)))
    spread = np.sqrt(rate * (1 - rate) / draws)
    np.testing.assert_allclose(drops.mean(axis=0), rate, atol=5 * spread)
    together = drops[:, 0] & drops[:, 1]
    assert together.mean() == pytest.approx(rate**2, abs=5 * np.sqrt(rate**2 / draws))


def test_evaluation_neither_drops_nor_masks_nor_draws():
    encoder, parameters, audio, lengths = _encoder(
        layerdrop=0.9, apply_spec_augment=True, hidden_dropout=0.5, attention_dropout=0.5, activation_dropout=0.5
    )
    plain, *_ = _encoder()
    # No random streams are given: drawing from one would raise.
    ours, expected = (_jit(functools.partial(one.apply, train=False)) for one in (encoder, plain))
    np.testing.assert_array_equal(ours(parameters, audio, lengths).frames, expected(parameters, audio, lengths).frames)


def test_masked_frames_are_replaced_by_the_learned_vector():
    encoder, parameters, audio, lengths = _encoder(apply_spec_augment=True, mask_time_prob=0.3, mask_time_length=2)
    key = jax.random.key(5)

    def loss(parameters, train):
        frames = encoder.apply(parameters, audio, lengths, train=train, rngs={"spec_augment": key}).frames
        return jnp.sum(frames**3)

    gradient = _jit(jax.grad(loss), static_argnums=1)
    assert np.abs(gradient(parameters, True)["params"]["masked_frame"]).max() > 0
    np.testing.assert_array_equal(gradient(parameters, False)["params"]["masked_frame"], 0)


def test_channels_are_masked_at_random():
    values = {"apply_spec_augment": True, "mask_time_prob": 0.0, "mask_feature_prob": 0.5, "mask_feature_length": 4}
    encoder, parameters, audio, lengths = _encoder(**values)
    apply = _jit(functools.partial(encoder.apply, train=True))
    first, second = (apply(parameters, audio, lengths, rngs={"spec_augment": jax.random.key(k)}).frames for k in (0, 1))
    assert np.isfinite(first).all()
    assert not np.allclose(first, second)


def test_random_streams_differ_between_steps_and_repeat_within_one():
    model = MultitaskModel(dataclasses.replace(ARCH, mask_time_length=3), HeadSizes(emotion=4, asr=5))
    audio = np.random.default_rng(0).standard_normal((2, 400)).astype(np.float32)
    lengths = jnp.array([400, 250])
    parameters = _parameters(model, audio, lengths)

    @_jit
    def logits(steps):
        """``steps``: the step that each of the three streams believes it is at."""
        rngs = {
            name: jax.random.fold_in(jax.random.key(number), steps[number])
            for number, name in enumerate(("dropout", "spec_augment", "layerdrop"))
        }
        return model.apply(parameters, audio, lengths, train=True, rngs=rngs).asr

    def different(steps):
        return len({np.asarray(logits(jnp.array(three))).tobytes() for three in steps})

    assert different([(3, 3, 3)] * 2) == 1
    assert different((step, step, step) for step in range(6)) == 6
    for stream in range(3):
        # Each stream alone changes the output over a few steps (LayerDrop need not do so in every one).
        assert different(tuple(step * (stream == other) for other in range(3)) for step in range(20)) > 1, stream

"""Dropout's own random numbers: the share, independence of places and keys, and the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_mtlser.models.dropout import dropout

SHAPE = (64, 96, 128)


def dropped(key: jax.Array, rate: float, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.asarray(dropout(jnp.ones(shape), rate, key)) == 0


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_entries_is_the_rate(rate):
    zeros = dropped(jax.random.key(0), rate)
    assert stats.binomtest(int(zeros.sum()), zeros.size, rate).pvalue > 1e-3


def test_what_is_kept_is_scaled_up_in_its_own_type():
    x = jax.random.normal(jax.random.key(1), SHAPE).astype(jnp.bfloat16)
    y = dropout(x, 0.25, jax.random.key(0))
    kept = np.asarray(y) != 0
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(y)[kept], np.asarray((x.astype(jnp.float32) / 0.75).astype(jnp.bfloat16))[kept]
    )


def test_nothing_is_dropped_without_a_key_or_a_rate():
    x = jnp.ones(SHAPE)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("distance", [1, 2, 32])
def test_neighbours_are_dropped_independently(axis, distance):
    zeros = dropped(jax.random.key(2), 0.3)
    count = zeros.shape[axis] - distance
    left, right = np.take(zeros, range(count), axis), np.take(zeros, range(distance, distance + count), axis)
    correlation = np.corrcoef(left.ravel(), right.ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(left.size)


def test_rows_of_every_axis_have_the_spread_of_independent_draws():
    zeros, rate = dropped(jax.random.key(3), 0.3), 0.3
    for axis in range(3):
        sums = zeros.sum(axis=tuple(other for other in range(3) if other != axis))
        size = zeros.size / len(sums)
        chi_squared = np.sum((sums - size * rate) ** 2) / (size * rate * (1 - rate))
        assert 1e-3 < stats.chi2.cdf(chi_squared, len(sums)) < 1 - 1e-3


def test_pairs_of_keys_share_no_more_than_chance():
    keys = [*jax.random.split(jax.random.key(4), 6), *map(jax.random.key, range(6))]
    masks = np.stack([dropped(key, 0.3).ravel() for key in keys])
    correlations = np.corrcoef(masks)[np.triu_indices(len(keys), 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(masks.shape[1])


def test_keys_that_differ_in_one_bit_give_unrelated_numbers():
    data = jax.random.key_data(jax.random.key(5))
    base = dropped(jax.random.key(5), 0.3).ravel()
    for word in range(2):
        for bit in (0, 1, 15, 31):
            other = jax.random.wrap_key_data(data.at[word].set(data[word] ^ jnp.uint32(1 << bit)))
            correlation = np.corrcoef(base, dropped(other, 0.3).ravel())[0, 1]
            assert abs(correlation) < 5 / np.sqrt(base.size), (word, bit)


def test_the_gradient_has_the_same_mask():
    x, key = jax.random.normal(jax.random.key(6), SHAPE), jax.random.key(0)
    gradient = jax.grad(lambda x: jnp.sum(dropout(x, 0.2, key)))(x)
    np.testing.assert_array_equal(np.asarray(gradient), np.asarray(dropout(jnp.ones(SHAPE), 0.2, key)))


def test_members_draw_what_they_would_draw_alone():
    keys = jax.random.split(jax.random.key(7), 3)
    together = jax.vmap(lambda key: dropout(jnp.ones(SHAPE), 0.2, key))(keys)
    for index, key in enumerate(keys):
        np.testing.assert_array_equal(np.asarray(together[index]), np.asarray(dropout(jnp.ones(SHAPE), 0.2, key)))


def test_a_sharded_array_draws_what_it_would_draw_on_one_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    key = jax.random.key(8)
    sharded = jax.jit(lambda x: dropout(x, 0.2, key), in_shardings=rows, out_shardings=rows)(jnp.ones(SHAPE))
    np.testing.assert_array_equal(np.asarray(sharded), np.asarray(dropout(jnp.ones(SHAPE), 0.2, key)))

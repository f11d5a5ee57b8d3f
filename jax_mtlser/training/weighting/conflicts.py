"""Rules that combine the tasks' gradients where they conflict, from their Gram matrix alone.

Each returns how much of every task's gradient goes into the combination; tasks outside ``where`` get 0 and change
nothing. Gradients that agree give about the plain sum, so that the scale is the same for all methods.
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

__all__ = ["cagrad", "nash_mtl", "pcgrad"]

Mask = Bool[Array, " K"]
Vector = Float[Array, " K"]
Gram = Float[Array, "K K"]

# Relative to the largest squared norm: gradients that cancel out or are zero must not divide by zero.
_RIDGE = 1e-6
_TINY = 1e-30
_SMALLEST_SHARE = 1e-10  # squared norms below are taken for this: a solved task's weight must not grow without end
_NEWTON_STEPS = 20


def pcgrad(gram: Gram, key: Key[Array, ""], where: Mask) -> Vector:
    """PCGrad (Yu et al. 2020): each gradient loses what points against another; the results are summed.

    Each task meets the others in a random order of its own, as in the paper's algorithm 1.
    """
    tasks = len(gram)
    gram = jnp.where(where[:, None] & where[None], gram, 0.0)
    squares = jnp.diagonal(gram)
    order = jnp.argsort(jax.random.uniform(key, (tasks, tasks)), axis=1)
    projected = jnp.eye(tasks)  # row i: the combination that gradient i has become
    for turn in range(tasks):
        other = order[:, turn]
        product = jnp.sum(projected * gram[other], axis=1)
        conflict = jnp.where(other == jnp.arange(tasks), 0.0, jnp.minimum(product, 0.0))
        share = conflict / jnp.maximum(squares[other], _TINY)
        projected = projected - share[:, None] * jax.nn.one_hot(other, tasks)
    return jnp.where(where, jnp.sum(jnp.where(where[:, None], projected, 0.0), axis=0), 0.0)


def cagrad(gram: Gram, c: Float[Array, ""], where: Mask) -> Vector:
    """CAGrad (Liu et al. 2021): the direction near the mean gradient g0 that helps the worst-off task most.

    The direction is g0 + c |g0| g_w / |g_w| with g_w = sum w_i g_i, where w on the simplex minimises
    g_w . g0 + c |g0| |g_w|. With so few tasks the minimum is found exactly: on each face of the simplex the
    stationary point has a closed form, and the best of the admissible ones is it.

    Returned times K / (1 + c), so that c = 0, and gradients that agree, give the plain sum.
    """
    tasks = len(gram)
    gram = _relative(gram, where) + _RIDGE * jnp.eye(tasks)
    count = jnp.maximum(jnp.sum(where), 1)
    mean = where / count
    toward_mean = gram @ mean
    radius = c * jnp.sqrt(mean @ toward_mean)

    faces = jnp.array(list(itertools.product((False, True), repeat=tasks))[1:])

    def stationary_point(face: Mask) -> tuple[Vector, Array, Array]:
        # products + radius G w / |g_w| = level on all tasks of the face, with sum w = 1 and |g_w|^2 = w G w.
        block = jnp.where(face[:, None] & face[None], gram, jnp.eye(tasks))
        ones, products = face.astype(jnp.float32), jnp.where(face, toward_mean, 0.0)
        from_ones, from_products = _solve(block, ones), _solve(block, products)
        squared = (ones @ from_products) ** 2 - ones @ from_ones * (products @ from_products - radius**2)
        root = jnp.sqrt(jnp.maximum(squared, 0.0))
        level = (ones @ from_products + root) / (ones @ from_ones)
        single = jnp.sum(face) == 1  # a corner is one, whatever its slope
        w = jnp.where(single, ones, (level * from_ones - from_products) / jnp.maximum(root, _TINY))
        norm = jnp.sqrt(w @ gram @ w)
        admissible = jnp.all(w >= 0) & (single | (squared > 0)) & jnp.all(where | ~face)
        return w, norm, jnp.where(admissible, w @ toward_mean + radius * norm, jnp.inf)

    points, norms, values = jax.vmap(stationary_point)(faces)
    best = jnp.argmin(values)
    w, norm = points[best], norms[best]
    return jnp.where(where, (1.0 + count * radius * w / jnp.maximum(norm, _TINY)) / (1.0 + c), 0.0)


def nash_mtl(gram: Gram, where: Mask) -> Vector:
    """Nash-MTL (Navon et al. 2022): the bargaining solution, G a = 1 / a with a > 0.

    It is the minimum of a G a / 2 - sum log a_i, which is convex; damped Newton steps cannot leave a > 0 and
    converge from anywhere. The Gram matrix is divided by its Frobenius norm, as in the authors' code: without,
    the combination would have the norm sqrt(K) in every step, however small the gradients are.
    """
    tasks = len(gram)
    gram = _relative(gram, where)
    norm = jnp.maximum(jnp.sqrt(jnp.sum(gram**2)), _TINY)
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), _SMALLEST_SHARE))
    # In units of each gradient's norm, so that the solution does not depend on sizes and 1 is a fair start. Tasks
    # that are left out have a row of the identity, whose solution is 1.
    cosines = jnp.where(jnp.eye(tasks, dtype=bool), 1.0 + _RIDGE, gram / (size[:, None] * size[None]))

    def newton(_: int, a: Vector) -> Vector:
        slope = cosines @ a - 1.0 / a
        step = _solve(cosines + jnp.diag(1.0 / a**2), slope)
        decrement = jnp.sqrt(jnp.maximum(slope @ step, 0.0))
        return a - step * jnp.where(decrement > 0.25, 1.0 / (1.0 + decrement), 1.0)

    a = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, jnp.ones(tasks))
    return jnp.where(where, a / size * jnp.sqrt(norm), 0.0)


def _relative(gram: Gram, where: Mask) -> Gram:
    """0 outside ``where``, and divided by the largest squared norm inside."""
    gram = jnp.where(where[:, None] & where[None], gram, 0.0)
    return gram / jnp.maximum(jnp.max(jnp.diagonal(gram)), _TINY)


def _solve(matrix: Gram, right: Vector) -> Vector:
    """Solution of a positive definite system by elimination, which needs no pivots then.

    Unrolled: a few elementwise operations on K numbers, where a linear algebra library is a chain of calls.
    """
    system = jnp.concatenate([matrix, right[:, None]], axis=1)
    for row in range(len(matrix)):
        pivot = system[row] / system[row, row]
        system = (system - system[:, row, None] * pivot[None]).at[row].set(pivot)
    return system[:, -1]

"""Boxes around keypoints."""

import jax
import jax.numpy as jnp
import numpy as np

from handtailor_jax.geometry.boxes import hand_size, largest


def test_largest_and_its_gradient(rng):
    """The gradient goes to the largest value alone, and to the first of equal ones."""
    values = jnp.asarray(rng.normal(size=(2, 21, 2)), jnp.float32)
    np.testing.assert_array_equal(largest(values), values.max(axis=1))
    weights = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    gradient = jax.jit(jax.grad(lambda values: jnp.sum(weights * largest(values))))(values)
    is_largest = values == values.max(axis=1, keepdims=True)
    np.testing.assert_array_equal(gradient, jnp.where(is_largest, weights[:, None], 0.0))
    np.testing.assert_array_equal(jax.grad(lambda x: largest(x)[0])(jnp.ones((3, 1))), [[1.0], [0.0], [0.0]])


def test_hand_size_is_the_longer_side(rng):
    keypoints = rng.normal(size=(5, 21, 2)) * np.asarray([1.0, 9.0])
    np.testing.assert_array_equal(hand_size(keypoints), np.ptp(keypoints[..., 1], axis=1))

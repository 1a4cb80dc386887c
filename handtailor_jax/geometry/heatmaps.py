"""Heatmaps and keypoints: soft-argmax (Eq. 4), its inverse, and how far a heatmap is to be trusted.

A heatmap is one of K maps (..., rows, columns, K). An index (column, row) counts cells from the centre of the top left
one, so it need not be whole.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def softmax_heatmaps(logits: Float[Array, "*batch rows columns k"]) -> Float[Array, "*batch rows columns k"]:
    """Maps of sum 1 from logits. A constant background, however high, does not move what they decode to."""
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=(-3, -2), keepdims=True)))
    return weights / jnp.sum(weights, axis=(-3, -2), keepdims=True)


def sigmoid_heatmaps(logits: Float[Array, "*batch rows columns k"]) -> Float[Array, "*batch rows columns k"]:
    """Maps of sum 1 as the released network normalises them: each sigmoid divided by the map's plain sum.

    A background of 1e-3 already pulls what they decode to a seventh of the way to the centre of a 64 x 64 map.
    """
    # The largest logit of a dark map may lie below -88, where a float32 sigmoid and with it the sum would vanish.
    log_weights = jax.nn.log_sigmoid(logits)
    weights = jnp.exp(log_weights - jax.lax.stop_gradient(jnp.max(log_weights, axis=(-3, -2), keepdims=True)))
    return weights / jnp.sum(weights, axis=(-3, -2), keepdims=True)


def expected_index(heatmaps: Float[Array, "*batch rows columns k"]) -> Float[Array, "*batch k 2"]:
    """The mean index (column, row) under maps of sum 1: the soft-argmax x of Eq. 4."""
    rows, columns = heatmaps.shape[-3:-1]
    column = jnp.einsum("...ck,c->...k", jnp.sum(heatmaps, axis=-3), jnp.arange(columns, dtype=heatmaps.dtype))
    row = jnp.einsum("...rk,r->...k", jnp.sum(heatmaps, axis=-2), jnp.arange(rows, dtype=heatmaps.dtype))
    return jnp.stack([column, row], axis=-1)


def expected_value(
    heatmaps: Float[Array, "*batch rows columns k"], values: Float[Array, "*batch rows columns k"]
) -> Float[Array, "*batch k"]:
    """The mean of `values` under maps of sum 1: d of Eq. 4."""
    return jnp.sum(heatmaps * values, axis=(-3, -2))


def gaussian_heatmaps(
    indices: Float[Array, "*batch k 2"], shape: tuple[int, int], sigma: float
) -> Float[Array, "*batch rows columns k"]:
    """Gaussians of peak 1 around indices (column, row), on maps of shape (rows, columns); sigma in cells."""
    return jnp.exp(-0.5 * squared_distance(indices, shape) / sigma**2)


def mass_near(
    heatmaps: Float[Array, "*batch rows columns k"], indices: Float[Array, "*batch k 2"], radius: float
) -> Float[Array, "*batch k"]:
    """The share, 0 to 1, of each map of sum 1 that lies within about `radius` cells of its index (column, row).

    Close to 1 for one narrow peak; low for a flat map and for two peaks, between which the mean lies. The window's
    edge is soft, exp(-(r / radius)^4), so that the gradient exists everywhere.
    """
    rows, columns = heatmaps.shape[-3:-1]
    window = jnp.exp(-jnp.square(squared_distance(indices, (rows, columns)) / radius**2))
    return jnp.clip(jnp.sum(heatmaps * window, axis=(-3, -2)), 0.0, 1.0)


def squared_distance(
    indices: Float[Array, "*batch k 2"], shape: tuple[int, int]
) -> Float[Array, "*batch rows columns k"]:
    """Squared distance in cells of every cell to each index (column, row)."""
    rows, columns = shape
    column = _offset(columns, indices[..., 0])[..., None, :, :]
    row = _offset(rows, indices[..., 1])[..., :, None, :]
    return jnp.square(column) + jnp.square(row)


def _offset(count: int, index: Float[Array, "*batch k"]) -> Float[Array, "*batch count k"]:
    cells = jnp.arange(count, dtype=index.dtype)[:, None]
    cells, index = jnp.broadcast_arrays(cells.reshape((1,) * (index.ndim - 1) + cells.shape), index[..., None, :])
    return cells - index


def pixels_from_indices(indices: Float[Array, "*batch k 2"], stride: int) -> Float[Array, "*batch k 2"]:
    """Pixels (u, v) at the centre of a cell of `stride` x `stride` pixels: stride (index + 1/2) - 1/2."""
    return stride * (indices + 0.5) - 0.5


def indices_from_pixels(pixels: Float[Array, "*batch k 2"], stride: int) -> Float[Array, "*batch k 2"]:
    """The inverse of `pixels_from_indices`."""
    return (pixels + 0.5) / stride - 0.5

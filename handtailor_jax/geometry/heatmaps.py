"""Heatmaps and keypoints: soft-argmax (Eq. 4 of the paper), its inverse, and the confidence of a heatmap.

K heatmaps have shape (..., rows, columns, K). An index (column, row) is a real number; (0, 0) is the centre of the top
left cell.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.geometry import exact


def normalised(logits: Float[Array, "*batch rows columns k"], decoding: str) -> Float[Array, "*batch rows columns k"]:
    """Normalise logits to maps of sum 1 as a decoding of `HandModuleConfig` does.

    "released" divides sigmoids by their sum: a background of 1e-3 in a 64 x 64 map moves the decoded keypoint by a
    seventh of its distance to the map's centre. "paper" does so with their cubes: a background of 1e-2 moves it by less
    than 0.1 %. "corrected" is the softmax: adding a constant to a map's logits changes nothing.
    """
    # The powers are in the softmax's exponent, because a float32 sigmoid of a logit below -88 is 0.
    power = {"released": 1.0, "paper": 3.0}.get(decoding)
    return jax.nn.softmax(logits if power is None else power * jax.nn.log_sigmoid(logits), axis=(-3, -2))


@exact
def expected_index(heatmaps: Float[Array, "*batch rows columns k"]) -> Float[Array, "*batch k 2"]:
    """Return the mean index (column, row) under maps of sum 1: the soft-argmax x of Eq. 4 of the paper."""
    rows, columns = heatmaps.shape[-3:-1]
    column = jnp.einsum("...ck,c->...k", jnp.sum(heatmaps, axis=-3), jnp.arange(columns, dtype=heatmaps.dtype))
    row = jnp.einsum("...rk,r->...k", jnp.sum(heatmaps, axis=-2), jnp.arange(rows, dtype=heatmaps.dtype))
    return jnp.stack([column, row], axis=-1)


def expected_value(
    heatmaps: Float[Array, "*batch rows columns k"], values: Float[Array, "*batch rows columns k"]
) -> Float[Array, "*batch k"]:
    """Return the mean of `values` under maps of sum 1: d of Eq. 4 of the paper."""
    return jnp.sum(heatmaps * values, axis=(-3, -2))


def gaussian_heatmaps(
    indices: Float[Array, "*batch k 2"], shape: tuple[int, int], sigma: float
) -> Float[Array, "*batch rows columns k"]:
    """Return Gaussians of peak 1 at indices (column, row) on maps of shape (rows, columns); sigma is in cells."""
    return jnp.exp(-0.5 * squared_distance(indices, shape) / sigma**2)


def mass_near(
    heatmaps: Float[Array, "*batch rows columns k"], indices: Float[Array, "*batch k 2"], radius: float
) -> Float[Array, "*batch k"]:
    """Return the share, 0 to 1, of each map of sum 1 that lies within about `radius` cells of an index (column, row).

    The share is close to 1 for one narrow peak, and low for a flat map or for two peaks with the index between them.
    The window exp(-(r / radius)^4) has a soft edge, so the gradient exists everywhere.
    """
    rows, columns = heatmaps.shape[-3:-1]
    window = jnp.exp(-jnp.square(squared_distance(indices, (rows, columns)) / radius**2))
    return jnp.clip(jnp.sum(heatmaps * window, axis=(-3, -2)), 0.0, 1.0)


def squared_distance(
    indices: Float[Array, "*batch k 2"], shape: tuple[int, int]
) -> Float[Array, "*batch rows columns k"]:
    """Return the squared distance, in cells, of every cell to each index (column, row)."""

    def offset(count: int, index: Float[Array, "*batch k"]) -> Float[Array, "*batch count k"]:
        cells = (*index.shape[:-1], count, index.shape[-1])
        return jax.lax.broadcasted_iota(index.dtype, cells, index.ndim - 1) - index[..., None, :]

    column = offset(shape[1], indices[..., 0])[..., None, :, :]
    row = offset(shape[0], indices[..., 1])[..., :, None, :]
    return jnp.square(column) + jnp.square(row)


def pixels_from_indices(indices: Float[Array, "*batch k 2"], stride: int) -> Float[Array, "*batch k 2"]:
    """Return pixels (u, v) of indices into a map whose cells are `stride` pixels wide: stride (index + 1/2) - 1/2."""
    return stride * (indices + 0.5) - 0.5


def indices_from_pixels(pixels: Float[Array, "*batch k 2"], stride: int) -> Float[Array, "*batch k 2"]:
    """Return indices (column, row) of pixels (u, v); the inverse of `pixels_from_indices`."""
    return (pixels + 0.5) / stride - 0.5

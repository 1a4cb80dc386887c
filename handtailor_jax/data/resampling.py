"""Resample images by affine maps inside a JAX program, without aliasing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

GREY = 0.5
"""Grey level outside an image if no other is given."""


def resample(
    image: UInt8[Array, "batch source source 3"],
    affine: Float[Array, "batch 2 3"],
    size: int,
    *,
    blur: Float[Array, "batch"] | None = None,
    outside: Float[Array, "batch"] | None = None,
) -> Float[Array, "batch size size 3"]:
    """Resample images so that pixel A(u, v) of the result, in [0, 1], shows the source's pixel (u, v), bilinearly.

    Args:
        image: source images.
        affine: maps from pixels of the source to pixels of the result.
        size: side of the result, pixels.
        blur: standard deviation of additional blur, pixels of the result.
        outside: grey level outside the source; a negative level repeats the border. Mid-grey if None.
    """
    count, source = image.shape[0], image.shape[1]
    dtype = affine.dtype
    planes = _smoothed(image, affine, blur)
    at = jnp.arange(size, dtype=dtype)
    grid = jnp.stack(jnp.broadcast_arrays(at[None, :], at[:, None]), axis=-1).reshape(-1, 2)
    inverse = jnp.linalg.inv(affine[:, :, :2])
    points = jnp.einsum("bij,bnj->bni", inverse, grid[None] - affine[:, None, :, 2])
    inside = jnp.clip(0.5 + 0.5 * source - jnp.abs(points - 0.5 * (source - 1)), 0.0, 1.0)
    inside = inside[..., 0] * inside[..., 1]
    points = jnp.clip(points, 0.0, source - 1.0)
    low = jnp.clip(jnp.floor(points).astype(jnp.int32), 0, source - 2)
    share = points - low.astype(dtype)
    share, inside, planes = jax.lax.optimization_barrier((share, inside, planes))

    flat = planes.reshape(-1)
    first: Int[Array, "batch 1"] = (jnp.arange(count, dtype=jnp.int32) * (3 * source * source))[:, None]
    corner = first + low[..., 1] * source + low[..., 0]
    u, v = share[..., 0], share[..., 1]
    fill = jnp.full((count,), GREY, dtype) if outside is None else outside
    keep = jnp.where(fill[:, None] < 0.0, 1.0, inside)
    channels = []
    for c in range(3):
        index = corner + c * source * source
        upper = flat[index] * (1.0 - u) + flat[index + 1] * u
        lower = flat[index + source] * (1.0 - u) + flat[index + source + 1] * u
        value = upper * (1.0 - v) + lower * v
        channels.append(keep * value + (1.0 - keep) * fill[:, None])
    return jnp.stack(channels, axis=-1).reshape(count, size, size, 3)


def _smoothed(
    image: UInt8[Array, "batch source source 3"],
    affine: Float[Array, "batch 2 3"],
    blur: Float[Array, "batch"] | None,
) -> Float[Array, "batch 3 source source"]:
    """Blur images by as much as an affine map shrinks them, which prevents aliasing, and by the additional blur."""
    source = image.shape[1]
    zoom = jnp.sqrt(jnp.abs(affine[:, 0, 0] * affine[:, 1, 1] - affine[:, 0, 1] * affine[:, 1, 0]))
    # A box filter as wide as a pixel of the result has the variance (1/zoom^2)/12; the source's pixels have 1/12.
    variance = jnp.maximum((1.0 / zoom**2 - 1.0) / 12.0, 0.0) * 2.0
    if blur is not None:
        variance = variance + (blur / zoom) ** 2
    planes = jnp.moveaxis(image, -1, 1).astype(affine.dtype) / 255.0
    kernel = jax.vmap(lambda v: _blur_matrix(source, v))(variance)
    planes = jnp.einsum("bvr,bcrs->bcvs", kernel, planes)
    return jnp.einsum("bus,bcvs->bcvu", kernel, planes)


def _blur_matrix(size: int, variance: Float[Array, ""]) -> Float[Array, "size size"]:
    """Return the matrix that blurs a row of pixels; the identity if the variance is 0."""
    at = jnp.arange(size, dtype=variance.dtype)
    squared = jnp.square(at[:, None] - at[None, :])
    weights = jnp.exp(-0.5 * squared / jnp.maximum(variance, 1e-2))
    return weights / jnp.sum(weights, axis=1, keepdims=True)

"""Crops of images inside the graph, differentiable in the pixels and in the position of the crop.

They agree with the crops that OpenCV makes on the host: `images.crop_square` and `detector.regions.cut`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from handtailor_jax.geometry.cameras import transform_pixels


def crop_upright(
    image: Float[Array, "height width 3"],
    center: Float[Array, "2"],
    side: Float[Array, ""],
    size: int,
    outside: float = 128.0,
) -> Float[Array, "size size 3"]:
    """Resample an upright square to `size` pixels: averages over areas when shrinking, bilinear when enlarging.

    `center` and `side` are in pixels of the image; x and y are 0 at its left and upper edge. Pixels outside of the
    image have the value `outside`.
    """
    columns, rows = (_shares(center[i] - 0.5 * side, side, size, image.shape[1 - i]) for i in (0, 1))
    inside = rows.sum(axis=1)[:, None] * columns.sum(axis=1)[None]
    return jnp.einsum("iy,yxc,jx->ijc", rows, image, columns) + outside * (1.0 - inside)[..., None]


def _shares(first: Float[Array, ""], side: Float[Array, ""], size: int, length: int) -> Float[Array, "size length"]:
    """Return the share of each of `length` pixels in each of the `size` cells of an interval.

    Cells are at least one pixel wide; where they overlap, when enlarging, the shares interpolate linearly.
    """
    step = side / size
    middle = first + step * (jnp.arange(size, dtype=side.dtype) + 0.5)
    half, edges = 0.5 * jnp.maximum(step, 1.0), jnp.arange(length + 1, dtype=side.dtype)[None]
    upper = jnp.minimum((middle + half)[:, None], edges[:, 1:])
    lower = jnp.maximum((middle - half)[:, None], edges[:, :-1])
    return jnp.maximum(upper - lower, 0.0) / (2.0 * half)


def crop_turned(
    image: Float[Array, "height width 3"], to_image: Float[Array, "2 3"], size: int
) -> Float[Array, "size size 3"]:
    """Sample the pixels of a `size` x `size` crop bilinearly, without antialiasing; the image's border is repeated.

    `to_image` is the affine map from the crop's pixels to the image's.
    """
    v, u = jnp.indices((size, size), dtype=image.dtype).reshape(2, -1)
    points = transform_pixels(to_image, jnp.stack([u, v], axis=-1))
    sample = functools.partial(map_coordinates, coordinates=[points[:, 1], points[:, 0]], order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image).reshape(size, size, 3)

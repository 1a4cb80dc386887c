"""Cut a region out of an image: with OpenCV on the host, or with JAX where gradients must reach the image."""

import math

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from handtailor_jax.detector.regions import to_image as region_to_image
from handtailor_jax.geometry.cameras import transform_pixels
from handtailor_jax.images import Image, opencv
from handtailor_jax.types import Region

_OPENCV_LIMIT = 16_000
"""OpenCV warps images whose sides fit into 16 bits; larger ones are thinned out first."""


def cut(image: Image, to_image: npt.NDArray[np.float32], size: int, *, extend: bool) -> Image:
    """Cut a region out of an image, by bilinear interpolation without antialiasing (as the networks were trained).

    Args:
        image: (H, W, 3) RGB.
        to_image: (2, 3) affine map from the crop's pixels to the image's (`regions.to_image`).
        size: side of the crop, pixels.
        extend: whether pixels outside of the image repeat its edge; they are black otherwise.

    Returns:
        The crop, (size, size, 3).
    """
    cv2 = opencv()
    affine = np.asarray(to_image, np.float64)
    corners = affine[:, :2] @ np.asarray([[0, size, 0, size], [0, 0, size, size]]) + affine[:, 2:]
    # Only the part of the image that the crop shows is warped.
    height, width = image.shape[:2]
    left, top = (
        int(np.clip(np.floor(low) - 1, 0, n - 1)) for low, n in zip(corners.min(1), (width, height), strict=True)
    )
    right, bottom = (
        int(np.clip(np.ceil(high) + 2, low + 1, n))
        for high, low, n in zip(corners.max(1), (left, top), (width, height), strict=True)
    )
    step = math.ceil(max(right - left, bottom - top) / _OPENCV_LIMIT)
    part = np.ascontiguousarray(image[top:bottom:step, left:right:step])
    affine[:, 2] -= (left, top)
    return cv2.warpAffine(
        part,
        affine / step,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE if extend else cv2.BORDER_CONSTANT,
    )


def sample(image: Float[Array, "h w 3"], region: Region, size: int) -> Float[Array, "size size 3"]:
    """Cut a region out of an image, differentiably in the image and in the region; its edge is repeated outside.

    Args:
        image: RGB from 0 to 1.
        region: one region, without batch axes, in pixels of the image.
        size: side of the crop, pixels.
    """
    height, width = image.shape[:2]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="xy"), axis=-1)
    at = transform_pixels(region_to_image(region, size), grid.reshape(-1, 2).astype(image.dtype))
    u = jnp.clip(at[:, 0], 0.0, width - 1.0)
    v = jnp.clip(at[:, 1], 0.0, height - 1.0)
    left, top = jnp.floor(u), jnp.floor(v)
    total = jnp.zeros((size * size, 3), image.dtype)
    for du in (0, 1):
        for dv in (0, 1):
            column = jnp.minimum(left.astype(int) + du, width - 1)
            row = jnp.minimum(top.astype(int) + dv, height - 1)
            weight = jnp.abs(1.0 - du - (u - left)) * jnp.abs(1.0 - dv - (v - top))
            total = total + image[row, column] * jnp.broadcast_to(weight[:, None], total.shape)
    return total.reshape(size, size, 3)

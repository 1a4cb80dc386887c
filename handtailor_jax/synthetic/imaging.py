"""The camera's image processing: blur, exposure, white balance, noise, tone curve, sharpening, JPEG, resizing.

Blur, shift and resizing act on rows and columns alike. They are products with matrices, whose parameters are random
while their shapes are fixed.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from handtailor_jax.data.draws import Draws
from handtailor_jax.render.shading import to_srgb

Image = Float[Array, "height width 3"]

_LUMINANCE = np.asarray([0.2126, 0.7152, 0.0722], np.float32)
_TO_YCC = np.asarray([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_FROM_YCC = np.asarray([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], np.float32)
# The quantisation tables of the JPEG standard's annex K: luma, chroma.
# fmt: off
_QUANTA = np.asarray([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
    17, 18, 24, 47, *[99] * 4, 18, 21, 26, 66, *[99] * 4, 24, 26, 56, *[99] * 5, 47, 66, *[99] * 38,
], np.float32).reshape(2, 8, 8)
# fmt: on


def gaussian(size: int, sigma: Float[Array, ""], shift: Float[Array, ""] | float = 0.0) -> Float[Array, "size size"]:
    """Return the matrix that blurs a row of pixels with a standard deviation and shifts it, both in pixels."""
    dtype = sigma.dtype
    at = jnp.arange(size, dtype=dtype)
    distance = at[:, None] - at[None, :] - shift
    weights = jnp.exp(-0.5 * (distance / jnp.maximum(sigma, 0.05)) ** 2)
    return weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-12)


def reduction(size: int, count: Float[Array, ""]) -> Float[Array, "size size"]:
    """Return the matrix that reduces a row of pixels to `count` (at most `size`) and enlarges it again, linearly."""
    dtype = count.dtype
    at = jnp.arange(size, dtype=dtype)
    step = size / count
    # Row k averages over cell k of the small image.
    low, high = at[:, None] * step, (at[:, None] + 1.0) * step
    overlap = jnp.clip(jnp.minimum(high, at[None, :] + 1.0) - jnp.maximum(low, at[None, :]), 0.0, 1.0) / step
    place = jnp.clip((at + 0.5) / step - 0.5, 0.0, count - 1.0)
    up = jnp.maximum(1.0 - jnp.abs(place[:, None] - at[None, :]), 0.0)
    up = jnp.where(at[None, :] < count, up, 0.0)
    return (up @ overlap) / jnp.sum(up, axis=1, keepdims=True)


def separable(image: Float[Array, "height width c"], rows: Array, columns: Array) -> Float[Array, "height width c"]:
    """Multiply the row axis by one matrix and the column axis by another."""
    height, width, channels = image.shape
    first = (rows @ image.reshape(height, width * channels)).reshape(height, width, channels)
    return jnp.einsum("vu,huc->hvc", columns, first)


def halved(plane: Float[Array, "fine fine"]) -> Float[Array, "size size"]:
    """Keep every second value, averaged with its neighbours by the weights 1 2 1."""
    size = plane.shape[0] // 2
    for axis in (0, 1):
        at = jax.lax.slice_in_dim(plane, 0, 2 * size, 2, axis)
        after = jax.lax.slice_in_dim(plane, 1, 2 * size, 2, axis)
        first = jax.lax.slice_in_dim(plane, 0, 1, 1, axis)
        before = jnp.concatenate([first, jax.lax.slice_in_dim(after, 0, size - 1, 1, axis)], axis)
        plane = 0.5 * at + 0.25 * (before + after)
    return plane


def motion_blur(image: Image, vector: Float[Array, "2"], taps: int = 7) -> Image:
    """Average the image over shifts along `vector` (pixels), centred on no shift."""
    height, width, _ = image.shape
    planes = [image[..., c].reshape(-1) for c in range(3)]
    columns = jnp.arange(width, dtype=image.dtype)[None, :]
    rows = jnp.arange(height, dtype=image.dtype)[:, None]
    total = [jnp.zeros((height, width), image.dtype) for _ in range(3)]
    for tap in range(taps):
        t = tap / (taps - 1) - 0.5
        u = jnp.clip(jnp.round(columns + t * vector[0]), 0, width - 1).astype(jnp.int32)
        v = jnp.clip(jnp.round(rows + t * vector[1]), 0, height - 1).astype(jnp.int32)
        total = [s + plane[v * width + u] for s, plane in zip(total, planes, strict=True)]
    return jnp.stack(total, axis=-1) / taps


def _doubling(count: int) -> np.ndarray:
    """Return the matrix with which decoders double a row of chroma: 3/4 of the nearest sample and 1/4 of the next."""
    eye, pixel = np.eye(count, dtype=np.float32), np.arange(2 * count)
    return 0.75 * eye[pixel // 2] + 0.25 * eye[np.clip(pixel // 2 - 1 + 2 * (pixel % 2), 0, count - 1)]


def jpeg(image: Image, quality: Float[Array, ""]) -> Image:
    """Encode and decode an sRGB image (0 to 1) as JPEG: quantised 8 x 8 cosine blocks, chroma at half size.

    Implemented here because it runs inside the compiled program. The sides must be divisible by 16.
    """
    dtype = image.dtype
    height, width, _ = image.shape
    n = np.arange(8)
    cosines = np.cos((2 * n[None, :] + 1) * n[:, None] * math.pi / 16.0) * np.where(n[:, None] == 0, 8**-0.5, 0.5)
    dct = jnp.asarray(cosines.astype(np.float32), dtype)
    scale = jnp.where(quality < 50.0, 50.0 / quality, 2.0 - quality / 50.0)
    quanta = jnp.maximum(jnp.asarray(_QUANTA, dtype) * scale, 1.0) / 255.0
    ycc = jnp.einsum("ij,hwj->ihw", jnp.asarray(_TO_YCC, dtype), image - jnp.asarray(0.5, dtype))

    def coded(plane: Array, table: Array) -> Array:
        h, w = plane.shape[-2:]
        blocks = plane.reshape(-1, h // 8, 8, w // 8, 8)
        spectrum = jnp.einsum("ua,cyaxb,vb->cyuxv", dct, blocks, dct)
        step = table[None, None, :, None, :]
        kept = jnp.round(spectrum / step) * step
        return jnp.einsum("ua,cyuxv,vb->cyaxb", dct, kept, dct).reshape(plane.shape)

    luma = coded(ycc[:1], quanta[0])
    small = ycc[1:].reshape(2, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    double_rows, double_columns = (jnp.asarray(_doubling(n // 2), dtype) for n in (height, width))
    chroma = jnp.einsum("ya,cab,xb->cyx", double_rows, coded(small, quanta[1]), double_columns)
    result = jnp.einsum("ij,jhw->hwi", jnp.asarray(_FROM_YCC, dtype), jnp.concatenate([luma, chroma]))
    return jnp.clip(result + jnp.asarray(0.5, dtype), 0.0, 1.0)


def behind_hand(background: Image, coverage: Float[Array, "size size"], draws: Draws) -> Image:
    """Blur a linear background, and in some samples cast the shadow of what covers it, as on a wall close behind."""
    size = background.shape[0]
    blur = gaussian(size, 0.3 + size * 0.02 * draws.uniform() ** 2)
    background = separable(background, blur, blur)
    shift = 0.10 * size * draws.normal(2)
    sigma = size * draws.between(0.01, 0.07)
    depth = draws.between(0.0, 0.6) * draws.chance(0.4)
    shadow = separable(coverage[..., None], gaussian(size, sigma, shift[1]), gaussian(size, sigma, shift[0]))
    return background * (1.0 - depth * jnp.clip(shadow, 0.0, 1.0))


def develop(light: Image, box: Float[Array, "4"], key: PRNGKeyArray) -> Image:
    """Turn linear light into an image as a camera records it (sRGB, 0 to 1).

    The input gives the hand a medium brightness, and the exposure varies here. Padding does not cover the box (left,
    top, right and bottom of the hand in pixels).
    """
    own, noise_key = jax.random.split(key)
    draws = Draws(own, light.dtype)
    size, dtype = light.shape[0], light.dtype
    blur = gaussian(size, 0.35 + size * 0.006 * draws.uniform() ** 2.5)
    light = separable(light, blur, blur)
    angle = draws.between(0.0, 2.0 * math.pi)
    length = draws.chance(0.2) * size * 0.05 * draws.uniform() ** 1.5
    light = motion_blur(light, length * jnp.stack([jnp.cos(angle), jnp.sin(angle)]))

    # White balance and exposure vary, and the corners are darker.
    balance = jnp.exp(0.06 * draws.normal(3) + jnp.asarray([0.10, 0.0, -0.14], dtype) * draws.normal())
    light = light * (jnp.exp(0.4 * draws.normal() - 0.3 * draws.uniform() ** 4) * balance)[None, None]
    at = (jnp.arange(size, dtype=dtype) + 0.5) * (2.0 / size) - 1.0
    vignette = 1.0 - draws.uniform() ** 2 * 0.45 * 0.5 * (at[:, None] ** 2 + at[None, :] ** 2)
    light = light * vignette[..., None]

    # Shot noise grows with the light, read noise does not.
    noise = jax.random.normal(noise_key, light.shape, dtype)
    grey = jnp.mean(noise, axis=-1, keepdims=True) * 3.0**0.5
    noise = grey + draws.uniform() * (noise - grey)
    level = 0.035 * draws.uniform() ** 2
    light = light + level * noise * jnp.sqrt(0.02 + 0.6 * jnp.maximum(light, 0.0))
    return _pad(_process(_tone(light, draws), draws), box, draws)


def _tone(light: Image, draws: Draws) -> Image:
    """Convert linear light to sRGB with a soft shoulder, and vary contrast, black level and saturation."""
    knee = 0.75
    over = jnp.maximum(light - knee, 0.0)
    light = jnp.where(light > knee, knee + (1.0 - knee) * (1.0 - jnp.exp(-over / (1.0 - knee))), light)
    srgb = to_srgb(light)
    contrast = draws.between(-0.25, 0.45)
    srgb = srgb + contrast * srgb * (1.0 - srgb) * (2.0 * srgb - 1.0)
    lift = draws.uniform() ** 3 * 0.08
    srgb = lift + (1.0 - lift) * srgb
    luminance = jnp.sum(srgb * jnp.asarray(_LUMINANCE, srgb.dtype)[None, None], axis=-1, keepdims=True)
    return jnp.clip(luminance + draws.between(0.65, 1.25) * (srgb - luminance), 0.0, 1.0)


def _process(srgb: Image, draws: Draws) -> Image:
    """Sharpen edges by an unsharp mask, compress as JPEG, and reduce to fewer pixels and enlarge again."""
    size = srgb.shape[0]
    soft = gaussian(size, jnp.maximum(size * draws.between(0.003, 0.012), 0.5))
    strength = 0.9 * jnp.maximum(draws.between(-1.0, 1.0), 0.0)
    srgb = jnp.clip(srgb + strength * (srgb - separable(srgb, soft, soft)), 0.0, 1.0)
    quality = draws.between(30.0, 95.0)  # as in libjpeg
    srgb = jnp.where(draws.chance(0.8) > 0, jpeg(srgb, quality), srgb)
    fewer = draws.chance(0.35) > 0
    count = jnp.where(fewer, size * draws.between(0.3, 1.0), size)
    smaller = reduction(size, jnp.round(count))
    return separable(srgb, smaller, smaller)


def _pad(srgb: Image, box: Float[Array, "4"], draws: Draws) -> Image:
    """Blacken random margins between the hand and the border, as in a crop that reaches beyond its photograph."""
    size = srgb.shape[0]
    room = jnp.stack([box[0], box[1], size - 1.0 - box[2], size - 1.0 - box[3]])
    bars = jnp.where(draws.uniform(4) < 0.4, draws.uniform(4) * jnp.maximum(room, 0.0), 0.0)
    bars = bars * draws.chance(0.12)
    pixel = jnp.arange(size, dtype=srgb.dtype)
    inside = (pixel >= bars[0]) & (pixel <= size - 1.0 - bars[2])
    inside_rows = (pixel >= bars[1]) & (pixel <= size - 1.0 - bars[3])
    return jnp.where((inside[None, :] & inside_rows[:, None])[..., None], srgb, 0.0)

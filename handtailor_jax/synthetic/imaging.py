"""What a camera does to light: blur, exposure, white balance, noise, tone curve, JPEG, resizing.

Blur, shift and resizing act on rows and columns alike and are products with matrices, whose width may be random while
their shapes stay fixed.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from handtailor_jax.data.draws import Draws
from handtailor_jax.render.shading import to_srgb

Picture = Float[Array, "height width 3"]

_LUMINANCE = np.asarray([0.2126, 0.7152, 0.0722], np.float32)
_TO_YCC = np.asarray([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_FROM_YCC = np.asarray([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], np.float32)
# The quantisation tables of the JPEG standard's annex K.
_QUANTA = np.asarray(
    [
        [
            [16, 11, 10, 16, 24, 40, 51, 61],
            [12, 12, 14, 19, 26, 58, 60, 55],
            [14, 13, 16, 24, 40, 57, 69, 56],
            [14, 17, 22, 29, 51, 87, 80, 62],
            [18, 22, 37, 56, 68, 109, 103, 77],
            [24, 35, 55, 64, 81, 104, 113, 92],
            [49, 64, 78, 87, 103, 121, 120, 101],
            [72, 92, 95, 98, 112, 100, 103, 99],
        ],
        [
            [17, 18, 24, 47, 99, 99, 99, 99],
            [18, 21, 26, 66, 99, 99, 99, 99],
            [24, 26, 56, 99, 99, 99, 99, 99],
            [47, 66, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
        ],
    ],
    np.float32,
)


@dataclasses.dataclass(frozen=True)
class ImagingConfig:
    """Strength of what a camera does; shares are probabilities."""

    defocus: float = 0.006
    """Standard deviation of the blur of the whole picture at most, as a share of its side."""
    background_defocus: float = 0.02
    """The same of the additional blur of the background."""
    motion: float = 0.2
    """Share of pictures with motion blur."""
    motion_length: float = 0.05
    """Its length at most, as a share of the side."""
    noise: float = 0.035
    """Standard deviation of sensor noise at mid grey at most, of the range from 0 to 1."""
    jpeg: float = 0.8
    """Share of pictures that have been JPEG files."""
    quality: tuple[float, float] = (30.0, 95.0)
    """Range of their quality, as of libjpeg."""
    sharpening: float = 0.9
    """Strength of edges sharpened by the camera at most; half of the pictures have none."""
    low_resolution: float = 0.35
    """Share of pictures enlarged from fewer pixels."""
    smallest: float = 0.3
    """Their side at least, as a share of the picture's."""
    padding: float = 0.12
    """Share of crops that reach beyond the photograph, where they are black."""


def gaussian(size: int, sigma: Float[Array, ""], shift: Float[Array, ""] | float = 0.0) -> Float[Array, "size size"]:
    """The matrix that blurs (pixels, standard deviation) and shifts (pixels) a row of `size` pixels."""
    dtype = sigma.dtype
    at = jnp.arange(size, dtype=dtype)
    distance = at[:, None] - at[None, :] - shift
    weights = jnp.exp(-0.5 * (distance / jnp.maximum(sigma, 0.05)) ** 2)
    # Beyond the border the outermost pixel goes on.
    return weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-12)


def reduction(size: int, count: Float[Array, ""]) -> Float[Array, "size size"]:
    """The matrix that reduces a row of pixels to `count` (at most `size`) and enlarges it again, linearly."""
    dtype = count.dtype
    at = jnp.arange(size, dtype=dtype)
    step = size / count
    # Averages over the cells of the small picture: row k of `down` is cell k.
    low, high = at[:, None] * step, (at[:, None] + 1.0) * step
    overlap = jnp.clip(jnp.minimum(high, at[None, :] + 1.0) - jnp.maximum(low, at[None, :]), 0.0, 1.0) / step
    place = jnp.clip((at + 0.5) / step - 0.5, 0.0, count - 1.0)
    up = jnp.maximum(1.0 - jnp.abs(place[:, None] - at[None, :]), 0.0)
    up = jnp.where(at[None, :] < count, up, 0.0)
    return (up @ overlap) / jnp.sum(up, axis=1, keepdims=True)


def separable(picture: Float[Array, "height width c"], rows: Array, columns: Array) -> Float[Array, "height width c"]:
    """Applies one matrix to the rows' index and one to the columns'."""
    height, width, channels = picture.shape
    first = (rows @ picture.reshape(height, width * channels)).reshape(height, width, channels)
    return jnp.einsum("vu,huc->hvc", columns, first)


def motion_blur(picture: Picture, vector: Float[Array, "2"], looks: int = 7) -> Picture:
    """The mean of the picture moved along a line of `vector` (pixels), centred on where it was."""
    height, width, _ = picture.shape
    planes = [picture[..., c].reshape(-1) for c in range(3)]
    columns = jnp.arange(width, dtype=picture.dtype)[None, :]
    rows = jnp.arange(height, dtype=picture.dtype)[:, None]
    total = [jnp.zeros((height, width), picture.dtype) for _ in range(3)]
    for look in range(looks):
        t = look / (looks - 1) - 0.5
        u = jnp.clip(jnp.round(columns + t * vector[0]), 0, width - 1).astype(jnp.int32)
        v = jnp.clip(jnp.round(rows + t * vector[1]), 0, height - 1).astype(jnp.int32)
        total = [s + plane[v * width + u] for s, plane in zip(total, planes, strict=True)]
    return jnp.stack(total, axis=-1) / looks


def _doubling(count: int) -> np.ndarray:
    """The matrix by which decoders double a row of colour samples: three quarters of one, one of the next."""
    matrix = np.zeros((2 * count, count), np.float32)
    pixel = np.arange(2 * count)
    matrix[pixel, pixel // 2] += 0.75
    matrix[pixel, np.clip(pixel // 2 + np.where(pixel % 2, 1, -1), 0, count - 1)] += 0.25
    return matrix


def jpeg(picture: Picture, quality: Float[Array, ""]) -> Picture:
    """What is left of a picture (0 to 1, sRGB) after JPEG: blocks of 8 x 8 cosines, quantised; colour at half size.

    The side must be divisible by 16.
    """
    dtype = picture.dtype
    height, width, _ = picture.shape
    n = np.arange(8)
    cosines = np.cos((2 * n[None, :] + 1) * n[:, None] * math.pi / 16.0) * np.where(n[:, None] == 0, 8**-0.5, 0.5)
    dct = jnp.asarray(cosines.astype(np.float32), dtype)
    scale = jnp.where(quality < 50.0, 50.0 / quality, 2.0 - quality / 50.0)
    quanta = jnp.maximum(jnp.asarray(_QUANTA, dtype) * scale, 1.0) / 255.0
    ycc = jnp.einsum("ij,hwj->ihw", jnp.asarray(_TO_YCC, dtype), picture - jnp.asarray(0.5, dtype))

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


def develop(
    light: Picture,
    box: Float[Array, "4"],
    key: PRNGKeyArray,
    config: ImagingConfig,
) -> Picture:
    """A photograph (sRGB, 0 to 1) of linear light.

    Args:
        light: linear RGB, exposed so that the subject has a middling brightness; varied here.
        box: left, top, right, bottom of the hand in pixels, which padding leaves alone.
        key: random key.
        config: how strong.
    """
    size, dtype = light.shape[0], light.dtype
    own, noise_key = jax.random.split(key)
    draws = Draws(own, dtype)
    sigma = 0.35 + size * config.defocus * draws.uniform() ** 2.5
    blur = gaussian(size, sigma)
    light = separable(light, blur, blur)
    angle = draws.between(0.0, 2.0 * math.pi)
    length = draws.chance(config.motion) * size * config.motion_length * draws.uniform() ** 1.5
    light = motion_blur(light, length * jnp.stack([jnp.cos(angle), jnp.sin(angle)]))

    balance = jnp.exp(0.06 * draws.normal(3) + jnp.asarray([0.10, 0.0, -0.14], dtype) * draws.normal())
    light = light * (jnp.exp(0.4 * draws.normal() - 0.3 * draws.uniform() ** 4) * balance)[None, None]
    at = (jnp.arange(size, dtype=dtype) + 0.5) * (2.0 / size) - 1.0
    vignette = 1.0 - draws.uniform() ** 2 * 0.45 * 0.5 * (at[:, None] ** 2 + at[None, :] ** 2)
    light = light * vignette[..., None]

    # Shot noise grows with light, read noise does not; both are there before the tone curve.
    noise = jax.random.normal(noise_key, light.shape, dtype)
    grey = jnp.mean(noise, axis=-1, keepdims=True) * 3.0**0.5
    noise = grey + draws.uniform() * (noise - grey)
    level = config.noise * draws.uniform() ** 2
    light = light + level * noise * jnp.sqrt(0.02 + 0.6 * jnp.maximum(light, 0.0))
    # A shoulder instead of hard clipping, then the display's curve.
    knee = 0.75
    over = jnp.maximum(light - knee, 0.0)
    light = jnp.where(light > knee, knee + (1.0 - knee) * (1.0 - jnp.exp(-over / (1.0 - knee))), light)
    srgb = to_srgb(light)
    contrast = draws.between(-0.25, 0.45)
    srgb = srgb + contrast * srgb * (1.0 - srgb) * (2.0 * srgb - 1.0)
    lift = draws.uniform() ** 3 * 0.08
    srgb = lift + (1.0 - lift) * srgb
    luminance = jnp.sum(srgb * jnp.asarray(_LUMINANCE, dtype)[None, None], axis=-1, keepdims=True)
    srgb = jnp.clip(luminance + draws.between(0.65, 1.25) * (srgb - luminance), 0.0, 1.0)

    soft = gaussian(size, jnp.maximum(size * draws.between(0.003, 0.012), 0.5))
    strength = config.sharpening * jnp.maximum(draws.between(-1.0, 1.0), 0.0)
    srgb = jnp.clip(srgb + strength * (srgb - separable(srgb, soft, soft)), 0.0, 1.0)

    quality = draws.between(*config.quality)
    srgb = jnp.where(draws.chance(config.jpeg) > 0, jpeg(srgb, quality), srgb)
    fewer = draws.chance(config.low_resolution) > 0
    count = jnp.where(fewer, size * draws.between(config.smallest, 1.0), size)
    smaller = reduction(size, jnp.round(count))
    srgb = separable(srgb, smaller, smaller)

    # The photograph ends somewhere between the hand and the border of the crop.
    room = jnp.stack([box[0], box[1], size - 1.0 - box[2], size - 1.0 - box[3]])
    bars = jnp.where(draws.uniform(4) < 0.4, draws.uniform(4) * jnp.maximum(room, 0.0), 0.0) * draws.chance(
        config.padding
    )
    pixel = jnp.arange(size, dtype=dtype)
    inside = (pixel >= bars[0]) & (pixel <= size - 1.0 - bars[2])
    inside_rows = (pixel >= bars[1]) & (pixel <= size - 1.0 - bars[3])
    return jnp.where((inside[None, :] & inside_rows[:, None])[..., None], srgb, 0.0)

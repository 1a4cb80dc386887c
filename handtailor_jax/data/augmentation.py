"""Random crops and random light: labels and cameras move exactly with the pixels.

One program serves a whole batch. An affine map per image is applied to pixels, keypoints, camera and camera frame;
changes of light do not change the labels.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt8

from handtailor_jax.data.draws import Draws
from handtailor_jax.data.sample import Batch
from handtailor_jax.errors import InputError, check_range
from handtailor_jax.geometry.boxes import box_center, hand_size, turn_of_hand
from handtailor_jax.geometry.cameras import (
    crop_affine,
    in_plane_rotation,
    inverse_affine,
    rotate_frame,
    transform_camera,
    transform_pixels,
)
from handtailor_jax.geometry.lifting import turn_to_axis
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.skeleton import ROOT

MAP_STRIDE = 4
"""Pixels of a crop per pixel of its mask and depth map. Maps are coarse because losses render one for each hand."""

_GREY = 0.5  # level outside an image if no other is given
_LUMINANCE = np.asarray([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Strength of the random variation of training images."""

    fill: tuple[float, float] = (1.0 / 2.4, 1.0)
    """Range of the hand size as a share of the crop's side, uniform in the logarithm."""
    shift: float = 0.12
    """Largest offset of the crop from the middle of the keypoints along each axis, as a share of the crop's side; half
    of the margin beside the hand is added."""
    beyond: float = 1.2
    """Largest side of a crop as a multiple of the image's side, so that few crops reach far beyond the image."""
    upright: float = 0.0
    """Probability that the hand is turned to point up before the rotation, as in the detector's regions."""
    rotation: float = math.pi
    """Largest in-plane rotation of images with intrinsics, such as renderings, radians."""
    rotation_photographs: float = math.pi / 3.0
    """Largest in-plane rotation of images without intrinsics, radians."""
    drop_intrinsics: float = 0.5
    """Probability that known intrinsics are withheld, so that the weights work with and without intrinsics."""
    exposure: float = 0.25
    """Standard deviation of the logarithm of the brightness."""
    tint: float = 0.08
    """Standard deviation of the logarithm of each channel's brightness."""
    gamma: float = 0.25
    """Standard deviation of the logarithm of the tone curve's exponent."""
    contrast: float = 0.25
    """Standard deviation of the logarithm of the contrast."""
    saturation: tuple[float, float] = (0.4, 1.4)
    """Range of the factor on saturation."""
    grey: float = 0.05
    """Probability that an image becomes grey."""
    blur: float = 1.2
    """Largest standard deviation of additional blur, pixels of the crop."""
    motion: float = 0.0
    """Largest standard deviation of motion blur, along the rows or the columns of the image, pixels of the crop."""
    noise: float = 0.05
    """Largest standard deviation of noise, for values from 0 to 1."""
    cut_out: float = 0.3
    """Probability of each of two rectangles that cover parts of the image."""

    def __post_init__(self) -> None:
        """Raise an InputError if a field is out of range."""
        for name, value in vars(self).items():
            check_range(f"AugmentationConfig: {name}", value, 0)
        if not 0.0 < self.fill[0] <= self.fill[1]:
            raise InputError(f"AugmentationConfig: fill is {self.fill}: give an increasing range of positive numbers")
        for name in ("upright", "drop_intrinsics", "grey", "cut_out"):
            check_range(f"AugmentationConfig: {name}", getattr(self, name), 0, 1)


def augment(batch: Batch, keys: Key[Array, "batch"], config: AugmentationConfig, size: int) -> Batch:
    """Crop square images of any size to `size` pixels at random, move labels and intrinsics along, and vary the light.

    An image's variation depends on its key only.
    """
    move_keys, light_keys = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in (0, 1))
    draw = functools.partial(_draw_move, source_size=batch.image.shape[-2], config=config)
    center, side, angle, blur, outside, drop = jax.vmap(draw)(move_keys, batch.keypoints_2d, batch.has_intrinsics)
    affine = crop_affine(center, side, size, angle)
    image = vary_light(resample(batch.image, affine, size, blur=blur, outside=outside), light_keys, config)
    moved = move_labels(batch, affine, angle)
    choose = jax.vmap(lambda drop, *both: jax.tree.map(functools.partial(jnp.where, drop), *both))
    moved = choose(drop * batch.has_intrinsics > 0.0, without_intrinsics(moved), moved)
    maps, map_size, mask, black = map_affine(affine), size // MAP_STRIDE, batch.mask, jnp.zeros_like(side)
    if mask is not None:
        mask = resample(jnp.stack([mask] * 3, axis=-1), maps, map_size, outside=black)[..., 0]
    return dataclasses.replace(
        moved,
        image=jnp.round(255.0 * image).astype(jnp.uint8),
        mask=None if mask is None else jnp.round(255.0 * mask).astype(jnp.uint8),
        depth=None if batch.depth is None else _move_depth(batch.depth, maps, map_size),
    )


def map_affine(affine: Float[Array, "*batch 2 3"]) -> Float[Array, "*batch 2 3"]:
    """Convert a map to pixels of the crop into one to pixels of its mask and depth, `MAP_STRIDE` times as large."""
    offset = jnp.asarray([0.0, 0.0, 0.5 / MAP_STRIDE - 0.5], affine.dtype)
    return affine / MAP_STRIDE + jnp.broadcast_to(offset, affine.shape)


def _move_depth(
    depth: Float[Array, "batch source source"], affine: Float[Array, "batch 2 3"], size: int
) -> Float[Array, "batch size size"]:
    """Move depth maps by an affine map of pixels, which leaves z unchanged: nearest pixels, 0 beyond the source."""
    source = depth.shape[-1]
    nearest = jnp.round(_source_points(affine, size)).astype(jnp.int32)
    inside = jnp.all((nearest >= 0) & (nearest < source), axis=-1)
    column, row = jnp.moveaxis(jnp.clip(nearest, 0, source - 1), -1, 0)
    found = jax.vmap(lambda values, v, u: values[v, u])(jnp.asarray(depth), row, column)
    return jnp.where(inside, found, 0.0).reshape(-1, size, size)


def center_crop(batch: Batch, size: int, box_factor: float, *, upright: bool = False) -> Batch:
    """Crop the square around each hand, `box_factor` hand sizes wide, without masks; `upright` turns the hand up."""
    keypoints = jnp.asarray(batch.keypoints_2d)
    side = box_factor * hand_size(keypoints)
    angle = -turn_of_hand(keypoints) if upright else jnp.zeros_like(side)
    affine = crop_affine(box_center(keypoints), side, size, angle)
    image = jnp.round(255.0 * resample(batch.image, affine, size)).astype(jnp.uint8)
    return dataclasses.replace(move_labels(batch, affine, angle), image=image, mask=None, depth=None)


def move_labels(batch: Batch, affine: Float[Array, "batch 2 3"], angle: Float[Array, "batch"]) -> Batch:
    """Move labels and intrinsics by an affine map of pixels whose in-plane rotation is `angle` (radians).

    The camera frame turns with the image: K' = A K R3^T; points and global rotations become R3 p and R3 R
    (docs/datasets.md, "Crop").
    """
    camera = rotate_frame(transform_camera(batch.camera, affine), angle)
    known = batch.has_intrinsics > 0.0
    identity = jnp.broadcast_to(jnp.eye(3, dtype=angle.dtype), camera.matrix.shape)
    moved = dataclasses.replace(
        batch,
        keypoints_2d=transform_pixels(affine, jnp.asarray(batch.keypoints_2d)),
        intrinsics=jnp.where(known[:, None, None], camera.matrix, identity),
    )
    return turn_frame(moved, identity.at[:, :2, :2].set(in_plane_rotation(angle)))


def without_intrinsics(batch: Batch) -> Batch:
    """Withhold the intrinsics, and turn the hand into the frame of a camera whose z axis goes through the root."""
    turned = turn_frame(batch, turn_to_axis(batch.joints[:, ROOT]))
    identity = jnp.broadcast_to(jnp.eye(3, dtype=batch.joints.dtype), batch.intrinsics.shape)
    return dataclasses.replace(turned, intrinsics=identity, has_intrinsics=jnp.zeros_like(batch.has_intrinsics))


def turn_frame(batch: Batch, turn: Float[Array, "batch 3 3"]) -> Batch:
    """Turn the camera frame of joints and global rotations by rotation matrices; pixels do not change."""
    product = functools.partial(jnp.einsum, precision="highest")
    rotation = product("bij,bjk->bik", turn, matrix_from_axis_angle(jnp.asarray(batch.pose[:, 0])))
    return dataclasses.replace(
        batch,
        joints=product("bij,bkj->bki", turn, batch.joints),
        pose=jnp.concatenate([axis_angle_from_matrix(rotation)[:, None], batch.pose[:, 1:]], axis=1),
    )


def _draw_move(
    key: PRNGKeyArray,
    keypoints: Float[Array, "21 2"],
    has_intrinsics: Float[Array, ""],
    source_size: int,
    config: AugmentationConfig,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Draw a crop's centre, side, angle and blur (2,), the grey level outside, and whether to drop intrinsics."""
    draws, box = Draws(key, keypoints.dtype, uniforms=16, normals=1), jnp.maximum(hand_size(keypoints), 1.0)
    fill = jnp.exp(draws.between(math.log(config.fill[0]), math.log(config.fill[1])))
    side = jnp.maximum(jnp.minimum(box / fill, config.beyond * source_size), box)
    room = 0.25 * (side - box) + config.shift * side * draws.uniform()
    center = box_center(keypoints) + room * draws.between(-1.0, 1.0, 2)
    most = jnp.where(has_intrinsics > 0.0, config.rotation, config.rotation_photographs)
    angle = most * draws.between(-1.0, 1.0)
    blur = config.blur * draws.uniform() ** 3
    repeated, grey = draws.uniform() < 0.5, draws.uniform() < 0.6
    outside = jnp.where(repeated, -1.0, jnp.where(grey, _GREY, draws.uniform() ** 2))
    dropped, upright = draws.chance(config.drop_intrinsics), draws.chance(config.upright)
    motion, along = config.motion * draws.uniform() ** 3, draws.chance(0.5)
    blur = jnp.hypot(blur, motion * jnp.stack([along, 1.0 - along]))
    return center, side, angle - upright * turn_of_hand(keypoints), blur, outside, dropped


def vary_light(
    image: Float[Array, "batch size size 3"], keys: Key[Array, "batch"], config: AugmentationConfig
) -> Float[Array, "batch size size 3"]:
    """Vary the light of images in [0, 1], add noise and cover parts of them."""
    size, dtype = image.shape[1], image.dtype

    def one(image: Float[Array, "size size 3"], key: PRNGKeyArray) -> Float[Array, "size size 3"]:
        own, noise_key = jax.random.split(key)
        draws = Draws(own, dtype, uniforms=64, normals=16)
        gain = jnp.exp(config.exposure * draws.normal() + config.tint * draws.normal(3))
        exponent = jnp.exp(config.gamma * draws.normal())
        contrast = jnp.exp(config.contrast * draws.normal())
        saturation = draws.between(*config.saturation) * (1.0 - draws.chance(config.grey))
        image = jnp.maximum(image * gain[None, None], 1e-4) ** exponent
        mean = jnp.mean(image)
        image = mean + contrast * (image - mean)
        luminance = jnp.sum(image * jnp.asarray(_LUMINANCE, dtype)[None, None], axis=-1, keepdims=True)
        image = luminance + saturation * (image - luminance)
        at = jnp.arange(size, dtype=dtype) / size
        for _ in range(2):
            middle, half = draws.uniform(2), draws.between(0.03, 0.16, 2)
            on = draws.chance(config.cut_out) > 0.0
            columns, rows = (jnp.abs(at - middle[i]) < half[i] for i in (0, 1))
            covered = on & rows[:, None] & columns[None, :]
            image = jnp.where(covered[..., None], draws.uniform(3)[None, None], image)
        # Random bits are cheaper than normal numbers; 73.9 is the standard deviation of a uniform byte.
        bits = jax.random.bits(noise_key, (size, size, 3), jnp.uint8).astype(dtype)
        noise = (bits - jnp.asarray(127.5, dtype)) * (1.0 / 73.9)
        return jnp.clip(image + config.noise * draws.uniform() ** 2 * noise, 0.0, 1.0)

    return jax.vmap(one)(image, keys)


def resample(
    image: UInt8[Array, "batch source source 3"],
    affine: Float[Array, "batch 2 3"],
    size: int,
    *,
    blur: Float[Array, "batch 2"] | None = None,
    outside: Float[Array, "batch"] | None = None,
) -> Float[Array, "batch size size 3"]:
    """Resample images so that pixel A(u, v) of the result, in [0, 1], shows the source's pixel (u, v), bilinearly.

    Args:
        image: source images.
        affine: maps from pixels of the source to pixels of the result.
        size: side of the result, pixels.
        blur: standard deviations of additional blur along rows and columns of the source, pixels of the result.
        outside: grey level outside the source; a negative level repeats the border. Mid-grey if None.
    """
    count, source, dtype = image.shape[0], image.shape[1], affine.dtype
    planes, points = _smoothed(image, affine, blur), _source_points(affine, size)
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
    fill = jnp.full((count,), _GREY, dtype) if outside is None else outside
    keep = jnp.where(fill[:, None] < 0.0, 1.0, inside)
    channels = []
    for c in range(3):
        index = corner + c * source * source
        upper = flat[index] * (1.0 - u) + flat[index + 1] * u
        lower = flat[index + source] * (1.0 - u) + flat[index + source + 1] * u
        value = upper * (1.0 - v) + lower * v
        channels.append(keep * value + (1.0 - keep) * fill[:, None])
    return jnp.stack(channels, axis=-1).reshape(count, size, size, 3)


def _source_points(affine: Float[Array, "batch 2 3"], size: int) -> Float[Array, "batch pixels 2"]:
    """Return the points of the source that the pixels of the result show."""
    at = jnp.arange(size, dtype=affine.dtype)
    grid = jnp.stack(jnp.broadcast_arrays(at[None, :], at[:, None]), axis=-1).reshape(-1, 2)
    return jax.vmap(transform_pixels, in_axes=(0, None))(inverse_affine(affine), grid)


def _smoothed(
    image: UInt8[Array, "batch source source 3"],
    affine: Float[Array, "batch 2 3"],
    blur: Float[Array, "batch 2"] | None,
) -> Float[Array, "batch 3 source source"]:
    """Blur images by as much as an affine map shrinks them, which prevents aliasing, and by the additional blur."""
    source = image.shape[1]
    zoom = jnp.sqrt(jnp.abs(affine[:, 0, 0] * affine[:, 1, 1] - affine[:, 0, 1] * affine[:, 1, 0]))
    # A box filter as wide as a pixel of the result has the variance (1/zoom^2)/12; the source's pixels have 1/12.
    shrunk = jnp.maximum((1.0 / zoom**2 - 1.0) / 12.0, 0.0) * 2.0
    variance = shrunk[:, None] + (jnp.zeros((1, 2)) if blur is None else (blur / zoom[:, None]) ** 2)
    planes = jnp.moveaxis(image, -1, 1).astype(affine.dtype) / 255.0
    # Every row of a matrix blurs a pixel; it is the identity if the variance is 0.
    at = jnp.arange(source, dtype=variance.dtype)
    squared = jnp.square(at[:, None] - at[None, :])[None, None]
    weights = jnp.exp(-0.5 * squared / jnp.maximum(variance, 1e-2)[..., None, None])
    kernel = weights / jnp.sum(weights, axis=3, keepdims=True)
    planes = jnp.einsum("bvr,bcrs->bcvs", kernel[:, 1], planes)
    return jnp.einsum("bus,bcvs->bcvu", kernel[:, 0], planes)

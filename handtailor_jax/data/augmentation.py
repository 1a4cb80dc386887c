"""Random crops and random light: labels and cameras move exactly with the pixels.

One program serves a whole batch. An affine map per image is applied to pixels, keypoints, camera and camera frame;
changes of light leave the labels alone.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray, UInt8

from handtailor_jax.data.draws import Draws
from handtailor_jax.data.resampling import GREY, resample
from handtailor_jax.data.sample import Batch
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import (
    crop_affine,
    in_plane_rotation,
    rotate_frame,
    transform_camera,
    transform_pixels,
)
from handtailor_jax.geometry.lifting import turn_to_axis
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.skeleton import ROOT

MAP_STRIDE = 4
"""Pixels of a crop per pixel of its mask and depth map. Losses render each map, so maps are as coarse as heatmaps."""

_LUMINANCE = np.asarray([0.299, 0.587, 0.114], np.float32)
_CUTS = 2


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Strength of the random variation of training images."""

    fill: tuple[float, float] = (1.0 / 2.4, 1.0)
    """Range of the hand size as a share of the crop's side, uniform in the logarithm."""
    shift: float = 0.12
    """Largest distance between the centres of keypoints and crop as a share of the crop's side, in addition to half of
    the room that the hand leaves."""
    beyond: float = 1.2
    """Largest side of a crop as a multiple of the image's side, so that few crops reach far beyond the image."""
    rotation: float = math.pi
    """Largest in-plane rotation of images with intrinsics (rendered ones), radians."""
    rotation_photographs: float = math.pi / 3.0
    """Largest in-plane rotation of images without intrinsics, radians."""
    drop_intrinsics: float = 0.5
    """Probability that known intrinsics are withheld, so that one set of weights serves both modes."""
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
    noise: float = 0.05
    """Largest standard deviation of noise, for values from 0 to 1."""
    cut_out: float = 0.3
    """Probability of each of two rectangles that cover parts of the image."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: if a field is out of range; names the field.
        """
        if not 0.0 < self.fill[0] <= self.fill[1]:
            raise InputError(f"AugmentationConfig: fill is {self.fill}: give an increasing range of positive numbers")
        for name in ("drop_intrinsics", "grey", "cut_out"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"AugmentationConfig: {name} is {getattr(self, name)}: give a probability, 0 to 1")


def augment(batch: Batch, keys: Key[Array, "batch"], config: AugmentationConfig, size: int) -> Batch:
    """Crop every image at random, move labels and intrinsics along, and vary the light.

    Args:
        batch: square images of any one size.
        keys: one random key per image; an image's variation depends on its key only.
        config: strength of the variation.
        size: side of the crops, pixels.
    """
    moves = jax.vmap(lambda key, points, known: _draw_move(key, points, known, batch.image.shape[-2], config))(
        jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), batch.keypoints_2d, batch.has_intrinsics
    )
    center, side, angle, blur, outside, drop = moves
    affine = crop_affine(center, side, size, angle)
    image = resample(batch.image, affine, size, blur=blur, outside=outside)
    image = vary_light(image, jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), config)
    moved = move_labels(batch, affine, angle)
    moved = where_samples(drop * batch.has_intrinsics > 0.0, without_intrinsics(moved), moved)
    maps = map_affine(affine)
    return dataclasses.replace(
        moved,
        image=jnp.round(255.0 * image).astype(jnp.uint8),
        mask=None if batch.mask is None else move_mask(batch.mask, maps, size // MAP_STRIDE),
        depth=None if batch.depth is None else move_depth(batch.depth, maps, size // MAP_STRIDE),
    )


def map_affine(affine: Float[Array, "*batch 2 3"]) -> Float[Array, "*batch 2 3"]:
    """Turn an affine map to pixels of the crop into one to pixels of its mask or depth map."""
    # The centre of a coarse pixel is in the middle of `MAP_STRIDE` fine pixels.
    offset = jnp.asarray([0.0, 0.0, 0.5 / MAP_STRIDE - 0.5], affine.dtype)
    return affine / MAP_STRIDE + jnp.broadcast_to(offset, affine.shape)


def move_mask(
    mask: UInt8[Array, "batch source source"], affine: Float[Array, "batch 2 3"], size: int
) -> UInt8[Array, "batch size size"]:
    """Move masks by an affine map of pixels; they are 0 beyond the source."""
    nothing = jnp.zeros(mask.shape[0], affine.dtype)
    moved = resample(jnp.stack([mask] * 3, axis=-1), affine, size, outside=nothing)[..., 0]
    return jnp.round(255.0 * moved).astype(jnp.uint8)


def move_depth(
    depth: Float[Array, "batch source source"], affine: Float[Array, "batch 2 3"], size: int
) -> Float[Array, "batch size size"]:
    """Move depth maps by an affine map of pixels, which leaves z unchanged: nearest pixels, 0 beyond the source."""
    source = depth.shape[-1]
    at = jnp.arange(size, dtype=affine.dtype)
    grid = jnp.stack(jnp.broadcast_arrays(at[None, :], at[:, None]), axis=-1)
    inverse = jnp.linalg.inv(affine[:, :, :2])
    points = jnp.einsum("bij,bvuj->bvui", inverse, grid[None] - affine[:, None, None, :, 2])
    nearest = jnp.round(points).astype(jnp.int32)
    inside = jnp.all((nearest >= 0) & (nearest < source), axis=-1)
    column, row = jnp.moveaxis(jnp.clip(nearest, 0, source - 1), -1, 0)
    found = jax.vmap(lambda values, v, u: values[v, u])(jnp.asarray(depth), row, column)
    return jnp.where(inside, found, 0.0)


def center_crop(batch: Batch, size: int, box_factor: float) -> Batch:
    """Crop the square around each hand's keypoints, without any variation. Masks and depth maps are left out.

    Args:
        batch: square images of any one size.
        size: side of the crops, pixels.
        box_factor: side of the square as a multiple of the hand size.
    """
    low, high = jnp.min(batch.keypoints_2d, axis=-2), jnp.max(batch.keypoints_2d, axis=-2)
    side = box_factor * hand_size(jnp.asarray(batch.keypoints_2d))
    affine = crop_affine(0.5 * (low + high), side, size)
    image = resample(batch.image, affine, size)
    moved = move_labels(batch, affine, jnp.zeros_like(side))
    return dataclasses.replace(moved, image=jnp.round(255.0 * image).astype(jnp.uint8), mask=None, depth=None)


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
    planar = in_plane_rotation(angle)
    turn = jnp.zeros((*angle.shape, 3, 3), angle.dtype).at[:, :2, :2].set(planar).at[:, 2, 2].set(1.0)
    return turn_frame(moved, turn)


def without_intrinsics(batch: Batch) -> Batch:
    """Withhold the intrinsics, and turn the hand into the frame of a camera whose z axis goes through the root."""
    turned = turn_frame(batch, turn_to_axis(batch.joints[:, ROOT]))
    identity = jnp.broadcast_to(jnp.eye(3, dtype=batch.joints.dtype), batch.intrinsics.shape)
    return dataclasses.replace(turned, intrinsics=identity, has_intrinsics=jnp.zeros_like(batch.has_intrinsics))


def turn_frame(batch: Batch, turn: Float[Array, "batch 3 3"]) -> Batch:
    """Turn the camera frame of joints and global rotations by rotation matrices; pixels do not change."""
    rotation = jnp.einsum("bij,bjk->bik", turn, matrix_from_axis_angle(jnp.asarray(batch.pose[:, 0])))
    return dataclasses.replace(
        batch,
        joints=jnp.einsum("bij,bkj->bki", turn, batch.joints),
        pose=jnp.concatenate([axis_angle_from_matrix(rotation)[:, None], batch.pose[:, 1:]], axis=1),
    )


def where_samples(choose: Array, first: Batch, second: Batch) -> Batch:
    """Return samples of `first` where `choose` (batch,) is true, otherwise of `second`."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(choose.reshape(-1, *([1] * (a.ndim - 1))), a, b)

    return jax.tree.map(pick, first, second)


def _draw_move(
    key: PRNGKeyArray,
    keypoints: Float[Array, "21 2"],
    has_intrinsics: Float[Array, ""],
    source_size: int,
    config: AugmentationConfig,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Draw a crop's centre, side, angle, blur in crop pixels and fill outside, and whether to drop intrinsics."""
    draws = Draws(key, keypoints.dtype, uniforms=16, normals=1)
    low, high = jnp.min(keypoints, axis=0), jnp.max(keypoints, axis=0)
    box = jnp.maximum(hand_size(keypoints), 1.0)
    fill = jnp.exp(draws.between(math.log(config.fill[0]), math.log(config.fill[1])))
    side = jnp.maximum(jnp.minimum(box / fill, config.beyond * source_size), box)
    room = 0.25 * (side - box) + config.shift * side * draws.uniform()
    center = 0.5 * (low + high) + room * draws.between(-1.0, 1.0, 2)
    most = jnp.where(has_intrinsics > 0.0, config.rotation, config.rotation_photographs)
    angle = most * draws.between(-1.0, 1.0)
    blur = config.blur * draws.uniform() ** 3
    kind = draws.uniform()
    color = jnp.where(draws.uniform() < 0.6, GREY, draws.uniform() ** 2)
    outside = jnp.where(kind < 0.5, -1.0, color)
    return center, side, angle, blur, outside, draws.chance(config.drop_intrinsics)


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
        for _ in range(_CUTS):
            middle, half = draws.uniform(2), draws.between(0.03, 0.16, 2)
            on = draws.chance(config.cut_out) > 0.0
            columns, rows = (jnp.abs(at - middle[i]) < half[i] for i in (0, 1))
            covered = on & rows[:, None] & columns[None, :]
            image = jnp.where(covered[..., None], draws.uniform(3)[None, None], image)
        # Random bits are cheaper than normal numbers; 73.9 is the standard deviation of a uniform byte.
        bits = jax.random.bits(noise_key, (size, size, 3), jnp.uint8).astype(dtype)
        level = config.noise * draws.uniform() ** 2
        noise = (bits - jnp.asarray(127.5, dtype)) * (1.0 / 73.9)
        return jnp.clip(image + level * noise, 0.0, 1.0)

    return jax.vmap(one)(image, keys)

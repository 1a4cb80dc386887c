"""Crops of pictures as a detector, a camera and a person might have made them, with exactly moved labels.

One program for a whole batch: an affine map per picture, applied to pixels, keypoints, camera and camera frame alike,
then changes of light that leave the labels alone.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt8

from handtailor_jax.data.draws import Draws
from handtailor_jax.data.sample import Batch
from handtailor_jax.errors import InputError
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
"""Pixels of a crop per pixel of its mask and depth map: as coarse as the network's maps, since each is rendered."""

_LUMINANCE = np.asarray([0.299, 0.587, 0.114], np.float32)
_GREY = 0.5
_CUTS = 2


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """How pictures are varied. Shares are probabilities."""

    fill: tuple[float, float] = (1.0 / 2.4, 1.0)
    """Longer side of the box around the keypoints as a share of the crop's side, uniform in the logarithm."""
    shift: float = 0.12
    """How far the box's middle may be from the crop's, as a share of the crop's side, besides the room that the box
    leaves; half of that room is used."""
    beyond: float = 1.2
    """Crops are at most this many times as large as the picture, so that few reach far beyond it."""
    rotation: float = math.pi
    """In-plane rotation at most, radians, of pictures with intrinsics (the synthetic ones)."""
    rotation_photographs: float = math.pi / 3.0
    """The same of pictures without intrinsics."""
    drop_intrinsics: float = 0.5
    """Share of pictures with intrinsics that are shown without, so that one set of weights serves both modes."""
    exposure: float = 0.25
    """Standard deviation of the logarithm of the brightness."""
    tint: float = 0.08
    """The same of each channel's brightness."""
    gamma: float = 0.25
    """The same of the exponent of the tone curve."""
    contrast: float = 0.25
    """The same of the contrast."""
    saturation: tuple[float, float] = (0.4, 1.4)
    """Range of the factor on colourfulness."""
    grey: float = 0.05
    """Share of grey pictures."""
    blur: float = 1.2
    """Standard deviation of additional blur at most, in pixels of the crop."""
    noise: float = 0.05
    """Standard deviation of noise at most, of the range from 0 to 1."""
    cut_out: float = 0.3
    """Share of pictures with up to two rectangles covered."""

    def __post_init__(self) -> None:
        """Refuses ranges that cannot be drawn from.

        Raises:
            InputError: naming the field.
        """
        if not 0.0 < self.fill[0] <= self.fill[1]:
            raise InputError(f"AugmentationConfig: fill must be an increasing positive range, got {self.fill}")
        for name in ("drop_intrinsics", "grey", "cut_out"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"AugmentationConfig: {name} is a share between 0 and 1, got {getattr(self, name)}")


def augment(batch: Batch, keys: Key[Array, "batch"], config: AugmentationConfig, size: int) -> Batch:
    """A random crop of every picture, with labels and intrinsics moved along, and random light.

    Args:
        batch: pictures of any one size.
        keys: one random key a picture, on which alone its variation depends.
        config: how strong.
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
    """The affine map to pixels of a mask or depth map, of that to pixels of the crop."""
    # Centres of coarse pixels lie in the middle of `MAP_STRIDE` fine ones.
    offset = jnp.asarray([0.0, 0.0, 0.5 / MAP_STRIDE - 0.5], affine.dtype)
    return affine / MAP_STRIDE + jnp.broadcast_to(offset, affine.shape)


def move_mask(
    mask: UInt8[Array, "batch source source"], affine: Float[Array, "batch 2 3"], size: int
) -> UInt8[Array, "batch size size"]:
    """Masks moved by an affine map: shares of the result's pixels, 0 beyond the source."""
    nothing = jnp.zeros(mask.shape[0], affine.dtype)
    moved = resample(jnp.stack([mask] * 3, axis=-1), affine, size, outside=nothing)[..., 0]
    return jnp.round(255.0 * moved).astype(jnp.uint8)


def move_depth(
    depth: Float[Array, "batch source source"], affine: Float[Array, "batch 2 3"], size: int
) -> Float[Array, "batch size size"]:
    """Depth maps moved by an affine map of pixels, which leaves z as it is: nearest pixels, 0 beyond the source."""
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
    """The square around each hand's keypoints, `box_factor` times as large as their box, without any variation.

    Masks and depth maps are left out.
    """
    low, high = jnp.min(batch.keypoints_2d, axis=-2), jnp.max(batch.keypoints_2d, axis=-2)
    side = box_factor * jnp.max(high - low, axis=-1)
    affine = crop_affine(0.5 * (low + high), side, size)
    image = resample(batch.image, affine, size)
    moved = move_labels(batch, affine, jnp.zeros_like(side))
    return dataclasses.replace(moved, image=jnp.round(255.0 * image).astype(jnp.uint8), mask=None, depth=None)


def move_labels(batch: Batch, affine: Float[Array, "batch 2 3"], angle: Float[Array, "batch"]) -> Batch:
    """Labels and intrinsics of pictures moved by an affine map with an in-plane rotation by `angle` (radians).

    The camera frame turns with the picture: K' = A K R3^T, points and global rotations become R3 p and R3 R
    (datasets, section 1.4).
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
    """The batch as seen by a camera of which nothing is known but that it looks at the hand.

    Such a camera's frame has its z axis through the root joint, so the hand is turned there.
    """
    turned = turn_frame(batch, turn_to_axis(batch.joints[:, ROOT]))
    identity = jnp.broadcast_to(jnp.eye(3, dtype=batch.joints.dtype), batch.intrinsics.shape)
    return dataclasses.replace(turned, intrinsics=identity, has_intrinsics=jnp.zeros_like(batch.has_intrinsics))


def turn_frame(batch: Batch, turn: Float[Array, "batch 3 3"]) -> Batch:
    """Joints and global rotations in a camera frame turned by rotation matrices; pixels stay."""
    rotation = jnp.einsum("bij,bjk->bik", turn, matrix_from_axis_angle(jnp.asarray(batch.pose[:, 0])))
    return dataclasses.replace(
        batch,
        joints=jnp.einsum("bij,bkj->bki", turn, batch.joints),
        pose=jnp.concatenate([axis_angle_from_matrix(rotation)[:, None], batch.pose[:, 1:]], axis=1),
    )


def where_samples(choose: Array, first: Batch, second: Batch) -> Batch:
    """Samples of `first` where `choose` (batch,) is set, else of `second`."""

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
    """Centre, side and angle of a crop, its blur in crop pixels, what is outside, whether intrinsics are dropped."""
    draws = Draws(key, keypoints.dtype, uniforms=16, normals=1)
    low, high = jnp.min(keypoints, axis=0), jnp.max(keypoints, axis=0)
    box = jnp.maximum(jnp.max(high - low), 1.0)
    fill = jnp.exp(draws.between(math.log(config.fill[0]), math.log(config.fill[1])))
    side = jnp.maximum(jnp.minimum(box / fill, config.beyond * source_size), box)
    room = 0.25 * (side - box) + config.shift * side * draws.uniform()
    center = 0.5 * (low + high) + room * draws.between(-1.0, 1.0, 2)
    most = jnp.where(has_intrinsics > 0.0, config.rotation, config.rotation_photographs)
    angle = most * draws.between(-1.0, 1.0)
    blur = config.blur * draws.uniform() ** 3
    kind = draws.uniform()
    color = jnp.where(draws.uniform() < 0.6, _GREY, draws.uniform() ** 2)
    outside = jnp.where(kind < 0.5, -1.0, color)
    return center, side, angle, blur, outside, draws.chance(config.drop_intrinsics)


def resample(
    image: UInt8[Array, "batch source source 3"],
    affine: Float[Array, "batch 2 3"],
    size: int,
    *,
    blur: Float[Array, "batch"] | None = None,
    outside: Float[Array, "batch"] | None = None,
) -> Float[Array, "batch size size 3"]:
    """Square pictures in [0, 1] whose pixel A(u, v) shows the source's pixel (u, v).

    Where a picture shrinks, it is first blurred by as much as its pixels grow, which keeps fine patterns from turning
    into coarse ones; then it is looked up bilinearly.

    Args:
        image: source pictures.
        affine: maps from source pixels to pixels of the result.
        size: side of the result.
        blur: standard deviation of additional blur, pixels of the result.
        outside: grey level beyond the source's border; negative continues the border. Mid-grey if None.
    """
    count, source = image.shape[0], image.shape[1]
    dtype = affine.dtype
    zoom = jnp.sqrt(jnp.abs(affine[:, 0, 0] * affine[:, 1, 1] - affine[:, 0, 1] * affine[:, 1, 0]))
    # A box filter as wide as a pixel of the result has the variance (1/zoom^2)/12; the source's own pixels had 1/12.
    variance = jnp.maximum((1.0 / zoom**2 - 1.0) / 12.0, 0.0) * 2.0
    if blur is not None:
        variance = variance + (blur / zoom) ** 2
    planes = jnp.moveaxis(image, -1, 1).astype(dtype) / 255.0
    kernel = jax.vmap(lambda v: _blur_matrix(source, v))(variance)
    planes = jnp.einsum("bvr,bcrs->bcvs", kernel, planes)
    planes = jnp.einsum("bus,bcvs->bcvu", kernel, planes)

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


def _blur_matrix(size: int, variance: Float[Array, ""]) -> Float[Array, "size size"]:
    """The matrix that blurs a row of pixels; the identity for variance 0."""
    at = jnp.arange(size, dtype=variance.dtype)
    squared = jnp.square(at[:, None] - at[None, :])
    weights = jnp.exp(-0.5 * squared / jnp.maximum(variance, 1e-2))
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def vary_light(
    image: Float[Array, "batch size size 3"], keys: Key[Array, "batch"], config: AugmentationConfig
) -> Float[Array, "batch size size 3"]:
    """Pictures in [0, 1] under other light, with noise, partly covered."""
    size, dtype = image.shape[1], image.dtype

    def one(picture: Float[Array, "size size 3"], key: PRNGKeyArray) -> Float[Array, "size size 3"]:
        own, noise_key = jax.random.split(key)
        draws = Draws(own, dtype, uniforms=64, normals=16)
        gain = jnp.exp(config.exposure * draws.normal() + config.tint * draws.normal(3))
        exponent = jnp.exp(config.gamma * draws.normal())
        contrast = jnp.exp(config.contrast * draws.normal())
        saturation = draws.between(*config.saturation) * (1.0 - draws.chance(config.grey))
        picture = jnp.maximum(picture * gain[None, None], 1e-4) ** exponent
        mean = jnp.mean(picture)
        picture = mean + contrast * (picture - mean)
        luminance = jnp.sum(picture * jnp.asarray(_LUMINANCE, dtype)[None, None], axis=-1, keepdims=True)
        picture = luminance + saturation * (picture - luminance)
        at = jnp.arange(size, dtype=dtype) / size
        for _ in range(_CUTS):
            middle, half = draws.uniform(2), draws.between(0.03, 0.16, 2)
            on = draws.chance(config.cut_out) > 0.0
            columns, rows = (jnp.abs(at - middle[i]) < half[i] for i in (0, 1))
            covered = on & rows[:, None] & columns[None, :]
            picture = jnp.where(covered[..., None], draws.uniform(3)[None, None], picture)
        # Bits are cheaper than normal numbers: the sum of two uniform ones is close enough to normal.
        bits = jax.random.bits(noise_key, (size, size, 3), jnp.uint8).astype(dtype)
        level = config.noise * draws.uniform() ** 2
        noise = (bits - jnp.asarray(127.5, dtype)) * (1.0 / 73.9)
        return jnp.clip(picture + level * noise, 0.0, 1.0)

    return jax.vmap(one)(image, keys)

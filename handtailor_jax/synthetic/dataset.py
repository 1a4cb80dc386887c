"""An endless set of rendered hands with exact labels: sample i of a split follows from the seed and i alone.

Everything is one compiled program of fixed shapes, so that an accelerator renders training batches while it trains:

    dataset = SyntheticDataset(SyntheticConfig(size=256), "train", seed=0)
    dataset[7], dataset.batch(np.arange(64)), next(iter(dataset))

or, inside a training step of one's own, `render_batch(assets, keys, config)`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, UInt8

from handtailor_jax.data.draws import Draws
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.mirror import mirror_camera, mirror_pixels, mirror_points
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.render.rasterise import rasterise
from handtailor_jax.synthetic.appearance import key_visibility, openness_of, sample_light, sample_look, see, shade
from handtailor_jax.synthetic.backgrounds import photo_background, procedural_background
from handtailor_jax.synthetic.imaging import ImagingConfig, develop, gaussian, separable
from handtailor_jax.synthetic.poses import PoseConfig, sample_betas, sample_pose
from handtailor_jax.synthetic.scene import Placement, SceneConfig, SceneTopology, company, place_hand, scene_topology
from handtailor_jax.synthetic.skin import skin_chart
from handtailor_jax.types import Camera, pytree

Split = Literal["train", "test"]

TEST_SAMPLES = 4000
"""Size of the test split, which all tables of this project use."""

_TEST_SEED = 20_210_209  # reserved: the test split has this seed whatever seed is asked for
_CHART_SIZE = 512
_SPLIT_TAG = {"train": 0, "test": 1}
# Metres of flesh and skin in front of a keypoint that is still seen: it lies inside the hand.
_FLESH = np.asarray([0.028] + [0.030, 0.021, 0.016, 0.008] + [0.024, 0.015, 0.012, 0.007] * 4, np.float32)


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """What the samples are like."""

    size: int = 256
    """Side of the pictures in pixels; a multiple of 16."""
    pose: PoseConfig = dataclasses.field(default_factory=PoseConfig)
    scene: SceneConfig = dataclasses.field(default_factory=SceneConfig)
    imaging: ImagingConfig = dataclasses.field(default_factory=ImagingConfig)
    left: float = 0.0
    """Share of left hands, which are mirrored right hands with all their labels. Networks of this project see right
    hands only, so by default there are none."""
    photographs: float = 0.5
    """Share of backgrounds from the pictures given to the dataset; without pictures all are procedural."""
    images_at_once: int = 8
    """Pictures rendered together; others wait. Memory grows with it, on an accelerator so does the speed."""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be rendered.

        Raises:
            InputError: naming the field.
        """
        if self.size < 32 or self.size % 16:
            raise InputError(f"SyntheticConfig: size must be a multiple of 16 and at least 32, got {self.size}")
        if self.images_at_once < 1:
            raise InputError(f"SyntheticConfig: images_at_once must be at least 1, got {self.images_at_once}")


@pytree
class SyntheticSample:
    """A picture of a hand and the truth about it. Batches have a leading axis."""

    image: UInt8[Array, "*batch size size 3"]
    """sRGB."""
    keypoints_2d: Float[Array, "*batch 21 2"]
    """Keypoints (u, v) in the picture's pixels."""
    joints: Float[Array, "*batch 21 3"]
    """Keypoints in the camera frame, metres."""
    pose: Float[Array, "*batch 16 3"]
    """Axis-angle rotations in MANO's order, radians, relative to the flat rest pose; row 0 is the global one."""
    betas: Float[Array, "*batch 10"]
    """Shape coefficients."""
    camera: Camera
    """Pinhole camera of the picture."""
    vertices: Float[Array, "*batch vertices 3"]
    """Vertices of the embedded hand in the camera frame, metres."""
    depth: Float[Array, "*batch size size"]
    """Camera z of the hand where `mask` is set, metres; 0 elsewhere."""
    mask: Bool[Array, "*batch size size"]
    """Where the hand model is seen: without the arm, and without what other things cover."""
    visible: Bool[Array, "*batch 21"]
    """Whether the flesh around a keypoint is the first thing seen on the way to it, inside the picture."""
    left: Bool[Array, "*batch"]
    """Whether this is a left hand; pose and betas then belong to the left embedded hand."""


@pytree
class SyntheticAssets:
    """What all samples share; an argument of compiled programs, not a constant in them."""

    hand: HandModel
    topology: SceneTopology
    chart: Float[Array, "channels chart chart"]
    """See `skin_chart`."""
    photographs: UInt8[Array, "pictures h w 3"]
    """A user's background pictures, sRGB; none if there are no pictures."""


def load_assets(photographs: Any = None) -> SyntheticAssets:
    """The embedded hand and its chart, and background pictures as a uint8 RGB array (pictures, height, width, 3).

    Raises:
        InputError: if the pictures are of another kind.
    """
    pictures = np.zeros((0, 1, 1, 3), np.uint8) if photographs is None else np.asarray(photographs)
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise InputError(
            f"photographs must be one uint8 RGB array (pictures, height, width, 3), got {pictures.dtype} of shape "
            f"{pictures.shape}: resize the pictures to one size and stack them"
        )
    return SyntheticAssets(
        hand=embedded_hand(),
        topology=scene_topology(),
        chart=jnp.asarray(skin_chart(_CHART_SIZE)),
        photographs=jnp.asarray(pictures),
    )


def sample_key(seed: int | Array, split: Split, index: Any) -> PRNGKeyArray:
    """The random key of a sample. Keys of different splits never coincide, whatever the seed."""
    root = jax.random.key(_TEST_SEED if split == "test" else seed)
    return jax.random.fold_in(jax.random.fold_in(root, _SPLIT_TAG[split]), index)


def sample_hand(
    assets: SyntheticAssets, key: PRNGKeyArray, config: SyntheticConfig
) -> tuple[Float[Array, "16 3"], Float[Array, "betas"], Placement]:
    """Pose, shape and place of the hand of a sample (before mirroring): its labels without its picture."""
    keys = jax.random.split(key, 3)
    pose = sample_pose(assets.hand, keys[0], config.pose)
    betas = sample_betas(assets.hand, keys[1], config.pose)
    return pose, betas, place_hand(assets.hand, pose, betas, keys[2], config.size, config.scene)


def render_sample(assets: SyntheticAssets, key: PRNGKeyArray, config: SyntheticConfig) -> SyntheticSample:
    """One sample, without leading axis; jit, vmap and scan it at will."""
    topology, size, dtype = assets.topology, config.size, assets.hand.dtype
    pose, betas, placed = sample_hand(assets, key, config)
    keys = jax.random.split(jax.random.fold_in(key, 1), 4)
    draws = Draws(keys[0], dtype)
    vertices = company(placed, pose, topology, keys[1], config.scene)

    # Two samples a pixel along each axis, every other of them at a pixel's centre.
    fine = Camera(2.0 * placed.camera.linear, 2.0 * placed.camera.center, placed.camera.perspectivity)
    surface = see(vertices, topology, fine, 2 * size)
    light, look = sample_light(draws), sample_look(draws)
    center = jnp.mean(placed.joints, axis=0)
    lit = key_visibility(surface, vertices, topology, light, center)
    colors = shade(surface, assets.chart, look, light, lit, openness_of(surface, fine), fine)
    covered = (surface.face >= 0).astype(dtype)
    layer = jnp.stack([_reduce(plane) for plane in (*colors, covered)], axis=-1)

    background = _background(assets, keys[2], config)
    blurred = gaussian(size, 0.3 + size * config.imaging.background_defocus * draws.uniform() ** 2)
    background = separable(background, blurred, blurred)
    background = _cast_shadow(background, layer[..., 3], draws)
    # Exposed for the hand, darker skin a little darker than light skin.
    albedo = jnp.exp(-1.2 * look.melanin)
    seen = rasterise(vertices, topology.faces, placed.camera, size, size)
    on_hand = seen.mask & (topology.is_hand[jnp.maximum(seen.face_index, 0)] > 0)
    brightness = sum(w * plane[::2, ::2] for w, plane in zip((0.3, 0.6, 0.1), colors, strict=True))
    mean = jnp.sum(jnp.where(on_hand, brightness, 0.0)) / jnp.maximum(jnp.sum(on_hand.astype(dtype)), 1.0)
    target = 0.30 * albedo**0.6 * jnp.exp(0.25 * draws.normal())
    exposure = target / jnp.maximum(mean, 1e-4)
    light_in = layer[..., :3] * exposure + (1.0 - layer[..., 3:]) * background
    low, high = jnp.min(placed.keypoints_2d, axis=0), jnp.max(placed.keypoints_2d, axis=0)
    margin = 0.06 * jnp.max(high - low)
    box = jnp.concatenate([low - margin, high + margin])
    picture = develop(light_in, box, keys[3], config.imaging)

    sample = SyntheticSample(
        image=jnp.round(255.0 * picture).astype(jnp.uint8),
        keypoints_2d=placed.keypoints_2d,
        joints=placed.joints,
        pose=pose,
        betas=betas,
        camera=placed.camera,
        vertices=placed.vertices,
        depth=jnp.where(on_hand, seen.depth, 0.0),
        mask=on_hand,
        visible=_visible(placed, seen.depth),
        left=draws.uniform() < config.left,
    )
    return _mirror_left(sample, size)


def _reduce(plane: Float[Array, "fine fine"]) -> Float[Array, "size size"]:
    """Every second value, averaged with its neighbours (weights 1 2 1): centred on the pixels, smooth at edges."""
    size = plane.shape[0] // 2
    for axis in (0, 1):
        at = jax.lax.slice_in_dim(plane, 0, 2 * size, 2, axis)
        after = jax.lax.slice_in_dim(plane, 1, 2 * size, 2, axis)
        first = jax.lax.slice_in_dim(plane, 0, 1, 1, axis)
        before = jnp.concatenate([first, jax.lax.slice_in_dim(after, 0, size - 1, 1, axis)], axis)
        plane = 0.5 * at + 0.25 * (before + after)
    return plane


def _background(assets: SyntheticAssets, key: PRNGKeyArray, config: SyntheticConfig) -> Float[Array, "size size 3"]:
    made_key, photo_key, choice = jax.random.split(key, 3)
    made = procedural_background(made_key, config.size, assets.hand.dtype)
    if assets.photographs.shape[0] == 0:
        return made
    photo = photo_background(photo_key, assets.photographs, config.size, assets.hand.dtype)
    return jnp.where(jax.random.uniform(choice) < config.photographs, photo, made)


def _cast_shadow(background: Array, coverage: Float[Array, "size size"], draws: Draws) -> Float[Array, "size size 3"]:
    """The hand's shadow on a wall close behind it."""
    size = background.shape[0]
    shift = 0.10 * size * draws.normal(2)
    sigma = size * draws.between(0.01, 0.07)
    depth = draws.between(0.0, 0.6) * draws.chance(0.4)
    shadow = separable(coverage[..., None], gaussian(size, sigma, shift[1]), gaussian(size, sigma, shift[0]))
    return background * (1.0 - depth * jnp.clip(shadow, 0.0, 1.0))


def _visible(placed: Placement, depth: Float[Array, "size size"]) -> Bool[Array, "21"]:
    """Compares each keypoint's depth with that of the first surface in its direction."""
    size, dtype = depth.shape[0], depth.dtype
    pixel = jnp.round(placed.keypoints_2d).astype(jnp.int32)
    inside = jnp.all((pixel >= 0) & (pixel < size), axis=-1)
    column, row = (jnp.clip(pixel[:, i], 0, size - 1) for i in (0, 1))
    bone = jnp.sqrt(jnp.sum((placed.joints[9] - placed.joints[0]) ** 2))
    return inside & (depth[row, column] > placed.joints[:, 2] - bone / 0.095 * jnp.asarray(_FLESH, dtype))


def _mirror_left(sample: SyntheticSample, size: int) -> SyntheticSample:
    """The mirrored sample where it is to be a left hand."""
    flip = jnp.asarray([1.0, -1.0, -1.0], sample.pose.dtype)
    mirrored = dataclasses.replace(
        sample,
        image=sample.image[:, ::-1],
        keypoints_2d=mirror_pixels(sample.keypoints_2d, size),
        joints=mirror_points(sample.joints),
        pose=sample.pose * flip[None],
        camera=mirror_camera(sample.camera, size),
        vertices=mirror_points(sample.vertices),
        depth=sample.depth[:, ::-1],
        mask=sample.mask[:, ::-1],
    )
    return jax.tree.map(lambda a, b: jnp.where(sample.left, a, b), mirrored, sample)


def render_batch(assets: SyntheticAssets, keys: Key[Array, "n"], config: SyntheticConfig) -> SyntheticSample:
    """Samples of several keys along a leading axis, `config.images_at_once` at a time."""
    one = functools.partial(render_sample, assets, config=config)
    if keys.shape[0] <= config.images_at_once:
        return jax.vmap(one)(keys)
    return jax.lax.map(one, keys, batch_size=config.images_at_once)


@functools.partial(jax.jit, static_argnames="split")
def _sample_keys(seed: Array, split: Split, indices: Array) -> Key[Array, "n"]:
    return jax.vmap(lambda index: sample_key(seed, split, index))(indices)


_render = jax.jit(render_batch, static_argnames="config")


class SyntheticDataset:
    """Random access to the samples of a split, and endless iteration over the training split.

    The training split has 2**31 - 1 samples a seed; the test split has `TEST_SAMPLES`, the same whatever the seed.
    """

    def __init__(
        self,
        config: SyntheticConfig = SyntheticConfig(),
        split: str = "train",
        seed: int = 0,
        photographs: Any = None,
    ) -> None:
        """Prepares a split.

        Args:
            config: what the samples are like.
            split: "train" or "test".
            seed: of the training split; from 0 to 2**31 - 1.
            photographs: background pictures, see `load_assets`.

        Raises:
            InputError: on an unknown split or seed.
        """
        if split not in get_args(Split):
            raise InputError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        if not 0 <= seed < 2**31:
            raise InputError(f"seed must be between 0 and 2**31 - 1, got {seed}")
        self.config, self.split, self.seed = config, cast(Split, split), seed
        self.assets = load_assets(photographs)

    def __len__(self) -> int:
        return TEST_SAMPLES if self.split == "test" else 2**31 - 1

    def __getitem__(self, index: Any) -> Any:
        """Sample number `index`, without leading axis."""
        return jax.tree.map(lambda leaf: leaf[0], self.batch([index]))

    def batch(self, indices: Any) -> SyntheticSample:
        """The samples of several indices along a leading axis.

        Raises:
            IndexError: if an index is outside the split.
        """
        wanted = np.asarray(indices)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise InputError(f"indices must be a list of whole numbers, got {wanted.dtype} of shape {wanted.shape}")
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"the {self.split} split has samples 0 to {len(self) - 1}, got {wanted}")
        # Always the same program, so that a sample does not depend on the batch in which it is asked for.
        step = self.config.images_at_once
        if not wanted.size:
            raise InputError("indices must name at least one sample, got none")
        padded = np.pad(wanted.astype(np.int32), (0, -len(wanted) % step), mode="edge")
        keys = [
            _sample_keys(np.int32(self.seed), self.split, padded[first : first + step])
            for first in range(0, len(padded), step)
        ]
        parts = [_render(self.assets, some, self.config) for some in keys]
        if len(parts) == 1:
            return jax.tree.map(lambda leaf: leaf[: len(wanted)], parts[0])
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[: len(wanted)], *parts)

    def batches(self, size: int, start: int = 0) -> Iterator[SyntheticSample]:
        """Batches of consecutive samples from `start` on: endless on "train", whole batches only on "test"."""
        for first in itertools.count(start, size):
            if first + size > len(self):
                return
            yield self.batch(np.arange(first, first + size))

    def __iter__(self) -> Iterator[SyntheticSample]:
        for batch in self.batches(self.config.images_at_once):
            for i in range(self.config.images_at_once):
                yield jax.tree.map(lambda leaf, i=i: leaf[i], batch)

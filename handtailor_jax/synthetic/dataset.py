"""An endless dataset of rendered hands with exact labels: a sample is a function of split, seed and index.

    dataset = SyntheticDataset(SyntheticConfig(size=256), "train", seed=0)
    dataset[7], dataset.batch(np.arange(64)), next(iter(dataset))

Rendering is one compiled program; `render_batch(assets, keys, config)` renders inside a training step.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, UInt8

from handtailor_jax.data.draws import Draws
from handtailor_jax.errors import InputError, check_range
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.mirror import mirror_camera, mirror_pixels, mirror_points, mirror_pose
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.render.rasterise import rasterise
from handtailor_jax.synthetic.appearance import openness_of, sample_light, sample_materials, shade
from handtailor_jax.synthetic.backgrounds import photo_background, procedural_background
from handtailor_jax.synthetic.imaging import behind_hand, develop, halved
from handtailor_jax.synthetic.poses import PoseConfig, sample_betas, sample_pose
from handtailor_jax.synthetic.scene import Placement, place_hand, scene_vertices, second_hand, visible_keypoints
from handtailor_jax.synthetic.skin import skin_chart
from handtailor_jax.synthetic.surface import SceneTopology, key_visibility, scene_topology, visible_surface
from handtailor_jax.types import Camera, pytree

Split = Literal["train", "test"]

TEST_SAMPLES = 4000
"""Size of the test split, on which the tables of this project are computed."""

_TEST_SEED = 20_210_209  # the seed of the test split
_CHART_SIZE = 512
_SPLIT_TAG = {"train": 0, "test": 1}


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Distribution of the samples."""

    size: int = 256
    """Side of the images in pixels, a multiple of 16."""
    pose: PoseConfig = dataclasses.field(default_factory=PoseConfig)
    left: float = 0.0
    """Share of left hands, which are mirrored right hands with mirrored labels. The default is 0 because training uses
    right hands only."""
    photographs: float = 0.5
    """Share of backgrounds from the photographs given to the dataset; without photographs all are procedural."""
    second_hand: float = 0.0
    """Share of samples in which another hand touches the labelled one or nearly does."""
    images_at_once: int = 8
    """Number of images rendered together. More images need more memory; on an accelerator they are faster."""

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 4096 or self.size % 16:
            raise InputError(f"SyntheticConfig: size must be a multiple of 16 from 32 to 4096, got {self.size}")
        check_range("SyntheticConfig: second_hand", self.second_hand, 0, 1)
        check_range("SyntheticConfig: images_at_once", self.images_at_once, 1)


@pytree
class SyntheticSample:
    """A rendered sRGB image of a hand and its ground truth: pixels (u, v), and metres in the camera frame."""

    image: UInt8[Array, "*batch size size 3"]
    keypoints_2d: Float[Array, "*batch 21 2"]
    joints: Float[Array, "*batch 21 3"]
    pose: Float[Array, "*batch 16 3"]
    """Axis-angle rotations in MANO's order, radians, relative to the flat rest pose; row 0 is the global rotation."""
    betas: Float[Array, "*batch 10"]
    camera: Camera
    """Perspective camera of the image."""
    vertices: Float[Array, "*batch vertices 3"]
    depth: Float[Array, "*batch size size"]
    """Camera z of the hand in metres where `mask` is set, 0 elsewhere."""
    mask: Bool[Array, "*batch size size"]
    """Whether the hand model is visible at the pixel; the arm does not count."""
    visible: Bool[Array, "*batch 21"]
    """Whether the keypoint is inside the image and nothing but the flesh around it is in front of it."""
    left: Bool[Array, "*batch"]
    """Whether this is a left hand; pose and betas then belong to the left embedded hand."""


@pytree
class SyntheticAssets:
    """Arrays that all samples share, passed to compiled programs as an argument instead of a constant."""

    hand: HandModel
    topology: SceneTopology
    chart: Float[Array, "channels chart chart"]
    """See `skin_chart`."""
    photographs: UInt8[Array, "photographs h w 3"]
    """Background photographs in sRGB, possibly none."""


def load_assets(photographs: Any = None, two_hands: bool = False) -> SyntheticAssets:
    """Load the embedded hand, its chart, and background photographs, uint8 RGB (photographs, height, width, 3).

    `two_hands` is needed if `SyntheticConfig.second_hand` is not 0; without it, scenes render in half the time.

    Raises:
        InputError: If the photographs have another type or shape.
    """
    images = np.zeros((0, 1, 1, 3), np.uint8) if photographs is None else np.asarray(photographs)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise InputError(
            f"photographs must be one uint8 RGB array (photographs, height, width, 3), got {images.dtype} of shape "
            f"{images.shape}: resize the photographs to one size and stack them"
        )
    chart = jnp.asarray(skin_chart(_CHART_SIZE))
    return SyntheticAssets(embedded_hand(), scene_topology(two_hands), chart, photographs=jnp.asarray(images))


def sample_key(seed: int | Array, split: Split, index: Any) -> PRNGKeyArray:
    """Return the random key of a sample. The keys of the two splits differ for every seed."""
    root = jax.random.key(_TEST_SEED if split == "test" else seed)
    return jax.random.fold_in(jax.random.fold_in(root, _SPLIT_TAG[split]), index)


def sample_hand(
    assets: SyntheticAssets, key: PRNGKeyArray, config: SyntheticConfig
) -> tuple[Float[Array, "16 3"], Float[Array, "betas"], Placement]:
    """Draw pose, shape and position of a sample's hand, before mirroring: its labels without its image."""
    keys = jax.random.split(key, 3)
    pose = sample_pose(assets.hand, keys[0], config.pose)
    betas = sample_betas(assets.hand, keys[1], config.pose)
    return pose, betas, place_hand(assets.hand, pose, betas, keys[2], config.size)


def render_sample(
    assets: SyntheticAssets,
    key: PRNGKeyArray,
    config: SyntheticConfig,
    drawn: tuple[Float[Array, "16 3"], Float[Array, "betas"], Placement] | None = None,
) -> SyntheticSample:
    """Render one sample, without leading axis; works under jit, vmap and scan.

    `drawn` is the sample's hand, by default the one of `sample_hand`; frames of a video have one key and many hands.
    """
    topology, size, dtype = assets.topology, config.size, assets.hand.dtype
    pose, betas, placed = sample_hand(assets, key, config) if drawn is None else drawn
    keys = jax.random.split(jax.random.fold_in(key, 1), 4)
    draws = Draws(keys[0], dtype)
    vertices = scene_vertices(placed, pose, topology, keys[1])
    if config.second_hand > 0.0:
        pose_key, *own = jax.random.split(jax.random.fold_in(key, 2), 3)
        other_pose = sample_pose(assets.hand, pose_key, dataclasses.replace(config.pose, candidates=1))
        other = second_hand(assets.hand, placed, other_pose, betas, topology, jnp.stack(own), config.second_hand)
        vertices = jnp.concatenate([vertices, other])

    # Two samples per pixel along each axis, of which every second one is at a pixel centre.
    fine = Camera(2.0 * placed.camera.linear, 2.0 * placed.camera.center, placed.camera.perspectivity)
    surface = visible_surface(vertices, topology, fine, 2 * size)
    light, materials = sample_light(draws), sample_materials(draws)
    center = jnp.mean(placed.joints, axis=0)
    lit = key_visibility(surface, vertices, topology, light.key, light.softness, center)
    colors = shade(surface, assets.chart, materials, light, lit, openness_of(surface, fine), fine)
    coverage = (surface.face >= 0).astype(dtype)
    layer = jnp.stack([halved(plane) for plane in (*colors, coverage)], axis=-1)
    background = behind_hand(_background(assets, keys[2], config), layer[..., 3], draws)

    seen = rasterise(vertices, topology.faces, placed.camera, size, size)
    on_hand = seen.mask & (topology.is_hand[jnp.maximum(seen.face_index, 0)] > 0)
    # The exposure suits the hand; dark skin stays a little darker than light skin.
    brightness = sum(w * plane[::2, ::2] for w, plane in zip((0.3, 0.6, 0.1), colors, strict=True))
    mean = jnp.sum(jnp.where(on_hand, brightness, 0.0)) / jnp.maximum(jnp.sum(on_hand.astype(dtype)), 1.0)
    target = 0.30 * jnp.exp(-1.2 * materials.melanin) ** 0.6 * jnp.exp(0.25 * draws.normal())
    exposure = target / jnp.maximum(mean, 1e-4)
    linear = layer[..., :3] * exposure + (1.0 - layer[..., 3:]) * background
    keypoints = placed.keypoints_2d
    margin = 0.06 * hand_size(keypoints)
    box = jnp.concatenate([jnp.min(keypoints, axis=0) - margin, jnp.max(keypoints, axis=0) + margin])
    sample = SyntheticSample(
        image=jnp.round(255.0 * develop(linear, box, keys[3])).astype(jnp.uint8),
        keypoints_2d=keypoints,
        joints=placed.joints,
        pose=pose,
        betas=betas,
        camera=placed.camera,
        vertices=placed.vertices,
        depth=jnp.where(on_hand, seen.depth, 0.0),
        mask=on_hand,
        visible=visible_keypoints(placed, seen.depth),
        left=draws.uniform() < config.left,
    )
    return _mirror_left(sample, size)


def _background(assets: SyntheticAssets, key: PRNGKeyArray, config: SyntheticConfig) -> Float[Array, "size size 3"]:
    """Return a procedural background or a part of a photograph, in linear RGB."""
    procedural_key, photograph_key, choice = jax.random.split(key, 3)
    background = procedural_background(procedural_key, config.size, assets.hand.dtype)
    if assets.photographs.shape[0] == 0:
        return background
    photograph = photo_background(photograph_key, assets.photographs, config.size, assets.hand.dtype)
    return jnp.where(jax.random.uniform(choice) < config.photographs, photograph, background)


def _mirror_left(sample: SyntheticSample, size: int) -> SyntheticSample:
    """Mirror a sample whose hand is a left one."""
    mirrored = dataclasses.replace(
        sample,
        image=sample.image[:, ::-1],
        keypoints_2d=mirror_pixels(sample.keypoints_2d, size),
        joints=mirror_points(sample.joints),
        pose=mirror_pose(sample.pose),
        camera=mirror_camera(sample.camera, size),
        vertices=mirror_points(sample.vertices),
        depth=sample.depth[:, ::-1],
        mask=sample.mask[:, ::-1],
    )
    return jax.tree.map(lambda a, b: jnp.where(sample.left, a, b), mirrored, sample)


def render_batch(assets: SyntheticAssets, keys: Key[Array, "n"], config: SyntheticConfig) -> SyntheticSample:
    """Render the samples of several keys along a leading axis, `config.images_at_once` at a time."""
    one = partial(render_sample, assets, config=config)
    if keys.shape[0] <= config.images_at_once:
        return jax.vmap(one)(keys)
    return jax.lax.map(one, keys, batch_size=config.images_at_once)


# Two programs, because keys of the splits differ in constants and rendering takes a minute to compile.
@partial(jax.jit, static_argnames="split")
def _sample_keys(seed: Array, split: Split, indices: Array) -> Key[Array, "n"]:
    return jax.vmap(lambda index: sample_key(seed, split, index))(indices)


_render = jax.jit(render_batch, static_argnames="config")


class SyntheticDataset:
    """Random access to the samples of a split, and iteration over them.

    The training split has 2**31 - 1 samples per seed. The test split has `TEST_SAMPLES`, the same for every seed.
    """

    def __init__(
        self, config: SyntheticConfig = SyntheticConfig(), split: str = "train", seed: int = 0, photographs: Any = None
    ) -> None:
        """Prepare split "train" or "test"; the seed, from 0 to 2**31 - 1, changes the training split only.

        Raises:
            InputError: If the split does not exist, or the seed or the photographs are invalid (`load_assets`).
        """
        if split not in get_args(Split):
            raise InputError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        if not 0 <= seed < 2**31:
            raise InputError(f"seed must be between 0 and 2**31 - 1, got {seed}")
        self.config, self.split, self.seed = config, cast(Split, split), seed
        self.assets = load_assets(photographs, two_hands=config.second_hand > 0.0)

    def __len__(self) -> int:
        return TEST_SAMPLES if self.split == "test" else 2**31 - 1

    def __getitem__(self, index: Any) -> Any:
        """Return one sample, without leading axis."""
        return jax.tree.map(lambda leaf: leaf[0], self.batch([index]))

    def batch(self, indices: Any) -> SyntheticSample:
        """Return the samples of several indices along a leading axis.

        Raises:
            InputError: If the indices are not a list of at least one whole number.
            IndexError: If an index is outside the split.
        """
        wanted = np.asarray(indices)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu" or not wanted.size:
            raise InputError(f"indices must be a list of whole numbers, got {wanted.dtype} of shape {wanted.shape}")
        if wanted.min() < 0 or wanted.max() >= len(self):
            raise IndexError(f"the {self.split} split has samples 0 to {len(self) - 1}, got {wanted}")
        # Always the same program, so that a sample does not depend on the size of its batch.
        step = self.config.images_at_once
        padded = np.pad(wanted.astype(np.int32), (0, -len(wanted) % step), mode="edge")
        keys = [_sample_keys(np.int32(self.seed), self.split, some) for some in padded.reshape(-1, step)]
        parts = [_render(self.assets, some, self.config) for some in keys]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[: len(wanted)], *parts)

    def __iter__(self) -> Iterator[SyntheticSample]:
        step = self.config.images_at_once
        for first in range(0, len(self), step):
            batch = self.batch(np.arange(first, min(first + step, len(self))))
            for i in range(len(batch.left)):
                yield jax.tree.map(lambda leaf, i=i: leaf[i], batch)

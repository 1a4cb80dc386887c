"""The whole method as one graph of arrays, from crops and cameras to hand meshes.

For one hand, the graph is:

>>> estimate = hand_module(crop, camera)                                      # HandEstimate
>>> seen = Observation(estimate.keypoints_2d, estimate.confidence, camera)
>>> depth, bone = estimate.root_depth, estimate.bone
>>> start = initialize(hand, estimate.pose, estimate.betas, seen, root_depth=depth, bone=bone)  # Eq. 12, 17
>>> fitted = tailor(hand, start, seen)                                        # Eq. 13
>>> mesh = hand.shape(fitted.betas).pose(fitted.pose).skin()                  # Eq. 1
>>> mesh.vertices.shape
(1609, 3)

`recover_views` is that graph for a batch of crops of hands of both sides; `recover_hand` (image_to_mesh.py) cuts the
crop out of an image as well. There are two hand modules: the landmark network with IKNet (`LandmarkHandModule`), and
the paper's hourglass (`HandModule`). `HandTailor` (hand_tailor.py) finds the hands of an image and runs the graph.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from handtailor_jax.detector.detector import unstack
from handtailor_jax.detector.landmark_network import by_crop, right_probability
from handtailor_jax.errors import InputError
from handtailor_jax.geometry import exact
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import inverse_affine, project, transform_camera, transform_pixels
from handtailor_jax.geometry.mirror import (
    choose,
    mirror_camera,
    mirror_estimate,
    mirror_hand,
    mirror_observation,
    mirror_pose,
)
from handtailor_jax.geometry.rotations import rotate_towards
from handtailor_jax.hand_module.hand_module import HandModule, LandmarkHandModule
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import LandmarkConvention, load_convention
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.placement import (
    StartScale,
    camera_keypoints,
    describe,
    initialize,
    place_proposal,
    relative_depth,
    reprojection_error,
    with_floats,
)
from handtailor_jax.tailor.tailor import TailorConfig, tailor
from handtailor_jax.types import Camera, Hand, HandEstimate, HandParameters, Memory, Observation, View

_PAPER_CROP = 256
"""Side of the crops of the paper's network, pixels."""

_POOR_FIT = 0.04
"""Reprojection error, in hand sizes, above which a hand is also fitted without estimated depths."""


Preset = TailorConfig | Literal["auto"] | None
"""Energy and solver of the tailor; "auto" for the preset of the hand module, None for no tailor."""


def fitting_config(module: HandModule | LandmarkHandModule, config: Preset) -> TailorConfig | None:
    """Return the configuration of the tailor behind a hand module.

    Raises:
        InputError: If an argument has another type, or the energy is not meant for the hand module's keypoints.
    """
    if not isinstance(module, HandModule | LandmarkHandModule):
        raise InputError(f"module is a {type(module).__name__}: give the result of load_weights, or HandTailor.module")
    if not isinstance(config, TailorConfig) and config not in ("auto", None):
        raise InputError(f"config is {config!r}: give a TailorConfig, such as TailorConfig.network(), 'auto' or None")
    landmarks = isinstance(module, LandmarkHandModule)
    if config == "auto":
        return TailorConfig.landmarks() if landmarks else TailorConfig.network()
    if landmarks and config and isinstance(config.energy, PaperEnergy):
        own = "the hand model's own keypoints, not for the landmark network's"
        raise InputError(f"the paper's energies are defined for {own}: choose another preset, or the network hourglass")
    if not landmarks and config == TailorConfig.landmarks():
        raise InputError("the preset landmarks is for the landmark network's keypoints: choose the preset network")
    return config


def recover_views(
    module: HandModule | LandmarkHandModule,
    hand: HandModel,
    views: View,
    config: TailorConfig | None,
    memory: Memory | None = None,
) -> Hand:
    """Recover the hands of a batch of views; see `recover`.

    Raises:
        InputError: If the crops have no batch axis.
    """
    if views.crop.ndim != 4:
        problem = f"views.crop has shape {views.crop.shape}: give (batch, size, size, 3)"
        raise InputError(f"{problem}; jax.tree.map(lambda leaf: leaf[None], view) makes a batch of one view")
    estimate = estimate_views(module, views)
    found = recover(hand, estimate, views.camera, views.to_crop, module.image_size, config, memory)
    return dataclasses.replace(found, region=views.region)


def precision_of(module: nnx.Module) -> jnp.dtype:
    """Return the type of a hand module's parameters, in which it computes."""
    types = [leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))]
    return next(dtype for dtype in types if jnp.issubdtype(dtype, jnp.floating))


def estimate_views(module: HandModule | LandmarkHandModule, views: View) -> HandEstimate:
    """Run a hand module on a batch of views; keypoints are in pixels of the crops.

    The hourglass takes right hands only: crops of left hands are mirrored before it, and its output is mirrored back.
    If its stem is a landmark network, that network estimates the sides first.
    """
    dtype = precision_of(module)
    views = with_floats(dtype, views)
    crops = views.crop.astype(dtype) / 255.0
    cameras = transform_camera(views.camera, views.to_crop)
    if isinstance(module, LandmarkHandModule):
        return module(crops, cameras, views.right)
    size, left, presence, right = module.image_size, views.right < 0.5, None, None
    if module.landmark_network is not None:
        landmarks = by_crop(module.landmark_network, crops)
        right, presence = right_probability(landmarks, views.right), landmarks.presence
        left = right <= 0.5
    mirrored = (crops[:, :, ::-1], mirror_camera(cameras, float(size)))
    crops, cameras = jax.vmap(choose)(left, mirrored, (crops, cameras))
    estimate = module(crops, cameras)
    found = HandEstimate(**{field.name: getattr(estimate, field.name) for field in dataclasses.fields(HandEstimate)})
    found = jax.vmap(choose)(left, mirror_estimate(found, size), found)
    return dataclasses.replace(found, presence=presence, right=right)


@exact
def recover(
    hand: HandModel,
    estimate: HandEstimate,
    cameras: Camera,
    to_crop: Float[Array, "batch 2 3"],
    size: int,
    config: TailorConfig | None,
    memory: Memory | None = None,
) -> Hand:
    """Place and tailor the hands that a hand module has estimated.

    Args:
        hand: Hand model of right hands. Left hands are fitted as right hands in the mirrored image.
        estimate: Output of a hand module for a batch of crops.
        cameras: Cameras of the images that the crops were cut from; weak perspective where intrinsics are unknown.
        to_crop: Affine map from pixels of each image to pixels of its crop.
        size: Side of the crops, pixels.
        config: Energy and solver of the tailor; None returns the proposal.
        memory: The same hands in earlier frames.

    Returns:
        The tailored hands in pixels of the images, with a batch axis; `proposed` are the hands before the tailor.
    """
    convention = load_convention(estimate.convention)
    given = estimate, cameras, to_crop, memory, convention
    estimate, cameras, to_crop, memory, convention = with_floats(hand.dtype, given)
    back = inverse_affine(to_crop)
    pixels = transform_pixels(back, estimate.keypoints_2d)
    seen = Observation(pixels, estimate.confidence, cameras)
    seen = seen if config is None else config.weighted(seen)
    if estimate.root_depth is None:
        depths = jax.vmap(relative_depth)(estimate.joints, pixels, seen.confidence)
        seen = dataclasses.replace(seen, relative_depth=depths)
    right, seen, memory = jax.vmap(_as_right)(estimate, seen, memory)
    middle = transform_pixels(back, jnp.full_like(back[:, None, :, 2], 0.5 * (size - 1)))[:, 0]
    middle = jnp.where(estimate.left[:, None], middle * jnp.asarray([[-1.0, 1.0]], middle.dtype), middle)
    zoom = _PAPER_CROP / size * jnp.sqrt(jnp.abs(jnp.linalg.det(to_crop[..., :2])))
    in_crop = jax.vmap(_in_crop)(seen, middle, zoom)
    proposed, start = jax.vmap(functools.partial(_place, hand, convention, config))(right, in_crop, memory)
    fitted = start if config is None else _fit(hand, convention, config, start, in_crop)
    return _describe(hand, convention, estimate, seen, proposed, fitted)


def _as_right(
    estimate: HandEstimate, seen: Observation, memory: Memory | None
) -> tuple[HandEstimate, Observation, Memory | None]:
    """Mirror the pose, the observation and the memory of one hand if it is a left hand."""
    known = estimate.pose, seen, memory
    mirrored = None if memory is None else dataclasses.replace(memory, pose=mirror_pose(memory.pose))
    mirror = mirror_pose(estimate.pose), mirror_observation(seen), mirrored
    pose, seen, memory = choose(estimate.left, mirror, known)
    return dataclasses.replace(estimate, pose=pose), seen, memory


def _in_crop(seen: Observation, middle: Float[Array, "2"], zoom: Float[Array, ""]) -> Observation:
    """Express an observation in pixels of an unrotated crop of 256 pixels; the camera frame stays the image's.

    The weights of the paper's energies are meant for such pixels, and large pixel coordinates lose precision.
    """
    offset = 0.5 * (_PAPER_CROP - 1) - zoom * middle
    resize = jnp.concatenate([zoom * jnp.eye(2, dtype=zoom.dtype), offset[:, None]], axis=-1)
    points, camera = transform_pixels(resize, seen.keypoints_2d), transform_camera(seen.camera, resize)
    depth = None if seen.relative_depth is None else zoom * seen.relative_depth
    return Observation(points, seen.confidence, camera, depth)


def _place(
    hand: HandModel,
    convention: LandmarkConvention,
    config: TailorConfig | None,
    estimate: HandEstimate,
    observation: Observation,
    memory: Memory | None,
) -> tuple[HandParameters, HandParameters]:
    """Return the proposal of one hand, placed in the camera frame, and the tailor's start, which uses the memory."""
    pose, betas = estimate.pose, estimate.betas
    if memory is not None:
        pose = rotate_towards(pose, memory.pose, memory.pose_share)
        betas = betas + memory.betas_share * (memory.betas - betas)
    depth, bone = estimate.root_depth, estimate.bone

    def place(pose: Array, betas: Array, scale: StartScale = "proposed") -> HandParameters:
        if depth is None:
            return place_proposal(hand, pose, betas, observation, convention)
        return initialize(hand, pose, betas, observation, root_depth=depth, bone=bone, scale=scale)

    # Along one axis, so that the placement is compiled once.
    both = jax.vmap(place)(jnp.stack([estimate.pose, pose]), jnp.stack([estimate.betas, betas]))
    proposed, start = unstack(both)
    if depth is None:
        return proposed, start
    if config is None:
        return proposed, proposed
    return proposed, start if config.scale == "proposed" else place(pose, betas, config.scale)


def _fit(
    hand: HandModel,
    convention: LandmarkConvention,
    config: TailorConfig,
    start: HandParameters,
    observation: Observation,
) -> HandParameters:
    """Tailor a batch of hands. Estimated depths are dropped where they prevent a good fit and a better one exists."""

    @jax.vmap
    def fit(start: HandParameters, seen: Observation) -> tuple[HandParameters, Array]:
        fitted = tailor(hand, start, seen, config, convention=convention)
        pixels = project(seen.camera, camera_keypoints(hand, fitted, convention))
        return fitted, reprojection_error(pixels, seen) / hand_size(seen.keypoints_2d)

    depth = observation.relative_depth
    if depth is None:
        return fit(start, observation)[0]

    def attempt(best: tuple[HandParameters, Array], with_depth: Array) -> tuple[tuple[HandParameters, Array], None]:
        def run(best: tuple[HandParameters, Array]) -> tuple[HandParameters, Array]:
            known = jnp.where(with_depth, depth, jnp.nan)
            other = fit(start, dataclasses.replace(observation, relative_depth=known))
            return jax.vmap(choose)((best[1] > _POOR_FIT) & ~(other[1] > best[1]), other, best)

        return jax.lax.cond(jnp.any(best[1] > _POOR_FIT), run, lambda best: best, best), None

    # A scan, so that the fit is compiled once.
    first = start, jnp.full(depth.shape[0], jnp.inf, depth.dtype)
    return jax.lax.scan(attempt, first, jnp.asarray([True, False]))[0][0]


def _describe(
    hand: HandModel,
    convention: LandmarkConvention,
    estimate: HandEstimate,
    seen: Observation,
    proposed: HandParameters,
    fitted: HandParameters,
) -> Hand:
    """Return the results of a batch of hands that were fitted as right hands; left hands are mirrored back."""

    @jax.vmap
    def one(left: Array, proposed: HandParameters, fitted: HandParameters, seen: Observation) -> Hand:
        # Along one axis, so that the description is compiled once.
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), proposed, fitted)
        both = jax.vmap(lambda each: describe(hand, each, seen, convention))(both)
        first, second = unstack(both)
        found = dataclasses.replace(second, proposed=first, reprojection_before=first.reprojection_after)
        return choose(left, mirror_hand(found), found)

    found = one(estimate.left, proposed, fitted, seen)
    assert found.proposed is not None
    certainty = None if estimate.right is None else jnp.maximum(estimate.right, 1.0 - estimate.right)
    # Results have the hand module's confidence, not the one that the energy uses.
    first = dataclasses.replace(found.proposed, confidence=estimate.confidence)
    found = dataclasses.replace(found, confidence=estimate.confidence, proposed=first)
    return dataclasses.replace(found, presence=estimate.presence, side_probability=certainty)

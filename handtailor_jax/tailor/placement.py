"""Placement of a hand in the camera frame, scale * (p - root) + translation.

Scale and root in closed form, before the iterations (Eq. 12 and 17 of the paper); keypoints, mesh and `Hand` of a
placed hand; changes of length and shape.
"""

import dataclasses
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.geometry import exact
from handtailor_jax.geometry.cameras import (
    depth_divisor,
    focal_length,
    held_depth,
    inverse_linear,
    place,
    project,
    unproject,
)
from handtailor_jax.geometry.lifting import reference_bone_length
from handtailor_jax.geometry.mirror import choose, mirror_hand, mirror_observation, mirror_parameters
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention, load_convention
from handtailor_jax.skeleton import ROOT, ROOT_JOINT
from handtailor_jax.types import Hand, HandMesh, HandParameters, Numbers, Observation

T = TypeVar("T")

StartScale = Literal["closed_form", "released", "proposed"]
"""Scale of the start. closed_form: Eq. 12 with intrinsics, Eq. 17 without. released: with intrinsics, the released
program's version of Eq. 12, which multiplies the proposed bone by at least 0.9. proposed: with intrinsics, the scale of
the proposed bone, because the energy fits scale and depth together."""

# A closed-form scale below this share of the scale at which the sizes agree belongs to a hand in a wrong orientation.
_LEAST_SCALE = 0.3
# Range of the proposed bone's length over the model's, for the output of untrained networks.
_SIZES = (0.05, 20.0)
# Smallest factor on the proposed bone in the released program.
_RELEASED_FLOOR = 0.9


def with_floats(dtype: jnp.dtype, tree: T) -> T:
    """Return a pytree whose floats have the given type, because solvers and networks do not promote types."""

    def convert(leaf: Any) -> Any:
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(convert, tree)


@exact
def initialize(
    hand: HandModel,
    pose: Float[Array, "16 3"],
    betas: Float[Array, "betas"],
    observation: Observation,
    *,
    root_depth: Float[Array, ""],
    bone: Float[Array, ""] | None = None,
    scale: StartScale = "closed_form",
) -> HandParameters:
    """Place a proposed pose and shape: the root on the ray of its keypoint, the scale in closed form.

    Args:
        hand: Hand model.
        pose: Proposed rotations, axis-angle, radians.
        betas: Proposed shape.
        observation: Keypoints of the model's own convention, and camera.
        root_depth: z of the root in the camera frame, metres, held between 0.05 and 50; ignored in weak perspective.
        bone: Proposed length of the reference bone, metres, for "released" and "proposed"; None for the model's own.
        scale: Formula of the scale; see `StartScale`.
    """
    given = pose, betas, observation, root_depth, bone
    pose, betas, observation, root_depth, bone = with_floats(hand.dtype, given)
    camera = observation.camera
    perspective = camera.perspectivity > 0.5
    root_depth = held_depth(camera, root_depth)
    root = unproject(camera, observation.keypoints_2d[ROOT][None], root_depth[None])[0]
    keypoints = hand.shape(betas).pose(pose).keypoints
    keypoints = keypoints - keypoints[ROOT][None]
    length = reference_bone_length(keypoints)
    bone = length if bone is None else bone
    # For a wrong orientation the closed form is near zero or negative, from which no refinement converges.
    start = closed_form_scale(observation, keypoints, root, least=_LEAST_SCALE if scale == "proposed" else None)
    if scale == "proposed":
        start = jnp.where(perspective, jnp.clip(bone / length, *_SIZES), start)
    if scale == "released":
        correction = closed_form_scale_with_depths(observation, keypoints / length, root, bone)
        start = jnp.where(perspective, jnp.maximum(correction, _RELEASED_FLOOR) * bone / length, start)
    return HandParameters(pose=pose, betas=betas, scale=start, translation=root)


@exact
def closed_form_scale(
    observation: Observation, keypoints: Float[Array, "21 3"], root: Float[Array, "3"], least: float | None = None
) -> Float[Array, ""]:
    """Return s*, the scale of root-relative keypoints that reprojects best with all joints at the root's depth.

    This is Eq. 12 of the paper in perspective and Eq. 17 in weak perspective: the same least-squares solution with the
    root's depth replaced by 1. It is negative if the hand points the wrong way. `least` is a lower bound, as a share of
    the scale at which model and image have the same extent about the root.
    """
    camera = observation.camera
    target = observation.keypoints_2d - observation.keypoints_2d[ROOT][None]
    best, extent = _least_squares_scale(keypoints[:, :2] @ camera.linear.T, target, observation.confidence)
    best = best if least is None else jnp.maximum(best, least * extent)
    return depth_divisor(camera, root[2][None])[0] * best


@exact
def closed_form_scale_with_depths(
    observation: Observation, keypoints: Float[Array, "21 3"], root: Float[Array, "3"], bone: Float[Array, ""]
) -> Float[Array, ""]:
    """Return the released program's version of Eq. 12, in which each joint has its own depth: a factor on `bone`.

    `keypoints` are relative to the root and in reference bones, `bone` is in camera-frame units.
    """
    camera = observation.camera
    points = keypoints * bone
    divisor = depth_divisor(camera, root[2] + points[:, 2])[:, None]
    rays = (observation.keypoints_2d - camera.center[None]) @ inverse_linear(camera).T
    model = points[:, :2] / divisor
    return _safe_ratio(jnp.sum(model * (rays - root[None, :2] / divisor)), jnp.sum(model * model))


@exact
def relative_depth(
    joints: Float[Array, "21 3"], keypoints_2d: Float[Array, "21 2"], confidence: Float[Array, "21"]
) -> Float[Array, "21"]:
    """Convert another method's 3D keypoints, in camera axes and any unit, to depths relative to the root, in pixels.

    The factor is the weak-perspective scale that best maps `joints` to `keypoints_2d` (Eq. 17 about the centroid).
    """
    weight = confidence / jnp.maximum(jnp.sum(confidence), 1e-6)
    model = joints[:, :2] - (weight @ joints[:, :2])[None]
    target = keypoints_2d - (weight @ keypoints_2d)[None]
    return _least_squares_scale(model, target, weight)[0] * (joints[:, 2] - joints[ROOT, 2])


@exact
def place_proposal(
    hand: HandModel,
    pose: Float[Array, "16 3"],
    betas: Float[Array, "betas"],
    observation: Observation,
    convention: LandmarkConvention = MANO,
) -> HandParameters:
    """Place a proposed pose and shape of unknown position: scale and translation by weighted least squares.

    This is Eq. 17 of the paper with a free translation, for landmarks of any convention. With intrinsics the scale
    becomes a depth, at the model's own size.
    """
    pose, betas, observation, convention = with_floats(hand.dtype, (pose, betas, observation, convention))
    posed = hand.shape(betas).pose(pose)
    camera = observation.camera
    focal = focal_length(camera)
    weight = observation.confidence / jnp.maximum(jnp.sum(observation.confidence), 1e-6)
    model = convention.landmarks(posed)[:, :2]
    rays = observation.keypoints_2d @ inverse_linear(camera).T * focal
    model_center, ray_center = weight @ model, weight @ rays
    per_metre, spread = _least_squares_scale(model - model_center[None], rays - ray_center[None], weight)
    # For a wrong orientation the best size may be negative; the size of the spread is used instead.
    per_metre = jnp.where(per_metre > 0.2 * spread, per_metre, spread)
    root_pixel = camera.linear @ (ray_center + per_metre * (posed.joints[ROOT_JOINT, :2] - model_center)) / focal
    perspective = camera.perspectivity > 0.5
    depth = held_depth(camera, focal / per_metre)
    translation = unproject(camera, root_pixel[None], depth[None])[0]
    return HandParameters(pose, betas, jnp.where(perspective, 1.0, per_metre / focal), translation)


def _least_squares_scale(
    model: Float[Array, "n 2"], target: Float[Array, "n 2"], weight: Float[Array, "n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return s that minimises the weighted sum of |s model - target|^2, and s at which both have the same spread."""
    cross, square, extent = (jnp.sum(weight[:, None] * a) for a in (model * target, model * model, target * target))
    return _safe_ratio(cross, square), jnp.sqrt(jnp.maximum(_safe_ratio(extent, square), 1e-12))


def _safe_ratio(numerator: Float[Array, ""], denominator: Float[Array, ""]) -> Float[Array, ""]:
    """Return numerator / denominator, or 1 if all model points coincide with the root and every scale fits equally."""
    degenerate = denominator < 1e-20
    return jnp.where(degenerate, 1.0, numerator / jnp.where(degenerate, 1.0, denominator))


def camera_keypoints(
    hand: HandModel, parameters: HandParameters, convention: LandmarkConvention = MANO
) -> Float[Array, "21 3"]:
    """Return the 21 keypoints of a landmark convention in the camera frame."""
    parameters, convention = with_floats(hand.dtype, (parameters, convention))
    posed = hand.shape(parameters.betas).pose(parameters.pose)
    return place(parameters, convention.landmarks(posed), posed.joints[ROOT_JOINT])


def camera_mesh(hand: HandModel, parameters: HandParameters) -> HandMesh:
    """Return the mesh and the model's own keypoints in the camera frame."""
    parameters = with_floats(hand.dtype, parameters)
    posed = hand.shape(parameters.betas).pose(parameters.pose)
    mesh, root = posed.skin(), posed.joints[ROOT_JOINT]
    return HandMesh(place(parameters, mesh.vertices, root), mesh.faces, place(parameters, mesh.keypoints, root))


def describe(
    hand: HandModel, parameters: HandParameters, observation: Observation, convention: LandmarkConvention = MANO
) -> Hand:
    """Describe a placed hand as a result: mesh, joints, landmarks, and their distance from the observed keypoints.

    The side is the hand model's. The reprojection errors before and after are the same.
    """
    posed, camera = hand.shape(parameters.betas).pose(parameters.pose), observation.camera
    root = posed.joints[ROOT_JOINT]
    landmarks = place(parameters, convention.landmarks(posed), root)

    def in_metres(points: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
        relative = (points - parameters.translation[None]) / parameters.scale
        return jnp.where(camera.perspectivity > 0.5, points, relative)

    keypoints_2d = project(camera, landmarks)
    error = reprojection_error(keypoints_2d, observation)
    return Hand(
        left=jnp.asarray(hand.side == "left"),
        camera=camera,
        parameters=parameters,
        vertices=place(parameters, posed.skin().vertices, root),
        faces=hand.faces,
        joints=in_metres(place(parameters, posed.keypoints, root)),
        landmarks=in_metres(landmarks),
        keypoints_2d=keypoints_2d,
        detected_keypoints_2d=observation.keypoints_2d,
        confidence=observation.confidence,
        reprojection_before=error,
        reprojection_after=error,
        convention=convention.name,
    )


def with_length(model: HandModel, hand: Hand, length: float) -> Hand:
    """Scale a hand with intrinsics about the camera, on the host, so that the flat hand has a known length (metres).

    The image of the hand does not change. `proposed` and `runner_up` are scaled as well.
    """
    factor = np.float32(length / (hand.parameters.scale * flat_length(model, hand.parameters.betas)))
    placed = hand.parameters
    return dataclasses.replace(
        hand,
        parameters=dataclasses.replace(placed, scale=placed.scale * factor, translation=placed.translation * factor),
        vertices=hand.vertices * factor,
        joints=hand.joints * factor,
        landmarks=hand.landmarks * factor,
        proposed=None if hand.proposed is None else with_length(model, hand.proposed, length),
        runner_up=None if hand.runner_up is None else with_length(model, hand.runner_up, length),
    )


@jax.jit
def with_parameters(model: HandModel, hand: Hand, parameters: HandParameters) -> Hand:
    """Return a hand of either side with other parameters; `proposed` and the fields of its region are kept."""
    mirror = hand.left != (model.side == "left")
    seen = Observation(hand.detected_keypoints_2d, hand.confidence, hand.camera)
    seen = choose(mirror, mirror_observation(seen), seen)
    parameters = choose(mirror, mirror_parameters(parameters), parameters)
    found = describe(model, parameters, seen, load_convention(hand.convention))
    found = choose(mirror, mirror_hand(found), found)
    kept = ("reprojection_before", "region", "presence", "side_probability", "proposed")
    return dataclasses.replace(found, **{name: getattr(hand, name) for name in kept})


def with_betas(
    model: HandModel, parameters: HandParameters, betas: Float[Numbers, "betas"], scale: Any, perspective: bool
) -> HandParameters:
    """Return a placed hand, on the host, with other betas, another scale, and the same length in the image.

    With intrinsics the depth follows from betas and scale; without intrinsics, the scale follows from the betas.
    """
    factor = np.float32(flat_length(model, betas) / flat_length(model, parameters.betas))
    if not perspective:
        return dataclasses.replace(parameters, betas=betas, scale=parameters.scale / factor)
    translation = parameters.translation * (factor * np.float32(scale) / parameters.scale)
    return dataclasses.replace(parameters, betas=betas, scale=np.float32(scale), translation=translation)


@jax.jit
def flat_length(model: HandModel, betas: Float[Numbers, "betas"]) -> Float[Array, ""]:
    """Return the distance from the wrist to the middle fingertip of the flat hand, metres."""
    return model.shape(betas).length


def reprojection_error(keypoints_2d: Float[Array, "21 2"], observation: Observation) -> Float[Array, ""]:
    """Return the mean distance from the observed keypoints of non-zero confidence, pixels."""
    distance = jnp.sqrt(jnp.sum((keypoints_2d - observation.keypoints_2d) ** 2, axis=-1))
    seen = observation.confidence > 0.0
    return jnp.sum(jnp.where(seen, distance, 0.0)) / jnp.sum(seen.astype(distance.dtype))

"""Scale and root in closed form, before the iterations (Eq. 12 and 17 of the paper)."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.geometry.cameras import depth_divisor, inverse_linear, unproject
from handtailor_jax.geometry.lifting import reference_bone_length
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.skeleton import ROOT, ROOT_JOINT
from handtailor_jax.types import Camera, HandParameters, Observation

StartScale = Literal["closed_form", "released", "proposed"]
"""Scale of the start: Eq. 12 (with intrinsics) or 17 (without); the released program's version of Eq. 12, which scales
the proposed bone by at least 0.9; or, with intrinsics, the proposed bone's, because the energy fits scale and depth
together."""

# A closed-form scale below this share of the scale at which the sizes agree belongs to a hand in a wrong orientation.
_LEAST_SCALE = 0.3

# Smallest factor on the proposed bone in the released program.
_RELEASED_FLOOR = 0.9


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
        root_depth: z of the root in the camera frame, metres; ignored in weak perspective.
        bone: Proposed length of the reference bone, metres, for "released" and "proposed"; None for the model's own.
        scale: Formula of the scale; see `StartScale`.

    Returns:
        The start of the tailor.
    """
    camera = observation.camera
    perspective = camera.perspectivity > 0.5
    root_depth = jnp.where(perspective, root_depth, 0.0)
    root = root_position(observation, root_depth)
    posed = hand.shape(betas).pose(pose)
    keypoints = posed.keypoints - posed.keypoints[ROOT][None]
    length = reference_bone_length(keypoints)
    start_scale, extent_scale = _scales(observation, keypoints, root)
    bone = length if bone is None else bone
    if scale == "proposed":
        # For a wrong orientation the closed form is near zero or negative, from where no refinement converges.
        start_scale = jnp.maximum(start_scale, _LEAST_SCALE * extent_scale)
        start_scale = jnp.where(perspective, bone / length, start_scale)
    if scale == "released":
        correction = closed_form_scale_with_depths(observation, keypoints / length, root, bone)
        released = jnp.maximum(correction, _RELEASED_FLOOR) * bone / length
        start_scale = jnp.where(perspective, released, start_scale)
    return HandParameters(pose=pose, betas=betas, scale=start_scale, translation=root)


def root_position(observation: Observation, root_depth: Float[Array, ""]) -> Float[Array, "3"]:
    """Return p_root: the root joint on the ray of its keypoint, at a depth in camera-frame units."""
    return unproject(observation.camera, observation.keypoints_2d[ROOT][None], root_depth[None])[0]


def closed_form_scale(
    observation: Observation, keypoints: Float[Array, "21 3"], root: Float[Array, "3"]
) -> Float[Array, ""]:
    """Return s*, the scale of a root-relative hand that reprojects best with all joints at the root's depth.

    This is Eq. 12 of the paper in perspective and Eq. 17 in weak perspective: the same least-squares solution with the
    root's depth replaced by 1.

    Args:
        observation: Keypoints, confidences and camera.
        keypoints: Root-relative model keypoints in camera axes, any unit.
        root: Root joint, camera frame.

    Returns:
        Camera-frame units per unit of `keypoints`. It is negative if the hand points the wrong way.
    """
    return _scales(observation, keypoints, root)[0]


def _scales(
    observation: Observation, keypoints: Float[Array, "21 3"], root: Float[Array, "3"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the best scale, and the scale at which model and image have the same extent about the root."""
    camera = observation.camera
    divisor = depth_divisor(camera, root[2][None])[0]
    model = keypoints[:, :2] @ camera.linear.T
    target = observation.keypoints_2d - observation.keypoints_2d[ROOT][None]
    best, extent = _least_squares_scale(model, target, observation.confidence)
    return divisor * best, divisor * extent


def closed_form_scale_with_depths(
    observation: Observation, keypoints: Float[Array, "21 3"], root: Float[Array, "3"], bone: Float[Array, ""]
) -> Float[Array, ""]:
    """Return the released program's version of Eq. 12, in which each joint has its own depth.

    Args:
        observation: Keypoints and camera.
        keypoints: Root-relative model keypoints in camera axes with a unit reference bone.
        root: Root joint, camera frame.
        bone: Current length of the reference bone, camera-frame units.

    Returns:
        Factor on `bone`; the released program raises it to at least 0.9.
    """
    camera = observation.camera
    points = keypoints * bone
    divisor = depth_divisor(camera, root[2] + points[:, 2])[:, None]
    rays = (observation.keypoints_2d - camera.center[None]) @ inverse_linear(camera).T
    model = points[:, :2] / divisor
    return _safe_ratio(jnp.sum(model * (rays - root[None, :2] / divisor)), jnp.sum(model * model))


def relative_depth(
    joints: Float[Array, "21 3"], keypoints_2d: Float[Array, "21 2"], confidence: Float[Array, "21"]
) -> Float[Array, "21"]:
    """Convert another method's 3D keypoints to depths relative to the root, in pixels.

    The conversion factor is the weak-perspective scale that best maps `joints` to `keypoints_2d` (Eq. 17 of the paper
    about the centroid), so `joints` may have any unit and origin. Their axes are the camera's.
    """
    weight = confidence / jnp.maximum(jnp.sum(confidence), 1e-6)
    model = joints[:, :2] - (weight @ joints[:, :2])[None]
    target = keypoints_2d - (weight @ keypoints_2d)[None]
    return _least_squares_scale(model, target, weight)[0] * (joints[:, 2] - joints[ROOT, 2])


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

    Args:
        hand: Hand model.
        pose: Proposed rotations in camera axes, axis-angle, radians.
        betas: Proposed shape.
        observation: Keypoints, confidences and camera.
        convention: Landmark convention of the keypoints.
    """
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
    depth = jnp.where(perspective, focal / per_metre, 0.0)
    return HandParameters(
        pose=pose,
        betas=betas,
        scale=jnp.where(perspective, 1.0, per_metre / focal),
        translation=unproject(camera, root_pixel[None], depth[None])[0],
    )


def focal_length(camera: Camera) -> Float[Array, ""]:
    """Return the geometric mean of the focal lengths, pixels (perspective) or pixels per unit (weak perspective)."""
    return jnp.sqrt(jnp.abs(jnp.linalg.det(camera.linear)))


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

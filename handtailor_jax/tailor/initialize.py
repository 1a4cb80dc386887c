"""Scale and root in closed form, before the iterations (Eq. 12, 17), with guards where the formulas can fail."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.geometry.cameras import depth_divisor, inverse_linear, unproject
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import ROOT
from handtailor_jax.tailor.energy import reference_bone_length
from handtailor_jax.types import HandParameters, Observation

StartScale = Literal["closed_form", "released", "proposed"]
"""How the start is scaled before the iterations: Eq. 12 / 17; the released program's version of Eq. 12, whose
correction is never below 0.9; or, with intrinsics, not at all (the energy finds scale and depth together)."""

# Below this share of the scale at which sizes agree, a closed-form scale is a wrong direction, not a size.
_LEAST_SCALE = 0.3

# The released program lets Eq. 12 shrink the proposed bone by no more than this.
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
    """Places a proposed pose and shape: the root on its keypoint's ray, the scale in closed form (Eq. 12, 17).

    Args:
        hand: the hand model.
        pose: proposed rotations, axis-angle, radians.
        betas: proposed shape.
        observation: keypoints in the model's own convention, and camera.
        root_depth: z of the root in the camera frame, metres; ignored in weak perspective.
        bone: proposed length of the reference bone, metres, for the last two kinds of scale. None takes the model's
            own.
        scale: "closed_form"; "released" for the released program's formula, which corrects the proposed bone, and its
            floor of 0.9; or "proposed", which with intrinsics keeps the proposed bone's length.

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
    start_scale = closed_form_scale(observation, keypoints, root)
    bone = length if bone is None else bone
    if scale == "proposed":
        # A proposal that points the wrong way has a scale near zero or below it, at which no refinement can begin.
        smallest = _LEAST_SCALE * _extent_scale(observation, keypoints, root)
        start_scale = jnp.where(perspective, bone / length, jnp.maximum(start_scale, smallest))
    if scale == "released":
        correction = closed_form_scale_with_depths(observation, keypoints / length, root, bone)
        released = jnp.maximum(correction, _RELEASED_FLOOR) * bone / length
        start_scale = jnp.where(perspective, released, start_scale)
    return HandParameters(pose=pose, betas=betas, scale=start_scale, translation=root)


def root_position(observation: Observation, root_depth: Float[Array, ""]) -> Float[Array, "3"]:
    """p_root: the root joint on the ray of its keypoint, at a depth in camera-frame units."""
    return unproject(observation.camera, observation.keypoints_2d[ROOT][None], root_depth[None])[0]


def closed_form_scale(
    observation: Observation, keypoints: Float[Array, "21 3"], root: Float[Array, "3"]
) -> Float[Array, ""]:
    """s*, the scale of a root-relative hand that best reprojects, all joints taken at the root's depth.

    Eq. 12 in perspective and Eq. 17 in weak perspective are the same least-squares solution, with
    z_root replaced by 1 in the latter.

    Args:
        keypoints: root-relative model keypoints in camera axes, any unit.
        root: camera-frame root joint.

    Returns:
        Camera-frame units per unit of `keypoints`; not clipped, and negative if the hand points the wrong way.
    """
    camera = observation.camera
    divisor = depth_divisor(camera, root[2][None])[0]
    model = keypoints[:, :2] @ camera.linear.T
    target = observation.keypoints_2d - observation.keypoints_2d[ROOT][None]
    weight = observation.confidence[:, None]
    return divisor * _safe_ratio(jnp.sum(weight * model * target), jnp.sum(weight * model * model))


def _extent_scale(
    observation: Observation, keypoints: Float[Array, "21 3"], root: Float[Array, "3"]
) -> Float[Array, ""]:
    """The scale at which model and observed keypoints are equally far from the root; at least `closed_form_scale`."""
    camera = observation.camera
    divisor = depth_divisor(camera, root[2][None])[0]
    model = keypoints[:, :2] @ camera.linear.T
    target = observation.keypoints_2d - observation.keypoints_2d[ROOT][None]
    weight = observation.confidence[:, None]
    ratio = _safe_ratio(jnp.sum(weight * target * target), jnp.sum(weight * model * model))
    return divisor * jnp.sqrt(jnp.maximum(ratio, 1e-12))


def closed_form_scale_with_depths(
    observation: Observation, keypoints: Float[Array, "21 3"], root: Float[Array, "3"], bone: Float[Array, ""]
) -> Float[Array, ""]:
    """The released program's version of Eq. 12, in which each joint keeps its own depth at the current bone length.

    Args:
        keypoints: root-relative model keypoints in camera axes with a unit reference bone.
        root: camera-frame root joint.
        bone: current length of the reference bone, camera-frame units.

    Returns:
        Factor by which `bone` should grow; the released program raises it to at least 0.9.
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
    """Depths relative to the root, in pixels, from another method's 3D keypoints and the 2D keypoints they belong to.

    The pixels that a metre covers are the weak-perspective scale that best maps the former onto the latter (Eq. 17
    about the centroid), so `joints` may have any unit; their axes are the camera's.
    """
    weight = confidence / jnp.maximum(jnp.sum(confidence), 1e-6)
    model = joints[:, :2] - (weight @ joints[:, :2])[None]
    target = keypoints_2d - (weight @ keypoints_2d)[None]
    scale = _safe_ratio(jnp.sum(weight[:, None] * model * target), jnp.sum(weight[:, None] * model * model))
    return scale * (joints[:, 2] - joints[ROOT, 2])


def _safe_ratio(numerator: Float[Array, ""], denominator: Float[Array, ""]) -> Float[Array, ""]:
    """numerator / denominator, or 1 where all model points fall onto the root and no scale is better than another."""
    degenerate = denominator < 1e-20
    return jnp.where(degenerate, 1.0, numerator / jnp.where(degenerate, 1.0, denominator))

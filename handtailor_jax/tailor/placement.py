"""Placement of a posed hand model in the camera frame, scale * (p - root) + translation, and the hand as a result."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.geometry.cameras import project
from handtailor_jax.mano.hand_model import HandModel, PosedHand
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.skeleton import ROOT_JOINT
from handtailor_jax.types import Camera, Hand, HandMesh, HandParameters, Observation


def place(parameters: HandParameters, points: Float[Array, "n 3"], root: Float[Array, "3"]) -> Float[Array, "n 3"]:
    """Move model points (metres) to the camera frame; `root` is the root joint of the posed model, metres."""
    return parameters.scale * (points - root[None]) + parameters.translation[None]


def posed_hand(hand: HandModel, parameters: HandParameters) -> PosedHand:
    """Shape and pose the model, without placing it."""
    return hand.shape(parameters.betas).pose(parameters.pose)


def camera_keypoints(
    hand: HandModel, parameters: HandParameters, convention: LandmarkConvention = MANO
) -> Float[Array, "21 3"]:
    """Return the 21 keypoints of a landmark convention in the camera frame."""
    posed = posed_hand(hand, parameters)
    return place(parameters, convention.landmarks(posed), posed.joints[ROOT_JOINT])


def camera_mesh(hand: HandModel, parameters: HandParameters) -> HandMesh:
    """Return the mesh and the model's own keypoints in the camera frame."""
    posed = posed_hand(hand, parameters)
    mesh = posed.skin()
    root = posed.joints[ROOT_JOINT]
    return HandMesh(
        vertices=place(parameters, mesh.vertices, root),
        faces=mesh.faces,
        keypoints=place(parameters, mesh.keypoints, root),
    )


def describe(
    hand: HandModel, parameters: HandParameters, observation: Observation, convention: LandmarkConvention = MANO
) -> Hand:
    """Describe a hand as a result: mesh, joints, landmarks, and how far the landmarks are from the keypoints.

    Args:
        hand: The hand model; its side is the side of the hand.
        parameters: Pose, shape and placement in the camera frame of `observation.camera`.
        observation: Keypoints that the hand is compared with, pixels.
        convention: Landmark convention of the keypoints.

    Returns:
        The hand, with the same reprojection error before and after.
    """
    posed = posed_hand(hand, parameters)
    root = posed.joints[ROOT_JOINT]
    landmarks = place(parameters, convention.landmarks(posed), root)
    keypoints_2d = project(observation.camera, landmarks)
    error = reprojection_error(keypoints_2d, observation)
    return Hand(
        left=jnp.asarray(hand.side == "left"),
        camera=observation.camera,
        parameters=parameters,
        vertices=place(parameters, posed.skin().vertices, root),
        faces=hand.faces,
        joints=_metres(place(parameters, posed.keypoints, root), parameters, observation.camera),
        landmarks=_metres(landmarks, parameters, observation.camera),
        keypoints_2d=keypoints_2d,
        detected_keypoints_2d=observation.keypoints_2d,
        confidence=observation.confidence,
        reprojection_before=error,
        reprojection_after=error,
        convention=convention.name,
    )


def reprojection_error(keypoints_2d: Float[Array, "21 2"], observation: Observation) -> Float[Array, ""]:
    """Return the mean distance from the observed keypoints of non-zero confidence, pixels."""
    distance = jnp.sqrt(jnp.sum((keypoints_2d - observation.keypoints_2d) ** 2, axis=-1))
    seen = observation.confidence > 0.0
    return jnp.sum(jnp.where(seen, distance, 0.0)) / jnp.sum(seen.astype(distance.dtype))


def _metres(points: Float[Array, "n 3"], parameters: HandParameters, camera: Camera) -> Float[Array, "n 3"]:
    """Return camera-frame points with intrinsics; without, points relative to the root in metres of the model."""
    relative = (points - parameters.translation[None]) / parameters.scale
    return jnp.where(camera.perspectivity > 0.5, points, relative)

"""Putting a hand model into the camera frame."""

from jaxtyping import Array, Float

from handtailor_jax.mano.hand_model import HandModel, PosedHand
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.skeleton import MANO_JOINTS
from handtailor_jax.types import HandMesh, HandParameters

ROOT_JOINT = MANO_JOINTS.index("middle_mcp")


def place(parameters: HandParameters, points: Float[Array, "n 3"], root: Float[Array, "3"]) -> Float[Array, "n 3"]:
    """scale * (p - root) + translation: model points (metres) in the camera frame."""
    return parameters.scale * (points - root[None]) + parameters.translation[None]


def posed_hand(hand: HandModel, parameters: HandParameters) -> PosedHand:
    """The shaped and posed model, not yet placed."""
    return hand.shape(parameters.betas).pose(parameters.pose)


def camera_keypoints(
    hand: HandModel, parameters: HandParameters, convention: LandmarkConvention = MANO
) -> Float[Array, "21 3"]:
    """The 21 keypoints of a convention in the camera frame."""
    posed = posed_hand(hand, parameters)
    return place(parameters, convention.landmarks(posed), posed.joints[ROOT_JOINT])


def camera_mesh(hand: HandModel, parameters: HandParameters) -> HandMesh:
    """The mesh in the camera frame, with the model's own keypoints."""
    posed = posed_hand(hand, parameters)
    mesh = posed.skin()
    root = posed.joints[ROOT_JOINT]
    return HandMesh(
        vertices=place(parameters, mesh.vertices, root),
        faces=mesh.faces,
        keypoints=place(parameters, mesh.keypoints, root),
    )

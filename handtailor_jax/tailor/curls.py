"""The palm's keypoints, and the finger curls from which solves start."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import FINGER_JOINTS, KEYPOINTS

_PALM_NAMES = ("wrist", "thumb_cmc", "index_mcp", "middle_mcp", "ring_mcp", "little_mcp")
PALM = np.asarray([KEYPOINTS.index(name) for name in _PALM_NAMES], np.int32)
# The thumb's base moves relative to the palm, so it has less weight.
PALM_WEIGHTS = np.asarray([1.0, 0.3, 1.0, 1.0, 1.0, 1.0], np.float32)

# Flexion (degrees) of the three joints of a finger in each curl, base to tip; None is the mean of the pose prior.
CURLS = (None, (45.0, 50.0, 30.0), (75.0, 95.0, 55.0))
THUMB_CURLS = ((-25.0, -10.0, 0.0), (20.0, 15.0, 20.0), (45.0, 40.0, 60.0))


def curled_fingers(hand: HandModel) -> Float[Array, "curls 15 3"]:
    """Return the finger poses (axis-angle, radians) of every curl of the four fingers."""
    curled = []
    for curl in CURLS:
        coordinates = hand.anatomy.mean
        for joints in FINGER_JOINTS[1:]:
            coordinates = curl_finger(hand, coordinates, joints, curl)
        curled.append(hand.anatomy.finger_pose(coordinates))
    return jnp.stack(curled)


def curl_finger(
    hand: HandModel, coordinates: Float[Array, "15 3"], joints: tuple[int, ...], curl: tuple[float, ...] | None
) -> Float[Array, "15 3"]:
    """Set the flexion of one finger, given by its MANO joints, to a curl."""
    rows = np.asarray(joints, np.int32) - 1  # the wrist has no anatomical coordinates
    flexion = hand.anatomy.mean[rows, 0] if curl is None else jnp.asarray(np.radians(curl), hand.dtype)
    return coordinates.at[rows, 0].set(flexion)

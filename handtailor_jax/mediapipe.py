"""Detections from the output of MediaPipe Hands."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from handtailor_jax.detections import Detection, detection
from handtailor_jax.errors import InputError
from handtailor_jax.types import Side


def from_mediapipe(
    landmarks: Sequence[Any],
    width: int,
    height: int,
    *,
    handedness: str,
    world_landmarks: Sequence[Any] | None = None,
    mirrored: bool = False,
    **known: Any,
) -> Detection:
    """Convert the output of MediaPipe Hands: 21 normalised landmarks, and world landmarks as a depth hint.

    Args:
        landmarks: 21 objects with x and y in 0 to 1 (``result.hand_landmarks[i]``).
        width: Image width, pixels.
        height: Image height, pixels.
        handedness: "Left" or "Right" as in MediaPipe's output. MediaPipe assumes a mirrored image (a selfie), so the
            side is swapped unless `mirrored` is true.
        world_landmarks: 21 objects with x, y, z in metres (``result.hand_world_landmarks[i]``).
        mirrored: Whether the image is mirrored.
        **known: Further arguments of `detection`.

    Raises:
        InputError: If a value is invalid.
    """
    if len(landmarks) != 21:
        raise InputError(f"landmarks has {len(landmarks)} entries: give MediaPipe's 21 landmarks of one hand")
    side = handedness.lower()
    if side not in get_args(Side):
        raise InputError(f"handedness is {handedness!r}: use Left or Right")
    if not mirrored:
        side = "left" if side == "right" else "right"
    # MediaPipe divides pixel indices by the image's size on a CPU, without half a pixel for the pixels' centres.
    points = np.asarray([[p.x * width, p.y * height] for p in landmarks])
    if world_landmarks is not None:
        known["joints_3d"] = np.asarray([[p.x, p.y, p.z] for p in world_landmarks])
    return detection(points, side=side, convention="mediapipe", **known)

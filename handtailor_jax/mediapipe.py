"""Detections from the output of MediaPipe Hands."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from handtailor_jax.detections import Detection, detection
from handtailor_jax.errors import InputError, check_range, checked_array
from handtailor_jax.geometry.mirror import mirror_pixels, mirror_points
from handtailor_jax.types import Side


def from_mediapipe(
    landmarks: Any,
    width: int,
    height: int,
    *,
    handedness: Any,
    world_landmarks: Any = None,
    mirrored: bool = False,
    **known: Any,
) -> Detection:
    """Convert the output of MediaPipe Hands: 21 normalised landmarks, and world landmarks as a depth hint.

    Landmarks may be MediaPipe's objects or the list that holds them, dictionaries with "x", "y" and "z", or an array.

    Args:
        landmarks: 21 landmarks with x and y in 0 to 1 (``result.hand_landmarks[i]``).
        width: Image width, pixels.
        height: Image height, pixels.
        handedness: "Left" or "Right", or ``result.handedness[i]``, as in MediaPipe's output. MediaPipe assumes a
            mirrored image (a selfie), so the side is swapped unless `mirrored` is true.
        world_landmarks: 21 landmarks with x, y, z in metres (``result.hand_world_landmarks[i]``).
        mirrored: Whether the image is mirrored. The detection is then that of the image mirrored back, in which the
            hand has its true side: draw the result on that image.
        **known: Further arguments, passed to `detection`.

    Raises:
        InputError: If a value is invalid.
    """
    # MediaPipe divides pixel indices by the image's size on a CPU, without half a pixel for the pixels' centres.
    check_range("width and height", (width, height), 1)
    points, side = _points("landmarks", landmarks, 2) * [width, height], _side(handedness)
    if world_landmarks is not None:
        world = _points("world_landmarks", world_landmarks, 3)
        known["joints_3d"] = mirror_points(world) if mirrored else world
    if mirrored:
        points = mirror_pixels(points, width)
    else:
        side = "left" if side == "right" else "right"
    return detection(points, side=side, convention="mediapipe", **known)


def _points(name: str, landmarks: Any, columns: int) -> Any:
    """Return the first coordinates of landmarks in any of MediaPipe's forms."""
    landmarks = getattr(landmarks, "landmark", landmarks)
    if isinstance(landmarks, Mapping):
        landmarks = landmarks.get("landmark", landmarks.get("landmarks", ()))
    try:
        points = [_coordinates(each)[:columns] for each in landmarks]
    except (TypeError, KeyError, IndexError, AttributeError):
        raise InputError(f"{name} has entries without x, y and z: give MediaPipe's landmarks of one hand") from None
    if len(points) != 21:
        raise InputError(f"{name} has {len(points)} entries: give MediaPipe's 21 landmarks of one hand")
    return checked_array(name, points, (21, columns))


def _coordinates(landmark: Any) -> Sequence[Any]:
    if isinstance(landmark, Mapping):
        return [landmark["x"], landmark["y"], landmark.get("z", 0.0)]
    return [landmark.x, landmark.y, getattr(landmark, "z", 0.0)] if hasattr(landmark, "x") else list(landmark)


def _side(handedness: Any) -> str:
    """Return the side that a text or a classification names."""
    found = getattr(handedness, "classification", handedness)
    if isinstance(found, Mapping):
        found = found.get("classification", found)
    if not isinstance(found, str | Mapping) and isinstance(found, Sequence) and len(found):
        found = found[0]
    for name in ("category_name", "categoryName", "label"):
        found = found.get(name, found) if isinstance(found, Mapping) else getattr(found, name, found)
    if not isinstance(found, str) or found.lower() not in get_args(Side):
        raise InputError(f"handedness is {str(handedness)[:60]!r}: use Left or Right, or result.handedness[i]")
    return found.lower()

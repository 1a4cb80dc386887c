"""Conversion of poses of other programs: axis-angle vectors, quaternions, matrices or principal components."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from handtailor_jax.errors import FloatArray, InputError, checked_array, numbers
from handtailor_jax.geometry.mirror import mirror_pose
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, axis_angle_from_quaternion
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import given_hand

MOST_PARAMETER = 100.0
"""Largest value in a given pose, in any form."""

# Largest deviation of R R^T of a given rotation matrix from the identity.
_ROUNDING = 1e-2

_FROM_QUATERNIONS, _FROM_MATRICES = jax.jit(axis_angle_from_quaternion), jax.jit(axis_angle_from_matrix)


def pose_from(
    pose: Any, pca: Any, rotation: Any, flat_hand_mean: Any, hand: HandModel | None, side: str
) -> FloatArray | None:
    """Return a pose (16, 3) in MANO's order, axis-angle in radians, relative to the flat hand; None if none is given.

    `pose` holds 16 rotations, or the 15 of the fingers beside a `rotation` (the `global_rotation`), each as axis-angle
    (3), quaternion (4: w, x, y, z, of any length) or matrix (3, 3). It is relative to the flat hand, or to the mean
    pose if not `flat_hand_mean`. In its place, `pca` gives up to 45 coefficients, beside a `rotation`. Mean and
    components are those of the model `hand`, the embedded one if None, mirrored to `side`.

    Raises:
        InputError: If values are missing, surplus or not rotations.
    """
    if not isinstance(flat_hand_mean, bool):
        raise InputError(f"flat_hand_mean is {flat_hand_mean!r}: use true or false")
    if pose is not None and pca is not None:
        raise InputError("pose and pca are both given: give either pose or pca")
    if pca is not None and rotation is None:
        raise InputError("pca is given without global_rotation: add one")
    if pose is None and pca is None:
        if rotation is not None:
            raise InputError("global_rotation is given without pose or pca: add the 15 finger rotations as pose")
        return None
    parts = [] if rotation is None else [_rotations("global_rotation", rotation, 1)]
    parts.append(np.zeros((15, 3), np.float32) if pose is None else _rotations("pose", pose, 16 - len(parts)))
    values = np.concatenate(parts)
    if pca is None and flat_hand_mean:
        return values
    model = given_hand(hand)
    if pca is None:
        fingers = model.finger_pose_from_axis_angle(jnp.zeros((15, 3), model.dtype), flat_hand_mean=flat_hand_mean)
    else:
        coefficients = np.asarray(numbers("pca", pca)).reshape(-1)
        if not 1 <= coefficients.size <= 45:
            raise InputError(f"pca has {coefficients.size} values: give 1 to 45")
        coefficients = checked_array("pca", coefficients, coefficients.shape, most=MOST_PARAMETER)
        fingers = model.finger_pose_from_pca(jnp.asarray(coefficients, model.dtype), flat_hand_mean=flat_hand_mean)
    values[1:] += np.asarray(fingers if model.side == side else mirror_pose(fingers))
    return values


def _rotations(name: str, given: Any, count: int) -> FloatArray:
    """Convert rotations to axis-angle vectors; the number of values determines their form."""
    array = np.asarray(numbers(name, given))
    width = array.size // count
    # A transposed array has the right number of values, too.
    shapes = (count * width,), (count, width), (3, 3) if count == 1 else (count, 3, 3)
    if array.size != count * width or width not in (3, 4, 9) or array.squeeze().shape not in shapes:
        beside = {1: "", 15: " beside a global_rotation", 16: ", the global rotation first"}[count]
        forms = f"{count} x 3 axis-angle, {count} x 4 quaternion or {count} x 3 x 3 matrix values"
        raise InputError(f"{name} has {' x '.join(map(str, array.shape)) or 1} values: give {forms}{beside}")
    values = checked_array(name, array.reshape(count, width), (count, width), most=MOST_PARAMETER)
    if width == 3:
        return values
    if width == 4:
        if (np.linalg.norm(values, axis=1) < 1e-3).any():
            raise InputError(f"{name} has a quaternion of length 0: give w, x, y, z")
        return np.asarray(_FROM_QUATERNIONS(jnp.asarray(values)))
    matrices = values.reshape(count, 3, 3)
    products = matrices @ np.swapaxes(matrices, 1, 2)
    if np.abs(products - np.eye(3)).max() > _ROUNDING or np.linalg.det(matrices).min() < 0:
        raise InputError(f"{name} has a matrix that is no rotation: its rows must be orthonormal, its determinant 1")
    return np.asarray(_FROM_MATRICES(jnp.asarray(matrices)))

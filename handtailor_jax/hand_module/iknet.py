"""IKNet: rotations of MANO's 16 joints from 21 keypoints in 3D (Zhou et al., CVPR 2020)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from handtailor_jax.geometry.rotations import axis_angle_from_matrix, axis_angle_from_quaternion, matrix_from_quaternion
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.layers import MLP
from handtailor_jax.skeleton import NUM_JOINTS, NUM_KEYPOINTS, ROOT, WRIST
from handtailor_jax.types import pytree

# The identity in both of IKNet's outputs.
_QUATERNION = np.asarray([1.0, 0.0, 0.0, 0.0], np.float32)
_COLUMNS = np.asarray([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], np.float32)


@pytree
class Rotations:
    """Rotations of MANO's 16 joints, relative to their parents and to the flat rest pose."""

    raw: Float[Array, "*batch 16 parameters"]
    """Output of IKNet before normalisation: quaternions (w, x, y, z), or the first two columns of each matrix."""
    matrices: Float[Array, "*batch 16 3 3"]
    pose: Float[Array, "*batch 16 3"]
    """Axis-angle vectors, radians."""


class IKNet(nnx.Module):
    """An MLP from joints to rotations; it can be trained alone, on poses without images."""

    def __init__(self, config: HandModuleConfig, *, rngs: nnx.Rngs):
        self.config = config
        identity = np.tile(_QUATERNION if config.rotation == "quaternion" else _COLUMNS, NUM_JOINTS)
        self.mlp = MLP(3 * NUM_KEYPOINTS, config.ik_hidden, identity.size, config, rngs=rngs)
        # Training starts at the rest pose, far from the singularities.
        self.mlp.head.bias = nnx.Param(jnp.asarray(identity))

    def __call__(self, joints: Float[Array, "batch 21 3"]) -> Rotations:
        """Return the rotations of the hand with these joints, as returned by `normalise_joints`."""
        raw = self.mlp(joints.reshape(-1, 3 * NUM_KEYPOINTS))
        raw = raw.reshape(-1, NUM_JOINTS, raw.shape[-1] // NUM_JOINTS).astype(joints.dtype)
        return rotations_from_raw(raw)


def rotations_from_raw(raw: Float[Array, "*batch 16 parameters"]) -> Rotations:
    """Convert the output of IKNet: 4 numbers per joint are a quaternion, 6 are two columns of the rotation matrix."""
    if raw.shape[-1] == 4:
        quaternion = normalise_quaternion(raw)
        return Rotations(raw, matrix_from_quaternion(quaternion), axis_angle_from_quaternion(quaternion))
    matrices = matrix_from_columns(raw)
    return Rotations(raw, matrices, axis_angle_from_matrix(matrices))


def normalise_quaternion(quaternion: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Normalise quaternions (w, x, y, z) to length 1; a zero quaternion becomes the identity."""
    return _unit(quaternion, jnp.broadcast_to(jnp.asarray(_QUATERNION, quaternion.dtype), quaternion.shape))


def matrix_from_columns(columns: Float[Array, "*batch 6"]) -> Float[Array, "*batch 3 3"]:
    """Build rotation matrices from their first two columns by Gram-Schmidt orthogonalisation.

    The result is continuous in the columns, unless the first column is zero or the second is parallel to it. In these
    cases the result is an arbitrary rotation with finite gradients.
    """
    axis = jnp.broadcast_to(jnp.asarray([1.0, 0.0, 0.0], columns.dtype), (*columns.shape[:-1], 3))
    first, second = _unit(columns[..., :3], axis), _unit(columns[..., 3:], axis)
    # For nearly parallel columns the remainder is a rounding error, which is not perpendicular to the first column.
    rest = second - jnp.sum(first * second, axis=-1, keepdims=True) * first
    second = _unit(rest, _perpendicular(first), below=1e-3)
    return jnp.stack([first, second, jnp.cross(first, second)], axis=-1)


def normalise_joints(joints: Float[Array, "*batch 21 3"]) -> Float[Array, "*batch 21 3"]:
    """Shift joints to a root at the origin and scale them to a reference bone of length 1: the input of IKNet."""
    relative = joints - joints[..., ROOT, None, :]
    squared = jnp.sum(jnp.square(relative[..., WRIST, :]), axis=-1)
    # A reference bone of length 0, which only an untrained network predicts, leaves the joints unscaled.
    degenerate = squared < 1e-24
    return relative / jnp.sqrt(jnp.where(degenerate, 1.0, squared))[..., None, None]


def _unit(
    vector: Float[Array, "*batch n"], fallback: Float[Array, "*batch n"], below: float = 1e-10
) -> Float[Array, "*batch n"]:
    """Scale vectors to length 1; vectors shorter than `below` become `fallback`."""
    squared = jnp.sum(vector * vector, axis=-1, keepdims=True)
    degenerate = squared < below**2
    # Double where: the unused branch must not divide by zero in its gradient.
    unit = vector / jnp.sqrt(jnp.where(degenerate, 1.0, squared))
    return jnp.where(degenerate, fallback, unit)


def _perpendicular(unit: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Return a unit vector perpendicular to each unit vector, without a gradient."""
    unit = jax.lax.stop_gradient(unit)
    other = jnp.cross(unit, jax.nn.one_hot(jnp.argmin(jnp.abs(unit), axis=-1), 3, dtype=unit.dtype))
    return other / jnp.sqrt(jnp.sum(other * other, axis=-1, keepdims=True))

"""Forward kinematics of the 16 joints, with a derivative in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.geometry import exact
from handtailor_jax.geometry.rotations import left_jacobian, matrix_from_axis_angle, skew
from handtailor_jax.skeleton import FINGER_JOINTS, JOINT_PARENTS, NUM_JOINTS, ancestors

# Row j is 1 at j and at every ancestor of j, so a sum along the kinematic chain is one product with this matrix.
ANCESTRY = np.zeros((NUM_JOINTS, NUM_JOINTS), np.float32)
for _joint in range(NUM_JOINTS):
    ANCESTRY[_joint, list(ancestors(_joint))] = 1.0

PARENTS = np.asarray(JOINT_PARENTS[1:], np.int32)

# A level holds one joint of each finger, in the same order as the level before: three batched products, not fifteen.
_LEVELS = np.asarray(FINGER_JOINTS, np.int32).T
_FROM_LEVELS = np.argsort([0, *_LEVELS.reshape(-1)]).astype(np.int32)


@jax.custom_jvp
def forward_kinematics(
    pose: Float[Array, "16 3"], rest_joints: Float[Array, "16 3"]
) -> tuple[Float[Array, "16 3 3"], Float[Array, "16 3 3"], Float[Array, "16 3"]]:
    """Return rotations relative to the parents, rotations relative to the rest frame, and posed joints (metres).

    The derivative is in closed form. If joint i rotates with angular velocity w_i, everything below it moves rigidly,
    so joint j has the angular velocity W_j = sum of w_i over j and its ancestors. Sums along the chain are products
    with a constant matrix in forward and reverse mode. This halves the time of batched solves compared with
    differentiating the chain step by step.

    Args:
        pose: Axis-angle rotations, radians, MANO's joint order.
        rest_joints: Rest joints, metres, rest frame.
    """
    rotations = matrix_from_axis_angle(pose)
    return (rotations, *chain_rotations(rotations, rest_joints))


@forward_kinematics.defjvp
@exact
def _forward_kinematics_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    pose, rest_joints = primals
    pose_rate, rest_rate = tangents
    rotations, joint_rotations, joints = forward_kinematics(pose, rest_joints)
    eye = jnp.eye(3, dtype=pose.dtype)
    ancestry = jnp.asarray(ANCESTRY, pose.dtype)

    local_velocity = jnp.einsum("jab,jb->ja", left_jacobian(pose), pose_rate)
    parent_rotations = jnp.concatenate([eye[None], joint_rotations[PARENTS]])
    velocity = jnp.einsum("jab,jb->ja", parent_rotations, local_velocity)
    total_velocity = ancestry @ velocity

    # The velocity of joint j is the sum of W_parent x bone along the chain. Regrouped about the origin it is
    # W_j x p_j + c_j, where c_j is the sum of (stretch of the bone - w_i x p_i).
    stretch = jnp.einsum("jab,jb->ja", joint_rotations[PARENTS], rest_rate[1:] - rest_rate[PARENTS])
    offsets = jnp.concatenate([rest_rate[:1], stretch]) - jnp.cross(velocity, joints)
    joints_rate = jnp.cross(total_velocity, joints) + ancestry @ offsets

    rotations_rate = jnp.einsum("jab,jbc->jac", skew(local_velocity), rotations)
    joint_rotations_rate = jnp.einsum("jab,jbc->jac", skew(total_velocity), joint_rotations)
    return (rotations, joint_rotations, joints), (rotations_rate, joint_rotations_rate, joints_rate)


@exact
def chain_rotations(
    rotations: Float[Array, "16 3 3"], rest_joints: Float[Array, "16 3"]
) -> tuple[Float[Array, "16 3 3"], Float[Array, "16 3"]]:
    """Convert rotations relative to the parents to rotations relative to the rest frame and posed joints (metres)."""
    level, levels = jnp.broadcast_to(rotations[:1], (5, 3, 3)), [rotations[:1]]
    for one_of_each in _LEVELS:
        level = jnp.einsum("jab,jbc->jac", level, rotations[one_of_each])
        levels.append(level)
    joint_rotations = jnp.concatenate(levels)[_FROM_LEVELS]

    bones = rest_joints[1:] - rest_joints[PARENTS]
    steps = jnp.einsum("jab,jb->ja", joint_rotations[PARENTS], bones)
    joints = jnp.asarray(ANCESTRY, rotations.dtype) @ jnp.concatenate([rest_joints[:1], steps])
    return joint_rotations, joints

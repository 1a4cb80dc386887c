"""The hand model M(theta, beta) = W(T(theta, beta), J(beta), theta, omega), Eq. 1 of the paper, in stages.

    model --shape(betas)--> ShapedHand --pose(pose)--> PosedHand --skin()--> HandMesh

Each stage is a frozen pytree whose method returns the next stage, so a mesh cannot be skinned before it is posed.

Rest frame (MANO's): right hand, fingers along -x, palm toward -y, thumb toward +z, metres. A left hand is the mirror
image (x' = -x), so its fingers point along +x.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Int

from handtailor_jax.geometry.mirror import mirror_faces, mirror_points, mirror_pose
from handtailor_jax.geometry.rotations import left_jacobian, matrix_from_axis_angle, skew
from handtailor_jax.skeleton import FINGERS, JOINT_PARENTS, KEYPOINTS_FROM_MANO, NUM_JOINTS, ancestors, joint_levels
from handtailor_jax.types import HandMesh, Side, pytree, static

# Row j is 1 at j and at every ancestor of j, so sums along the kinematic chain are one matrix product.
ANCESTRY = np.zeros((NUM_JOINTS, NUM_JOINTS), np.float32)
for _joint in range(NUM_JOINTS):
    ANCESTRY[_joint, list(ancestors(_joint))] = 1.0

_PARENTS = np.asarray(JOINT_PARENTS[1:], np.int32)

# Level n holds one joint of each finger, in the same order as level n - 1: three batched products instead of fifteen.
_LEVELS = joint_levels()
_FROM_LEVELS = np.argsort(np.concatenate([np.asarray(level, np.int32) for level in _LEVELS])).astype(np.int32)


@pytree
class Anatomy:
    """Axes, limits and prior of the finger joints, in MANO's order (index, middle, little, ring, thumb).

    The coordinates of a joint's axis-angle rotation v are ``axes @ v``: flexion (positive toward the palm), abduction
    (positive toward the thumb's side) and twist (about the bone), in radians.
    """

    axes: Float[Array, "15 3 3"]
    """Flexion, abduction and twist axis in the rest frame, as orthonormal rows."""
    lower: Float[Array, "15 3"]
    """Lower joint limits, radians."""
    upper: Float[Array, "15 3"]
    """Upper joint limits, radians."""
    mean: Float[Array, "15 3"]
    """Mean of the pose prior, radians."""
    std: Float[Array, "15 3"]
    """Standard deviation of the pose prior, radians."""

    def coordinates(self, finger_pose: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
        """Convert axis-angle finger rotations (radians) to flexion, abduction and twist (radians)."""
        return jnp.einsum("jab,jb->ja", self.axes, finger_pose)

    def finger_pose(self, coordinates: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
        """Convert flexion, abduction and twist (radians) to axis-angle finger rotations (radians)."""
        return jnp.einsum("jab,ja->jb", self.axes, coordinates)


@pytree
class LinearBlendSkin:
    """The arrays of a hand model that belong to a set of vertices."""

    template: Float[Array, "vertices 3"]
    """Rest vertices of the mean shape, metres."""
    shape_directions: Float[Array, "vertices 3 betas"]
    """Displacement per standard deviation of each shape coefficient, metres."""
    pose_directions: Float[Array, "vertices 3 135"]
    """Displacement per entry of (R_1 ... R_15) - I, row-major, metres."""
    weights: Float[Array, "vertices 16"]
    """Blend weights; rows sum to 1."""

    def rest_vertices(self, betas: Float[Array, "betas"]) -> Float[Array, "vertices 3"]:
        """Return T + B_S(beta), the shaped vertices in the rest pose, metres."""
        return self.template + self.shape_directions @ betas

    def mirrored(self) -> "LinearBlendSkin":
        """Return the skin of the other hand, mirrored in x."""
        # A rotation matrix entry changes sign in the mirror if exactly one of its two indices is x.
        flip = np.asarray([-1.0, 1.0, 1.0])
        entries = jnp.asarray(np.tile(np.outer(flip, flip).reshape(9), 15), self.template.dtype)
        return LinearBlendSkin(
            template=mirror_points(self.template),
            shape_directions=_mirror_directions(self.shape_directions),
            pose_directions=_mirror_directions(self.pose_directions) * entries[None, None],
            weights=self.weights,
        )


def _mirror_directions(directions: Float[Array, "n 3 k"]) -> Float[Array, "n 3 k"]:
    return jnp.swapaxes(mirror_points(jnp.swapaxes(directions, 1, 2)), 1, 2)


@pytree
class HandModel:
    """A hand model of MANO's kind; `embedded_hand`, `load_hand` and `load_mano` return one."""

    skin: LinearBlendSkin
    tips: LinearBlendSkin
    """The five fingertips (thumb, index, middle, ring, little) of `skin`, for keypoints without a skinned mesh."""
    rest_joints: Float[Array, "16 3"]
    """Rest joints of the mean shape, metres."""
    joint_shape_directions: Float[Array, "16 3 betas"]
    """Displacement of the rest joints per standard deviation of each shape coefficient, metres."""
    joint_regressor: Float[Array, "16 vertices"]
    """Rest joints from rest vertices; rows sum to 1."""
    faces: Int[Array, "faces 3"]
    """Triangles with outward normals."""
    tip_vertices: Int[Array, "5"]
    """Vertex index of each fingertip: thumb, index, middle, ring, little."""
    pose_mean: Float[Array, "45"]
    """Mean of the 15 finger rotations (axis-angle, radians), used only where a pose is given relative to it."""
    pose_components: Float[Array, "45 45"]
    """Principal components of the finger rotations, one per row."""
    anatomy: Anatomy
    """Flexion, abduction and twist axes of the 15 finger joints with their limits and priors."""
    side: Side = static(default="right")
    """Which hand this is."""

    @property
    def num_betas(self) -> int:
        """Number of shape coefficients."""
        return self.joint_shape_directions.shape[-1]

    @property
    def dtype(self) -> jnp.dtype:
        """Floating-point type of every array of the model."""
        return self.rest_joints.dtype

    def astype(self, dtype: npt.DTypeLike) -> "HandModel":
        """Convert the floating-point arrays of the model to another type."""
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, self)

    def shape(self, betas: Float[Array, "betas"]) -> "ShapedHand":
        """Apply shape coefficients (standard deviations)."""
        return ShapedHand(model=self, betas=betas, rest_joints=self.rest_joints + self.joint_shape_directions @ betas)

    def finger_pose_from_pca(
        self, coefficients: Float[Array, "n"], *, flat_hand_mean: bool = True
    ) -> Float[Array, "15 3"]:
        """Return axis-angle finger rotations (radians, from the flat rest pose) of the first n <= 45 PCA coefficients.

        Zero coefficients are the flat hand, or MANO's mean pose if not `flat_hand_mean`.
        """
        pose = coefficients @ self.pose_components[: coefficients.shape[0]]
        return self.finger_pose_from_axis_angle(pose.reshape(15, 3), flat_hand_mean=flat_hand_mean)

    def finger_pose_from_axis_angle(
        self, rotations: Float[Array, "15 3"], *, flat_hand_mean: bool
    ) -> Float[Array, "15 3"]:
        """Return axis-angle finger rotations (radians) relative to the flat rest pose.

        `rotations` are in MANO's joint order and relative to the flat hand, or, if not `flat_hand_mean`, to MANO's mean
        pose (smplx's default, FreiHAND's files).
        """
        return rotations if flat_hand_mean else rotations + self.pose_mean.reshape(15, 3)

    def mirrored(self) -> "HandModel":
        """Return the hand of the other side: mirrored in x, with outward normals."""
        return HandModel(
            skin=self.skin.mirrored(),
            tips=self.tips.mirrored(),
            rest_joints=mirror_points(self.rest_joints),
            joint_shape_directions=_mirror_directions(self.joint_shape_directions),
            joint_regressor=self.joint_regressor,
            faces=mirror_faces(self.faces),
            tip_vertices=self.tip_vertices,
            pose_mean=mirror_pose(self.pose_mean.reshape(15, 3)).reshape(45),
            pose_components=mirror_pose(self.pose_components.reshape(45, 15, 3)).reshape(45, 45),
            anatomy=dataclasses.replace(self.anatomy, axes=mirror_pose(self.anatomy.axes)),
            side="left" if self.side == "right" else "right",
        )


@pytree
class ShapedHand:
    """A hand with its shape applied, in the rest pose."""

    model: HandModel
    betas: Float[Array, "betas"]
    rest_joints: Float[Array, "16 3"]
    """J(beta): joints in the rest pose, metres."""

    @property
    def length(self) -> Float[Array, ""]:
        """Distance from the wrist to the middle fingertip of the flat hand, metres."""
        along = self.model.tips.rest_vertices(self.betas)[FINGERS.index("middle")] - self.rest_joints[0]
        return jnp.sqrt(jnp.sum(along * along))

    def pose(self, pose: Float[Array, "16 3"]) -> "PosedHand":
        """Apply axis-angle rotations (radians, MANO's joint order, relative to the flat rest pose)."""
        rotations, joint_rotations, joints = forward_kinematics(pose, self.rest_joints)
        return PosedHand(shaped=self, rotations=rotations, joint_rotations=joint_rotations, joints=joints)

    def articulate(self, rotations: Float[Array, "16 3 3"]) -> "PosedHand":
        """Apply rotation matrices (MANO's joint order, each relative to its parent)."""
        joint_rotations, joints = chain_rotations(rotations, self.rest_joints)
        return PosedHand(shaped=self, rotations=rotations, joint_rotations=joint_rotations, joints=joints)


@pytree
class PosedHand:
    """A shaped hand with its pose applied: it has joints and keypoints, but no skinned mesh yet."""

    shaped: ShapedHand
    rotations: Float[Array, "16 3 3"]
    """Rotation of each joint relative to its parent."""
    joint_rotations: Float[Array, "16 3 3"]
    """Rotation of each joint relative to the rest frame."""
    joints: Float[Array, "16 3"]
    """Posed joints in MANO's order, metres, rest frame."""

    @property
    def keypoints(self) -> Float[Array, "21 3"]:
        """The 21 keypoints in canonical order, metres, rest frame."""
        tips = self.skin_vertices(self.shaped.model.tips)
        return jnp.concatenate([self.joints, tips])[np.asarray(KEYPOINTS_FROM_MANO, np.int32)]

    def skin_vertices(self, skin: LinearBlendSkin) -> Float[Array, "vertices 3"]:
        """Return W(T(theta, beta), ...) of Eq. 1 of the paper: posed vertices of `skin`, metres, rest frame."""
        correction = (self.rotations[1:] - jnp.eye(3, dtype=self.rotations.dtype)[None]).reshape(135)
        rest = skin.rest_vertices(self.shaped.betas) + skin.pose_directions @ correction
        # x' = sum_j w_j (R_j (x - rest_j) + joint_j) = (sum_j w_j R_j) x + sum_j w_j t_j. One product blends all twelve
        # entries. Written coordinate by coordinate, XLA fuses the remaining operations into one pass over the vertices.
        offsets = self.joints - jnp.einsum("jab,jb->ja", self.joint_rotations, self.shaped.rest_joints)
        transforms = jnp.concatenate([self.joint_rotations.reshape(NUM_JOINTS, 9), offsets], axis=1)
        blended = skin.weights @ transforms
        x, y, z = rest[:, 0], rest[:, 1], rest[:, 2]
        row = [blended[:, 3 * a] * x + blended[:, 3 * a + 1] * y + blended[:, 3 * a + 2] * z for a in range(3)]
        return jnp.stack([row[a] + blended[:, 9 + a] for a in range(3)], axis=-1)

    def skin(self) -> HandMesh:
        """Skin the whole mesh."""
        model = self.shaped.model
        return HandMesh(vertices=self.skin_vertices(model.skin), faces=model.faces, keypoints=self.keypoints)


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
def _forward_kinematics_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    pose, rest_joints = primals
    pose_rate, rest_rate = tangents
    rotations, joint_rotations, joints = forward_kinematics(pose, rest_joints)
    eye = jnp.eye(3, dtype=pose.dtype)
    ancestry = jnp.asarray(ANCESTRY, pose.dtype)

    local_velocity = jnp.einsum("jab,jb->ja", left_jacobian(pose), pose_rate)
    parent_rotations = jnp.concatenate([eye[None], joint_rotations[_PARENTS]])
    velocity = jnp.einsum("jab,jb->ja", parent_rotations, local_velocity)
    total_velocity = ancestry @ velocity

    # The velocity of joint j is the sum of W_parent x bone along the chain. Regrouped about the origin it is
    # W_j x p_j + c_j, where c_j is the sum of (stretch of the bone - w_i x p_i).
    stretch = jnp.einsum("jab,jb->ja", joint_rotations[_PARENTS], rest_rate[1:] - rest_rate[_PARENTS])
    offsets = jnp.concatenate([rest_rate[:1], stretch]) - jnp.cross(velocity, joints)
    joints_rate = jnp.cross(total_velocity, joints) + ancestry @ offsets

    rotations_rate = jnp.einsum("jab,jbc->jac", skew(local_velocity), rotations)
    joint_rotations_rate = jnp.einsum("jab,jbc->jac", skew(total_velocity), joint_rotations)
    return (rotations, joint_rotations, joints), (rotations_rate, joint_rotations_rate, joints_rate)


def chain_rotations(
    rotations: Float[Array, "16 3 3"], rest_joints: Float[Array, "16 3"]
) -> tuple[Float[Array, "16 3 3"], Float[Array, "16 3"]]:
    """Return rotations relative to the rest frame and posed joints (metres) of rotations relative to the parents."""
    level_rotations = [rotations[np.asarray(_LEVELS[0], np.int32)]]
    for level in _LEVELS[1:]:
        parent_rotations = level_rotations[-1]
        if parent_rotations.shape[0] == 1:
            parent_rotations = jnp.broadcast_to(parent_rotations, (len(level), 3, 3))
        level_rotations.append(jnp.einsum("jab,jbc->jac", parent_rotations, rotations[np.asarray(level, np.int32)]))
    joint_rotations = jnp.concatenate(level_rotations)[_FROM_LEVELS]

    bones = rest_joints[1:] - rest_joints[_PARENTS]
    steps = jnp.einsum("jab,jb->ja", joint_rotations[_PARENTS], bones)
    joints = jnp.asarray(ANCESTRY, rotations.dtype) @ jnp.concatenate([rest_joints[:1], steps])
    return joint_rotations, joints

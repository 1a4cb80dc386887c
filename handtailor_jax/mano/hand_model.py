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

from handtailor_jax.geometry import exact
from handtailor_jax.geometry.mirror import mirror_faces, mirror_points, mirror_pose
from handtailor_jax.mano.kinematics import chain_rotations, forward_kinematics
from handtailor_jax.skeleton import FINGERS, KEYPOINTS_FROM_MANO, NUM_JOINTS
from handtailor_jax.types import HandMesh, Numbers, Side, pytree, static

_POSE_ENTRIES = 9 * (NUM_JOINTS - 1)


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

    @exact
    def coordinates(self, finger_pose: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
        """Convert axis-angle finger rotations (radians) to flexion, abduction and twist (radians)."""
        return jnp.einsum("jab,jb->ja", self.axes, finger_pose)

    @exact
    def finger_pose(self, coordinates: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
        """Convert flexion, abduction and twist (radians) to axis-angle finger rotations (radians)."""
        return jnp.einsum("jab,ja->jb", self.axes, coordinates)


@pytree
class LinearBlendSkin:
    """The arrays of a hand model that belong to a set of vertices, which are the last axis (see `skin_vertices`)."""

    rest: Float[Array, "3 vertices"]
    """Rest vertices of the mean shape, metres."""
    directions: Float[Array, "betas_and_135 3 vertices"]
    """Displacement per standard deviation of each shape coefficient, then per entry of (R_1 ... R_15) - I, row-major,
    metres."""
    blend: Float[Array, "16 vertices"]
    """Blend weights; columns sum to 1."""

    @classmethod
    def create(
        cls,
        template: Float[Numbers, "vertices 3"],
        shape_directions: Float[Numbers, "vertices 3 betas"],
        pose_directions: Float[Numbers, "vertices 3 135"],
        weights: Float[Numbers, "vertices 16"],
    ) -> "LinearBlendSkin":
        """Create a skin from arrays in MANO's layout."""
        directions = jnp.concatenate([jnp.asarray(shape_directions), jnp.asarray(pose_directions)], axis=-1)
        return cls(jnp.asarray(template).T, directions.T, jnp.asarray(weights).T)

    @property
    def template(self) -> Float[Array, "vertices 3"]:
        """Rest vertices of the mean shape, metres."""
        return self.rest.T

    @property
    def shape_directions(self) -> Float[Array, "vertices 3 betas"]:
        """Displacement per standard deviation of each shape coefficient, metres."""
        return self.directions[:-_POSE_ENTRIES].T

    @property
    def pose_directions(self) -> Float[Array, "vertices 3 135"]:
        """Displacement per entry of (R_1 ... R_15) - I, row-major, metres."""
        return self.directions[-_POSE_ENTRIES:].T

    @property
    def weights(self) -> Float[Array, "vertices 16"]:
        """Blend weights; rows sum to 1."""
        return self.blend.T

    @exact
    def rest_vertices(self, betas: Float[Array, "betas"]) -> Float[Array, "vertices 3"]:
        """Return T + B_S(beta), the shaped vertices in the rest pose, metres."""
        return self.template + self.shape_directions @ betas

    def mirrored(self) -> "LinearBlendSkin":
        """Return the skin of the other hand, mirrored in x."""
        # A rotation matrix entry changes sign in the mirror if exactly one of its two indices is x.
        flip = np.asarray([-1.0, 1.0, 1.0])
        entries = jnp.asarray(np.tile(np.outer(flip, flip).reshape(9), 15), self.rest.dtype)
        return LinearBlendSkin.create(
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

    @exact
    def shape(self, betas: Float[Array, "betas"]) -> "ShapedHand":
        """Apply shape coefficients (standard deviations)."""
        return ShapedHand(model=self, betas=betas, rest_joints=self.rest_joints + self.joint_shape_directions @ betas)

    @exact
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

    @exact
    def skin_vertices(self, skin: LinearBlendSkin) -> Float[Array, "vertices 3"]:
        """Return W(T(theta, beta), ...) of Eq. 1 of the paper: posed vertices of `skin`, metres, rest frame."""
        correction = (self.rotations[1:] - jnp.eye(3, dtype=self.rotations.dtype)[None]).reshape(_POSE_ENTRIES)
        amounts = jnp.concatenate([self.shaped.betas, correction])
        # x' = sum_j w_j (R_j (x - rest_j) + joint_j) = (sum_j w_j R_j) x + sum_j w_j t_j. One product displaces all
        # vertices, one blends all twelve entries. With the vertices last, a batch of hands is two products, too, and
        # XLA fuses the remaining operations, written coordinate by coordinate, into one pass over the vertices.
        count = skin.rest.shape[1]
        x, y, z = skin.rest + (amounts @ skin.directions.reshape(-1, 3 * count)).reshape(3, count)
        offsets = self.joints - jnp.einsum("jab,jb->ja", self.joint_rotations, self.shaped.rest_joints)
        transforms = jnp.concatenate([self.joint_rotations.reshape(NUM_JOINTS, 9), offsets], axis=1)
        blended = transforms.T @ skin.blend
        row = [blended[3 * a] * x + blended[3 * a + 1] * y + blended[3 * a + 2] * z + blended[9 + a] for a in range(3)]
        return jnp.stack(row, axis=-1)

    def skin(self) -> HandMesh:
        """Skin the whole mesh."""
        model = self.shaped.model
        return HandMesh(vertices=self.skin_vertices(model.skin), faces=model.faces, keypoints=self.keypoints)

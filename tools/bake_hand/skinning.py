"""Step 4: skinning weights, and pose directions that make linear blending bend like dual quaternions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mesh import neighbour_average
from population import CHAINS, FAN_DEGREES, INDEX, LITTLE, MIDDLE, PARENTS, RING, THUMB
from scipy.spatial.transform import Rotation

THUMB_ROUNDS, WEB_ROUNDS = 20, 5  # of smoothing the skinning weights


def rotations_from_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return rotation matrices (..., 3, 3) of axis-angle vectors (..., 3) in radians."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    axis = vectors / np.maximum(angle[..., 0], 1e-12)
    k = np.zeros((*vectors.shape[:-1], 3, 3))
    k[..., 0, 1], k[..., 0, 2], k[..., 1, 2] = -axis[..., 2], axis[..., 1], -axis[..., 0]
    k -= np.swapaxes(k, -1, -2)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def joint_transforms(rotations: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rotations (16, 3, 3) and offsets (16, 3) from rest to posed points, for local rotations (15, 3, 3)."""
    world, posed = np.tile(np.eye(3), (16, 1, 1)), joints.copy()
    for j in range(1, 16):
        parent = PARENTS[j]
        world[j] = world[parent] @ rotations[j - 1]
        posed[j] = posed[parent] + world[parent] @ (joints[j] - joints[parent])
    return world, posed - np.einsum("jab,jb->ja", world, joints)


@dataclass(frozen=True)
class Hand:
    """A hand to pose: rest mesh, joints, skinning weights and pose directions."""

    vertices: np.ndarray  # (V, 3)
    joints: np.ndarray  # (16, 3)
    weights: np.ndarray  # (V, 16)
    faces: np.ndarray  # (F, 3)
    pose_directions: np.ndarray | None = None  # (V, 3, 135); None for none

    def posed(self, vectors: np.ndarray) -> np.ndarray:
        """Pose the mesh by linear blend skinning; the pose (15, 3) is axis-angle."""
        rotations = rotations_from_vectors(vectors)
        rest = self.vertices
        if self.pose_directions is not None:
            rest = rest + self.pose_directions @ (rotations - np.eye(3)).ravel()
        world, offset = joint_transforms(rotations, self.joints)
        linear = np.einsum("vj,jab->vab", self.weights, world)
        return np.einsum("vab,vb->va", linear, rest) + self.weights @ offset

    def posed_dual_quaternion(self, vectors: np.ndarray) -> np.ndarray:
        """Pose the mesh by dual quaternion skinning, which keeps the volume of bent and twisted segments."""
        world, offset = joint_transforms(rotations_from_vectors(vectors), self.joints)
        real = quaternions_from_rotations(world)
        dual = 0.5 * quaternion_product(np.column_stack([np.zeros(16), offset]), real)
        reference = real[self.weights.argmax(1)]  # (V, 4)
        signed = self.weights * np.where(reference @ real.T < 0, -1.0, 1.0)
        blended, blended_dual = signed @ real, signed @ dual
        norm = np.linalg.norm(blended, axis=1, keepdims=True)
        blended, blended_dual = blended / norm, blended_dual / norm
        conjugate = blended * (1, -1, -1, -1)
        shift = 2 * quaternion_product(blended_dual, conjugate)[:, 1:]
        points = np.column_stack([np.zeros(len(self.vertices)), self.vertices])
        return quaternion_product(quaternion_product(blended, points), conjugate)[:, 1:] + shift


def quaternions_from_rotations(rotations: np.ndarray) -> np.ndarray:
    """Return unit quaternions (N, 4), w first."""
    return Rotation.from_matrix(rotations).as_quat(scalar_first=True)


def quaternion_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Hamilton product of quaternions (..., 4), w first."""
    scalar = a[..., :1] * b[..., :1] - (a[..., 1:] * b[..., 1:]).sum(-1, keepdims=True)
    vector = a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + np.cross(a[..., 1:], b[..., 1:])
    return np.concatenate([scalar, vector], -1)


def smooth_webs(weights: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Smooth the weights (V, 16) in the webs, where the rig's change from one bone to another within a few millimetres.

    At the thumb the rig's weights go from the palm straight to the thumb's second bone, so the web folds inside out
    when the thumb opposes. Between fingers an edge is stretched to 3.5 times its length when one of them bends alone.
    """
    average = neighbour_average(faces, len(weights))
    thumb = weights[:, THUMB:].sum(1)
    bases = np.sort(np.stack([weights[:, CHAINS[f] : CHAINS[f] + 3].sum(1) for f in FAN_DEGREES]), axis=0)
    beyond = [THUMB + 2, INDEX + 1, MIDDLE + 1, RING + 1, LITTLE + 1]  # bones without webs: their skin stays
    thumb_web, finger_webs = (thumb > 0.02) & (thumb < 0.98), bases[-2] > 0.03
    for mixed, rings, rounds in ((thumb_web, 4, THUMB_ROUNDS), (finger_webs, 2, WEB_ROUNDS)):
        near = mixed.astype(float)
        for _ in range(rings):
            near = average @ near
        free = (near > 0) & (weights[:, beyond].sum(1) < 0.02)
        weights = weights.copy()
        for _ in range(rounds):
            weights[free] = (0.5 * weights + 0.5 * (average @ weights))[free]
    return weights


def fit_pose_directions(hand: Hand, poses: np.ndarray, ridge: float) -> np.ndarray:
    """Fit pose directions (V, 3, 135) that bring linear blend skinning close to dual quaternion skinning.

    This is a ridge regression. Each vertex depends only on the joints that move it, which keeps the result local and
    compressible.
    """
    features = np.stack([(rotations_from_vectors(p) - np.eye(3)).ravel() for p in poses])  # (N, 135)
    targets = np.empty((len(poses), *hand.vertices.shape))
    for n, pose in enumerate(poses):
        world, offset = joint_transforms(rotations_from_vectors(pose), hand.joints)
        linear = np.einsum("vj,jab->vab", hand.weights, world)
        wanted = hand.posed_dual_quaternion(pose) - hand.weights @ offset
        targets[n] = np.linalg.solve(linear, wanted[..., None])[..., 0] - hand.vertices

    directions = np.zeros((*hand.vertices.shape, 135))
    moves = hand.weights[:, 1:] > 1e-3
    for pattern in np.unique(moves, axis=0):
        rows = np.flatnonzero((moves == pattern).all(1))
        columns = np.flatnonzero(np.repeat(pattern, 9))
        if len(columns) == 0:
            continue
        x = features[:, columns]
        gram = x.T @ x + ridge * np.eye(len(columns))
        solution = np.linalg.solve(gram, x.T @ targets[:, rows].reshape(len(poses), -1))
        directions[np.ix_(rows, range(3), columns)] = solution.reshape(len(columns), len(rows), 3).transpose(1, 2, 0)
    return directions

"""Step 3: principal components of the shape, and the regressor from vertices to joints."""

from __future__ import annotations

import numpy as np
from mesh import vertex_normals

# Second shape coefficient (finger length relative to palm length) of the hands in 600 photographs, found with an
# estimate of MediaPipe's convention on a hand without this shift: real fingers are longer than the population model's.
FINGER_LENGTH_SHIFT = 0.65

REGRESSOR_RIDGE = 3e-7


def shape_space(vertices: np.ndarray, count: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean (V, 3), directions (V, 3, count) of one standard deviation, and their shares of variance (count,)."""
    mean = vertices.mean(0)
    deviations = (vertices - mean).reshape(len(vertices), -1)
    _, singular, rows = np.linalg.svd(deviations, full_matrices=False)
    directions = (rows[:count] * singular[:count, None] / np.sqrt(len(vertices) - 1)).T.reshape(*mean.shape, count)
    return mean, directions, (singular**2 / (singular**2).sum())[:count]


def oriented_shape_space(
    mean: np.ndarray, directions: np.ndarray, faces: np.ndarray, tips: np.ndarray, knuckles: np.ndarray
) -> np.ndarray:
    """Fix the signs of the directions: the first makes hands larger, the second fingers longer, all others thicker."""
    normals = vertex_normals(mean, faces)
    signs = np.sign(np.einsum("va,vak->k", normals, directions))
    signs[0] = np.sign(np.einsum("va,va->", mean, directions[..., 0]))
    signs[1] = np.sign((directions[knuckles, 0, 1] - directions[tips, 0, 1])[1:].sum())
    return directions * signs


def fit_joint_regressor(vertices: np.ndarray, joints: np.ndarray, count: int = 250) -> np.ndarray:
    """Fit rows (16, V) that sum to one and reproduce the joints (N, 16, 3) of hands (N, V, 3).

    Each row is a soft window on the `count` nearest vertices plus the smallest correction that reproduces the joints
    of the population. It averages over many vertices and has a few slightly negative weights. A non-negative fit uses
    three to ten vertices, and its errors reach 1.5 mm (5 mm at the wrist, which lies at the open boundary).
    """
    mean, mean_joints = vertices.mean(0), joints.mean(0)
    regressor = np.zeros((16, len(mean)))
    for j in range(16):
        distance = np.linalg.norm(mean - mean_joints[j], axis=1)
        near = np.argsort(distance)[:count]
        window = np.exp(-((distance[near] / distance[near].mean()) ** 2))
        window /= window.sum()
        rows = vertices[:, near].transpose(0, 2, 1).reshape(-1, count)
        missing = joints[:, j].ravel() - rows @ window
        # The large constant makes the correction sum to zero, so that the row still sums to one.
        gram = rows.T @ rows / len(vertices) + 1e3 + REGRESSOR_RIDGE * np.eye(count)
        regressor[j, near] = window + np.linalg.solve(gram, rows.T @ missing / len(vertices))
    return regressor / regressor.sum(1, keepdims=True)

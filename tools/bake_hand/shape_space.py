"""Step 3: principal components of the shape, and the regressor from vertices to joints."""

from __future__ import annotations

import numpy as np
from mesh import vertex_normals

# Mean second shape coefficient (finger length against palm length) of the hands in 600 photographs, as found by
# tools/learn_convention.py before this shift: real fingers are longer than the population model's.
FINGER_LENGTH_SHIFT = 0.65

REGRESSOR_RIDGE = 3e-7


def shape_space(vertices: np.ndarray, count: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (V, 3), directions (V, 3, count) of one standard deviation each, their shares of the variance (count,)."""
    mean = vertices.mean(0)
    deviations = (vertices - mean).reshape(len(vertices), -1)
    _, singular, rows = np.linalg.svd(deviations, full_matrices=False)
    directions = (rows[:count] * singular[:count, None] / np.sqrt(len(vertices) - 1)).T.reshape(*mean.shape, count)
    return mean, directions, (singular**2 / (singular**2).sum())[:count]


def oriented_shape_space(
    mean: np.ndarray, directions: np.ndarray, faces: np.ndarray, tips: np.ndarray, knuckles: np.ndarray
) -> np.ndarray:
    """Fix the signs of the directions: larger, then longer fingers, then thicker."""
    normals = vertex_normals(mean, faces)
    signs = np.sign(np.einsum("va,vak->k", normals, directions))
    signs[0] = np.sign(np.einsum("va,va->", mean, directions[..., 0]))
    signs[1] = np.sign((directions[knuckles, 0, 1] - directions[tips, 0, 1])[1:].sum())
    return directions * signs


def fit_joint_regressor(vertices: np.ndarray, joints: np.ndarray, count: int = 250) -> np.ndarray:
    """Rows (16, V) that sum to one and reproduce the joints (N, 16, 3) of hands (N, V, 3).

    A soft window on the `count` nearest vertices, corrected as little as exactness over the population asks
    for. Unlike a non-negative fit, which picks three to ten vertices and misses by up to 1.5 mm (wrist 5 mm,
    it lies at the open boundary), this averages over many vertices; the price is a few slightly negative
    weights.
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
        # The heavy constant makes the correction sum to zero, so that the row still sums to one.
        gram = rows.T @ rows / len(vertices) + 1e3 + REGRESSOR_RIDGE * np.eye(count)
        regressor[j, near] = window + np.linalg.solve(gram, rows.T @ missing / len(vertices))
    return regressor / regressor.sum(1, keepdims=True)

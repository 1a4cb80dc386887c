"""Geometry of vectors and of the triangle mesh: rotations, normals, edges, boundary, smoothing, volume."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def unit(x: np.ndarray) -> np.ndarray:
    """Scale vectors (..., 3) to length one."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the smallest rotation (3, 3) that takes unit vector a to unit vector b; they must not be opposite."""
    cross, cosine = np.cross(a, b), a @ b
    k = np.array([[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]])
    return np.eye(3) + k + k @ k / (1 + cosine)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return area-weighted unit normals (V, 3)."""
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, faces[:, k], cross)
    return unit(normals)


def unique_edges(faces: np.ndarray) -> np.ndarray:
    """Return the undirected edges (E, 2)."""
    half = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(half, axis=1), axis=0)


def boundary_loops(faces: np.ndarray) -> list[np.ndarray]:
    """Return open boundaries as vertex loops, ordered so that (centre, a, b) for consecutive a, b faces outward."""
    half = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    present = {tuple(edge) for edge in half.tolist()}
    # A cap triangle runs along the boundary opposite to the face on the other side of the edge.
    following = {b: a for a, b in present if (b, a) not in present}
    loops = []
    while following:
        start = min(following)
        loop = [start]
        while (step := following.pop(loop[-1])) != start:
            loop.append(step)
        loops.append(np.array(loop, np.int32))
    return loops


def neighbour_average(faces: np.ndarray, count: int) -> sparse.csr_matrix:
    """Return the matrix (V, V) that replaces each vertex by the mean of its neighbours."""
    edges = unique_edges(faces)
    ends = np.concatenate([edges, edges[:, ::-1]])
    adjacency = sparse.csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return sparse.diags(1 / np.asarray(adjacency.sum(1)).ravel()) @ adjacency


def volume(vertices: np.ndarray, faces: np.ndarray, loop: np.ndarray) -> float:
    """Return the signed volume in m^3 of the mesh closed by a fan over its boundary loop."""
    centre = vertices[loop].mean(0)
    corners = vertices[faces] - centre  # the fan then contributes nothing
    return float(np.einsum("fa,fa->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6)

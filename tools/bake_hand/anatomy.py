"""Step 5: axes, limits and a prior of the joints, the space of poses, and the regions of the skin."""

from __future__ import annotations

import numpy as np
from mesh import unit
from population import CHAINS, INDEX, LITTLE, MIDDLE, RING, THUMB, Directions
from scipy import sparse

LEAN_DEGREES = {"index": 0.0, "middle": 1.0, "ring": 2.0, "little": 4.0}

# Anatomical coordinates in degrees: (mean, standard deviation, lower, upper) for flexion, abduction, twist. Limits from
# the literature; means and deviations rounded from fits to 600 photographs with a depth hint (2D alone cannot tell).
FINGER_RANGES = (
    ((20, 32, -30, 95), (0, 8, -22, 22), (0, 4, -12, 12)),  # MCP
    ((35, 40, -8, 115), (0, 3, -8, 8), (0, 3, -8, 8)),  # PIP
    ((20, 25, -12, 85), (0, 3, -8, 8), (0, 3, -8, 8)),  # DIP
)

THUMB_RANGES = (
    ((20, 22, -50, 60), (-12, 17, -55, 50), (-5, 11, -40, 40)),  # CMC
    ((15, 18, -20, 65), (0, 5, -18, 18), (0, 4, -15, 15)),  # MCP
    ((18, 24, -25, 90), (0, 3, -8, 8), (0, 3, -8, 8)),  # IP
)

DIP_PER_PIP = 0.6


def anatomy_axes(vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, directions: Directions) -> np.ndarray:
    """Return the flexion, abduction and twist axes (15, 3, 3) of every joint in the rest frame.

    The thumb bends about the widest direction of its last segment's cross-section, along the width of the nail.
    A finger bends about the direction across the palm, turned by LEAN_DEGREES so that curled fingers converge
    a little, as real ones do toward the scaphoid. The nails cannot give this direction: the mesh's index finger is
    rolled by 20 degrees and would curl into the middle finger.
    """
    axes = np.zeros((15, 3, 3))
    for finger, first in CHAINS.items():
        twist = directions[finger]
        if finger == "thumb":
            own = vertices[weights[:, first + 2] > 0.5]
            spread = (own - own.mean(0)) @ (np.eye(3) - np.outer(twist, twist))
            flexion = np.linalg.eigh(spread.T @ spread)[1][:, -1]
            flexion = flexion * np.sign(np.cross(flexion, twist) @ (0.5, 0.0, -1.0))  # curl into the hollow of the hand
        else:
            flexion = np.array([0.0, np.tan(np.radians(LEAN_DEGREES[finger])), 1.0])
        flexion = unit(flexion - (flexion @ twist) * twist)
        axes[first - 1 : first + 2] = np.stack([flexion, np.cross(twist, flexion), twist])
    return axes


def anatomy_ranges() -> np.ndarray:
    """Return mean, standard deviation, lower and upper limit (4, 15, 3) in radians."""
    table = np.zeros((15, 3, 4))
    for finger, first in CHAINS.items():
        table[first - 1 : first + 2] = THUMB_RANGES if finger == "thumb" else FINGER_RANGES
    return np.radians(table).transpose(2, 0, 1)


def sample_anatomical_poses(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw plausible poses (count, 15, 3) in anatomical coordinates: a mixture of hand states with correlated fingers.

    States: relaxed, open, fist, some fingers extended (pointing, counting), pinch. In each the fingers share
    one curl and deviate a little from it; the last joint follows the middle one.
    """
    mean, std, lower, upper = anatomy_ranges()
    poses = np.zeros((count, 15, 3))
    state = rng.choice(5, count, p=(0.3, 0.2, 0.15, 0.2, 0.15))
    centre = np.array([0.3, 0.05, 0.9, 0.85, 0.4])[state]
    width = np.array([0.15, 0.07, 0.1, 0.1, 0.15])[state]
    shared = rng.normal(centre, width)
    fingers = [INDEX, MIDDLE, RING, LITTLE]
    curl = shared[:, None] + rng.normal(0, 0.1, (count, 4))
    out = rng.random((count, 4)) < np.array([0.7, 0.5, 0.35, 0.35])
    curl = np.where((state == 3)[:, None] & out, rng.normal(0.05, 0.06, (count, 4)), curl)
    curl[:, 0] += np.where(state == 4, 0.15, 0.0)
    spread = rng.normal(0, 1, count)
    for k, first in enumerate(fingers):
        c = curl[:, k]
        poses[:, first - 1, 0] = np.radians(85) * c + rng.normal(0, np.radians(10), count)
        poses[:, first, 0] = np.radians(105) * c + rng.normal(0, np.radians(10), count)
        poses[:, first + 1, 0] = DIP_PER_PIP * poses[:, first, 0] + rng.normal(0, np.radians(6), count)
        fan = np.array([1.0, 0.2, -0.7, -1.2])[k] * np.radians(7)
        # A curled finger cannot be spread: the collateral ligaments are tight then.
        freedom = 1 - 0.7 * c.clip(0, 1)
        poses[:, first - 1, 1] = freedom * (fan * spread + rng.normal(0, np.radians(4), count))
        poses[:, first - 1, 2] = rng.normal(0, std[first - 1, 2], count)
        poses[:, first : first + 2, 1:] = rng.normal(0, 1, (count, 2, 2)) * std[first : first + 2, 1:]
    thumb = slice(THUMB - 1, THUMB + 2)
    poses[:, thumb] = mean[thumb] + rng.normal(0, 1, (count, 3, 3)) * std[thumb] * 0.7
    closing = curl.mean(1)
    poses[:, THUMB - 1, 0] += np.radians(25) * (closing - 0.4)
    poses[:, THUMB, 0] += np.radians(25) * (closing - 0.4)
    poses[:, THUMB + 1, 0] += np.radians(30) * (closing - 0.4)
    return poses.clip(lower, upper)


def pose_space(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean (45,), orthonormal rows (45, 45) by falling variance and deviations (45,) of poses (N, 15, 3)."""
    flat = vectors.reshape(len(vectors), 45)
    variance, columns = np.linalg.eigh(np.cov(flat.T))
    rows = columns.T[::-1]
    rows = rows * np.sign(rows[np.arange(45), np.abs(rows).argmax(1)])[:, None]
    return flat.mean(0), rows, np.sqrt(variance[::-1].clip(0))


def label_faces(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, faces: np.ndarray, axes: np.ndarray
) -> np.ndarray:
    """Return the region of each face (F,): 0 palm side, 1 back, 2 nails."""
    dorsal = np.vstack([[0.0, 1.0, 0.0], axes[:, 1]])  # abduction axes point out of the back
    corners = vertices[faces]
    normal = unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    centre = corners.mean(1)
    face_weights = weights[faces].mean(1)
    facing = np.einsum("fa,fa->f", normal, unit(face_weights @ dorsal))
    regions = (facing > 0).astype(np.uint8)

    # A majority vote among neighbours smooths the border.
    corner_of = np.repeat(np.arange(len(faces)), 3), faces.ravel()
    incidence = sparse.csr_matrix((np.ones(faces.size), corner_of), shape=(len(faces), len(vertices)))
    shared = (incidence @ incidence.T) >= 2
    for _ in range(3):
        regions = (shared @ regions.astype(float) / np.asarray(shared.sum(1)).ravel() > 0.5).astype(np.uint8)

    for first in CHAINS.values():
        across, out, along = axes[first + 1]
        own = face_weights[:, first + 2] > 0.5
        local = centre - joints[first + 2]
        reach = (vertices[weights[:, first + 2] > 0.5] - joints[first + 2]) @ along
        length = reach.max()
        side = local @ across
        half = np.abs(side[own]).max()
        middle = 0.5 * (side[own].max() + side[own].min())
        position = local @ along / length
        nail = own & (facing > 0.35) & (normal @ out > 0.3)
        nail &= (position > 0.5) & (position < 0.96) & (np.abs(side - middle) < 0.72 * half)
        regions[nail] = 2
    return regions

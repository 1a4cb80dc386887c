"""Step 2: bring the population into the flat rest pose, with joints where anatomy has them."""

from __future__ import annotations

import numpy as np
from anatomy import anatomy_axes
from mesh import rotation_between, unit
from population import CHAINS, FAN_DEGREES, INDEX, LITTLE, MIDDLE, PARENTS, THUMB, WRIST, Directions, Population
from scipy.spatial import cKDTree
from skinning import smooth_webs

PALM_LENGTH = 0.095  # wrist -> middle MCP, metres

# Distances in metres between joint centres, the last one to the fingertip vertex. A compromise between anatomy
# (Buchholz 1992, hand length 186 mm) and hand datasets, whose MCP joints are at the knuckle, about 8 mm distal of the
# true centre.
BONE_LENGTHS = {
    "thumb": (0.0325, 0.0335, 0.0290),
    "index": (0.0360, 0.0235, 0.0225),
    "middle": (0.0395, 0.0270, 0.0235),
    "ring": (0.0365, 0.0255, 0.0230),
    "little": (0.0290, 0.0195, 0.0195),
}

# How far to move the rig's joints, in palm lengths (see `anatomical_joints`).
KNUCKLE_SHIFT = 0.06  # proximally along the finger

THUMB_BASE_SHIFT = (0.03, -0.05, -0.01)

WRIST_SHIFT = (0.0, -0.08, 0.0)  # from the skin of the back to the middle of the wrist

JOINT_DEPTH = 0.43  # finger joints lie at this share of the segment's depth, from the back


def to_hand_frame(vertices: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move one hand to the frame described in bake.py, which its own wrist and MCP joints define."""
    x = unit(joints[WRIST] - joints[MIDDLE])
    across = joints[INDEX] - joints[LITTLE]
    z = unit(across - (across @ x) * x)
    frame = np.stack([x, np.cross(z, x), z])
    return (vertices - joints[WRIST]) @ frame.T, (joints - joints[WRIST]) @ frame.T


def distal_ends(vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the middle of each fingertip (3,): the mean of the 12 vertices furthest along the last bone."""
    ends = {}
    for finger, first in CHAINS.items():
        own = np.flatnonzero(weights[:, first + 2] > 0.5)
        reach = (vertices[own] - joints[first + 2]) @ unit(joints[first + 2] - joints[first + 1])
        ends[finger] = vertices[own[np.argsort(reach)[-12:]]].mean(0)
    return ends


def rest_directions(joints: np.ndarray) -> Directions:
    """Return the unit direction (3,) of each finger in the rest pose, from joints (16, 3) in the hand frame."""
    directions = {"thumb": unit(joints[THUMB + 1] - joints[THUMB])}
    for finger, degrees in FAN_DEGREES.items():
        directions[finger] = np.array([-np.cos(np.radians(degrees)), 0.0, np.sin(np.radians(degrees))])
    return directions


def flatten(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, directions: Directions
) -> tuple[np.ndarray, np.ndarray]:
    """Straighten the fingers of one hand along `directions` by linear blend skinning: vertices (V, 3), joints (16, 3).

    The natural bends are small (1 to 12 degrees in the fingers, about 25 at the thumb's MCP), so linear blend skinning
    is accurate enough.
    """
    ends = distal_ends(vertices, joints, weights)
    linear = np.tile(np.eye(3), (16, 1, 1))
    for finger, first in CHAINS.items():
        points = np.vstack([joints[first : first + 3], ends[finger]])
        for k in range(3):
            linear[first + k] = rotation_between(unit(points[k + 1] - points[k]), directions[finger])
    return moved_by_bones(vertices, joints, weights, linear)


def moved_by_bones(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, linear: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a linear map (16, 3, 3) about each joint, keeping the bones connected: vertices (V, 3), joints (16, 3)."""
    posed = joints.copy()
    for j in range(1, 16):
        posed[j] = posed[PARENTS[j]] + linear[PARENTS[j]] @ (joints[j] - joints[PARENTS[j]])
    moved = np.einsum("jab,vjb->vja", linear, vertices[:, None] - joints) + posed
    return np.einsum("vj,vja->va", weights, moved), posed


def anatomical_joints(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, directions: Directions
) -> np.ndarray:
    """Move the joint centres (16, 3) of a flat hand from the rig's positions to anatomical ones.

    The rig has its finger joints 2 to 4 mm under the skin of the back and its knuckles at the webs. Real
    centres lie near the middle of the segment and the knuckles well proximal of the webs, where the mesh has
    its bumps. With centres in the middle a bend stretches the back and compresses the palm side about evenly,
    which keeps the volume.
    """
    palm = np.linalg.norm(joints[MIDDLE] - joints[WRIST])
    axes = anatomy_axes(vertices, joints, weights, directions)
    better = joints.copy()
    for finger, first in CHAINS.items():
        chain = weights[:, first : first + 3].sum(1)
        if finger == "thumb":
            better[first] += palm * np.array(THUMB_BASE_SHIFT)
        else:
            better[first] -= palm * KNUCKLE_SHIFT * directions[finger]
        for k in range(3):
            across, out, along = axes[first + k - 1]
            local = vertices - better[first + k]
            slab = np.abs(local @ along) < 0.05 * palm
            if k > 0:
                slab &= chain > 0.9
            elif finger != "thumb":
                slab &= (np.abs(local @ across) < 0.06 * palm) & (weights[:, THUMB:].sum(1) < 0.1)
            else:
                continue
            depth, side = local[slab] @ out, local[slab] @ across
            better[first + k] += (depth.max() + JOINT_DEPTH * (depth.min() - depth.max())) * out
            if k > 0:
                better[first + k] += 0.5 * (side.max() + side.min()) * across
    better[WRIST] += palm * np.array(WRIST_SHIFT)
    return better


def shift_knuckle_weights(
    vertices: np.ndarray, weights: np.ndarray, shift: float, directions: Directions
) -> np.ndarray:
    """Move the border between palm and fingers proximally by `shift` metres, to follow the shifted knuckles.

    A vertex gets the finger's weight at the point `shift` further along the finger; the weights of the middle and last
    bones stay.
    """
    tree = cKDTree(vertices)
    weights = weights.copy()
    shares = {}
    for finger in FAN_DEGREES:
        first = CHAINS[finger]
        distance, near = tree.query(vertices + shift * directions[finger], k=6)
        blend = 1 / (distance + 1e-4) ** 2
        old = weights[:, first : first + 3].sum(1)
        shares[finger] = np.maximum((blend * old[near]).sum(1) / blend.sum(1), old)
    # In the webs between two fingers the weights may add up to more than the thumb leaves over.
    room = 1 - weights[:, THUMB:].sum(1)
    excess = np.maximum(sum(shares.values()) / np.maximum(room, 1e-9), 1)
    for finger, share in shares.items():
        first = CHAINS[finger]
        rest = weights[:, first + 1 : first + 3].sum(1)
        weights[:, first] = np.maximum(share / excess - rest, 0)
    weights[:, WRIST] = np.maximum(1 - weights[:, 1:].sum(1), 0)
    return weights / weights.sum(1, keepdims=True)


def flat_population(population: Population) -> tuple[np.ndarray, np.ndarray, np.ndarray, Directions]:
    """Flatten all hands, in the hand frame, at adult size: vertices (N, V, 3), joints (N, 16, 3), weights, directions.

    Scale, joint shifts (relative to the palm) and bone stretch are computed for the mean hand and applied to every
    hand, so that the differences between hands stay.
    """
    hands = [to_hand_frame(*hand) for hand in zip(population.vertices, population.joints, strict=True)]
    directions = rest_directions(hands[0][1])
    flat = [flatten(vertices, joints, population.weights, directions) for vertices, joints in hands]
    vertices, joints = np.stack([v for v, _ in flat]), np.stack([j for _, j in flat])

    palms = np.linalg.norm(joints[:, MIDDLE], axis=-1)
    mean, mean_joints, palm = vertices.mean(0), joints.mean(0), palms.mean()
    offsets = (anatomical_joints(mean, mean_joints, population.weights, directions) - mean_joints) / palm
    weights = shift_knuckle_weights(mean, population.weights, KNUCKLE_SHIFT * palm, directions)
    weights = smooth_webs(weights, population.faces)
    joints = joints + palms[:, None, None] * offsets

    mean_joints = joints.mean(0)
    scale = PALM_LENGTH / np.linalg.norm(mean_joints[MIDDLE] - mean_joints[WRIST])
    tips = tip_vertices(mean, weights, directions)
    lengths = bone_lengths(mean, mean_joints, tips)
    linear = np.tile(np.eye(3), (16, 1, 1))
    for finger, first in CHAINS.items():
        stretch = np.array(BONE_LENGTHS[finger]) / (scale * lengths[finger])
        linear[first : first + 3] += (stretch[:, None, None] - 1) * np.outer(directions[finger], directions[finger])
        print(f"{finger:7s} bones stretched by", stretch.round(2).tolist())
    flat = [moved_by_bones(v, j, weights, linear) for v, j in zip(vertices, joints, strict=True)]
    vertices, joints = np.stack([v for v, _ in flat]), np.stack([j for _, j in flat])
    wrists = joints[:, :1]
    return scale * (vertices - wrists), scale * (joints - wrists), weights, directions


def tip_vertices(vertices: np.ndarray, weights: np.ndarray, directions: Directions) -> np.ndarray:
    """Return the fingertips (5,): the vertex furthest along each straight finger, thumb to little."""
    tips = []
    for finger, first in CHAINS.items():
        own = np.flatnonzero(weights[:, first + 2] > 0.5)
        tips.append(own[np.argmax(vertices[own] @ directions[finger])])
    return np.array(tips, np.int32)


def bone_lengths(vertices: np.ndarray, joints: np.ndarray, tips: np.ndarray) -> dict[str, np.ndarray]:
    """Return the distances (3,) between the joints of each finger, the last one from joint to tip vertex."""
    lengths = {}
    for (finger, first), tip in zip(CHAINS.items(), tips, strict=True):
        points = np.vstack([joints[first : first + 3], vertices[tip]])
        lengths[finger] = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return lengths

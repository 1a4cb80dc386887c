"""Checks of a hand model's arrays; every message is one line with the value, the expectation and the remedy."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.skeleton import (
    BONES,
    JOINT_KEYPOINTS,
    JOINT_PARENTS,
    KEYPOINTS,
    KEYPOINTS_FROM_MANO,
    NUM_BETAS,
    ROOT,
)
from handtailor_jax.types import Side

Arrays = Mapping[str, npt.NDArray[Any]]
Shapes = Mapping[str, tuple[int | str, ...]]

MANO_VERTICES = 778
"""Number of vertices of MANO's mesh."""

DOWNLOAD = "MANO_RIGHT.pkl and MANO_LEFT.pkl come from https://mano.is.tue.mpg.de"
UNDAMAGED = "get an undamaged copy of the file"

# V, F and B stand for any number of vertices, faces and shape directions.
OWN_SHAPES: Shapes = {
    "template": ("V", 3),
    "faces": ("F", 3),
    "shape_directions": ("V", 3, NUM_BETAS),
    "pose_directions": ("V", 3, 135),
    "joint_regressor": (16, "V"),
    "skinning_weights": ("V", 16),
    "pose_mean": (45,),
    "pose_components": (45, 45),
    "tip_vertices": (5,),
    "anatomy_basis": (15, 3, 3),
    "anatomy_lower": (15, 3),
    "anatomy_upper": (15, 3),
    "anatomy_mean": (15, 3),
    "anatomy_std": (15, 3),
}
"""Shapes of the arrays of a file in the embedded hand's layout."""

MANO_SHAPES: Shapes = {
    "v_template": (MANO_VERTICES, 3),
    "f": ("F", 3),
    "shapedirs": (MANO_VERTICES, 3, "B"),
    "posedirs": (MANO_VERTICES, 3, 135),
    "J_regressor": (16, MANO_VERTICES),
    "weights": (MANO_VERTICES, 16),
    "kintree_table": (2, 16),
    "hands_mean": (45,),
    "hands_components": (45, 45),
}
"""Shapes of the arrays of a MANO file."""

_OWN_NAMES = {
    "v_template": "template",
    "f": "faces",
    "shapedirs": "shape_directions",
    "posedirs": "pose_directions",
    "J_regressor": "joint_regressor",
    "weights": "skinning_weights",
    "hands_mean": "pose_mean",
    "hands_components": "pose_components",
}

# Largest absolute value of a usable model: metres, metres a unit, or radians.
_LARGEST: Mapping[str, float] = {
    "template": 1.0,
    "shape_directions": 1.0,
    "pose_directions": 1.0,
    "joint_regressor": 10.0,
    "pose_mean": 10.0,
    "pose_components": 100.0,
    "anatomy_basis": 1.01,
    "anatomy_lower": 7.0,
    "anatomy_upper": 7.0,
    "anatomy_mean": 7.0,
    "anatomy_std": 10.0,
}

_MOST_VERTICES = 50_000
_MOST_FACES = 200_000
_SHORTEST_BONE = 0.001
_LONGEST_BONE = 0.3
_SMALLEST_STD = 0.001


class HandModelError(InputError):
    """A hand model file cannot be used; the message is one line that names the file and the remedy."""


class Problem(Exception):
    """Fault in a file's content; `naming` adds the name of the file."""


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a `Problem` inside the block into a `HandModelError` that names the file."""
    try:
        yield
    except Problem as problem:
        raise HandModelError(f"{os.fspath(path)}: {problem}") from None


def check_own_arrays(arrays: Arrays) -> None:
    """Check a file in the embedded hand's layout."""
    _check_shapes(arrays, OWN_SHAPES)
    _check_body(arrays, {name: name for name in _OWN_NAMES.values()})
    _check_indices(arrays["tip_vertices"], len(arrays["template"]), "tip_vertices")
    if len(np.unique(arrays["tip_vertices"])) < len(arrays["tip_vertices"]):
        raise Problem(f"tip_vertices names a vertex twice; one vertex a finger expected; {UNDAMAGED}")
    _check_magnitudes(arrays, {name: name for name in _LARGEST if name.startswith("anatomy")})
    _check_anatomy(arrays)
    rest_joints = _rest_joints(arrays["joint_regressor"], arrays["template"])
    check_bones(rest_joints, arrays["template"][arrays["tip_vertices"].astype(np.int64)].astype(np.float64))


def check_mano_arrays(arrays: Arrays, side: Side) -> None:
    """Check a MANO file that holds the hand of a side."""
    _check_shapes(arrays, MANO_SHAPES)
    _check_body(arrays, _OWN_NAMES)
    # The root's parent is -1, which the released files hold as an unsigned 32-bit number.
    parents = tuple(-1 if p == 2**32 - 1 else int(p) for p in arrays["kintree_table"][0].tolist())
    if parents != JOINT_PARENTS:
        raise Problem(f"the joints have the parents {parents}, not MANO's {JOINT_PARENTS}; is it a MANO hand model?")
    joints = _rest_joints(arrays["J_regressor"], arrays["v_template"])
    along_x = joints[JOINT_KEYPOINTS.index(ROOT), 0] - joints[0, 0]
    if (along_x < 0.0) != (side == "right"):
        other = "left" if side == "right" else "right"
        raise Problem(f"its fingers point the way of a {other} hand; rename the file or pass side={other!r}")


def check_bones(rest_joints: npt.NDArray[Any], tips: npt.NDArray[Any]) -> None:
    """Check that the bones between 16 rest joints and 5 tips have the lengths of a hand's, in metres."""
    keypoints = np.concatenate([rest_joints, tips])[list(KEYPOINTS_FROM_MANO)]
    for parent, child in BONES:
        length = float(np.linalg.norm(keypoints[child] - keypoints[parent]))
        if not _SHORTEST_BONE <= length <= _LONGEST_BONE:
            raise Problem(
                f"the rest pose has {length:.3g} m between {KEYPOINTS[parent]} and {KEYPOINTS[child]}; "
                f"{_SHORTEST_BONE} to {_LONGEST_BONE} m expected; give a hand in metres"
            )


def _rest_joints(regressor: npt.NDArray[Any], template: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return regressor.astype(np.float64) @ template.astype(np.float64)


def _check_shapes(arrays: Arrays, shapes: Shapes) -> None:
    missing = [name for name in shapes if name not in arrays]
    if missing:
        raise Problem(f"no hand model, it lacks {', '.join(missing)}; {DOWNLOAD}")
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        array = arrays[name]
        matches = array.ndim == len(shape) and all(
            size == (expected if isinstance(expected, int) else sizes.setdefault(expected, size))
            for size, expected in zip(array.shape, shape, strict=True)
        )
        if not matches:
            expected = ", ".join(str(sizes.get(s, s)) if isinstance(s, str) else str(s) for s in shape)
            raise Problem(f"{name} has shape {array.shape} instead of ({expected}); is it a MANO hand model?")
        if array.dtype.kind not in "fiu":
            raise Problem(f"{name} holds {array.dtype} instead of numbers; is it a MANO hand model?")
        if not np.all(np.isfinite(array)):
            raise Problem(f"{name} contains values that are not finite; {UNDAMAGED}")
    if sizes.get("B", NUM_BETAS) < NUM_BETAS:
        raise Problem(f"shapedirs has {sizes['B']} shape directions instead of {NUM_BETAS}; use the full model")
    for size, most, noun in (("V", _MOST_VERTICES, "vertices"), ("F", _MOST_FACES, "faces")):
        if not 1 <= sizes.get(size, 1) <= most:
            raise Problem(f"has {sizes[size]} {noun}; 1 to {most} expected; use a hand model of that size")


def _check_body(arrays: Arrays, names: Mapping[str, str]) -> None:
    """Check the arrays that both layouts have, given the embedded layout's name of each."""
    _check_magnitudes(arrays, names)
    stored = {own: name for name, own in names.items()}
    weights, regressor, template, directions, components, faces = (
        (stored[own], arrays[stored[own]])
        for own in (
            "skinning_weights", "joint_regressor", "template", "shape_directions", "pose_components", "faces",
        )
    )  # fmt: skip
    _check_sums(*weights, "a vertex", 1e-3)
    if np.min(weights[1]) < -1e-3:
        raise Problem(f"{weights[0]} has a weight of {np.min(weights[1]):.3g}; 0 to 1 expected; {UNDAMAGED}")
    _check_sums(*regressor, "a joint", 1e-2)
    _check_indices(faces[1], len(template[1]), faces[0])
    still = np.flatnonzero(~np.any(directions[1][..., :NUM_BETAS], axis=(0, 1)))
    if still.size:
        raise Problem(f"{directions[0]} moves no vertex in direction {still[0]}; {UNDAMAGED}")
    singular = np.linalg.svd(components[1].astype(np.float64), compute_uv=False)
    if singular[-1] <= 1e-6 * singular[0]:
        raise Problem(f"{components[0]} has rank below 45, so that some poses cannot be expressed; {UNDAMAGED}")


def _check_magnitudes(arrays: Arrays, names: Mapping[str, str]) -> None:
    for name, own in names.items():
        if own in _LARGEST:
            largest = max(float(np.max(arrays[name])), -float(np.min(arrays[name])))
            if largest > _LARGEST[own]:
                raise Problem(
                    f"{name} contains a value of magnitude {largest:.3g}; at most {_LARGEST[own]:g} expected; "
                    "give metres and radians"
                )


def _check_sums(name: str, array: npt.NDArray[Any], row: str, tolerance: float) -> None:
    sums = np.sum(array.astype(np.float64), axis=1)
    worst = float(sums[np.argmax(np.abs(sums - 1.0))])
    if abs(worst - 1.0) > tolerance:
        raise Problem(f"{name} of {row} sum to {worst:.3g}; a sum of 1 expected; {UNDAMAGED}")


def _check_indices(indices: npt.NDArray[Any], count: int, name: str) -> None:
    if np.any(indices < 0) or np.any(indices >= count):
        raise Problem(f"{name} refers to vertices outside the {count} that exist; {UNDAMAGED}")
    if indices.dtype.kind == "f" and np.any(indices != np.floor(indices)):
        raise Problem(f"{name} contains fractions; whole numbers of vertices expected; {UNDAMAGED}")


def _check_anatomy(arrays: Arrays) -> None:
    basis = arrays["anatomy_basis"].astype(np.float64)
    error = float(np.max(np.abs(basis @ basis.transpose(0, 2, 1) - np.eye(3))))
    if error > 1e-3:
        raise Problem(f"anatomy_basis is not orthonormal (off by {error:.3g}); {UNDAMAGED}")
    lower, upper, std = (arrays[f"anatomy_{name}"] for name in ("lower", "upper", "std"))
    for joint, axis in zip(*np.nonzero(upper < lower), strict=True):
        raise Problem(
            f"anatomy_upper is {upper[joint, axis]:.3g} at {joint}, {axis}, below anatomy_lower, "
            f"{lower[joint, axis]:.3g}; swap them"
        )
    if np.min(std) < _SMALLEST_STD:
        raise Problem(
            f"anatomy_std contains {np.min(std):.3g}; at least {_SMALLEST_STD} rad expected; "
            "give the standard deviations of the prior in radians"
        )

"""Checks of a hand model's arrays; each message is one line with the value, the expected value and the remedy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.mano.safe_arrays import UNDAMAGED
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

MANO_NAMES: Mapping[str, str] = {
    "template": "v_template",
    "faces": "f",
    "shape_directions": "shapedirs",
    "pose_directions": "posedirs",
    "joint_regressor": "J_regressor",
    "skinning_weights": "weights",
    "pose_mean": "hands_mean",
    "pose_components": "hands_components",
}
"""Names in a MANO file of the arrays of the embedded hand's layout that MANO has, too."""

MANO_SHAPES: Shapes = {
    **{name: tuple(MANO_VERTICES if n == "V" else n for n in OWN_SHAPES[own]) for own, name in MANO_NAMES.items()},
    "shapedirs": (MANO_VERTICES, 3, "B"),
    "kintree_table": (2, 16),
}
"""Shapes of the arrays of a MANO file."""

RECORDED_SHAPES: Shapes = {"hands_coeffs": ("N", 45), "hands_mean": (45,), "hands_components": (45, 45)}
"""Shapes of a MANO file's arrays with the poses from which MANO was learnt; `hands_coeffs` may be absent."""

# Largest absolute value in a usable model: metres, metres per unit, or radians.
_LARGEST = {
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
_MOST_VERTICES, _MOST_FACES = 50_000, 200_000
_SHORTEST_BONE, _LONGEST_BONE = 0.001, 0.3
_SMALLEST_STD = 0.001


def check_own_arrays(arrays: Arrays) -> None:
    """Check a file in the embedded hand's layout."""
    _check_shapes(arrays, OWN_SHAPES)
    _check_values(arrays, {name: name for name in OWN_SHAPES})
    tips = arrays["tip_vertices"]
    _check_indices(tips, len(arrays["template"]), "tip_vertices")
    if len(np.unique(tips)) < len(tips):
        raise InputError(f"tip_vertices names a vertex twice; one vertex per finger expected; {UNDAMAGED}")
    basis = arrays["anatomy_basis"].astype(np.float64)
    error = float(np.max(np.abs(basis @ basis.transpose(0, 2, 1) - np.eye(3))))
    if error > 1e-3:
        raise InputError(f"anatomy_basis is not orthonormal (off by {error:.3g}); {UNDAMAGED}")
    lower, upper, std = arrays["anatomy_lower"], arrays["anatomy_upper"], float(np.min(arrays["anatomy_std"]))
    for place in zip(*np.nonzero(upper < lower), strict=True):
        where = f"{upper[place]:.3g} at {place[0]}, {place[1]}"
        raise InputError(f"anatomy_upper is {where}, below anatomy_lower, {lower[place]:.3g}; swap them")
    if std < _SMALLEST_STD:
        expected = f"at least {_SMALLEST_STD} rad expected; give the standard deviations of the prior in radians"
        raise InputError(f"anatomy_std contains {std:.3g}; {expected}")
    check_bones(arrays)
    if _side(arrays["joint_regressor"], arrays["template"]) != "right":
        raise InputError("its fingers point along +x, as a left hand's; mirror it to a right hand, fingers along -x")


def check_mano_arrays(arrays: Arrays, side: Side) -> None:
    """Check a MANO file that holds the hand of a side."""
    _check_shapes(arrays, MANO_SHAPES)
    _check_values(arrays, MANO_NAMES)
    # The root's parent is -1, which the released files hold as an unsigned 32-bit number.
    parents = tuple(-1 if p == 2**32 - 1 else int(p) for p in arrays["kintree_table"][0].tolist())
    if parents != JOINT_PARENTS:
        raise InputError(f"the joints have the parents {parents}, not MANO's {JOINT_PARENTS}; is it a MANO hand model?")
    if _side(arrays["J_regressor"], arrays["v_template"]) != side:
        other = "left" if side == "right" else "right"
        raise InputError(f"its fingers point in the direction of a {other} hand's; put {other!r} into the file's name")


def check_bones(arrays: Arrays) -> None:
    """Check that the bones of the rest skeleton have plausible lengths in metres."""
    keypoints = rest_keypoints(arrays)
    for parent, child in BONES:
        length = float(np.linalg.norm(keypoints[child] - keypoints[parent]))
        if not _SHORTEST_BONE <= length <= _LONGEST_BONE:
            raise InputError(
                f"the rest pose has {length:.3g} m between {KEYPOINTS[parent]} and {KEYPOINTS[child]}; "
                f"{_SHORTEST_BONE} to {_LONGEST_BONE} m expected; give a hand in metres"
            )


def rest_keypoints(arrays: Arrays) -> npt.NDArray[np.float64]:
    """Return the 21 keypoints of the rest pose, metres, from arrays in the embedded hand's layout."""
    tips = arrays["template"][arrays["tip_vertices"].astype(np.int64)].astype(np.float64)
    joints = _rest_joints(arrays["joint_regressor"], arrays["template"])
    return np.concatenate([joints, tips])[list(KEYPOINTS_FROM_MANO)]


def _side(regressor: npt.NDArray[Any], template: npt.NDArray[Any]) -> Side:
    """Return the side of a hand in the rest frame, in which a right hand's fingers point along -x."""
    joints = _rest_joints(regressor, template)
    return "right" if joints[JOINT_KEYPOINTS.index(ROOT), 0] < joints[0, 0] else "left"


def _rest_joints(regressor: npt.NDArray[Any], template: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return regressor.astype(np.float64) @ template.astype(np.float64)


def _check_shapes(arrays: Arrays, shapes: Shapes) -> None:
    missing = [name for name in shapes if name not in arrays]
    if missing:
        raise InputError(f"no hand model, it lacks {', '.join(missing)}; {DOWNLOAD}")
    sizes: dict[int | str, int] = {}
    for name, shape in shapes.items():
        array = arrays[name]
        if array.ndim == len(shape):
            for size, expected in zip(array.shape, shape, strict=True):
                sizes.setdefault(expected, expected if isinstance(expected, int) else size)
        expected_shape = tuple(sizes.get(n, n) for n in shape)
        if array.shape != expected_shape:
            wanted = ", ".join(map(str, expected_shape))
            raise InputError(f"{name} has shape {array.shape} instead of ({wanted}); is it a MANO hand model?")
        if array.dtype.kind not in "fiu":
            raise InputError(f"{name} holds {array.dtype} instead of numbers; is it a MANO hand model?")
        if not np.all(np.isfinite(array)):
            raise InputError(f"{name} contains values that are not finite; {UNDAMAGED}")
    if sizes.get("B", NUM_BETAS) < NUM_BETAS:
        raise InputError(f"shapedirs has {sizes['B']} shape directions instead of {NUM_BETAS}; use the full model")
    for letter, most, noun in (("V", _MOST_VERTICES, "vertices"), ("F", _MOST_FACES, "faces")):
        if not 1 <= sizes.get(letter, 1) <= most:
            raise InputError(f"has {sizes[letter]} {noun}; 1 to {most} expected; use a hand model of that size")


def _check_values(arrays: Arrays, names: Mapping[str, str]) -> None:
    """Check the values of arrays; `names` maps names in the embedded hand's layout to names in `arrays`."""
    for own in (name for name in _LARGEST if name in names):
        largest = float(np.max(np.abs(arrays[names[own]].astype(np.float64))))
        if largest > _LARGEST[own]:
            expected = f"at most {_LARGEST[own]:g} expected; give metres and radians"
            raise InputError(f"{names[own]} contains a value of magnitude {largest:.3g}; {expected}")
    for own, row, tolerance in (("skinning_weights", "a vertex", 1e-3), ("joint_regressor", "a joint", 1e-2)):
        sums = np.sum(arrays[names[own]].astype(np.float64), axis=1)
        worst = float(sums[np.argmax(np.abs(sums - 1.0))])
        if abs(worst - 1.0) > tolerance:
            raise InputError(f"{names[own]} of {row} sum to {worst:.3g}; a sum of 1 expected; {UNDAMAGED}")
    weights, directions, components = names["skinning_weights"], names["shape_directions"], names["pose_components"]
    least = np.min(arrays[weights])
    if least < -1e-3:
        raise InputError(f"{weights} has a weight of {least:.3g}; 0 to 1 expected; {UNDAMAGED}")
    faces = arrays[names["faces"]]
    _check_indices(faces, len(arrays[names["template"]]), names["faces"])
    flat = np.flatnonzero(np.any(faces == np.roll(faces, 1, axis=1), axis=1))
    if flat.size:
        raise InputError(f"{names['faces']} names a vertex twice in face {flat[0]}; {UNDAMAGED}")
    still = np.flatnonzero(~np.any(arrays[directions][..., :NUM_BETAS], axis=(0, 1)))
    if still.size:
        raise InputError(f"{directions} moves no vertex in direction {still[0]}; {UNDAMAGED}")
    singular = np.linalg.svd(arrays[components].astype(np.float64), compute_uv=False)
    if singular[-1] <= 1e-6 * singular[0]:
        raise InputError(f"{components} has rank below 45, so that some poses cannot be expressed; {UNDAMAGED}")


def _check_indices(indices: npt.NDArray[Any], count: int, name: str) -> None:
    if np.any(indices < 0) or np.any(indices >= count):
        raise InputError(f"{name} refers to vertices outside the {count} that exist; {UNDAMAGED}")
    if indices.dtype.kind == "f" and np.any(indices != np.floor(indices)):
        raise InputError(f"{name} contains fractions; whole numbers of vertices expected; {UNDAMAGED}")

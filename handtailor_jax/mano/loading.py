"""Where a hand model comes from: the embedded hand, MANO's own pickles, or an npz file.

    embedded_hand("left")                 the hand that ships with the package, free to use
    load_mano("MANO_RIGHT.pkl")           a MANO file, downloaded by the user under MANO's licence
    load_hand(path, side)                 whichever of them `path` is; None means the embedded hand

A pickle is a program. MANO's files are read without running it: every global that the file names is looked up in a
short list, and what is found there is a stand-in of ours that only remembers how it was called. numpy, scipy and
chumpy are never reached from the file, so the last two need not be installed; the arrays are decoded afterwards.
"""

import functools
import importlib.resources
import io
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.mano.anatomy import Anatomy
from handtailor_jax.mano.hand_model import HandModel, LinearBlendSkin
from handtailor_jax.skeleton import (
    JOINT_KEYPOINTS,
    JOINT_PARENTS,
    KEYPOINT_PARENTS,
    KEYPOINTS,
    KEYPOINTS_FROM_MANO,
    NUM_BETAS,
    ROOT,
)
from handtailor_jax.types import Side

Arrays = dict[str, npt.NDArray[Any]]

MANO_TIP_VERTICES: Mapping[Side, tuple[int, ...]] = {
    "right": (745, 317, 444, 556, 673),
    "left": (745, 317, 445, 556, 673),
}
"""Fingertip vertices of MANO's mesh: thumb, index, middle, ring, little (manopth's choice, also HandTailor's)."""

MANO_VERTICES = 778

_DOWNLOAD = "MANO_RIGHT.pkl and MANO_LEFT.pkl come from https://mano.is.tue.mpg.de"

# Shapes after reading; V and F stand for any number of vertices and faces.
_OWN_SHAPES: Mapping[str, tuple[int | str, ...]] = {
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
_MANO_SHAPES: Mapping[str, tuple[int | str, ...]] = {
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


class HandModelError(InputError):
    """A hand model file cannot be used; the message is one line that names the file and the remedy."""


class _Problem(Exception):
    """What is wrong with a file's content; `_read` puts the file's name in front."""


def embedded_hand(side: Side = "right", dtype: npt.DTypeLike = jnp.float32) -> HandModel:
    """The hand model that ships with the package; metres, rest frame of `HandModel`.

    Args:
        side: "right" or "left"; the left hand is the mirrored right hand.
        dtype: floating-point type of its arrays; float64 needs ``jax.enable_x64``.
    """
    return _on_side(_own_model(embedded_arrays(), "right", dtype), side)


@functools.cache
def embedded_arrays() -> Mapping[str, npt.NDArray[Any]]:
    """The raw arrays of the embedded right hand, by name, as stored (numpy; do not write to them).

    Besides the hand model's own arrays: ``face_regions`` (F,) uint8 (0 palm, 1 back, 2 nails), ``uv`` (F, 3, 2),
    ``wrist_loop`` (20,) and ``attribution``.
    """
    asset = importlib.resources.files("handtailor_jax") / "assets" / "hand.npz"
    with asset.open("rb") as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def load_hand(
    path: str | os.PathLike[str] | None = None, side: Side | None = None, *, dtype: npt.DTypeLike = jnp.float32
) -> HandModel:
    """The embedded hand, an npz file in its layout, or a MANO file; told apart by content.

    Args:
        path: None for the embedded hand, else the file.
        side: the hand that is wanted; by default the one in the file (right for the embedded hand). A file of the
            other hand is mirrored. Where a MANO file's name tells no side, `side` is taken to say what it holds.
        dtype: floating-point type of the model's arrays.

    Raises:
        HandModelError: if the file is missing, damaged, unsafe or no hand model.
    """
    if path is None:
        return embedded_hand(side or "right", dtype)
    _check_side(side)
    arrays = _read(path)
    if "template" in arrays:
        with _naming(path):
            return _on_side(_own_model(arrays, "right", dtype), side or "right")
    stored = _side_from_name(path) or side
    return _on_side(load_mano(path, stored, dtype=dtype), side or stored)


def load_mano(
    path: str | os.PathLike[str],
    side: Side | None = None,
    *,
    correct_left_shape: bool = True,
    dtype: npt.DTypeLike = jnp.float32,
) -> HandModel:
    """A hand model from MANO_RIGHT.pkl, MANO_LEFT.pkl, or an npz file with the same array names; metres.

    Rest joints are the joint regressor applied to the shaped template, as in MANO. Of more than 10 shape coefficients
    the first 10 are kept. Fingertips are `MANO_TIP_VERTICES`. The anatomical axes are the embedded hand's, turned to
    this hand's own bones; limits and priors are the embedded hand's.

    Args:
        path: the file.
        side: which hand the file holds; by default what its name says.
        correct_left_shape: the released MANO_LEFT.pkl has the x components of its shape directions with the sign of
            the right hand's, so that a coefficient that widens the right hand narrows the left one. They are negated
            unless this is False; set it to False for a file in which that has been repaired already. (The usual test
            for the fault, the sum of absolute differences to the right hand's x components being below 1, needs both
            files.) It does nothing for a right hand.
        dtype: floating-point type of the model's arrays; float64 needs ``jax.enable_x64``.

    Raises:
        HandModelError: if the file is missing, damaged, unsafe, no MANO model, or if its side is unknown.
    """
    _check_side(side)
    named = _side_from_name(path)
    arrays = _read(path)
    with _naming(path):
        if side is None and named is None:
            raise _Problem("the name does not tell which hand it is; pass side='right' or side='left'")
        if side is not None and named is not None and side != named:
            raise _Problem(f"the name says {named} but side={side!r} was given; load it as {named} and mirror it")
        holds = cast(Side, side or named)
        _check_arrays(arrays, _MANO_SHAPES)
        _check_mano_structure(arrays, holds)
        shape_directions = arrays["shapedirs"][..., :NUM_BETAS].astype(np.float64)
        if holds == "left" and correct_left_shape:
            shape_directions[:, 0] *= -1.0
        template = arrays["v_template"].astype(np.float64)
        regressor = arrays["J_regressor"].astype(np.float64)
        tips = np.asarray(MANO_TIP_VERTICES[holds])
        rest_joints = regressor @ template
        return _assemble(
            template=template,
            faces=arrays["f"],
            shape_directions=shape_directions,
            pose_directions=arrays["posedirs"],
            joint_regressor=regressor,
            weights=arrays["weights"],
            pose_mean=arrays["hands_mean"],
            pose_components=arrays["hands_components"],
            tip_vertices=tips,
            anatomy=_anatomy_of(rest_joints, template[tips], holds),
            side=holds,
            dtype=dtype,
        )


def _check_side(side: str | None) -> None:
    if side not in (None, "right", "left"):
        raise ValueError(f"side must be 'right' or 'left', not {side!r}")


def _side_from_name(path: str | os.PathLike[str]) -> Side | None:
    sides: list[Side] = [s for s in ("right", "left") if s in Path(path).name.lower()]  # type: ignore[misc]
    return sides[0] if len(sides) == 1 else None


def _on_side(model: HandModel, side: Side | None) -> HandModel:
    _check_side(side)
    return model if side in (None, model.side) else model.mirrored()


# ---------------------------------------------------------------------------------------------------------------------
# From arrays to a model


def _own_model(arrays: Mapping[str, npt.NDArray[Any]], side: Side, dtype: npt.DTypeLike) -> HandModel:
    """A hand model from an npz file in the embedded hand's layout."""
    _check_arrays(arrays, _OWN_SHAPES)
    _check_weights(arrays["skinning_weights"])
    _check_indices(arrays["faces"], len(arrays["template"]), "faces")
    _check_indices(arrays["tip_vertices"], len(arrays["template"]), "tip_vertices")
    return _assemble(
        template=arrays["template"],
        faces=arrays["faces"],
        shape_directions=arrays["shape_directions"],
        pose_directions=arrays["pose_directions"],
        joint_regressor=arrays["joint_regressor"],
        weights=arrays["skinning_weights"],
        pose_mean=arrays["pose_mean"],
        pose_components=arrays["pose_components"],
        tip_vertices=arrays["tip_vertices"],
        anatomy={
            "axes": arrays["anatomy_basis"],
            **{name: arrays[f"anatomy_{name}"] for name in ("lower", "upper", "mean", "std")},
        },
        side=side,
        dtype=dtype,
    )


def _assemble(
    *,
    template: npt.NDArray[Any],
    faces: npt.NDArray[Any],
    shape_directions: npt.NDArray[Any],
    pose_directions: npt.NDArray[Any],
    joint_regressor: npt.NDArray[Any],
    weights: npt.NDArray[Any],
    pose_mean: npt.NDArray[Any],
    pose_components: npt.NDArray[Any],
    tip_vertices: npt.NDArray[Any],
    anatomy: Mapping[str, npt.NDArray[Any]],
    side: Side,
    dtype: npt.DTypeLike,
) -> HandModel:
    # Joints are regressed in float64, once, so that a float32 model carries no error of ours.
    regressor = joint_regressor.astype(np.float64)
    rest_joints = regressor @ template.astype(np.float64)
    joint_shape_directions = np.einsum("jv,vcb->jcb", regressor, shape_directions.astype(np.float64))

    def real(array: npt.NDArray[Any]) -> Any:
        return jnp.asarray(array.astype(np.dtype(dtype)))

    def skin(chosen: Any) -> LinearBlendSkin:
        return LinearBlendSkin(
            template=real(template[chosen]),
            shape_directions=real(shape_directions[chosen]),
            pose_directions=real(pose_directions[chosen]),
            weights=real(weights[chosen]),
        )

    return HandModel(
        skin=skin(slice(None)),
        tips=skin(tip_vertices),
        rest_joints=real(rest_joints),
        joint_shape_directions=real(joint_shape_directions),
        joint_regressor=real(joint_regressor),
        faces=jnp.asarray(faces.astype(np.int32)),
        tip_vertices=jnp.asarray(tip_vertices.astype(np.int32)),
        pose_mean=real(pose_mean),
        pose_components=real(pose_components),
        anatomy=Anatomy(**{name: real(array) for name, array in anatomy.items()}),
        side=side,
    )


def _anatomy_of(rest_joints: npt.NDArray[Any], tips: npt.NDArray[Any], side: Side) -> dict[str, npt.NDArray[Any]]:
    """The embedded hand's anatomy with its axes made orthonormal to the bones of another rest skeleton.

    Twist is about the bone from a joint to its child, flexion the embedded flexion axis less its part along the bone,
    abduction completes them with the embedded axes' handedness. A left hand's axes are such that a mirrored pose has
    the coordinates of the right hand's pose, so that limits and priors serve both: its twist is about minus the bone.
    """
    stored = embedded_arrays()
    basis = stored["anatomy_basis"].astype(np.float64)
    orientation = np.sign(np.linalg.det(basis))  # (15,)
    flexion = basis[:, 0] * (np.array([1.0, -1.0, -1.0]) if side == "left" else 1.0)  # an axial vector under x' = -x
    outward = -1.0 if side == "left" else 1.0

    keypoints = np.concatenate([rest_joints, tips])[np.asarray(KEYPOINTS_FROM_MANO)]
    child = {parent: k for k, parent in enumerate(KEYPOINT_PARENTS) if KEYPOINTS[parent] != "wrist"}
    ends = np.asarray([child[k] for k in JOINT_KEYPOINTS[1:]])
    twist = keypoints[ends] - rest_joints[1:]
    lengths = np.linalg.norm(twist, axis=1, keepdims=True)
    if not np.all(lengths > 1e-6):
        raise _Problem("two joints of a finger coincide, so its bone has no direction")
    twist = outward * twist / lengths
    flexion = flexion - np.sum(flexion * twist, axis=1, keepdims=True) * twist
    lengths = np.linalg.norm(flexion, axis=1, keepdims=True)
    if not np.all(lengths > 0.1):
        raise _Problem("a finger bone points along its flexion axis; is the rest pose a flat hand in MANO's frame?")
    flexion = flexion / lengths
    abduction = np.cross(twist, flexion) * orientation[:, None]
    return {
        "axes": np.stack([flexion, abduction, twist], axis=1),
        **{name: stored[f"anatomy_{name}"] for name in ("lower", "upper", "mean", "std")},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def _check_arrays(arrays: Mapping[str, npt.NDArray[Any]], shapes: Mapping[str, tuple[int | str, ...]]) -> None:
    missing = [name for name in shapes if name not in arrays]
    if missing:
        raise _Problem(f"no hand model, it lacks {', '.join(missing)}; {_DOWNLOAD}")
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        array = arrays[name]
        matches = array.ndim == len(shape) and all(
            size == (expected if isinstance(expected, int) else sizes.setdefault(expected, size))
            for size, expected in zip(array.shape, shape, strict=True)
        )
        if not matches:
            expected = ", ".join(str(sizes.get(s, s)) if isinstance(s, str) else str(s) for s in shape)
            raise _Problem(f"{name} has shape {array.shape} instead of ({expected}); is it a MANO hand model?")
        if array.dtype.kind not in "fiu":
            raise _Problem(f"{name} holds {array.dtype} instead of numbers; is it a MANO hand model?")
        if not np.all(np.isfinite(array)):
            raise _Problem(f"{name} contains values that are not finite; get an undamaged copy of the file")
    if sizes.get("B", NUM_BETAS) < NUM_BETAS:
        raise _Problem(f"shapedirs has {sizes['B']} shape directions instead of {NUM_BETAS}; use the full model")


def _check_weights(weights: npt.NDArray[Any]) -> None:
    worst = np.max(np.abs(np.sum(weights.astype(np.float64), axis=1) - 1.0))
    if worst > 1e-3:
        raise _Problem(f"blend weights of a vertex sum to 1 only within {worst:.2g}; get an undamaged copy of the file")


def _check_indices(indices: npt.NDArray[Any], count: int, name: str) -> None:
    if np.any(indices < 0) or np.any(indices >= count):
        raise _Problem(f"{name} refers to vertices outside the {count} that exist; get an undamaged copy of the file")


def _check_mano_structure(arrays: Mapping[str, npt.NDArray[Any]], side: Side) -> None:
    _check_weights(arrays["weights"])
    _check_indices(arrays["f"], MANO_VERTICES, "f")
    # The root's parent is -1, which the released files hold as an unsigned 32-bit number.
    parents = tuple(-1 if p == 2**32 - 1 else int(p) for p in arrays["kintree_table"][0].tolist())
    if parents != JOINT_PARENTS:
        raise _Problem(f"the joints have the parents {parents}, not MANO's {JOINT_PARENTS}; is it a MANO hand model?")
    joints = arrays["J_regressor"].astype(np.float64) @ arrays["v_template"].astype(np.float64)
    along_x = joints[JOINT_KEYPOINTS.index(ROOT), 0] - joints[0, 0]
    if (along_x < 0.0) != (side == "right"):
        other = "left" if side == "right" else "right"
        raise _Problem(f"its fingers point the way of a {other} hand; rename the file or pass side={other!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Reading files


class _naming:
    """Turns a `_Problem` inside the block into a `HandModelError` that names the file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _Problem):
            raise HandModelError(f"{os.fspath(self.path)}: {error}") from None


def _read(path: str | os.PathLike[str]) -> Arrays:
    """The arrays of an npz file or a MANO pickle by name; which of them it is, the first bytes tell."""
    with _naming(path):
        if Path(path).is_dir():
            raise _Problem("this is a folder; pass the file in it, such as MANO_RIGHT.pkl")
        try:
            content = Path(path).read_bytes()
        except FileNotFoundError:
            raise _Problem(f"no such file; {_DOWNLOAD}") from None
        except OSError as error:
            raise _Problem(f"cannot be read ({error.strerror}); check the path and its permissions") from None
        if not content:
            raise _Problem(f"the file is empty; download it again ({_DOWNLOAD})")
        return _read_npz(content) if content[:2] == b"PK" else _read_pickle(content)


def _read_npz(content: bytes) -> Arrays:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            wanted = [name for name in stored.files if name in _OWN_SHAPES or name in _MANO_SHAPES]
            return {name: stored[name] for name in wanted}
    except Exception as error:  # zipfile, zlib and numpy fail each in their own ways
        if "allow_pickle" in str(error):
            raise _Problem("an array in it is a pickled object, which is not read; save plain arrays") from None
        raise _Problem(f"damaged or cut short ({_one_line(error)}); get an undamaged copy of the file") from None


def _read_pickle(content: bytes) -> Arrays:
    try:
        model = _InertUnpickler(io.BytesIO(content)).load()
    except _Problem:
        raise
    except EOFError:
        raise _Problem(f"the pickle is cut short; download it again ({_DOWNLOAD})") from None
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise _Problem(f"the pickle is cut short; download it again ({_DOWNLOAD})") from None
        raise _Problem(f"neither a pickle nor an npz file ({_one_line(error)}); {_DOWNLOAD}") from None
    except (MemoryError, RecursionError):
        raise _Problem(f"the pickle asks for more memory or depth than a MANO file needs; {_DOWNLOAD}") from None
    except Exception as error:  # a pickle can fail in any way: bad opcodes end in ValueError, KeyError, IndexError, ...
        raise _Problem(f"neither a pickle nor an npz file ({_one_line(error)}); {_DOWNLOAD}") from None
    if not isinstance(model, dict):
        raise _Problem(f"the pickle holds no dictionary of arrays; {_DOWNLOAD}")
    return {name: _decode(model[name], name) for name in _MANO_SHAPES if name in model}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


class _Inert:
    """What every global of a pickle is replaced by: it remembers its arguments and state and does nothing."""

    __slots__ = ("arguments", "state")
    kind: ClassVar[str]
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "_Inert":
        self = object.__new__(cls)
        self.arguments = arguments
        self.state = None
        return self

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Under which names the files of Python 2 and 3 and of old and new numpy and scipy refer to the same few things.
_ALLOWED: Mapping[tuple[str, str], str] = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.numeric", "_frombuffer"): "buffer",
    ("numpy._core.numeric", "_frombuffer"): "buffer",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("scipy.sparse.csc", "csc_matrix"): "csc_matrix",
    ("scipy.sparse._csc", "csc_matrix"): "csc_matrix",
    ("scipy.sparse", "csc_matrix"): "csc_matrix",
    ("__builtin__", "set"): "set",
    ("builtins", "set"): "set",
    ("__builtin__", "object"): "object",
    ("builtins", "object"): "object",
    ("copy_reg", "_reconstructor"): "instance",
    ("copyreg", "_reconstructor"): "instance",
    ("_codecs", "encode"): "bytes",
}
_CHUMPY = re.compile(r"chumpy(\.\w+)*", re.ASCII)


class _InertUnpickler(pickle.Unpickler):
    """Loads a pickle without looking up or calling anything that it names."""

    def __init__(self, file: io.BytesIO) -> None:
        # latin1 maps the byte strings of Python 2 to text one to one, so that array data can be had back.
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        kind = _ALLOWED.get((module, name))
        if kind is None and _CHUMPY.fullmatch(module) and name.isidentifier():
            kind = f"chumpy {name}"
        if kind is None:
            raise _Problem(
                f"refers to {f'{module}.{name}'[:80]!r}, which no MANO file needs; nothing was executed, "
                "get the file from its official source"
            )
        return type("_Inert", (_Inert,), {"__slots__": (), "kind": kind})


def _decode(value: Any, name: str) -> npt.NDArray[Any]:
    """The numpy array that an unpickled value stands for."""
    try:
        return _decode_array(value)
    except _Problem as problem:
        raise _Problem(f"{name}: {problem}") from None
    except RecursionError:
        raise _Problem(f"{name} is nested too deeply; get the file from its official source") from None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise _Problem(f"{name} cannot be decoded ({_one_line(error)}); get an undamaged copy of the file") from None


def _decode_array(value: Any) -> npt.NDArray[Any]:
    kind = value.kind if isinstance(value, _Inert) else type(value).__name__
    state: Any = getattr(value, "state", None)
    if kind == "instance":  # protocols 0 and 1 create objects as _reconstructor(class, object, None)
        kind = value.arguments[0].kind
    if kind == "array":
        _, shape, dtype, fortran, data = state
        return _from_bytes(data, dtype, shape, fortran)
    if kind == "buffer":
        data, dtype, shape, order = value.arguments
        return _from_bytes(data, dtype, shape, order == "F")
    if kind == "csc_matrix":
        return _from_csc(state)
    if kind == "chumpy Ch":
        return _decode_array(state["x"])
    if kind == "chumpy Select":
        chosen = _decode_array(state["a"]).ravel()[_decode_array(state["idxs"])]
        shape = state["preferred_shape"]
        return chosen.reshape(_decode_array(shape) if isinstance(shape, _Inert) else shape)
    if kind in ("list", "tuple"):
        return np.asarray(value, np.float64)
    raise _Problem(f"stored as {kind!r}, which is not supported; save it as a plain array")


def _from_bytes(data: Any, dtype: Any, shape: Any, fortran: Any) -> npt.NDArray[Any]:
    if isinstance(data, _Inert) and data.kind == "bytes":  # Python 3 spells bytes so in protocols 0 to 2
        data = data.arguments[0]
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | bytearray):
        raise _Problem("stored as an array of objects, which is not supported; save it as a plain array")
    code, order = dtype.arguments[0], dtype.state[1]
    if not re.fullmatch(r"[fiu][1248]", code) or order not in ("<", ">", "|", "="):
        raise _Problem(f"stored with the element type {order}{code}, not as numbers")
    shape = tuple(int(size) for size in shape)
    array = np.frombuffer(bytes(raw), np.dtype(order + code)).reshape(shape, order="F" if fortran else "C")
    return array.astype(array.dtype.newbyteorder("="))


def _from_csc(state: Mapping[str, Any]) -> npt.NDArray[Any]:
    """A dense array from the state of a scipy csc_matrix."""
    rows, columns = (int(size) for size in state.get("_shape", state.get("shape")))  # type: ignore[union-attr]
    data, indices, pointers = (_decode_array(state[name]) for name in ("data", "indices", "indptr"))
    if (rows, columns) != (16, MANO_VERTICES):  # before allocating what a damaged file asks for
        raise _Problem(f"has shape {(rows, columns)} instead of {(16, MANO_VERTICES)}; is it a MANO hand model?")
    if len(pointers) != columns + 1 or np.any(indices < 0) or np.any(np.diff(pointers) < 0):
        raise ValueError("inconsistent sparse matrix")
    dense = np.zeros((rows, columns), np.float64)
    np.add.at(dense, (indices, np.repeat(np.arange(columns), np.diff(pointers))), data)
    return dense

"""Read the arrays of a hand model file: a MANO pickle, without running it, or an npz archive.

Neither SciPy nor chumpy need be installed, because the file's objects are decoded from their recorded state.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.mano.checks import DOWNLOAD, MANO_SHAPES, MANO_VERTICES, OWN_SHAPES, UNDAMAGED, Problem
from handtailor_jax.mano.safe_npz import parse_npz
from handtailor_jax.mano.safe_pickle import (
    NUMPY_GLOBALS,
    Call,
    ForeignGlobal,
    Global,
    Limits,
    PickleCutShort,
    UnreadableArray,
    UnreadablePickle,
    array_of,
    unpickle,
)

_MOST_BYTES = 64 * 2**20
_LIMITS = Limits(opcodes=1_000_000, text=128 * 2**20)
_DEEPEST = 8
_MOST_LISTED = 1_000_000

# Names of Python 2 and 3, and of numpy 1 and 2.
_OTHER_GLOBALS = frozenset(
    {
        ("__builtin__", "set"),
        ("builtins", "set"),
        ("__builtin__", "object"),
        ("builtins", "object"),
        ("copy_reg", "_reconstructor"),
        ("copyreg", "_reconstructor"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
    }
)
_CHUMPY = re.compile(r"chumpy(\.\w+)*", re.ASCII)
_SPARSE = re.compile(r"scipy\.sparse(\.\w+)?", re.ASCII)
_SPARSE_CLASS = re.compile(r"[a-z]{3}_(matrix|array)", re.ASCII)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of a hand model by name; the first bytes of the file tell which format it has.

    Raises:
        Problem: if the file is missing, damaged, unsafe or too large.
    """
    if Path(path).is_dir():
        raise Problem("this is a folder; pass the file in it, such as MANO_RIGHT.pkl")
    try:
        size = Path(path).stat().st_size
        if size > _MOST_BYTES:
            raise Problem(f"the file has {size} bytes; at most {_MOST_BYTES} expected; {DOWNLOAD}")
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise Problem(f"no such file; {DOWNLOAD}") from None
    except OSError as error:
        raise Problem(f"cannot be read ({error.strerror}); check the path and its permissions") from None
    if not content:
        raise Problem(f"the file is empty; download it again ({DOWNLOAD})")
    if not content.startswith(b"PK"):
        return _read_pickle(content)
    try:
        return parse_npz(content, {*OWN_SHAPES, *MANO_SHAPES}, most_bytes=_MOST_BYTES)
    except InputError as error:
        raise Problem(str(error)) from None


def _read_pickle(content: bytes) -> dict[str, npt.NDArray[Any]]:
    try:
        model = unpickle(content, _is_allowed, _LIMITS).value
    except PickleCutShort:
        raise Problem(f"the pickle is cut short; download it again ({DOWNLOAD})") from None
    except ForeignGlobal as error:
        raise Problem(
            f"refers to {str(error)[:80]!r}, which no MANO file needs; nothing was executed, "
            "get the file from its official source"
        ) from None
    except UnreadablePickle as error:
        raise Problem(f"neither a pickle nor an npz file of a hand ({error}); {DOWNLOAD}") from None
    except (MemoryError, RecursionError):
        raise Problem(f"the pickle asks for more memory than a MANO file needs; {DOWNLOAD}") from None
    if not isinstance(model, dict):
        raise Problem(f"the pickle holds no dictionary of arrays; {DOWNLOAD}")
    return {name: _decode(model[name], name) for name in MANO_SHAPES if name in model}


def _is_allowed(module: str, name: str) -> bool:
    return (
        (module, name) in NUMPY_GLOBALS
        or (module, name) in _OTHER_GLOBALS
        or (_CHUMPY.fullmatch(module) is not None and name.isidentifier())
        or (_SPARSE.fullmatch(module) is not None and _SPARSE_CLASS.fullmatch(name) is not None)
    )


def _decode(value: Any, name: str) -> npt.NDArray[Any]:
    """Decode the array of one entry of the file."""
    try:
        return _decode_array(value, 0)
    except Problem as problem:
        raise Problem(f"{name}: {problem}") from None
    except UnreadableArray as error:
        raise Problem(f"{name}: {error}; save it as a plain array of numbers") from None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise Problem(f"{name} cannot be decoded ({reason}); {UNDAMAGED}") from None


def _decode_array(value: Any, depth: int) -> npt.NDArray[Any]:
    if depth > _DEEPEST:
        raise Problem("nested too deeply; get the file from its official source")
    if type(value) in (list, tuple):
        _check_lists(value)
        return np.asarray(value, np.float64)
    if type(value) is not Call:
        raise Problem(f"stored as {type(value).__name__!r}, which is not supported; save it as a plain array")
    described = value.function
    if described.name == "_reconstructor" and value.arguments and type(value.arguments[0]) is Global:
        described = value.arguments[0]  # protocols 0 and 1 create objects as _reconstructor(class, object, None)
    name = described.name
    if name in ("_reconstruct", "_frombuffer"):
        return array_of(value)
    state: Any = value.state
    if described.module.startswith("scipy."):
        return _decode_sparse(name, state)
    if name == "Ch":
        return _decode_array(state["x"], depth + 1)
    if name == "Select":
        chosen = _decode_array(state["a"], depth + 1).ravel()[_decode_array(state["idxs"], depth + 1)]
        shape = state["preferred_shape"]
        return chosen.reshape(tuple(_decode_array(shape, depth + 1).astype(np.int64).tolist()))
    raise Problem(f"stored as {f'{described.module}.{name}'[:80]!r}, which is not supported; save it as a plain array")


def _check_lists(value: list[Any] | tuple[Any, ...]) -> None:
    """Check nested lists of numbers before they are expanded, because they may share parts many times."""
    numbers, level = 0, [value]
    for _ in range(4):
        deeper = []
        for item in level:
            numbers += len(item)
            if numbers > _MOST_LISTED:
                raise Problem(f"has more than {_MOST_LISTED} numbers in lists; save it as a plain array")
            deeper += [part for part in item if type(part) in (list, tuple)]
            if any(type(part) not in (int, float, list, tuple) for part in item):
                raise Problem("has a list with something other than numbers; save it as a plain array")
        level = deeper
    if level:
        raise Problem("has lists in more than 4 levels; save it as a plain array")


def _decode_sparse(name: str, state: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Make a dense array of the state of a SciPy matrix in csc, csr or coo format."""
    form = name.partition("_")[0]
    if form not in ("csc", "csr", "coo"):
        raise Problem(f"stored as {name!r}, which is not supported; save it as a csc_matrix or a plain array")
    shape = state.get("_shape", state.get("shape"))
    if type(shape) is not tuple or len(shape) != 2 or any(type(size) is not int for size in shape):
        raise Problem(f"stored as {name!r} without a shape; {UNDAMAGED}")
    if shape != (16, MANO_VERTICES):  # checked before memory is allocated for the dense array
        raise Problem(f"has shape {str(shape)[:80]} instead of {(16, MANO_VERTICES)}; is it a MANO hand model?")
    data = array_of(state["data"]).ravel()
    if form == "coo":
        row, column = state["coords"] if "coords" in state else (state["row"], state["col"])
        row, column = _indices(row, 16), _indices(column, MANO_VERTICES)
    else:
        major, minor = (MANO_VERTICES, 16) if form == "csc" else (16, MANO_VERTICES)
        inner = _indices(state["indices"], minor)
        pointers = _indices(state["indptr"], len(inner) + 1)
        if (
            len(pointers) != major + 1
            or pointers[0] != 0
            or pointers[-1] != len(inner)
            or np.any(np.diff(pointers) < 0)
        ):
            raise Problem(f"its index pointers do not fit its {len(inner)} entries; {UNDAMAGED}")
        outer = np.repeat(np.arange(major), np.diff(pointers))
        row, column = (inner, outer) if form == "csc" else (outer, inner)
    if not len(row) == len(column) == len(data):
        raise Problem(f"has {len(data)} numbers for {len(row)} rows and {len(column)} columns; {UNDAMAGED}")
    dense = np.zeros((16, MANO_VERTICES), np.float64)
    np.add.at(dense, (row, column), data)
    return dense


def _indices(value: Any, count: int) -> npt.NDArray[np.int64]:
    """Decode indices and check that they lie in 0 to count - 1."""
    indices = array_of(value).ravel()
    if indices.dtype.kind not in "iu" or np.any(indices < 0) or np.any(indices >= count):
        raise Problem(f"has an index outside of 0 to {count - 1}; {UNDAMAGED}")
    return indices.astype(np.int64)

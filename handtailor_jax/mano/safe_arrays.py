"""Read arrays of numbers from untrusted npz archives, and from the records that `safe_pickle` makes of a pickle.

Sizes are checked before memory is allocated. SciPy and chumpy need not be installed, because their objects are decoded
from their recorded state.
"""

import io
import math
import os
import re
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError, naming, read_file
from handtailor_jax.mano.safe_pickle import Call, Global

Arrays = dict[str, npt.NDArray[Any]]

MOST_BYTES = 256 * 2**20
"""Default bound on the size of an archive and of its arrays, in bytes."""

UNDAMAGED = "get an undamaged copy of the file"

_MOST_MEMBERS = 1000
_LONGEST_HEADER = 1000
_MOST_DIMENSIONS = 32
_MOST_LISTED = 1_000_000
_DEEPEST = 8

# numpy 2 moved its internals to numpy._core. Protocols 0 to 2 write bytes as a call of encode, or of bytes if empty.
NUMPY_GLOBALS = frozenset(
    {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("__builtin__", "bytes"),
        ("builtins", "bytes"),
    }
)
"""Functions and classes that a pickle with numpy arrays names."""


class UnreadableArray(InputError):
    """A value is not an array of numbers; the message continues "the array is ..."."""


# ---------------------------------------------------------------------------------------------------------------------
# npz archives


def read_npz(
    path: str | os.PathLike[str], names: Collection[str] | None = None, *, most_bytes: int = MOST_BYTES
) -> Arrays:
    """Read arrays of numbers, truth values or text from an npz file.

    Args:
        path: the file.
        names: arrays to read, where the file has them; all by default. The others are not decompressed.
        most_bytes: bound on the size of the file and on the size of the arrays together.

    Raises:
        InputError: if the file is missing, damaged, too large, or holds Python objects; the message names the file.
    """
    with naming(path):
        return parse_npz(
            read_file(path, most_bytes, "give a file written by numpy.savez"), names, most_bytes=most_bytes
        )


def parse_npz(content: bytes, names: Collection[str] | None = None, *, most_bytes: int = MOST_BYTES) -> Arrays:
    """Read arrays from the bytes of an npz file, as `read_npz` does; an error's message names no file."""
    # Checked first, because zipfile makes an object of about 1 kB of every entry.
    if content.count(b"PK\x01\x02") > _MOST_MEMBERS:
        raise InputError(f"has more than {_MOST_MEMBERS} members; store fewer arrays")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = {name: info for name, info in members.items() if names is None or name in names}
            size = sum(info.file_size for info in wanted.values())
            if size > most_bytes:
                raise InputError(f"its arrays take {size} bytes; at most {most_bytes} expected; store smaller arrays")
            return {name: _read_member(archive, info, f"array {name[:80]!r}") for name, info in wanted.items()}
    except InputError:
        raise
    except (MemoryError, RecursionError):
        raise InputError(f"asks for more memory or depth than its arrays need; {UNDAMAGED}") from None
    except Exception as error:  # zipfile, zlib and numpy's header parser have no exhaustive list of their errors
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"damaged or cut short ({reason}); {UNDAMAGED}") from None


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> npt.NDArray[Any]:
    # zipfile bounds what it decompresses at a time for these methods only.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{name} has an unusual compression; save it with numpy.savez_compressed")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise InputError(f"{name} has format version {version}; save plain arrays with numpy.savez")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member, max_header_size=_LONGEST_HEADER)
        if dtype.hasobject:
            raise InputError(f"{name} is a pickled object, which is not read; save plain arrays")
        if dtype.kind not in "biufSU":
            raise InputError(f"{name} has elements of type {str(dtype)[:80]}; save plain numbers or text")
        if not _is_shape(shape):
            raise InputError(f"{name} has an impossible shape; {UNDAMAGED}")
        size, stored = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
        if size != stored:
            raise InputError(f"{name} takes {size} bytes by its header, but {stored} are stored; {UNDAMAGED}")
        raw = member.read(size + 1)  # one more byte makes zipfile compare the checksum
    if len(raw) != size:
        raise InputError(f"{name} is cut short; {UNDAMAGED}")
    return _array(bytearray(raw), dtype, shape, fortran)


def _is_shape(shape: Any) -> bool:
    return len(shape) <= _MOST_DIMENSIONS and all(type(size) is int and size >= 0 for size in shape)


def _array(raw: bytes | bytearray, dtype: np.dtype[Any], shape: Any, fortran: Any) -> npt.NDArray[Any]:
    array = np.frombuffer(raw, dtype) if raw else np.zeros(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


# ---------------------------------------------------------------------------------------------------------------------
# Records of a pickle


def array_of(value: Any) -> npt.NDArray[Any]:
    """Decode a numpy array of numbers from its record, as a writeable copy in native byte order.

    Raises:
        UnreadableArray: if the value is not the record of a complete array of numbers.
    """
    name = value.function.name if type(value) is Call else None
    if name == "_reconstruct" and type(value.state) is tuple and len(value.state) == 5:
        _, shape, dtype, fortran, data = value.state
    elif name == "_frombuffer" and len(value.arguments) == 4:
        data, dtype, shape, order = value.arguments
        fortran = order == "F"
    else:
        raise UnreadableArray("not stored as a numpy array")
    raw, element = _raw_bytes(data), _element_type(dtype)
    if type(shape) not in (tuple, list) or not _is_shape(shape):
        raise UnreadableArray("stored without a shape of whole numbers")
    if math.prod(shape) * element.itemsize != len(raw):
        raise UnreadableArray(f"stored with {len(raw)} bytes, which does not fit its shape")
    return _array(raw, element, shape, fortran).astype(element.newbyteorder("="))


def _raw_bytes(data: Any) -> bytes:
    if type(data) is Call and data.function.name == "encode" and data.arguments:
        data = data.arguments[0]
    elif type(data) is Call and data.function.name == "bytes" and not data.arguments:
        data = b""
    if type(data) is str:
        try:
            return data.encode("latin1")
        except UnicodeEncodeError:
            raise UnreadableArray("stored as text that is not bytes") from None
    if type(data) is not bytes:
        raise UnreadableArray("stored as an array of objects")
    return data


def _element_type(dtype: Any) -> np.dtype[Any]:
    if type(dtype) is Call and dtype.function.name == "dtype" and dtype.arguments:
        code, state = dtype.arguments[0], dtype.state
        order = state[1] if type(state) is tuple and len(state) > 1 else None
        if type(code) is str and re.fullmatch("f[248]|[iu][1248]", code, re.ASCII) and order in ("<", ">", "|", "="):
            return np.dtype(f"{order}{code}")
    raise UnreadableArray("stored with an element type that is not a number")


def decode_record(value: Any, shape: tuple[Any, ...], depth: int = 0) -> npt.NDArray[Any]:
    """Decode nested lists of numbers, or the record of a numpy, SciPy or chumpy array.

    Args:
        value: value in the tree of `safe_pickle.unpickle`.
        shape: shape that a sparse matrix must have; other arrays may have any shape.
        depth: number of chumpy objects around the value.

    Raises:
        InputError: if the value is none of these.
        TypeError, ValueError, LookupError, AttributeError, OverflowError: if the state of a record is incomplete.
    """
    if depth > _DEEPEST:
        raise InputError("nested too deeply; get the file from its official source")
    if type(value) in (list, tuple):
        _check_lists(value)
        return np.asarray(value, np.float64)
    if type(value) is not Call:
        raise InputError(f"stored as {type(value).__name__!r}, which is not supported; save it as a plain array")
    described = value.function
    if described.name == "_reconstructor" and value.arguments and type(value.arguments[0]) is Global:
        described = value.arguments[0]  # protocols 0 and 1 create objects as _reconstructor(class, object, None)
    name, state = described.name, value.state
    if name in ("_reconstruct", "_frombuffer"):
        return array_of(value)
    if described.module.startswith("scipy."):
        return _decode_sparse(name, state, shape)
    if name == "Ch":
        return decode_record(state["x"], shape, depth + 1)
    if name == "Select":
        chosen = decode_record(state["a"], shape, depth + 1).ravel()[decode_record(state["idxs"], shape, depth + 1)]
        return chosen.reshape(decode_record(state["preferred_shape"], shape, depth + 1).astype(np.int64).tolist())
    path = f"{described.module}.{name}"
    raise InputError(f"stored as {path[:80]!r}, which is not supported; save it as a plain array")


def _check_lists(value: list[Any] | tuple[Any, ...]) -> None:
    """Check nested lists of numbers before they are expanded, because they may share parts many times."""
    numbers, level = 0, [value]
    for _ in range(4):
        deeper = []
        for item in level:
            numbers += len(item)
            if numbers > _MOST_LISTED:
                raise InputError(f"has more than {_MOST_LISTED} numbers in lists; save it as a plain array")
            deeper += [part for part in item if type(part) in (list, tuple)]
            if any(type(part) not in (int, float, list, tuple) for part in item):
                raise InputError("has a list with something other than numbers; save it as a plain array")
        level = deeper
    if level:
        raise InputError("has lists in more than 4 levels; save it as a plain array")


def _decode_sparse(name: str, state: Mapping[str, Any], expected: tuple[Any, ...]) -> npt.NDArray[Any]:
    """Return a dense array from the state of a SciPy matrix in csc, csr or coo format."""
    form = name.partition("_")[0]
    if form not in ("csc", "csr", "coo"):
        raise InputError(f"stored as {name!r}, which is not supported; save it as a csc_matrix or a plain array")
    shape = state.get("_shape", state.get("shape"))
    if type(shape) is not tuple or not _is_shape(shape):
        raise InputError(f"stored as {name!r} without a shape; {UNDAMAGED}")
    if shape != expected:  # checked before memory is allocated for the dense array
        raise InputError(f"has shape {str(shape)[:80]} instead of {expected}; is it a MANO hand model?")
    data = array_of(state["data"]).ravel()
    if form == "coo":
        both = state["coords"] if "coords" in state else (state["row"], state["col"])
        row, column = (_indices(indices, count) for indices, count in zip(both, shape, strict=True))
    else:
        major, minor = shape[::-1] if form == "csc" else shape
        inner = _indices(state["indices"], minor)
        pointers = _indices(state["indptr"], len(inner) + 1)
        ends = (len(pointers), pointers[0], pointers[-1])
        if ends != (major + 1, 0, len(inner)) or np.any(np.diff(pointers) < 0):
            raise InputError(f"its index pointers do not fit its {len(inner)} entries; {UNDAMAGED}")
        outer = np.repeat(np.arange(major), np.diff(pointers))
        row, column = (inner, outer) if form == "csc" else (outer, inner)
    if not len(row) == len(column) == len(data):
        raise InputError(f"has {len(data)} numbers for {len(row)} rows and {len(column)} columns; {UNDAMAGED}")
    dense = np.zeros(shape, np.float64)
    np.add.at(dense, (row, column), data)
    return dense


def _indices(value: Any, count: int) -> npt.NDArray[np.int64]:
    """Decode indices and check that they lie in 0 to count - 1."""
    indices = array_of(value).ravel()
    if indices.dtype.kind not in "iu" or np.any(indices < 0) or np.any(indices >= count):
        raise InputError(f"has an index outside of 0 to {count - 1}; {UNDAMAGED}")
    return indices.astype(np.int64)

"""Read pickle files from strangers without running them.

A pickle is a program. `unpickle` interprets the opcodes that data files need and builds a tree of plain values:
numbers, text, bytes, lists, tuples and dictionaries. Every other object becomes a `Call`, which records the name of
the function or class, its arguments and its state. Nothing that a file names is imported or called, and no opcode can
change a record except to set its state once. Readers interpret the finished tree, so a value cannot change after its
check.

The project has its own interpreter because restricting `pickle.Unpickler` is not enough: its memo is an array as long
as the largest index in the file, it hashes nested tuples in exponential time, and its BUILD opcode sets attributes of
whatever object ``find_class`` returns.

Readers must not print, compare or recurse into the tree without a bound, because a small file can share one list many
times on many levels.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.mano.pickle_machine import interpret
from handtailor_jax.mano.pickle_records import (
    Call,
    ForeignGlobal,
    Global,
    Limits,
    PickleCutShort,
    Reference,
    UnreadablePickle,
)

__all__ = [
    "NUMPY_GLOBALS",
    "Call",
    "ForeignGlobal",
    "Global",
    "Limits",
    "PickleCutShort",
    "Reference",
    "Unpickled",
    "UnreadableArray",
    "UnreadablePickle",
    "array_of",
    "unpickle",
]


@dataclasses.dataclass(frozen=True)
class Unpickled:
    """Content of one pickle."""

    value: Any
    """Tree of plain values, `Call`, `Global` and `Reference`."""
    end: int
    """Index of the first byte after the pickle."""
    references: list[Reference]
    """Every reference in the pickle, in the order of the file."""


def unpickle(
    data: bytes, allowed: Callable[[str, str], bool], limits: Limits, *, start: int = 0, references: bool = False
) -> Unpickled:
    """Read one pickle of protocol 0 to 5.

    Byte strings of Python 2 become text, one character a byte (latin1). Sets become lists, byte arrays become bytes,
    and an ``OrderedDict`` becomes a dictionary.

    Args:
        data: bytes of the file.
        allowed: whether the file may name a function or class, given its module and its name.
        limits: bounds on the size.
        start: index of the pickle's first byte.
        references: whether the pickle may refer to something outside itself (persistent ids).

    Raises:
        PickleCutShort: if the data ends before the pickle does.
        ForeignGlobal: if the pickle names something that is not allowed.
        UnreadablePickle: if the pickle is damaged, exceeds a limit or uses an opcode that no data file needs.
    """
    return Unpickled(*interpret(data, allowed, limits, start, references))


# ---------------------------------------------------------------------------------------------------------------------
# numpy arrays in the tree

NUMPY_GLOBALS = frozenset(
    {
        # numpy 2 moved its internal modules to numpy._core.
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        # Python 3 writes bytes as a call of encode, or of bytes if there are none, in protocols 0 to 2.
        ("_codecs", "encode"),
        ("__builtin__", "bytes"),
        ("builtins", "bytes"),
    }
)
"""Functions and classes that a pickle with numpy arrays names."""

_MOST_DIMENSIONS = 32


class UnreadableArray(ValueError):
    """A value of the tree is not an array of numbers; the message continues "the array is ..."."""


def array_of(value: Any) -> npt.NDArray[Any]:
    """Decode a numpy array of numbers from its record.

    Returns:
        A writeable copy in native byte order.

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
    if type(shape) not in (tuple, list) or len(shape) > _MOST_DIMENSIONS:
        raise UnreadableArray("stored without a shape")
    if any(type(size) is not int or size < 0 for size in shape):
        raise UnreadableArray("stored with a size that is not a whole number")
    if math.prod(shape) * element.itemsize != len(raw):
        raise UnreadableArray(f"stored with {len(raw)} bytes, which does not fit its shape")
    array = np.frombuffer(raw, element) if raw else np.zeros(0, element)
    return array.reshape(shape, order="F" if fortran else "C").astype(element.newbyteorder("="))


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

"""Turn the content of a PyTorch checkpoint into numpy arrays; see `handtailor_jax.hand_module.torch_file`.

Tensors are views of storages. Sizes, strides and offsets come from the file, so each is checked against the storage
immediately before the view is made.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.mano.safe_pickle import Call, Global, Reference

UNDAMAGED = "get an undamaged copy of the checkpoint"
OFFICIAL = "give HandTailor's model.pt or another checkpoint written by torch.save"

# Views may overlap or repeat. All arrays together may take this many times the bytes of the file plus the free bytes.
_MOST_GROWTH = 4
_FREE_BYTES = 2**20
_MOST_DIMENSIONS = 32

_ELEMENT_TYPES: Mapping[str, str] = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}

_ALLOWED = frozenset(
    {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        # Counters and losses beside the model are often numpy scalars.
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("_codecs", "encode"),
    }
)


class Problem(Exception):
    """Fault in a checkpoint's content; `read_state_dict` adds the name of the file."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """Run of numbers in the file, or a part of it."""

    key: str
    """Name of the run in the file."""
    element: str
    """Element type of the numbers."""
    count: int
    """Number of elements in the run."""
    first: int
    """Index of the first element of the part."""
    length: int
    """Number of elements in the part."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element in the file."""
        return 2 if self.element == "bfloat16" else np.dtype(self.element).itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def is_allowed(module: str, name: str) -> bool:
    """Whether a checkpoint may name a function or class."""
    return (module, name) in _ALLOWED or (module in ("torch", "torch.cuda") and name in _ELEMENT_TYPES)


def storage_of(reference: Reference) -> Storage:
    """Decode a reference to a storage."""
    id = reference.id
    if type(id) is not tuple or len(id) not in (5, 6) or type(id[0]) is not str or id[0] != "storage":
        raise Problem(f"holds something that is no tensor; save a plain state dict, and {OFFICIAL}")
    # The device, id[3], is ignored: storages of every device are read to the CPU.
    kind, key, count = id[1], id[2], id[4]
    known = type(kind) is Global and kind.name in _ELEMENT_TYPES
    if not known or type(key) is not str or type(count) is not int or count < 0:
        raise Problem(f"describes a storage in an unknown way; {UNDAMAGED}")
    first, length = 0, count
    if len(id) == 6 and id[5] is not None:
        if type(id[5]) is not tuple or len(id[5]) != 3:
            raise Problem(f"describes a part of a storage in an unknown way; {UNDAMAGED}")
        _, first, length = id[5]
        if type(first) is not int or type(length) is not int or min(first, length) < 0 or first + length > count:
            raise Problem(f"a storage reaches beyond its data; {UNDAMAGED}")
    return Storage(key, _ELEMENT_TYPES[kind.name], count, first, length)


def storages_of(references: list[Reference]) -> dict[str, Storage]:
    """Decode all references; every run of numbers by its name."""
    runs: dict[str, Storage] = {}
    for reference in references:
        part = storage_of(reference)
        run = dataclasses.replace(part, first=0, length=part.count)
        if runs.setdefault(run.key, run) != run:
            raise Problem(f"describes one storage in two ways; {UNDAMAGED}")
    return runs


def state_dict_of(content: Any) -> dict[str, Tensor]:
    """Decode the named tensors of a checkpoint's content."""
    if type(content) is not dict:
        raise Problem(f"holds no dictionary; {OFFICIAL}")
    state = content.get("model", content)
    if type(state) is not dict or not state:
        raise Problem(f"its entry 'model' is no state dict; {OFFICIAL}")
    tensors = {}
    for name, record in state.items():
        tensor = _tensor_of(record)
        if type(name) is not str or tensor is None:
            if state is content:
                raise Problem(f"has no entry 'model' and is no state dict itself; {OFFICIAL}")
            raise Problem(f"{str(name)[:80]!r} in 'model' is no tensor; save a plain state dict")
        tensors[name] = tensor
    return tensors


def _tensor_of(record: Any) -> Tensor | None:
    """Decode the record of a tensor or a parameter; None for anything else."""
    if type(record) is Call and record.function.name == "_rebuild_parameter" and record.arguments:
        record = record.arguments[0]
    if type(record) is not Call or record.function.name not in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        return None
    # The rest, requires_grad, hooks and metadata, is ignored.
    storage, offset, shape, strides = (*record.arguments, None, None, None, None)[:4]
    whole = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= _MOST_DIMENSIONS
    if not whole or type(storage) is not Reference or any(type(n) is not int for n in (offset, *shape, *strides)):
        raise Problem(f"a tensor is not described by a storage and whole numbers; {UNDAMAGED}")
    return Tensor(storage_of(storage), offset, shape, strides)


def arrays_of(
    tensors: Mapping[str, Tensor], read: Callable[[Storage], bytes], big_endian: bool, file_size: int
) -> dict[str, npt.NDArray[Any]]:
    """Copy every tensor to an array of its own.

    Args:
        tensors: the tensors by name.
        read: returns the bytes of a storage's whole run.
        big_endian: byte order of the file.
        file_size: bytes of the file, which bound the bytes of the arrays.
    """
    runs: dict[str, npt.NDArray[Any]] = {}
    budget = _MOST_GROWTH * file_size + _FREE_BYTES
    arrays = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        try:
            _check_extent(tensor, storage.length)
            budget -= math.prod(tensor.shape) * max(storage.itemsize, 4)
            if budget < 0:
                raise Problem("asks for more numbers than the file can hold")
            if storage.key not in runs:
                runs[storage.key] = _numbers(storage, read(storage), big_endian)
            arrays[name] = _view(tensor, runs[storage.key])
        except Problem as problem:
            remedy = "" if UNDAMAGED in str(problem) else f"; {UNDAMAGED}"
            raise Problem(f"{name[:80]!r}: {problem}{remedy}") from None
    return arrays


def _check_extent(tensor: Tensor, available: int) -> None:
    """Check that a tensor lies within the elements that its storage has."""
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise Problem("has a negative size, stride or offset")
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and last >= available:
        raise Problem(f"reaches beyond the {available} numbers of its storage")


def _numbers(storage: Storage, raw: bytes, big_endian: bool) -> npt.NDArray[Any]:
    """All numbers of a storage's run in native byte order."""
    if len(raw) != storage.count * storage.itemsize:
        raise Problem(f"its storage has {len(raw)} bytes instead of {storage.count * storage.itemsize}")
    order = ">" if big_endian else "<"
    if storage.element == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(raw, order + "u2").astype(np.uint32) << 16).view(np.float32)
    if storage.element == "?":
        return np.frombuffer(raw, np.uint8) != 0
    stored = np.frombuffer(raw, order + storage.element)
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _view(tensor: Tensor, run: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy a tensor out of its storage's run."""
    part = run[tensor.storage.first : tensor.storage.first + tensor.storage.length]
    _check_extent(tensor, part.size)  # as_strided checks nothing
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, run.dtype)
    # The stride of a dimension of size 1 is not used and need not fit into 64 bits.
    strides = tuple(
        stride * run.itemsize if n > 1 else 0 for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    return np.lib.stride_tricks.as_strided(part[tensor.offset :], tensor.shape, strides).copy(order="C")

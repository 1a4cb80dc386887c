"""PyTorch checkpoints without PyTorch: the tensors of a state dict as numpy arrays.

Two formats are read. Since PyTorch 1.6 a checkpoint is a zip archive of one pickle and one uncompressed record for
each storage; before, it was a row of pickles (magic number, protocol, system, content, storage keys) followed by the
storages themselves. In both, the content refers to storages by persistent ids, and tensors are views into them.

A pickle is a program. It is read without running it: the few names that a checkpoint needs stand for functions of ours
that only remember what they were given; any other name is refused before anything is made of it.
"""

import dataclasses
import io
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_UNDAMAGED = "get an undamaged copy of the checkpoint"
_OFFICIAL = "give HandTailor's model.pt or another checkpoint written by torch.save"

# Views may overlap or repeat; all arrays together may take this many times the bytes of the file, and a little more.
_MOST_GROWTH = 4
_FREE_BYTES = 2**20

_DTYPES: Mapping[str, str] = {
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


class _Problem(Exception):
    """What is wrong with a file's content; `read_state_dict` puts the file's name in front."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers in the file, or a view of a part of one."""

    key: str
    dtype: str
    count: int
    """Numbers in the whole run."""
    view: tuple[int, int]
    """First number and how many of them the view has."""

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage; offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a PyTorch checkpoint by name, on the CPU, without PyTorch.

    Args:
        path: what ``torch.save`` wrote, in either format: ``{"model": state_dict, ...}``, of which everything but
            "model" is ignored, or a bare state dict.

    Returns:
        Contiguous arrays that may be written to, of the stored element types, except that bfloat16 becomes float32.
        Names are as stored and in the stored order.

    Raises:
        InputError: if the file is missing, no checkpoint, damaged, or refers to anything but tensors and plain values.
    """
    try:
        if Path(path).is_dir():
            raise _Problem(f"this is a folder; {_OFFICIAL}")
        try:
            with Path(path).open("rb") as file:
                return _read(file, os.fstat(file.fileno()).st_size)
        except FileNotFoundError:
            raise _Problem(f"no such file; {_OFFICIAL}") from None
        except OSError as error:
            raise _Problem(f"cannot be read ({error.strerror or error}); check the path and its permissions") from None
    except _Problem as problem:
        raise InputError(f"{os.fspath(path)}: {problem}") from None


def _read(file: io.BufferedIOBase, size: int) -> dict[str, npt.NDArray[Any]]:
    if size == 0:
        raise _Problem(f"the file is empty; {_UNDAMAGED}")
    try:
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        return _read_zip(file, size) if is_zip else _read_legacy(file, size)
    except (_Problem, OSError):
        raise
    except (MemoryError, RecursionError):
        raise _Problem(f"asks for more memory or depth than a checkpoint needs; {_UNDAMAGED}") from None
    except Exception as error:  # zipfile, pickle and pickletools fail in many ways on damaged input
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise _Problem(f"damaged or no PyTorch checkpoint ({reason}); {_UNDAMAGED}") from None


# ---------------------------------------------------------------------------------------------------------------------
# The two formats


def _read_zip(file: io.BufferedIOBase, size: int) -> dict[str, npt.NDArray[Any]]:
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        # Neither is ever so in a checkpoint; without compression and overlap nothing is larger than the file.
        if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
            raise _Problem(f"has compressed records, which torch.save never writes; {_OFFICIAL}")
        if sum(info.file_size for info in records.values()) > size:
            raise _Problem(f"its records overlap; {_UNDAMAGED}")
        contents = [name for name in records if name.endswith("/data.pkl")]
        if len(contents) != 1:
            raise _Problem(f"a zip file, but no PyTorch checkpoint (it has no data.pkl); {_OFFICIAL}")
        folder = contents[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in records else b"little"
        if order not in (b"little", b"big"):
            raise _Problem(f"its byte order is {order[:20]!r}; {_UNDAMAGED}")
        content, _ = _unpickle(io.BytesIO(archive.read(contents[0])))

        def data(storage: _Storage) -> bytes:
            name = f"{folder}data/{storage.key}"
            if name not in records:
                raise _Problem(f"lacks the record {storage.key[:40]!r} that a tensor refers to; {_UNDAMAGED}")
            return archive.read(name)

        return _arrays(_state_dict(content), data, order == b"big", size)


def _read_legacy(file: io.BufferedIOBase, size: int) -> dict[str, npt.NDArray[Any]]:
    try:
        magic, _ = _unpickle(file)
    except Exception:
        magic = None
    if magic != _MAGIC:
        raise _Problem(f"no PyTorch checkpoint; {_OFFICIAL}")
    protocol, _ = _unpickle(file)
    if protocol != _PROTOCOL:
        raise _Problem(f"has the unknown format version {str(protocol)[:20]}; save it again with a current PyTorch")
    system, _ = _unpickle(file)
    content, storages = _unpickle(file)
    keys, _ = _unpickle(file)
    big_endian = isinstance(system, dict) and system.get("little_endian") is False
    stored: dict[str, bytes] = {}
    for key in keys:
        storage = storages.get(key)
        if storage is None:
            raise _Problem(f"holds data that nothing refers to; {_UNDAMAGED}")
        count = int.from_bytes(file.read(8), "big" if big_endian else "little", signed=True)
        if count != storage.count:
            raise _Problem(f"a storage holds {count} numbers instead of {storage.count}; {_UNDAMAGED}")
        if count * storage.itemsize > size - file.tell():
            raise _Problem(f"the file is cut short; {_UNDAMAGED}")
        stored[key] = file.read(count * storage.itemsize)

    def data(storage: _Storage) -> bytes:
        if storage.key not in stored:
            raise _Problem(f"lacks the data that a tensor refers to; {_UNDAMAGED}")
        return stored[storage.key]

    return _arrays(_state_dict(content), data, big_endian, size)


# ---------------------------------------------------------------------------------------------------------------------
# Unpickling


class _Dictionary(dict[Any, Any]):
    """An OrderedDict whose attributes (a state dict's metadata) are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class _Ignored:
    """A value that no tensor is made of."""

    def __new__(cls, *arguments: object) -> "_Ignored":
        return object.__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: object) -> _Tensor:
    """Stands for PyTorch's function; requires_grad, hooks and metadata are left out."""
    whole = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if not (whole and isinstance(storage, _Storage) and all(type(n) is int for n in (offset, *shape, *strides))):
        raise _Problem(f"a tensor is not described by a storage and whole numbers; {_UNDAMAGED}")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *rest: object) -> Any:
    return data


_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dictionary,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    # Counters and losses beside the model are often numpy scalars.
    ("numpy", "dtype"): _Ignored,
    ("numpy.core.multiarray", "scalar"): _Ignored,
    ("numpy._core.multiarray", "scalar"): _Ignored,
    ("_codecs", "encode"): _Ignored,
}


@dataclasses.dataclass(frozen=True)
class _StorageType:
    dtype: str


class _Unpickler(pickle.Unpickler):
    """Makes descriptions of tensors; calls nothing that the file names."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.cuda") and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        if (module, name) not in _ALLOWED:
            raise _Problem(
                f"refers to {f'{module}.{name}'[:80]!r}, which a state dict of numbers does not need; nothing was "
                "executed, save a plain state dict"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        # The device, fourth, is left out: storages of every device are read to the CPU.
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise _Problem(f"holds something that is no tensor; save a plain state dict, and {_OFFICIAL}")
        kind, key, count = pid[1], pid[2], pid[4]
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or type(count) is not int or count < 0:
            raise _Problem(f"describes a storage in an unknown way; {_UNDAMAGED}")
        whole = _Storage(key, kind.dtype, count, (0, count))
        if self.storages.setdefault(key, whole) != whole:
            raise _Problem(f"describes one storage in two ways; {_UNDAMAGED}")
        if len(pid) == 5 or pid[5] is None:
            return whole
        _, first, length = pid[5]
        if not (type(first) is int and type(length) is int and 0 <= first <= first + length <= count):
            raise _Problem(f"a storage reaches beyond its data; {_UNDAMAGED}")
        return dataclasses.replace(whole, view=(first, length))


def _unpickle(file: io.BufferedIOBase) -> tuple[Any, Mapping[str, _Storage]]:
    """The content of the next pickle and its storages by key; the file is then behind it."""
    start = file.tell()
    length = 0
    # Goes through all operands first, so that a length which the file does not have ends here and allocates nothing.
    for step, (opcode, operand, place) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
        # Python's memo is a table as long as the largest index asked for.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and operand > step:  # type: ignore[operator]
            raise _Problem(f"its pickle asks for more memory than it can use; {_UNDAMAGED}")
        length = (place or 0) + 1 - start
    file.seek(start)
    unpickler = _Unpickler(io.BytesIO(file.read(length)))
    return unpickler.load(), unpickler.storages


# ---------------------------------------------------------------------------------------------------------------------
# From descriptions to arrays


def _state_dict(content: Any) -> dict[str, _Tensor]:
    """The named tensors of a checkpoint's content."""
    if not isinstance(content, dict):
        raise _Problem(f"holds no dictionary; {_OFFICIAL}")
    state = content.get("model", content)
    if not isinstance(state, dict) or not state:
        raise _Problem(f"its entry 'model' is no state dict; {_OFFICIAL}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            if state is content:
                raise _Problem(f"has no entry 'model' and is no state dict itself; {_OFFICIAL}")
            raise _Problem(f"{str(name)[:80]!r} in 'model' is no tensor; save a plain state dict")
    return state


def _arrays(
    state: Mapping[str, _Tensor], data: Callable[[_Storage], bytes], big_endian: bool, size: int
) -> dict[str, npt.NDArray[Any]]:
    numbers: dict[str, npt.NDArray[Any]] = {}
    budget = _MOST_GROWTH * size + _FREE_BYTES
    arrays = {}
    for name, tensor in state.items():
        try:
            _check_extent(tensor)
            budget -= math.prod(tensor.shape) * max(tensor.storage.itemsize, 4)
            if budget < 0:
                raise _Problem("asks for more numbers than the file can hold")
            storage = tensor.storage
            if storage.key not in numbers:
                numbers[storage.key] = _numbers(storage, data(storage), big_endian)
            arrays[name] = _strided(tensor, numbers[storage.key])
        except _Problem as problem:
            remedy = "" if _UNDAMAGED in str(problem) else f"; {_UNDAMAGED}"
            raise _Problem(f"{name[:80]!r}: {problem}{remedy}") from None
    return arrays


def _check_extent(tensor: _Tensor) -> None:
    if tensor.offset < 0 or min(tensor.shape, default=0) < 0 or min(tensor.strides, default=0) < 0:
        raise _Problem("has a negative size or stride")
    _, available = tensor.storage.view
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and tensor.offset + reach >= available:
        raise _Problem(f"reaches beyond the {available} numbers of its storage")


def _numbers(storage: _Storage, raw: bytes, big_endian: bool) -> npt.NDArray[Any]:
    """All numbers of a storage, native byte order."""
    if len(raw) != storage.count * storage.itemsize:
        raise _Problem(f"its storage has {len(raw)} bytes instead of {storage.count * storage.itemsize}")
    order = ">" if big_endian else "<"
    if storage.dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(raw, order + "u2").astype(np.uint32) << 16).view(np.float32)
    if storage.dtype == "?":
        return np.frombuffer(raw, np.uint8) != 0
    stored = np.frombuffer(raw, order + storage.dtype)
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _strided(tensor: _Tensor, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The view as an array of its own; `_check_extent` must have passed."""
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, numbers.dtype)
    start = tensor.storage.view[0] + tensor.offset
    strides = tuple(stride * numbers.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(numbers[start:], tensor.shape, strides).copy(order="C")

"""Read PyTorch checkpoints without PyTorch: the tensors of a state dict as numpy arrays.

Two formats are supported. Since PyTorch 1.6 a checkpoint is a zip archive of one pickle and one uncompressed record
for each storage. Before, it was a sequence of pickles (magic number, protocol, system, content, storage keys) followed
by the storages. In both, the content refers to storages, and tensors are views of storages.

The pickles are read by `handtailor_jax.mano.safe_pickle`, so that nothing in the file is executed. Sizes, strides and
offsets come from the file, so each is checked against the storage before a view is made.
"""

import dataclasses
import io
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError, naming, read_file
from handtailor_jax.mano.safe_pickle import Call, Global, Limits, Reference, Unpickled, UnreadablePickle, unpickle

_Order = Literal["little", "big"]
_Opened = tuple[Any, Callable[[str], bytes], _Order]

_UNDAMAGED = "get an undamaged copy of the checkpoint"
_OFFICIAL = "give HandTailor's model.pt or another checkpoint written by torch.save"

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

_MOST_BYTES = 4 * 2**30
_LIMITS = Limits(opcodes=2_000_000, text=128 * 2**20)
_MOST_PICKLED = 64 * 2**20
_MOST_RECORDS = 100_000
_MOST_DIMENSIONS = 32

# Views may overlap or repeat. All arrays together may take this many times the bytes of the file plus the free bytes.
_MOST_GROWTH, _FREE_BYTES = 4, 2**20

_ELEMENT_TYPES: Mapping[str, npt.DTypeLike] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
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


@dataclasses.dataclass(frozen=True)
class _Run:
    """Numbers that the file stores under a key."""

    key: str
    dtype: np.dtype[Any]
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Strided view of the elements `first` to `first + length` of a run; offset and strides count elements."""

    run: _Run
    first: int
    length: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read the tensors of a PyTorch checkpoint by name.

    Args:
        path: a file written by ``torch.save`` in either format: ``{"model": state_dict, ...}``, of which every other
            entry is ignored, or a bare state dict.

    Returns:
        Contiguous, writeable arrays of the stored element types, except that bfloat16 becomes float32. Names and
        their order are those of the file.

    Raises:
        InputError: if the file is missing, damaged or not a checkpoint, or if it refers to anything but tensors and
            plain values.
    """
    with naming(path):
        content = read_file(path, _MOST_BYTES, _OFFICIAL)
        try:
            value, read, order = (_open_zip if content.startswith(b"PK") else _open_legacy)(content)
            return _arrays(_state_dict(value), read, order, len(content))
        except InputError:
            raise
        except UnreadablePickle as error:
            raise InputError(f"damaged or no PyTorch checkpoint (its pickle {error}); {_UNDAMAGED}") from None
        except (MemoryError, RecursionError):
            raise InputError(f"asks for more memory or depth than a checkpoint needs; {_UNDAMAGED}") from None
        except Exception as error:  # zipfile has no exhaustive list of its errors
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(f"damaged or no PyTorch checkpoint ({reason}); {_UNDAMAGED}") from None


def _unpickle(data: bytes, start: int = 0) -> Unpickled:
    return unpickle(data, _is_allowed, _LIMITS, start=start, references=True)


def _is_allowed(module: str, name: str) -> bool:
    return (module, name) in _ALLOWED or (module in ("torch", "torch.cuda") and name in _ELEMENT_TYPES)


def _open_zip(content: bytes) -> _Opened:
    # Checked first, because zipfile makes an object of about 1 kB of every entry.
    if content.count(b"PK\x01\x02") > _MOST_RECORDS:
        raise InputError(f"has more than {_MOST_RECORDS} records; {_UNDAMAGED}")
    archive = zipfile.ZipFile(io.BytesIO(content))
    records = {info.filename: info for info in archive.infolist()}
    # A checkpoint has neither. Without compression and overlap no record is larger than the file.
    if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
        raise InputError(f"has compressed records, which torch.save never writes; {_OFFICIAL}")
    if sum(info.file_size for info in records.values()) > len(content):
        raise InputError(f"its records overlap; {_UNDAMAGED}")
    contents = [name for name in records if name.endswith("/data.pkl")]
    if len(contents) != 1:
        raise InputError(f"a zip file, but no PyTorch checkpoint (it has {len(contents)} data.pkl); {_OFFICIAL}")
    if records[contents[0]].file_size > _MOST_PICKLED:
        raise InputError(f"its data.pkl has more than {_MOST_PICKLED} bytes; {_UNDAMAGED}")
    folder = contents[0].removesuffix("data.pkl")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in records else b"little"
    if order not in (b"little", b"big"):
        raise InputError(f"its byte order is {order[:20]!r}; {_UNDAMAGED}")
    unpickled = _unpickle(archive.read(contents[0]))
    _runs_of(unpickled.references)
    return unpickled.value, lambda key: archive.read(f"{folder}data/{key}"), "big" if order == b"big" else "little"


def _open_legacy(content: bytes) -> _Opened:
    head = content[:_MOST_PICKLED]
    try:
        magic = _unpickle(head)
    except UnreadablePickle:
        raise InputError(f"no PyTorch checkpoint; {_OFFICIAL}") from None
    if type(magic.value) is not int or magic.value != _MAGIC:
        raise InputError(f"no PyTorch checkpoint; {_OFFICIAL}")
    protocol = _unpickle(head, magic.end)
    if type(protocol.value) is not int or protocol.value != _PROTOCOL:
        found = str(protocol.value)[:20] if type(protocol.value) is int else f"a {type(protocol.value).__name__}"
        raise InputError(f"has the unknown format version {found}; save it again with a current PyTorch")
    system = _unpickle(head, protocol.end)
    unpickled = _unpickle(head, system.end)
    keys = _unpickle(head, unpickled.end)
    big = isinstance(system.value, dict) and system.value.get("little_endian") is False
    order: _Order = "big" if big else "little"
    runs = _runs_of(unpickled.references)
    if type(keys.value) is not list:
        raise InputError(f"has no list of storages; {_UNDAMAGED}")
    stored: dict[str, bytes] = {}
    position = keys.end
    for key in keys.value:
        run = runs.get(key) if type(key) is str else None
        if run is None:
            raise InputError(f"holds data that nothing refers to; {_UNDAMAGED}")
        count = int.from_bytes(content[position : position + 8], order, signed=True)
        if count != run.count:
            raise InputError(f"a storage holds {count} numbers instead of {run.count}; {_UNDAMAGED}")
        start, position = position + 8, position + 8 + count * run.dtype.itemsize
        if position > len(content):
            raise InputError(f"the file is cut short; {_UNDAMAGED}")
        stored[run.key] = content[start:position]
    return unpickled.value, stored.__getitem__, order


def _storage(reference: Reference) -> tuple[_Run, int, int]:
    """Decode a reference to a storage: the run, the first element of the storage in it, and the storage's length."""
    id = reference.id
    if type(id) is not tuple or len(id) not in (5, 6) or type(id[0]) is not str or id[0] != "storage":
        raise InputError(f"holds something that is no tensor; save a plain state dict, and {_OFFICIAL}")
    # The device, id[3], is ignored: storages of every device are read to the CPU.
    kind, key, count = id[1], id[2], id[4]
    known = type(kind) is Global and kind.name in _ELEMENT_TYPES
    if not known or type(key) is not str or type(count) is not int or count < 0:
        raise InputError(f"describes a storage in an unknown way; {_UNDAMAGED}")
    run = _Run(key, np.dtype(_ELEMENT_TYPES[kind.name]), count)
    if len(id) == 5 or id[5] is None:
        return run, 0, count
    if type(id[5]) is not tuple or len(id[5]) != 3:
        raise InputError(f"describes a part of a storage in an unknown way; {_UNDAMAGED}")
    _, first, length = id[5]
    if type(first) is not int or type(length) is not int or min(first, length) < 0 or first + length > count:
        raise InputError(f"a storage reaches beyond its data; {_UNDAMAGED}")
    return run, first, length


def _runs_of(references: list[Reference]) -> dict[str, _Run]:
    runs: dict[str, _Run] = {}
    for run, _, _ in map(_storage, references):
        if runs.setdefault(run.key, run) != run:
            raise InputError(f"describes one storage in two ways; {_UNDAMAGED}")
    return runs


def _state_dict(content: Any) -> dict[str, _Tensor]:
    if type(content) is not dict:
        raise InputError(f"holds no dictionary; {_OFFICIAL}")
    state = content.get("model", content)
    if type(state) is not dict or not state:
        raise InputError(f"its entry 'model' is no state dict; {_OFFICIAL}")
    tensors = {}
    for name, record in state.items():
        tensor = _tensor(record)
        if type(name) is not str or tensor is None:
            if state is content:
                raise InputError(f"has no entry 'model' and is no state dict itself; {_OFFICIAL}")
            raise InputError(f"{str(name)[:80]!r} in 'model' is no tensor; save a plain state dict")
        tensors[name] = tensor
    return tensors


def _tensor(record: Any) -> _Tensor | None:
    """Decode the record of a tensor or a parameter; None for anything else."""
    if type(record) is Call and record.function.name == "_rebuild_parameter" and record.arguments:
        record = record.arguments[0]
    if type(record) is not Call or record.function.name not in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        return None
    # The rest, requires_grad, hooks and metadata, is ignored.
    storage, offset, shape, strides = (*record.arguments, None, None, None, None)[:4]
    whole = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= _MOST_DIMENSIONS
    if not whole or type(storage) is not Reference or any(type(n) is not int for n in (offset, *shape, *strides)):
        raise InputError(f"a tensor is not described by a storage and whole numbers; {_UNDAMAGED}")
    return _Tensor(*_storage(storage), offset, shape, strides)


def _arrays(
    tensors: Mapping[str, _Tensor], read: Callable[[str], bytes], order: _Order, file_size: int
) -> dict[str, npt.NDArray[Any]]:
    """Copy every tensor to an array of its own; `read` returns the bytes of a run, given its key."""
    runs: dict[str, npt.NDArray[Any]] = {}
    budget = _MOST_GROWTH * file_size + _FREE_BYTES
    arrays = {}
    for name, tensor in tensors.items():
        with naming(repr(name[:80])):
            key = tensor.run.key
            budget -= math.prod(tensor.shape) * max(tensor.run.dtype.itemsize, 4)
            if budget < 0:
                raise InputError(f"asks for more numbers than the file can hold; {_UNDAMAGED}")
            if key not in runs:
                try:
                    runs[key] = _numbers(tensor.run, read(key), order)
                except KeyError:
                    raise InputError(f"lacks the record {key[:40]!r} that a tensor refers to; {_UNDAMAGED}") from None
            arrays[name] = _view(tensor, runs[key])
    return arrays


def _numbers(run: _Run, raw: bytes, order: _Order) -> npt.NDArray[Any]:
    """Return all numbers of a run in native byte order."""
    size = run.dtype.itemsize
    if len(raw) != run.count * size:
        raise InputError(f"its storage has {len(raw)} bytes instead of {run.count * size}; {_UNDAMAGED}")
    if run.dtype == bool:
        return np.frombuffer(raw, np.uint8) != 0
    words = np.frombuffer(raw, f"{'>' if order == 'big' else '<'}u{size}")
    numbers = words.astype(words.dtype.newbyteorder("="), copy=False).view(run.dtype)
    return numbers.astype(np.float32) if run.dtype == jnp.bfloat16 else numbers


def _view(tensor: _Tensor, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy a tensor out of the numbers of its run."""
    part = numbers[tensor.first : tensor.first + tensor.length]
    # as_strided checks nothing.
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise InputError(f"has a negative size, stride or offset; {_UNDAMAGED}")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, part.dtype)
    sizes = list(zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset + sum((n - 1) * stride for n, stride in sizes) >= part.size:
        raise InputError(f"reaches beyond the {part.size} numbers of its storage; {_UNDAMAGED}")
    # The stride of a dimension of size 1 is not used and need not fit into 64 bits.
    strides = tuple(stride * part.itemsize if n > 1 else 0 for n, stride in sizes)
    return np.lib.stride_tricks.as_strided(part[tensor.offset :], tensor.shape, strides).copy(order="C")

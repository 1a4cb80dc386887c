"""Read PyTorch checkpoints without PyTorch: the tensors of a state dict as numpy arrays.

Two formats are supported. Since PyTorch 1.6 a checkpoint is a zip archive of one pickle and one uncompressed record
for each storage. Before, it was a sequence of pickles (magic number, protocol, system, content, storage keys) followed
by the storages. In both, the content refers to storages, and tensors are views of storages.

The pickles are read by `handtailor_jax.mano.safe_pickle`, so that nothing in the file is executed.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.torch_tensors import (
    OFFICIAL,
    UNDAMAGED,
    Problem,
    Storage,
    arrays_of,
    is_allowed,
    state_dict_of,
    storages_of,
)
from handtailor_jax.mano.safe_pickle import ForeignGlobal, Limits, Unpickled, UnreadablePickle, unpickle

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_LIMITS = Limits(opcodes=2_000_000, text=128 * 2**20)
_MOST_PICKLED = 64 * 2**20
_MOST_RECORDS = 100_000
_DIRECTORY_ENTRY = b"PK\x01\x02"
_CHUNK = 2**20


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
    try:
        if Path(path).is_dir():
            raise Problem(f"this is a folder; {OFFICIAL}")
        try:
            with Path(path).open("rb") as file:
                return _read(file, os.fstat(file.fileno()).st_size)
        except FileNotFoundError:
            raise Problem(f"no such file; {OFFICIAL}") from None
        except OSError as error:
            raise Problem(f"cannot be read ({error.strerror or error}); check the path and its permissions") from None
    except Problem as problem:
        raise InputError(f"{os.fspath(path)}: {problem}") from None


def _read(file: io.BufferedIOBase, size: int) -> dict[str, npt.NDArray[Any]]:
    if size == 0:
        raise Problem(f"the file is empty; {UNDAMAGED}")
    try:
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        return _read_zip(file, size) if is_zip else _read_legacy(file, size)
    except (Problem, OSError):
        raise
    except ForeignGlobal as error:
        raise Problem(
            f"refers to {str(error)[:80]!r}, which a state dict of numbers does not need; nothing was executed, "
            "save a plain state dict"
        ) from None
    except UnreadablePickle as error:
        raise Problem(f"damaged or no PyTorch checkpoint (its pickle {error}); {UNDAMAGED}") from None
    except (MemoryError, RecursionError):
        raise Problem(f"asks for more memory or depth than a checkpoint needs; {UNDAMAGED}") from None
    except Exception as error:  # zipfile has no exhaustive list of its errors
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise Problem(f"damaged or no PyTorch checkpoint ({reason}); {UNDAMAGED}") from None


def _unpickle(data: bytes, start: int = 0) -> Unpickled:
    return unpickle(data, is_allowed, _LIMITS, start=start, references=True)


def _read_zip(file: io.BufferedIOBase, size: int) -> dict[str, npt.NDArray[Any]]:
    # Checked first, because zipfile makes an object of about 1 kB of every entry.
    if _occurrences(file, _DIRECTORY_ENTRY) > _MOST_RECORDS:
        raise Problem(f"has more than {_MOST_RECORDS} records; {UNDAMAGED}")
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        # A checkpoint has neither. Without compression and overlap no record is larger than the file.
        if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
            raise Problem(f"has compressed records, which torch.save never writes; {OFFICIAL}")
        if sum(info.file_size for info in records.values()) > size:
            raise Problem(f"its records overlap; {UNDAMAGED}")
        contents = [name for name in records if name.endswith("/data.pkl")]
        if len(contents) != 1:
            raise Problem(f"a zip file, but no PyTorch checkpoint (it has {len(contents)} data.pkl); {OFFICIAL}")
        if records[contents[0]].file_size > _MOST_PICKLED:
            raise Problem(f"its data.pkl has more than {_MOST_PICKLED} bytes; {UNDAMAGED}")
        folder = contents[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in records else b"little"
        if order not in (b"little", b"big"):
            raise Problem(f"its byte order is {order[:20]!r}; {UNDAMAGED}")
        content = _unpickle(archive.read(contents[0]))
        storages_of(content.references)

        def read(storage: Storage) -> bytes:
            name = f"{folder}data/{storage.key}"
            if name not in records:
                raise Problem(f"lacks the record {storage.key[:40]!r} that a tensor refers to; {UNDAMAGED}")
            return archive.read(name)

        return arrays_of(state_dict_of(content.value), read, order == b"big", size)


def _occurrences(file: io.BufferedIOBase, pattern: bytes) -> int:
    """Count a pattern in a file and return to the file's start."""
    count, tail = 0, b""
    while chunk := file.read(_CHUNK):
        count += (tail + chunk).count(pattern)
        tail = chunk[-(len(pattern) - 1) :]
    file.seek(0)
    return count


def _read_legacy(file: io.BufferedIOBase, size: int) -> dict[str, npt.NDArray[Any]]:
    head = file.read(_MOST_PICKLED)
    try:
        magic = _unpickle(head)
    except UnreadablePickle:
        raise Problem(f"no PyTorch checkpoint; {OFFICIAL}") from None
    if type(magic.value) is not int or magic.value != _MAGIC:
        raise Problem(f"no PyTorch checkpoint; {OFFICIAL}")
    protocol = _unpickle(head, magic.end)
    if type(protocol.value) is not int or protocol.value != _PROTOCOL:
        found = str(protocol.value)[:20] if type(protocol.value) is int else f"a {type(protocol.value).__name__}"
        raise Problem(f"has the unknown format version {found}; save it again with a current PyTorch")
    system = _unpickle(head, protocol.end)
    content = _unpickle(head, system.end)
    keys = _unpickle(head, content.end)
    big_endian = isinstance(system.value, dict) and system.value.get("little_endian") is False
    stored = _stored_runs(file, size, keys, storages_of(content.references), "big" if big_endian else "little")

    def read(storage: Storage) -> bytes:
        if storage.key not in stored:
            raise Problem(f"lacks the data that a tensor refers to; {UNDAMAGED}")
        return stored[storage.key]

    return arrays_of(state_dict_of(content.value), read, big_endian, size)


def _stored_runs(
    file: io.BufferedIOBase, size: int, keys: Unpickled, storages: dict[str, Storage], order: Any
) -> dict[str, bytes]:
    """Read the numbers after the pickles of the older format by the name of their storage."""
    file.seek(keys.end)
    if type(keys.value) is not list:
        raise Problem(f"has no list of storages; {UNDAMAGED}")
    stored: dict[str, bytes] = {}
    for key in keys.value:
        storage = storages.get(key) if type(key) is str else None
        if storage is None:
            raise Problem(f"holds data that nothing refers to; {UNDAMAGED}")
        count = int.from_bytes(file.read(8), order, signed=True)
        if count != storage.count:
            raise Problem(f"a storage holds {count} numbers instead of {storage.count}; {UNDAMAGED}")
        if count * storage.itemsize > size - file.tell():
            raise Problem(f"the file is cut short; {UNDAMAGED}")
        stored[key] = file.read(count * storage.itemsize)
    return stored

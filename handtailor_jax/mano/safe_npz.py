"""Read npz archives from strangers: sizes are checked before anything is decompressed, pickles are never read."""

import io
import math
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError

Arrays = dict[str, npt.NDArray[Any]]

MOST_BYTES = 256 * 2**20
"""Default bound on the size of an archive and of its arrays, in bytes."""

_MOST_MEMBERS = 1000
_LONGEST_HEADER = 1000
_MOST_DIMENSIONS = 32
_DIRECTORY_ENTRY = b"PK\x01\x02"


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
    try:
        size = Path(path).stat().st_size
        if size > most_bytes:
            raise InputError(f"the file has {size} bytes; at most {most_bytes} expected; store fewer or smaller arrays")
        return parse_npz(Path(path).read_bytes(), names, most_bytes=most_bytes)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{os.fspath(path)}: cannot be read ({reason}); check the path and its permissions") from None
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from None


def parse_npz(content: bytes, names: Collection[str] | None = None, *, most_bytes: int = MOST_BYTES) -> Arrays:
    """Read arrays from the bytes of an npz file.

    The arguments are those of `read_npz`.

    Raises:
        InputError: if the archive is damaged, too large, or holds Python objects; the message names no file.
    """
    # Checked first, because zipfile makes an object of about 1 kB of every entry.
    if content.count(_DIRECTORY_ENTRY) > _MOST_MEMBERS:
        raise InputError(f"has more than {_MOST_MEMBERS} members; store fewer arrays")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = {name: info for name, info in members.items() if names is None or name in names}
            size = sum(info.file_size for info in wanted.values())
            if size > most_bytes:
                raise InputError(f"its arrays take {size} bytes; at most {most_bytes} expected; store smaller arrays")
            return {name: _read_member(archive, info, name) for name, info in wanted.items()}
    except InputError:
        raise
    except (MemoryError, RecursionError):
        raise InputError("asks for more memory or depth than its arrays need; get an undamaged copy") from None
    except Exception as error:  # zipfile, zlib and numpy's header parser have no exhaustive list of their errors
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"damaged or cut short ({reason}); get an undamaged copy of the file") from None


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> npt.NDArray[Any]:
    # zipfile bounds what it decompresses at a time for this method only.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"array {name[:80]!r} has an unusual compression; save it with numpy.savez_compressed")
    with archive.open(info) as member:
        shape, fortran, dtype = _read_header(member, name)
        size = math.prod(shape) * dtype.itemsize
        if member.tell() + size != info.file_size:
            raise InputError(
                f"array {name[:80]!r} takes {size} bytes by its header, but {info.file_size - member.tell()} are "
                "stored; get an undamaged copy of the file"
            )
        raw = member.read(size + 1)  # one more byte makes zipfile compare the checksum
    if len(raw) != size:
        raise InputError(f"array {name[:80]!r} is cut short; get an undamaged copy of the file")
    array = np.frombuffer(bytearray(raw), dtype) if raw else np.zeros(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _read_header(member: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, column-major order and element type of an array."""
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise InputError(f"array {name[:80]!r} has format version {version}; save plain arrays with numpy.savez")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(member, max_header_size=_LONGEST_HEADER)
    if dtype.hasobject:
        raise InputError(f"array {name[:80]!r} is a pickled object, which is not read; save plain arrays")
    if dtype.kind not in "biufSU":
        raise InputError(f"array {name[:80]!r} has elements of type {str(dtype)[:80]}; save plain numbers or text")
    if len(shape) > _MOST_DIMENSIONS or any(type(size) is not int or size < 0 for size in shape):
        raise InputError(f"array {name[:80]!r} has an impossible shape; get an undamaged copy of the file")
    return shape, fortran, dtype

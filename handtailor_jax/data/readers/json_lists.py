"""JSON lists of numbers as arrays on disk: FreiHAND's lists are over a gigabyte of text, so each is converted once."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.results import appearing

_CHUNK = 1 << 22  # bytes
_LONGEST = 1000  # bytes of a number with the space around it


class DamagedListError(Exception):
    """The list is damaged; the message says how."""


def converted_list(
    path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, cache: Path | None, remedy: str, count: int = -1
) -> npt.NDArray[Any]:
    """Return a JSON list as an array (entries, *shape) mapped into memory.

    The name of the array file contains size and time of the list, so the array of a changed list is not found.

    Args:
        path: JSON list.
        shape: shape of an entry; with a known `count`, one of its sizes may be -1 for any.
        dtype: type of the numbers.
        cache: folder of the array file; .handtailor_cache next to the list if None.
        remedy: end of error messages about a missing or damaged list.
        count: number of entries; -1 for any.

    Raises:
        InputError: if the list is missing or damaged, or the array file cannot be written.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): {remedy}") from None
    folder = path.parent / ".handtailor_cache" if cache is None else cache
    prefix = f"{path.resolve().parent.name}.{path.stem}."
    file = folder / f"{prefix}{stat.st_size}.{stat.st_mtime_ns}.npy"
    try:
        if not file.is_file():
            _write(list_numbers(path, dtype), file, prefix)
        numbers = np.load(file, mmap_mode="r", allow_pickle=False)
    except DamagedListError as error:
        raise InputError(f"{path}: {error}: {remedy}") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be converted in {folder} ({reason}): set the option cache") from None
    except (ValueError, EOFError):
        raise InputError(f"{file}: is damaged: delete it; it is made again") from None
    try:
        return numbers.reshape(count, *shape)
    except ValueError:
        entries = f"{'' if count == -1 else f'{count} '}entries of {' x '.join(map(str, shape)).replace('-1', 'n')}"
        raise InputError(f"{path}: {len(numbers)} numbers are not {entries} as in FreiHAND v2: {remedy}") from None


def list_numbers(path: Path, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return all numbers of a JSON list in one row, whatever its nesting. Python objects would take several gigabytes.

    Raises:
        DamagedListError: if the file is not a complete list of finite numbers.
    """
    pieces, rest, depth = [], b"", 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            depth += chunk.count(b"[") - chunk.count(b"]")
            # The last number of a chunk may continue in the next one.
            head, _, rest = (rest + chunk.translate(None, b"[]")).rpartition(b",")
            pieces.append(_parsed(head, dtype))
            if len(rest) > _LONGEST:
                raise DamagedListError("is not a list of numbers")
    if depth != 0:
        raise DamagedListError("is cut short or damaged")
    numbers = np.concatenate([*pieces, _parsed(rest, dtype)])
    if not numbers.size:
        raise DamagedListError("has no entries")
    if not np.isfinite(numbers).all():
        raise DamagedListError("has a value that is not a finite number")
    return numbers


def _parsed(text: bytes, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    if not text.strip():
        return np.zeros(0, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns of text that is not a number
        try:
            return np.fromstring(text, dtype, sep=",")
        except (DeprecationWarning, ValueError):
            raise DamagedListError("has a value that is not a number") from None


def _write(numbers: npt.NDArray[Any], file: Path, prefix: str) -> None:
    """Write the array file completely or not at all, and remove outdated ones."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with appearing(file) as temporary:
        np.save(temporary, numbers)
    for other in file.parent.iterdir():
        if other.name.startswith(prefix) and other.suffix == ".npy" and other != file:
            other.unlink(missing_ok=True)

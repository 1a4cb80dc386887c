"""JSON lists of numbers as arrays on disk: FreiHAND's lists are over a gigabyte of text, so each is converted once."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.results import appearing

_CHUNK = 1 << 22  # characters; an entry with all vertices of a hand has about 60,000
_SPACE = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s,]*")


class DamagedListError(Exception):
    """The list is damaged; the message says how."""


def converted_list(
    path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, cache: Path | None, remedy: str
) -> npt.NDArray[Any]:
    """Return a JSON list as an array (entries, *shape) mapped into memory.

    The name of the array file contains size and time of the list, so the array of a changed list is not found.

    Args:
        path: JSON list.
        shape: shape of an entry; a 0 accepts any size.
        dtype: type of the numbers.
        cache: folder of the array file; .handtailor_cache next to the list if None.
        remedy: end of error messages about a missing or damaged list.

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
            _convert(path, shape, dtype, file, prefix)
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except DamagedListError as error:
        raise InputError(f"{path}: {error}: {remedy}") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be converted in {folder} ({reason}): set the option cache") from None
    except (ValueError, EOFError):
        raise InputError(f"{file}: is damaged: delete it; it is made again") from None
    if array.dtype != dtype or not _matches(array.shape[1:], shape):
        raise InputError(f"{file}: does not hold {path.name}: delete it; it is made again")
    return array


def _convert(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, file: Path, prefix: str) -> None:
    """Write the array file completely or not at all, and remove outdated ones."""
    rows: list[npt.NDArray[Any]] = []
    for number, entry in enumerate(list_entries(path)):
        try:
            row = np.asarray(entry, dtype)
        except (TypeError, ValueError, OverflowError):
            raise DamagedListError(f"entry {number} has a value that is not a number") from None
        if not _matches(row.shape, shape) or (rows and row.shape != rows[0].shape):
            wanted = " x ".join(str(size or "n") for size in shape)
            found = " x ".join(map(str, row.shape)) or "a number"
            raise DamagedListError(f"entry {number} is {found}, not {wanted} as in FreiHAND v2")
        if not np.isfinite(row).all():
            raise DamagedListError(f"entry {number} has a value that is not a finite number")
        rows.append(row)
    if not rows:
        raise DamagedListError("has no entries")
    file.parent.mkdir(parents=True, exist_ok=True)
    with appearing(file) as temporary:
        np.save(temporary, np.stack(rows))
        for outdated in file.parent.iterdir():
            if outdated.name.startswith(prefix) and outdated.suffix == ".npy":
                outdated.unlink(missing_ok=True)


def _matches(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(found) == len(wanted) and all(b in (0, a) for a, b in zip(found, wanted, strict=True))


def list_entries(path: Path) -> Iterator[Any]:
    """Yield the entries of a JSON list one by one, because all of them as objects would take several gigabytes."""
    decoder = json.JSONDecoder()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_CHUNK).lstrip()
            if text and text[0] != "[":
                raise DamagedListError("is not a list")
            at = 1
            while True:
                at = _skip(_BETWEEN, text, at)
                if text[at : at + 1] == "]":
                    return
                entry = None
                try:
                    entry, end = decoder.raw_decode(text, at)
                    # A number at the end of the chunk may continue: 0.1 may be the beginning of 0.12.
                    end = _skip(_SPACE, text, end)
                    complete = text[end : end + 1] in (",", "]")
                except ValueError:
                    complete = False
                if complete:
                    yield entry
                    at = end
                    continue
                if len(text) - at > _CHUNK:
                    raise DamagedListError("is not a list of numbers")
                more = file.read(_CHUNK)
                if not more:
                    raise DamagedListError("is cut short or damaged")
                text, at = text[at:] + more, 0
    except (UnicodeDecodeError, RecursionError):
        raise DamagedListError("is not a list of numbers") from None


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()

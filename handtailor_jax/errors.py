"""Errors in user input, and functions that raise them: reading of files and JSON, checks of arrays and fields."""

import contextlib
import difflib
import errno
import importlib
import json
import os
import stat
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class InputError(ValueError):
    """Error in the input; the message is one line with the wrong value, the expected one and the remedy.

    If an argument is wrong, the message begins with its name, which commands spell as an option (`commands.spelling`).
    """


class InputWarning(UserWarning):
    """Warning about doubtful input, which is used all the same; commands print it as one line."""


def warn(text: str) -> None:
    """Issue an `InputWarning`."""
    warnings.warn(InputWarning(text), stacklevel=2)


def imported(module: str, use: str, remedy: str) -> Any:
    """Import a package that may be missing; `use` says what needs it, `remedy` how it is installed.

    Raises:
        InputError: If it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{use} ({error}): {remedy}") from None


def install(extra: str) -> str:
    """Return the command that installs an extra of this package, which is in no package registry."""
    return f"pip install '.[{extra}]' in this project's folder"


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Prefix the message of an `InputError` that is raised inside the block with the name of a file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from None


def read_file(path: str | os.PathLike[str], most_bytes: int, remedy: str) -> bytes:
    """Read a whole file.

    Raises:
        InputError: If the file is missing, empty, too large or not a regular file; the message does not name the file.
    """
    try:
        size = check_file(path)
        if size > most_bytes:
            raise InputError(f"the file has {size} bytes; at most {most_bytes} expected; {remedy}")
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"no such file; {remedy}") from None
    except IsADirectoryError:
        raise InputError(f"this is a folder; {remedy}") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error}); check the path and its permissions") from None
    if not content:
        raise InputError(f"the file is empty; {remedy}")
    return content


def check_file(path: str | os.PathLike[str]) -> int:
    """Return the size of a file in bytes.

    Raises:
        OSError: If it cannot be opened, or is a folder, or a pipe or device, from which a read may never end.
    """
    try:
        status = Path(path).stat()
    except ValueError as error:  # the path contains a zero byte
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or device, not a file", os.fspath(path))
    Path(path).open("rb").close()
    return status.st_size


def read_json(path: str | os.PathLike[str], remedy: str) -> Any:
    """Read a JSON file of at most 256 MiB, with or without a byte order mark.

    Raises:
        InputError: If it cannot be read; the message begins with the path.
    """
    with naming(path):
        content = read_file(path, 2**28, remedy)
        if not content.strip():
            raise InputError(f"the file is empty; {remedy}")
        try:
            return json.loads(content, object_pairs_hook=_object)
        except InputError as error:
            raise InputError(f"{error}; {remedy}") from None
        except json.JSONDecodeError as error:
            raise InputError(f"is not complete JSON (line {error.lineno}: {error.msg}); {remedy}") from None
        except UnicodeDecodeError:
            raise InputError(f"cannot be read as text; {remedy}") from None
        except RecursionError:
            raise InputError(f"is nested too deeply; {remedy}") from None
        except ValueError:
            raise InputError(f"holds a number of thousands of digits; {remedy}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"has the field {twice[:40]!r} twice in one object")
    return found


def check_range(name: str, values: Any, low: int | float, high: int | float = 1e9) -> None:
    """Raise an `InputError` unless a number, or every number of a tuple, lies between `low` and `high`."""
    for value in values if isinstance(values, tuple) else (values,):
        if not low <= value <= high:
            expected = f"at least {low:g}" if value < low and high == 1e9 else f"{low:g} to {high:g}"
            raise InputError(f"{name} is {str(value)[:40]}: give {expected}")


def numbers(name: str, values: Any) -> Any:
    """Convert nested sequences of numbers to a float64 array.

    Raises:
        InputError: If a value is not a number, or the rows differ in length; the message begins with `name`.
    """
    if type(values).__name__.endswith("Tracer"):
        raise InputError(f"{name} is traced by jit, vmap or grad, in which this function cannot be used: use tailor")
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan)  # np.asarray would drop the mask
    try:
        # NumPy would parse text and convert true to 1.
        plain = isinstance(values, np.ndarray) and values.dtype.kind not in "OSUbc"
        if plain or not _holds(values, (str, bytes, bool, complex)):
            return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass
    raise InputError(f"{name} must hold numbers only, all rows of one length")


def _holds(values: Any, kinds: tuple[type, ...]) -> bool:
    """Return whether nested sequences contain a value of one of these types."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return any(_holds(value, kinds) for value in values)
    return isinstance(values, kinds)


def checked_array(
    name: str, values: Any, shape: tuple[int, ...], ignored: npt.NDArray[np.bool_] | None = None, most: float = 1e9
) -> FloatArray:
    """Convert nested sequences of numbers to a float32 array of a shape.

    The values of `ignored` rows may be anything; those that are not finite become 0.

    Raises:
        InputError: If the shape differs, or a value is not finite or `most` or more in magnitude; the message begins
            with `name`.
    """
    array = numbers(name, values)
    if array.shape != shape:
        expected, got = (" x ".join(map(str, s)) + " numbers" if s else "one number" for s in (shape, array.shape))
        raise InputError(f"{name} must be {expected}, not {got}")
    finite = np.isfinite(array) & (np.abs(array) < most)
    if ignored is not None:
        finite |= ignored.reshape(-1, *([1] * (array.ndim - 1)))
    if not finite.all():
        correct = "correct it, or leave it out if it is unknown"
        remedy = correct if ignored is None else "give missing keypoints a confidence of 0"
        raise InputError(f"{name} holds NaN, infinite or absurdly large numbers: {remedy}")
    return np.where(np.isfinite(array), array, 0.0).astype(np.float32)


def checked_times(name: str, times: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return times in seconds as an array of a shape, in float64 because float32 cannot hold times since 1970.

    Raises:
        InputError: If the shape differs, or a time is not finite.
    """
    checked_array(name, times, shape, most=1e12)
    return np.asarray(numbers(name, times))


def check_fields(path: Path, entry: Iterable[str], fields: Collection[str], others: Collection[str]) -> None:
    """Warn about names in an entry of a file that are neither in `fields` nor in `others`.

    Raises:
        InputError: If such a name resembles the name of a field.
    """
    for key in set(entry).difference(fields, others):
        nearest = difflib.get_close_matches(key.casefold(), fields, 1, 0.75)
        if nearest:
            raise InputError(f"{key[:40]!r} is not a field: did you mean {nearest[0]}?")
        warn(f"{path}: {key[:40]!r} is not a field that is read: see docs/cli.md for the fields")

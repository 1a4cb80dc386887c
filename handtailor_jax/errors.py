"""Errors in a user's input: how commands report them, and checks of arrays of numbers."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import numpy.typing as npt

P = ParamSpec("P")
FloatArray = npt.NDArray[np.float32]


class InputError(ValueError):
    """Error in the input: one line that says what is wrong with which value, what is expected and what to do."""


@contextlib.contextmanager
def naming(path: str | os.PathLike[str], kind: type[InputError] = InputError) -> Iterator[None]:
    """Put the name of a file before the message of an `InputError` that is raised inside the block."""
    try:
        yield
    except InputError as error:
        raise kind(f"{os.fspath(path)}: {error}") from None


def read_file(path: str | os.PathLike[str], most_bytes: int, remedy: str) -> bytes:
    """Read a whole file.

    Raises:
        InputError: If it is missing, empty, too large or a folder; the message ends with the remedy, without the path.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"this is a folder; {remedy}")
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise InputError(f"the file has {size} bytes; at most {most_bytes} expected; {remedy}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"no such file; {remedy}") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error}); check the path and its permissions") from None
    if not content:
        raise InputError(f"the file is empty; {remedy}")
    return content


def command(program: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorate the main function of a program, so that expected errors end it with one line and an exit status.

    An `InputError` is printed to stderr after the program's name and exits with status 2; Ctrl-C exits with status 130.
    """

    def decorate(main: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                main(*args, **kwargs)
            except InputError as error:
                print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
                raise SystemExit(2) from None
            except KeyboardInterrupt:
                raise SystemExit(130) from None

        return run

    return decorate


def numbers(name: str, values: Any) -> Any:
    """Convert nested sequences of numbers to a float64 array.

    Raises:
        InputError: If they hold anything else, or rows of different lengths; the message begins with `name`.
    """
    try:
        # NumPy would parse text and convert true to 1.
        if np.asarray(values).dtype.kind not in "OSUbc" or not _holds(values, (str, bytes, bool, complex)):
            return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass
    raise InputError(f"{name} must hold numbers only, all rows of one length")


def _holds(values: Any, kinds: tuple[type, ...]) -> bool:
    """Return whether nested sequences contain a value of these types."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return any(_holds(value, kinds) for value in values)
    return isinstance(values, kinds)


def checked_array(
    name: str, values: Any, shape: tuple[int, ...], ignored: npt.NDArray[np.bool_] | None = None
) -> FloatArray:
    """Convert nested sequences of numbers to a float32 array of a shape.

    The values of `ignored` rows may be anything; those that are not finite become 0.

    Raises:
        InputError: If the shape differs or a value is not finite or absurdly large; the message begins with `name`.
    """
    array = numbers(name, values)
    if array.shape != shape:
        expected, got = (" x ".join(str(n) for n in s) or "one number" for s in (shape, array.shape))
        raise InputError(f"{name} must be {expected} numbers, not {got}")
    finite = np.isfinite(array) & (np.abs(array) < 1e9)
    if ignored is not None:
        finite |= ignored.reshape(-1, *([1] * (array.ndim - 1)))
    if not finite.all():
        missing = name == "keypoints_2d"
        remedy = "give missing keypoints a confidence of 0" if missing else "leave it out if it is unknown"
        raise InputError(f"{name} holds NaN, infinite or absurdly large numbers: {remedy}")
    return np.where(np.isfinite(array), array, 0.0).astype(np.float32)

"""Errors in a user's input: how commands report them, and checks of arrays of numbers."""

import contextlib
import functools
import io
import json
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import numpy.typing as npt

P = ParamSpec("P")
FloatArray = npt.NDArray[np.float32]


class InputError(ValueError):
    """Error in the input: one line that says what is wrong with which value, what is expected and what to do."""


class InputWarning(UserWarning):
    """Doubt about the input, which is used nevertheless; commands print it as one line."""


def warn(text: str) -> None:
    """Issue an `InputWarning`."""
    warnings.warn(InputWarning(text), stacklevel=3)


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
        InputError: If it is missing, empty, too large or no regular file; the message ends with the remedy, without the
            path.
    """
    path = Path(path)
    try:
        status = path.stat()
        check_regular(status, remedy)
        if status.st_size > most_bytes:
            raise InputError(f"the file has {status.st_size} bytes; at most {most_bytes} expected; {remedy}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"no such file; {remedy}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read ({reason}); check the path and its permissions") from None
    if not content:
        raise InputError(f"the file is empty; {remedy}")
    return content


def check_regular(status: os.stat_result, remedy: str) -> None:
    """Raise an `InputError` for a folder, and for pipes and devices, which may have no end."""
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"this is a folder; {remedy}")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"this is a pipe or device; save it as a file; {remedy}")


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
            return json.loads(content)
        except json.JSONDecodeError as error:
            raise InputError(f"is not complete JSON (line {error.lineno}: {error.msg}); {remedy}") from None
        except UnicodeDecodeError:
            raise InputError(f"cannot be read as text; {remedy}") from None
        except RecursionError:
            raise InputError(f"is nested too deeply; {remedy}") from None
        except ValueError:
            raise InputError(f"holds a number of thousands of digits; {remedy}") from None


def command(program: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorate the main function of a program, so that expected errors end it with one line and an exit status.

    An `InputError`, an error of the operating system and a lack of memory are printed to stderr after the program's
    name and exit with status 2; Ctrl-C exits with status 130, and a reader of stdout that has ended with 141.
    """

    def decorate(main: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                with _printing(program):
                    main(*args, **kwargs)
            except InputError as error:
                reason, status = str(error), 2
            except BrokenPipeError:
                reason, status = "", 141
            except OSError as error:
                names = [
                    os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
                ]
                reason, status = ": ".join([*names, error.strerror or str(error)]), 2
            except MemoryError:
                reason, status = "not enough memory: give smaller inputs", 2
            except KeyboardInterrupt:
                reason, status = "", 130
            else:
                return
            if reason:
                print(f"{program}: error: {' '.join(reason.split())}", file=sys.stderr)
            raise SystemExit(status)

        return run

    return decorate


@contextlib.contextmanager
def _printing(program: str) -> Iterator[None]:
    """Print any text to any stdout, and warnings about the input in one line each; flush stdout at the end."""
    show = warnings.showwarning

    def show_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, InputWarning):
            print(f"{program}: warning: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            show(message, category, *where, **more)

    if sys.stdout is None:
        sys.stdout = io.StringIO()  # it is closed, as by `>&-`
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = show_line
        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except OSError:
            try:
                sys.stdout.flush()
            except OSError:  # Python writes the rest at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


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

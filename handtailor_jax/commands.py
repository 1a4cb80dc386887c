"""Functions that all programs share: parsing command lines, reporting expected errors, caching compiled programs."""

import contextlib
import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from handtailor_jax.errors import InputError, InputWarning

P = ParamSpec("P")

_MEMORY = "not enough memory: give smaller inputs"
_UNION = re.compile(r"Error parsing (\S+): no type matching .* could be instantiated from \[(.*?)\]; expected")
_HEADINGS = {"Argument helptext:": "expected", "Perhaps you meant:": "perhaps you meant", "Missing from": "missing is"}
# Borders and dividers of tyro's error boxes; without Unicode the boxes have dividers only.
_RULE = re.compile(r"^(?:[╭╰].*|[│ ]*─{4}.*| *-{4,} *)$", re.MULTILINE)


def command(program: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Return a decorator of a program's main function that turns expected errors into one line and an exit status.

    After an `InputError`, an error of the operating system or a lack of memory, the line is printed to stderr and the
    status is 2. After Ctrl-C the status is 130, after a broken pipe at stdout 141. Any other error is a bug of this
    package: its traceback ends with a request to report it.
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
            except UnicodeEncodeError as error:
                reason, status = f"{str(error.object)[:200]!r}: the name is not UTF-8: choose another", 2
            except MemoryError:
                reason, status = _MEMORY, 2
            except KeyboardInterrupt:
                reason, status = "", 130
            except Exception as error:
                if "RESOURCE_EXHAUSTED" not in str(error):  # XLA's status for a lack of memory
                    error.add_note(f"This is a bug in {program}, not in its input: please report it with this text")
                    raise
                reason, status = _MEMORY, 2
            else:
                return
            if reason:
                print(f"{program}: error: {' '.join(reason.split())}", file=sys.stderr)
            raise SystemExit(status)

        return run

    return decorate


@contextlib.contextmanager
def _printing(program: str) -> Iterator[None]:
    """Escape text that stdout cannot encode, print each `InputWarning` as one line, and flush stdout at the end."""
    show = warnings.showwarning

    def show_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, InputWarning):
            print(f"{program}: warning: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            show(message, category, *where, **more)

    if sys.stdout is None:
        sys.stdout = io.StringIO()  # stdout is closed, as by `>&-` in a shell
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("default", InputWarning)
        warnings.showwarning = show_line
        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except OSError:
            try:
                sys.stdout.flush()
            except OSError:  # at exit Python flushes the rest, which the null device takes
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def parse(kind: Any, program: str, arguments: Sequence[str] | None, **options: Any) -> Any:
    """Parse a command line with tyro; further keywords are passed to `tyro.cli`.

    Raises:
        InputError: If the command line is invalid; the message is tyro's, in one line.
    """
    import tyro

    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            return tyro.cli(kind, prog=program, args=arguments, **options)
        except SystemExit as end:
            if not end.code:
                raise
    parts = []
    for section in _RULE.split(said.getvalue())[1:]:
        # The first paragraph is the message, or a heading with the options below it.
        lines = [line.strip("│ ") for line in section.strip().splitlines()]
        paragraph = lines[: lines.index("")] if "" in lines else lines
        for heading, short in _HEADINGS.items():
            if paragraph and paragraph[0].startswith(heading):
                paragraph = [short, *(paragraph[1:2] if heading != "Missing from" else paragraph[1:])]
        parts.append(" ".join(paragraph).rstrip("."))
    text = re.sub("'None', |, 'None'", "", "; ".join(filter(None, parts)))
    raise InputError(_UNION.sub(r"\1 is given as \2: give", text))


def refuse_idle(reasons: Mapping[str, object]) -> None:
    """Raise an `InputError` for the first option that is given without effect; keys are messages, values conditions."""
    for reason, given in reasons.items():
        if given:
            raise InputError(f"{reason}: leave it out")


def cache_folder() -> Path | None:
    """Return the folder of this package in the user's cache; None if the user has no home folder."""
    home = os.path.expanduser("~/.cache")  # noqa: PTH111 - Path.home raises if there is none
    cache = os.environ.get("XDG_CACHE_HOME") or home
    return None if cache.startswith("~") else Path(cache) / "handtailor_jax"


@functools.cache
def _nothing_compiled() -> bool:
    """Return whether the cache was empty when `keep_compiled_programs` was called; loading a hand compiles already."""
    folder = cache_folder()
    return "JAX_COMPILATION_CACHE_DIR" not in os.environ and folder is not None and not folder.is_dir()


def keep_compiled_programs() -> None:
    """Keep compiled programs between runs in the user's cache folder, because compiling takes half a minute."""
    import jax

    _nothing_compiled()  # before anything compiles
    folder = cache_folder()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def announce_compiling() -> None:
    """Print, if nothing had been cached before this process, that the first run takes longer."""
    if _nothing_compiled():
        print("The first run compiles for a minute or two; later runs start quickly.", file=sys.stderr)


def finish(skipped: int, total: int, out: Path, note: str = "") -> None:
    """Print where the results are, if there are any; end with status 2 if inputs were skipped."""
    if skipped < total:
        print(f"Results of {total - skipped} of {total} inputs are in {out}.{note}")
    if skipped:
        raise SystemExit(2)

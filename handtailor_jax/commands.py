"""Functions that all programs share: parsing command lines, reporting expected errors, caching compiled programs."""

import contextlib
import dataclasses
import functools
import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from handtailor_jax.errors import InputError, InputWarning

P = ParamSpec("P")

_SILENT_SECONDS = 3.0  # that a program compiles before a line is printed
_MEMORY = "not enough memory: give smaller inputs"
_UNION = re.compile(r"Error parsing (\S+): no type matching .* could be instantiated from \[(.*?)\]; expected")
_HEADINGS = {"Argument helptext:": "expected", "Perhaps you meant:": "perhaps you meant", "Missing from": "missing is"}
# Start of a message about an argument; tyro puts the part of a config before the message of the part's `__post_init__`.
_ARGUMENT = re.compile(r"(?:Error parsing \w+\.([\w.]+): )?(?:\w+Config: )?([a-z][\w.]*)(?= )")
_REQUIRED = re.compile(r"((?:--\S+ )?(?:[A-Z]+|\{.*?\})) (.*?)\.? \(required\)")  # name and help of a missing option
_WORD = re.compile(r"(?<![\w./-])[a-z]\w*(?:\.\w+)*(?![\w/-])")
# Borders and dividers of tyro's error boxes; without Unicode the boxes have dividers only.
_RULE = re.compile(r"^(?:[╭╰].*|[│ ]*─{4}.*| *-{4,} *)$", re.MULTILINE)


def command(program: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Return a decorator of a program's main function that turns expected errors into one line and an exit status.

    After an `InputError`, an error of the operating system or a lack of memory, the line is printed to stderr and the
    status is 2. After Ctrl-C the status is 130, after the end of a reader of stdout or stderr 141. Any other error is a
    bug of this package: its traceback ends with a request to report it.
    """

    def decorate(main: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                with _printing(program):
                    main(*args, **kwargs)
            except InputError as error:
                reason, status = str(error), 2
            except ConnectionError:  # a broken pipe, or the socket that some programs give as stdout
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
                with contextlib.suppress(OSError):
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

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-` in a shell
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
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
    raise InputError(_UNION.sub(r"\1 is given as \2: give", _REQUIRED.sub(r"\1 (\2)", text)))


@contextlib.contextmanager
def spelling(config: Any) -> Iterator[None]:
    """Spell arguments as options in an `InputError` that is raised inside the block: hand_length -> --hand-length.

    Functions name the argument that is wrong first, as Python spells it. `config` is the dataclass of the command line.
    """
    try:
        yield
    except InputError as error:
        raise InputError(_spelled(str(error), list(_names(config)))) from None


@contextlib.contextmanager
def parsed(kind: Any, program: str, arguments: Sequence[str] | None, **options: Any) -> Iterator[Any]:
    """Parse a command line as `parse` does, and spell arguments as options in errors raised inside the block."""
    config = parse(kind, program, arguments, **options)
    with spelling(config):
        yield config


def _names(config: Any) -> Iterator[str]:
    for field in dataclasses.fields(config):
        yield field.name
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from (f"{field.name}.{name}" for name in _names(value))


def _spelled(text: str, names: Sequence[str]) -> str:
    """Spell the first word of a message, and words with a dot or underscore, as options if they are among the names."""
    if start := _ARGUMENT.match(text):
        part, name = start.groups()
        name = next((known for known in (f"{part}.{name}", name) if known in names), None)
        text = text if name is None else name + text[start.end() :]

    def option(word: re.Match[str]) -> str:
        spelled = word[0] in names and (word.start() == 0 or not word[0].isalpha())
        return f"--{word[0].replace('_', '-')}" if spelled else word[0]

    return _WORD.sub(option, text)


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


def _own_cache() -> Path | None:
    """Return the folder in which programs are kept, unless JAX's environment variable names another."""
    return None if "JAX_COMPILATION_CACHE_DIR" in os.environ else cache_folder()


@functools.cache
def _nothing_compiled() -> bool:
    """Return whether the cache was empty when `keep_compiled_programs` was called; loading a hand compiles already."""
    folder = _own_cache()
    return folder is not None and not folder.is_dir()


def keep_compiled_programs() -> None:
    """Keep compiled programs between runs in the user's cache folder, because compiling takes half a minute."""
    import jax

    _nothing_compiled()  # before anything compiles
    if folder := _own_cache():
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def announce_compiling() -> None:
    """Print that the first run takes longer; in later runs, print it whenever a program compiles for some seconds."""
    if _nothing_compiled():
        print("The first run compiles for a minute or two; later runs start quickly.", file=sys.stderr)
    elif _own_cache():
        _watch_compiling()


@functools.cache
def _watch_compiling() -> None:
    import jax
    from tqdm import tqdm

    timer: threading.Timer | None = None

    def announce() -> None:
        tqdm.write("Compiling for these sizes and options; later runs start quickly.", file=sys.stderr)

    def on_event(event: str, **_: object) -> None:
        nonlocal timer
        if event == "/jax/compilation_cache/compile_requests_use_cache":
            timer = threading.Timer(_SILENT_SECONDS, announce)
            timer.daemon = True
            timer.start()
        elif event == "/jax/compilation_cache/cache_hits" and timer is not None:
            timer.cancel()

    def on_duration(event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and timer is not None:
            timer.cancel()

    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)


def finish(skipped: int, total: int, out: Path, note: str = "") -> None:
    """Print where the results are, if there are any; end with status 2 if inputs were skipped."""
    if skipped < total:
        print(f"Results of {total - skipped} of {total} inputs are in {out}.{note}")
    if skipped:
        raise SystemExit(2)

"""What all programs share: how expected errors end them, and where their compiled programs are kept."""

import contextlib
import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec

from handtailor_jax.errors import InputError, InputWarning

P = ParamSpec("P")


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
            except UnicodeEncodeError as error:
                reason, status = f"{str(error.object)[:200]!r}: the name is not UTF-8: choose another", 2
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
            except OSError:  # Python writes the rest at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def keep_compiled_programs() -> None:
    """Keep compiled programs between runs in the user's cache folder, because compiling takes half a minute."""
    import jax

    home = os.path.expanduser("~/.cache")  # noqa: PTH111 - Path.home raises for users without a home
    cache = os.environ.get("XDG_CACHE_HOME") or home
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not cache.startswith("~"):
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "handtailor_jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

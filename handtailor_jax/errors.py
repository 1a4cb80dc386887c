"""Errors in a user's input, and how commands report them."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


class InputError(ValueError):
    """Error in the input: one line that says what is wrong with which value, what is expected and what to do."""


def command(program: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorate the main function of a program, so that expected errors end it with one line and an exit status.

    An `InputError` is printed to stderr and exits with status 2; Ctrl-C exits with status 130.

    Args:
        program: Name of the program at the beginning of the line.
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

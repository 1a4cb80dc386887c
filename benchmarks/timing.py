"""Shared parts of the benchmarks: interleaved timing, the markdown and JSON report, and the command line.

Times are medians over rounds. In a round every call runs once, in random order, in one process, so that a busy machine
slows down all calls alike. Compare times with each other only within one run.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import numpy.typing as npt
import tyro
from tqdm import tqdm

from handtailor_jax.errors import InputError
from handtailor_jax.results import prepare_folder, write_json

Key = TypeVar("Key", bound=Hashable)
Config = TypeVar("Config")


def seconds(call: Callable[[], Any]) -> float:
    """Return the wall-clock time in seconds of one call, including the computation of its results."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def interleaved(
    calls: Mapping[Key, Callable[[int], Any]], rounds: int, seed: int, description: str
) -> dict[Key, npt.NDArray[np.float64]]:
    """Time compiled calls in rounds.

    Args:
        calls: Functions of the round's number; they have run once before, so nothing is compiled here.
        rounds: Number of rounds.
        seed: Seed of the order within each round.
        description: Name in the progress bar.

    Returns:
        By call, (2, rounds) seconds. Row 0 is the time right after another call, whose code and constants fill the
        processor's caches (cold). Row 1 is the time of an immediate second run (warm).
    """
    shuffle = random.Random(seed).shuffle
    order = list(calls)
    times: dict[Key, list[tuple[float, float]]] = {key: [] for key in order}
    for i in tqdm(range(rounds), desc=description, leave=False):
        shuffle(order)
        for key in order:
            call = calls[key]
            times[key].append((seconds(lambda: call(i)), seconds(lambda: call(i))))  # noqa: B023
    return {key: np.asarray(values).T for key, values in times.items()}


def check_positive(config: Any, *names: str) -> None:
    """Check that the named fields, numbers or tuples of numbers, are positive and not empty.

    Raises:
        InputError: If one is not; the error names the option.
    """
    for name in names:
        values = np.atleast_1d(getattr(config, name))
        if not values.size or values.min() <= 0:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(config, name)}: give positive numbers")


def check_json(path: Path | None) -> None:
    """Check that the JSON report can be written, before anything is measured."""
    if path is not None:
        prepare_folder(path.absolute().parent, [path.name])


def publish(markdown: str, content: Mapping[str, Any], path: Path | None) -> None:
    """Print the tables and write the JSON file if one was asked for."""
    print(markdown)
    if path is not None:
        json.dumps(content, allow_nan=False)  # a NaN is a mistake of the benchmark, and not JSON
        write_json(path, content)


def command(config: type[Config], measure: Callable[[Config], Any], description: str | None) -> None:
    """Parse the command line, measure, and end bad input with one line and exit status 2."""
    try:
        measure(tyro.cli(config, description=description))
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None

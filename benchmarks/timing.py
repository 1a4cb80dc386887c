"""Shared parts of the benchmarks: interleaved timing, the markdown and JSON report, and the command line.

Times are medians over rounds. In a round every call runs once, in random order, in one process, so that a busy machine
slows down all calls alike. Compare times with each other only within one run.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import numpy.typing as npt
import tyro
from tqdm import tqdm

from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.report import environment, markdown_table
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


def check(config: Any, *positive: str) -> None:
    """Check the options of a benchmark before anything is measured.

    Args:
        config: Options; the field `json` is the path of the JSON report, or None.
        positive: Names of the fields, numbers or tuples of numbers, that must be positive and not empty.

    Raises:
        InputError: If a field is not positive, which the error names as an option, or the report cannot be written.
    """
    for name in positive:
        values = np.atleast_1d(getattr(config, name))
        if not values.size or values.min() <= 0:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(config, name)}: give positive numbers")
    if config.json is not None:
        prepare_folder(config.json.absolute().parent, [config.json.name])


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a markdown table with the keys of the rows as headings.

    Numbers below 10 have two decimals, others one, and integers none.
    """
    return markdown_table(list(rows[0]), [[_text(value) for value in row.values()] for row in rows])


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) < 10.0 else f"{value:.1f}"


def report(lines: Sequence[str], content: Mapping[str, Any], path: Path | None) -> None:
    """Publish lines and JSON content, both preceded by the device, the processor and the versions."""
    about = environment()
    heading = ", ".join(f"{key} {value}" for key, value in about.items())
    publish("\n".join([heading, "", *lines]), {"environment": about, **content}, path)


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

"""Tables, checked statements, timing, and the machine that results were measured on."""

import dataclasses
import math
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

Cell = str | float


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of results."""

    name: str
    """File name without suffix, such as table1."""
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    """Text or numbers; NaN for an empty cell."""
    notes: tuple[str, ...]
    """Lines below the table: data, protocol, ground truth that methods were given."""

    def markdown(self) -> str:
        """Return title, table and notes."""
        body = [[_text(cell) for cell in row] for row in self.rows]
        return "\n".join([f"## {self.title}", "", *markdown_table(self.header, body), "", *self.notes, ""])


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of the paper, checked on the data under evaluation."""

    statement: str
    measured: str
    holds: bool


@dataclasses.dataclass(frozen=True)
class Findings:
    """Tables, checked statements and names of images."""

    tables: tuple[Table, ...] = ()
    claims: tuple[Claim, ...] = ()
    images: tuple[str, ...] = ()

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(self.tables + other.tables, self.claims + other.claims, self.images + other.images)


def environment() -> dict[str, Any]:
    """Return device, processor and versions."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": usable_cores(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
    }


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a markdown table whose columns also line up as plain text."""
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, body)]


def milliseconds(calls: Sequence[Callable[[], Any]], rounds: int, seed: int = 0) -> list[float]:
    """Return the median warm time of each call in milliseconds, over rounds that make all calls in random order."""
    for call in calls:
        jax.block_until_ready(call())
    times: list[list[float]] = [[] for _ in calls]
    order, shuffle = list(range(len(calls))), random.Random(seed).shuffle
    for _ in range(rounds):
        shuffle(order)
        for i in order:
            jax.block_until_ready(calls[i]())
            started = time.perf_counter()
            jax.block_until_ready(calls[i]())
            times[i].append(time.perf_counter() - started)
    return [1e3 * float(np.median(each)) for each in times]


def _text(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    if math.isnan(cell):
        return ""
    return f"{cell:.3f}" if abs(cell) < 10.0 else f"{cell:.1f}"


def _processor() -> str:
    """Return the name of the processor, if the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

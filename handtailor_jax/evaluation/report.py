"""Tables, checked statements, timing, and the machine that results were measured on."""

import dataclasses
import importlib.resources
import json
import math
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np

Cell = str | float


class Table(NamedTuple):
    """A table of results."""

    name: str  # file name without suffix, such as table1
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]  # text or numbers; NaN for an empty cell
    notes: tuple[str, ...]  # lines below the table: data, protocol, ground truth that was given to the methods

    def markdown(self) -> str:
        """Return title, table and notes."""
        body = [[_text(cell) for cell in row] for row in self.rows]
        return "\n".join([f"## {self.title}", "", *markdown_table(self.header, body), "", *self.notes, ""])


class Claim(NamedTuple):
    """A statement of the paper, checked on the data under evaluation."""

    statement: str
    measured: str
    holds: bool


class Figure(NamedTuple):
    """An image beside the report."""

    file: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """Tables, checked statements, figures, and the reasons for the parts that are left out."""

    tables: tuple[Table, ...] = ()
    claims: tuple[Claim, ...] = ()
    figures: tuple[Figure, ...] = ()
    left_out: tuple[str, ...] = ()

    def __add__(self, other: "Findings") -> "Findings":
        fields = (field.name for field in dataclasses.fields(self))
        return Findings(*(getattr(self, name) + getattr(other, name) for name in fields))

    def markdown(self) -> str:
        """Return the report."""
        lines = ["# Evaluation", "", ", ".join(f"{key} {value}" for key, value in environment().items()), ""]
        lines += [table.markdown() for table in self.tables]
        if self.claims:
            lines += ["## The paper's statements on this data", "", "| statement | measured | holds |", "|---|---|---|"]
            for statement, measured, holds in self.claims:
                lines.append(f"| {statement} | {measured} | {'yes' if holds else '**no**'} |")
            lines.append("")
        for file, caption in self.figures:
            lines += [f"![{caption}]({file})", "", caption, ""]
        lines += [f"Left out: {reason}" for reason in self.left_out]
        return "\n".join(lines) + "\n"


def published(table: str) -> list[list[Any]]:
    """Return the rows of one of the paper's tables; assets/published.json names the columns."""
    text = importlib.resources.files("handtailor_jax").joinpath("assets", "published.json").read_text("utf-8")
    return json.loads(text)[table]["rows"]


def environment() -> dict[str, Any]:
    """Return the device, the processor and the versions of JAX and Python."""
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
    return "" if math.isnan(cell) else f"{cell:.3f}" if abs(cell) < 10.0 else f"{cell:.1f}"


def _processor() -> str:
    """Return the name of the processor, or its architecture if the system does not report the name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

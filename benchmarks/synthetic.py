"""Rendered training samples a second."""

import dataclasses
import time

import jax
import numpy as np
from tqdm import tqdm

from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.report import environment, markdown_table
from handtailor_jax.synthetic.dataset import SyntheticConfig, SyntheticDataset


@dataclasses.dataclass(frozen=True)
class SynthBenchmark:
    """Rendered samples a second, everything included."""

    sizes: tuple[int, ...] = (128, 256)
    """Sides of the pictures, pixels."""
    batch: int = 64
    """Samples in one call."""
    at_once: int = 8
    """Samples rendered together within it; an accelerator wants more, memory permitting."""
    rounds: int = 5
    """Calls timed; the median counts."""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Samples a second at one size."""

    size: int
    images_per_second: float
    compile_seconds: float
    """Of the first call, rendering included."""


@dataclasses.dataclass(frozen=True)
class SynthReport:
    """What `run` measured."""

    rows: tuple[Throughput, ...]

    def __str__(self) -> str:
        """A markdown table."""
        body = [[str(r.size), f"{r.images_per_second:.1f}", f"{r.compile_seconds:.0f} s"] for r in self.rows]
        about = ", ".join(f"{key} {value}" for key, value in environment().items())
        return "\n".join([about, "", *markdown_table(["pixels", "images/s", "first call"], body)])


def run(config: SynthBenchmark) -> SynthReport:
    """Renders batches of new samples on the default device.

    Raises:
        InputError: if a count is not positive or a size cannot be rendered.
    """
    for name in ("batch", "at_once", "rounds"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive")
    rows = []
    datasets = [SyntheticDataset(SyntheticConfig(size=size, images_at_once=config.at_once)) for size in config.sizes]
    with tqdm(total=len(datasets) * (config.rounds + 1), desc="bench synth", leave=False) as progress:
        for size, dataset in zip(config.sizes, datasets, strict=True):
            seconds = []
            for k in range(config.rounds + 1):
                begin = time.perf_counter()
                jax.block_until_ready(dataset.batch(np.arange(k * config.batch, (k + 1) * config.batch)))
                seconds.append(time.perf_counter() - begin)
                progress.update()
            rows.append(Throughput(size, config.batch / float(np.median(seconds[1:])), seconds[0]))
    return SynthReport(tuple(rows))

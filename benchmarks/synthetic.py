"""Rate at which training samples are rendered, from the random draw to the labelled image."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from timing import check_json, check_positive, command, publish, seconds

from handtailor_jax.evaluation.report import environment, markdown_table
from handtailor_jax.synthetic.dataset import SyntheticConfig, SyntheticDataset


@dataclasses.dataclass(frozen=True)
class SyntheticBenchmark:
    """Options of the benchmark."""

    sizes: tuple[int, ...] = (128, 256)
    """Sides of the images, pixels."""
    batch: int = 64
    """Samples in one call."""
    at_once: int = 8
    """Samples rendered together within a call; on an accelerator give more, as its memory allows."""
    rounds: int = 5
    """Timed calls after the first, which compiles; their median is reported."""
    json: Path | None = None
    """JSON file to which the results are also written."""


@dataclasses.dataclass(frozen=True)
class RenderingRate:
    """Rate of one image size."""

    size: int
    images_per_second: float
    first_call_seconds: float
    """Time of the first call, compilation included."""


def measure(config: SyntheticBenchmark) -> tuple[RenderingRate, ...]:
    """Render batches of new samples on the default device, and print the table.

    Raises:
        InputError: An option is not positive, or a size cannot be rendered.
    """
    check_positive(config, "sizes", "batch", "at_once", "rounds")
    check_json(config.json)
    rates = tuple(_rate(config, size) for size in config.sizes)
    body = [[str(r.size), f"{r.images_per_second:.1f}", f"{r.first_call_seconds:.0f} s"] for r in rates]
    about = ", ".join(f"{key} {value}" for key, value in environment().items())
    content: dict[str, Any] = {"environment": environment(), "rows": [dataclasses.asdict(rate) for rate in rates]}
    publish("\n".join([about, "", *markdown_table(["pixels", "images/s", "first call"], body)]), content, config.json)
    return rates


def _rate(config: SyntheticBenchmark, size: int) -> RenderingRate:
    dataset = SyntheticDataset(SyntheticConfig(size=size, images_at_once=config.at_once))
    first, *times = (
        seconds(lambda k=k: dataset.batch(np.arange(k * config.batch, (k + 1) * config.batch)))  # type: ignore[misc]
        for k in range(config.rounds + 1)
    )
    return RenderingRate(size, config.batch / float(np.median(times)), first)


if __name__ == "__main__":
    command(SyntheticBenchmark, measure, __doc__)

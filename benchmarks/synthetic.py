"""Rate at which training samples are rendered, from the random draw to the labelled image."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from timing import check, command, report, seconds, table

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


def measure(config: SyntheticBenchmark) -> None:
    """Render batches of new samples on the default device, and print the table.

    Raises:
        InputError: An option is not positive, or a size cannot be rendered.
    """
    check(config, "sizes", "batch", "at_once", "rounds")
    rows = [_rate(config, size) for size in config.sizes]
    report(table(rows), {"rows": rows}, config.json)


def _rate(config: SyntheticBenchmark, size: int) -> dict[str, Any]:
    """Return the figures of one image size, by column heading; the first call compiles."""
    dataset = SyntheticDataset(SyntheticConfig(size=size, images_at_once=config.at_once))
    first, *times = (
        seconds(lambda k=k: dataset.batch(np.arange(k * config.batch, (k + 1) * config.batch)))  # type: ignore[misc]
        for k in range(config.rounds + 1)
    )
    return {"pixels": size, "images/s": config.batch / float(np.median(times)), "first call, s": first}


if __name__ == "__main__":
    command(SyntheticBenchmark, measure, __doc__)

"""The samples of every step, from wherever they come: what step s sees follows from the seed and s alone.

Another source of training data is one more class with `batch(step, positions)`.
"""

import functools
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
import numpy.typing as npt

from handtailor_jax.data.batch import Batch
from handtailor_jax.data.pool import SamplePool
from handtailor_jax.data.synthetic import SyntheticConfig
from handtailor_jax.errors import InputError
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.photographs import PhotoSet, backgrounds, composed, prepare_photographs


class Source(Protocol):
    """Samples in host memory."""

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """The samples at some positions of a step's share of this source."""


class PoolSource:
    """Rendered samples from disk, in another order every epoch."""

    def __init__(self, pool: SamplePool, per_step: int, seed: int) -> None:
        self._pool, self._per_step, self._seed = pool, per_step, seed

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """The samples at some positions of a step's share."""
        return self._pool.batch(_shuffled(len(self._pool), self._per_step, self._seed, step, positions))


class PhotoSource:
    """Photographs, every collection equally often, in another order every epoch, their backgrounds drawn anew."""

    def __init__(
        self,
        photographs: PhotoSet,
        pictures: npt.NDArray[np.uint8],
        per_step: int,
        config: TrainingConfig,
    ) -> None:
        self._photographs, self._pictures, self._per_step, self._config = photographs, pictures, per_step, config
        source = photographs.source
        self._collections = [np.flatnonzero(source == name) for name in sorted(set(source.tolist()))]

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """The samples at some positions of a step's share."""
        data, seed = self._config.data, self._config.seed
        indices, images = [], []
        for position in positions:
            number = step * self._per_step + position
            which = number % len(self._collections)
            collection = self._collections[which]
            [place] = _shuffled(len(collection), 1, seed + 1 + which, number // len(self._collections), [0])
            index = int(collection[place])
            random = np.random.default_rng([seed, step, position])
            images.append(composed(self._photographs, index, random, self._pictures, data.pasted))
            indices.append(index)
        return self._photographs.batch(np.asarray(indices), np.stack(images), data.photograph_3d)


def synthetic_config(config: TrainingConfig) -> SyntheticConfig:
    """What rendered samples are like."""
    return SyntheticConfig(size=config.data.size)


class HostSamples:
    """The part of every step's samples that comes from host memory: a fixed number from each source."""

    def __init__(self, config: TrainingConfig) -> None:
        """Prepares the sources; the first time, this renders and fits.

        Raises:
            InputError: if a source cannot be used.
        """
        data = config.data
        photographs = 0 if data.photographs is None else round(data.photograph_share * config.batch)
        self.rendered = config.batch - photographs if data.synthetic == "rendered" else 0
        """Samples of a step that are rendered on the device instead."""
        self._sources: list[tuple[Source, int]] = []
        if data.synthetic == "pool" and photographs < config.batch:
            count = config.batch - photographs
            pool = SamplePool(data.cache, synthetic_config(config), data.pool, "train", config.seed)
            self._sources.append((PoolSource(pool, count, config.seed), count))
        if photographs:
            assert data.photographs is not None
            found = prepare_photographs(data.photographs, "train", data.size, data.cache)
            pictures = backgrounds(data.size, data.cache)
            self._sources.append((PhotoSource(found, pictures, photographs, config), photographs))
        self.count = sum(count for _, count in self._sources)
        """Samples of a step that come from here."""

    def batch(self, step: int, first: int, last: int) -> Batch:
        """Samples number first to last - 1 of a step's `count`, in host memory."""
        parts, start = [], 0
        for source, count in self._sources:
            positions = range(max(first - start, 0), min(last - start, count))
            if positions:
                parts.append(source.batch(step, positions))
            start += count
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def check_devices(config: TrainingConfig, samples: HostSamples, devices: int) -> None:
    """Refuses numbers of devices that a batch cannot be dealt to.

    Raises:
        InputError: naming the batch.
    """
    if devices > config.batch:
        raise InputError(f"batch {config.batch} is smaller than the {devices} devices: raise --batch")
    for name, count in (("rendered samples", samples.rendered), ("samples from disk", samples.count)):
        if count % devices:
            raise InputError(f"{count} {name} a step cannot be dealt to {devices} devices: change --batch")
    if (config.batch // devices) % config.optimizer.accumulate:
        raise InputError(
            f"batch {config.batch} on {devices} devices cannot be split into {config.optimizer.accumulate} parts: "
            "change --batch or --optimizer.accumulate"
        )


@functools.lru_cache(maxsize=16)
def _order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _shuffled(count: int, per_step: int, seed: int, step: int, positions: Sequence[int]) -> npt.NDArray[np.int64]:
    """Which of `count` samples stand at positions of a step, when all are gone through once per epoch."""
    numbers = step * per_step + np.asarray(positions, np.int64)
    return np.asarray([_order(count, seed, int(n) // count)[int(n) % count] for n in numbers])

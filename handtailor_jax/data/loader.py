"""Samples of a dataset as crops around hands, in an order that Grain shuffles anew in every epoch.

The sample at each position depends only on the configuration and the position, so loading can resume anywhere. Mixing,
sharding, batching and reading ahead are Grain's:

    samples = grain.MapDataset.mix([load(first, config), load(second, config)], [3.0, 1.0])
    batches = samples[host::hosts].batch(32, batch_fn=stack).to_iter_dataset()
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from handtailor_jax.data.sample import Batch, Reader, crop_sample
from handtailor_jax.errors import InputError

_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """Size of the crops, and order of the samples."""

    size: int = 160
    """Side of the crops, pixels. Larger than the network's input, so that `augment` can zoom in."""
    factor: float = 2.0
    """Side of the cropped square as a multiple of the hand size: room for `augment` to scale, shift and rotate."""
    seed: int = 0
    """Random seed of the order, 0 to 2^32 - 1."""
    epochs: int | None = None
    """Number of passes over the dataset; None repeats forever."""
    shuffle: bool = True
    """Whether every epoch has an order of its own; False keeps the order of the dataset."""
    masks: bool = False
    """Whether samples have masks."""
    depths: bool = False
    """Whether samples have depth maps of the hand. The dataset needs masks as well, because the image shows more than
    the hand."""

    def __post_init__(self) -> None:
        """Raise an InputError if a field is out of range."""
        if self.size < 1 or (self.epochs is not None and self.epochs < 1):
            raise InputError(f"LoaderConfig: size is {self.size} and epochs is {self.epochs}: give at least 1")
        if self.factor < 1.0:
            raise InputError(f"LoaderConfig: factor is {self.factor}, which cuts off the hand: give at least 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"LoaderConfig: seed is {self.seed}: give 0 to 2^32 - 1")


def index_stream(count: int, seed: int, *, shuffle: bool = True, epochs: int | None = None) -> Any:
    """Return the indices 0 ... count - 1, epoch after epoch (forever if `epochs` is None), as a `grain.MapDataset`."""
    try:
        import grain
    except ImportError as error:
        raise InputError(f"Grain cannot be imported ({error}): pip install 'handtailor-jax[datasets]'") from None
    stream = grain.MapDataset.range(count).seed(seed)
    return (stream.shuffle() if shuffle else stream).repeat(epochs)


def load(reader: Reader, config: LoaderConfig = LoaderConfig()) -> Any:
    """Return the crops of a dataset as a `grain.MapDataset` of `Batch`es without leading axes; nothing is read yet.

    Several threads may read the dataset at the same time.

    Raises:
        InputError: if Grain is missing or the dataset is empty; on access, if a sample cannot be read or has no mask
            or depth map.
    """
    if len(reader) == 0:
        raise InputError("the dataset is empty: leave it out")

    def crop(index: int) -> Batch:
        try:
            sample = reader[int(index)]
        except InputError as error:
            raise InputError(f"sample {index}: {error}") from None
        found = crop_sample(sample, config.size, config.factor)
        for name, wanted in (("mask", config.masks or config.depths), ("depth", config.depths)):
            if wanted and getattr(found, name) is None:
                raise InputError(f"{sample.name}: has no {name} map: switch off the losses that need it")
        mask, depth = found.mask if config.masks else None, found.depth if config.depths else None
        return dataclasses.replace(found, mask=mask, depth=depth)

    # Grain adds the epoch to the seed, so neighbouring seeds would give the same orders, an epoch apart.
    seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
    return index_stream(len(reader), seed, shuffle=config.shuffle, epochs=config.epochs).map(crop)


def stack(samples: Sequence[Batch]) -> Batch:
    """Return samples as a batch."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *samples)


def gather(samples: Any, positions: Sequence[int]) -> Batch:
    """Return the samples at some positions of a `grain.MapDataset` as a batch, read by several threads."""
    try:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
            return stack(list(threads.map(lambda position: samples[int(position)], positions)))
    except InputError as error:  # Grain appends lines to the message
        raise InputError(str(error).partition("\n")[0]) from None

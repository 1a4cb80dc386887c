"""Samples of a dataset as crops around hands, in an order that Grain shuffles anew in every epoch.

The sample at each position depends only on the arguments and the position, so loading can resume anywhere. Mixing,
sharding, batching and reading ahead are Grain's:

    samples = grain.MapDataset.mix([load(first), load(second)], [3.0, 1.0])
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
from handtailor_jax.errors import InputError, imported, install, naming

_THREADS = min(8, os.cpu_count() or 1)


def index_stream(count: int, seed: int, *, shuffle: bool = True, epochs: int | None = None) -> Any:
    """Return the indices 0 ... count - 1, epoch after epoch (forever if `epochs` is None), as a `grain.MapDataset`."""
    grain = imported("grain", "Grain cannot be imported", install("datasets"))
    stream = grain.MapDataset.range(count).seed(seed)
    return (stream.shuffle() if shuffle else stream).repeat(epochs)


def load(
    reader: Reader,
    *,
    size: int = 160,
    factor: float = 2.0,
    seed: int = 0,
    epochs: int | None = None,
    shuffle: bool = True,
    masks: bool = False,
    depths: bool = False,
) -> Any:
    """Return the crops of a dataset as a `grain.MapDataset` of `Batch`es without leading axes; nothing is read yet.

    Args:
        reader: dataset; several threads may read it at the same time.
        size: side of the crops, pixels. Larger than the network's input, so that `augment` can zoom in.
        factor: side of the cropped square as a multiple of the hand size: room to scale, shift and rotate.
        seed: random seed of the order, 0 to 2^32 - 1.
        epochs: number of passes over the dataset; None repeats forever.
        shuffle: whether every epoch has an order of its own; False keeps the order of the dataset.
        masks: whether samples have masks.
        depths: whether samples have depth maps of the hand. The dataset needs masks as well, because the image shows
            more than the hand.

    Raises:
        InputError: if Grain is missing, the dataset is empty or an argument is out of range; on access, if a sample
            cannot be read or has no mask or depth map.
    """
    if len(reader) == 0:
        raise InputError("the dataset is empty: leave it out")
    if size < 1 or (epochs is not None and epochs < 1):
        raise InputError(f"size is {size} and epochs is {epochs}: give at least 1")
    if factor < 1.0:
        raise InputError(f"factor is {factor}, which cuts off the hand: give at least 1")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}: give 0 to 2^32 - 1")

    def crop(index: int) -> Batch:
        with naming(f"sample {index}"):
            sample = reader[int(index)]
        found = crop_sample(sample, size, factor)
        for name, wanted in (("mask", masks or depths), ("depth", depths)):
            if wanted and getattr(found, name) is None:
                raise InputError(f"{sample.name}: has no {name} map: switch off the losses that need it")
        return dataclasses.replace(found, mask=found.mask if masks else None, depth=found.depth if depths else None)

    # Grain adds the epoch to the seed, so neighbouring seeds would give the same orders, an epoch apart.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return index_stream(len(reader), spread, shuffle=shuffle, epochs=epochs).map(crop)


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

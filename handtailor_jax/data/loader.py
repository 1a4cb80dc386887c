"""Load batches of crops around hands. Grain shuffles, mixes and shards the datasets; loading can resume at any batch.

The sample at each position depends only on the configuration and the position. A loader is therefore both an iterator
with a state and a training source, which is asked for step s.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from handtailor_jax.data.sample import Batch, Reader, Sample, crop_sample
from handtailor_jax.errors import InputError

Bytes = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """Size of the crops, and order of the samples."""

    size: int = 160
    """Side of the crops, pixels. Larger than the network's input, so that `augment` can zoom in."""
    factor: float = 2.0
    """Side of the cropped square as a multiple of the hand size: room for `augment` to scale, shift and rotate."""
    batch: int = 32
    """Number of samples in a batch."""
    seed: int = 0
    """Random seed of the order and the backgrounds, 0 to 2^32 - 1."""
    epochs: int | None = None
    """Number of passes over each dataset; None repeats forever. Of several datasets, the first to end ends all."""
    shuffle: bool = True
    """Whether the order differs from epoch to epoch; False keeps the order of the dataset."""
    pasted: float = 0.6
    """Probability that a hand with a mask is pasted onto another background, if backgrounds are given."""
    skip_unreadable: bool = False
    """Whether a sample that cannot be read is replaced by the next readable one and listed in `Loader.skipped`, instead
    of raising an error."""
    shard_index: int = 0
    """Index of the shard that this loader returns."""
    shard_count: int = 1
    """Number of disjoint shards (one per host) into which the samples of each epoch are split."""
    drop_remainder: bool = True
    """Whether the last batch is dropped if it is incomplete."""
    masks: bool = False
    """Whether batches have masks."""
    depths: bool = False
    """Whether batches have depth maps of the hand. Samples need masks as well, because the image shows more than the
    hand."""
    threads: int = 2
    """Number of threads that prepare batches ahead; 0 prepares each sample when it is requested. Does not change the
    samples."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: if a field is out of range; names the field.
        """
        for name in ("size", "batch", "shard_count"):
            if getattr(self, name) < 1:
                raise InputError(f"LoaderConfig: {name} is {getattr(self, name)}: give at least 1")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"LoaderConfig: epochs is {self.epochs}: give at least 1, or None")
        if self.factor < 1.0:
            raise InputError(f"LoaderConfig: factor is {self.factor}, which cuts off the hand: give at least 1")
        if not 0.0 <= self.pasted <= 1.0:
            raise InputError(f"LoaderConfig: pasted is {self.pasted}: give a probability, 0 to 1")
        if not 0 <= self.shard_index < self.shard_count:
            raise InputError(f"LoaderConfig: shard_index is {self.shard_index}: give 0 to {self.shard_count - 1}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"LoaderConfig: seed is {self.seed}: give 0 to 2^32 - 1")
        if self.threads < 0:
            raise InputError(f"LoaderConfig: threads is {self.threads}: give at least 0")


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A batch in host memory and the names of its samples."""

    batch: Batch
    names: tuple[str, ...]
    """Name of each sample."""


def index_stream(count: int, seed: int, *, shuffle: bool = True, epochs: int | None = None) -> Any:
    """Return the indices 0 ... count - 1, epoch after epoch, as a Grain dataset with random access.

    Args:
        count: number of elements of an epoch.
        seed: random seed of the order, 0 to 2^32 - 1.
        shuffle: whether every epoch has an order of its own.
        epochs: number of epochs; None repeats forever.

    Raises:
        InputError: if Grain is missing.
    """
    stream = _grain().MapDataset.range(count).seed(seed)
    return (stream.shuffle() if shuffle else stream).repeat(epochs)


def paste(image: Bytes, mask: Bytes, background: Bytes) -> Bytes:
    """Blend an image (size, size, 3) over a background by a mask (size, size) from 0 to 255."""
    share = mask[..., None].astype(np.float32) / np.float32(255.0)
    mixed = share * image.astype(np.float32) + (np.float32(1.0) - share) * background.astype(np.float32)
    return np.round(mixed).astype(np.uint8)


class Loader:
    """Samples of one or several datasets as batches in host memory.

    Iterating yields `LoadedBatch`es. `batch(step, positions)` returns the same batches as a training source.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        config: LoaderConfig,
        *,
        weights: Sequence[float] | None = None,
        backgrounds: Bytes | None = None,
    ) -> None:
        """Set up the order of the samples; nothing is read yet.

        Args:
            readers: datasets; several threads may read them at the same time.
            config: size and order.
            weights: relative share of each dataset among the samples; equal shares if None.
            backgrounds: (count, size, size, 3) sRGB images onto which hands with a mask are pasted.

        Raises:
            InputError: if Grain is missing or the arguments do not match.
        """
        weights = [1.0] * len(readers) if weights is None else list(weights)
        if not readers or len(weights) != len(readers) or not all(w > 0.0 and np.isfinite(w) for w in weights):
            raise InputError(
                f"the loader got {len(readers)} datasets and weights {weights}: give a positive weight each"
            )
        for number, reader in enumerate(readers):
            if len(reader) == 0:
                raise InputError(f"dataset {number} of the loader is empty: leave it out")
        size = config.size
        if backgrounds is not None and (backgrounds.ndim != 4 or backgrounds.shape[1:] != (size, size, 3)):
            raise InputError(f"backgrounds have shape {backgrounds.shape}, not (n, {size}, {size}, 3): resize them")
        self._readers, self._config = tuple(readers), config
        self._backgrounds = None if backgrounds is None or len(backgrounds) == 0 else backgrounds
        self._skipped: dict[tuple[int, int], str] = {}
        streams = [self._stream(number) for number in range(len(readers))]
        self._samples = _grain().MapDataset.mix(streams, weights) if len(streams) > 1 else streams[0]

    def __len__(self) -> int:
        """Number of samples of this shard over all epochs; the largest integer if they repeat forever."""
        return len(self._samples)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Errors of the samples that were replaced so far, one line each."""
        return tuple(self._skipped[key] for key in sorted(self._skipped))

    def loaded(self, numbers: Sequence[int]) -> LoadedBatch:
        """Return the samples at the given positions of this shard's sequence.

        Raises:
            IndexError: if a position is not in 0 ... len - 1.
            InputError: if a sample cannot be read; names the sample.
        """
        for number in numbers:
            if not 0 <= number < len(self):
                raise IndexError(f"the loader has samples 0 to {len(self) - 1}, got {number}")
        try:
            if self._config.threads == 0:
                return _collate([self._samples[int(number)] for number in numbers])
            with concurrent.futures.ThreadPoolExecutor(self._config.threads) as threads:
                return _collate(list(threads.map(lambda number: self._samples[int(number)], numbers)))
        except InputError as error:  # Grain appends lines to the message
            raise InputError(str(error).partition("\n")[0]) from None

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """Return the samples at some positions, 0 ... config.batch - 1, of a step.

        Raises:
            IndexError: if the step is past the last epoch.
            InputError: if a sample cannot be read; names the sample.
        """
        return self.loaded([step * self._config.batch + position for position in positions]).batch

    def __iter__(self) -> Any:
        """Return Grain's iterator over batches, prepared ahead by threads; `get_state` and `set_state` resume it."""
        config = self._config
        batches = self._samples.batch(config.batch, drop_remainder=config.drop_remainder, batch_fn=_collate)
        # An element is a whole batch, so a small buffer is enough.
        ahead = _grain().ReadOptions(num_threads=config.threads, prefetch_buffer_size=2 * config.threads)
        return iter(batches.to_iter_dataset(ahead))

    def _stream(self, dataset: int) -> Any:
        config, count = self._config, len(self._readers[dataset])
        # Neighbouring seeds would give datasets the same orders, epochs apart.
        seed = int(np.random.SeedSequence([config.seed, dataset]).generate_state(1)[0])
        stream = index_stream(count, seed, shuffle=config.shuffle, epochs=config.epochs)
        stream = stream.map_with_index(self._element(dataset))
        # After repeating, shards are equally long even if they do not divide the epoch; before mixing, each has every
        # dataset's share.
        return stream[config.shard_index :: config.shard_count] if config.shard_count > 1 else stream

    def _element(self, dataset: int) -> Callable[[int, int], LoadedBatch]:
        config, count = self._config, len(self._readers[dataset])

        def element(number: int, index: int) -> LoadedBatch:
            sample = self._read(dataset, int(index))
            crop = crop_sample(sample, config.size, config.factor)
            if self._backgrounds is not None and crop.mask is not None and crop.mask.any():
                # Draws depend on seed, dataset, epoch and index only, so all of them are made in any case.
                random = np.random.default_rng([config.seed, dataset, number // count, int(index)])
                choice, which, turned = random.random(), random.integers(len(self._backgrounds)), random.random()
                if choice < config.pasted:
                    background = self._backgrounds[which]
                    background = background[:, ::-1] if turned < 0.5 else background
                    crop = dataclasses.replace(crop, image=paste(crop.image, crop.mask, background))
            if (crop.mask is None and (config.masks or config.depths)) or (crop.depth is None and config.depths):
                what = "mask" if crop.mask is None else "depth map"
                raise InputError(f"{sample.name}: has no {what}: switch off the losses that need it")
            mask, depth = crop.mask if config.masks else None, crop.depth if config.depths else None
            return LoadedBatch(dataclasses.replace(crop, mask=mask, depth=depth), (sample.name,))

        return element

    def _read(self, dataset: int, index: int) -> Sample:
        """Read a sample, or the next readable one if unreadable samples are skipped."""
        reader = self._readers[dataset]
        for tried in range(len(reader)):
            at = (index + tried) % len(reader)
            try:
                return reader[at]
            except InputError as error:
                line = f"dataset {dataset}, sample {at}: {error}"
                if not self._config.skip_unreadable:
                    raise InputError(line) from None
                self._skipped[dataset, at] = line
        raise InputError(f"none of the {len(reader)} samples of dataset {dataset} can be read, e.g. {line}")


def _collate(elements: Sequence[LoadedBatch]) -> LoadedBatch:
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *(element.batch for element in elements))
    return LoadedBatch(batch, tuple(name for element in elements for name in element.names))


def _grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise InputError(f"Grain cannot be imported ({error}): pip install 'handtailor-jax[datasets]'") from None
    return grain

"""The samples of every step, from wherever they come: what step s sees follows from the seed and s alone.

Another source of training data is one more class with `batch(step, positions)`, such as `data.loader.Loader`.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import jax
import numpy as np
import numpy.typing as npt

from handtailor_jax.data import open_dataset
from handtailor_jax.data.loader import Loader, LoaderConfig
from handtailor_jax.data.sample import Batch, Reader
from handtailor_jax.errors import InputError
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import MANO_VERTICES
from handtailor_jax.synthetic.dataset import SyntheticConfig
from handtailor_jax.synthetic.pool import SamplePool
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.photographs import PhotoSet, backgrounds, composed, prepare_photographs

Split = Literal["training", "evaluation"]

_STB_SPLITS: Mapping[Split, str] = {"training": "train", "evaluation": "test"}
_THREADS = min(8, os.cpu_count() or 1)


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

    def __init__(self, config: TrainingConfig, hand: HandModel) -> None:
        """Prepares the sources; the first time, this renders and fits.

        Args:
            config: of the run.
            hand: of the run.

        Raises:
            InputError: if a source cannot be used.
        """
        data = config.data
        counts = data.counts(config.batch)
        self.rendered = counts.synthetic if data.synthetic == "rendered" else 0
        """Samples of a step that are rendered on the device instead."""
        self._sources: list[tuple[Source, int]] = []
        # First what fails at once where a folder is missing, then what takes time.
        reader = open_split(config, hand, "training") if counts.dataset else None
        if data.synthetic == "pool" and counts.synthetic:
            pool = SamplePool(data.cache, synthetic_config(config), data.pool, "train", config.seed)
            self._sources.append((PoolSource(pool, counts.synthetic, config.seed), counts.synthetic))
        if counts.photographs:
            assert data.photographs is not None
            found = prepare_photographs(data.photographs, "train", data.size, data.cache)
            pictures = backgrounds(data.size, data.cache)
            self._sources.append((PhotoSource(found, pictures, counts.photographs, config), counts.photographs))
        if reader is not None:
            settings = LoaderConfig(
                size=data.size,
                batch=counts.dataset,
                seed=config.seed,
                masks=config.loss.paper_silhouette > 0.0,
                depths=config.loss.paper_depth > 0.0,
                threads=_THREADS,
            )
            self._sources.append((Loader([reader], settings), counts.dataset))
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


def open_split(config: TrainingConfig, hand: HandModel, split: Split) -> Reader:
    """The reader of a split of the configured dataset, with what training needs of it.

    Args:
        config: of the run; has a dataset.
        hand: of the run: where it is MANO, FreiHAND's samples have poses.
        split: training, or the test split.

    Raises:
        InputError: if the dataset is missing or damaged.
    """
    data = config.data
    assert data.dataset is not None
    assert data.dataset_folder is not None
    # Evaluation compares joints alone.
    depth = split == "training" and config.loss.paper_depth > 0.0
    mask = split == "training" and (depth or config.loss.paper_silhouette > 0.0)
    if data.dataset == "stb":
        return open_dataset("stb", data.dataset_folder, _STB_SPLITS[split], mask=mask, depth=depth)
    if data.dataset == "rhd":
        return open_dataset("rhd", data.dataset_folder, split, mask=mask, depth=depth)
    # Meshes are over a gigabyte, and not learnt from.
    is_mano = config.hand is not None and hand.skin.template.shape[0] == MANO_VERTICES
    mean = np.asarray(hand.pose_mean) if is_mano else None
    return open_dataset(
        "freihand", data.dataset_folder, split, vertices=False, mask=mask, hands_mean=mean, cache=data.cache
    )


def evaluation_samples(config: TrainingConfig, hand: HandModel) -> Batch:
    """`data.test` samples, evenly spread over the dataset's test split, always the same.

    Raises:
        InputError: if they cannot be read or have no joints to compare with.
    """
    reader = open_split(config, hand, "evaluation")
    chosen = np.linspace(0, len(reader) - 1, min(config.data.test, len(reader))).round().astype(int).tolist()
    loader = Loader([reader], LoaderConfig(size=config.data.size, shuffle=False, threads=_THREADS))
    batch = loader.loaded(chosen).batch
    if not batch.has_joints.all():
        raise InputError(
            f"{config.data.dataset_folder}: the evaluation split has no joints: unpack FreiHAND_pub_v2_eval beside it"
        )
    return batch


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

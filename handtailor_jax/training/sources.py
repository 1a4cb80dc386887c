"""Training samples in host memory, read by Grain; what a step sees follows from the seed and the step alone.

To add a dataset: write a reader (`data.sample.Reader`); a `data.loader.Loader` of readers is a `Source`. So is a
`Stream` of any Grain dataset whose elements are batches of one sample.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
import numpy.typing as npt

from handtailor_jax.data import open_dataset
from handtailor_jax.data.loader import Loader, LoaderConfig, index_stream
from handtailor_jax.data.sample import Batch, Reader
from handtailor_jax.errors import InputError
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import MANO_VERTICES
from handtailor_jax.synthetic.dataset import SyntheticConfig
from handtailor_jax.synthetic.storage import SamplePool
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.photographs import PhotoSet, backgrounds, composed, prepare_photographs

Split = Literal["training", "evaluation"]

_STB_SPLITS: Mapping[Split, str] = {"training": "train", "evaluation": "test"}
_THREADS = min(8, os.cpu_count() or 1)


@runtime_checkable
class Source(Protocol):
    """Samples in host memory."""

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """Return the samples at some positions, 0 to n - 1, of the n that a step takes from this source."""


@dataclasses.dataclass(frozen=True)
class Stream:
    """A source that takes consecutive elements of an endless Grain dataset."""

    samples: Any
    """`grain.MapDataset` whose elements are batches of one sample."""
    per_step: int
    """Number of samples per step."""

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """Return the samples at some positions of a step."""
        parts = [self.samples[step * self.per_step + position] for position in positions]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A source that takes a fixed number of samples per step from each of several sources."""

    parts: tuple[tuple[Source, int], ...]
    """Sources with their numbers of samples per step."""

    @property
    def count(self) -> int:
        """Number of samples per step."""
        return sum(count for _, count in self.parts)

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """Return the samples at some positions of a step; the sources follow each other."""
        found, start = [], 0
        for source, count in self.parts:
            own = [position - start for position in positions if start <= position < start + count]
            if own:
                found.append(source.batch(step, own))
            start += count
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


def open_sources(config: TrainingConfig, hand: HandModel) -> Mixture:
    """Return the source of all samples that come from host memory; the first call renders and fits.

    Args:
        config: The configuration of the run.
        hand: The hand model of the run.

    Raises:
        InputError: If a source cannot be used.
    """
    if config.stage == "ik":
        return Mixture(())
    data, counts = config.data, config.data.counts(config.batch)
    # First whatever fails at once where a folder is missing, then whatever takes time.
    reader = open_split(config, hand, "training") if counts.dataset else None
    parts: list[tuple[Source, int]] = []
    if counts.synthetic and data.synthetic == "pool":
        pool = SamplePool(data.cache, synthetic_config(config), data.pool, "train", config.seed)
        parts.append((pool_stream(pool, counts.synthetic, config.seed), counts.synthetic))
    if counts.photographs:
        assert data.photographs is not None
        photographs = prepare_photographs(data.photographs, "train", data.size, data.cache)
        images = backgrounds(data.size, data.cache)
        parts.append((photograph_stream(photographs, images, counts.photographs, config), counts.photographs))
    if reader is not None:
        settings = LoaderConfig(
            size=data.size,
            batch=counts.dataset,
            seed=config.seed,
            masks=config.loss.paper_silhouette > 0.0,
            depths=config.loss.paper_depth > 0.0,
            threads=_THREADS,
        )
        parts.append((Loader([reader], settings), counts.dataset))
    return Mixture(tuple(parts))


def rendered_count(config: TrainingConfig) -> int:
    """Return the number of samples per step that are rendered on the devices."""
    on_devices = config.stage != "ik" and config.data.synthetic == "rendered"
    return config.data.counts(config.batch).synthetic if on_devices else 0


def synthetic_config(config: TrainingConfig) -> SyntheticConfig:
    """Return the configuration of rendered samples."""
    return SyntheticConfig(size=config.data.size)


def pool_stream(pool: SamplePool, per_step: int, seed: int) -> Stream:
    """Return the samples of a pool in another order every epoch."""
    return Stream(index_stream(len(pool), seed).map(lambda index: pool.batch(np.asarray([index]))), per_step)


def photograph_stream(
    photographs: PhotoSet, images: npt.NDArray[np.uint8], per_step: int, config: TrainingConfig
) -> Stream:
    """Return photographs before random backgrounds, every collection equally often, in another order every epoch.

    Args:
        photographs: The photographs.
        images: Backgrounds, sRGB (count, size, size, 3).
        per_step: Number of samples per step.
        config: The configuration of the run.
    """
    data, source = config.data, photographs.source

    def collection(number: int, name: str) -> Any:
        rows = np.flatnonzero(source == name)
        return index_stream(len(rows), config.seed + 1 + number).map(lambda place: int(rows[place]))

    def sample(position: int, row: int) -> Batch:
        random = np.random.default_rng([config.seed, position])
        image = composed(photographs, row, random, images, data.pasted)
        return photographs.batch(np.asarray([row], np.int64), image[None], data.photograph_3d)

    collections = [collection(number, name) for number, name in enumerate(sorted(set(source.tolist())))]
    return Stream(type(collections[0]).mix(collections).map_with_index(sample), per_step)


def open_split(config: TrainingConfig, hand: HandModel, split: Split) -> Reader:
    """Open a split of the configured dataset.

    Args:
        config: The configuration of a run that has a dataset.
        hand: The hand model of the run; FreiHAND's samples have poses only with MANO.
        split: The split.

    Raises:
        InputError: If the dataset is missing or damaged.
    """
    data = config.data
    assert data.dataset is not None
    assert data.dataset_folder is not None
    # The evaluation compares joints only.
    depth = split == "training" and config.loss.paper_depth > 0.0
    mask = split == "training" and (depth or config.loss.paper_silhouette > 0.0)
    if data.dataset == "stb":
        return open_dataset("stb", data.dataset_folder, _STB_SPLITS[split], mask=mask, depth=depth)
    if data.dataset == "rhd":
        return open_dataset("rhd", data.dataset_folder, split, mask=mask, depth=depth)
    # The file of vertices has over a gigabyte, and training does not use it.
    is_mano = config.hand is not None and hand.skin.template.shape[0] == MANO_VERTICES
    mean = np.asarray(hand.pose_mean) if is_mano else None
    return open_dataset(
        "freihand", data.dataset_folder, split, vertices=False, mask=mask, hands_mean=mean, cache=data.cache
    )


def evaluation_samples(config: TrainingConfig, hand: HandModel) -> Batch:
    """Return `data.test` samples, evenly spread over the dataset's test split and always the same.

    Raises:
        InputError: If they cannot be read or have no joints.
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


def check_devices(config: TrainingConfig, devices: int) -> None:
    """Check that every device gets the same number of samples of either kind.

    Raises:
        InputError: If the batch does not fit the number of devices.
    """
    rendered = rendered_count(config)
    if devices > config.batch:
        raise InputError(f"batch {config.batch} is smaller than the {devices} devices: raise --batch")
    for name, count in (("rendered samples", rendered), ("samples from the host", config.batch - rendered)):
        if count % devices:
            raise InputError(f"{count} {name} per step cannot be dealt to {devices} devices: change --batch")
    if (config.batch // devices) % config.optimizer.accumulate:
        raise InputError(
            f"batch {config.batch} on {devices} devices cannot be split into {config.optimizer.accumulate} parts: "
            "change --batch or --optimizer.accumulate"
        )

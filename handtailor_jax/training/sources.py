"""Training samples in host memory: rendered ones, photographs and datasets.

A source is an endless `grain.MapDataset` of `Batch`es without leading axes. The samples of a step depend only on the
seed and the step. docs/training.md says how to add a dataset.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from handtailor_jax.data import open_dataset
from handtailor_jax.data.loader import gather, index_stream, load
from handtailor_jax.data.readers.photos import read_labels
from handtailor_jax.data.sample import Batch, Reader
from handtailor_jax.errors import InputError
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import MANO_VERTICES
from handtailor_jax.synthetic.poses import RecordedPoses
from handtailor_jax.synthetic.storage import SamplePool
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.custom import NOTHING, Custom, checked_sources
from handtailor_jax.training.photographs import photograph_stream, surroundings

Split = Literal["training", "evaluation"]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A fixed number of samples per step from each of several sources."""

    parts: tuple[tuple[Any, int], ...]
    """Sources with their numbers of samples per step."""

    @property
    def count(self) -> int:
        """Number of samples per step."""
        return sum(count for _, count in self.parts)

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """Return the samples at some positions, 0 ... count - 1, of a step; the sources follow each other."""
        found, start = [], 0
        for source, count in self.parts:
            own = [position - start for position in positions if start <= position < start + count]
            if own:
                found.append(gather(source, [step * count + position for position in own]))
            start += count
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


def open_sources(config: TrainingConfig, hand: HandModel, custom: Custom = NOTHING) -> Mixture | RecordedPoses:
    """Return the source of a step's samples in host memory; the first call renders the pool and fits photographs."""
    data, counts, parts = config.data, config.data.counts(config.batch), []
    if config.stage == "ik":
        reader = open_split(config, hand, "training") if data.dataset == "freihand" else None
        recorded = RecordedPoses.read(config.hand, reader, config.batch, config.seed)
        return recorded if len(recorded.poses) else Mixture(())
    # Missing folders are found before anything that takes time begins.
    if data.dataset == "custom" and not custom.sources:
        raise InputError("data.dataset is custom but no sources were given: train from Python (docs/training.md)")
    readers = checked_sources(custom.sources)
    if counts.dataset and not readers:
        readers = [(open_split(config, hand, "training"), 1.0)]
    if counts.photographs and data.photographs is not None:
        read_labels(data.photographs, "train")
    if counts.synthetic and data.synthetic == "pool":
        behind = (
            surroundings(data.photographs, data.cache) if data.photographs and data.photograph_backgrounds else None
        )
        pool = SamplePool(data.cache, data.rendering, data.pool, "train", config.seed, behind)
        order = index_stream(len(pool), config.seed)
        row = functools.partial(jax.tree.map, lambda leaf: leaf[0])
        parts.append((order.map(lambda index: row(pool.batch(np.asarray([index])))), counts.synthetic))
    if counts.photographs:
        parts.append((photograph_stream(config), counts.photographs))
    if readers:
        masks, depths = config.loss.paper_silhouette > 0.0, config.loss.paper_depth > 0.0
        options: dict[str, Any] = {"size": data.size, "masks": masks, "depths": depths}
        crops = [load(reader, seed=config.seed + i, **options) for i, (reader, _) in enumerate(readers)]
        mixed = type(crops[0]).mix(crops, [weight for _, weight in readers]) if len(crops) > 1 else crops[0]
        parts.append((mixed, counts.dataset))
    return Mixture(tuple(parts))


def open_split(config: TrainingConfig, hand: HandModel, split: Split) -> Reader:
    """Open a split of the configured dataset; FreiHAND's samples have poses only if the hand model is MANO."""
    data = config.data
    assert data.dataset is not None
    assert data.dataset_folder is not None
    # The evaluation compares joints only.
    depth = split == "training" and config.loss.paper_depth > 0.0
    mask = split == "training" and (depth or config.loss.paper_silhouette > 0.0)
    options: dict[str, Any] = {"mask": mask, "depth": depth}
    if data.dataset == "freihand":
        # The file of vertices has over a gigabyte, and training does not use it.
        is_mano = config.hand is not None and hand.skin.template.shape[0] == MANO_VERTICES
        mean = np.asarray(hand.pose_mean) if is_mano else None
        options = {"mask": mask, "vertices": False, "hands_mean": mean, "cache": data.cache}
    name = {"training": "train", "evaluation": "test"}[split] if data.dataset == "stb" else split
    return open_dataset(data.dataset, data.dataset_folder, name, **options)


def evaluation_samples(config: TrainingConfig, hand: HandModel, reader: Reader | None = None) -> Batch:
    """Return `data.test` samples, evenly spread over `reader`, by default the configured dataset's evaluation split."""
    own, reader = reader is not None, open_split(config, hand, "evaluation") if reader is None else reader
    chosen = np.linspace(0, len(reader) - 1, min(config.data.test, len(reader))).round().astype(int).tolist()
    batch = gather(load(reader, size=config.data.size, shuffle=False), chosen)
    if not own and not batch.has_joints.all():
        raise InputError(
            f"{config.data.dataset_folder}: the evaluation split has no joints: unpack FreiHAND_pub_v2_eval beside it"
        )
    return batch

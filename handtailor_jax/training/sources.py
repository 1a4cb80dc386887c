"""Training samples in host memory: rendered ones, photographs and datasets.

A source is an endless `grain.MapDataset` of `Batch`es without leading axes. The samples of a step depend only on the
seed and the step. docs/training.md says how to add a dataset.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from handtailor_jax.data import open_dataset
from handtailor_jax.data.loader import gather, index_stream, load
from handtailor_jax.data.readers.photos import PhotoLabel, hand_mask, read_labels, read_photograph
from handtailor_jax.data.sample import Batch, Reader, labelled_batch
from handtailor_jax.detections import detection
from handtailor_jax.errors import InputError, naming
from handtailor_jax.fit import fit_detection
from handtailor_jax.geometry.boxes import hand_size, square_around
from handtailor_jax.geometry.mirror import mirror_pixels, mirror_points
from handtailor_jax.images import crop_square
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import MANO_VERTICES, embedded_hand
from handtailor_jax.synthetic.dataset import SyntheticConfig
from handtailor_jax.synthetic.poses import RecordedPoses
from handtailor_jax.synthetic.storage import SamplePool
from handtailor_jax.training.backdrops import PLAIN, Bytes, backgrounds, cached, composed, surroundings
from handtailor_jax.training.config import DataConfig, TrainingConfig
from handtailor_jax.training.custom import NOTHING, Custom, checked_sources

Split = Literal["training", "evaluation"]

_FACTOR = 2.0  # side of the stored squares of photographs as a multiple of the hand size
_WORST = 0.04  # largest mean reprojection error of a usable fit, in hand sizes
_VERSION = 2


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
    if data.photographs is not None:
        for split in ("train", "val") if counts.photographs else ("val",):  # val: for the evaluation
            read_labels(data.photographs, split)
    if counts.synthetic and data.synthetic == "pool":
        behind = None
        if data.photograph_backgrounds and data.photographs is not None:
            behind = surroundings(data.photographs, data.cache)
        pool = SamplePool(data.cache, rendering(data), data.pool, "train", config.seed, behind)
        order = index_stream(len(pool), config.seed)
        parts.append((order.map(lambda index: _row(pool.batch(np.asarray([index])), 0)), counts.synthetic))
    if counts.photographs:
        parts.append((photograph_stream(config), counts.photographs))
    if readers:
        masks, depths = config.loss.paper_silhouette > 0.0, config.loss.paper_depth > 0.0
        options: dict[str, Any] = {"size": data.size, "masks": masks, "depths": depths}
        crops = [load(reader, seed=config.seed + i, **options) for i, (reader, _) in enumerate(readers)]
        mixed = type(crops[0]).mix(crops, [weight for _, weight in readers]) if len(crops) > 1 else crops[0]
        parts.append((mixed, counts.dataset))
    return Mixture(tuple(parts))


def rendering(data: DataConfig) -> SyntheticConfig:
    """Return the distribution of the rendered samples."""
    return SyntheticConfig(size=data.size, second_hand=data.second_hand)


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


# Photographs. The hand model is fitted to the labels once, and its keypoints replace them.


@dataclasses.dataclass(frozen=True)
class PhotoSet:
    """The photographs of a split, mirrored to right hands and cropped to squares of twice the hand size."""

    name: np.ndarray
    """(n,) path in labels.json."""
    inside: Bytes
    """(n, size, size) 255 inside of the photograph, 0 outside, where the image repeats the border."""
    samples: Batch
    """Images with the keypoints, joints (relative to the root), pose and shape of the fitted hand model; masks are 0
    everywhere if unknown."""

    @property
    def collection(self) -> np.ndarray:
        """(n,) collection of each photograph: the first folder of its name."""
        return np.asarray([name.split("/")[0] for name in self.name])


def prepare_photographs(folder: Path, split: str, size: int, cache: Path, weight_3d: float = 1.0) -> PhotoSet:
    """Read, fit and crop the photographs of a split; later calls read the result from the cache.

    Args:
        folder: Folder of the photographs and labels.json.
        split: "train" or "val".
        size: Side of the squares, pixels.
        cache: Folder for the result.
        weight_3d: Weight of the joints, pose and shape.
    """
    labels = read_labels(folder, split)

    def make() -> dict[str, np.ndarray]:
        hand = embedded_hand()
        rows = [_fitted(each, hand, size) for each in tqdm(labels, desc=f"fitting {split} photographs", unit="photo")]
        good = [row for row in rows if row is not None]
        if not good:
            raise InputError(f"{folder}: the hand model fits none of the {split} photographs: check the labels")
        return {name: np.stack([row[name] for row in good]) for name in good[0]}

    known = json.dumps([_VERSION, size, _FACTOR, [[x.name, x.keypoints_2d.tolist(), x.convention] for x in labels]])
    digest = hashlib.sha256(known.encode()).hexdigest()[:8]
    found = cached(cache / f"photographs-{split}-{size}px-{digest}.npz", make)
    fields: Any = {name: found[name] for name in ("image", "mask", "keypoints_2d", "joints", "pose", "betas")}
    fields["intrinsics"] = np.tile(np.eye(3, dtype=np.float32), (len(found["name"]), 1, 1))
    return PhotoSet(found["name"], found["inside"], labelled_batch(**fields, weight_3d=weight_3d, intrinsics_known=0.0))


def _fitted(label: PhotoLabel, hand: HandModel, size: int) -> dict[str, np.ndarray] | None:
    """Return the row of one photograph; None if the hand model does not fit its label."""
    image, points, joints = read_photograph(label), label.keypoints_2d, label.joints_3d
    if label.side == "left":
        points, image = mirror_pixels(points, image.shape[1]), np.ascontiguousarray(image[:, ::-1])
        joints = None if joints is None else mirror_points(joints)
    with naming(label.path):
        found = fit_detection(detection(points, convention=label.convention, joints_3d=joints), hand=hand)
    if found.reprojection_after > _WORST * hand_size(points):
        return None
    # Without intrinsics a fit is in pixels, and its joints are relative to the root.
    placed = np.asarray(found.parameters.scale) * found.joints + np.asarray(found.parameters.translation)
    keypoints = placed[:, :2].astype(np.float32)
    box = square_around(keypoints, _FACTOR)
    square, affine, _ = crop_square(image, box, size, outside=None)
    inside, _, _ = crop_square(np.full(image.shape[:2], 255, np.uint8), box, size, outside=0)
    moved = keypoints @ affine[:, :2].T + affine[:, 2]
    mask = hand_mask(square, moved) if label.source in PLAIN else None
    return {
        "name": np.asarray(label.name),
        "image": square,
        "inside": inside,
        "mask": np.zeros((size, size), np.uint8) if mask is None else np.minimum(mask, inside),
        "keypoints_2d": moved,
        "joints": np.asarray(found.joints),
        "pose": np.asarray(found.parameters.pose),
        "betas": np.asarray(found.parameters.betas),
    }


def photograph_stream(config: TrainingConfig) -> Any:
    """Return photographs, some pasted onto backgrounds: each collection equally often, each epoch in another order."""
    data = config.data
    assert data.photographs is not None
    found = prepare_photographs(data.photographs, "train", data.size, data.cache, data.photograph_3d)
    images = backgrounds(data.size, data.cache)

    def sample(position: int, row: int) -> Batch:
        one = _row(found.samples, row)
        random = np.random.default_rng([config.seed, position])
        return dataclasses.replace(one, image=composed(one, found.inside[row], random, images), mask=None)

    streams = []
    for number, name in enumerate(sorted(set(found.collection.tolist()))):
        rows = np.flatnonzero(found.collection == name)
        order = index_stream(len(rows), config.seed + 1 + number)
        streams.append(order.map(lambda place, rows=rows: int(rows[place])))
    return type(streams[0]).mix(streams).map_with_index(sample)


def _row(batch: Batch, row: int) -> Batch:
    return jax.tree.map(lambda leaf: leaf[row], batch)

"""Batches of datasets: squares around hands, shuffled, mixed and sharded by Grain, resumable at any batch.

Which sample stands where follows from the configuration and the position alone, so the same loader serves as an
iterator with a state and as a training source that is asked for step s.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.data.sample import Batch, JointDefinition, Reader, Sample
from handtailor_jax.errors import InputError
from handtailor_jax.images import crop_square

FloatArray = npt.NDArray[np.float32]

_BEYOND = 1.0
_DISTANCE = 0.5  # metres: where a hand is put of which only the keypoints are known
_WHOLE = 0.2  # metres: its size, where not even the camera is known


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a loader gives, and in which order."""

    size: int = 160
    """Side of the pictures, pixels; somewhat more than the network's input, so that `augment` can zoom in."""
    factor: float = 2.0
    """Side of the square that is kept, in longer sides of the box around the hand's keypoints: the room in which
    `augment` scales, shifts and rotates."""
    batch: int = 32
    """Samples in a batch."""
    seed: int = 0
    """Of the order and the backgrounds, 0 to 2^32 - 1."""
    epochs: int | None = None
    """How often each dataset is gone through; None goes on for ever. Of several datasets, the first to end ends all."""
    shuffle: bool = True
    """Whether every epoch has another order; False keeps the datasets' own."""
    pasted: float = 0.6
    """Share of hands with a mask that are put before another background, if there are pictures to choose from."""
    skip_unreadable: bool = False
    """Whether a sample that cannot be read is replaced by the next one that can, and reported in `Loader.skipped`;
    otherwise it is an error."""
    shard_index: int = 0
    """Which of the shards this loader gives."""
    shard_count: int = 1
    """Into how many disjoint shards (one a host) the samples of each epoch are dealt."""
    drop_remainder: bool = True
    """Whether the last batch is left out where it would be smaller than the others."""
    masks: bool = False
    """Whether batches have masks."""
    depths: bool = False
    """Whether batches have depth maps of the hand, which need masks: the picture shows more than the hand."""
    threads: int = 2
    """Threads that prepare batches ahead, or the samples of a batch that is asked for; 0 prepares one after the other
    when it is asked for. Changes nothing in the samples."""

    def __post_init__(self) -> None:
        """Refuses settings that give no batches.

        Raises:
            InputError: naming the field.
        """
        for name in ("size", "batch", "shard_count"):
            if getattr(self, name) < 1:
                raise InputError(f"LoaderConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"LoaderConfig: epochs must be at least 1 or None, got {self.epochs}")
        if self.factor < 1.0:
            raise InputError(f"LoaderConfig: factor below 1 cuts into the hand, got {self.factor}")
        if not 0.0 <= self.pasted <= 1.0:
            raise InputError(f"LoaderConfig: pasted is a share between 0 and 1, got {self.pasted}")
        if not 0 <= self.shard_index < self.shard_count:
            raise InputError(f"LoaderConfig: shard_index must be 0 to {self.shard_count - 1}, got {self.shard_index}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"LoaderConfig: seed must be 0 to 2^32 - 1, got {self.seed}")
        if self.threads < 0:
            raise InputError(f"LoaderConfig: threads must not be negative, got {self.threads}")


@dataclasses.dataclass(frozen=True)
class CutOut:
    """The square around one hand, with everything that is known about it moved along."""

    image: npt.NDArray[np.uint8]
    """(size, size, 3) sRGB; mid-grey beyond the picture."""
    mask: FloatArray | None
    """(size, size) share of each pixel that the hand covers; None where unknown."""
    depth: FloatArray | None
    """(size, size) camera z, metres: point samples, since depths across an outline have no mean; 0 where it is unknown
    or where the mask, if there is one, has no hand."""
    affine: npt.NDArray[np.float64]
    """(2, 3) from the picture's pixels to the square's."""
    keypoints_2d: FloatArray
    """(21, 2) pixels of the square. Those of weight 0 are in its middle, so that none blows up a box around them."""
    keypoint_weight: FloatArray
    """(21,) 1 for a keypoint in front of the camera, seen or not; 0 where it is unknown (not finite), behind the camera
    or further outside of the picture than the picture is large."""
    intrinsics: FloatArray
    """K (3, 3) of the square; the identity where unknown."""
    joints: FloatArray
    """(21, 3) camera frame, metres; where unknown a flat hand that fits to the keypoints, so that no length is 0."""
    pose: FloatArray
    """(16, 3) axis-angle, radians; 0 where unknown."""
    betas: FloatArray
    """(10,); 0 where unknown."""
    has_joints: bool
    """Whether `joints` are true. False without intrinsics, where their frame has no relation to the picture."""
    has_pose: bool
    """Whether `pose` and `betas` are true as well."""
    has_intrinsics: bool
    """Whether `intrinsics` are."""


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A batch in host memory, and what training does not look at."""

    batch: Batch
    names: tuple[str, ...]
    """Of the samples."""
    joint_definitions: tuple[JointDefinition, ...]
    """What each sample's joints are."""


@dataclasses.dataclass(frozen=True)
class _Element:
    """One sample on its way into a batch."""

    square: CutOut
    image: npt.NDArray[np.uint8]
    name: str
    joint_definition: JointDefinition


def cut_out(sample: Sample, size: int, factor: float) -> CutOut:
    """The square around a hand's keypoints, resampled to a fixed size.

    The affine map that moves the pixels moves keypoints and camera too (K' = A K), in float64; the camera frame stays.

    Args:
        sample: a hand; the square is around the whole picture where it has no keypoints of any use.
        size: side of the result, pixels.
        factor: side of the square in longer sides of the box around the keypoints.

    Raises:
        InputError: if OpenCV is missing.
    """
    picture, points = sample.image, sample.keypoints_2d.astype(np.float64)
    extent = np.asarray([picture.shape[1], picture.shape[0]], np.float64)
    usable = np.asarray(np.isfinite(points).all(axis=1))
    points = np.where(usable[:, None], points, 0.0)
    usable &= (np.abs(points - 0.5 * (extent - 1.0)) < (0.5 + _BEYOND) * extent).all(axis=1)
    if sample.joints is not None and sample.intrinsics is not None:
        usable &= sample.joints[:, 2] > 0.0
    if usable.any():
        low, high = points[usable].min(axis=0), points[usable].max(axis=0)
        center, side = 0.5 * (low + high), factor * max(float((high - low).max()), 1.0)
    else:
        center, side = 0.5 * (extent - 1.0), float(extent.max())
    # Boxes are bounded by pixels' edges, half a pixel from their centres.
    left, top = center + 0.5 - 0.5 * side
    image, affine32, _ = crop_square(picture, (left, top, side, side), size)
    affine = affine32.astype(np.float64)
    mask = None
    if sample.mask is not None:
        # Beyond the picture the square is mid-grey in every channel: what is grey of an empty mask is taken off.
        covered = 255 * sample.mask.astype(np.uint8)
        channels, _, _ = crop_square(
            np.stack([covered, np.zeros_like(covered), covered], axis=-1), (left, top, side, side), size
        )
        mask = (channels[..., 0].astype(np.float32) - channels[..., 1].astype(np.float32)) / np.float32(255.0)

    depth = None
    if sample.depth is not None:
        of_hand = sample.depth if sample.mask is None else np.where(sample.mask, sample.depth, np.float32(0.0))
        depth = _point_samples(of_hand, affine, size)

    moved = points @ affine[:, :2].T + affine[:, 2]
    moved = np.where(usable[:, None], moved, 0.5 * (size - 1))
    has_intrinsics = sample.intrinsics is not None
    intrinsics = np.eye(3)
    if sample.intrinsics is not None:
        intrinsics = np.concatenate([affine, [[0.0, 0.0, 1.0]]]) @ sample.intrinsics.astype(np.float64)
    has_joints = has_intrinsics and sample.joints is not None
    if has_joints:
        assert sample.joints is not None
        joints = sample.joints.astype(np.float64)
    else:
        joints = _flat_hand(moved, intrinsics, has_intrinsics, size)
    has_pose = has_joints and sample.pose is not None and sample.betas is not None
    pose = sample.pose if has_pose and sample.pose is not None else np.zeros((16, 3))
    betas = sample.betas if has_pose and sample.betas is not None else np.zeros(10)
    return CutOut(
        image=image,
        mask=mask,
        depth=depth,
        affine=affine,
        keypoints_2d=moved.astype(np.float32),
        keypoint_weight=usable.astype(np.float32),
        intrinsics=intrinsics.astype(np.float32),
        joints=joints.astype(np.float32),
        pose=pose.astype(np.float32),
        betas=betas.astype(np.float32),
        has_joints=has_joints,
        has_pose=has_pose,
        has_intrinsics=has_intrinsics,
    )


def _point_samples(values: FloatArray, affine: npt.NDArray[np.float64], size: int) -> FloatArray:
    """The value (size, size) of the nearest pixel of (height, width), 0 beyond, for an affine map without rotation."""
    at = np.arange(size)
    column, row = (np.round((at - affine[i, 2]) / affine[i, i]).astype(int) for i in (0, 1))
    height, width = values.shape
    inside = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))[None]
    found = values[np.clip(row, 0, height - 1)[:, None], np.clip(column, 0, width - 1)[None]]
    return np.where(inside, found, np.float32(0.0)).astype(np.float32)


def _flat_hand(
    pixels: npt.NDArray[np.float64], intrinsics: npt.NDArray[np.float64], has_intrinsics: bool, size: int
) -> npt.NDArray[np.float64]:
    """Joints (21, 3), metres, of a hand known by its keypoints alone, parallel to the picture.

    Nobody learns from them; but losses divide by a bone before they multiply by a weight of 0.
    """
    if has_intrinsics:
        rays = np.concatenate([pixels, np.ones((21, 1))], axis=1) @ np.linalg.inv(intrinsics).T
    else:
        scale = _WHOLE / (size * _DISTANCE)
        rays = np.concatenate([scale * (pixels - 0.5 * (size - 1)), np.ones((21, 1))], axis=1)
    return _DISTANCE * rays


def put_before(
    image: npt.NDArray[np.uint8], mask: FloatArray, background: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """A picture (size, size, 3) where the mask (size, size) is 1, a background where it is 0, mixed between them."""
    share = mask[..., None]
    mixed = share * image.astype(np.float32) + (np.float32(1.0) - share) * background.astype(np.float32)
    return np.round(mixed).astype(np.uint8)


class Loader:
    """The samples of one or several datasets as batches in host memory.

    Iterating gives `LoadedBatch`es; `batch(step, positions)` makes it a source of training, whose steps are the same
    batches. For the latter a step's positions are those of its `config.batch` samples.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        config: LoaderConfig,
        *,
        weights: Sequence[float] | None = None,
        pictures: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Plans the order; nothing is read yet.

        Args:
            readers: the datasets; several threads may read them at the same time.
            config: what is given.
            weights: share of each dataset among the samples, up to a common factor; equal shares if None.
            pictures: (count, size, size, 3) sRGB, backgrounds to put hands with a mask before; None keeps their own.

        Raises:
            InputError: if Grain is missing or the arguments do not fit to each other.
        """
        grain = _grain()
        weights = [1.0] * len(readers) if weights is None else list(weights)
        if not readers or len(weights) != len(readers) or not all(w > 0.0 and np.isfinite(w) for w in weights):
            raise InputError(
                f"a loader wants datasets and one positive weight for each, got {len(readers)} and {weights}"
            )
        for number, reader in enumerate(readers):
            if len(reader) == 0:
                raise InputError(f"dataset {number} of the loader is empty: leave it out")
        if pictures is not None and (pictures.ndim != 4 or pictures.shape[1:] != (config.size, config.size, 3)):
            raise InputError(
                f"backgrounds have shape (count, {config.size}, {config.size}, 3), not {pictures.shape}: "
                "make them of the loader's size"
            )
        self._readers, self._config = tuple(readers), config
        self._pictures = None if pictures is None or len(pictures) == 0 else pictures
        self._skipped: dict[tuple[int, int], str] = {}
        streams = [self._stream(grain, number) for number in range(len(readers))]
        self._samples = grain.MapDataset.mix(streams, weights) if len(streams) > 1 else streams[0]
        settings = dataclasses.asdict(dataclasses.replace(config, threads=0))
        plan = [settings, [len(reader) for reader in readers], weights, 0 if pictures is None else len(pictures)]
        self._digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """Samples of this shard over all epochs; the largest integer where they never end."""
        return len(self._samples)

    @property
    def skipped(self) -> tuple[str, ...]:
        """What was wrong with the unreadable samples that were replaced so far, one line each."""
        return tuple(self._skipped[key] for key in sorted(self._skipped))

    def loaded(self, numbers: Sequence[int]) -> LoadedBatch:
        """The samples at some positions of this shard's sequence.

        Raises:
            IndexError: if a position is not one of 0 ... len - 1.
            InputError: if a sample cannot be read, naming it.
        """
        for number in numbers:
            if not 0 <= number < len(self):
                raise IndexError(f"the loader has samples 0 to {len(self) - 1}, got {number}")
        try:
            if self._config.threads == 0:
                return self._collate([self._samples[int(number)] for number in numbers])
            with concurrent.futures.ThreadPoolExecutor(self._config.threads) as threads:
                return self._collate(list(threads.map(lambda number: self._samples[int(number)], numbers)))
        except InputError as error:
            raise _one_line(error) from None

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """The samples at some positions, 0 ... config.batch - 1, of a step; the protocol of training sources.

        Raises:
            IndexError: past the end of the last epoch.
            InputError: if a sample cannot be read, naming it.
        """
        return self.loaded([step * self._config.batch + position for position in positions]).batch

    def __iter__(self) -> "LoadedBatches":
        """Batches from the beginning, prepared ahead by threads."""
        grain, config = _grain(), self._config
        batches = self._samples.batch(config.batch, drop_remainder=config.drop_remainder, batch_fn=self._collate)
        # Every element here is a whole batch: a few ahead are enough, and more would only fill the memory.
        ahead = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=2 * config.threads)
        return LoadedBatches(iter(batches.to_iter_dataset(ahead)), self._digest)

    def _collate(self, elements: Sequence[_Element]) -> LoadedBatch:
        loaded, mask, depth = _collate(elements), None, None
        if self._config.masks or self._config.depths:
            masks = np.stack([_known(element, element.square.mask, "mask") for element in elements])
            mask = np.round(np.float32(255.0) * masks).astype(np.uint8) if self._config.masks else None
        if self._config.depths:
            depth = np.stack([_known(element, element.square.depth, "depth map") for element in elements])
        return dataclasses.replace(loaded, batch=dataclasses.replace(loaded.batch, mask=mask, depth=depth))

    def _stream(self, grain: Any, dataset: int) -> Any:
        """One dataset's endless or ended sequence of elements, of which this shard has every `shard_count`th."""
        config, count = self._config, len(self._readers[dataset])
        stream = grain.MapDataset.range(count).seed(_stream_seed(config.seed, dataset))
        if config.shuffle:
            stream = stream.shuffle()
        # Dealt after repeating, shards stay equally long where they do not divide the epoch; dealt before mixing, each
        # has every dataset's share.
        stream = stream.repeat(config.epochs).map_with_index(self._element(dataset))
        return stream[config.shard_index :: config.shard_count] if config.shard_count > 1 else stream

    def _element(self, dataset: int) -> Callable[[int, int], _Element]:
        count = len(self._readers[dataset])

        def element(number: int, index: int) -> _Element:
            sample = self._read(dataset, int(index))
            square = cut_out(sample, self._config.size, self._config.factor)
            image = square.image
            if self._pictures is not None and square.mask is not None and square.mask.any():
                # All draws are made, whatever comes of them, from seed, dataset, epoch and index alone.
                random = np.random.default_rng([self._config.seed, dataset, number // count, int(index)])
                choice, which, turned = random.random(), random.integers(len(self._pictures)), random.random()
                if choice < self._config.pasted:
                    background = self._pictures[which]
                    background = background[:, ::-1] if turned < 0.5 else background
                    image = put_before(image, square.mask, background)
            return _Element(square, image, sample.name, sample.joint_definition)

        return element

    def _read(self, dataset: int, index: int) -> Sample:
        """A sample, or the next one that can be read."""
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


class LoadedBatches:
    """An iterator over a loader's batches that can be stopped and continued anywhere."""

    def __init__(self, batches: Any, digest: str) -> None:
        self._batches, self._digest = batches, digest

    def __iter__(self) -> "LoadedBatches":
        return self

    def __next__(self) -> LoadedBatch:
        try:
            return next(self._batches)
        except InputError as error:
            raise _one_line(error) from None

    def get_state(self) -> dict[str, Any]:
        """Where the iterator stands, for JSON."""
        return {"position": self._batches.get_state(), "loader": self._digest}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly where the iterator stood whose state this is.

        Raises:
            InputError: if that iterator was of another loader, whose batches were others.
        """
        if state.get("loader") != self._digest:
            raise InputError("this state is of a loader with other datasets or settings: use the same ones to continue")
        self._batches.set_state(state["position"])


def _collate(elements: Sequence[_Element]) -> LoadedBatch:
    def stack(name: str) -> FloatArray:
        return np.stack([np.asarray(getattr(element.square, name), np.float32) for element in elements])

    return LoadedBatch(
        batch=Batch(
            image=np.stack([element.image for element in elements]),
            keypoints_2d=stack("keypoints_2d"),
            keypoint_weight=stack("keypoint_weight"),
            intrinsics=stack("intrinsics"),
            joints=stack("joints"),
            pose=stack("pose"),
            betas=stack("betas"),
            has_joints=stack("has_joints"),
            has_3d=stack("has_pose"),
            has_intrinsics=stack("has_intrinsics"),
        ),
        names=tuple(element.name for element in elements),
        joint_definitions=tuple(element.joint_definition for element in elements),
    )


def _known(element: _Element, values: FloatArray | None, what: str) -> FloatArray:
    if values is None:
        raise InputError(f"{element.name}: has no {what}: leave out the losses that compare with it")
    return values


def _one_line(error: InputError) -> InputError:
    """An error without what Grain appends to its message and notes."""
    return InputError(str(error).partition("\n")[0])


def _stream_seed(seed: int, dataset: int) -> int:
    """A seed of its own for every dataset; neighbouring ones would give the same orders, epochs apart."""
    return int(np.random.SeedSequence([seed, dataset]).generate_state(1)[0])


def _grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise InputError(f"Grain is not usable ({error}): pip install 'handtailor-jax[datasets]'") from None
    return grain

"""Rendered samples on disk: files in FreiHAND's layout, and pools for machines that train faster than they render.

    OUT/training/rgb/%08d.jpg      OUT/training_{K,mano,scale,verts,xyz}.json
    OUT/training/mask/%08d.jpg     OUT/contact_sheet.jpg

The test split is written as `evaluation`. The mesh is the embedded hand's (1609 vertices, not 778). A pool is a folder
of shards; a shard is a folder of .npy files, which training maps into memory. Only complete shards get their final
name, so interrupted rendering continues with the next shard, and a pool can grow.
"""

import dataclasses
import hashlib
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from handtailor_jax.data.readers.freihand import RENDERED_PARTS
from handtailor_jax.data.sample import Batch, labelled_batch
from handtailor_jax.errors import InputError
from handtailor_jax.images import SUFFIXES, crop_square, read_image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.render.overlay import contact_sheet
from handtailor_jax.results import appearing, write_image, write_json
from handtailor_jax.skeleton import NUM_BETAS, NUM_JOINTS, NUM_KEYPOINTS, ROOT
from handtailor_jax.synthetic.dataset import Split, SyntheticConfig, SyntheticDataset, SyntheticSample

SHARD = 128
"""Number of samples in a shard of a pool."""

_SHEET = 64
_LISTS = ("K", "mano", "scale", "verts", "xyz")
_FIELDS = ("image", "keypoints_2d", "intrinsics", "joints", "pose", "betas")


def read_photographs(folder: Path, side: int = 320, limit: int = 4000) -> np.ndarray:
    """Read the middle squares of at most `limit` photographs as uint8 RGB (photographs, side, side, 3).

    Subfolders are searched, too, in the order of names.

    Raises:
        InputError: If the folder does not exist or holds no image that can be read.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    squares = []
    for path in files[:limit]:
        photograph = read_image(path)
        height, width = photograph.shape[:2]
        short = min(height, width)
        box = (float((width - short) // 2), float((height - short) // 2), float(short), float(short))
        squares.append(crop_square(photograph, box, side)[0])
    if not squares:
        raise InputError(f"{folder}: holds no images: give a folder of photographs")
    return np.stack(squares)


def write_freihand(dataset: SyntheticDataset, count: int, out: Path) -> None:
    """Write the first samples of a dataset to a folder, which appears when it is complete.

    `K`, `xyz` (metres) and `verts` are in the camera frame. `mano` holds 48 pose values (fingers relative to the
    model's mean pose, as in FreiHAND), 10 shape coefficients, u and v of the root, and pixels per metre at its depth.
    `scale` is the length of the middle finger's proximal phalanx.

    Samples are collected in a hidden folder beside `out`, whose name ends in .partial. After an interruption the same
    call continues there, also with another count.

    Args:
        dataset: Source of the samples.
        count: Number of samples.
        out: Output folder, which must be empty or not exist yet.

    Raises:
        InputError: If the folder is in use or cannot be written, or if the split has fewer samples.
    """
    if not 1 <= count <= len(dataset):
        raise InputError(f"count must be between 1 and {len(dataset)} for the {dataset.split} split, got {count}")
    if out.resolve() == Path.cwd():
        raise InputError(f"{out}: is the working folder: name a new folder as --out")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"{out}: exists already: choose another --out or remove it")
    seed = dataset.seed if dataset.split == "train" else 0
    photographs = zlib.crc32(np.asarray(dataset.assets.photographs).tobytes())
    partial = out.with_name(f".{out.name}.{_digest(dataset.config, dataset.split, seed, photographs)}.partial")
    try:
        _write_layout(dataset, count, partial, RENDERED_PARTS[dataset.split])
        partial.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}): choose another --out") from None


def _digest(config: SyntheticConfig, *more: Any) -> str:
    """Return a hash of the settings that samples depend on: all but the number of images rendered at once."""
    settings = dataclasses.asdict(dataclasses.replace(config, images_at_once=1))
    text = json.dumps([settings, *more] if more else settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _write_layout(dataset: SyntheticDataset, count: int, folder: Path, part: str) -> None:
    """Write a dataset, except the batches whose labels exist already."""
    labels, images = folder / "labels", folder / part / "rgb"
    labels.mkdir(parents=True, exist_ok=True)
    step = dataset.config.images_at_once
    pieces = []
    with tqdm(total=count, desc="rendering", unit="image") as bar:
        for first in range(0, count, step):
            last = min(first + step, count)
            pieces.append(labels / f"{first:08d}-{last:08d}.json")
            if not pieces[-1].is_file():
                _write_batch(dataset, first, last, folder / part, pieces[-1])
            bar.update(last - first)
    for name in _LISTS:
        # Batch by batch, because the vertices of a whole dataset do not fit into memory as text.
        with (folder / f"{part}_{name}.json").open("w", encoding="utf-8") as file:
            for number, piece in enumerate(pieces):
                file.write((",\n" if number else "[") + ",\n".join(json.loads(piece.read_text("utf-8"))[name]))
            file.write("]\n")
    sheet = [read_image(images / f"{index:08d}.jpg") for index in range(min(count, _SHEET))]
    write_image(folder / "contact_sheet.jpg", contact_sheet(sheet, 8))
    shutil.rmtree(labels)
    for path in [*folder.rglob("*.jpg")]:  # temporary files of killed runs, and images of a larger count
        if path.name.startswith(".") or (path.stem.isdecimal() and int(path.stem) >= count):
            path.unlink()


def _write_batch(dataset: SyntheticDataset, first: int, last: int, folder: Path, piece: Path) -> None:
    """Write the images of some samples, and then their entries of each list, as text."""
    batch = jax.device_get(dataset.batch(np.arange(first, last)))
    lists: dict[str, list[str]] = {name: [] for name in _LISTS}
    for index in range(first, last):
        sample = jax.tree.map(lambda leaf, row=index - first: leaf[row], batch)
        write_image(folder / "rgb" / f"{index:08d}.jpg", sample.image)
        mask = np.repeat(255 * sample.mask[..., None].astype(np.uint8), 3, axis=-1)
        write_image(folder / "mask" / f"{index:08d}.jpg", mask)
        for name, entry in _annotation(sample, dataset.assets.hand).items():
            lists[name].append(json.dumps(entry, separators=(",", ":")))
    write_json(piece, lists)


def _annotation(sample: SyntheticSample, hand: HandModel) -> dict[str, Any]:
    """Return the entry of each JSON list for one sample."""
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = sample.camera.linear, sample.camera.center
    joints = np.asarray(sample.joints, np.float64)
    fingers = np.asarray(sample.pose, np.float64)[1:].reshape(45) - np.asarray(hand.pose_mean, np.float64)
    # FreiHAND puts the root at ((u, v) - center, f) / scale with one focal length for both axes.
    focal = 0.5 * (matrix[0, 0] + matrix[1, 1])
    pixels_per_metre = focal / joints[ROOT, 2]
    root = matrix[:2, 2] + pixels_per_metre * joints[ROOT, :2]
    mano = np.concatenate([np.asarray(sample.pose)[0], fingers, np.asarray(sample.betas), root, [pixels_per_metre]])
    return {
        "K": matrix.tolist(),
        "mano": [np.round(mano, 7).tolist()],
        "scale": float(np.linalg.norm(joints[ROOT] - joints[ROOT + 1])),
        "verts": np.round(np.asarray(sample.vertices, np.float64), 5).tolist(),
        "xyz": np.round(joints, 7).tolist(),
    }


class SamplePool:
    """Random access to the first samples of a split; missing samples are rendered when the pool is opened."""

    def __init__(
        self,
        folder: Path,
        config: SyntheticConfig,
        count: int,
        split: Split = "train",
        seed: int = 0,
        photographs: np.ndarray | None = None,
    ) -> None:
        """Open a pool and render missing shards.

        Args:
            folder: Folder of all pools; every configuration, split and seed has a folder of its own in it.
            config: Distribution of the samples.
            count: Number of samples.
            split: "train" or "test".
            seed: Seed of the training split.
            photographs: Background photographs (see `load_assets`).

        Raises:
            InputError: If the folder cannot be written, a shard is damaged, or the split has fewer samples.
        """
        self.count = count
        more = [] if photographs is None else [zlib.crc32(photographs.tobytes())]
        self.folder = folder / f"{split}-{config.size}px-seed{seed}-{_digest(config, *more)}"
        shards = [self.folder / f"{i:05d}" for i in range(-(-count // SHARD))]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            missing = [shard for shard in shards if not shard.is_dir()]
            if missing:
                dataset = SyntheticDataset(config, split, seed, photographs)
                if not 1 <= count <= len(dataset):
                    raise InputError(f"count is {count}: give 1 to {len(dataset)}, as many as the {split} split has")
                _render(dataset, missing)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror}): choose another cache") from None
        self._arrays = [_open(shard, config.size) for shard in shards]

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the samples of several indices, in host memory; raise IndexError if one is outside the pool."""
        wanted = np.asarray(indices)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.count:
            raise IndexError(f"the pool has samples 0 to {self.count - 1}, got {wanted}")
        rows = [divmod(int(i), SHARD) for i in wanted]
        columns: Any = {name: np.stack([self._arrays[shard][name][row] for shard, row in rows]) for name in _FIELDS}
        return labelled_batch(**columns)


def _open(shard: Path, size: int) -> dict[str, np.ndarray]:
    shapes = {
        "image": (SHARD, size, size, 3),
        "keypoints_2d": (SHARD, NUM_KEYPOINTS, 2),
        "intrinsics": (SHARD, 3, 3),
        "joints": (SHARD, NUM_KEYPOINTS, 3),
        "pose": (SHARD, NUM_JOINTS, 3),
        "betas": (SHARD, NUM_BETAS),
    }
    try:
        arrays = {name: np.load(shard / f"{name}.npy", mmap_mode="r") for name in _FIELDS}
        for name, array in arrays.items():
            if array.shape != shapes[name] or array.dtype != (np.uint8 if name == "image" else np.float32):
                raise ValueError(f"{name} holds {array.dtype} of shape {array.shape}")
        return arrays
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{shard}: is damaged ({error}): remove this folder to render it again") from None


def _render(dataset: SyntheticDataset, missing: list[Path]) -> None:
    """Render shards, whose names are their numbers."""
    piece = 16
    with tqdm(total=SHARD * len(missing), desc=f"rendering {dataset.split} samples", unit="image") as progress:
        for shard in missing:
            parts = []
            for first in range(int(shard.name) * SHARD, (int(shard.name) + 1) * SHARD, piece):
                # The test split ends within a shard: the rest of it repeats the last sample.
                sample = dataset.batch(np.minimum(np.arange(first, first + piece), len(dataset) - 1))
                labels = (sample.joints, sample.pose, sample.betas)
                parts.append(jax.device_get((sample.image, sample.keypoints_2d, sample.camera.matrix, *labels)))
                progress.update(piece)
            arrays = dict(zip(_FIELDS, map(np.concatenate, zip(*parts, strict=True)), strict=True))
            try:
                with appearing(shard) as temporary:
                    temporary.mkdir()
                    for name, array in arrays.items():
                        np.save(temporary / f"{name}.npy", array)
            except (OSError, InputError):
                # Another process may have rendered the same shard meanwhile, with the same content.
                if not shard.is_dir():
                    raise

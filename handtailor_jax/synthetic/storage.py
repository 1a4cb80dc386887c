"""Rendered samples on disk: files in FreiHAND's layout, and pools for machines that train faster than they render.

    OUT/training/rgb/%08d.jpg      OUT/training_{K,mano,scale,verts,xyz}.json
    OUT/training/mask/%08d.jpg     OUT/contact_sheet.jpg

The test split is written as `evaluation`. The mesh is the embedded hand's (1609 vertices, not 778). A pool is a folder
of shards; a shard is a folder of .npy files, which training maps into memory. Only complete shards get their final
name, so interrupted rendering continues with the next shard, and a pool can grow.
"""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from handtailor_jax.data.readers.freihand import RENDERED_PARTS
from handtailor_jax.data.sample import Batch
from handtailor_jax.errors import InputError
from handtailor_jax.images import crop_square, read_image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.render.overlay import contact_sheet
from handtailor_jax.results import appearing, write_image
from handtailor_jax.skeleton import NUM_KEYPOINTS, ROOT
from handtailor_jax.synthetic.dataset import Split, SyntheticConfig, SyntheticDataset, SyntheticSample

SHARD = 128
"""Number of samples in a shard of a pool."""

_SHEET = 64
_LISTS = ("K", "mano", "scale", "verts", "xyz")
_FIELDS = ("image", "keypoints_2d", "intrinsics", "joints", "pose", "betas")


def read_photographs(folder: Path, side: int = 320, limit: int = 4000) -> np.ndarray:
    """Read the middle squares of at most `limit` JPEG and PNG photographs as uint8 RGB (photographs, side, side, 3).

    Subfolders are searched, too, in the order of names.

    Raises:
        InputError: If the folder does not exist or holds no image that can be read.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.is_file()
    ]
    squares = []
    for path in files[:limit]:
        photograph = read_image(path)
        height, width = photograph.shape[:2]
        short = min(height, width)
        box = (float((width - short) // 2), float((height - short) // 2), float(short), float(short))
        squares.append(crop_square(photograph, box, side)[0])
    if not squares:
        raise InputError(f"{folder}: holds no JPEG or PNG images: give a folder of photographs")
    return np.stack(squares)


def write_freihand(dataset: SyntheticDataset, count: int, out: Path, progress: bool = True) -> None:
    """Write the first samples of a dataset to a folder; on a failure nothing is written.

    `K`, `xyz` (metres) and `verts` are in the camera frame. `mano` holds 48 pose values (fingers relative to the
    model's mean pose, as in FreiHAND), 10 shape coefficients, u and v of the root, and pixels per metre at its depth.
    `scale` is the length of the middle finger's proximal phalanx.

    Args:
        dataset: Source of the samples.
        count: Number of samples.
        out: Output folder, which must be empty or not exist yet.
        progress: Whether to show a progress bar on stderr.

    Raises:
        InputError: If the folder is in use or cannot be written, or if the split has fewer samples.
    """
    if not 1 <= count <= len(dataset):
        raise InputError(f"count must be between 1 and {len(dataset)} for the {dataset.split} split, got {count}")
    if out.resolve() == Path.cwd():
        raise InputError(f"{out}: is the working folder: name a new folder as --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already: choose another --out or remove it")
    try:
        with appearing(out) as folder:
            _write_layout(dataset, count, folder, RENDERED_PARTS[dataset.split], progress)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}): choose another --out") from None


def _write_layout(dataset: SyntheticDataset, count: int, folder: Path, part: str, progress: bool) -> None:
    for name in ("rgb", "mask"):
        (folder / part / name).mkdir(parents=True)
    images: list[np.ndarray] = []
    step = dataset.config.images_at_once
    with contextlib.ExitStack() as stack:
        # Entry by entry, because the vertices of a whole dataset do not fit into memory as text.
        paths = {name: folder / f"{part}_{name}.json" for name in _LISTS}
        lists = {name: stack.enter_context(path.open("w", encoding="utf-8")) for name, path in paths.items()}
        bar = stack.enter_context(tqdm(total=count, unit="image", disable=not progress))
        for index in range(count):
            if index % step == 0:
                batch = jax.device_get(dataset.batch(np.arange(index, min(index + step, count))))
            sample = jax.tree.map(lambda leaf, i=index % step: leaf[i], batch)
            images += [sample.image] if index < _SHEET else []
            write_image(folder / part / "rgb" / f"{index:08d}.jpg", sample.image)
            mask = np.repeat(255 * sample.mask[..., None].astype(np.uint8), 3, axis=-1)
            write_image(folder / part / "mask" / f"{index:08d}.jpg", mask)
            for name, entry in _annotation(sample, dataset.assets.hand).items():
                lists[name].write((",\n" if index else "[") + json.dumps(entry, separators=(",", ":")))
            bar.update()
        for file in lists.values():
            file.write("]\n")
    write_image(folder / "contact_sheet.jpg", contact_sheet(images, 8))


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
        self, folder: Path, config: SyntheticConfig, count: int, split: Split = "train", seed: int = 0
    ) -> None:
        """Open a pool and render missing shards.

        Args:
            folder: Folder of all pools; every configuration, split and seed has a folder of its own in it.
            config: Distribution of the samples.
            count: Number of samples.
            split: "train" or "test".
            seed: Seed of the training split.

        Raises:
            InputError: If the folder cannot be written or a shard is damaged.
        """
        # The samples do not depend on the number of images rendered at once.
        settings = dataclasses.asdict(dataclasses.replace(config, images_at_once=1))
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        self.count = count
        self.folder = folder / f"{split}-{config.size}px-seed{seed}-{digest}"
        shards = [self.folder / f"{i:05d}" for i in range(-(-count // SHARD))]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            missing = [shard for shard in shards if not shard.is_dir()]
            if missing:
                _render(SyntheticDataset(config, split, seed), missing)
        except OSError as error:
            message = f"{self.folder}: cannot be written ({error.strerror}): choose another cache folder"
            raise InputError(message) from None
        self._arrays = [_open(shard) for shard in shards]

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the samples of several indices, in host memory; raise IndexError if one is outside the pool."""
        wanted = np.asarray(indices)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.count:
            raise IndexError(f"the pool has samples 0 to {self.count - 1}, got {wanted}")
        rows = [divmod(int(i), SHARD) for i in wanted]
        columns = {name: np.stack([self._arrays[shard][name][row] for shard, row in rows]) for name in _FIELDS}
        weights = np.ones((len(rows), NUM_KEYPOINTS), np.float32)
        known = dict.fromkeys(("has_joints", "has_3d", "has_intrinsics"), np.ones(len(rows), np.float32))
        return Batch(keypoint_weight=weights, **known, **columns)


def _open(shard: Path) -> dict[str, np.ndarray]:
    try:
        return {name: np.load(shard / f"{name}.npy", mmap_mode="r") for name in _FIELDS}
    except (OSError, ValueError) as error:
        raise InputError(f"{shard}: is damaged ({error}): remove this folder to render it again") from None


def _render(dataset: SyntheticDataset, missing: list[Path]) -> None:
    """Render shards, whose names are their numbers."""
    piece = 16
    with tqdm(total=SHARD * len(missing), desc=f"rendering {dataset.split} samples", unit="image") as progress:
        for shard in missing:
            parts = []
            for first in range(int(shard.name) * SHARD, (int(shard.name) + 1) * SHARD, piece):
                sample = dataset.batch(np.arange(first, first + piece))
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

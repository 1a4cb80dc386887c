"""Write rendered samples as files in FreiHAND's layout, which every reader of that dataset reads.

    OUT/training/rgb/%08d.jpg      OUT/training_{K,mano,scale,verts,xyz}.json
    OUT/training/mask/%08d.jpg     OUT/contact_sheet.jpg

The test split is written as `evaluation`. The mesh is the embedded hand's (1609 vertices, not 778).
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from handtailor_jax.data.readers.freihand import RENDERED_PARTS
from handtailor_jax.errors import InputError
from handtailor_jax.images import crop_square, read_image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.render.overlay import contact_sheet
from handtailor_jax.results import appearing, write_image
from handtailor_jax.skeleton import ROOT
from handtailor_jax.synthetic.dataset import SyntheticDataset, SyntheticSample

_FIELDS = ("K", "mano", "scale", "verts", "xyz")
_SHEET = 64


def read_photographs(folder: Path, side: int = 320, limit: int = 4000) -> np.ndarray:
    """Read the middle squares of JPEG and PNG photographs as uint8 RGB (photographs, side, side, 3).

    Args:
        folder: Searched with its subfolders, in the order of names.
        side: Side of the resized squares in pixels.
        limit: Largest number of photographs; they take limit x side x side x 3 bytes of memory.

    Raises:
        InputError: If the folder does not exist or holds no image that can be read.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
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
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already: choose another --out or remove it")
    try:
        with appearing(out) as folder:
            _write(dataset, count, folder, RENDERED_PARTS[dataset.split], progress)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}): choose another --out") from None


def _write(dataset: SyntheticDataset, count: int, folder: Path, part: str, progress: bool) -> None:
    for name in ("rgb", "mask"):
        (folder / part / name).mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        # Entry by entry, because the vertices of a whole dataset do not fit into memory as text.
        lists = {
            field: stack.enter_context((folder / f"{part}_{field}.json").open("w", encoding="utf-8"))
            for field in _FIELDS
        }
        images: list[np.ndarray] = []
        for index, sample in enumerate(_samples(dataset, count, progress)):
            write_image(folder / part / "rgb" / f"{index:08d}.jpg", np.asarray(sample.image))
            mask = np.repeat(255 * np.asarray(sample.mask, np.uint8)[..., None], 3, axis=-1)
            write_image(folder / part / "mask" / f"{index:08d}.jpg", mask)
            for field, entry in _annotation(sample, dataset.assets.hand).items():
                lists[field].write((",\n" if index else "[") + json.dumps(entry, separators=(",", ":")))
            if index < _SHEET:
                images.append(np.asarray(sample.image))
        for file in lists.values():
            file.write("]\n")
    write_image(folder / "contact_sheet.jpg", contact_sheet(images, 8))


def _samples(dataset: SyntheticDataset, count: int, progress: bool) -> Iterator[SyntheticSample]:
    """Yield the first samples with NumPy arrays."""
    step = dataset.config.images_at_once
    with tqdm(total=count, unit="image", disable=not progress) as bar:
        for first in range(0, count, step):
            batch = jax.device_get(dataset.batch(np.arange(first, min(first + step, count))))
            for i in range(len(batch.left)):
                yield jax.tree.map(lambda leaf, i=i: leaf[i], batch)
                bar.update()


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
        "mano": [_rounded(mano, 7)],
        "scale": float(np.linalg.norm(joints[ROOT] - joints[ROOT + 1])),
        "verts": _rounded(sample.vertices, 5),
        "xyz": _rounded(joints, 7),
    }


def _rounded(values: Any, digits: int) -> Any:
    return np.round(np.asarray(values, np.float64), digits).tolist()

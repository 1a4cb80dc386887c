"""Rendered samples as files in FreiHAND's layout, so that any reader of that dataset reads them.

    OUT/training/rgb/%08d.jpg      OUT/training_{K,mano,scale,verts,xyz}.json
    OUT/training/mask/%08d.jpg     OUT/contact_sheet.jpg

The test split is written as `evaluation`. The mesh is the embedded hand's (1609 vertices, not 778).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from handtailor_jax.data.readers.freihand import RENDERED_PARTS
from handtailor_jax.errors import InputError
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.render.overlay import contact_sheet
from handtailor_jax.results import appearing
from handtailor_jax.skeleton import ROOT
from handtailor_jax.synthetic.dataset import SyntheticDataset, SyntheticSample

_FIELDS = ("K", "mano", "scale", "verts", "xyz")
_SHEET = 64


def write_freihand(dataset: SyntheticDataset, count: int, out: Path, progress: bool = True) -> None:
    """Writes the first `count` samples of a dataset to a folder: all of it or, on any failure, nothing.

    `K`, `xyz` (metres) and `verts` are in the camera frame; `mano` holds 48 pose values (fingers relative to the
    model's mean pose, as in FreiHAND), 10 shape coefficients, u and v of the root and pixels per metre at its depth;
    `scale` is the length of the middle finger's proximal phalanx.

    Args:
        dataset: where samples come from.
        count: how many.
        out: a folder that does not exist or is empty.
        progress: whether to show a bar on stderr.

    Raises:
        InputError: if the folder is in use, the disk refuses, or there are not that many samples.
    """
    if not 1 <= count <= len(dataset):
        raise InputError(f"count must be between 1 and {len(dataset)} for the {dataset.split} split, got {count}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already: choose another --out or remove it")
    part = RENDERED_PARTS[dataset.split]
    try:
        with appearing(out) as work:
            for name in ("rgb", "mask"):
                (work / part / name).mkdir(parents=True)
            with _Lists(work, part) as lists:
                pictures = []
                for index, sample in enumerate(_samples(dataset, count, progress)):
                    _write_picture(work / part / "rgb" / f"{index:08d}.jpg", sample.image)
                    mask = np.repeat(255 * np.asarray(sample.mask, np.uint8)[..., None], 3, axis=-1)
                    _write_picture(work / part / "mask" / f"{index:08d}.jpg", mask)
                    lists.append(_annotation(sample, dataset.assets.hand))
                    if index < _SHEET:
                        pictures.append(np.asarray(sample.image))
            _write_picture(work / "contact_sheet.jpg", contact_sheet(pictures, 8))
            if out.exists():
                out.rmdir()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}): choose another --out") from None


def _samples(dataset: SyntheticDataset, count: int, progress: bool) -> Iterator[SyntheticSample]:
    """Samples 0 to count - 1 as numpy arrays, rendered in batches of one shape."""
    import jax
    from tqdm import tqdm

    step = dataset.config.images_at_once
    with tqdm(total=count, unit="image", disable=not progress) as bar:
        for first in range(0, count, step):
            # The last batch is filled up with samples that exist, so that nothing is compiled twice.
            indices = np.minimum(np.arange(first, first + step), count - 1)
            batch = jax.device_get(dataset.batch(indices))
            for i in range(min(step, count - first)):
                yield jax.tree.map(lambda leaf, i=i: leaf[i], batch)
                bar.update()


def _annotation(sample: SyntheticSample, hand: HandModel) -> dict[str, Any]:
    """The entry of each JSON list for one sample."""
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = sample.camera.linear, sample.camera.center
    joints = np.asarray(sample.joints, np.float64)
    fingers = np.asarray(sample.pose, np.float64)[1:].reshape(45) - np.asarray(hand.pose_mean, np.float64)
    # FreiHAND puts the root at ((u, v) - centre, f) / scale with one focal length for both axes.
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


class _Lists:
    """The JSON lists, written entry by entry: vertices of a whole dataset do not fit into memory as text."""

    def __init__(self, folder: Path, part: str) -> None:
        self._files: dict[str, TextIO] = {
            field: (folder / f"{part}_{field}.json").open("w", encoding="utf-8") for field in _FIELDS
        }
        self._separator = "["

    def __enter__(self) -> "_Lists":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.write("]\n")
            file.close()

    def append(self, entry: dict[str, Any]) -> None:
        for field, file in self._files.items():
            file.write(self._separator + json.dumps(entry[field], separators=(",", ":")))
        self._separator = ",\n"


def _write_picture(path: Path, picture: npt.ArrayLike) -> None:
    try:
        import cv2
    except ImportError as error:
        raise InputError(f"OpenCV is not usable ({error}): pip install opencv-python-headless") from None
    done, data = cv2.imencode(".jpg", np.asarray(picture)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not done:
        raise OSError(f"{path.name} could not be encoded")
    path.write_bytes(data.tobytes())

"""RHD, the Rendered Handpose Dataset (docs/datasets.md, "RHD").

    ROOT/training/    anno_training.pickle    color/00000.png ...  depth/00000.png ...  mask/00000.png ...
    ROOT/evaluation/  anno_evaluation.pickle  color/ ...           depth/ ...           mask/ ...

The splits have 41,258 and 2,728 images. `mano.safe_pickle` reads the annotation, so nothing in it is executed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.data.sample import (
    DoubleArray,
    FloatArray,
    Sample,
    check_choice,
    check_folders,
    mirrored_sample,
    read_aligned,
)
from handtailor_jax.errors import InputError, naming, read_file
from handtailor_jax.images import Image, read_image
from handtailor_jax.mano.safe_arrays import NUMPY_GLOBALS, UnreadableArray, array_of
from handtailor_jax.mano.safe_pickle import ForeignGlobal, Limits, PickleCutShort, UnreadablePickle, unpickle
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_KEYPOINTS, ROOT, WRIST, permutation

_ORDER = list(permutation(KEYPOINT_ORDERS["rhd"], KEYPOINTS))
_LEFT_IDS, _RIGHT_IDS = (2, 17), (18, 33)
_FARTHEST = 5.0  # metres of the largest depth code
_REMEDY = "unpack RHD_published_v2 again"
_MOST_BYTES = 256 * 2**20
_LIMITS = Limits(opcodes=5_000_000, text=256 * 2**20)
_MOST_SAMPLES = 65_536


class Rhd:
    """Samples of a split of RHD: one hand of every image, mirrored if it is a left hand.

    Joints may be hidden, outside the image, or behind the camera. K differs from image to image.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        hand: str = "mask",
        palm: str | None = None,
        depth: bool = False,
        mask: bool = False,
    ) -> None:
        """Read the annotation; images are decoded on access.

        Args:
            root: the folder RHD_published_v2.
            split: training or evaluation.
            hand: rule that chooses the hand. "mask": the left hand if it covers strictly more pixels of the mask.
                "visible": the left hand if it has strictly more visible keypoints. The right hand otherwise.
            palm: "zb" replaces the wrist by the midpoint of wrist and middle MCP, in 2D and 3D, visible if either is.
            depth: whether samples have a depth map.
            mask: whether samples have a mask.

        Raises:
            InputError: if a file is missing, damaged or unsafe, or a split or option does not exist.
        """
        check_choice("hand rule", hand, ("mask", "visible"), "RHD")
        check_choice("palm variant", palm, ("zb", None), "RHD")
        check_choice("split", split, ("training", "evaluation"), "RHD")
        self._folder, self._split, self._masks = root / split, split, mask or hand == "mask"
        self._hand, self._palm, self._depth, self._mask = hand, palm, depth, mask
        folders = [root, self._folder, self._folder / "color", *([self._folder / "mask"] if self._masks else [])]
        check_folders(folders, "give the path of RHD_published_v2, unpacked")
        self._path = self._folder / f"anno_{split}.pickle"
        self._ids, self._uv_vis, self._xyz, self._k = _annotation(self._path)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        file = f"{self._ids[index]:05d}.png"
        image = read_image(self._folder / "color" / file)
        masks: list[npt.NDArray[np.bool_]] = []
        if self._masks:
            part_ids = read_aligned(self._folder / "mask" / file, image, _REMEDY)[..., 0]
            masks = [(part_ids >= first) & (part_ids <= last) for first, last in (_LEFT_IDS, _RIGHT_IDS)]
        if self._hand == "mask":
            left = np.count_nonzero(masks[0]) > np.count_nonzero(masks[1])
        else:
            # Only the value 1 means visible.
            seen = (self._uv_vis[index, :, 2] == 1).reshape(2, NUM_KEYPOINTS).sum(axis=1)
            left = seen[0] > seen[1]
        rows = slice(0, NUM_KEYPOINTS) if left else slice(NUM_KEYPOINTS, 2 * NUM_KEYPOINTS)
        uv_vis, xyz = self._uv_vis[index, rows][_ORDER], self._xyz[index, rows][_ORDER]
        if not (np.isfinite(uv_vis).all() and np.isfinite(xyz).all() and np.isfinite(self._k[index]).all()):
            raise InputError(f"{self._path}: sample {self._ids[index]} has a value that is not a number: {_REMEDY}")
        uv, visible = uv_vis[:, :2], uv_vis[:, 2] == 1
        if self._palm == "zb":
            for points in (uv, xyz):
                points[WRIST] = 0.5 * (points[WRIST] + points[ROOT])
            visible[WRIST] |= visible[ROOT]
        sample = Sample(
            name=f"{self._split}/{self._ids[index]:05d}",
            image=image,
            keypoints_2d=uv.astype(np.float32),
            visible=visible,
            joints=xyz.astype(np.float32),
            intrinsics=self._k[index].astype(np.float32),
            depth=rhd_depth(read_aligned(self._folder / "depth" / file, image, _REMEDY)) if self._depth else None,
            mask=masks[0 if left else 1] if self._mask else None,
        )
        return mirrored_sample(sample) if left else sample


def rhd_depth(encoded: Image) -> FloatArray:
    """Decode a depth map (height, width, RGB) to metres (height, width): 5 m (256 R + G) / 65535; B is unused."""
    # Wider integers first, because 256 times a byte overflows.
    code = encoded[..., 0].astype(np.int32) * 256 + encoded[..., 1]
    return (code / 65535.0 * _FARTHEST).astype(np.float32)


def _annotation(path: Path) -> tuple[list[int], DoubleArray, DoubleArray, DoubleArray]:
    """Read sample ids in order, uv_vis (n, 42, 3), xyz (n, 42, 3) and K (n, 3, 3)."""
    content = _content(path)
    if not isinstance(content, dict) or not content or not all(type(key) is int and key >= 0 for key in content):
        raise InputError(f"{path}: holds no samples by number, as RHD v1.1 does: {_REMEDY}")
    if len(content) > _MOST_SAMPLES:
        raise InputError(f"{path}: holds {len(content)} samples; at most {_MOST_SAMPLES} expected: {_REMEDY}")
    ids = sorted(content)
    shapes = {"uv_vis": (2 * NUM_KEYPOINTS, 3), "xyz": (2 * NUM_KEYPOINTS, 3), "K": (3, 3)}
    arrays = {name: np.zeros((len(ids), *shape), np.float64) for name, shape in shapes.items()}
    for row, number in enumerate(ids):
        for name, shape in shapes.items():
            entry = content[number].get(name) if isinstance(content[number], dict) else None
            try:
                values = None if entry is None else array_of(entry)
            except UnreadableArray as error:
                what = f"{name} of sample {number} is {error}"
                raise InputError(f"{path}: is not a pickle of numbers: {what}: {_REMEDY}") from None
            if values is None or values.shape != shape:
                raise InputError(f"{path}: sample {number} has no {name} of shape {shape}, as RHD v1.1 does: {_REMEDY}")
            arrays[name][row] = values
    return ids, arrays["uv_vis"], arrays["xyz"], arrays["K"]


def _content(path: Path) -> Any:
    """Read the annotation's pickle without executing it."""
    with naming(path):
        content = read_file(path, _MOST_BYTES, _REMEDY)
        try:
            return unpickle(content, lambda module, name: (module, name) in NUMPY_GLOBALS, _LIMITS).value
        except (ForeignGlobal, PickleCutShort) as error:
            raise InputError(f"{error}: {_REMEDY}") from None
        except UnreadablePickle as error:
            raise InputError(f"is not a pickle of numbers (it {error}): {_REMEDY}") from None

"""Reader of the Rendered Handpose Dataset, RHD_published_v2 (datasets, section 1.1).

    ROOT/training/    anno_training.pickle    color/00000.png ...  depth/00000.png ...  mask/00000.png ...
    ROOT/evaluation/  anno_evaluation.pickle  color/ ...           depth/ ...           mask/ ...

41,258 and 2,728 pictures. A pickle is a program; this one is read without running it: of the few names that the file
may refer to none is looked up, each has a stand-in here that decodes plain numbers.
"""

import dataclasses
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from handtailor_jax.data.sample import Sample, mirrored_sample
from handtailor_jax.errors import InputError
from handtailor_jax.images import read_picture
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_KEYPOINTS, ROOT, WRIST, permutation

FloatArray = npt.NDArray[np.float32]

HAND_RULES = ("mask", "visible")
"""How the hand of a picture is chosen; see `RhdOptions.hand`."""

_SPLITS = ("training", "evaluation")
_ORDER = list(permutation(KEYPOINT_ORDERS["rhd"], KEYPOINTS))
_LEFT_IDS, _RIGHT_IDS = (2, 17), (18, 33)
_FARTHEST = 5.0  # metres, of the largest code
_AGAIN = "unpack RHD_published_v2 again"


@dataclasses.dataclass(frozen=True)
class RhdOptions:
    """What a number on RHD depends on, and what is decoded.

    Raises:
        InputError: for a choice that does not exist.
    """

    hand: str = "mask"
    """Which of the two hands is the sample: the left one if strictly more pixels of the mask are its own, or if it has
    strictly more visible keypoints; else the right one."""
    palm: str | None = None
    """zb: joint 0 becomes the midpoint of wrist and middle MCP, in 2D and 3D, visible where one of them is."""
    depth: bool = False
    """Whether the depth map is decoded."""
    mask: bool = False
    """Whether samples have a mask."""

    def __post_init__(self) -> None:
        if self.hand not in HAND_RULES:
            raise InputError(f"unknown hand rule {self.hand!r}: choose {' or '.join(HAND_RULES)}")
        if self.palm not in (None, "zb"):
            raise InputError(f"unknown palm variant {self.palm!r}: choose zb or None")


class Rhd:
    """One hand of every picture of a split of RHD, mirrored if it is a left one.

    Joints may lie outside of the picture, behind the camera, or be hidden. K differs from picture to picture.
    """

    def __init__(self, root: Path, split: str, options: RhdOptions = RhdOptions()) -> None:
        """Reads the annotation; pictures are decoded when they are asked for.

        Args:
            root: the folder RHD_published_v2.
            split: training or evaluation.
            options: see there.

        Raises:
            InputError: if a file is missing, cut short or foreign, or the split does not exist.
        """
        root = Path(root)
        if split not in _SPLITS:
            raise InputError(f"unknown split {split!r} of RHD: choose {' or '.join(_SPLITS)}")
        self._folder, self._split, self._options = root / split, split, options
        needed = ["color", *(["mask"] if options.mask or options.hand == "mask" else [])]
        for folder in (root, self._folder, *(self._folder / name for name in needed)):
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder: give the path of RHD_published_v2, unpacked")
        path = self._folder / f"anno_{split}.pickle"
        self._ids, self._uv_vis, self._xyz, self._k = _annotation(path)
        self._path = path

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Sample:
        """The sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        file = f"{self._ids[index]:05d}.png"
        image = read_picture(self._folder / "color" / file)
        options = self._options
        part_ids: npt.NDArray[np.uint8] | None = None
        if options.mask or options.hand == "mask":
            part_ids = self._read_like("mask", file, image)[..., 0]
        if options.hand == "mask":
            assert part_ids is not None
            left = _count(part_ids, _LEFT_IDS) > _count(part_ids, _RIGHT_IDS)
        else:
            # Flags are compared with 1, for other values may stand for other things.
            seen = (self._uv_vis[index, :, 2] == 1).reshape(2, NUM_KEYPOINTS).sum(axis=1)
            left = seen[0] > seen[1]
        rows = slice(0, NUM_KEYPOINTS) if left else slice(NUM_KEYPOINTS, 2 * NUM_KEYPOINTS)
        uv_vis, xyz = self._uv_vis[index, rows][_ORDER], self._xyz[index, rows][_ORDER]
        if not (np.isfinite(uv_vis).all() and np.isfinite(xyz).all() and np.isfinite(self._k[index]).all()):
            raise InputError(f"{self._path}: sample {self._ids[index]} holds something that is no number: {_AGAIN}")
        uv, visible = uv_vis[:, :2], uv_vis[:, 2] == 1
        if options.palm == "zb":
            for points in (uv, xyz):
                points[WRIST] = 0.5 * (points[WRIST] + points[ROOT])
            visible[WRIST] |= visible[ROOT]
        mask = None
        if options.mask:
            assert part_ids is not None
            first, last = _LEFT_IDS if left else _RIGHT_IDS
            mask = (part_ids >= first) & (part_ids <= last)
        sample = Sample(
            name=f"{self._split}/{self._ids[index]:05d}",
            image=image,
            keypoints_2d=uv.astype(np.float32),
            visible=visible,
            joints=xyz.astype(np.float32),
            intrinsics=self._k[index].astype(np.float32),
            mirrored=False,
            depth=rhd_depth(self._read_like("depth", file, image)) if options.depth else None,
            mask=mask,
        )
        return mirrored_sample(sample) if left else sample

    def _read_like(self, folder: str, file: str, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        path = self._folder / folder / file
        picture = read_picture(path)
        if picture.shape != image.shape:
            raise InputError(f"{path}: has another size than its colour picture: {_AGAIN}")
        return picture


def rhd_depth(picture: npt.NDArray[np.uint8]) -> FloatArray:
    """Metres (height, width) of a depth map (height, width, RGB): 5 m (256 R + G) / 65535; B means nothing."""
    # Wider integers first: 256 times a byte is no byte.
    code = picture[..., 0].astype(np.int32) * 256 + picture[..., 1]
    return (code / 65535.0 * _FARTHEST).astype(np.float32)


def _count(part_ids: npt.NDArray[np.uint8], ids: tuple[int, int]) -> int:
    return int(np.count_nonzero((part_ids >= ids[0]) & (part_ids <= ids[1])))


# ---------------------------------------------------------------------------------------------------------------------
# The annotation


class _ForeignName(Exception):
    """A pickle refers to something that RHD's do not."""


class _DType:
    """Stands for numpy.dtype."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def decoded(self) -> np.dtype[Any]:
        """The type of numbers that it names; ValueError for any other."""
        if not re.fullmatch(r"[fiu][1248]", str(self.code)) or self.order not in ("<", ">", "|", "="):
            raise ValueError("an element type that is no number")
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for numpy.ndarray; decodes its numbers from the state that the file gives it."""

    def __init__(self, *_: Any) -> None:
        self.values: npt.NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        # Python 2 writes byte strings, which latin1 has turned into text one to one.
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        numbers = np.frombuffer(raw, dtype.decoded())
        self.values = numbers.reshape(tuple(int(size) for size in shape), order="F" if fortran else "C")


class _NumbersUnpickler(pickle.Unpickler):
    """Reads dictionaries of arrays; looks up nothing that the file names."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 has moved its insides to numpy._core.
        if (module.replace("numpy._core.", "numpy.core."), name) == ("numpy.core.multiarray", "_reconstruct"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _DType
        if (module, name) == ("numpy", "ndarray"):
            return "numpy.ndarray"  # only ever passed to _reconstruct
        if (module, name) == ("_codecs", "encode"):  # how Python 3 spells bytes in protocol 2
            encode: Callable[..., bytes] = lambda text, *_: str(text).encode("latin1")  # noqa: E731
            return encode
        raise _ForeignName(f"{module}.{name}"[:80])


def _annotation(
    path: Path,
) -> tuple[list[int], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sample ids in order, uv_vis (n, 42, 3), xyz (n, 42, 3) and K (n, 3, 3)."""
    try:
        with path.open("rb") as file:
            content = _NumbersUnpickler(file).load()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): {_AGAIN}") from None
    except _ForeignName as error:
        raise InputError(
            f"{path}: refers to {str(error)!r}, which no annotation of RHD does; nothing was executed: "
            "get the file from its official source"
        ) from None
    except Exception as error:  # damaged pickles end in errors of any kind
        if isinstance(error, EOFError) or "truncated" in str(error):
            raise InputError(f"{path}: is cut short: {_AGAIN}") from None
        raise InputError(f"{path}: is no pickle of numbers: {_AGAIN}") from None
    if not isinstance(content, dict) or not content or not all(type(key) is int and key >= 0 for key in content):
        raise InputError(f"{path}: holds no samples by number, as RHD v1.1 does: {_AGAIN}")
    ids = sorted(content)
    shapes = {"uv_vis": (2 * NUM_KEYPOINTS, 3), "xyz": (2 * NUM_KEYPOINTS, 3), "K": (3, 3)}
    arrays = {name: np.zeros((len(ids), *shape), np.float64) for name, shape in shapes.items()}
    for row, number in enumerate(ids):
        for name, shape in shapes.items():
            entry = content[number].get(name) if isinstance(content[number], dict) else None
            if not isinstance(entry, _Array) or entry.values.shape != shape:
                raise InputError(f"{path}: sample {number} has no {name} of shape {shape}, as RHD v1.1 does: {_AGAIN}")
            arrays[name][row] = entry.values
    return ids, arrays["uv_vis"], arrays["xyz"], arrays["K"]

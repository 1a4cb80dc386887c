"""FreiHAND v2, and rendered hands, which `handtailor synth` writes in the same layout (docs/datasets.md, "FreiHAND").

    ROOT/training/rgb/00000000.jpg ...   ROOT/training/mask/00000000.jpg ...
    ROOT/training_{K,mano,scale,verts,xyz}.json
    ROOT/evaluation/rgb/ ...             ROOT/evaluation_{K,scale}.json

The ground truth of the evaluation split was published later, as `evaluation_{K,mano,scale,verts,xyz}.json` in
FreiHAND_pub_v2_eval.
"""

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.commands import cache_folder
from handtailor_jax.data.sample import JointDefinition, Sample, check_choice, check_folders, read_aligned
from handtailor_jax.errors import InputError, check_file
from handtailor_jax.images import read_image
from handtailor_jax.mano.loading import MANO_VERTICES, embedded_arrays
from handtailor_jax.results import appearing
from handtailor_jax.skeleton import NUM_BETAS, NUM_JOINTS, NUM_KEYPOINTS

Array = npt.NDArray[Any]

RENDERED_PARTS = {"train": "training", "test": "evaluation"}
"""FreiHAND's name of each split of rendered hands."""

VERSIONS = ("gs", "hom", "sample", "auto")
"""Backgrounds of each training sample: the green screen and three ways of replacing it."""

_MANO_SHAPE = (1, 3 * NUM_JOINTS + NUM_BETAS + 3)  # pose, shape, u and v of the root, scale
_MASK_THRESHOLD = 127  # JPEG blurs the borders between 0 and 255
_CHUNK = 1 << 22  # bytes of a list read at once
_LONGEST = 1000  # bytes of a number with the space around it


def open_freihand(
    root: Path,
    split: str,
    *,
    hands_mean: Array | None = None,
    vertices: bool = True,
    mask: bool = False,
    cache: Path | None = None,
    versions: Sequence[str] = VERSIONS,
    truth: Path | None = None,
) -> "FreihandLayout":
    """Open a split of FreiHAND v2: 32,560 annotations with four images each, or 3,960 with one.

    Joints are those that FreiHAND regresses from the posed mesh. Samples of the evaluation split have no joints, and
    NaN as keypoints, if its ground truth is not found.

    Args:
        root: folder FreiHAND_pub_v2.
        split: training or evaluation.
        hands_mean: (45,) mean pose of MANO, to which the annotated pose is relative, radians; samples have no pose if
            None.
        vertices: whether samples have a mesh.
        mask: whether samples have a mask. Training split only; all versions share the mask of the green screen.
        cache: folder of the converted lists; if None, .handtailor_cache next to the lists, or the user's cache where
            that cannot be written.
        versions: backgrounds of the training samples to read, one after the other.
        truth: folder with the ground truth of the evaluation split; the root, or FreiHAND_pub_v2_eval beside it, if
            None.

    Raises:
        InputError: if a file is missing, damaged or of another version, or a split or version does not exist.
    """
    check_choice("split", split, ("training", "evaluation"), "FreiHAND")
    if not versions or len(set(versions) & set(VERSIONS)) != len(versions):
        raise InputError(f"unknown or repeated versions {versions} of FreiHAND: choose from {VERSIONS}")
    numbers = tuple(VERSIONS.index(name) for name in versions)
    places = [root]
    if split == "evaluation":
        if mask:
            raise InputError("FreiHAND has masks for its training split only: read the evaluation split without mask")
        beside = (root, root.parent / "FreiHAND_pub_v2_eval")
        places = [place for place in beside if (place / "evaluation_xyz.json").is_file()] if truth is None else [truth]
        numbers = (0,)
    return FreihandLayout(
        root,
        split,
        places[0] if places else None,
        "freihand",
        "download FreiHAND_pub_v2 and give its folder",
        versions=numbers,
        hands_mean=hands_mean,
        num_vertices=MANO_VERTICES if vertices else None,
        mask=mask,
        cache=cache,
    )


def open_synthetic(
    root: Path,
    split: str,
    *,
    hands_mean: Array | None = None,
    vertices: bool = True,
    mask: bool = False,
    cache: Path | None = None,
) -> "FreihandLayout":
    """Open a split that `handtailor synth` has written: one image per annotation, any number of vertices.

    Joints are those of the hand model's kinematic chain. The arguments are those of `open_freihand`, but the split is
    train or test, and the default of `hands_mean` is the embedded hand's mean pose.

    Raises:
        InputError: if a file is missing or damaged, or the split does not exist.
    """
    check_choice("split", split, tuple(RENDERED_PARTS), "rendered hands")
    return FreihandLayout(
        root,
        RENDERED_PARTS[split],
        root,
        "model",
        f"write the folder with `handtailor synth --split {split}`",
        hands_mean=embedded_arrays()["pose_mean"] if hands_mean is None else hands_mean,
        num_vertices=-1 if vertices else None,
        mask=mask,
        cache=cache,
    )


@dataclasses.dataclass(eq=False)
class FreihandLayout:
    """Samples in FreiHAND's layout. With n annotations, image v n + a is version v of annotation a.

    Opening converts the lists that have changed; images are decoded on access.
    """

    root: Path
    part: str
    """training or evaluation."""
    truth: Path | None
    """Folder of all lists except K; None if there is no ground truth."""
    joint_definition: JointDefinition
    remedy: str
    """End of error messages about damaged files."""
    versions: tuple[int, ...] = (0,)
    """Versions of the images to read."""
    hands_mean: Array | None = None
    """(45,) mean pose, radians; samples have no pose if None."""
    num_vertices: int | None = None
    """Number of vertices of a mesh; -1 for any, None for samples without a mesh."""
    mask: bool = False
    cache: Path | None = None

    def __post_init__(self) -> None:
        mean, part, truth = self.hands_mean, self.part, self.truth
        if mean is not None and (mean.shape != (3 * (NUM_JOINTS - 1),) or not np.isfinite(mean).all()):
            raise InputError(f"hands_mean has shape {mean.shape}: give the 45 finite numbers of MANO's hands_mean")
        masks = [self.root / part / "mask"] if self.mask else []
        check_folders([self.root, self.root / part / "rgb", *masks], self.remedy)
        self._k = self._list(self.root, "K", -1, (3, 3))
        self._xyz = self._mano = self._vertices = None
        if truth is not None:
            self._xyz = self._list(truth, "xyz", len(self._k), (NUM_KEYPOINTS, 3))
            # Some copies of the evaluation's ground truth have no parameters.
            if part == "training" or (truth / f"{part}_mano.json").exists():
                self._mano = self._list(truth, "mano", len(self._k), _MANO_SHAPE)
            if self.num_vertices is not None:
                self._vertices = self._list(truth, "verts", len(self._k), (self.num_vertices, 3), np.float32)

    def _list(
        self, folder: Path, field: str, count: int, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float64
    ) -> Array:
        """Return a list as an array (count, *shape); one of the sizes may be -1 for any."""
        path = folder / f"{self.part}_{field}.json"
        numbers = converted_list(path, dtype, self.cache, self.remedy)
        try:
            return numbers.reshape(count, *shape)
        except ValueError:
            entries = f"{'' if count == -1 else f'{count} '}entries of {' x '.join(map(str, shape)).replace('-1', 'n')}"
            raise InputError(f"{path}: {len(numbers)} numbers are not {entries} of FreiHAND: {self.remedy}") from None

    @property
    def finger_poses(self) -> Array:
        """(n, 15, 3) finger rotations of all annotations relative to the flat hand, radians; none if unknown."""
        mano, mean = self._mano, self.hands_mean
        return np.zeros((0, 15, 3)) if mano is None or mean is None else (mano[:, 0, 3:48] + mean).reshape(-1, 15, 3)

    def __len__(self) -> int:
        return len(self.versions) * len(self._k)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        place, entry = divmod(index, len(self._k))
        file = f"{self.versions[place] * len(self._k) + entry:08d}"
        image = read_image(self.root / self.part / "rgb" / f"{file}.jpg")
        intrinsics = np.asarray(self._k[entry])
        keypoints = np.full((NUM_KEYPOINTS, 2), np.nan)
        joints = pose = betas = mask = None
        if self._xyz is not None:
            joints = np.asarray(self._xyz[entry])
            if not (joints[:, 2] > 0.0).all():
                raise InputError(f"{self.part} {file}: a joint is not in front of the camera: {self.remedy}")
            pixels = joints @ intrinsics.T
            keypoints = pixels[:, :2] / pixels[:, 2:]
        if self._mano is not None:
            angles, betas = np.split(np.asarray(self._mano[entry, 0, :-3]), [3 * NUM_JOINTS])
            if self.hands_mean is not None:
                # The file's finger rotations are relative to the mean pose; samples' are relative to the flat hand.
                angles = angles + np.concatenate([np.zeros(3), self.hands_mean])
                pose = angles.reshape(NUM_JOINTS, 3).astype(np.float32)
        if self.mask:
            path = self.root / self.part / "mask" / f"{entry:08d}.jpg"
            mask = read_aligned(path, image, self.remedy)[..., 0] > _MASK_THRESHOLD
        return Sample(
            name=f"{self.part}/{file}",
            image=image,
            keypoints_2d=keypoints.astype(np.float32),
            visible=np.ones(NUM_KEYPOINTS, np.bool_),
            joints=None if joints is None else joints.astype(np.float32),
            intrinsics=intrinsics.astype(np.float32),
            joint_definition=self.joint_definition,
            vertices=None if self._vertices is None else np.array(self._vertices[entry]),
            pose=pose,
            betas=None if betas is None else betas.astype(np.float32),
            mask=mask,
        )


# The lists. FreiHAND's are over a gigabyte of text, so each is converted to an array file once.


def converted_list(path: Path, dtype: npt.DTypeLike, cache: Path | None, remedy: str) -> Array:
    """Return the numbers of a JSON list in one row, mapped into memory from an array file.

    The name of the array file contains size and time of the list, so the array of a changed list is not found.
    """
    try:
        check_file(path)
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): {remedy}") from None
    folder = path.parent / ".handtailor_cache" if cache is None else cache
    prefix = f"{path.resolve().parent.name}.{path.stem}."
    name = f"{prefix}{stat.st_size}.{stat.st_mtime_ns}.npy"
    read_only = not os.access(folder if folder.is_dir() else path.parent, os.W_OK)
    if cache is None and read_only and not (folder / name).is_file():
        folder = (cache_folder() or Path(tempfile.gettempdir())) / "lists"
    file = folder / name
    try:
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with appearing(file) as temporary:
                np.save(temporary, list_numbers(path, dtype, remedy))
            for other in set(folder.glob("*.npy")) - {file}:
                if other.name.startswith(prefix):  # outdated
                    other.unlink(missing_ok=True)
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be converted in {folder} ({reason}): set the option cache") from None
    except (ValueError, EOFError):
        raise InputError(f"{file}: is damaged: delete it; it is made again") from None


def list_numbers(path: Path, dtype: npt.DTypeLike, remedy: str) -> Array:
    """Return all numbers of a JSON list in one row, at any nesting. Python objects would take several gigabytes."""

    def refused(problem: str) -> InputError:
        return InputError(f"{path}: {problem}: {remedy}")

    def parsed(text: bytes) -> Array:
        try:
            return np.fromstring(text, dtype, sep=",") if text.strip() else np.zeros(0, dtype)
        except (DeprecationWarning, ValueError):
            raise refused("has a value that is not a number") from None

    pieces, rest, depth = [], b"", 0
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns of text that is not a number
        while chunk := file.read(_CHUNK):
            depth += chunk.count(b"[") - chunk.count(b"]")
            # The last number of a chunk may continue in the next one.
            head, _, rest = (rest + chunk.translate(None, b"[]")).rpartition(b",")
            pieces.append(parsed(head))
            if len(rest) > _LONGEST:
                raise refused("is not a list of numbers")
        if depth != 0:
            raise refused("is cut short or damaged")
        numbers = np.concatenate([*pieces, parsed(rest)])
    if not numbers.size:
        raise refused("has no entries")
    if not np.isfinite(numbers).all():
        raise refused("has a value that is not a finite number")
    return numbers

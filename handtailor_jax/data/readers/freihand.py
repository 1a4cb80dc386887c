"""Reader of FreiHAND v2 (datasets, section 1.3) and of this project's renderings, which have its layout.

    ROOT/training/rgb/00000000.jpg ...   ROOT/training/mask/00000000.jpg ...
    ROOT/training_{K,mano,scale,verts,xyz}.json
    ROOT/evaluation/rgb/ ...             ROOT/evaluation_{K,scale}.json

The truth of FreiHAND's evaluation came later, as `evaluation_{K,mano,scale,verts,xyz}.json` in FreiHAND_pub_v2_eval.
The lists are over a gigabyte of text; each is converted once to an array file, which later runs map into memory.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.data.sample import JointDefinition, Sample
from handtailor_jax.errors import InputError
from handtailor_jax.images import read_picture
from handtailor_jax.mano.loading import MANO_VERTICES, embedded_arrays
from handtailor_jax.skeleton import NUM_BETAS, NUM_JOINTS, NUM_KEYPOINTS

RENDERED_PARTS = {"train": "training", "test": "evaluation"}
"""FreiHAND's part as which each split of rendered hands is written."""

VERSIONS = ("gs", "hom", "sample", "auto")
"""The backgrounds of each training sample: green screen, then three ways of replacing it."""

_SPLITS = ("training", "evaluation")
_TRUTH_FOLDER = "FreiHAND_pub_v2_eval"
_MANO_SHAPE = (1, 3 * NUM_JOINTS + NUM_BETAS + 3)  # pose, shape, u and v of the root, scale
_MASK_THRESHOLD = 127  # JPEG blurs the borders between 0 and 255
_CHUNK = 1 << 22  # characters; an entry with all its vertices has some 60,000


@dataclasses.dataclass(frozen=True, eq=False)
class FreihandOptions:
    """What is read of FreiHAND.

    Raises:
        InputError: for a version that does not exist, or a mean pose that is none.
    """

    versions: tuple[str, ...] = VERSIONS
    """Which of the training samples' backgrounds, one after the other."""
    truth: Path | None = None
    """Folder with the truth of the evaluation; by default the root, or FreiHAND_pub_v2_eval next to it, if there."""
    hands_mean: npt.NDArray[Any] | None = None
    """(45,) MANO's mean pose, to which the annotated pose is relative; without it samples have no pose."""
    vertices: bool = True
    """Whether samples have a mesh."""
    mask: bool = False
    """Whether samples have a mask; training only. All versions share the one of the green screen."""
    cache: Path | None = None
    """Folder for the converted lists; by default .handtailor_cache next to them."""

    def __post_init__(self) -> None:
        known = set(self.versions) & set(VERSIONS)
        if not known or len(known) != len(self.versions):
            raise InputError(f"unknown or repeated versions {self.versions} of FreiHAND: choose from {VERSIONS}")
        _check_mean(self.hands_mean)


@dataclasses.dataclass(frozen=True, eq=False)
class SyntheticOptions:
    """What is read of this project's renderings.

    Raises:
        InputError: for a mean pose that is none.
    """

    hands_mean: npt.NDArray[Any] | None = None
    """(45,) mean pose of the hand that was rendered; by default the embedded hand's."""
    vertices: bool = True
    """Whether samples have a mesh."""
    mask: bool = False
    """Whether samples have a mask."""
    cache: Path | None = None
    """Folder for the converted lists; by default .handtailor_cache next to them."""

    def __post_init__(self) -> None:
        _check_mean(self.hands_mean)


def _check_mean(mean: npt.NDArray[Any] | None) -> None:
    if mean is not None and (mean.shape != (3 * (NUM_JOINTS - 1),) or not np.isfinite(mean).all()):
        raise InputError(f"hands_mean has shape {mean.shape}: give the 45 numbers of MANO's hands_mean")


class _Layout:
    """Right hands in FreiHAND's layout: sample j is picture v n + a of annotation a, for j = (place of v) n + a."""

    def __init__(
        self,
        root: Path,
        truth: Path | None,
        part: str,
        *,
        versions: tuple[int, ...],
        vertices: int | None,
        mask: bool,
        cache: Path | None,
        hands_mean: npt.NDArray[Any] | None,
        joint_definition: JointDefinition,
        again: str,
    ) -> None:
        """Opens the lists.

        Args:
            root: the dataset's folder.
            truth: the folder of the lists other than K; None if there is no truth.
            part: training or evaluation.
            versions: which pictures of each annotation.
            vertices: how many of them a mesh has, 0 for any number, None to do without.
            mask: whether masks are read.
            cache: see `FreihandOptions`.
            hands_mean: see `FreihandOptions`.
            joint_definition: what the joints are.
            again: the remedy for damaged files.
        """
        folders = [root, root / part / "rgb", *([root / part / "mask"] if mask else [])]
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder: {again}")
        self._folder, self._part, self._versions = root / part, part, versions
        self._mask, self._hands_mean, self._again = mask, hands_mean, again
        self._joint_definition: JointDefinition = joint_definition

        def listed(folder: Path, field: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
            path = folder / f"{part}_{field}.json"
            array = _converted(path, shape, dtype, cache, again)
            if len(array) != len(self._k):
                raise InputError(f"{path}: has {len(array)} entries where K has {len(self._k)}: {again}")
            return array

        self._k = _converted(root / f"{part}_K.json", (3, 3), np.float64, cache, again)
        self._xyz = self._mano = self._vertices = None
        if truth is not None:
            self._xyz = listed(truth, "xyz", (NUM_KEYPOINTS, 3), np.float64)
            # Some copies of the evaluation's truth have no parameters.
            if part == "training" or (truth / f"{part}_mano.json").exists():
                self._mano = listed(truth, "mano", _MANO_SHAPE, np.float64)
            if vertices is not None:
                self._vertices = listed(truth, "verts", (vertices, 3), np.float32)

    def __len__(self) -> int:
        return len(self._versions) * len(self._k)

    def __getitem__(self, index: int) -> Sample:
        """The sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        place, entry = divmod(index, len(self._k))
        number = self._versions[place] * len(self._k) + entry
        file = f"{number:08d}"
        image = read_picture(self._folder / "rgb" / f"{file}.jpg")
        intrinsics = np.asarray(self._k[entry])
        keypoints = np.full((NUM_KEYPOINTS, 2), np.nan)
        joints = pose = betas = mask = None
        if self._xyz is not None:
            joints = np.asarray(self._xyz[entry])
            if not (joints[:, 2] > 0.0).all():
                raise InputError(f"{self._part} {file}: has a joint that is not in front of the camera: {self._again}")
            pixels = joints @ intrinsics.T
            keypoints = pixels[:, :2] / pixels[:, 2:]
        if self._mano is not None:
            parts = [3 * NUM_JOINTS, 3 * NUM_JOINTS + NUM_BETAS]
            angles, betas, _ = np.split(np.asarray(self._mano[entry, 0]), parts)
            if self._hands_mean is not None:
                # The file's fingers are relative to the model's mean pose, ours to the flat hand.
                angles = angles + np.concatenate([np.zeros(3), self._hands_mean])
                pose = angles.reshape(NUM_JOINTS, 3).astype(np.float32)
        if self._mask:
            path = self._folder / "mask" / f"{entry:08d}.jpg"
            mask = read_picture(path)[..., 0] > _MASK_THRESHOLD
            if mask.shape != image.shape[:2]:
                raise InputError(f"{path}: has another size than its picture: {self._again}")
        return Sample(
            name=f"{self._part}/{file}",
            image=image,
            keypoints_2d=keypoints.astype(np.float32),
            visible=np.ones(NUM_KEYPOINTS, np.bool_),
            joints=None if joints is None else joints.astype(np.float32),
            intrinsics=intrinsics.astype(np.float32),
            mirrored=False,
            joint_definition=self._joint_definition,
            vertices=None if self._vertices is None else np.array(self._vertices[entry]),
            pose=pose,
            betas=None if betas is None else betas.astype(np.float32),
            mask=mask,
        )


class Freihand(_Layout):
    """A split of FreiHAND v2: 32,560 annotations with four pictures each, or 3,960 with one.

    Its joints are those that FreiHAND regresses from the posed mesh. Samples of the evaluation have no joints where
    its truth is not found; their keypoints are NaN then.
    """

    def __init__(self, root: Path, split: str, options: FreihandOptions = FreihandOptions()) -> None:
        """Opens the lists, and converts those that have changed; pictures are decoded when they are asked for.

        Args:
            root: the folder FreiHAND_pub_v2.
            split: training or evaluation.
            options: see there.

        Raises:
            InputError: if a file is missing, cut short or of another version, or the split does not exist.
        """
        root = Path(root)
        if split not in _SPLITS:
            raise InputError(f"unknown split {split!r} of FreiHAND: choose {' or '.join(_SPLITS)}")
        if split == "evaluation" and options.mask:
            raise InputError("FreiHAND has masks for training only: read its evaluation without")
        truth: Path | None = root
        if split == "evaluation" and options.truth is not None:
            truth = options.truth
        elif split == "evaluation":
            places = (root, root.parent / _TRUTH_FOLDER)
            truth = next((place for place in places if (place / "evaluation_xyz.json").is_file()), None)
        super().__init__(
            root,
            truth,
            split,
            versions=tuple(VERSIONS.index(name) for name in options.versions) if split == "training" else (0,),
            vertices=MANO_VERTICES if options.vertices else None,
            mask=options.mask,
            cache=options.cache,
            hands_mean=options.hands_mean,
            joint_definition="freihand",
            again="download FreiHAND_pub_v2 and give its folder",
        )


class Synthetic(_Layout):
    """A split that `handtailor synth` has written: one picture an annotation, each with a mask, any number of vertices.

    Its joints are those of the model's kinematic chain.
    """

    def __init__(self, root: Path, split: str, options: SyntheticOptions = SyntheticOptions()) -> None:
        """Opens the lists, and converts those that have changed; pictures are decoded when they are asked for.

        Args:
            root: the folder that was written.
            split: train or test.
            options: see there.

        Raises:
            InputError: if a file is missing or cut short, or the split does not exist.
        """
        root = Path(root)
        if split not in RENDERED_PARTS:
            raise InputError(f"unknown split {split!r} of rendered hands: choose {' or '.join(RENDERED_PARTS)}")
        super().__init__(
            root,
            root,
            RENDERED_PARTS[split],
            versions=(0,),
            vertices=0 if options.vertices else None,
            mask=options.mask,
            cache=options.cache,
            hands_mean=embedded_arrays()["pose_mean"] if options.hands_mean is None else options.hands_mean,
            joint_definition="model",
            again=f"write the folder with `handtailor synth --split {split}`",
        )


# ---------------------------------------------------------------------------------------------------------------------
# From text to arrays


class _Damage(Exception):
    """What is wrong with a list."""


def _converted(
    path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, cache: Path | None, again: str
) -> npt.NDArray[Any]:
    """A JSON list as an array (entries, *shape), mapped into memory; a 0 in `shape` stands for any number.

    The array file carries the list's size and time in its name, so that one of a list that has changed is not found.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): {again}") from None
    folder = path.parent / ".handtailor_cache" if cache is None else cache
    prefix = f"{path.resolve().parent.name}.{path.stem}."
    file = folder / f"{prefix}{stat.st_size}.{stat.st_mtime_ns}.npy"
    try:
        if not file.is_file():
            _convert(path, shape, dtype, file, prefix)
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except _Damage as damage:
        raise InputError(f"{path}: {damage}: {again}") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be converted in {folder} ({reason}): set the option cache") from None
    except (ValueError, EOFError):
        raise InputError(f"{file}: is damaged: delete it, and it will be made again") from None
    if array.dtype != dtype or not _matches(array.shape[1:], shape):
        raise InputError(f"{file}: holds something else than {path.name}: delete it, and it will be made again")
    return array


def _convert(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, file: Path, prefix: str) -> None:
    """Writes the array file under another name first, so that nobody finds half of it; removes outdated ones."""
    rows: list[npt.NDArray[Any]] = []
    for number, entry in enumerate(_entries(path)):
        try:
            row = np.asarray(entry, dtype)
        except (TypeError, ValueError, OverflowError):
            raise _Damage(f"entry {number} holds something that is no number") from None
        if not _matches(row.shape, shape) or (rows and row.shape != rows[0].shape):
            wanted = " x ".join(str(size or "n") for size in shape)
            found = " x ".join(map(str, row.shape)) or "a number"
            raise _Damage(f"entry {number} is {found}, not {wanted} as in FreiHAND v2")
        if not np.isfinite(row).all():
            raise _Damage(f"entry {number} holds something that is no number")
        rows.append(row)
    if not rows:
        raise _Damage("has no entries")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            np.save(stream, np.stack(rows))
        for outdated in file.parent.iterdir():
            if outdated.name.startswith(prefix) and outdated.suffix == ".npy":
                outdated.unlink(missing_ok=True)
        temporary.replace(file)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _matches(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(found) == len(wanted) and all(b in (0, a) for a, b in zip(found, wanted, strict=True))


def _entries(path: Path) -> Iterator[Any]:
    """The entries of a JSON list one by one: as objects, all of them would take several gigabytes."""
    decoder = json.JSONDecoder()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_CHUNK).lstrip()
            if text and text[0] != "[":
                raise _Damage("is no list")
            at = 1
            while True:
                at = _end(_BETWEEN, text, at)
                if text[at : at + 1] == "]":
                    return
                entry = None
                try:
                    entry, end = decoder.raw_decode(text, at)
                    # What is at the end of the text read so far may go on: 0.1 or 0. may be the beginning of 0.12.
                    end = _end(_SPACE, text, end)
                    complete = text[end : end + 1] in (",", "]")
                except ValueError:
                    complete = False
                if complete:
                    yield entry
                    at = end
                    continue
                if len(text) - at > _CHUNK:
                    raise _Damage("is no list of numbers")
                more = file.read(_CHUNK)
                if not more:
                    raise _Damage("is cut short or damaged")
                text, at = text[at:] + more, 0
    except (UnicodeDecodeError, RecursionError):
        raise _Damage("is no list of numbers") from None


_SPACE = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s,]*")


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()

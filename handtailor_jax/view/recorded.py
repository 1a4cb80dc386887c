"""Read the results of `predict` and `fit` back: the hands of an image, or of each frame of a video."""

import dataclasses
import glob
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from handtailor_jax.errors import FloatArray, InputError, checked_array, naming, read_json, warn
from handtailor_jax.geometry.cameras import as_camera
from handtailor_jax.images import SUFFIXES
from handtailor_jax.skeleton import NUM_BETAS
from handtailor_jax.types import Camera, HandParameters
from handtailor_jax.video.files import VIDEOS

_REMEDY = "give a .json or .jsonl file that handtailor predict or fit wrote"


@dataclasses.dataclass(frozen=True)
class RecordedHand:
    """A placed hand of a result."""

    name: str
    """hand_<number>_<side>; in a video the number is the track's."""
    left: bool
    """Whether the hand is a left one."""
    parameters: HandParameters
    """Pose, shape and placement of the hand model of this side."""
    joints: FloatArray
    """(21, 3) joints of the hand, metres."""
    keypoints_2d: FloatArray
    """(21, 2) reprojected landmarks, pixels."""


@dataclasses.dataclass(frozen=True)
class RecordedFrame:
    """Hands of one image."""

    time: float
    """Time in seconds from the first frame; 0 for an image."""
    hands: Sequence[RecordedHand]


@dataclasses.dataclass(frozen=True)
class Result:
    """Content of one file of `predict` or `fit`."""

    path: Path
    """File of the result."""
    frames: Sequence[RecordedFrame]
    """All frames of a video; one of an image."""
    camera: Camera
    """Camera of all frames; the weak-perspective camera of pixels where no intrinsics are known."""
    media: Path | None
    """Image or video; None if it was not found."""


def read_results(given: Sequence[str], media: Path | None = None) -> list[Result]:
    """Read results from files and folders; other files in the folders are left out.

    Raises:
        InputError: If an argument names no result, or if `media`, described at `read_result`, does not exist.
    """
    if media is not None and not media.exists():
        raise InputError(f"{media}: no such file or folder: give the image or video, or its folder")
    results: list[Result] = []
    for path in map(Path, given):
        before = len(results)
        for file in _results_in(path) if path.is_dir() else [path]:
            try:
                results.append(read_result(file, media))
            except InputError as error:
                if file == path:
                    raise
                warn(f"left out: {error}")
        if len(results) == before:
            raise InputError(f"{path}: holds no results: {_REMEDY}")
    return results


def _results_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jsonl") and not p.name.startswith("."))


def read_result(path: Path, media: Path | None = None) -> Result:
    """Read a result, and find its image or video.

    Args:
        path: .json file of an image, or .jsonl file of a video.
        media: The image or video, or the first folder in which a file of the result's name is searched. If None, it is
            the image that the result names. Further folders to search are the result's, its parent and the current one.

    Raises:
        InputError: If the file is not a result.
    """
    cameras: list[Any] = []
    frames: list[RecordedFrame] = []
    video = path.suffix == ".jsonl"
    for number, content in enumerate(_lines(path) if video else [read_json(path, _REMEDY)]):
        with naming(f"{path}: line {number + 1}" if video else path):
            hands = content.get("hands", [content]) if isinstance(content, dict) else None
            time = content.get("time", 0.0) if isinstance(content, dict) else None
            if not isinstance(hands, list) or not all(isinstance(hand, dict) for hand in hands):
                raise InputError(f"is not a result: {_REMEDY}")
            cameras += [hand.get("camera") for hand in hands if not cameras]
            read = [_hand(hand, hand.get("track", i)) for i, hand in enumerate(hands)]
            frames.append(RecordedFrame(float(checked_array("time", time, ())), read))
    if not frames:
        raise InputError(f"{path}: the file is empty: {_REMEDY}")
    if any(after.time <= before.time for before, after in itertools.pairwise(frames)):
        raise InputError(f"{path}: the times of its frames do not rise: {_REMEDY}")
    with naming(path):
        camera = as_camera(cameras[0] if cameras else None)
    named = None if video or not isinstance(content.get("image"), str) else path.parent / content["image"]
    return Result(path, frames, camera, _media(path, media, named, VIDEOS if video else SUFFIXES))


def _lines(path: Path) -> Iterator[Any]:
    """Yield the values of a file that has one JSON value on each line."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                raise InputError(f"{path}: line {number} is not JSON: {_REMEDY}") from None


def _hand(content: dict[str, Any], number: Any) -> RecordedHand:
    side = content.get("side")
    if side not in ("right", "left") or "pose" not in content:
        raise InputError(f"has a hand without side or pose: {_REMEDY}")
    shapes = {"pose": (16, 3), "betas": (NUM_BETAS,), "scale": (), "translation": (3,)}
    parameters = {name: checked_array(name, content.get(name), shape) for name, shape in shapes.items()}
    joints = checked_array("joints", content.get("joints"), (21, 3))
    keypoints_2d = checked_array("keypoints_2d", content.get("keypoints_2d"), (21, 2))
    return RecordedHand(f"hand_{number}_{side}", side == "left", HandParameters(**parameters), joints, keypoints_2d)


def _media(path: Path, given: Path | None, named: Path | None, suffixes: frozenset[str]) -> Path | None:
    """Return the image or video of a result, which may name its image."""
    if given is not None and not given.is_dir():
        return given
    if given is None and named is not None and "\0" not in str(named) and named.is_file():
        return named
    for folder in (*([] if given is None else [given]), path.parent, path.parent.parent, Path()):
        for found in sorted(folder.glob(f"{glob.escape(path.stem)}.*")):
            if found.suffix.lower() in suffixes:
                return found
    return None

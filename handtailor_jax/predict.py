"""Files of many images and videos: JSON, meshes and overlays of their hands."""

import contextlib
import dataclasses
import glob
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from handtailor_jax.commands import announce_compiling
from handtailor_jax.errors import InputError, warn
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import SUFFIXES, Image, opencv, read_image
from handtailor_jax.render.overlay import contact_sheet, overlay_figure
from handtailor_jax.results import (
    mesh_library,
    prepare_folder,
    to_json,
    write_image,
    write_json,
    write_mesh,
)
from handtailor_jax.types import Camera, Hand, Side
from handtailor_jax.video.animation import gltf_library
from handtailor_jax.video.files import VIDEOS
from handtailor_jax.video.recover import recover_video
from handtailor_jax.video.track import HandVideo, VideoConfig

MOST_LINES = 20
"""Largest number of inputs of which a command reports each one in a line."""

_MOST_ON_SHEET = 40


@dataclasses.dataclass(frozen=True)
class Source:
    """One image, video or webcam."""

    id: str
    """Name of the result's files, without suffix."""
    path: Path | int
    """File, or number of a webcam."""
    video: bool = False
    """Whether the source is a video or webcam."""
    camera: Any = None
    """Intrinsics of the images; None if unknown."""
    box: tuple[float, float, float, float] | None = None
    """Box (x, y, w, h) around the only hand to recover, pixels, in a video of the first frame."""
    side: Side | None = None
    """Side of all hands; None if unknown."""


def find_sources(inputs: Sequence[str], **known: Any) -> list[Source]:
    """Return the images and videos that arguments name: files, folders, patterns, numbers of webcams.

    `camera`, `box` and `side` may be `known` for all of them.

    Raises:
        InputError: If an argument names nothing.
    """
    if not inputs:
        raise InputError("no inputs: name images, folders, patterns, videos or the number of a webcam")
    sources: list[Source] = []
    taken: set[str] = set()
    for found in itertools.chain.from_iterable(map(_paths, inputs)):
        name = f"webcam{found}" if isinstance(found, int) else os.fsencode(found.stem).decode("utf-8", "replace")
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        unique = next(each for each in names if each.lower() not in taken)
        taken.add(unique.lower())
        sources.append(Source(unique, found, isinstance(found, int) or found.suffix.lower() in VIDEOS, **known))
    return sources


def _paths(given: str) -> list[Path | int]:
    """Return the files or the webcam that one argument names."""
    path = Path(given)
    if given.isdecimal() and not os.path.exists(given):  # noqa: PTH110 - Path.exists raises for names that are too long
        if len(given) > 4:
            raise InputError(f"{given[:40]}: no webcam has this number: give 0 for the first, 1 for the second")
        return [int(given)]
    if os.path.isdir(given):  # noqa: PTH112
        try:
            found = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            inside = [p for p in found if p.suffix.lower() in SUFFIXES | VIDEOS]
        except OSError as error:
            raise InputError(f"{given}: cannot be read ({error.strerror}): check its permissions") from None
        if not inside:
            raise InputError(f"{given}: holds no files with a suffix of images or videos: name a folder that does")
        if passed := [p.name for p in found if p not in set(inside)]:
            more = ", ..." if len(passed) > 5 else ""
            count = f"{len(passed)} file{'s' if len(passed) > 1 else ''} passed over"
            warn(f"{given}: {count}, no images or videos by the suffix: {', '.join(passed[:5])}{more}")
        return list(inside)
    if os.path.exists(given):  # noqa: PTH110
        return [path]
    matches = sorted(map(Path, glob.glob(given, recursive=True)))  # noqa: PTH207 - any pattern
    files = [match for match in matches if match.is_file()]
    if not files:
        raise InputError(f"{given}: no such file, folder or pattern: correct its name")
    return list(files)


class HandFiles:
    """Files of images in one folder: <id>.json, <id>_overlay.png, meshes, and sheet.png of all overlays."""

    def __init__(
        self, folder: Path, mesh: Literal["obj", "ply", "glb"] | None, overlay: bool, skeleton: bool = False
    ) -> None:
        """Check that meshes of a format and overlays can be written, where they are wanted, and skeletons of videos."""
        self.folder, self.mesh, self.overlay, self.skeleton = folder, mesh, overlay, skeleton
        self._overlays: list[Image] = []
        self._captions: list[str] = []
        if mesh is not None:
            mesh_library()
        if overlay:
            opencv()

    @property
    def of_videos(self) -> dict[str, bool]:
        """Wanted files of a video; see `recover_video`."""
        return {"overlay": self.overlay, "mesh": self.mesh is not None, "skeleton": self.skeleton}

    def prepare(self, ids: Iterable[str], inputs: Iterable[Path | None], others: Iterable[str] = ()) -> None:
        """Create the folder for hands of the given ids, and for other files; see `prepare_folder`."""
        endings = [".json", *([f".{self.mesh}"] if self.mesh else []), *(["_overlay.png"] if self.overlay else [])]
        names = [f"{id}{ending}" for id in ids for ending in endings]
        prepare_folder(self.folder, [*names, *others, *(["sheet.png"] if self.overlay else [])], inputs)

    def write(self, id: str, content: Any, hands: Sequence[Hand], image: Image | None, caption: str) -> None:
        """Write the JSON content, the meshes (one file, none without hands) and the captioned overlay of an image."""
        write_json(self.folder / f"{id}.json", content)
        if self.mesh is not None and hands:
            write_mesh(self.folder / f"{id}.{self.mesh}", hands)
        if self.overlay:
            drawn = overlay(hands, image)
            write_image(self.folder / f"{id}_overlay.png", drawn)
            if len(self._overlays) < _MOST_ON_SHEET:
                self._overlays.append(drawn)
                self._captions.append(caption)

    def write_sheet(self) -> None:
        """Write the sheet if there are several overlays."""
        if len(self._overlays) > 1:
            write_image(self.folder / "sheet.png", sheet(self._overlays, self._captions))


def predict(
    sources: Sequence[Source],
    tailor: HandTailor,
    files: HandFiles,
    *,
    hands: int | None = None,
    thorough: bool = False,
    passes: int = 2,
) -> int:
    """Recover the hands of all sources and write the results; report sources that cannot be read, and skip them.

    `hands`, `thorough` and `passes` are those of `HandTailor`, but without `hands` two are followed in a video.

    Returns:
        The number of sources that were skipped.

    Raises:
        InputError: If nothing can be written, or the options do not fit the sources.
    """
    videos = [source for source in sources if source.video]
    images = [source for source in sources if not source.video]
    if videos and files.mesh not in (None, "glb"):
        raise InputError(f"--mesh {files.mesh} cannot hold the frames of {videos[0].path}: use --mesh glb for videos")
    if videos and files.mesh:
        gltf_library()
    if files.skeleton and not videos:
        raise InputError("--skeleton bvh is for videos, and none is given: leave it out, or use --mesh")
    of_videos = [source.id + ending for source in videos for ending in (".jsonl", "_overlay.mp4", ".glb")]
    inputs = [source.path for source in sources if isinstance(source.path, Path)]
    files.prepare([source.id for source in images], inputs, of_videos)

    announce_compiling()
    skipped = 0
    for source in tqdm(images, desc="predict", unit="image", disable=len(images) <= 1):
        with _skipping(source) as was_skipped:
            image = read_image(Path(source.path))
            if source.box is not None:
                one = tailor.one(image, source.camera, source.box, source.side, passes=passes)
                found = [] if one is None else [one]
            else:
                found = tailor(image, source.camera, side=source.side, hands=hands, thorough=thorough or None)
            if not all(hand.finite for hand in found):
                raise InputError(
                    "the network's output is not finite: check the camera, and if the weights fit the hand"
                )
            content = {"hands": [to_json(hand) for hand in found], "image_size": list(image.shape[1::-1])}
            summary = _summary(source, found)
            files.write(source.id, content, found, image, summary)
            if len(images) <= MOST_LINES or not found:
                tqdm.write(summary)
        skipped += was_skipped()
    files.write_sheet()
    for source in videos:
        with _skipping(source) as was_skipped:
            # A file is smoothed as a whole, once all of its frames are known.
            config = VideoConfig(hands=2 if hands is None else hands, smooth=isinstance(source.path, int))
            follow = HandVideo(tailor, source.camera, source.box, source.side, config)
            recover_video(source.path, files.folder / source.id, follow, tailor.hand, **files.of_videos)
        skipped += was_skipped()
    return skipped


@contextlib.contextmanager
def _skipping(source: Source) -> Iterator[Callable[[], bool]]:
    """Report an InputError of a source on stderr; yield a function that returns whether there was one."""
    failed = False
    try:
        yield lambda: failed
    except InputError as error:
        failed = True
        text = " ".join(str(error).split())
        named = text if str(source.path) in text else f"{source.path}: {text}"
        tqdm.write(f"handtailor: skipped: {named}", file=sys.stderr)


def _summary(source: Source, hands: Sequence[Hand]) -> str:
    if not hands:
        return f"{source.id}: no hand found (a --box around it may help)"
    errors = [
        f"{hand.side} hand {hand.reprojection_after / hand_size(hand.detected_keypoints_2d):.1%}" for hand in hands[:4]
    ]
    more = f" and {len(hands) - 4} more" if len(hands) > 4 else ""
    return f"{source.id}: {', '.join(errors)}{more} (mean distance of mesh and keypoints, of the hand's size)"


def overlay(hands: Sequence[Hand], image: Image | None) -> Image:
    """Return the image with the detected keypoints, the meshes over it, and the meshes from the side, uint8 RGB."""
    detected = [np.where((hand.confidence > 0)[:, None], hand.detected_keypoints_2d, np.nan) for hand in hands]
    camera = jax.tree.map(jnp.asarray, hands[0].camera) if hands else Camera.weak_perspective()
    meshes = [(hand.vertices, hand.faces) for hand in hands]
    return overlay_figure(image, meshes, camera, detected or None, [hand.keypoints_2d for hand in hands] or None)


def sheet(images: Sequence[Image], captions: Sequence[str]) -> Image:
    """Return a grid of overlays with captions, reduced to at most 3,200 pixels in width."""
    return contact_sheet(images, 2 if len(images) <= 8 else 4, captions, most_width=3200)

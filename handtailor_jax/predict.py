"""`handtailor predict`: images and videos in; JSON, meshes and overlays of the hands out."""

import contextlib
import dataclasses
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from handtailor_jax import results
from handtailor_jax.commands import Predict
from handtailor_jax.errors import InputError
from handtailor_jax.hand_tailor import HandTailor, check_finite
from handtailor_jax.images import Image, read_image
from handtailor_jax.render.overlay import draw_skeleton
from handtailor_jax.render.shading import render_mesh
from handtailor_jax.types import Hand, Side
from handtailor_jax.video.animation import write_animation
from handtailor_jax.video.files import Video, json_lines, video_writer
from handtailor_jax.video.track import HandVideo, VideoConfig

IMAGES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
"""Suffixes of files in folders that count as images."""
VIDEOS = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"))
"""Suffixes of files that count as videos."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One image, video or webcam."""

    id: str
    """Name of the result's files, without suffix."""
    path: Path | int
    """File, or number of a webcam."""
    video: bool
    """Whether the source is a video or webcam."""
    camera: Any = None
    """Intrinsic matrix of this image, where it is not the one of the options."""
    side: Side | None = None
    """Side of the hand in this image, where it is not the one of the options."""


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Return the images and videos that arguments name: files, folders, patterns, numbers of webcams.

    Raises:
        InputError: If an argument names nothing.
    """
    if not inputs:
        raise InputError("no inputs: name images, folders, patterns, videos or the number of a webcam")
    paths: list[Path | int] = []
    for given in inputs:
        try:
            paths += _paths(given)
        except OSError as error:
            raise InputError(f"{given}: cannot be read ({error.strerror}): check its permissions") from None
    sources: list[Source] = []
    taken: set[str] = set()
    for found in paths:
        name = f"webcam{found}" if isinstance(found, int) else found.stem
        unique, number = name, 2
        while unique.lower() in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique.lower())
        sources.append(Source(unique, found, isinstance(found, int) or found.suffix.lower() in VIDEOS))
    return sources


def _paths(given: str) -> list[Path | int]:
    """Return the files or the webcam that one argument names."""
    path = Path(given)
    if given.isdecimal() and not os.path.exists(given):  # noqa: PTH110 - Path.exists raises for names that are too long
        return [int(given)]
    if os.path.isdir(given):  # noqa: PTH112
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES | VIDEOS and p.is_file())
        if not inside:
            raise InputError(f"{given}: holds no files with a suffix of images or videos: name a folder that does")
        return list(inside)
    if os.path.exists(given):  # noqa: PTH110
        return [path]
    matches = sorted(Path(match) for match in glob.glob(given, recursive=True))  # noqa: PTH207 - any pattern
    files = [match for match in matches if match.is_file()]
    if not files:
        raise InputError(f"{given}: no such file, folder or pattern: correct its name")
    return list(files)


def predict(sources: Sequence[Source], tailor: HandTailor, options: Predict) -> int:
    """Recover the hands of all sources and write the results; report sources that cannot be read, and skip them.

    Returns:
        The number of sources that were skipped.

    Raises:
        InputError: If nothing can be written, or the options do not fit the sources.
    """
    videos = [source for source in sources if source.video]
    images = [source for source in sources if not source.video]
    if videos and options.mesh not in (None, "glb"):
        raise InputError(f"--mesh {options.mesh} cannot hold the frames of {videos[0].path}: use --mesh glb for videos")
    files = results.HandFiles(options.out, options.mesh, options.overlay)
    of_videos = [source.id + ending for source in videos for ending in (".jsonl", "_overlay.mp4", ".glb")]
    files.prepare([source.id for source in images], of_videos)

    skipped = _predict_images(images, tailor, options, files) if images else 0
    for video in videos:
        with _skipping(video) as was_skipped:
            _predict_video(video, tailor, options)
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


def _predict_images(sources: Sequence[Source], tailor: HandTailor, options: Predict, files: results.HandFiles) -> int:
    """Write the hands of images; return the number of images that were skipped."""
    skipped = 0
    for source in tqdm(sources, desc="predict", unit="image", disable=len(sources) == 1):
        assert isinstance(source.path, Path)
        with _skipping(source) as was_skipped:
            image = read_image(source.path)
            hands = _recover(image, source, tailor, options)
            for hand in hands:
                check_finite(hand)
            height, width = image.shape[:2]
            content = {"hands": [results.to_json(hand) for hand in hands], "image_size": [width, height]}
            summary = _summary(source, hands)
            files.write(source.id, content, hands, image, summary)
            if len(sources) <= results.MOST_LINES or not hands:
                tqdm.write(summary)
        skipped += was_skipped()
    files.write_sheet()
    return skipped


def _recover(image: Image, source: Source, tailor: HandTailor, options: Predict) -> list[Hand]:
    camera, box, side = _arguments(source, options)
    if box is not None:
        hand = tailor.one(image, camera, box, side, passes=options.passes)
        return [] if hand is None else [hand]
    return tailor(image, camera, side=side, hands=options.hands, thorough=options.thorough or None)


def _arguments(source: Source, options: Predict) -> tuple[Any, Any, Side | None]:
    """Return camera, box and side of a source."""
    camera = options.camera if source.camera is None else source.camera
    return camera, options.box, options.side if source.side is None else source.side


def _summary(source: Source, hands: Sequence[Hand]) -> str:
    if not hands:
        return f"{source.id}: no hand found"
    errors = ", ".join(f"{hand.side} {hand.reprojection_after:.1f} px" for hand in hands[:4])
    more = f" and {len(hands) - 4} more" if len(hands) > 4 else ""
    return f"{source.id}: {len(hands)} hand{'s' if len(hands) > 1 else ''} ({errors}{more} from the keypoints)"


def _predict_video(source: Source, tailor: HandTailor, options: Predict) -> None:
    """Write <id>.jsonl with a line for each frame, and <id>_overlay.mp4; with --mesh glb also the moving meshes."""
    out = options.out
    meshes: list[tuple[np.ndarray, np.ndarray] | None] = []
    times: list[float] = []
    seen = undecoded = 0
    last: Image | None = None
    config = VideoConfig() if options.hands is None else VideoConfig(hands=options.hands)
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(Video(source.path))
        follow = HandVideo(tailor, video.rate or 30.0, *_arguments(source, options), config)
        write_line = stack.enter_context(json_lines(out / f"{source.id}.jsonl"))
        write_frame: Any = None
        if options.overlay:
            write_frame = stack.enter_context(video_writer(out / f"{source.id}_overlay.mp4", video.rate or 30.0))
        frames = stack.enter_context(contextlib.closing(tqdm(video, desc=source.id, unit="frame", total=video.count)))
        # A webcam's recording ends with Ctrl-C.
        stack.enter_context(contextlib.suppress(*(() if isinstance(source.path, Path) else (KeyboardInterrupt,))))
        for frame in frames:
            hands = [] if frame.image is None else follow(frame.image, frame.time)
            hands = [hand for hand in hands if np.isfinite(hand.vertices).all()]
            undecoded += frame.image is None
            seen += bool(hands)
            content = [{"track": hand.track, **results.to_json(hand)} for hand in hands]
            write_line({"frame": frame.index, "time": round(frame.time, 6), "hands": content})
            if options.mesh is not None:
                meshes.append(results.joined_mesh(hands) if hands else None)
                times.append(frame.time)
            # A frame that cannot be decoded repeats the one before, so that the overlay keeps the video's time.
            if write_frame is not None:
                last = last if frame.image is None else _draw(frame.image, hands)
                if last is not None:
                    write_frame(last)
    if options.mesh is not None and seen:
        write_animation(out / f"{source.id}.glb", meshes, times)
    note = f", {undecoded} frames could not be decoded" if undecoded else ""
    tqdm.write(f"{source.id}: hands found in {seen} of {follow.frames} frames{note}")


def _draw(image: Image, hands: Sequence[Hand]) -> Image:
    """Return a frame with the meshes over it, distant ones first, and the detected keypoints."""
    height, width = image.shape[:2]
    drawn = image
    for hand in sorted(hands, key=_nearness):
        camera = jax.tree.map(jnp.asarray, hand.camera)
        drawn = render_mesh(hand.vertices, hand.faces, camera, height, width, background=drawn, opacity=0.75)
        drawn = draw_skeleton(drawn, hand.detected_keypoints_2d, confidence=hand.confidence, hollow=True)
    return drawn


def _nearness(hand: Hand) -> float:
    """Return a number that grows with a hand's nearness: minus its depth with intrinsics, its image size without."""
    return -float(hand.parameters.translation[2]) if hand.perspective else float(hand.parameters.scale)

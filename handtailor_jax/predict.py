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
from handtailor_jax.images import Picture, read_picture
from handtailor_jax.pipeline import HandTailor, check_finite
from handtailor_jax.render.overlay import draw_skeleton
from handtailor_jax.render.shading import render_mesh
from handtailor_jax.types import Hand, Side
from handtailor_jax.video.animation import write_animation
from handtailor_jax.video.files import Video, json_lines, video_writer
from handtailor_jax.video.track import HandVideo

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
    with tqdm(total=len(sources), desc="predict", unit="image", disable=len(sources) == 1) as progress:
        for first in range(0, len(sources), options.batch):
            batch: list[tuple[Source, Picture]] = []
            for source in sources[first : first + options.batch]:
                assert isinstance(source.path, Path)
                with _skipping(source) as was_skipped:
                    image = read_picture(source.path)
                    # Checked here, so that one image that the box misses does not stop the other images of the batch.
                    tailor.check(image, *_arguments(source, options))
                    batch.append((source, image))
                skipped += was_skipped()
            for source, image, hand in _recover(batch, tailor, options):
                with _skipping(source) as was_skipped:
                    check_finite(hand)
                    files.write(source.id, hand, image, _summary(source, hand))
                    if len(sources) <= results.MOST_LINES:
                        tqdm.write(_summary(source, hand))
                skipped += was_skipped()
            progress.update(min(options.batch, len(sources) - first))
    files.write_sheet()
    return skipped


def _recover(
    batch: Sequence[tuple[Source, Picture]], tailor: HandTailor, options: Predict
) -> list[tuple[Source, Picture, Hand]]:
    """Recover the hands of one batch. A last batch is filled up, so that no program of another size is compiled."""
    if not batch:
        return []
    filled = [*batch, *[batch[-1]] * (options.batch - len(batch))]
    cameras, boxes, sides = zip(*(_arguments(source, options) for source, _ in filled), strict=True)
    hands = tailor.batch([image for _, image in filled], cameras, boxes, sides, looks=options.looks)
    return [(*pair, hand) for pair, hand in zip(batch, hands, strict=False)]


def _arguments(source: Source, options: Predict) -> tuple[Any, Any, Side]:
    """Return camera, box and side of a source."""
    camera = options.camera if source.camera is None else source.camera
    return camera, options.box, options.side if source.side is None else source.side


def _summary(source: Source, hand: Hand) -> str:
    before, after = hand.reprojection_before, hand.reprojection_after
    return f"{source.id}: {before:.1f} > {after:.1f} px from the keypoints, confidence {hand.confidence.mean():.2f}"


def _predict_video(source: Source, tailor: HandTailor, options: Predict) -> None:
    """Write <id>.jsonl with a line for each frame, and <id>_overlay.mp4; with --mesh glb also the moving mesh."""
    out = options.out
    meshes: list[np.ndarray | None] = []
    times: list[float] = []
    faces = np.zeros((0, 3), np.int32)
    seen = undecoded = 0
    last: Picture | None = None
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(Video(source.path))
        follow = HandVideo(tailor, video.rate or 30.0, *_arguments(source, options))
        write_line = stack.enter_context(json_lines(out / f"{source.id}.jsonl"))
        write_frame: Any = None
        if options.overlay:
            write_frame = stack.enter_context(video_writer(out / f"{source.id}_overlay.mp4", video.rate or 30.0))
        frames = stack.enter_context(contextlib.closing(tqdm(video, desc=source.id, unit="frame", total=video.count)))
        # A webcam's recording ends with Ctrl-C.
        stack.enter_context(contextlib.suppress(*(() if isinstance(source.path, Path) else (KeyboardInterrupt,))))
        for frame in frames:
            hand = None if frame.image is None else follow(frame.image, frame.time)
            undecoded += frame.image is None
            seen += hand is not None
            content = {} if hand is None else results.to_json(hand)
            write_line({"frame": frame.index, "time": round(frame.time, 6), "found": hand is not None, **content})
            if options.mesh is not None:
                meshes.append(None if hand is None else results.metric_vertices(hand))
                times.append(frame.time)
                faces = faces if hand is None else hand.faces
            # A frame that cannot be decoded repeats the one before, so that the overlay keeps the video's time.
            if write_frame is not None:
                last = last if frame.image is None else _draw(frame.image, hand)
                if last is not None:
                    write_frame(last)
    if options.mesh is not None and faces.size:
        write_animation(out / f"{source.id}.glb", meshes, faces, times)
    note = f", {undecoded} frames could not be decoded" if undecoded else ""
    tqdm.write(f"{source.id}: hand found in {seen} of {follow.frames} frames{note}")


def _draw(image: Picture, hand: Hand | None) -> Picture:
    """Return a frame with the mesh over it and the detected keypoints."""
    if hand is None:
        return image
    height, width = image.shape[:2]
    camera = jax.tree.map(jnp.asarray, hand.camera)
    drawn = render_mesh(hand.vertices, hand.faces, camera, height, width, background=image, opacity=0.75)
    return draw_skeleton(drawn, hand.detected_keypoints_2d, confidence=hand.confidence, hollow=True)

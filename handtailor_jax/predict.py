"""`handtailor predict`: photographs and films in; JSON, meshes and pictures of the hands out."""

import contextlib
import dataclasses
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from handtailor_jax import results
from handtailor_jax.errors import InputError
from handtailor_jax.images import Picture, read_picture
from handtailor_jax.pipeline import HandResult, HandTailor, HandVideo
from handtailor_jax.render.overlay import draw_skeleton
from handtailor_jax.render.shading import render_mesh
from handtailor_jax.types import Side
from handtailor_jax.video.files import Film, json_lines, video_writer, write_animation

IMAGES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
"""Endings of files in folders that count as images."""
FILMS = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"))
"""Endings of files that count as films."""

_MOST_ON_SHEET = 40
_MOST_LINES = 20


@dataclasses.dataclass(frozen=True)
class Source:
    """One image, film or webcam."""

    id: str
    """Name of its results."""
    path: Path | int
    film: bool
    camera: Any = None
    """Intrinsic matrix of this image, if it is not that of the options."""
    side: Side | None = None
    """The hand in this image, if it is not that of the options."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What applies to every input."""

    out: Path
    """Folder for the results."""
    camera: Any = None
    """Intrinsic matrix (3, 3), pixels; None without intrinsics."""
    side: Side = "right"
    box: tuple[float, float, float, float] | None = None
    """Box around the hand, in films of the first frame; it is looked for if None."""
    mesh: Literal["obj", "ply", "glb"] | None = None
    batch: int = 1
    """Images in one call of the network."""
    looks: int = 2
    """How often the network looks at an image (`HandTailor.batch`)."""
    overlay: bool = True

    def camera_of(self, source: Source) -> Any:
        """The camera that applies to an input."""
        return self.camera if source.camera is None else source.camera

    def side_of(self, source: Source) -> Side:
        """The side that applies to an input."""
        return self.side if source.side is None else source.side


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The images and films that arguments of the command line name: files, folders, patterns, numbers of webcams.

    Raises:
        InputError: if an argument names nothing.
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
        sources.append(Source(unique, found, isinstance(found, int) or found.suffix.lower() in FILMS))
    return sources


def _paths(given: str) -> list[Path | int]:
    """What one argument names."""
    path = Path(given)
    if given.isdecimal() and not os.path.exists(given):  # noqa: PTH110 - Path.exists raises for names that are too long
        return [int(given)]
    if os.path.isdir(given):  # noqa: PTH112
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES | FILMS and p.is_file())
        if not inside:
            raise InputError(f"{given}: holds no images or videos (by their endings): name a folder that does")
        return list(inside)
    if os.path.exists(given):  # noqa: PTH110
        return [path]
    matches = sorted(Path(match) for match in glob.glob(given, recursive=True))  # noqa: PTH207 - any pattern
    files = [match for match in matches if match.is_file()]
    if not files:
        raise InputError(f"{given}: no such file, folder or pattern; correct its name")
    return list(files)


def predict(sources: Sequence[Source], tailor: HandTailor, options: Options) -> int:
    """Recovers the hands of all sources and writes the results.

    What cannot be read is reported on stderr and skipped.

    Returns:
        The number of sources that were skipped.

    Raises:
        InputError: if nothing can be written, or options do not fit the sources.
    """
    films = [source for source in sources if source.film]
    images = [source for source in sources if not source.film]
    if films and options.mesh not in (None, "glb"):
        raise InputError(f"--mesh {options.mesh} cannot hold the frames of {films[0].path}: use --mesh glb for videos")
    if options.mesh is not None:
        results.mesh_library()
    endings = [".json", "_overlay.png", *([f".{options.mesh}"] if options.mesh else [])]
    names = [source.id + ending for source in images for ending in endings]
    names += [source.id + ending for source in films for ending in (".jsonl", "_overlay.mp4", ".glb")]
    results.prepare_folder(options.out, [*names, "sheet.png"])

    failures = 0
    if images:
        failures += _predict_images(images, tailor, options)
    for film in films:
        with _reporting(film) as report:
            _predict_film(film, tailor, options)
        failures += report()
    return failures


def to_json(found: HandResult) -> dict[str, Any]:
    """The result as plain numbers: the fields of `handtailor fit`, and what the hand module saw and proposed."""
    return {
        **results.to_json(found.fitted),
        "box": [round(value, 3) for value in found.box],
        "detected_keypoints_2d": np.round(found.keypoints_2d.astype(float), 3).tolist(),
        "confidence": np.round(found.confidence.astype(float), 4).tolist(),
        "proposed": results.to_json(found.proposed),
    }


@contextlib.contextmanager
def _reporting(source: Source) -> Iterator[Callable[[], bool]]:
    """Reports an InputError of one source; the function it gives tells whether there was one."""
    failed = False
    try:
        yield lambda: failed
    except InputError as error:
        failed = True
        text = " ".join(str(error).split())
        named = text if str(source.path) in text else f"{source.path}: {text}"
        tqdm.write(f"handtailor: skipped: {named}", file=sys.stderr)


def _predict_images(sources: Sequence[Source], tailor: HandTailor, options: Options) -> int:
    failures = 0
    pictures: list[Picture] = []
    captions: list[str] = []
    with tqdm(total=len(sources), desc="predict", unit="image", disable=len(sources) == 1) as progress:
        for first in range(0, len(sources), options.batch):
            batch: list[tuple[Source, Picture]] = []
            for source in sources[first : first + options.batch]:
                assert isinstance(source.path, Path)
                with _reporting(source) as report:
                    photograph = read_picture(source.path)
                    # Checked here, so that one picture that a box misses does not take its neighbours down.
                    tailor.check(photograph, options.camera_of(source), options.box, options.side_of(source))
                    batch.append((source, photograph))
                failures += report()
            # A batch of another size would be another program to compile: the last one is filled up.
            filled = batch + (batch[-1:] * (options.batch - len(batch)) if batch else [])
            found = tailor.batch(
                [photograph for _, photograph in filled],
                [options.camera_of(source) for source, _ in filled],
                [options.box] * len(filled),
                [options.side_of(source) for source, _ in filled],
                looks=options.looks,
            )
            for (source, photograph), hand in zip(batch, found, strict=False):
                with _reporting(source) as report:
                    picture = _write_image(source, photograph, hand, options)
                    if picture is not None and len(pictures) < _MOST_ON_SHEET:
                        pictures.append(picture)
                        captions.append(_summary(source, hand))
                    if len(sources) <= _MOST_LINES:
                        tqdm.write(_summary(source, hand))
                failures += report()
            progress.update(min(options.batch, len(sources) - first))
    if len(pictures) > 1:
        results.write_picture(options.out / "sheet.png", results.sheet(pictures, captions))
    return failures


def _summary(source: Source, hand: HandResult) -> str:
    before, after = hand.fitted.reprojection_before, hand.fitted.reprojection_after
    return f"{source.id}: {before:.1f} > {after:.1f} px from the keypoints, confidence {hand.confidence.mean():.2f}"


def _write_image(source: Source, photograph: Picture, hand: HandResult, options: Options) -> Picture | None:
    if not np.isfinite(hand.fitted.vertices).all():
        raise InputError("the network's output is not finite: its weights do not fit this picture or hand model")
    results.write_json(options.out / f"{source.id}.json", to_json(hand))
    if options.mesh is not None:
        results.write_mesh(options.out / f"{source.id}.{options.mesh}", hand.fitted)
    if not options.overlay:
        return None
    picture = results.overlay(hand.fitted, photograph, hand.keypoints_2d, hand.confidence)
    results.write_picture(options.out / f"{source.id}_overlay.png", picture)
    return picture


def _predict_film(source: Source, tailor: HandTailor, options: Options) -> None:
    """Writes <id>.jsonl, a line a frame, and <id>_overlay.mp4; with --mesh glb also the moving mesh."""
    out = options.out
    meshes: list[np.ndarray | None] = []
    times: list[float] = []
    faces = np.zeros((0, 3), np.int32)
    with contextlib.ExitStack() as stack:
        film = stack.enter_context(Film(source.path))
        video = HandVideo(tailor, film.rate or 30.0, options.camera, options.box, options.side)
        write_line = stack.enter_context(json_lines(out / f"{source.id}.jsonl"))
        write_frame: Any = None
        if options.overlay:
            write_frame = stack.enter_context(video_writer(out / f"{source.id}_overlay.mp4", film.rate or 30.0))
        frames = stack.enter_context(contextlib.closing(tqdm(film, desc=source.id, unit="frame", total=film.count)))
        seen = broken = 0
        last: Picture | None = None
        try:
            for frame in frames:
                hand = None if frame.picture is None else video(frame.picture, frame.time)
                broken += frame.picture is None
                seen += hand is not None
                content = {} if hand is None else to_json(hand)
                write_line({"frame": frame.index, "time": round(frame.time, 6), "found": hand is not None, **content})
                if options.mesh is not None:
                    meshes.append(None if hand is None else results.metric_vertices(hand.fitted))
                    times.append(frame.time)
                    faces = faces if hand is None else hand.fitted.faces
                if write_frame is not None:
                    # An undecodable frame repeats the one before, so that the overlay keeps the film's time.
                    last = last if frame.picture is None else draw(frame.picture, hand)
                    if last is not None:
                        write_frame(last)
        except KeyboardInterrupt:
            if isinstance(source.path, Path):
                raise
            # That is how a webcam's recording ends.
    if options.mesh is not None and faces.size:
        write_animation(out / f"{source.id}.glb", meshes, faces, times)
    note = f", {broken} frames could not be decoded" if broken else ""
    tqdm.write(f"{source.id}: hand found in {seen} of {video.frames} frames{note}")


def draw(picture: Picture, hand: HandResult | None) -> Picture:
    """A frame with the mesh over it and the keypoints the hand module saw."""
    if hand is None:
        return picture
    fit = hand.fitted
    height, width = picture.shape[:2]
    drawn = render_mesh(fit.vertices, fit.faces, fit.camera, height, width, background=picture, opacity=0.75)
    return draw_skeleton(drawn, hand.keypoints_2d, confidence=hand.confidence, hollow=True)

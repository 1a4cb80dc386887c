"""Recovery of the hands of many images and videos, and their files: JSON, meshes and overlays."""

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from handtailor_jax.bulk import Settings, read_ahead
from handtailor_jax.commands import announce_compiling
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.hand_tailor import HandTailor, Request
from handtailor_jax.images import Image, opencv, read_image
from handtailor_jax.inputs import Source
from handtailor_jax.render.overlay import contact_sheet, overlay_figure
from handtailor_jax.results import mesh_library, prepare_folder, to_json, write_image, write_json, write_mesh
from handtailor_jax.types import Camera, Hand
from handtailor_jax.video.animation import gltf_library
from handtailor_jax.video.recover import recover_video
from handtailor_jax.video.track import HandVideo, VideoConfig

MOST_LINES = 20
"""Largest number of inputs for which a command prints a line each."""

_MOST_ON_SHEET = 40
_MOST_PENDING = 4  # images with files that are still to be written


class HandFiles:
    """Files of images in one folder: <id>.json, <id>_overlay.png, meshes, and sheet.png of all overlays."""

    def __init__(
        self, folder: Path, mesh: Literal["obj", "ply", "glb"] | None, overlay: bool, skeleton: bool = False
    ) -> None:
        """Choose the files to write; check that the libraries for meshes and overlays are installed."""
        self.folder, self.mesh, self.overlay, self.skeleton = folder, mesh, overlay, skeleton
        self._sheet: list[tuple[Image, str]] = []
        # One thread writes while the next hands are computed; it does not use JAX, which deadlocks with two threads.
        self._writer = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._failed = 0
        if mesh is not None:
            mesh_library()
        if overlay:
            opencv()

    def prepare(self, ids: Iterable[str], inputs: Iterable[Path | None], others: Iterable[str] = ()) -> None:
        """Check that the files of the given ids, and others, can be written; see `prepare_folder`."""
        endings = [".json", *([f".{self.mesh}"] if self.mesh else []), *(["_overlay.png"] if self.overlay else [])]
        names = [f"{id}{ending}" for id in ids for ending in endings]
        prepare_folder(self.folder, [*names, *others, *(["sheet.png"] if self.overlay else [])], inputs)

    def write(self, id: str, content: Any, hands: Sequence[Hand], image: Image | None, caption: str) -> None:
        """Write JSON, meshes (no file without hands) and overlay in the background; the sheet has the caption."""
        drawn = overlay(hands, image) if self.overlay else None
        self._pending.append(self._writer.submit(self._write, id, content, hands, drawn))
        self._finish(_MOST_PENDING)
        if drawn is not None and len(self._sheet) < _MOST_ON_SHEET:
            self._sheet.append((drawn, caption))

    def _write(self, id: str, content: Any, hands: Sequence[Hand], drawn: Image | None) -> None:
        """Write the files of an image; the JSON file is the last, so if it exists, the others do, too."""
        if self.mesh is not None and hands:
            write_mesh(self.folder / f"{id}.{self.mesh}", hands)
        if drawn is not None:
            write_image(self.folder / f"{id}_overlay.png", drawn)
        write_json(self.folder / f"{id}.json", content)

    def _finish(self, most: int) -> None:
        """Wait until at most `most` images are still to be written; report files that cannot be written."""
        while len(self._pending) > most:
            try:
                self._pending.popleft().result()
            except InputError as error:
                tqdm.write(f"handtailor: skipped: {error}", file=sys.stderr)
                self._failed += 1

    def keep(self, id: str, caption: str) -> None:
        """Add the overlay of an image that an earlier run completed to the sheet."""
        if self.overlay and len(self._sheet) < _MOST_ON_SHEET:
            with contextlib.suppress(InputError):  # damaged after it was written
                self._sheet.append((read_image(self.folder / f"{id}_overlay.png"), caption))

    def close(self) -> int:
        """Wait for all files, write the sheet of several overlays, and return the number of images that failed."""
        self._finish(0)
        if len(self._sheet) > 1:
            write_image(self.folder / "sheet.png", sheet(*zip(*self._sheet, strict=True)))
        return self._failed


def predict(
    sources: Sequence[Source],
    tailor: HandTailor,
    files: HandFiles,
    *,
    hands: int | None = None,
    thorough: bool = False,
    passes: int = 2,
    resume: bool = False,
) -> int:
    """Recover the hands of all sources and write the results; report and skip sources that cannot be read.

    `hands`, `thorough` and `passes` are those of `HandTailor`; if `hands` is None, two are followed in a video. With
    `resume`, the files of images that an earlier run with the same settings completed are kept.

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
    options = {"hands": hands, "thorough": thorough or None, "passes": passes}
    skipped = _predict_images(images, tailor, files, options, resume) if images else 0
    skipped += files.close()
    for source in videos:
        with _skipping(source) as was_skipped:
            # A file is smoothed as a whole at its end; a webcam is smoothed frame by frame.
            config = VideoConfig(hands=2 if hands is None else hands, smooth=isinstance(source.path, int))
            follow = HandVideo(tailor, source.camera, source.box, source.side, config)
            written = {"overlay": files.overlay, "mesh": files.mesh is not None, "skeleton": files.skeleton}
            recover_video(source.path, files.folder / source.id, follow, tailor.hand, **written)
        skipped += was_skipped()
    return skipped


def _predict_images(
    images: Sequence[Source], tailor: HandTailor, files: HandFiles, options: dict[str, Any], resume: bool
) -> int:
    """Recover the hands of images, while others are read and written; return the number of skipped images."""
    settings = Settings(tailor, files.mesh, files.overlay, options)
    kept: dict[str, str] = {}
    for source in images if resume else ():
        if (content := settings.complete(files.folder, source)) is not None:
            kept[source.id] = _summary(source, content)
    if resume:
        tqdm.write(f"{len(kept)} of {len(images)} images are complete")
    skipped = 0
    todo = [source for source in images if source.id not in kept]
    progress = tqdm(desc="predict", unit="image", total=len(images), initial=len(kept), disable=len(todo) <= 1)
    with read_ahead(todo) as requests, progress:
        results = tailor.many(requests, **options)
        for source in images:
            if source.id in kept:
                files.keep(source.id, kept[source.id])
                continue
            with _skipping(source) as was_skipped:
                request, found = next(results)
                if isinstance(found, InputError):
                    raise found
                assert isinstance(request, Request)
                if not all(hand.finite for hand in found):
                    raise InputError(
                        "the network's output is not finite: check the camera, and that weights and hand model match"
                    )
                content = {"hands": [to_json(hand) for hand in found], "image_size": [*request.image.shape[1::-1]]}
                content |= {"image": os.path.relpath(source.file, files.folder), "settings": settings.of(source)}
                summary = _summary(source, content)
                files.write(source.id, content, found, request.image, summary)
                if len(images) <= MOST_LINES or not found:
                    tqdm.write(summary)
            skipped += was_skipped()
            progress.update()
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
        text = text if str(source.path) in text else f"{source.path}: {text}"
        tqdm.write(f"handtailor: skipped: {text}", file=sys.stderr)


def _summary(source: Source, content: dict[str, Any]) -> str:
    """Return one line about the hands in the JSON content of an image."""
    id, hands = source.id, content["hands"]
    if not hands:
        return f"{id}: no hand found ({'a --box around it' if source.box is None else 'another box'} may help)"
    sizes = [float(hand_size(np.asarray(hand["detected_keypoints_2d"]))) for hand in hands[:4]]
    errors = [
        f"{hand['side']} hand (error {hand['reprojection_error_after'] / size:.1%})"
        for hand, size in zip(hands, sizes, strict=False)
    ]
    more = f" and {len(hands) - 4} more" if len(hands) > 4 else ""
    return f"{id}: {', '.join(errors)}{more}"


def overlay(hands: Sequence[Hand], image: Image | None) -> Image:
    """Return the image with the detected keypoints, the meshes over it, and the meshes from the side, uint8 RGB.

    Several hands have their side and their number in the JSON file, from 1.
    """
    detected = [np.where((hand.confidence > 0)[:, None], hand.detected_keypoints_2d, np.nan) for hand in hands]
    camera = jax.tree.map(jnp.asarray, hands[0].camera) if hands else Camera.weak_perspective()
    meshes = [(hand.vertices, hand.faces) for hand in hands]
    names = [f"{number} {hand.side}" for number, hand in enumerate(hands, 1)] if len(hands) > 1 else []
    fitted = [hand.keypoints_2d for hand in hands] or None
    return overlay_figure(image, meshes, camera, detected or None, fitted, names)


def sheet(images: Sequence[Image], captions: Sequence[str]) -> Image:
    """Return a grid of overlays with captions, reduced to at most 3,200 pixels in width."""
    return contact_sheet(images, 1 if len(images) <= 3 else 2 if len(images) <= 8 else 3, captions, most_width=3200)

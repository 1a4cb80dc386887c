"""Recover the hands of one video or webcam and write them: JSON lines, an overlay, rigged animations.

The hands of a file are smoothed over earlier and later frames after the last frame; then the file is read a second time
for the overlay. A webcam cannot be read twice, so each frame is smoothed over earlier frames and written at once.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from handtailor_jax.errors import InputError
from handtailor_jax.images import Image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.render.overlay import draw_skeleton
from handtailor_jax.render.shading import render_mesh
from handtailor_jax.results import to_json
from handtailor_jax.types import Hand
from handtailor_jax.video.animation import write_bvh, write_glb
from handtailor_jax.video.files import Frame, Video, json_lines, video_writer
from handtailor_jax.video.rig import Recording
from handtailor_jax.video.smoothing import smooth_video

Follow = Callable[[Image, float], list[Hand]]
"""Function from the image of a frame and its time in seconds to the hands of the frame."""


def recover_video(
    path: Path | int, stem: Path, follow: Follow, model: HandModel, *, overlay: bool, mesh: bool, skeleton: bool
) -> None:
    """Write <stem>.jsonl with a line for each frame and, on request, <stem>_overlay.mp4 and animations.

    Args:
        path: File, or number of a webcam.
        stem: Folder and name of the results.
        follow: A `HandVideo`, without smoothing if `path` is a file.
        model: Hand model that `follow` uses.
        overlay: Whether to write the overlay.
        mesh: Whether to write <stem>.glb.
        skeleton: Whether to write a BVH file for each hand.

    Raises:
        InputError: If the video cannot be read, or if half of its frames or more cannot be decoded. In the second case
            the results of the other frames have been written.
    """
    recording, total, decoded, seen = Recording(model), 0, 0, 0
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(Video(path))
        seen_frames = _followed(video, follow, stem.name)
        if isinstance(path, Path):
            again = stack.enter_context(Video(path)) if overlay else None
            seen_frames = _smoothed(list(map(_light, seen_frames)), again, model, f"{stem.name}: writing")
        seen_frames = stack.enter_context(contextlib.closing(seen_frames))
        write_line = stack.enter_context(json_lines(stem.with_name(f"{stem.name}.jsonl")))
        drawn: Image | None = None
        if overlay:
            writer = video_writer(stem.with_name(f"{stem.name}_overlay.mp4"), video.rate or 30.0)
            write_image = stack.enter_context(writer)
        # A webcam's recording ends with Ctrl-C.
        stack.enter_context(contextlib.suppress(*(() if isinstance(path, Path) else (KeyboardInterrupt,))))
        for frame, shown, hands in seen_frames:
            total, decoded, seen = total + 1, decoded + shown, seen + bool(hands)
            content = [{"track": hand.track, **to_json(hand)} for hand in hands]
            write_line({"frame": frame.index, "time": round(frame.time, 6), "hands": content})
            recording.add(hands, frame.time)
            # In place of a frame that cannot be decoded, the last image is written again, so that no frame is missing.
            drawn = _draw(frame.image, hands) if overlay and frame.image is not None else drawn
            if drawn is not None:
                write_image(drawn, frame.time)
    if mesh and seen:
        write_glb(stem.with_name(f"{stem.name}.glb"), recording)
    if skeleton and seen:
        write_bvh(stem, recording)
    undecoded = total - decoded
    missing = 0 if video.count is None else video.count - total
    note = f", {undecoded} frames could not be decoded" if undecoded else ""
    note += f", {missing} of the frames that the file announces are missing" if missing > 0 else ""
    tqdm.write(f"{stem.name}: hands found in {seen} of {decoded} frames{note}")
    if undecoded >= decoded:
        raise InputError(f"{undecoded} of {total} frames could not be decoded: the results lack them")


Seen = tuple[Frame, bool, list[Hand]]
"""A frame, whether it could be decoded, and its hands."""


def _followed(video: Video, follow: Follow, name: str) -> Generator[Seen, None, None]:
    """Yield the frames of a video with their hands."""
    with contextlib.closing(tqdm(video, desc=name, unit="frame", total=video.count)) as frames:
        for frame in frames:
            hands = [] if frame.image is None else follow(frame.image, frame.time)
            yield frame, frame.image is not None, [hand for hand in hands if hand.finite]


def _smoothed(frames: list[Seen], video: Video | None, model: HandModel, name: str) -> Generator[Seen, None, None]:
    """Yield the frames of a file with smoothed hands, and with images if `video` is given to read them again."""
    smoothed = smooth_video(model, [hands for *_, hands in frames], [frame.time for frame, *_ in frames])
    images = iter(video or ())
    both = zip(frames, smoothed, strict=True)
    for (frame, decoded, _), hands in tqdm(both, desc=name, unit="frame", total=len(frames), disable=video is None):
        yield next(images, frame), decoded, hands


def _light(seen: Seen) -> Seen:
    """Return a frame and its hands without image and meshes, so that long videos fit into memory."""
    frame, decoded, hands = seen
    return dataclasses.replace(frame, image=None), decoded, list(map(_without_mesh, hands))


def _without_mesh(hand: Hand) -> Hand:
    proposed = None if hand.proposed is None else _without_mesh(hand.proposed)
    return dataclasses.replace(hand, vertices=hand.vertices[:0], faces=hand.faces[:0], proposed=proposed)


def _draw(image: Image, hands: Sequence[Hand]) -> Image:
    """Return a frame with the meshes drawn over it, distant ones first, and the detected keypoints."""
    height, width = image.shape[:2]
    drawn = image
    # With intrinsics, hands are ordered by depth; without, by their size in the image.
    nearness = lambda hand: -hand.parameters.translation[2] if hand.perspective else hand.parameters.scale  # noqa: E731
    for hand in sorted(hands, key=nearness):
        camera = jax.tree.map(jnp.asarray, hand.camera)
        drawn = render_mesh(hand.vertices, hand.faces, camera, height, width, background=drawn, opacity=0.75)
        drawn = draw_skeleton(drawn, hand.detected_keypoints_2d, confidence=hand.confidence, hollow=True)
    return drawn

"""Follow the hands of a video: python examples/08_video.py [--video clip.mp4] [--out video].

Without --video it makes a video from an image of the package.
"""

from pathlib import Path

import numpy as np
import tyro

import handtailor_jax as ht
from handtailor_jax.images import read_image
from handtailor_jax.predict import overlay
from handtailor_jax.video.files import Video, video_writer

EXAMPLES = Path(ht.__file__).parent / "assets" / "examples"


def make_video(path: Path, frames: int) -> None:
    """Write a video of 30 frames per second in which two hands move up and down."""
    image = read_image(EXAMPLES / "greeting.jpg")
    with video_writer(path, 30.0) as write:
        for number in range(frames):
            write(np.roll(image, round(8.0 * np.sin(0.3 * number)), axis=0), number / 30.0)


def main(video: Path | None = None, out: Path = Path("video"), frames: int = 60) -> list[list[int | None]]:
    """Write a video with the meshes drawn over the frames; return the track numbers of the hands in each frame."""
    out.mkdir(parents=True, exist_ok=True)
    if video is None:
        make_video(video := out / "made.mp4", frames)
    tracks = []
    with Video(video) as source, video_writer(out / "overlay.mp4", source.rate or 30.0) as write:
        follow = ht.HandVideo(ht.HandTailor.load())
        for frame in source:
            if frame.image is None:  # the frame could not be decoded
                continue
            hands = follow(frame.image, frame.time)
            tracks.append([hand.track for hand in hands])
            write(overlay(hands, frame.image), frame.time)
            print(f"{frame.time:.2f} s:", ", ".join(f"hand {hand.track} ({hand.side})" for hand in hands) or "no hand")
    return tracks


if __name__ == "__main__":
    tyro.cli(main)

"""Read the frames of a video file or webcam; write a video and JSON lines, complete or not at all."""

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from handtailor_jax.errors import InputError, check_file
from handtailor_jax.images import Image, opencv, quiet
from handtailor_jax.results import appearing

_MOST_FAILURES = 50
"""Number of failed reads in a row after which a file ends that announces more frames."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of a video."""

    index: int
    """Number of the frame from 0; frames that cannot be decoded count."""
    time: float
    """Time in seconds from the beginning; rises from frame to frame."""
    image: Image | None
    """(H, W, 3) RGB image; None if the frame cannot be decoded."""


class Video:
    """Frames of a video file or webcam in order: ``with Video(source) as video: for frame in video: ...``."""

    def __init__(self, source: Path | int) -> None:
        """Open a video file, or a webcam by its number from 0.

        Raises:
            InputError: If there is no such file or webcam, or the file is not a video.
        """
        cv2 = _opencv()
        self._live = isinstance(source, int)
        self.name = f"webcam {source}" if self._live else str(source)
        if isinstance(source, Path):
            try:
                check_file(source)
                os.fsencode(source).decode()  # OpenCV takes no other names
            except OSError as error:
                raise InputError(f"{source}: the video cannot be read ({error.strerror}): correct its name") from None
            except UnicodeDecodeError:
                raise InputError(f"{source}: the name is not UTF-8: rename the video") from None
        with quiet(cv2):
            self._capture = cv2.VideoCapture(source if isinstance(source, int) else _address(source))
        if not self._capture.isOpened():
            remedy = "connect it or choose another number" if self._live else "give an MP4, AVI, MOV or WebM file"
            raise InputError(f"{self.name}: {'does not answer' if self._live else 'is no video'}: {remedy}")
        rate, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate: float | None = float(rate) if 0.5 <= rate <= 1000.0 else None
        """Frames per second; None if unknown."""
        self.count: int | None = int(count) if not self._live and 1 <= count < 1e9 else None
        """Number of frames that the file announces, which may be an estimate; None if unknown."""

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the remaining frames. Those that cannot be decoded count if one follows that can.

        Raises:
            InputError: At the end, if no frame could be decoded.
        """
        cv2 = _opencv()
        start, last = time.monotonic(), -math.inf
        index = decoded = failures = 0
        undecoded: list[Frame] = []
        while True:
            with quiet(cv2):
                grabbed = self._capture.grab()
                done, image = self._capture.retrieve() if grabbed else (False, None)
                milliseconds = self._capture.get(cv2.CAP_PROP_POS_MSEC)
            failures = 0 if grabbed else failures + 1
            announced = self.count is not None and index < self.count
            if failures > (_MOST_FAILURES if announced else 0):
                break
            now = time.monotonic() - start if self._live else 1e-3 * milliseconds
            if not now > last:  # files without time stamps
                now = max(last, 0.0) + 1.0 / (self.rate or 30.0)
            last = now
            whole = np.ascontiguousarray(image[..., ::-1]) if done and image is not None else None
            undecoded.append(Frame(index, now, whole))
            index += 1
            if whole is not None:
                decoded += 1
                yield from undecoded
                undecoded.clear()
        if not decoded:
            raise InputError(f"{self.name}: no frame could be decoded: give a video that other programs can play")


def _address(path: Path) -> str:
    """Return the absolute name of a file: FFmpeg takes what is before a colon in a relative one for a protocol."""
    return str(path.absolute())


def _opencv() -> Any:
    # FFmpeg does not write to OpenCV's log. It reads this variable when the first video is opened.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return opencv()


@contextlib.contextmanager
def video_writer(path: Path, rate: float) -> Iterator[Callable[[Image], None]]:
    """Yield a function that appends uint8 RGB images of one size to an MP4 file (MPEG-4 part 2, in every OpenCV).

    The rate is in frames per second. An odd last row or column is left out, because the format cannot hold it. Without
    images no file is written.

    Raises:
        InputError: If the file cannot be written.
        ValueError: If an image has another size than the first one.
    """
    cv2 = _opencv()
    with appearing(path) as temporary:
        writer: Any = None
        shape: tuple[int, ...] = ()

        def write(image: Image) -> None:
            nonlocal writer, shape
            if writer is None:
                shape = image.shape
                code = cv2.VideoWriter_fourcc(*"mp4v")
                with quiet(cv2):
                    writer = cv2.VideoWriter(_address(temporary), code, rate, (shape[1] // 2 * 2, shape[0] // 2 * 2))
                if not writer.isOpened():
                    remedy = "choose another folder, and images of at least 2 x 2"
                    raise InputError(f"{path}: the video cannot be written: {remedy}")
            if image.shape != shape:
                raise ValueError(f"an image of a video has the shape {image.shape}, expected {shape}")
            even = image[: shape[0] // 2 * 2, : shape[1] // 2 * 2]
            writer.write(np.ascontiguousarray(even[..., ::-1]))

        try:
            yield write
        finally:
            if writer is not None:
                writer.release()
        if writer is not None:
            # OpenCV's writer does not report a full disk, so the file is opened again.
            with quiet(cv2):
                check = cv2.VideoCapture(_address(temporary))
                playable = check.isOpened() and check.read()[0]
                check.release()
            if not playable:
                raise InputError(f"{path}: the video is not complete: free disk space and write it again")


@contextlib.contextmanager
def json_lines(path: Path) -> Iterator[Callable[[Any], None]]:
    """Yield a function that appends a value as one line of JSON; lines appear in the temporary file at once.

    Raises:
        InputError: If the file cannot be written.
    """
    with appearing(path) as temporary, temporary.open("w", encoding="utf-8") as file:

        def write(content: Any) -> None:
            file.write(json.dumps(content, allow_nan=False) + "\n")
            file.flush()

        yield write

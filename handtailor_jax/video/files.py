"""Read the frames of a video file or webcam; write a video and JSON lines, which appear once they are complete.

PyAV reads and writes files, and gives the times and rotations that a file stores. OpenCV reads webcams.
"""

import contextlib
import dataclasses
import fractions
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from handtailor_jax.errors import InputError, check_file, imported
from handtailor_jax.images import Image, opencv, quiet
from handtailor_jax.results import appearing

VIDEOS = frozenset(
    ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .ts .mts .m2ts .3gp .3g2 .wmv .flv .ogv".split()  # noqa: SIM905
)
"""Suffixes of files that count as videos."""

_CLOCK = fractions.Fraction(1, 90_000)
"""Unit of the time stamps of written videos, seconds."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of a video."""

    index: int
    """Number of the frame, from 0; frames that cannot be decoded are counted."""
    time: float
    """Time in seconds from the first frame; rises from frame to frame."""
    image: Image | None
    """(H, W, 3) RGB image, upright as players show it; None if the frame cannot be decoded."""


class Video:
    """Frames of a video file or webcam in order: ``with Video(source) as video: for frame in video: ...``."""

    def __init__(self, source: Path | int) -> None:
        """Open a video file, or a webcam by its number from 0.

        Raises:
            InputError: If there is no such file or webcam, or the file is not a video that can be decoded.
        """
        self.name = f"webcam {source}" if isinstance(source, int) else str(source)
        self._source: _File | _Webcam = _Webcam(source) if isinstance(source, int) else _File(source)
        self.rate: float | None = self._source.rate
        """Mean number of frames per second; None if unknown."""
        self.count: int | None = self._source.count
        """Number of frames that the file announces, which may be wrong; None if unknown."""

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file or webcam."""
        self._source.close()

    def seek(self, time: float) -> None:
        """Start the next iteration at the last key frame before a time in seconds; this has no effect on a webcam."""
        if isinstance(self._source, _File):
            self._source.seek(time)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the remaining frames. Frames that cannot be decoded are included if a later one can.

        Raises:
            InputError: At the end, if no frame could be decoded.
        """
        last, decoded = -math.inf, 0
        undecoded: list[Frame] = []
        for index, (now, image) in enumerate(self._source.frames()):
            if now is None or not now > last:  # no time stamp, or one that does not rise
                now = max(last, 0.0) + 1.0 / (self.rate or 30.0) if index else 0.0
            last = now
            undecoded.append(Frame(index, now, image))
            if image is not None:
                decoded += 1
                yield from undecoded
                undecoded.clear()
        if not decoded:
            raise InputError(f"{self.name}: no frame could be decoded: give a video that other programs can play")


class _File:
    """Times and images of the first video track of a file."""

    def __init__(self, path: Path) -> None:
        av = _library()
        try:
            check_file(path)
            # FFmpeg is given an open file, because it could take a name for an address.
            self._bytes = path.open("rb")
        except OSError as error:
            raise InputError(f"{path}: the video cannot be read ({error.strerror}): correct its name") from None
        with contextlib.ExitStack() as stack:
            stack.callback(self._bytes.close)
            try:
                # A playlist may name other files and addresses, which must not be read.
                options = {"protocol_whitelist": "none"}
                self._container = stack.enter_context(av.open(self._bytes, options=options))
            except (av.FFmpegError, OSError, ValueError):
                raise InputError(f"{path}: is not a video: give a complete MP4, AVI, MOV or WebM file") from None
            pictures = [
                s for s in self._container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
            ]
            if not pictures:
                raise InputError(f"{path}: holds no video track: give a video")
            self._stream = pictures[0]
            if self._stream.codec_context is None:
                raise InputError(f"{path}: PyAV has no decoder for its frames: convert it to H.264")
            rate = float(self._stream.average_rate or self._stream.guessed_rate or 0.0)
            self.rate = rate if 0.5 <= rate <= 1000.0 else None
            self.count = self._stream.frames or None
            self._start: float | None = None
            """Time of the first frame, seconds."""
            self.close = stack.pop_all().close

    def frames(self) -> Iterator[tuple[float | None, Image | None]]:
        """Yield the time of each frame and its image; None if it cannot be decoded."""
        av = _library()
        packets = self._container.demux(self._stream)
        while True:
            packet = None
            try:
                packet = next(packets)
                decoded = packet.decode()
            except (StopIteration, EOFError):
                return
            except av.FFmpegError:
                if packet is None:  # the file itself is damaged from here on
                    return
                yield None, None
                continue
            for frame in decoded:
                self._start = frame.time if self._start is None else self._start
                yield None if frame.time is None else frame.time - (self._start or 0.0), _upright(frame)

    def seek(self, time: float) -> None:
        """Continue with the last key frame before a time, in seconds from the first frame."""
        with contextlib.suppress(_library().FFmpegError):  # a file that cannot seek goes on from here
            self._container.seek(int((time + (self._start or 0.0)) / self._stream.time_base), stream=self._stream)


def _upright(frame: Any) -> Image:
    """Return the image of a frame, rotated as its file specifies."""
    # FFmpeg's angles are counter-clockwise, as NumPy's are.
    image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90.0))
    return np.ascontiguousarray(image)


class _Webcam:
    """Times and images of a webcam."""

    count = None

    def __init__(self, number: int) -> None:
        cv2 = opencv()
        with quiet(cv2):
            self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise InputError(f"webcam {number}: does not answer: connect it or choose another number")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = float(rate) if 0.5 <= rate <= 1000.0 else None
        self.close = self._capture.release

    def frames(self) -> Iterator[tuple[float, Image | None]]:
        """Yield the time of each frame and its image; None if it cannot be decoded."""
        cv2, start = opencv(), time.monotonic()
        while True:
            with quiet(cv2):
                if not self._capture.grab():
                    return
                done, image = self._capture.retrieve()
            yield time.monotonic() - start, np.ascontiguousarray(image[..., ::-1]) if done else None


def _library() -> Any:
    """Import PyAV, or raise an InputError that names the remedy."""
    return imported("av", "videos cannot be read or written", "pip install av")


@contextlib.contextmanager
def video_writer(path: Path, rate: float) -> Iterator[Callable[[Image, float], None]]:
    """Yield a function that appends uint8 RGB images of one size to an H.264 video, at rising times in seconds.

    The rate, in frames per second, sets how long the last image is shown. An odd last row or column is left out,
    because the format requires even sizes. Without images no file is written.

    Raises:
        InputError: If the file cannot be written.
        ValueError: If an image has another size than the first one.
    """
    av = _library()
    with appearing(path) as temporary, contextlib.ExitStack() as stack:
        container: Any = None
        stream: Any = None
        shape: tuple[int, ...] = ()

        def write(image: Image, time: float) -> None:
            nonlocal container, stream, shape
            if container is None:
                shape = image.shape
                if min(shape[:2]) < 2:
                    raise InputError(f"{path}: the video cannot be written: give images of at least 2 x 2")
                file = stack.enter_context(temporary.open("wb"))
                container = av.open(file, "w", format="mp4")
                options = {"preset": "veryfast", "crf": "20", "bf": "0"}
                stream = container.add_stream(
                    "libx264", rate=fractions.Fraction(rate).limit_denominator(1001), options=options
                )
                stream.width, stream.height, stream.pix_fmt = shape[1] // 2 * 2, shape[0] // 2 * 2, "yuv420p"
                stream.time_base = stream.codec_context.time_base = _CLOCK
            if image.shape != shape:
                raise ValueError(f"an image of a video has the shape {image.shape}, expected {shape}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[: stream.height, : stream.width]))
            frame.pts, frame.time_base = round(time / _CLOCK), _CLOCK
            frame.duration = round(1 / (rate * _CLOCK))
            container.mux(stream.encode(frame))

        try:
            yield write
            if container is not None:
                container.mux(stream.encode(None))
                container.close()
        except av.FFmpegError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}): choose another folder") from None
        finally:
            if container is not None:
                with contextlib.suppress(av.FFmpegError, OSError):  # the video is discarded
                    container.close()


@contextlib.contextmanager
def json_lines(path: Path) -> Iterator[Callable[[Any], None]]:
    """Yield a function that appends a value as one line of JSON; each line is in the temporary file at once.

    Raises:
        InputError: If the file cannot be written.
    """
    with appearing(path) as temporary, temporary.open("w", encoding="utf-8") as file:

        def write(content: Any) -> None:
            file.write(json.dumps(content, allow_nan=False) + "\n")
            file.flush()

        yield write

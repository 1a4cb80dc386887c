"""Show the hands in front of a webcam on a page in real time; frames that arrive during the work are dropped."""

import collections
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from handtailor_jax.detector.regions import square_region
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import as_camera
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import Image, read_image
from handtailor_jax.video.files import Video
from handtailor_jax.video.track import HandVideo, VideoConfig
from handtailor_jax.view.page import Page, Viewpoint, meshes_of, whole_image

_EXAMPLE = Path(__file__).parents[1] / "assets" / "examples" / "greeting.jpg"
_MEAN_OF = 30
"""Number of frames over which rate and latency are averaged."""


class LatestFrame:
    """The latest frame of a webcam, read by a thread; or of a video file, which is played at its speed in a loop."""

    def __init__(self, source: Path | int) -> None:
        """Open the webcam or file; reading starts when the first frame is taken.

        Raises:
            InputError: If it cannot be opened.
        """
        self._source, self._video = source, Video(source)
        self._frame: tuple[Image, float] | None = None
        self._error: InputError | None = None
        self._new, self._closed = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def take(self, timeout: float) -> tuple[Image, float] | None:
        """Return a frame that was not taken yet, and its arrival by `time.monotonic`; None after `timeout` seconds.

        Raises:
            InputError: If there are no more frames.
        """
        if self._thread.ident is None:
            self._thread.start()
        with self._new:
            self._new.wait_for(lambda: self._frame or self._error, timeout)
            if self._error is not None:
                raise self._error
            frame, self._frame = self._frame, None
            return frame

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._video.close()

    def _read(self) -> None:
        try:
            while not self._closed.is_set():
                self._read_once()
                if isinstance(self._source, int):
                    raise InputError(f"webcam {self._source}: sends no more frames: connect it again")
                self._video = Video(self._source)
        except InputError as error:
            with self._new:
                self._error = error
                self._new.notify()

    def _read_once(self) -> None:
        """Read until the source ends or is closed."""
        begin = time.monotonic()
        with self._video:
            for frame in self._video:
                if not isinstance(self._source, int):
                    self._closed.wait(max(0.0, begin + frame.time - time.monotonic()))
                if self._closed.is_set():
                    return
                if frame.image is not None:
                    with self._new:
                        self._frame = frame.image, time.monotonic()
                        self._new.notify()


class Live:
    """Tracker of the hands in arriving frames, which shows them on a page with frame rate and latency."""

    def __init__(self, page: Page, tailor: HandTailor, camera: Any = None, hands: int = 2) -> None:
        """Compile everything first, so that no frame waits for it. See `HandVideo` for the arguments."""
        self._page, self._camera = page, as_camera(camera)
        self._follow = HandVideo(tailor, self._camera, config=VideoConfig(hands=hands))
        self._started, self._told = False, 0.0  # time at which the text was last changed
        self._done: collections.deque[float] = collections.deque(maxlen=_MEAN_OF)
        self._latencies: collections.deque[float] = collections.deque(maxlen=_MEAN_OF)
        self._text = page.server.gui.add_markdown("getting ready: the first time this takes a minute or two", order=0)
        _compile(tailor, self._camera)

    @property
    def rate(self) -> float:
        """Frames per second, over the last frames; 0 before the second one."""
        return (len(self._done) - 1) / (self._done[-1] - self._done[0]) if len(self._done) > 1 else 0.0

    @property
    def latency(self) -> float:
        """Mean time from the arrival of a frame until its hands are sent, seconds, over the last frames."""
        return float(np.mean(self._latencies)) if self._latencies else 0.0

    def show(self, image: Image, arrival: float) -> int:
        """Show a frame that arrived at a time in seconds, and its hands; return their number."""
        if not self._started:
            self._page.look_through(Viewpoint.of(self._camera, whole_image(image)))
            self._started = True
        hands = [hand for hand in self._follow(image, arrival) if hand.finite]
        self._page.show(image, meshes_of(hands))
        self._done.append(now := time.monotonic())
        self._latencies.append(now - arrival)
        if len(self._done) > 1 and now - self._told > 0.5:  # soon on a slow machine, readable on a fast one
            self._told, count = now, f"{len(hands)} hand{'' if len(hands) == 1 else 's'}"
            self._text.content = f"**{self.rate:.1f}** frames/s, latency **{1e3 * self.latency:.0f} ms**, {count}"
        return len(hands)

    def run(self, source: LatestFrame, seconds: float = float("inf")) -> None:
        """Show the frames of a source for a time.

        Raises:
            InputError: If the source ends.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0.0:
            if (frame := source.take(min(left, 0.2))) is not None:
                self.show(*frame)


def _compile(tailor: HandTailor, camera: Any) -> None:
    """Run every program once that a frame with up to four candidate hands needs."""
    image = read_image(_EXAMPLE)
    follow = HandVideo(tailor, camera=camera)
    for now in (0.0, 0.03):
        follow(image, now)
    view = tailor.finder.view(image, camera, square_region((0.0, 0.0, 320.0, 320.0)), 0.5)
    for count in (1, 2, 4):
        tailor.recover([view] * count)

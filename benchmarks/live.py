"""`handtailor view --live`: frames per second, latency and processor time for one and for two hands.

The videos of images.py take the place of the webcam. First every frame is shown as fast as possible, then the latest
frame at the speed of a webcam. A client receives the data in place of a browser; drawing is not included. The latency
is the mean time from the arrival of a frame until its meshes are sent.
"""

import dataclasses
import tempfile
import threading
import time
from pathlib import Path

import viser
from images import EXAMPLES, ONE, TWO, write_video
from timing import check, command, report, table
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import read_image
from handtailor_jax.video.files import Video
from handtailor_jax.view.live import LatestFrame, Live
from handtailor_jax.view.page import Page


@dataclasses.dataclass(frozen=True)
class LiveBenchmark:
    """Options of the benchmark."""

    frames: int = 300
    """Frames of each video, at 30 frames per second."""
    json: Path | None = None
    """JSON file to which the results are also written."""


def measure(config: LiveBenchmark) -> None:
    """Measure, print the table, and write the JSON file if one is asked for.

    Raises:
        InputError: The number of frames is not positive, or the JSON file cannot be written.
    """
    check(config, "frames")
    tailor = HandTailor.load()
    rows = {hands: measure_hands(tailor, name, hands, config.frames) for name, hands in ((ONE, 1), (TWO, 2))}
    report(table([{"hands": hands, **row} for hands, row in rows.items()]), {"hands": rows}, config.json)


def measure_hands(tailor: HandTailor, name: str, hands: int, count: int) -> dict[str, float]:
    """Return the figures for a video with this number of hands, by column heading."""
    page = Page(port=0)
    threading.Thread(target=_receive, args=(page.address,), daemon=True).start()
    live = Live(page, tailor, hands=hands)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, read_image(EXAMPLES / name), count)
        for _ in range(2):  # the first time warms up
            begin, processor = time.perf_counter(), time.process_time()
            with Video(path) as video:
                for frame in video:
                    assert frame.image is not None
                    found = live.show(frame.image, time.monotonic())
                    assert found == hands, f"frame {frame.index} of {name}: {found} hands instead of {hands}"
            elapsed, processor = time.perf_counter() - begin, time.process_time() - processor
        source = LatestFrame(path)
        live.run(source, count / 30.0)
        source.close()
    page.close()
    return {
        "frames/s": count / elapsed,
        "CPU ms a frame": 1e3 * processor / count,
        "frames/s of a webcam's 30": live.rate,
        "latency, ms": 1e3 * live.latency,
    }


def _receive(address: str) -> None:
    """Receive all messages of a page until it closes."""
    protocol = Subprotocol(f"viser-v{viser.__version__}")
    try:
        with connect(address.replace("http", "ws"), subprotocols=[protocol], max_size=None) as connection:
            for _ in connection:
                pass
    except ConnectionClosed:
        pass


if __name__ == "__main__":
    command(LiveBenchmark, measure, __doc__)

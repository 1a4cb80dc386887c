"""From an image or a video to the meshes of all hands: time of a warm call, frames per second, and time of the start.

The images are packaged examples with one and with two hands. The videos show the same images moving to and fro;
decoding is included. A folder of images is processed, with overlays and JSON, by `predict` and image by image. Starts
are measured in new processes, from the import to the first result, without and with the compiled programs of an
earlier process.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import check, command, interleaved, report, seconds

import handtailor_jax
from handtailor_jax.evaluation.report import markdown_table
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import Image, opencv, read_image
from handtailor_jax.inputs import Source
from handtailor_jax.predict import HandFiles, overlay, predict
from handtailor_jax.results import to_json, write_image, write_json
from handtailor_jax.types import Hand
from handtailor_jax.video.files import Video, video_writer
from handtailor_jax.video.track import HandVideo, VideoConfig

EXAMPLES = Path(handtailor_jax.__file__).parent / "assets" / "examples"
ONE, TWO = "open.jpg", "greeting.jpg"
REFERENCE = "hourglass, one hand in a box"

_START = """
import pathlib, sys, time
begin = time.perf_counter()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import read_image
image = read_image(pathlib.Path(sys.argv[1]))
assert HandTailor.load(network=sys.argv[2])(image)
print(time.perf_counter() - begin)
"""


@dataclasses.dataclass(frozen=True)
class ImagesBenchmark:
    """Options of the benchmark."""

    rounds: int = 30
    """Rounds of timing of the images."""
    frames: int = 150
    """Frames of each video."""
    images: int = 100
    """Images of the folder; 0 leaves it out."""
    starts: bool = True
    """Whether the start of new processes is measured, too."""
    seed: int = 0
    """Seed of the order of the calls."""
    json: Path | None = None
    """JSON file to which the results are also written."""


def measure(config: ImagesBenchmark) -> None:
    """Measure, print the tables, and write the JSON file if one is asked for.

    Raises:
        InputError: An option is not positive, or the JSON file cannot be written.
    """
    check(config, "rounds", "frames")
    landmarks = HandTailor.load()
    calls = image_calls(landmarks)
    first = {name: seconds(lambda call=call: call(0)) for name, call in calls.items()}  # type: ignore[misc]
    warm = {
        name: 1e3 * float(np.median(t[1]))
        for name, t in interleaved(calls, config.rounds, config.seed, "images").items()
    }
    body = [[name, f"{warm[name]:.1f}", f"{warm[name] / warm[REFERENCE]:.2f}", f"{first[name]:.1f}"] for name in calls]
    lines = markdown_table(["image to meshes", "ms", "of the hourglass", "first call, s"], body)
    rates = {
        f"{hands} followed": frames_per_second(landmarks, image, hands, config.frames)
        for image, hands in ((ONE, 1), (TWO, 2))
    }
    lines += [
        "",
        *markdown_table(["video: hands", "frames/s"], [[name, f"{rate:.1f}"] for name, rate in rates.items()]),
    ]
    folder = folder_times(landmarks, config.images) if config.images else {}
    if folder:
        body = [
            [name, f"{config.images / wall:.1f}", f"{1e3 * cpu / config.images:.0f}"]
            for name, (wall, cpu) in folder.items()
        ]
        lines += ["", *markdown_table(["folder of images, files written", "images/s", "CPU ms an image"], body)]
    starts = {network: start_seconds(network) for network in ("landmarks", "hourglass")} if config.starts else {}
    if starts:
        body = [[name, f"{cold:.1f}", f"{cached:.1f}"] for name, (cold, cached) in starts.items()]
        lines += ["", *markdown_table(["new process to first result, s", "first", "later"], body)]
    content = {
        "milliseconds": warm,
        "first_call_seconds": first,
        "frames_per_second": rates,
        "folder_wall_and_cpu_seconds": folder,
        "start_seconds": starts,
    }
    report(lines, content, config.json)


def image_calls(landmarks: HandTailor) -> dict[str, Callable[[int], Any]]:
    """Return the calls to time, which recover or draw the hands of an image; their argument is not used."""
    one, two = read_image(EXAMPLES / ONE), read_image(EXAMPLES / TWO)
    hourglass = HandTailor.load(network="hourglass")
    box = (40.0, 10.0, 250.0, 265.0)

    @functools.cache
    def found(several: bool = False) -> list[Hand]:
        return landmarks(two if several else one)

    return {
        "landmarks, one hand": lambda _: landmarks(one),
        "landmarks, two hands": lambda _: landmarks(two),
        "landmarks, one hand in a box": lambda _: landmarks.one(one, box=box),
        "hourglass, one hand": lambda _: hourglass(one),
        REFERENCE: lambda _: hourglass.one(one, box=box),
        "overlay, one hand": lambda _: overlay(found(), one),
        "overlay, two hands": lambda _: overlay(found(True), two),
    }


def frames_per_second(tailor: HandTailor, name: str, hands: int, count: int) -> float:
    """Return the rate at which a video is decoded and its hands are followed, without overlays."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, read_image(EXAMPLES / name), count)

        def follow() -> None:
            with Video(path) as video:
                tracker = HandVideo(tailor, config=VideoConfig(hands=hands))
                for frame in video:
                    found = tracker(frame.image, frame.time)
                    assert len(found) == hands, f"frame {frame.index} of {name}: {len(found)} hands instead of {hands}"

        follow()  # compiles
        return count / seconds(follow)


def folder_times(tailor: HandTailor, count: int) -> dict[str, tuple[float, float]]:
    """Return wall-clock and processor seconds for a folder of examples, the least of three rounds, by method."""
    paths = itertools.islice(itertools.cycle(sorted(EXAMPLES.glob("*.jpg"))), count)
    sources = [Source(f"{number:04d}", path) for number, path in enumerate(paths)]

    def one_by_one(out: Path) -> None:
        for source in sources:
            image = read_image(source.file)
            hands = tailor(image)
            write_json(out / f"{source.id}.json", {"hands": [to_json(hand) for hand in hands]})
            write_image(out / f"{source.id}_overlay.png", overlay(hands, image))

    def together(out: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert predict(sources, tailor, HandFiles(out, None, True)) == 0

    times: dict[str, list[tuple[float, float]]] = {}
    for round_ in range(4):
        for name, run in (("one by one", one_by_one), ("predict", together)):
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter(), time.process_time()
                run(Path(folder))
                if round_:  # the first one compiles
                    found = time.perf_counter() - begin[0], time.process_time() - begin[1]
                    times.setdefault(name, []).append(found)
    return {name: (min(wall for wall, _ in found), min(cpu for _, cpu in found)) for name, found in times.items()}


def write_video(path: Path, image: Image, count: int) -> None:
    """Write a video in which an image moves to and fro."""
    cv2 = opencv()
    height, width = image.shape[:2]
    with video_writer(path, 30.0) as write:
        for i in range(count):
            phase = 2.0 * math.pi * i / 60.0
            move = np.asarray([[1.0, 0.0, 8.0 * math.sin(phase)], [0.0, 1.0, 5.0 * math.cos(phase)]])
            write(cv2.warpAffine(image, move, (width, height), borderMode=cv2.BORDER_REPLICATE), i / 30.0)


def start_seconds(network: str) -> tuple[float, float]:
    """Return the seconds from the import to the first result in a new process: without and with a compile cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        command = [sys.executable, "-c", _START, str(EXAMPLES / ONE), network]
        first, later = (
            float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
            for _ in range(2)
        )
    return first, later


if __name__ == "__main__":
    command(ImagesBenchmark, measure, __doc__)

"""Time of the detector's networks, against TensorFlow Lite (XNNPACK) if it is installed, and of whole images.

A round runs every call once, one after the other in one process, so that a busy machine slows down all calls alike. The
processor time of a call hardly depends on other processes; the wall-clock time does. TensorFlow Lite runs one thread;
for a fair ratio use one core: taskset -c 0 python benchmarks/detector.py --tflite DIR

DIR has Google's palm_detection_full.tflite and hand_landmark_full.tflite (tools/convert_mediapipe.py says where they
are), and TensorFlow Lite is `pip install ai-edge-litert`. Without them only this package is timed.
"""

import dataclasses
import importlib.resources
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from flax import nnx
from timing import check, command, report, table

from handtailor_jax.detector.detector import HandDetector
from handtailor_jax.detector.weights import load_landmark_network, load_palm_detector
from handtailor_jax.errors import InputError
from handtailor_jax.images import Image, read_image

Call = Callable[[], Any]

NETWORKS = {"palm detector": "palm_detection_full", "landmark network": "hand_landmark_full"}
"""Names of the networks in the report, and of their .tflite files."""

LITE = "TensorFlow Lite"


@dataclasses.dataclass(frozen=True)
class DetectorBenchmark:
    """Options of the benchmark."""

    tflite: Path | None = None
    """Folder with Google's .tflite files."""
    rounds: int = 60
    """Rounds of timing."""
    json: Path | None = None
    """JSON file to which the results are also written."""


def network_call(load: Callable[[], Any]) -> Call:
    """Return a call of one of our networks on one image of noise."""
    network = load()
    graph, state = nnx.split(network)
    program = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    images = noise(network.config.image_size)
    return lambda: jax.block_until_ready(program(state, images))


def lite_call(path: Path, size: int) -> Call:
    """Return a call of a .tflite file with one thread.

    Raises:
        InputError: If the file is missing or TensorFlow Lite is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise InputError("--tflite needs TensorFlow Lite: pip install ai-edge-litert") from None
    if not path.is_file():
        raise InputError(f"{path}: no such file: give the folder with Google's .tflite files")
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    index, images = interpreter.get_input_details()[0]["index"], noise(size)

    def call() -> None:
        interpreter.set_tensor(index, images)
        interpreter.invoke()

    return call


def noise(size: int) -> npt.NDArray[np.float32]:
    """Return one image of noise, RGB from 0 to 1."""
    return np.random.default_rng(0).random((1, size, size, 3), np.float32)


def scene() -> Image:
    """Return an image of 640 x 480 pixels with two hands, from the packaged examples."""
    image = np.full((480, 640, 3), 90, np.uint8)
    examples = Path(str(importlib.resources.files("handtailor_jax") / "assets" / "examples"))
    image[80:400, :320] = read_image(examples / "open.jpg")
    image[80:400, 320:] = read_image(examples / "ok_left.jpg")
    return image


def calls(config: DetectorBenchmark) -> dict[str, Call]:
    """Return everything that is timed, by name."""
    named = {"palm detector": network_call(load_palm_detector), "landmark network": network_call(load_landmark_network)}
    if config.tflite is not None:
        for (name, file), size in zip(NETWORKS.items(), (192, 224), strict=True):
            named[f"{name}, {LITE}"] = lite_call(config.tflite / f"{file}.tflite", size)
    detector, image = HandDetector(), scene()
    hands = detector(image)
    assert len(hands) == 2
    region = hands[0].next_region
    named["image with two hands"] = lambda: detector(image)
    named["image with two hands, thorough"] = lambda: detector(image, thorough=True)
    named["hand in a box"] = lambda: detector.in_box(image, (0, 80, 320, 320))
    named["hand followed"] = lambda: detector.recognise(image, [region])
    return named


def measure_calls(named: Mapping[str, Call], rounds: int) -> list[dict[str, Any]]:
    """Time calls in rounds.

    Returns:
        For each call, by column heading: its name, median wall-clock and processor times (of all threads) after the
        first call, which compiles, and the wall-clock time of the first call.
    """

    def clocks(call: Call) -> tuple[float, float]:
        begin = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - begin[0], time.process_time() - begin[1]

    first = {name: clocks(call)[0] for name, call in named.items()}
    times = np.asarray([[clocks(call) for call in named.values()] for _ in range(rounds)])
    medians = 1e3 * np.median(times, axis=0)
    return [
        {"call": name, "ms": wall, "ms of processor time": processor, "first call, s": first[name]}
        for name, (wall, processor) in zip(named, medians, strict=True)
    ]


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return processor times of our networks relative to TensorFlow Lite's; empty without it."""
    times = {row["call"]: row["ms of processor time"] for row in rows}
    return {name: times[name] / times[f"{name}, {LITE}"] for name in NETWORKS if f"{name}, {LITE}" in times}


def measure(config: DetectorBenchmark) -> None:
    """Measure, print the tables, and write the JSON file if one is asked for.

    Raises:
        InputError: If an option is out of range or something is missing.
    """
    check(config, "rounds")
    rows = measure_calls(calls(config), config.rounds)
    compared = [f"{name}: {ratio:.2f} times the processor time of {LITE}" for name, ratio in ratios(rows).items()]
    report([*table(rows), "", *compared], {"rows": rows, "ratios": ratios(rows)}, config.json)


if __name__ == "__main__":
    command(DetectorBenchmark, measure, __doc__)

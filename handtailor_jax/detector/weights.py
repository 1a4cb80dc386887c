"""Weight files of the detector's networks: safetensors with tensors named by their dotted path in the module.

The file's metadata holds ``format``, ``version``, ``network`` (a name of `CONFIGS`) and ``provenance`` (JSON). Numbers
are stored as float16, as Google publishes them, and become float32 when they are loaded. `tools/convert_mediapipe.py`
writes the files.
"""

import importlib.resources
import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import safetensors
from flax import nnx

from handtailor_jax.detector.landmark_network import HandLandmarkConfig, HandLandmarkNetwork
from handtailor_jax.detector.palm_detector import PalmDetector, PalmDetectorConfig
from handtailor_jax.errors import InputError, check_file

FORMAT = "handtailor detector"
VERSION = "1"
CONFIGS = {
    "palm_detection_full": PalmDetectorConfig(),
    "palm_detection_lite": PalmDetectorConfig(depth=3),
    "hand_landmark_full": HandLandmarkConfig(),
    "hand_landmark_lite": HandLandmarkConfig(widths=(16, 24, 48, 64, 112)),
}
"""Shapes of the networks, by the names of Google's .tflite files."""

PALM, LANDMARKS = "palm.safetensors", "landmarks.safetensors"
"""Names of the embedded weight files among the package's assets."""

_REMEDY = "give a file written by tools/convert_mediapipe.py"

Network = TypeVar("Network", PalmDetector, HandLandmarkNetwork)


def load_palm_detector(path: str | os.PathLike[str] | None = None) -> PalmDetector:
    """Load a palm detector from a weight file, or the embedded one; raise an `InputError` if the file is invalid."""
    return _load(PALM, path, PalmDetector)


def load_landmark_network(path: str | os.PathLike[str] | None = None) -> HandLandmarkNetwork:
    """Load a landmark network from a weight file, or the embedded one; raise an `InputError` if the file is invalid."""
    return _load(LANDMARKS, path, HandLandmarkNetwork)


def structure(network: str) -> tuple[Any, list[tuple[tuple[Any, ...], Any]]]:
    """Return graph definition and variables (path, shape only) of a network, which is named as in `CONFIGS`."""
    config = CONFIGS[network]
    kind: Any = PalmDetector if isinstance(config, PalmDetectorConfig) else HandLandmarkNetwork
    graph, state = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    return graph, list(nnx.to_flat_state(state))


def _load(embedded: str, given: str | os.PathLike[str] | None, kind: type[Network]) -> Network:
    # Assets are always installed as plain files.
    path = (
        Path(str(importlib.resources.files("handtailor_jax") / "assets" / embedded)) if given is None else Path(given)
    )
    network, tensors = _read(path)
    graph, variables = structure(network)
    expected = {_name(place) for place, _ in variables}
    for problem, names in (("lacks", expected - tensors.keys()), ("has unknown", tensors.keys() - expected)):
        if names:
            raise InputError(f"{path}: {problem} tensors ({len(names)}: {min(names)[:80]}, ...); {_REMEDY}")
    numbers = []
    for place, variable in variables:
        tensor = tensors[name := _name(place)]
        if tensor.shape != variable.shape:
            raise InputError(f"{path}: {name} has shape {tensor.shape} instead of {variable.shape}; {_REMEDY}")
        if tensor.dtype not in (np.float16, np.float32) or not np.isfinite(tensor).all():
            raise InputError(f"{path}: {name} does not hold finite float16 or float32 numbers; {_REMEDY}")
        numbers.append((place, variable.replace(tensor.astype(np.float32))))
    # All at once, and converted by NumPy, because JAX would compile a conversion for every shape.
    module = nnx.merge(graph, jax.device_put(nnx.from_flat_state(numbers)))
    if not isinstance(module, kind):
        raise InputError(f"{path}: holds the network {network}, not a {kind.__name__}; {_REMEDY}")
    return module


def _read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read the checked name of the network, and its tensors."""
    try:
        check_file(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("network") not in CONFIGS:
                raise InputError(f"{path}: holds no weights of a detector; {_REMEDY}")
            if metadata.get("version") != VERSION:
                version = str(metadata.get("version"))[:20]
                raise InputError(f"{path}: has format version {version}, this program reads {VERSION}; {_REMEDY}")
            return metadata["network"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (AttributeError, TypeError):
        raise InputError(f"{path}: holds a type of numbers that NumPy lacks, such as bfloat16; {_REMEDY}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {_REMEDY}") from None
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: is not a complete safetensors file ({reason}); {_REMEDY}") from None


def _name(place: tuple[Any, ...]) -> str:
    return ".".join(map(str, place))

"""Weight files of the detector's networks: safetensors with tensors named by their dotted path in the module.

The file's metadata holds ``format``, ``version``, ``network`` (a name of `CONFIGS`) and ``provenance`` (JSON). Numbers
are stored as float16, as Google publishes them, and become float32 when they are loaded. `tools/convert_mediapipe.py`
writes the files.
"""

import os
from pathlib import Path
from typing import Any, TypeVar

from flax import nnx

from handtailor_jax.detector.landmark_network import HandLandmarkConfig, HandLandmarkNetwork
from handtailor_jax.detector.palm_detector import PalmDetector, PalmDetectorConfig
from handtailor_jax.errors import InputError, naming
from handtailor_jax.weight_files import Structure, asset, filled, read_tensors

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


def structure(network: str) -> Structure:
    """Return the structure of a network, which is named as in `CONFIGS`."""
    config = CONFIGS[network]
    kind: Any = PalmDetector if isinstance(config, PalmDetectorConfig) else HandLandmarkNetwork
    graphdef, state = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    return graphdef, dict(nnx.to_flat_state(state))


def _load(embedded: str, given: str | os.PathLike[str] | None, kind: type[Network]) -> Network:
    path = asset(embedded) if given is None else Path(given)
    metadata, tensors = read_tensors(path, FORMAT, VERSION, "weights of a detector", _REMEDY)
    with naming(path):
        network = metadata.get("network", "")
        if network not in CONFIGS:
            raise InputError(f"does not contain weights of a known network; {_REMEDY}")
        module = filled(structure(network), tensors, _REMEDY)
        if not isinstance(module, kind):
            raise InputError(f"holds the network {network}, not a {kind.__name__}; {_REMEDY}")
        return module

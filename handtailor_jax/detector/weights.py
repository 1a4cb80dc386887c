"""Weight files of the detector's networks: safetensors with tensors named by their dotted path in the module.

The file's metadata holds ``format``, ``version``, ``network`` (a name of `NETWORKS`) and ``provenance`` (JSON). Numbers
are stored as float16, as Google publishes them, and become float32 when they are loaded. `tools/convert_mediapipe.py`
writes the files.
"""

import functools
import importlib.resources
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from handtailor_jax.detector.landmark_network import HandLandmarkConfig, HandLandmarkNetwork
from handtailor_jax.detector.palm_detector import PalmDetector, PalmDetectorConfig
from handtailor_jax.errors import InputError

FORMAT = "handtailor detector"
VERSION = "1"
NETWORKS: dict[str, Callable[..., PalmDetector | HandLandmarkNetwork]] = {
    "palm_detection_full": functools.partial(PalmDetector, PalmDetectorConfig.full()),
    "palm_detection_lite": functools.partial(PalmDetector, PalmDetectorConfig.lite()),
    "hand_landmark_full": functools.partial(HandLandmarkNetwork, HandLandmarkConfig.full()),
    "hand_landmark_lite": functools.partial(HandLandmarkNetwork, HandLandmarkConfig.lite()),
}
"""Constructors of the networks, by the names of Google's .tflite files; each takes `rngs`."""

PALM, LANDMARKS = "palm.safetensors", "landmarks.safetensors"
"""Names of the embedded weight files among the package's assets."""

_REMEDY = "give a file written by tools/convert_mediapipe.py"

Network = TypeVar("Network", PalmDetector, HandLandmarkNetwork)


def tensor_shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a network, a name of `NETWORKS`."""
    state = nnx.state(nnx.eval_shape(lambda: NETWORKS[network](rngs=nnx.Rngs(0))))
    return {_name(place): variable.shape for place, variable in nnx.to_flat_state(state)}


def save_weights(
    path: str | os.PathLike[str], network: str, tensors: Mapping[str, np.ndarray], provenance: Mapping[str, str]
) -> None:
    """Write the weights of a network as float16.

    Args:
        path: file to write.
        network: a name of `NETWORKS`.
        tensors: every tensor of the network, named by its dotted path.
        provenance: source of the weights, such as file name, sha256 and licence.

    Raises:
        InputError: if the tensors are not those of the network.
    """
    path = Path(path)
    _compare(path, tensor_shapes(network), tensors)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "network": network,
        "provenance": json.dumps(dict(provenance)),
    }
    path.write_bytes(safetensors.numpy.save({n: t.astype(np.float16) for n, t in tensors.items()}, metadata))


def load_palm_detector(path: str | os.PathLike[str] | None = None) -> PalmDetector:
    """Load a palm detector.

    Args:
        path: weight file; the embedded weights if None.

    Raises:
        InputError: if the file is missing, damaged, or holds another network.
    """
    return _load(_embedded(PALM) if path is None else Path(path), PalmDetector)


def load_landmark_network(path: str | os.PathLike[str] | None = None) -> HandLandmarkNetwork:
    """Load a hand landmark network.

    Args:
        path: weight file; the embedded weights if None.

    Raises:
        InputError: if the file is missing, damaged, or holds another network.
    """
    return _load(_embedded(LANDMARKS) if path is None else Path(path), HandLandmarkNetwork)


def _embedded(name: str) -> Path:
    """An asset of the package, which is always installed as plain files."""
    return Path(str(importlib.resources.files("handtailor_jax") / "assets" / name))


def _load(path: Path, kind: type[Network]) -> Network:
    network, tensors = _read(path)
    module = nnx.eval_shape(lambda: NETWORKS[network](rngs=nnx.Rngs(0)))
    if not isinstance(module, kind):
        raise InputError(f"{path}: holds the network {network}, not a {kind.__name__}; {_REMEDY}")
    graphdef, state = nnx.split(module)
    variables = dict(nnx.to_flat_state(state))
    _compare(path, {_name(place): variable.shape for place, variable in variables.items()}, tensors)
    for place, variable in variables.items():
        variables[place] = variable.replace(jnp.asarray(tensors[_name(place)], jnp.float32))
    return nnx.merge(graphdef, nnx.from_flat_state(variables))


def _read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The checked name of the network, and its tensors."""
    try:
        path.open("rb").close()
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("network") not in NETWORKS:
                raise InputError(f"{path}: holds no weights of a detector; {_REMEDY}")
            if metadata.get("version") != VERSION:
                version = str(metadata.get("version"))[:20]
                raise InputError(f"{path}: has format version {version}, this program reads {VERSION}; {_REMEDY}")
            return metadata["network"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {_REMEDY}") from None
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: is no safetensors file or cut short ({reason}); {_REMEDY}") from None


def _compare(path: Path, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray]) -> None:
    """Raise unless the tensors are exactly the expected ones and finite."""
    for problem, names in (("lacks", expected.keys() - tensors.keys()), ("has", tensors.keys() - expected.keys())):
        if names:
            word = "" if problem == "lacks" else "unknown "
            raise InputError(f"{path}: {problem} {len(names)} {word}tensors ({min(names)[:80]}, ...); {_REMEDY}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise InputError(f"{path}: {name} has shape {tensors[name].shape} instead of {shape}; {_REMEDY}")
        if tensors[name].dtype not in (np.float16, np.float32) or not np.isfinite(tensors[name]).all():
            raise InputError(f"{path}: {name} does not hold finite float16 or float32 numbers; {_REMEDY}")


def _name(place: tuple[object, ...]) -> str:
    return ".".join(map(str, place))

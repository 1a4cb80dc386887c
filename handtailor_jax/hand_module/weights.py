"""Weight files: the variables of a hand module as safetensors, with its configuration and provenance.

Tensors are named by their dotted path in the module, such as ``stacks_2d.0.head.kernel``. The file's metadata holds
``format``, ``version``, ``config`` (JSON of `HandModuleConfig`) and ``provenance`` (JSON object of texts).
"""

import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import safetensors.numpy
from flax import nnx
from jaxtyping import Array

from handtailor_jax.errors import InputError, naming
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.iknet import IKNet
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.results import write_atomically
from handtailor_jax.weight_files import Structure, asset, filled, read_tensors, tensor_name

FORMAT = "handtailor hand module"
VERSION = "1"
EMBEDDED = "hourglass.safetensors"
"""Name of the embedded weights among the package's assets."""
LANDMARK_IKNET = "landmark_iknet.safetensors"
"""Name of the embedded weights of the IKNet behind the hand landmark network (tools/finetune_landmark_iknet.py)."""

FileType = Literal["float32", "float16"]

_IKNET = "iknet."  # prefix of IKNet's tensors in a hand module
_REMEDY = "give a file written by `handtailor convert-official` or by training"


@functools.cache
def module_structure(config: HandModuleConfig, kind: Callable[..., Any] = HandModule) -> Structure:
    """Return the structure of a module that is to be loaded."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=_OneKey())))
    return graphdef, dict(nnx.to_flat_state(state))


class _OneKey(nnx.Rngs):
    """The same key for every parameter, for shapes alone: counting keys takes most of the time of `nnx.eval_shape`."""

    def params(self) -> Array:
        """Return the key."""
        return jax.random.key(0)


def save_weights(
    path: Path | str, module: HandModule | IKNet, provenance: Mapping[str, str], *, dtype: FileType = "float32"
) -> None:
    """Write all parameters and batch statistics of a hand module or of an IKNet. The file is complete or absent.

    Args:
        path: The file, by convention ending in .safetensors.
        module: The hand module, or an IKNet alone.
        provenance: Origin of the weights, such as data, commit and licence.
        dtype: Type of the numbers in the file; they are read as float32. "float16" keeps 3 digits in half the space.

    Raises:
        InputError: If a number is too large for float16, or the file cannot be written.
    """
    path = Path(path)
    prefix = _IKNET if isinstance(module, IKNet) else ""
    state = nnx.to_flat_state(nnx.state(module))
    tensors = {prefix + tensor_name(place): np.asarray(variable[...]) for place, variable in state}
    if dtype == "float16":
        for name, tensor in tensors.items():
            if np.abs(tensor).max(initial=0.0) > np.finfo(np.float16).max:
                raise InputError(f"{path}: {name} holds numbers too large for float16; write float32")
            tensors[name] = tensor.astype(np.float16)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(dataclasses.asdict(module.config)),
        "provenance": json.dumps(dict(provenance)),
    }
    write_atomically(path, lambda temporary: temporary.write_bytes(safetensors.numpy.save(tensors, metadata)))


def load_weights(path: Path | str | None = None, kind: Callable[..., HandModule] = HandModule) -> HandModule:
    """Load the hand module of a weight file, in evaluation mode.

    Args:
        path: Weight file; if None the embedded one, trained with the embedded hand (docs/model-card.md).
        kind: Class of the hand module; a subclass if the weights were trained with one.

    Raises:
        InputError: If the file is missing, damaged or of another format or version, or its tensors do not match its
            configuration.
    """
    path = asset(EMBEDDED) if path is None else Path(path)
    metadata, tensors = _read(path)
    with naming(path):
        return filled(module_structure(_config(metadata, tensors), kind), tensors, _REMEDY)


def load_iknet(path: Path | str | None = None) -> IKNet:
    """Load the IKNet of a weight file, which may hold nothing else, in evaluation mode.

    Args:
        path: Weight file; the embedded IKNet behind the hand landmark network if None.

    Raises:
        InputError: As `load_weights` does.
    """
    path = asset(LANDMARK_IKNET) if path is None else Path(path)
    metadata, tensors = _read(path)
    with naming(path):
        structure = module_structure(_config(metadata, tensors), IKNet)
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(_IKNET)}
        return filled(structure, own, _REMEDY, _IKNET)


def load_module(weights: str | Path | None, hand: HandModel | None) -> HandModule:
    """Load a hand module from a weight file, or the embedded one if None, for a hand model (None: the embedded hand).

    Raises:
        InputError: If the file cannot be read, or if the embedded weights do not fit the hand model, because its shape
            coefficients are others.
    """
    if weights is None and hand is not None and not _is_embedded(hand):
        raise InputError("the embedded weights fit the embedded hand only: give weights trained with this hand model")
    return load_weights(weights)


def _is_embedded(hand: HandModel) -> bool:
    """Return whether a hand model has the joints and shapes of the embedded one, in any floating-point type."""
    own = embedded_hand(hand.side)
    pairs = (hand.rest_joints, own.rest_joints), (hand.joint_shape_directions, own.joint_shape_directions)
    return all(a.shape == b.shape and np.allclose(a, b, rtol=0.0, atol=1e-6) for a, b in pairs)


def provenance(path: Path | str) -> dict[str, str]:
    """Read the provenance of a weight file."""
    return json.loads(_read(Path(path))[0]["provenance"])


def _config(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> HandModuleConfig:
    """Return the configuration in a file, if the file has enough tensors for it, before a module is built."""
    config = _parse_config(metadata.get("config", ""))
    counts = (config.stacks_2d, config.stacks_3d, config.depth, config.shape_levels, config.shape_blocks)
    if max(*counts, len(config.shape_hidden), len(config.ik_hidden)) > len(tensors):
        raise InputError(f"has {len(tensors)} tensors, too few for its configuration; {_REMEDY}")
    return config


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    return read_tensors(path, FORMAT, VERSION, "weights of a hand module", _REMEDY)


def _parse_config(text: str) -> HandModuleConfig:
    """Parse the JSON of a configuration and check every field's name and type."""
    try:
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(text).items()}
    except (AttributeError, ValueError, RecursionError):
        raise InputError(f"its configuration cannot be read; {_REMEDY}") from None
    hints = typing.get_type_hints(HandModuleConfig)
    for name in sorted(hints.keys() ^ values.keys()):
        problem = "lacks" if name in hints else "has the unknown field"
        raise InputError(f"its configuration {problem} {name[:40]!r}; {_REMEDY}")
    for name, hint in hints.items():
        if not _has_type(values[name], hint):
            raise InputError(f"its configuration has {name} = {str(values[name])[:40]}; {_REMEDY}")
    return HandModuleConfig(**values)


def _has_type(value: object, hint: Any) -> bool:
    """Return whether a value read from JSON has a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_has_type(entry, arguments[0]) for entry in value)
    if origin is not None:  # a union
        return any(_has_type(value, argument) for argument in arguments)
    return type(value) is hint

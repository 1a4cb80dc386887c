"""Weight files: a hand module's numbers as safetensors, with its configuration and where they come from.

Tensors are named by their dotted path in the module, such as ``stacks_2d.0.head.kernel``. The file's metadata holds
``format``, ``version``, ``config`` (JSON of `HandModuleConfig`) and ``provenance`` (JSON of names and texts).
"""

import dataclasses
import importlib.resources
import json
import os
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.results import write_atomically

FORMAT = "handtailor hand module"
VERSION = "1"
EMBEDDED = "small.safetensors"
"""Name of the embedded weights among the package's assets."""

_REMEDY = "give a file written by `handtailor convert-official` or by training"


def save_weights(
    path: str | os.PathLike[str],
    module: HandModule,
    provenance: Mapping[str, str],
    *,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes all parameters and batch statistics of a hand module; the file appears complete or not at all.

    Args:
        path: of the file, by convention ending in .safetensors.
        module: the hand module.
        provenance: what the weights come from, such as data, commit and licence.
        dtype: in which numbers are written; they are read as float32. "float16" keeps 3 digits in half the space.

    Raises:
        InputError: if safetensors is not installed, a number is beyond float16, or the disk refuses.
    """
    path = Path(path)
    numpy = _safetensors().numpy
    variables = nnx.to_flat_state(nnx.state(module))
    tensors = {_name(place): np.asarray(variable[...]) for place, variable in variables}
    if dtype == "float16":
        for name, tensor in tensors.items():
            if np.abs(tensor).max(initial=0.0) > np.finfo(np.float16).max:
                raise InputError(f"{path}: {name} holds numbers beyond float16: write float32")
            tensors[name] = tensor.astype(np.float16)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(dataclasses.asdict(module.config)),
        "provenance": json.dumps(dict(provenance)),
    }
    write_atomically(path, lambda temporary: temporary.write_bytes(numpy.save(tensors, metadata)))


def load_weights(path: str | os.PathLike[str]) -> HandModule:
    """The hand module in a weight file, in evaluation mode.

    Raises:
        InputError: if safetensors is not installed, or the file is missing, damaged, of another program or version, or
            if its tensors are not those of its configuration.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    config = _config(path, metadata)
    if _repetitions(config) > len(tensors):
        raise InputError(f"{path}: has {len(tensors)} tensors, too few for its configuration; {_REMEDY}")
    try:
        # Only shapes: nothing is drawn at random just to be replaced.
        module = nnx.eval_shape(lambda: HandModule(config, rngs=nnx.Rngs(0)))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    graphdef, state = nnx.split(module)
    variables = dict(nnx.to_flat_state(state))
    _compare(path, {_name(place): variable.shape for place, variable in variables.items()}, tensors)
    for place, variable in variables.items():
        variables[place] = variable.replace(jnp.asarray(tensors[_name(place)].astype(variable.dtype)))
    module = nnx.merge(graphdef, nnx.from_flat_state(variables))
    module.eval()
    return module


def embedded_weights() -> HandModule:
    """The weights that come with the package, trained with the embedded hand (docs/model-card.md).

    Raises:
        InputError: if safetensors is not installed.
    """
    with importlib.resources.as_file(importlib.resources.files("handtailor_jax") / "assets" / EMBEDDED) as path:
        return load_weights(path)


def load_module(weights: str | Path | None, hand: HandModel | None) -> HandModule:
    """Load a hand module from a weight file.

    Args:
        weights: Weight file; the embedded weights if None.
        hand: Hand model that the hand module is to pose; the embedded hand if None.

    Raises:
        InputError: If the file cannot be read, or if the embedded weights are to pose another hand model, whose shape
            coefficients differ.
    """
    if weights is not None:
        return load_weights(Path(weights))
    if hand is not None:
        raise InputError("the embedded weights fit the embedded hand only: give weights trained with this hand model")
    return embedded_weights()


def provenance(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a weight file says about where its weights come from.

    Raises:
        InputError: if the file cannot be read.
    """
    return json.loads(_read(Path(path))[0]["provenance"])


def _name(place: Iterable[object]) -> str:
    return ".".join(map(str, place))


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Checked metadata, and the tensors."""
    safetensors = _safetensors()
    if path.is_dir():
        raise InputError(f"{path}: is a folder; {_REMEDY}")
    try:
        path.open("rb").close()
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path}: holds no weights of a hand module; {_REMEDY}")
            if metadata.get("version") != VERSION:
                raise InputError(
                    f"{path}: has format version {str(metadata.get('version'))[:20]}, this program reads {VERSION}; "
                    "convert or train the weights again, or install the version that wrote them"
                )
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {_REMEDY}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: is no safetensors file or cut short ({reason}); {_REMEDY}") from None


def _config(path: Path, metadata: Mapping[str, str]) -> HandModuleConfig:
    try:
        stored = json.loads(metadata["config"])
        expected = {field.name for field in dataclasses.fields(HandModuleConfig)}
        different = sorted(expected ^ set(stored))
        if different:
            word = "lacks" if different[0] in expected else "has the unknown field"
            raise InputError(f"{path}: its configuration {word} {different[0][:40]!r}; {_REMEDY}")
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in stored.items()}
        for name, hint in typing.get_type_hints(HandModuleConfig).items():
            if not _fits(values[name], hint):
                raise InputError(f"{path}: its configuration has {name} = {str(values[name])[:40]}; {_REMEDY}")
        return HandModuleConfig(**values)
    except InputError as error:
        raise error if str(error).startswith(f"{path}: ") else InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, RecursionError):
        raise InputError(f"{path}: its configuration cannot be read; {_REMEDY}") from None


def _fits(value: object, hint: Any) -> bool:
    """Whether a value read from JSON is of a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(entry, arguments[0]) for entry in value)
    if origin is not None:  # a union
        return any(_fits(value, argument) for argument in arguments)
    return type(value) is hint


def _repetitions(config: HandModuleConfig) -> int:
    """At least so many tensors the module has; more would only be built to be refused."""
    counts = (config.stacks_2d, config.stacks_3d, config.depth, config.shape_levels, config.shape_blocks)
    return max(*counts, len(config.shape_hidden), len(config.ik_hidden))


def _compare(path: Path, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray]) -> None:
    def some(names: list[str]) -> str:
        return (
            f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({names[0][:80]}{', ...' if len(names) > 1 else ''})"
        )

    missing = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected]
    if missing or surplus:
        parts = [f"lacks {some(missing)}"] if missing else []
        parts += [f"has {some(surplus)} too many"] if surplus else []
        raise InputError(f"{path}: {' and '.join(parts)} for its configuration; {_REMEDY}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise InputError(f"{path}: {name} has shape {tensor.shape} instead of {shape}; {_REMEDY}")
        if tensor.dtype not in (np.float16, np.float32, np.float64):
            raise InputError(f"{path}: {name} holds {tensor.dtype} instead of float32 or float16; {_REMEDY}")
        if not np.isfinite(tensor).all():
            raise InputError(f"{path}: {name} holds values that are not finite; {_REMEDY}")


def _safetensors() -> Any:
    """safetensors, or one clear line."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise InputError(f"weight files cannot be used ({error}): pip install safetensors") from None
    return safetensors

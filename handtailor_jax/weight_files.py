"""Files of weights: safetensors whose tensors are named by their dotted path in a module, with texts as metadata."""

import importlib.resources
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from flax import nnx

from handtailor_jax.errors import InputError, check_file, naming

Structure = tuple[nnx.GraphDef[Any], Mapping[tuple[Any, ...], Any]]
"""Graph definition and variables of a module, by path; of a module that is to be loaded, the variables are shapes."""


def asset(name: str) -> Path:
    """Return the path of an embedded file; assets are always installed as plain files."""
    return Path(str(importlib.resources.files("handtailor_jax") / "assets" / name))


def tensor_name(path: Iterable[object]) -> str:
    """Return the name of a variable in a file."""
    return ".".join(map(str, path))


def read_tensors(
    path: Path, format: str, version: str, contents: str, remedy: str
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Read the metadata and the tensors of a file.

    Args:
        path: The file.
        format: Expected text `format` of the metadata.
        version: Expected text `version` of the metadata.
        contents: What such a file holds, for messages.
        remedy: End of the messages.

    Raises:
        InputError: If the file is missing, damaged or of another format or version; the message begins with the path.
    """
    with naming(path):
        try:
            check_file(path)
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != format:
                    raise InputError(f"does not contain {contents}; {remedy}")
                found = str(metadata.get("version"))[:20]
                if found != version:
                    problem = f"has format version {found}, this program reads {version}"
                    raise InputError(f"{problem}; convert or train them again, or install the version that wrote them")
                return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (AttributeError, TypeError):
            raise InputError(f"holds a type of numbers that NumPy lacks, such as bfloat16; {remedy}") from None
        except IsADirectoryError:
            raise InputError(f"is a folder; {remedy}") from None
        except FileNotFoundError:
            raise InputError(f"no such file; {remedy}") from None
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror or error}); check its permissions") from None
        except safetensors.SafetensorError as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"is not a safetensors file or is truncated ({reason}); {remedy}") from None


def filled(structure: Structure, tensors: Mapping[str, np.ndarray], remedy: str, prefix: str = "") -> Any:
    """Return the module of a structure with tensors that are named by prefix and path, float32, in evaluation mode.

    Raises:
        InputError: If names, shapes, types or values of the tensors do not match; the message does not name the file.
    """
    graphdef, variables = structure
    named = {prefix + tensor_name(path): (path, variable) for path, variable in variables.items()}
    _compare({name: variable.shape for name, (_, variable) in named.items()}, tensors, remedy)
    # All at once, and converted by NumPy, because JAX would compile a conversion for every shape.
    values = {path: variable.replace(tensors[name].astype(np.float32)) for name, (path, variable) in named.items()}
    module = nnx.merge(graphdef, jax.device_put(nnx.from_flat_state(values)))
    module.eval()
    return module


def _compare(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray], remedy: str) -> None:
    """Check names, shapes, types and values of the tensors."""
    missing = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected]
    for verb, names, end in (("lacks", missing, ""), ("has", surplus, " too many")):
        if names:
            plural, more = ("s", ", ...") if len(names) > 1 else ("", "")
            listed = f"{len(names)} tensor{plural} ({names[0][:80]}{more})"
            raise InputError(f"{verb} {listed}{end} for its configuration; {remedy}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise InputError(f"{name} has shape {tensor.shape} instead of {shape}; {remedy}")
        if tensor.dtype not in (np.float16, np.float32, np.float64):
            raise InputError(f"{name} holds {tensor.dtype} instead of float32 or float16; {remedy}")
        if not np.isfinite(tensor).all():
            raise InputError(f"{name} holds values that are not finite; {remedy}")

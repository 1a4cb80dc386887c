"""Traced programs that are stored between processes, beside JAX's compile cache.

A new process that finds its compiled programs in JAX's cache still traces every function, which takes several times
longer than loading them. `kept` skips that: it stores the traced program as a file of `jax.export`.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jaxlib
import numpy as np

from handtailor_jax import types
from handtailor_jax.errors import InputError, check_file
from handtailor_jax.results import write_atomically

R = TypeVar("R")

SWITCH = "HANDTAILOR_TRACED_PROGRAMS"
"""Environment variable; 0 keeps no traced programs."""

_FOLDER = "handtailor_traced"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# Options of JAX that change what is traced.
_NUMPY = "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion"
_OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_debug_nans", *_NUMPY)


def kept(function: Callable[..., R], name: str, *about: Any) -> Callable[..., R]:
    """Return a function with the same result that is traced once for all processes; call it under `jax.jit`.

    The traced program is stored in a folder of JAX's compile cache, if one is set. A process uses it if everything that
    determines it is the same: this package's source, versions, platform, the arguments' structure, shapes and types,
    and `about`. Damaged files are ignored and written anew. A stored program cannot be differentiated.

    Args:
        function: Function of pytrees of arrays; its result consists of the classes of `types.py`.
        name: Name of the program, for the file.
        about: Everything else that the function depends on; values that differ must differ in their `repr`.
    """

    @functools.wraps(function)
    def run(*arguments: Any) -> R:
        folder = _folder()
        if folder is None:
            return function(*arguments)
        tree: Any
        leaves, tree = jax.tree.flatten(arguments)
        shapes = [jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in leaves]
        text = _ADDRESS.sub("", repr((_environment(), name, about, tree, shapes)))
        path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()}"
        program = _read(path)
        if program is None:
            try:
                program = jax.export.export(jax.jit(lambda *leaves: function(*tree.unflatten(leaves))))(*shapes)
            except (NotImplementedError, ValueError):  # an operation that JAX cannot export, or bad input
                return function(*arguments)
            _write(path, program)
        return program.call(*leaves)

    return run


def is_own(module: Any) -> bool:
    """Return whether a module has classes of this package and of Flax only, so that its structure determines it."""
    from flax import nnx  # slow to import, and `fit` has no networks

    kinds = {type(part).__module__.partition(".")[0] for _, part in nnx.iter_modules(module)}
    return kinds <= {"handtailor_jax", "flax"}


def _folder() -> Path | None:
    """Return the folder of traced programs; None where they are not kept."""
    config: Any = jax.config  # JAX 0.10 declares no types for its options
    cache = config.jax_compilation_cache_dir
    if not cache or "://" in cache or not config.jax_enable_compilation_cache or os.environ.get(SWITCH) == "0":
        return None
    # The program is traced for the default platform.
    return None if config.jax_disable_jit or config.jax_default_device is not None else Path(cache) / _FOLDER


def _environment() -> tuple[Any, ...]:
    """Return everything that determines traced programs, apart from their function and arguments."""
    options = [getattr(jax.config, option) for option in _OPTIONS]
    return _source(), jax.__version__, jaxlib.__version__, jax.default_backend(), options


@functools.cache
def _source() -> str:
    """Return a digest of this package's code and constants."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.json")]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)} ".encode() + content)
    return digest.hexdigest()


@functools.cache
def _register() -> None:
    """Tell `jax.export` how to store the classes of results."""
    for kind in (types.Camera, types.HandParameters, types.Hand, types.Region):
        jax.export.register_pytree_node_serialization(
            kind,
            serialized_name=f"handtailor_jax.{kind.__name__}",
            serialize_auxdata=lambda fields: "\n".join(fields).encode(),
            deserialize_auxdata=lambda text: tuple(text.decode().split("\n")) if text else (),
        )


def _read(path: Path) -> Any:
    """Return the program in a file; None if there is none, or it is damaged."""
    import jax.export

    _register()
    try:
        check_file(path)
        content = path.read_bytes()
    except OSError:
        return None
    digest, program = content[:32], content[32:]
    whole = program and hashlib.sha256(program).digest() == digest
    return jax.export.deserialize(bytearray(program)) if whole else None


def _write(path: Path, program: Any) -> None:
    """Write a program; errors are ignored, because a program that is not stored only costs time."""
    content = bytes(program.serialize())
    content = hashlib.sha256(content).digest() + content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
    except (OSError, InputError):
        pass

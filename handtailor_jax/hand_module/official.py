"""The released network's weights: the correspondence of its checkpoint's tensors and our variables."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.weights import module_structure

VariablePath = tuple[Any, ...]
Conversion = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class WeightMapping:
    """One line of the weight table: a tensor of the checkpoint and a variable of a `HandModule`."""

    name: str
    """Name of the tensor in the checkpoint."""
    path: VariablePath
    """Path of the variable in a `HandModule`."""
    convert: Conversion
    """Conversion from the checkpoint's layout to ours."""


def load_official(state: Mapping[str, np.ndarray], config: HandModuleConfig | None = None) -> HandModule:
    """Create the released network with the weights of a checkpoint, in evaluation mode.

    Args:
        state: Arrays of the checkpoint by name. Those of its MANO layer and the counters of batches are ignored.
        config: Configuration of a network of the released design; the released network's if None.

    Raises:
        InputError: If a tensor is missing, unknown or of the wrong shape.
    """
    config = HandModuleConfig.official() if config is None else config
    graphdef, structure = module_structure(config)
    variables = dict(structure)
    table = list(weight_table(config))
    names = {mapping.name for mapping in table}
    for name in state:
        if name not in names and "mano_layer" not in name and not name.endswith(".num_batches_tracked"):
            raise InputError(f"{name}: not a tensor of the released network; give the checkpoint of that network")
    for mapping in table:
        name = mapping.name
        if name not in state:
            raise InputError(f"{name}: missing from the checkpoint; give a complete checkpoint of the released network")
        variable = variables[mapping.path]
        try:
            array = mapping.convert(np.asarray(state[name]))
        except ValueError:
            array = np.empty(0)
        if array.shape != variable.shape:
            problem = f"shape {np.shape(state[name])} does not fit the network's {variable.shape}"
            raise InputError(f"{name}: {problem}; give a checkpoint of the released network")
        variables[mapping.path] = variable.replace(jnp.asarray(array, jnp.float32))
    module = nnx.merge(graphdef, nnx.from_flat_state(variables))
    module.eval()
    return module


def weight_table(config: HandModuleConfig) -> Iterator[WeightMapping]:
    """Iterate over every tensor of a released checkpoint that a network needs, which excludes counters of batches."""
    yield from _block("hand3d.hand2d.conv1", "hand3d.hand2d.bn1", ("stem", "embed"), _kernel)
    yield from _bottleneck("hand3d.hand2d.layer1.0", ("stem", "fine"), config.stem_channels != config.channels // 2)
    yield from _bottleneck("hand3d.hand2d.layer2.0", ("stem", "coarse", 0), True)
    yield from _bottleneck("hand3d.hand2d.layer3.0", ("stem", "coarse", 1))
    for branch, hourglasses, heads, ours, count in (
        ("hand3d.hand2d", "hg2b", "hm", "stacks_2d", config.stacks_2d),
        ("hand3d.hand2dto3d", "hg3d2b", "hm3d", "stacks_3d", config.stacks_3d),
    ):
        for i in range(count):
            for level in range(config.depth):
                for place, part in enumerate(("across", "down", "up")):
                    name = f"{branch}.{hourglasses}.{i}.hg.{level}.{place}.0"
                    yield from _bottleneck(name, (ours, i, "hourglass", part, level))
            yield from _bottleneck(f"{branch}.{hourglasses}.{i}.hg.0.3.0", (ours, i, "hourglass", "innermost"))
            yield from _bottleneck(f"{branch}.res.{i}.0", (ours, i, "residual"))
            yield from _layer(f"{branch}.{heads}.{i}", (ours, i, "head"), _pointwise)
            yield WeightMapping(f"{branch}.fc.{i}.0.weight", (ours, i, "merge", "layer", "kernel"), _pointwise)
            yield from _norm(f"{branch}.fc.{i}.1", (ours, i, "merge", "norm"))
    for level in range(config.shape_levels):
        for block in range(config.shape_blocks):
            first = level == block == 0 and config.channels != config.shape_channels
            name = f"decoder.layer{level + 1}.{block}"
            yield from _bottleneck(name, ("shape_branch", "levels", level, block), first)
    yield from _mlp("shapereg_layers", ("shape_branch", "regressor"), len(config.shape_hidden))
    yield from _mlp("iknet.invk_layers", ("iknet", "mlp"), len(config.ik_hidden))


def _bottleneck(name: str, path: VariablePath, projected: bool = False) -> Iterator[WeightMapping]:
    yield from _block(f"{name}.conv1", f"{name}.bn1", (*path, "reduce"), _pointwise)
    yield from _block(f"{name}.conv2", f"{name}.bn2", (*path, "mix"), _kernel)
    yield from _layer(f"{name}.conv3", (*path, "expand"), _pointwise)
    yield from _norm(f"{name}.bn3", (*path, "norm"))
    if projected:
        yield from _layer(f"{name}.conv4", (*path, "skip"), _pointwise)


def _mlp(name: str, path: VariablePath, hidden: int) -> Iterator[WeightMapping]:
    # A linear layer, its normalisation and a ReLU are three entries of the released network's list.
    for i in range(hidden):
        yield from _block(f"{name}.{3 * i}", f"{name}.{3 * i + 1}", (*path, "hidden", i), np.transpose)
    yield from _layer(f"{name}.{3 * hidden}", (*path, "head"), np.transpose)


def _block(layer: str, norm: str, path: VariablePath, convert: Conversion) -> Iterator[WeightMapping]:
    yield from _layer(layer, (*path, "layer"), convert)
    yield from _norm(norm, (*path, "norm"))


def _layer(name: str, path: VariablePath, convert: Conversion) -> Iterator[WeightMapping]:
    yield WeightMapping(f"{name}.weight", (*path, "kernel"), convert)
    yield WeightMapping(f"{name}.bias", (*path, "bias"), np.asarray)


def _norm(name: str, path: VariablePath) -> Iterator[WeightMapping]:
    theirs = ("weight", "bias", "running_mean", "running_var")
    for leaf, ours in zip(theirs, ("scale", "bias", "mean", "var"), strict=True):
        yield WeightMapping(f"{name}.{leaf}", (*path, ours), np.asarray)


def _kernel(weight: np.ndarray) -> np.ndarray:
    """Reorder a convolution kernel from (out, in, rows, columns) to (rows, columns, in, out)."""
    return np.transpose(weight, (2, 3, 1, 0))


def _pointwise(weight: np.ndarray) -> np.ndarray:
    """Reorder a 1 x 1 convolution kernel from (out, in, 1, 1) to (in, out)."""
    return np.transpose(np.squeeze(weight, axis=(2, 3)))

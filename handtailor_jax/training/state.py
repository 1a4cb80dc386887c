"""What changes during training, as arrays by name, and how a network is made of it."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.weights import load_weights
from handtailor_jax.training.config import OptimizerConfig, Stage, TrainingConfig
from handtailor_jax.types import pytree

DEVICES = "devices"
"""The one name of the mapped axis over devices."""

Arrays = dict[str, Array]
Vector = Float[Array, "numbers"]


@pytree
class TrainState:
    """Everything that a step changes. Each group of the network's numbers is one vector (`Layout`): one addition
    instead of hundreds, and one message between devices."""

    step: Int[Array, ""]
    """Steps done."""
    params: Float[Array, "trained"]
    """What is trained."""
    frozen: Float[Array, "frozen"]
    """Parameters that this stage leaves alone."""
    statistics: Float[Array, "running"]
    """Running statistics of batch normalisation."""
    optimizer: Any
    """State of the optimiser."""
    average_params: Float[Array, "trained"]
    """Running average of `params`."""
    average_statistics: Float[Array, "running"]
    """Running average of `statistics`."""
    failed: Int[Array, ""]
    """The first step whose loss or gradients were not finite, after which nothing changes any more; -1 if none."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where named arrays are in a vector: those of several dimensions first, each kind by name."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]]) -> "Layout":
        """The layout of arrays of the given shapes."""
        return cls(tuple(sorted(shapes.items(), key=lambda item: (len(item[1]) < 2, item[0]))))

    @property
    def kernels(self) -> int:
        """How many of the first numbers belong to arrays of several dimensions."""
        return sum(math.prod(shape) for _, shape in self.shapes if len(shape) > 1)

    def vector(self, arrays: Arrays) -> Vector:
        """Arrays as a vector."""
        if not self.shapes:
            return jnp.zeros(0)
        return jnp.concatenate([arrays[name].reshape(-1) for name, _ in self.shapes])

    def arrays(self, vector: Vector) -> Arrays:
        """A vector as arrays."""
        found, start = {}, 0
        for name, shape in self.shapes:
            size = math.prod(shape)
            found[name] = vector[start : start + size].reshape(shape)
            start += size
        return found


@dataclasses.dataclass(frozen=True)
class Network:
    """The network's structure; its numbers are in a `TrainState`."""

    graph: Any
    evaluation_graph: Any
    variables: dict[tuple[Any, ...], Any]
    """Path -> variable of shapes."""
    params: Layout
    frozen: Layout
    statistics: Layout

    def module(self, arrays: Arrays, *, training: bool) -> HandModule:
        """The network with the given numbers, which must be complete."""
        state = nnx.from_flat_state([(path, v.replace(arrays[_name(path)])) for path, v in self.variables.items()])
        # A copy, since the layers replace their statistics while they are traced.
        return nnx.merge(self.graph if training else self.evaluation_graph, state, copy=True)

    def averaged(self, state: TrainState) -> HandModule:
        """The network that a run is about, in evaluation mode: the running average of a state."""
        arrays = self.params.arrays(state.average_params) | self.frozen.arrays(state.frozen)
        return self.module(arrays | self.statistics.arrays(state.average_statistics), training=False)


def create_network(config: TrainingConfig) -> Network:
    """The structure of the configured network, whose batch statistics are those of all devices together."""
    on_devices = dataclasses.replace(config.module, batch_axis=DEVICES)
    module = nnx.eval_shape(lambda: HandModule(on_devices, rngs=nnx.Rngs(0)))
    module.train()
    graph, state = nnx.split(module)
    module.eval()
    evaluation_graph, _ = nnx.split(module)
    variables = dict(nnx.to_flat_state(state))
    groups: tuple[dict[str, tuple[int, ...]], ...] = ({}, {}, {})
    for path, variable in variables.items():
        name = _name(path)
        group = 2 if not isinstance(variable, nnx.Param) else 0 if is_trained(name, config.stage) else 1
        groups[group][name] = variable.shape
    return Network(graph, evaluation_graph, variables, *map(Layout.of, groups))


def arrays_of(module: HandModule) -> Arrays:
    """A network's numbers by name."""
    return {_name(path): jnp.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(module))}


def create_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, then Adam's directions; the step adds weight decay and learning rate."""
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.scale_by_adam())


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at each step."""
    peak, warm_up = config.learning_rate, min(config.warm_up, max(steps - 1, 1))
    return optax.warmup_cosine_decay_schedule(
        0.0 if config.warm_up else peak, peak, warm_up, max(steps, warm_up + 1), config.final * peak
    )


def initial_state(config: TrainingConfig, network: Network) -> TrainState:
    """The state before the first step.

    Raises:
        InputError: if weights to start from do not fit the network.
    """
    arrays = arrays_of(HandModule(config.module, rngs=nnx.Rngs(config.seed)))
    for path, only in ((config.weights, ""), (config.iknet_weights, "iknet.")):
        if path is not None:
            given = arrays_of(load_weights(path))
            for name in arrays:
                if name.startswith(only):
                    if name not in given or given[name].shape != arrays[name].shape:
                        raise InputError(f"{path}: has no {name} of shape {arrays[name].shape}: give fitting weights")
                    arrays[name] = given[name]
    params, statistics = network.params.vector(arrays), network.statistics.vector(arrays)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=network.frozen.vector(arrays),
        statistics=statistics,
        optimizer=create_optimizer(config.optimizer).init(params),
        average_params=jnp.copy(params),
        average_statistics=jnp.copy(statistics),
        failed=jnp.full((), -1, jnp.int32),
    )


def is_trained(name: str, stage: Stage) -> bool:
    """Whether a stage trains a parameter."""
    return stage == "end_to_end" or (stage == "ik") == name.startswith("iknet.")


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))

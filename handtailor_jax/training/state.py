"""The state of a training run, the optimiser, and the network that the state belongs to."""

import dataclasses
from typing import Any

import jax
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
"""Name of the mapped axis over devices."""

Arrays = dict[Any, Any]
"""Nested dictionary of arrays, as Flax names the variables of a module."""


@pytree
class TrainState:
    """Everything that a step changes."""

    step: Int[Array, ""]
    """Number of completed steps."""
    params: Arrays
    """Trained parameters."""
    frozen: Arrays
    """Parameters that the stage does not train."""
    statistics: Arrays
    """Running statistics of batch normalisation."""
    optimizer: optax.ApplyIfFiniteState
    """State of the optimiser. Its `total_notfinite` is above 0 after a loss or gradient that is not finite; from then
    on steps change nothing, and `step` is the number of the failed step."""
    average_params: Arrays
    """Exponential moving average of `params`."""
    average_statistics: Arrays
    """Exponential moving average of `statistics`."""


@dataclasses.dataclass(frozen=True)
class Network:
    """The structure of the network, whose arrays are in a `TrainState`."""

    graph: nnx.GraphDef[HandModule]
    trained: Any
    """Filter of the trained parameters."""

    def split(self, module: HandModule) -> tuple[Arrays, Arrays, Arrays]:
        """Return the trained parameters, the other parameters and the running statistics of a module."""
        _, *groups = nnx.split(module, self.trained, nnx.Param, nnx.BatchStat)
        params, frozen, statistics = map(nnx.to_pure_dict, groups)
        return params, frozen, statistics

    def module(self, params: Arrays, frozen: Arrays, statistics: Arrays) -> HandModule:
        """Return the network with the given arrays, in training mode."""
        # A copy, because layers replace their statistics while they are traced.
        return nnx.merge(self.graph, params, frozen, statistics, copy=True)

    def averaged(self, state: TrainState) -> HandModule:
        """Return the network with the averaged weights, in evaluation mode."""
        module = self.module(state.average_params, state.frozen, state.average_statistics)
        module.eval()
        return module


def create_network(config: TrainingConfig) -> Network:
    """Return the structure of the configured network; batch normalisation averages over all devices."""
    on_devices = dataclasses.replace(config.module, batch_axis=DEVICES)
    module = nnx.eval_shape(lambda: HandModule(on_devices, rngs=nnx.Rngs(0)))
    module.train()
    trained = nnx.All(nnx.Param, lambda path, _: _is_trained(path, config.stage))
    return Network(nnx.split(module, trained, nnx.Param, nnx.BatchStat)[0], trained)


def _is_trained(path: tuple[Any, ...], stage: Stage) -> bool:
    return stage == "end_to_end" or (stage == "ik") == (path[0] == "iknet")


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step: linear warm-up, then cosine decay."""
    peak, warm_up = config.learning_rate, min(config.warm_up, max(steps - 1, 1))
    return optax.warmup_cosine_decay_schedule(
        0.0 if config.warm_up else peak, peak, warm_up, max(steps, warm_up + 1), config.final * peak
    )


def create_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """Return AdamW with clipping that ignores gradients that are not finite."""
    adamw = optax.adamw(
        learning_rate(config, steps),
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    return optax.apply_if_finite(
        optax.chain(optax.clip_by_global_norm(config.clip), adamw), max_consecutive_errors=2**31 - 2
    )


def moving_average(average: Arrays, new: Arrays, step: Int[Array, ""], config: OptimizerConfig) -> Arrays:
    """Return the exponential moving average after a step, the first of which has number 1."""
    # A shorter average at the beginning, where a long one would consist of the random initial weights.
    taken = step.astype(jnp.result_type(float))
    decay: Float[Array, ""] = jnp.minimum(config.average, (1.0 + taken) / (10.0 + taken))
    return optax.incremental_update(new, average, 1.0 - decay)


def initial_state(config: TrainingConfig, network: Network) -> TrainState:
    """Return the state before the first step.

    Raises:
        InputError: If weights to start from do not fit the network.
    """
    module = HandModule(config.module, rngs=nnx.Rngs(config.seed))
    variables = dict(nnx.to_flat_state(nnx.state(module)))
    for file, part in ((config.weights, None), (config.iknet_weights, "iknet")):
        if file is None:
            continue
        given = dict(nnx.to_flat_state(nnx.state(load_weights(file))))
        for path, variable in variables.items():
            if part in (None, path[0]):
                if path not in given or given[path].shape != variable.shape:
                    name = ".".join(map(str, path))
                    raise InputError(f"{file}: has no {name} of shape {variable.shape}: give fitting weights")
                variables[path] = given[path]
    nnx.update(module, nnx.from_flat_state(variables))
    params, frozen, statistics = network.split(module)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        statistics=statistics,
        optimizer=create_optimizer(config.optimizer, config.steps).init(params),
        average_params=jax.tree.map(jnp.copy, params),
        average_statistics=jax.tree.map(jnp.copy, statistics),
    )


def first_copy(leaf: Any) -> Any:
    """Return one device's copy of an array that is the same on all devices."""
    return leaf.addressable_shards[0].data[0]

"""The state of a training run, the optimiser, the network that the state belongs to, and checkpoints of the state."""

import dataclasses
import functools
import logging
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from handtailor_jax.detector.weights import load_landmark_network
from handtailor_jax.errors import InputError, imported
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.weights import load_weights, module_structure
from handtailor_jax.training.config import OptimizerConfig, TrainingConfig
from handtailor_jax.types import pytree

_CHECKSUM = "checksum"
_TRUNK = ("stem", "network")  # path of the pretrained convolutions in a module with the stem "landmarks"

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
    """Structure of the network; its arrays are in a `TrainState`."""

    kind: Callable[..., HandModule]
    """Class of the network."""
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


def create_network(config: TrainingConfig, kind: Callable[..., HandModule] = HandModule) -> Network:
    """Return the structure of the configured network; batch normalisation averages over all devices."""
    on_devices = dataclasses.replace(config.module, batch_axis=DEVICES)
    graph, variables = module_structure(on_devices, kind)
    module = nnx.merge(graph, nnx.from_flat_state(variables))
    module.train()

    def of_stage(path: tuple[Any, ...], _: Any) -> bool:
        return config.stage == "end_to_end" or (config.stage == "ik") == (path[0] == "iknet")

    def moving(path: tuple[Any, ...], _: Any) -> bool:
        return config.optimizer.trunk > 0.0 or path[:2] != _TRUNK

    trained = nnx.All(nnx.Param, of_stage, moving)
    return Network(kind, nnx.split(module, trained, nnx.Param, nnx.BatchStat)[0], trained)


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
    of_trunk = lambda path, _: tuple(key.key for key in path[:2]) == _TRUNK  # noqa: E731
    slower = optax.masked(optax.scale(config.trunk), lambda params: jax.tree.map_with_path(of_trunk, params))
    chain = optax.chain(optax.clip_by_global_norm(config.clip), adamw, slower)
    return optax.apply_if_finite(chain, max_consecutive_errors=2**31 - 2)


def moving_average(average: Arrays, new: Arrays, step: Int[Array, ""], config: OptimizerConfig) -> Arrays:
    """Return the exponential moving average after step number `step`, counted from 1."""
    # The first steps average over fewer steps, because a long average would consist of the random initial weights.
    taken = step.astype(jnp.result_type(float))
    decay: Float[Array, ""] = jnp.minimum(config.average, (1.0 + taken) / (10.0 + taken))
    return optax.incremental_update(new, average, 1.0 - decay)


def initial_state(config: TrainingConfig, network: Network) -> TrainState:
    """Return the state before the first step; the weights to start from must fit the network."""
    module = network.kind(config.module, rngs=nnx.Rngs(config.seed))
    variables = dict(nnx.to_flat_state(nnx.state(module)))
    if config.module.stem == "landmarks":
        pretrained = dict(nnx.to_flat_state(nnx.state(load_landmark_network())))
        variables |= {path: pretrained[path[2:]] for path in variables if path[:2] == _TRUNK}
    for file, part in ((config.weights, None), (config.iknet_weights, "iknet")):
        given = {} if file is None else dict(nnx.to_flat_state(nnx.state(load_weights(file, network.kind))))
        for path, variable in variables.items():
            if file is not None and part in (None, path[0]):
                if path not in given or given[path].shape != variable.shape:
                    name = ".".join(map(str, path))
                    raise InputError(f"{file}: has no {name} of shape {variable.shape}: give weights of this network")
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


def first_copy(tree: Any) -> Any:
    """Return one device's copy of arrays that are the same on all devices, in host memory."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data[0]), tree)


@functools.cache
def _ignore_closed_loops() -> None:
    """Do not print that Orbax's threads find their event loop closed after an error, which has no consequences."""
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = quiet


class Checkpoints:
    """Checkpoints of a run, written by Orbax: the latest two and the best one, each complete or absent.

    If a checkpoint cannot be written, an InputError is raised, and earlier checkpoints stay intact.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder; nothing is read yet."""
        orbax = imported("orbax.checkpoint", "training needs Orbax", "pip install orbax-checkpoint")
        # Orbax logs an error with its traceback in each of its threads and tasks; `_writing` turns it into one line.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _ignore_closed_loops()
        self._orbax, self._folder = orbax, folder
        try:
            self._last, self._best = self._manager(folder / "last", 2), self._manager(folder / "best", 1)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror}): choose another --out") from None

    def _manager(self, folder: Path, keep: int) -> Any:
        # Every process has the whole state in host memory: the first writes, all read, and none waits in Orbax.
        process = jax.process_index()
        alone = self._orbax.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"{folder.name}{process}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=process == 0, create=False, multiprocessing_options=alone
        )
        handler = self._orbax.StandardCheckpointHandler(multiprocessing_options=alone)
        return self._orbax.CheckpointManager(folder.absolute(), item_handlers=handler, options=options)

    def save(self, state: TrainState, best: bool = False) -> None:
        """Start writing a state in host memory, in the first process only; training may continue meanwhile.

        With `best`, the state is also written to the folder of the best one.
        """
        if jax.process_index() != 0:
            return
        step, arrays = int(state.step), self._orbax.args.StandardSave(_named(state))
        if step not in self._last.all_steps():
            self._writing(lambda: self._last.save(step, args=arrays))
        if best:
            self._writing(lambda: self._best.save(step, args=arrays))

    def finish(self) -> None:
        """Wait until all checkpoints are on disk."""
        self._writing(self._last.wait_until_finished)
        self._writing(self._best.wait_until_finished)

    def close(self) -> None:
        """Wait, and free the resources of the managers."""
        self.finish()
        self._last.close()
        self._best.close()

    def latest(self) -> int | None:
        """Return the step of the latest checkpoint; None if there is none."""
        return self._last.latest_step()

    def restore(self, like: TrainState, best: bool = False) -> TrainState:
        """Read the latest checkpoint, or the best one; it must have the shapes of `like`."""
        manager, wanted = self._best if best else self._last, _named(like)
        step = manager.latest_step()
        where = f"{self._folder}: checkpoint {step}"
        try:
            found = {name: tuple(leaf.shape) for name, leaf in manager.item_metadata(step).items()}
            different = sorted(
                name for name in found | wanted if name not in wanted or found.get(name) != wanted[name].shape
            )
            arrays: Any = None if different else manager.restore(step, args=self._orbax.args.StandardRestore(wanted))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where} cannot be read ({_line(error)}): remove it or choose another --out") from None
        if different:
            raise InputError(
                f"{where} has another configuration ({len(different)} arrays differ, such as {different[0]}): "
                "resume with the run's own configuration or choose another --out"
            )
        if _checksum(arrays) != arrays[_CHECKSUM]:
            raise InputError(f"{where} is damaged (its checksum differs): remove it to resume from the one before")
        leaves = [jnp.asarray(arrays[name]) for name in wanted if name != _CHECKSUM]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _writing(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except (OSError, ValueError) as error:
            system = re.search(r"([^:]+) \[os_error_code", str(error))
            reason = getattr(error, "strerror", None) or (system[1].strip() if system else _line(error))
            raise InputError(
                f"{self._folder}: a checkpoint cannot be written ({reason}); earlier ones are intact: make room, then "
                "--resume"
            ) from None


def _named(state: TrainState) -> dict[str, np.ndarray]:
    """Return the arrays of a state by path."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    named = {jax.tree_util.keystr(path).replace("/", "|"): np.asarray(leaf) for path, leaf in leaves}
    return named | {_CHECKSUM: _checksum(named)}


def _checksum(arrays: Mapping[str, Any]) -> np.ndarray:
    """Return the CRC-32 of all arrays but itself."""
    value = 0
    for name in sorted(arrays.keys() - {_CHECKSUM}):
        value = zlib.crc32(np.asarray(arrays[name]).tobytes(), value)
    return np.asarray(value, np.uint32)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]

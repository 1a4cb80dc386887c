"""The training loop: from a configuration to a weight file.

`train` is the loop. `Run` holds what the loop needs on all devices of this process: the network, its state, the samples
and the checkpoints.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from handtailor_jax.data.augmentation import augment
from handtailor_jax.data.sample import Batch
from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.weights import save_weights
from handtailor_jax.mano.loading import load_hand
from handtailor_jax.results import write_atomically, write_json
from handtailor_jax.synthetic.dataset import load_assets
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.custom import NOTHING, Custom, with_custom
from handtailor_jax.training.evaluate import create_evaluator
from handtailor_jax.training.report import Recorder, check_folder, plain, provenance
from handtailor_jax.training.sources import open_sources
from handtailor_jax.training.state import Checkpoints, TrainState, create_network, first_copy, initial_state
from handtailor_jax.training.step import (
    Samples,
    StepMetrics,
    compile_rendering,
    compile_step,
    mean_metrics,
    on_devices,
    sample_keys,
)

WEIGHTS = "weights.safetensors"
"""Name of the weight file in a run's folder."""


class NotFinite(InputError):
    """A loss or gradient was not finite, and training stopped."""


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    devices: int | None = None,
    custom: Custom = NOTHING,
) -> Path:
    """Train to the last step, write weights.safetensors at every evaluation and return its path.

    Args:
        config: The configuration of the run.
        folder: Folder for everything that the run writes.
        resume: Continue from the folder's latest checkpoint. The result is the same as without the interruption,
            because the samples of a step depend on the step alone.
        devices: Number of local devices to use; all if None.
        custom: Your own data, losses and network.

    Raises:
        InputError: If the input is wrong, in one line.
        NotFinite: If a loss or gradient is not finite. The samples of the step are in not_finite.npz, and the latest
            checkpoint is the state before the step.
    """
    run, recorder = Run(config, folder, resume=resume, devices=devices, custom=custom), None
    config = run.config
    try:
        _together("start")  # every process has read the folder before the first process writes to it
        if jax.process_index() == 0:
            recorder = _recorder(run)
        before, waiting = None, []
        for step, batch in run.batches():
            metrics = run.advance(step, batch)
            # One step is always running while the next batch is prepared, and no further steps are queued.
            jax.block_until_ready(before)
            before, done = metrics.losses.total, step + 1
            waiting.append(metrics)
            last = done == config.steps
            logs, evaluates = (last or done % every == 0 for every in (config.log_every, config.evaluate_every))
            saves = evaluates or done % config.checkpoint_every == 0
            if logs or saves:
                run.check_finite()
            if recorder is not None:
                recorder.progress.update()
                if logs:
                    recorder.log(done, mean_metrics(waiting, config, custom.losses))
                if saves:
                    state = run.host_state()
                    run.checkpoints.save(state, best=evaluates and recorder.evaluate(state))
                    if evaluates:
                        export(run, state)
            waiting = [] if logs else waiting
        run.checkpoints.finish()
        if recorder is not None and not (folder / WEIGHTS).is_file():  # a complete run that was resumed
            export(run, run.host_state())
        _together("end")
        return folder / WEIGHTS
    finally:
        if recorder is not None:
            recorder.progress.close()
        run.checkpoints.close()


class Run:
    """A run: its network, state and data on the devices of this process."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        *,
        resume: bool = False,
        devices: int | None = None,
        custom: Custom = NOTHING,
    ) -> None:
        """Prepare everything, and restore the latest checkpoint to resume; the arguments are those of `train`."""
        local = jax.local_devices()
        if devices is not None and not 1 <= devices <= len(local):
            raise InputError(f"{devices} devices were asked for, there are {len(local)}: change --devices")
        config = with_custom(config, custom)
        self.config, self.folder, self.devices, self.custom = config, folder, tuple(local[:devices]), custom
        self.total_devices = len(self.devices) * jax.process_count()
        check_folder(folder, config, resume)
        check_devices(config, self.total_devices)
        self.hand = load_hand(config.hand, "right")
        self.source = open_sources(config, self.hand, custom)
        self.network = create_network(config, custom.network)
        state = initial_state(config, self.network)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        if resume and self.checkpoints.latest() is not None:
            state = self.checkpoints.restore(state)
        self.state: TrainState = self._on_all_devices(state)
        self.hands = self._on_all_devices(self.hand)
        self.compiled_step: Any = compile_step(config, self.devices, custom)

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return int(first_copy(self.state.step))

    def host_state(self) -> TrainState:
        """Return the state in host memory."""
        return first_copy(self.state)

    def advance(self, step: int, batch: Samples) -> StepMetrics:
        """Take step `step`, counted from 0, on samples from `batches`; return before the devices have finished."""
        samples, batch = self.inputs(step, batch)
        self.state, metrics = self.compiled_step(self.state, batch, samples, self.hands)
        return metrics

    def batches(self) -> Iterator[tuple[int, Samples]]:
        """Yield every remaining step with its samples from host memory; Grain prepares them ahead."""
        import grain

        if self.step >= self.config.steps:
            return
        steps = grain.MapDataset.range(self.step, self.config.steps)
        samples = steps.map(lambda step: (int(step), self.from_host(int(step))))
        try:
            yield from samples.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        except InputError as error:
            raise InputError(str(error).partition("\n")[0]) from None  # Grain appends lines to the message

    def from_host(self, step: int) -> Samples:
        """Return a step's samples from host memory, (devices, n, ...); None if no samples come from there."""
        if not self.source.count:
            return None
        positions = self._positions(self.source.count)
        batch = self.source.batch(step, positions.reshape(-1).tolist())
        return jax.tree.map(lambda leaf: leaf.reshape(*positions.shape, *leaf.shape[1:]), batch)

    def inputs(self, step: int, batch: Samples) -> tuple[Any, Samples]:
        """Return the positions (devices, n) of a step's samples and the samples, rendered ones included."""
        count = self.config.rendered
        if not count:
            return self._positions(self.config.batch), batch
        positions = self._positions(count)
        render, assets, join = self._rendering
        rendered = render(assets, np.full(len(positions), step, np.int32), positions)
        if batch is None:
            return positions, rendered
        # A sample's position does not depend on the number of devices: rendered samples come first.
        others = count + self._positions(self.source.count)
        return np.concatenate([positions, others], axis=1), join(rendered, batch)

    def check_finite(self) -> None:
        """Raise NotFinite after a step that was not finite; saves its samples and the state before it."""
        if not first_copy(self.state.optimizer.total_notfinite):
            return
        step, path, where = self.step, self.folder / "not_finite.npz", ""
        # Rendering the samples again needs all processes, of which some may have stopped already.
        alone = jax.process_count() == 1 or (not self.config.rendered and jax.process_index() == 0)
        if self.config.stage != "ik" and alone:
            arrays = vars(self._crops(step))
            write_atomically(path, lambda temporary: np.savez(temporary, **arrays))
            where = f" (its samples are in {path})"
        state, none = jax.tree.map(jnp.asarray, self.host_state()), jnp.zeros((), jnp.int32)
        cleared = state.optimizer._replace(notfinite_count=none, last_finite=jnp.asarray(True), total_notfinite=none)
        self.checkpoints.save(dataclasses.replace(state, optimizer=cleared))
        raise NotFinite(
            f"step {step}: the loss or a gradient is not finite{where}. The latest checkpoint is the state before the "
            "step: lower --optimizer.learning-rate or --optimizer.clip, then --resume"
        )

    def _crops(self, step: int) -> Batch:
        """Return the augmented crops of a step in host memory."""
        samples, batch = self.inputs(step, self.from_host(step))
        config = self.config
        keys = sample_keys(config.seed, jnp.asarray(step, jnp.int32), jnp.asarray(samples.reshape(-1)))
        flat = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).reshape(-1, *leaf.shape[2:])), batch)
        crop = jax.jit(lambda flat, keys: augment(flat, keys, config.augmentation, config.module.image_size))
        return jax.device_get(crop(flat, keys))

    @functools.cached_property
    def _rendering(self) -> tuple[Any, Any, Any]:
        """Function that renders samples, its assets on all devices, and function that joins samples with others."""
        join = on_devices(lambda *parts: jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *parts), self.devices)
        assets = load_assets(two_hands=self.config.data.second_hand > 0.0)
        return compile_rendering(self.config, self.devices), self._on_all_devices(assets), join

    def _positions(self, count: int) -> np.ndarray:
        """Return the positions (devices, n) of this process's samples among `count` samples of the whole batch."""
        own = len(self.devices) * (count // self.total_devices)
        return (jax.process_index() * own + np.arange(own, dtype=np.int32)).reshape(len(self.devices), -1)

    def _on_all_devices(self, tree: Any) -> Any:
        """Return arrays with a leading axis of devices and a copy on each device."""
        copy = on_devices(lambda tree, _: tree, self.devices, in_axes=(None, 0))
        return copy(tree, np.zeros(len(self.devices)))


def check_devices(config: TrainingConfig, devices: int) -> None:
    """Raise an InputError unless every device gets the same number of samples of either kind."""
    if devices > config.batch:
        raise InputError(f"batch {config.batch} is smaller than the {devices} devices: raise --batch")
    kinds = {"rendered samples": config.rendered, "samples from the host": config.batch - config.rendered}
    for name, count in kinds.items():
        if count % devices:
            raise InputError(f"{count} {name} per step cannot be split among {devices} devices: change --batch")
    if (config.batch // devices) % config.optimizer.accumulate:
        raise InputError(
            f"batch {config.batch} on {devices} devices cannot be split into {config.optimizer.accumulate} parts: "
            "change --batch or --optimizer.accumulate"
        )


def _recorder(run: Run) -> Recorder:
    write_json(run.folder / "config.json", plain(run.config))
    write_json(run.folder / "run.json", provenance(len(run.devices)) | {"command": sys.argv})
    evaluate = create_evaluator(run.network, run.hand, run.config, run.custom.evaluation)
    return Recorder(run.config, run.folder, evaluate, run.step)


def export(run: Run, state: TrainState) -> None:
    """Write the averaged weights of a state in host memory with their provenance."""
    module = run.network.averaged(jax.tree.map(jnp.asarray, state))
    module.config = run.config.module
    facts = provenance(len(run.devices)) | {"steps": int(state.step), "stage": run.config.stage}
    facts |= {"training": plain(run.config)}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    save_weights(run.folder / WEIGHTS, module, texts)


def _together(name: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)

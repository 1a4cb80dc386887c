"""A training run from its configuration to its weights."""

import concurrent.futures
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from handtailor_jax.data.augmentation import augment
from handtailor_jax.data.sample import Batch
from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.weights import save_weights
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import load_hand
from handtailor_jax.results import prepare_folder, write_atomically, write_image
from handtailor_jax.synthetic.dataset import load_assets
from handtailor_jax.synthetic.pool import SamplePool
from handtailor_jax.training.checkpoints import Checkpoints
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.evaluate import Evaluator, PoseEvaluator, TestSet, crops_of
from handtailor_jax.training.objective import Losses
from handtailor_jax.training.photographs import prepare_photographs
from handtailor_jax.training.report import Metrics, describe_run, draw_curves, provenance, resolved
from handtailor_jax.training.sources import HostSamples, check_devices, evaluation_samples, synthetic_config
from handtailor_jax.training.state import DEVICES, TrainState, create_network, initial_state
from handtailor_jax.training.step import StepMetrics, compile_rendering, compile_step, sample_keys


def connect(coordinator: str, processes: int, process: int) -> None:
    """Joins the processes of a run on several machines; before anything else is done with JAX.

    Args:
        coordinator: host:port of the first process, the same for all.
        processes: how many there are.
        process: which of them this is, from 0.

    Raises:
        InputError: if they do not find each other.
    """
    if not 0 <= process < processes:
        raise InputError(f"--process {process} is not one of 0 to {processes - 1}: number the processes from 0")
    try:
        jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{coordinator}: the {processes} processes did not find each other ({' '.join(str(error).split())[:120]}): "
            "give all the same --coordinator HOST:PORT"
        ) from None


def _together(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class NotFinite(InputError):
    """Training stopped because a loss or gradient was not finite."""


@dataclasses.dataclass(frozen=True)
class Feed:
    """The samples of every step, on this process's devices."""

    config: TrainingConfig
    host: HostSamples | None
    """None in stage "ik", which samples poses in the step."""
    devices: int
    """Devices of this process."""
    total: int
    """Devices of all processes."""

    def numbers(self, count: int) -> np.ndarray:
        """(devices, n) places in the whole batch of the samples of this process's devices."""
        first = jax.process_index() * self.devices * (count // self.total)
        return (first + np.arange(self.devices * (count // self.total), dtype=np.int32)).reshape(self.devices, -1)

    def from_host(self, step: int) -> Batch | None:
        """A step's samples from host memory, (devices, n, ...)."""
        if self.host is None or not self.host.count:
            return None
        numbers = self.numbers(self.host.count)
        batch = self.host.batch(step, int(numbers[0, 0]), int(numbers[-1, -1]) + 1)
        return jax.tree.map(lambda leaf: leaf.reshape(*numbers.shape, *leaf.shape[1:]), batch)


class Run:
    """A run: its state, its data, its folder."""

    def __init__(
        self, config: TrainingConfig, folder: Path, *, resume: bool = False, devices: int | None = None
    ) -> None:
        """Prepares everything and, to resume, restores the latest checkpoint.

        Args:
            config: of the run.
            folder: for everything it writes.
            resume: go on where the folder's latest checkpoint ends.
            devices: how many of the local devices to use; all if None.

        Raises:
            InputError: one line that names what is wrong.
        """
        local = jax.local_devices()
        if devices is not None and not 1 <= devices <= len(local):
            raise InputError(f"{devices} devices were asked for, there are {len(local)}: change --devices")
        self.devices = tuple(local[:devices])
        total = len(self.devices) * jax.process_count()
        self.config, self.folder = config, folder
        _check_folder(folder, config, resume)
        self.hand = load_hand(config.hand, "right")
        host = None if config.stage == "ik" else HostSamples(config, self.hand)
        if host is not None:
            check_devices(config, host, total)
        elif config.batch % total:
            raise InputError(f"{config.batch} poses a step cannot be dealt to {total} devices: change --batch")
        self.feed = Feed(config, host, len(self.devices), total)
        self.network = create_network(config)
        state = initial_state(config, self.network)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        if resume and self.checkpoints.latest() is not None:
            state = self.checkpoints.restore(state)
        self.state: TrainState = self._everywhere(state)
        self._shared: HandModel = self._everywhere(self.hand)
        self._step: Any = compile_step(config, self.devices)
        self._render: Any = None
        if host is not None and host.rendered:
            self._render = compile_rendering(config, synthetic_config(config), self.devices)
            self._assets = self._everywhere(load_assets())

    @property
    def step(self) -> int:
        """Steps done."""
        return int(_first(self.state.step))

    def host_state(self) -> TrainState:
        """The state of one device, in host memory."""
        return jax.tree.map(lambda leaf: np.asarray(_first(leaf)), self.state)

    def advance(self, step: int, batch: Batch | None) -> StepMetrics:
        """Takes one step; returns before it is done.

        Args:
            step: steps done.
            batch: what `feed.from_host` gives for it.
        """
        samples, parts = self._inputs(step, batch)
        self.state, metrics = self._step(self.state, parts, samples, self._shared)
        return metrics

    def operations(self) -> float | None:
        """Floating-point operations of a step on all devices of all processes, as XLA counts them before optimising.

        None where it does not count.
        """
        samples, batch = self._inputs(0, self.feed.from_host(0))
        cost = self._step.lower(self.state, batch, samples, self._shared).cost_analysis()
        return cost["flops"] * self.feed.total if cost and "flops" in cost else None

    def _inputs(self, step: int, batch: Batch | None) -> tuple[Any, Batch | None]:
        samples = self.feed.numbers(self.config.batch)
        if self._render is None:
            return samples, batch
        assert self.feed.host is not None
        numbers = self.feed.numbers(self.feed.host.rendered)
        rendered = self._render(self._assets, np.full(len(numbers), step, np.int32), numbers)
        if batch is None:
            return samples, rendered
        # Every device has the same number of either kind, whatever the number of devices.
        samples = np.concatenate([numbers, self.feed.host.rendered + self.feed.numbers(self.feed.host.count)], axis=1)
        return samples, self._joined(rendered, batch)

    @functools.cached_property
    def _joined(self) -> Any:
        def join(first: Batch, second: Batch) -> Batch:
            return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)

        return jax.pmap(join, axis_name=DEVICES, devices=self._pmap_devices)

    @property
    def _pmap_devices(self) -> Any:
        return None if jax.process_count() > 1 else self.devices

    def _everywhere(self, tree: Any) -> Any:
        """Arrays with a leading axis of devices, a copy on each."""
        copy = jax.pmap(lambda tree, _: tree, axis_name=DEVICES, in_axes=(None, 0), devices=self._pmap_devices)
        return copy(tree, np.zeros(len(self.devices)))

    def seen(self, step: int) -> Batch:
        """What the network sees in a step: its crops, in host memory."""
        samples, batch = self._inputs(step, self.feed.from_host(step))
        assert batch is not None
        flat = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).reshape(-1, *leaf.shape[2:])), batch)
        config = self.config
        crop = jax.jit(lambda flat, keys: augment(flat, keys, config.augmentation, config.module.image_size))
        keys = sample_keys(config.seed, jnp.asarray(step, jnp.int32), jnp.asarray(np.asarray(samples).reshape(-1)))
        return jax.device_get(crop(flat, keys))

    def test_sets(self) -> list[TestSet]:
        """The samples that the run is evaluated on."""
        data = self.config.data
        if self.config.stage == "ik":
            return []
        metric: dict[str, Batch] = {}
        if data.counts(self.config.batch).synthetic:
            pool = SamplePool(data.cache, synthetic_config(self.config), data.test, "test")
            metric["synthetic"] = pool.batch(np.arange(data.test))
        if data.dataset is not None:
            metric[data.dataset] = evaluation_samples(self.config, self.hand)
        sets = []
        for name, batch in metric.items():
            sets.append(crops_of(name, batch, self.config, metric=True))
            without = f"{name}_without_intrinsics"
            sets.append(crops_of(without, batch, self.config, metric=True, known_cameras=False))
        if data.photographs is not None:
            found = prepare_photographs(data.photographs, "val", data.size, data.cache)
            grey = np.full_like(found.image, 128)
            share = found.inside[..., None].astype(np.float32) / 255.0
            pictures = np.round(share * found.image + (1.0 - share) * grey).astype(np.uint8)
            for source in sorted(set(found.source.tolist())):
                rows = np.flatnonzero(found.source == source)
                batch = found.batch(rows, pictures[rows], 1.0)
                sets.append(crops_of(source, batch, self.config, metric=False))
        return sets


def train(config: TrainingConfig, folder: Path, *, resume: bool = False, devices: int | None = None) -> Path:
    """Trains to the end and writes weights.safetensors.

    Args:
        config: of the run.
        folder: for everything it writes.
        resume: go on where the folder's latest checkpoint ends; exactly, since what a step sees depends on its number
            alone.
        devices: how many of the local devices to use; all if None.

    Returns:
        The weight file.

    Raises:
        InputError: one line that names what is wrong.
        NotFinite: if a loss or gradient is not finite; the step's samples are in not_finite.npz, and the latest
            checkpoint is of the state before it.
    """
    run = Run(config, folder, resume=resume, devices=devices)
    try:
        return _train(run)
    finally:
        run.checkpoints.close()


def _train(run: Run) -> Path:
    config, folder = run.config, run.folder
    start = run.step
    # All have looked at the folder before the first process, the only one that writes, changes it.
    _together("start")
    if jax.process_index() != 0:
        return _follow(run)
    describe_run(folder, config, len(run.devices))
    metrics = Metrics(folder, start)
    evaluator: Evaluator | PoseEvaluator
    if config.stage == "ik":
        evaluator = PoseEvaluator(run.network, run.hand, config)
    else:
        evaluator = Evaluator(run.network, run.hand, run.test_sets())
    scores = [_score(line) for line in metrics.lines()]
    best = max((score for score in scores if score is not None), default=None)

    waiting: list[StepMetrics] = []
    clock = time.perf_counter()
    with (
        concurrent.futures.ThreadPoolExecutor(1) as ahead,
        tqdm(total=config.steps, initial=start, unit="step", smoothing=0.05) as progress,
    ):
        coming = ahead.submit(run.feed.from_host, start)
        for step in range(start, config.steps):
            batch = coming.result()
            if step + 1 < config.steps:
                coming = ahead.submit(run.feed.from_host, step + 1)
            waiting.append(run.advance(step, batch))
            # One step is always under way while the next one is prepared, and no more pile up.
            jax.block_until_ready(waiting[-2].sums.loss if len(waiting) > 1 else None)
            done = step + 1
            progress.update()
            last = done == config.steps
            if done % config.log_every == 0 or last:
                values = _averaged(waiting, config)
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                values["images_per_second"] = len(waiting) * config.batch / seconds
                waiting.clear()
                _check_finite(run)
                metrics.write(done, values)
                progress.set_postfix(loss=f"{values['loss']:.3f}", images=f"{values['images_per_second']:.0f}/s")
            if done % config.evaluate_every == 0 or last:
                _check_finite(run)
                found = _evaluate(run, evaluator, done)
                metrics.write(done, found)
                draw_curves(metrics.lines(), folder / "curves.png")
                score = _score(found)
                improved = score is not None and (best is None or score > best)
                best = score if improved else best
                run.checkpoints.save(run.host_state(), best=improved)
                clock = time.perf_counter()
            elif done % config.checkpoint_every == 0:
                _check_finite(run)
                run.checkpoints.save(run.host_state())
    run.checkpoints.finish()
    path = export(run)
    _together("end")
    return path


def _follow(run: Run) -> Path:
    """Takes the steps of a process that writes nothing."""
    config = run.config
    for step in range(run.step, config.steps):
        metrics = run.advance(step, run.feed.from_host(step))
        jax.block_until_ready(metrics.sums.loss)
        # Where the first process stops, this one must not wait for it.
        if (step + 1) % config.log_every == 0:
            _check_finite(run)
    _together("end")
    return run.folder / _WEIGHTS


def export(run: Run) -> Path:
    """Writes the averaged weights of the run's state with where they come from."""
    state = run.host_state()
    module = run.network.averaged(jax.tree.map(jnp.asarray, state))
    module.config = run.config.module
    path = run.folder / _WEIGHTS
    facts = provenance(len(run.devices)) | {"steps": int(state.step), "stage": run.config.stage}
    facts |= {"training": resolved(run.config)}
    save_weights(
        path, module, {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    )
    return path


def _evaluate(run: Run, evaluator: Evaluator | PoseEvaluator, done: int) -> dict[str, float]:
    state = jax.tree.map(jnp.asarray, run.host_state())
    if isinstance(evaluator, PoseEvaluator):
        return evaluator.figures(state)
    figures, sheet = evaluator.figures(state)
    (run.folder / "pictures").mkdir(exist_ok=True)
    write_image(run.folder / "pictures" / f"{done:07d}.jpg", sheet)
    return figures


def _score(figures: dict[str, Any]) -> float | None:
    """What the best checkpoint has most of: keypoints within 10 % of the hand's size, over all test sets."""
    if "poses/angle_degrees" in figures:
        return -figures["poses/angle_degrees"]
    shares = [value for name, value in figures.items() if name.endswith("/pck10")]
    return sum(shares) / len(shares) if shares else None


def _averaged(waiting: list[StepMetrics], config: TrainingConfig) -> dict[str, float]:
    """Means over steps."""
    found = jax.device_get([jax.tree.map(_first, metrics) for metrics in waiting])
    values = {"loss": float(np.mean([each.sums.loss for each in found]))}
    for field in dataclasses.fields(Losses):
        if getattr(config.loss, field.name) > 0.0:
            terms = [getattr(each.sums.losses, field.name) for each in found]
            values[f"loss/{field.name}"] = _ratio(terms)
    if config.stage != "ik":
        values["train/keypoints_percent_of_crop"] = 100.0 * _ratio([each.sums.keypoint_error for each in found])
    values["gradient_norm"] = float(np.mean([each.gradient_norm for each in found]))
    values["learning_rate"] = float(found[-1].learning_rate)
    return values


def _ratio(terms: list[Any]) -> float:
    weight = float(sum(term.weight for term in terms))
    return float(sum(term.total for term in terms)) / weight if weight > 0.0 else 0.0


def _check_finite(run: Run) -> None:
    """Stops where a step was not finite, leaving the state before it as a checkpoint.

    Raises:
        NotFinite: naming the step and the file.
    """
    failed = int(_first(run.state.failed))
    if failed < 0:
        return
    path = run.folder / "not_finite.npz"
    where = ""
    # Rendering it again would take all processes, which may have stopped already.
    alone = jax.process_count() == 1 or (run._render is None and jax.process_index() == 0)
    if run.config.stage != "ik" and alone:
        seen = run.seen(failed)
        arrays = {field.name: getattr(seen, field.name) for field in dataclasses.fields(Batch)}
        write_atomically(path, lambda temporary: np.savez(temporary, **arrays))
        where = f"; what it saw is in {path}"
    state = dataclasses.replace(jax.tree.map(jnp.asarray, run.host_state()), failed=jnp.asarray(-1, jnp.int32))
    run.checkpoints.save(state)
    raise NotFinite(
        f"step {failed}: the loss or a gradient is not finite{where}. The checkpoint is of the step before: lower "
        "--optimizer.learning-rate or --optimizer.clip, then --resume"
    )


def _check_folder(folder: Path, config: TrainingConfig, resume: bool) -> None:
    prepare_folder(folder)
    stored = folder / "config.json"
    if not stored.is_file():
        return
    if not resume:
        raise InputError(f"{folder}: holds a run already: give --resume to go on with it, or choose another --out")
    try:
        before = json.loads(stored.read_text("utf-8"))
    except ValueError:
        return
    now = resolved(config)
    changed = [name for name in _names(now) if _value(before, name) != _value(now, name) and name not in _FREE]
    if changed:
        name = changed[0]
        raise InputError(
            f"{folder}: its run had {name} = {_value(before, name)}, now it is {_value(now, name)}: resume with the "
            "run's own configuration or choose another --out"
        )


_WEIGHTS = "weights.safetensors"
_FREE = ("log_every", "evaluate_every", "checkpoint_every", "data.cache", "data.photographs", "data.dataset_folder")


def _names(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix]
    return [name for key, value in tree.items() for name in _names(value, f"{prefix}.{key}" if prefix else key)]


def _value(tree: Any, name: str) -> Any:
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _first(leaf: Any) -> Any:
    """One device's copy of an array that is the same on all."""
    return leaf.addressable_shards[0].data[0]

"""The record of a run: configuration, provenance, metrics, evaluations and curves in its folder."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.losses import Term
from handtailor_jax.results import prepare_folder, write_atomically, write_image, write_json
from handtailor_jax.training.checkpoints import Checkpoints
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.evaluate import Evaluator, PoseEvaluator, score
from handtailor_jax.training.objective import objective
from handtailor_jax.training.state import TrainState, first_copy
from handtailor_jax.training.step import StepMetrics

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "opencv-python-headless")
_ROOT = Path(__file__).resolve().parents[2]
_FREE = ("log_every", "evaluate_every", "checkpoint_every", "data.cache", "data.photographs", "data.dataset_folder")
"""Fields that may differ when a run is resumed."""


def plain(config: TrainingConfig) -> dict[str, Any]:
    """Return the configuration as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def check_folder(folder: Path, config: TrainingConfig, resume: bool) -> None:
    """Check that a run may write to a folder; creates the folder.

    Raises:
        InputError: If the folder cannot be written to or holds another run.
    """
    prepare_folder(folder)
    stored = folder / "config.json"
    if not stored.is_file():
        return
    if not resume:
        raise InputError(f"{folder}: holds a run already: give --resume to continue it, or choose another --out")
    try:
        before = _flat(json.loads(stored.read_text("utf-8")))
    except ValueError:
        return
    for name, value in _flat(plain(config)).items():
        if name not in _FREE and before.get(name) != value:
            raise InputError(
                f"{folder}: its run had {name} = {before.get(name)}, now it is {value}: resume with the run's own "
                "configuration or choose another --out"
            )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by dotted name."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return found


def describe_run(folder: Path, config: TrainingConfig, devices: int) -> None:
    """Write config.json, and run.json with commit, versions, devices and command."""
    write_json(folder / "config.json", plain(config))
    write_json(folder / "run.json", provenance(devices) | {"command": sys.argv})


def provenance(devices: int) -> dict[str, Any]:
    """Return the commit, the versions and the devices of this process."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [str(device.device_kind) for device in jax.local_devices()][:devices],
        "processes": jax.process_count(),
        "machine": platform.machine(),
    }


def _commit() -> str | None:
    """Return the commit of the checkout, with "+" if files differ from it; None outside of a checkout."""
    try:
        return _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Metrics:
    """metrics.jsonl with one object per line, and TensorBoard files if tensorboardX is installed."""

    def __init__(self, folder: Path, step: int) -> None:
        """Open the file and drop the lines of steps after `step`, which a resumed run repeats."""
        self.path = folder / "metrics.jsonl"
        text = "".join(json.dumps(line) + "\n" for line in self.lines() if line["step"] <= step)
        write_atomically(self.path, lambda temporary: temporary.write_text(text, "utf-8"))
        self._board: Any = None
        try:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except ImportError:
            pass

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a line.

        Raises:
            InputError: If the disk refuses.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | values) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}): make room, then --resume") from None
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines; a line that a crash has truncated is left out."""
        found = []
        if self.path.is_file():
            for line in self.path.read_text("utf-8").splitlines():
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
        return found


class Recorder:
    """Writes the metrics, evaluations and checkpoints of a run; exists in the first process only."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        evaluator: Evaluator | PoseEvaluator,
        checkpoints: Checkpoints,
        step: int,
    ) -> None:
        """Continue the metrics of a run after a step."""
        self._config, self._folder, self._evaluator, self._checkpoints = config, folder, evaluator, checkpoints
        self._metrics = Metrics(folder, step)
        scores = [found for line in self._metrics.lines() if (found := score(line)) is not None]
        self._best = max(scores, default=float("-inf"))
        self._waiting: list[StepMetrics] = []
        self._clock = time.perf_counter()
        self.progress = tqdm(total=config.steps, initial=step, unit="step", smoothing=0.05)

    def collect(self, metrics: StepMetrics) -> None:
        """Take the metrics of a step."""
        self._waiting.append(metrics)
        self.progress.update()

    def record(self, done: int, state: Callable[[], TrainState], logs: bool, evaluates: bool) -> None:
        """Write the metrics, evaluate, and write a checkpoint after a step.

        Args:
            done: Number of completed steps.
            state: Returns the state in host memory.
            logs: Whether the metrics are due.
            evaluates: Whether an evaluation is due.
        """
        if logs:
            values = mean_metrics(self._waiting, self._config)
            now = time.perf_counter()
            values["images_per_second"] = len(self._waiting) * self._config.batch / (now - self._clock)
            self._waiting, self._clock = [], now
            self._metrics.write(done, values)
            self.progress.set_postfix(loss=f"{values['loss']:.3f}", images=f"{values['images_per_second']:.0f}/s")
        if evaluates:
            self._evaluate(done, state())
        elif done % self._config.checkpoint_every == 0:
            self._checkpoints.save(state())

    def _evaluate(self, done: int, state: TrainState) -> None:
        figures, sheet = self._evaluator.figures(jax.tree.map(jnp.asarray, state))
        self._metrics.write(done, figures)
        if sheet is not None:
            (self._folder / "pictures").mkdir(exist_ok=True)
            write_image(self._folder / "pictures" / f"{done:07d}.jpg", sheet)
        draw_curves(self._metrics.lines(), self._folder / "curves.png")
        found = score(figures)
        improved = found is not None and found > self._best
        self._best = found if found is not None and improved else self._best
        self._checkpoints.save(state, best=improved)
        self._clock = time.perf_counter()


def mean_metrics(waiting: list[StepMetrics], config: TrainingConfig) -> dict[str, float]:
    """Return the means of steps' metrics by name."""
    found = jax.device_get([jax.tree.map(first_copy, metrics) for metrics in waiting])
    values = {"loss": float(np.mean([each.losses.total for each in found]))}
    for number, (_, loss) in enumerate(objective(config)):
        values[f"loss/{loss.__name__}"] = _mean([each.losses.terms[number] for each in found])
    if config.stage != "ik":
        values["train/keypoints_percent_of_crop"] = 100.0 * _mean([each.losses.keypoint_error for each in found])
    values["gradient_norm"] = float(np.mean([each.gradient_norm for each in found]))
    values["learning_rate"] = float(found[-1].learning_rate)
    return values


def _mean(terms: list[Term]) -> float:
    weight = float(sum(term.weight for term in terms))
    return float(sum(term.total for term in terms)) / weight if weight > 0.0 else 0.0


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw every metric over the steps to a PNG file; does nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    plots: dict[str, list[str]] = {}
    for name in sorted({name for line in lines for name in line if name != "step"}):
        # The same metric of several test sets shares a plot.
        shared = "/" in name and not name.startswith("loss/")
        plots.setdefault(name.split("/")[-1] if shared else name, []).append(name)
    if not plots:
        return
    columns = 4
    rows = -(-len(plots) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis in axes[len(plots) :]:
        axis.set_axis_off()
    for axis, (title, names) in zip(axes, sorted(plots.items()), strict=False):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1.0, marker="." if len(points) < 20 else None)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
        if len(names) > 1:
            axis.legend(fontsize=7)
        if title.startswith("loss") and all(line.get(name, 1.0) > 0.0 for line in lines for name in names):
            axis.set_yscale("log")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=80))

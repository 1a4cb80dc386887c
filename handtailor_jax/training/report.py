"""The record of a run: configuration, provenance, metrics, evaluations and curves in its folder."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from handtailor_jax.errors import InputError
from handtailor_jax.images import Image
from handtailor_jax.results import prepare_folder, write_atomically, write_image
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.state import TrainState

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "opencv-python-headless")
_ROOT = Path(__file__).resolve().parents[2]
_FREE = ("log_every", "evaluate_every", "checkpoint_every", "data.cache", "data.photographs", "data.dataset_folder")
"""Fields that may differ when a run is resumed."""


def plain(config: TrainingConfig) -> dict[str, Any]:
    """Return the configuration as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str), parse_constant=str)  # JSON has no infinity


def check_folder(folder: Path, config: TrainingConfig, resume: bool) -> None:
    """Create a run's folder; raise an InputError if it cannot be written to or holds another run."""
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


def _flat(tree: Any) -> dict[str, Any]:
    """Return the values of nested dictionaries by dotted name."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda node: not isinstance(node, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


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
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Recorder:
    """Writes the metrics and evaluations of a run; exists in the first process only.

    Metrics are lines of metrics.jsonl, and TensorBoard files if tensorboardX is installed.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        evaluate: Callable[[TrainState], tuple[dict[str, float], Image | None]],
        step: int,
    ) -> None:
        """Continue the metrics of a run after a step; drop later lines, which a resumed run repeats."""
        self._config, self._folder, self._evaluator = config, folder, evaluate
        self._path = folder / "metrics.jsonl"
        lines = [line for line in self._lines() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self._path, lambda temporary: temporary.write_text(text, "utf-8"))
        scores = [found for line in lines if (found := score(line)) is not None]
        self._best = max(scores, default=float("-inf"))
        self._board: Any = None
        try:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except ImportError:
            pass
        self._logged, self._clock = step, time.perf_counter()
        self.progress = tqdm(total=config.steps, initial=step, unit="step", smoothing=0.05)

    def log(self, done: int, values: dict[str, float]) -> None:
        """Write the mean metrics of the steps since the last line, and their rate."""
        now, steps = time.perf_counter(), done - self._logged
        rate = steps * self._config.batch / (now - self._clock)
        self._logged, self._clock = done, now
        self._write(done, values | {"images_per_second": rate})
        self.progress.set_postfix(loss=f"{values['loss']:.3f}", images=f"{rate:.0f}/s")

    def evaluate(self, state: TrainState) -> bool:
        """Evaluate a state in host memory, write figures, images and curves, and return whether it is the best one."""
        done = int(state.step)
        figures, sheet = self._evaluator(jax.tree.map(jnp.asarray, state))
        self._write(done, figures)
        if sheet is not None:
            (self._folder / "pictures").mkdir(exist_ok=True)
            write_image(self._folder / "pictures" / f"{done:07d}.jpg", sheet)
        draw_curves(self._lines(), self._folder / "curves.png")
        # The next rate is that of the steps from here on, without the evaluation.
        self._logged, self._clock, before, found = done, time.perf_counter(), self._best, score(figures)
        self._best = before if found is None else max(before, found)
        return self._best > before

    def _write(self, step: int, values: dict[str, float]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | values) + "\n")
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written ({error.strerror}): make room, then --resume") from None
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def _lines(self) -> list[dict[str, Any]]:
        """Return all lines of the metrics; lines that are damaged are left out."""
        found = []
        for text in self._path.read_bytes().splitlines() if self._path.is_file() else ():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            numbers = isinstance(line, dict) and all(type(value) in (int, float) for value in line.values())
            if numbers and type(line.get("step")) is int:
                found.append(line)
        return found


def score(figures: Mapping[str, float | int]) -> float | None:
    """Return the figure that the best checkpoint maximises; None if the figures do not come from an evaluation.

    It is the share of keypoints within 10 % of the hand size, averaged over the test sets; in stage "ik" it is the
    negative angle.
    """
    if "poses/angle_degrees" in figures:
        return -figures["poses/angle_degrees"]
    shares = [value for name, value in figures.items() if name.endswith("/pck10")]
    return sum(shares) / len(shares) if shares else None


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw every metric over the steps to a PNG file; does nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    plots: dict[str, list[str]] = {}
    for name in sorted({name for line in lines for name in line if name != "step"}):
        # The same metric of several test sets shares a plot.
        plots.setdefault(name if name.startswith("loss/") else name.split("/")[-1], []).append(name)
    rows = -(-len(plots) // 4)
    figure = Figure(figsize=(16.8, 2.8 * rows), layout="constrained")
    for place, (title, names) in enumerate(sorted(plots.items()), start=1):
        axis = figure.add_subplot(rows, 4, place)
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

"""What a run leaves behind besides weights: its configuration, its metrics, its curves."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from handtailor_jax.errors import InputError
from handtailor_jax.results import write_atomically, write_json
from handtailor_jax.training.config import TrainingConfig

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "opencv-python-headless")
_ROOT = Path(__file__).resolve().parents[2]


def resolved(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as plain values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def describe_run(folder: Path, config: TrainingConfig, devices: int) -> None:
    """Writes config.json, and run.json with commit, versions, devices and command."""
    write_json(folder / "config.json", resolved(config))
    write_json(folder / "run.json", provenance(devices) | {"command": sys.argv})


def provenance(devices: int) -> dict[str, Any]:
    """Where and with what a run happens."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [str(device.device_kind) for device in jax.local_devices()][:devices],
        "processes": jax.process_count(),
        "machine": platform.machine(),
    }


def commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it; None outside of a checkout."""
    try:
        name = _git("rev-parse", "HEAD")
        return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
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
    """metrics.jsonl, one object a line; and TensorBoard where tensorboardX is installed."""

    def __init__(self, folder: Path, step: int) -> None:
        """Opens the file and drops lines of steps beyond `step`, which a resumed run takes again."""
        self.path = folder / "metrics.jsonl"
        lines = [line for line in self.lines() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self.path, lambda temporary: temporary.write_text(text, "utf-8"))
        self._board: Any = None
        try:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except ImportError:
            pass

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line.

        Raises:
            InputError: if the disk refuses.
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
        """All lines so far; one that a crash has cut short is left out."""
        found = []
        if self.path.is_file():
            for line in self.path.read_text("utf-8").splitlines():
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
        return found


def draw_curves(lines: list[dict[str, Any]], path: Path) -> bool:
    """Draws every figure over the steps to a PNG; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    names = sorted({name for line in lines for name in line if name not in ("step", "seconds")})
    if not names:
        return True
    groups: dict[str, list[str]] = {}
    for name in names:
        # The same figure of several test sets shares a plot.
        groups.setdefault(name.split("/")[-1] if "/" in name and not name.startswith("loss/") else name, []).append(
            name
        )
    columns = 4
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    for axis, (title, members) in zip(axes, sorted(groups.items()), strict=False):
        for name in members:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1.0, marker="." if len(points) < 20 else None)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
        if len(members) > 1:
            axis.legend(fontsize=7)
        if title.startswith("loss") and all(line.get(n, 1.0) > 0.0 for line in lines for n in members):
            axis.set_yscale("log")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=80))
    return True

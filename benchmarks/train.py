"""Time of a training step: python benchmarks/train.py --config configs/hourglass_gpu.py [--rounds 10] [--batch 64 ...].

Every field of the configuration can be overridden as in train.py. The trained weights are not kept.
"""

import dataclasses
import runpy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import jax
import tyro
from timing import check, publish

from handtailor_jax.commands import command
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.loop import Run
from handtailor_jax.training.report import provenance

_TRAIN = Path(__file__).parents[1] / "train.py"
_WARM = 2
# Dense bfloat16 operations per second as stated by the manufacturers, by a part of JAX's name of the device.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """The option that is read first, because this file contains the defaults of the others."""

    config: Path = Path("configs/hourglass_gpu.py")


@dataclasses.dataclass(frozen=True)
class TrainBenchmark:
    """Options of the benchmark."""

    config: Path = ConfigFile.config
    """Configuration file, such as a file in configs/."""
    rounds: int = 10
    """Number of timed steps."""
    devices: int | None = None
    """Number of local devices; all if not given."""
    json: Path | None = None
    """JSON file to which the results are also written."""
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainingConfig)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Time of a training step: medians over steps."""

    images_per_second: float
    """Rate of the training loop, which prepares samples while the devices work."""
    data_seconds: float
    """Time per step to prepare its samples on the host."""
    step_seconds: float
    """Time per step on the devices, rendering and augmentation included."""
    compile_seconds: float
    """Time of the first step, compilation included."""
    step_operations: float | None
    """XLA's count of floating-point operations per step on all devices, rendering excluded."""
    peak_share: float | None
    """Operations per second as a share of the devices' bfloat16 peak; None if the peak is not known."""

    def __str__(self) -> str:
        """Return one line."""
        text = (
            f"{self.images_per_second:.1f} images/s; a step takes {1e3 * self.step_seconds:.0f} ms on the devices and "
            f"{1e3 * self.data_seconds:.0f} ms of host data beside it; compiled in {self.compile_seconds:.0f} s"
        )
        if self.step_operations is not None:
            text += f"; {self.step_operations / self.step_seconds / 1e12:.3f} Tflop/s"
        return text if self.peak_share is None else f"{text}, {100.0 * self.peak_share:.1f} % of the bfloat16 peak"


def measure(options: TrainBenchmark) -> StepTime:
    """Time training steps, and print one line.

    Raises:
        InputError: An option or the configuration cannot be used.
    """
    check(options, "rounds")
    config = options.training
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, Path(folder), devices=options.devices)
        data, device = [], []
        for step in range(1 + _WARM + options.rounds):
            started = time.perf_counter()
            batch = run.from_host(step)
            between = time.perf_counter()
            jax.block_until_ready(run.advance(step, batch))
            data.append(between - started)
            device.append(time.perf_counter() - between)
        samples, batch = run.inputs(0, run.from_host(0))
        cost = run.compiled_step.lower(run.state, batch, samples, run.hands).cost_analysis()
        operations = cost["flops"] * run.total_devices if cost and "flops" in cost else None
        run.checkpoints.close()
    data_seconds, step_seconds = (statistics.median(times[1 + _WARM :]) for times in (data, device))
    peak = bfloat16_peak(run.devices[0].device_kind)
    share = None
    if operations is not None and peak is not None:
        share = operations / step_seconds / (peak * run.total_devices)
    rate = config.batch / max(data_seconds, step_seconds)
    found = StepTime(rate, data_seconds, step_seconds, device[0], operations, share)
    publish(str(found), dataclasses.asdict(found) | provenance(len(run.devices)), options.json)
    return found


def bfloat16_peak(device_kind: str) -> float | None:
    """Return a device's dense bfloat16 operations per second by JAX's name of it; None if not known, as for CPUs."""
    known = [peak for name, peak in _PEAKS.items() if name in device_kind]
    return known[0] if known else None


@command("train.py")
def main() -> None:
    """Parse the command line and measure."""
    file, _ = tyro.cli(ConfigFile, return_unknown_args=True, add_help=False)
    read_config = runpy.run_path(str(_TRAIN))["read_config"]  # `import train` would find this file
    default = TrainBenchmark(training=read_config(file.config))
    measure(tyro.cli(TrainBenchmark, default=default, description=__doc__))


if __name__ == "__main__":
    main()

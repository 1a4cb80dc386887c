"""Where the time of a training step goes: `train.py --benchmark`."""

import dataclasses
import statistics
import time
from pathlib import Path

import jax

from handtailor_jax.results import write_json
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.loop import Run
from handtailor_jax.training.report import provenance

_WARM = 2
# Dense bfloat16 operations per second that the makers state, by a part of JAX's name of the device.
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
class Benchmark:
    """Medians over steps."""

    images_per_second: float
    """When making samples and training go on beside each other."""
    data_seconds: float
    """Per step, to make its samples on the host."""
    step_seconds: float
    """Per step, on the devices, with rendering and augmentation."""
    compile_seconds: float
    step_operations: float | None
    """Floating-point operations of a step on all devices together, counted by XLA; without rendering."""
    peak_share: float | None
    """Those per second, as a share of what the devices can do in bfloat16; None where that is not known."""

    def __str__(self) -> str:
        """One line."""
        text = (
            f"{self.images_per_second:.1f} images/s; a step takes {1e3 * self.step_seconds:.0f} ms on the devices and "
            f"{1e3 * self.data_seconds:.0f} ms of host data beside it; compiled in {self.compile_seconds:.0f} s"
        )
        if self.step_operations is not None:
            text += f"; {self.step_operations / self.step_seconds / 1e12:.3f} Tflop/s"
        return text if self.peak_share is None else f"{text}, {100.0 * self.peak_share:.1f} % of the bfloat16 peak"


def benchmark(config: TrainingConfig, folder: Path, *, steps: int = 10, devices: int | None = None) -> Benchmark:
    """Times training steps without keeping anything of them but benchmark.json.

    Raises:
        InputError: as in `loop.train`.
    """
    run = Run(config, folder, devices=devices)
    started = time.perf_counter()
    jax.block_until_ready(run.advance(0, run.feed.from_host(0)))
    compiled = time.perf_counter() - started
    data, device = [], []
    for step in range(1, _WARM + steps + 1):
        started = time.perf_counter()
        batch = run.feed.from_host(step)
        between = time.perf_counter()
        jax.block_until_ready(run.advance(step, batch))
        data.append(between - started)
        device.append(time.perf_counter() - between)
    data_seconds, step_seconds = statistics.median(data[_WARM:]), statistics.median(device[_WARM:])
    operations = run.operations()
    peak = bfloat16_peak(run.devices[0].device_kind)
    found = Benchmark(
        images_per_second=config.batch / max(data_seconds, step_seconds),
        data_seconds=data_seconds,
        step_seconds=step_seconds,
        compile_seconds=compiled,
        step_operations=operations,
        peak_share=None
        if operations is None or peak is None
        else operations / step_seconds / (peak * len(run.devices) * jax.process_count()),
    )
    run.checkpoints.close()
    write_json(folder / "benchmark.json", dataclasses.asdict(found) | provenance(len(run.devices)))
    return found


def bfloat16_peak(device_kind: str) -> float | None:
    """Dense bfloat16 operations per second of a device, by JAX's name of it; None if not known, as for CPUs."""
    known = [peak for name, peak in _PEAKS.items() if name in device_kind]
    return known[0] if known else None

"""Checkpoints on a disk that refuses, and benchmarks of a training step."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.train import StepTime, bfloat16_peak
from handtailor_jax.errors import InputError
from handtailor_jax.training.config import OptimizerConfig
from handtailor_jax.training.state import Checkpoints, TrainState, create_optimizer


def state(step: int) -> TrainState:
    numbers = np.random.default_rng(step).normal(size=150_000).astype(np.float32)
    params, statistics = {"kernel": jnp.asarray(numbers)}, {"mean": jnp.asarray(numbers[:10])}
    optimizer = create_optimizer(OptimizerConfig(), 10).init(params)
    full = TrainState(jnp.asarray(step, jnp.int32), params, {}, statistics, optimizer, params, statistics)
    return jax.tree.map(np.asarray, full)


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, capfd):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), best=True)
    checkpoints.finish()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What a full disk does to a write, without filling one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        checkpoints.save(state(2))
        with pytest.raises(InputError, match=r"a checkpoint cannot be written \(File too large\); earlier ones are"):
            checkpoints.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = Checkpoints(tmp_path)
    assert again.latest() == 1
    for restored in (again.restore(state(0)), again.restore(state(0), best=True)):
        assert int(restored.step) == 1
        np.testing.assert_array_equal(restored.params["kernel"], state(1).params["kernel"])
    # Threads of the failed save may still be busy in the folder of step 2; another process would not meet them.
    again.save(state(3))
    again.finish()
    assert again.latest() == 3
    again.close()
    assert "Traceback" not in capfd.readouterr().err


def test_share_of_the_peak_is_of_the_right_device():
    assert bfloat16_peak("NVIDIA H100 80GB HBM3") == bfloat16_peak("NVIDIA H200") == 989e12
    assert bfloat16_peak("NVIDIA H100 PCIe") == 756e12
    assert bfloat16_peak("NVIDIA L40S") == 362e12
    assert bfloat16_peak("cpu") is None
    assert str(StepTime(64.0, 0.001, 0.5, 20.0, 1e12, 0.25)) == (
        "64.0 images/s; a step takes 500 ms on the devices and 1 ms of host data beside it; compiled in 20 s; "
        "2.000 Tflop/s, 25.0 % of the bfloat16 peak"
    )

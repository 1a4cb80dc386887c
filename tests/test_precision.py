"""Public functions with `JAX_ENABLE_X64=1`; the types of the hand model and of the arguments may differ."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handtailor_jax as ht

ROOT = Path(__file__).resolve().parents[1]


def test_arguments_take_the_hands_type(hand, x64):
    """A float32 hand with float64 arguments; before, the solver stopped with an error of types."""
    camera = ht.Camera.perspective(480.0, 480.0, 160.0, 160.0)

    @jax.jit
    def run(keypoints, pose):
        seen = ht.Observation(keypoints, jnp.ones(21), camera)
        start = ht.initialize(hand, pose, jnp.zeros(10), seen, root_depth=jnp.asarray(0.5))
        return ht.tailor(hand, start, seen), ht.camera_mesh(hand, start)

    keypoints = (
        160.0
        + 500.0
        * np.asarray(hand.shape(jnp.zeros(10, jnp.float32)).pose(jnp.zeros((16, 3), jnp.float32)).keypoints)[:, :2]
    )
    fitted, mesh = run(keypoints.astype(np.float64), np.zeros((16, 3)))
    for leaf in jax.tree.leaves((fitted, mesh.vertices)):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()


@pytest.mark.slow
def test_all_public_calls_in_both_precisions(quick_process):
    """The hand model in float32 and in float64, arguments in the other type; networks keep their own."""
    result = subprocess.run(
        [sys.executable, "tests/precisions.py"],
        cwd=ROOT,
        env=quick_process | {"JAX_ENABLE_X64": "1", "HANDTAILOR_TRACED_PROGRAMS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(result.stdout.splitlines()) == 2 * 4 + 1, result.stdout

"""Public functions with `JAX_ENABLE_X64=1`, and matrix products in full precision."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handtailor_jax as ht
from benchmarks.simulation import tailor_problems

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


def check_products(function, *arguments):
    """Check that every matrix product of a program is exact; by default a GPU rounds the factors to ten bits."""
    text = jax.jit(function).lower(*arguments).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) > 20
    assert not [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]


@pytest.mark.parametrize("preset", [pytest.param("landmarks", marks=pytest.mark.slow), "paper"])
def test_products_are_exact_after_the_network(hand, preset):
    """Rounded, meshes were off by up to 15 mm on a GPU, and gradients by up to 75 mm per pixel."""
    config = getattr(ht.TailorConfig, preset)()
    problem = jax.tree.map(lambda leaf: leaf[0], tailor_problems(hand, 1, seed=0))

    def whole(points, problem):
        seen = dataclasses.replace(problem.observation, keypoints_2d=points)
        fitted = ht.tailor(hand, problem.start(hand, config), seen, config)
        return jnp.sum(ht.camera_mesh(hand, fitted).vertices) + jnp.sum(ht.camera_keypoints(hand, fitted))

    check_products(jax.grad(whole), problem.observation.keypoints_2d, problem)


def test_placing_and_describing_is_exact(hand):
    """From the estimates of a network to hands in the image."""
    estimate = ht.HandEstimate(
        keypoints_2d=jnp.zeros((2, 21, 2)),
        confidence=jnp.ones((2, 21)),
        joints=jnp.ones((2, 21, 3)),
        pose=jnp.zeros((2, 16, 3)),
        betas=jnp.zeros((2, 10)),
        left=jnp.asarray([True, False]),
        root_depth=None,
        bone=None,
        presence=None,
        right=None,
        convention="mediapipe",
    )
    cameras = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), ht.Camera.weak_perspective(1.0))
    to_crop = jnp.tile(jnp.eye(2, 3), (2, 1, 1))
    run = functools.partial(ht.recover, hand, size=224, config=ht.TailorConfig.landmarks())
    check_products(run, estimate, cameras, to_crop)


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

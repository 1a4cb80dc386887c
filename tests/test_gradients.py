"""Derivatives of the tailor: closed forms against automatic ones, gradients through the solver against differences.

In float64, where a central difference is good to about ten digits.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.geometry.cameras import project
from handtailor_jax.tailor import TailorConfig
from handtailor_jax.tailor.placement import camera_keypoints
from handtailor_jax.tailor.solve import Adam, LevenbergMarquardt
from handtailor_jax.tailor.tailor import pose_problem, tailor
from handtailor_jax.types import Camera, Observation

DEFAULT = TailorConfig.default()


@pytest.fixture(scope="module")
def singles(simulated):
    """One problem of each kind of camera, float32 NumPy arrays."""
    return {
        camera: jax.tree.map(lambda leaf: np.asarray(leaf[0]), simulated(1, 4, "heavy_tailed", camera))
        for camera in ("perspective", "weak_perspective")
    }


def double(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


@pytest.mark.parametrize(
    ("camera", "with_depth"),
    [
        ("perspective", False),
        ("weak_perspective", True),
        ("perspective", True),
        ("weak_perspective", False),
    ],
)
@pytest.mark.slow
def test_normal_equations(hand64, singles, camera, with_depth, rng):
    """The gradient is exact. The Jacobian neglects that fingertips are not exactly rigid with their last bones."""
    one = double(singles[camera])
    depth = jnp.asarray(rng.normal(size=21) * 10.0) if with_depth else None
    observation = dataclasses.replace(one.observation, relative_depth=depth)
    config = TailorConfig.keypoints_only() if with_depth else DEFAULT
    problem = pose_problem(hand64, one.start(hand64, config), observation, config)
    x = problem.initial + jnp.asarray(rng.normal(size=61)) * 0.1

    (value, gradient, curvature, jacobian), (true_value, true_gradient, true_jacobian) = both_ways(problem, x)
    np.testing.assert_allclose(value, true_value, rtol=1e-12)
    np.testing.assert_allclose(gradient, true_gradient, rtol=0, atol=1e-9 * np.abs(true_gradient).max())
    rows = jacobian.reshape(21, -1, 61)[:, :2]
    np.testing.assert_allclose(rows, true_jacobian, rtol=0, atol=1e-4 * np.abs(true_jacobian).max())
    np.testing.assert_allclose(curvature, curvature.T, rtol=0, atol=1e-9 * np.abs(curvature).max())
    assert np.linalg.eigvalsh(np.asarray(curvature)).min() > -1e-9 * np.abs(curvature).max()


@jax.jit
def both_ways(problem, x):
    """Return derivatives in closed form and by automatic differentiation."""

    def residuals(x):
        keypoints = camera_keypoints(problem.hand, problem.parameters(x))
        noise = problem.config.keypoint_std * problem.size
        return (project(problem.observation.camera, keypoints) - problem.observation.keypoints_2d) / noise

    value, state = problem._energy(x)
    return (
        (*problem.normal_equations(x), problem._jacobian(x, state)),
        (value, jax.grad(problem.energy)(x), jax.jacfwd(residuals)(x)),
    )


def inputs_of(one, hand):
    """Return the differentiable inputs by name."""
    return {
        "keypoints": one.observation.keypoints_2d,
        "confidence": one.observation.confidence,
        "pose": one.pose,
        "betas": one.betas,
        "root_depth": one.root_depth,
        "bone": one.bone,
        "linear": one.observation.camera.linear,
        "center": one.observation.camera.center,
        "hand": hand,
    }


def loss_of(config):
    """Return a function of the inputs, the problem and weights that computes a scalar of the fitted hand."""

    def loss(inputs, one, weights):
        camera = Camera(inputs["linear"], inputs["center"], one.observation.camera.perspectivity)
        problem = dataclasses.replace(
            one,
            observation=Observation(inputs["keypoints"], inputs["confidence"], camera),
            pose=inputs["pose"],
            betas=inputs["betas"],
            root_depth=inputs["root_depth"],
            bone=inputs["bone"],
        )
        hand = inputs["hand"]
        fitted = tailor(hand, problem.start(hand, config), problem.observation, config)
        keypoints = camera_keypoints(hand, fitted)
        return jnp.sum(weights * keypoints) / fitted.scale + jnp.sum(fitted.betas**2)

    return loss


def check_against_differences(loss, inputs, one, rng, rtol, names=None, step=1e-6, atol=1e-6):
    """Compare directional derivatives of `loss` for each input; return the gradient and its arguments."""
    # One program for loss and gradient, and, as nothing is baked in, for both kinds of camera.
    both, weights = jax.jit(jax.value_and_grad(loss, allow_int=True)), jnp.asarray(rng.normal(size=(21, 3)))
    gradient = both(inputs, one, weights)[1]
    for name in names or inputs:
        leaves, treedef = jax.tree.flatten(inputs[name])
        is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
        # Relative steps, because a hand model's arrays differ in scale.
        direction = [
            jnp.asarray(rng.normal(size=leaf.shape)) * (jnp.max(jnp.abs(leaf)) + 1e-3) if real else None
            for leaf, real in zip(leaves, is_float, strict=True)
        ]

        def moved(step, name=name, leaves=leaves, direction=direction, treedef=treedef):
            new = [leaf if d is None else leaf + step * d for leaf, d in zip(leaves, direction, strict=True)]
            return {**inputs, name: jax.tree.unflatten(treedef, new)}

        difference = (both(moved(step), one, weights)[0] - both(moved(-step), one, weights)[0]) / (2.0 * step)
        entries = zip(jax.tree.leaves(gradient[name]), direction, strict=True)
        derivative = sum(jnp.sum(g * d) for g, d in entries if d is not None)
        assert jnp.isfinite(derivative), name
        np.testing.assert_allclose(derivative, difference, rtol=rtol, atol=atol, err_msg=name)
    return gradient, (inputs, one, weights)


@pytest.mark.parametrize(
    ("camera", "iterations"),
    [
        ("perspective", 2),
        ("weak_perspective", 2),
    ],
)
@pytest.mark.slow  # takes more than a gigabyte to compile
def test_gradients_through_the_default(hand64, singles, camera, iterations, rng):
    one = double(singles[camera])
    assert DEFAULT.solver.iterations == 2
    config = dataclasses.replace(DEFAULT, solver=dataclasses.replace(DEFAULT.solver, iterations=iterations))
    gradient, arguments = check_against_differences(loss_of(config), inputs_of(one, hand64), one, rng, 1e-5)
    assert jnp.any(gradient["keypoints"] != 0.0)
    if camera == "weak_perspective":  # the slow one
        config = dataclasses.replace(DEFAULT, gradient="checkpointed")
        again = jax.jit(jax.grad(loss_of(config), allow_int=True))(*arguments)
        for name in ("keypoints", "pose", "betas", "linear"):
            np.testing.assert_allclose(again[name], gradient[name], rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "official"])
def test_gradients_through_adam(hand64, singles, name, rng):
    """The bone never has a gradient in the paper's energy, so the derivative of Adam's root could be 0 / 0."""
    one = double(singles["perspective"])
    preset = getattr(TailorConfig, name)()
    config = dataclasses.replace(preset, solver=dataclasses.replace(preset.solver, iterations=4))
    names = ["keypoints", "pose", "betas", "hand"]
    check_against_differences(loss_of(config), inputs_of(one, hand64), one, rng, 1e-4, names)


@pytest.mark.slow
def test_implicit_gradient_at_convergence(hand64, singles, rng):
    one = double(singles["perspective"])
    config = dataclasses.replace(
        DEFAULT,
        energy=dataclasses.replace(DEFAULT.energy, limit_std=math.inf),  # smooth
        solver=LevenbergMarquardt(iterations=40, damping=1e-3),
        gradient="implicit",
    )
    # The energy is flat at its minimum: in float64 the minimiser is known to about 1e-8, so steps must be larger.
    check_against_differences(loss_of(config), inputs_of(one, hand64), one, rng, 1e-3, step=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gradients_are_finite_where_they_could_fail(hand, singles):
    """float32; flat pose, a fingertip outside its limits, coincident keypoints, no confidence at all."""
    one = jax.tree.map(jnp.asarray, singles["perspective"])
    flat = dataclasses.replace(one, pose=jnp.zeros((16, 3)), betas=jnp.zeros(10))
    observation = one.observation
    same = dataclasses.replace(observation, keypoints_2d=jnp.broadcast_to(observation.keypoints_2d[:1], (21, 2)))
    blind = dataclasses.replace(observation, confidence=jnp.zeros(21))

    @jax.jit
    def gradient(problem):
        def loss(problem):
            fitted = tailor(hand, problem.start(hand, DEFAULT), problem.observation, DEFAULT)
            return jnp.sum(camera_keypoints(hand, fitted) ** 2)

        return jax.value_and_grad(loss)(problem)

    for problem in (one, flat, *(dataclasses.replace(one, observation=o) for o in (same, blind))):
        for leaf in jax.tree.leaves(gradient(problem)):
            assert jnp.all(jnp.isfinite(leaf))


def test_unknown_gradient_mode(hand, singles):
    one = jax.tree.map(jnp.asarray, singles["perspective"])
    assert Adam(0.1) != LevenbergMarquardt()
    with pytest.raises(Exception, match="gradient"):
        tailor(hand, one.truth, one.observation, dataclasses.replace(DEFAULT, gradient="backwards"))

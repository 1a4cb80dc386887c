"""The tailor: closed forms, energies, solvers, presets, batches, and the default preset against the paper's."""

import dataclasses
import math
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.simulation import tailor_problems
from benchmarks.tailor import tailor_errors
from handtailor_jax.geometry.cameras import project, rotate_frame
from handtailor_jax.geometry.lifting import reference_bone_length
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.skeleton import ROOT
from handtailor_jax.tailor import PRESETS, TailorConfig, initialize, tailor_batch
from handtailor_jax.tailor import paper as terms
from handtailor_jax.tailor.calibrated import limit_excess
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.placement import camera_keypoints, closed_form_scale, closed_form_scale_with_depths
from handtailor_jax.tailor.solve import Adam, LevenbergMarquardt
from handtailor_jax.tailor.tailor import pose_problem, tailor
from handtailor_jax.types import Camera, Observation, pytree

DEFAULT = TailorConfig.default()


def pick(problems, i):
    return jax.tree.map(lambda leaf: leaf[i], problems)


@pytest.fixture(scope="module")
def seen(hand):
    """Twelve problems of each kind of camera; those with intrinsics have heavy-tailed noise."""
    noises = {"perspective": "heavy_tailed", "weak_perspective": "gaussian"}
    # As many as the other tests ask for, so that the generator is compiled once.
    sets = {camera: tailor_problems(hand, 300, 11, noise, camera) for camera, noise in noises.items()}
    return {camera: jax.tree.map(lambda leaf: leaf[:12], problems) for camera, problems in sets.items()}


# Compiled once for all tests: a configuration is part of a program, everything else is an argument.
start_of = jax.jit(lambda hand, one, config: one.start(hand, config), static_argnames="config")
energy_of = jax.jit(lambda problem, step: problem.energy(problem.initial + step))
normal_equations = jax.jit(lambda problem: problem.normal_equations(problem.initial))
keypoints_of = jax.jit(camera_keypoints)
fit = jax.jit(tailor, static_argnames="config")


# Problems


def test_problems_depend_on_the_seed_alone(hand, seen):
    again = tailor_problems(hand, 300, 11, "heavy_tailed")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:12], b), again, seen["perspective"])
    other = tailor_problems(hand, 300, 12, "heavy_tailed")
    assert not np.allclose(other.truth.pose, again.truth.pose)


@pytest.mark.parametrize("camera", ["perspective", "weak_perspective"])
def test_problems_have_the_documented_noise(hand, camera):
    problems = tailor_problems(hand, 300, 3, camera=camera, keypoint_noise=0.01)
    truth, observation = problems.truth, problems.observation
    coordinates = jax.vmap(hand.anatomy.coordinates)(truth.pose[:, 1:])
    assert jnp.max(jnp.abs(jax.vmap(lambda c: limit_excess(hand.anatomy, c))(coordinates))) < 1e-5
    pixels = project(observation.camera, problems.keypoints)
    size = jnp.max(jnp.max(pixels, axis=1) - jnp.min(pixels, axis=1), axis=-1)
    error = (observation.keypoints_2d - pixels) / size[:, None, None]
    assert 0.0095 < jnp.std(error) < 0.0105
    assert jnp.all((pixels > -30.0) & (pixels < 286.0))
    turn = jnp.einsum(
        "nab,ncb->nac", matrix_from_axis_angle(problems.pose[:, 0]), matrix_from_axis_angle(truth.pose[:, 0])
    )
    assert 0.13 < jnp.std(axis_angle_from_matrix(turn)) < 0.17
    # Seen from all sides: the palm's normal and the fingers' direction point everywhere alike.
    axes = matrix_from_axis_angle(truth.pose[:, 0])
    assert jnp.max(jnp.abs(jnp.mean(axes, axis=0))) < 0.15
    if camera == "perspective":
        assert jnp.all((truth.translation[:, 2] > 0.2) & (truth.translation[:, 2] < 1.1))
        assert jnp.all(truth.scale == 1.0)
        linear = observation.camera.linear
        assert jnp.max(jnp.abs(linear[:, 0, 0] / linear[:, 1, 1] - 1.0)) > 0.05
    else:
        assert jnp.all(problems.root_depth == 0.0)


def test_heavy_tails_are_heavy_and_confidence_informs(hand):
    problems = tailor_problems(hand, 300, 3, "heavy_tailed")
    pixels = project(problems.observation.camera, problems.keypoints)
    error = np.linalg.norm(problems.observation.keypoints_2d - pixels, axis=-1)
    assert np.quantile(error, 0.99) > 6.0 * np.median(error)
    tips = error[:, [4, 8, 12, 16, 20]]
    assert np.median(tips) > 1.3 * np.median(error[:, [5, 9, 13, 17]])
    confidence = np.asarray(problems.observation.confidence)
    assert confidence[error > np.quantile(error, 0.97)].mean() < 0.6 * confidence.mean()


# Closed forms


def test_scale_is_the_least_squares_solution(hand, seen, rng):
    """Eq. 12 and 17: no other scale reprojects better when all joints are taken at the root's depth."""
    for camera in ("perspective", "weak_perspective"):
        one = pick(seen[camera], 0)
        keypoints = jnp.asarray(rng.normal(size=(21, 3)), jnp.float32) * 0.05
        keypoints = keypoints.at[ROOT].set(0.0)
        root = one.truth.translation
        scale = closed_form_scale(one.observation, keypoints, root)
        depth = root[2] if camera == "perspective" else 1.0
        model = np.asarray(keypoints[:, :2] @ one.observation.camera.linear.T / depth, np.float64)
        target = np.asarray(one.observation.keypoints_2d - one.observation.keypoints_2d[ROOT][None], np.float64)
        weight = np.sqrt(np.asarray(one.observation.confidence, np.float64))[:, None]
        best = np.linalg.lstsq((weight * model).reshape(-1, 1), (weight * target).reshape(-1), rcond=None)[0][0]
        np.testing.assert_allclose(scale, best, rtol=1e-4)


def test_scale_is_exact_for_a_hand_at_one_depth(hand):
    camera = Camera.perspective(500.0, 460.0, 120.0, 140.0)
    points = jnp.asarray(np.random.default_rng(1).normal(size=(21, 3)) * [0.1, 0.1, 0.0], jnp.float32)
    points = points - points[ROOT][None]
    root = jnp.asarray([0.05, -0.02, 0.6], jnp.float32)
    observation = Observation(project(camera, 1.3 * points + root[None]), jnp.ones(21), camera)
    np.testing.assert_allclose(closed_form_scale(observation, points, root), 1.3, rtol=1e-5)
    np.testing.assert_allclose(
        closed_form_scale_with_depths(observation, points, root, jnp.float32(1.0)), 1.3, rtol=1e-4
    )


def test_scale_of_a_degenerate_hand_is_one(hand):
    camera = Camera.weak_perspective()
    observation = Observation(jnp.ones((21, 2)), jnp.ones(21), camera)

    def scale(keypoints):
        return closed_form_scale(observation, keypoints, jnp.zeros(3))

    value, gradient = jax.value_and_grad(scale)(jnp.zeros((21, 3)))
    assert value == 1.0
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("scale", ["closed_form", "released", "proposed"])
@pytest.mark.parametrize("camera", ["perspective", "weak_perspective"])
def test_start_puts_the_root_on_its_keypoint(hand, seen, scale, camera):
    one = pick(seen[camera], 1)
    start = jax.jit(initialize, static_argnames="scale")(
        hand, one.pose, one.betas, one.observation, root_depth=one.root_depth, bone=one.bone, scale=scale
    )
    keypoints = keypoints_of(hand, start)
    pixel = project(one.observation.camera, keypoints)[ROOT]
    np.testing.assert_allclose(pixel, one.observation.keypoints_2d[ROOT], atol=1e-3)
    if camera == "perspective" and scale == "proposed":
        np.testing.assert_allclose(reference_bone_length(keypoints), one.bone, rtol=1e-5)
    assert 0.5 < start.scale / one.truth.scale < 2.0


# Energies


@pytest.mark.parametrize("name", ["default", "official", "paper", "keypoints_only"])
@pytest.mark.parametrize("camera", ["perspective", "weak_perspective"])
def test_energy_is_invariant_to_image_rotation(hand, seen, name, camera):
    """Rotating image, camera and start about the optical axis together does not change the energy."""
    config = getattr(TailorConfig, name)()
    one = pick(seen[camera], 2)
    angle = jnp.float32(0.7)
    turn = jnp.asarray([[math.cos(0.7), -math.sin(0.7), 0.0], [math.sin(0.7), math.cos(0.7), 0.0], [0.0, 0.0, 1.0]])
    turned_camera = rotate_frame(one.observation.camera, angle)
    turned = dataclasses.replace(one.observation, camera=turned_camera)
    start = start_of(hand, one, config)
    rotation = axis_angle_from_matrix(turn @ matrix_from_axis_angle(start.pose[0]))
    moved = dataclasses.replace(start, pose=start.pose.at[0].set(rotation), translation=turn @ start.translation)
    before = pose_problem(hand, start, one.observation, config)
    after = pose_problem(hand, moved, turned, config)
    np.testing.assert_allclose(energy_of(after, 0.0), energy_of(before, 0.0), rtol=1e-3)


def test_calibrated_energy_is_invariant_to_resolution(hand, seen):
    one = pick(seen["perspective"], 3)
    camera = one.observation.camera
    double = dataclasses.replace(camera, linear=2.0 * camera.linear, center=2.0 * camera.center)
    larger = Observation(2.0 * one.observation.keypoints_2d, one.observation.confidence, double)
    start = start_of(hand, one, DEFAULT)
    small, large = (pose_problem(hand, start, seen, DEFAULT) for seen in (one.observation, larger))
    np.testing.assert_allclose(energy_of(large, 0.0), energy_of(small, 0.0), rtol=1e-4)


def test_the_extent_prior_needs_no_other_prior(hand, seen):
    one = pick(seen["weak_perspective"], 1)
    zoom = []
    for std in (math.inf, 0.1):
        energy = dataclasses.replace(DEFAULT.energy, prior=0.0, betas_prior=0.0, extent_std=std)
        problem = pose_problem(hand, one.truth, one.observation, dataclasses.replace(DEFAULT, energy=energy))
        zoom.append(problem._precision()[0][-1, -1])
    assert zoom[1] - zoom[0] == pytest.approx(0.1**-2)


def test_energy_is_zero_at_a_perfect_start(hand, seen):
    one = pick(seen["perspective"], 4)
    pixels = project(one.observation.camera, one.keypoints)
    observation = dataclasses.replace(one.observation, keypoints_2d=pixels)
    problem = pose_problem(hand, one.truth, observation, DEFAULT)
    assert energy_of(problem, 0.0) < 1e-4
    again = jax.jit(lambda problem: problem.parameters(problem.initial))(problem)
    for name in ("betas", "scale", "translation"):
        np.testing.assert_allclose(getattr(again, name), getattr(one.truth, name), atol=1e-5)
    np.testing.assert_allclose(again.pose, one.truth.pose, atol=1e-4)


@pytest.mark.parametrize("name", ["default", "official"])
def test_ignored_keypoints_have_no_influence(hand, seen, name):
    config = getattr(TailorConfig, name)()
    one = pick(seen["perspective"], 5)
    confidence = one.observation.confidence.at[8].set(0.0)
    energies = []
    for keypoint in ([0.0, 0.0], [900.0, -50.0]):
        keypoints = one.observation.keypoints_2d.at[8].set(jnp.asarray(keypoint))
        observation = Observation(keypoints, confidence, one.observation.camera)
        problem = pose_problem(hand, one.truth, observation, config)
        energies.append(energy_of(problem, 0.1))
    np.testing.assert_allclose(energies[1], energies[0], rtol=1e-5)


def test_noise_grows_as_confidence_falls(hand, seen):
    """In the network's preset a confidence c has the weight that c^4 has with power 1, in energy and derivatives."""
    network = TailorConfig.network()
    linear = dataclasses.replace(network, energy=dataclasses.replace(network.energy, confidence_power=1))
    one = pick(seen["perspective"], 5)
    confidence = jnp.linspace(0.0, 1.0, 21)
    found = []
    for config, weight in ((network, confidence), (linear, confidence**4)):
        observation = dataclasses.replace(one.observation, confidence=weight)
        problem = pose_problem(hand, start_of(hand, one, config), observation, config)
        found.append(normal_equations(problem))
    for powered, weighted in zip(*found, strict=True):
        np.testing.assert_allclose(powered, weighted, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_low_confidences_do_not_shrink_the_hand(hand, rng):
    """Three keypoints of higher confidence are far off; without pixel_std and zoom_std the hand shrinks."""
    network = TailorConfig.network()
    confidence = jnp.full(21, 0.05).at[jnp.asarray([2, 3, 4])].set(jnp.asarray([0.4, 0.4, 0.8]))
    problems = tailor_problems(hand, 300, 11, "gaussian", "weak_perspective")
    moved = problems.observation.keypoints_2d + jnp.asarray(40.0 * rng.normal(size=(300, 21, 2)), jnp.float32)

    def zoom(problem, keypoints):
        start = problem.start(hand, network)
        observation = dataclasses.replace(problem.observation, keypoints_2d=keypoints, confidence=confidence)
        return tailor(hand, start, observation, network).scale / start.scale

    found = jax.jit(jax.vmap(zoom))(problems, moved)
    assert found.min() > 0.7
    assert found.max() < 1.4


def test_zero_confidence_leaves_the_start(hand, seen):
    one = pick(seen["perspective"], 6)
    observation = dataclasses.replace(one.observation, confidence=jnp.zeros(21))
    start = dataclasses.replace(one.truth, pose=one.truth.pose.at[0].multiply(0.5))
    fitted = fit(hand, start, observation)
    np.testing.assert_allclose(fitted.pose, start.pose, atol=1e-4)
    np.testing.assert_allclose(fitted.betas, start.betas, atol=1e-4)


def test_twist_of_natural_and_broken_fingers():
    bones = jnp.asarray([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.28, 0.96, 0.0], [0.0, 1.0, 0.0]])
    finger = jnp.cumsum(bones, axis=0)
    keypoints = jnp.zeros((21, 3)).at[1:].set(jnp.tile(finger, (5, 1)))
    non_planarity, bend = terms.twist(keypoints)
    np.testing.assert_allclose(non_planarity, 0.0, atol=1e-6)
    assert jnp.all(bend > 0.0)
    backward = keypoints.at[8].set(finger[2] + jnp.asarray([0.8, 0.2, 0.0]))  # the tip bends the other way
    assert terms.twist(backward)[1][1] < 0.0
    twisted = keypoints.at[8, 2].add(0.5)
    assert terms.twist(twisted)[0][1] > 0.1


# Solvers


@pytree
class Quadratic:
    """Minimisation of 1/2 x'Ax - b'x; `wrong` scales the gradient that normal_equations returns."""

    matrix: jax.Array
    vector: jax.Array
    wrong: jax.Array

    @property
    def initial(self):
        return jnp.zeros_like(self.vector)

    def energy(self, x):
        return 0.5 * x @ self.matrix @ x - self.vector @ x

    def parameters(self, x):
        raise NotImplementedError

    def normal_equations(self, x):
        return self.energy(x), self.wrong * (self.matrix @ x - self.vector), self.matrix


def quadratic(rng, wrong=1.0):
    a = rng.normal(size=(6, 6))
    return Quadratic(
        jnp.asarray(a @ a.T + np.eye(6), jnp.float32), jnp.asarray(rng.normal(size=6), jnp.float32), jnp.float32(wrong)
    )


def test_least_squares_solver_solves_a_quadratic(rng):
    problem = quadratic(rng)
    x, _ = LevenbergMarquardt(iterations=8, damping=1e-3).minimise(problem)
    np.testing.assert_allclose(x, jnp.linalg.solve(problem.matrix, problem.vector), atol=1e-4)


def test_steps_that_raise_the_energy_are_dropped(rng):
    problem = quadratic(rng, wrong=-1.0)  # every step goes uphill
    x, kept = LevenbergMarquardt(iterations=4).minimise(problem, keep=lambda x: x)
    np.testing.assert_array_equal(x, 0.0)
    np.testing.assert_array_equal(kept, 0.0)
    problem = quadratic(rng, wrong=3.0)  # too far, until the damping has been raised
    x, kept = LevenbergMarquardt(iterations=12, damping=1e-3).minimise(problem, keep=lambda x: x)
    energies = jax.vmap(problem.energy)(jnp.concatenate([kept, x[None]]))
    assert energies[1] == energies[0]
    assert energies[-1] < energies[0]


def test_nan_is_a_rejected_step(rng):
    problem = quadratic(rng)
    for broken in (
        dataclasses.replace(problem, wrong=jnp.float32(jnp.nan)),
        dataclasses.replace(problem, matrix=problem.matrix * jnp.nan),
        dataclasses.replace(problem, matrix=-problem.matrix),  # no Cholesky factor
    ):
        x, _ = LevenbergMarquardt(iterations=3).minimise(broken)
        np.testing.assert_array_equal(x, 0.0)


@pytest.mark.parametrize("camera", ["perspective", "weak_perspective"])
def test_least_squares_solver_never_raises_the_energy(hand, seen, camera):
    solver = LevenbergMarquardt(iterations=6, damping=1e-4)
    config = dataclasses.replace(DEFAULT, solver=solver)

    @jax.jit
    @jax.vmap
    def energies(one):
        problem = pose_problem(hand, one.start(hand, config), one.observation, config)
        x, kept = solver.minimise(problem, keep=lambda x: x)
        return jax.vmap(problem.energy)(jnp.concatenate([problem.initial[None], kept, x[None]]))

    values = energies(seen[camera])
    assert jnp.all(jnp.diff(values, axis=1) <= 1e-5 * values[:, :-1])
    assert jnp.all(values[:, -1] < 0.5 * values[:, 0])


@pytest.mark.parametrize("final", [None, 0.002])
def test_adam_is_adam(rng, final):
    problem = quadratic(rng)
    ours = Adam(0.05, iterations=15, final_learning_rate=final)
    x, kept = ours.minimise(problem, keep=lambda x: x)
    rate = 0.05 if final is None else optax.cosine_decay_schedule(0.05, 15, alpha=final / 0.05)
    theirs = optax.adam(rate)
    y, state = problem.initial, theirs.init(problem.initial)
    for i in range(15):
        np.testing.assert_allclose(kept[i], y, atol=1e-6)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts and floats
            updates, state = theirs.update(jax.grad(problem.energy)(y), state)
            y = optax.apply_updates(y, updates)
    np.testing.assert_allclose(x, y, atol=1e-6)


def test_adam_with_a_late_bias_correction(rng):
    """The released program's step index starts at 1, so the bias correction assumes one earlier step."""
    problem = quadratic(rng)
    gradient = jax.grad(problem.energy)(problem.initial)
    x, _ = Adam(0.03, iterations=1, b1=0.5, b2=0.5, first_step=1).minimise(problem)
    m, v = 0.5 * gradient / (1.0 - 0.25), 0.5 * gradient**2 / (1.0 - 0.25)
    np.testing.assert_allclose(x, -0.03 * m / (jnp.sqrt(v) + 1e-8), rtol=1e-5)


# The whole


def test_presets_have_the_constants_they_are_named_for():
    paper = TailorConfig.paper()
    assert paper.energy == PaperEnergy(1.0, 100.0, 100.0, 0.1, 0.1, released=False)
    assert paper.solver == Adam(0.003, 20, 0.9, 0.999)
    official = TailorConfig.official()
    assert official.energy == PaperEnergy(1 / 42, 2e5, 1e7, 0.01 / 48, 0.01 / 10, released=True)
    assert official.solver == Adam(0.03, 20, 0.5, 0.5, first_step=1)
    assert official.scale == "released"
    assert DEFAULT.solver.iterations == 2
    assert DEFAULT.energy.prior == 0.0
    network = TailorConfig.network()
    assert network.solver == DEFAULT.solver
    assert network.energy.keypoint_std > DEFAULT.energy.keypoint_std
    assert (network.energy.confidence_power, DEFAULT.energy.confidence_power) == (4, 1)
    assert set(PRESETS) == {"default", "network", "landmarks", "paper", "official"}
    assert hash(DEFAULT) == hash(PRESETS["default"]())  # static arguments of jit


@pytest.mark.parametrize("camera", ["perspective", "weak_perspective"])
@pytest.mark.slow
def test_batch_equals_single_fits(hand, seen, camera):
    problems = seen[camera]
    starts = problems.starts(hand, DEFAULT)
    batched = tailor_batch(hand, starts, problems.observation)
    one = pick(problems, 7)
    single = fit(hand, pick(starts, 7), one.observation)
    for name in ("pose", "betas", "scale", "translation"):
        # pixels and pixels per metre without intrinsics
        tolerance = {"rtol": 1e-4, "atol": 2e-3}
        np.testing.assert_allclose(getattr(single, name), getattr(batched, name)[7], **tolerance)


def test_a_batch_returns_in_a_process_of_its_own():
    """A batch split over threads deadlocked on two cores with jax 0.10. A new process has no compile cache."""
    program = textwrap.dedent("""
        import jax, jax.numpy as jnp
        import handtailor_jax as ht

        hands = 128
        repeat = lambda leaf: jnp.broadcast_to(leaf, (hands, *jnp.shape(leaf)))
        keypoints = jnp.linspace(100.0, 150.0, 42).reshape(21, 2)
        camera = ht.Camera.from_matrix(jnp.asarray([[500.0, 0.0, 128.0], [0.0, 500.0, 128.0], [0.0, 0.0, 1.0]]))
        start = ht.HandParameters(jnp.zeros((16, 3)), jnp.zeros(10), jnp.ones(()), jnp.asarray([0.0, 0.0, 0.5]))
        seen = ht.Observation(keypoints, jnp.ones(21), camera, None)
        fitted = ht.tailor_batch(
            ht.embedded_hand(), *jax.tree.map(repeat, (start, seen)), ht.TailorConfig.default()
        )
        assert jax.block_until_ready(fitted).pose.shape == (hands, 16, 3)
    """)
    environment = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240, env=environment)


@pytest.mark.slow
def test_eager_equals_compiled(hand, seen):
    one = pick(seen["perspective"], 7)
    start = one.start(hand, DEFAULT)
    eager, compiled = (call(hand, start, one.observation) for call in (tailor, jax.jit(lambda *a: tailor(*a))))
    np.testing.assert_allclose(eager.pose, compiled.pose, atol=1e-3)
    np.testing.assert_allclose(eager.translation, compiled.translation, atol=1e-4)


@pytest.mark.slow
def test_default_beats_paper_and_official(hand):
    """In 3D error, without and with the true bone length, and in reprojection error."""
    for noise in ("gaussian", "heavy_tailed"):
        problems = tailor_problems(hand, 300, 2, noise)
        ours, *others = (tailor_errors(hand, problems, PRESETS[name]()) for name in ("default", "paper", "official"))
        for other in others:
            for metric in ("error_mm", "error_lit_mm", "reprojection_px"):
                difference = getattr(ours, metric) - getattr(other, metric)
                assert difference.mean() + 3.0 * difference.std() / np.sqrt(300) < 0.0, (noise, metric)


def test_other_conventions_are_not_for_the_papers_energy(hand, seen):
    from handtailor_jax.mano.landmarks import LandmarkConvention

    one = pick(seen["perspective"], 0)
    other = LandmarkConvention(offsets=jnp.zeros((21, 2, 3)), name="other")
    with pytest.raises(ValueError, match="'other' landmarks"):
        tailor(hand, one.truth, one.observation, TailorConfig.paper(), convention=other)

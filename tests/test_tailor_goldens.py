"""The `official` preset against the released program's tailor, step by step (tolerances: tests/golden/README.md)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.tailor import TailorConfig, initialize
from handtailor_jax.tailor import paper as terms
from handtailor_jax.tailor.placement import camera_mesh
from handtailor_jax.tailor.tailor import pose_problem, tailor
from handtailor_jax.types import Camera, HandParameters, Observation
from tests import goldens

CONFIG = TailorConfig.official()

# Compiled once for all problems and both kinds of camera, which are arguments.
start_from = jax.jit(functools.partial(initialize, scale=CONFIG.scale))
value_and_gradient = jax.jit(lambda problem, x: jax.value_and_grad(problem.energy)(x))
minimise = jax.jit(lambda problem: CONFIG.solver.minimise(problem, keep=lambda x: x))
fit = jax.jit(lambda mano, start, seen: tailor(mano, start, seen, CONFIG))
vertices_of = jax.jit(lambda mano, fitted: camera_mesh(mano, fitted).vertices)


@pytest.fixture(scope="module")
def golden():
    return {key: jnp.asarray(array) for key, array in goldens.golden("tailor").items()}


@pytest.fixture(scope="module")
def network():
    return goldens.golden("official_network")


def kept(vertices):
    """Select every 13th vertex, whose positions are in the golden file."""
    return vertices[::13]


def observation(golden, i, mode):
    if mode == "persp":
        fx, fy, cx, cy = golden["camparam"][i, 0, 0]
        return Observation(golden["kp2d_persp"][i, 0], jnp.ones(21), Camera.perspective(fx, fy, cx, cy))
    return Observation(golden["kp2d_wild"][i, 0], jnp.ones(21), Camera.weak_perspective())


def start_of(mano, golden, i, mode) -> tuple[HandParameters, Observation]:
    seen = observation(golden, i, mode)
    start = start_from(
        mano,
        golden["so3_init"][i].reshape(16, 3),
        golden["beta_init"][i],
        seen,
        root_depth=golden["joint_root_init"][i, 0, 2],
        bone=golden["bone_init"][i, 0, 0],
    )
    return start, seen


def flat(golden, prefix, i, step=None):
    """Return so3, beta and bone of a golden as the problem's unknowns; without intrinsics the bone is 0."""
    pick = (lambda a: a[i]) if step is None else (lambda a: a[i, step])
    bone = pick(golden[f"{prefix}bone"]).reshape(1) if f"{prefix}bone" in golden else None
    parts = [pick(golden[f"{prefix}so3"]).reshape(48), pick(golden[f"{prefix}beta"]).reshape(10)]
    return jnp.concatenate([*parts, jnp.zeros(1) if bone is None else bone])


def close(actual, desired, relative):
    """Compare with a tolerance relative to the largest entry."""
    desired = np.asarray(desired)
    np.testing.assert_allclose(
        np.asarray(actual).reshape(desired.shape), desired, rtol=0, atol=relative * np.abs(desired).max()
    )


def test_twist_terms(golden):
    for joints, value in zip(golden["geo_joints"], golden["persp/geo_value"], strict=True):
        plane, bend = terms.twist(joints)
        ours = 1e4 * jnp.mean(plane) - 1e5 * jnp.minimum(jnp.sum(bend), 0.0)
        close(ours, value, 1e-5)


@pytest.mark.parametrize("i", range(4))
def test_perspective_start(mano, golden, i):
    start, _ = start_of(mano, golden, i, "persp")
    problem = pose_problem(mano, start, observation(golden, i, "persp"), CONFIG)
    close(start.translation, golden["persp/joint_root"][i], 1e-5)
    close(problem.initial[-1], golden["persp/bone_reinit"][i], 1e-5)


@pytest.mark.parametrize("i", range(4))
def test_weak_perspective_start(mano, golden, i):
    start, _ = start_of(mano, golden, i, "wild")
    problem = pose_problem(mano, start, observation(golden, i, "wild"), CONFIG)
    close(problem.initial[-1], golden["wild/s"][i], 1e-5)
    close(start.translation[:2], golden["wild/t"][i], 1e-5)


@pytest.mark.parametrize("mode", ["persp", "wild"])
@pytest.mark.parametrize("i", range(4))
def test_energy_and_gradient(mano, golden, i, mode):
    start, seen = start_of(mano, golden, i, mode)
    problem = pose_problem(mano, start, seen, CONFIG)
    for point, prefix in (("init", None), ("probe", f"{mode}/probe_")):
        x = problem.initial if prefix is None else flat(golden, prefix, i)
        value, gradient = value_and_gradient(problem, x)
        close(value, golden[f"{mode}/energy_{point}"][i], 1e-5)
        close(gradient[:48], golden[f"{mode}/grad_{point}_so3"][i], 1e-4)
        close(gradient[48:58], golden[f"{mode}/grad_{point}_beta"][i], 1e-4)
        if mode == "persp":
            close(gradient[58], golden[f"{mode}/grad_{point}_bone"][i], 1e-4)
        else:
            assert gradient[58] == 0.0


@pytest.mark.parametrize("mode", ["persp", "wild"])
@pytest.mark.parametrize("i", range(4))
def test_every_step(mano, golden, i, mode):
    start, seen = start_of(mano, golden, i, mode)
    problem = pose_problem(mano, start, seen, CONFIG)
    x, kept = minimise(problem)
    iterates = jnp.concatenate([kept, x[None]])
    atol = {"persp": 1e-4, "wild": 2e-3}[mode]
    np.testing.assert_allclose(iterates[:, :48], golden[f"{mode}/trace_so3"][i].reshape(21, 48), rtol=0, atol=atol)
    np.testing.assert_allclose(iterates[:, 48:58], golden[f"{mode}/trace_beta"][i].reshape(21, 10), rtol=0, atol=atol)
    if mode == "persp":
        np.testing.assert_allclose(iterates[:, 58], golden["persp/trace_bone"][i].reshape(21), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("mode", "atol"), [("persp", 1e-5), ("wild", 5e-2)])
@pytest.mark.parametrize("i", range(4))
def test_final_mesh(mano, golden, i, mode, atol):
    start, seen = start_of(mano, golden, i, mode)
    vertices = kept(vertices_of(mano, fit(mano, start, seen)))
    np.testing.assert_allclose(vertices, golden[f"{mode}/final_verts"][i], rtol=0, atol=atol)


@pytest.mark.parametrize(("mode", "so3_atol", "vertex_atol"), [("persp", 1e-4, 1e-5), ("wild", 5e-2, 3e-1)])
@pytest.mark.parametrize("i", range(2))
def test_from_network_outputs(mano, golden, network, i, mode, so3_atol, vertex_atol):
    prefix, at = ("persp/", i) if mode == "persp" else (f"wild{i}/", 0)
    names = ("so3", "beta", "joint_root", "bone_vis", "kp2d")
    so3, beta, root, bone, keypoints = (jnp.asarray(network[prefix + name][at]) for name in names)
    camera = Camera.from_matrix(network["intr"][i]) if mode == "persp" else Camera.weak_perspective()
    seen = Observation(keypoints.reshape(21, 2), jnp.ones(21), camera)
    start = start_from(mano, so3.reshape(16, 3), beta, seen, root_depth=root.reshape(3)[2], bone=bone.reshape(()))
    fitted = fit(mano, start, seen)
    np.testing.assert_allclose(
        fitted.pose.reshape(48), golden[f"e2e_{mode}/final_so3"][i].reshape(48), rtol=0, atol=so3_atol
    )
    vertices = kept(vertices_of(mano, fitted))
    np.testing.assert_allclose(vertices, golden[f"e2e_{mode}/final_verts"][i], rtol=0, atol=vertex_atol)

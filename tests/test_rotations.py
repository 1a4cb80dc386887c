"""Rotations: round trips, singularities, derivatives, and the official quaternion conversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.spatial.transform import Rotation

from handtailor_jax.geometry import rotations
from handtailor_jax.geometry.rotations import (
    angle_between,
    axis_angle_from_matrix,
    axis_angle_from_quaternion,
    left_jacobian,
    matrix_from_axis_angle,
    matrix_from_quaternion,
    quaternion_from_matrix,
    skew,
)
from tests.goldens import golden

# Both sides of every switch: zero, the series' limit (squared angle 1e-2), quarter turns, and up to pi.
ANGLES = (0.0, 1e-12, 1e-8, 1e-5, 1e-4, 3e-4, 1e-2, 0.0999, 0.1, 0.1001, 0.5, np.pi / 2, 2.0, 3.0, np.pi - 1e-3)


# Compiled once here; one operation after the other they would be compiled for every shape.
matrix_from_axis_angle = jax.jit(matrix_from_axis_angle)
axis_angle_from_matrix = jax.jit(axis_angle_from_matrix)
axis_angle_from_quaternion = jax.jit(axis_angle_from_quaternion)
left_jacobian = jax.jit(left_jacobian)


def vectors(rng, count=40, angles=ANGLES):
    axes = rng.normal(size=(len(angles), count, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    return (axes * np.asarray(angles)[:, None, None]).reshape(-1, 3)


def expm(matrix):
    """Matrix exponential by scaling and squaring of its Taylor series (numpy, independent of the package)."""
    small, result = matrix / 2.0**10, np.eye(3)
    term = np.eye(3)
    for k in range(1, 12):
        term = term @ small / k
        result = result + term
    for _ in range(10):
        result = result @ result
    return result


def test_rodrigues_is_the_matrix_exponential(x64, rng):
    v = vectors(rng, 5)
    expected = np.stack([expm(np.asarray(m)) for m in skew(jnp.asarray(v))])
    np.testing.assert_allclose(matrix_from_axis_angle(jnp.asarray(v)), expected, atol=1e-12)


def test_skew_is_the_cross_product(x64, rng):
    v, x = rng.normal(size=(2, 7, 3))
    np.testing.assert_allclose(np.einsum("nij,nj->ni", skew(jnp.asarray(v)), x), np.cross(v, x), atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrices_are_rotations(x64, rng, dtype):
    m = np.asarray(matrix_from_axis_angle(jnp.asarray(vectors(rng), dtype)))
    assert m.dtype == dtype
    tolerance = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(m @ m.transpose(0, 2, 1), np.broadcast_to(np.eye(3), m.shape), atol=tolerance)
    np.testing.assert_allclose(np.linalg.det(m), 1.0, atol=tolerance)


def quaternion_from_axis_angle(v):
    """Unit quaternions (w, x, y, z), by SciPy."""
    return jnp.roll(Rotation.from_rotvec(v).as_quat(), 1, axis=-1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 5e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("through", ["matrix", "quaternion"])
def test_logarithm_undoes_the_exponential(x64, rng, dtype, tolerance, through):
    v = vectors(rng)
    if through == "matrix":
        back = axis_angle_from_matrix(matrix_from_axis_angle(jnp.asarray(v, dtype)))
    else:
        back = axis_angle_from_quaternion(quaternion_from_axis_angle(jnp.asarray(v, dtype)))
    np.testing.assert_allclose(back, v, atol=tolerance)


def test_small_angles_keep_their_relative_accuracy(rng):
    v = jnp.asarray(vectors(rng, angles=(1e-12, 1e-8, 1e-5, 1e-3)), jnp.float32)
    np.testing.assert_allclose(axis_angle_from_quaternion(quaternion_from_axis_angle(v)), v, rtol=1e-5)


def test_beyond_pi_the_shorter_way_round_is_returned(x64, rng):
    v = vectors(rng, angles=(np.pi + 0.1, 5.0, 2 * np.pi - 1e-3))
    angle = np.linalg.norm(v, axis=-1, keepdims=True)
    shorter = v / angle * (angle - 2 * np.pi)
    np.testing.assert_allclose(axis_angle_from_matrix(matrix_from_axis_angle(jnp.asarray(v))), shorter, atol=1e-11)
    np.testing.assert_allclose(
        axis_angle_from_quaternion(quaternion_from_axis_angle(jnp.asarray(v))), shorter, atol=1e-11
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-9)])
def test_half_turns_survive_up_to_sign(x64, rng, dtype, tolerance):
    axes = np.concatenate([np.eye(3), [[1, 1, 0], [0, 1, -1], [1, 1, 1]], rng.normal(size=(10, 3))])
    v = axes / np.linalg.norm(axes, axis=-1, keepdims=True) * np.pi
    back = axis_angle_from_matrix(matrix_from_axis_angle(jnp.asarray(v, dtype)))
    np.testing.assert_allclose(np.linalg.norm(back, axis=-1), np.pi, atol=tolerance)
    again = matrix_from_axis_angle(back)
    np.testing.assert_allclose(again, matrix_from_axis_angle(jnp.asarray(v, dtype)), atol=tolerance)


def test_quaternions_and_matrices_agree(x64, rng):
    q = rng.normal(size=(200, 4))
    m = matrix_from_quaternion(jnp.asarray(q))
    unit = q / np.linalg.norm(q, axis=-1, keepdims=True)
    back = np.asarray(quaternion_from_matrix(m))
    np.testing.assert_allclose(back * np.sign(np.sum(back * unit, -1, keepdims=True)), unit, atol=1e-12)
    np.testing.assert_allclose(matrix_from_axis_angle(axis_angle_from_quaternion(jnp.asarray(q))), m, atol=1e-12)
    np.testing.assert_array_equal(
        axis_angle_from_quaternion(jnp.asarray(-q)), axis_angle_from_quaternion(jnp.asarray(q))
    )


def test_a_zero_quaternion_gives_zero_with_finite_gradient():
    value, gradient = jax.value_and_grad(lambda q: jnp.sum(axis_angle_from_quaternion(q)))(jnp.zeros(4))
    assert value == 0.0
    assert np.all(np.isfinite(gradient))


def test_official_quaternion_cases():
    stored = golden("official_network")
    raw, unit, expected = (stored[f"quat_cases/{key}"] for key in ("raw", "normalized", "axis_angle"))
    for quaternions in (raw, unit):
        result = np.asarray(axis_angle_from_quaternion(jnp.asarray(quaternions)))
        # At w = 0, an angle of pi, both signs of the axis are the same rotation.
        half_turn = np.abs(unit[:, 0]) < 1e-7
        np.testing.assert_allclose(result[~half_turn], expected[~half_turn], atol=1e-6)
        np.testing.assert_allclose(
            matrix_from_axis_angle(jnp.asarray(result)), matrix_from_axis_angle(jnp.asarray(expected)), atol=2e-6
        )
    assert len(raw) == 64


FUNCTIONS = {
    "matrix": lambda v: matrix_from_axis_angle(v),
    "left_jacobian": lambda v: left_jacobian(v),
    "round_trip": lambda v: axis_angle_from_matrix(matrix_from_axis_angle(v)),
    "quaternion": lambda v: axis_angle_from_quaternion(jnp.concatenate([jnp.ones_like(v[..., :1]), 0.5 * v], axis=-1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_first_and_second_order_are_finite(name):
    def derivatives(v):
        second = jax.jacfwd(jax.grad(lambda v: jnp.sum(jnp.sin(FUNCTIONS[name](v)))))
        return jax.jacfwd(FUNCTIONS[name])(v), second(v)

    angles = np.asarray([0.0, 1e-20, 1e-6, 0.1, np.pi - 1e-3, np.pi], np.float32)
    first, second = jax.jit(jax.vmap(derivatives))(jnp.asarray(angles[:, None] * np.float32([0.6, 0.0, -0.8])))
    assert np.all(np.isfinite(first))
    assert np.all(np.isfinite(second))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_match_central_differences(x64, rng, name):
    function, h = FUNCTIONS[name], 1e-5

    def both(v):
        steps = h * jnp.eye(3)
        difference = jax.vmap(lambda step: (function(v + step) - function(v - step)) / (2 * h), out_axes=-1)(steps)
        return jax.jacfwd(function)(v), difference

    jacobian, difference = jax.jit(jax.vmap(both))(jnp.asarray(vectors(rng, 3, [a for a in ANGLES if a < 3.0])))
    np.testing.assert_allclose(jacobian, difference, atol=2e-8)


def test_derivatives_at_zero_are_the_exact_ones(x64):
    gradient = jax.jit(jax.jacfwd(matrix_from_axis_angle))(jnp.zeros(3))
    generators = np.stack([np.asarray(skew(jnp.asarray(e))) for e in np.eye(3)], axis=-1)
    np.testing.assert_array_equal(gradient, generators)
    hessian = jax.jit(jax.hessian(matrix_from_axis_angle))(jnp.zeros(3))
    products = np.einsum("ijk,jlm->ilkm", generators, generators)  # [i, l, k, m] = (G_k G_m)_il
    np.testing.assert_allclose(hessian, 0.5 * (products + products.transpose(0, 1, 3, 2)), atol=1e-15)
    np.testing.assert_allclose(jax.jit(jax.jacrev(FUNCTIONS["round_trip"]))(jnp.zeros(3)), np.eye(3), atol=1e-15)


def test_logarithm_at_a_half_turn_has_the_gradient_of_its_side(x64):
    # Just below pi, moving w away from zero shortens the angle: d(angle)/dw = -2 also exactly at w = 0.
    gradient = jax.grad(lambda w: axis_angle_from_quaternion(jnp.stack([w, 1.0, 0.0 * w, 0.0 * w]))[0])(0.0)
    np.testing.assert_allclose(gradient, -2.0, atol=1e-12)


def test_left_jacobian_turns_rates_into_angular_velocity(x64, rng):
    v = vectors(rng, 4, [0.0, 1e-6, 0.0999, 0.1001, 1.0, 2.5, np.pi])
    direction = rng.normal(size=v.shape)
    h = 1e-6
    before, after = (matrix_from_axis_angle(jnp.asarray(v + s * h * direction)) for s in (-1, 1))
    spin = np.asarray(axis_angle_from_matrix(jnp.einsum("nij,nkj->nik", after, before))) / (2 * h)
    np.testing.assert_allclose(np.einsum("nij,nj->ni", left_jacobian(jnp.asarray(v)), direction), spin, atol=1e-8)


def test_series_and_closed_form_meet(x64):
    limit = rotations._SERIES_BELOW
    below, above = (rotations._sinc_coefficients(jnp.asarray(limit * (1 + s))) for s in (-1e-12, 1e-12))
    np.testing.assert_allclose(below, above, rtol=1e-11)


def test_angle_between_is_the_geodesic_distance(x64, rng):
    base = matrix_from_axis_angle(jnp.asarray(rng.normal(size=(6, 3))))
    angles = np.array([0.0, 1e-6, 0.3, 1.5, 3.0, np.pi])
    turn = matrix_from_axis_angle(jnp.asarray(vectors(rng, 1, angles)))
    distance = angle_between(base, jnp.einsum("nij,njk->nik", base, turn))
    np.testing.assert_allclose(distance, angles, atol=1e-8)
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(angle_between(m, base))))(base)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_any_leading_axes(rng, shape):
    v = jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32)
    flat = v.reshape(-1, 3)
    for function in (skew, matrix_from_axis_angle, left_jacobian, quaternion_from_axis_angle):
        result = jax.jit(function)(v)
        rows = jax.jit(function)
        one_by_one = jnp.stack([rows(row) for row in flat]).reshape(result.shape)
        np.testing.assert_allclose(result, one_by_one, atol=1e-6)
        assert result.shape[: len(shape)] == shape
    m = matrix_from_axis_angle(v)
    assert axis_angle_from_matrix(m).shape == v.shape
    assert matrix_from_quaternion(quaternion_from_matrix(m)).shape == m.shape
    assert angle_between(m, m).shape == shape

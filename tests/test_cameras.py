"""Cameras: projection, its inverse, and the exact camera of a moved image."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.errors import InputWarning
from handtailor_jax.geometry.cameras import (
    crop_affine,
    in_plane_rotation,
    intrinsic_matrix,
    inverse_affine,
    project,
    rotate_frame,
    transform_camera,
    transform_pixels,
    unproject,
)
from handtailor_jax.geometry.mirror import mirror_camera, mirror_pixels, mirror_points
from handtailor_jax.types import Camera

CAMERAS = {
    "perspective": lambda: Camera.perspective(607.9, 590.3, 314.8, 236.4),  # fx != fy
    "matrix": lambda: Camera.from_matrix([[607.9, 3.0, 314.8], [0.0, 590.3, 236.4], [0.0, 0.0, 1.0]]),
    "weak": lambda: Camera.weak_perspective(1234.5, (130.0, 90.0)),
    "pixels": lambda: Camera.weak_perspective(),
}


@pytest.fixture(params=CAMERAS)
def camera(x64, request):
    return CAMERAS[request.param]()


@pytest.fixture
def points(x64, rng):
    return jnp.asarray(rng.uniform([-0.2, -0.2, 0.3], [0.2, 0.2, 0.9], (50, 3)))


def close(actual, expected, atol=1e-9):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def test_an_affine_map_is_undone(x64, rng):
    affine = crop_affine(jnp.asarray([120.0, 90.0]), jnp.asarray(73.0), 256, jnp.asarray(0.4))
    pixels = jnp.asarray(rng.uniform(0.0, 200.0, (7, 2)))
    close(transform_pixels(inverse_affine(affine), transform_pixels(affine, pixels)), pixels)


def test_perspective_is_equation_2(x64, points):
    x, y, z = np.asarray(points).T
    expected = np.stack([500.0 * x / z + 310.0, 450.0 * y / z + 240.0], axis=-1)
    close(project(Camera.perspective(500.0, 450.0, 310.0, 240.0), points), expected)
    k = np.array([[500.0, 0.0, 310.0], [0.0, 450.0, 240.0], [0.0, 0.0, 1.0]])
    close(project(Camera.from_matrix(k), points), expected)
    np.testing.assert_array_equal(Camera.from_matrix(k).matrix, k)


def test_weak_perspective_is_equation_3(x64, points):
    close(
        project(Camera.weak_perspective(900.0, (12.0, 34.0)), points),
        900.0 * np.asarray(points)[:, :2] + np.array([12.0, 34.0]),
    )
    close(project(Camera.weak_perspective(), points), np.asarray(points)[:, :2])


def test_project_undoes_unproject(camera, points, rng):
    pixels = jnp.asarray(rng.uniform(0, 640, (50, 2)))
    depth = points[:, 2]
    lifted = unproject(camera, pixels, depth)
    close(lifted[:, 2], depth, 0)
    close(project(camera, lifted), pixels)
    close(unproject(camera, project(camera, points), depth), points, 1e-12)


def test_depth_matters_in_perspective_only(points):
    farther = points + jnp.asarray([[0.0, 0.0, 0.5]])
    weak, perspective = CAMERAS["weak"](), CAMERAS["perspective"]()
    close(project(weak, farther), project(weak, points), 0)
    assert np.abs(project(perspective, farther) - project(perspective, points)).max() > 10.0


@pytest.mark.parametrize("angle", [0.0, 0.7, -2.5])
def test_crop_resize_and_rotation_move_the_camera_exactly(camera, points, angle):
    affine = crop_affine(jnp.asarray([300.0, 210.0]), jnp.asarray(180.0), 256, jnp.asarray(angle))
    moved = transform_camera(camera, affine)
    close(project(moved, points), transform_pixels(affine, project(camera, points)))


def test_crop_places_the_square(x64):
    centre, side = np.array([300.0, 210.0]), 180.0
    affine = crop_affine(jnp.asarray(centre), jnp.asarray(side), 256)
    corners = centre + side / 2 * np.array([[0, 0], [-1, -1], [1, 1], [1, -1]])
    # The square's edges are the outer edges of the crop's pixels, half a pixel outside their centres.
    close(transform_pixels(affine, jnp.asarray(corners)), [[127.5, 127.5], [-0.5, -0.5], [255.5, 255.5], [255.5, -0.5]])


def test_positive_angles_turn_x_toward_y(x64):
    close(in_plane_rotation(jnp.asarray(np.pi / 2)) @ jnp.asarray([1.0, 0.0]), [0.0, 1.0], 1e-15)
    affine = crop_affine(jnp.asarray([100.0, 100.0]), jnp.asarray(256.0), 256, jnp.asarray(np.pi / 2))
    close(transform_pixels(affine, jnp.asarray([[110.0, 100.0]])), [[127.5, 137.5]])


def test_mirroring_is_its_own_inverse_and_exact(camera, points):
    mirrored = mirror_camera(camera, 640)
    close(project(mirrored, mirror_points(points)), mirror_pixels(project(camera, points), 640))
    back = mirror_camera(mirrored, 640.0)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(camera), strict=True):
        close(ours, theirs, 1e-12)
    close(mirror_points(mirror_points(points)), points, 0)
    assert float(mirrored.center[0]) == pytest.approx(639.0 - float(camera.center[0]))  # not W - cx


def test_all_operations_in_a_row(camera, points):
    affine = crop_affine(jnp.asarray([300.0, 210.0]), jnp.asarray(180.0), 256, jnp.asarray(0.4))
    moved = transform_camera(mirror_camera(camera, 640), affine)
    expected = transform_pixels(affine, mirror_pixels(project(camera, points), 640))
    close(project(moved, mirror_points(points)), expected)
    again = mirror_camera(moved, 256)  # of a camera that is no longer diagonal
    close(project(again, points), mirror_pixels(expected, 256))
    close(project(moved, unproject(moved, expected, points[:, 2])), expected)


def test_turning_the_frame_with_the_points_keeps_the_pixels(camera, points):
    angle = jnp.asarray(0.6)
    c, s = np.cos(0.6), np.sin(0.6)
    turned = jnp.asarray(np.asarray(points) @ np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]).T)
    close(project(rotate_frame(camera, angle), turned), project(camera, points))


def test_turning_the_frame_with_the_image_gives_a_diagonal_camera_back(x64):
    camera = Camera.perspective(600.0, 600.0, 320.0, 240.0)
    affine = crop_affine(jnp.asarray([300.0, 200.0]), jnp.asarray(256.0), 256, jnp.asarray(0.6))
    upright = rotate_frame(transform_camera(camera, affine), jnp.asarray(0.6))
    close(upright.linear, 600.0 * np.eye(2))


def test_one_compiled_program_serves_both_kinds(x64, points):
    traces = []

    @jax.jit
    def round_trip(camera, points):
        traces.append(None)
        return unproject(camera, project(camera, points), points[:, 2])

    for make in CAMERAS.values():
        close(round_trip(make(), points), points, 1e-12)
    assert len(traces) == 1


def test_mixed_batches(x64, rng):
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(make() for make in CAMERAS.values()))
    points = jnp.asarray(rng.uniform([-0.2, -0.2, 0.3], [0.2, 0.2, 0.9], (len(CAMERAS), 9, 3)))
    one_by_one = jnp.stack([project(make(), p) for make, p in zip(CAMERAS.values(), points, strict=True)])
    close(project(batch, points), one_by_one)
    close(unproject(batch, one_by_one, points[..., 2]), points, 1e-12)
    mirrored = jnp.stack([mirror_camera(make(), 640).center for make in CAMERAS.values()])
    close(mirror_camera(batch, 640).center, mirrored)
    close(mirror_camera(batch, jnp.full(len(CAMERAS), 640.0)).center, mirrored)
    close(mirror_points(points), np.asarray(points) * [-1.0, 1.0, 1.0], 0)


def test_constructors_take_batches(x64, points):
    f = np.array([500.0, 600.0, 700.0])
    perspective = Camera.perspective(f, f + 1, f / 2, f / 3)
    weak = Camera.weak_perspective(f, np.stack([f, f + 1], axis=-1))
    for i in range(3):
        single = Camera.perspective(f[i], f[i] + 1, f[i] / 2, f[i] / 3)
        close(project(jax.tree.map(lambda leaf, i=i: leaf[i], perspective), points), project(single, points))
        single = Camera.weak_perspective(f[i], (f[i], f[i] + 1))
        close(project(jax.tree.map(lambda leaf, i=i: leaf[i], weak), points), project(single, points))
    assert weak.matrix.shape == (3, 3, 3)


def test_projection_is_differentiable_in_the_camera(x64, camera, points):
    gradient = jax.grad(lambda c: jnp.sum(project(c, points) ** 2))(camera)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    h = 1e-4
    values = []
    for sign in (1, -1):
        moved = dataclasses.replace(camera, linear=camera.linear.at[0, 0].add(sign * h))
        values.append(jnp.sum(project(moved, points) ** 2))
    np.testing.assert_allclose(gradient.linear[0, 0], (values[0] - values[1]) / (2 * h), rtol=1e-5)


def test_a_wrong_shape_is_refused(points):
    with pytest.raises(Exception, match="points"):
        project(CAMERAS["weak"](), points[:, :2])


def test_fields_of_a_camera_that_are_not_read():
    with pytest.warns(InputWarning, match="camera has k1, which is not read: undistort"):
        intrinsic_matrix({"fx": 500.0, "fy": 500.0, "cx": 320.0, "cy": 240.0, "k1": 0.5})

"""Lifting keypoints with relative depth to the camera frame (Eq. 5, 14, 15 of the paper)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.geometry.cameras import inverse_linear, project
from handtailor_jax.geometry.lifting import lift, lift_scale, root_depth_in_bones
from handtailor_jax.skeleton import ROOT
from handtailor_jax.types import Camera


def test_lift_without_intrinsics():
    """Eq. 15: the lifted reference bone has length 1; values and gradients are finite if its depth exceeds it."""
    bone = jnp.asarray([30.0, 40.0, 0.6], jnp.float32)
    uvd = jnp.zeros((21, 3)).at[0].set(bone)
    np.testing.assert_allclose(lift_scale(uvd), 50.0 / 0.8, rtol=1e-6)
    camera = Camera.weak_perspective(lift_scale(uvd))
    lifted = lift(camera, uvd, jnp.float32(1.0), jnp.float32(0.0))  # Eq. 14
    np.testing.assert_allclose(jnp.linalg.norm(lifted[0] - lifted[ROOT]), 1.0, rtol=1e-6)
    for depth in (1.0, -1.0, 1.5, -30.0):
        value, gradient = jax.value_and_grad(lift_scale)(uvd.at[0, 2].set(depth))
        assert jnp.isfinite(value)
        assert value > 0.0
        assert jnp.all(jnp.isfinite(gradient))
    value, gradient = jax.value_and_grad(lift_scale)(jnp.zeros((21, 3)))
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("mode", ["perspective", "weak_perspective"])
def test_lift_inverts_projection(rng, mode):
    points = jnp.asarray(rng.uniform(-0.1, 0.1, (3, 21, 3)), jnp.float32) + jnp.asarray([[[0.0, 0.0, 0.6]]])
    if mode == "perspective":
        camera = Camera.perspective(jnp.asarray([300.0, 400.0, 500.0]), *(jnp.full(3, v) for v in (450.0, 60.0, 70.0)))
    else:
        camera = Camera.weak_perspective(jnp.asarray([900.0, 1000.0, 1100.0]))
    bone, root = jnp.asarray([0.08, 0.09, 0.1]), points[:, ROOT, 2]
    depth = (points[..., 2] - root[:, None]) / bone[:, None]
    uvd = jnp.concatenate([project(camera, points), depth[..., None]], axis=-1)
    np.testing.assert_allclose(lift(camera, uvd, bone, root), points, atol=1e-6)


def test_scale_on_the_plane_at_unit_depth_is_the_inverse_depth_in_bones():
    """For a bone parallel to the image the closed form is exact for every focal length."""
    points = jnp.zeros((21, 3)).at[:, 2].set(0.8).at[0, 1].set(0.1)
    for focal in (200.0, 900.0):
        camera = Camera.perspective(focal, 1.2 * focal, 64.0, 60.0)
        rays = (project(camera, points) - camera.center[None]) @ inverse_linear(camera).T
        scale = lift_scale(jnp.concatenate([rays, jnp.zeros((21, 1))], axis=-1))
        np.testing.assert_allclose(0.1 / scale, 0.8, rtol=1e-5)


def test_root_depth_that_gives_the_reference_bone_its_length(rng):
    """Exact for wrists nearer or farther than the root, anywhere in the image; finite where no depth is right."""
    points = jnp.asarray(rng.uniform(-0.1, 0.1, (50, 21, 3)), jnp.float32) + jnp.asarray([[[0.1, -0.1, 0.5]]])
    rays = points[..., :2] / points[..., 2:]
    bone = jnp.linalg.norm(points[:, 0] - points[:, ROOT], axis=-1)
    depth = (points[..., 2] - points[:, ROOT, None, 2]) / bone[:, None]
    seen = np.abs(depth[:, 0]) < 0.9
    assert seen.sum() > 30
    found = bone * root_depth_in_bones(rays, depth)
    np.testing.assert_allclose(found[seen], points[seen, ROOT, 2], rtol=1e-3)
    for wrong in (1.0, -1.0, 30.0):
        value, gradient = jax.value_and_grad(root_depth_in_bones)(jnp.zeros((21, 2)), jnp.zeros(21).at[0].set(wrong))
        assert jnp.isfinite(value)
        assert value > 0.0
        assert jnp.all(jnp.isfinite(gradient))

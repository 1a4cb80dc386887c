"""The pose sampler: within limits, varied, without colliding fingers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.errors import InputError
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.synthetic.poses import (
    PoseConfig,
    collision_depth,
    gestures,
    sample_betas,
    sample_finger_pose,
    sample_orientation,
    sample_pose,
    segment_distance,
)

COUNT = 400


@pytest.fixture(scope="module")
def poses(hand: HandModel) -> np.ndarray:
    keys = jax.random.split(jax.random.key(3), COUNT)
    return np.asarray(jax.jit(jax.vmap(lambda key: sample_pose(hand, key)))(keys))


def test_poses_are_within_the_limits_of_the_joints(hand, poses):
    coordinates = np.asarray(jax.vmap(hand.anatomy.coordinates)(poses[:, 1:]))
    assert (coordinates >= np.asarray(hand.anatomy.lower) - 1e-5).all()
    assert (coordinates <= np.asarray(hand.anatomy.upper) + 1e-5).all()


def test_poses_are_varied(hand, poses):
    flexion = np.asarray(jax.vmap(hand.anatomy.coordinates)(poses[:, 1:]))[:, :, 0]
    proximal = np.asarray([0, 3, 6, 9])  # the MCP joints of the four fingers
    share_straight = (flexion[:, proximal] < np.radians(15)).mean(axis=0)
    share_bent = (flexion[:, proximal] > np.radians(55)).mean(axis=0)
    assert (share_straight > 0.15).all()
    assert (share_bent > 0.08).all()
    assert len(np.unique(poses.round(4), axis=0)) == COUNT
    # In a fair share of the hands a single finger is bent differently.
    spread = flexion[:, proximal].max(axis=1) - flexion[:, proximal].min(axis=1)
    assert (spread > np.radians(45)).mean() > 0.2


def test_orientations_are_uniform_or_upright():
    keys = jax.random.split(jax.random.key(0), 2000)

    def turned(upright):
        config = PoseConfig(upright=upright)
        turns = jax.vmap(lambda key: sample_orientation(key, config, jnp.dtype(np.float32)))(keys)
        return np.asarray(matrix_from_axis_angle(turns))

    uniform = turned(0.0)
    np.testing.assert_allclose(uniform.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose((uniform**2).mean(axis=0), 1.0 / 3.0, atol=0.03)
    upright = turned(1.0)
    fingers = -upright[:, :, 0]  # the fingers point along -x in the rest frame
    assert (fingers[:, 1] < -0.4).mean() > 0.93  # up in the image
    palm = -upright[:, :, 1]
    share = (palm[:, 2] < -0.5).mean()  # toward the camera
    assert 0.4 < share < 0.75
    facing = upright[palm[:, 2] < -0.5]
    assert (facing[:, 0, 2] > 0).mean() > 0.9  # then a right hand's thumb is on the right


def test_gestures_are_within_limits_and_free_of_collisions(hand):
    known = gestures()
    assert {"fist", "point", "pinch", "spread", "thumbs_up", "ok", "grasp", "thumb_to_little"} <= set(known)
    table = np.stack(list(known.values()))
    assert (table >= np.asarray(hand.anatomy.lower) - 1e-4).all()
    assert (table <= np.asarray(hand.anatomy.upper) + 1e-4).all()
    assert _collisions(hand, jax.vmap(hand.anatomy.finger_pose)(table)).max() < 0.005


def _collisions(hand, fingers):
    rest = hand.shape(jnp.zeros((10,), hand.dtype))
    still = jnp.zeros((len(fingers), 1, 3), hand.dtype)
    return np.asarray(jax.jit(jax.vmap(lambda p: collision_depth(rest.pose(p))))(jnp.concatenate([still, fingers], 1)))


def test_collisions_are_rejected(hand, poses):
    keys = jax.random.split(jax.random.key(3), COUNT)
    config = PoseConfig(candidates=1)
    unchecked = jax.jit(jax.vmap(lambda key: sample_finger_pose(hand, key, config)))(keys)
    before, after = _collisions(hand, unchecked), _collisions(hand, poses[:, 1:])
    assert (before > 0.005).mean() > 0.05
    assert (after > 0.005).mean() < 0.01


def test_crossed_fingers_collide_and_spread_ones_do_not(hand):
    spread = hand.anatomy.finger_pose(jnp.asarray(gestures()["spread"]))
    crossed = gestures()["spread"].copy()
    crossed[0, 1], crossed[3, 1] = (
        np.radians(-20),
        np.radians(20),
    )  # index toward the little finger, middle to the thumb
    depth = _collisions(hand, jnp.stack([spread, hand.anatomy.finger_pose(jnp.asarray(crossed))]))
    assert depth[0] == 0.0
    assert depth[1] > 0.004


def test_distance_of_segments(rng):
    a, b, c, d = rng.normal(size=(4, 50, 3))
    s = np.linspace(0.0, 1.0, 101)
    first = a[:, None] + s[None, :, None] * (b - a)[:, None]
    second = c[:, None] + s[None, :, None] * (d - c)[:, None]
    sampled = np.linalg.norm(first[:, :, None] - second[:, None, :], axis=-1).min(axis=(1, 2))
    distance = np.asarray(segment_distance(*(jnp.asarray(x, jnp.float32) for x in (a, b, c, d))))
    np.testing.assert_allclose(distance, sampled, atol=0.03)
    assert (distance <= sampled + 1e-5).all()


def test_shapes_are_normal_and_bounded(hand):
    betas = jax.vmap(lambda key: sample_betas(hand, key))(jax.random.split(jax.random.key(0), 2000))
    assert np.abs(betas).max() <= 2.5
    assert 0.9 < float(betas.std()) < 1.0


def test_doubles_stay_doubles(hand64):
    assert jax.eval_shape(lambda key: sample_pose(hand64, key), jax.random.key(1)).dtype == np.float64


def test_bad_options():
    for wrong in (
        {"prior": -1.0},
        {"candidates": 0},
        {"upright": 1.5},
        dict.fromkeys(("prior", "gesture", "blend", "recombined"), 0.0),
    ):
        with pytest.raises(InputError, match="PoseConfig"):
            PoseConfig(**wrong)

"""Augmented crops: labels and camera move exactly with the pixels, and shrunk images are not aliased."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.data.augmentation import AugmentationConfig, augment, center_crop, resample, without_intrinsics
from handtailor_jax.data.sample import Batch
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import crop_affine, project
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.skeleton import ROOT

SOURCE, SIZE, COUNT = 64, 48, 8
CONFIG = AugmentationConfig(drop_intrinsics=0.5)


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    joints = 0.05 * random.normal(size=(COUNT, 21, 3)) + np.asarray([0.08, -0.05, 0.6])
    # Different focal lengths, and a principal point far from the middle.
    k = np.tile(np.asarray([[150.0, 0.0, 12.0], [0.0, 120.0, 45.0], [0.0, 0.0, 1.0]]), (COUNT, 1, 1))
    uvw = joints @ k[0].T
    image = np.zeros((COUNT, SOURCE, SOURCE, 3), np.uint8)
    known = np.ones(COUNT)
    known[-2:] = 0.0
    k[-2:] = np.eye(3)
    floats = {
        "keypoints_2d": uvw[..., :2] / uvw[..., 2:],
        "keypoint_weight": np.ones((COUNT, 21)),
        "intrinsics": k,
        "joints": joints,
        "pose": random.normal(size=(COUNT, 16, 3)),
        "betas": np.zeros((COUNT, 10)),
        "has_joints": np.ones(COUNT),
        "has_3d": np.ones(COUNT),
        "has_intrinsics": known,
    }
    return Batch(image=jnp.asarray(image), **{name: jnp.asarray(x, jnp.float32) for name, x in floats.items()})


@pytest.fixture(scope="module")
def crops(batch):
    keys = jax.random.split(jax.random.key(3), COUNT)
    return jax.jit(lambda batch, keys: augment(batch, keys, CONFIG, SIZE))(batch, keys)


def test_labels_follow_the_pixels(batch, crops):
    known = np.asarray(crops.has_intrinsics) > 0
    assert 0 < known.sum() < COUNT - 2, "the seed must give hands with and without intrinsics"
    pixels = project(crops.camera, crops.joints)
    np.testing.assert_allclose(pixels[known], crops.keypoints_2d[known], atol=0.01)
    assert crops.image.shape == (COUNT, SIZE, SIZE, 3)
    assert crops.image.dtype == jnp.uint8
    # The frame turned about the optical axis: depths stay, and the hand turns with its joints.
    np.testing.assert_allclose(crops.joints[known][..., 2], batch.joints[known][..., 2], rtol=1e-5)
    turned = matrix_from_axis_angle(crops.pose[:, 0]) @ jnp.swapaxes(matrix_from_axis_angle(batch.pose[:, 0]), 1, 2)
    np.testing.assert_allclose(jnp.einsum("bij,bkj->bki", turned, batch.joints), crops.joints, atol=1e-5)
    np.testing.assert_allclose(turned[known][:, 2, 2], 1.0, atol=1e-5)
    angles = np.arctan2(turned[known][:, 1, 0], turned[known][:, 0, 0])
    assert np.abs(angles).max() > math.radians(20.0)


def test_without_intrinsics_the_camera_looks_at_the_hand(crops):
    unknown = np.asarray(crops.has_intrinsics) == 0
    dropped = unknown & (np.arange(COUNT) < COUNT - 2)
    root = crops.joints[dropped][:, ROOT]
    np.testing.assert_allclose(root[:, :2], 0.0, atol=1e-5)
    np.testing.assert_array_equal(crops.intrinsics[unknown], np.broadcast_to(np.eye(3), (unknown.sum(), 3, 3)))


def test_crops_show_the_hand_in_the_configured_size(crops):
    extent = np.ptp(np.asarray(crops.keypoints_2d), axis=1).max(axis=-1) / SIZE
    # A rotation changes the longer side of a box by at most the square root of 2.
    assert extent.min() > CONFIG.fill[0] / 1.5
    assert extent.max() < CONFIG.fill[1] * 1.5


def test_center_crop_is_centred_on_the_keypoints(batch):
    crops = jax.jit(lambda batch: center_crop(batch, SIZE, 2.0))(batch)
    points = np.asarray(crops.keypoints_2d)
    np.testing.assert_allclose(np.ptp(points, axis=1).max(axis=-1), SIZE / 2.0, rtol=1e-4)
    np.testing.assert_allclose(0.5 * (points.min(axis=1) + points.max(axis=1)), 0.5 * (SIZE - 1), atol=1e-3)
    again = without_intrinsics(dataclasses.replace(crops))
    assert np.asarray(again.has_intrinsics).sum() == 0


def test_motion_blurs_one_direction():
    image = np.zeros((2, 33, 33, 3), np.uint8)
    image[:, 16, 16] = 255
    still = jnp.broadcast_to(jnp.eye(2, 3), (2, 2, 3))
    moved = np.asarray(resample(jnp.asarray(image), still, 33, blur=jnp.asarray([[4.0, 0.0], [0.0, 4.0]])))[..., 0]
    np.testing.assert_allclose(moved[0], moved[1].T, atol=1e-6)
    along, across = (
        np.sqrt((moved[0] * (axis - 16.0) ** 2).sum()) for axis in np.meshgrid(np.arange(33), np.arange(33))
    )
    assert 3.8 < along < 4.1
    assert across < 0.3


def test_pixels_land_where_the_map_says():
    """A smooth blob moves with the map; stripes that are too fine for the result become grey."""
    at = jnp.arange(SOURCE, dtype=jnp.float32)
    place = jnp.asarray([40.3, 22.7])
    blob = jnp.exp(-0.5 * ((at[None, :] - place[0]) ** 2 + (at[:, None] - place[1]) ** 2) / 9.0)
    stripes = jnp.broadcast_to((jnp.arange(SOURCE) % 2).astype(jnp.float32)[None, :], (SOURCE, SOURCE))
    image = jnp.round(255.0 * jnp.stack([blob, stripes])[..., None] * jnp.ones(3)[None, None, None]).astype(jnp.uint8)
    side = jnp.asarray([50.0, 60.0])
    affine = crop_affine(jnp.asarray([[35.0, 27.0], [31.5, 31.5]]), side, 24, jnp.asarray([0.7, 0.0]))
    result = np.asarray(resample(image, affine, 24, outside=jnp.zeros(2)))[..., 0]
    grid = np.arange(24)
    found = [(result[0] * grid[None, :]).sum(), (result[0] * grid[:, None]).sum()] / result[0].sum()
    wanted = np.asarray(affine[0, :, :2]) @ np.asarray(place) + np.asarray(affine[0, :, 2])
    np.testing.assert_allclose(found, wanted, atol=0.05)
    assert np.ptp(result[1]) < 0.25


@pytest.mark.parametrize(
    ("field", "value", "message"), [("fill", (0.5, 0.2), "fill is"), ("grey", 1.5, "grey is 1.5: give 0 to 1")]
)
def test_bad_settings(field, value, message):
    with pytest.raises(InputError, match=message):
        AugmentationConfig(**{field: value})

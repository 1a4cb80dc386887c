"""The hourglass on the maps of the landmark network: what is pretrained, what is trained, how crops are turned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from handtailor_jax.data.augmentation import AugmentationConfig, augment, center_crop
from handtailor_jax.data.sample import labelled_batch
from handtailor_jax.detector.landmark_network import right_probability
from handtailor_jax.detector.weights import load_landmark_network
from handtailor_jax.errors import InputError
from handtailor_jax.finders import HourglassFinder, LandmarkFinder
from handtailor_jax.geometry.boxes import turn_of_hand
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.training.config import OptimizerConfig, TrainingConfig
from handtailor_jax.training.state import create_network, create_optimizer, initial_state

SMALL = dataclasses.replace(
    HandModuleConfig.landmarks(), channels=8, shape_channels=8, shape_hidden=(8,), ik_hidden=(8,)
)


def sizes(params):
    """The largest value of every array of the landmark network, and of every other array."""
    found = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        inside = [key.key for key in path[:2]] == ["stem", "network"]
        found[0 if inside else 1].append(float(np.abs(np.asarray(leaf)).max()))
    return found


@pytest.fixture(scope="module")
def module():
    config = TrainingConfig(module=SMALL)
    network = create_network(config)
    state = initial_state(config, network)
    return network.module(state.params, state.frozen, state.statistics)


def test_sizes_that_fit():
    config = HandModuleConfig.landmarks()
    assert (config.stride, config.map_size) == (8, 28)
    with pytest.raises(InputError, match="choose a multiple of 32"):
        dataclasses.replace(config, image_size=120)


def test_it_starts_with_the_pretrained_network(module):
    pretrained = load_landmark_network()
    for a, b in zip(
        jax.tree.leaves(nnx.state(module.landmark_network)), jax.tree.leaves(nnx.state(pretrained)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_features_follow_the_keypoints_that_the_network_finds(module, rng):
    """Moving the keypoints alone, by their head's bias, moves what the stem draws."""
    crops = jnp.asarray(rng.uniform(size=(1, 224, 224, 3)), jnp.float32)
    module.eval()
    graph, state = nnx.split(module.stem)
    run = jax.jit(lambda state: nnx.merge(graph, state)(crops - 0.5))
    before = run(state)
    assert before.shape == (1, 28, 28, 8)
    moved = nnx.merge(graph, jax.tree.map(jnp.copy, state))
    moved.network.landmarks.bias[...] = moved.network.landmarks.bias[...] + 40.0
    after = run(nnx.state(moved))
    assert float(jnp.max(jnp.abs(after - before))) > 1e-3


@pytest.mark.parametrize("share", [0.0, pytest.param(0.25, marks=pytest.mark.slow)])
def test_the_pretrained_network_learns_at_its_share(share):
    config = TrainingConfig(module=SMALL, optimizer=OptimizerConfig(trunk=share, warm_up=0, weight_decay=0.0))
    network = create_network(config)
    state = initial_state(config, network)
    assert bool(sizes(state.params)[0]) == (share > 0.0)
    assert bool(sizes(state.frozen)[0]) == (share == 0.0)
    if share > 0.0:
        optimizer = create_optimizer(config.optimizer, config.steps)
        ones = jax.tree.map(jnp.ones_like, state.params)
        with jax.numpy_dtype_promotion("standard"):
            updates = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(ones, state.params)
        pretrained, others = sizes(updates)
        np.testing.assert_allclose(pretrained, share * others[0], rtol=1e-4)
        np.testing.assert_allclose(others, others[0], rtol=1e-4)


def test_crops_in_which_the_hand_points_up(hands, rng):
    batch = hands
    crops = jax.jit(lambda batch: center_crop(batch, 64, 1.6, upright=True))(batch)
    np.testing.assert_allclose(turn_of_hand(crops.keypoints_2d), 0.0, atol=1e-4)
    config = AugmentationConfig(upright=1.0, rotation=0.0, rotation_photographs=0.0)
    keys = jax.random.split(jax.random.key(0), len(batch.image))
    crops = jax.jit(lambda batch, keys: augment(batch, keys, config, 64))(batch, keys)
    np.testing.assert_allclose(turn_of_hand(crops.keypoints_2d), 0.0, atol=1e-4)


@pytest.fixture
def hands(rng):
    """Keypoints in all directions on noise, with joints that project to them."""
    n = 5
    keypoints = rng.uniform(30.0, 70.0, (n, 21, 2)).astype(np.float32)
    intrinsics = np.tile(np.asarray([[100, 0, 48], [0, 100, 48], [0, 0, 1]], np.float32), (n, 1, 1))
    rays = np.concatenate([(keypoints - 48.0) / 100.0, np.ones((n, 21, 1), np.float32)], axis=-1)
    return labelled_batch(
        image=rng.integers(0, 256, (n, 96, 96, 3), dtype=np.uint8),
        keypoints_2d=keypoints,
        joints=(0.5 * rays).astype(np.float32),
        pose=np.zeros((n, 16, 3), np.float32),
        betas=np.zeros((n, 10), np.float32),
        intrinsics=intrinsics,
    )


def test_a_known_side_is_certain(rng):
    landmarks = load_landmark_network()(jnp.asarray(rng.uniform(size=(3, 224, 224, 3)), jnp.float32))
    given = right_probability(landmarks, jnp.asarray([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(given, [0.0, jnp.clip(landmarks.right[1], 1e-6, 1.0 - 1e-6), 1.0], rtol=1e-5)


def test_the_detector_finds_hands_for_it(module):
    """With the landmark network inside, every palm is looked at; without it, squares of the image are."""
    assert isinstance(HandTailor(module).finder, LandmarkFinder)
    small = HandModule(dataclasses.replace(HandModuleConfig.small(), channels=8), rngs=nnx.Rngs(0))
    assert small.landmark_network is None
    assert isinstance(HandTailor(small).finder, HourglassFinder)

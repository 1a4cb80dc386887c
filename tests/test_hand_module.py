"""The hand module: decoding, cameras, rotations, losses, its inference form and its gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from handtailor_jax.detector.layers import max_pool_2
from handtailor_jax.errors import InputError
from handtailor_jax.geometry import heatmaps, rotations
from handtailor_jax.hand_module import iknet, losses
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.hourglass import StackOutput
from handtailor_jax.hand_module.iknet import IKNet
from handtailor_jax.hand_module.layers import inference_form, max_pool_3, space_to_depth, upsample_2
from handtailor_jax.hand_module.weights import module_structure
from handtailor_jax.skeleton import ROOT
from handtailor_jax.types import Camera


def once(function, *static):
    """Compile a function as a whole, with NumPy results: otherwise each of its operations is compiled by itself."""
    program = jax.jit(function, static_argnums=static)
    return lambda *arguments: jax.device_get(program(*arguments))


expected_index, expected_value = once(heatmaps.expected_index), once(heatmaps.expected_value)
softmax_heatmaps, sigmoid_heatmaps = (
    once(functools.partial(heatmaps.normalised, decoding=name)) for name in ("corrected", "released")
)
indices_from_pixels, pixels_from_indices = once(heatmaps.indices_from_pixels, 1), once(heatmaps.pixels_from_indices, 1)
gaussian_heatmaps = once(heatmaps.gaussian_heatmaps, 1, 2)
matrix_from_axis_angle = once(rotations.matrix_from_axis_angle)
quaternion_from_matrix = once(rotations.quaternion_from_matrix)
matrix_from_columns, normalise_joints = once(iknet.matrix_from_columns), once(iknet.normalise_joints)
rotations_from_raw, ik_loss = once(iknet.rotations_from_raw), once(losses.ik_loss)

TINY = dataclasses.replace(
    HandModuleConfig.small(),
    image_size=32,
    channels=8,
    depth=1,
    shape_channels=12,
    shape_levels=1,
    shape_hidden=(8,),
    ik_hidden=(16,),
    confidence_radius=2.0,
)
# The released design in the same size: the other stem, rotations and decoding.
TINY_RELEASED = dataclasses.replace(TINY, stem="strided", stem_channels=8, rotation="quaternion", decoding="released")


def perspective(batch, focal=40.0):
    return Camera.perspective(*(jnp.full(batch, value, jnp.float32) for value in (focal, focal, 15.5, 15.5)))


def images(rng, batch):
    return rng.uniform(size=(batch, 32, 32, 3)).astype(np.float32)


def trained(config, rng):
    """Return a module in evaluation mode with statistics of some images and without initial zeros and ones."""
    module = HandModule(config, rngs=nnx.Rngs(0))
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        if path[-1] in ("bias", "scale"):
            variable[...] = variable[...] + jnp.asarray(rng.normal(0.0, 0.1, variable.shape), jnp.float32)
    for _, part in nnx.iter_modules(module):
        if isinstance(part, nnx.BatchNorm):
            part.momentum = 0.0
    graph, state = nnx.split(module)

    @jax.jit
    def see(state, image):
        module = nnx.merge(graph, state)
        module(image)
        return nnx.state(module)

    nnx.update(module, see(state, images(rng, 4)))
    module.eval()
    return module


def program(module):
    graph, state = nnx.split(module)
    compiled = jax.jit(lambda state, image, camera: nnx.merge(graph, state)(image, camera))
    return lambda image, camera: jax.device_get(compiled(state, image, camera))


def mixed(batch):
    """Return a batch of cameras, half of each kind."""
    weak = Camera.weak_perspective(jnp.ones(batch - batch // 2, jnp.float32))
    return jax.tree.map(lambda *a: np.concatenate(a), perspective(batch // 2), weak)


def close(actual, desired, share=2e-4):
    """Compare every leaf, with a tolerance relative to its largest entry or to 1."""

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=share * max(1.0, float(np.max(np.abs(b)))))

    jax.tree.map(check, actual, desired)


# Heatmaps.


@pytest.mark.parametrize("center", [(7.0, 5.0), (9.37, 12.81), (15.5, 15.5)])
def test_a_gaussian_decodes_to_its_own_centre(center):
    index = np.asarray([center], np.float32)
    gaussian = gaussian_heatmaps(index, (28, 32), 1.0)
    assert gaussian.shape == (28, 32, 1)
    assert np.argmax(gaussian) == round(center[1] - 0.01) * 32 + round(center[0] - 0.01)
    np.testing.assert_allclose(expected_index(softmax_heatmaps(np.log(gaussian + np.float32(1e-30)))), index, atol=1e-4)
    # In the image, cell centre (0, 0) is the centre of its 4 x 4 pixels, and back.
    np.testing.assert_allclose(pixels_from_indices(index, 4), 4 * index + 1.5)
    np.testing.assert_allclose(indices_from_pixels(pixels_from_indices(index, 4), 4), index, rtol=1e-6)


def test_background_does_not_move_a_softmax(rng):
    """A constant background has no influence; with the released normalisation it moves keypoints to the centre."""
    index = np.asarray([[6.0, 20.0]], np.float32)
    logits = np.float32(12.0) * gaussian_heatmaps(index, (32, 32), 1.5)
    for level in (-3.0, 0.0, 40.0):
        np.testing.assert_allclose(expected_index(softmax_heatmaps(logits + np.float32(level))), index, atol=0.05)
    released = expected_index(sigmoid_heatmaps(logits - np.float32(7.0)))
    assert np.linalg.norm(released - index) > 0.3
    sums = np.sum(sigmoid_heatmaps(np.full((4, 4, 1), -200.0, np.float32)))  # a float32 sigmoid is 0 there
    np.testing.assert_allclose(sums, 1.0, rtol=1e-6)


def test_sigmoid_heatmaps_are_sigmoids_over_their_sum(rng):
    logits = rng.normal(size=(2, 6, 5, 3)).astype(np.float32)
    weights = 1.0 / (1.0 + np.exp(-logits))
    plain = weights / np.sum(weights, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(sigmoid_heatmaps(logits), plain, rtol=1e-5)
    np.testing.assert_allclose(expected_value(plain, logits), np.sum(plain * logits, axis=(1, 2)), rtol=1e-6)


def test_confidence_is_the_mass_near_the_keypoint():
    @jax.jit
    @jax.value_and_grad
    def both(background, peak):
        weights = peak + background
        shares = weights / jnp.sum(weights, axis=(-3, -2), keepdims=True)
        return heatmaps.mass_near(shares, heatmaps.expected_index(shares), radius=3.0)[0]

    def confidence(weights):
        return both(np.float32(0.0), weights)[0]

    peak, other = (gaussian_heatmaps(np.asarray([c], np.float32), (32, 32), 1.0) for c in ((8.0, 9.0), (24.0, 9.0)))
    sharp, doubtful = confidence(peak), confidence(peak + np.float32(0.3))
    assert 0.85 < sharp <= 1.0
    assert doubtful < 0.1
    assert confidence(np.ones((32, 32, 1), np.float32)) < 0.05
    assert confidence(peak + other) < 0.01
    assert both(np.float32(1e-4), peak)[1] < 0.0


# Layers.


def test_pools_and_upsampling_against_windows(rng):
    x = jnp.asarray(rng.normal(size=(2, 8, 6, 3)), jnp.float32)

    def window(size, padding):
        pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 2, 2, 1), pads)

    np.testing.assert_array_equal(once(max_pool_2)(x), window(2, 0))
    np.testing.assert_array_equal(once(max_pool_3)(x), window(3, 1))
    np.testing.assert_array_equal(once(upsample_2)(x), np.asarray(x).repeat(2, axis=1).repeat(2, axis=2))
    blocks = once(space_to_depth, 1)(x, 2)
    assert blocks.shape == (2, 4, 3, 12)
    np.testing.assert_array_equal(blocks[1, 3, 2], np.asarray(x)[1, 6:8, 4:6].ravel())


def test_configurations():
    def parameters(config):
        variables = module_structure(config)[1].values()
        return sum(np.prod(variable.shape) for variable in variables if isinstance(variable, nnx.Param))

    assert parameters(HandModuleConfig.official()) == 24_932_042
    assert parameters(HandModuleConfig.small()) <= 3_000_000
    with pytest.raises(InputError, match="choose a multiple of 32"):
        dataclasses.replace(HandModuleConfig.small(), image_size=120)
    with pytest.raises(InputError, match="give 1 to 16"):
        dataclasses.replace(TINY, stacks_3d=0)


# The module.


@pytest.fixture(scope="module")
def small():
    module = trained(TINY, np.random.default_rng(0))
    return module, program(module)


@pytest.fixture(scope="module")
def released():
    module = trained(TINY_RELEASED, np.random.default_rng(0))
    return module, program(module)


def test_the_papers_decoding_has_no_bias():
    """A perfect map has no bias, a background of 1e-2 (which moves the released decoding by 35 pixels) hardly any."""
    wanted = np.random.default_rng(1).uniform(40.0, 216.0, (1, 21, 2)).astype(np.float32)
    wanted[0, 0] = 40.0
    peaks = gaussian_heatmaps(indices_from_pixels(wanted, 4), (64, 64), 2.0)

    def decode(name, background):
        share = np.clip(np.maximum(peaks, np.float32(background)), np.float32(1e-7), np.float32(1.0 - 1e-6))
        logits, flat = jnp.asarray(np.log(share) - np.log1p(-share)), jnp.full((1, 64, 64, 21), 0.5)
        maps = StackOutput(flat, flat, logits, flat, flat)
        module = HandModule(dataclasses.replace(TINY_RELEASED, decoding=name), rngs=nnx.Rngs(0))
        module.eval()
        camera, features = perspective(1, 300.0), jnp.zeros((1, 8))
        return once(lambda maps: module.decode(camera, [maps], features, jnp.zeros((1, 12))))(maps)

    exact, noisy = decode("paper", 0.0), decode("paper", 1e-2)
    np.testing.assert_allclose(exact.keypoints_2d, wanted, atol=0.02)
    np.testing.assert_allclose(noisy.keypoints_2d, wanted, atol=0.3)
    assert np.max(np.abs(decode("released", 1e-2).keypoints_2d - wanted)) > 35.0
    # It starts at a usual bone and a usual distance in bones, and reaches RHD's 1.18 m.
    np.testing.assert_allclose([exact.bone[0], exact.root_depth[0]], [0.09, 0.72], rtol=1e-6)
    np.testing.assert_allclose(exact.joints[0, :, 2], exact.root_depth[0], rtol=1e-6)


def test_corrected_decoding_has_no_bias(small):
    """Keypoints have no half-pixel bias, depths are relative to the root; root depth scales with the focal length."""
    module, _ = small
    wanted = np.random.default_rng(1).uniform(6.0, 26.0, (1, 21, 2)).astype(np.float32)
    index = indices_from_pixels(wanted, 4)
    depths, zeros = np.linspace(-0.4, 0.5, 21, dtype=np.float32), jnp.zeros((1, 8, 8, 8))
    maps = StackOutput(
        hourglass=zeros,
        residual=zeros,
        heatmap_logits=jnp.log(gaussian_heatmaps(index, (8, 8), 0.5)) + 30.0,
        depth_maps=jnp.broadcast_to(depths, (1, 8, 8, 21)),
        encoding=zeros,
    )

    @once
    def decode(camera):
        return module.decode(camera, [maps], jnp.zeros((1, 8)), jnp.zeros((1, 12)))

    near, far = decode(perspective(1, 40.0)), decode(perspective(1, 80.0))
    np.testing.assert_allclose(near.keypoints_2d, wanted, atol=0.1)
    np.testing.assert_allclose(near.relative_depth[0], depths - depths[ROOT], atol=1e-5)
    np.testing.assert_allclose(near.bone, 0.09, rtol=1e-6)
    # Not exactly twice: the line of sight to the root has another slant.
    np.testing.assert_allclose(far.root_depth, 2.0 * near.root_depth, rtol=0.05)
    assert (near.confidence > 0.95).all()
    # Both cameras agree on the pose of a hand that both see alike: far away, perspective is weak.
    weak = decode(Camera.weak_perspective(jnp.ones(1)))
    distant = decode(perspective(1, 4e4))
    np.testing.assert_allclose(weak.keypoints_2d, near.keypoints_2d, rtol=1e-6)
    np.testing.assert_allclose(normalise_joints(weak.joints), normalise_joints(distant.joints), atol=3e-3)
    np.testing.assert_allclose(weak.pose, distant.pose, atol=3e-3)
    assert weak.root_depth[0] == 0.0
    # Pixels stay pixels: without intrinsics the camera frame is measured in them.
    np.testing.assert_allclose(weak.joints[..., :2], weak.keypoints_2d, rtol=1e-6)


def test_batch_equals_single_images(small, rng):
    _, compiled = small
    image, cameras = images(rng, 3), mixed(3)
    batch = compiled(image, cameras)
    for i in range(3):
        one = compiled(image[i : i + 1], jax.tree.map(lambda a, i=i: a[i : i + 1], cameras))
        close(jax.tree.map(lambda a: a[0], one), jax.tree.map(lambda a, i=i: a[i], batch))
    # Without a camera, an image has a weak-perspective camera in pixels.
    none = compiled(image[2:], None)
    close(jax.tree.map(lambda a: a[0], none), jax.tree.map(lambda a: a[2], batch))


@pytest.mark.parametrize("name", ["small", "released"])
def test_inference_form_computes_the_same(name, request, rng):
    module, compiled = request.getfixturevalue(name)
    folded = inference_form(module)
    assert not jax.tree.leaves(nnx.state(folded, nnx.BatchStat))
    assert jax.tree.leaves(nnx.state(module, nnx.BatchStat))
    image, camera = images(rng, 1), perspective(1)
    close(program(folded)(image, camera), compiled(image, camera), 1e-3)


@pytest.mark.parametrize(
    "config", [TINY, pytest.param(TINY_RELEASED, marks=pytest.mark.slow)], ids=["small", "released"]
)
@pytest.mark.slow
def test_gradients_reach_every_parameter(config, rng):
    module = HandModule(config, rngs=nnx.Rngs(1))
    module.train()
    graph, parameters, statistics = nnx.split(module, nnx.Param, ...)
    image, camera = jnp.asarray(images(rng, 4)), jax.tree.map(jnp.asarray, mixed(4))
    weights = rng.normal(size=(4, 16, 3)).astype(np.float32)

    @once
    @jax.grad
    def gradient(parameters):
        estimate = nnx.merge(graph, parameters, statistics, copy=True)(image, camera)
        loss = jnp.sum(estimate.pose * weights) + jnp.sum(estimate.betas) + jnp.sum(estimate.confidence)
        return loss + jnp.sum(jnp.square(estimate.joints)) + jnp.sum(estimate.bone)

    for path, leaf in nnx.to_flat_state(gradient(parameters)):
        name = ".".join(map(str, path))
        assert np.isfinite(leaf[...]).all(), name
        # What a normalisation follows cannot learn a bias: the mean takes it away again.
        if not name.endswith("layer.bias"):
            assert np.any(leaf[...] != 0.0), name


def test_training_moves_the_running_averages(rng):
    network = IKNet(TINY, rngs=nnx.Rngs(0))
    joints = rng.normal(size=(4, 21, 3)).astype(np.float32)
    before = jax.tree.map(np.array, nnx.state(network, nnx.BatchStat))
    run = nnx.jit(lambda network, joints: network(joints).raw)
    network.eval()
    run(network, joints)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(network, nnx.BatchStat), before)
    network.train()
    run(network, joints)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), nnx.state(network, nnx.BatchStat), before)
    assert all(jax.tree.leaves(moved))


def test_statistics_are_averaged_over_devices(rng):
    """Two devices with half of the batch each compute the same as one device with the whole batch."""
    config = dataclasses.replace(TINY, batch_axis="devices")
    x = rng.normal(size=(2, 3, 21, 3)).astype(np.float32)
    nets = [IKNet(c, rngs=nnx.Rngs(0)) for c in (TINY, config)]
    together = nnx.jit(lambda network, x: network(x).raw)(nets[0], x.reshape(6, 21, 3))
    graph, state = nnx.split(nets[1])
    apart = jax.pmap(
        lambda x: nnx.merge(graph, state, copy=True)(x).raw, axis_name="devices", devices=jax.devices()[:2]
    )(x)
    np.testing.assert_allclose(np.reshape(apart, together.shape), together, atol=1e-5)


def test_bfloat16_layers_decode_in_float32(small, rng):
    module, compiled = small
    graph, state = nnx.split(HandModule(dataclasses.replace(TINY, dtype="bfloat16"), rngs=nnx.Rngs(0)))
    del state
    half = nnx.merge(graph, nnx.state(module))
    half.eval()
    image = images(rng, 1)
    estimate = program(half)(image, perspective(1))
    assert estimate.heatmap_logits[0].dtype == jnp.bfloat16
    for name in ("heatmaps", "keypoints_2d", "confidence", "relative_depth", "joints", "pose", "betas", "root_depth"):
        assert getattr(estimate, name).dtype == jnp.float32, name
    np.testing.assert_allclose(np.sum(estimate.heatmaps, axis=(1, 2)), 1.0, rtol=1e-5)
    np.testing.assert_allclose(estimate.keypoints_2d, compiled(image, perspective(1)).keypoints_2d, atol=1.0)


def test_float64_all_the_way(x64, rng):
    graph, state = nnx.split(HandModule(TINY, rngs=nnx.Rngs(0)))
    module = nnx.merge(graph, jax.tree.map(lambda a: np.asarray(a, np.float64), state))
    module.eval()
    estimate = program(module)(rng.uniform(size=(1, 32, 32, 3)), None)
    floats = [leaf for leaf in jax.tree.leaves(estimate) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float64")}


def test_an_image_of_another_size_is_refused(small):
    with pytest.raises(InputError, match=r"image has shape \(1, 64, 64, 3\): .* \(batch, 32, 32, 3\)"):
        small[0](jnp.zeros((1, 64, 64, 3)))


# Rotations.


def test_rotations_of_both_kinds(rng):
    pose = rng.normal(size=(5, 16, 3)).astype(np.float32)
    matrices = matrix_from_axis_angle(pose)
    lengths = rng.uniform(0.2, 3.0, (5, 16, 1)).astype(np.float32)
    quaternions = quaternion_from_matrix(matrices) * lengths
    second = matrices[..., 1] + np.float32(0.7) * matrices[..., 0]
    columns = np.concatenate([matrices[..., 0] * lengths, second], axis=-1)
    for raw in (quaternions, -quaternions, columns):
        rotations = rotations_from_raw(raw)
        np.testing.assert_allclose(rotations.matrices, matrices, atol=2e-6)
        np.testing.assert_allclose(matrix_from_axis_angle(rotations.pose), matrices, atol=5e-6)


@pytest.mark.parametrize("columns", [[0.0] * 6, [1.0, 2.0, 3.0] * 2, [0.0] * 3 + [1.0, 0.0, 0.0], [0.0, 0, 0, 0, 1, 0]])
def test_degenerate_columns_still_give_a_rotation(columns):
    columns = np.asarray(columns, np.float32)
    matrix = matrix_from_columns(columns)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(matrix), 1.0, atol=1e-6)
    assert np.isfinite(once(jax.grad(lambda c: jnp.sum(iknet.matrix_from_columns(c)[:, 0])))(columns)).all()


def test_input_of_iknet_is_invariant_to_translation_and_scale(rng):
    network = IKNet(TINY, rngs=nnx.Rngs(0))
    network.eval()
    joints = rng.normal(size=(2, 21, 3)).astype(np.float32)
    moved = np.float32(3.0) * joints + np.asarray([[[0.5, -2.0, 7.0]]], np.float32)
    pose = once(lambda joints: network(joints).pose)
    first, second = (pose(normalise_joints(j)) for j in (joints, moved))
    np.testing.assert_allclose(first, second, atol=1e-4)
    normal = normalise_joints(moved)
    np.testing.assert_allclose(np.linalg.norm(normal[:, 0], axis=-1), 1.0, rtol=1e-5)
    gradient = once(jax.grad(lambda j: jnp.sum(iknet.normalise_joints(j) ** 2)))(np.zeros((21, 3), np.float32))
    assert np.isfinite(gradient).all()


# Losses.


def test_losses_by_hand(rng):
    a, b = (rng.normal(size=(2, 21, 3)).astype(np.float32) for _ in range(2))
    for loss in (losses.keypoint_3d_loss, losses.mano_loss):
        np.testing.assert_allclose(once(loss)(a, b), (a - b) ** 2, rtol=1e-6)
    maps, target = (rng.uniform(size=(2, 4, 5, 21)).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(once(losses.keypoint_2d_loss)(maps, target), (maps - target) ** 2, rtol=1e-6)
    for loss in (losses.shape_depth_loss, losses.shape_silhouette_loss):
        mean = np.mean(np.square(maps - target)[..., 0], axis=(1, 2))
        np.testing.assert_allclose(once(loss)(maps[..., 0], target[..., 0]), mean, rtol=1e-6)
    rendered, seen = maps[..., 0].copy(), target[..., 0].copy()
    rendered[0], seen[1, 1:] = np.inf, 0.0
    partly = once(losses.shape_depth_loss)(rendered, seen)
    np.testing.assert_allclose(partly, [0.0, np.mean(np.square(maps - target)[1, 0, :, 0])], rtol=1e-6)
    np.testing.assert_allclose(
        losses.depth_loss(jnp.asarray([0.5, 0.8]), jnp.asarray([0.7, 0.8])), [0.04, 0.0], atol=1e-7
    )
    np.testing.assert_allclose(losses.beta_loss(jnp.full((2, 10), 2.0)), 40.0)
    share = softmax_heatmaps(target)
    entropy = -np.sum(share * np.log(softmax_heatmaps(maps)), axis=(1, 2))
    np.testing.assert_allclose(once(losses.heatmap_cross_entropy)(maps, share), entropy, rtol=1e-5)


def test_loss_of_rotations():
    """L_ik as published for quaternions, ours for matrices; a wrong raw length adds to the loss."""
    turn = matrix_from_axis_angle(np.asarray([0.0, 0.0, 0.5 * np.pi], np.float32))
    target = np.broadcast_to(turn, (16, 3, 3))
    identity = np.broadcast_to(np.asarray([1.0, 0.0, 0.0, 0.0], np.float32), (16, 4))
    # By 90 degrees: Re(q* q^-1) = cos 45 degrees, so L_cos = 1 - cos and L_l2 = 2 (1 - cos).
    away = 3.0 * (1.0 - np.sqrt(0.5))
    np.testing.assert_allclose(ik_loss(rotations_from_raw(identity), target), away, rtol=1e-5)
    np.testing.assert_allclose(ik_loss(rotations_from_raw(np.float32(2.0) * identity), target), away + 9.0, rtol=1e-5)
    # The sign matters: the ground truth has w >= 0.
    other = 3.0 * (1.0 + np.sqrt(0.5))
    np.testing.assert_allclose(ik_loss(rotations_from_raw(-identity), target), other, rtol=1e-5)
    # Two orthonormal columns 90 degrees away: 1 - cos = 1 and a squared distance of 4.
    rest = np.broadcast_to(np.asarray([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], np.float32), (16, 6))
    np.testing.assert_allclose(ik_loss(rotations_from_raw(rest), target), 5.0, rtol=1e-5)
    columns = np.broadcast_to(np.asarray([0.0, 1.0, 0.0, -1.0, 0.5, 0.0], np.float32), (16, 6))
    # Gram-Schmidt turns it into the truth; the second column's squared length is 1.25 and its overlap 0.5.
    np.testing.assert_allclose(ik_loss(rotations_from_raw(columns), target), 0.0625 + 0.25, rtol=1e-5)


def test_losses_refuse_to_broadcast():
    with pytest.raises(ValueError, match="does not broadcast"):
        losses._squared_error(jnp.zeros((4, 1)), jnp.zeros(4))


def test_weighted_mean_ignores_elements_of_weight_zero():
    errors = jnp.asarray([[1.0, jnp.nan], [3.0, 5.0]])
    weights = jnp.asarray([[1.0, 0.0], [0.5, 0.0]])
    term = once(losses.weighted_mean)(errors, weights)
    np.testing.assert_allclose([term.total, term.weight], [2.5, 1.5])
    np.testing.assert_allclose(once(jax.grad(lambda e: losses.weighted_mean(e, weights).total))(errors), weights)
    of_rows = once(losses.weighted_mean)(errors, jnp.asarray([0.0, 2.0]))
    np.testing.assert_allclose([of_rows.total, of_rows.weight], [16.0, 4.0])
    with pytest.raises(ValueError, match="does not broadcast"):
        losses.weighted_mean(errors, jnp.ones(3))

"""`recover_hand`: one function of arrays from an image to a mesh, and its crops."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import handtailor_jax as ht
from handtailor_jax.cli import EXAMPLES
from handtailor_jax.detector.landmark_network import HandLandmarkConfig, HandLandmarkNetwork
from handtailor_jax.detector.regions import cut, square_region, to_image
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule, LandmarkHandModule
from handtailor_jax.hand_module.weights import load_module
from handtailor_jax.image_to_mesh import _camera, _levels, crop_turned, crop_upright
from handtailor_jax.images import crop_square, read_image
from handtailor_jax.skeleton import ROOT, WRIST
from handtailor_jax.tailor.placement import with_floats
from handtailor_jax.types import Region
from tests.test_objective import fixed_weights

K = np.asarray([[481.17, 0.0, 159.5], [0.0, 481.17, 159.5], [0.0, 0.0, 1.0]], np.float32)
BOX = np.asarray([45.0, 20.0, 235.0, 245.0], np.float32)
RUN = jax.jit(ht.recover_hand, static_argnames="config")
SMALL_LANDMARKS = HandLandmarkConfig(32, stem=(4, 4), widths=(6,), stages=((3, 2, 1),))


@pytest.fixture(scope="module")
def image():
    return read_image(EXAMPLES.with_name("open.jpg"))


@pytest.fixture(scope="module", params=["hourglass", "landmarks"])
def tailor(request):
    return ht.HandTailor.load(network=request.param)


@pytest.fixture(scope="module")
def hourglass():
    return ht.load_weights()


@pytest.mark.parametrize(
    "box",
    [(45.0, 20.0, 235.0, 235.0), (100.0, 40.0, 60.0, 60.0), (-60.0, 100.0, 301.0, 301.0), (0.0, 0.0, 320.0, 320.0)],
)
def test_crops_are_opencvs(image, box):
    """Within 1/255 on average, when shrinking and enlarging, inside and outside of the image."""
    pixels, region = jnp.asarray(image, jnp.float32), square_region(jnp.asarray(box, jnp.float32), rotation=0.4)
    ours = crop_upright(pixels, region.center, region.side, 128)
    assert np.abs(np.asarray(ours) - crop_square(image, box, 128)[0]).mean() < 1.0
    affine = to_image(region, 224)
    theirs = cut(image, np.asarray(affine), 224, extend=True)
    assert np.abs(np.asarray(crop_turned(pixels, affine, 224)) - theirs).mean() < 1.0


def test_a_fine_pattern_is_averaged():
    """Stripes of one pixel become grey in a crop of half the size; samples would keep them."""
    stripes = jnp.broadcast_to((jnp.arange(256.0) % 2 * 255.0)[None, :, None], (256, 256, 3))
    crop = crop_upright(stripes, jnp.asarray([128.0, 128.0]), jnp.asarray(256.0), 128)
    np.testing.assert_allclose(crop, 127.5, atol=1e-3)


@pytest.mark.slow
def test_it_is_one_pass_of_hand_tailor(tailor, image):
    """The same hand as the host's path, for both networks, and so is the hand of its region."""
    expected = tailor.one(image, K, BOX, passes=1)
    found = RUN(tailor.module, tailor.hand, image, K, BOX)
    assert isinstance(found, ht.Hand)
    assert found.vertices.shape == (1609, 3)
    assert found.side == expected.side == "right"
    np.testing.assert_allclose(found.keypoints_2d, expected.keypoints_2d, atol=1.5)
    np.testing.assert_allclose(found.joints, expected.joints, atol=0.012)
    again = RUN(tailor.module, tailor.hand, image, K, found.region)
    np.testing.assert_allclose(again.keypoints_2d, found.keypoints_2d, atol=1e-2)


@pytest.mark.slow
def test_floats_batches_and_nnx(hourglass, hand, image):
    """Floats of 0 to 1 are uint8 values / 255; vmap and nnx.jit compute the same as jit."""
    found = RUN(hourglass, hand, image, K, BOX)
    boxes, floats = jnp.stack([jnp.asarray(BOX), jnp.asarray(BOX) + 4.0]), jnp.asarray(image, jnp.float32) / 255.0
    many = nnx.jit(jax.vmap(ht.recover_hand, in_axes=(None, None, None, None, 0)))
    both = many(hourglass, hand, floats, K, boxes)
    np.testing.assert_allclose(both.keypoints_2d[0], found.keypoints_2d, atol=1e-2)
    assert not np.allclose(both.keypoints_2d[1], found.keypoints_2d, atol=1e-2)


@pytest.mark.parametrize(("stem", "pixels"), [("patches", 0.05), ("landmarks", 3.0)])
@pytest.mark.slow
def test_a_left_hand_is_the_mirrored_right_hand(hourglass, hand, image, stem, pixels):
    """Exactly in the square of a box; the landmark network's region around a left hand is a little different."""
    module = hourglass if stem == "landmarks" else HandModule(HandModuleConfig.small(), rngs=nnx.Rngs(0))
    module.eval()
    run = jax.jit(lambda image, box, right: ht.recover_hand(module, hand, image, None, box, right=right, config=None))
    found = run(image, BOX, 1.0)
    box = np.asarray([320.0 - BOX[0] - BOX[2], *BOX[1:]], np.float32)
    left = run(np.ascontiguousarray(image[:, ::-1]), box, 0.0)
    assert left.left
    np.testing.assert_allclose(319.0 - left.keypoints_2d[:, 0], found.keypoints_2d[:, 0], atol=pixels)


def fixed_landmarks():
    """A small landmark network with IKNet that finds the hand of the image, more or less."""
    known = next(each for each in ht.read_detections(EXAMPLES) if each.id == "open")
    relative = known.keypoints_2d - known.keypoints_2d[ROOT]
    depth = 0.3 * np.hypot(*relative.T) * np.sin(np.arange(21.0))  # fingers bend by turns
    metres = 0.09 / np.hypot(*relative[WRIST])
    heads = {
        "landmarks": np.column_stack([(known.keypoints_2d - BOX[:2]) * SMALL_LANDMARKS.image_size / BOX[2:], depth]),
        "world": metres * np.column_stack([relative, depth]),
    }
    network = HandLandmarkNetwork(SMALL_LANDMARKS, rngs=nnx.Rngs(0))
    graph, state = nnx.split(network)
    rng = np.random.default_rng(0)
    flat = []
    for place, variable in nnx.to_flat_state(state):
        shape = variable.shape
        value = rng.normal(size=shape) * (0.1 if place[0] in heads else 1.0) / np.sqrt(shape[-1])
        if place[0] in heads and place[-1] == "bias":
            value = heads[place[0]].reshape(-1)
        flat.append((place, variable.replace(jnp.asarray(value, jnp.float32))))
    iknet = ht.HandTailor.load(network="landmarks").module.iknet
    return LandmarkHandModule(nnx.merge(graph, nnx.from_flat_state(flat)), iknet)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "config"), [("hourglass", ht.TailorConfig.network()), ("landmarks", ht.TailorConfig.landmarks())]
)
def test_gradients_reach_pixels_weights_camera_and_box(x64, network, config, image, rng, tmp_path):
    """From the mesh of a right and a left hand: finite, not zero, by box and pixels equal to central differences.

    In float64, with small networks: those of the embedded ones take gigabytes to compile, and are used in
    examples/03_jit_vmap_grad.py and docs/notebook.ipynb. The box is not at whole pixels, where the gradient of a
    bilinear sample jumps.
    """
    config = dataclasses.replace(config, solver=dataclasses.replace(config.solver, iterations=1))
    module = fixed_landmarks() if network == "landmarks" else ht.load_weights(fixed_weights(tmp_path / "x.safetensors"))
    graph, weights = nnx.split(module)
    hand, weights, camera = with_floats(np.dtype("float64"), (ht.embedded_hand(), weights, ht.Camera.from_matrix(K)))
    of_vertices = rng.normal(size=(1609, 3))

    # One program for values and gradients of both sides, because it takes long to compile.
    @jax.jit
    @jax.value_and_grad
    def loss(given, right):
        weights, pixels, camera, box = given
        found = ht.recover_hand(nnx.merge(graph, weights), hand, pixels, camera, box, right=right, config=config)
        return jnp.mean(found.keypoints_2d[:, 0]) + jnp.sum(of_vertices * found.vertices)

    box = jnp.asarray(BOX + np.asarray([0.137, 0.271, 0.193, 0.419]), jnp.float64)
    pixels = jnp.asarray((image + rng.uniform(0.0, 1.0, image.shape)) / 256.0)
    given = weights, pixels, camera, box
    of_box, of_pixels = np.asarray([1e-7, 3e-8, -5e-8, 2e-8]), 1e-10 * rng.normal(size=image.shape)
    for right in (1.0, 0.0):
        gradients = jax.device_get(loss(given, right)[1])
        for part in gradients:
            leaves = jax.tree.leaves(part)
            assert all(np.isfinite(leaf).all() for leaf in leaves)
            assert any((leaf != 0.0).any() for leaf in leaves)
        # A few of the units change side even within so short a step, of all pixels at that, which costs about 0.1 %.
        for step, slope, tolerance in (
            ((0.0, of_box), np.vdot(gradients[3], of_box), 1e-3),
            ((of_pixels, 0.0), np.vdot(gradients[1], of_pixels), 5e-3),
        ):
            ends = ((weights, pixels + sign * step[0], camera, box + sign * step[1]) for sign in (1.0, -1.0))
            upper, lower = (loss(end, right)[0] for end in ends)
            assert slope == pytest.approx(float(upper - lower) / 2.0, rel=tolerance)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((2, 32, 32, 3), np.uint8)}, "image has shape (2, 32, 32, 3): give one RGB image"),
        ({"image": np.zeros((32, 32), np.uint8)}, "image has shape (32, 32): give one RGB image"),
        ({"box": Region(np.zeros((3, 2)), np.ones(3), np.ones(3))}, "box.center has shape (3, 2): give one region"),
        ({"image": np.zeros((32, 32, 3), np.int32)}, "image has type int32"),
        ({"image": np.full((32, 32, 3), 255.0)}, "image has float values outside 0 to 1"),
        ({"camera": np.zeros((2, 3, 3))}, "camera has shape (2, 3, 3): give a matrix (3, 3), fx"),
        ({"camera": ht.Camera.perspective(np.nan, 400.0, 1.0, 1.0)}, "camera is not a valid camera"),
        ({"camera": ht.Camera(400.0 * np.eye(2), np.zeros(2), np.asarray(5.0))}, "camera is not a valid camera"),
        ({"right": 2.0}, "right is 2.0: give the probability of a right hand, 0 to 1"),
        ({"right": "left"}, "right must hold numbers only"),
        ({"box": square_region(np.asarray([0.0, 0.0, -50.0, -50.0]))}, "has no area"),
        ({"box": square_region(np.asarray([0.0, 0.0, 20.0, 20.0]), rotation=np.nan)}, "box.rotation"),
        ({"box": square_region(np.asarray([1e5, 1e5, 50.0, 50.0]))}, "lies outside the 32 x 32 image"),
        ({"camera": ht.Camera.weak_perspective(np.ones(2))}, "camera.linear has shape (2, 2, 2): give one camera"),
        ({"box": np.zeros((2, 4))}, "box is [[0. 0. 0. 0.] [0. 0. 0. 0.]]: give four finite numbers"),
        ({"box": (0.1, 0.1, 0.5, 0.5)}, "box 0.1 0.1 0.5 0.5 is smaller than 4 pixels"),
    ],
)
def test_errors_name_the_argument(hourglass, hand, arguments, message):
    given = {"image": np.zeros((32, 32, 3), np.uint8)} | arguments
    with pytest.raises(ht.InputError) as error:
        ht.recover_hand(hourglass, hand, **given)
    assert message in str(error.value)
    values = {name: value for name, value in given.items() if "shape (" in message or "type" in message}
    if values:  # what is wrong with shapes and types is found while tracing, too
        with pytest.raises(ht.InputError) as error:
            jax.eval_shape(lambda given: ht.recover_hand(hourglass, hand, **given), given)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        (np.zeros((1, 224, 224, 3), np.uint8), "image has type uint8: give floats of 0 to 1"),
        (np.zeros((224, 224, 3), np.float32), "add the batch axis with image[None]"),
        (np.zeros((1, 64, 64, 3), np.float32), "takes crops of (batch, 224, 224, 3); resample the crops"),
    ],
)
def test_crops_that_a_hand_module_cannot_take(hourglass, crop, message):
    with pytest.raises(ht.InputError) as error:
        hourglass(jnp.asarray(crop))
    assert message in str(error.value)
    with pytest.raises(ht.InputError, match=r"camera\.linear has shape \(2, 2, 2\): give one camera for each crop"):
        hourglass(jnp.zeros((1, 224, 224, 3)), ht.Camera.weak_perspective(np.ones(2)))


def test_sixteen_bits_are_reduced_to_eight():
    image = np.full((4, 4, 3), 65535, np.uint16)
    np.testing.assert_array_equal(_levels(image, jnp.dtype("float32")), np.full((4, 4, 3), 255.0))
    with pytest.raises(ht.InputError, match="image has type uint16: give uint8 values, or floats of 0 to 1"):
        jax.jit(lambda image: _levels(image, jnp.dtype("float32")))(image)


@pytest.mark.slow
def test_four_numbers_are_a_camera_under_jit_too(hand, image):
    """With a small network, because each form of the camera is a program to compile."""
    module = HandModule(dataclasses.replace(HandModuleConfig.small(), channels=8, depth=1), rngs=nnx.Rngs(0))
    module.eval()
    recover = jax.jit(lambda camera: ht.recover_hand(module, hand, image, camera, BOX, config=None).joints)
    four = {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    np.testing.assert_allclose(recover(four), recover(K), atol=1e-5)
    np.testing.assert_allclose(recover(tuple(four.values())), recover(K), atol=1e-5)


def test_hand_tailor_is_pickled(tailor):
    """A copy has the same networks, hand and configuration; nothing is compiled for this."""
    copy = pickle.loads(pickle.dumps(tailor))
    assert copy.config == tailor.config
    for mine, other in zip(
        jax.tree.leaves((copy.module, copy.hand)), jax.tree.leaves((tailor.module, tailor.hand)), strict=True
    ):
        np.testing.assert_array_equal(mine, other)


class Named(ht.HandTailor):
    """A subclass with another constructor, which no copy may call, and a field of its own."""

    def __init__(self, module, *, name):
        super().__init__(module)
        self.name = name


def test_a_subclass_of_hand_tailor_is_pickled(hourglass):
    copy = pickle.loads(pickle.dumps(Named(hourglass, name="mine")))
    assert type(copy) is Named
    assert copy.name == "mine"
    assert copy.config == ht.TailorConfig.network()


@pytest.mark.parametrize("form", ["matrix", "numbers", "camera"])
def test_cameras_keep_the_precision_of_the_module(x64, form):
    exact = 500.123456789012
    camera: object = (exact, exact, 100.0, 90.0)
    if form != "numbers":
        camera = ht.Camera.perspective(*camera)
    found = _camera(np.asarray(camera.matrix) if form == "matrix" else camera, np.dtype("float64"))
    assert float(found.linear[0, 0]) == exact


def test_the_embedded_hand_in_any_type_and_side_is_the_embedded_hand(hand64, mano):
    for given in (hand64, hand64.mirrored(), ht.embedded_hand("left")):
        assert load_module(None, given).config.stacks_2d
    with pytest.raises(ht.InputError, match="the embedded weights fit the embedded hand only"):
        load_module(None, mano)


def test_the_preset_of_the_other_network(hourglass):
    with pytest.raises(ht.InputError, match="the preset landmarks is for the landmark network's keypoints"):
        ht.HandTailor(hourglass, config=ht.TailorConfig.landmarks())


def test_a_view_without_batch_axis_is_refused(tailor, image):
    view = tailor.finder.view(image, ht.Camera.from_matrix(K), square_region(BOX), 0.5)
    with pytest.raises(ht.InputError, match=r"views\.crop has shape \(\d+, \d+, 3\): give \(batch"):
        ht.recover_views(tailor.module, tailor.hand, view, tailor.config)

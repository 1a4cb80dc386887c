"""The detector against MediaPipe's outputs, and its parts against plain formulas.

tests/golden/detector.npz and .json hold outputs of TensorFlow Lite's reference kernels and of MediaPipe's Python API.
"""

import dataclasses
import json
import math
import runpy
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from handtailor_jax.detector import layers
from handtailor_jax.detector.detector import DetectorConfig, HandDetector, merge_hands
from handtailor_jax.detector.landmark_network import HandLandmarkConfig, HandLandmarkNetwork
from handtailor_jax.detector.palm_detector import (
    MAX_PALMS,
    PalmDetector,
    PalmDetectorConfig,
    Palms,
    anchor_centers,
    intersection_over_union,
    suppress,
)
from handtailor_jax.detector.regions import cut, from_box, from_landmarks, from_palm, square_region, tiles, to_image
from handtailor_jax.detector.weights import CONFIGS, LANDMARKS, PALM, load_landmark_network, load_palm_detector
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import inverse_affine, project, transform_camera, transform_pixels
from handtailor_jax.images import read_image, whole
from handtailor_jax.types import Camera, Region

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "handtailor_jax" / "assets" / "examples"
GOLDEN = Path(__file__).parent / "golden"

SMALL_PALM = PalmDetectorConfig(image_size=32, widths=(4, 6, 8, 8), depth=1, level_depth=1)
SMALL_LANDMARKS = HandLandmarkConfig(32, stem=(4, 4), widths=(4, 4, 6), stages=((3, 2, 1), (5, 1, 1), (5, 2, 1)))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "detector.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def palm_detector():
    return load_palm_detector()


@pytest.fixture(scope="module")
def landmark_network():
    return load_landmark_network()


@pytest.fixture(scope="module")
def detector(palm_detector, landmark_network):
    return HandDetector(palm_detector, landmark_network)


@pytest.fixture(scope="module")
def mediapipe_detector(palm_detector, landmark_network):
    """A detector with MediaPipe's thresholds, which looks at each region once."""
    return HandDetector(palm_detector, landmark_network, DetectorConfig(palm=0.5, presence=0.5, sure=0.0))


def run(module, x):
    graph, state = nnx.split(module)
    return jax.device_get(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x))


def with_noise(images):
    """The golden noise, then images."""
    noise = np.random.default_rng(0).random((1, *images.shape[1:]), np.float32)
    return jnp.asarray(np.concatenate([noise, images / np.float32(255)]))


def close(actual, desired, atol):
    np.testing.assert_allclose(np.asarray(actual).reshape(np.shape(desired)), desired, rtol=0, atol=atol)


# --- Networks


def test_palm_detector_is_that_of_tflite(palm_detector, golden):
    logits, boxes = run(palm_detector, with_noise(golden["palm_input"]))
    close(logits, golden["palm_logits"], 1.5e-4)
    best = golden["palm_top"].astype(int)[..., None]
    close(np.take_along_axis(boxes, best, axis=1), golden["palm_boxes_top"], 5.3e-4)  # pixels


def test_landmark_network_is_that_of_tflite(landmark_network, golden):
    found = run(landmark_network, with_noise(golden["crop_input"]))
    close(found.crop, golden["hand_landmarks"], 4.2e-4)  # pixels
    close(found.world, golden["hand_world"], 5.9e-7)  # metres
    close(found.presence, golden["hand_presence"][:, 0], 3.2e-6)
    close(found.right, golden["hand_right"][:, 0], 3.8e-6)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        ("palm_detection_full", 1_132_056),
        ("palm_detection_lite", 959_608),
        ("hand_landmark_full", 2_715_680),
        ("hand_landmark_lite", 1_011_712),
    ],
)
def test_number_of_parameters(tool, network, parameters):
    assert sum(math.prod(shape) for shape in tool.tensor_shapes(network).values()) == parameters


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (2, 6)])
def test_convolutions_as_shifted_sums(rng, size, stride, shape):
    x = jnp.asarray(rng.normal(size=(2, *shape, 3)), jnp.float32)
    for shape, atol in (((size, size, 1, 3), 1e-5), ((size, size, 3, 4), 1e-4)):  # depthwise, dense
        kernel = jnp.asarray(rng.normal(size=shape), jnp.float32)
        as_shifts = layers._as_shifts(x, kernel, stride=stride)
        close(layers.convolve(x, kernel, stride), as_shifts, 0.0)
        close(layers._as_convolution(x, kernel, stride=stride), as_shifts, atol)


def test_upsampling_keeps_a_plane(rng):
    plane = jnp.asarray(np.add.outer(np.arange(4.0), 10.0 * np.arange(5.0)), jnp.float32)[None, :, :, None]
    fine = np.asarray(layers.upsample_2(plane))[0, ..., 0]
    expected = np.add.outer((np.arange(8) - 0.5) / 2, 10.0 * (np.arange(10) - 0.5) / 2)
    close(fine[1:-1, 1:-1], expected[1:-1, 1:-1], 1e-5)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: PalmDetector(SMALL_PALM, rngs=nnx.Rngs(0)), id="palm"),
        pytest.param(lambda: HandLandmarkNetwork(SMALL_LANDMARKS, rngs=nnx.Rngs(0)), id="landmarks"),
    ],
)
@pytest.mark.slow
def test_gradients(x64, rng, build):
    graph, state = nnx.split(nnx.eval_shape(build))
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / math.sqrt(leaf.shape[-1])), state)
    size = nnx.merge(graph, state).config.image_size

    def value(state, image):
        outputs = jax.tree.leaves(nnx.merge(graph, state)(image))
        return sum(jnp.sum(jnp.sin(3.0 * leaf)) for leaf in outputs)

    # Noise: at constant areas the maximum of equal values has no gradient.
    check_gradient(value, (state, jnp.asarray(rng.random((1, size, size, 3)))), rng)


def check_gradient(value, inputs, rng):
    """The gradient of a scalar against a central difference, along a random direction for each input."""
    value = jax.jit(value)
    gradients = jax.jit(jax.grad(value, argnums=tuple(range(len(inputs)))))(*inputs)
    for part, gradient in enumerate(gradients):
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), inputs[part])

        def moved(step, part=part, direction=direction):
            there = jax.tree.map(lambda leaf, d: leaf + step * d, inputs[part], direction)
            return float(value(*inputs[:part], there, *inputs[part + 1 :]))

        numeric = (moved(1e-7) - moved(-1e-7)) / 2e-7
        exact = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float(np.sum(np.asarray(g) * d)), gradient, direction)))
        assert exact == pytest.approx(numeric, rel=1e-4)


# --- Palms


def test_anchors(golden):
    close(anchor_centers(PalmDetectorConfig()), golden["anchors"], 0.0)


def suppress_plainly(palms, threshold):
    """Weighted suppression in a few lines of NumPy."""
    score, values = np.asarray(palms.score), np.concatenate([palms.box, palms.keypoints.reshape(-1, 14)], axis=1)
    same = np.asarray(intersection_over_union(palms.box, palms.box)) > 0.3
    left = [i for i in np.argsort(-score, kind="stable") if score[i] >= threshold]
    found = []
    while left:
        members = [i for i in left if same[left[0], i]]
        found.append((score[left[0]], np.average(values[members], axis=0, weights=score[members])))
        left = [i for i in left if i not in members]
    return found


def random_palms(rng, count=150):
    box = np.concatenate([rng.random((count, 2)), 0.1 + 0.2 * rng.random((count, 2))], axis=1)
    arrays = rng.random(count), box, rng.random((count, 7, 2))
    return Palms(*[jnp.asarray(array, jnp.float32) for array in arrays])


def test_suppression(rng):
    palms = random_palms(rng)
    found = jax.jit(suppress)(palms, 0.5)
    expected = suppress_plainly(palms, 0.5)
    assert 5 < len(expected) < MAX_PALMS
    assert (np.asarray(found.score) > 0).sum() == len(expected)
    for i, (score, values) in enumerate(expected):
        assert found.score[i] == pytest.approx(score)
        close(np.concatenate([found.box[i], found.keypoints[i].reshape(-1)]), values, 1e-6)


def test_suppression_without_candidates(rng):
    found = suppress(random_palms(rng), 1.1)
    assert not np.asarray(found.score).any()
    assert np.isfinite(found.box).all()


def test_intersection_over_union():
    boxes = jnp.asarray([[0.5, 0.5, 1.0, 1.0], [1.0, 0.5, 1.0, 1.0], [5.0, 5.0, 1.0, 1.0], [0.5, 0.5, -1.0, 1.0]])
    close(intersection_over_union(boxes[:1], boxes)[0], [1.0, 1 / 3, 0.0, 0.0], 1e-6)


# --- Regions and crops


def as_mediapipe(region, sizes):
    """A region as MediaPipe writes it: centre and sides in fractions of the image, rotation."""
    side = np.asarray(region.side)[:, None] / sizes
    return np.concatenate([np.asarray(region.center) / sizes, side, np.asarray(region.rotation)[:, None]], axis=1)


def test_regions_from_palms(golden):
    palms, sizes = golden["palms"], golden["palm_sizes"].astype(np.float32)
    box = np.concatenate([(palms[:, 1:3] + palms[:, 3:5] / 2) * sizes, palms[:, 3:5] * sizes], axis=1)
    keypoints = palms[:, 5:].reshape(-1, 7, 2) * sizes[:, None]
    regions = from_palm(Palms(*[jnp.asarray(array) for array in (palms[:, 0], box, keypoints)]))
    close(as_mediapipe(regions, sizes), golden["palm_regions"], 1e-5)


def test_regions_from_landmarks(golden):
    sizes = golden["landmark_sizes"].astype(np.float32)
    regions = from_landmarks(jnp.asarray(golden["landmarks"] * sizes[:, None]))
    close(as_mediapipe(regions, sizes), golden["landmark_regions"], 1e-5)


def test_regions_from_a_box():
    regions = jax.tree.map(lambda *leaves: np.stack(leaves), *from_box((10.0, 20.0, 30.0, 40.0))[0])
    close(regions.center, [[25.0, 40.0]] * 4, 0.0)
    close(regions.side, [64.0] * 4, 1e-5)
    close(regions.rotation, np.radians([0, 90, 180, 270]), 1e-6)


def some_region(x=61.5, y=40.25, side=50.0, rotation=0.7):
    return Region(jnp.asarray([x, y], jnp.float32), jnp.asarray(side, jnp.float32), jnp.asarray(rotation, jnp.float32))


def test_the_camera_follows_a_region(rng):
    region = some_region()
    to_crop = inverse_affine(to_image(region, 224))
    close(transform_pixels(to_crop, region.center[None]), [[112.0, 112.0]], 1e-4)
    camera = Camera.perspective(300.0, 310.0, 50.0, 60.0)
    points = jnp.asarray(rng.normal(size=(5, 3)) + np.asarray([0, 0, 8]), jnp.float32)
    moved = project(transform_camera(camera, to_crop), points)
    close(moved, transform_pixels(to_crop, project(camera, points)), 1e-3)


def test_crops_are_those_of_mediapipe(golden):
    for name, expected, letterbox, row in zip(
        ("open", "thumbs_up"), golden["crop_input"], golden["palm_input"], golden["crop_region"], strict=True
    ):
        image = read_image(EXAMPLES / f"{name}.jpg")
        crop = cut(image, np.asarray(to_image(some_region(*row), 224)), 224, extend=True)
        assert np.abs(crop.astype(int) - expected).max() <= 3  # OpenCV's versions differ by that
        assert np.abs(crop.astype(int) - expected).mean() < 0.05
        crop = cut(image, np.asarray(to_image(square_region(whole(image)), 192)), 192, extend=False)
        assert np.abs(crop.astype(int) - letterbox).max() <= 3


def test_outside_is_black_or_repeats_the_edge():
    image = np.full((10, 10, 3), 200, np.uint8)
    affine = np.asarray(to_image(some_region(5.0, 5.0, 40.0, 0.0), 32))
    assert cut(image, affine, 32, extend=True).min() == 200
    black = cut(image, affine, 32, extend=False)
    assert black[0].max() == 0
    assert black[16, 16].min() == 200


def test_very_long_images_are_cut():
    image = np.zeros((2, 40_000, 3), np.uint8)
    image[:, 20_000:] = 255
    crop = cut(image, np.asarray(to_image(square_region(whole(image)), 192)), 192, extend=True)
    assert crop[96, 90].max() == 0
    assert crop[96, 100].min() == 255


# --- Whole images

with (GOLDEN / "detector.json").open() as _file:
    PIPELINE = json.load(_file)


@pytest.mark.parametrize("name", sorted(PIPELINE))
def test_hands_of_the_examples_are_those_of_mediapipe(mediapipe_detector, name):
    found = mediapipe_detector(read_image(EXAMPLES / name), thorough=False)
    expected = PIPELINE[name]["hands"]
    assert len(found) == len(expected)
    for hand, truth in zip(found, expected, strict=True):
        keypoints = np.asarray(truth["keypoints_2d"])
        size = np.ptp(keypoints, axis=0).max()
        assert np.linalg.norm(hand.keypoints_2d - keypoints, axis=1).max() < 0.02 * size
        close(hand.joints_3d, np.asarray(truth["joints_3d"]), 2e-3)  # metres
        assert hand.side == truth["side"]
        assert hand.side_probability == pytest.approx(truth["side_probability"], abs=5e-3)


def test_a_hand_is_followed_and_found_in_a_box(detector):
    image = read_image(EXAMPLES / "open.jpg")
    (hand,) = detector(image)
    size = np.ptp(hand.keypoints_2d, axis=0).max()
    (again,) = detector.recognise(image, [hand.next_region])
    assert again.presence > 0.9
    assert np.linalg.norm(again.keypoints_2d - hand.keypoints_2d, axis=1).mean() < 0.05 * size
    for turns in range(4):
        turned = np.rot90(image, turns)
        box = np.concatenate([np.zeros(2), turned.shape[1::-1]])
        found = detector.in_box(turned, box)
        assert found.side == "right"
        expected = hand.keypoints_2d
        for _ in range(turns):
            expected = np.stack([expected[:, 1], image.shape[0] - 1 - expected[:, 0]], axis=1)
        assert np.linalg.norm(found.keypoints_2d - expected, axis=1).mean() < 0.1 * size


@pytest.mark.slow
def test_tiles_find_small_hands(detector):
    image = np.full((900, 1200, 3), 90, np.uint8)
    small = read_image(EXAMPLES / "open.jpg")[::2, ::2]
    image[600:760, 900:1060] = small
    image[40:200, 30:190] = small[:, ::-1]
    assert len(detector(image, thorough=False)) < 2
    hands = detector(image, thorough=True)
    assert sorted(hand.side for hand in hands) == ["left", "right"]
    assert detector(np.zeros((50, 70, 3), np.uint8)) == []
    (nothing,) = detector.recognise(np.zeros((50, 70, 3), np.uint8), [hands[0].next_region])
    assert nothing.presence < 0.5


@pytest.mark.parametrize("shape", [(1, 320, 3), (30, 30, 3), (3000, 4000, 3)])
def test_images_of_any_size(detector, rng, shape):
    assert detector(rng.integers(0, 256, shape, np.uint8), thorough=False) == []


def test_bad_images_are_refused(detector):
    with pytest.raises(InputError, match="shape"):
        detector(np.zeros((3, 4, 5, 6)))
    with pytest.raises(InputError, match="outside"):
        detector.in_box(np.zeros((30, 30, 3), np.uint8), (40, 40, 5, 5))


def test_thresholds_are_a_configuration(palm_detector, landmark_network):
    strict = HandDetector(palm_detector, landmark_network, DetectorConfig(palm=0.999))
    assert strict(read_image(EXAMPLES / "open.jpg"), thorough=False) == []


def test_a_second_look_at_unsure_hands(palm_detector, landmark_network):
    """It is at the region around the keypoints, and the surer of both looks counts."""
    image = read_image(EXAMPLES / "open.jpg")
    once, twice = (HandDetector(palm_detector, landmark_network, DetectorConfig(sure=sure)) for sure in (0.0, 1.1))
    (first,) = once(image)
    (again,) = once.recognise(image, [first.next_region])
    (found,) = twice(image)
    surer = max(first, again, key=lambda hand: hand.presence)
    np.testing.assert_allclose(found.keypoints_2d, surer.keypoints_2d)
    np.testing.assert_allclose(found.presence, surer.presence)


def test_tiles_cover_the_image():
    assert tiles(100, 100)[0][2] < 100
    for width, height in ((640, 480), (480, 640), (320, 1), (100, 100)):
        boxes = np.asarray(tiles(width, height))
        assert len(boxes) <= 64
        inside = boxes[boxes[:, 2] < min(width, height)]
        if len(inside):
            close([inside[:, 0].min(), inside[:, 1].min()], [0.0, 0.0], 1e-6)
            close((inside[:, :2] + inside[:, 2:]).max(axis=0), [width, height], 1e-6)


def test_doubles_and_parts_are_merged(detector):
    (hand,) = detector(read_image(EXAMPLES / "open.jpg"))
    keypoints, center = hand.keypoints_2d, hand.keypoints_2d[9]
    double, other = keypoints + np.float32(3.0), keypoints + np.float32(500.0)
    part = center + np.float32(0.2) * (keypoints - center)
    assert merge_hands([double, keypoints, part, other], [0.6, 0.9, 0.99, 0.8]) == [1, 3]
    assert merge_hands([], []) == []


# --- Weights


@pytest.fixture(scope="module")
def tool():
    """The converter, as a namespace."""
    return types.SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "convert_mediapipe.py")))


@pytest.mark.parametrize("network", ["palm_detection_full", "hand_landmark_lite"])
def test_the_port_table_is_complete(tool, rng, network):
    shapes = tool.tensor_shapes(network)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def numbers(row, name):
        tensor = tensors.get(f"{row.module}.{name}")
        return tensor if tensor is None or row.index is None else tensor[row.index]

    rows = tool.TABLES[network]
    made = [
        tool.Layer(row.kind, numbers(row, "slope" if row.kind == "prelu" else "kernel"), numbers(row, "bias"))
        for row in rows
    ]
    back = tool.port(network, made)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        close(back[name], tensor, 0.0)
    with pytest.raises(InputError, match="layers with weights"):
        tool.port(network, made[:-1])
    with pytest.raises(InputError, match="the file has a"):
        tool.port(network, [made[1], made[0], *made[2:]])
    if network.startswith("palm"):
        surplus = dataclasses.replace(made[2], bias=np.ones(32, np.float32))
        with pytest.raises(InputError, match="not zero"):
            tool.port(network, [*made[:2], surplus, *made[3:]])


def test_unknown_tflite_files_are_refused(tool, tmp_path):
    (tmp_path / "x.tflite").write_bytes(b"something")
    with pytest.raises(InputError, match="sha256"):
        tool.convert(tmp_path / "x.tflite", tmp_path / "x.safetensors")


def test_wrong_weight_files_are_refused(tool, tmp_path):
    assets = ROOT / "handtailor_jax" / "assets"
    with pytest.raises(InputError, match="no such file"):
        load_palm_detector(tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match="not a PalmDetector"):
        load_palm_detector(assets / LANDMARKS)
    with pytest.raises(InputError, match="does not contain weights of a detector"):
        load_palm_detector(assets / "hourglass.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((assets / PALM).read_bytes()[:1000])
    with pytest.raises(InputError, match="is not a safetensors file or is truncated"):
        load_palm_detector(tmp_path / "cut.safetensors")
    tensors = {name: np.zeros(shape) for name, shape in tool.tensor_shapes("palm_detection_lite").items()}
    path = tmp_path / "lite.safetensors"

    def saved(tensors):
        tool.save_weights(path, "palm_detection_lite", tensors, {})
        return path

    assert load_palm_detector(saved(tensors)).config == CONFIGS["palm_detection_lite"]
    with pytest.raises(InputError, match=r"lacks 1 tensor \(stem\.bias\)"):
        load_palm_detector(saved({k: v for k, v in tensors.items() if k != "stem.bias"}))
    with pytest.raises(InputError, match=r"has 1 tensor \(x\) too many"):
        load_palm_detector(saved(tensors | {"x": np.zeros(1)}))
    with pytest.raises(InputError, match="shape"):
        load_palm_detector(saved(tensors | {"stem.bias": np.zeros(3)}))
    with pytest.raises(InputError, match="not finite"):
        load_palm_detector(saved(tensors | {"stem.bias": np.full(32, np.nan)}))

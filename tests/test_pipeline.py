"""The whole graph, from image to placed hand. A module that reads painted keypoints stands in for a trained one."""

import dataclasses
import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from handtailor_jax import pipeline
from handtailor_jax.detector.regions import square_region
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import as_camera, inverse_linear, project, transform_camera
from handtailor_jax.geometry.lifting import lift, lift_scale, root_depth_in_bones
from handtailor_jax.geometry.mirror import mirror_camera, mirror_pose
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule, HourglassEstimate
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.pipeline import recover
from handtailor_jax.skeleton import ROOT, WRIST
from handtailor_jax.tailor.placement import camera_keypoints, camera_mesh
from handtailor_jax.tailor.tailor import TailorConfig
from handtailor_jax.types import Camera, HandParameters, Memory
from handtailor_jax.video.smoothing import smooth_video
from handtailor_jax.video.track import HandVideo, VideoConfig

SIZE = 256
K = np.asarray([[620.0, 0.0, 310.0], [0.0, 600.0, 250.0], [0.0, 0.0, 1.0]], np.float32)
LEVELS = (0, 128, 255)
PALETTE = np.asarray([(r, g, b) for r in LEVELS for g in LEVELS for b in LEVELS if (r, g, b) != (128, 128, 128)])[:21]

# A spread hand, so that no keypoint's dot covers another's: every finger bent a little, palm toward the camera.
POSE = np.zeros((16, 3), np.float32)
POSE[0] = [1.2, 0.9, -0.6]
POSE[1:, 2] = 0.12


def true_hand(hand, translation=(0.02, -0.01, 0.5)):
    return HandParameters(
        pose=jnp.asarray(POSE),
        betas=jnp.asarray([0.8, -0.5, 0.3, 0, 0, 0, 0, 0, 0, 0], jnp.float32),
        scale=jnp.ones(()),
        translation=jnp.asarray(translation, jnp.float32),
    )


def paint(keypoints_2d, height=480, width=640, radius=4.0):
    """An image with a dot of its own colour on every keypoint, antialiased."""
    rows, columns = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 128.0)
    for (u, v), color in zip(np.asarray(keypoints_2d, float), PALETTE, strict=True):
        left, top = (max(0, math.floor(center - radius) - 1) for center in (u, v))
        near = np.s_[top : max(top, math.ceil(v + radius) + 2), left : max(left, math.ceil(u + radius) + 2)]
        cover = np.clip(radius + 0.5 - np.hypot(columns[near] - u, rows[near] - v), 0.0, 1.0)[..., None]
        image[near] = image[near] * (1.0 - cover) + cover * color
    return np.round(image).astype(np.uint8)


class Reader(HandModule):
    """Reads painted keypoints; everything else of its estimate is the truth, in the words of the released network."""

    def __init__(self, hand, truth):
        self.config = dataclasses.replace(HandModuleConfig.small(), image_size=SIZE)
        joints = camera_keypoints(hand, truth)
        bone = jnp.linalg.norm(joints[WRIST] - joints[ROOT])
        self.depth = nnx.Variable((joints[:, 2] - joints[ROOT, 2]) / bone)
        self.pose, self.betas, self.bone = nnx.Variable(truth.pose), nnx.Variable(truth.betas), nnx.Variable(bone)

    def __call__(self, image, camera):
        batch, dtype = image.shape[0], image.dtype
        apart = image[:, :, :, None] - jnp.asarray(PALETTE / 255.0, dtype)[None, None, None]
        weight = jax.nn.relu(1.0 - jnp.sum(apart**2, axis=-1) / 0.05)
        total = jnp.sum(weight, axis=(1, 2)) + 1e-9
        index = jnp.arange(SIZE, dtype=dtype)
        u = jnp.einsum("byxk,x->bk", weight, index) / total
        v = jnp.einsum("byxk,y->bk", weight, index) / total
        keypoints = jnp.stack([u, v], axis=-1)
        depth = jnp.broadcast_to(self.depth[...], (batch, 21))
        rays = jnp.einsum("bij,bkj->bki", inverse_linear(camera), keypoints - camera.center[:, None])
        per_bone = lift_scale(jnp.concatenate([rays, depth[..., None]], axis=-1))
        perspective = camera.perspectivity > 0.5
        bone = jnp.broadcast_to(self.bone[...], (batch,))
        root_depth = jnp.where(perspective, bone * root_depth_in_bones(rays, depth), 0.0)
        scale = jnp.where(perspective, bone, per_bone)
        joints = lift(camera, jnp.concatenate([keypoints, depth[..., None]], axis=-1), scale, root_depth)
        pose = jnp.broadcast_to(self.pose[...], (batch, 16, 3))
        matrices = matrix_from_axis_angle(pose)
        nothing = jnp.zeros((batch, 1, 1, 21), dtype)
        return HourglassEstimate(
            left=jnp.zeros(batch, bool),
            presence=None,
            right=None,
            convention="mano",
            heatmap_logits=(nothing,),
            depth_maps=(nothing,),
            heatmaps=nothing,
            keypoints_2d=keypoints,
            confidence=jnp.minimum(total / 20.0, 1.0),
            relative_depth=depth,
            bone=bone,
            scale=scale,
            root_depth=root_depth,
            joints=joints,
            raw_rotations=matrices[..., 0],
            rotations=matrices,
            pose=pose,
            betas=jnp.broadcast_to(self.betas[...], (batch, 10)),
            shape_features=jnp.zeros((batch, 1), dtype),
            shape_vector=jnp.zeros((batch, 12), dtype),
        )


@pytest.fixture(scope="module")
def scene(hand):
    truth = true_hand(hand)
    joints = camera_keypoints(hand, truth)
    return truth, np.asarray(joints), paint(project(Camera.from_matrix(K), joints))


@pytest.fixture(scope="module")
def reader(hand, scene):
    # Its keypoints are exact whatever their confidence, which follows from how a dot is painted.
    return HandTailor(Reader(hand, scene[0]), hand, TailorConfig.default())


def millimetres(a, b):
    return 1e3 * np.linalg.norm(np.asarray(a) - np.asarray(b), axis=-1).max()


def test_any_crop_and_any_size_of_an_image_give_the_same_hand(reader, scene):
    _, joints, image = scene
    boxes = [(180, 60, 300, 300), (120, 40, 380, 400), (230, 10, 250, 420), (0, 0, 640, 480), (-40, -10, 620, 500)]
    boxes = [box for box in boxes if paint_inside(scene, box)]
    assert len(boxes) >= 4
    results = [reader.one(image, K, box, passes=1) for box in boxes]
    double = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    doubled = K.copy()
    doubled[:2] *= 2.0
    doubled[:2, 2] += 0.5  # pixel (0, 0) becomes four, around (0.5, 0.5)
    results.append(reader.one(double, doubled, (240, 80, 760, 800), passes=1))
    for result in results:
        assert millimetres(result.joints, joints) < 3.0
        assert result.reprojection_after < 1.0
        assert result.perspective


def paint_inside(scene, box):
    x, y, w, h = box
    side, pixels = max(w, h), np.asarray(project(Camera.from_matrix(K), jnp.asarray(scene[1])))
    low = np.asarray([x + (w - side) / 2, y + (h - side) / 2])
    return ((pixels > low + 6) & (pixels < low + side - 6)).all()


def test_a_second_look_is_at_the_square_around_what_was_found(reader, scene):
    _, joints, image = scene
    box = (40, -10, 500, 480)
    once, twice = (reader.one(image, K, box, passes=passes) for passes in (1, 2))
    x, y, side, _ = twice.box
    low, high = once.detected_keypoints_2d.min(axis=0), once.detected_keypoints_2d.max(axis=0)
    # Crops are of whole pixels.
    assert side == pytest.approx(1.45 * (high - low).max(), abs=1.0)
    np.testing.assert_allclose([x + 0.5 * side, y + 0.5 * side], 0.5 * (low + high) + 0.5, atol=1.0)
    assert side < once.box[2]
    # It comes out the same, as it should whatever the box.
    assert millimetres(twice.joints, joints) < 3.0
    # Nothing was painted: there is nothing to look at more closely.
    empty = np.full_like(image, 255)
    boxes = [reader.one(empty, K, box, passes=passes).box for passes in (1, 2)]
    np.testing.assert_array_equal(*boxes)
    with pytest.raises(InputError, match="passes is 0: give at least 1"):
        reader.one(image, K, box, passes=0)


def test_keypoints_are_in_pixels_of_the_image(reader, scene):
    _, joints, image = scene
    expected = np.asarray(project(Camera.from_matrix(K), jnp.asarray(joints)))
    for camera in (None, K):
        result = reader.one(image, camera, (120, 40, 380, 400), passes=1)
        np.testing.assert_allclose(result.detected_keypoints_2d, expected, atol=0.6)
        # Weak perspective is wrong by what perspective does to a hand half a metre away.
        np.testing.assert_allclose(result.keypoints_2d, expected, atol=8.0 if camera is None else 1.0)
        assert result.confidence.min() > 0.2


def test_with_and_without_intrinsics(hand):
    """Far from a long lens there is little perspective, and what either camera finds is the same."""
    far = K @ np.diag([4.0, 4.0, 1.0]).astype(np.float32)
    truth = true_hand(hand, (0.02, -0.01, 2.0))
    image = paint(project(Camera.from_matrix(far), camera_keypoints(hand, truth)))
    # With the configuration of the fixture, whose compiled program is then used again.
    reader, box = HandTailor(Reader(hand, truth), hand, TailorConfig.default()), (120, 40, 380, 400)
    known, unknown = (reader.one(image, camera, box, passes=1) for camera in (far, None))
    assert not unknown.perspective
    relative = known.joints - known.joints[ROOT]
    np.testing.assert_allclose(unknown.joints[ROOT], 0.0, atol=1e-6)
    assert millimetres(relative, unknown.joints) < 4.0
    turn = [matrix_from_axis_angle(jnp.asarray(r.parameters.pose)) for r in (known, unknown)]
    between = axis_angle_from_matrix(jnp.einsum("jab,jac->jbc", *turn))
    assert np.degrees(np.linalg.norm(between, axis=-1)).max() < 4.0


@pytest.mark.parametrize("camera", [None, K])
def test_left_hands_are_right_hands_in_a_mirror(reader, scene, camera):
    image, box = scene[2], (120, 40, 380, 400)
    right = reader.one(image, camera, box, passes=1)
    mirrored = None if camera is None else np.asarray([[620.0, 0, 639 - 310.0], [0, 600, 250], [0, 0, 1]], np.float32)
    flipped = np.ascontiguousarray(image[:, ::-1])
    left = reader.one(flipped, mirrored, (640 - 500, 40, 380, 400), "left", passes=1)
    np.testing.assert_allclose(left.detected_keypoints_2d, right.detected_keypoints_2d * [-1, 1] + [639, 0], atol=1e-3)
    # Without intrinsics joints are relative to the root, so the mirror needs no shift.
    np.testing.assert_allclose(left.joints, right.joints * [-1, 1, 1], atol=2e-5)
    np.testing.assert_allclose(left.keypoints_2d, right.keypoints_2d * [-1, 1] + [639, 0], atol=2e-2)
    # Parameters are those of a left hand model: posing it gives the mesh.
    model = embedded_hand().mirrored()
    mesh = camera_mesh(model, jax.tree.map(jnp.asarray, left.parameters))
    np.testing.assert_allclose(left.vertices, mesh.vertices, atol=1e-4 if camera is not None else 5e-2)
    np.testing.assert_array_equal(left.faces, model.faces)


@pytest.mark.slow
def test_a_batch_of_both_sides_is_one_program(reader, scene):
    """The side is a value of the graph: a batch holds left and right hands, and results come back as NumPy arrays.

    Numbers of hands are padded to 1, 2, 4 and 8, and larger ones are divided.
    """
    image, mirrored = scene[2], np.ascontiguousarray(scene[2][:, ::-1])
    places = [square_region((x, 40.0, 380.0, 400.0)) for x in (120.0, 140.0)]
    camera = as_camera(None)
    views = [
        reader.finder.view(shown, camera, place, prior)
        for shown, place, prior in zip((image, mirrored, image), (*places, places[0]), (1.0, 0.0, 1.0), strict=True)
    ]
    right, left, again = (found.hand for found in reader.recover(views))
    assert (left.side, right.side, left.proposed.side) == ("left", "right", "left")
    np.testing.assert_allclose(left.joints, right.joints * [-1, 1, 1], atol=2e-5)
    np.testing.assert_allclose(left.detected_keypoints_2d, right.detected_keypoints_2d * [-1, 1] + [639, 0], atol=1e-3)
    np.testing.assert_allclose(again.vertices, right.vertices, atol=1e-3)
    alone = reader.one(image, None, (120, 40, 380, 400), passes=1)
    np.testing.assert_allclose(alone.joints, right.joints, atol=2e-5)
    np.testing.assert_array_equal(alone.box, right.box)
    assert reader._run._cache_size() <= 3  # batches of 1, 2 and 4 hands
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(left))
    assert reader.recover([]) == []


def test_the_graph_runs_as_printed(hand, scene):
    """The module's docstring, with a hand module of one hand."""
    module = Reader(hand, scene[0])
    crop = jnp.asarray(scene[2][:256, 200:456] / 255.0, jnp.float32)
    camera = Camera.perspective(620.0, 600.0, 310.0 - 200.0, 250.0)

    def hand_module(crop, camera):
        batch = module(crop[None], jax.tree.map(lambda leaf: leaf[None], camera))
        return jax.tree.map(lambda leaf: leaf[0], batch)

    compiled = {"initialize": jax.jit(pipeline.initialize), "tailor": jax.jit(pipeline.tailor)}
    names = {"hand_module": jax.jit(hand_module), "hand": hand, "crop": crop, "camera": camera, **compiled}
    assert doctest.testmod(pipeline, extraglobs=names) == (0, 7)


def test_without_the_tailor_the_proposal_is_the_result(hand, scene):
    _, joints, image = scene
    result = HandTailor(Reader(hand, scene[0]), hand, None).one(image, K, (120, 40, 380, 400), passes=1)
    np.testing.assert_array_equal(result.vertices, result.proposed.vertices)
    assert result.reprojection_before == result.reprojection_after
    assert millimetres(result.joints - result.joints[ROOT], joints - joints[ROOT]) < 0.1


def test_the_hand_is_found_without_a_box(reader, scene):
    _, joints, _ = scene
    moved = K + np.asarray([[0, 0, 150.0], [0, 0, 0], [0, 0, 0]], np.float32)
    image = paint(project(Camera.from_matrix(moved), jnp.asarray(joints)), 480, 900)
    (hand,) = reader(image, moved)
    assert hand.box[2] < 640
    assert millimetres(hand.joints, joints) < 3.0
    assert reader(np.full_like(image, 255), moved) == []
    assert reader.one(np.full_like(image, 255)) is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"camera": np.eye(2)}, "camera must be 3 x 3 numbers"),
        ({"camera": -np.eye(3)}, "must be positive"),
        ({"box": (0, 0, 0, 1)}, "no area"),
        ({"box": (900, 0, 5, 5)}, "outside"),
        ({"image": np.zeros((3, 3, 7), np.uint8)}, "image"),
    ],
)
def test_bad_input_has_one_line(reader, scene, arguments, reason):
    given = {"image": scene[2], "box": (0, 0, 100, 100), **arguments}
    with pytest.raises(InputError, match=reason):
        reader.one(**given)


def test_numbers_of_hands(reader, scene):
    with pytest.raises(InputError, match="hands is 0: give at least 1"):
        reader(scene[2], hands=0)


# ---------------------------------------------------------------------------------------------------------------------
# One graph

TINY = dataclasses.replace(
    HandModuleConfig.small(),
    image_size=32,
    channels=8,
    depth=2,
    shape_channels=8,
    shape_levels=2,
    shape_hidden=(8,),
    ik_hidden=(16,),
)


@pytest.mark.slow
def test_gradients_from_the_mesh_reach_every_part_of_the_network(hand64):
    """Through twenty iterations of the tailor; equal to central differences along a direction in each part."""
    module = HandModule(TINY, rngs=nnx.Rngs(3))
    module.eval()
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    parameters, rest = (
        jax.tree.map(lambda a: a.astype(np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, state)
        for state in (parameters, rest)
    )
    rng = np.random.default_rng(0)
    # With the zero biases of the beginning many units sit exactly on the kink of their ReLU.
    parameters = jax.tree_util.tree_map_with_path(
        lambda path, a: a + 0.1 * rng.normal(size=a.shape) if "bias" in str(path) else a, parameters
    )
    images = jnp.asarray(rng.uniform(size=(1, 32, 32, 3)))
    camera = Camera.perspective(*(jnp.full(1, value) for value in (600.0, 580.0, 320.0, 240.0)))
    to_crop = jnp.asarray([[[0.1, 0.0, -16.0], [0.0, 0.1, -8.0]]])
    weights = jnp.asarray(rng.normal(size=(hand64.skin.template.shape[0], 3)))

    def loss(parameters):
        module = nnx.merge(graph, parameters, rest, copy=True)
        estimate = module(images, transform_camera(camera, to_crop))
        hands = recover(hand64, estimate, camera, to_crop, 32, TailorConfig.paper())
        return jnp.sum(weights * hands.vertices[0])

    both = jax.jit(jax.value_and_grad(loss))  # one program
    gradient = both(parameters)[1]
    parts = sorted({path[0] for path, _ in nnx.to_flat_state(parameters)})
    assert parts == ["iknet", "shape_branch", "stacks_2d", "stacks_3d", "stem"]
    for part in parts:
        along = jax.tree_util.tree_map_with_path(
            lambda path, a, part=part: (
                jnp.asarray(rng.normal(size=a.shape)) if part in str(path[0]) else jnp.zeros_like(a)
            ),
            parameters,
        )
        slope = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))
        assert np.isfinite(slope)
        # Short enough that hardly any of the many ReLUs changes its side.
        step = 1e-7 / float(jnp.sqrt(sum(jnp.vdot(a, a) for a in jax.tree.leaves(along))))
        there, back = (jax.tree.map(lambda a, d, s=s: a + s * d, parameters, along) for s in (step, -step))
        difference = (both(there)[0] - both(back)[0]) / (2.0 * step)
        assert abs(slope) > 1e-6, part
        np.testing.assert_allclose(slope, difference, rtol=2e-4, err_msg=part)


def test_memory_moves_only_the_tailors_start(reader, scene):
    """On either side: the memory of a left hand holds the pose of a left hand."""
    truth, _, image = scene
    view = reader.finder.view(image, as_camera(K), square_region((120.0, 40.0, 380.0, 400.0)), 1.0)
    bent = np.array(truth.pose)
    bent[4, 2] += 0.8
    one, zero, betas = np.ones((), np.float32), np.zeros((), np.float32), np.asarray(truth.betas)
    nothing = Memory(np.zeros_like(bent), np.zeros_like(betas), zero, zero)
    memories = [nothing, Memory(bent, betas + 1, one, one), Memory(bent, betas, zero, zero)]
    fresh, remembered, half = (found.hand for found in reader.recover([view] * 3, memories))
    np.testing.assert_allclose(remembered.proposed.parameters.pose, fresh.proposed.parameters.pose, atol=1e-6)
    apart = [abs(hand.parameters.pose[4, 2] - bent[4, 2]) for hand in (remembered, fresh)]
    assert apart[0] < apart[1]
    np.testing.assert_allclose(half.parameters.pose, fresh.parameters.pose, atol=1e-6)

    camera = mirror_camera(as_camera(K), image.shape[1])
    view = reader.finder.view(image[:, ::-1], camera, square_region((640.0 - 500.0, 40.0, 380.0, 400.0)), 0.0)
    (left,) = reader.recover([view], [Memory(mirror_pose(bent), betas + 1, one, one)])
    np.testing.assert_allclose(left.hand.joints, remembered.joints * [-1, 1, 1], atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Video


def waving_hand(hand, truth, frames, rng, noise):
    """A hand on a slow closed path whose painted keypoints tremble: images, and the true joints."""
    images, joints = [], []
    for i in range(frames):
        phase = 2.0 * np.pi * i / frames
        move = np.asarray([0.04 * np.sin(phase), 0.03 * np.sin(2 * phase), 0.06 * np.sin(phase)], np.float32)
        points = camera_keypoints(hand, dataclasses.replace(truth, translation=truth.translation + move))
        pixels = np.asarray(project(Camera.from_matrix(K), points))
        images.append(paint(pixels + rng.normal(0.0, noise, pixels.shape)))
        joints.append(np.asarray(points))
    return images, np.stack(joints)


def jitter(joints):
    return np.sqrt(np.mean(np.square(np.diff(joints, 2, axis=0))))


@pytest.mark.slow
def test_a_video_is_followed_calmly_and_without_lag(hand, reader, scene, rng):
    frames = 80
    images, truth = waving_hand(hand, scene[0], frames, rng, noise=1.5)
    times = [i / 30.0 for i in range(frames)]
    live, plain = (HandVideo(reader, K, config=VideoConfig(smooth=smooth)) for smooth in (True, False))
    seen, raw = ([video(image, time) for image, time in zip(images, times, strict=True)] for video in (live, plain))
    whole = smooth_video(hand, raw, times)
    assert all(len(each) == 1 and each[0].track == 0 for hands in (seen, raw, whole) for each in hands)
    alone = np.stack([reader.one(p, K, each[0].box, passes=1).joints for p, each in zip(images, seen, strict=True)])
    for hands, calmer in ((seen, 2.0), (whole, 5.0)):
        ours = np.stack([each[0].joints for each in hands])
        # The path itself has a second difference, which is no jitter.
        assert jitter(alone - truth) / jitter(ours - truth) >= calmer
        errors = [np.mean(np.square(ours[10:-3] - np.roll(truth, lag, axis=0)[10:-3])) for lag in range(5)]
        assert int(np.argmin(errors)) == 0
    betas = np.stack([each[0].parameters.betas for each in seen])
    assert np.abs(np.diff(betas[50:], axis=0)).max() < 0.02
    betas = np.stack([each[0].parameters.betas for each in whole])
    assert np.ptp(betas, axis=0).max() == 0.0


def test_a_hand_that_leaves_is_lost_and_found_again(reader, scene):
    image = scene[2]
    empty = np.full_like(image, 128)
    video = HandVideo(reader, K, config=VideoConfig(smooth=False))
    seen = [
        [hand.track for hand in video(p, i / 30.0)] for i, p in enumerate([image, image, empty, empty, image, image])
    ]
    assert seen == [[0], [0], [], [], [0], [0]]
    with pytest.raises(InputError, match="frames change"):
        video(image[:-2], 1.0)

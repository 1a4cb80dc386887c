"""`fit`: from keypoints, and whatever else is known, to a hand."""

import contextlib
import dataclasses
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handtailor_jax.detections import detection, read_detections
from handtailor_jax.errors import InputError, InputWarning
from handtailor_jax.evaluation.alignment import scale_and_shift
from handtailor_jax.fit import fit, fit_detection, fit_joints
from handtailor_jax.geometry.cameras import place, project
from handtailor_jax.geometry.mirror import mirror_pose
from handtailor_jax.mano.landmarks import load_convention
from handtailor_jax.mediapipe import from_mediapipe
from handtailor_jax.results import to_json
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, ROOT, ROOT_JOINT, permutation
from handtailor_jax.synthetic.poses import sample_betas, sample_pose
from handtailor_jax.tailor.placement import camera_keypoints, camera_mesh
from handtailor_jax.tailor.tailor import TailorConfig
from handtailor_jax.types import Camera, HandParameters

COUNT = 12


def errors_mm(found, truth):
    """Mean joint error of a hand after scale and shift only, so that a wrong view counts."""
    return 1e3 * np.linalg.norm(scale_and_shift(found, truth) - truth, axis=-1).mean()


# One program each for all tests: eagerly, every operation is compiled by itself.
draw = jax.jit(lambda hand, key: (sample_pose(hand, key), sample_betas(hand, jax.random.fold_in(key, 1))))
keypoints_of = jax.jit(camera_keypoints)


def pick(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def camera_of(problem):
    return np.asarray(problem.observation.camera.matrix)


@pytest.fixture(scope="module")
def weak(simulated):
    """Hands from all sides without intrinsics, keypoints off by half a percent of the hand's size."""
    return simulated(COUNT, seed=5, camera="weak_perspective", keypoint_noise=0.005)


@pytest.fixture(scope="module")
def near(simulated):
    """The same with a pinhole camera."""
    return simulated(COUNT, seed=5, camera="perspective", keypoint_noise=0.005)


@pytest.fixture(scope="module")
def fits(weak, hand):
    return [fit(weak.observation.keypoints_2d[i], hand=hand) for i in range(COUNT)]


@pytest.fixture(scope="module")
def near_fits(near, hand):
    return [fit(near.observation.keypoints_2d[i], hand=hand, camera=camera_of(pick(near, i))) for i in range(COUNT)]


def truths(problems):
    return np.asarray(problems.keypoints) / np.asarray(problems.truth.scale)[:, None, None]


def assert_same(first, second, atol=0.0):
    for name in ("vertices", "joints", "landmarks", "keypoints_2d"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=0, atol=atol, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), first.parameters, second.parameters)
    assert first.reprojection_after == pytest.approx(second.reprojection_after, abs=max(atol, 1e-9))


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy, on hands of known pose


def test_pose_from_keypoints_alone(weak, fits):
    error = [errors_mm(fit.joints, truth) for fit, truth in zip(fits, truths(weak), strict=True)]
    assert np.median(error) < 4.0
    assert np.sum(np.asarray(error) > 15.0) <= 1  # the other twin of a palm that faces the camera
    sizes = np.ptp(np.asarray(weak.observation.keypoints_2d), axis=1).max(axis=1)
    assert max(fit.reprojection_after / size for fit, size in zip(fits, sizes, strict=True)) < 0.02
    assert not any(fit.perspective for fit in fits)


def test_pose_from_keypoints_and_intrinsics(near, near_fits):
    error = [errors_mm(fit.joints, truth) for fit, truth in zip(near_fits, truths(near), strict=True)]
    assert np.median(error) < 4.0
    depth = np.asarray([fit.joints[ROOT, 2] for fit in near_fits])
    np.testing.assert_allclose(np.median(depth / np.asarray(near.truth.translation)[:, 2]), 1.0, atol=0.15)
    assert all(fit.perspective for fit in near_fits)


def test_the_fit_beats_its_start(fits, near_fits):
    for found in (*fits, *near_fits):
        assert found.reprojection_after < found.reprojection_before


@pytest.mark.slow
def test_a_hint_of_depth_settles_the_view(weak, fits, hand):
    """With 3D joints of any unit and origin no hand is flipped, and the hint's twin gives the twin."""
    truth = truths(weak)
    for i in range(6):
        known = 250.0 * truth[i] + 7.0
        points = weak.observation.keypoints_2d[i]
        right_way = fit(points, hand=hand, joints_3d=known)
        assert errors_mm(right_way.joints, truth[i]) < 6.0
        depth = right_way.joints[:, 2] - right_way.joints[ROOT, 2]
        assert np.corrcoef(depth, truth[i, :, 2])[0, 1] > 0.5
        # Depths mirrored: a hand of other anatomy, but its tilt follows the hint wherever a hand can.
        twin = fit(points, hand=hand, joints_3d=known * [1.0, 1.0, -1.0])
        hinted = np.corrcoef(twin.joints[:, 2], -truth[i, :, 2])[0, 1]
        assert hinted > np.corrcoef(right_way.joints[:, 2], -truth[i, :, 2])[0, 1]


def test_other_hands_that_explain_the_keypoints(fits, weak, hand):
    """Many hands have a runner-up: a clearly different hand that explains the keypoints too."""
    seconds = [(found, i) for i, found in enumerate(fits) if found.runner_up is not None]
    assert len(seconds) >= COUNT // 3
    for found, i in seconds:
        second = found.runner_up
        assert found.energy_gap >= 0.0
        assert np.linalg.norm(second.joints - found.joints, axis=-1).mean() > 0.005  # metres
        pixels = project(found.camera, camera_keypoints(hand, jax.tree.map(jnp.asarray, second.parameters)))
        error = np.linalg.norm(pixels - weak.observation.keypoints_2d[i], axis=-1).mean()
        assert np.isfinite(error)
        if found.energy_gap < 5.0:  # plausible
            assert error < 10.0  # pixels; the hand is about 160 pixels long


def test_a_proposed_pose_is_refined(weak, near, hand):
    for problems in (weak, near):
        truth = truths(problems)
        before, after = [], []
        for i in range(6):
            problem = pick(problems, i)
            camera = camera_of(problem) if problems is near else None
            found = fit(
                problem.observation.keypoints_2d, hand=hand, pose=problem.pose, betas=problem.betas, camera=camera
            )
            assert found.reprojection_after < 0.6 * found.reprojection_before
            assert found.runner_up is None
            proposed = hand.shape(problem.betas).pose(problem.pose)
            before.append(errors_mm(np.asarray(proposed.keypoints), truth[i]))
            after.append(errors_mm(found.joints, truth[i]))
        assert np.mean(after) < np.mean(before)


def test_a_known_shape_is_kept(weak, fits, hand):
    """A start of the shape in `betas` ends nearer to it than a start of the mean shape."""
    betas = np.zeros(10)
    betas[0] = 2.5
    found = fit(weak.observation.keypoints_2d[0], hand=hand, betas=betas[:1])  # the rest is zero
    assert abs(found.parameters.betas[0] - 2.5) < abs(fits[0].parameters.betas[0] - 2.5)
    assert found.parameters.betas.shape == (10,)


# ---------------------------------------------------------------------------------------------------------------------
# Known size


def small_hands(hand, keys, betas_std=1.0):
    """Hands of 0.8 of the model's size half a metre away, seen without noise."""
    camera = Camera.perspective(500.0, 500.0, 320.0, 240.0)
    for key in keys:
        pose, betas = draw(hand, jax.random.key(key))
        truth = HandParameters(pose, betas_std * betas, jnp.float32(0.8), jnp.asarray([0.03, -0.02, 0.5]))
        yield truth, np.asarray(project(camera, keypoints_of(hand, truth))), np.asarray(camera.matrix)


def test_a_known_length_makes_depth_metric(hand):
    depths = []
    for truth, points, camera in small_hands(hand, range(8)):
        length = 0.8 * float(hand.shape(truth.betas).length)
        found = fit(points, hand=hand, camera=camera, hand_length=length)
        depths.append(float(found.joints[ROOT, 2]))
        placed = found.parameters
        assert placed.scale * hand.shape(jnp.asarray(placed.betas)).length == pytest.approx(length, rel=1e-5)
        mesh = camera_mesh(hand, jax.tree.map(jnp.asarray, placed))
        np.testing.assert_allclose(found.vertices, mesh.vertices, atol=1e-5)
        np.testing.assert_allclose(project(found.camera, jnp.asarray(found.landmarks)), found.keypoints_2d, atol=2e-3)
    off = np.abs(np.asarray(depths) - 0.5)
    assert np.median(off) < 0.006
    assert np.sum(off < 0.01) >= 7  # one at 0.546 m: its keypoints fit another pose
    # The length of a flat hand is the distance of the keypoints.
    flat = hand.shape(truth.betas).pose(jnp.zeros((16, 3))).keypoints
    tip = KEYPOINTS.index("middle_tip")
    assert hand.shape(truth.betas).length == pytest.approx(float(jnp.linalg.norm(flat[tip] - flat[0])), rel=1e-5)


def test_fixed_betas_are_kept(hand):
    """With the shape known, a proposal that is off finds the depth of a hand of this shape."""
    for truth, points, camera in small_hands(hand, range(2), betas_std=2.0):
        start = truth.pose + 0.1 * jax.random.normal(jax.random.key(0), (16, 3))
        known = {"hand": hand, "camera": camera, "pose": start, "betas": truth.betas}
        found = fit(points, **known, fixed_betas=True)
        np.testing.assert_allclose(found.parameters.betas, truth.betas, atol=5e-3)
        assert found.joints[ROOT, 2] == pytest.approx(0.5 / 0.8, abs=0.01)
        assert found.parameters.scale == 1.0
        sized = fit(points, **known, fixed_betas=True, hand_length=0.8 * float(hand.shape(truth.betas).length))
        assert sized.joints[ROOT, 2] == pytest.approx(0.5, abs=0.008)
    with pytest.raises(InputError, match="use a calibrated energy"):
        fit(points, **known, fixed_betas=True, config=TailorConfig.paper())


# ---------------------------------------------------------------------------------------------------------------------
# 3D joints alone


@pytest.mark.slow
def test_exact_joints_come_back(hand):
    """Exact joints of random poses, anywhere in space, of both sides: 0.3 mm median and 1 mm at most."""
    errors, models, keys = [], {"right": hand, "left": hand.mirrored()}, jax.random.split(jax.random.key(7), 50)
    for i in range(50):
        pose, betas = draw(hand, keys[i])
        side, place, scale = ("right", "left")[i % 2], np.random.default_rng(i).normal(size=3), (1.0, 0.8)[i % 4 // 2]
        model, pose = models[side], pose if side == "right" else mirror_pose(pose)
        truth = HandParameters(pose, betas, jnp.float32(scale), jnp.asarray(place, jnp.float32))
        joints = np.asarray(keypoints_of(model, truth))
        found = fit_joints(joints, side=side, hand=hand)
        assert found.side == side
        errors.append(1e3 * np.linalg.norm(found.joints - joints, axis=1))
        np.testing.assert_array_equal(found.joints, found.landmarks)
    again = camera_mesh(model, jax.tree.map(jnp.asarray, found.parameters))
    np.testing.assert_allclose(found.joints, again.keypoints, atol=1e-5)
    np.testing.assert_allclose(found.vertices, again.vertices, atol=1e-5)
    assert np.median(errors) < 0.3
    assert np.max(errors) < 1.0


def test_joints_that_are_missing_noisy_or_in_another_order(weak, hand):
    joints = np.asarray(camera_keypoints(hand, pick(weak.truth, 0)))
    joints = joints / float(weak.truth.scale[0]) + [0.0, 0.0, 2.0]
    noisy = joints + np.random.default_rng(0).normal(size=(21, 3)) * 0.004
    found = fit_joints(noisy, joint_std=0.004, hand=hand)
    assert errors_mm(found.joints, joints) < errors_mm(noisy, joints)
    confidence = np.ones(21)
    confidence[[7, ROOT]] = 0.0
    holes = np.where(confidence[:, None] > 0, joints, np.nan)
    full, part = fit_joints(joints, hand=hand), fit_joints(holes, confidence=confidence, hand=hand)
    assert np.linalg.norm(part.joints - joints, axis=1).max() < 0.01
    to_order = list(permutation(KEYPOINTS, KEYPOINT_ORDERS["rhd"]))
    assert_same(full, fit_joints(joints[to_order], order="rhd", hand=hand))
    camera = {"fx": 500, "fy": 500, "cx": 320, "cy": 240}
    seen = fit_joints(joints, camera=camera, hand=hand)
    np.testing.assert_allclose(seen.keypoints_2d, project(seen.camera, jnp.asarray(seen.joints)), atol=2e-3)
    kept = fit_joints(joints, betas=np.full(10, 0.5), fixed_betas=True, hand=hand)
    np.testing.assert_allclose(kept.parameters.betas, 0.5, atol=1e-2)


@pytest.mark.parametrize(
    ("joints", "known", "message"),
    [
        (np.zeros((20, 3)), {}, "joints_3d must be 21 x 3"),
        (np.zeros((21, 3)), {}, "give them in metres"),
        (np.random.default_rng(0).normal(size=(21, 3)) * 80, {}, "give them in metres"),
        (np.full((21, 3), np.nan), {}, "confidence of 0"),
        (np.eye(21, 3) * 0.1, {"side": "both"}, "use one of right, left"),
        (np.eye(21, 3) * 0.1, {"joint_std": 5.0}, "joint_std"),
        (np.eye(21, 3) * 0.1, {"fixed_betas": True}, "without betas"),
        (np.eye(21, 3) * 0.1, {"confidence": np.zeros(21)}, "at least 6"),
    ],
)
def test_joints_that_are_none(joints, known, message):
    with pytest.raises(InputError, match=message):
        fit_joints(joints, **known)


# ---------------------------------------------------------------------------------------------------------------------
# Left hands


@pytest.mark.slow
def test_left_hand_without_intrinsics(weak, fits, hand):
    """The mirrored image of a right hand gives the mirrored hand, bit for bit."""
    points = np.asarray(weak.observation.keypoints_2d[0]) * [-1.0, 1.0]
    left = fit(points, hand=hand, side="left")
    right = fits[0]
    assert left.side == "left"
    flip = np.asarray([-1.0, 1.0, 1.0], np.float32)
    for name in ("vertices", "joints", "landmarks"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name) * flip)
    np.testing.assert_array_equal(left.keypoints_2d, right.keypoints_2d * flip[:2])
    np.testing.assert_array_equal(left.faces, right.faces[:, ::-1])
    assert left.reprojection_after == right.reprojection_after
    if right.runner_up is not None:
        np.testing.assert_array_equal(left.runner_up.joints, right.runner_up.joints * flip)
    # Its parameters are those of the left hand model.
    keypoints = camera_keypoints(hand.mirrored(), jax.tree.map(jnp.asarray, left.parameters))
    np.testing.assert_allclose(project(left.camera, keypoints), left.keypoints_2d, atol=2e-3)


def test_left_hand_with_intrinsics(near, near_fits, hand):
    camera = np.array(camera_of(pick(near, 0)))
    camera[0, 2] *= -1.0
    left = fit(np.asarray(near.observation.keypoints_2d[0]) * [-1.0, 1.0], hand=hand, side="left", camera=camera)
    np.testing.assert_allclose(left.joints, near_fits[0].joints * [-1.0, 1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(left.keypoints_2d, near_fits[0].keypoints_2d * [-1.0, 1.0], atol=1e-3)


def test_left_proposal(weak, hand):
    problem = pick(weak, 0)
    points = np.asarray(problem.observation.keypoints_2d)
    right = fit(points, hand=hand, pose=problem.pose, betas=problem.betas)
    left = fit(
        points * [-1, 1], hand=hand, pose=problem.pose * jnp.asarray([[1.0, -1, -1]]), betas=problem.betas, side="left"
    )
    np.testing.assert_array_equal(left.joints, right.joints * np.float32([-1, 1, 1]))


@pytest.mark.slow
def test_a_left_hand_model_serves_as_well(weak, fits, hand):
    found = fit(weak.observation.keypoints_2d[0], hand=hand.mirrored())
    assert found.side == "right"
    assert errors_mm(found.joints, np.asarray(fits[0].joints)) < 2.0


# ---------------------------------------------------------------------------------------------------------------------
# Confidence, orders, conventions, adapters


def test_ignored_keypoints_change_nothing(weak, hand):
    points = np.array(weak.observation.keypoints_2d[0])
    confidence = np.ones(21)
    confidence[[4, 12]] = 0.0
    garbage, missing = points.copy(), points.astype(float)
    garbage[[4, 12]] = [[-1e6, 3e5], [0.0, 0.0]]
    missing[[4, 12]] = np.nan
    first, *others = (fit(p, hand=hand, confidence=confidence) for p in (points, garbage, missing))
    for other in others:
        assert_same(first, other)
    seen = confidence > 0
    error = np.linalg.norm(first.keypoints_2d - points, axis=1)[seen].mean()
    assert first.reprojection_after == pytest.approx(error, abs=1e-3)


def test_confidence_weighs(weak, fits, hand):
    """A displaced keypoint pulls the less, the less it is trusted."""
    points = np.array(weak.observation.keypoints_2d[0])
    points[8] += [12.0, 12.0]
    trusted, doubted = np.ones(21), np.ones(21)
    doubted[8] = 0.05
    pulls = [
        np.linalg.norm(fit(points, hand=hand, confidence=c).keypoints_2d[8] - points[8]) for c in (trusted, doubted)
    ]
    assert pulls[0] < pulls[1]


@pytest.mark.parametrize("order", KEYPOINT_ORDERS)
def test_orders(weak, fits, order):
    """A detection in another order is the same detection."""
    to_order = list(permutation(KEYPOINTS, KEYPOINT_ORDERS[order]))
    points, joints = np.asarray(weak.observation.keypoints_2d[0]), np.asarray(weak.keypoints[0])
    confidence = np.linspace(0.0, 1.0, 21)
    one = detection(points, confidence=confidence, joints_3d=joints)
    other = detection(points[to_order], confidence=confidence[to_order], joints_3d=joints[to_order], order=order)
    for name in ("keypoints_2d", "confidence", "joints_3d"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.slow
def test_mediapipe_convention(weak, hand):
    """Labels of MediaPipe's kind of a known hand give that hand's joints, and are reprojected as such labels."""
    convention = load_convention("mediapipe")
    truth = pick(weak.truth, 0)
    posed = hand.shape(truth.betas).pose(truth.pose)
    labels = np.asarray(place(truth, convention.landmarks(posed), posed.joints[ROOT_JOINT]))[:, :2]
    found = fit(labels, hand=hand, convention="mediapipe")
    size = np.ptp(labels, axis=0).max()
    assert found.convention == "mediapipe"
    assert np.linalg.norm(found.keypoints_2d - labels, axis=1).mean() < 0.015 * size
    assert errors_mm(found.joints, truths(weak)[0]) < 10.0
    # The joints are the skeleton's, not the labels.
    np.testing.assert_allclose(
        found.joints * float(found.parameters.scale) + np.asarray(found.parameters.translation)[None],
        camera_keypoints(hand, jax.tree.map(jnp.asarray, found.parameters)),
        atol=2e-2,
    )
    assert np.linalg.norm(found.joints - found.landmarks, axis=1).max() > 1e-3


def test_from_mediapipe():
    rng = np.random.default_rng(1)
    normalised, world = rng.uniform(0.2, 0.8, (21, 3)), rng.normal(size=(21, 3)) * 0.05
    landmarks = [SimpleNamespace(x=x, y=y, z=z) for x, y, z in normalised]
    points = [SimpleNamespace(x=x, y=y, z=z) for x, y, z in world]
    found = from_mediapipe(landmarks, 640, 480, handedness="Left", world_landmarks=points, id="a")
    assert (found.side, found.convention, found.id) == ("right", "mediapipe", "a")  # MediaPipe assumes a selfie
    # MediaPipe's x = 0 is the centre of the first pixel.
    np.testing.assert_allclose(found.keypoints_2d, normalised[:, :2] * [640, 480], rtol=1e-6)
    np.testing.assert_allclose(found.joints_3d, world, rtol=1e-6)
    selfie = from_mediapipe(landmarks, 640, 480, handedness="Left", world_landmarks=points, mirrored=True)
    assert selfie.side == "left"
    np.testing.assert_allclose(selfie.keypoints_2d[:, 0], 639 - found.keypoints_2d[:, 0], rtol=1e-6)
    np.testing.assert_allclose(selfie.joints_3d, world * [-1, 1, 1], rtol=1e-6)
    assert from_mediapipe(landmarks, 640, 480, handedness="Right").side == "left"
    assert from_mediapipe(landmarks, 640, 480, handedness="Right").joints_3d is None
    with pytest.raises(InputError, match="has 20 entries"):
        from_mediapipe(landmarks[:20], 640, 480, handedness="Left")
    with pytest.raises(InputError, match="use Left or Right"):
        from_mediapipe(landmarks, 640, 480, handedness="Both")


# ---------------------------------------------------------------------------------------------------------------------
# JSON in and out


def read(tmp_path, entry):
    (tmp_path / "in.json").write_text(json.dumps(entry))
    (found,) = read_detections(tmp_path / "in.json")
    return found


def test_json_pose_by_coefficients(weak, hand, tmp_path):
    """PCA coefficients, with and without the mean, and a pose relative to the mean become the same rotations."""
    points = np.asarray(weak.observation.keypoints_2d[0]).tolist()
    rotation, pca = [0.1, 0.2, 0.3], np.linspace(-1.0, 1.0, 6)
    for flat in (True, False):
        found = read(
            tmp_path, {"keypoints_2d": points, "pca": pca.tolist(), "global_rotation": rotation, "flat_hand_mean": flat}
        )
        fingers = pca @ np.asarray(hand.pose_components)[:6] + (0.0 if flat else np.asarray(hand.pose_mean))
        np.testing.assert_allclose(found.pose, np.concatenate([[rotation], fingers.reshape(15, 3)]), atol=1e-6)
    pose = np.random.default_rng(0).normal(size=(16, 3)) * 0.3
    flat, mean = (
        read(tmp_path, {"keypoints_2d": points, "pose": pose.tolist(), "flat_hand_mean": flat}).pose
        for flat in (True, False)
    )
    np.testing.assert_allclose(flat, pose, atol=1e-6)
    np.testing.assert_allclose(mean[0], pose[0], atol=1e-6)
    np.testing.assert_allclose(mean[1:] - flat[1:], np.asarray(hand.pose_mean).reshape(15, 3), atol=1e-6)


def test_forms_of_a_pose(weak):
    """Axis-angle vectors, quaternions and matrices, whole or split, are the same pose."""
    points = weak.observation.keypoints_2d[0]
    pose = np.random.default_rng(0).normal(size=(16, 3)) * 0.6
    rotation = Rotation.from_rotvec(pose)
    forms = (pose, pose.reshape(48), 2.0 * rotation.as_quat(scalar_first=True), rotation.as_matrix())
    for form in forms:
        np.testing.assert_allclose(detection(points, pose=form).pose, pose, atol=1e-5)
    for hands, wrists in itertools.product((forms[0], *forms[2:]), repeat=2):
        split = detection(points, pose=hands[1:], global_rotation=wrists[0])
        np.testing.assert_allclose(split.pose, pose, atol=1e-5)
    mean = detection(points, pose=forms[3], flat_hand_mean=False).pose
    np.testing.assert_allclose(mean, detection(points, pose=pose, flat_hand_mean=False).pose, atol=1e-5)
    for known, message in (
        ({"pose": pose, "global_rotation": pose[0]}, "give 15 x 3 .* beside a global_rotation"),
        ({"pose": forms[3][1:]}, "pose has 15 x 3 x 3 values: give 16 x 3"),
        ({"pose": pose.T}, "pose has 3 x 16 values"),
        ({"pose": forms[3] * [1, 1, -1]}, "no rotation"),
        ({"pose": np.zeros((16, 4))}, "length 0: give w, x, y, z"),
        ({"pose": pose[1:], "global_rotation": [0.0]}, "global_rotation has 1 values: give 1 x 3"),
        ({"global_rotation": pose[0]}, "without pose"),
    ):
        with pytest.raises(InputError, match=message):
            detection(points, **known)


def test_json_fields(tmp_path, weak):
    points = np.asarray(weak.observation.keypoints_2d[0]).tolist()
    camera = {"fx": 300, "fy": 310, "cx": 120, "cy": 130}
    entry = {"image": "below/a photo.png", "keypoints_2d": points, "camera": camera, "unknown": 1, "pose": None}
    with pytest.warns(InputWarning, match="'unknown' is not a field"):
        found = read(tmp_path, entry)
    assert found.id == "a photo"
    assert found.image == tmp_path / "below" / "a photo.png"
    np.testing.assert_array_equal(found.camera, [[300, 0, 120], [0, 310, 130], [0, 0, 1]])
    assert (found.side, found.convention, found.pose) == ("right", "mano", None)
    for camera in ([300, 310, 120, 130], found.camera.tolist()):
        np.testing.assert_array_equal(read(tmp_path, {"keypoints_2d": points, "camera": camera}).camera, found.camera)
    assert read(tmp_path, {"keypoints_2d": points}).id == "0000"
    assert read(tmp_path, {"keypoints_2d": points, "id": 7}).id == "7"


@pytest.mark.parametrize("view", ["weak_perspective", "perspective"])
def test_json_of_a_result(weak, near, fits, near_fits, hand, tmp_path, view):
    """What is written can be checked by the reader: keypoints are the projected landmarks, errors can be recomputed."""
    problems, found = (weak, fits[0]) if view == "weak_perspective" else (near, near_fits[0])
    content = json.loads(json.dumps(to_json(found)))
    assert content["projection"] == view
    scale, translation = content["scale"], np.asarray(content["translation"])
    landmarks = np.asarray(content["landmarks"])
    if content["camera"] is None:
        pixels = (scale * landmarks + translation)[:, :2]
    else:
        k = content["camera"]
        pixels = landmarks[:, :2] / landmarks[:, 2:] * [k["fx"], k["fy"]] + [k["cx"], k["cy"]]
    np.testing.assert_allclose(pixels, content["keypoints_2d"], atol=5e-3)
    error = np.linalg.norm(pixels - np.asarray(problems.observation.keypoints_2d[0]), axis=1).mean()
    assert content["reprojection_error_after"] == pytest.approx(error, abs=5e-3)
    # The parameters give the joints.
    parameters = HandParameters(
        *(jnp.asarray(content[f.name], jnp.float32) for f in dataclasses.fields(HandParameters))
    )
    keypoints = np.asarray(camera_keypoints(hand, parameters))
    if content["camera"] is None:
        keypoints = (keypoints - translation) / scale
    np.testing.assert_allclose(keypoints, content["joints"], atol=1e-4)

    again = fit_detection(read(tmp_path, content), hand=hand)
    if content["camera"] is None:  # with intrinsics, the start's placement is that of a hand far away
        assert again.reprojection_before < 0.1  # pixels: the pose was fitted to just these keypoints
    assert again.reprojection_after < 0.1
    assert errors_mm(again.joints, np.asarray(content["joints"])) < 2.0
    np.testing.assert_allclose(again.keypoints_2d, content["keypoints_2d"], atol=1.0)


def test_a_skewed_camera_survives_the_json(weak, fits):
    camera = Camera.from_matrix(jnp.asarray([[300.0, 5.0, 100.0], [0.0, 310.0, 120.0], [0.0, 0.0, 1.0]]))
    content = to_json(dataclasses.replace(fits[0], camera=camera))
    found = detection(weak.observation.keypoints_2d[0], camera=content["camera"])
    np.testing.assert_array_equal(found.camera, np.asarray(camera.matrix))


def test_input_that_fits_no_hand_is_an_error_not_a_nan(hand):
    """Keypoints that are numbers but no hand either give a finite hand or one clear error."""
    rng = np.random.default_rng(0)
    line = np.stack([np.linspace(0.0, 100.0, 21), np.zeros(21)], axis=1)
    for points in (
        line,
        rng.uniform(0, 100, (21, 2)),
        1e7 * rng.normal(size=(21, 2)),
        1.2 * rng.uniform(size=(21, 2)) + 1e4,
    ):
        with contextlib.suppress(InputError):
            found = fit(points, hand=hand)
            assert np.isfinite(found.vertices).all()
            assert np.isfinite(found.reprojection_after)

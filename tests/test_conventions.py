"""A test for each line of docs/conventions.md that no other test checks, and for the tests that the page names."""

import ast
import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax import skeleton
from handtailor_jax.detections import detection, read_detections
from handtailor_jax.fit import fit_detection
from handtailor_jax.geometry.cameras import crop_affine, project, transform_camera
from handtailor_jax.geometry.mirror import mirror_camera, mirror_parameters, mirror_pixels, mirror_points
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.mano.landmarks import load_convention
from handtailor_jax.mano.loading import MANO_TIP_VERTICES, embedded_hand
from handtailor_jax.mediapipe import from_mediapipe
from handtailor_jax.results import to_json
from handtailor_jax.skeleton import FINGERS, KEYPOINT_ORDERS, KEYPOINTS, MANO_JOINTS, ROOT, permutation
from handtailor_jax.tailor.placement import camera_keypoints, relative_depth
from handtailor_jax.types import Camera, HandParameters

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "conventions.md").read_text(encoding="utf-8")
EXAMPLES = TESTS.parent / "handtailor_jax" / "assets" / "examples" / "hands.json"


def functions_of(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def table(heading):
    """Return the rows of the page's table whose header begins with `heading`, as lists of cells."""
    lines = PAGE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


# --- the page itself --------------------------------------------------------------------------------------------------


def test_page_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 40
    assert named <= set.union(*(functions_of(path) for path in TESTS.glob("test_*.py")))


def test_page_names_every_test_of_this_file():
    own = {
        name for name in functions_of(Path(__file__)) if name.startswith("test_") and not name.startswith("test_page_")
    }
    assert own <= set(re.findall(r"`(test_\w+)`", PAGE))


def test_page_pictures_exist():
    pictures = re.findall(r"\]\((pictures/\w+\.png)\)", PAGE)
    assert len(pictures) == 4
    for picture in pictures:
        assert 1000 < (TESTS.parent / "docs" / picture).stat().st_size < 200_000


# --- joints and their order -------------------------------------------------------------------------------------------


def test_keypoints_run_from_the_wrist_over_the_thumb_to_the_little_finger():
    fingers = [f"{f}_{j}" for f in ("index", "middle", "ring", "little") for j in ("mcp", "pip", "dip", "tip")]
    assert list(KEYPOINTS) == ["wrist", "thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip", *fingers]


def test_the_order_table_follows_from_names():
    rows = {name: json.loads(indices) for name, _, indices in table("`order`")}
    assert rows == {name: list(permutation(order, KEYPOINTS)) for name, order in KEYPOINT_ORDERS.items()}


def some_keypoints(rng):
    return rng.uniform(50.0, 250.0, (21, 2)).astype(np.float32)


def test_order_applies_to_all_per_keypoint_input(rng):
    points, joints = some_keypoints(rng), rng.normal(size=(21, 3)).astype(np.float32)
    confidence, pose = rng.uniform(0.1, 1.0, 21).astype(np.float32), rng.normal(size=(16, 3)).astype(np.float32)
    theirs = list(permutation(KEYPOINTS, KEYPOINT_ORDERS["interhand"]))
    found = detection(
        points[theirs], order="interhand", confidence=confidence[theirs], joints_3d=joints[theirs], pose=pose
    )
    np.testing.assert_array_equal(found.keypoints_2d, points)
    np.testing.assert_array_equal(found.confidence, confidence)
    np.testing.assert_array_equal(found.joints_3d, joints)
    np.testing.assert_array_equal(found.pose, pose)


def test_the_tip_table_is_what_the_code_uses():
    rows = {who: tuple(json.loads(f"[{vertices}]")) for vertices, who in table("thumb, index, middle, ring, little")}
    for side in ("right", "left"):
        ours = [tips for who, tips in rows.items() if "this package" in who and side in who]
        assert ours == [MANO_TIP_VERTICES[side]]


# --- the hand model ---------------------------------------------------------------------------------------------------


def test_a_pose_relative_to_the_mean_is_converted(hand, rng, tmp_path):
    pose = 0.1 * rng.normal(size=(16, 3))
    entry = {"keypoints_2d": some_keypoints(rng).tolist(), "pose": pose.tolist(), "flat_hand_mean": False}
    (tmp_path / "hand.json").write_text(json.dumps(entry))
    read = read_detections(tmp_path / "hand.json")[0].pose
    np.testing.assert_allclose(read[0], pose[0], atol=1e-6)
    np.testing.assert_allclose(read[1:], pose[1:] + np.asarray(hand.pose_mean).reshape(15, 3), atol=1e-6)


def test_pca_coefficients_weigh_the_rows_of_the_components(hand):
    fingers = hand.finger_pose_from_pca(jnp.asarray([0.0, 0.0, 2.0]))
    np.testing.assert_allclose(fingers.reshape(45), 2.0 * hand.pose_components[2], atol=1e-6)


def test_mirrored_results_belong_to_the_other_model(hand, rng):
    parameters = HandParameters(
        pose=jnp.asarray(0.3 * rng.normal(size=(16, 3)), jnp.float32),
        betas=jnp.asarray(rng.normal(size=10), jnp.float32),
        scale=jnp.ones(()),
        translation=jnp.asarray([0.1, -0.05, 0.5]),
    )
    right, left = camera_keypoints(hand, parameters), camera_keypoints(hand.mirrored(), mirror_parameters(parameters))
    np.testing.assert_allclose(left, mirror_points(right), atol=1e-6)


def test_freihands_joints_agree_at_rest_only(hand):
    for bend, agree in ((0.0, True), (0.5, False)):
        posed = hand.shape(jnp.zeros(10)).pose(jnp.zeros((16, 3)).at[1:].set(bend))
        theirs = hand.joint_regressor @ posed.skin().vertices
        distance = float(jnp.max(jnp.linalg.norm(theirs - posed.joints, axis=-1)))
        assert (distance < 1e-6) if agree else (distance > 1e-3)


# --- anatomical coordinates -------------------------------------------------------------------------------------------


def test_the_limit_table_is_what_the_code_uses(hand):
    rows = {name: [tuple(float(x) for x in cell.split("…")) for cell in cells] for name, *cells in table("joint")}
    lower, upper = (np.degrees(np.asarray(x)) for x in (hand.anatomy.lower, hand.anatomy.upper))
    for j, name in enumerate(MANO_JOINTS[1:]):
        limits = np.asarray(rows[name if name in rows else name.split("_")[1]])
        np.testing.assert_allclose(limits, np.stack([lower[j], upper[j]], axis=1), atol=1e-3)


# --- landmark conventions ---------------------------------------------------------------------------------------------


def flat_hand(hand, betas=0.0):
    return hand.shape(jnp.full(10, betas)).pose(jnp.zeros((16, 3)))


def test_manos_landmarks_are_the_models_keypoints(hand):
    posed = flat_hand(hand)
    np.testing.assert_array_equal(load_convention("mano").landmarks(posed), posed.keypoints)


def test_mediapipes_tips_lie_before_the_ends_of_the_fingers(hand):
    posed = flat_hand(hand)
    landmarks = load_convention("mediapipe").landmarks(posed)
    offset = 1000.0 * np.linalg.norm(landmarks - posed.keypoints, axis=-1)
    at = dict(zip(KEYPOINTS, offset.tolist(), strict=True))
    for finger in FINGERS:
        tip, before = (
            KEYPOINTS.index(f"{finger}_tip"),
            KEYPOINTS.index(f"{finger}_{'ip' if finger == 'thumb' else 'dip'}"),
        )
        along = posed.keypoints[tip] - posed.keypoints[before]
        share = jnp.dot(landmarks[tip] - posed.keypoints[before], along) / jnp.sum(along**2)
        assert 0.5 < share < 0.85, finger
        assert 6.5 < at.pop(f"{finger}_tip") < 12.0
    assert 7.0 < at.pop("wrist") < 11.0
    assert 11.0 < at.pop("thumb_cmc") < 16.0
    assert max(at.values()) < 6.0


def test_landmarks_grow_with_the_hand(hand):
    convention = load_convention("mediapipe")
    small, large = flat_hand(hand), hand.shape(jnp.zeros(10).at[0].set(2.0)).pose(jnp.zeros((16, 3)))
    bone = [float(jnp.linalg.norm(p.keypoints[ROOT] - p.keypoints[0])) for p in (small, large)]
    offset = [np.linalg.norm(convention.landmarks(p) - p.keypoints, axis=-1) for p in (small, large)]
    assert bone[1] > 1.02 * bone[0]
    np.testing.assert_allclose(offset[1] / bone[1], offset[0] / bone[0], rtol=1e-3)


# --- pixels and cameras -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mirrored", "side"), [(False, "left"), (True, "right")])
def test_mediapipe_results_become_pixels_and_sides(rng, mirrored, side):
    points = rng.uniform(0.1, 0.9, (21, 2))
    landmarks = [SimpleNamespace(x=x, y=y) for x, y in points.tolist()]
    found = from_mediapipe(landmarks, 640, 480, handedness="Right", mirrored=mirrored)
    pixels = points * [640, 480]
    # A mirrored image is mirrored back, so that the side is that of the keypoints, too.
    pixels[:, 0] = 639 - pixels[:, 0] if mirrored else pixels[:, 0]
    np.testing.assert_allclose(found.keypoints_2d, pixels, atol=1e-3)
    assert found.side == side
    assert found.convention == "mediapipe"


def test_translation_is_where_the_root_lies(hand, rng):
    parameters = HandParameters(
        pose=jnp.asarray(0.3 * rng.normal(size=(16, 3)), jnp.float32),
        betas=jnp.zeros(10),
        scale=jnp.asarray(1500.0),
        translation=jnp.asarray([120.0, 80.0, 0.0]),
    )
    points = camera_keypoints(hand, parameters)
    np.testing.assert_allclose(points[ROOT], parameters.translation, atol=1e-3)
    np.testing.assert_allclose(project(Camera.weak_perspective(), points)[ROOT], [120.0, 80.0], atol=1e-3)
    grown = camera_keypoints(hand, dataclasses.replace(parameters, scale=jnp.asarray(3000.0)))
    np.testing.assert_allclose(grown - grown[ROOT][None], 2.0 * (points - points[ROOT][None]), atol=1e-2)


def test_a_rotated_image_has_a_full_block(rng):
    camera = Camera.perspective(600.0, 500.0, 160.0, 120.0)
    affine = crop_affine(jnp.asarray([150.0, 130.0]), jnp.asarray(200.0), 256, jnp.asarray(0.4))
    turned = transform_camera(camera, affine)
    assert abs(float(turned.linear[0, 1])) > 100.0
    assert abs(float(turned.linear[0, 1] + turned.linear[1, 0])) > 10.0  # with fx != fy not just a turned frame
    found = detection(some_keypoints(rng), camera=np.asarray(turned.matrix))
    np.testing.assert_allclose(Camera.from_matrix(found.camera).linear, turned.linear, rtol=1e-6)


def test_mirroring_moves_the_principal_point():
    camera = Camera.perspective(607.9, 607.9, 314.78, 236.42)
    mirrored = mirror_camera(camera, 640)
    np.testing.assert_allclose(mirrored.center, [639.0 - 314.78, 236.42], atol=1e-3)
    np.testing.assert_array_equal(mirror_pixels(jnp.asarray([[0.0, 5.0]]), 640), [[639.0, 5.0]])
    point = jnp.asarray([[0.05, -0.02, 0.6]])
    np.testing.assert_allclose(
        project(mirrored, mirror_points(point)), mirror_pixels(project(camera, point), 640), atol=1e-3
    )
    # Without it, STB's colour camera is 9.4 pixels off.
    forgotten = dataclasses.replace(mirrored, center=camera.center)
    shift = project(forgotten, mirror_points(point)) - project(mirrored, mirror_points(point))
    np.testing.assert_allclose(jnp.abs(shift), [[9.44, 0.0]], atol=1e-3)


# --- input and output of `handtailor fit` -----------------------------------------------------------------------------


def test_a_depth_hint_may_have_any_unit_and_origin(hand, rng):
    joints = flat_hand(hand).keypoints @ matrix_from_axis_angle(jnp.asarray([0.4, 0.9, 0.2])).T
    points, confidence = 1000.0 * joints[:, :2] + 100.0, jnp.ones(21)
    metres = relative_depth(joints, points, confidence)
    elsewhere = relative_depth(1000.0 * joints + jnp.asarray([[5.0, -70.0, 600.0]]), points, confidence)
    np.testing.assert_allclose(elsewhere, metres, atol=1e-2)
    np.testing.assert_allclose(metres, 1000.0 * (joints[:, 2] - joints[ROOT, 2]), atol=1e-2)


def test_missing_keypoints_have_no_confidence(rng):
    points, confidence = some_keypoints(rng), np.ones(21)
    points[[4, 8]], confidence[[4, 8]] = np.nan, 0.0
    found = detection(points, confidence=confidence)
    assert np.isfinite(found.keypoints_2d).all()
    np.testing.assert_array_equal(found.confidence == 0.0, confidence == 0.0)


@pytest.fixture(scope="module")
def fits():
    """Fits of the packaged example with a proposed pose: with its camera, without, and in MediaPipe's convention."""
    found = next(d for d in read_detections(EXAMPLES) if d.pose is not None)
    return {
        "camera": fit_detection(found),
        "none": fit_detection(dataclasses.replace(found, camera=None)),
        "mediapipe": fit_detection(dataclasses.replace(found, convention="mediapipe")),
    }


def test_scale_is_one_or_pixels_per_metre(fits):
    for name, fit in fits.items():
        if name == "none":
            assert float(fit.parameters.scale) > 100.0
            assert float(fit.parameters.translation[2]) == 0.0
        else:
            assert float(fit.parameters.scale) == 1.0
            assert 0.1 < float(fit.parameters.translation[2]) < 2.0


def test_joints_are_metres_in_camera_axes(fits):
    for name, fit in fits.items():
        bone = np.linalg.norm(fit.joints[ROOT] - fit.joints[0])
        assert 0.07 < bone < 0.12
        root = np.zeros(3) if name == "none" else np.asarray(fit.parameters.translation)
        np.testing.assert_allclose(fit.joints[ROOT], root, atol=1e-5)
        keypoints = camera_keypoints(embedded_hand(fit.side), jax.tree.map(jnp.asarray, fit.parameters))
        if name == "none":
            keypoints = (np.asarray(keypoints) - fit.parameters.translation[None]) / fit.parameters.scale
        np.testing.assert_allclose(fit.joints, keypoints, atol=1e-5)


def test_landmarks_and_keypoints_2d_follow_the_inputs_convention(fits):
    for name, fit in fits.items():
        content = to_json(fit)
        points, landmarks = np.asarray(content["keypoints_2d"]), np.asarray(content["landmarks"])
        assert content["convention"] == ("mediapipe" if name == "mediapipe" else "mano")
        if name == "none":
            projected = content["scale"] * landmarks[:, :2] + np.asarray(content["translation"])[:2]
        else:
            k = content["camera"]
            projected = landmarks[:, :2] / landmarks[:, 2:] * [k["fx"], k["fy"]] + [k["cx"], k["cy"]]
        np.testing.assert_allclose(points, projected, atol=0.02)
        apart = np.abs(landmarks - np.asarray(content["joints"])).max()
        assert (apart > 0.005) if name == "mediapipe" else (apart < 1e-5)


def test_a_given_pose_has_no_runner_up(fits):
    assert all(fit.runner_up is None and to_json(fit)["runner_up"] is None for fit in fits.values())


# --- datasets ---------------------------------------------------------------------------------------------------------


def test_stbs_depth_camera_frame(x64):
    rotation = np.asarray(matrix_from_axis_angle(jnp.asarray([0.00531, -0.01196, 0.00301])))
    translation = np.array([-24.0381, -0.4563, -1.2326])
    colour = rotation.T @ (np.array([10.0, 20.0, 500.0]) - translation)
    np.testing.assert_allclose(colour, [40.095, 23.005, 500.674], atol=1e-3)
    assert skeleton.KEYPOINT_ORDERS["stb"][9:13] == tuple(f"middle_{j}" for j in ("mcp", "pip", "dip", "tip"))

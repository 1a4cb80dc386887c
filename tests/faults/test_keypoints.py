"""Keypoints and poses that were taken for something else without a word."""

import importlib
import json

import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax import cli
from handtailor_jax.detections import detection, read_detections
from handtailor_jax.errors import InputError, InputWarning
from handtailor_jax.geometry.mirror import mirror_pose
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.types import Camera
from tests.goldens import write_mano

fitting = importlib.import_module("handtailor_jax.fit")  # the package's `fit` is the function


def points_of(entry):
    return np.asarray(entry["keypoints_2d"])


@pytest.fixture(scope="module")
def other(mano):
    """A hand model whose mean and components are not the embedded ones."""
    assert np.abs(mano.pose_mean).max() > 0.01
    return mano


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("file", [None, "right", "left"])
@pytest.mark.parametrize("flat", [True, False])
def test_mean_and_components_are_those_of_the_hand_and_side(hand, other, entry, side, file, flat):
    model: HandModel = hand if file is None else other if file == "right" else other.mirrored()
    of_side = model if model.side == side else model.mirrored()
    known = {"side": side, "hand": None if file is None else model, "flat_hand_mean": flat}
    pose = 0.1 * np.random.default_rng(1).normal(size=(16, 3))
    found = detection(points_of(entry), pose=pose, **known).pose
    expected = of_side.finger_pose_from_axis_angle(jnp.asarray(pose[1:], jnp.float32), flat_hand_mean=flat)
    np.testing.assert_allclose(found, np.concatenate([pose[:1], expected]), atol=1e-6)
    found = detection(points_of(entry), pca=[0.5, -1.0], global_rotation=pose[0], **known).pose
    expected = of_side.finger_pose_from_pca(jnp.asarray([0.5, -1.0]), flat_hand_mean=flat)
    np.testing.assert_allclose(found, np.concatenate([pose[:1], expected]), atol=1e-6)


def test_a_left_hand_relative_to_the_mean_is_the_mirrored_right_hand(entry):
    pose = 0.1 * np.random.default_rng(1).normal(size=(16, 3))
    right = detection(points_of(entry), pose=pose, flat_hand_mean=False).pose
    left = detection(points_of(entry), pose=mirror_pose(pose), side="left", flat_hand_mean=False).pose
    np.testing.assert_allclose(left, mirror_pose(right), atol=1e-6)


def test_fit_passes_the_mean_on(entry, other, monkeypatch):
    seen = []
    monkeypatch.setattr(fitting, "fit_detection", lambda found, **_: seen.append(found.pose) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitting.fit(points_of(entry), pose=np.zeros((16, 3)), hand=other, flat_hand_mean=False)
    np.testing.assert_allclose(seen[0][1:].reshape(45), other.pose_mean, atol=1e-6)


def test_the_command_takes_the_mean_of_its_hand(entry, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(fitting, "fit_detection", lambda found, **_: seen.append(found.pose) or 1 / 0)
    model = write_mano(tmp_path / "MANO_RIGHT.npz")
    (tmp_path / "in.json").write_text(json.dumps({**entry, "pose": [[0.0] * 3] * 16, "flat_hand_mean": False}))
    with pytest.raises(ZeroDivisionError):
        cli.main(["fit", str(tmp_path / "in.json"), "--hand", str(model), "--out", str(tmp_path / "out")])
    np.testing.assert_allclose(seen[0][1:].reshape(45), np.load(model)["hands_mean"], atol=1e-6)


def missing(count, value=0.0):
    def change(points):
        points[np.asarray([4, 8, 20])[:count]] = value
        return points

    return change


KEYPOINTS = {
    "fractions beyond the image": (lambda points: points / 200.0, "in pixels, not as fractions"),
    "fractions far beyond the image": (lambda points: points / 80.0, "in pixels, not as fractions"),
    "three zeros": (missing(3), "give missing keypoints a confidence of 0"),
    "two zeros": (missing(2), "give missing keypoints a confidence of 0"),
    "one zero": (lambda points: missing(1)(points + 300.0), "give missing keypoints a confidence of 0"),
    "three times -1": (missing(3, -1.0), "give missing keypoints a confidence of 0"),
}


@pytest.mark.parametrize("case", KEYPOINTS)
def test_keypoints_that_are_no_pixels(refused, entry, tmp_path, case):
    change, message = KEYPOINTS[case]
    (tmp_path / "in.json").write_text(json.dumps({**entry, "keypoints_2d": change(points_of(entry)).tolist()}))
    assert message in refused("fit", tmp_path / "in.json", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zeros_that_are_keypoints_or_ignored(entry):
    """A wrist at the origin is a keypoint; zeros of no confidence are ignored."""
    relative = points_of(entry) - points_of(entry)[0]
    np.testing.assert_allclose(detection(relative).keypoints_2d, relative, rtol=1e-6)
    confidence = np.ones(21)
    confidence[[4, 8, 20]] = 0.0
    assert detection(missing(3)(points_of(entry)), confidence=confidence).keypoints_2d.min() > 1.0


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("confidences", "confidence"),
        ("sides", "side"),
        ("Side", "side"),
        ("cameras", "camera"),
        ("keypoints2d", "keypoints_2d"),
        ("joints3d", "joints_3d"),
        ("flat_hands_mean", "flat_hand_mean"),
        ("beta", "betas"),
    ],
)
def test_misspelt_fields(refused, entry, tmp_path, field, nearest):
    (tmp_path / "in.json").write_text(json.dumps({**entry, field: [1.0]}))
    assert f"did you mean {nearest}?" in refused("fit", tmp_path / "in.json", "--out", tmp_path / "out")


def test_other_fields_are_named(entry, tmp_path):
    (tmp_path / "in.json").write_text(json.dumps({**entry, "handedness": "Left", "projection": "perspective"}))
    with pytest.warns(InputWarning, match="'handedness' is not a field that is read") as record:
        read_detections(tmp_path / "in.json")
    assert len(record) == 1


@pytest.mark.parametrize("known", [{"global_rotation": [0, 0, 0]}, {"flat_hand_mean": 1}, {"pca": [np.nan]}])
def test_poses_that_contradict_themselves(entry, known):
    with pytest.raises(InputError, match=r"global_rotation|flat_hand_mean|pca"):
        detection(points_of(entry), **known)


@pytest.mark.parametrize("text", ['{"id": "a", "keypoints_2d": 1, "id": "b"}', '[{"camera": {"fx": 1, "fx": 2}}]'])
def test_fields_that_are_given_twice(tmp_path, text):
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(InputError, match=r"in\.json: has the field '(id|fx)' twice in one object; give a JSON object"):
        read_detections(tmp_path / "in.json")


def test_a_camera_of_this_package(entry):
    found = detection(points_of(entry), camera=Camera.perspective(500.0, 510.0, 60.0, 50.0)).camera
    np.testing.assert_allclose(found, [[500, 0, 60], [0, 510, 50], [0, 0, 1]])
    with pytest.raises(InputError, match="camera is a weak-perspective Camera: leave it out"):
        detection(points_of(entry), camera=Camera.weak_perspective())
    with pytest.raises(InputError, match="give one Camera of one image"):
        detection(points_of(entry), camera=Camera.perspective(*np.full((4, 2), 500.0)))

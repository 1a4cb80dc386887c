"""Values that gave NaN, infinity or a hand of less than a pixel, and files that were written over."""

import importlib
import json
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax import cli
from handtailor_jax.detections import detection
from handtailor_jax.errors import InputError, InputWarning
from handtailor_jax.geometry.cameras import as_camera
from handtailor_jax.images import as_rgb, check_box, read_image
from handtailor_jax.results import prepare_folder
from handtailor_jax.types import Hand, HandParameters

IMAGE = np.zeros((480, 640, 3), np.uint8)
POSE = [[0.0] * 3] * 16
ABSURD = {
    "focal length 1e-30": ({"camera": [1e-30, 1e-30, 100, 100]}, "focal length"),
    "focal length in image widths": ({"camera": [0.9, 1.2, 0.5, 0.5]}, "focal length of 0.9 pixels"),
    "focal length 1e8": ({"camera": [1e8, 1e8, 100, 100]}, "camera holds NaN, infinite or absurdly large"),
    "centre 1e8": ({"camera": [500, 500, 1e8, 100]}, "camera holds NaN, infinite or absurdly large"),
    "confidence 1e-40": ({"confidence": [1e-40] * 21}, "only 0 keypoints have a confidence above 0"),
    "pose 1e8": ({"pose": [[1e8, 0, 0], *POSE[1:]]}, "pose holds"),
    "rotation 1e8": ({"pca": [0.0], "global_rotation": [0, 1e8, 0]}, "global_rotation holds"),
    "pca 1e8": ({"pca": [1e8], "global_rotation": [0, 0, 0]}, "pca holds"),
    "betas 1e8": ({"betas": [1e8]}, "betas holds"),
    "betas 50": ({"betas": [0, -50]}, "betas holds 50: give standard deviations of the model's shapes, 10 at most"),
    "a keypoint at 1e8": ({"keypoints_2d": [[1e8, 0]] + [[10.0 * i, i * i] for i in range(20)]}, "keypoints_2d holds"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_numbers(refused, entry, tmp_path, case):
    change, message = ABSURD[case]
    (tmp_path / "in.json").write_text(json.dumps({**entry, **change}))
    assert message in refused("fit", tmp_path / "in.json", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("camera", [("1e-30", "1e-30", "0", "0"), ("1e8", "1e8", "0", "0"), ("nan", "1", "1", "1")])
def test_absurd_cameras_of_predict(refused, image, tmp_path, camera):
    assert "camera" in refused("predict", image, "--camera", *camera, "--out", tmp_path / "out")


def test_tiny_confidences_count_as_none(entry):
    confidence = np.ones(21)
    confidence[3] = 1e-40
    assert detection(entry["keypoints_2d"], confidence=confidence).confidence[3] == 0.0


def hand_of(hand, error):
    """A hand of this reprojection error, without compiling anything."""
    pose, points = jnp.zeros((16, 3)), np.ones((21, 3), np.float32)
    made = Hand(
        left=np.asarray(False),
        camera=as_camera(None),
        parameters=HandParameters(pose, jnp.zeros(10), jnp.ones(()), jnp.zeros(3)),
        vertices=np.asarray(hand.skin.template),
        faces=np.asarray(hand.faces),
        **dict.fromkeys(("joints", "landmarks"), points),
        **dict.fromkeys(("keypoints_2d", "detected_keypoints_2d"), points[:, :2]),
        confidence=points[:, 0],
        reprojection_before=np.ones((), np.float32),
        reprojection_after=np.asarray(error, np.float32),
    )
    return jax.device_get(made)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_numbers_that_are_not_finite_are_never_written(hand, entry, tmp_path, capsys, monkeypatch, value):
    """The second of three hands fails: the others are written, and the status is 2."""
    fitting = importlib.import_module("handtailor_jax.fit")
    made = iter([hand_of(hand, 1.0), hand_of(hand, value), hand_of(hand, 1.0)])
    monkeypatch.setattr(fitting, "_fit", lambda *_: next(made))
    (tmp_path / "in.json").write_text(json.dumps([{**entry, "id": id} for id in "abc"]))
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", str(tmp_path / "in.json"), "--no-overlay", "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.json", "c.json"}
    printed = capsys.readouterr()
    assert "handtailor: skipped: b: no hand could be fitted" in printed.err
    assert "2 hands written" in printed.out


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((0.2, 0.3, 0.5, 0.4), "smaller than 4 pixels"),
        ((0, 0, 1, 1), "smaller than 4 pixels"),
        ((-30000, -30000, 60000, 60000), "far larger than the 640 x 480 image"),
        ((0, 0, 1e308, 1e308), "far larger"),
        ((-1e308, -1e308, 1e308, 1e308), "outside"),
    ],
)
def test_boxes_that_are_no_pixels(box, reason):
    with pytest.raises(InputError, match=reason):
        check_box(box, IMAGE)


def test_two_corners_are_no_box():
    with pytest.warns(InputWarning, match="not two corners"):
        check_box((500, 300, 620, 460), IMAGE)
    check_box((500, 300, 120, 160), IMAGE)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_images_of_fewer_bits_in_16_are_stretched(tmp_path, bits):
    grey = np.linspace(0, 2**bits - 1, 256).round().astype(np.uint16).reshape(16, 16)
    assert cv2.imwrite(str(tmp_path / "deep.png"), grey)
    for found in (as_rgb(grey), read_image(tmp_path / "deep.png")):
        assert found.dtype == np.uint8
        assert np.abs(found[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


def test_float_images_outside_0_to_1_are_named(tmp_path):
    assert cv2.imwrite(str(tmp_path / "float.tiff"), np.full((8, 8, 3), 200.0, np.float32))
    with pytest.raises(InputError, match=r"float\.tiff: image has float values outside 0 to 1"):
        read_image(tmp_path / "float.tiff")


# ---------------------------------------------------------------------------------------------------------------------
# Inputs are never written over


def untouched(refused, path, *arguments):
    before = path.read_bytes()
    assert "is an input and would be overwritten" in refused(*arguments)
    assert path.read_bytes() == before


def test_fit_beside_its_input(refused, entry, image, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(entry))
    untouched(refused, tmp_path / "one.json", "fit", tmp_path / "one.json", "--out", tmp_path)
    shutil.copy(image, tmp_path / "two_overlay.png")
    entries = [{**entry, "id": "two", "image": "two_overlay.png"}]
    (tmp_path / "hands.json").write_text(json.dumps(entries))
    untouched(refused, tmp_path / "two_overlay.png", "fit", tmp_path / "hands.json", "--out", tmp_path)


@pytest.mark.parametrize("name", ["sheet.png", "image_overlay.png"])
def test_predict_beside_its_inputs(refused, image, tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    for each in ("image.png", name):
        shutil.copy(image, folder / each)
    untouched(refused, folder / name, "predict", folder, "--out", folder)


def test_videos_beside_their_results(refused, tmp_path, image):
    for name in ("a.mp4", "a_overlay.mp4"):
        shutil.copy(image, tmp_path / name)
    untouched(
        refused, tmp_path / "a_overlay.mp4", "predict", tmp_path / "a.mp4", tmp_path / "a_overlay.mp4", "-o", tmp_path
    )


def test_another_name_of_an_input_is_the_input(tmp_path):
    (tmp_path / "in.json").write_text("{}")
    (tmp_path / "out.json").symlink_to(tmp_path / "in.json")
    with pytest.raises(InputError, match="is an input"):
        prepare_folder(tmp_path, ["out.json"], [tmp_path / "in.json"])
    prepare_folder(tmp_path, ["new.json"], [tmp_path / "in.json", None, tmp_path / "missing"])


def test_conversion_onto_its_checkpoint(refused, tmp_path, monkeypatch):
    from handtailor_jax.hand_module import official, torch_file

    monkeypatch.setattr(torch_file, "read_state_dict", lambda _: {})
    monkeypatch.setattr(official, "load_official", lambda _: None)
    (tmp_path / "m.pt").write_bytes(b"checkpoint")
    untouched(refused, tmp_path / "m.pt", "convert-official", tmp_path / "m.pt", tmp_path / "m.pt")


def test_export_onto_its_weights(refused, tmp_path, monkeypatch):
    from handtailor_jax.hand_module import weights

    monkeypatch.setattr(weights, "load_module", lambda *_: object())
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    untouched(refused, path, "export", "hand-module", path, "--weights", path)

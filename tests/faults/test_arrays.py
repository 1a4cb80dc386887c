"""Arrays of other programs: what was a traceback is read, or refused in one line."""

import io
import json
import pickle
import zipfile
from types import SimpleNamespace

import jax
import numpy as np
import PIL.Image
import pytest

from handtailor_jax.data.readers.photos import read_labels
from handtailor_jax.detections import detection
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.paper.sources import read_predictions
from handtailor_jax.fit import fit
from handtailor_jax.geometry.cameras import as_camera
from handtailor_jax.hand_module.weights import FORMAT, VERSION, load_weights
from handtailor_jax.hand_tailor import check_arguments
from handtailor_jax.images import as_rgb, check_box, read_image
from handtailor_jax.mano.loading import given_hand
from handtailor_jax.mediapipe import from_mediapipe
from handtailor_jax.types import Camera

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(0.2, 0.8, (21, 3))
OBJECTS = [SimpleNamespace(x=x, y=y, z=z) for x, y, z in POINTS]
DICTIONARIES = [{"x": x, "y": y, "z": z, "visibility": 0.0} for x, y, z in POINTS.tolist()]


@pytest.mark.parametrize(
    "landmarks",
    [
        OBJECTS,
        DICTIONARIES,
        POINTS,
        POINTS.tolist(),
        SimpleNamespace(landmark=OBJECTS),
        {"landmark": DICTIONARIES},
        {"landmarks": DICTIONARIES},
        tuple(map(tuple, POINTS)),
    ],
)
def test_landmarks_in_every_form(landmarks):
    found = from_mediapipe(landmarks, 640, 480, handedness="Left", world_landmarks=landmarks)
    np.testing.assert_allclose(found.keypoints_2d, POINTS[:, :2] * [640, 480], rtol=1e-6)
    np.testing.assert_allclose(found.joints_3d, POINTS, rtol=1e-6)


CATEGORY = SimpleNamespace(category_name="Left", score=0.9)


@pytest.mark.parametrize(
    "handedness",
    [
        "Left",
        "left",
        CATEGORY,
        [CATEGORY],
        SimpleNamespace(classification=[SimpleNamespace(label="Left", index=0)]),
        [{"categoryName": "Left", "score": 1.0}],
        {"classification": [{"label": "Left"}]},
        {"category_name": "Left"},
    ],
)
def test_handedness_in_every_form(handedness):
    assert from_mediapipe(OBJECTS, 640, 480, handedness=handedness, mirrored=True).side == "left"


@pytest.mark.parametrize("handedness", [None, "Both", [], 1, {}, [None], {"label": 3}])
def test_handedness_that_is_none(handedness):
    with pytest.raises(InputError, match="use Left or Right"):
        from_mediapipe(OBJECTS, 640, 480, handedness=handedness)


@pytest.mark.parametrize(
    ("landmarks", "reason"),
    [
        (None, "without x, y and z"),
        (3, "without x, y and z"),
        ([None] * 21, "without x, y and z"),
        ([{"x": 1.0}] * 21, "without x, y and z"),
        ([{"x": "a", "y": "b"}] * 21, "numbers only"),
        ({}, "0 entries"),
        (POINTS[:20], "20 entries"),
        (np.full((21, 3), np.nan), "NaN"),
    ],
)
def test_landmarks_that_are_none(landmarks, reason):
    with pytest.raises(InputError, match=reason):
        from_mediapipe(landmarks, 640, 480, handedness="Left")
    with pytest.raises(InputError, match="width"):
        from_mediapipe(POINTS, 0, 480, handedness="Left")


def test_cameras_in_every_form():
    k = np.asarray([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    for camera in (k, k.tolist(), [500, 510, 320, 240], {"fx": 500, "fy": 510, "cx": 320, "cy": 240}):
        np.testing.assert_array_equal(as_camera(camera).matrix, k)
    for wrong in (k.T, np.diag([500.0, 500, 2]), k - [[0, 0, 0], [0, 0, 0], [0, 0, 1]], k[:2], "K", [[None] * 3] * 3):
        with pytest.raises(InputError, match="camera"):
            as_camera(wrong)


def test_boxes_in_every_form():
    image = np.zeros((48, 64, 3), np.uint8)
    for box in (np.asarray([1, 2, 30, 40]), np.asarray([1.0, 2, 30, 40], np.float32), [1, 2, 30, 40], (1, 2, 30, 40)):
        assert check_box(box, image) == (1.0, 2.0, 30.0, 40.0)
    for wrong in ("1 2 3 4", [None] * 4, [[1, 2], [3, 4]], [1, 2, 3], {"x": 1}, [1, 2, 3, "4"], [True] * 4, 10**400):
        with pytest.raises(InputError, match="box"):
            check_box(wrong, image)


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "HSV", "RGBA", "LA", "1"])
def test_images_of_pillow_in_every_mode(mode):
    """The values of a palette or of other colours are not RGB."""
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 64, 3))
    image = PIL.Image.fromarray(ramp.copy()).convert(mode)
    np.testing.assert_array_equal(as_rgb(image), np.asarray(image.convert("RGB")))


def test_the_mask_of_an_array_is_not_forgotten():
    points = np.ma.masked_array(RNG.uniform(100, 200, (21, 2)), mask=np.arange(42).reshape(21, 2) == 6)
    with pytest.raises(InputError, match=r"keypoints_2d holds NaN.*give missing keypoints a confidence of 0"):
        detection(points)
    assert detection(points, confidence=(np.arange(21) != 3).astype(float)).confidence[3] == 0.0


@pytest.mark.parametrize("count", ["2", 1.5, 0, -1, [1], 10**12])
def test_counts_that_are_none(count):
    for name in ("hands", "passes"):
        with pytest.raises(InputError, match=rf"{name} is .*: give at least 1"):
            check_arguments(**{name: count})


# ---------------------------------------------------------------------------------------------------------------------
# Files of arrays


def npz(**arrays):
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def npy(array):
    data = io.BytesIO()
    np.save(data, array, allow_pickle=True)
    return data.getvalue()


def encrypted():
    raw = bytearray(npz(keypoints_2d=np.zeros((2, 21, 2), np.float32)))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + flags] |= 1
    return bytes(raw)


def bomb():
    data = io.BytesIO()
    header = npy(np.zeros(0, np.float32)).replace(b"(0,), }" + b" " * 12, b"(99999999999,), }  ")
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("keypoints_2d.npy", header + bytes(50_000_000))
    return data.getvalue()


WHOLE = {
    "keypoints_2d": np.zeros((2, 21, 2), np.float32),
    "joints_3d": np.zeros((2, 21, 3), np.float32),
}
FILES = {
    "npy": npy(np.zeros((2, 21, 2))),
    "pickled npy": npy(np.asarray([{}], object)),
    "pickle": pickle.dumps(WHOLE),
    "empty": b"",
    "text": b"hello",
    "cut short": npz(**WHOLE)[:300],
    "flipped": npz(**WHOLE).replace(b"NUMPY", b"NVMPY"),
    "encrypted": encrypted(),
    "bomb": bomb(),
    "no keypoints": npz(joints_3d=WHOLE["joints_3d"]),
    "objects": npz(**{**WHOLE, "joints_3d": np.asarray([{}], object)}),
    "confidences of another shape": npz(**WHOLE, confidence=np.ones(21)),
    "confidences of 20 keypoints": npz(**WHOLE, confidence=np.ones((2, 20))),
    "a confidence of NaN": npz(**WHOLE, confidence=np.full((2, 21), np.nan)),
    "another count": npz(**{**WHOLE, "joints_3d": np.zeros((3, 21, 3))}),
    "an order that is none": npz(**WHOLE, order="alphabetical"),
    "an order that is an array": npz(**WHOLE, order=np.zeros((3, 3))),
    "complex": npz(**{**WHOLE, "joints_3d": np.zeros((2, 21, 3), complex)}),
}


@pytest.mark.parametrize("case", FILES)
def test_predictions_that_cannot_be_read(tmp_path, case):
    (tmp_path / "other.npz").write_bytes(FILES[case])
    with pytest.raises(InputError, match=r"other\.npz: "):
        read_predictions(tmp_path / "other.npz", 2)


def test_predictions_that_can_be_read(tmp_path):
    (tmp_path / "other.npz").write_bytes(npz(**WHOLE, confidence=np.ones((2, 21))))
    assert read_predictions(tmp_path / "other.npz", 2).joints.shape == (2, 21, 3)


LABEL = {"split": "train", "side": "left", "keypoints_2d": POINTS[:, :2].tolist()}
LABELS = {
    "deep": "[" * 100_000,
    "a list": "[]",
    "a number": "7",
    "numbers": '{"a.jpg": 3}',
    "digits": '{"a.jpg": ' + 5000 * "1" + "}",
    "a huge coordinate": json.dumps({"a.jpg": {**LABEL, "keypoints_2d": [[10**400, 0]] * 21}}),
    "a deep coordinate": json.dumps({"a.jpg": {**LABEL, "side": [[["left"]]]}}),
    "null": "null",
    "cut short": json.dumps({"a.jpg": LABEL})[:-5],
    "bytes": bytes(range(128, 256)),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_cannot_be_read(tmp_path, case):
    content = LABELS[case]
    (tmp_path / "labels.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"labels\.json: "):
        read_labels(tmp_path, "train")


def test_names_with_a_zero_byte(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"a\0b.jpg": LABEL}))
    (label,) = read_labels(tmp_path, "train")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(label.path)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "BF16", "C64"])
def test_weights_of_other_types(tmp_path, kind):
    length = {"BF16": 8, "C64": 32}.get(kind, 4)
    header = {"a": {"dtype": kind, "shape": [4], "data_offsets": [0, length]}}
    text = json.dumps({"__metadata__": {"format": FORMAT, "version": VERSION, "config": "{}"}, **header}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(length))
    with pytest.raises(InputError, match=r"w\.safetensors: "):
        load_weights(tmp_path / "w.safetensors")


def test_paths_ragged_lists_and_traced_arrays():
    with pytest.raises(InputError, match=r"hand is 'MANO_RIGHT.pkl': give a HandModel, such as load_hand\(path\)"):
        given_hand("MANO_RIGHT.pkl")
    with pytest.raises(InputError, match="image has rows of different lengths"):
        as_rgb([[1], [1, 2]])
    with pytest.raises(InputError, match="keypoints_2d is traced by jit, vmap or grad"):
        jax.jit(fit)(POINTS[:, :2].astype(np.float32))
    with pytest.raises(InputError, match="camera is not a valid camera") as caught:
        as_camera(Camera.perspective(0.0, 0.0, 100.0, 100.0))
    assert "\n" not in str(caught.value)

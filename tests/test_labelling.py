"""Pseudo-labels: copies agree about true hands, disagreement is counted, and interrupted runs continue."""

import json

import numpy as np
import pytest

from handtailor_jax import labelling
from handtailor_jax.cli import EXAMPLES
from handtailor_jax.data.readers.photos import Photos
from handtailor_jax.detections import read_detections
from handtailor_jax.detector.landmark_network import DetectedHand
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.images import read_image
from handtailor_jax.labelling import label_folder, label_image
from handtailor_jax.results import write_image
from handtailor_jax.types import Region


class Known:
    """A detector that knows where a right hand is, and sees it in each copy with another error."""

    def __init__(self, keypoints, joints, image, errors=(0.0, 0.0, 0.0, 0.0), sides=(True, True, True, True)):
        self.hand, self.errors, self.sides = (keypoints, joints), errors, sides
        self.copies = enumerate(labelling._copies(image))

    def __call__(self, image):
        number, (copy, affine) = next(self.copies)
        np.testing.assert_array_equal(copy, image)
        if self.errors[number] is None:
            return []
        keypoints, joints = self.hand
        linear = affine[:, :2]
        right = self.sides[number] == (np.linalg.det(linear) > 0.0)
        region = Region(np.zeros(2, np.float32), np.float32(1.0), np.float32(0.0))
        return [
            DetectedHand(
                keypoints_2d=(keypoints @ linear.T + affine[:, 2] + self.errors[number]).astype(np.float32),
                joints_3d=np.concatenate([joints[:, :2] @ linear.T, joints[:, 2:]], axis=1).astype(np.float32),
                presence=np.float32(1.0),
                right=np.float32(right),
                region=region,
                next_region=region,
            )
        ]


@pytest.fixture
def scene(rng):
    keypoints, joints = rng.uniform(30.0, 90.0, (21, 2)), rng.normal(size=(21, 3)) * 0.05
    return keypoints, joints, rng.integers(0, 255, (100, 130, 3), dtype=np.uint8)


def test_copies_are_taken_back_to_the_image(scene):
    keypoints, joints, image = scene
    (label,), left_out = label_image(Known(*scene), image, 0.03)
    assert (label["side"], left_out) == ("right", {})
    np.testing.assert_allclose(label["keypoints_2d"], keypoints, atol=0.01)
    np.testing.assert_allclose(label["joints_3d"], joints, atol=1e-4)
    assert label["label_spread"] < 1e-4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"errors": (0.0, 0.0, 8.0, -8.0)}, "hands whose keypoints differ"),
        ({"errors": (0.0, 0.0, None, 0.0)}, "hands that a copy does not show"),
        ({"errors": (0.0, 0.0, 300.0, 0.0)}, "hands that a copy does not show"),
        ({"errors": (None, 0.0, 0.0, 0.0)}, "images without a hand"),
        ({"sides": (True, False, True, True)}, "hands whose side differs"),
    ],
)
def test_hands_without_agreement_are_counted(scene, change, reason):
    assert label_image(Known(*scene, **change), scene[2], 0.03) == ([], {reason: 1})


@pytest.fixture
def folder(tmp_path):
    """Two folders of two of the packaged images, and the true keypoints by name."""
    truth = {}
    for number, each in enumerate(read_detections(EXAMPLES)[:4]):
        name = f"{'ab'[number % 2]}/{number}.png"
        write_image(tmp_path / name, read_image(each.image))
        truth[name] = each
    return tmp_path, truth


@pytest.mark.slow
def test_labels_of_packaged_images_are_near_the_truth(folder):
    path, truth = folder
    counts = label_folder(path, path / "labels.json", val=0.5)
    labels = json.loads((path / "labels.json").read_text())
    assert counts["labelled"] == len(labels) >= 2
    assert not list(path.glob(".*"))
    for name, label in labels.items():
        size, keypoints = hand_size(truth[name].keypoints_2d), np.asarray(label["keypoints_2d"])
        assert label["side"] == truth[name].side
        assert np.linalg.norm(keypoints - truth[name].keypoints_2d, axis=1).mean() < 0.1 * size
        assert label["split"] == ("train" if name in ("a/0.png", "b/1.png") else "val")


def test_an_interrupted_run_continues(folder, monkeypatch):
    path, _ = folder
    looked = []

    def label(detector, image, spread):
        looked.append(image.shape)
        if len(looked) == 3:
            raise KeyboardInterrupt
        one = {"side": "left", "keypoints_2d": [[float(i), 2.0 * i] for i in range(21)], "label_spread": 0.0}
        return [one, one], {}

    monkeypatch.setattr(labelling, "label_image", label)
    monkeypatch.setattr(labelling, "HandDetector", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        label_folder(path, path / "labels.json")
    assert not (path / "labels.json").exists()
    with (path / ".labels.json.partial").open("ab") as file:
        file.write(b'00000000 ["b/1.png", [\xff\nnull\n')  # lines that were cut short or damaged
    label_folder(path, path / "labels.json")
    assert len(looked) == 5
    # Two hands of one image are two labels, which the reader takes from the same file.
    photos = Photos(path, "train")
    assert [photos[i].name for i in range(2)] == ["a/0.png", "a/0.png#2"]
    np.testing.assert_array_equal(photos[0].image, photos[1].image)


def test_refused_inputs(tmp_path, folder):
    path, _ = folder
    (tmp_path / "empty").mkdir()
    for photographs, out, message in (
        (tmp_path / "none", tmp_path / "labels.json", "no such folder"),
        (tmp_path / "empty", tmp_path / "labels.json", "holds no image files"),
        (path / "a", path / "b" / "labels.json", "or a folder above"),
        (path, path, "is a folder where a file is to be written"),
    ):
        with pytest.raises(InputError, match=message):
            label_folder(photographs, out)
    for name in ("spread", "val"):
        with pytest.raises(InputError, match=name):
            label_folder(path, path / "labels.json", **{name: -1.0})

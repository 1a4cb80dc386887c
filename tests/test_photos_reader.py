"""Labelled photographs: labels, crops, masks, and fits to mirrored hands."""

import json

import cv2
import numpy as np
import pytest

from handtailor_jax.data.readers.photos import hand_mask, read_labels, without_hand
from handtailor_jax.data.sample import labelled_batch
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import square_around
from handtailor_jax.images import crop_square
from handtailor_jax.skeleton import BONES
from handtailor_jax.training.backdrops import composed, paste, surroundings
from handtailor_jax.training.config import DataConfig, TrainingConfig
from handtailor_jax.training.sources import open_sources, prepare_photographs


def entry(**changes):
    points = np.stack([20.0 + 3.0 * np.arange(21), 30.0 + 2.0 * np.arange(21)], axis=-1).tolist()
    return {"side": "left", "split": "train", "keypoints_2d": points, "joints_3d": [[0.0, 0.0, 0.0]] * 21} | changes


def write(folder, content):
    (folder / "labels.json").write_text(json.dumps(content))
    return folder


def test_splits_are_kept_apart(tmp_path):
    folder = write(tmp_path, {"b/2.jpg": entry(), "a/1.jpg": entry(), "a/3.jpg": entry(split="val", side="right")})
    labels = read_labels(folder, "train")
    assert [label.name for label in labels] == ["a/1.jpg", "b/2.jpg"]
    assert [label.source for label in labels] == ["a", "b"]
    assert labels[0].path == tmp_path / "a" / "1.jpg"
    assert read_labels(folder, "val")[0].side == "right"


def test_training_needs_both_splits(tmp_path, hand):
    """That is found before the pool is rendered; the second split is for the evaluation."""
    config = TrainingConfig(data=DataConfig(cache=tmp_path / "cache", photographs=write(tmp_path, {"a.jpg": entry()})))
    with pytest.raises(InputError, match=r"has no photographs of split 'val': give some, as `handtailor label --val`"):
        open_sources(config, hand)
    assert not (tmp_path / "cache").exists()


def test_keypoints_in_2d_are_enough(tmp_path):
    bare = {name: value for name, value in entry(convention="mano").items() if name != "joints_3d"}
    first, second = read_labels(write(tmp_path, {"a.jpg": bare, "b.jpg": entry()}), "train")
    assert (first.joints_3d, first.convention) == (None, "mano")
    assert second.joints_3d is not None
    assert second.convention == "mediapipe"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is not a JSON object of labels"),
        ({"x.jpg": entry(split="val")}, "has no photographs of split 'train'"),
        ({"x.jpg": {"split": "train"}}, "x.jpg lacks 'keypoints_2d'"),
        ({"x.jpg": entry(side="up")}, "x.jpg needs a side"),
        ({"x.jpg": entry(keypoints_2d=[[1.0, 2.0]] * 20)}, "x.jpg needs a side"),
        (
            {"x.jpg": entry(joints_3d=[[0.0, 0.0, 0.0]] * 20)},
            "needs a side .left or right., 21 keypoints_2d and, if present, 21 joints_3d",
        ),
        ({"x.jpg": entry(keypoints_2d="none")}, "has a coordinate that is not a number"),
        ({"x.jpg": entry(keypoints_2d=[[1.0, float("nan")]] * 21)}, "has a coordinate that is not a finite number"),
    ],
)
def test_unusable_labels(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_labels(write(tmp_path, content), "train")


def test_no_labels(tmp_path):
    with pytest.raises(InputError, match=r"labels.json: no such file; give a folder"):
        read_labels(tmp_path, "train")


def test_the_crop_moves_pixels_by_its_map():
    at = np.arange(120)
    spot = np.asarray([33.0, 70.0])
    blob = np.exp(-0.5 * ((at[None, :80] - spot[0]) ** 2 + (at[:, None] - spot[1]) ** 2) / 16.0)
    image = np.repeat(np.round(255 * blob)[..., None], 3, axis=-1).astype(np.uint8)
    keypoints = np.asarray([[10.0, 40.0], [50.0, 90.0]], np.float32)
    box = square_around(keypoints, 2.0)
    square, affine, _ = crop_square(image, box, 64, outside=None)
    inside, _, _ = crop_square(np.full(image.shape[:2], 255, np.uint8), box, 64, outside=0)
    weight = square[..., 0].astype(float)
    grid = np.arange(64)
    found = np.asarray([(weight * grid[None, :]).sum(), (weight * grid[:, None]).sum()]) / weight.sum()
    np.testing.assert_allclose(found, affine[:, :2] @ spot + affine[:, 2], atol=0.05)
    moved = keypoints @ affine[:, :2].T + affine[:, 2]
    np.testing.assert_allclose(moved.mean(axis=0), 31.5, atol=0.5)
    assert inside[:, 0].max() == 0, "the square begins left of the image"
    assert inside[32, 32] == 255


def drawn_hand(size=100):
    """Draw a flat hand on a plain background; return the image, its keypoints and its mask."""
    points = [(50, 88)]
    for angle, length in ((-60, 30), (-25, 48), (0, 52), (20, 47), (42, 38)):
        direction = np.asarray([np.sin(np.radians(angle)), -np.cos(np.radians(angle))])
        points += [tuple(np.asarray([50, 80]) + direction * length * share) for share in (0.55, 0.75, 0.9, 1.05)]
    keypoints = np.asarray(points, np.float32)
    truth = np.zeros((size, size), np.uint8)
    for a, b in BONES:
        ends = (tuple(map(int, keypoints[k].round())) for k in (a, b))
        cv2.line(truth, *ends, 255, 8)
    cv2.rectangle(truth, (40, 80), (60, 99), 255, -1)
    random = np.random.default_rng(0)
    image = np.where(truth[..., None] > 0, (200, 150, 120), (225, 228, 230)) + random.normal(0, 4, (size, size, 3))
    return np.clip(image, 0, 255).astype(np.uint8), keypoints, truth > 0


def test_the_mask_on_a_plain_background():
    image, keypoints, truth = drawn_hand()
    mask = hand_mask(image, keypoints)
    assert mask is not None
    overlap = (mask > 127) & truth
    assert overlap.sum() / ((mask > 127) | truth).sum() > 0.85


def test_a_photograph_without_its_hand(tmp_path):
    """The hand disappears, the rest of the image stays, and black borders are cut off."""
    image, keypoints, truth = drawn_hand()
    filled = without_hand(image, keypoints)
    beyond = cv2.dilate(truth.astype(np.uint8), np.ones((61, 61), np.uint8)) == 0
    np.testing.assert_array_equal(filled[beyond], image[beyond])
    skin = np.abs(image.astype(int) - (200, 150, 120)).max(axis=-1) < 30
    assert skin.sum() > 1000
    above_wrist = np.arange(100)[:, None] < 60
    assert not (above_wrist & (np.abs(filled.astype(int) - (200, 150, 120)).max(axis=-1) < 30)).any()

    wide = np.zeros((140, 140, 3), np.uint8)
    wide[20:120, 20:120] = image
    content = {}
    for name in ("digits/a.png", "rooms/b.png"):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), wide)
        content[name] = entry(keypoints_2d=(keypoints + 20.0).tolist())
    found = surroundings(write(tmp_path, content), tmp_path / "cache")
    assert found.shape == (1, 192, 192, 3)
    assert found.min() > 60
    np.testing.assert_array_equal(surroundings(tmp_path, tmp_path / "cache"), found)
    plain = write(tmp_path, {"digits/a.png": content["digits/a.png"]})
    with pytest.raises(InputError, match="all photographs have a plain background"):
        surroundings(plain, tmp_path / "cache")


def test_keypoints_far_outside_the_image_are_an_error(tmp_path):
    image, keypoints, _ = drawn_hand()
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "1.png"), image)
    folder = write(tmp_path, {"a/1.png": entry(keypoints_2d=(1e5 * keypoints).tolist(), joints_3d=None)})
    with pytest.raises(InputError, match=r"1\.png: has 100 x 100 pixels, but keypoints far outside in labels\.json"):
        prepare_photographs(folder, "train", 64, tmp_path / "cache")
    with pytest.raises(InputError, match="keypoints far outside"):
        surroundings(folder, tmp_path / "cache")


def test_pasting_depends_on_the_random_numbers_only():
    picture, keypoints, truth = drawn_hand()
    photograph = labelled_batch(
        image=picture,
        mask=(255 * truth).astype(np.uint8),
        keypoints_2d=keypoints,
        intrinsics=np.eye(3, dtype=np.float32),
        joints=np.zeros((21, 3), np.float32),
        pose=np.zeros((16, 3), np.float32),
        betas=np.zeros(10, np.float32),
    )
    inside = np.full((100, 100), 255, np.uint8)
    black = np.zeros((3, 100, 100, 3), np.uint8)
    first, second = (composed(photograph, inside, np.random.default_rng(5), black, 1.0) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first[~truth].max() == 0
    assert first[truth].mean() > 100
    untouched = composed(photograph, inside, np.random.default_rng(5), black, 0.0)
    np.testing.assert_array_equal(untouched, picture)


def test_pasting_blends_by_the_mask():
    image, background = np.full((1, 1, 3), 200, np.uint8), np.full((1, 1, 3), 100, np.uint8)
    assert (paste(image, np.full((1, 1), 51, np.uint8), background) == 120).all()


@pytest.mark.slow
def test_real_photographs_are_fitted_once_and_left_hands_mirrored(shared, tmp_path):
    folder = shared / "data" / "photos" if (shared / "data").is_dir() else shared.parent / "data" / "photos"
    labels = json.loads((folder / "labels.json").read_text())
    left = next(name for name, entry in labels.items() if entry["side"] == "left" and entry["split"] == "train")
    right = next(name for name, entry in labels.items() if name.startswith("digits") and entry["split"] == "train")
    for name in (left, right):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write(tmp_path, {name: labels[name] for name in (left, right)})
    found = prepare_photographs(tmp_path, "train", 64, tmp_path / "cache")
    assert sorted(found.name) == sorted((left, right))
    # The fit of a right hand explains the mirrored labels, and squares keep the aspect.
    for name in (left, right):
        given = np.asarray(labels[name]["keypoints_2d"]) * ((-1.0, 1.0) if name == left else (1.0, 1.0))
        fitted = found.samples.keypoints_2d[list(found.name).index(name)]
        scaled = [(each - each.mean(axis=0)) / np.ptp(given, axis=0).max() for each in (given, fitted)]
        scaled[1] *= np.sum(scaled[0] * scaled[1]) / np.sum(np.square(scaled[1]))
        assert np.linalg.norm(scaled[0] - scaled[1], axis=-1).mean() < 0.08
    mask = found.samples.mask[list(found.name).index(right)]
    assert 0.05 < (mask > 127).mean() < 0.5
    again = prepare_photographs(tmp_path, "train", 64, tmp_path / "cache")
    np.testing.assert_array_equal(again.samples.pose, found.samples.pose)
    [file] = (tmp_path / "cache").glob("*.npz")
    file.write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="is damaged"):
        prepare_photographs(tmp_path, "train", 64, tmp_path / "cache")

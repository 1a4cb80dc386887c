"""Crops around hands, and batches whose order depends on seed and position only."""

import collections
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from handtailor_jax.data import open_dataset
from handtailor_jax.data.augmentation import AugmentationConfig, augment
from handtailor_jax.data.loader import Loader, LoaderConfig, index_stream, paste
from handtailor_jax.data.sample import Sample, crop_sample
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import hand_size
from tests.fixtures import write_freihand_fixture, write_rhd, write_stb

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32


class Hands:
    """Random hands in small random images."""

    def __init__(self, name, count, *, posed=False, masked=True, broken=()):
        self.name, self.count, self.posed, self.masked, self.broken = name, count, posed, masked, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        if index in self.broken:
            raise InputError(f"{self.name}/{index}.png: is not an image: unpack the archive again")
        rng = np.random.default_rng(index)
        width, height = 60, 48
        joints = np.asarray([0.0, 0.0, 0.6]) + 0.06 * rng.uniform(-1.0, 1.0, (21, 3))
        intrinsics = np.asarray([[120.0, 0.0, 28.5], [0.0, 118.0, 25.0], [0.0, 0.0, 1.0]])
        pixels = joints @ intrinsics.T
        mask = np.zeros((height, width), np.bool_)
        mask[14:36, 18:42] = True
        return Sample(
            name=f"{self.name}/{index}",
            image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            keypoints_2d=(pixels[:, :2] / pixels[:, 2:]).astype(np.float32),
            visible=np.ones(21, np.bool_),
            joints=joints.astype(np.float32),
            intrinsics=intrinsics.astype(np.float32),
            mirrored=False,
            pose=rng.normal(size=(16, 3)).astype(np.float32) if self.posed else None,
            betas=rng.normal(size=10).astype(np.float32) if self.posed else None,
            mask=mask if self.masked else None,
        )


def config(**changes):
    return LoaderConfig(**{"size": SIZE, "batch": 4, "threads": 0, **changes})


def projected(batch):
    points = np.einsum(
        "...ij,...kj->...ki", np.asarray(batch.intrinsics, np.float64), np.asarray(batch.joints, np.float64)
    )
    return points[..., :2] / points[..., 2:]


def augmented(batch, settings):
    keys = jax.random.split(jax.random.key(0), len(batch.image))
    return jax.jit(augment, static_argnums=(2, 3))(jax.device_put(batch), keys, settings, 16)


def equal(a, b):
    return a.names == b.names and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a.batch), jax.tree.leaves(b.batch), strict=True)
    )


@pytest.fixture
def grain():
    return pytest.importorskip("grain", reason="the loader needs Grain")


# --- the crop --------------------------------------------------------------------------------------------------------


def changed(sample, **changes):
    return dataclasses.replace(sample, **changes)


def map_of(crop, sample):
    """The affine map of a crop, from the camera that moved with it: K' = A K."""
    return (crop.intrinsics.astype(np.float64) @ np.linalg.inv(sample.intrinsics.astype(np.float64)))[:2]


@pytest.mark.parametrize("size", [24, 64, 160])
def test_crop_keeps_camera_and_keypoints_together(size):
    sample = Hands("a", 1)[0]
    crop = crop_sample(sample, size, 2.0)
    np.testing.assert_allclose(projected(crop), crop.keypoints_2d, atol=1e-3)
    # The side of the square is a whole number of pixels.
    assert hand_size(crop.keypoints_2d) == pytest.approx(size / 2.0, rel=0.05)
    center = 0.5 * (crop.keypoints_2d.min(axis=0) + crop.keypoints_2d.max(axis=0))
    np.testing.assert_allclose(center, 0.5 * (size - 1), atol=0.05 * size)
    assert np.array_equal(crop.joints, sample.joints)


@pytest.mark.parametrize("size", [24, 96])
def test_crop_moves_pixels_with_keypoints(size):
    """A smooth spot stays at its label when the crop shrinks or enlarges it."""
    sample = Hands("a", 1)[0]
    y, x = np.mgrid[0:48, 0:60]
    spot = np.asarray([30.3, 22.8])
    light = 250.0 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2.0 * 4.0**2))
    image = np.repeat(np.round(light).astype(np.uint8)[..., None], 3, axis=-1)
    crop = crop_sample(changed(sample, image=image), size, 2.0)
    weight = np.maximum(crop.image[..., 0].astype(np.float64) - 140.0, 0.0)
    rows, columns = np.mgrid[0:size, 0:size]
    found = np.asarray([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    affine = map_of(crop, sample)
    np.testing.assert_allclose(found, affine[:, :2] @ spot + affine[:, 2], atol=0.15)


def test_mask_is_empty_beyond_the_border():
    sample = Hands("a", 1)[0]
    full = crop_sample(changed(sample, mask=np.ones((48, 60), np.bool_)), SIZE, 4.0)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    affine = map_of(full, sample)
    back = (np.stack([columns, rows], axis=-1) - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T
    outside = np.abs(back + 0.5 - np.asarray([30.0, 24.0])) - np.asarray([30.0, 24.0])
    assert np.all(full.mask[(outside < -1.0 / affine[0, 0]).all(axis=-1)] == 255)
    assert np.all(full.mask[(outside > 1.0 / affine[0, 0]).any(axis=-1)] == 0)
    assert (full.image[full.mask == 0] == 128).all()
    assert (full.mask == 0).any()


def test_unusable_keypoints_have_weight_zero_and_do_not_enlarge_the_crop():
    sample = Hands("a", 1)[0]
    points, joints = sample.keypoints_2d.copy(), sample.joints.copy()
    points[3], points[5], joints[7, 2] = np.nan, 1e5, -0.1
    crop = crop_sample(changed(sample, keypoints_2d=points, joints=joints), SIZE, 2.0)
    assert set(np.flatnonzero(crop.keypoint_weight == 0.0)) == {3, 5, 7}
    assert np.isfinite(crop.keypoints_2d).all()
    assert (np.abs(crop.keypoints_2d) < 2 * SIZE).all()
    none = crop_sample(changed(sample, keypoints_2d=np.full((21, 2), np.nan, np.float32)), 60, 2.0)
    # The whole image, padded to a square.
    np.testing.assert_allclose(map_of(none, sample), [[1, 0, 0], [0, 1, 6]], atol=1e-4)


def test_depth_is_the_nearest_pixel_of_the_hand():
    sample = Hands("a", 1)[0]
    depth = np.linspace(0.4, 0.8, 48 * 60, dtype=np.float32).reshape(48, 60)
    crop = crop_sample(changed(sample, depth=depth), SIZE, 2.0)
    values = crop.depth[crop.depth > 0]
    assert np.isin(values, depth[sample.mask]).all()
    # Only pixels on the outline are hand in one map and not in the other.
    assert ((crop.depth > 0) == (crop.mask > 127)).mean() > 0.95


@pytest.mark.parametrize("camera", [True, False])
def test_without_joints_everything_is_finite_after_augmentation(camera, grain):
    class Flat(Hands):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return changed(sample, joints=None, intrinsics=sample.intrinsics if camera else None)

    batch = Loader([Flat("a", 4)], config()).batch(0, range(4))
    assert not batch.has_joints.any()
    assert not batch.has_3d.any()
    assert batch.has_intrinsics.all() == camera
    moved = augmented(batch, AugmentationConfig())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved))
    assert (np.linalg.norm(moved.joints[:, 0] - moved.joints[:, 9], axis=-1) > 1e-4).all()


def test_augmented_batches_still_project(grain):
    batch = Loader([Hands("a", 4, posed=True)], config()).batch(0, range(4))
    moved = augmented(batch, AugmentationConfig(drop_intrinsics=0.0))
    np.testing.assert_allclose(projected(batch), batch.keypoints_2d, atol=1e-3)
    np.testing.assert_allclose(projected(moved), moved.keypoints_2d, atol=1e-3)


@pytest.mark.parametrize("name", ["rhd", "stb", "freihand"])
def test_archives_keep_camera_and_keypoints_together(name, tmp_path, grain):
    if name == "rhd":
        write_rhd(tmp_path / name)
    elif name == "stb":
        pytest.importorskip("scipy", reason="STB's labels are read with scipy")
        write_stb(tmp_path / name, frames=1)
    else:
        write_freihand_fixture(tmp_path / name)
    reader = open_dataset(name, tmp_path / name, "train" if name == "stb" else "training", mask=True)
    batch = Loader([reader], config(shuffle=False, size=64)).batch(0, range(4))
    for index in range(4):
        sample = reader[index]
        affine = map_of(crop_sample(sample, 64, 2.0), sample)
        points = sample.joints.astype(np.float64) @ sample.intrinsics.astype(np.float64).T
        # RHD's own keypoints are rounded; the crop adds nothing to that.
        rounded = (points[:, :2] / points[:, 2:] - sample.keypoints_2d) @ affine[:, :2].T
        assert np.abs(rounded).max() < (0.5 if name == "rhd" else 1e-3)
        assert (batch.keypoint_weight[index] == 1.0).all()
        np.testing.assert_allclose(projected(batch)[index] - batch.keypoints_2d[index], rounded, atol=1e-3)


# --- weights, backgrounds --------------------------------------------------------------------------------------------


def test_weights_mark_known_labels(grain):
    loaded = Loader([Hands("posed", 4, posed=True), Hands("joints", 4)], config(batch=8)).loaded(range(8))
    posed = np.asarray([name.startswith("posed") for name in loaded.names], np.float32)
    assert np.array_equal(loaded.batch.has_3d, posed)
    assert (loaded.batch.has_joints == 1.0).all()
    assert not loaded.batch.pose[posed == 0.0].any()
    assert all(leaf.dtype in (np.uint8, np.float32) for leaf in jax.tree.leaves(loaded.batch))


def test_backgrounds_change_only_outside_of_the_mask(grain):
    images = np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    hands = Hands("a", 6)
    plain = Loader([hands], config(shuffle=False)).loaded(range(12))
    pasted = Loader([hands], config(shuffle=False, pasted=1.0), backgrounds=images).loaded(range(12))
    assert plain.names == pasted.names
    for index in range(12):
        mask = crop_sample(hands[index % 6], SIZE, 2.0).mask
        assert np.array_equal(plain.batch.image[index][mask == 255], pasted.batch.image[index][mask == 255])
        around = pasted.batch.image[index][mask == 0]
        assert any(np.array_equal(around, image[mask == 0]) for p in images for image in (p, p[:, ::-1]))
    # Another epoch has another draw.
    assert any(not np.array_equal(pasted.batch.image[i], pasted.batch.image[i + 6]) for i in range(6))
    for probability, masked in ((0.0, True), (1.0, False)):
        same = Loader([Hands("a", 6, masked=masked)], config(shuffle=False, pasted=probability), backgrounds=images)
        assert np.array_equal(same.loaded(range(12)).batch.image, plain.batch.image)


def test_pasting_blends_by_the_mask():
    image, background = np.full((1, 1, 3), 200, np.uint8), np.full((1, 1, 3), 100, np.uint8)
    assert (paste(image, np.full((1, 1), 51, np.uint8), background) == 120).all()


# --- order -----------------------------------------------------------------------------------------------------------


def test_every_epoch_has_every_sample_in_another_order(grain):
    loader = Loader([Hands("a", 11)], config())
    epochs = [loader.loaded(range(11 * e, 11 * (e + 1))).names for e in range(3)]
    assert all(len(set(epoch)) == 11 for epoch in epochs)
    assert len(set(epochs)) == 3
    assert epochs[0] != Loader([Hands("a", 11)], config(seed=1)).loaded(range(11)).names
    assert Loader([Hands("a", 11)], config(shuffle=False)).loaded(range(13)).names == tuple(
        f"a/{i % 11}" for i in range(13)
    )


def test_index_stream_shuffles_every_epoch_anew(grain):
    stream = index_stream(7, 3)
    epochs = [[int(stream[7 * epoch + i]) for i in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [int(i) for i in index_stream(3, 0, shuffle=False, epochs=2)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("threads", [0, 3])
def test_iterating_yields_the_steps_of_the_source(threads, grain):
    images = np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    loader = Loader([Hands("a", 11), Hands("b", 5)], config(threads=threads), weights=[3.0, 1.0], backgrounds=images)
    batches = iter(loader)
    for step in range(4):
        assert equal(next(batches), loader.loaded(range(4 * step, 4 * step + 4)))
    part = loader.batch(2, [1, 3])
    whole = loader.batch(2, range(4))
    assert np.array_equal(part.image, whole.image[[1, 3]])


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_resuming_continues_identically(threads, stop, grain):
    images = np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)

    def loader():
        return Loader([Hands("a", 7), Hands("b", 5)], config(threads=threads), weights=[2.0, 1.0], backgrounds=images)

    first = iter(loader())
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    second = iter(loader())
    next(second)
    second.set_state(state)
    for _ in range(4):
        assert equal(next(first), next(second))


@pytest.mark.parametrize("count", [12, 13])
def test_shards_partition_the_epochs(count, grain):
    shards = [Loader([Hands("a", count)], config(shard_index=i, shard_count=3, epochs=2)) for i in range(3)]
    whole = Loader([Hands("a", count)], config(epochs=2))
    assert sum(map(len, shards)) == len(whole) == 2 * count
    names = [shard.loaded(range(len(shard))).names for shard in shards]
    dealt = [names[i % 3][i // 3] for i in range(2 * count)]
    assert tuple(dealt) == whole.loaded(range(2 * count)).names
    assert len(set(dealt[:count])) == count


def test_mixing_weights_hold_in_every_shard(grain):
    readers = [Hands("a", 7), Hands("b", 50), Hands("c", 3)]
    for shard in range(2):
        loader = Loader(readers, config(shard_index=shard, shard_count=2), weights=[0.5, 0.25, 0.25])
        names = [loader.loaded(range(4 * s, 4 * s + 4)).names for s in range(20)]
        counts = collections.Counter(name[0] for batch in names for name in batch)
        assert counts == {"a": 40, "b": 20, "c": 20}


@pytest.mark.parametrize(("drop", "sizes"), [(True, [4, 4]), (False, [4, 4, 3])])
def test_the_last_batch(drop, sizes, grain):
    loader = Loader([Hands("a", 11)], config(epochs=1, drop_remainder=drop))
    assert [len(loaded.names) for loaded in loader] == sizes
    with pytest.raises(IndexError):
        loader.loaded([11])


# --- unreadable samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 2])
def test_an_unreadable_sample_is_named(threads, grain):
    loader = Loader([Hands("a", 5, broken=(3,))], config(epochs=1, threads=threads, drop_remainder=False))
    with pytest.raises(InputError, match=r"^dataset 0, sample 3: a/3\.png: is not an image: unpack the archive again"):
        list(loader)
    with pytest.raises(InputError, match=r"unpack the archive again$"):
        loader.loaded(range(5))


def test_unreadable_samples_are_replaced_and_reported(grain):
    hands = Hands("a", 6, broken=(2, 3, 5))
    loader = Loader([hands], config(epochs=1, shuffle=False, skip_unreadable=True))
    assert loader.loaded(range(6)).names == ("a/0", "a/1", "a/4", "a/4", "a/4", "a/0")
    assert [line.split(":")[0] for line in loader.skipped] == [f"dataset 0, sample {i}" for i in (2, 3, 5)]
    broken = Loader([Hands("a", 2, broken=(0, 1))], config(skip_unreadable=True))
    with pytest.raises(InputError, match="none of the 2 samples of dataset 0 can be read"):
        broken.loaded([0])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"batch": 0}, "batch"),
        ({"epochs": 0}, "epochs"),
        ({"factor": 0.5}, "factor"),
        ({"pasted": 1.5}, "pasted"),
        ({"shard_index": 2, "shard_count": 2}, "shard_index"),
        ({"seed": -1}, "seed"),
        ({"threads": -1}, "threads"),
    ],
)
def test_invalid_settings(changes, field):
    with pytest.raises(InputError, match=f"LoaderConfig: {field}"):
        config(**changes)


def test_arguments_that_do_not_match(grain):
    with pytest.raises(InputError, match="give a positive weight each"):
        Loader([Hands("a", 3)], config(), weights=[1.0, 2.0])
    with pytest.raises(InputError, match="give a positive weight each"):
        Loader([], config())
    with pytest.raises(InputError, match="dataset 1 of the loader is empty"):
        Loader([Hands("a", 3), Hands("b", 0)], config())
    with pytest.raises(InputError, match=r"not \(n, 32, 32, 3\): resize them"):
        Loader([Hands("a", 3)], config(), backgrounds=np.zeros((2, 8, 8, 3), np.uint8))


def test_without_grain_the_remedy_is_named():
    code = (
        "import sys; sys.modules['grain'] = None\n"
        "from handtailor_jax.data.loader import Loader, LoaderConfig\n"
        "from handtailor_jax.errors import InputError\n"
        "try:\n    Loader([[0]], LoaderConfig())\n"
        "except InputError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert "pip install 'handtailor-jax[datasets]'" in result.stdout
    assert len(result.stdout.splitlines()) == 1

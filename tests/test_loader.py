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
from handtailor_jax.data.loader import gather, index_stream, load, stack
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
        rng = np.random.default_rng([index, *self.name.encode()])
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


def crops(reader, **changes):
    return load(reader, **{"size": SIZE, **changes})


def named(batch, *datasets):
    """Names of the samples of a batch; the crop does not change joints."""
    known = {
        sample.joints.tobytes(): sample.name for data in datasets for sample in map(data.__getitem__, range(len(data)))
    }
    return [known[joints.tobytes()] for joints in batch.joints]


def projected(batch):
    points = np.einsum(
        "...ij,...kj->...ki", np.asarray(batch.intrinsics, np.float64), np.asarray(batch.joints, np.float64)
    )
    return points[..., :2] / points[..., 2:]


def augmented(batch, settings):
    keys = jax.random.split(jax.random.key(0), len(batch.image))
    return jax.jit(augment, static_argnums=(2, 3))(jax.device_put(batch), keys, settings, 16)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


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

    batch = gather(crops(Flat("a", 4)), range(4))
    assert not batch.has_joints.any()
    assert not batch.has_3d.any()
    assert batch.has_intrinsics.all() == camera
    moved = augmented(batch, AugmentationConfig())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved))
    assert (np.linalg.norm(moved.joints[:, 0] - moved.joints[:, 9], axis=-1) > 1e-4).all()


def test_augmented_batches_still_project(grain):
    batch = gather(crops(Hands("a", 4, posed=True)), range(4))
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
    batch = gather(crops(reader, shuffle=False, size=64), range(4))
    for index in range(4):
        sample = reader[index]
        affine = map_of(crop_sample(sample, 64, 2.0), sample)
        points = sample.joints.astype(np.float64) @ sample.intrinsics.astype(np.float64).T
        # RHD's own keypoints are rounded; the crop adds nothing to that.
        rounded = (points[:, :2] / points[:, 2:] - sample.keypoints_2d) @ affine[:, :2].T
        assert np.abs(rounded).max() < (0.5 if name == "rhd" else 1e-3)
        assert (batch.keypoint_weight[index] == 1.0).all()
        np.testing.assert_allclose(projected(batch)[index] - batch.keypoints_2d[index], rounded, atol=1e-3)


# --- weights, order --------------------------------------------------------------------------------------------------


def test_weights_mark_known_labels(grain):
    datasets = Hands("posed", 4, posed=True), Hands("joints", 4)
    batch = gather(grain.MapDataset.mix([crops(each) for each in datasets]), range(8))
    posed = np.asarray([name.startswith("posed") for name in named(batch, *datasets)], np.float32)
    assert 0 < posed.sum() < 8
    assert np.array_equal(batch.has_3d, posed)
    assert (batch.has_joints == 1.0).all()
    assert not batch.pose[posed == 0.0].any()
    assert all(leaf.dtype in (np.uint8, np.float32) for leaf in jax.tree.leaves(batch))


def test_every_epoch_has_every_sample_in_another_order(grain):
    hands = Hands("a", 11)
    samples = crops(hands)
    epochs = [named(gather(samples, range(11 * e, 11 * (e + 1))), hands) for e in range(3)]
    assert all(len(set(epoch)) == 11 for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert epochs[0] != named(gather(crops(hands, seed=1), range(11)), hands)
    kept = named(gather(crops(hands, shuffle=False), range(13)), hands)
    assert kept == [f"a/{i % 11}" for i in range(13)]


def test_index_stream_shuffles_every_epoch_anew(grain):
    stream = index_stream(7, 3)
    epochs = [[int(stream[7 * epoch + i]) for i in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [int(i) for i in index_stream(3, 0, shuffle=False, epochs=2)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_resuming_continues_identically(threads, stop, grain):
    """Grain's iterator yields the samples by position, and goes on after a saved state."""
    samples = grain.MapDataset.mix([crops(Hands("a", 7)), crops(Hands("b", 5))], [2.0, 1.0])
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)

    def batches():
        return iter(samples.batch(4, batch_fn=stack).to_iter_dataset(options))

    first = batches()
    for step in range(stop):
        assert equal(next(first), gather(samples, range(4 * step, 4 * step + 4)))
    state = json.loads(json.dumps(first.get_state()))
    second = batches()
    next(second)
    second.set_state(state)
    for _ in range(4):
        assert equal(next(first), next(second))


@pytest.mark.parametrize("count", [12, 13])
def test_shards_partition_the_epochs(count, grain):
    hands = Hands("a", count)
    whole = crops(hands, epochs=2)
    shards = [whole[i::3] for i in range(3)]
    assert sum(map(len, shards)) == len(whole) == 2 * count
    names = [named(gather(shard, range(len(shard))), hands) for shard in shards]
    dealt = [names[i % 3][i // 3] for i in range(2 * count)]
    assert dealt == named(gather(whole, range(2 * count)), hands)
    assert len(set(dealt[:count])) == count


def test_mixing_weights_hold_in_every_shard(grain):
    readers = [Hands("a", 7), Hands("b", 50), Hands("c", 3)]
    for shard in range(2):
        mixed = grain.MapDataset.mix([crops(each)[shard::2] for each in readers], [0.5, 0.25, 0.25])
        counts = collections.Counter(name[0] for name in named(gather(mixed, range(80)), *readers))
        assert counts == {"a": 40, "b": 20, "c": 20}


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_unreadable_sample_is_named(grain):
    samples = crops(Hands("a", 5, broken=(3,)), epochs=1)
    with pytest.raises(InputError, match=r"^sample 3: a/3\.png: is not an image: unpack the archive again$"):
        gather(samples, range(5))


def test_a_sample_without_the_maps_that_a_loss_needs(grain):
    for reader, changes, name in (
        (Hands("a", 1, masked=False), {"masks": True}, "mask"),
        (Hands("a", 1), {"depths": True}, "depth"),
    ):
        with pytest.raises(InputError, match=rf"^a/0: has no {name} map: switch off the losses that need it$"):
            gather(crops(reader, **changes), [0])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"size": 0}, "size"),
        ({"epochs": 0}, "size is 32 and epochs"),
        ({"factor": 0.5}, "factor"),
        ({"seed": -1}, "seed"),
    ],
)
def test_invalid_settings(changes, field):
    with pytest.raises(InputError, match=f"^{field}"):
        crops(Hands("a", 1), **changes)


def test_an_empty_dataset(grain):
    with pytest.raises(InputError, match="the dataset is empty"):
        crops(Hands("b", 0))


def test_without_grain_the_remedy_is_named():
    code = (
        "import sys; sys.modules['grain'] = None\n"
        "from handtailor_jax.data.loader import load\n"
        "from handtailor_jax.errors import InputError\n"
        "try:\n    load([0])\n"
        "except InputError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert "pip install '.[datasets]'" in result.stdout
    assert len(result.stdout.splitlines()) == 1

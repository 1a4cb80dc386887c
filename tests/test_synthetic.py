"""Rendered samples: labels against an independent ray caster, repeatability, splits, files in FreiHAND's layout."""

import dataclasses
import hashlib
import itertools
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import project
from handtailor_jax.skeleton import ROOT, WRIST
from handtailor_jax.synthetic.dataset import (
    TEST_SAMPLES,
    SyntheticConfig,
    SyntheticDataset,
    load_assets,
    sample_hand,
    sample_key,
)
from handtailor_jax.synthetic.imaging import jpeg
from handtailor_jax.synthetic.poses import sample_pose
from handtailor_jax.synthetic.scene import place_hand, place_second_hand
from handtailor_jax.synthetic.skin import CHANNELS, skin_chart
from handtailor_jax.synthetic.storage import read_photographs, write_freihand
from handtailor_jax.synthetic.surface import HELD, scene_topology, smooth_surface
from tools.bake_scene import scene_arrays

SIZE, COUNT = 64, 8
CONFIG = SyntheticConfig(size=SIZE, images_at_once=COUNT, left=0.25)
rendered = pytest.mark.slow  # the program that renders takes half a minute and more than a gigabyte to compile

KEYS_DIGEST = "39b7bd4a9c524eb8fc4b11ef0c0b18ed9243bce396bb4188b65ecff90cabf336"
# fmt: off
LABELS_PRINT = np.asarray([412.43, 1104.32, -886.34, -1027.70, 2403.97, -2482.21, -586.09, -450.31, -4850.21,
    -4635.28, -12.44, -1089.84, -2968.87, -2575.54, -2019.65, 1639.53, 3405.64, 720.00, 1328.07, 1955.28, -3163.94,
    -694.68, -1408.31, 708.36, 1834.18, -304.69, 547.60, -395.00, 159.51, -3700.13, -3042.76, -2022.51, -348.22,
    -2561.96, -3396.09, -1241.04, -797.74, -2901.21, 330.00, 717.83])
IMAGES_PRINT = np.asarray([[91, 108, 184, 217, 117, 136, 183, 194, 95, 133, 143, 168, 96, 155, 156, 141], [216, 151,
    179, 195, 202, 151, 126, 178, 229, 218, 141, 149, 219, 219, 168, 126], [88, 48, 69, 85, 46, 93, 78, 21, 56, 89,
    65, 21, 50, 92, 86, 21], [39, 58, 64, 57, 106, 132, 154, 153, 105, 115, 95, 133, 74, 107, 76, 64]])
# fmt: on


@pytest.fixture(scope="module")
def dataset():
    return SyntheticDataset(CONFIG, "train", seed=5)


@pytest.fixture(scope="module")
def samples(dataset):
    return jax.device_get(dataset.batch(np.arange(COUNT)))


def one(samples, i):
    return jax.tree.map(lambda leaf: leaf[i], samples)


def first_hits(vertices, faces, directions):
    """Return the depth z at which rays from the origin first meet the mesh (inf: never), and whether on its outer side.

    Each face is solved in float64.
    """
    a, b, c = (np.asarray(vertices, np.float64)[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    distance = np.einsum("fc,fc->f", normal, a)
    depth, outside = [], []
    for chunk in np.array_split(np.asarray(directions, np.float64), max(1, len(directions) // 256)):
        slope = chunk @ normal.T
        inside = np.ones(slope.shape, bool)
        for p, q in ((a, b), (b, c), (c, a)):
            # The ray passes the plane through the origin and an edge on the inner side of the edge.
            inside &= (chunk @ np.cross(p, q).T) * slope >= 0
        ray, face = np.nonzero(inside & (slope != 0))
        z = np.full(slope.shape, np.inf)
        z[ray, face] = distance[face] / slope[ray, face] * chunk[ray, 2]
        z[z <= 0] = np.inf
        first = z.argmin(axis=1)
        depth.append(z.min(axis=1))
        outside.append(slope[np.arange(len(chunk)), first] < 0)
    return np.concatenate(depth), np.concatenate(outside)


def rays(camera, pixels):
    """Return directions through pixels, with z = 1."""
    linear, center = np.asarray(camera.linear, np.float64), np.asarray(camera.center, np.float64)
    xy = (np.asarray(pixels) - center) @ np.linalg.inv(linear).T
    return np.concatenate([xy, np.ones((len(xy), 1))], axis=1)


def faces_of(hand, sample):
    faces = np.asarray(hand.faces)
    return faces[:, ::-1] if sample.left else faces


@rendered
def test_labels_reproject(samples):
    pixels = np.asarray(jax.vmap(project)(samples.camera, samples.joints))
    np.testing.assert_allclose(pixels, samples.keypoints_2d, atol=0.01)
    assert samples.image.shape == (COUNT, SIZE, SIZE, 3)
    assert samples.image.dtype == np.uint8
    # The whole hand is in the crop, and it fills a fair part of it.
    low, high = samples.keypoints_2d.min(axis=1), samples.keypoints_2d.max(axis=1)
    assert (low > -1).all()
    assert (high < SIZE).all()
    fill = (high - low).max(axis=1) / SIZE
    assert (fill > 0.39).all()
    assert (fill < 0.96).all()


@rendered
def test_labels_agree_with_the_hand_model(hand, samples):
    skin = jax.jit(jax.vmap(lambda model, betas, pose: model.shape(betas).pose(pose).skin(), in_axes=(None, 0, 0)))
    for model, chosen in ((hand, ~samples.left), (hand.mirrored(), samples.left)):
        mesh = jax.device_get(skin(model, samples.betas, samples.pose))
        shift = (mesh.keypoints[:, ROOT] - samples.joints[:, ROOT])[:, None]
        np.testing.assert_allclose((mesh.vertices - shift)[chosen], samples.vertices[chosen], atol=2e-6)
        np.testing.assert_allclose((mesh.keypoints - shift)[chosen], samples.joints[chosen], atol=2e-6)
    assert 0 < samples.left.sum() < COUNT


@rendered
def test_mask_is_the_silhouette_and_depth_the_mesh(hand, samples):
    v, u = np.mgrid[:SIZE, :SIZE]
    pixels_of = np.asarray(jax.vmap(project)(samples.camera, samples.vertices))
    exact = 0
    for i in range(6):
        sample = one(samples, i)
        (left, top), (right, bottom) = pixels_of[i].min(axis=0), pixels_of[i].max(axis=0)
        near = (u >= left) & (u <= right) & (v >= top) & (v <= bottom)
        depth, silhouette = np.full((SIZE, SIZE), np.inf), np.zeros((SIZE, SIZE), bool)
        pixels = np.stack([u[near], v[near]], axis=1)
        depth[near], outside = first_hits(sample.vertices, faces_of(hand, sample), rays(sample.camera, pixels))
        # The inner side is visible through the open wrist only, which the arm covers.
        silhouette[near] = np.isfinite(depth[near]) & outside
        # Covered parts of the hand are not in the mask, and nothing else is in it. A pixel may round at an edge.
        assert (sample.mask & ~silhouette).sum() <= 1
        exact += (silhouette & ~sample.mask).sum() <= 2
        shown = sample.mask & silhouette
        assert np.quantile(np.abs(sample.depth[shown] - depth[shown]), 0.99) < 1e-4
        assert (sample.depth[~sample.mask] == 0).all()
    assert exact >= 3  # uncovered hands


@rendered
def test_visibility_agrees_with_casting_rays(hand, samples):
    # Thickness of the flesh in front of a keypoint in metres, for a reference bone of 95 mm.
    flesh = np.asarray([0.028, 0.030, 0.021, 0.016, 0.008, *[0.024, 0.015, 0.012, 0.007] * 4])
    agreed, hidden, total = 0, 0, 0
    for i in range(COUNT):
        sample = one(samples, i)
        joints = np.asarray(sample.joints, np.float64)
        hits, _ = first_hits(sample.vertices, faces_of(hand, sample), joints / joints[:, 2:])
        margin = hits - (joints[:, 2] - flesh * np.linalg.norm(joints[ROOT] - joints[WRIST]) / 0.095)
        u, v = np.clip(np.round(sample.keypoints_2d).astype(int), 0, SIZE - 1).T
        # The ray caster has no other objects than the hand, so pixels where they are visible are left out.
        decided = (np.abs(margin) > 0.002) & (sample.mask[v, u] | (margin < 0))
        agreed += ((margin > 0) == sample.visible)[decided].sum()
        total += decided.sum()
        hidden += (~sample.visible).sum()
    assert total > 0.6 * 21 * COUNT
    assert agreed / total > 0.97
    assert 0.1 < hidden / (21 * COUNT) < 0.8


@rendered
def test_samples_repeat_bit_for_bit(dataset, samples):
    again = itertools.islice(SyntheticDataset(CONFIG, "train", seed=5), COUNT)
    jax.tree.map(np.testing.assert_array_equal, samples, jax.tree.map(lambda *leaves: np.stack(leaves), *again))
    # A sample does not depend on its batch.
    jax.tree.map(np.testing.assert_array_equal, one(samples, 7), jax.device_get(dataset[7]))
    mixed = jax.device_get(dataset.batch([900, 3, 11]))
    jax.tree.map(np.testing.assert_array_equal, one(samples, 3), one(mixed, 1))


@rendered
def test_samples_differ(dataset, samples):
    flat = samples.image.reshape(COUNT, -1).astype(float)
    apart = np.abs(flat[:, None] - flat[None]).mean(axis=-1) + 255 * np.eye(COUNT)
    assert apart.min() > 5
    other = jax.device_get(SyntheticDataset(CONFIG, "train", seed=6).batch(np.arange(COUNT)))
    assert (np.abs(other.pose - samples.pose).max(axis=(1, 2)) > 0.01).all()


@rendered
def test_hands_contrast_with_the_background(samples):
    image = samples.image.astype(float).mean(axis=-1)
    contrast = [abs(image[i][samples.mask[i]].mean() - image[i][~samples.mask[i]].mean()) for i in range(COUNT)]
    spread = [image[i][samples.mask[i]].std() for i in range(COUNT)]
    assert np.median(contrast) > 8
    assert np.median(spread) > 8  # shading, not a flat shape


def test_splits_never_share_a_key():
    def keys(seed, split, count):
        return np.asarray(jax.vmap(lambda i: jax.random.key_data(sample_key(seed, split, i)))(np.arange(count)))

    test = keys(0, "test", TEST_SAMPLES)
    assert (test == keys(123, "test", TEST_SAMPLES)).all()
    seeds = (0, 1, 7, 20_210_209, 2**31 - 1)
    everything = np.concatenate([test, *(keys(seed, "train", 20_000) for seed in seeds)])
    assert len(np.unique(everything, axis=0)) == len(everything)


def test_the_test_split_is_frozen():
    """The tables of this project are computed on these samples: a change here needs new tables."""
    assets = load_assets()
    keys = jax.jit(jax.vmap(lambda i: sample_key(0, "test", i)))(jnp.arange(TEST_SAMPLES, dtype=jnp.int32))
    digest = hashlib.sha256(np.asarray(jax.random.key_data(keys)).astype("<u4").tobytes()).hexdigest()
    assert digest == KEYS_DIGEST

    def labels(key):
        pose, betas, placed = sample_hand(assets, key, CONFIG)
        return jnp.concatenate([x.reshape(-1) for x in (pose, betas, placed.joints, placed.keypoints_2d)])

    every = np.asarray(jax.jit(lambda keys: jax.lax.map(labels, keys, batch_size=500))(keys), np.float64)
    # Sums of a hundred samples with random signs: rounding changes them by far less than the tolerance, a changed
    # sample by far more. A pose at the limit of a collision may be replaced on another machine.
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=every.shape)
    sums = (signs * every).reshape(40, -1).sum(axis=1)
    assert (np.abs(sums - LABELS_PRINT) < 0.2).sum() >= 38


@rendered
def test_the_images_of_the_test_split_are_frozen():
    batch = SyntheticDataset(CONFIG, "test").batch(np.arange(4))
    image = np.asarray(batch.image, np.float64)
    images = np.where(np.asarray(batch.left)[:, None, None, None], image[:, :, ::-1], image)
    coarse = images.reshape(4, 4, SIZE // 4, 4, SIZE // 4, 3).mean(axis=(2, 4, 5)).reshape(4, 16)
    np.testing.assert_allclose(coarse, IMAGES_PRINT, atol=2.0)


def test_bad_requests(dataset, tmp_path):
    for wrong in ({"size": 100}, {"size": 16}, {"images_at_once": 0}):
        with pytest.raises(InputError, match="SyntheticConfig"):
            SyntheticConfig(**wrong)
    with pytest.raises(InputError, match="split"):
        SyntheticDataset(CONFIG, "validation")
    with pytest.raises(InputError, match="seed"):
        SyntheticDataset(CONFIG, "train", seed=-1)
    with pytest.raises(IndexError):
        dataset.batch([-1])
    with pytest.raises(IndexError):
        SyntheticDataset(CONFIG, "test")[TEST_SAMPLES]
    with pytest.raises(InputError, match="whole numbers"):
        dataset.batch([0.5])
    with pytest.raises(InputError, match="photographs"):
        load_assets(np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(InputError, match="holds no images"):
        read_photographs(tmp_path)


@rendered
def test_files_in_freihands_layout(hand, dataset, samples, tmp_path):
    out = tmp_path / "set"
    count = 5
    write_freihand(dataset, count, out)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    fields = {
        name: json.loads((out / f"training_{name}.json").read_text()) for name in ("K", "mano", "scale", "verts", "xyz")
    }
    assert {len(entries) for entries in fields.values()} == {count}
    for i in range(count):
        image = cv2.imread(str(out / "training" / "rgb" / f"{i:08d}.jpg"))
        assert np.abs(image[..., ::-1].astype(float) - samples.image[i]).mean() < 6
        mask = cv2.imread(str(out / "training" / "mask" / f"{i:08d}.jpg"))[..., 2] > 128
        assert (mask == samples.mask[i]).mean() > 0.995
        k, xyz = np.asarray(fields["K"][i]), np.asarray(fields["xyz"][i])
        uv = xyz @ k.T
        np.testing.assert_allclose(uv[:, :2] / uv[:, 2:], samples.keypoints_2d[i], atol=0.01)
        np.testing.assert_allclose(fields["scale"][i], np.linalg.norm(xyz[ROOT] - xyz[ROOT + 1]), atol=1e-5)
        np.testing.assert_allclose(fields["verts"][i], samples.vertices[i], atol=1e-5)
        mano = np.asarray(fields["mano"][i])
        assert mano.shape == (1, 61)
        pose, shape, root, scale = np.split(mano[0], [48, 58, 60])
        np.testing.assert_allclose(pose[3:] + np.asarray(hand.pose_mean), samples.pose[i][1:].ravel(), atol=1e-5)
        np.testing.assert_allclose(shape, samples.betas[i], atol=1e-5)
        focal = 0.5 * (k[0, 0] + k[1, 1])
        np.testing.assert_allclose(np.append(root - k[:2, 2], focal) / scale, xyz[ROOT], atol=1e-5)
    assert cv2.imread(str(out / "contact_sheet.jpg")) is not None
    (tmp_path / "link").symlink_to("nowhere")
    for place in (out, tmp_path / "link"):
        with pytest.raises(InputError, match="exists already"):
            write_freihand(dataset, count, place)
    with pytest.raises(InputError, match="count"):
        write_freihand(SyntheticDataset(CONFIG, "test"), TEST_SAMPLES + 1, tmp_path / "none")


@rendered
def test_an_interrupted_write_continues(dataset, tmp_path, monkeypatch):
    """The folder appears when it is complete; what was written before is not rendered again, also for another count."""
    from handtailor_jax.synthetic import storage

    real, calls = storage.write_image, []
    step = dataset.config.images_at_once

    def fails_after(most):
        def write(path, image):
            if len(calls) == most:
                raise OSError(28, "No space left on device")
            calls.append(path.name)
            real(path, image)

        calls.clear()
        monkeypatch.setattr(storage, "write_image", write)

    fails_after(2 * step + 3)
    with pytest.raises(InputError, match="No space left"):
        write_freihand(dataset, 3 * step, tmp_path / "set")
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".set.")
    (partial / "training" / "rgb" / ".00000001.0123abcd.tmp.jpg").write_bytes(b"of a killed run")
    fails_after(10**6)
    write_freihand(dataset, step + 1, tmp_path / "set")
    assert calls == 2 * [f"{step:08d}.jpg"] + ["contact_sheet.jpg"]
    write_freihand(dataset, step + 1, tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"set", "whole"}
    written, whole = ({p.relative_to(r): p for p in r.rglob("*.*")} for r in (tmp_path / "set", tmp_path / "whole"))
    assert written.keys() == whole.keys()
    assert all(written[name].read_bytes() == path.read_bytes() for name, path in whole.items())


def test_skin_chart():
    chart = skin_chart(128)
    assert chart.shape == (len(CHANNELS), 128, 128)
    assert np.isfinite(chart).all()
    nail, palm, crease = (chart[CHANNELS.index(name)] for name in ("nail", "palm", "crease"))
    assert 0.001 < (nail > 0.5).mean() < 0.03
    assert 0.1 < (palm > 0.5).mean() < 0.5
    assert not ((nail > 0.5) & (crease > 0.5)).any()


def test_the_baked_scene_is_what_its_script_makes():
    topology = scene_topology()
    for name, array in scene_arrays().items():
        np.testing.assert_array_equal(getattr(topology, name), array)


def test_hand_and_arm_are_one_surface():
    """Every edge of hand and bare arm lies between two faces that run along it in opposite directions."""
    topology = scene_topology()
    skin = np.arange(len(topology.faces)) < 3196 + 14 * 40
    faces = np.asarray(topology.faces)[skin]
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert len(np.unique(edges, axis=0)) == len(edges)
    there = {tuple(e) for e in edges.tolist()}
    open_edges = [e for e in there if e[::-1] not in there]
    assert len(open_edges) == len(np.asarray(topology.wrist_loop))  # the far end of the arm


@pytest.mark.slow
def test_the_second_hand_is_a_copy_of_the_first_in_the_mesh():
    """A scene whose second hand is the first one moved has its vertices and normals there, divided in the same way."""
    plain = scene_topology()
    both = scene_topology(two_hands=True)
    total = int(plain.faces.max()) + 1
    own = int(both.faces.max()) + 1 - total
    vertices = np.random.default_rng(0).normal(size=(total, 3)).astype(np.float32)
    move = np.asarray([1.0, -2.0, 0.5], np.float32)
    first = smooth_surface(jnp.asarray(vertices), plain)
    scene = smooth_surface(jnp.asarray(np.concatenate([vertices, vertices[:own] + move])), both)
    corners = [np.asarray(surface[0])[np.asarray(t.smooth_faces)] for surface, t in ((first, plain), (scene, both))]
    normals = [np.asarray(surface[1])[np.asarray(t.smooth_faces)] for surface, t in ((first, plain), (scene, both))]
    count = len(corners[0])
    copied = np.asarray(plain.material) < HELD
    np.testing.assert_array_equal(corners[1][:count], corners[0])
    np.testing.assert_allclose(corners[1][count:], corners[0][copied] + move, atol=1e-3)
    np.testing.assert_allclose(normals[1][count:], normals[0][copied], atol=5e-3)
    assert int(both.is_hand.sum()) == int(plain.is_hand.sum())
    np.testing.assert_array_equal(both.material[count:], np.asarray(plain.material)[copied])


@pytest.mark.slow
def test_a_second_hand_touches_the_first_and_does_not_cut_it(hand):
    topology = scene_topology()

    def placed(key):
        keys = jax.random.split(key, 4)
        pose, other = sample_pose(hand, keys[0]), sample_pose(hand, keys[1])
        betas = jnp.zeros((hand.num_betas,), jnp.float32)
        first = place_hand(hand, pose, betas, keys[2], SIZE)
        vertices = place_second_hand(hand, first, other, betas, topology, keys[3])
        mesh = hand.shape(betas).pose(other).skin()
        return first.vertices, vertices, mesh.vertices

    first, vertices, meshes = jax.device_get(jax.jit(jax.vmap(placed))(jax.random.split(jax.random.key(3), 48)))
    seconds = vertices[:, : first.shape[1]]
    gaps = np.asarray([cKDTree(a).query(b)[0].min() for a, b in zip(first, seconds, strict=True)])
    assert np.median(gaps) < 0.015
    assert gaps.max() < 0.06
    # Hands of the other side are mirror images: the triple product of three edges changes its sign.
    corners = [0, 400, 800, 1200]
    signs = [np.sign(np.linalg.det(np.diff(mesh[:, corners], axis=1))) for mesh in (seconds, meshes)]
    assert 0.7 < (signs[0] != signs[1]).mean() < 0.98


@rendered
def test_a_second_hand_changes_the_image_and_not_the_labels(samples):
    both = jax.device_get(SyntheticDataset(dataclasses.replace(CONFIG, second_hand=1.0), seed=5).batch(np.arange(8)))
    alone = jax.tree.map(lambda leaf: leaf[:8], samples)
    for name in ("keypoints_2d", "joints", "pose", "betas", "vertices"):
        np.testing.assert_allclose(getattr(both, name), getattr(alone, name), rtol=1e-6, atol=1e-5)
    assert not (both.mask & ~alone.mask).any()
    assert not (both.visible & ~alone.visible).any()
    covered = alone.mask & ~both.mask
    assert covered.any(axis=(1, 2)).any()
    different = np.abs(both.image.astype(int) - alone.image).max(axis=(1, 2, 3))
    assert (different > 20).sum() >= 6


def test_jpeg_agrees_with_an_encoder():
    rng = np.random.default_rng(0)
    coarse = (0.7 * rng.uniform(size=(8, 8, 1)) + 0.3 * rng.uniform(size=(8, 8, 3))).astype(np.float32)
    image = np.clip(cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_CUBIC), 0, 1)
    for quality in (30, 80):
        ours = np.asarray(jax.jit(jpeg)(image, np.float32(quality)))
        file = cv2.imencode(
            ".jpg", np.round(255 * image[..., ::-1]).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )[1]
        theirs = cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1] / 255.0
        lost = np.abs(theirs - image).mean()
        assert np.abs(ours - theirs).mean() < 0.5 * lost + 0.004
        assert 0.5 < np.abs(ours - image).mean() / lost < 1.5

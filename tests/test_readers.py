"""Readers of datasets on miniature archives: exact ground truth, known traps, and damaged archives."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import struct

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.data import open_dataset, readable
from handtailor_jax.data.readers import freihand as freihand_reader
from handtailor_jax.data.readers.rhd import rhd_depth
from handtailor_jax.data.readers.stb import SK_COLOUR_CAMERA, depth_to_colour, stb_depth
from handtailor_jax.data.sample import mirrored_sample
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import crop_affine, project, transform_camera, transform_pixels
from handtailor_jax.geometry.mirror import mirror_camera
from handtailor_jax.mano.loading import embedded_arrays
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, KEYPOINTS_FROM_MANO, ROOT, WRIST, permutation
from handtailor_jax.synthetic.dataset import SyntheticDataset
from handtailor_jax.synthetic.storage import write_freihand
from handtailor_jax.types import Camera
from tests.fixtures import (
    FREIHAND_BACKGROUNDS,
    RHD_CASES,
    mirrored_hands,
    random_hands,
    write_freihand_fixture,
    write_photos,
    write_rhd,
    write_stb,
)
from tests.test_synthetic import CONFIG as RENDERED

NUMBER = r"-?\d+\.\d+"
MEAN = np.asarray(embedded_arrays()["pose_mean"])
STB_PART = ("B1Counting", "B1Random", "B2Counting", "B2Random")


@pytest.fixture(scope="module")
def rhd(tmp_path_factory):
    root = tmp_path_factory.mktemp("rhd") / "RHD_published_v2"
    return root, write_rhd(root)


@pytest.fixture(scope="module")
def stb(tmp_path_factory):
    pytest.importorskip("scipy")
    root = tmp_path_factory.mktemp("stb") / "STB"
    return root, write_stb(root, STB_PART)


@pytest.fixture(scope="module")
def freihand(tmp_path_factory):
    root = tmp_path_factory.mktemp("freihand") / "FreiHAND_pub_v2"
    return root, write_freihand_fixture(root, truth="sibling")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    return root, write_photos(root)


def copied(fixture, tmp_path):
    return shutil.copytree(fixture[0], tmp_path / fixture[0].name, ignore=shutil.ignore_patterns(".handtailor_cache"))


def assert_is(sample, written, *, lossless=True):
    """Assert that a sample is the written hand, mirrored if it is left, by formulas that the readers do not share."""
    flip = written.left
    width = written.image.shape[1]

    def pixels(array):
        return array[:, ::-1] if flip else array

    assert sample.mirrored == flip
    if lossless:
        np.testing.assert_array_equal(sample.image, pixels(written.image))
    else:
        assert np.abs(sample.image.astype(float) - pixels(written.image)).mean() < 6
    uv, k = written.keypoints_2d.copy(), written.intrinsics.copy()
    if flip:
        uv[:, 0] = width - 1 - uv[:, 0]
        k[0, 2] = width - 1 - k[0, 2]
    np.testing.assert_allclose(sample.keypoints_2d, uv, rtol=2e-6, atol=1e-4)
    np.testing.assert_array_equal(sample.visible, written.visible)
    if sample.joints is not None:
        np.testing.assert_allclose(sample.joints, mirrored_hands(written.joints) if flip else written.joints, atol=1e-6)
        np.testing.assert_allclose(sample.intrinsics, k, rtol=1e-6)
    for field in ("mask", "depth"):
        if getattr(sample, field) is not None and lossless:
            np.testing.assert_allclose(getattr(sample, field), pixels(getattr(written, field)), atol=1e-6)
    for field in ("pose", "betas", "vertices"):
        if getattr(sample, field) is not None:
            np.testing.assert_allclose(getattr(sample, field), getattr(written, field), atol=1e-6)


def reprojection(sample):
    pixels = sample.joints.astype(np.float64) @ sample.intrinsics.astype(np.float64).T
    return np.abs(pixels[:, :2] / pixels[:, 2:] - sample.keypoints_2d).max()


def is_right(joints):
    """Whether the fingers bend to the side that the palm of a right hand faces."""
    wrist, index, middle, little = (
        joints[KEYPOINTS.index(n)] for n in ("wrist", "index_mcp", "middle_mcp", "little_mcp")
    )
    tips = joints[[KEYPOINTS.index(f"{finger}_tip") for finger in ("index", "middle", "ring", "little")]]
    return np.dot(np.cross(index - wrist, little - wrist), (tips - middle).mean(axis=0)) > 0.0


def every_reader(rhd, stb, freihand):
    for split in ("training", "evaluation"):
        yield open_dataset("rhd", rhd[0], split)
        yield open_dataset("freihand", freihand[0], split)
    for camera in ("SK", "BB_left", "BB_right"):
        yield open_dataset("stb", stb[0], "test", camera=camera)


# ---------------------------------------------------------------------------------------------------------------------
# Samples equal what was written


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_rhd(rhd, split):
    root, truth = rhd
    reader = open_dataset("rhd", root, split, depth=True, mask=True)
    assert len(reader) == len(RHD_CASES)
    for index, written in enumerate(truth[split]):
        assert_is(reader[index], written)
        assert reader[index].name == f"{split}/{index:05d}"
        assert reader[index].joint_definition == "annotated"
    assert len({float(reader[i].intrinsics[0, 0]) for i in range(len(reader))}) > 1
    outside = reader[RHD_CASES.index("right")].keypoints_2d
    assert (outside > 319.0).any()


@pytest.mark.parametrize("camera", ["SK", "BB_left", "BB_right"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_stb(stb, camera, split):
    root, truth = stb
    reader = open_dataset("stb", root, split, camera=camera, mask=camera == "SK")
    sequences = STB_PART[:2] if split == "test" else STB_PART[2:]
    written = [hand for sequence in sequences for hand in truth[camera][sequence]]
    assert len(reader) == len(written) == 22
    for index in (0, 1, 2, 9, 10, 11, 13, 21):
        assert_is(reader[index], written[index])
        assert reader[index].mirrored
    # As text, frame 10 sorts before frame 2.
    assert reader[2].name.endswith("_2")
    assert reader[10].name.endswith("_10")


def test_stb_splits(tmp_path):
    pytest.importorskip("scipy")
    write_stb(tmp_path, frames=1, images=False)
    names = {split: [s.name for _, s in readable(open_dataset("stb", tmp_path, split))] for split in ("train", "test")}
    assert len(names["train"]) == 10
    assert {name[:2] for name in names["train"]} == {"B2", "B3", "B4", "B5", "B6"}
    assert [name.split("/")[0] for name in names["test"]] == ["B1Counting", "B1Random"]


def test_stb_wrists(tmp_path, stb):
    root, _ = stb
    [palm, bihand] = (open_dataset("stb", root, "test", wrist=wrist)[0].joints for wrist in ("palm", "bihand"))
    np.testing.assert_allclose(bihand[WRIST] - bihand[ROOT], 2.2 * (palm[WRIST] - palm[ROOT]), atol=1e-6)
    np.testing.assert_array_equal(palm[1:], bihand[1:])
    written = write_stb(tmp_path / "ge", ("B1Counting", "B1Random"), 1, palm="ge")["SK"]["B1Counting"][0]
    assert_is(open_dataset("stb", tmp_path / "ge", "test", wrist="ge")[0], written)


def test_stb_depth_is_brought_to_the_colour_camera(stb):
    root, _ = stb
    sample = open_dataset("stb", root, "test", depth=True)[3]
    hits = 0
    for (u, v), z in zip(np.round(sample.keypoints_2d).astype(int), sample.joints[:, 2], strict=True):
        around = sample.depth[v - 4 : v + 5, u - 4 : u + 5]
        # Other joints may be in front.
        assert around[around > 0].min() < z + 0.002
        hits += np.abs(around[around > 0] - z).min() < 0.002
    assert hits > 15


def test_freihand_training(freihand):
    root, truth = freihand
    reader = open_dataset("freihand", root, "training", hands_mean=MEAN, mask=True)
    assert len(reader) == 12
    for index in range(len(reader)):
        version, entry = divmod(index, 3)
        written = truth["training"][entry]
        sample = reader[index]
        assert_is(dataclasses.replace(sample, image=reader[entry].image), written, lossless=False)
        assert np.abs(sample.image[:20, :20].mean(axis=(0, 1)) - FREIHAND_BACKGROUNDS[version]).max() < 4
        assert (sample.mask == written.mask).mean() > 0.98
        assert sample.name == f"training/{index:08d}"
        assert sample.joint_definition == "freihand"
        assert sample.vertices.shape == (778, 3)
    some = open_dataset("freihand", root, "training", versions=("auto", "gs"), vertices=False)
    assert [sample.name for _, sample in readable(some)] == [f"training/{i:08d}" for i in (9, 10, 11, 0, 1, 2)]
    assert some[0].vertices is None
    assert some[0].pose is None
    np.testing.assert_allclose(some[4].joints, truth["training"][1].joints, atol=1e-6)


@pytest.mark.parametrize("place", ["root", "sibling", "elsewhere"])
def test_freihand_evaluation_with_truth(tmp_path, place):
    root = tmp_path / "FreiHAND_pub_v2"
    truth = write_freihand_fixture(root, truth="root" if place == "root" else "sibling")
    options = {}
    if place == "elsewhere":
        options["truth"] = (tmp_path / "FreiHAND_pub_v2_eval").rename(tmp_path / "truth")
        (options["truth"] / "evaluation_mano.json").unlink()
    reader = open_dataset("freihand", root, "evaluation", hands_mean=MEAN, **options)
    assert len(reader) == 2
    for index, written in enumerate(truth["evaluation"]):
        assert reader[index].vertices is not None
        assert (reader[index].pose is None) == (place == "elsewhere")
        assert_is(reader[index], written, lossless=False)


def test_freihand_evaluation_without_truth(tmp_path):
    root = tmp_path / "FreiHAND_pub_v2"
    truth = write_freihand_fixture(root)
    sample = open_dataset("freihand", root, "evaluation")[1]
    assert sample.joints is sample.pose is sample.vertices is None
    assert np.isnan(sample.keypoints_2d).all()
    np.testing.assert_allclose(sample.intrinsics, truth["evaluation"][1].intrinsics, rtol=1e-6)


def test_photos(photos):
    root, truth = photos
    for split in ("train", "val"):
        reader = open_dataset("photos", root, split)
        assert [sample.mirrored for _, sample in readable(reader)] == [True, False]
        for index, written in enumerate(truth[split]):
            assert_is(reader[index], written)
            assert reader[index].joints is reader[index].intrinsics is None


@pytest.mark.slow
def test_rendered_hands(tmp_path):
    dataset = SyntheticDataset(RENDERED, "train")
    write_freihand(dataset, 2, tmp_path / "set")
    reader = open_dataset("synthetic", tmp_path / "set", "train", mask=True)
    assert len(reader) == 2
    batch = dataset.batch([0, 1])
    for index in range(2):
        sample = reader[index]
        np.testing.assert_allclose(sample.pose, batch.pose[index], atol=1e-5)
        np.testing.assert_allclose(sample.betas, batch.betas[index], atol=1e-5)
        np.testing.assert_allclose(sample.joints, batch.joints[index], atol=1e-5)
        np.testing.assert_allclose(sample.vertices, batch.vertices[index], atol=1e-5)
        np.testing.assert_allclose(sample.keypoints_2d, batch.keypoints_2d[index], atol=0.01)
        assert (sample.mask == np.asarray(batch.mask[index])).mean() > 0.99
        assert np.abs(sample.image.astype(float) - np.asarray(batch.image[index])).mean() < 8
        assert sample.joint_definition == "model"
        assert reprojection(sample) < 1e-3


def test_any_number_of_vertices_in_the_synthetic_layout(tmp_path):
    truth = write_freihand_fixture(tmp_path / "set", annotations=2)
    entries = json.loads((tmp_path / "set" / "training_verts.json").read_text())
    (tmp_path / "set" / "training_verts.json").write_text(json.dumps([entry[:100] for entry in entries]))
    reader = open_dataset("synthetic", tmp_path / "set", "train", mask=True)
    assert len(reader) == 2
    np.testing.assert_allclose(reader[1].vertices, truth["training"][1].vertices[:100], atol=1e-6)
    np.testing.assert_allclose(reader[1].pose, truth["training"][1].pose, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Properties of every dataset


def test_joints_project_to_the_keypoints(rhd, stb, freihand):
    for reader in every_reader(rhd, stb, freihand):
        for _, sample in readable(reader):
            assert reprojection(sample) < (0.5 if len(reader) == len(RHD_CASES) else 1e-3)


def test_camera_follows_the_crop(rhd, stb, freihand, x64):
    for reader in every_reader(rhd, stb, freihand):
        for index in (0, 1):
            sample = reader[index]
            camera = Camera.from_matrix(np.asarray(sample.intrinsics, np.float64))
            joints = jnp.asarray(sample.joints, jnp.float64)
            # RHD's keypoints are rounded to four digits, so its projections are used instead.
            uv = (
                project(camera, joints)
                if len(reader) == len(RHD_CASES)
                else jnp.asarray(sample.keypoints_2d, jnp.float64)
            )
            low, high = uv.min(axis=0), uv.max(axis=0)
            affine = crop_affine(0.5 * (low + high), 2.0 * (high - low).max(), 256, jnp.asarray(0.4))
            residual = project(transform_camera(camera, affine), joints) - transform_pixels(affine, uv)
            assert np.abs(residual).max() < 1e-3


def test_every_hand_is_a_right_hand(rhd, stb, freihand, photos):
    assert all(is_right(hand) for hand in random_hands(50, 7))
    assert not any(is_right(hand) for hand in mirrored_hands(random_hands(5, 7)))
    for reader in every_reader(rhd, stb, freihand):
        for index, sample in readable(reader):
            assert is_right(sample.joints), f"{sample.name} at {index}"


def test_reference_bones_have_the_length_of_hands(stb, freihand):
    for reader in (open_dataset("stb", stb[0], "test"), open_dataset("freihand", freihand[0], "training")):
        for _, sample in readable(reader):
            assert 0.05 < np.linalg.norm(sample.joints[WRIST] - sample.joints[ROOT]) < 0.16


def test_permutations():
    # As the datasets' descriptions list them.
    assert permutation(KEYPOINT_ORDERS["rhd"], KEYPOINTS) == (
        0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17,
    )  # fmt: skip
    assert permutation(KEYPOINT_ORDERS["stb"], KEYPOINTS) == (
        0, 17, 18, 19, 20, 13, 14, 15, 16, 9, 10, 11, 12, 5, 6, 7, 8, 1, 2, 3, 4,
    )  # fmt: skip
    # The little finger comes before the ring finger.
    assert KEYPOINTS_FROM_MANO == (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)


# ---------------------------------------------------------------------------------------------------------------------
# Known traps


def test_principal_point_is_mirrored_too(stb):
    sample = open_dataset("stb", stb[0], "test")[0]
    np.testing.assert_allclose(sample.intrinsics[0, 2], 639.0 - 314.78337, rtol=1e-6)
    # The common formula W - u with an unmirrored camera puts joints and keypoints 10.4 px apart.
    unmirrored = sample.joints.astype(np.float64) * [-1.0, 1.0, 1.0] @ SK_COLOUR_CAMERA.T
    common = 640.0 - unmirrored[:, 0] / unmirrored[:, 2]
    kept = sample.joints.astype(np.float64) @ SK_COLOUR_CAMERA.T
    np.testing.assert_allclose(common - kept[:, 0] / kept[:, 2], 640.0 - 2.0 * 314.78337, atol=1e-3)
    assert reprojection(sample) < 1e-3


def test_mirroring_twice_returns_the_sample(freihand):
    sample = open_dataset("freihand", freihand[0], "training", hands_mean=MEAN, mask=True)[1]
    skewed = sample.intrinsics + np.asarray([[0, 3, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    sample = dataclasses.replace(sample, intrinsics=skewed)
    mirrored = mirrored_sample(sample)
    # `mirror_camera` is independent of the formula for K.
    camera = mirror_camera(Camera.from_matrix(skewed), sample.image.shape[1])
    np.testing.assert_allclose(mirrored.intrinsics, camera.matrix, rtol=1e-6)
    for field in dataclasses.fields(sample):
        again, original = getattr(mirrored_sample(mirrored), field.name), getattr(sample, field.name)
        if isinstance(original, np.ndarray):
            assert again.dtype == original.dtype
            np.testing.assert_allclose(again, original, atol=2e-5, err_msg=field.name)


def test_depth_frame_of_stb():
    found = depth_to_colour(np.asarray([0.010, 0.020, 0.500]))
    np.testing.assert_allclose(1000.0 * found, [40.095, 23.005, 500.674], atol=6e-4)


def test_byte_orders_of_depth():
    picture = np.asarray([[[200, 10, 99], [1, 255, 0]]], np.uint8)
    np.testing.assert_allclose(rhd_depth(picture), [[(200 * 256 + 10) / 65535 * 5, (256 + 255) / 65535 * 5]], rtol=1e-6)
    np.testing.assert_allclose(stb_depth(picture), [[0.200 + 2.560, 0.001 + 65.280]], rtol=1e-6)


def test_rhd_depth_beyond_a_byte(rhd):
    root, _ = rhd
    raw = cv2.imread(str(root / "training" / "depth" / "00001.png"))[..., ::-1]
    assert raw[..., 0].max() >= 128
    np.testing.assert_allclose(open_dataset("rhd", root, "training", depth=True)[1].depth.max(), 3.2, atol=1e-3)


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_the_rhd_fixture_has_every_case(rhd, split):
    root, truth = rhd
    ids = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((root / split / "mask").iterdir())]
    assert {value for picture in ids for value in picture.ravel().tolist()} == set(range(34))
    content = pickle.loads((root / split / f"anno_{split}.pickle").read_bytes())
    assert all(type(key) is int for key in content)
    for index, written in enumerate(truth[split]):
        other = slice(21, 42) if written.left else slice(0, 21)
        assert 0 < (content[index]["uv_vis"][other, 2] == 1).sum() < 21
        behind = (content[index]["xyz"][other, 2] < 0).any()
        assert behind == (RHD_CASES[index] == "behind")
        assert (written.joints[:, 2] > 0).all()


def test_the_mask_rule_chooses_the_hand(rhd):
    root, _ = rhd
    counts = {}
    for index, case in enumerate(RHD_CASES):
        ids = cv2.imread(str(root / "training" / "mask" / f"{index:05d}.png"), cv2.IMREAD_UNCHANGED)
        assert ids.ndim == 2
        counts[case] = np.isin(ids, range(2, 18)).sum() - np.isin(ids, range(18, 34)).sum()
    assert counts["tie"] == 0
    assert counts["one more"] == 1
    left = [sample.mirrored for _, sample in readable(open_dataset("rhd", root, "training"))]
    assert left == [counts[case] > 0 for case in RHD_CASES]


def test_the_visibility_rule_chooses_the_hand(rhd):
    root, truth = rhd
    left = [sample.mirrored for _, sample in readable(open_dataset("rhd", root, "training", hand="visible"))]
    assert left == [written.left for written in truth["training"]]


def test_palm_variant(rhd):
    root, _ = rhd
    for index in range(len(RHD_CASES)):
        wrist, palm = (open_dataset("rhd", root, "training", palm=palm)[index] for palm in (None, "zb"))
        np.testing.assert_allclose(palm.joints[WRIST], 0.5 * (wrist.joints[WRIST] + wrist.joints[ROOT]), atol=1e-7)
        np.testing.assert_allclose(
            palm.keypoints_2d[WRIST], 0.5 * (wrist.keypoints_2d[WRIST] + wrist.keypoints_2d[ROOT]), atol=1e-4
        )
        assert palm.visible[WRIST] == (wrist.visible[WRIST] or wrist.visible[ROOT])
        np.testing.assert_array_equal(palm.joints[1:], wrist.joints[1:])


class Python2Pickler(pickle._Pickler):
    """Pickler that writes bytes as strings of Python 2, and the module names of old numpy."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_global(self, obj, name=None):
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    def save_bytes(self, obj):
        self.write(pickle.BINSTRING + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    dispatch[bytes] = save_bytes
    dispatch[type] = dispatch[type(len)] = dispatch[type(write_rhd)] = save_global


def test_an_annotation_written_by_python_2(rhd, tmp_path):
    root = copied(rhd, tmp_path)
    path = root / "training" / "anno_training.pickle"
    content = pickle.loads(path.read_bytes())
    content = {key: {b"uv_vis".decode(): v["uv_vis"], "xyz": v["xyz"], "K": v["K"]} for key, v in content.items()}
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert b"_codecs" not in path.read_bytes()
    for index, written in enumerate(rhd[1]["training"]):
        assert_is(open_dataset("rhd", root, "training")[index], written)


# ---------------------------------------------------------------------------------------------------------------------
# Lists are converted once


def test_lists_are_converted_once(freihand, tmp_path, monkeypatch):
    root = copied(freihand, tmp_path)
    first = open_dataset("freihand", root, "training")[1].joints
    files = sorted(path.name for path in (root / ".handtailor_cache").iterdir())
    assert [name.split(".")[1] for name in files] == [f"training_{x}" for x in ("K", "mano", "verts", "xyz")]

    def never(*_):
        raise AssertionError("converted again")

    with monkeypatch.context() as patch:
        patch.setattr(freihand_reader, "list_numbers", never)
        np.testing.assert_array_equal(open_dataset("freihand", root, "training")[1].joints, first)
    # A list of the same size with another time is another list.
    path = root / "training_xyz.json"
    content = json.loads(path.read_text())
    content[1], content[2] = content[2], content[1]
    path.write_text(json.dumps(content))
    os.utime(path, ns=(1, 1))
    changed = open_dataset("freihand", root, "training")[1].joints
    np.testing.assert_allclose(changed, freihand[1]["training"][2].joints, atol=1e-6)
    assert len(list((root / ".handtailor_cache").iterdir())) == 4
    [file] = (root / ".handtailor_cache").glob("*_xyz.*")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"_xyz.*npy: is damaged: delete it"):
        open_dataset("freihand", root, "training")


def test_cache_elsewhere(freihand, tmp_path):
    root = copied(freihand, tmp_path)
    assert len(open_dataset("freihand", root, "training", cache=tmp_path / "cache")) == 12
    assert not (root / ".handtailor_cache").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 4
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be converted in .*: set the option cache"):
        open_dataset("freihand", root, "training", cache=tmp_path / "file")


@pytest.mark.parametrize("size", range(3, 12))
def test_numbers_across_chunks_of_a_list(tmp_path, monkeypatch, size):
    monkeypatch.setattr(freihand_reader, "_CHUNK", size)
    path = tmp_path / "list.json"
    content = [0.125, 12.5, [1.0], [-2.5e-7], 3.125]
    for separators in ((",", ":"), (", ", ": "), (",\n", ":")):
        path.write_text(json.dumps(content, separators=separators) + "\n")
        found = freihand_reader.list_numbers(path, np.float64, "")
        np.testing.assert_array_equal(found, [0.125, 12.5, 1.0, -2.5e-7, 3.125])


# ---------------------------------------------------------------------------------------------------------------------
# Damaged archives and wrong arguments


def test_names_splits_and_options(rhd, stb, freihand, tmp_path):
    with pytest.raises(InputError, match="unknown dataset 'ho3d': choose one of rhd, stb, freihand, synthetic, photos"):
        open_dataset("ho3d", tmp_path, "train")
    with pytest.raises(InputError, match="unknown split 'train' of RHD: choose training or evaluation"):
        open_dataset("rhd", rhd[0], "train")
    with pytest.raises(InputError, match="unknown split 'B1' of STB"):
        open_dataset("stb", stb[0], "B1")
    with pytest.raises(InputError, match="unknown split 'test' of FreiHAND"):
        open_dataset("freihand", freihand[0], "test")
    with pytest.raises(InputError, match="unknown split 'evaluation' of rendered hands: choose train or test"):
        open_dataset("synthetic", freihand[0], "evaluation")
    with pytest.raises(InputError, match="rhd has no option 'wrist': choose from hand, palm, depth, mask"):
        open_dataset("rhd", rhd[0], "training", wrist="ge")
    with pytest.raises(InputError, match="photos has no option 'mask'"):
        open_dataset("photos", tmp_path, "train", mask=True)
    for name, option in (("rhd", "hand"), ("rhd", "palm"), ("stb", "camera"), ("stb", "wrist")):
        with pytest.raises(InputError, match=r"unknown .* 'other'.*choose"):
            open_dataset(name, tmp_path, "training", **{option: "other"})
    for versions in (("green",), ("gs", "gs"), ()):
        with pytest.raises(InputError, match="unknown or repeated versions"):
            open_dataset("freihand", freihand[0], "training", versions=versions)
    with pytest.raises(InputError, match="hands_mean has shape"):
        open_dataset("freihand", freihand[0], "training", hands_mean=np.zeros(48))
    with pytest.raises(InputError, match="masks for its training split only"):
        open_dataset("freihand", freihand[0], "evaluation", mask=True)
    with pytest.raises(InputError, match="for the camera SK only"):
        open_dataset("stb", stb[0], "test", camera="BB_left", depth=True)


def test_indices_out_of_range(rhd, stb, freihand, photos):
    readers = [*every_reader(rhd, stb, freihand), open_dataset("photos", photos[0], "train")]
    for reader in readers:
        for index in (-1, len(reader)):
            with pytest.raises(IndexError):
                reader[index]


@pytest.mark.parametrize(
    ("name", "split"),
    [("rhd", "training"), ("stb", "test"), ("freihand", "training"), ("synthetic", "train"), ("photos", "train")],
)
def test_no_such_folder(tmp_path, name, split):
    with pytest.raises(InputError, match=r"no-such.*: no such folder: \S+"):
        open_dataset(name, tmp_path / "no-such", split)
    with pytest.raises(InputError, match=str(tmp_path)) as caught:
        open_dataset(name, tmp_path, split)
    assert "\n" not in str(caught.value)


class Boom:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_pickle_is_not_executed(rhd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = copied(rhd, tmp_path)
    path = root / "training" / "anno_training.pickle"
    content = pickle.loads(path.read_bytes())
    for harmful in (Boom(), content | {99: Boom()}):
        path.write_bytes(pickle.dumps(harmful, protocol=2))
        with pytest.raises(InputError, match=r"anno_training.pickle: refers to '\w+.mkdir', .* nothing was executed"):
            open_dataset("rhd", root, "training")
        assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "is cut short: unpack RHD_published_v2 again"),
        (lambda whole: b"", "the file is empty"),
        (lambda whole: b"no pickle", "is not a pickle of numbers"),
        (lambda whole: pickle.dumps([1, 2], 2), "holds no samples by number"),
        (lambda whole: pickle.dumps({}, 2), "holds no samples by number"),
        (lambda whole: pickle.dumps({0: {"xyz": np.zeros((42, 3))}}, 2), "sample 0 has no uv_vis of shape"),
        (lambda whole: pickle.dumps({0: {"uv_vis": np.zeros((21, 3))}}, 2), "sample 0 has no uv_vis of shape"),
        (lambda whole: pickle.dumps({0: {"uv_vis": np.zeros((42, 3), object)}}, 2), "is not a pickle of numbers"),
    ],
)
def test_damaged_annotations_of_rhd(rhd, tmp_path, content, message):
    root = copied(rhd, tmp_path)
    path = root / "training" / "anno_training.pickle"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(InputError, match=f"anno_training.pickle: {message}"):
        open_dataset("rhd", root, "training")
    path.unlink()
    with pytest.raises(InputError, match=r"anno_training.pickle: no such file"):
        open_dataset("rhd", root, "training")


def test_annotations_of_rhd_are_bounded(rhd, tmp_path):
    root = copied(rhd, tmp_path)
    path = root / "training" / "anno_training.pickle"
    for content, message in (
        (pickle.dumps(dict.fromkeys(range(65_537)), 2), "holds 65537 samples; at most 65536 expected"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "stores a value under number 2147483647; at most 5000000 expected"),
        (b"\x80\x02)q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"}h\x00Ns.", "has a tuple as the key of a dictionary"),
        (pickle.dumps({0: {"uv_vis": np.zeros((42, 3)), "xyz": "text"}}, 2), "xyz of sample 0 is not stored as"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            open_dataset("rhd", root, "training")
        assert "\n" not in str(caught.value)
    with path.open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(InputError, match="has 268435457 bytes; at most 268435456 expected"):
        open_dataset("rhd", root, "training")


def test_an_rhd_sample_with_a_value_that_is_not_a_number(rhd, tmp_path):
    root = copied(rhd, tmp_path)
    path = root / "training" / "anno_training.pickle"
    content = pickle.loads(path.read_bytes())
    # The hand that is not chosen may have any values.
    content[0]["xyz"][30] = np.nan
    content[1]["xyz"][30] = np.nan
    path.write_bytes(pickle.dumps(content, 2))
    reader = open_dataset("rhd", root, "training")
    assert reader[0].mirrored
    with pytest.raises(InputError, match=r"anno_training.pickle: sample 1 has a value that is not a number"):
        reader[1]


def test_damaged_labels_of_stb(stb, tmp_path):
    from scipy.io import savemat

    root = tmp_path / "STB"
    shutil.copytree(stb[0] / "labels", root / "labels")
    for sequence in STB_PART:
        (root / "images" / sequence).mkdir(parents=True)
    path = root / "labels" / "B1Random_SK.mat"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no matrices here" * 20):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"B1Random_SK.mat: is cut short or not a MATLAB file: unpack STB again"):
            open_dataset("stb", root, "test")
    savemat(path, {"handPara": np.zeros((3, 20, 5))})
    with pytest.raises(InputError, match=r"B1Random_SK.mat: has no handPara of shape \(3, 21, frames\)"):
        open_dataset("stb", root, "test")
    path.unlink()
    with pytest.raises(InputError, match=r"B1Random_SK.mat: no such file"):
        open_dataset("stb", root, "test")
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"SK_color_0.png: the image cannot be read"):
        open_dataset("stb", root, "test")[0]
    with pytest.raises(InputError, match="B3Counting: no such folder"):
        open_dataset("stb", root, "train")
    savemat(path, {"handPara": np.zeros((3, 21, 5)) - 500.0})
    with pytest.raises(InputError, match="B1Random: a joint of frame 0 is not in front of the camera"):
        open_dataset("stb", root, "test")[11]


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        ("xyz", lambda whole: whole[: len(whole) // 2], "is cut short"),
        ("verts", lambda whole: whole[:-1], "is cut short"),
        ("K", lambda whole: "", "has no entries"),
        ("K", lambda whole: "[]", "has no entries"),
        ("K", lambda whole: json.dumps({"K": 1}), "has a value that is not a number"),
        ("xyz", lambda whole: json.dumps(json.loads(whole)[:2]), "126 numbers are not 3 entries of 21 x 3"),
        ("xyz", lambda whole: re.sub(NUMBER, '"x"', whole, count=1), "has a value that is not a number"),
        ("xyz", lambda whole: re.sub(NUMBER, "NaN", whole, count=1), "has a value that is not a finite number"),
        (
            "mano",
            lambda whole: json.dumps([[x[0][:58]] for x in json.loads(whole)]),
            "174 numbers are not 3 entries of",
        ),
        (
            "verts",
            lambda whole: json.dumps([x[:770] for x in json.loads(whole)]),
            "6930 numbers are not 3 entries",
        ),
    ],
)
def test_damaged_lists_of_freihand(freihand, tmp_path, field, content, message):
    root = copied(freihand, tmp_path)
    path = root / f"training_{field}.json"
    path.write_text(content(path.read_text()))
    with pytest.raises(InputError, match=f"training_{field}.json: {message}.*: download FreiHAND_pub_v2"):
        open_dataset("freihand", root, "training")
    path.unlink()
    with pytest.raises(InputError, match=f"training_{field}.json: cannot be read .*: download FreiHAND_pub_v2"):
        open_dataset("freihand", root, "training")


def test_garbage_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(freihand_reader, "_CHUNK", 100)
    path = tmp_path / "list.json"
    path.write_text("[" + "x" * 5000)
    with pytest.raises(InputError, match="not a list of numbers: download again"):
        freihand_reader.list_numbers(path, np.float64, "download again")


def test_images_that_cannot_be_decoded(rhd, freihand, photos, tmp_path):
    root = copied(rhd, tmp_path)
    color, mask = (root / "training" / name / "00002.png" for name in ("color", "mask"))
    color.write_bytes(color.read_bytes()[:500])
    reader = open_dataset("rhd", root, "training")
    with pytest.raises(InputError, match=r"color/00002.png: is not an image"):
        reader[2]
    skipped = []
    kept = [index for index, _ in readable(reader, lambda index, error: skipped.append((index, str(error))))]
    assert kept == [0, 1, 3, 4]
    assert [index for index, _ in skipped] == [2]
    assert "color/00002.png" in skipped[0][1]
    assert len(list(readable(reader))) == 4
    shutil.copy(rhd[0] / "training" / "color" / "00002.png", color)
    cv2.imwrite(str(mask), np.zeros((10, 10), np.uint8))
    with pytest.raises(InputError, match=r"mask/00002.png: is 10 x 10 pixels, but its image is 320 x 320"):
        reader[2]

    root = copied(freihand, tmp_path)
    (root / "training" / "rgb" / "00000007.jpg").unlink()
    with pytest.raises(InputError, match=r"00000007.jpg: the image cannot be read"):
        open_dataset("freihand", root, "training")[7]
    root = shutil.copytree(photos[0], tmp_path / "photos")
    (root / "fixture" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"fixture/0.png: is not an image"):
        open_dataset("photos", root, "train")[0]

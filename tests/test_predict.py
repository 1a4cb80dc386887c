"""`handtailor predict` and `convert-official`: what is written, and what bad input leads to."""

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import test_pipeline
import test_torch_file
import trimesh
from flax import nnx
from PIL import Image

import handtailor_jax
from handtailor_jax import cli, hand_tailor
from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.official import weight_table
from handtailor_jax.hand_module.weights import load_weights, save_weights
from handtailor_jax.inputs import find_sources
from handtailor_jax.mano.loading import embedded_arrays
from handtailor_jax.types import Camera
from handtailor_jax.video.files import video_writer
from tests.goldens import batch_counters, official_weights

TINY = dataclasses.replace(
    HandModuleConfig.small(),
    image_size=32,
    channels=8,
    depth=1,
    shape_channels=8,
    shape_levels=1,
    shape_hidden=(8,),
    ik_hidden=(16,),
)
BOX = ("--box", "10", "5", "40", "40")
FIELDS = {
    "side",
    "projection",
    "camera",
    "convention",
    "keypoints_2d",
    "joints",
    "landmarks",
    "pose",
    "betas",
    "scale",
    "translation",
    "reprojection_error_before",
    "reprojection_error_after",
    "runner_up",
}
OURS = {"side_probability", "presence", "region", "box", "detected_keypoints_2d", "confidence", "proposed"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weight file of a tiny network that has learned nothing."""
    module = HandModule(TINY, rngs=nnx.Rngs(0))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, module, {"source": "random"})
    return path


def image_file(path, seed=0, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


def status(*arguments):
    """Runs the command; its exit status."""
    try:
        cli.main(["predict", *map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


def names(folder):
    """A folder appears with its first file."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def content(path):
    return json.loads(path.read_text())


def only(path):
    """The only hand of an image."""
    (hand,) = content(path)["hands"]
    return hand


# ---------------------------------------------------------------------------------------------------------------------
# Images


def test_folder_pattern_and_files(weights, tmp_path, monkeypatch, capsys):
    """With everything there is to write, tailor included."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a/one.png", "a/two.JPG", "b/one.jpg", "c/three.png", "c/other.jpg")):
        image_file(Path(name), i)
    Path("a/notes.txt").write_text("no image")
    arguments = (
        "a",
        "c/*.png",
        "b/one.jpg",
        "--weights",
        weights,
        *BOX,
        "--passes",
        "1",
        "--network",
        "hourglass",
        "--mesh",
        "obj",
    )
    arguments = (*arguments, "--out", "out/new")
    assert status(*arguments) == 0
    ids = {"one", "two", "three", "one_2"}
    assert names(Path("out/new")) == {f"{i}{e}" for i in ids for e in (".json", "_overlay.png", ".obj")} | {"sheet.png"}
    printed = capsys.readouterr()
    assert "Results of 4 of 4 inputs are in out/new" in printed.out
    for name in ids:
        (found,), size, image, settings = content(Path(f"out/new/{name}.json")).values()
        assert (Path("out/new") / image).is_file()
        assert re.fullmatch("[0-9a-f]{16}", settings)
        assert size == [64, 48]
        assert set(found) == FIELDS | OURS
        assert set(found["proposed"]) == FIELDS
        assert (found["side"], found["projection"], found["camera"]) == ("right", "weak_perspective", None)
        shapes = {"keypoints_2d": (21, 2), "joints": (21, 3), "pose": (16, 3), "betas": (10,), "confidence": (21,)}
        for key, shape in {**shapes, "detected_keypoints_2d": (21, 2), "box": (4,)}.items():
            assert np.shape(found[key]) == shape, key
        assert found["box"] == [10.0, 5.0, 40.0, 40.0]
        error = np.linalg.norm(np.subtract(found["keypoints_2d"], found["detected_keypoints_2d"]), axis=1).mean()
        assert error == pytest.approx(found["reprojection_error_after"], abs=2e-3)
        mesh = trimesh.load(f"out/new/{name}.obj", process=False)
        assert len(mesh.vertices) == len(embedded_arrays()["template"])
        assert cv2.imread(f"out/new/{name}_overlay.png").std() > 10
    # The two images of one name are two images.
    keypoints = [only(Path(f"out/new/{name}.json"))["detected_keypoints_2d"] for name in ("one", "one_2")]
    assert not np.allclose(*keypoints, atol=1e-3)


def quick(weights, *inputs, out, more=BOX):
    """Without what takes long."""
    return status(
        *inputs,
        "--weights",
        weights,
        "--out",
        out,
        "--no-tailor",
        "--no-overlay",
        "--network",
        "hourglass",
        *(("--passes", "1") if "--box" in more else ()),
        *more,
    )


def test_without_the_tailor(weights, tmp_path):
    assert quick(weights, image_file(tmp_path / "x.png"), out=tmp_path / "out") == 0
    found = only(tmp_path / "out" / "x.json")
    proposed = found.pop("proposed")
    assert proposed == {key: found[key] for key in FIELDS}
    assert found["reprojection_error_before"] == found["reprojection_error_after"]


def test_a_left_hand_and_a_camera(weights, tmp_path):
    """A left hand is a right one in the mirror; its camera is the image's as it is."""
    right = image_file(tmp_path / "right.png")
    cv2.imwrite(str(tmp_path / "left.png"), cv2.flip(cv2.imread(str(right)), 1))
    box, camera = ("--box", "14", "5", "40", "40"), ("--camera", "60", "58", "30", "20")
    mirrored = ("--camera", "60", "58", "33", "20")
    assert quick(weights, right, out=tmp_path, more=(*BOX, *camera)) == 0
    assert quick(weights, tmp_path / "left.png", out=tmp_path, more=(*box, *mirrored, "--side", "left")) == 0
    one, other = only(tmp_path / "right.json"), only(tmp_path / "left.json")
    assert (other["side"], other["projection"]) == ("left", "perspective")
    assert other["camera"] == {"fx": 60.0, "fy": 58.0, "cx": 33.0, "cy": 20.0}
    np.testing.assert_allclose(np.multiply(other["joints"], [-1, 1, 1]), one["joints"], atol=2e-5)
    flipped = np.subtract([63, 0], other["detected_keypoints_2d"]) * [1, -1]
    np.testing.assert_allclose(flipped, one["detected_keypoints_2d"], atol=2e-3)


def test_every_kind_of_image(weights, tmp_path, capsys):
    """One pixel, 16 bits, grey, alpha, turned by EXIF: all of them just work."""
    folder, rng = tmp_path / "in", np.random.default_rng(0)
    image_file(folder / "pixel.png", size=(1, 1))
    cv2.imwrite(str(folder / "deep.png"), rng.integers(0, 2**16, (48, 64, 3), np.uint16))
    cv2.imwrite(str(folder / "grey.jpg"), rng.integers(0, 256, (48, 64), np.uint8))
    cv2.imwrite(str(folder / "alpha.png"), rng.integers(0, 256, (48, 64, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / "turned.jpg", exif=exif)
    assert quick(weights, folder, out=tmp_path / "out", more=("--box", "0", "0", "48", "48")) == 0
    assert names(tmp_path / "out") == {f"{n}.json" for n in ("pixel", "deep", "grey", "alpha", "turned")}
    for path in (tmp_path / "out").iterdir():
        assert np.isfinite(only(path)["joints"]).all()
    boxes = {name: only(tmp_path / "out" / f"{name}.json")["box"] for name in ("grey", "turned")}
    assert boxes == {"grey": [0.0, 0.0, 48.0, 48.0], "turned": [0.0, 0.0, 48.0, 48.0]}
    # Without a box, noise is no hand.
    assert quick(weights, folder / "grey.jpg", out=tmp_path / "none", more=("--mesh", "glb")) == 0
    nothing = content(tmp_path / "none" / "grey.json")
    assert (nothing["hands"], nothing["image_size"]) == ([], [64, 48])
    assert nothing["image"] == os.path.join("..", folder.name, "grey.jpg")  # noqa: PTH118
    assert names(tmp_path / "none") == {"grey.json"}
    assert "grey: no hand found" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Videos


@pytest.fixture
def reader(monkeypatch, hand):
    """In place of weights: a network that sees painted hands, so that there is something to follow."""
    truth = test_pipeline.true_hand(hand)
    found = hand_tailor.HandTailor(test_pipeline.Reader(hand, truth), hand, None)
    monkeypatch.setattr(hand_tailor.HandTailor, "load", lambda *given: found)
    pixels = test_pipeline.project(Camera.from_matrix(test_pipeline.K), test_pipeline.camera_keypoints(hand, truth))
    return test_pipeline.paint(pixels)


def write_video(path, images, damaged=None):
    """Motion JPEG, of which one frame can be damaged; H.264 if the path says so."""
    if path.suffix == ".mp4":
        with video_writer(path, 25.0) as write:
            for i, each in enumerate(images):
                write(each, i / 25.0)
        return path
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (width, height))
    for each in images:
        writer.write(np.ascontiguousarray(each[..., ::-1]))
    writer.release()
    if damaged is not None:
        raw, place = bytearray(path.read_bytes()), -1
        for _ in range(damaged + 1):
            place = raw.index(b"00dc", place + 1)
        length = struct.unpack_from("<I", raw, place + 4)[0]
        raw[place + 8 : place + 8 + length] = bytes(length)
        path.write_bytes(raw)
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_video_with_a_frame_that_cannot_be_decoded(reader, tmp_path, capsys):
    path = write_video(tmp_path / "hand.avi", [reader] * 5, damaged=2)
    assert status(path, "--weights", "any", "--out", tmp_path / "out", "--mesh", "glb", "--skeleton", "bvh") == 0
    files = {"hand.jsonl", "hand_overlay.mp4", "hand.glb", "hand_hand_0_right.bvh"}
    assert names(tmp_path / "out") == files
    frames = lines(tmp_path / "out" / "hand.jsonl")
    assert [frame["frame"] for frame in frames] == list(range(5))
    assert [[hand["track"] for hand in frame["hands"]] for frame in frames] == [[0], [0], [], [0], [0]]
    np.testing.assert_allclose([frame["time"] for frame in frames], np.arange(5) / 25.0, atol=1e-3)
    for frame in frames:
        assert set(frame) == {"frame", "time", "hands"}
        assert all(set(hand) == FIELDS | OURS | {"track"} for hand in frame["hands"])
    capture = cv2.VideoCapture(str(tmp_path / "out" / "hand_overlay.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    done, drawn = capture.read()
    assert done
    assert np.abs(drawn[..., ::-1].astype(int) - reader).mean() > 1.0  # something was drawn
    assert list(trimesh.load(tmp_path / "out" / "hand.glb").geometry) == ["hand_0_right"]
    assert "Frames: 5\n" in (tmp_path / "out" / "hand_hand_0_right.bvh").read_text()
    assert "hands found in 4 of 4 frames, 1 frames could not be decoded" in capsys.readouterr().out


def test_videos_that_are_cut_short_empty_or_broken(reader, tmp_path, capsys):
    raw = write_video(tmp_path / "short.avi", [reader] * 6).read_bytes()
    (tmp_path / "short.avi").write_bytes(raw[: len(raw) * 2 // 3])
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = write_video(tmp_path / "video.mp4", [reader] * 2).read_bytes()
    (tmp_path / "video.mp4").unlink()
    (tmp_path / "header.mp4").write_bytes(whole[:200])
    arguments = [tmp_path / "header.mp4", tmp_path / "short.avi", tmp_path / "empty.mp4"]
    assert status(*arguments, "--weights", "any", "--no-overlay", "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    reported = [line for line in printed.err.splitlines() if "skipped" in line]
    assert len(reported) == 2
    for name, line in zip(("header.mp4", "empty.mp4"), reported, strict=True):
        assert f"handtailor: skipped: {tmp_path / name}: is not a video" in line
    assert "Traceback" not in printed.err
    assert names(tmp_path / "out") == {"short.jsonl"}
    frames = lines(tmp_path / "out" / "short.jsonl")
    assert 2 <= sum(bool(frame["hands"]) for frame in frames) < 6
    assert "Results of 1 of 3 inputs are in" in printed.out


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.fixture
def refused(tmp_path, capfd):
    """Runs what must be refused before anything is written; the line on stderr without its beginning."""

    def refused(*arguments, command="predict"):
        before = names(tmp_path)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([command, *map(str, arguments)])
        printed = capfd.readouterr()
        assert end.value.code == 2
        assert printed.out == ""
        assert printed.err.count("\n") == 1, printed.err
        assert printed.err.startswith("handtailor: error: ")
        assert names(tmp_path) == before
        return printed.err.removeprefix("handtailor: error: ").rstrip("\n")

    return refused


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--hands", "0"), "--hands is 0: give at least 1"),
        (("--passes", "0"), "--passes is 0: give at least 1"),
        (("--passes", "3"), "--passes does not apply without --box: leave it out"),
        (("--hands", "2", "--box", "0", "0", "9", "9"), "--hands and --thorough do not apply with --box"),
        (("--thorough", "--network", "hourglass"), "--thorough does not apply to these weights"),
        (("--no-tailor", "--preset", "default"), "--preset does not apply with --no-tailor"),
        (("--network", "hourglass", "--preset", "landmarks"), "the preset landmarks is for the landmark"),
        (("--preset", "paper"), "the paper's energies are defined for the hand model's own keypoints"),
        (("--camera", "0", "1", "2", "3"), "they must be positive"),
        (("--camera", "nan", "1", "2", "3"), "camera holds NaN"),
        (("--hand", "missing.pkl"), "missing.pkl: no such file"),
        (("--weights", "missing.safetensors"), "missing.safetensors: no such file"),
    ],
)
def test_options_that_are_refused(refused, weights, tmp_path, options, reason):
    image = image_file(tmp_path / "x.png")
    assert reason in refused(image, "--weights", weights, *options, "--out", tmp_path / "out")


def test_inputs_that_are_refused(refused, weights, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    out = ("--weights", weights, "--out", tmp_path / "out")
    assert "holds no files with a suffix of images or videos" in refused(tmp_path / "empty", *out)
    assert "no such file, folder or pattern" in refused(tmp_path / "missing.png", *out)
    assert "no such file, folder or pattern" in refused(tmp_path / "*.png", *out)
    assert "no such file, folder or pattern" in refused(300 * "x", *out)
    assert "no inputs" in refused(*out)
    video = write_video(tmp_path / "video.avi", [np.zeros((48, 64, 3), np.uint8)] * 2)
    assert "use --mesh glb for videos" in refused(video, *out, "--mesh", "obj")
    assert "--skeleton bvh is for videos" in refused(image_file(tmp_path / "x.png"), *out, "--skeleton", "bvh")
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "pygltflib", None)
        assert "pip install pygltflib" in refused(video, *out, "--mesh", "glb")
    (tmp_path / "taken").write_text("something else")
    assert "cannot be written to" in refused(video, "--weights", weights, "--out", tmp_path / "taken")

    def forbidden(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        find_sources([str(tmp_path)])


def test_weights_that_are_refused(refused, weights, tmp_path):
    """Corrupt, foreign, and of another configuration."""
    image, out, raw = image_file(tmp_path / "x.png"), ("--out", tmp_path / "out"), weights.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    config = json.loads(header["__metadata__"]["config"])

    def file(name, metadata):
        text = json.dumps({**header, "__metadata__": metadata}).encode()
        (tmp_path / name).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    (tmp_path / "cut").write_bytes(raw[:-100])
    (tmp_path / "torch.pt").write_bytes(b"PK\x03\x04" + bytes(300))
    file("foreign", {"format": "pt"})
    file("other", {**header["__metadata__"], "config": json.dumps({**config, "ik_hidden": [8]})})
    reasons = {"cut": "truncated", "torch.pt": "not a safetensors file", "foreign": "weights of", "other": "has shape"}
    for name, reason in reasons.items():
        line = refused(image, "--weights", tmp_path / name, *out)
        assert line.startswith(f"{tmp_path / name}: ")
        assert reason in line


def test_bad_files_among_good_ones(weights, tmp_path, capfd):
    good = image_file(tmp_path / "good.png")
    jpeg = image_file(tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "text.png").write_text("no image")
    image_file(tmp_path / "small.png", size=(4, 4))  # which the box misses
    last = image_file(tmp_path / "last.png", 3)
    bad = {"cut.jpg": "not an image", "text.png": "not an image", "small.png": "lies outside the 4 x 4 image"}
    inputs = [tmp_path / "cut.jpg", good, tmp_path / "text.png", tmp_path / "small.png", last]
    assert quick(weights, *inputs, out=tmp_path / "out", more=BOX) == 2
    printed = capfd.readouterr()
    reported = [line for line in printed.err.splitlines() if "skipped" in line]
    assert [line.split("handtailor: ")[1].split(": ")[1] for line in reported] == [str(tmp_path / name) for name in bad]
    for line, reason in zip(reported, bad.values(), strict=True):
        assert reason in line
    assert "Results of 2 of 5 inputs are in" in printed.out
    assert names(tmp_path / "out") == {"good.json", "last.json"}


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (("10", "5", "0", "40"), "has no area"),
        (("10", "5", "40", "-1"), "has no area"),
        (("64", "0", "5", "5"), "lies outside the 64 x 48 image"),
        (("0", "0", "nan", "5"), "four finite numbers"),
    ],
)
def test_boxes_that_are_refused(weights, tmp_path, capfd, box, reason):
    image = image_file(tmp_path / "x.png")
    assert quick(weights, image, out=tmp_path / "out", more=("--box", *box)) == 2
    line = capfd.readouterr().err.strip()
    assert line.count("\n") == 0
    # Boxes that suit no image are refused before anything begins.
    assert line.startswith(f"handtailor: skipped: {image}: " if "outside" in reason else "handtailor: error: --box ")
    assert reason in line
    assert names(tmp_path / "out") == set()


def test_weights_that_give_no_numbers(weights, tmp_path, capfd):
    module = load_weights(weights)
    module.iknet.mlp.head.bias[...] = np.inf * module.iknet.mlp.head.bias[...] + np.inf
    bad = hand_tailor.HandTailor(module, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hand_tailor.HandTailor, "load", lambda *given: bad)
        assert quick("any", image_file(tmp_path / "x.png"), out=tmp_path / "out") == 2
    assert "x.png: the network's output is not finite" in capfd.readouterr().err
    assert names(tmp_path / "out") == set()


# ---------------------------------------------------------------------------------------------------------------------
# Released weights


torch = test_torch_file.torch


@pytest.mark.slow
def test_the_released_checkpoint_becomes_a_weight_file(torch, tmp_path, capsys):
    """All of its size, written and read without PyTorch, number for number."""
    state = official_weights()
    state |= batch_counters(state)
    pickled = {name: test_torch_file.tensor(array) for name, array in state.items()}
    extra = {"mano_layer.th_betas": test_torch_file.tensor(np.zeros((1, 10), np.float32))}
    with pytest.MonkeyPatch.context() as patch:
        raw = test_torch_file.checkpoint({"model": {**pickled, **extra}}, torch, patch, legacy=True)
        (tmp_path / "model.pt").write_bytes(raw)
        cli.main(["convert-official", str(tmp_path / "model.pt"), str(tmp_path / "new" / "w.safetensors")])
    assert "written to" in capsys.readouterr().out
    module = load_weights(tmp_path / "new" / "w.safetensors")
    variables = dict(nnx.to_flat_state(nnx.state(module)))
    rows = list(weight_table(module.config))
    assert len(rows) == len(variables)
    for row in rows:
        np.testing.assert_array_equal(variables[row.path][...], row.convert(state[row.name]), err_msg=row.name)


def test_checkpoints_that_are_refused(refused, tmp_path, torch, monkeypatch):
    tensors = {"iknet.invk_layers.0.weight": test_torch_file.tensor(np.ones((3, 2), np.float32))}
    files = {
        "missing.pt": (None, "no such file"),
        "text.pt": (b"hello", "no PyTorch checkpoint"),
        "part.pt": (test_torch_file.checkpoint({"model": tensors}, torch, monkeypatch), "missing from the checkpoint"),
    }
    for name, (raw, reason) in files.items():
        if raw is not None:
            (tmp_path / name).write_bytes(raw)
        assert reason in refused(tmp_path / name, tmp_path / "w.safetensors", command="convert-official")


# ---------------------------------------------------------------------------------------------------------------------
# From Python


def test_the_package_gives_the_classes_without_paying_for_flax_before():
    code = """
import sys, handtailor_jax as ht
assert {"HandTailor", "HandVideo", "Hand"} <= set(ht.__all__) & set(dir(ht))
print("flax" in sys.modules, "safetensors" in sys.modules)
print(ht.HandTailor.__module__, ht.HandVideo.__module__, "flax" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(handtailor_jax.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False", "handtailor_jax.hand_tailor", "handtailor_jax.video.track", "True"]
    with pytest.raises(AttributeError, match="no attribute 'HandTailors'"):
        _ = handtailor_jax.HandTailors


def test_what_readme_says_of_python(weights):
    """Image in, hand out; the result's pixels are the image's."""
    tailor = handtailor_jax.HandTailor.load(weights, config=None, network="hourglass")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    hand = tailor.one(image, box=(10, 5, 40, 40))
    assert hand.vertices.shape == embedded_arrays()["template"].shape
    assert not hand.perspective
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(np.isfinite(leaf).all()), vars(hand.proposed.parameters)))

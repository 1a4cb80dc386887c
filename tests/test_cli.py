"""The command line: what `fit` writes, and that bad input ends in one line, status 2 and no file."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from flax import nnx

from handtailor_jax import cli, commands, results
from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.weights import save_weights
from handtailor_jax.mano.loading import embedded_arrays

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def keypoints(simulated):
    """Two hands of known pose in a 256 x 256 image."""
    weak = simulated(2, seed=5, camera="weak_perspective", keypoint_noise=0.005)
    return np.asarray(weak.observation.keypoints_2d, float).round(2).tolist()


@pytest.fixture
def entry(keypoints):
    return {"id": "one", "keypoints_2d": json.loads(json.dumps(keypoints[0]))}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def image_file(path, size=256):
    image = np.random.default_rng(0).integers(0, 255, (size, size, 3)).astype(np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# What is written


@pytest.fixture(scope="module")
def run(keypoints, tmp_path_factory):
    """One run on two hands, a photograph with one of them; the folder of the results."""
    folder = tmp_path_factory.mktemp("run")
    image_file(folder / "photo.jpg")
    entries = [
        {"image": "photo.jpg", "keypoints_2d": keypoints[0]},
        {"id": "second", "side": "left", "keypoints_2d": keypoints[1]},
    ]
    cli.main(["fit", str(write(folder / "hands.json", entries)), "--out", str(folder / "out"), "--mesh", "ply"])
    return folder / "out"


def test_files_of_a_run(run):
    names = {"photo", "second"}
    expected = {f"{n}{ending}" for n in names for ending in (".json", ".ply", "_overlay.png")} | {"sheet.png"}
    assert {path.name for path in run.iterdir()} == expected  # and no temporary file


def test_json_of_a_run(run, keypoints):
    for name, side, given in (("photo", "right", keypoints[0]), ("second", "left", keypoints[1])):
        content = json.loads((run / f"{name}.json").read_text())
        assert content["side"] == side
        assert content["projection"] == "weak_perspective"
        assert content["camera"] is None
        shapes = {"keypoints_2d": (21, 2), "joints": (21, 3), "pose": (16, 3), "betas": (10,), "scale": ()}
        for key, shape in {**shapes, "landmarks": (21, 3), "translation": (3,)}.items():
            assert np.shape(content[key]) == shape, key
        error = np.linalg.norm(np.asarray(content["keypoints_2d"]) - given, axis=1).mean()
        assert error == pytest.approx(content["reprojection_error_after"], abs=2e-3)
        assert content["reprojection_error_after"] < content["reprojection_error_before"]


def test_images_of_a_run(run):
    for name in ("photo_overlay.png", "second_overlay.png", "sheet.png"):
        image = cv2.imread(str(run / name))
        assert image is not None
        assert image.shape[0] >= 200
        assert image.std() > 10


def test_every_mesh_format(run, keypoints, tmp_path):
    """Meshes hold every vertex, in metres; the one of the photograph's camera lies under its keypoints."""
    hands = write(tmp_path / "hands.json", {"id": "photo", "keypoints_2d": keypoints[0]})
    vertices = len(embedded_arrays()["template"])
    for kind in ("obj", "ply", "glb"):
        cli.main(["fit", str(hands), "--out", str(tmp_path / kind), "--mesh", kind, "--no-overlay"])
        mesh = trimesh.load(tmp_path / kind / f"photo.{kind}", force="mesh", process=False)
        assert len(mesh.vertices) == vertices
        assert len(mesh.faces) == len(embedded_arrays()["faces"])
        assert 0.1 < np.ptp(mesh.vertices, axis=0).max() < 0.3
        assert mesh.volume > 0  # normals point outward: the file's axes are right-handed like the camera's
        turned = np.asarray(mesh.vertices) * ([1, -1, -1] if kind == "glb" else [1, 1, 1])
        content = json.loads((tmp_path / kind / "photo.json").read_text())
        pixels = turned[:, :2] * content["scale"] + np.asarray(content["translation"])[:2]
        low, high = np.asarray(content["keypoints_2d"]).min(axis=0), np.asarray(content["keypoints_2d"]).max(axis=0)
        assert (pixels.min(axis=0) < low + 3).all()
        assert (pixels.max(axis=0) > high - 3).all()
        assert not (tmp_path / kind / "photo_overlay.png").exists()
    left = trimesh.load(run / "second.ply", process=False)
    assert left.volume > 0


def test_a_result_is_an_input(run, tmp_path, capsys):
    """The result of one run, as it is, is refined by another and hardly changes."""
    first = json.loads((run / "photo.json").read_text())
    cli.main(["fit", str(run / "photo.json"), "--out", str(tmp_path), "--no-overlay"])
    again = json.loads((tmp_path / "0000.json").read_text())
    np.testing.assert_allclose(again["keypoints_2d"], first["keypoints_2d"], atol=1.0)
    assert again["reprojection_error_before"] < 0.1
    assert "1 hand written" in capsys.readouterr().out


def test_export(tmp_path, capsys):
    cli.main(["export", "tailor", str(tmp_path / "new" / "tailor.bin"), "--preset", "paper", "--platforms", "cpu"])
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"tailor.bin", "tailor.bin.json"}
    assert "tailor.bin (" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "tailor.bin.json").read_text())["platforms"] == ["cpu"]


def test_export_with_a_network(tmp_path, capsys):
    small = {"image_size": 32, "channels": 8, "depth": 1, "shape_channels": 8, "shape_levels": 1}
    config = dataclasses.replace(HandModuleConfig.small(), **small, shape_hidden=(8,), ik_hidden=(16,))
    weights = tmp_path / "w.safetensors"
    save_weights(weights, HandModule(config, rngs=nnx.Rngs(0)), {})
    for part, more in (("hand-module", []), ("pipeline", ["--no-tailor"])):
        cli.main(["export", part, str(tmp_path / part), "--weights", str(weights), *more])
        description = json.loads((tmp_path / f"{part}.json").read_text())
        assert description["inputs"][0]["shape"] == ["batch", 32, 32, 3]
        assert description["platforms"] == ["cpu", "cuda", "tpu"]
        assert f"written to {tmp_path / part} (" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["fit", "--help"],
        ["view", "--help"],
        ["predict", "--help"],
        ["synth", "--help"],
        ["export", "pipeline", "--help"],
    ],
)
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 0
    assert "usage" in capsys.readouterr().out.lower()


def test_the_first_run_says_that_it_compiles(tmp_path):
    """Before the first command, and not again: loading a hand, which compiles, must not hide it."""
    text = "from handtailor_jax import commands, embedded_hand; commands.keep_compiled_programs(); embedded_hand()"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-c", f"{text}; commands.announce_compiling()"]
    said = [subprocess.run(command, env=environment, capture_output=True, text=True).stderr for _ in range(2)]
    assert said == ["The first run compiles for a minute or two; later runs start quickly.\n", ""]


def test_later_runs_say_that_they_compile(tmp_path):
    """For every new program, here after no time; not for one that the cache holds or that compiles quickly."""
    (tmp_path / "handtailor_jax").mkdir()
    text = (
        "import sys, time, jax; from handtailor_jax import commands; commands._SILENT_SECONDS = float(sys.argv[1]);"
        "commands.keep_compiled_programs(); commands.announce_compiling();"
        "[(jax.jit(lambda x: x + n)(1.0), time.sleep(float(sys.argv[1]) + 0.2)) for n in range(2)]"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    for seconds, lines in (("0", 2), ("1", 0)):
        command = [sys.executable, "-c", text, seconds]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stderr.count("Compiling for these sizes and options") == lines, done.stderr


def test_as_a_program(tmp_path):
    """The real thing: exit status, one line, and where compiled programs are kept."""
    paths = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    environment = {**os.environ, **paths}
    command = [sys.executable, "-m", "handtailor_jax.cli", "fit", "missing.json", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("handtailor: error: missing.json: no such file; give ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.fixture
def refused(tmp_path, capfd):
    """Runs `fit` on what must be refused; returns the line on stderr without its beginning."""

    def refused(path, *arguments, out=None):
        out = tmp_path / "out" if out is None else out
        before = sorted(out.iterdir()) if out.is_dir() else []
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(["fit", str(path), "--out", str(out), *arguments])
        printed = capfd.readouterr()
        assert end.value.code == 2
        assert printed.out == ""
        assert printed.err.count("\n") == 1, printed.err
        assert printed.err.startswith("handtailor: error: ")
        assert (sorted(out.iterdir()) if out.is_dir() else []) == before
        return printed.err.removeprefix("handtailor: error: ").rstrip("\n")

    return refused


WHOLE_FILES = {
    "empty": ("", "is empty"),
    "blank": (" \n\t", "is empty"),
    "truncated": ('[{"id": "one", "keypoints_2d": [[1.0, 2.0], [3', "is not complete JSON"),
    "no JSON": ("keypoints: 21", "is not complete JSON"),
    "number": ("3", "not a JSON object"),
    "text": ('"hand"', "not a JSON object"),
    "null": ("null", "not a JSON object"),
    "numbers": ("[1, 2, 3]", "entry 0: is not a JSON object"),
    "no hands": ("[]", "holds no hands"),
    "a result of predict": ('{"hands": []}', "give hands with their detected_keypoints_2d as keypoints_2d"),
    "empty object": ("{}", "has no keypoints_2d"),
    "nested": ("[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("case", WHOLE_FILES)
def test_unusable_file(refused, tmp_path, case):
    content, message = WHOLE_FILES[case]
    line = refused(write(tmp_path / "hands.json", content))
    assert line.startswith(f"{tmp_path / 'hands.json'}: ")
    assert message in line


def test_unreadable_file(refused, tmp_path):
    assert refused(tmp_path / "hands.json").startswith(f"{tmp_path / 'hands.json'}: no such file; give ")
    (tmp_path / "bytes.json").write_bytes(bytes(range(128, 256)))
    assert "cannot be read as text" in refused(tmp_path / "bytes.json")
    assert "this is a folder" in refused(tmp_path)


CAMERA = {"fx": 300.0, "fy": 300.0, "cx": 128.0, "cy": 128.0}


def without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


def with_point(value, row=3):
    """A change to the keypoints of a good entry: one row replaced."""
    return lambda good: {"keypoints_2d": [value if i == row else p for i, p in enumerate(good["keypoints_2d"])]}


# What is put over a good entry, and what the line must say.
BAD_FIELDS = {
    "20 keypoints": (lambda good: {"keypoints_2d": good["keypoints_2d"][:20]}, "21 x 2 numbers, not 20 x 2"),
    "42 numbers": (lambda good: {"keypoints_2d": np.ravel(good["keypoints_2d"]).tolist()}, "not 42"),
    "3D keypoints": (lambda good: {"keypoints_2d": [[*p, 0.0] for p in good["keypoints_2d"]]}, "not 21 x 3"),
    "keypoints are a number": ({"keypoints_2d": 5}, "not one number"),
    "keypoints are an object": ({"keypoints_2d": {"0": [1, 2]}}, "numbers only"),
    "NaN": (with_point([NAN, 2.0]), "NaN"),
    "infinity": (with_point([1.0, -INF]), "infinite"),
    "null": (with_point([None, 2.0]), "confidence of 0"),
    "overflow": (with_point([10**400, 2.0]), "numbers only"),
    "absurd": (with_point([1e30, 2.0]), "absurd"),
    "text": (with_point(["12", "13"]), "numbers only"),
    "words": (with_point(["a", "b"]), "numbers only"),
    "true": (lambda good: {"keypoints_2d": [[True, False]] * 21}, "numbers only"),
    "ragged": (with_point([1.0]), "all rows of one length"),
    "coincident": ({"keypoints_2d": [[100.0, 100.0]] * 21}, "coincide"),
    "many on one spot": (
        lambda good: {"keypoints_2d": [[0.0, 0.0]] * 6 + good["keypoints_2d"][6:]},
        "6 keypoints coincide at (0, 0)",
    ),
    "normalised": (lambda good: {"keypoints_2d": (np.asarray(good["keypoints_2d"]) / 256).tolist()}, "in pixels"),
    "zero focal length": ({"camera": {**CAMERA, "fx": 0}}, "must be positive"),
    "negative focal length": ({"camera": {**CAMERA, "fy": -300.0}}, "must be positive"),
    "NaN focal length": ({"camera": {**CAMERA, "fx": NAN}}, "camera holds NaN"),
    "camera without cy": ({"camera": without(CAMERA, "cy")}, "camera lacks cy"),
    "camera with text": ({"camera": {**CAMERA, "fx": "300"}}, "camera must hold numbers only"),
    "camera is a number": ({"camera": 300}, "camera must be 3 x 3 numbers"),
    "camera is no intrinsic matrix": ({"camera": np.eye(3)[::-1].tolist()}, "camera"),
    "side": ({"side": "both"}, "use one of right, left"),
    "side is a number": ({"side": 1}, "must be text"),
    "convention": ({"convention": "coco"}, "use one of mano, mediapipe"),
    "convention is a list": ({"convention": ["mano"]}, "must be text"),
    "order": ({"order": "alphabetical"}, "use one of canonical"),
    "order is an object": ({"order": {"a": 1}}, "must be text"),
    "confidence is short": ({"confidence": [1.0] * 20}, "confidence must be 21"),
    "confidence is negative": ({"confidence": [-0.5] + [1.0] * 20}, "outside 0 to 1"),
    "confidence in percent": ({"confidence": [90.0] * 21}, "outside 0 to 1"),
    "nothing is seen": ({"confidence": [0.0] * 21}, "at least 6"),
    "joints_3d is short": ({"joints_3d": [[0.0, 0.0, 0.0]] * 16}, "joints_3d must be 21 x 3"),
    "joints_3d coincide": ({"joints_3d": [[0.0, 0.0, 0.5]] * 21}, "all at one point"),
    "pose is short": ({"pose": [[0.0, 0.0, 0.0]] * 15}, "pose has 15 x 3 values"),
    "pose has NaN": ({"pose": [[NAN, 0.0, 0.0]] * 16}, "pose holds NaN"),
    "pose has no rotation": ({"pose": [[[2.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]] * 16}, "matrix that is no rotation"),
    "betas fixed without betas": ({"fixed_betas": True}, "without betas"),
    "length without camera": ({"hand_length": 0.18}, "without camera"),
    "length in millimetres": ({"hand_length": 180, "camera": [500, 500, 320, 240]}, "give 0.03 to 0.5"),
    "too many betas": ({"betas": [0.0] * 11}, "the model has 10"),
    "pca without rotation": ({"pca": [0.1] * 10}, "global_rotation"),
    "pca and pose": ({"pca": [0.1], "pose": [[0.0] * 3] * 16}, "either pose or pca"),
    "pca is long": ({"pca": [0.1] * 46, "global_rotation": [0, 0, 0]}, "1 to 45"),
    "flat_hand_mean": ({"flat_hand_mean": "no"}, "true or false"),
    "image is a number": ({"image": 3}, "image must be"),
    "image is empty": ({"image": ""}, "image must be"),
    "image with a zero byte": ({"image": "a\0.png"}, "image must be"),
    "missing image": ({"image": "nowhere.png"}, "nowhere.png: the image cannot be read"),
    "image is a folder": ({"image": "."}, "the image cannot be read"),
    "image is the JSON file": ({"image": "hands.json"}, "is not an image"),
    **{
        f"id {value!r}": ({"id": value}, "names files" if isinstance(value, str) else "must be text")
        for value in ("../x", "a/b", "a\\b", "", ".x", "..", "a\nb", "a\0b", "\ud800", 300 * "x", True, 1.5, ["x"])
    },
}  # fmt: skip


def spoiled(good, case):
    change, message = BAD_FIELDS[case]
    return {**good, **(change(good) if callable(change) else change)}, message


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_unusable_entry(refused, tmp_path, entry, case):
    bad, message = spoiled(entry, case)
    line = refused(write(tmp_path / "hands.json", bad))
    assert message in line
    assert str(tmp_path) in line  # the JSON file, or the image


@pytest.mark.parametrize("case", ["NaN", "id '../x'", "missing image"])
def test_a_bad_entry_among_good_ones(refused, tmp_path, entry, case):
    bad, message = spoiled(entry, case)
    line = refused(write(tmp_path / "hands.json", [{**entry, "id": "good"}, bad]))
    assert message in line
    assert "entry 1: " in line or "nowhere.png" in line


def test_ids_must_differ(refused, tmp_path, entry):
    for ids in (["a", "b", "a"], ["a", "b", "A"], [2, "b", "2"]):
        line = refused(write(tmp_path / "hands.json", [{**entry, "id": id} for id in ids]))
        assert "entry 2: " in line
        assert "also the id of entry 0" in line


@pytest.mark.parametrize("ending", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.999])
def test_truncated_image(refused, tmp_path, entry, ending, share):
    content = image_file(tmp_path / f"photo{ending}").read_bytes()
    (tmp_path / f"photo{ending}").write_bytes(content[: int(share * len(content))])
    line = refused(write(tmp_path / "hands.json", {**entry, "image": f"photo{ending}"}))
    assert f"photo{ending}: is not an image that can be read" in line


def test_damaged_image(refused, tmp_path, entry):
    content = bytearray(image_file(tmp_path / "photo.png").read_bytes())
    content[8:20] = bytes(12)
    (tmp_path / "photo.png").write_bytes(content)
    assert "is not an image" in refused(write(tmp_path / "hands.json", {**entry, "image": "photo.png"}))


def test_unwritable_output(refused, tmp_path, entry):
    hands = write(tmp_path / "hands.json", entry)
    (tmp_path / "taken").write_text("something else")
    assert f"{tmp_path / 'taken'}: cannot be written to" in refused(hands, out=tmp_path / "taken")
    assert "cannot be written to" in refused(hands, out=tmp_path / "taken" / "below")
    assert (tmp_path / "taken").read_text() == "something else"
    (tmp_path / "out" / "one.json").mkdir(parents=True)
    assert "one.json: is a folder" in refused(hands)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the super-user writes anywhere")
def test_read_only_output(refused, tmp_path, entry):
    (tmp_path / "out").mkdir(mode=0o500)
    assert "cannot be written to" in refused(write(tmp_path / "hands.json", entry))


class Runs:
    """Unpickling this calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_unusable_hand_model(refused, tmp_path, entry):
    hands = write(tmp_path / "hands.json", entry)
    marker = tmp_path / "executed"
    model = pickle.dumps({"v_template": np.zeros((778, 3)), "f": np.zeros((1538, 3), np.uint32)})
    files = {
        "not_mano_right.pkl": (pickle.dumps({"a": 1}), ""),
        "list_right.pkl": (pickle.dumps([1, 2, 3]), "no dictionary"),
        "part_right.pkl": (model, ""),
        "truncated_right.pkl": (model[: len(model) // 2], "cut short"),
        "evil_right.pkl": (pickle.dumps({"v_template": Runs(os.system, f"touch {marker}")}), "nothing was executed"),
        "exec_right.pkl": (pickle.dumps(Runs(exec, f"open({str(marker)!r}, 'w')")), "nothing was executed"),
        "garbage_right.pkl": (b"hello " * 100, "neither a pickle nor an npz"),
        "empty_right.pkl": (b"", "empty"),
        "garbage.npz": (b"PK\x03\x04" + bytes(200), "damaged or cut short"),
        "random.npz": (bytes(range(256)), "neither a pickle nor an npz"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        line = refused(hands, "--hand", str(tmp_path / name))
        assert line.startswith(f"{tmp_path / name}: "), line
        assert message in line
    assert not marker.exists()
    assert "no such file" in refused(hands, "--hand", str(tmp_path / "missing.pkl"))


def test_export_onto_a_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["export", "tailor", "."])
    assert f"{tmp_path}: is a folder where a file is to be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["tailor", "--hand", "missing.pkl"], "missing.pkl: no such file"),
        (["pipeline", "--weights", "missing.safetensors"], "missing.safetensors: no such file"),
        (["hand-module", "--weights", "."], "is a folder"),
        (["tailor", "--platforms"], "names no platform"),
        (["hand-module", "--preset", "paper"], "--preset does not apply to `handtailor export hand-module`"),
        (["pipeline", "--preset", "landmarks"], "--preset landmarks does not apply to `handtailor export pipeline`"),
        (["tailor", "--weights", "w.safetensors"], "--weights does not apply to `handtailor export tailor`"),
    ],
)
def test_export_of_unusable_things_makes_no_folder(tmp_path, capsys, arguments, reason):
    part, *options = arguments
    with pytest.raises(SystemExit) as end:
        cli.main(["export", part, str(tmp_path / "new" / "file"), *options])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert reason in printed
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Files appear complete or not at all


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_a_failing_writer_leaves_nothing(tmp_path, error):
    (tmp_path / "a.json").write_text("old")

    def write_half(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(error):
        results.write_atomically(tmp_path / "a.json", write_half)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_temporary_names_differ_and_folders_appear_too(tmp_path):
    with results.appearing(tmp_path / "a.json") as one, results.appearing(tmp_path / "a.json") as other:
        assert one != other
        assert one.suffix == other.suffix == ".json"
    with results.appearing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("whole")
    assert (tmp_path / "folder" / "file").read_text() == "whole"
    with (
        pytest.raises(InputError, match=r"other: cannot be written \(File exists\)"),
        results.appearing(tmp_path / "other") as temporary,
    ):
        [temporary.mkdir() for _ in range(2)]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [(InputError("a: is\nwrong"), 2, "prog: error: a: is wrong\n"), (KeyboardInterrupt(), 130, "")],
)
def test_expected_errors_of_a_program(error, status, line, capsys):
    @commands.command("prog")
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == status
    assert capsys.readouterr().err == line


def test_a_full_disk_is_bad_input(tmp_path):
    def write_half(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"a\.json: cannot be written \(No space left on device\)"):
        results.write_atomically(tmp_path / "a.json", write_half)
    assert not list(tmp_path.iterdir())


def test_interrupted(tmp_path, entry, monkeypatch, capsys):
    """Ctrl-C during the writing ends quietly with what was complete, here nothing."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", str(write(tmp_path / "hands.json", entry)), "--out", str(tmp_path / "out"), "--no-overlay"])
    assert end.value.code == 130
    assert not list((tmp_path / "out").iterdir())
    assert "Traceback" not in capsys.readouterr().err

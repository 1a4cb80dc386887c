"""Runs over many images: lists of what is known of each, results that are kept, and runs that are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from handtailor_jax import hand_tailor
from handtailor_jax.errors import InputError
from handtailor_jax.hand_tailor import HandTailor, Request
from handtailor_jax.images import read_image
from handtailor_jax.inputs import read_list
from tests.test_predict import BOX, content, image_file, names, quick, status, weights  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "handtailor_jax" / "assets" / "examples").glob("*.jpg"))

# ---------------------------------------------------------------------------------------------------------------------
# Lists


def written(folder, text, name="list.csv"):
    for image in ("a.png", "b.png"):
        if not (folder / image).exists():
            image_file(folder / image)
    (folder / name).write_text(text, "utf-8")
    return folder / name


def test_a_list_as_csv_and_json(tmp_path):
    rows = [
        "image,id,side,x,y,w,h,fx,fy,cx,cy",
        "a.png,one,left,1,2,30.5,40,,,,",
        "",
        "a.png,,,,,,,60,61,32,24",
        "b.png" + "," * 10,
    ]
    entries = [
        {"image": "a.png", "id": "one", "side": "left", "box": [1, 2, 30.5, 40]},
        {"image": "a.png", "camera": {"fx": 60, "fy": 61, "cx": 32, "cy": 24}, "side": None},
        {"image": "b.png"},
    ]
    files = written(tmp_path, "\ufeff" + "\r\n".join(rows)), written(tmp_path, json.dumps(entries), "list.json")
    for path in files:
        one, two, three = read_list(path, side="right", camera=(50.0, 50.0, 10.0, 10.0), box=None)
        assert (one.id, one.path, one.side, one.box) == ("one", tmp_path / "a.png", "left", (1.0, 2.0, 30.5, 40.0))
        assert (two.id, two.side, two.box, three.id) == ("a", "right", None, "b")
        np.testing.assert_array_equal(two.camera, [[60, 0, 32], [0, 61, 24], [0, 0, 1]])
        assert three.camera == (50.0, 50.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file is empty"),
        ("image\n", "lists no images: give a CSV file with the columns image, x, y"),
        ("a.png\n", "lists no images"),
        ("image,image\na.png,b.png\n", "names a column twice"),
        ("image\tside\na.png\tleft\n", "separates its cells with tabs: use commas"),
        ("imge\na.png\n", "line 2: 'imge' is not a field: did you mean image?"),
        ("image,side\na.png\n", "line 2: has 1 cells, and the first line 2"),
        ("image\nnone.png\n", "line 2: image none.png: no such file"),
        ("image\n" + 300 * "a" + ".png\n", "no such file: give its path, from the folder of this file"),
        ("image,side\n,left\n", "line 2: has no image"),
        ("image,side\na.png,both\n", "line 2: side is 'both': use right or left"),
        ("image,x,y,w,h\na.png,,,,\nb.png,1,2,3,\n", "line 3: has x, y, w without h: give all of x, y, w, h or none"),
        ("image,x,y,w,h\na.png,1,2,3,four\n", "line 2: h is 'four': give a number"),
        ("image,x,y,w,h\na.png,1,2,3,nan\n", "line 2: box is"),
        ("image,x,y,w,h\na.png,1,2,3,-4\n", "line 2: box 1 2 3 -4 has no area"),
        ("image,fx,fy,cx,cy\na.png,-1,2,3,4\n", "line 2: camera has the focal lengths -1 and 2"),
        ("image,id\na.png,one\nb.png,One\n", "line 3: id 'One' is used twice"),
        ("image,id\na.png,../one\n", "line 2: id is '../one': it names files"),
        ('image\n"a.png\n', "is not CSV"),
        ('[{"image": "a.png"}, {"image": "b.png", "box": [1, 2, 3]}]', "entry 1: box is [1, 2, 3]: give four"),
        ('[{"image": "a.png", "camera": "wide"}]', "entry 0: camera must hold numbers only"),
        ('[{"image": 3}]', "entry 0: has no image"),
        ('["a.png"]', "entry 0: is not a JSON object"),
        ('[{"image": "a.png"', "is not complete JSON (line 1"),
        ("[]", "lists no images"),
    ],
)
def test_lists_that_are_refused(tmp_path, text, reason):
    path = written(tmp_path, text, "list.json" if text[:1] == "[" else "list.csv")
    with pytest.raises(InputError) as error:
        read_list(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_of_the_command(weights, tmp_path, capsys):  # noqa: F811
    """Each line has its box; one that does not fit its image is skipped."""
    path = written(
        tmp_path, "image,id,x,y,w,h,side\na.png,one,10,5,40,40,\na.png,two,0,0,30,30,left\nb.png,far,90,0,9,9,\n"
    )
    options = ("--weights", weights, "--network", "hourglass", "--no-tailor", "--no-overlay", "--passes", "1")
    assert status("--inputs", path, *options, "--out", tmp_path / "out") == 2
    assert "handtailor: skipped: " in (line := capsys.readouterr().err)
    assert "b.png: box 90 0 9 9 lies outside the 64 x 48 image" in line
    assert names(tmp_path / "out") == {"one.json", "two.json"}
    boxes = {name: content(tmp_path / "out" / f"{name}.json")["hands"][0]["box"] for name in ("one", "two")}
    assert boxes == {"one": [10.0, 5.0, 40.0, 40.0], "two": [0.0, 0.0, 30.0, 30.0]}
    assert status("--inputs", path, tmp_path / "a.png", *options) == 2
    assert "as INPUT and" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Many images


@pytest.mark.slow
def test_many_images_are_recovered_as_one_by_one(monkeypatch):
    """Boxes, sides and errors among them, in the order of the requests."""
    monkeypatch.setattr(hand_tailor, "_MOST_AT_ONCE", 1)
    tailor = HandTailor.load()
    first, second, third = (read_image(path) for path in EXAMPLES[:3])
    camera, refused = (400.0, 400.0, 160.0, 160.0), InputError("no image")
    requests = [
        Request(first, camera),
        refused,
        Request(second, box=(0, 0, 320, 320), side="left"),
        Request(third, box=(0, 0, 1, 1)),
        Request(third),
        Request(np.zeros((40, 40, 3), np.uint8), side="right"),
    ]
    found = list(tailor.many(iter(requests), hands=1))
    assert [request for request, _ in found] == requests
    results = [result for _, result in found]
    assert results[1] is refused
    assert "box 0 0 1 1 is smaller than 4 pixels" in str(results[3])
    expected = [
        tailor(first, camera, hands=1),
        [tailor.one(second, None, (0, 0, 320, 320), "left")],
        tailor(third, hands=1),
    ]
    assert [len(hands) for hands in expected] == [1, 1, 1]
    for hands, same in zip((results[0], results[2], results[4]), expected, strict=True):
        assert hands[0].side == same[0].side
        np.testing.assert_array_equal(hands[0].keypoints_2d, same[0].keypoints_2d)
        np.testing.assert_array_equal(hands[0].vertices, same[0].vertices)
    assert results[5] == []
    with pytest.raises(InputError, match="hands is 0"):
        next(tailor.many([], hands=0))
    ((_, refused),) = tailor.many(iter([None]))
    assert str(refused) == "request is a NoneType: give Request(image, ...)"


@pytest.mark.slow
def test_results_that_are_kept(weights, tmp_path, capsys):  # noqa: F811
    """Those that are complete, of the same image and options, and none else."""
    folder, out = tmp_path / "in", tmp_path / "out"
    paths = [image_file(folder / f"{name}.png", seed) for seed, name in enumerate("abc")]

    def done(*more, resume=True):
        """Names of the results that are written, and the number that is printed to be complete."""
        before = {path: path.stat().st_mtime_ns for path in out.iterdir()} if out.exists() else {}
        capsys.readouterr()
        assert quick(weights, folder, out=out, more=(*BOX, *more, *(["--resume"] if resume else []))) == 0
        printed = capsys.readouterr().out
        assert "Results of 3 of 3 inputs are in" in printed
        count = int(printed.split(" of 3 images are complete")[0].split()[-1]) if resume else None
        return {path.stem for path in out.iterdir() if before.get(path) != path.stat().st_mtime_ns}, count

    assert done() == ({"a", "b", "c"}, 0)
    whole = (out / "b.json").read_bytes()
    assert done() == (set(), 3)
    assert done(resume=False) == ({"a", "b", "c"}, None)
    (out / "b.json").write_bytes(whole[:100])
    assert done() == ({"b"}, 2)
    assert (out / "b.json").read_bytes() == whole
    assert done("--mesh", "ply") == ({"a", "b", "c"}, 0)
    (out / "a.ply").unlink()
    assert done("--mesh", "ply") == ({"a"}, 2)
    assert done("--mesh", "ply", "--side", "left") == ({"a", "b", "c"}, 0)
    os.utime(paths[2], ns=(2**62, 2**62))
    assert done("--mesh", "ply", "--side", "left") == ({"c"}, 2)
    # An older image of the same name and size is another one, too.
    other = tmp_path / "other"
    shutil.copytree(folder, other)  # keeps times
    assert paths[0].stat().st_mtime_ns == (other / "a.png").stat().st_mtime_ns
    folder = other
    assert done("--mesh", "ply", "--side", "left") == ({"a", "b", "c"}, 0)


@pytest.mark.slow
def test_a_killed_run_is_resumed(tmp_path, optimised_process):
    """Twice, at some result: what is complete stays, and in the end all files are those of a run without a break."""

    def start(out):
        command = (sys.executable, "-m", "handtailor_jax.cli", "predict", str(EXAMPLES[0].parent), "--mesh", "glb")
        options = ("--no-overlay", "--resume", "--out", str(out))
        return subprocess.Popen((*command, *options), env=optimised_process, stdout=subprocess.PIPE, text=True)

    def results():
        return sorted(path for path in (tmp_path / "out").glob("*.json") if path.name[0] != ".")

    whole = start(tmp_path / "whole")
    assert "Results of 10 of 10 inputs are in" in whole.communicate()[0]
    for count in (2, 6):
        process = start(tmp_path / "out")
        while process.poll() is None and len(results()) < count:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert count <= len(results()) < 10
        for path in results():
            assert json.loads(path.read_text())["image_size"]
    stamps = {path: path.stat().st_mtime_ns for path in results()}
    printed = (process := start(tmp_path / "out")).communicate()[0]
    assert process.returncode == 0
    assert f"{len(stamps)} of 10 images are complete" in printed
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    files = {path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."}
    assert files == names(tmp_path / "whole")
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

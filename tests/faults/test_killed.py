"""Kill, Ctrl-C and a full disk at random moments: the files of the output are whole, and a second start completes it.

tests/test_training.py does the same for train.py, tests/test_synthetic.py interrupts synth. HANDTAILOR_KILLS=20 is the
number of random moments for each command and way to end; one if not given.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from handtailor_jax.cli import EXAMPLES

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("HANDTAILOR_KILLS", "1"))
HANDTAILOR = (sys.executable, "-m", "handtailor_jax.cli")
COMMANDS = {
    "predict": (*HANDTAILOR, "predict", "images", "clip.mp4", "--mesh", "glb", "--out", "out"),
    "fit": (*HANDTAILOR, "fit", "hands.json", "--mesh", "ply", "--out", "out"),
}
ENDS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "full": None}


def write_inputs(folder):
    """Images, a video and keypoints of the packaged examples."""
    entries = json.loads(EXAMPLES.read_text())
    (folder / "images").mkdir()
    frames = []
    for entry in [each for each in entries if "image" in each][:3]:
        frames.append(cv2.imread(str(EXAMPLES.parent / entry["image"])))
        cv2.imwrite(str(folder / "images" / entry["image"]), frames[-1])
    height, width = frames[0].shape[:2]
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (width, height))
    for _ in range(12):
        video.write(frames[0])
    video.release()
    hands = [{"id": f"hand{number}", "keypoints_2d": entries[0]["keypoints_2d"]} for number in range(8)]
    (folder / "hands.json").write_text(json.dumps(hands))


def start(name, folder, full=False):
    """Start a command; on a full disk no file grows beyond a few kilobytes."""
    kept = {"JAX_COMPILATION_CACHE_DIR": os.environ["HANDTAILOR_TEST_CACHE"], "JAX_PLATFORMS": "cpu"}
    kept |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
    kept["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    # Not a function that runs after the fork, against which JAX warns.
    limit = ("bash", "-c", 'ulimit -f 6; exec "$@"', "bash") if full else ()
    return subprocess.Popen(
        (*limit, *COMMANDS[name]),
        cwd=folder,
        env=os.environ | kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def check_whole(path):
    """Read a file completely."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            json.loads(line)
    elif path.suffix == ".png":
        assert b"IEND" in path.read_bytes()
        assert cv2.imread(str(path)) is not None
    elif path.suffix == ".mp4":
        assert cv2.VideoCapture(str(path)).read()[0]
    elif path.suffix == ".glb":
        content = path.read_bytes()
        assert content[:4] == b"glTF"
        assert int.from_bytes(content[8:12], "little") == len(content)
    else:
        assert path.suffix == ".ply"
        assert path.read_bytes().startswith(b"ply")


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_ended_at_random_moments(tmp_path, name, end):
    choose = random.Random(f"{name} {end} {KILLS}")
    write_inputs(tmp_path)
    before = set(files(tmp_path))
    finish(start(name, tmp_path))
    wanted = {path.relative_to(tmp_path) for path in files(tmp_path / "out")}
    whole = tmp_path / "whole"
    (tmp_path / "out").rename(whole)
    for _ in range(KILLS):
        process = start(name, tmp_path, full=end == "full")
        if ENDS[end] is not None:
            # A moment while it works: after its first file, or before, while it compiles.
            some, deadline = choose.random() < 0.8, time.monotonic() + 300.0
            while process.poll() is None and time.monotonic() < deadline:
                if not some or set(files(tmp_path)) - before - set(files(whole)):
                    break
                time.sleep(0.01)
            time.sleep(choose.random() * (1.5 if some else 8.0))
            process.send_signal(ENDS[end])
        output, _ = process.communicate(timeout=900)
        if end == "full":
            assert process.returncode == 2, output[-3000:]
            assert "Traceback" not in output
            assert "error: " in output or "skipped: " in output
        elif end == "interrupt" and process.returncode:
            assert process.returncode in (130, -signal.SIGINT), output[-3000:]
        hidden = [path for path in files(tmp_path) if any(part.startswith(".") for part in path.parts)]
        assert end == "kill" or not hidden
        for path in set(files(tmp_path / "out")) - set(hidden):
            check_whole(path)
    finish(start(name, tmp_path))
    found = {path.relative_to(tmp_path) for path in files(tmp_path / "out") if not path.name.startswith(".")}
    assert found == wanted
    for path in wanted:
        check_whole(tmp_path / path)
        if path.suffix == ".json":
            assert (tmp_path / path).read_text() == (whole / path.relative_to("out")).read_text(), path

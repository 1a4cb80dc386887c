"""Kill, Ctrl-C and a full disk at random moments: the files of the output are whole, and a second start completes it.

HANDTAILOR_KILLS=20 is the number of random moments for each command and way to end; one if not given.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from flax import nnx

from handtailor_jax.cli import EXAMPLES
from handtailor_jax.hand_module.weights import load_weights
from handtailor_jax.mano.safe_arrays import read_npz

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("HANDTAILOR_KILLS", "1"))
HANDTAILOR = (sys.executable, "-m", "handtailor_jax.cli")
TRAIN = (sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "configs" / "smoke.py"))
EVALUATE = (sys.executable, str(ROOT / "evaluate.py"), "table2", "--predictions", "simulated", "--count", "32")
COMMANDS = {
    "predict": (*HANDTAILOR, "predict", "images", "clip.mp4", "--mesh", "glb", "--out", "out"),
    "fit": (*HANDTAILOR, "fit", "hands.json", "--mesh", "ply", "--out", "out"),
    "synth": (*HANDTAILOR, "synth", "--count", "64", "--size", "64", "--out", "out"),
    "train": (*TRAIN, "--data.cache", "cache", "--steps", "40", "--log-every", "1", "--out", "out", "--resume"),
    "evaluate": (*EVALUATE, "--out", "out"),
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
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))) if full else None
    return subprocess.Popen(
        COMMANDS[name],
        cwd=folder,
        env=os.environ | kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=limit,
    )


def finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def check_whole(path, last_line_may_be_cut):
    """Read a file completely."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        for line in lines[:-1] if last_line_may_be_cut else lines:
            json.loads(line)
    elif path.suffix in (".png", ".jpg"):
        assert b"\xff\xd9" in path.read_bytes() or b"IEND" in path.read_bytes()
        assert cv2.imread(str(path)) is not None
    elif path.suffix == ".mp4":
        assert cv2.VideoCapture(str(path)).read()[0]
    elif path.suffix == ".glb":
        content = path.read_bytes()
        assert content[:4] == b"glTF"
        assert int.from_bytes(content[8:12], "little") == len(content)
    elif path.suffix == ".ply":
        assert path.read_bytes().startswith(b"ply")
    elif path.suffix == ".safetensors":
        load_weights(path)
    elif path.suffix == ".npz":
        read_npz(path)
    elif path.suffix in (".csv", ".md", ".npy"):
        assert path.stat().st_size
    else:
        assert set(path.parts) & {"checkpoints", "tensorboard"}, path  # Orbax's own, each complete or absent


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_ended_at_random_moments(tmp_path, name, end):
    choose = random.Random(f"{name} {end} {KILLS}")
    write_inputs(tmp_path)
    before = set(files(tmp_path))
    finish(start(name, tmp_path))
    wanted = {path.relative_to(tmp_path) for path in files(tmp_path / "out") if "tensorboard" not in path.parts}
    whole = tmp_path / "whole"
    (tmp_path / "out").rename(whole)
    for _ in range(KILLS):
        process = start(name, tmp_path, full=end == "full")
        if ENDS[end] is not None:
            # A moment while it works: after its first file, or before, while it compiles.
            some, deadline = choose.random() < 0.8, time.monotonic() + 300.0
            while process.poll() is None and time.monotonic() < deadline:
                if not some or set(files(tmp_path)) - before - set(files(whole)) - set(files(tmp_path / "cache")):
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
        assert end == "kill" or name == "synth" or not hidden
        for path in set(files(tmp_path / "out")) - set(hidden):
            check_whole(path, last_line_may_be_cut=name == "train")
    if name == "synth" and (tmp_path / "out").exists():
        return  # it was faster than its end
    finish(start(name, tmp_path))
    found = {path.relative_to(tmp_path) for path in files(tmp_path / "out") if "tensorboard" not in path.parts}
    assert {path for path in found if not path.name.startswith(".")} >= wanted
    for path in wanted:
        check_whole(tmp_path / path, last_line_may_be_cut=False)
        if path.suffix == ".json" and path.name not in ("run.json", "results.json"):
            assert (tmp_path / path).read_text() == (whole / path.relative_to("out")).read_text(), path
    if name == "train":
        ours, theirs = (load_weights(folder / "weights.safetensors") for folder in (tmp_path / "out", whole))
        for a, b in zip(jax.tree.leaves(nnx.state(ours)), jax.tree.leaves(nnx.state(theirs)), strict=True):
            np.testing.assert_array_equal(a, b)

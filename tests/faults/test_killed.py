"""Kill, Ctrl-C and a full disk at random moments: the files of the output are whole, and a second start completes it.

HANDTAILOR_KILLS=20 is the number of random moments for each command and way to end. If it is not given, each command is
killed once, and ended in one of the two other ways.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.numpy

from handtailor_jax.cli import EXAMPLES

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("HANDTAILOR_KILLS", "0"))
HANDTAILOR = (sys.executable, "-m", "handtailor_jax.cli")
# Overlays take most of the time of programs that are not optimised: predict has them.
COMMANDS = {
    "predict": (*HANDTAILOR, "predict", "images", "clip.mp4", "--mesh", "glb", "--out", "out"),
    "fit": (*HANDTAILOR, "fit", "hands.json", "--mesh", "ply", "--no-overlay", "--out", "out"),
    "synth": (*HANDTAILOR, "synth", "--count", "24", "--size", "64", "--out", "out"),
    "train": (sys.executable, str(ROOT / "train.py"), "--config", "config.py", "--out", "out", "--resume"),
    "evaluate": (
        *(sys.executable, str(ROOT / "evaluate.py"), "table2", "--predictions", "simulated", "--count", "32"),
        *("--out", "out"),
    ),
}
# IKNet alone, whose step is compiled in seconds.
CONFIG = """
import dataclasses
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.training.config import TrainingConfig
config = TrainingConfig(
    module=dataclasses.replace(HandModuleConfig.small(), ik_hidden=(32,)), stage="ik",
    steps=60, batch=16, log_every=2, evaluate_every=20, checkpoint_every=10,
)
"""
ENDS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "full": None}


def write_inputs(folder):
    """Images, a video and keypoints of the packaged examples."""
    entries = json.loads(EXAMPLES.read_text())
    (folder / "images").mkdir()
    frames = []
    for entry in [each for each in entries if "image" in each][:2]:
        frames.append(cv2.imread(str(EXAMPLES.parent / entry["image"])))
        cv2.imwrite(str(folder / "images" / entry["image"]), frames[-1])
    height, width = frames[0].shape[:2]
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (width, height))
    for _ in range(4):
        video.write(frames[0])
    video.release()
    hands = [{"id": f"hand{number}", "keypoints_2d": entries[0]["keypoints_2d"]} for number in range(8)]
    (folder / "hands.json").write_text(json.dumps(hands))
    (folder / "config.py").write_text(CONFIG)


@pytest.fixture
def start(quick_process, optimised_process, tmp_path):
    """Start a command; on a full disk no file grows beyond a few kilobytes, which are fewer than its results have."""

    def run(name, full=False):
        # Not a function that runs after the fork, against which JAX warns.
        limit = ("bash", "-c", f'ulimit -f {1 if name == "evaluate" else 6}; exec "$@"', "bash") if full else ()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        env = optimised_process if name == "predict" else quick_process
        return subprocess.Popen((*limit, *COMMANDS[name]), cwd=tmp_path, env=env, **pipes)

    return run


def finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def stamps(folder):
    """Files with their times of change."""
    found = set()
    for path in files(folder):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            found.add((path, path.stat().st_mtime_ns))
    return found


def results(folder):
    """Files that every run writes under the same name: not those of Orbax and TensorBoard, and none that is hidden."""
    found = [path.relative_to(folder) for path in files(folder)]
    hidden = lambda path: any(part.startswith(".") for part in path.parts)  # noqa: E731
    return {path for path in found if path.parts[0] not in ("checkpoints", "tensorboard") and not hidden(path)}


def check_whole(path, *, appended=False):
    """Read a file completely; the last line of one that is appended to may be cut short."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        for line in lines[:-1] if appended else lines:
            json.loads(line)
    elif path.suffix in (".png", ".jpg"):
        content = path.read_bytes()
        assert b"IEND" in content or content.endswith(b"\xff\xd9")
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
        safetensors.numpy.load_file(path)
    else:
        assert path.suffix in (".csv", ".md")
        assert path.read_bytes().endswith(b"\n")


def losses(path):
    """The losses of a training's metrics by step; a line may be cut short where the run was killed."""
    found = {}
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if "loss" in entry:
                found[entry["step"]] = entry["loss"]
    return found


def ends(name):
    """The ways to end a command, in turn."""
    return [*ENDS] * KILLS or ["kill", "interrupt" if name in ("synth", "fit") else "full"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ended_at_random_moments(start, tmp_path, name):
    choose = random.Random(f"{name} {KILLS}")
    write_inputs(tmp_path)
    out, whole = tmp_path / "out", tmp_path / "whole"
    finish(start(name))
    out.rename(whole)
    for end in ends(name):
        before = stamps(tmp_path)
        process = start(name, full=end == "full")
        if ENDS[end] is not None:
            # A moment while it works: after its first file, or before, while it compiles.
            some, deadline = choose.random() < 0.8, time.monotonic() + 300.0
            while process.poll() is None and time.monotonic() < deadline:
                if not some or stamps(tmp_path) != before:
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
        for path in results(out):
            check_whole(out / path, appended=name == "train")
        if name == "synth" and out.exists():
            shutil.rmtree(out)  # it was faster, and does not write into a folder that is complete
        elif end != "kill" and name != "synth":  # which continues in its hidden folder
            assert not [path for path, _ in stamps(tmp_path) - before if path.name.startswith(".")]
    finish(start(name))
    assert results(out) == results(whole)
    for path in results(out):
        check_whole(out / path)
        if path.suffix == ".safetensors":
            ours, theirs = (safetensors.numpy.load_file(folder / path) for folder in (out, whole))
            for tensor in ours:
                np.testing.assert_array_equal(ours[tensor], theirs[tensor])
        elif path.name == "metrics.jsonl":
            assert losses(out / path) == losses(whole / path) != {}
        elif path.suffix in (".json", ".csv") and path.name not in ("run.json", "results.json"):
            assert (out / path).read_bytes() == (whole / path).read_bytes(), path

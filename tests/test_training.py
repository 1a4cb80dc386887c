"""Training: the step learns, does not depend on the number of devices, goes on exactly, and says what is wrong."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import project
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.weights import load_weights, provenance
from handtailor_jax.synthetic import storage
from handtailor_jax.synthetic.dataset import SyntheticConfig, SyntheticDataset
from handtailor_jax.training.config import DataConfig, LossWeights, OptimizerConfig, TrainingConfig
from handtailor_jax.training.loop import NotFinite, Run, train
from handtailor_jax.types import Camera

ROOT = Path(__file__).resolve().parents[1]
SIZE = 48

TINY = dataclasses.replace(
    HandModuleConfig.small(),
    image_size=32,
    channels=16,
    depth=1,
    shape_channels=16,
    shape_levels=1,
    shape_hidden=(16,),
    ik_hidden=(32,),
)


class FakeDataset(SyntheticDataset):
    """Instead of rendered hands: coloured dots at their keypoints, in no time."""

    def __init__(self, config, split="train", seed=0, photographs=None):
        self.split, self.seed = split, seed
        self.config = config

    def batch(self, indices):
        from handtailor_jax.mano.loading import embedded_hand

        hand = embedded_hand()
        random = np.random.default_rng([self.seed, int(indices[0]), self.split == "test"])
        pose = 0.4 * random.normal(size=(len(indices), 16, 3)).astype(np.float32)
        betas = random.normal(size=(len(indices), 10)).astype(np.float32)
        joints = np.asarray(posed(hand, jnp.asarray(pose), jnp.asarray(betas)))
        joints = joints - joints[:, 9:10] + np.asarray([0.03, -0.02, 0.5], np.float32)
        count = np.ones(len(indices))
        camera = Camera.perspective(100.0 * count, 104.0 * count, 20.0 * count, 28.0 * count)
        points = project(camera, jnp.asarray(joints))
        image = np.zeros((len(indices), self.config.size, self.config.size, 3), np.uint8)
        for k in range(21):
            column, row = (
                np.clip(np.asarray(points[:, k, i]).round().astype(int), 0, self.config.size - 2) for i in (0, 1)
            )
            for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
                image[np.arange(len(indices)), row + dy, column + dx] = (40 + 10 * k, 255 - 12 * k, 60 * (k % 4))
        return SimpleNamespace(image=image, keypoints_2d=points, camera=camera, joints=joints, pose=pose, betas=betas)


posed = jax.jit(lambda hand, pose, betas: jax.vmap(lambda p, b: hand.shape(b).pose(p).keypoints)(pose, betas))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "SyntheticDataset", FakeDataset)
        storage.SamplePool(folder, SyntheticConfig(size=SIZE), 32)
        storage.SamplePool(folder, SyntheticConfig(size=SIZE), 8, "test")
    return folder


def tiny(cache, **changes):
    settings = {
        "module": TINY,
        "steps": 12,
        "batch": 8,
        "data": DataConfig(cache=cache, size=SIZE, pool=32, test=8),
        "optimizer": OptimizerConfig(learning_rate=3e-3, warm_up=2, final=1.0),
        "log_every": 2,
        "evaluate_every": 6,
        "checkpoint_every": 4,
    }
    return TrainingConfig(**(settings | changes))


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The folder of a whole run on one device, for each stage."""

    @functools.cache
    def run(stage):
        folder = tmp_path_factory.mktemp("whole") / "run"
        assert train(tiny(cache, **STAGES[stage]), folder, devices=1) == folder / "weights.safetensors"
        return folder

    return run


def take(run, steps, start=0):
    return [float(run.advance(step, run.from_host(step)).losses.total[0]) for step in range(start, start + steps)]


def first_moments(state):
    """Adam's first moments as one vector: after one step a tenth of the clipped gradient."""
    _, (adam, *_), *_ = state.optimizer.inner_state
    return np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(adam.mu)])


IK = {
    "stage": "ik",
    "batch": 64,
    "loss": LossWeights(rotations_from_truth=1.0, model_keypoints=1.0),
    "optimizer": OptimizerConfig(learning_rate=3e-3, warm_up=1),
}

STAGES = {"poses": IK, "images": {}}
# The step on images takes half a minute and two gigabytes to compile, five times that on poses.
each_stage = pytest.mark.parametrize("stage", ["poses", pytest.param("images", marks=pytest.mark.slow)])


@each_stage
@pytest.mark.slow
def test_many_devices_equal_one(stage, cache, tmp_path):
    config, found = tiny(cache, **STAGES[stage]), []
    for devices in (1, 8):
        run = Run(config, tmp_path / str(devices), devices=devices)
        # Crops are rounded to bytes. With jax 0.10 eight devices round a pixel of batch 0 differently from one, and an
        # untrained network amplifies it to a percent of the gradient; batch 3 is none of those.
        losses = [float(run.advance(0, run.from_host(3)).losses.total[0])]
        state = run.host_state()
        losses += take(run, 2, start=1)
        for copies in map(np.asarray, jax.tree.leaves(run.state.params)):
            assert (copies == copies[:1]).all()
        found.append((losses, state))
        run.checkpoints.close()
        del run
        jax.clear_caches()  # both programs together would fill a gigabyte
    (first, state), (second, other) = found
    # Parameters cannot be compared: Adam's first step has the size of the learning rate whatever the gradient, even if
    # the gradient is a rounding error.
    gradient, same = first_moments(state), first_moments(other)
    assert np.linalg.norm(same - gradient) < 1e-3 * np.linalg.norm(gradient)
    for a, b in zip(jax.tree.leaves(other.statistics), jax.tree.leaves(state.statistics), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(second, first, rtol=1e-3)


@each_stage
@pytest.mark.slow
def test_learns_and_resumes_bit_for_bit(stage, cache, tmp_path):
    config = tiny(cache, **STAGES[stage])
    whole = Run(config, tmp_path / "whole", devices=1)
    losses = take(whole, 12)

    begun = Run(config, tmp_path / "part", devices=1)
    take(begun, 5)
    begun.checkpoints.save(begun.host_state())
    begun.checkpoints.close()
    again = Run(config, tmp_path / "part", resume=True, devices=1)
    assert again.step == 5
    assert take(again, 7, start=5) == losses[5:]
    for a, b in zip(jax.tree.leaves(again.host_state()), jax.tree.leaves(whole.host_state()), strict=True):
        np.testing.assert_array_equal(a, b)
    losses += take(whole, 40, start=12)
    assert np.mean(losses[-12:]) < 0.9 * np.mean(losses[:6])
    # Onto another number of devices the same checkpoint goes just as well.
    spread = Run(config, tmp_path / "part", resume=True, devices=2)
    assert spread.step == 5
    assert {leaf.shape[0] for leaf in jax.tree.leaves(spread.state.params)} == {2}
    other = dataclasses.replace(config, module=dataclasses.replace(TINY, ik_hidden=(16,)))
    with pytest.raises(InputError, match=r"checkpoint 5 has another configuration \(\d+ arrays differ"):
        Run(other, tmp_path / "part", resume=True, devices=1)
    for run in (whole, again, spread):
        run.checkpoints.close()


@each_stage
def test_whole_run(stage, cache, whole):
    config, folder = tiny(cache, **STAGES[stage]), whole(stage)
    path = folder / "weights.safetensors"
    module = load_weights(path)
    assert module.config == TINY
    assert json.loads(provenance(path)["training"])["batch"] == config.batch
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10, 12]
    scores = [line for line in lines if {"images": "synthetic/pck10", "poses": "poses/angle_degrees"}[stage] in line]
    assert [line["step"] for line in scores] == [6, 12]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert json.loads((folder / "run.json").read_text())["packages"]["jax"] == jax.__version__
    for name in ("curves.png", "config.json", *(["pictures/0000012.jpg"] if stage == "images" else [])):
        assert (folder / name).stat().st_size > 100
    # A second run of the same name has to be asked for.
    with pytest.raises(InputError, match="holds a run already: give --resume to continue it"):
        train(config, folder, devices=1)
    with pytest.raises(InputError, match=f"its run had batch = {config.batch}, now it is 16"):
        train(dataclasses.replace(config, batch=16), folder, resume=True, devices=1)
    # Nothing is left to do, and the weights are written again.
    path.unlink()
    again = load_weights(train(config, folder, resume=True, devices=1))
    for a, b in zip(jax.tree.leaves(nnx.state(again)), jax.tree.leaves(nnx.state(module)), strict=True):
        np.testing.assert_array_equal(a, b)


@each_stage
@pytest.mark.slow
def test_stops_where_a_loss_is_not_finite(stage, cache, tmp_path):
    config = tiny(cache, **STAGES[stage])
    run = Run(config, tmp_path / "run", devices=1)
    take(run, 2)
    good = run.host_state()
    batch, hands = run.from_host(2), run.hands
    if stage == "images":
        batch.betas[0, 3, 0] = np.nan
    else:
        run.hands = jax.tree.map(lambda leaf: leaf * jnp.nan if leaf.dtype == jnp.float32 else leaf, hands)
    run.advance(2, batch)
    run.hands = hands
    take(run, 1, start=3)
    with pytest.raises(NotFinite, match="step 2: the loss or a gradient is not finite") as stop:
        run.check_finite()
    run.checkpoints.close()
    if stage == "images":
        assert " (its samples are in" in str(stop.value)
        with np.load(tmp_path / "run" / "not_finite.npz") as saved:
            assert saved["image"].shape == (8, 32, 32, 3)
    kept = Run(config, tmp_path / "run", resume=True, devices=1)
    assert kept.step == 2
    for a, b in zip(jax.tree.leaves(kept.host_state()), jax.tree.leaves(good), strict=True):
        np.testing.assert_array_equal(a, b)
    kept.checkpoints.close()


def test_iknet_learns_from_poses_alone(cache, tmp_path):
    config = tiny(cache, **IK)
    run = Run(config, tmp_path / "run", devices=1)
    before = run.host_state()
    losses = take(run, 12)
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:2])
    assert set(before.params) == {"iknet"}
    assert "iknet" not in before.frozen
    for a, b in zip(jax.tree.leaves(run.host_state().frozen), jax.tree.leaves(before.frozen), strict=True):
        np.testing.assert_array_equal(a, b)
    run.checkpoints.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0: give 1 to 8192"),
        ({"batch": 9, "optimizer": OptimizerConfig(accumulate=2)}, "cannot be split into optimizer.accumulate = 2"),
        ({"module": dataclasses.replace(TINY, batch_axis="x")}, "batch_axis is set by the training itself"),
    ],
)
def test_settings_that_cannot_be_run(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        tiny(tmp_path, **changes)


def test_devices_and_batches_that_do_not_fit(cache, tmp_path):
    with pytest.raises(InputError, match="batch 2 is smaller than the 4 devices"):
        Run(tiny(cache, batch=2), tmp_path / "a", devices=4)
    with pytest.raises(InputError, match="6 samples from the host per step cannot be split among 4 devices"):
        Run(tiny(cache, batch=6), tmp_path / "b", devices=4)
    with pytest.raises(InputError, match="9 devices were asked for, there are 8"):
        Run(tiny(cache), tmp_path / "c", devices=9)
    data = dataclasses.replace(tiny(cache).data, photographs=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"labels.json: no such file; give a folder with a valid labels.json"):
        Run(tiny(cache, data=data), tmp_path / "d", devices=1)


def test_a_damaged_shard_and_a_pool_that_grows(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SyntheticDataset", FakeDataset)
    monkeypatch.setattr(storage, "SHARD", 16)
    config = SyntheticConfig(size=SIZE)
    small = storage.SamplePool(tmp_path, config, 16)
    before = (small.folder / "00000").stat().st_mtime_ns
    grown = storage.SamplePool(tmp_path, config, 40)
    assert (small.folder / "00000").stat().st_mtime_ns == before
    assert len(grown.batch(np.asarray([0, 17, 39])).image) == 3
    with pytest.raises(IndexError, match="samples 0 to 39"):
        grown.batch(np.asarray([40]))
    np.testing.assert_array_equal(grown.batch(np.asarray([3])).joints, small.batch(np.asarray([3])).joints)
    file = grown.folder / "00001" / "pose.npy"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"00001: is damaged .*: remove this folder"):
        storage.SamplePool(tmp_path, config, 40)


@pytest.fixture
def start(tmp_path):
    """Start train.py in a process of its own; processes that a failed test leaves behind are killed."""
    started = []

    def run(config, out, *arguments, devices=8):
        started.append(train_process(tmp_path / "config", config, out, arguments, devices))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def train_process(path, config, out, arguments, devices):
    # A configuration is a Python file; this one reads the test's own from beside it.
    path.with_suffix(".pickle").write_bytes(pickle.dumps(config))
    path = path.with_suffix(".py")
    path.write_text(
        "import pathlib, pickle\nconfig = pickle.loads(pathlib.Path(__file__).with_suffix('.pickle').read_bytes())"
    )
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(path), "--out", str(out), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]


def logged(folder):
    """The losses of metrics.jsonl by step."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    found = {}
    for line in lines:
        with contextlib.suppress(ValueError):  # the last line may be cut short
            entry = json.loads(line)
            if "loss" in entry:
                found[entry["step"]] = entry["loss"]
    return found


@pytest.mark.slow
def test_cut_off_at_a_random_moment_it_goes_on_exactly(whole, cache, tmp_path, monkeypatch, rng):
    """On images, in this process, which has the program already; faults/test_killed.py kills runs on poses."""
    config, whole, cut, advance = tiny(cache), whole("images"), tmp_path / "cut", Run.advance
    last = int(rng.integers(config.checkpoint_every, config.steps - 1))

    def ends(run, step, batch):
        if step == last:
            raise KeyboardInterrupt
        return advance(run, step, batch)

    monkeypatch.setattr(Run, "advance", ends)
    with pytest.raises(KeyboardInterrupt):
        train(config, cut, devices=1)
    monkeypatch.undo()
    assert max(logged(cut)) <= last
    train(config, cut, resume=True, devices=1)
    assert logged(cut) == logged(whole)
    ours, theirs = (load_weights(folder / "weights.safetensors") for folder in (cut, whole))
    for a, b in zip(jax.tree.leaves(nnx.state(ours)), jax.tree.leaves(nnx.state(theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_two_processes_equal_one(start, cache, tmp_path, monkeypatch):
    """On sampled poses, whose program is compiled in a fifth of the time; images are dealt out by the same numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    numbered = [("--coordinator", address, "--processes", "2", "--process", str(i)) for i in range(2)]
    config = tiny(cache, **IK | {"steps": 6, "log_every": 1})
    both = [start(config, tmp_path / "two", *arguments, devices=1) for arguments in numbered]
    for process in both:
        finish(process)
    one = Run(config, tmp_path / "one", devices=2)
    losses, two = take(one, 6), logged(tmp_path / "two")
    one.checkpoints.close()
    assert sorted(two) == list(range(1, 7))
    np.testing.assert_allclose([two[i] for i in sorted(two)], losses, rtol=1e-3)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert (tmp_path / "two" / "weights.safetensors").is_file()

    images = Run(tiny(cache), tmp_path / "images", devices=1)
    together, parts = images.from_host(3), []
    images.total_devices = 2
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(images.from_host(3))
    monkeypatch.undo()
    images.checkpoints.close()
    jax.tree.map(lambda a, *b: np.testing.assert_array_equal(np.concatenate(b, axis=1), a), together, *parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config", "nowhere.py", "--out", "x"], "nowhere.py: no such file"),
        (["--config", "configs/smoke.py"], "--out is missing"),
        (["--config", "configs/smoke.py", "--out", "x", "--batch", "0"], "batch is 0: give 1 to 8192"),
    ],
)
def test_command_line_says_what_is_wrong(arguments, message, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    import train as script

    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_config_that_ends_the_program_is_bad_input(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import train as script

    (tmp_path / "config.py").write_text("import sys; sys.exit(0)")
    with pytest.raises(InputError, match=r"config\.py: cannot be read \(SystemExit: 0\)"):
        script.read_config(tmp_path / "config.py")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_configs_can_be_read_and_say_how_they_are_run(path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import train as script

    assert isinstance(script.read_config(path), TrainingConfig)
    text = path.read_text()
    assert f"configs/{path.name}" in text
    for word in ("Hardware", "xpected score"):
        assert word in text

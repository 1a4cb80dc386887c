"""Hand models, pools, records of runs and lists that are damaged, of another shape, or on a disk that is read-only."""

import dataclasses
import importlib.util
import json
import os

import numpy as np
import pytest

from handtailor_jax.data.readers import freihand
from handtailor_jax.errors import InputError
from handtailor_jax.mano.checks import OWN_SHAPES
from handtailor_jax.mano.loading import embedded_arrays, load_hand
from handtailor_jax.synthetic import storage
from handtailor_jax.synthetic.dataset import SyntheticConfig

OWN = {name: np.array(array) for name, array in embedded_arrays().items() if name in OWN_SHAPES}
ZEROS_ARE_FINE = ("pose_directions", "pose_mean", "anatomy_lower", "anatomy_upper", "anatomy_mean")


def with_one(name, value):
    array = OWN[name].astype(np.float64)
    array.flat[0] = value
    return {name: array}


MODELS = {
    **{f"{name} of zeros": {name: np.zeros_like(OWN[name])} for name in OWN if name not in ZEROS_ARE_FINE},
    **{f"{name} with {value}": with_one(name, value) for name in OWN for value in (1e30, np.nan, -np.inf)},
    "tips beyond the mesh": {"tip_vertices": OWN["tip_vertices"] + 10**5},
    "negative tips": {"tip_vertices": -OWN["tip_vertices"]},
    "tips that are one": {"tip_vertices": OWN["tip_vertices"][[0, 0, 1, 2, 3]]},
    "limits exchanged": {"anatomy_lower": OWN["anatomy_upper"], "anatomy_upper": OWN["anatomy_lower"]},
    "a deviation of 0": with_one("anatomy_std", 0.0),
    "a negative deviation": with_one("anatomy_std", -0.1),
    "millimetres": {"template": 1000 * OWN["template"]},
    "a left hand": {"template": OWN["template"] * np.float32([-1, 1, 1])},
    "a flat face": {"faces": np.concatenate([OWN["faces"], [[3, 3, 5]]])},
    "axes that are not orthonormal": {"anatomy_basis": OWN["anatomy_basis"][:, [0, 0, 1]]},
    "text": {"pose_mean": np.asarray(["x"] * 45)},
    "no vertices": {"template": np.zeros((0, 3), np.float32)},
}


@pytest.mark.parametrize("case", MODELS)
def test_hand_models_that_are_none(tmp_path, case):
    np.savez(tmp_path / "hand.npz", **{**OWN, **MODELS[case]})
    with pytest.raises(InputError, match=r"hand\.npz: ") as error:
        load_hand(tmp_path / "hand.npz")
    assert "\n" not in str(error.value)


def test_hand_models_that_are_some(tmp_path):
    for name in ("pose_directions", "pose_mean"):
        np.savez(tmp_path / "hand.npz", **{**OWN, name: np.zeros_like(OWN[name])})
        load_hand(tmp_path / "hand.npz")


def of_images(shard):
    return np.load(shard / "image.npy")


SHARDS = {
    "empty": lambda shard: np.save(shard / "joints.npy", np.zeros((0, 21, 3), np.float32)),
    "of fewer samples": lambda shard: np.save(shard / "image.npy", of_images(shard)[:3]),
    "of another size": lambda shard: np.save(shard / "image.npy", of_images(shard)[:, :8, :8]),
    "of another type": lambda shard: np.save(shard / "image.npy", of_images(shard).astype(np.float32)),
    "without bytes": lambda shard: (shard / "pose.npy").write_bytes(b""),
    "text": lambda shard: (shard / "pose.npy").write_text("hello"),
    "without a file": lambda shard: (shard / "betas.npy").unlink(),
}


@pytest.mark.parametrize("case", SHARDS)
def test_pools_that_are_damaged(tmp_path, monkeypatch, case):
    shapes = {"image": (32, 32, 3), "keypoints_2d": (21, 2), "intrinsics": (3, 3)}
    shapes |= {"joints": (21, 3), "pose": (16, 3), "betas": (10,)}

    def render(_, missing):
        for shard in missing:
            shard.mkdir()
            for name, shape in shapes.items():
                kind = np.uint8 if name == "image" else np.float32
                np.save(shard / f"{name}.npy", np.zeros((storage.SHARD, *shape), kind))

    monkeypatch.setattr(storage, "_render", render)
    monkeypatch.setattr(storage, "SyntheticDataset", lambda *_: range(1000))
    pool = storage.SamplePool(tmp_path, SyntheticConfig(size=32), 3)
    SHARDS[case](pool.folder / "00000")
    with pytest.raises(InputError, match=r"00000: is damaged .*: remove this folder to render it again"):
        storage.SamplePool(tmp_path, SyntheticConfig(size=32), 3)


LINES = (
    b"[]",
    b"3",
    b"null",
    b"{}",
    b'{"step": "1"}',
    b'{"step": 1, "loss": [1]}',
    b"\xff\xfe",
    b'{"step": 2, "lo',
    b"",
)


@pytest.mark.skipif(importlib.util.find_spec("optax") is None, reason="training needs Optax")
def test_records_of_a_run_that_are_damaged(tmp_path):
    from handtailor_jax.training.config import TrainingConfig
    from handtailor_jax.training.report import Recorder

    whole = b'{"step": 1, "loss": 0.5}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*LINES, whole, b"[" * 100_000]))
    recorder = Recorder(TrainingConfig(), tmp_path, lambda _: ({}, None), 5)
    recorder.progress.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole + b"\n"


@pytest.mark.skipif(importlib.util.find_spec("optax") is None, reason="training needs Optax")
def test_the_rate_after_an_evaluation_is_that_of_the_steps_since(tmp_path, monkeypatch):
    from handtailor_jax.training import report
    from handtailor_jax.training.config import TrainingConfig
    from handtailor_jax.training.state import TrainState

    state = object.__new__(TrainState)
    vars(state).update({field.name: None for field in dataclasses.fields(state)} | {"step": 10})
    clock = iter([0.0, 100.0, 101.0])  # start, end of the evaluation after step 10, step 15
    recorder = report.Recorder(TrainingConfig(batch=4), tmp_path, lambda _: ({"figure": 1.0}, None), 0)
    monkeypatch.setattr(report.time, "perf_counter", lambda: next(clock))
    recorder._clock = next(clock)
    recorder.evaluate(state)
    recorder.log(15, {"loss": 1.0})
    recorder.progress.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["images_per_second"] == 20.0


def test_lists_on_a_disk_that_is_read_only(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    (data / "training_K.json").write_text("[[1, 2], [3, 4]]")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(data)) and access(path, mode))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        numbers = freihand.converted_list(data / "training_K.json", np.float64, None, "remedy")
        np.testing.assert_array_equal(numbers, [1, 2, 3, 4])
    assert [path.name for path in data.iterdir()] == ["training_K.json"]
    assert len(list((tmp_path / "cache" / "handtailor_jax" / "lists").iterdir())) == 1

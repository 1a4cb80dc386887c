"""Training on data, losses and networks of one's own, and on clusters that JAX finds by itself."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from handtailor_jax.data.sample import Sample, crop_sample
from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.losses import Term, weighted_mean
from handtailor_jax.hand_module.weights import load_weights
from handtailor_jax.tailor.tailor import TailorConfig
from handtailor_jax.training import loop
from handtailor_jax.training.config import DataConfig, TrainingConfig
from handtailor_jax.training.custom import Custom
from handtailor_jax.training.evaluate import test_sets as evaluation_sets
from handtailor_jax.training.report import plain
from handtailor_jax.training.sources import evaluation_samples, open_sources
from tests.test_training import IK, TINY, tiny

ROOT = Path(__file__).resolve().parents[1]


class Grey:
    """A dataset whose images have one level of grey."""

    def __init__(self, level, count=5):
        self.level, self.count = level, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        keypoints = np.random.default_rng(index).uniform(20.0, 40.0, (21, 2)).astype(np.float32)
        return Sample(str(index), np.full((60, 60, 3), self.level, np.uint8), keypoints, np.ones(21, bool), None, None)


def test_datasets_are_mixed_by_weight(hand, tmp_path):
    """Three of four samples come from the first; the rest of the batch is for renderings."""
    data = DataConfig(cache=tmp_path, size=48, dataset="custom", dataset_share=0.5, synthetic="rendered", test=4)
    config = TrainingConfig(module=TINY, batch=64, data=data)
    custom = Custom(sources=[(Grey(30), 3.0), (Grey(90), 1.0)], evaluation=Grey(90, 9))
    source = open_sources(config, hand, custom)
    assert source.count == config.rendered == 32
    batch = source.batch(0, list(range(32)))
    levels = batch.image[:, 24, 24, 0].tolist()
    assert [levels.count(level) for level in (30, 90)] == [24, 8]
    assert not batch.has_joints.any()
    with pytest.raises(InputError, match=r"data\.dataset is custom but no sources were given"):
        open_sources(config, hand)


@pytest.mark.parametrize("sources", [[(Grey(30), 0.0)], [(Grey(30), -1.0), (Grey(90), 1.0)]])
def test_sources_that_are_no_readers_with_weights(hand, tmp_path, sources):
    data = DataConfig(cache=tmp_path, size=48, dataset="custom", dataset_share=1.0, test=4)
    with pytest.raises(InputError, match=r"sources .*: give a list of \(reader, weight\) with weights above 0"):
        open_sources(TrainingConfig(module=TINY, batch=8, data=data), hand, Custom(sources=sources))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": np.zeros((60, 60), np.uint8)}, "its image is uint8 (60, 60): give uint8"),
        ({"keypoints_2d": np.zeros((20, 2), np.float32)}, "its keypoints_2d have shape (20, 2): give (21, 2)"),
        ({"joints": np.full((21, 3), np.nan, np.float32)}, "its joints are not finite"),
    ],
)
def test_samples_that_are_none(changed, message):
    with pytest.raises(InputError) as error:
        crop_sample(dataclasses.replace(Grey(30)[0], **changed), 48, 2.0)
    assert message in str(error.value)


def test_own_evaluation(hand, tmp_path):
    """Of the reader that was given; without one and without renderings there is nothing to evaluate."""
    config = TrainingConfig(module=TINY, batch=8, data=DataConfig(cache=tmp_path, size=48, dataset="custom", test=4))
    sets = evaluation_sets(config, hand, Grey(90, 9))
    assert [each.name for each in sets] == ["custom", "custom_without_intrinsics"]
    assert len(sets[0].crops.image) == 4
    assert evaluation_sets(config, hand, None) == []


@pytest.mark.parametrize(
    ("changed", "custom", "message"),
    [
        ({"stage": "ik"}, Custom(sources=[(Grey(30), 1.0)]), "stage is ik, which samples poses"),
        ({"stage": "ik"}, Custom(evaluation=Grey(30)), "stage is ik, which samples poses"),
        (
            {"data": DataConfig(dataset="rhd", dataset_folder=Path("RHD"))},
            Custom(sources=[(Grey(30), 1.0)]),
            "data.dataset and data.dataset_folder are given beside sources",
        ),
    ],
)
def test_what_excludes_ones_own_data(tmp_path, changed, custom, message):
    with pytest.raises(InputError, match=message):
        loop.train(TrainingConfig(module=TINY, **changed), tmp_path / "run", custom=custom)
    assert not (tmp_path / "run").exists()


def test_own_evaluation_without_own_sources(hand, tmp_path, monkeypatch):
    """It is beside the rendered samples, or in the place of the dataset's."""

    class Pool:
        def __init__(self, *_):
            pass

        def batch(self, rows):
            return evaluation_samples(config, hand, Grey(30))

    monkeypatch.setattr(importlib.import_module("handtailor_jax.training.evaluate"), "SamplePool", Pool)
    for data, names in ({}, ["synthetic", "custom"]), ({"dataset": "rhd", "dataset_folder": tmp_path}, ["custom"]):
        config = TrainingConfig(module=TINY, batch=8, data=DataConfig(cache=tmp_path, size=48, test=4, **data))
        assert [each.name for each in evaluation_sets(config, hand, Grey(90, 9))][::2] == names


class Doubled(HandModule):
    """A hand module with a parameter of its own, which the loss `small` trains."""

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.iknet.factor = nnx.Param(jnp.full((3,), 2.0))


def small(batch, prediction) -> Term:
    """Squared parameter of the own network."""
    squared = jnp.sum(prediction.module.iknet.factor[...] ** 2)
    return weighted_mean(jnp.broadcast_to(squared, batch.has_3d.shape), batch.has_3d)


@pytest.mark.slow
def test_own_loss_and_network(tmp_path, monkeypatch):
    """The loss is in the metrics and trains the network's own parameter; weights appear at every evaluation."""
    written, export = [], loop.export
    monkeypatch.setattr(loop, "export", lambda run, state: (written.append(int(state.step)), export(run, state)))
    config = tiny(tmp_path, **IK | {"batch": 16, "steps": 6, "evaluate_every": 3})
    path = loop.train(config, tmp_path / "run", devices=1, custom=Custom(losses=[(0.5, small)], network=Doubled))
    assert written == [3, 6]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [line["loss/small"] for line in lines if "loss/small" in line]
    assert 12.0 >= values[0] > values[-1] > 0.0
    module = load_weights(path, Doubled)
    assert (module.iknet.factor[...] < 2.0).all()
    with pytest.raises(InputError, match=r"has 1 tensor \(iknet.factor\) too many"):
        load_weights(path)


def test_the_tailors_configuration_is_the_configs():
    config = TrainingConfig(tailor=TailorConfig.plug_in())
    written = json.loads(json.dumps(plain(config), allow_nan=False))
    assert written["tailor"]["solver"]["iterations"] == 10
    assert written["tailor"]["energy"]["mcp_std"] == "Infinity"


@pytest.mark.parametrize(
    ("environment", "joined"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # the shell of an allocation, without srun
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_clusters_are_joined_and_laptops_are_not(environment, joined, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import train as script

    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda address, **options: calls.append((address, options)))
    monkeypatch.setattr(script.os, "environ", environment)
    script.connect(script.Command())
    assert calls == ([(None, {})] if joined else [])


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import train as script

    def fail(address, **options):
        raise RuntimeError("no answer\nafter a while")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(script.os, "environ", {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"})
    with pytest.raises(InputError, match=r"cluster: .* \(no answer after a while\): give --coordinator"):
        script.connect(script.Command())

"""The benchmark of the tailor: its yardstick computes the right thing, and it runs and writes what it says."""

import json

import jax
import numpy as np
import pytest

from benchmarks import predict as predict_benchmark
from benchmarks.tailor import METRICS, ORIGINAL, OriginalWay, TailorBenchmark, run
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.simulation import tailor_problems
from handtailor_jax.tailor import TailorConfig, tailor
from handtailor_jax.tailor.placement import camera_mesh


def test_the_original_way_computes_the_official_preset(hand):
    config = TailorConfig.official()
    problem = jax.tree.map(lambda leaf: leaf[1], tailor_problems(hand, 2, 3))
    theirs = OriginalWay(hand)(problem, config.solver.iterations)

    @jax.jit
    def ours(problem):
        fitted = tailor(hand, problem.start(hand, config), problem.observation, config)
        return camera_mesh(hand, fitted).vertices

    np.testing.assert_allclose(theirs, ours(problem), atol=2e-5)


@pytest.mark.slow
def test_tiny_run(hand, tmp_path, capsys):
    path = tmp_path / "bench.json"
    config = TailorBenchmark(iterations=(20,), damped_iterations=(2,), problems=3, rounds=2, batches=(2,), json=path)
    report = run(config, hand)
    printed = capsys.readouterr().out
    assert printed.count("| default") >= 2
    assert "hands" in printed.lower()
    assert path.read_text() == report.to_json()
    assert list(tmp_path.iterdir()) == [path]
    stored = json.loads(path.read_text())
    assert stored["environment"]["jax"] == jax.__version__
    solvers = [(row["solver"], row["iterations"]) for row in stored["rows"]]
    assert solvers == [
        (ORIGINAL, 20),
        ("paper", 20),
        ("official", 20),
        ("default energy, Adam", 20),
        ("default", 2),
    ]
    for row in stored["rows"]:
        assert row["milliseconds"] > 0.0
        for noise in ("gaussian", "heavy_tailed"):
            assert set(row["errors"][noise]) == set(METRICS)
    assert stored["rows"][0]["ratio"] == 1.0
    assert [entry["batch"] for entry in stored["throughput"]] == [2, 2]


def test_bad_options(hand, tmp_path):
    for wrong in ({"rounds": 0}, {"iterations": (0,)}, {"json": tmp_path}, {"json": tmp_path / "no" / "b.json"}):
        with pytest.raises(InputError):
            run(TailorBenchmark(**wrong), hand)


@pytest.mark.slow
def test_tiny_run_of_predict(hand, tmp_path, capsys):
    path = tmp_path / "bench.json"
    batches = predict_benchmark.PredictBenchmark(
        networks=("small",), batches=(1,), rounds=3, seconds=1.0, torch=False, json=path
    )
    report = predict_benchmark.run(batches, hand)
    printed = capsys.readouterr().out
    assert "| small" in printed
    assert "handtailor-jax[bench]" in printed
    stages = [
        ("small", "preprocess"),
        ("small", "network"),
        ("small", "whole"),
        ("either", "tailor"),
        ("either", "mesh"),
    ]
    assert [(row.network, row.stage) for row in report.rows] == stages
    assert all(row.milliseconds >= row.fastest_milliseconds > 0.0 for row in report.rows)
    assert report.ratios(1) == {}
    stored = json.loads(path.read_text())
    assert len(stored["rows"]) == 5


@pytest.mark.slow
def test_both_official_networks_have_the_same_weights(hand):
    """What is compared for speed computes the same."""
    torch = pytest.importorskip("torch")
    subjects = predict_benchmark.subjects(predict_benchmark.PredictBenchmark(networks=("official",)), hand, torch)
    assert list(subjects) == ["official", predict_benchmark.EITHER, predict_benchmark.TORCH]
    ours, theirs = subjects["official"](1)["network"](), subjects[predict_benchmark.TORCH](1)
    assert ours["heatmaps"].shape == (1, 64, 64, 21)
    for layout in predict_benchmark.LAYOUTS:
        np.testing.assert_allclose(np.asarray(ours["betas"])[0], theirs[layout]().betas[0].numpy(), atol=1e-3)


def test_ratios_to_the_faster_layout():
    times = {
        ("small", "whole"): 10.0,
        ("official", "network"): 60.0,
        (predict_benchmark.TORCH, "NCHW"): 100.0,
        (predict_benchmark.TORCH, "channels_last"): 80.0,
    }
    rows = [predict_benchmark.Row(network, 4, stage, 1.0, ms, ms, 3) for (network, stage), ms in times.items()]
    report = predict_benchmark.PredictReport({"torch": "2"}, rows)
    assert report.ratios(4) == {"official, network": 0.75, "small, whole": 0.125}
    assert "| official, network | 0.750" in report.to_markdown()


def test_bad_options_of_predict(hand, tmp_path):
    for wrong in ({"rounds": 0}, {"batches": ()}, {"batches": (0,)}, {"networks": ()}, {"seconds": 0.0}):
        with pytest.raises(InputError):
            predict_benchmark.run(predict_benchmark.PredictBenchmark(**wrong), hand)
    with pytest.raises(InputError, match="is a folder"):
        predict_benchmark.run(predict_benchmark.PredictBenchmark(json=tmp_path), hand)

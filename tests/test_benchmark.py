"""The benchmark of the tailor: its yardstick computes the right thing, and it runs and writes what it says."""

import json

import jax
import numpy as np
import pytest

from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.problems import tailor_problems
from handtailor_jax.evaluation.tailor_benchmark import METRICS, ORIGINAL, OriginalWay, TailorBenchmark, run
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
    config = TailorBenchmark(iterations=(20,), damped_iterations=(2,), problems=3, rounds=2, batches=(1, 2), json=path)
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
    assert [entry["batch"] for entry in stored["throughput"]] == [1, 1, 2, 2]


def test_bad_options(hand, tmp_path):
    for wrong in ({"rounds": 0}, {"iterations": (0,)}, {"json": tmp_path}, {"json": tmp_path / "no" / "b.json"}):
        with pytest.raises(InputError):
            run(TailorBenchmark(**wrong), hand)

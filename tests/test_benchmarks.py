"""The benchmarks: the yardstick computes the official preset, and every benchmark runs and writes its report."""

import dataclasses
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import devices as devices_benchmark
from benchmarks import fit as fit_benchmark
from benchmarks import predict as predict_benchmark
from benchmarks import recover_hand as recover_hand_benchmark
from benchmarks import synthetic as synthetic_benchmark
from benchmarks.original_way import OriginalWay
from benchmarks.tailor import ORIGINAL, TailorBenchmark, TailorErrors, measure
from handtailor_jax.errors import InputError
from handtailor_jax.tailor import TailorConfig, tailor
from handtailor_jax.tailor.placement import camera_mesh

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def cached() -> Iterator[None]:
    """Benchmarks time the compilation too and switch the cache of programs off, which later tests want."""
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.slow
def test_the_original_way_computes_the_official_preset(hand, simulated):
    config = TailorConfig.official()
    problem = jax.tree.map(lambda leaf: leaf[1], simulated(2, 3))
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
    report = measure(config, hand)
    printed = capsys.readouterr().out
    assert printed.count("| default") >= 2
    assert "hands" in printed.lower()
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
    assert report.rows[0].errors == report.rows[2].errors
    for row in stored["rows"]:
        assert row["milliseconds"] > 0.0
        for noise in ("gaussian", "heavy_tailed"):
            assert set(row["errors"][noise]) == {field.name for field in dataclasses.fields(TailorErrors)}
    assert stored["rows"][0]["ratio"] == 1.0
    assert [entry["batch"] for entry in stored["throughput"]] == [2, 2]


def test_bad_options(hand, tmp_path):
    for wrong in ({"rounds": 0}, {"iterations": (0,)}, {"json": tmp_path}):
        with pytest.raises(InputError):
            measure(TailorBenchmark(**wrong), hand)


@pytest.mark.slow
def test_tiny_run_of_predict(hand, tmp_path, capsys):
    path = tmp_path / "bench.json"
    batches = predict_benchmark.PredictBenchmark(
        networks=("small",), batches=(1,), rounds=3, seconds=1.0, torch=False, json=path
    )
    report = predict_benchmark.measure(batches, hand)
    printed = capsys.readouterr().out
    assert "| small" in printed
    assert "'.[bench]'" in printed
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
    rows = [predict_benchmark.StageRow(network, 4, stage, 1.0, ms, ms, 3) for (network, stage), ms in times.items()]
    report = predict_benchmark.PredictReport({"torch": "2"}, rows)
    assert report.ratios(4) == {"official, network": 0.75, "small, whole": 0.125}
    assert "| official, network | 0.750" in report.to_markdown()


def test_bad_options_of_predict(hand, tmp_path):
    for wrong in ({"rounds": 0}, {"batches": ()}, {"batches": (0,)}, {"networks": ()}, {"seconds": 0.0}):
        with pytest.raises(InputError):
            predict_benchmark.measure(predict_benchmark.PredictBenchmark(**wrong), hand)
    with pytest.raises(InputError, match="is a folder"):
        predict_benchmark.measure(predict_benchmark.PredictBenchmark(json=tmp_path), hand)


@pytest.mark.slow
def test_tiny_run_of_fit(hand, tmp_path, capsys):
    fit_benchmark.measure(fit_benchmark.FitBenchmark(problems=3, json=tmp_path / "new" / "fit.json"), hand)
    assert "flipped hands" in capsys.readouterr().out
    rows = json.loads((tmp_path / "new" / "fit.json").read_text())["rows"]
    assert [row["camera"] for row in rows] == ["weak_perspective", "perspective"]


@pytest.mark.slow
def test_tiny_run_of_recover_hand(tmp_path, capsys):
    path = tmp_path / "calls.json"
    config = recover_hand_benchmark.RecoverHandBenchmark(("landmarks",), ("jit",), rounds=1, json=path)
    recover_hand_benchmark.measure(config)
    assert "| landmarks | jit" in capsys.readouterr().out
    (row,) = json.loads(path.read_text())["rows"]
    assert row["first, s"] > 0.001 * row["later, ms"] > 0.0


def test_devices_are_compared(tmp_path, capsys, monkeypatch):
    for name, gap in (("cpu", 0.0), ("gpu", 0.5)):
        found = [("meshes, mm", np.ones((2, 3)) + gap), (f"only {name}", np.ones(1))]
        monkeypatch.setattr(devices_benchmark, "results", lambda found=found: iter(found))
        reference = tmp_path / "cpu.npz" if gap else None
        devices_benchmark.measure(devices_benchmark.Options(tmp_path / f"{name}.npz", reference))
    text = capsys.readouterr().out
    assert "meshes, mm: mean 1.5 against 1; difference: median 5.0e-01, largest 5.0e-01" in text
    assert "Only in the reference: only cpu" in text
    (tmp_path / "cpu.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"cpu\.npz"):
        devices_benchmark.measure(devices_benchmark.Options(tmp_path / "new.npz", tmp_path / "cpu.npz"))
    assert not (tmp_path / "new.npz").exists()


def test_bad_options_of_the_others():
    with pytest.raises(InputError, match="--batch is 0: give positive numbers"):
        recover_hand_benchmark.measure(recover_hand_benchmark.RecoverHandBenchmark(batch=0))
    with pytest.raises(InputError, match="--problems is 0: give positive numbers"):
        fit_benchmark.measure(fit_benchmark.FitBenchmark(problems=0))
    with pytest.raises(InputError, match="--batch is 0"):
        synthetic_benchmark.measure(synthetic_benchmark.SyntheticBenchmark(batch=0))


def test_as_a_program(monkeypatch, capsys):
    for name in ("tailor", "predict", "recover_hand", "fit", "live", "sequence", "synthetic"):
        program = str(BENCHMARKS / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [program, "--help"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(program, run_name="__main__")
        assert end.value.code == 0
        assert "--json" in capsys.readouterr().out
    arguments = [sys.executable, program, "--rounds", "0"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "synthetic.py: error: --rounds is 0: give positive numbers\n")

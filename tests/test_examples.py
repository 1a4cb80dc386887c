"""Every page of examples/ runs as it is printed, and is linked from the README."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import handtailor_jax as ht
from handtailor_jax.images import read_image
from handtailor_jax.training.config import DataConfig, TrainingConfig
from tests.test_objective import TINY, fixed_weights

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Examples rely on JAX's default promotion of types and ranks, which the tests otherwise forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def main(number):
    (page,) = (page for page in PAGES if page.name.startswith(f"{number:02d}_"))
    return runpy.run_path(str(page))["main"]


def test_pages_are_short_and_linked():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [int(page.name[:2]) for page in PAGES] == list(range(1, 10))
    for page in PAGES:
        assert len(page.read_text("utf-8").splitlines()) <= 60
        assert f"(examples/{page.name})" in readme
    assert set(re.findall(r"\(examples/([^)]+)\)", readme)) == {page.name for page in PAGES}


@pytest.mark.slow
def test_image_to_mesh(tmp_path, capsys):
    main(1)(out=tmp_path / "hands")
    assert sorted(line.split(":")[0] for line in capsys.readouterr().out.splitlines()) == ["left", "right"]
    assert {path.name for path in (tmp_path / "hands").iterdir()} == {"hands.glb", "overlay.png"}


@pytest.mark.slow
def test_keypoints_to_mesh(tmp_path):
    main(2)(out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"peace.obj", "pinch.obj"}


@pytest.mark.slow
def test_jit_vmap_and_grad(tmp_path, monkeypatch, capsys):
    """With a small network, because the programs of the embedded one take minutes to compile."""
    tiny = ht.load_weights(fixed_weights(tmp_path / "tiny.safetensors"))
    monkeypatch.setattr(ht, "load_weights", lambda: tiny)
    main(3)()
    printed = capsys.readouterr().out
    assert "a batch (2, 1609, 3)" in printed
    assert "by the pixels (320, 320, 3)" in printed
    assert "nan" not in printed


@pytest.mark.slow
def test_training_through_the_tailor(capsys):
    main(4)(steps=40, batch=8)
    errors = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines()]
    assert sum(errors[-5:]) < 0.8 * sum(errors[:5])


@pytest.mark.slow
def test_your_own_data_and_loss_on_all_devices(tmp_path):
    """With a small network, because the program of eight devices takes long to compile."""
    train = main(5)
    tiny = {"module": TINY, "weights": fixed_weights(tmp_path / "tiny.safetensors"), "data": DataConfig(size=48)}
    train.__globals__["TrainingConfig"] = lambda _, **given: TrainingConfig(**given | tiny)
    path = train(out=tmp_path / "run", steps=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert lines[0]["loss/palm_shape"] > 0.0
    assert 0.0 <= lines[-1]["custom/pck10"] <= 1.0
    assert ht.load_weights(path).config == TINY


@pytest.mark.slow
def test_behind_mediapipe(tmp_path, capsys):
    main(6)(out=tmp_path)
    assert re.fullmatch(r"right: \d+\.\d pixels from MediaPipe's landmarks\n", capsys.readouterr().out)
    assert {path.name for path in tmp_path.iterdir()} == {"hands.glb", "overlay.png"}


@pytest.mark.slow
def test_export(tmp_path, capsys):
    main(7)(out=tmp_path / "tailor.jaxexport")
    assert "'vertices': (1, 1609, 3)" in capsys.readouterr().out


@pytest.mark.slow
def test_video(tmp_path):
    assert [sorted(numbers) for numbers in main(8)(out=tmp_path, frames=3)] == [[0, 1]] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"made.mp4", "overlay.mp4"}


RAY = """
import runpy, sys
import ray
from ray.cluster_utils import Cluster

page, out = sys.argv[1:]
main = runpy.run_path(page)["main"]


class OnNode(main.__globals__["RecoverHands"]):
    def __call__(self, batch):
        rows = super().__call__(batch)
        return rows | {"node": [ray.get_runtime_context().get_node_id()] * len(rows["path"])}


main.__globals__["RecoverHands"] = OnNode
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
cluster.add_node(num_cpus=2)
main(out=out, batch=4, address=cluster.address)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_ray(tmp_path):
    """On a cluster of two workers on this machine, in processes of its own; both find hands."""
    pytest.importorskip("ray.data", reason="needs pip install '.[cluster]'")
    from pyarrow import parquet

    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    quiet["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    command = [sys.executable, "-c", RAY, str(ROOT / "examples" / "09_ray.py"), str(tmp_path / "hands")]
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = parquet.read_table(tmp_path / "hands").to_pylist()
    assert len({row["node"] for row in rows}) == 2
    assert len({row["path"] for row in rows}) == 10
    assert not any(row["error"] for row in rows)
    row = next(row for row in rows if Path(row["path"]).stem == "open")
    (hand,) = ht.HandTailor.load()(read_image(Path(row["path"])))
    assert row["side"] == hand.side
    # Runs of other sizes round differently, more so in tests, whose programs are not optimised.
    np.testing.assert_allclose(row["keypoints_2d"], hand.keypoints_2d, atol=5e-4)

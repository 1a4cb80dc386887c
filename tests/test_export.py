"""The exported tailor: the same results from the file, also in a process that knows nothing of this package."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.problems import tailor_problems
from handtailor_jax.export import export_tailor, load_exported
from handtailor_jax.tailor import TailorConfig, initialize
from handtailor_jax.tailor.placement import camera_mesh
from handtailor_jax.tailor.tailor import tailor


@pytest.fixture(scope="module")
def exported(hand, tmp_path_factory):
    return export_tailor(tmp_path_factory.mktemp("export") / "tailor.jaxexport", hand)


def arguments(problems, names):
    arrays = {
        "keypoints_2d": problems.observation.keypoints_2d,
        "confidence": problems.observation.confidence,
        "pose": problems.pose,
        "betas": problems.betas,
        "root_depth": problems.root_depth,
        "intrinsics": problems.observation.camera.matrix,
    }
    return [arrays[name] for name in names]


@pytest.fixture(scope="module")
def problems(hand):
    return tailor_problems(hand, 2, seed=5, noise="heavy_tailed")


@pytest.fixture(scope="module")
def expected(hand, problems):
    config = TailorConfig.default()

    def fit(problem):
        start = initialize(
            hand, problem.pose, problem.betas, problem.observation, root_depth=problem.root_depth, scale=config.scale
        )
        fitted = tailor(hand, start, problem.observation, config)
        return fitted, camera_mesh(hand, fitted)

    return jax.jit(jax.vmap(fit))(problems)


def agree(results, expected):
    fitted, mesh = expected
    for name in ("pose", "betas", "scale", "translation"):
        np.testing.assert_allclose(results[name], getattr(fitted, name), rtol=1e-4, atol=1e-4)
    for name in ("keypoints", "vertices"):
        np.testing.assert_allclose(results[name], getattr(mesh, name), rtol=0, atol=1e-5)


def test_from_the_file_in_this_process(exported, problems, expected):
    loaded = load_exported(exported)
    first = jax.tree.map(lambda leaf: leaf[:1], (problems, expected))  # the other test has another batch size
    agree(loaded(*arguments(first[0], loaded.inputs)), first[1])


def test_without_intrinsics(hand, tmp_path):
    path = export_tailor(tmp_path / "weak.jaxexport", hand, perspective=False)
    loaded = load_exported(path)
    assert loaded.inputs == ("keypoints_2d", "confidence", "pose", "betas")
    problems = tailor_problems(hand, 3, seed=5, camera="weak_perspective")
    results = loaded(*arguments(problems, loaded.inputs))
    distance = jnp.linalg.norm(results["keypoints"][..., :2] - problems.observation.keypoints_2d, axis=-1)
    assert jnp.mean(distance) < 3.0  # pixels; 9 before the tailor
    np.testing.assert_array_equal(results["translation"][:, 2], 0.0)


def test_in_a_process_without_this_package(exported, problems, expected, tmp_path):
    np.savez(tmp_path / "in.npz", *arguments(problems, load_exported(exported).inputs))
    code = f"""
import sys
from pathlib import Path; import jax.export
tailor = jax.export.deserialize(bytearray(Path({str(exported)!r}).read_bytes())).call
import numpy as np
with np.load({str(tmp_path / "in.npz")!r}) as f: fitted = tailor(*(f[name] for name in f.files))
np.savez({str(tmp_path / "out.npz")!r}, **fitted)
assert not [name for name in sys.modules if name.startswith("handtailor")]
"""
    # -I: neither this folder nor what the environment points to can be imported from.
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as results:
        agree(results, expected)


def test_describes_itself(exported):
    description = json.loads(exported.with_name(exported.name + ".json").read_text())
    assert [entry["name"] for entry in description["inputs"]][:2] == ["keypoints_2d", "confidence"]
    assert description["inputs"][0]["shape"] == ["batch", 21, 2]
    assert description["outputs"]["keypoints"]["shape"] == ["batch", 21, 3]
    assert description["platforms"] == ["cpu"]
    assert description["jax"] == jax.__version__
    assert sorted(p.name for p in exported.parent.iterdir()) == [exported.name, exported.name + ".json"]


def test_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"handtailor-jax\[export\]"):
        export_tailor(tmp_path / "tailor")
    assert not list(tmp_path.iterdir())


def test_unwritable_and_unreadable(hand, exported, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="cannot read"):
        load_exported(tmp_path / "nothing")
    broken = tmp_path / "broken"
    broken.write_bytes(b"no program")
    broken.with_name("broken.json").write_text("[]")
    with pytest.raises(InputError, match="does not describe"):
        load_exported(broken)
    broken.with_name("broken.json").write_bytes(exported.with_name(exported.name + ".json").read_bytes())
    with pytest.raises(InputError, match="not a program"):
        load_exported(broken)
    with pytest.raises(InputError, match="cannot be written"):
        export_tailor(tmp_path / "no" / "such" / "folder", hand)


def test_dtype(exported):
    assert load_exported(exported).description["dtype"] == jnp.dtype(jnp.float32).name

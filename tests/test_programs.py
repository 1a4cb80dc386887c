"""Traced programs that are kept between processes."""

import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handtailor_jax as ht
from handtailor_jax import pipeline, programs
from handtailor_jax.hand_module.hand_module import LandmarkHandModule
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.programs import kept
from handtailor_jax.tailor.placement import describe
from handtailor_jax.types import Camera, Observation


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "_folder", lambda: tmp_path / "traced")
    return tmp_path / "traced"


class Traced:
    """A function that counts how often it is traced."""

    def __init__(self):
        self.count = 0

    def __call__(self, x):
        self.count += 1
        return {"camera": Camera.weak_perspective(2.0 * x), "none": None}


def run(function, x, *about):
    """Call a function as a new process would."""
    return jax.jit(kept(function, "test", *about))(x)


def test_a_program_is_traced_once(folder):
    first, later = Traced(), Traced()
    expected, found = run(first, np.float32(3.0)), run(later, np.float32(3.0))
    assert (first.count, later.count) == (1, 0)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found["camera"].linear[0, 0] == 6.0
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("change", ["shape", "type", "about", "source", "precision"])
def test_whatever_determines_a_program_is_told_apart(folder, monkeypatch, change):
    function = Traced()
    run(function, np.float32(3.0), 1)
    x, about = np.float32(3.0), 1
    if change == "shape":
        x = np.ones(2, np.float32)
    elif change == "type":
        x = np.float16(3.0)
    elif change == "about":
        about = 2
    elif change == "source":
        monkeypatch.setattr(programs, "_source", lambda: "another version")
    with jax.default_matmul_precision("highest" if change == "precision" else None):
        run(function, x, about)
    assert function.count == 2
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"short", "cut", "flipped"])
def test_damaged_files_are_written_anew(folder, damage):
    run(Traced(), np.float32(3.0))
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    path.write_bytes({"cut": whole[:-10], "flipped": flipped}.get(damage, damage))
    function = Traced()
    assert run(function, np.float32(3.0))["camera"].linear[0, 0] == 6.0
    assert function.count == 1
    assert path.read_bytes() == whole


def test_a_pipe_in_a_file_s_place_is_no_file(folder):
    run(Traced(), np.float32(3.0))
    (path,) = folder.iterdir()
    path.unlink()
    os.mkfifo(path)
    assert run(Traced(), np.float32(3.0))["camera"].linear[0, 0] == 6.0


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(programs, "_folder", lambda: tmp_path / "file" / "traced")
    assert run(Traced(), np.float32(3.0))["camera"].linear[0, 0] == 6.0


@pytest.mark.parametrize(
    "change",
    [
        {"jax_compilation_cache_dir": None},
        {"jax_compilation_cache_dir": "gs://bucket/cache"},
        {"jax_enable_compilation_cache": False},
        {"jax_disable_jit": True},
        {"jax_default_device": "cpu:1"},
        {"switch": "0"},
        {},
    ],
)
def test_where_programs_are_kept(monkeypatch, change):
    monkeypatch.setenv(programs.SWITCH, change.get("switch", "1"))
    options = {"jax_compilation_cache_dir": "/cache", "jax_enable_compilation_cache": True, "jax_disable_jit": False}
    config = SimpleNamespace(**{**options, "jax_default_device": None, **change})
    monkeypatch.setattr(programs, "jax", SimpleNamespace(config=config))
    assert programs._folder() == (None if change else Path("/cache/handtailor_traced"))


def test_results_keep_their_structure(folder):
    hand = ht.embedded_hand()
    seen = Observation(jnp.zeros((21, 2)), jnp.ones(21), Camera.weak_perspective())

    def function(scale):
        placed = ht.HandParameters(jnp.zeros((16, 3)), jnp.zeros(10), scale, jnp.zeros(3))
        return describe(hand, placed, seen, ht.load_convention("mediapipe"))

    expected, found = (run(function, np.float32(100.0)) for _ in range(2))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert found.convention == "mediapipe"
    assert found.proposed is None
    np.testing.assert_array_equal(found.vertices, expected.vertices)


def test_networks_of_others_are_not_kept():
    class Other(LandmarkHandModule):
        pass

    module = HandTailor.load().module
    assert programs.is_own(module)
    assert not programs.is_own(Other(module.landmark_network, module.iknet))


@pytest.mark.slow
def test_later_hand_tailors_trace_nothing(folder, monkeypatch):
    image = np.asarray(np.random.default_rng(0).integers(0, 255, (240, 320, 3)), np.uint8)
    region = ht.Region(np.asarray([160.0, 120.0], np.float32), np.float32(200.0), np.float32(0.1))

    def look():
        tailor = HandTailor.load()
        return tailor.looking(image, Camera.weak_perspective(), 0.5)([region])[0].hand

    expected = look()
    monkeypatch.setattr(pipeline, "recover", None)
    jax.tree.map(np.testing.assert_array_equal, look(), expected)

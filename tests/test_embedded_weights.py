"""The weights that come with the package: what they are, what `handtailor demo` makes of the packaged images."""

import functools
import importlib.resources
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh

from handtailor_jax import cli, hand_tailor, predict
from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.weights import load_module, load_weights, provenance, save_weights
from handtailor_jax.hand_tailor import HandTailor

ASSETS = importlib.resources.files("handtailor_jax") / "assets"


def test_they_are_small_and_say_where_they_come_from():
    with importlib.resources.as_file(ASSETS / "hourglass.safetensors") as path:
        assert path.stat().st_size < 8e6
        facts = provenance(path)
    assert load_weights().config == HandModuleConfig.landmarks()
    assert "Apache-2.0" in facts["licence"]
    assert int(facts["steps"]) > 0
    assert len(facts["commit"]) >= 40
    training = json.loads(facts["training"])
    assert training["module"]["image_size"] == 224
    assert not any("/" in value for value in facts.values()), "paths of the machine that trained them"
    assert (ASSETS / "hourglass.NOTICE.txt").is_file()


def test_they_pose_the_embedded_hand_alone(hand, mano):
    with pytest.raises(InputError, match="fit the embedded hand only"):
        load_module(None, mano)
    with pytest.raises(InputError, match="fit the embedded hand only"):
        HandTailor.load(None, mano, network="hourglass")
    assert HandTailor.load(None, hand, network="hourglass").hand is hand


def test_half_precision_keeps_three_digits(tmp_path):
    module = load_weights()
    save_weights(tmp_path / "half.safetensors", module, {}, dtype="float16")
    save_weights(tmp_path / "full.safetensors", module, {})
    sizes = [(tmp_path / name).stat().st_size for name in ("half.safetensors", "full.safetensors")]
    assert 1.9 < sizes[1] / sizes[0] < 2.1
    again = load_weights(tmp_path / "half.safetensors")
    kernel, other = (m.stem.merge[0].kernel[...] for m in (module, again))
    assert other.dtype == np.float32
    np.testing.assert_allclose(other, kernel, rtol=1e-3)
    module.stem.merge[0].kernel[...] = kernel.at[0, 0].set(1e5)
    with pytest.raises(InputError, match=r"stem.merge.0.kernel holds numbers too large for float16"):
        save_weights(tmp_path / "huge.safetensors", module, {}, dtype="float16")
    assert not (tmp_path / "huge.safetensors").exists()


def test_a_class_of_your_own_takes_them():
    class Own(HandModule):
        pass

    assert type(load_weights(None, Own)) is Own


@pytest.mark.slow
def test_demo(tmp_path, capsys, monkeypatch):
    # One program to compile instead of three, and small overlays.
    monkeypatch.setattr(hand_tailor, "_MOST_AT_ONCE", 1)
    monkeypatch.setattr(predict, "overlay_figure", functools.partial(predict.overlay_figure, panel_height=100))
    cli.main(["demo", "--out", str(tmp_path / "demo")])
    printed = capsys.readouterr().out
    assert "Results of 10 of 10 inputs are in" in printed
    assert "no hand found" not in printed
    truth = json.loads((ASSETS / "examples" / "hands.json").read_text())
    images = {Path(each["image"]).stem for each in truth}
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"sheet.png"} | {
        name + ending for name in images for ending in (".json", "_overlay.png", ".glb")
    }
    errors, extents = [], []
    for name in images:
        labels = [each for each in truth if Path(each["image"]).stem == name]
        hands = json.loads((tmp_path / "demo" / f"{name}.json").read_text())["hands"]
        assert sorted(hand["side"] for hand in hands) == sorted(label["side"] for label in labels)
        for label in labels:
            (found,) = (hand for hand in hands if hand["side"] == label["side"])
            assert found["projection"] == ("perspective" if "camera" in label else "weak_perspective")
            size = np.ptp(label["keypoints_2d"], axis=0).max()
            # hands.json holds what a detector would say: other orders, conventions and displaced points are among them.
            if label.get("convention", "mano") == "mano" and "order" not in label:
                error = np.subtract(found["keypoints_2d"], label["keypoints_2d"])
                errors.append(np.linalg.norm(error, axis=1) / size)
        scene = trimesh.load(tmp_path / "demo" / f"{name}.glb")
        assert len(scene.geometry) == len(hands)
        extents += [mesh.extents.max() for mesh in scene.geometry.values()]
        assert cv2.imread(str(tmp_path / "demo" / f"{name}_overlay.png")).std() > 10
    assert 0.1 < min(extents) < max(extents) < 0.35
    assert len(errors) >= 8
    assert np.median(errors) < 0.08

"""Numbers that ran for ever, filled the memory or gave tables of NaN."""

import json

import pytest

import evaluate
import train
from handtailor_jax import cli
from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_tailor import HandTailor, check_arguments
from handtailor_jax.inputs import find_sources
from handtailor_jax.synthetic.dataset import SyntheticConfig
from handtailor_jax.tailor.search import SearchConfig
from handtailor_jax.training.config import DataConfig, LossWeights, OptimizerConfig, TrainingConfig
from handtailor_jax.video.track import VideoConfig

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (
            OptimizerConfig,
            {"learning_rate": (-1e-3, 0.0, NAN, INF), "clip": (0.0, -1.0, NAN), "final": (-1.0, NAN)},
        ),
        (OptimizerConfig, {"weight_decay": (-1.0, NAN, 2.0), "average": (-0.1, 1.1, NAN), "warm_up": (-1,)}),
        (LossWeights, {"joints": (-1.0, NAN, INF), "paper_depth": (-1.0,), "betas": (NAN,)}),
        (
            TrainingConfig,
            {"seed": (-1, 2**31, 10**30), "batch": (0, -1, 20000, 10**30), "joint_noise": (NAN, -1.0)},
        ),
        (TrainingConfig, {"steps": (0, -5), "log_every": (0,), "heatmap_sigma": (0.0, -1.0, NAN)}),
        (
            DataConfig,
            {
                "size": (0, -1, 10**6),
                "photograph_3d": (NAN, -1.0),
                "second_hand": (NAN, 1.5),
                "pool": (0,),
                "test": (-1,),
            },
        ),
        (AugmentationConfig, {"noise": (NAN, -1.0, INF), "blur": (-1.0, NAN), "saturation": ((NAN, 1.0), (-1.0, 1.0))}),
        (AugmentationConfig, {"shift": (NAN,), "rotation": (INF,), "exposure": (-1.0,), "grey": (2.0,)}),
        (HandModuleConfig, {"channels": (0, -8, 10**9), "ik_hidden": ((0,), (64, -1)), "shape_channels": (0,)}),
        (HandModuleConfig, {"stem_channels": (0,), "stacks_2d": (0, 99), "depth": (0, 99), "shape_levels": (10**9,)}),
        (
            HandModuleConfig,
            {"image_size": (0, -256, 65536), "confidence_radius": (0.0, NAN), "shape_blocks": (0, 99)},
        ),
        (SyntheticConfig, {"size": (0, -16, 10**6, 33), "images_at_once": (0, -1)}),
    ],
)
def test_configurations_refuse_numbers_out_of_range(kind, values):
    for name, refused in values.items():
        for value in refused:
            with pytest.raises(InputError, match=name):
                kind(**{name: value})


@pytest.mark.parametrize("number", ["99999999999", "12345", 5000 * "9"])
def test_numbers_that_are_no_webcams(refused, tmp_path, number):
    assert "no webcam has this number" in refused("predict", number, "--out", tmp_path / "out")
    assert find_sources(["3"])[0].path == 3


@pytest.mark.parametrize(
    "arguments",
    [("--count", "0"), ("--count", "-3"), ("--count", 10**12), ("--seed", "-1"), ("--seed", 2**31), ("--size", 10**6)],
)
@pytest.mark.slow
def test_counts_seeds_and_sizes_of_synth(refused, tmp_path, arguments):
    line = refused("synth", *arguments, "--out", tmp_path / "out")
    assert arguments[0].removeprefix("--") in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--rounds", value) for value in ("0", "-1")),
        *(("--iterations", value) for value in ("0", "-10")),
        *(("--damped-iterations", value) for value in ("0", "-10")),
        *(("--count", value) for value in ("0", "-1")),
        *(("--seed", value) for value in ("-1", str(2**40))),
        *((name, "0") for name in ("--shown", "--rendered")),
    ],
)
def test_counts_and_seeds_of_the_evaluation(capsys, tmp_path, arguments):
    with pytest.raises(SystemExit) as end:
        evaluate.main(["table3", "--predictions", "simulated", *arguments, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert f"evaluate.py: error: {arguments[0]} is {arguments[1]}: give " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "address", ["host", "host:", "host:0", "host:x", "host:99999999", "host:-1", "host:\N{SUPERSCRIPT TWO}"]
)
def test_coordinators_without_a_port(address):
    with pytest.raises(InputError, match="has no port"):
        train.connect(train.Command(coordinator=address, processes=2))


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        *((VideoConfig, {name: 0}) for name in ("hands", "search_every", "shape_frames")),
        (VideoConfig, {"remember": NAN}),
        (VideoConfig, {"pose_share": 1.5}),
        (SearchConfig, {"survivors": 0}),
        (SearchConfig, {"screening": -1}),
    ],
)
def test_settings_of_videos_and_searches(make, settings):
    with pytest.raises(InputError, match=rf"{next(iter(settings))} is .*: give "):
        make(**settings)


def test_sides_of_videos():
    with pytest.raises(InputError, match="side is 'Left'"):
        check_arguments("Left")


def test_integers_of_thousands_of_digits_in_json(refused, entry, tmp_path):
    text = json.dumps({**entry, "betas": [1]}).replace("[1]", f"[{5000 * '1'}]")
    (tmp_path / "in.json").write_text(text)
    assert "thousands of digits" in refused("fit", tmp_path / "in.json", "--out", tmp_path / "out")
    (tmp_path / "in.json").write_text(json.dumps({**entry, "betas": [10**4000]}))
    assert "betas must hold numbers only" in refused("fit", tmp_path / "in.json", "--out", tmp_path / "out")


@pytest.mark.parametrize("value", ["1e308", "60000", "1e12"])
def test_boxes_of_any_size(capfd, image, tmp_path, monkeypatch, value):
    """The image is reported and skipped."""

    class Tailor(HandTailor):
        def __init__(self):
            pass

    monkeypatch.setattr(HandTailor, "load", lambda *_: Tailor())
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", str(image), "--box", "0", "0", value, value, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "far larger than the 64 x 48 image" in capfd.readouterr().err

"""Command lines that gave a box of several lines, and programs around this one that gave a wrong remedy."""

import json
import sys

import numpy as np
import pytest

import evaluate
import train
from handtailor_jax import cli
from handtailor_jax.data import prepare
from handtailor_jax.detector import regions
from handtailor_jax.errors import InputError, install
from handtailor_jax.images import opencv

PICTURE = "docs/pictures/demo.jpg"
SMOKE = ("--config", "configs/smoke.py", "--out", "x")
MISTAKES = {
    "a number": (train, (*SMOKE, "--steps", "abc"), "expected --steps INT"),
    "below a range": (train, (*SMOKE, "--optimizer.learning-rate", "-1"), "error: --optimizer.learning-rate is -1.0"),
    "NaN": (train, (*SMOKE, "--joint-noise", "nan"), "error: --joint-noise is nan"),
    "shapes": (train, (*SMOKE, "--betas-std", "-1"), "error: --betas-std is -1.0: give 0 to 10"),
    "a part": (train, (*SMOKE, "--module.depth", "0"), "error: --module.depth is 0: give 1 to 16"),
    "a named part": (train, (*SMOKE, "--augmentation.blur", "-1"), "error: --augmentation.blur is -1.0"),
    "two options": (train, (*SMOKE, "--data.dataset", "rhd"), "--data.dataset is set but --data.dataset-folder is not"),
    "a part of a batch": (train, (*SMOKE, "--batch", "9", "--optimizer.accumulate", "2"), "error: --batch 9 cannot be"),
    "a length": (cli, ("predict", PICTURE, "--hand-length", "9"), "error: --hand-length (metres"),
    "a focal length": (cli, ("predict", PICTURE, "--camera", "0", "1", "2", "3"), "error: --camera has the focal"),
    "a share": (cli, ("label", ".", "--val", "3"), "error: --val is 3.0: give 0 to 1"),
    "a size": (cli, ("synth", "--out", "x", "--size", "17"), "error: --size must be a multiple of 16"),
    "no iterations": (evaluate, ("table3", "--iterations", "--predictions", "x.npz"), "--iterations has no value"),
    "photographs": (
        train,
        (*SMOKE, "--data.photographs", "x"),
        "x/labels.json: no such file; give a folder with a valid labels.json",
    ),
    "a choice": (train, (*SMOKE, "--stage", "all"), "invalid choice 'all' for argument '--stage'"),
    "an unknown option": (train, (*SMOKE, "--bach", "3"), "Unrecognized options: --bach"),
    "no value": (train, ("--config",), "Missing value for argument '--config'"),
    "a table": (evaluate, ("tabel1",), "invalid choice 'tabel1'"),
    "no table": (evaluate, (), "missing is {table1,"),
    "rounds": (evaluate, ("table1", "--rounds", "many"), "expected --rounds INT"),
    "a dataset": (prepare, ("rhd",), "missing is"),
    "a command": (cli, ("predictt",), "Available subcommands: predict, demo"),
    "hands": (cli, ("predict", "a.jpg", "--hands", "two"), "--hands is given as 'two': give --hands N;"),
    "a camera": (
        cli,
        ("predict", "a.jpg", "--camera", "500", "500"),
        "--camera is given as '500', '500': give --camera FX FY CX CY;",
    ),
    "a box": (cli, ("predict", "a.jpg", "--box", "1", "2", "x", "4"), "give --box X Y W H;"),
    "a mesh": (
        cli,
        ("predict", "a.jpg", "--mesh", "stl"),
        "invalid choice 'stl' for argument '--mesh'. Expected one of ('",
    ),
    "a near name": (cli, ("fit", "--hands", "2"), "perhaps you meant --hand FILE"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_in_one_line(capsys, monkeypatch, pytestconfig, case):
    monkeypatch.chdir(pytestconfig.rootpath)
    program, arguments, message = MISTAKES[case]
    with pytest.raises(SystemExit) as end:
        program.main(arguments)
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert message in printed
    assert not set("│╭╰─") & set(printed)
    assert "None" not in printed


IDLE = {
    "table1": ("others", "shape-weights", "rounds", "iterations", "shown", "rendered"),
    "table2": ("shape-weights",),
    "table3": ("others", "preset", "rendered"),
    "figure4": ("preset", "damped-iterations"),
    "networks": ("rendered",),
}
VALUES = {"others": "x.npz", "shape-weights": "x.safetensors", "preset": "paper"}


@pytest.mark.parametrize(("table", "option"), [(table, option) for table in IDLE for option in IDLE[table]])
def test_options_of_other_tables(capsys, tmp_path, table, option):
    arguments = [table, "--weights", "w.safetensors", f"--{option}", VALUES.get(option, "7")]
    with pytest.raises(SystemExit) as end:
        evaluate.main([*arguments, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert f"error: --{option} does not apply to {table}: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dataset", "option"),
    [
        (("rhd", "--root", "."), ("--wrist", "ge")),
        (("rhd", "--root", "."), ("--wrist", "bihand")),
        (("freihand", "--root", "."), ("--stb-camera", "BB_left")),
        (("synthetic",), ("--split", "train")),
        (("synthetic",), ("--skip-unreadable",)),
    ],
)
def test_options_of_other_datasets(capsys, tmp_path, dataset, option):
    arguments = ["all", "--predictions", "simulated", "--dataset", *dataset, *option]
    with pytest.raises(SystemExit):
        evaluate.main([*arguments, "--out", str(tmp_path / "out")])
    assert f"error: {option[0]} does not apply to --dataset {dataset[0]}" in capsys.readouterr().err


def test_networks_of_no_hand_module(capsys, tmp_path):
    with pytest.raises(SystemExit):
        evaluate.main(["networks", "--predictions", "simulated", "--out", str(tmp_path / "out")])
    assert "error: networks compares hand modules: give --weights instead of --predictions" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "fit", "synth", "export"])
def test_help_shows_values_not_types(capsys, command):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "{None}" not in printed
    assert "FLOAT" not in printed
    assert "default: None" not in printed


def test_extras_are_installed_from_the_clone():
    assert install("heif") == "pip install '.[heif]' in this project's folder"


def test_opencv_that_another_package_has_removed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match="pip install --force-reinstall --no-deps opencv-python-headless"):
        opencv()


def test_mano_files_whose_names_have_no_side(refused, tmp_path):
    from tests.goldens import write_mano

    model = write_mano(tmp_path / "mano.npz")
    line = refused("fit", "--hand", model, "--out", tmp_path / "out")
    assert "its name contains no side; put 'right' or 'left' into it" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(1, 320), (320, 1), (1, 1), (2, 10000), (16, 9)])
def test_narrow_images_take_few_forward_passes(size):
    for found in (regions.tiles(*size), regions.scan_squares(*size)):
        assert len(found) <= 40
        assert len(set(found)) == len(found)


@pytest.mark.parametrize("fails", ["boxes", "images"])
def test_refused_inputs_leave_no_folder(image, tmp_path, capsys, monkeypatch, fails):
    from handtailor_jax.hand_tailor import HandTailor

    class Tailor(HandTailor):
        def __init__(self):
            pass

    monkeypatch.setattr(HandTailor, "load", lambda *_: Tailor())
    if fails == "images":
        image.write_bytes(b"no image")
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", str(image), "--box", "0", "0", "1e6", "1e6", "--out", str(tmp_path / "a" / "out")])
    assert end.value.code == 2
    assert not (tmp_path / "a").exists()


def test_hands_that_cannot_be_fitted_leave_no_folder(entry, tmp_path, capsys, monkeypatch):
    import importlib

    def fails(*_, **__):
        raise InputError("no hand")

    monkeypatch.setattr(importlib.import_module("handtailor_jax.fit"), "fit_detection", fails)
    (tmp_path / "in.json").write_text(json.dumps(entry))
    with pytest.raises(SystemExit):
        cli.main(["fit", str(tmp_path / "in.json"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("split", "count"), [("train", 1000), ("test", 4000)])
def test_default_counts_of_synth(tmp_path, monkeypatch, split, count):
    from handtailor_jax.synthetic import dataset, storage

    seen = []
    monkeypatch.setattr(dataset, "load_assets", lambda *_, **__: None)
    monkeypatch.setattr(storage, "write_freihand", lambda dataset, count, out: seen.append(count))
    cli.main(["synth", "--split", split, "--out", str(tmp_path / "out")])
    assert seen == [count]


def test_backgrounds_of_every_format(tmp_path):
    import PIL.Image

    from handtailor_jax.synthetic.storage import read_photographs

    for name in ("a.gif", "b.webp", "c.TIFF", "d.bmp"):
        PIL.Image.fromarray(np.full((20, 30, 3), 128, np.uint8)).save(tmp_path / name)
    assert read_photographs(tmp_path, side=8).shape == (4, 8, 8, 3)

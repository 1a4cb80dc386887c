"""Prepared datasets hold what the plain readers return, and TensorFlow is not needed."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from handtailor_jax.data import open_dataset, prepare
from handtailor_jax.data.prepare import example, features, sample_of
from handtailor_jax.data.sample import Sample
from handtailor_jax.errors import InputError
from tests.fixtures import write_freihand_fixture, write_rhd, write_stb

ROOT = Path(__file__).resolve().parents[1]

pytest.importorskip("array_record", reason="tensorflow_datasets writes ArrayRecord files with array_record")
tensorflow_datasets = pytest.importorskip("tensorflow_datasets", reason="prepares the datasets")


class Listed:
    """A reader over samples in memory."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def samples(count):
    """Samples that lack different things."""
    found = []
    for index in range(count):
        rng = np.random.default_rng(index)
        height, width = 10 + index, 14
        full = index % 2 == 0
        found.append(
            Sample(
                name=f"training/{index:05d}",
                image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
                keypoints_2d=rng.normal(size=(21, 2)).astype(np.float32) if index else np.full((21, 2), np.nan, "f"),
                visible=rng.random(21) < 0.5,
                joints=rng.normal(size=(21, 3)).astype(np.float32) if full else None,
                intrinsics=rng.normal(size=(3, 3)).astype(np.float32) if full else None,
                mirrored=not full,
                joint_definition="freihand" if full else "annotated",
                vertices=rng.normal(size=(778, 3)).astype(np.float32) if full else None,
                pose=rng.normal(size=(16, 3)).astype(np.float32) if index == 2 else None,
                betas=rng.normal(size=10).astype(np.float32) if index == 2 else None,
                depth=rng.random((height, width), dtype=np.float32) if not full else None,
                mask=rng.random((height, width)) < 0.5 if index != 1 else None,
            )
        )
    return found


def assert_same(found, wanted):
    for field in dataclasses.fields(Sample):
        a, b = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            assert type(a) is type(b), field.name
            assert a == b, field.name


# --- one sample ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(4))
def test_a_sample_survives_encoding(index):
    sample, layout = samples(4)[index], features(tensorflow_datasets)
    encoded = layout.encode_example(example(sample))
    assert encoded["image"][1:4] == b"PNG"
    assert set(layout) == {field.name for field in dataclasses.fields(Sample)}
    assert_same(sample_of(layout.deserialize_example_np(layout.serialize_example(example(sample)))), sample)


def test_an_example_of_another_version_is_refused():
    with pytest.raises(InputError, match="not of this version"):
        sample_of({"name": b"a"})


# --- a dataset -------------------------------------------------------------------------------------------------------


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """Readers of any archive return the samples above; the options they were opened with are recorded."""
    made, opened = samples(5), []

    def fake(name, root, split, **options):
        opened.append((name, split, options))
        return Listed(made)

    monkeypatch.setattr(prepare, "open_archive", fake)
    return tmp_path, made, opened


def all_of(name):
    """Options with which nothing of a sample is left out."""
    return {"rhd": {"mask": True, "depth": True}, "stb": {"mask": True, "depth": True}}.get(name, {"mask": True})


@pytest.mark.parametrize("name", ["rhd", "stb"])
def test_prepared_samples_keep_order_and_content(faked, name):
    folder, made, _ = faked
    prepared = prepare.prepare(name, folder / "archive", folder, **all_of(name))
    written = (prepared / "dataset_info.json").stat().st_mtime_ns
    assert prepare.prepare(name, folder / "archive", folder, **all_of(name)) == prepared
    assert (prepared / "dataset_info.json").stat().st_mtime_ns == written, "prepared twice"
    assert {path.name.split(".")[-1].split("-")[0] for path in prepared.iterdir()} == {"array_record", "json"}
    for split in prepare.SPLITS[name]:
        reader = open_dataset(name, prepared, split, **all_of(name))
        assert len(reader) == len(made)
        for index, wanted in enumerate(made):
            assert_same(reader[index], wanted)
    with pytest.raises(IndexError, match="samples 0 to 4, got 5"):
        reader[5]
    with pytest.raises(IndexError):
        reader[-1]


def test_prepared_options_must_agree(faked):
    folder, made, _ = faked
    prepared = prepare.prepare("stb", folder / "archive", folder, depth=True, wrist="ge")
    with pytest.raises(InputError, match=r"1\.0\.0: holds the dataset with other options .*: choose another folder"):
        prepare.prepare("stb", folder / "archive", folder, depth=True)
    for wanted, field in (
        ({}, "wrist=ge, not bihand"),
        ({"camera": "BB_left", "wrist": "ge"}, "camera=SK, not BB_left"),
    ):
        with pytest.raises(InputError, match=f"was prepared with {field}: prepare it again"):
            open_dataset("stb", prepared, "train", **wanted)
    with pytest.raises(InputError, match="was prepared without mask: prepare it again with it"):
        open_dataset("stb", prepared, "train", wrist="ge", mask=True)
    # Parts that are not asked for are left out, as by the plain reader.
    assert open_dataset("stb", prepared, "train", wrist="ge")[1].depth is None
    assert_same(
        open_dataset("stb", prepared, "train", wrist="ge", depth=True)[1], dataclasses.replace(made[1], mask=None)
    )
    with pytest.raises(InputError, match="holds stb, not rhd"):
        open_dataset("rhd", prepared, "training")
    with pytest.raises(InputError, match="choose one of test, train"):
        open_dataset("stb", prepared, "val", wrist="ge")


def test_poses_of_freihand_depend_on_the_mean_pose(faked):
    folder, _, opened = faked
    mean = np.linspace(-0.1, 0.1, 45)
    posed = prepare.prepare("freihand", folder / "archive", folder, hands_mean=mean, mask=True)
    assert [options["mask"] for *_, options in opened] == [True, False], "the evaluation split has no masks"
    assert folder in opened[0][2]["cache"].parents, "the archive may be read-only"
    assert open_dataset("freihand", posed, "training", hands_mean=mean.astype(np.float32))[2].pose is not None
    assert open_dataset("freihand", posed, "training")[2].pose is None
    with pytest.raises(InputError, match="was prepared with hands_mean"):
        open_dataset("freihand", posed, "training", hands_mean=mean + 0.1)


def test_a_loader_reads_prepared_samples(faked):
    pytest.importorskip("grain", reason="the loader needs Grain")
    from handtailor_jax.data.loader import gather, load

    folder, made, _ = faked
    reader = open_dataset("rhd", prepare.prepare("rhd", folder / "archive", folder), "training")
    one, other = (gather(load(each, size=16), range(4)) for each in (reader, Listed(made)))
    np.testing.assert_array_equal(one.image, other.image)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(prepare.SPLITS))
def test_a_missing_archive_is_one_line(tmp_path, name, capsys):
    with pytest.raises(SystemExit) as caught:
        prepare.main([name, str(tmp_path / "archive"), str(tmp_path)])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert re.fullmatch(r"handtailor_jax\.data\.prepare: error: .*archive.*: no such folder: .*\n", error)


def test_an_unreadable_sample_stops_with_its_own_line(faked, monkeypatch):
    class Broken(Listed):
        def __getitem__(self, index):
            raise InputError("color/00000.png: is not an image: unpack the archive again")

    folder, made, _ = faked
    monkeypatch.setattr(prepare, "open_archive", lambda *a, **k: Broken(made))
    with pytest.raises(InputError, match=r"^color/00000\.png: is not an image: unpack the archive again"):
        prepare.prepare("rhd", folder / "archive", folder)
    assert not (folder / "rhd" / "1.0.0" / "dataset_info.json").exists()


def test_unknown_names_are_refused(faked):
    folder, *_ = faked
    with pytest.raises(InputError, match="photos cannot be prepared: choose one of rhd, stb, freihand"):
        prepare.prepare("photos", folder, folder)
    with pytest.raises(InputError, match="rhd has no option 'wrist'"):
        prepare.prepare("rhd", folder, folder, wrist="ge")


def test_a_damaged_record_is_named():
    class Damaged(list):
        def __getitem__(self, index):
            raise OSError("bad checksum\nand more")

    with pytest.raises(InputError, match=r"^rhd training: sample 1 cannot be read \(bad checksum\): prepare it again$"):
        prepare.PreparedReader(Damaged([{}, {}]), "rhd training")[1]


# --- miniature archives ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """All three archives in miniature."""
    pytest.importorskip("scipy", reason="STB's labels are read with scipy")
    folder = tmp_path_factory.mktemp("archives")
    write_rhd(folder / "rhd")
    write_stb(folder / "stb", frames=1)
    write_freihand_fixture(folder / "freihand", truth="sibling")
    return folder


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("rhd", ["--mask"], {"mask": True}),
        ("stb", ["--camera", "BB_right", "--wrist", "palm"], {"camera": "BB_right", "wrist": "palm"}),
        ("freihand", ["--mask"], {"mask": True}),
    ],
)
def test_the_command_prepares_what_the_plain_readers_return(archives, tmp_path, capsys, name, arguments, options):
    prepare.main([name, str(archives / name), str(tmp_path / "out"), *arguments])
    [folder] = re.findall(r"prepared (\S+):", capsys.readouterr().out)
    for split in prepare.SPLITS[name]:
        wanted_options = options | ({"mask": False} if (name, split) == ("freihand", "evaluation") else {})
        found = open_dataset(name, Path(folder), split, **wanted_options)
        wanted = open_dataset(name, archives / name, split, **wanted_options)
        assert len(found) == len(wanted) > 0
        for index in range(len(wanted)):
            assert_same(found[index], wanted[index])


# --- without TensorFlow ----------------------------------------------------------------------------------------------

HIDE = """
import json, sys
from pathlib import Path

class Hidden:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in HIDDEN else self.finder.find_spec(name, *rest)

sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
"""


def run(code, hidden, *arguments):
    code = f"HIDDEN = {hidden!r}\n{HIDE}\n{code}"
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_tensorflow_is_not_imported(tmp_path):
    write_rhd(tmp_path / "archive")
    code = (
        "import importlib.util\n"
        "assert importlib.util.find_spec('tensorflow') is None\n"
        "from handtailor_jax.data import open_dataset, prepare\n"
        "folder = prepare.prepare('rhd', Path(sys.argv[1]) / 'archive', Path(sys.argv[1]) / 'out')\n"
        "found, plain = (open_dataset('rhd', root, 'evaluation') for root in (folder, Path(sys.argv[1]) / 'archive'))\n"
        "assert (found[0].image == plain[0].image).all() and found[0].mirrored\n"
        "print(json.dumps('tensorflow' in sys.modules))\n"
    )
    assert run(code, ["tensorflow"], tmp_path) is False


def test_without_tensorflow_datasets_the_remedy_is_named():
    code = (
        "from handtailor_jax.data import prepare\n"
        "from handtailor_jax.errors import InputError\n"
        "try:\n    prepare.open_prepared(Path('.'), 'rhd', 'training', {})\n"
        "except InputError as error:\n    print(json.dumps(str(error)))\n"
    )
    message = run(code, ["tensorflow_datasets"])
    assert "pip install '.[datasets]'" in message
    assert "\n" not in message


def test_importing_the_readers_is_light():
    code = (
        "import handtailor_jax.data.prepare, handtailor_jax.data.loader\n"
        "print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    )
    assert not {"grain", "tensorflow_datasets", "array_record", "cv2"} & set(run(code, []))

"""The builders for tensorflow_datasets give back what the plain readers give, without TensorFlow."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from handtailor_jax.data.readers import open_dataset
from handtailor_jax.data.sample import Sample
from handtailor_jax.data.tfds.reader import BUILDERS, TfdsReader, open_prepared, prepare
from handtailor_jax.errors import InputError
from tests.fixtures import write_freihand_fixture, write_rhd, write_stb

ROOT = Path(__file__).resolve().parents[1]

pytest.importorskip("array_record", reason="tensorflow_datasets writes ArrayRecord files with array_record")
tfds = pytest.importorskip("tensorflow_datasets", reason="the builders want tensorflow_datasets")

from handtailor_jax.data.tfds.examples import example, features, sample_of

FOLDERS = {"rhd": "RHD_published_v2", "stb": "STB", "freihand": "FreiHAND_pub_v2"}
SPLITS = {"rhd": ("training", "evaluation"), "stb": ("train", "test"), "freihand": ("training", "evaluation")}


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


def builder_module(name):
    return importlib.import_module(f"handtailor_jax.data.tfds.{name}")


# --- one sample ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(4))
def test_a_sample_survives_encoding(index):
    sample, layout = samples(4)[index], features(tfds)
    encoded = layout.encode_example(example(sample))
    assert encoded["image"][1:4] == b"PNG"
    assert set(layout) == {field.name for field in dataclasses.fields(Sample)}
    assert_same(sample_of(layout.deserialize_example_np(layout.serialize_example(example(sample)))), sample)


def test_another_versions_example_is_refused():
    with pytest.raises(InputError, match="not of this version"):
        sample_of({"name": b"a"})


# --- a dataset -------------------------------------------------------------------------------------------------------


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """Builders whose archive is there, but whose readers give the samples above."""
    made = samples(5)
    for name in BUILDERS:
        module = builder_module(name)
        monkeypatch.setattr(module, "open_dataset", lambda *a, **k: Listed(made))
        (tmp_path / "manual" / FOLDERS[name]).mkdir(parents=True)
    return tmp_path, made


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_prepared_samples_keep_order_and_content(faked, name):
    folder, made = faked
    prepared = prepare(name, folder / "manual", folder / "data")
    assert prepare(name, folder / "nowhere", folder / "data") == prepared  # not made again
    assert {path.name.split(".")[-1].split("-")[0] for path in prepared.iterdir()} == {"array_record", "json"}
    for split in SPLITS[name]:
        reader = open_prepared(prepared, split)
        assert len(reader) == len(made)
        for index, wanted in enumerate(made):
            assert_same(reader[index], wanted)
    with pytest.raises(IndexError, match="samples 0 to 4, got 5"):
        reader[5]
    with pytest.raises(IndexError):
        reader[-1]


def test_variants_of_stb_are_kept_apart(faked, monkeypatch):
    folder, made = faked
    asked = []

    def open_dataset(name, root, split, **options):
        asked.append((name, root.name, split, options))
        return Listed(made[:1])

    monkeypatch.setattr(builder_module("stb"), "open_dataset", open_dataset)
    first = prepare("stb", folder / "manual", folder / "data")
    second = prepare("stb", folder / "manual", folder / "data", config="BB_left-ge")
    assert first != second
    assert asked[0] == ("stb", "STB", "train", {"camera": "SK", "wrist": "bihand"})
    assert asked[-1] == ("stb", "STB", "test", {"camera": "BB_left", "wrist": "ge"})


def test_poses_of_freihand_need_the_mean_pose(faked, monkeypatch):
    folder, made = faked
    asked = []

    def open_dataset(name, root, split, **options):
        asked.append(options)
        return Listed(made[:1])

    monkeypatch.setattr(builder_module("freihand"), "open_dataset", open_dataset)
    plain = prepare("freihand", folder / "manual", folder / "data")
    assert not any((folder / "manual" / FOLDERS["freihand"]).iterdir())
    assert [options["hands_mean"] for options in asked] == [None, None]
    assert folder / "data" in asked[0]["cache"].parents
    posed = prepare("freihand", folder / "manual", folder / "data", hands_mean=np.ones(45))
    assert (plain.parent.name, posed.parent.name) == ("plain", "posed")
    assert asked[-1]["hands_mean"].sum() == 45
    with pytest.raises(InputError, match="needs MANO's mean pose"):
        prepare("freihand", folder / "manual", folder / "other", config="posed")


def test_a_loader_reads_prepared_samples(faked):
    pytest.importorskip("grain", reason="the loader wants Grain")
    from handtailor_jax.data.loader import Loader, LoaderConfig

    folder, made = faked
    reader = open_prepared(prepare("rhd", folder / "manual", folder / "data"), "training")
    config = LoaderConfig(size=16, batch=2, epochs=1, threads=2)
    for one, other in zip(Loader([reader], config), Loader([Listed(made)], config), strict=True):
        assert one.names == other.names
        np.testing.assert_array_equal(one.batch.image, other.batch.image)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BUILDERS))
@pytest.mark.parametrize("there", ["nothing", "an empty folder", "another archive"])
def test_a_missing_archive_is_one_clear_line(tmp_path, name, there):
    builder_module(name)
    if there != "nothing":
        (tmp_path / "manual").mkdir()
    if there == "another archive":
        (tmp_path / "manual" / "other").mkdir()
    with pytest.raises(InputError) as caught:
        prepare(name, tmp_path / "manual", tmp_path / "data")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{name}: ")
    assert str(tmp_path / "manual") in message
    assert f"into the manual directory as {FOLDERS[name]}" in message


def test_an_unreadable_sample_stops_with_its_own_line(faked, monkeypatch):
    class Broken(Listed):
        def __getitem__(self, index):
            raise InputError("color/00000.png: is not an image: unpack the archive again")

    folder, made = faked
    monkeypatch.setattr(builder_module("rhd"), "open_dataset", lambda *a, **k: Broken(made))
    with pytest.raises(InputError, match=r"^color/00000\.png: is not an image: unpack the archive again"):
        prepare("rhd", folder / "manual", folder / "data")
    with pytest.raises(InputError, match="holds no prepared dataset"):
        open_prepared(folder / "data" / "rhd" / "1.0.0", "training")


def test_unknown_names_are_refused(faked):
    folder, _ = faked
    with pytest.raises(InputError, match="choose one of freihand, rhd, stb"):
        prepare("mnist", folder, folder)
    with pytest.raises(InputError, match="choose one of SK-bihand, "):
        prepare("stb", folder / "manual", folder / "data", config="IR")
    prepared = prepare("rhd", folder / "manual", folder / "data")
    with pytest.raises(InputError, match="choose one of evaluation, training"):
        open_prepared(prepared, "test")


def test_a_damaged_record_is_named():
    class Damaged(list):
        def __getitem__(self, index):
            raise OSError("bad checksum\nand more")

    with pytest.raises(InputError, match=r"^rhd training: sample 1 cannot be read \(bad checksum\): prepare it again$"):
        TfdsReader(Damaged([{}, {}]), "rhd training")[1]


# --- miniature archives ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """A manual directory with all three archives in small."""
    pytest.importorskip("scipy", reason="STB's labels are read with scipy")
    manual = tmp_path_factory.mktemp("manual")
    write_rhd(manual / FOLDERS["rhd"])
    write_stb(manual / FOLDERS["stb"], frames=1)
    write_freihand_fixture(manual / FOLDERS["freihand"], truth="sibling")
    return manual


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("rhd", None, {}),
        ("stb", None, {}),
        ("stb", "BB_right-palm", {}),
        ("freihand", None, {}),
        ("freihand", None, {"hands_mean": np.linspace(-0.1, 0.1, 45)}),
    ],
)
def test_prepared_archives_equal_the_plain_readers(archives, tmp_path, name, config, options):
    prepared = prepare(name, archives, tmp_path / "data", config=config, **options)
    plain = {
        "rhd": lambda split: {"mask": True},
        "stb": lambda split: {"camera": "SK"} if config is None else {"camera": "BB_right", "wrist": "palm"},
        "freihand": lambda split: {"mask": split == "training", "cache": tmp_path / "cache", **options},
    }
    for split in SPLITS[name]:
        found = open_prepared(prepared, split)
        wanted = open_dataset(name, archives / FOLDERS[name], split, **plain[name](split))
        assert len(found) == len(wanted) > 0
        for index in range(len(wanted)):
            assert_same(found[index], wanted[index])
    assert (found[0].pose is not None) == bool(options)


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


def test_tensorflow_need_not_be_importable(tmp_path):
    builder_module("rhd")
    (tmp_path / "manual" / "RHD_published_v2").mkdir(parents=True)
    code = (
        "import importlib.util, numpy as np\n"
        "assert importlib.util.find_spec('tensorflow') is None\n"
        "from handtailor_jax.data.sample import Sample\n"
        "from handtailor_jax.data.tfds import rhd\n"
        "from handtailor_jax.data.tfds.reader import open_prepared, prepare\n"
        "picture = np.arange(300).astype(np.uint8).reshape(10, 10, 3)\n"
        "sample = Sample('a', picture, np.ones((21, 2), np.float32), np.ones(21, bool), None, None, True)\n"
        "rhd.open_dataset = lambda *a, **k: [sample]\n"
        "folder = prepare('rhd', Path(sys.argv[1]) / 'manual', Path(sys.argv[1]) / 'data')\n"
        "found = open_prepared(folder, 'evaluation')[0]\n"
        "assert np.array_equal(found.image, picture) and found.joints is None and found.mirrored\n"
        "print(json.dumps('tensorflow' in sys.modules))\n"
    )
    assert run(code, ["tensorflow"], tmp_path) is False


def test_without_tensorflow_datasets_the_remedy_is_named():
    code = (
        "from handtailor_jax.data.tfds.reader import open_prepared\n"
        "from handtailor_jax.errors import InputError\n"
        "try:\n    open_prepared(Path('.'), 'training')\n"
        "except InputError as error:\n    print(json.dumps(str(error)))\n"
    )
    message = run(code, ["tensorflow_datasets"])
    assert "pip install 'handtailor-jax[datasets]'" in message
    assert "\n" not in message


def test_importing_the_readers_of_prepared_datasets_is_light():
    code = (
        "import handtailor_jax.data.tfds.reader, handtailor_jax.data.tfds.examples, handtailor_jax.data.loader\n"
        "print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    )
    assert not {"grain", "tensorflow_datasets", "array_record", "cv2"} & set(run(code, []))

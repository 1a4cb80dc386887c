"""Weight files: saving and loading, and files that are refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.weights import load_weights, module_structure, provenance, save_weights

TINY = dataclasses.replace(
    HandModuleConfig.small(),
    image_size=32,
    channels=8,
    depth=1,
    shape_channels=8,
    shape_levels=1,
    shape_hidden=(8,),
    ik_hidden=(8,),
)
SOURCE = {"data": "synthetic hands", "commit": "abc", "licence": "Apache-2.0"}


@pytest.fixture(scope="module")
def module():
    rng = np.random.default_rng(0)
    graphdef, variables = module_structure(TINY)
    numbers = [
        (place, variable.replace(jnp.asarray(rng.uniform(0.1, 1.0, variable.shape), jnp.float32)))
        for place, variable in variables.items()
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(numbers))


@pytest.fixture(scope="module")
def saved(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, module, SOURCE)
    return path


def flat(module):
    return {".".join(map(str, place)): variable for place, variable in nnx.to_flat_state(nnx.state(module))}


def test_loaded_equals_saved(module, saved):
    loaded = load_weights(saved)
    assert loaded.config == module.config
    wanted, got = flat(module), flat(loaded)
    assert list(got) == list(wanted)
    for name, variable in wanted.items():
        assert type(got[name]) is type(variable)
        np.testing.assert_array_equal(np.asarray(got[name][...]), np.asarray(variable[...]), strict=True)
    assert provenance(saved) == SOURCE
    assert [file.name for file in saved.parent.iterdir()] == [saved.name], "no temporary file is left"


def test_the_loaded_module_runs_in_evaluation_mode(module, saved):
    loaded = load_weights(saved)
    assert all(part.use_running_average for _, part in nnx.iter_graph(loaded) if isinstance(part, nnx.BatchNorm))


def test_names_are_paths(saved):
    with safetensors.safe_open(saved, framework="numpy") as file:
        names = set(file.keys())
    assert {"stacks_2d.0.head.kernel", "iknet.mlp.hidden.0.norm.mean"} <= names


def test_nothing_is_left_where_writing_fails(module, tmp_path):
    (tmp_path / "none").write_text("a file, not a folder")
    with pytest.raises(InputError, match=r"none/w.safetensors: cannot be written"):
        save_weights(tmp_path / "none" / "w.safetensors", module, {})
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match=r"cannot be written"):
        save_weights(tmp_path / "folder.safetensors", module, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.safetensors", "none"]


@pytest.fixture
def parts(saved):
    with safetensors.safe_open(saved, framework="numpy") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def changed_config(**changes):
    def change(metadata, tensors):
        metadata["config"] = json.dumps(json.loads(metadata["config"]) | changes)

    return change


def without(name):
    return lambda metadata, tensors: tensors.pop(name)


def replaced(name, make):
    return lambda metadata, tensors: tensors.update({name: make(tensors.get(name))})


KERNEL = "stacks_2d.0.head.kernel"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata, tensors: metadata.clear(), "does not contain weights of a hand module"),
        (lambda metadata, tensors: metadata.update(format="pt"), "does not contain weights of a hand module"),
        (lambda metadata, tensors: metadata.update(version="7"), "format version 7, this program reads 1"),
        (lambda metadata, tensors: metadata.pop("config"), "configuration cannot be read"),
        (lambda metadata, tensors: metadata.update(config="{"), "configuration cannot be read"),
        (lambda metadata, tensors: metadata.update(config="3"), "configuration cannot be read"),
        (lambda metadata, tensors: metadata.update(config="{}"), "configuration lacks 'batch_axis'"),
        (changed_config(colour="red"), "has the unknown field 'colour'"),
        (changed_config(channels="8"), "channels = 8"),
        (changed_config(ik_hidden=[8.0]), r"ik_hidden = \(8.0,\)"),
        (changed_config(stem="blue"), "stem = blue"),
        (changed_config(dtype="int8"), "dtype = int8"),
        (changed_config(batch_axis=3), "batch_axis = 3"),
        (changed_config(image_size=31), "image_size 31 does not fit"),
        (changed_config(shape_blocks=10**9), "shape_blocks is 1000000000: give 1 to 16"),
        (
            changed_config(channels=10**4, shape_channels=10**4),
            r"has shape \(.*8,?\) instead of \(.*10000,?\)",
        ),
        (changed_config(ik_hidden=[8, 8]), "lacks 6 tensors .iknet.mlp.hidden.1"),
        (changed_config(ik_hidden=[]), r"has 6 tensors \(iknet.mlp.hidden.0\S*, ...\) too many"),
        (without(KERNEL), rf"lacks 1 tensor \({KERNEL}\) for its configuration"),
        (replaced("extra", lambda _: np.ones(2, np.float32)), r"has 1 tensor \(extra\) too many"),
        (replaced(KERNEL, lambda a: a.T.copy()), rf"{KERNEL} has shape \(21, 8\) instead of \(8, 21\)"),
        (replaced(KERNEL, lambda a: a.astype(np.int32)), f"{KERNEL} holds int32"),
        (replaced(KERNEL, lambda a: a * np.float32("nan")), f"{KERNEL} holds values that are not finite"),
    ],
)
def test_files_that_are_refused(parts, tmp_path, change, message):
    metadata, tensors = parts
    change(metadata, tensors)
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    with pytest.raises(InputError, match=message) as caught:
        load_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(saved, tmp_path):
    raw = saved.read_bytes()
    path = tmp_path / "w.safetensors"
    for content in (b"", b"hello", raw[:7], raw[:1000], raw[:-1], raw + b"x", b"\xff" * 100, b"PK\x03\x04" + raw):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"w.safetensors: is not a safetensors file or is truncated") as caught:
            load_weights(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"no such file"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"is a folder"):
        load_weights(tmp_path)

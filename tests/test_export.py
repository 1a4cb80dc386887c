"""Exported programs: the file gives the same results, also in a process without this package."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from handtailor_jax.errors import InputError
from handtailor_jax.export import export_hand_module, export_pipeline, export_tailor
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import crop_square
from handtailor_jax.tailor import TailorConfig, initialize
from handtailor_jax.tailor.placement import camera_mesh
from handtailor_jax.tailor.solve import LevenbergMarquardt
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import Camera


@pytest.fixture(scope="module")
def exported(hand, tmp_path_factory):
    return export_tailor(tmp_path_factory.mktemp("export") / "tailor.jaxexport", hand, platforms=("cpu",))


def description_of(path):
    return json.loads(path.with_name(path.name + ".json").read_text())


def program(path):
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def arguments(problems, path):
    arrays = {
        "keypoints_2d": problems.observation.keypoints_2d,
        "confidence": problems.observation.confidence,
        "pose": problems.pose,
        "betas": problems.betas,
        "root_depth": problems.root_depth,
        "intrinsics": problems.observation.camera.matrix,
    }
    return [arrays[entry["name"]] for entry in description_of(path)["inputs"]]


@pytest.fixture(scope="module")
def problems(simulated):
    return simulated(2, seed=5, noise="heavy_tailed")


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


@pytest.mark.slow
def test_from_the_file_in_this_process(exported, problems, expected):
    first = jax.tree.map(lambda leaf: leaf[:1], (problems, expected))  # the other test has another batch size
    agree(program(exported)(*arguments(first[0], exported)), first[1])


@pytest.mark.slow
def test_without_intrinsics(hand, simulated, tmp_path):
    path = export_tailor(tmp_path / "weak.jaxexport", hand, perspective=False, platforms=("cpu",))
    names = [entry["name"] for entry in description_of(path)["inputs"]]
    assert names == ["keypoints_2d", "confidence", "pose", "betas"]
    problems = simulated(3, seed=5, camera="weak_perspective")
    results = program(path)(*arguments(problems, path))
    distance = jnp.linalg.norm(results["keypoints"][..., :2] - problems.observation.keypoints_2d, axis=-1)
    assert jnp.mean(distance) < 3.0  # pixels; 9 before the tailor
    np.testing.assert_array_equal(results["translation"][:, 2], 0.0)


def elsewhere(path, arguments, folder):
    """Run a program in a process that cannot import this package or its dependencies, and return the outputs."""
    np.savez(folder / "in.npz", *arguments)
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("handtailor_jax", "flax", "jaxtyping", "cv2", "safetensors", "trimesh"):
            raise ImportError(name + " is not to be imported")
sys.meta_path.insert(0, Refuse())
from pathlib import Path; import jax, jax.export
program = jax.export.deserialize(bytearray(Path({str(path)!r}).read_bytes())).call
import numpy as np
with np.load({str(folder / "in.npz")!r}) as f: found = jax.jit(program)(*(f[name] for name in f.files))
np.savez({str(folder / "out.npz")!r}, **found)
assert not [name for name in sys.modules if name.startswith(("handtailor", "flax"))]
"""
    # -I: neither this folder nor what the environment points to can be imported from.
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "out.npz") as results:
        return dict(results)


def test_program_runs_without_this_package(exported, problems, expected, tmp_path):
    agree(elsewhere(exported, arguments(problems, exported), tmp_path), expected)


# ---------------------------------------------------------------------------------------------------------------------
# With a network

TINY = dataclasses.replace(
    HandModuleConfig.small(),
    image_size=32,
    channels=8,
    depth=1,
    shape_channels=8,
    shape_levels=1,
    shape_hidden=(8,),
    ik_hidden=(16,),
)
K = np.asarray([[600.0, 0.0, 320.0], [0.0, 580.0, 240.0], [0.0, 0.0, 1.0]], np.float32)


@pytest.fixture(scope="module")
def module():
    module = HandModule(TINY, rngs=nnx.Rngs(3))
    module.eval()
    return module


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)


def crop_arguments(image, box):
    """Return arguments for one crop with intrinsics and without, where the intrinsics are arbitrary."""
    crop, to_crop, _ = crop_square(image, box, TINY.image_size)
    perspective = np.asarray([1.0, 0.0], np.float32)
    return np.stack([crop, crop]), np.stack([K, np.full((3, 3), 7.0, np.float32)]), np.stack([to_crop] * 2), perspective


@pytest.mark.slow
def test_pipeline_equals_hand_tailor(module, hand, image, tmp_path):
    """One program for both kinds of camera, run without this package, equals `HandTailor`."""
    box = (200.0, 100.0, 256.0, 256.0)
    path = export_pipeline(tmp_path / "pipeline.jaxexport", module, hand, platforms=("cpu",))
    found = elsewhere(path, crop_arguments(image, box), tmp_path)
    hand_tailor = HandTailor(module, hand)
    for i, camera in enumerate((K, None)):
        result = hand_tailor.one(image, camera, box, "right", passes=1)
        tolerance = 1e-5 if i == 0 else 0.05  # metres; pixels
        np.testing.assert_allclose(found["keypoints_2d"][i], result.detected_keypoints_2d, atol=1e-2)
        np.testing.assert_allclose(found["confidence"][i], result.confidence, atol=1e-4)
        np.testing.assert_allclose(found["pose"][i], result.parameters.pose, atol=2e-3)
        np.testing.assert_allclose(found["betas"][i], result.parameters.betas, atol=2e-3)
        np.testing.assert_allclose(found["vertices"][i], result.vertices, rtol=1e-3, atol=20 * tolerance)
        np.testing.assert_allclose(found["translation"][i], result.parameters.translation, rtol=1e-3, atol=tolerance)
    description = description_of(path)
    assert [(entry["name"], entry["dtype"]) for entry in description["inputs"]] == [
        ("crops", "uint8"),
        ("intrinsics", "float32"),
        ("to_crop", "float32"),
        ("perspective", "float32"),
    ]
    assert {name: tuple(entry["shape"][1:]) for name, entry in description["outputs"].items()} == {
        name: array.shape[1:] for name, array in found.items()
    }
    assert np.shape(description["faces"]) == hand.faces.shape


def test_the_hand_module_alone(module, image, tmp_path):
    path = export_hand_module(tmp_path / "module.jaxexport", module, platforms=("cpu",))
    crops, intrinsics, _, perspective = crop_arguments(image, (0.0, 0.0, 480.0, 480.0))
    found = program(path)(crops, intrinsics, perspective)
    cameras = jax.tree.map(lambda *leaves: jnp.stack(leaves), Camera.from_matrix(K), Camera.weak_perspective())
    wanted = vars(jax.jit(lambda images: module(images, cameras))(jnp.asarray(crops / np.float32(255.0))))
    assert set(description_of(path)["outputs"]) == set(found)
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_all_platforms_in_one_file(module, hand, tmp_path):
    """Lowering for a platform does not need a device of it."""
    config = dataclasses.replace(TailorConfig.default(), solver=LevenbergMarquardt(iterations=1, damping=0.003))
    paths = [
        export_tailor(tmp_path / "tailor", hand, config),
        export_hand_module(tmp_path / "module", module),
        export_pipeline(tmp_path / "pipeline", module, hand, config),
    ]
    for path in paths:
        assert description_of(path)["platforms"] == ["cpu", "cuda", "tpu"]


def test_describes_itself(exported):
    description = description_of(exported)
    assert [entry["name"] for entry in description["inputs"]][:2] == ["keypoints_2d", "confidence"]
    assert description["inputs"][0]["shape"] == ["batch", 21, 2]
    assert description["outputs"]["keypoints"]["shape"] == ["batch", 21, 3]
    assert description["platforms"] == ["cpu"]
    assert description["jax"] == jax.__version__
    assert description["dtype"] == "float32"
    assert sorted(p.name for p in exported.parent.iterdir()) == [exported.name, exported.name + ".json"]


def test_unwritable(hand, tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(InputError, match="cannot be written"):
        export_tailor(file / "tailor", hand)

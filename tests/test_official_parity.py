"""`HandModuleConfig.official()` against the released network, stage by stage (tolerances: tests/golden/README.md)."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from handtailor_jax.detector.layers import max_pool_2
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.rotations import axis_angle_from_quaternion
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.iknet import normalise_joints, normalise_quaternion
from handtailor_jax.hand_module.layers import inference_form
from handtailor_jax.hand_module.official import load_official, weight_table
from handtailor_jax.hand_module.weights import module_structure
from handtailor_jax.skeleton import ROOT, WRIST
from handtailor_jax.types import Camera
from tests import goldens

TINY = dataclasses.replace(
    HandModuleConfig.official(),
    image_size=32,
    stem_channels=6,
    channels=8,
    depth=2,
    shape_channels=12,
    shape_levels=2,
    shape_hidden=(8,),
    ik_hidden=(8, 8),
)


@pytest.fixture(scope="module")
def golden():
    return goldens.golden("official_network")


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(goldens.network_images(), jnp.float32) / 255.0


@pytest.fixture(scope="module")
def weights():
    return goldens.official_weights()


@pytest.fixture(scope="module")
def official(weights):
    return load_official(weights)


def test_the_weights_are_those_of_the_golden_vectors(weights):
    """SHA-256 over name, shape, type and numbers of every tensor of the checkpoint, sorted by name."""
    tensors = weights | goldens.batch_counters(weights)
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tensor.shape}|{tensor.dtype.name}|".encode() + tensor.tobytes())
    assert len(tensors) == 1540
    assert digest.hexdigest() == "1d7fc09c78c1c899902224c1497821f633eab8fd238c146b54390ba60f1da6bd"


def stages(module, image, camera):
    """Return the estimate, and every map of the golden file by name in its layout."""
    maps = {}
    stem = module.stem
    x = image - 0.5
    maps["stem_conv1_sub"] = stem.embed.layer(x)
    maps["stem_bn_sub"] = stem.embed.norm(stem.embed.layer(x))
    maps["stem_layer1_sub"] = stem.fine(stem.embed(x))
    maps["stem_pool_sub"] = max_pool_2(stem.fine(stem.embed(x)))
    maps["stem_layer2_sub"] = stem.coarse[0](max_pool_2(stem.fine(stem.embed(x))))
    maps["stem_layer3_sub"] = features = stem(x)
    outputs = module.stacks(features)
    for i, stack in enumerate(outputs):
        name = f"{'2d' if i < 2 else '3d'}_stack{i % 2}"
        maps[f"hg{name}_sub"] = stack.hourglass
        maps[f"res{name}_sub"] = stack.residual
        maps[f"enc{name}_sub"] = stack.encoding
        heat = jax.nn.sigmoid(stack.heatmap_logits)
        maps[f"hm_stack{i}" if i < 2 else f"hm3d_stack{i % 2}"] = (
            heat if i < 2 else jnp.concatenate([heat, stack.depth_maps], axis=-1)
        )
    for i, level in enumerate(module.shape_branch.maps(outputs[-1].encoding)):
        maps[f"decoder_layer{i + 1}_sub"] = level
    return module(image, camera), {name: jnp.moveaxis(value, -1, 1) for name, value in maps.items()}


@pytest.fixture(scope="module")
def run(official, golden, image):
    """Both modes of the released network are one compiled program: the camera is a value."""
    graph, state = nnx.split(official)
    with jax.default_matmul_precision("highest"):
        program = jax.jit(lambda state, camera: stages(nnx.merge(graph, state), image, camera))
        results = {
            "persp": program(state, Camera.from_matrix(golden["intr"])),
            "wild": program(state, Camera.weak_perspective(jnp.ones(2))),
        }
    assert program._cache_size() == 1
    return jax.tree.map(np.asarray, results)


def close(actual, desired, atol):
    np.testing.assert_allclose(np.asarray(actual).reshape(desired.shape), desired, rtol=0, atol=atol)


def test_number_of_parameters(official):
    assert sum(array.size for array in jax.tree.leaves(nnx.state(official, nnx.Param))) == 24_932_042


@pytest.mark.slow
def test_maps(run, golden):
    """Every map of the golden file is compared."""
    _, maps = run["persp"]
    names = {key.removeprefix("persp/") for key in golden if key.startswith("persp/") and golden[key].ndim == 4}
    assert names == set(maps)
    for name, value in maps.items():
        desired = golden[f"persp/{name}"]
        if name.startswith("decoder"):
            step = value.shape[-1] // 4
            close(value[:, 5::8, ::step, ::step], desired, 1e-4 * np.abs(desired).max())
        elif name.startswith("hm"):
            close(value[:, :, 2::8, 2::8], desired, 1e-4)
        else:
            step = value.shape[-1] // desired.shape[-1]
            close(value[:, 5::8, 3::step, 3::step], desired, 3e-5 * np.abs(desired).max())


def check_estimate(estimate, golden, prefix):
    features = golden[f"{prefix}/feat"]
    close(estimate.shape_features, features, 1e-4 * np.abs(features).max())
    close(estimate.shape_vector, golden[f"{prefix}/shape_vector"], 3e-4)
    close(estimate.betas, golden[f"{prefix}/beta"], 3e-4)
    close(estimate.keypoints_2d, golden[f"{prefix}/kp2d"], 2e-3)
    close(estimate.keypoints_2d / 256.0, golden[f"{prefix}/uvd"][..., :2], 1e-5)
    # The tolerance is that of the joints in metres; dividing them by a short bone enlarges it.
    joints = golden[f"{prefix}/iknet_in"]
    close(normalise_joints(jnp.asarray(estimate.joints)), joints, 1e-4 * np.abs(joints).max())
    close(normalise_quaternion(jnp.asarray(estimate.raw_rotations)), golden[f"{prefix}/quat"], 3e-4)
    close(estimate.pose, golden[f"{prefix}/so3"], 5e-4)


@pytest.mark.slow
def test_perspective(run, golden):
    estimate, _ = run["persp"]
    check_estimate(estimate, golden, "persp")
    close(estimate.relative_depth, 3.0 * golden["persp/uvd"][..., 2] - 1.5, 3e-5)
    close(estimate.joints, golden["persp/joint_xyz"], 1e-4)
    close(estimate.joints[:, [ROOT]], golden["persp/joint_root"], 1e-4)
    close(np.linalg.norm(estimate.joints[:, WRIST] - estimate.joints[:, ROOT], axis=-1), golden["persp/bone_vis"], 1e-4)
    close(estimate.bone, golden["persp/bone"], 1e-4)
    close(estimate.root_depth, golden["persp/root"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 1])
def test_in_the_wild(run, golden, i):
    """Each image has its own scale, unlike in the released program, whose batches have the first image's scale."""
    estimate = jax.tree.map(lambda a: a[i], run["wild"][0])
    check_estimate(estimate, golden, f"wild{i}")
    close(estimate.relative_depth, 3.0 * golden[f"wild{i}/uvd"][..., 2], 3e-5)
    # Theirs are 256ths of the image and reference bones, ours are pixels.
    close(estimate.scale / 256.0, golden[f"wild{i}/s"], 1e-5)
    close(estimate.joints / estimate.scale, golden[f"wild{i}/joint"], 1e-4)


def test_axis_angles(golden):
    unit = normalise_quaternion(jnp.asarray(golden["quat_cases/raw"]))
    close(unit, golden["quat_cases/normalized"], 1e-6)
    close(axis_angle_from_quaternion(unit), golden["quat_cases/axis_angle"], 1e-6)


@pytest.fixture(scope="module")
def checkpoint():
    """A checkpoint of a tiny network of the released design, in the released layout."""
    rng = np.random.default_rng(0)
    return {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in goldens.checkpoint_shapes(TINY)}


def test_each_tensor_lands_where_the_table_says(checkpoint):
    extras = {"mano_layer.th_betas": np.zeros(10), "hand3d.hand2d.bn1.num_batches_tracked": np.int64(7)}
    module = load_official(checkpoint | extras, TINY)
    name = "hand3d.hand2dto3d.hg3d2b.1.hg.0.3.0.conv2"
    innermost = module.stacks_3d[1].hourglass.innermost.mix.layer
    np.testing.assert_array_equal(innermost.kernel[2, 1, 3, 0], checkpoint[f"{name}.weight"][0, 3, 2, 1])
    np.testing.assert_array_equal(innermost.bias[...], checkpoint[f"{name}.bias"])
    np.testing.assert_array_equal(module.stacks_2d[0].head.kernel[3, 5], checkpoint["hand3d.hand2d.hm.0.weight"][5, 3])
    np.testing.assert_array_equal(module.iknet.mlp.head.kernel[3, 5], checkpoint["iknet.invk_layers.6.weight"][5, 3])
    variance = module.stem.embed.norm.var[...]
    np.testing.assert_array_equal(variance, checkpoint["hand3d.hand2d.bn1.running_var"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("decoder.layer1.0.conv4.bias"), "decoder.layer1.0.conv4.bias: missing"),
        (lambda state: state.update({"classifier.weight": np.zeros(3)}), "classifier.weight: not a tensor"),
        (lambda state: state.update({"hand3d.hand2d.conv1.weight": np.zeros((6, 3, 5, 5))}), "conv1.weight: shape"),
        (lambda state: state.update({"hand3d.hand2d.hm.0.weight": np.zeros((21, 8))}), "hm.0.weight: shape"),
        (lambda state: state.update({"hand3d.hand2d.hm.0.weight": np.zeros((21, 8, 3, 3))}), "hm.0.weight: shape"),
        (lambda state: state.update({"iknet.invk_layers.0.bias": np.zeros((8, 1))}), "layers.0.bias: shape"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, change, message):
    state = dict(checkpoint)
    change(state)
    with pytest.raises(InputError, match=message) as error:
        load_official(state, TINY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [TINY, HandModuleConfig.official()])
def test_the_table_names_every_tensor_and_every_variable_once(config):
    table = list(weight_table(config))
    assert len({mapping.name for mapping in table}) == len(table)
    assert len({mapping.path for mapping in table}) == len(table)
    assert {mapping.path for mapping in table} == set(module_structure(config)[1])


@pytest.mark.slow
def test_inference_form_of_the_released_network(official, golden, image, run):
    graph, state = nnx.split(inference_form(official))
    with jax.default_matmul_precision("highest"):
        estimate = jax.jit(lambda state, camera: nnx.merge(graph, state)(image, camera))(
            state, Camera.from_matrix(golden["intr"])
        )
    check_estimate(estimate, golden, "persp")
    close(estimate.joints, golden["persp/joint_xyz"], 1e-4)

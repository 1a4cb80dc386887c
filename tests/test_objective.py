"""Numbers of training steps that were recorded from the implementation at commit d6ef9c7.

That implementation had one vector of all parameters, its own AdamW, and one function for all terms. Recorded with
jax 0.12; jax 0.10 resamples crops with other rounding, so the tolerances are those between the two versions. The
paper's losses of lengths were recorded again when their unit became the reference bone.
"""

import dataclasses
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from handtailor_jax.data.sample import Batch
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.weights import load_weights, save_weights
from handtailor_jax.skeleton import ROOT
from handtailor_jax.training.config import DataConfig, LossWeights, OptimizerConfig, TrainingConfig
from handtailor_jax.training.objective import objective
from handtailor_jax.training.prediction import predict
from handtailor_jax.training.state import create_network, create_optimizer, initial_state, moving_average
from handtailor_jax.training.step import compile_step
from tests.test_training_datasets import RHD, TINY


def fixed_weights(path, config=TINY):
    """Write weights that follow from the names of the variables."""
    module = HandModule(config, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    flat = []
    for place, variable in nnx.to_flat_state(state):
        name, shape = ".".join(map(str, place)), variable.shape
        noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)
        if len(shape) > 1:
            value = noise / np.sqrt(np.prod(shape[:-1]))
        elif name.endswith(("var", "scale")):
            value = 1.0 + 0.1 * np.abs(noise)
        elif name.startswith("iknet") and name.endswith("head.bias"):
            value = np.asarray(variable[...]) + 0.1 * noise
        else:
            value = 0.1 * noise
        flat.append((place, variable.replace(jnp.asarray(value, jnp.float32))))
    save_weights(path, nnx.merge(graph, nnx.from_flat_state(flat)), {})
    return path


def fixed_batch(hand, maps):
    """Noise images of posed hands, of which some joints, poses and cameras are unknown."""
    rng = np.random.default_rng(5)
    pose = (0.4 * rng.normal(size=(8, 16, 3))).astype(np.float32)
    betas = rng.normal(size=(8, 10)).astype(np.float32)
    keypoints = jax.jit(lambda hand, p, b: jax.vmap(lambda p, b: hand.shape(b).pose(p).keypoints)(p, b))
    joints = np.asarray(keypoints(hand, pose, betas))
    joints = joints - joints[:, [ROOT]] + np.asarray([0.03, -0.02, 0.5], np.float32)
    intrinsics = np.tile(np.asarray([[100.0, 0.0, 20.0], [0.0, 104.0, 28.0], [0.0, 0.0, 1.0]], np.float32), (8, 1, 1))
    points = np.einsum("bij,bkj->bki", intrinsics, joints)
    image = rng.integers(0, 256, (8, 48, 48, 3)).astype(np.uint8)
    has_joints, has_intrinsics, weight = np.ones(8, np.float32), np.ones(8, np.float32), np.ones((8, 21), np.float32)
    has_joints[:2], has_joints[5], has_intrinsics[4], weight[6, 3] = 0.0, 0.2, 0.0, 0.0
    has_3d = has_joints.copy()
    has_3d[2:4] = 0.0
    intrinsics[4] = np.eye(3)
    mask = np.zeros((8, 48, 48), np.uint8)
    mask[:, 8:40, 8:40] = 255
    return Batch(
        image=image,
        keypoints_2d=(points[..., :2] / points[..., 2:]).astype(np.float32),
        keypoint_weight=weight,
        intrinsics=intrinsics,
        joints=joints.astype(np.float32),
        pose=pose,
        betas=betas,
        has_joints=has_joints,
        has_3d=has_3d,
        has_intrinsics=has_intrinsics,
        mask=mask if maps else None,
        depth=np.where(mask > 0, np.float32(0.51), np.float32(0.0)) if maps else None,
    )


def norm(*trees):
    return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(trees)))


def take(config, hand, batch, steps):
    """Return the last state on the host and the metrics of every step."""
    network = create_network(config)
    state = initial_state(config, network)
    state, hands, batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (state, hand, batch))
    step = compile_step(config, tuple(jax.local_devices()[:1]))
    samples, metrics = np.arange(config.batch, dtype=np.int32)[None], []
    for _ in range(steps):
        state, found = step(state, batch, samples, hands)
        metrics.append(jax.tree.map(lambda leaf: np.asarray(leaf[0]), found))
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), state), metrics


def means(config, terms):
    pairs = zip(objective(config), terms, strict=True)
    return {loss.__name__: float(term.total / term.weight) for (_, loss), term in pairs}


RECORDED = {
    "heatmap": 4.42596,
    "keypoints_2d": 0.311692,
    "relative_depth": 0.562453,
    "joints": 2.23671,
    "rotations": 6.37601,
    "rotations_from_truth": 8.63377,
    "model_keypoints": 1.20106,
    "model_keypoints_2d": 0.276617,
    "betas": 1.28901,
    "bone": 0.195878,
    "paper_heatmap": 0.470654,
    "paper_betas": 4.60090,
    "paper_model_keypoints": 0.324437,
    "paper_depth": 0.118505,
    "paper_silhouette": 0.164845,
    # The estimated depth of an untrained network amplifies rounding.
    "root_depth": 1.73033,
    "paper_joints": 550.563,
    "paper_root_depth": 1634.22,
}


def assert_recorded(found):
    assert set(found) == set(RECORDED)
    for name, value in RECORDED.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-2 if "root" in name or "joints" in name else 1e-3)


def on_images(tmp_path):
    """A run with all terms but those through the tailor."""
    return TrainingConfig(
        module=TINY,
        steps=2,
        batch=8,
        data=DataConfig(size=48, test=64, dataset="rhd", dataset_folder=Path("rhd")),
        loss=RHD,
        detached=False,
        optimizer=OptimizerConfig(learning_rate=3e-3, warm_up=1),
        weights=fixed_weights(tmp_path / "fixed.safetensors"),
    )


# The design of the paper in small.
PAPER = dataclasses.replace(
    TINY,
    image_size=48,
    stem="strided",
    stem_channels=8,
    rotation="quaternion",
    decoding="paper",
)
EQ_7 = ("paper_heatmap", "paper_joints", "paper_root_depth", "paper_betas", "paper_model_keypoints")


@pytest.fixture(scope="module")
def eq_7(hand, tmp_path_factory):
    """The weighted terms of Eq. 7 on one batch, their gradients, the estimate and the batch."""
    module = load_weights(fixed_weights(tmp_path_factory.mktemp("eq_7") / "fixed.safetensors", PAPER))
    batch = fixed_batch(hand, maps=False)
    known = {name: np.ones(8, np.float32) for name in ("has_joints", "has_3d", "has_intrinsics")}
    batch = dataclasses.replace(batch, **known, intrinsics=np.tile(batch.intrinsics[:1], (8, 1, 1)))
    config = TrainingConfig(module=PAPER, loss=LossWeights.paper(), detached=False, heatmap_sigma=2.0)
    assert tuple(loss.__name__ for _, loss in objective(config)) == EQ_7
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def compute(params, hand, batch):
        def terms(params):
            module = nnx.merge(graph, params, rest, copy=True)
            module.train()
            prediction = predict(module, hand, batch, jax.random.split(jax.random.key(0), 8), config)
            found = ((weight, loss(prediction.batch, prediction)) for weight, loss in objective(config))
            values = jnp.stack([weight * term.total / term.weight for weight, term in found])
            return values, (values, prediction.estimate, prediction.model_keypoints)

        return jax.jacrev(terms, has_aux=True)(params)

    gradients, found = compute(params, hand, jax.tree.map(jnp.asarray, batch))
    return gradients, *jax.device_get(found), batch


def test_eq_7_by_hand(eq_7):
    """The assembled Eq. 7: P, d_root and P_mano are in lengths of the reference bone."""
    _, found, estimate, model, batch = eq_7
    center = (batch.keypoints_2d + 0.5) / 4.0 - 0.5
    rows, columns = (np.arange(12.0)[:, None, None], np.arange(12.0)[None, :, None])
    squares = (columns - center[:, None, None, :, 0]) ** 2 + (rows - center[:, None, None, :, 1]) ** 2
    error = sum((1.0 / (1.0 + np.exp(-h)) - np.exp(-squares / 8.0)) ** 2 for h in estimate.heatmap_logits)
    inside = ((batch.keypoints_2d > -0.5) & (batch.keypoints_2d < 47.5)).all(axis=-1) * batch.keypoint_weight
    kpt_2d = np.sum(error.mean(axis=(1, 2)) * inside) / np.sum(inside)

    def bones(points):
        return points / np.linalg.norm(points[:, 0] - points[:, 9], axis=-1)[:, None, None]

    truth, mano = bones(batch.joints), bones(model)
    lifted, depth = estimate.joints / estimate.bone[:, None, None], estimate.root_depth / estimate.bone
    kpt_3d, d_root = np.mean((lifted - truth) ** 2), np.mean((depth - truth[:, 9, 2]) ** 2)
    mano, relative = mano - mano[:, [9]], truth - truth[:, [9]]
    eq_6 = 100.0 * kpt_2d + 1.0 * kpt_3d + 0.1 * d_root
    expected = eq_6 + np.mean(np.sum(estimate.betas**2, axis=-1)) + 0.1 * np.mean((mano - relative) ** 2)
    np.testing.assert_allclose(np.sum(found), expected, rtol=1e-5)


def test_gradients_of_eq_7(eq_7):
    """Every term reaches what it should, none too weakly for Adam, whose eps is 1e-8."""
    gradients = nnx.to_pure_dict(eq_7[0])

    def size(part, number):
        squares = [np.square(leaf[number]) for leaf in jax.tree.leaves(gradients[part]) if leaf.ndim > 2]
        return np.sqrt(np.mean(np.concatenate([square.ravel() for square in squares])))

    reached = {
        "paper_heatmap": ("stem", "stacks_2d", "stacks_3d"),
        "paper_joints": ("stem", "stacks_2d", "stacks_3d", "shape_branch"),
        "paper_root_depth": ("stem", "stacks_2d", "stacks_3d", "shape_branch"),
        "paper_betas": ("stem", "stacks_2d", "stacks_3d", "shape_branch"),
        "paper_model_keypoints": ("stem", "stacks_2d", "stacks_3d", "shape_branch", "iknet"),
    }
    for number, name in enumerate(EQ_7):
        sizes = {part: size(part, number) for part in gradients}
        assert {part for part, value in sizes.items() if value > 0.0} == set(reached[name])
        assert min(sizes[part] for part in reached[name]) > 1e-4, (name, sizes)
    # In metres, the gradient of L_kpt3D was 1 % of that of L_beta.
    joints, betas = (size("stem", EQ_7.index(name)) for name in ("paper_joints", "paper_betas"))
    assert 0.1 * betas < joints < 10.0 * betas


@pytest.mark.slow
def test_steps_on_images(hand, tmp_path):
    """All terms and their gradients, with known and unknown joints, poses, cameras, masks and depth maps, twice."""
    config = on_images(tmp_path)
    state, metrics = take(config, hand, fixed_batch(hand, maps=True), 2)
    assert_recorded(means(config, metrics[0].losses.terms))
    np.testing.assert_allclose([each.losses.total for each in metrics], [780.781, 70.0718], rtol=1e-2)
    np.testing.assert_allclose([each.gradient_norm for each in metrics], [171222.0, 531.8], rtol=5e-2)
    np.testing.assert_allclose([each.learning_rate for each in metrics], [0.0, 3e-3], atol=1e-9)
    error = metrics[0].losses.keypoint_error
    np.testing.assert_allclose(error.total / error.weight, 0.249467, rtol=1e-3)
    assert int(state.step) == 2


@pytest.mark.parametrize(
    ("accumulate", "losses", "norms", "arrays"),
    [
        (1, (18.4539, 18.5498, 16.8865), (23.3655, 23.9701, 21.1671), (14.1042, 23.4408, 23.4774)),
        pytest.param(
            2,
            (18.2200, 18.5905, 17.1719),
            (22.4843, 24.6049, 21.9846),
            (14.1054, 23.2505, 23.2963),
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.slow
def test_steps_on_poses(hand, tmp_path, accumulate, losses, norms, arrays):
    """Optimiser, schedule, averages and accumulation over three steps."""
    config = TrainingConfig(
        module=TINY,
        stage="ik",
        steps=12,
        batch=64,
        data=DataConfig(size=48),
        loss=LossWeights(rotations_from_truth=1.0, model_keypoints=1.0),
        optimizer=OptimizerConfig(learning_rate=3e-3, warm_up=1, accumulate=accumulate),
        weights=fixed_weights(tmp_path / "fixed.safetensors"),
    )
    state, metrics = take(config, hand, None, 3)
    np.testing.assert_allclose([each.losses.total for each in metrics], losses, rtol=1e-4)
    np.testing.assert_allclose([each.gradient_norm for each in metrics], norms, rtol=1e-4)
    np.testing.assert_allclose([each.learning_rate for each in metrics], [0.0, 3e-3, 0.00294045], rtol=1e-5)
    found = [norm(tree) for tree in (state.params, state.statistics, state.average_statistics)]
    np.testing.assert_allclose(found[1:], arrays[1:], rtol=1e-4)


@pytest.mark.slow
def test_terms_through_the_tailor(hand, tmp_path):
    config = TrainingConfig(
        module=TINY,
        steps=10,
        batch=8,
        seed=3,
        data=DataConfig(size=48),
        loss=dataclasses.replace(LossWeights.ours(), tailored_keypoints=3.0, tailored_mesh=3.0),
        detached=False,
        optimizer=OptimizerConfig(learning_rate=1e-2, warm_up=2, weight_decay=1.0, clip=2.0),
        weights=fixed_weights(tmp_path / "fixed.safetensors"),
    )
    _, (metrics,) = take(config, hand, fixed_batch(hand, maps=False), 1)
    found = means(config, metrics.losses.terms)
    np.testing.assert_allclose([found["tailored_keypoints"], found["tailored_mesh"]], [1.02073, 1.02066], rtol=1e-2)
    np.testing.assert_allclose(metrics.losses.total, 25.9204, rtol=2e-3)
    np.testing.assert_allclose(metrics.gradient_norm, 1020.9, rtol=5e-2)


def test_only_kernels_decay():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    optimizer = create_optimizer(OptimizerConfig(learning_rate=0.5, warm_up=0, final=1.0, weight_decay=0.1), 10)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(params["bias"], 1.0)


def test_the_average_is_short_at_the_beginning():
    config = OptimizerConfig(average=0.9)
    average = {"kernel": jnp.zeros(1)}
    for step, expected in ((1, 1.0 - 2.0 / 11.0), (10_000, 0.1)):
        found = moving_average(average, {"kernel": jnp.ones(1)}, jnp.asarray(step, jnp.int32), config)
        np.testing.assert_allclose(found["kernel"], expected, rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_layers_keep_float32_parameters(hand, tmp_path):
    """The layers compute in bfloat16; parameters, statistics and gradients stay float32."""
    config = TrainingConfig(
        module=dataclasses.replace(TINY, dtype="bfloat16"),
        stage="ik",
        steps=12,
        batch=64,
        data=DataConfig(size=48),
        loss=LossWeights(rotations_from_truth=1.0, model_keypoints=1.0),
        optimizer=OptimizerConfig(learning_rate=3e-3, warm_up=1),
        weights=fixed_weights(tmp_path / "fixed.safetensors"),
    )
    # Flax's batch normalisation promotes bfloat16 implicitly.
    with jax.numpy_dtype_promotion("standard"):
        state, metrics = take(config, hand, None, 3)
    np.testing.assert_allclose([each.losses.total for each in metrics], (18.4539, 18.5498, 16.8865), rtol=2e-2)
    for tree in (state.params, state.statistics, state.average_params):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}

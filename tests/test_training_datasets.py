"""Training on RHD, STB and FreiHAND in small: what is not known is not learnt from, and what is wrong is one line."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.data.augmentation import AugmentationConfig, augment
from handtailor_jax.data.readers.freihand import open_freihand
from handtailor_jax.data.sample import Batch
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.freihand import freihand_joints
from handtailor_jax.geometry.mirror import mirror_pose
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.losses import shape_depth_loss, shape_silhouette_loss
from handtailor_jax.mano.loading import MANO_VERTICES, load_mano, recorded_poses
from handtailor_jax.skeleton import FINGER_JOINTS
from handtailor_jax.training.config import DataConfig, LossWeights, OptimizerConfig, TrainingConfig
from handtailor_jax.training.loop import Run
from handtailor_jax.training.prediction import posed_keypoints, rendered_maps, sampled_poses
from handtailor_jax.training.sources import evaluation_samples, open_sources
from handtailor_jax.training.state import learning_rate
from tests.fixtures import write_freihand_fixture, write_rhd, write_stb
from tests.goldens import chumpy_pickle, mano_arrays

pytest.importorskip("grain", reason="datasets are loaded with Grain")

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ("rhd", "stb", "freihand")

# Every term but those of maps and through the tailor.
ALL = dataclasses.replace(
    LossWeights.ours(), **{name: weight for name, weight in vars(LossWeights.paper()).items() if weight > 0.0}
)
MAPS = LossWeights(paper_depth=1.0, paper_silhouette=1.0)
# One program for all tests that take steps.
RHD = dataclasses.replace(ALL, paper_depth=1.0, paper_silhouette=1.0)
TINY = dataclasses.replace(
    HandModuleConfig.small(),
    image_size=32,
    channels=16,
    depth=1,
    shape_channels=16,
    shape_levels=1,
    shape_hidden=(16,),
    ik_hidden=(32,),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A miniature of each dataset."""
    root = tmp_path_factory.mktemp("datasets")
    write_rhd(root / "rhd")
    write_freihand_fixture(root / "freihand", truth="root")
    if "stb" in DATASETS:
        pytest.importorskip("scipy", reason="STB's labels are read with scipy")
        write_stb(root / "stb", frames=1)
    return root


def config(folders, dataset="rhd", **changes):
    data = DataConfig(
        cache=folders / "cache", size=48, test=64, dataset=dataset, dataset_folder=folders / dataset, dataset_share=1.0
    )
    settings = {
        "module": TINY,
        "steps": 2,
        "batch": 8,
        "data": data,
        "loss": ALL,
        "detached": False,
        "optimizer": OptimizerConfig(learning_rate=3e-3, warm_up=1),
        "log_every": 1,
        "evaluate_every": 2,
        "checkpoint_every": 2,
    }
    return TrainingConfig(**(settings | changes))


@pytest.fixture
def main(monkeypatch, capsys):
    """train.main on a configuration; returns the exit status and the lines on stderr that are no progress bars."""
    monkeypatch.syspath_prepend(str(ROOT))
    import train as script

    def run(config, out, *arguments):
        monkeypatch.setattr(script, "read_config", lambda path: config)
        status = 0
        try:
            script.main(["--config", "a.py", "--out", str(out), "--devices", "1", *arguments])
        except SystemExit as stop:
            status = stop.code
        lines = capsys.readouterr().err.splitlines()
        return status, [line for line in lines if line.strip() and "it/s" not in line and "step/s" not in line]

    return run


@pytest.mark.slow
def test_a_run_on_rhd(folders, tmp_path, main):
    status, errors = main(config(folders, loss=RHD), tmp_path / "run")
    assert (status, [line for line in errors if "error" in line]) == (0, [])
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    # Its joints are learnt from, its poses are not known.
    assert lines[0]["loss/joints"] > 0.0
    assert lines[0]["loss/paper_root_depth"] > 0.0
    assert lines[0]["loss/paper_depth"] > 0.0
    assert 0.0 < lines[0]["loss/paper_silhouette"] < 1.0
    assert lines[0]["loss/rotations"] == lines[0]["loss/betas"] == 0.0
    sets = {tuple(name.split("/")) for name in lines[-1] if "/" in name}
    assert {name for name, _ in sets} == {"rhd", "rhd_without_intrinsics"}
    figures = {figure for _, figure in sets}
    assert figures == {"pck10", "median_percent", "joints_aligned_mm", "model_aligned_mm", "joints_mm"}


@pytest.mark.slow
def test_nothing_is_learnt_from_what_is_unknown(folders, tmp_path, rng):
    """Half of the joints, and all but one of the poses, may be anything."""
    states = []
    for number in range(3):
        run = Run(config(folders, loss=RHD), tmp_path / str(number), devices=1)
        batch = jax.tree.map(np.array, run.from_host(0))
        batch.has_joints[:, :4] = 0.0
        batch.has_3d[:, 7] = 1.0
        if number == 0:
            # Behind the camera, where no turn leads to its axis, and without extent.
            batch.joints[:, :4] = (0.0, 0.0, -3.0)
        elif number == 1:
            batch.joints[:, :4] = 1e6 * rng.normal(size=(1, 4, 21, 3))
            batch.pose[:, :7] = 1e3 * rng.normal(size=(1, 7, 16, 3))
            batch.betas[:, :7] = 1e6
        else:
            batch.joints[:, 4] *= 1.5  # known
        for step in range(2):
            run.advance(step, batch)
        states.append(run.host_state())
        run.checkpoints.close()
    assert int(states[0].optimizer.total_notfinite) == 0
    for a, b in zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = (each.params["stem"]["embed"]["layer"]["kernel"] for each in (states[0], states[2]))
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize("dataset", DATASETS)
def test_what_is_known_of_each_dataset(dataset, folders, hand):
    host = open_sources(config(folders, dataset), hand)
    assert (host.count, config(folders, dataset).rendered) == (8, 0)
    batch = host.batch(3, range(8))
    assert batch.image.shape == (8, 48, 48, 3)
    assert batch.has_joints.all()
    assert batch.has_intrinsics.all()
    assert not batch.has_3d.any()
    # Whichever process asks: a step's samples follow from step and place.
    again = open_sources(config(folders, dataset), hand)
    parts = [again.batch(3, range(first, first + 4)) for first in (0, 4)]
    for whole, *halves in zip(jax.tree.leaves(batch), *map(jax.tree.leaves, parts), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert not np.array_equal(batch.image, host.batch(4, range(8)).image)
    tests = evaluation_samples(config(folders, dataset), hand)
    assert len(tests.image) == {"rhd": 5, "stb": 2, "freihand": 2}[dataset]
    spread = dataclasses.replace(config(folders, dataset).data, test=2)
    assert len(evaluation_samples(config(folders, dataset, data=spread), hand).image) == 2


def test_masks_and_depths_are_of_the_hand_and_move_with_it(folders, hand):
    plain = open_sources(config(folders), hand).batch(0, range(8))
    assert plain.mask is plain.depth is None
    host = open_sources(config(folders, loss=MAPS), hand).batch(0, range(8))
    np.testing.assert_array_equal(host.image, plain.image)
    # The miniature's masks cover the joints, whose depth there is the root's.
    keys = jax.random.split(jax.random.key(2), 8)
    settings = AugmentationConfig(drop_intrinsics=0.0)
    moved = jax.jit(lambda batch: augment(batch, keys, settings, 64))(jax.tree.map(jnp.asarray, host))
    for batch, size in ((host, 48), (moved, 16)):
        assert batch.mask.shape == batch.depth.shape == (8, size, size)
        keypoints = np.asarray(batch.keypoints_2d)
        at = np.round(keypoints if size == 48 else (keypoints + 0.5) / 4.0 - 0.5).astype(int)
        seen = ((at >= 0) & (at < size)).all(axis=-1)
        rows, at = np.arange(8)[:, None], np.clip(at, 0, size - 1)
        covered, depth = (np.asarray(maps)[rows, at[..., 1], at[..., 0]] for maps in (batch.mask, batch.depth))
        assert (covered[seen] > 0).mean() > 0.6
        root = np.broadcast_to(np.asarray(batch.joints)[:, 9:10, 2], depth.shape)
        known = seen & (depth > 0.0)
        assert known.sum() > 60
        np.testing.assert_allclose(depth[known], root[known], atol=1e-3)
    # Depths of what is not this hand are left out.
    assert not host.depth[host.mask == 0].any()


@pytest.mark.slow
def test_shape_losses_are_zero_at_the_truth(hand, rng):
    """A rendered hand explains its own maps; one of another shape does not, and its gradient leads back."""
    pose = np.zeros((2, 16, 3), np.float32)
    pose[:, 0] = [[0.3, 0.2, 0.1], [-0.4, 0.1, 0.5]]
    betas = np.zeros((2, 10), np.float32)
    keypoints = np.asarray(posed_keypoints(hand, jnp.asarray(betas), matrix_from_axis_angle(jnp.asarray(pose))))
    joints = keypoints - keypoints[:, 9:10] + np.asarray([0.0, 0.0, 0.5], np.float32)
    intrinsics = np.tile(np.asarray([[140.0, 0.0, 63.5], [0.0, 140.0, 63.5], [0.0, 0.0, 1.0]], np.float32), (2, 1, 1))
    ones = np.ones(2, np.float32)
    batch = Batch(
        image=np.zeros((2, 128, 128, 3), np.uint8),
        keypoints_2d=np.zeros((2, 21, 2), np.float32),
        keypoint_weight=np.ones((2, 21), np.float32),
        intrinsics=intrinsics,
        joints=joints.astype(np.float32),
        pose=pose,
        betas=betas,
        has_joints=ones,
        has_3d=ones,
        has_intrinsics=ones,
    )
    rotations = matrix_from_axis_angle(jnp.asarray(pose))

    @jax.jit
    def both(betas, seen):
        def losses(betas):
            maps = rendered_maps(hand, betas, rotations, batch, 32)
            observed = maps if seen is None else seen
            depth = shape_depth_loss(maps.depth, observed.depth)
            silhouette = shape_silhouette_loss(maps.silhouette, observed.silhouette)
            return jnp.stack([depth, silhouette]), maps

        (values, maps), gradients = losses(betas), jax.jacrev(lambda b: losses(b)[0])(betas)
        return values, gradients, maps

    truth = both(jnp.asarray(betas), None)[2]
    seen = dataclasses.replace(truth, depth=jnp.where(truth.silhouette > 0.5, truth.depth, 0.0))
    values, _, _ = both(jnp.asarray(betas), seen)
    np.testing.assert_allclose(values, 0.0, atol=1e-6)
    other = jnp.asarray(betas).at[:, 0].set(2.0)
    values, gradients, _ = both(other, seen)
    assert (np.asarray(values) > 1e-6).all()
    assert np.isfinite(gradients).all()
    nearer, _, _ = both(other.at[:, 0].set(1.0), seen)
    assert (np.asarray(nearer) < np.asarray(values)).all()
    # Every hand's loss leads its own shape back.
    own = np.asarray(gradients)[:, range(2), range(2)]
    assert (own[..., 0] > 0.0).all()


def test_freihand_has_poses_with_mano(folders, hand):
    """Its poses are relative to MANO's mean pose, and its shapes mean something to MANO alone."""
    mano = dataclasses.replace(hand, skin=jax.tree.map(lambda leaf: leaf[..., :MANO_VERTICES], hand.skin))
    named = config(folders, "freihand", hand=Path("MANO_RIGHT.pkl"))
    assert open_sources(named, mano).batch(0, range(8)).has_3d.all()
    assert not open_sources(named, hand).batch(0, range(8)).has_3d.any()
    assert evaluation_samples(named, mano).has_3d.all()


def test_freihand_without_the_truth_of_its_evaluation(hand, tmp_path):
    write_freihand_fixture(tmp_path / "freihand")
    with pytest.raises(InputError, match="the evaluation split has no joints: unpack FreiHAND_pub_v2_eval beside it"):
        evaluation_samples(config(tmp_path, "freihand"), hand)


@pytest.mark.slow
def test_a_missing_depth_map_is_one_line(tmp_path, main):
    write_rhd(tmp_path / "rhd")
    (tmp_path / "rhd" / "training" / "depth" / "00001.png").unlink()
    status, errors = main(config(tmp_path, loss=MAPS), tmp_path / "run")
    assert (status, len(errors)) == (2, 1)
    assert "depth/00001.png" in errors[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_share": 0.5}, "loss.paper_depth needs the masks and depth maps of data.dataset"),
        ({"dataset": None, "dataset_folder": None}, "loss.paper_depth needs the masks and depth maps"),
        ({"dataset": "freihand"}, "loss.paper_depth needs depth maps, which FreiHAND lacks"),
    ],
)
def test_shape_losses_where_nothing_is_known(changes, message, tmp_path):
    data = dataclasses.replace(config(tmp_path).data, **changes)
    with pytest.raises(InputError, match=message):
        config(tmp_path, data=data, loss=MAPS)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("rhd", "rhd: no such folder: give the path of RHD_published_v2, unpacked"),
        ("stb", "labels: no such folder: give the folder of STB, unpacked"),
        ("freihand", "freihand: no such folder: download FreiHAND_pub_v2 and give its folder"),
    ],
)
def test_a_missing_folder_is_one_line(dataset, message, tmp_path, main):
    status, errors = main(config(tmp_path, dataset), tmp_path / "run")
    assert (status, len(errors)) == (2, 1)
    assert errors[0].startswith(f"train.py: error: {tmp_path}")
    assert errors[0].endswith(message)


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_an_unreadable_sample_is_one_line(split, tmp_path, main):
    write_rhd(tmp_path / "rhd")
    file = tmp_path / "rhd" / split / "color" / "00002.png"
    file.write_bytes(file.read_bytes()[:300])
    status, errors = main(config(tmp_path), tmp_path / "run")
    assert (status, len(errors)) == (2, 1)
    assert f"sample 2: {file}: is not an image that can be read" in errors[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_folder": None}, "data.dataset is set but data.dataset_folder is not"),
        ({"dataset": None}, "data.dataset_folder is set but data.dataset is not"),
        ({"dataset_share": 0.0}, "data.dataset_share is a share above 0"),
        ({"photographs": Path()}, "data.dataset_share and data.photograph_share add up to 1.25"),
    ],
)
def test_datasets_that_cannot_be_meant(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config(tmp_path).data, **changes)


def test_shares_that_do_not_fit_the_batch_or_the_hand(tmp_path):
    few = dataclasses.replace(config(tmp_path).data, dataset_share=0.05)
    with pytest.raises(InputError, match=r"dataset_share 0\.05 of batch 8 is not one sample"):
        config(tmp_path, data=few)
    half = dataclasses.replace(few, dataset_share=0.5)
    with pytest.raises(InputError, match="hand is set, but rendered samples"):
        config(tmp_path, data=half, hand=Path("MANO_RIGHT.pkl"))


def test_configurations_of_the_paper(monkeypatch):
    """The schedule is the paper's: epochs, learning rates, and the weights of Eq. 6 and 7."""
    monkeypatch.syspath_prepend(str(ROOT))
    import train as script

    first, poses, last = (
        script.read_config(ROOT / "configs" / f"paper_{stage}.py") for stage in ("keypoints", "iknet", "end_to_end")
    )
    for each, stage, rate in ((first, "keypoints", 3e-4), (poses, "ik", 3e-4), (last, "end_to_end", 3e-5)):
        assert each.stage == stage
        assert each.module == dataclasses.replace(HandModuleConfig.official(), decoding="paper")
        assert not each.detached
        schedule = learning_rate(each.optimizer, each.steps)
        np.testing.assert_allclose([schedule(step) for step in (0, 1, each.steps - 1)], rate, rtol=1e-6)
    assert poses.betas_std == 3.0
    for each in (first, last):
        assert each.data.dataset == "rhd"
        assert each.data.counts(each.batch).dataset == each.batch
        assert 0 <= each.steps * each.batch - 100 * 41_258 < each.batch
        assert each.augmentation.drop_intrinsics == 0.0
    # 100 epochs of the other datasets, in the docstring.
    text = (ROOT / "configs" / "paper_keypoints.py").read_text()
    for samples in (15_000, 130_240):
        assert f"--steps {math.ceil(100 * samples / first.batch)}" in text
    eq_6 = LossWeights(paper_heatmap=100.0, paper_joints=1.0, paper_root_depth=0.1, bone=0.1)
    assert first.loss == eq_6
    assert last.loss == dataclasses.replace(eq_6, paper_betas=1.0, paper_model_keypoints=0.1)


def test_freihands_joints_in_training(mano, folders, rng):
    """FreiHAND's ground truth is compared with its own definition of the joints: on its chain MANO differs by mm."""
    pose = jnp.asarray(0.3 * rng.normal(size=(4, 16, 3)), jnp.float32)
    betas = jnp.asarray(rng.normal(size=(4, 10)), jnp.float32)
    rotations = matrix_from_axis_angle(pose)
    vertices = jax.jit(jax.vmap(lambda b, r: mano.shape(b).articulate(r).skin().vertices))(betas, rotations)
    truth = freihand_joints(mano, np.asarray(vertices))
    assert config(folders, "freihand").freihand_joints
    assert not config(folders, "rhd").freihand_joints
    np.testing.assert_allclose(posed_keypoints(mano, betas, rotations, True), truth, atol=1e-6)
    assert np.abs(posed_keypoints(mano, betas, rotations) - truth).max() > 1e-3


def write_recorded(path, count=6):
    """Write a made-up MANO file that carries poses, and return the poses."""
    coefficients = 0.3 * np.random.default_rng(5).standard_normal((count, 45))
    arrays = {**mano_arrays(), "hands_coeffs": coefficients}
    np.savez(path, **arrays)
    return (arrays["hands_mean"] + coefficients @ arrays["hands_components"]).reshape(count, 15, 3)


def test_mano_files_carry_poses(tmp_path, mano_path):
    poses = write_recorded(tmp_path / "MANO_RIGHT.npz")
    np.testing.assert_allclose(recorded_poses(tmp_path / "MANO_RIGHT.npz"), poses, atol=1e-6)
    (tmp_path / "MANO_RIGHT.npz").rename(tmp_path / "MANO_LEFT.npz")
    np.testing.assert_allclose(recorded_poses(tmp_path / "MANO_LEFT.npz"), mirror_pose(poses), atol=1e-6)
    assert recorded_poses(mano_path).shape == (0, 15, 3)
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(chumpy_pickle())
    assert recorded_poses(tmp_path / "MANO_RIGHT.pkl").shape == (1554, 15, 3)


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_poses_of_mano_that_are_none(tmp_path, value):
    path = tmp_path / "MANO_RIGHT.npz"
    np.savez(path, **{**mano_arrays(), "hands_coeffs": np.full((2, 45), value)})
    with pytest.raises(InputError, match="hands_coeffs holds a rotation of"):
        recorded_poses(path)


def iknet(folder, mano_path, **data):
    return TrainingConfig(
        module=TINY, stage="ik", batch=8, hand=mano_path, data=DataConfig(cache=folder / "cache", **data)
    )


def test_iknet_learns_from_recorded_poses(tmp_path, folders):
    path = tmp_path / "MANO_RIGHT.npz"
    poses = write_recorded(path)
    hand = load_mano(path)
    freihand = {"dataset": "freihand", "dataset_folder": folders / "freihand"}
    source = open_sources(iknet(tmp_path, path, **freihand), hand)
    reader = open_freihand(folders / "freihand", "training", hands_mean=np.asarray(hand.pose_mean), cache=tmp_path)
    fits = np.stack([reader[i].pose[1:] for i in range(len(reader.finger_poses))])
    np.testing.assert_allclose(source.poses, np.concatenate([poses, fits]), atol=1e-5)

    # Each joint turns by a share of its rotation in a recorded pose, which is the same for all joints of a finger.
    found = source.batch(3, range(8))
    shares = np.einsum("bja,nja->bjn", found, source.poses) / np.einsum("nja,nja->jn", *[source.poses] * 2)
    exact = np.abs(shares[..., None] * source.poses.swapaxes(0, 1)[None] - found[:, :, None]).max(-1) < 1e-5
    exact &= (shares >= 0.0) & (shares <= 1.0)
    for finger in FINGER_JOINTS:
        assert exact[:, np.asarray(finger) - 1].all(axis=1).any(axis=-1).all()
    np.testing.assert_array_equal(source.batch(3, [5, 2]), found[[5, 2]])
    assert np.abs(source.batch(4, range(8)) - found).max() > 0.01


def test_half_of_the_poses_are_recorded(hand):
    recorded = jnp.asarray(np.random.default_rng(0).normal(size=(64, 15, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 64)
    pose = jax.jit(lambda keys: sampled_poses(hand, keys, 3.0, recorded))(keys).pose
    same = np.abs(np.asarray(pose)[:, 1:] - recorded).max(axis=(1, 2)) < 1e-6
    assert 16 < same.sum() < 48


def test_freihands_poses_need_mano(tmp_path, folders, hand):
    freihand = {"dataset": "freihand", "dataset_folder": folders / "freihand"}
    with pytest.raises(InputError, match=r"set hand to MANO_RIGHT\.pkl"):
        open_sources(iknet(tmp_path, None, **freihand), hand)
    assert open_sources(iknet(tmp_path, None), hand).count == 0

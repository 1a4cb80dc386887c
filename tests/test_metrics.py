"""Metrics, alignments and protocols against what the literature publishes and against independent computations."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation

from handtailor_jax.evaluation import freihand, metrics
from handtailor_jax.evaluation.alignment import Protocol, align, anchor, scale_and_shift, similarity
from handtailor_jax.evaluation.metrics import GRID_20_50
from handtailor_jax.evaluation.report import published
from handtailor_jax.geometry.similarity import best_similarity
from handtailor_jax.mano.loading import MANO_VERTICES
from handtailor_jax.skeleton import ROOT, WRIST

BIHAND_RHD = np.asarray([
    0.84632035, 0.8734639, 0.89510892, 0.91172671, 0.9246439,
    0.93581553, 0.94473537, 0.95157799, 0.95726854, 0.96205139,
    0.96678187, 0.97109342, 0.97435763, 0.97694107, 0.97915794,
    0.98120025, 0.9830331, 0.9848834, 0.98652423, 0.98786831,
])  # fmt: skip
MIRROR = np.asarray([-1.0, 1.0, 1.0])


seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)


def hands(seed, n=3, noise=0.005, points=21):
    """Random point sets the size of a hand, as the truth, and a prediction near them; metres, camera frame."""
    rng = np.random.default_rng(seed)
    truth = 0.05 * rng.normal(size=(n, points, 3)) + [0.02, -0.01, 0.6]
    return truth + noise * rng.normal(size=truth.shape), truth


def moved(points, seed, rotate=True):
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(rng=rng).as_matrix() if rotate else np.eye(3)
    return rng.uniform(0.3, 3.0) * points @ rotation + rng.normal(size=3)


def worst(a, b):
    return np.abs(a - b).max()


# PCK and AUC


def test_published_curve_gives_its_published_area():
    assert metrics.curve_auc(BIHAND_RHD) == pytest.approx(0.95144524, abs=1e-8)
    assert BIHAND_RHD[0] == pytest.approx(0.846, abs=5e-4)
    assert GRID_20_50[0] == 20.0
    # Every value is a share of 2728 images x 21 joints: visibility was ignored.
    assert worst(BIHAND_RHD * 57288, np.round(BIHAND_RHD * 57288)) < 1e-3


@pytest.mark.parametrize(("grid", "area"), [(GRID_20_50, 0.9514), (metrics.GRID_20_50_ZB, 0.9546)])
def test_the_grid_alone_moves_the_area(grid, area):
    curve = np.interp(grid, GRID_20_50, BIHAND_RHD)
    assert metrics.curve_auc(curve, grid) == pytest.approx(area, abs=6e-5)


def test_the_published_curve_from_errors_that_have_it():
    counts = np.diff([0, *np.round(BIHAND_RHD * 57288).astype(int), 57288])
    errors = np.repeat([*GRID_20_50, 99.0], counts)
    errors = np.random.default_rng(0).permutation(errors).reshape(2728, 21)
    assert metrics.auc(errors) == pytest.approx(0.95144524, abs=1e-8)
    assert metrics.pck(errors, GRID_20_50) == pytest.approx(BIHAND_RHD, abs=1e-8)


@pytest.mark.parametrize(
    ("grid", "points", "first", "last"),
    [
        (GRID_20_50, 20, 20, 50),
        (metrics.GRID_20_50_ZB, 12, 400 / 19, 50),
        (metrics.GRID_20_50_ZHOU, 16, 20, 50),
        (metrics.GRID_0_50, 20, 0, 50),
        (metrics.GRID_0_50_FREIHAND, 100, 0, 50),
        (metrics.GRID_5_20, 20, 5, 20),
        (metrics.GRID_FIGURE_3A, 46, 5, 50),
    ],
)
def test_grids(grid, points, first, last):
    assert len(grid) == points
    assert (grid[0], grid[-1]) == pytest.approx((first, last))
    assert np.ptp(np.diff(grid)) < 1e-12
    assert metrics.auc(np.zeros((2, 21)), grid) == 1.0
    assert metrics.auc(np.full((2, 21), 50.1), grid) == 0.0


@few
@given(seeds)
def test_pck_rises_and_area_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    errors = rng.gamma(2.0, 10.0, size=(7, 21))
    counted = rng.random(errors.shape) < 0.7
    counted[0] = True
    grid = metrics.GRID_0_50
    curve = metrics.pck(errors, grid, counted)
    assert np.all(np.diff(curve) >= 0)
    areas, means = [], []
    for joint in range(21):
        mine = errors[counted[:, joint], joint]
        shares = [np.mean(mine <= t) for t in grid]
        areas.append(np.trapezoid(shares, grid) / 50.0)
        means.append(mine.mean())
    assert metrics.auc(errors, grid, counted) == pytest.approx(np.mean(areas), abs=1e-12)
    assert metrics.curve_auc(curve, grid) == pytest.approx(np.mean(areas), abs=1e-12)
    assert metrics.mean_error(errors, counted) == pytest.approx(np.mean(means), abs=1e-12)


def test_pck_counts_an_error_at_the_threshold_and_the_f_score_does_not():
    assert metrics.pck(np.full((1, 21), 20.0), np.asarray([20.0])) == [1.0]
    at = np.asarray([[0.0, 0.0, 0.0]])
    beyond = np.asarray([[0.0, 0.0, 0.25]])
    assert freihand.f_scores(at, beyond, (250.0, 250.1)).tolist() == [0.0, 1.0]


def test_joints_that_nothing_counts_are_left_out():
    errors = np.tile(np.arange(21.0), (3, 1))
    counted = np.zeros(errors.shape, bool)
    counted[:, 4], counted[0, 6] = True, True
    assert metrics.mean_error(errors, counted) == 5.0
    with pytest.raises(ValueError, match="selects no error"):
        metrics.mean_error(errors, np.zeros_like(counted))


# Gains


@few
@given(seeds)
def test_gain_lies_in_its_interval(seed):
    rng = np.random.default_rng(seed)
    before = rng.gamma(2.0, 6.0, size=(40, 21))
    after = before * rng.uniform(0.5, 1.1, size=before.shape)
    gain = metrics.auc_gain(before, after, resamples=200)
    assert gain == metrics.auc_gain(before, after, resamples=200)
    assert gain.before == metrics.auc(before, metrics.GRID_5_20)
    assert gain.after == metrics.auc(after, metrics.GRID_5_20)
    assert 0.0 < gain.low < gain.difference < gain.high


def test_gain_is_paired():
    # Every hand gains one step of the grid, 1 mm of 15: drawing hands in pairs leaves no variation.
    grid = np.arange(5.0, 21.0)
    before = np.tile(np.random.default_rng(0).integers(8, 18, size=(30, 1)), 21).astype(float)
    gain = metrics.auc_gain(before, before - 1.0, grid, resamples=50)
    assert (gain.low, gain.difference, gain.high) == pytest.approx((1 / 15, 1 / 15, 1 / 15))
    with pytest.raises(ValueError, match="same hands"):
        metrics.auc_gain(before, before[:5])


def test_reduction_ratio():
    before = np.asarray([[4.0, 8.0], [5.0, 5.0], [0.0, 0.0], [0.0, 0.0]])
    after = np.asarray([[2.0, 1.0], [6.0, 6.0], [0.0, 0.0], [1.0, 0.0]])
    assert metrics.reduction_ratio(before, after) == pytest.approx(np.asarray([0.75, -0.2, 0.0, -np.inf]))


# Alignments


@few
@given(seeds)
def test_lit_undoes_scale_and_shift_but_no_rotation(seed):
    predicted, truth = hands(seed)
    once = align(predicted, truth, "lit").predicted
    assert worst(align(moved(predicted, seed, rotate=False), truth, "lit").predicted, once) < 1e-9
    assert worst(align(moved(truth, seed, rotate=False), truth, "lit").predicted, truth) < 1e-9
    turned = truth @ Rotation.from_euler("y", 30, degrees=True).as_matrix()
    assert align(turned, truth, "lit").errors_mm.mean() > 5.0
    assert worst(once[:, ROOT], truth[:, ROOT]) < 1e-12
    bones = [np.linalg.norm(points[:, ROOT] - points[:, WRIST], axis=-1) for points in (once, truth)]
    assert worst(*bones) < 1e-12


@few
@given(seeds)
def test_root_undoes_a_shift_only(seed):
    predicted, truth = hands(seed)
    once = align(predicted, truth, "root").predicted
    assert worst(once, predicted - predicted[:, [ROOT]] + truth[:, [ROOT]]) < 1e-12
    assert worst(align(predicted + 0.3, truth, "root").predicted, once) < 1e-9
    assert align(1.5 * truth, truth, "root").errors_mm.mean() > 5.0


@few
@given(seeds)
def test_pa_undoes_similarities_but_no_reflection(seed):
    predicted, truth = hands(seed)
    assert worst(align(moved(truth, seed), truth, "pa").predicted, truth) < 1e-9
    once = align(predicted, truth, "pa").predicted
    assert worst(align(moved(predicted, seed), truth, "pa").predicted, once) < 1e-9
    assert align(truth * MIRROR, truth, "pa").errors_mm.mean() > 5.0
    assert np.all(np.linalg.det(best_similarity(truth * MIRROR, truth).rotation) > 0.0)
    for p, t, a in zip(predicted, truth, once, strict=True):
        rotation, _ = Rotation.align_vectors(t - t.mean(0), p - p.mean(0))
        turned = rotation.apply(p - p.mean(0))
        scale = (turned * (t - t.mean(0))).sum() / np.square(turned).sum()
        assert worst(scale * turned + t.mean(0), a) < 1e-6


def test_alignments_of_one_hand_equal_those_of_many_and_those_of_jax():
    predicted, truth = hands(3)
    for alignment in (similarity, scale_and_shift, anchor):
        many = alignment(predicted, truth)
        assert worst(many, np.stack([alignment(p, t) for p, t in zip(predicted, truth, strict=True)])) < 1e-12
        assert alignment(predicted.astype(np.float32), truth.astype(np.float32)).dtype == np.float32
        in_jax = alignment(jnp.asarray(predicted, jnp.float32), jnp.asarray(truth, jnp.float32))
        assert isinstance(in_jax, jax.Array)
        assert worst(np.asarray(in_jax), many) < 1e-5


def test_abs_leaves_everything_alone():
    predicted, truth = hands(4)
    aligned = align(predicted, truth, "abs", np.zeros((3, 21), bool))
    assert np.array_equal(aligned.predicted, predicted)
    assert np.array_equal(aligned.truth, truth)
    assert aligned.counted.all()


def test_zb_takes_the_palm_and_visible_joints_only():
    predicted, truth = hands(5)
    visible = np.ones((3, 21), bool)
    visible[0, 4] = visible[1, 0] = visible[2, [WRIST, ROOT]] = False
    aligned = align(predicted, truth, "zb", visible)
    palm = (truth[:, WRIST] + truth[:, ROOT]) / 2
    assert worst(aligned.truth[:, 0], palm) < 1e-12
    assert worst(aligned.predicted[:, 0], palm) < 1e-12
    assert np.array_equal(aligned.truth[:, 1:], truth[:, 1:])
    bones = [np.linalg.norm(p[:, ROOT + 1] - p[:, ROOT], axis=-1) for p in (aligned.predicted, truth)]
    assert worst(*bones) < 1e-12
    expected = np.ones((3, 21), bool)
    expected[0, 4] = expected[2, [WRIST, ROOT]] = False
    assert np.array_equal(aligned.counted, expected)
    predicted[0, 4] += 1.0
    seen, everything = (align(predicted, truth, "zb", mask) for mask in (visible, None))
    error = metrics.mean_error(seen.errors_mm, seen.counted)
    assert error < 100.0
    assert metrics.mean_error(everything.errors_mm, everything.counted) > error
    as_it_is = align(predicted, truth, "zb", visible, joint_0_is_palm=True)
    assert np.array_equal(as_it_is.truth, truth)
    assert np.array_equal(as_it_is.counted, visible)


def test_ge_is_told_root_and_bone():
    _, truth = hands(6)
    assert worst(align(moved(truth, 6, rotate=False), truth, "ge").predicted, truth) < 1e-9


@pytest.mark.parametrize("name", ["lit", "root", "pa", "abs", "zb", "ge"])
def test_all_zeros_are_far_from_everything_but_a_number(name):
    _, truth = hands(7)
    aligned = align(np.zeros_like(truth), truth, name)
    assert np.isfinite(aligned.predicted).all()
    target = {"lit": truth[:, [ROOT]], "root": truth[:, [ROOT]], "pa": truth.mean(axis=1, keepdims=True)}.get(name)
    if target is not None:
        assert worst(aligned.predicted, target) < 1e-12


# Protocols


def test_a_protocol_prints_all_its_decisions():
    assert str(Protocol()) == (
        "align=lit grid=20-50 wrist=bihand hand=mask stb_camera=SK joints=model truth=box+intrinsics"
    )
    assert "truth=none" in str(Protocol(given_truth=()))


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (np.zeros((2, 21, 3)), np.zeros((3, 21, 3)), "both must have the same shape"),
        (np.zeros((2, 20, 3)), np.zeros((2, 20, 3)), r"must be \(n, 21, 3\)"),
        (np.zeros((21, 3)), np.zeros((21, 3)), r"must be \(n, points, 3\)"),
        (np.zeros((0, 21, 3)), np.zeros((0, 21, 3)), r"must be \(n, points, 3\)"),
        (np.zeros((1, 21, 3)), np.full((1, 21, 3), np.nan), "not finite"),
    ],
)
def test_bad_points(predicted, truth, message):
    with pytest.raises(ValueError, match=message):
        align(predicted, truth)


def test_bad_errors_and_masks():
    for errors in (np.zeros(21), np.zeros((0, 21))):
        with pytest.raises(ValueError, match=r"must be \(n, joints\)"):
            metrics.auc(errors)
    with pytest.raises(ValueError, match="the mask"):
        metrics.auc(np.zeros((2, 21)), counted=np.ones((2, 20), bool))
    with pytest.raises(ValueError, match="contain NaN"):
        metrics.auc(np.full((2, 21), np.nan))
    with pytest.raises(ValueError, match="has shape"):
        metrics.curve_auc(np.zeros(19))
    with pytest.raises(ValueError, match="visible has shape"):
        align(*hands(0), "zb", np.ones((3, 20), bool))


# FreiHAND


def scipy_aligned(truth, predicted):
    """The documented alignment, with SciPy's Procrustes."""
    t, p = truth - truth.mean(0), predicted - predicted.mean(0)
    size = np.linalg.norm(t)
    rotation, scale = orthogonal_procrustes(t / size, p / np.linalg.norm(p))
    return p / np.linalg.norm(p) @ rotation.T * scale * size + truth.mean(0)


def plain_f(a, b, threshold):
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    one, two = np.mean(distances.min(axis=1) < threshold), np.mean(distances.min(axis=0) < threshold)
    return 2 * one * two / (one + two) if one + two else 0.0


def freihand_data(seed, n=3):
    joints, true_joints = hands(seed, n)
    vertices, true_vertices = hands(seed + 1, n, points=MANO_VERTICES)
    # Unaligned figures that are neither all 0 nor all 1.
    return joints + 0.006, vertices + 0.004, true_joints, true_vertices


def test_freihand_equals_an_independent_computation():
    joints, vertices, true_joints, true_vertices = freihand_data(0)
    joints[1] = joints[1] * MIRROR
    score = freihand.freihand_score(joints, vertices, true_joints, true_vertices)
    for figure, p, t in ((score.joints, joints, true_joints), (score.vertices, vertices, true_vertices)):
        aligned = np.stack([scipy_aligned(b, a) for a, b in zip(p, t, strict=True)])
        assert worst(freihand.align_freihand(p, t).apply(p), aligned) < 1e-6
        for points, mean, auc in (
            (p, figure.mean_mm, figure.auc),
            (aligned, figure.aligned_mean_mm, figure.aligned_auc),
        ):
            errors = 1e3 * np.linalg.norm(points - t, axis=-1)
            assert mean == pytest.approx(errors.mean(), abs=1e-6)
            thresholds = np.linspace(0.0, 50.0, 100)
            curve = [np.mean(errors <= threshold) for threshold in thresholds]
            assert auc == pytest.approx(np.trapezoid(curve, thresholds) / 50.0, abs=1e-6)
    aligned = [scipy_aligned(t, p) for p, t in zip(vertices, true_vertices, strict=True)]
    for figure, clouds in ((score.f, vertices), (score.f_aligned, aligned)):
        for mine, threshold in ((figure.at_5, 0.005), (figure.at_15, 0.015)):
            expected = np.mean([plain_f(c, t, threshold) for c, t in zip(clouds, true_vertices, strict=True)])
            assert 0.0 < expected < 1.0
            assert mine == pytest.approx(expected, abs=1e-6)


def test_freihand_accepts_mirrored_hands_and_the_proper_figure_catches_them():
    _, _, joints, vertices = freihand_data(1)
    score = freihand.freihand_score(joints * MIRROR, vertices * MIRROR, joints, vertices)
    assert score.joints.aligned_mean_mm < 1e-9
    assert score.vertices.aligned_mean_mm < 1e-9
    assert score.f_aligned.at_5 == 1.0
    assert score.proper_pa_mpjpe_mm > 5.0


def test_freihand_all_zeros_go_to_the_centroid():
    _, _, joints, vertices = freihand_data(2)
    score = freihand.freihand_score(np.zeros_like(joints), np.zeros_like(vertices), joints, vertices)
    for figure, truth in ((score.joints, joints), (score.vertices, vertices)):
        spread = np.linalg.norm(truth - truth.mean(axis=1, keepdims=True), axis=-1)
        assert figure.aligned_mean_mm == pytest.approx(1e3 * spread.mean())
        assert figure.mean_mm == pytest.approx(1e3 * np.linalg.norm(truth, axis=-1).mean())
    assert (score.f.at_5, score.f.at_15) == (0.0, 0.0)
    # A constant is a single point too, though its deviations from the mean are not exactly zero.
    constant = np.full_like(joints, 0.1)
    assert worst(freihand.align_freihand(constant, joints).apply(constant), joints.mean(axis=1, keepdims=True)) < 1e-9


def test_another_mesh_takes_the_transform_of_the_joints():
    _, _, joints, vertices = freihand_data(3)
    other = vertices[:, ::2]
    predicted = [moved(points, 3) for points in (joints, other)]
    score = freihand.freihand_score(*predicted, joints, vertices)
    assert score.vertices is None
    assert score.joints.aligned_mean_mm < 1e-9
    assert score.f.at_5 == 0.0
    expected = np.mean([plain_f(o, v, 0.005) for o, v in zip(other, vertices, strict=True)])
    assert score.f_aligned.at_5 == pytest.approx(expected)


def test_predictions_file(tmp_path):
    joints, vertices = hands(0)[0], hands(1, points=30)[0]
    path = tmp_path / "pred.json"
    path.write_text("older")
    freihand.write_predictions(path, joints, vertices)
    content = json.loads(path.read_text())
    assert len(content) == 2
    assert np.array_equal(content[0], joints)
    assert np.array_equal(content[1], vertices)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="3 hands of joints but 2 meshes"):
        freihand.write_predictions(path, joints, vertices[:2])


def test_a_cut_off_write_leaves_the_older_file(tmp_path, monkeypatch):
    def fails(temporary, *_):
        temporary.write_bytes(b"[[")
        raise KeyboardInterrupt

    path = tmp_path / "pred.json"
    path.write_text("older")
    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(KeyboardInterrupt):
        freihand.write_predictions(path, hands(0)[0], hands(1)[0])
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


# Published numbers


def test_published_numbers_agree_across_tables():
    rows = {method: numbers for method, *numbers in published("table1")}
    assert rows["Yang (BiHand)"][1] == round(metrics.curve_auc(BIHAND_RHD), 3)
    losses, energies = published("table4_left")[0], published("table4_right")[0]
    assert rows["HandTailor"][1] == losses[1] == energies[1]
    assert published("table2")[0][2] == losses[2]

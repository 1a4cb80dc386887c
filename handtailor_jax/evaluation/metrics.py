"""Distances between predicted and true hands, and the figures that the literature makes of them.

Points are (n, 21, 3) in metres, n samples; distances come out in millimetres as (n, 21) float64. The routine is that of
datasets 2.1: every figure is taken per joint over the samples, then averaged over the joints. Masks `counted` (n, 21)
say which distances take part (datasets 2.2, `zb`: visible joints only); a joint that no sample counts is left out of
the average. Nothing here aligns anything, see `protocols`.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from handtailor_jax.skeleton import REFERENCE_BONE, ROOT

FloatArray = npt.NDArray[np.float64]
Points = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

MILLIMETRES = 1e3
"""Millimetres in a metre."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Thresholds of a PCK curve. They are part of the metric (datasets 2.1): never mix grids in one column."""

    name: str
    thresholds: tuple[float, ...]
    """Millimetres, increasing, at least two."""

    def __post_init__(self) -> None:
        if len(self.thresholds) < 2 or any(b <= a for a, b in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise ValueError(f"grid {self.name!r} needs at least two thresholds, each larger than the one before")


def _even(low: float, high: float, points: int) -> tuple[float, ...]:
    return tuple(np.linspace(low, high, points).tolist())


GRID_20_50 = Grid("20-50", _even(20.0, 50.0, 20))
"""BiHand's and HandTailor's (Table 1), the default."""
GRID_20_50_ZB = Grid("20-50/zb", _even(0.0, 50.0, 20)[8:])
"""Zimmermann and Brox: the upper 12 points of `0-50`, so that it begins at 21.05 mm."""
GRID_20_50_ZHOU = Grid("20-50/zhou", _even(20.0, 50.0, 16))
"""Zhou et al.: every 2 mm."""
GRID_0_50 = Grid("0-50", _even(0.0, 50.0, 20))
GRID_0_50_FREIHAND = Grid("0-50/freihand", _even(0.0, 50.0, 100))
GRID_5_20 = Grid("5-20", _even(5.0, 20.0, 20))
"""HandTailor's Tables 2 to 4. Nobody published its number of points; the same routine with other bounds is assumed."""
GRID_FIGURE_3A = Grid("5-50", _even(5.0, 50.0, 46))
"""The curve of HandTailor's Figure 3a, every millimetre."""

GRIDS = {
    grid.name: grid
    for grid in (
        GRID_20_50,
        GRID_20_50_ZB,
        GRID_20_50_ZHOU,
        GRID_0_50,
        GRID_0_50_FREIHAND,
        GRID_5_20,
        GRID_FIGURE_3A,
    )
}
"""The grids above by name."""


@dataclasses.dataclass(frozen=True)
class EndPointError:
    """Mean and median distance, millimetres: each per joint, then averaged over joints (datasets 2.1)."""

    mean_mm: float
    median_mm: float


@dataclasses.dataclass(frozen=True)
class CameraSpaceError:
    """How far hands are from their true places in the camera frame, without any alignment (`abs`)."""

    joints: EndPointError
    """Of all joints."""
    root: EndPointError
    """Of joint 9 alone: where the hand is."""
    scale_percent: float
    """Median over samples of by how much the reference bone 0-9 is too long or too short, percent of its length."""


@dataclasses.dataclass(frozen=True)
class Gain:
    """A figure before and after the tailor on the same samples, and how sure the difference is."""

    before: float
    after: float
    low: float
    """Lower end of the 95 % interval of `difference`, paired bootstrap over samples."""
    high: float
    """Upper end of it."""

    @property
    def difference(self) -> float:
        """`after` minus `before`: an improvement is positive for an AUC, negative for an error."""
        return self.after - self.before


@dataclasses.dataclass(frozen=True)
class TailorGain:
    """What the tailor changes (HandTailor, Table 2)."""

    grid: Grid
    auc: Gain
    epe_mm: Gain
    """Mean end point error, millimetres."""


def distances_mm(predicted: Points, truth: Points) -> FloatArray:
    """Distances (n, k) in millimetres between points (n, k, 3) in metres of one frame.

    Raises:
        ValueError: if shapes differ, are not (n, k, 3), or a coordinate is not finite.
    """
    predicted, truth = paired_points(predicted, truth)
    return MILLIMETRES * np.linalg.norm(predicted - truth, axis=-1)


def epe(errors_mm: Points, counted: Mask | None = None) -> EndPointError:
    """Mean and median end point error of distances (n, k) in millimetres (datasets 2.1).

    Raises:
        ValueError: on wrong shapes, or if nothing is counted.
    """
    columns = _columns(*_errors_and_mask(errors_mm, counted))
    return EndPointError(
        mean_mm=float(np.mean([column.mean() for column in columns])),
        median_mm=float(np.mean([np.median(column) for column in columns])),
    )


def joint_pck(errors_mm: Points, thresholds: tuple[float, ...], counted: Mask | None = None) -> FloatArray:
    """For each joint that is counted anywhere the share of samples with distance <= threshold, (joints, thresholds).

    Args:
        errors_mm: (n, k) distances, millimetres.
        thresholds: Millimetres.
        counted: (n, k) which of the distances take part; all when None.

    Raises:
        ValueError: on wrong shapes, or if nothing is counted.
    """
    columns = _columns(*_errors_and_mask(errors_mm, counted))
    return np.stack([_share_within(column, thresholds) for column in columns])


def pck(errors_mm: Points, thresholds: tuple[float, ...], counted: Mask | None = None) -> FloatArray:
    """The PCK curve, (thresholds,): `joint_pck` averaged over joints (datasets 2.1).

    Raises:
        ValueError: on wrong shapes, or if nothing is counted.
    """
    return joint_pck(errors_mm, thresholds, counted).mean(axis=0)


def auc(errors_mm: Points, grid: Grid = GRID_20_50, counted: Mask | None = None) -> float:
    """Area under the PCK curve of distances (n, k) in millimetres, 1 at best (datasets 2.1).

    Raises:
        ValueError: on wrong shapes, or if nothing is counted.
    """
    curves = joint_pck(errors_mm, grid.thresholds, counted)
    return float(np.mean([curve_auc(curve, grid) for curve in curves]))


def curve_auc(curve: Points, grid: Grid = GRID_20_50) -> float:
    """Area under a ready PCK curve (thresholds,), whose values lie in 0 ... 1, by the trapezoidal rule.

    Raises:
        ValueError: if the curve does not have a value for each of the grid's thresholds.
    """
    x = np.asarray(grid.thresholds)
    y = np.asarray(curve, np.float64)
    if y.shape != x.shape:
        raise ValueError(f"a curve on grid {grid.name!r} has shape {x.shape}, not {y.shape}")
    return float(np.trapezoid(y, x) / np.trapezoid(np.ones_like(x), x))


def reprojection_error(points: Points, intrinsics: Points, keypoints_2d: Points) -> FloatArray:
    """Distances (n, k) in pixels between projected points and observed keypoints (HandTailor, Eq. 2; Figure 3b).

    A point that is not in front of the camera has no image: its error is infinite.

    Args:
        points: (n, k, 3) metres, camera frame (x right, y down, z forward).
        intrinsics: K (3, 3) or (n, 3, 3), pixels, of the image that `keypoints_2d` refers to.
        keypoints_2d: (n, k, 2) pixels (u, v).

    Raises:
        ValueError: on wrong shapes or values that are not finite.
    """
    points = _points("points", points)
    k, observed = np.asarray(intrinsics, np.float64), np.asarray(keypoints_2d, np.float64)
    if k.shape not in ((3, 3), (len(points), 3, 3)):
        raise ValueError(f"intrinsics must be (3, 3) or ({len(points)}, 3, 3), not {k.shape}")
    if observed.shape != (*points.shape[:2], 2):
        raise ValueError(f"keypoints_2d must be {(*points.shape[:2], 2)} to go with the points, not {observed.shape}")
    image = points @ np.swapaxes(k, -1, -2)
    in_front = points[..., 2] > 0.0
    pixels = image[..., :2] / np.where(in_front, image[..., 2], 1.0)[..., None]
    return np.where(in_front, np.linalg.norm(pixels - observed, axis=-1), np.inf)


def camera_space_error(predicted: Points, truth: Points) -> CameraSpaceError:
    """Errors of unaligned joints (n, 21, 3) in metres, camera frame.

    Raises:
        ValueError: on wrong shapes or values that are not finite.
    """
    predicted, truth = paired_points(predicted, truth, joints=21)
    errors = distances_mm(predicted, truth)
    wrist, root = REFERENCE_BONE
    found, true = (np.linalg.norm(points[:, wrist] - points[:, root], axis=-1) for points in (predicted, truth))
    if not np.all(true > 0.0):
        raise ValueError("the reference bone 0-9 of some true hand has no length")
    return CameraSpaceError(
        joints=epe(errors),
        root=epe(errors[:, ROOT, None]),
        scale_percent=100.0 * float(np.median(np.abs(found / true - 1.0))),
    )


def tailor_gain(
    before_mm: Points,
    after_mm: Points,
    grid: Grid = GRID_5_20,
    counted: Mask | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> TailorGain:
    """AUC and mean error before and after the tailor, with 95 % intervals of the differences (HandTailor, Table 2).

    The bootstrap draws samples, not joints, with replacement, and the same ones for before and after: the joints of one
    hand are not independent, and its errors before and after still less.

    Args:
        before_mm: (n, k) distances of the hand module, millimetres.
        after_mm: (n, k) distances after the tailor, of the same samples.
        grid: Thresholds of the AUC.
        counted: (n, k) which distances take part; all when None.
        resamples: How many times samples are drawn.
        seed: Of the draws: the same seed gives the same interval.

    Raises:
        ValueError: on wrong shapes, if nothing is counted, or without resamples.
    """
    before, mask = _errors_and_mask(before_mm, counted)
    after, _ = _errors_and_mask(after_mm, counted)
    if before.shape != after.shape:
        raise ValueError(f"before {before.shape} and after {after.shape} must be errors of the same samples and joints")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    rng = np.random.default_rng(seed)
    n = len(before)
    counts = mask.astype(np.float64)
    differences = np.stack([_credit(after, grid) - _credit(before, grid), after - before])
    gains = np.where(mask, differences, 0.0)
    found = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
        total = weights @ counts
        drawn = total > 0.0
        # A draw may miss every sample in which anything is counted; it then says nothing.
        if drawn.any():
            found.append(((weights @ gains)[:, drawn] / total[drawn]).mean(axis=-1))
    low, high = np.percentile(found, (2.5, 97.5), axis=0)
    return TailorGain(
        grid=grid,
        auc=Gain(auc(before, grid, mask), auc(after, grid, mask), float(low[0]), float(high[0])),
        epe_mm=Gain(epe(before, mask).mean_mm, epe(after, mask).mean_mm, float(low[1]), float(high[1])),
    )


def reduction_ratio(before_mm: Points, after_mm: Points, counted: Mask | None = None) -> FloatArray:
    """Share of each sample's 3D error that the tailor removes, (n,): 1 all of it, negative where it adds some.

    The ordinate of HandTailor's Figure 3b. A sample without any error before has 0 if there is none after either,
    else minus infinity; one in which nothing is counted has NaN.

    Args:
        before_mm: (n, k) distances, millimetres.
        after_mm: (n, k) distances of the same samples after the tailor.
        counted: (n, k) which distances take part; all when None.

    Raises:
        ValueError: on wrong shapes, or if nothing is counted.
    """
    before, mask = _errors_and_mask(before_mm, counted)
    after, _ = _errors_and_mask(after_mm, counted)
    if before.shape != after.shape:
        raise ValueError(f"before {before.shape} and after {after.shape} must be errors of the same samples and joints")
    # Both means are over the same joints, so their quotient is that of the sums.
    old, new = (np.where(mask, errors, 0.0).sum(axis=-1) for errors in (before, after))
    share = 1.0 - new / np.where(old > 0.0, old, 1.0)
    share = np.where(old > 0.0, share, np.where(new > 0.0, -np.inf, 0.0))
    return np.where(mask.any(axis=-1), share, np.nan)


def paired_points(predicted: Points, truth: Points, joints: int | None = None) -> tuple[FloatArray, FloatArray]:
    """Both point sets (n, k, 3) as float64.

    Raises:
        ValueError: if shapes differ, are not (n, k, 3) with k = `joints` where that is given, there is no sample, or a
            coordinate is not finite.
    """
    p, t = _points("predicted", predicted), _points("truth", truth)
    if p.shape != t.shape:
        raise ValueError(f"predicted {p.shape} and truth {t.shape} must have the same shape")
    if joints is not None and p.shape[1] != joints:
        raise ValueError(f"points must be (n, {joints}, 3), not {p.shape}")
    return p, t


def _points(name: str, points: Points) -> FloatArray:
    array = np.asarray(points, np.float64)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"{name} must be (n, points, 3) with n and points at least 1, not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has coordinates that are not finite")
    return array


def _errors_and_mask(errors_mm: Points, counted: Mask | None) -> tuple[FloatArray, Mask]:
    errors = np.asarray(errors_mm, np.float64)
    if errors.ndim != 2 or 0 in errors.shape:
        raise ValueError(f"errors must be (n, joints) with n and joints at least 1, not {errors.shape}")
    mask = np.ones(errors.shape, np.bool_) if counted is None else counted
    if mask.shape != errors.shape:
        raise ValueError(f"the mask {mask.shape} must have the shape of the errors {errors.shape}")
    if np.isnan(errors[mask]).any():
        raise ValueError("errors have values that are not numbers")
    if not mask.any():
        raise ValueError("no error is counted")
    return errors, mask


def _columns(errors: FloatArray, mask: Mask) -> list[FloatArray]:
    """The counted errors of each joint that has any."""
    return [column[chosen] for column, chosen in zip(errors.T, mask.T, strict=True) if chosen.any()]


def _share_within(errors: FloatArray, thresholds: tuple[float, ...]) -> FloatArray:
    """Share of errors (n,) that are <= each threshold."""
    return np.searchsorted(np.sort(errors), np.asarray(thresholds), side="right") / len(errors)


def _credit(errors: FloatArray, grid: Grid) -> FloatArray:
    """What each single error contributes to the AUC: that of a curve which steps from 0 to 1 at this error.

    The AUC of a joint is the mean of its samples' credits, since integration is linear.
    """
    x = np.asarray(grid.thresholds)
    gaps = np.diff(x)
    share = np.concatenate([gaps, [0.0]]) + np.concatenate([[0.0], gaps])
    # At position i: all that thresholds i and above carry; past the last one, nothing.
    from_here = np.concatenate([np.cumsum(share[::-1])[::-1], [0.0]]) / share.sum()
    return from_here[np.searchsorted(x, errors, side="left")]

"""Distances between predicted and true hands, and the metrics that the literature computes from them.

Points are (n, k, 3) in metres for n hands; distances are (n, k) in millimetres, float64. Every metric is computed per
joint over the hands, then averaged over the joints (docs/protocols.md). Masks `counted` (n, k) select the distances
that take part; a joint without any is left out of the average. `alignment` aligns points beforehand. Arrays of
wrong shape or with values that are not finite raise a ValueError.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Points = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

MILLIMETRES = 1e3
"""Millimetres in a metre."""


# Thresholds of PCK curves in millimetres. The grid is part of the metric: AUCs on different grids cannot be compared.
GRID_20_50 = np.linspace(20.0, 50.0, 20)
"""Grid of BiHand and of HandTailor's Table 1; the default."""
GRID_20_50_ZB = np.linspace(0.0, 50.0, 20)[8:]
"""Grid of Zimmermann and Brox: the upper 12 thresholds of `GRID_0_50`, which begin at 21.05 mm."""
GRID_20_50_ZHOU = np.linspace(20.0, 50.0, 16)
"""Grid of Zhou et al.: every 2 mm."""
GRID_0_50 = np.linspace(0.0, 50.0, 20)
GRID_0_50_FREIHAND = np.linspace(0.0, 50.0, 100)
GRID_5_20 = np.linspace(5.0, 20.0, 20)
"""Grid of HandTailor's Tables 2 to 4. Its number of thresholds is not published; 20, as in `GRID_20_50`, is assumed."""
GRID_FIGURE_3A = np.linspace(5.0, 50.0, 46)
"""Grid of HandTailor's Figure 3a: every millimetre."""


class Gain(NamedTuple):
    """Change of a metric between two sets of errors of the same hands."""

    before: float
    after: float
    low: float
    """Lower end of the 95 % confidence interval of the difference."""
    high: float
    """Upper end of the interval."""

    @property
    def difference(self) -> float:
        """The metric after minus the metric before."""
        return self.after - self.before


def distances_mm(predicted: Points, truth: Points) -> FloatArray:
    """Return the distances (n, k) in millimetres between points (n, k, 3) in metres of one frame."""
    predicted, truth = paired_points(predicted, truth)
    return MILLIMETRES * np.linalg.norm(predicted - truth, axis=-1)


def mean_error(errors_mm: Points, counted: Mask | None = None) -> float:
    """Return the end point error (EPE): the mean distance per joint, averaged over joints, in millimetres."""
    return float(np.mean([column.mean() for column in _columns(errors_mm, counted)]))


def pck(errors_mm: Points, grid: FloatArray, counted: Mask | None = None) -> FloatArray:
    """Return the PCK curve (thresholds,): the share of hands with distance <= threshold, averaged over joints."""
    columns = [np.sort(column) for column in _columns(errors_mm, counted)]
    return np.mean([np.searchsorted(column, grid, side="right") / len(column) for column in columns], axis=0)


def auc(errors_mm: Points, grid: FloatArray = GRID_20_50, counted: Mask | None = None) -> float:
    """Return the area under the PCK curve of distances (n, k) in millimetres, between 0 and 1."""
    return curve_auc(pck(errors_mm, grid, counted), grid)


def curve_auc(curve: Points, grid: FloatArray = GRID_20_50) -> float:
    """Return the area under a PCK curve (thresholds,) by the trapezoidal rule, between 0 and 1."""
    y = np.asarray(curve, np.float64)
    if y.shape != grid.shape:
        raise ValueError(f"the curve has shape {y.shape}: the grid needs {grid.shape}")
    return float(np.trapezoid(y, grid) / (grid[-1] - grid[0]))


def auc_gain(
    before_mm: Points, after_mm: Points, grid: FloatArray = GRID_5_20, *, resamples: int = 1000, seed: int = 0
) -> Gain:
    """Return the AUC of distances (n, k) before and after the tailor, with an interval by paired bootstrap.

    The bootstrap draws hands, not joints, and the same hands before and after, because the joints of one hand are not
    independent of each other and its errors before and after are not either.
    """
    before, after = _paired_errors(before_mm, after_mm)
    # Integration is linear, so the AUC is the mean of the AUCs of all single errors.
    differences = (_contribution(after, grid) - _contribution(before, grid)).mean(axis=-1)
    random, n = np.random.default_rng(seed), len(differences)
    drawn = [differences[random.integers(n, size=n)].mean() for _ in range(resamples)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Gain(auc(before, grid), auc(after, grid), float(low), float(high))


def _contribution(errors: FloatArray, grid: FloatArray) -> FloatArray:
    """Return the AUC of each single error: the area under a curve that steps from 0 to 1 at this error."""
    weights = np.diff(grid, append=grid[-1]) + np.diff(grid, prepend=grid[0])
    return (errors[..., None] <= grid) @ weights / weights.sum()


def reduction_ratio(before_mm: Points, after_mm: Points) -> FloatArray:
    """Return the share (n,) of each hand's error that the tailor removes: 1 at best, negative if the error grows.

    This is the vertical axis of HandTailor's Figure 3b. For a hand without error before the tailor it is 0 if there
    is none afterwards, else minus infinity.
    """
    before, after = (errors.sum(axis=-1) for errors in _paired_errors(before_mm, after_mm))
    share = 1.0 - after / np.where(before > 0.0, before, 1.0)
    return np.where(before > 0.0, share, np.where(after > 0.0, -np.inf, 0.0))


def paired_points(predicted: Points, truth: Points, joints: int | None = None) -> tuple[FloatArray, FloatArray]:
    """Return both point sets (n, k, 3) as float64; `joints` is the required number k, None for any."""
    p, t = as_points("predicted", predicted), as_points("truth", truth)
    if p.shape != t.shape:
        raise ValueError(f"predicted has shape {p.shape} and truth {t.shape}: both must have the same shape")
    if joints is not None and p.shape[1] != joints:
        raise ValueError(f"points have shape {p.shape}: they must be (n, {joints}, 3)")
    return p, t


def as_points(name: str, points: Points) -> FloatArray:
    """Return points (n, k, 3) as float64."""
    array = np.asarray(points, np.float64)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}: it must be (n, points, 3) with n and points at least 1")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has coordinates that are not finite: remove those hands")
    return array


def _paired_errors(before_mm: Points, after_mm: Points) -> tuple[FloatArray, FloatArray]:
    before, after = _errors(before_mm), _errors(after_mm)
    if before.shape != after.shape:
        raise ValueError(f"errors before {before.shape} and after {after.shape} must be of the same hands and joints")
    return before, after


def _errors(errors_mm: Points) -> FloatArray:
    errors = np.asarray(errors_mm, np.float64)
    if errors.ndim != 2 or 0 in errors.shape:
        raise ValueError(f"errors have shape {errors.shape}: they must be (n, joints) with n and joints at least 1")
    return errors


def _columns(errors_mm: Points, counted: Mask | None) -> list[FloatArray]:
    """Return the counted errors of each joint that has any."""
    errors = _errors(errors_mm)
    mask = np.ones(errors.shape, np.bool_) if counted is None else counted
    if mask.shape != errors.shape:
        raise ValueError(f"the mask has shape {mask.shape}: it must have the shape of the errors, {errors.shape}")
    if np.isnan(errors[mask]).any():
        raise ValueError("errors contain NaN: mask those joints or remove those hands")
    if not mask.any():
        raise ValueError("the mask selects no error: at least one must take part")
    return [column[chosen] for column, chosen in zip(errors.T, mask.T, strict=True) if chosen.any()]

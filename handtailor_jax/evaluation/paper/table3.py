"""Table 3: time and accuracy by iterations, for the paper's solver (Adam) and ours (Levenberg-Marquardt)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.evaluation.metrics import GRID_5_20, GRID_20_50, auc
from handtailor_jax.evaluation.paper.subjects import Hands, Proposals, Subject, rows, tailored
from handtailor_jax.evaluation.report import Cell, Claim, Findings, Table, milliseconds
from handtailor_jax.geometry.cameras import project
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.tailor.placement import camera_keypoints, camera_mesh
from handtailor_jax.tailor.presets import PRESETS, PresetName, TailorConfig
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import Camera, HandParameters


class PublishedIterations(NamedTuple):
    """A row of the paper's Table 3, on RHD."""

    iterations: int
    milliseconds: float
    """Time of one hand on an i7-8700."""
    auc_20_50: float
    auc_5_20: float


PUBLISHED = (
    PublishedIterations(10, 4.27, 0.952, 0.624),
    PublishedIterations(20, 8.02, 0.956, 0.653),
    PublishedIterations(50, 19.21, 0.956, 0.662),
    PublishedIterations(100, 39.53, 0.956, 0.666),
)


class _Variant(NamedTuple):
    preset: PresetName
    iterations: int
    config: TailorConfig


def table3(subject: Subject, rounds: int, iterations: Sequence[int], damped_iterations: Sequence[int]) -> Findings:
    """Return time and accuracy by iterations, and whether returns diminish after 20 of them.

    Args:
        subject: Method under evaluation.
        rounds: Number of timing rounds.
        iterations: Iterations of Adam. The statement is checked if 20 and 100 are among them.
        damped_iterations: Iterations of Levenberg-Marquardt.
    """
    proposals, before = subject.with_k.proposals, subject.with_k.before
    variants = [_variant("paper", count) for count in iterations]
    variants += [_variant("official", count) for count in iterations]
    variants += [_variant("default", count) for count in damped_iterations]
    times = milliseconds(
        [_fit_of_one(subject.hand, variant.config, rows(proposals, 0)) for variant in variants], rounds, subject.seed
    )
    reference = 20 if 20 in iterations else iterations[0]
    base = times[iterations.index(reference)]

    body: list[tuple[Cell, ...]] = [("ours: before", 0.0, math.nan, *_scores(subject, before))]
    auc_5_20: dict[tuple[PresetName, int], float] = {}
    for variant, took in zip(variants, times, strict=True):
        scores = _scores(subject, tailored(subject.hand, proposals, variant.config))
        auc_5_20[variant.preset, variant.iterations] = scores[1]
        body.append((f"ours: {variant.preset}", float(variant.iterations), took / base, *scores))
    [twenty] = [row.milliseconds for row in PUBLISHED if row.iterations == 20]
    for row in PUBLISHED:
        name, ratio = f"published, RHD: {row.milliseconds:.2f} ms", row.milliseconds / twenty
        body.append((name, float(row.iterations), ratio, row.auc_20_50, row.auc_5_20, math.nan, math.nan))

    start = auc(subject.errors_mm(before), GRID_5_20)
    presets: tuple[PresetName, ...] = ("paper", "official") if {20, 100} <= set(iterations) else ()
    claims = [
        _diminishing(preset, auc_5_20[preset, 20] - start, auc_5_20[preset, 100] - auc_5_20[preset, 20])
        for preset in presets
    ]
    time_header = f"time / paper's {reference}"
    header = ("solver", "iterations", time_header, "AUC 20-50", "AUC 5-20", "EPE mm", "reprojection, px of 256")
    note = (
        f"Time: one hand in one compiled call, scale and mesh included; median of {rounds} interleaved rounds, as a "
        f"ratio to {reference} of the paper's iterations in the same run. Published times are of one i7-8700."
    )
    return Findings((Table("table3", "Table 3: iterations", header, tuple(body), subject.notes(note)),), tuple(claims))


def _variant(preset: PresetName, iterations: int) -> _Variant:
    config = PRESETS[preset]()
    solver = dataclasses.replace(config.solver, iterations=iterations)
    return _Variant(preset, iterations, dataclasses.replace(config, solver=solver))


def _scores(subject: Subject, hands: Hands) -> tuple[float, float, float, float]:
    """Return AUC 20-50, AUC 5-20, EPE in millimetres and reprojection error in pixels of the crop."""
    assert hands.parameters is not None
    errors, observation = subject.errors_mm(hands), subject.with_k.proposals.observation
    pixels = np.asarray(_reprojected(subject.hand, hands.parameters, observation.camera), np.float64)
    reprojection = np.linalg.norm(pixels - np.asarray(observation.keypoints_2d), axis=-1).mean()
    return auc(errors, GRID_20_50), auc(errors, GRID_5_20), float(errors.mean()), float(reprojection)


@jax.jit
def _reprojected(hand: HandModel, parameters: HandParameters, camera: Camera) -> Float[Array, "n 21 2"]:
    return jax.vmap(lambda one, camera: project(camera, camera_keypoints(hand, one)))(parameters, camera)


def _diminishing(preset: PresetName, early: float, late: float) -> Claim:
    return Claim(
        f"returns diminish after 20 iterations (preset {preset})",
        f"AUC 5-20 {early:+.3f} in the first 20 iterations, {late:+.3f} in the next 80",
        late < early,
    )


def _fit_of_one(hand: HandModel, config: TailorConfig, proposal: Proposals) -> Callable[[], Any]:
    """Return a call of start, iterations and mesh of one hand as one compiled program, which is what is timed."""

    @jax.jit
    def fit(hand: HandModel, proposal: Proposals) -> tuple[HandParameters, Array]:
        fitted = tailor(hand, proposal.start(hand, config.scale), proposal.observation, config)
        return fitted, camera_mesh(hand, fitted).vertices

    return functools.partial(fit, hand, proposal)

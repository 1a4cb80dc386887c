"""The paper's Figures 2, 3a, 3b and 4 as image files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from handtailor_jax.errors import imported, install
from handtailor_jax.evaluation.metrics import GRID_20_50, GRID_FIGURE_3A, FloatArray, auc, pck, reduction_ratio
from handtailor_jax.evaluation.paper.subjects import (
    CROP,
    BeforeAndAfter,
    Hands,
    Numbers,
    Subject,
    meshes,
    propose,
    rows,
    tailored,
)
from handtailor_jax.evaluation.report import Claim, Figure, Findings
from handtailor_jax.images import Image, crop_square
from handtailor_jax.render.overlay import contact_sheet, draw_skeleton, second_view
from handtailor_jax.render.shading import render_mesh
from handtailor_jax.results import write_atomically, write_image
from handtailor_jax.skeleton import ROOT, WRIST
from handtailor_jax.tailor import paper as terms
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.tailor import PRESETS, PresetName
from handtailor_jax.types import Camera

FIGURE_4_PRESET: PresetName = "official"
"""Preset of the meshes of Figure 4: the steps of `paper` are too small to leave the start."""

FIGURE_4_ITERATIONS = 100
"""Iterations of the meshes of Figure 4."""

_CANDIDATES = 200  # hands among which Figure 4 chooses
_MIDDLE = slice(CROP // 8, CROP - CROP // 8)  # crops are twice as large as the hands
_SIDE = _MIDDLE.stop - _MIDDLE.start
_WHITE = (255, 255, 255)
_INK = "#2b4c7e"


def figure2(subject: Subject, folder: Path, count: int) -> Findings:
    """Draw detected keypoints, the hand module's mesh and the tailored mesh of `count` hands, from front and side.

    One image shows the hands with intrinsics, and another one the same hands without.

    Raises:
        InputError: If there are no images.
    """
    truth = subject.truth
    shown = np.linspace(0, len(truth) - 1, min(count, len(truth))).astype(int)
    boxes = truth.boxes
    crops = [crop_square(truth.image(int(i)), boxes[i], CROP)[0] for i in shown]
    drawn = []
    for file, name, hands in (
        ("figure2.jpg", "with intrinsics", subject.with_k),
        ("figure2_without_intrinsics.jpg", "without intrinsics", subject.without_k),
    ):
        write_image(folder / file, _stages(subject, hands, crops, shown))
        drawn.append(Figure(file, f"Figure 2, {name}: keypoints, hand module and HandTailor, {_data(subject)}"))
    return Findings(figures=tuple(drawn))


def _stages(subject: Subject, hands: BeforeAndAfter, crops: Sequence[Image], shown: npt.NDArray[np.integer]) -> Image:
    stages = [
        (name, subject.errors_mm(stage).mean(axis=-1), _vertices(subject, stage, shown))
        for name, stage in (("hand module", hands.before), ("HandTailor", hands.after))
    ]
    panels, captions = [], []
    for place, i in enumerate(shown):
        seen = rows(hands.proposals.observation, int(i))
        panels.append(draw_skeleton(crops[place], np.asarray(seen.keypoints_2d, np.float64))[_MIDDLE, _MIDDLE])
        captions.append(f"{i}: keypoints")
        for name, errors, vertices in stages:
            panels.append(_over(subject, vertices[place], seen.camera, crops[place]))
            captions.append(f"{name}, {errors[i]:.1f} mm")
        for name, _, vertices in stages:
            panels.append(second_view(vertices[place], subject.hand.faces, _SIDE, _SIDE))
            captions.append(f"{name}, from the side")
    return contact_sheet(panels, 5, captions)


def figure3(subject: Subject, folder: Path) -> Findings:
    """Draw PCK curves (3a), and the share of the 3D error that the tailor removes against the 2D error (3b)."""
    _figure3a(subject, folder / "figure3a.png")
    exact = dataclasses.replace(subject.predictions, keypoints_2d=subject.truth.keypoints_2d)
    observed, true = (
        np.asarray(propose(subject.truth, predictions).observation.keypoints_2d, np.float64)
        for predictions in (subject.predictions, exact)
    )
    errors_2d = np.linalg.norm(observed - true, axis=-1).mean(axis=-1)
    removed = reduction_ratio(subject.errors_mm(subject.with_k.before), subject.errors_mm(subject.with_k.after))
    _figure3b(subject, errors_2d, removed, folder / "figure3b.png")
    drawn = (
        Figure("figure3a.png", f"Figure 3a: PCK curves, {_data(subject)}"),
        Figure("figure3b.png", f"Figure 3b: 3D error removed by the tailor against 2D error, {_data(subject)}"),
    )
    return Findings(claims=(figure3b_claim(errors_2d, removed),), figures=drawn)


def figure3b_claim(errors_2d: FloatArray, removed: FloatArray) -> Claim:
    """Check that the share (n,) of the 3D error that the tailor removes is larger where the 2D error (n,) is small."""
    rank = spearmanr(errors_2d, removed).statistic
    half = np.median(errors_2d)
    low, high = np.median(removed[errors_2d <= half]), np.median(removed[errors_2d > half])
    measured = f"median share removed {100 * low:.0f} % in the better half, {100 * high:.0f} % in the worse"
    statement = "the tailor removes more of the 3D error where 2D error is small (Figure 3b)"
    return Claim(statement, f"rank correlation {rank:+.2f}; {measured}", bool(rank < -0.05))


def figure4(subject: Subject, folder: Path, count: int) -> Findings:
    """Draw meshes under the full energy, without E_g and without E_id, of the `count` hands that E_g changes most.

    The tailor has the preset `FIGURE_4_PRESET` with `FIGURE_4_ITERATIONS` iterations.
    """
    config = PRESETS[FIGURE_4_PRESET]()
    assert isinstance(config.energy, PaperEnergy)
    proposals = rows(subject.with_k.proposals, np.arange(min(_CANDIDATES, len(subject.truth))))
    solver = dataclasses.replace(config.solver, iterations=FIGURE_4_ITERATIONS)
    full, no_twist, no_identity = (
        tailored(subject.hand, proposals, dataclasses.replace(config, energy=energy, solver=solver))
        for energy in (config.energy, config.energy.without_twist(), config.energy.without_identity())
    )
    shown = np.argsort(_non_planarity(full) - _non_planarity(no_twist))[:count]
    variants = [
        (name, _vertices(subject, hands, shown))
        for name, hands in (("full energy", full), ("without E_g", no_twist), ("without E_id", no_identity))
    ]
    panels, captions = [], []
    for place, i in enumerate(shown):
        camera = rows(proposals.observation.camera, int(i))
        for name, vertices in variants:
            panels.append(_over(subject, vertices[place], camera, _WHITE))
            panels.append(second_view(vertices[place], subject.hand.faces, _SIDE, _SIDE))
            captions += [f"{i}: {name}", f"preset {FIGURE_4_PRESET}"]
    write_image(folder / "figure4.jpg", contact_sheet(panels, 6, captions))
    tailor = f"preset {FIGURE_4_PRESET}, {FIGURE_4_ITERATIONS} iterations"
    caption = f"Figure 4: meshes under the full energy, without E_g and without E_id; {tailor}; {_data(subject)}"
    return Findings(figures=(Figure("figure4.jpg", caption),))


def _data(subject: Subject) -> str:
    return f"{subject.truth.dataset}, {subject.predictions.method}"


def _figure3a(subject: Subject, path: Path) -> None:
    figure, axis = _axes(subject)
    for name, hands, style in (
        ("hand module", subject.with_k.before, "--"),
        ("HandTailor", subject.with_k.after, "-"),
        ("HandTailor, no K", subject.without_k.after, ":"),
    ):
        errors = subject.errors_mm(hands)
        label = f"{name}: AUC 20-50 {auc(errors, GRID_20_50):.3f}"
        axis.plot(GRID_FIGURE_3A, pck(errors, GRID_FIGURE_3A), style, label=label, color=_INK, linewidth=1.8)
    axis.set_xlabel("error threshold, mm")
    axis.set_ylabel("share of joints below it (PCK)")
    axis.set_ylim(0.0, 1.01)
    _write(figure, axis, path)


def _figure3b(subject: Subject, errors_2d: FloatArray, removed: FloatArray, path: Path) -> None:
    figure, axis = _axes(subject)
    axis.scatter(errors_2d, 100.0 * removed, s=5, alpha=0.35, color=_INK, linewidths=0)
    groups = np.array_split(np.argsort(errors_2d), min(12, max(1, len(errors_2d) // 10)))
    medians = [(float(np.median(errors_2d[group])), 100.0 * float(np.median(removed[group]))) for group in groups]
    axis.plot(*zip(*medians, strict=True), "o-", color="#c8553d", label="median of groups of equal size")
    axis.axhline(0.0, color="grey", linewidth=0.8)
    axis.set_xlim(0.0, float(np.percentile(errors_2d, 99.0)) * 1.1 + 1e-6)
    axis.set_ylim(max(-150.0, 100.0 * float(np.percentile(removed, 0.5))), 105.0)
    axis.set_xlabel(f"2D keypoint error, pixels of {CROP}")
    axis.set_ylabel("3D error removed by the tailor, %")
    _write(figure, axis, path)


def _non_planarity(hands: Hands) -> FloatArray:
    """Return the first part of E_g (Eq. 10), summed over fingers, in reference bones, (n,)."""
    bones = np.linalg.norm(hands.joints[:, ROOT] - hands.joints[:, WRIST], axis=-1)
    non_planarity, _ = jax.vmap(terms.twist)(hands.joints / bones[:, None, None])
    return np.asarray(non_planarity, np.float64).sum(axis=-1)


def _vertices(subject: Subject, hands: Hands, shown: npt.NDArray[np.integer]) -> Numbers:
    assert hands.parameters is not None
    return meshes(subject.hand, rows(hands.parameters, shown))


def _over(subject: Subject, vertices: Numbers, camera: Camera, background: Image | tuple[int, int, int]) -> Image:
    return render_mesh(vertices, subject.hand.faces, camera, CROP, CROP, background)[_MIDDLE, _MIDDLE]


def _axes(subject: Subject) -> tuple[Any, Any]:
    library = imported("matplotlib.figure", "figures need matplotlib", install("figures"))
    figure = library.Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.set_title(f"{_data(subject)}, lit", fontsize=9)
    return figure, axis


def _write(figure: Any, axis: Any, path: Path) -> None:
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))

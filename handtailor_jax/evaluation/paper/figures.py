"""The paper's figures as PNG files."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.metrics import GRID_20_50, GRID_FIGURE_3A, auc, pck
from handtailor_jax.evaluation.paper.refinement import CROP, Hands, meshes, refined
from handtailor_jax.evaluation.paper.tables import Before, Setting, errors_mm, figure3b_points
from handtailor_jax.images import crop_square
from handtailor_jax.render.overlay import contact_sheet, draw_skeleton, second_view
from handtailor_jax.render.shading import render_mesh
from handtailor_jax.results import write_atomically, write_image
from handtailor_jax.tailor import energy as terms
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.solve import Adam
from handtailor_jax.types import Camera

_CANDIDATES = 200
_MIDDLE = slice(CROP // 8, CROP - CROP // 8)  # the crops are twice as large as the hands
_SIDE = _MIDDLE.stop - _MIDDLE.start
_INK = "#2b4c7e"

FIGURE_4_ITERATIONS = 100
"""Steps of the meshes of Figure 4."""


def figure2(setting: Setting, known: Before, path: Path, count: int) -> None:
    """Input with the detected keypoints, the hand module's mesh, the tailored mesh, and both from the side.

    Raises:
        InputError: without pictures.
    """
    truth = setting.truth
    if truth.picture is None:
        raise InputError(f"{truth.dataset} has no pictures: figure 2 needs some")
    rows = np.linspace(0, len(truth) - 1, min(count, len(truth))).astype(int)
    truth_boxes, panels, captions = truth.boxes(), [], []
    before, after = (_vertices(setting, hands, rows) for hands in (known.proposed, known.refined))
    errors = [errors_mm(setting, hands).mean(axis=-1) for hands in (known.proposed, known.refined)]
    for place, i in enumerate(rows):
        crop, _, _ = crop_square(truth.picture(int(i)), truth_boxes[i], CROP)
        seen = jax.tree.map(lambda leaf, i=i: leaf[i], known.problem.observation)
        panels.append(draw_skeleton(crop, np.asarray(seen.keypoints_2d, np.float64))[_MIDDLE, _MIDDLE])
        captions.append(f"{i}: keypoints")
        for name, vertices, error in zip(("hand module", "HandTailor"), (before, after), errors, strict=True):
            panels.append(_over(setting, vertices[place], seen.camera, crop))
            captions.append(f"{name}, {error[i]:.1f} mm")
        for name, vertices in (("hand module", before), ("HandTailor", after)):
            panels.append(second_view(vertices[place], setting.hand.faces, _SIDE, _SIDE))
            captions.append(f"{name}, from the side")
    write_image(path, contact_sheet(panels, 5, captions))


def figure3a(setting: Setting, known: Before, unknown: Before, path: Path) -> None:
    """PCK curves from 5 to 50 mm, aligned as the protocol says."""
    figure, axis = _axes()
    for name, hands, style in (
        ("hand module", known.proposed, "--"),
        ("HandTailor", known.refined, "-"),
        ("HandTailor, no K", unknown.refined, ":"),
    ):
        errors = errors_mm(setting, hands)
        curve = pck(errors, GRID_FIGURE_3A.thresholds)
        label = f"{name}: AUC 20-50 {auc(errors, GRID_20_50):.3f}"
        axis.plot(GRID_FIGURE_3A.thresholds, curve, style, label=label, color=_INK, linewidth=1.8)
    axis.set_xlabel("error threshold, mm")
    axis.set_ylabel("share of joints below it (PCK)")
    axis.set_ylim(0.0, 1.01)
    _finish(setting, figure, axis, path)


def figure3b(setting: Setting, known: Before, path: Path) -> None:
    """Each hand: 2D keypoint error against the share of its 3D error that the tailor removes."""
    errors_2d, removed = figure3b_points(setting, known)
    figure, axis = _axes()
    axis.scatter(errors_2d, 100.0 * removed, s=5, alpha=0.35, color=_INK, linewidths=0)
    # Medians of groups of equal size show what a cloud hides.
    order = np.argsort(errors_2d)
    groups = np.array_split(order, min(12, max(1, len(order) // 10)))
    middle = [(float(np.median(errors_2d[g])), 100.0 * float(np.median(removed[g]))) for g in groups]
    axis.plot(*zip(*middle, strict=True), "o-", color="#c8553d", label="median of groups of equal size")
    axis.axhline(0.0, color="grey", linewidth=0.8)
    axis.set_xlim(0.0, float(np.percentile(errors_2d, 99.0)) * 1.1 + 1e-6)
    axis.set_ylim(max(-150.0, 100.0 * float(np.percentile(removed, 0.5))), 105.0)
    axis.set_xlabel(f"2D keypoint error, pixels of {CROP}")
    axis.set_ylabel("3D error removed by the tailor, %")
    _finish(setting, figure, axis, path)


def figure4(setting: Setting, known: Before, path: Path, count: int) -> None:
    """Meshes under the full energy, without E_g and without E_id, where they differ most.

    The preset is `official`, whose steps are large enough to leave the start, with `FIGURE_4_ITERATIONS` of them.
    """
    official = TailorConfig.official()
    assert isinstance(official.energy, PaperEnergy)
    assert isinstance(official.solver, Adam)
    energies = {
        "full energy": official.energy,
        "without E_g": dataclasses.replace(official.energy, non_planarity=0.0, backward_bend=0.0),
        "without E_id": dataclasses.replace(official.energy, identity_pose=0.0, identity_betas=0.0),
    }
    candidates = np.arange(min(_CANDIDATES, len(setting.truth)))
    problem = known.problem.some(candidates)
    config = dataclasses.replace(official, solver=dataclasses.replace(official.solver, iterations=FIGURE_4_ITERATIONS))
    hands = {
        name: refined(setting.hand, problem, dataclasses.replace(config, energy=e)) for name, e in energies.items()
    }
    bent = _non_planarity(hands["without E_g"]) - _non_planarity(hands["full energy"])
    rows = np.argsort(-bent)[:count]
    vertices = {name: _vertices(setting, found, rows) for name, found in hands.items()}
    panels, captions = [], []
    for place, i in enumerate(rows):
        for name in energies:
            panels.append(_over(setting, vertices[name][place], _camera(problem.observation.camera, int(i)), None))
            panels.append(second_view(vertices[name][place], setting.hand.faces, _SIDE, _SIDE))
            captions += [f"{i}: {name}", "from the side"]
    write_image(path, contact_sheet(panels, 6, captions))


def _non_planarity(hands: Hands) -> npt.NDArray[np.float64]:
    """(n,) the first part of E_g, summed over fingers, in reference bones."""
    joints = hands.joints / np.linalg.norm(hands.joints[:, 9] - hands.joints[:, 0], axis=-1)[:, None, None]
    return np.asarray(jax.vmap(terms.twist)(joints)[0], np.float64).sum(axis=-1)


def _vertices(setting: Setting, hands: Hands, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    assert hands.parameters is not None
    return meshes(setting.hand, jax.tree.map(lambda leaf: leaf[rows], hands.parameters))


def _over(setting: Setting, vertices: npt.NDArray[np.float32], camera: Camera, crop: Any) -> npt.NDArray[np.uint8]:
    background = (255, 255, 255) if crop is None else crop
    return render_mesh(vertices, setting.hand.faces, camera, CROP, CROP, background)[_MIDDLE, _MIDDLE]


def _camera(cameras: Camera, i: int) -> Camera:
    return jax.tree.map(lambda leaf: leaf[i], cameras)


def _axes() -> tuple[Any, Any]:
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(f"figures need matplotlib ({error}): pip install 'handtailor-jax[figures]'") from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    return figure, figure.subplots()


def _finish(setting: Setting, figure: Any, axis: Any, path: Path) -> None:
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    axis.set_title(f"{setting.truth.dataset}, {setting.estimates.method}, {setting.protocol.alignment}", fontsize=9)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))

"""2D keypoints alone against rendered truth: error, flipped hands, and photographs per second of the search."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from handtailor_jax.evaluation.alignment import scale_and_shift
from handtailor_jax.evaluation.simulation import View, tailor_problems
from handtailor_jax.geometry.cameras import project
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.tailor.placement import camera_keypoints
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.search import SearchConfig, search
from handtailor_jax.types import Observation

VIEWS: tuple[View, ...] = ("weak_perspective", "perspective")


@dataclasses.dataclass(frozen=True)
class FitBenchmark:
    """Error of 2D-only fits on hands of known pose, seen from all sides, and their rate."""

    problems: int = 500
    """Number of hands for each kind of camera."""
    noise: float = 0.01
    """Root mean square displacement of the keypoints, as a share of the hand's size (longer side of their box)."""
    seed: int = 3
    """Seed of the hands, views and noise."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclasses.dataclass(frozen=True)
class FitRow:
    """Figures of one kind of camera."""

    camera: View
    median_mm: float
    """Median over hands of the mean joint error in the camera frame after scale and shift only."""
    p90_mm: float
    flipped_percent: float
    """Hands whose joint depths correlate negatively with the truth."""
    runner_up_p90_mm: float
    """90th percentile if the better of the solution and its runner-up is taken."""
    reprojection_percent: float
    """Median distance from the noisy keypoints, share of the hand's size."""
    hands_per_second: float


@dataclasses.dataclass(frozen=True)
class FitReport:
    """The rows and how they came about."""

    rows: tuple[FitRow, ...]
    config: FitBenchmark

    def __str__(self) -> str:
        """A markdown table."""
        lines = [
            f"2D keypoints alone, {self.config.problems} hands a row, {100 * self.config.noise:g} % noise (rms), "
            f"seed {self.config.seed}",
            "",
            "| camera | joint error, median | 90 % | with runner-up, 90 % | flipped hands | reprojection | hands/s |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row.camera.replace('_', ' ')} | {row.median_mm:.2f} mm | {row.p90_mm:.1f} mm "
            f"| {row.runner_up_p90_mm:.1f} mm | {row.flipped_percent:.1f} % "
            f"| {row.reprojection_percent:.2f} % | {row.hands_per_second:.0f} |"
            for row in self.rows
        ]
        return "\n".join(lines)


def run(config: FitBenchmark, hand: HandModel | None = None) -> FitReport:
    """Measures; writes the JSON file if one is asked for."""
    from handtailor_jax.results import prepare_folder, write_json

    if config.json is not None:
        prepare_folder(config.json.parent)
    hand = embedded_hand() if hand is None else hand
    report = FitReport(tuple(_measure(hand, config, view) for view in VIEWS), config)
    if config.json is not None:
        content = {"problems": config.problems, "noise": config.noise, "seed": config.seed}
        write_json(config.json, {**content, "rows": [dataclasses.asdict(row) for row in report.rows]})
    return report


def _measure(hand: HandModel, config: FitBenchmark, view: View) -> FitRow:
    # The root mean square displacement has two axes.
    problems = tailor_problems(
        hand, config.problems, config.seed, noise="gaussian", camera=view, keypoint_noise=config.noise / 2**0.5
    )
    settings = TailorConfig.keypoints_only()

    @jax.jit
    def solve(observation: Observation) -> Any:
        found = search(hand, observation, settings, SearchConfig())
        keypoints = jax.vmap(lambda p: camera_keypoints(hand, p))(found.parameters)
        return keypoints[0], keypoints[found.runner_up]

    observations = [
        dataclasses.replace(jax.tree.map(lambda leaf, i=i: leaf[i], problems.observation), confidence=jnp.ones(21))
        for i in range(config.problems)
    ]
    jax.block_until_ready(solve(observations[0]))
    started = time.perf_counter()
    solved = [jax.device_get(solve(o)) for o in tqdm(observations, desc=view, unit="hand")]
    seconds = time.perf_counter() - started

    truth = np.asarray(problems.keypoints) / np.asarray(problems.truth.scale)[:, None, None]
    best = np.stack([keypoints for keypoints, _ in solved])
    second = np.stack([keypoints for _, keypoints in solved])
    error, other = _errors(best, truth), _errors(second, truth)
    flipped = [np.corrcoef(found[:, 2], true[:, 2])[0, 1] < 0 for found, true in zip(best, truth, strict=True)]
    return FitRow(
        camera=view,
        median_mm=float(np.median(error)),
        p90_mm=float(np.quantile(error, 0.9)),
        flipped_percent=100.0 * float(np.mean(flipped)),
        runner_up_p90_mm=float(np.quantile(np.minimum(error, other), 0.9)),
        reprojection_percent=float(np.median(_reprojection(problems.observation, best))),
        hands_per_second=config.problems / seconds,
    )


def _errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean joint error of each hand in millimetres, after scale and shift."""
    aligned = np.stack([scale_and_shift(f, t) for f, t in zip(found, truth, strict=True)])
    return 1e3 * np.linalg.norm(aligned - truth, axis=-1).mean(axis=-1)


def _reprojection(observations: Observation, keypoints: np.ndarray) -> np.ndarray:
    """Mean distance from the observed keypoints in percent of the hand's size."""
    observed = np.asarray(observations.keypoints_2d)
    pixels = np.asarray(jax.vmap(project)(observations.camera, jnp.asarray(keypoints)))
    size = np.ptp(observed, axis=1).max(axis=-1)
    return 100.0 * np.linalg.norm(pixels - observed, axis=-1).mean(axis=-1) / size

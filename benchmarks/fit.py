"""Hands fitted to 2D keypoints alone: error against ground truth, flipped hands, and hands per second."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from simulation import View, tailor_problems
from timing import check, command, publish, table
from tqdm import tqdm

from handtailor_jax.evaluation.alignment import scale_and_shift
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import project
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.tailor.placement import camera_keypoints
from handtailor_jax.tailor.search import SearchConfig, search
from handtailor_jax.tailor.tailor import TailorConfig
from handtailor_jax.types import Observation

VIEWS: tuple[View, ...] = ("weak_perspective", "perspective")


@dataclasses.dataclass(frozen=True)
class FitBenchmark:
    """Options of the benchmark."""

    problems: int = 500
    """Number of hands for each kind of camera."""
    noise: float = 0.01
    """Root mean square displacement of the keypoints, as a share of the hand size."""
    seed: int = 3
    """Seed of the hands, views and noise."""
    json: Path | None = None
    """JSON file to which the results are also written."""


def measure(config: FitBenchmark, hand: HandModel | None = None) -> None:
    """Measure, print the table, and write the JSON file if one is asked for."""
    check(config, "problems", "noise")
    hand = embedded_hand() if hand is None else hand
    rows = [_row(hand, config, view) for view in VIEWS]
    heading = (
        f"2D keypoints alone, {config.problems} hands a row, {100 * config.noise:g} % noise (rms), seed {config.seed}"
    )
    content = {"problems": config.problems, "noise": config.noise, "seed": config.seed, "rows": rows}
    publish("\n".join([heading, "", *table(rows)]), content, config.json)


def _row(hand: HandModel, config: FitBenchmark, view: View) -> dict[str, Any]:
    """Return the figures of one kind of camera, by column heading.

    The joint error is the mean over the joints of a hand in the camera frame, after scale and shift only; with the
    runner-up, that of the better of two solutions. In a flipped hand, the depths of the joints correlate negatively
    with the true ones. The reprojection is the median distance from the noisy keypoints, in percent of the hand size.
    """
    # `config.noise` is over both axes, `keypoint_noise` per axis.
    problems = tailor_problems(
        hand, config.problems, config.seed, noise="gaussian", camera=view, keypoint_noise=config.noise / 2**0.5
    )
    observations = [
        dataclasses.replace(jax.tree.map(lambda leaf, i=i: leaf[i], problems.observation), confidence=jnp.ones(21))
        for i in range(config.problems)
    ]
    jax.block_until_ready(_solve(hand, observations[0]))
    started = time.perf_counter()
    solved = [jax.device_get(_solve(hand, o)) for o in tqdm(observations, desc=view, unit="hand")]
    seconds = time.perf_counter() - started

    truth = np.asarray(problems.keypoints) / np.asarray(problems.truth.scale)[:, None, None]
    best = np.stack([keypoints for keypoints, _ in solved])
    second = np.stack([keypoints for _, keypoints in solved])
    error, other = _errors(best, truth), _errors(second, truth)
    flipped = [np.corrcoef(found[:, 2], true[:, 2])[0, 1] < 0 for found, true in zip(best, truth, strict=True)]
    return {
        "camera": view,
        "joint error, median, mm": float(np.median(error)),
        "90 %, mm": float(np.quantile(error, 0.9)),
        "with runner-up, 90 %, mm": float(np.quantile(np.minimum(error, other), 0.9)),
        "flipped hands, %": 100.0 * float(np.mean(flipped)),
        "reprojection, %": float(np.median(_reprojection(problems.observation, best))),
        "hands/s": config.problems / seconds,
    }


@jax.jit
def _solve(hand: HandModel, observation: Observation) -> Any:
    """Return the keypoints of the solution and of its runner-up."""
    found = search(hand, observation, TailorConfig.keypoints_only(), SearchConfig())
    assert found.runner_up is not None
    return tuple(camera_keypoints(hand, each.parameters) for each in (found, found.runner_up))


def _errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the mean joint error of each hand in millimetres, after scale and shift."""
    aligned = np.stack([scale_and_shift(f, t) for f, t in zip(found, truth, strict=True)])
    return 1e3 * np.linalg.norm(aligned - truth, axis=-1).mean(axis=-1)


def _reprojection(observations: Observation, keypoints: np.ndarray) -> np.ndarray:
    """Return the mean distance from the observed keypoints in percent of the hand size."""
    observed = np.asarray(observations.keypoints_2d)
    pixels = np.asarray(jax.vmap(project)(observations.camera, jnp.asarray(keypoints)))
    size = hand_size(observed)
    return 100.0 * np.linalg.norm(pixels - observed, axis=-1).mean(axis=-1) / size


if __name__ == "__main__":
    command(FitBenchmark, measure, __doc__)

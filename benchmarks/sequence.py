"""Hands through time against ground truth: drift, jitter and lag before and after smoothing.

The first table shows `fit_sequence` on keypoints of a still hand; the second shows `HandVideo` on rendered videos of a
hand that is still for a second, moves for three, and is still again.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import check, command, publish
from tqdm import tqdm

import handtailor_jax as ht
from handtailor_jax.evaluation.report import markdown_table
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import place, project
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.skeleton import ROOT, ROOT_JOINT
from handtailor_jax.synthetic.dataset import SyntheticConfig, load_assets, render_sample
from handtailor_jax.synthetic.poses import PoseConfig, gestures, sample_betas, sample_orientation, sample_pose
from handtailor_jax.synthetic.scene import Placement
from handtailor_jax.tailor.placement import camera_keypoints, flat_length
from handtailor_jax.types import Camera, Hand, HandParameters
from handtailor_jax.video.files import Video, video_writer
from handtailor_jax.video.sequence import fit_sequence
from handtailor_jax.video.smoothing import smooth_video
from handtailor_jax.video.track import HandVideo, VideoConfig

RATE = 30.0
CAMERA = (600.0, 600.0, 320.0, 240.0)


@dataclasses.dataclass(frozen=True)
class SequenceBenchmark:
    """Options of the benchmark."""

    hands: int = 16
    """Number of still hands."""
    frames: int = 60
    """Number of frames of each still hand."""
    noise: float = 0.01
    """Root mean square displacement of the keypoints, as a share of the hand size."""
    videos: int = 4
    """Number of rendered videos."""
    size: int = 320
    """Width and height of the videos, pixels."""
    seed: int = 0
    """Seed of hands, motion and noise."""
    json: Path | None = None
    """JSON file to which the results are also written."""


def measure(config: SequenceBenchmark) -> None:
    """Measure, print the tables, and write the JSON file if one is asked for."""
    check(config, "hands", "frames", "noise", "size")
    still, moving = _still(config), _videos(config)
    columns = ["still hands", "depth, median", "depth, most", "length, median", "length, most", "posed length, median"]
    body = [[name, *(f"{value:.2f} mm" for value in values)] for name, values in still.items()]
    text = [
        f"Drift (largest minus smallest value) of {config.hands} still hands over {config.frames} frames, "
        f"keypoints with {100 * config.noise:g} % noise (rms), camera known, seed {config.seed}",
        "",
        *markdown_table(columns, body),
    ]
    if moving:
        columns = ["video", "hand found", "jitter", "jitter while still", "lag", "joints relative to the root", "root"]
        units = ("%", "mm", "mm", "frames", "mm", "mm")
        body = [
            [name, *(f"{value:.2f} {unit}" for value, unit in zip(values, units, strict=True))]
            for name, values in moving.items()
        ]
        text += ["", f"Means over {config.videos} rendered videos of 5 seconds", "", *markdown_table(columns, body)]
    content = {"hands": config.hands, "frames": config.frames, "noise": config.noise, "still": still, "video": moving}
    publish("\n".join(text), content, config.json)


def _still(config: SequenceBenchmark) -> dict[str, list[float]]:
    model = ht.embedded_hand()

    @jax.jit
    def draw(key: Any) -> Any:
        hand = HandParameters(
            sample_pose(model, key),
            sample_betas(model, jax.random.fold_in(key, 1)),
            jnp.ones((), model.dtype),
            jnp.asarray([0.02, -0.01, 0.5], model.dtype),
        )
        return project(ht.Camera.perspective(*CAMERA), camera_keypoints(model, hand))

    found: dict[str, list[list[float]]] = {"fit, each frame alone": [], "fit_sequence": []}
    times = np.arange(config.frames) / RATE
    for i in tqdm(range(config.hands), desc="still hands"):
        pixels = np.asarray(draw(jax.random.key(config.seed + i)))
        rng = np.random.default_rng(config.seed + i)
        spread = config.noise * hand_size(pixels) / 2**0.5
        keypoints = pixels + rng.normal(0.0, spread, (config.frames, *pixels.shape))
        alone = [ht.fit(each, camera=CAMERA) for each in keypoints]
        found["fit, each frame alone"].append(_drift(model, alone))
        found["fit_sequence"].append(_drift(model, fit_sequence(keypoints, times, camera=CAMERA)))
    rows = {name: np.asarray(values) for name, values in found.items()}
    return {
        name: [np.median(w[:, 0]), w[:, 0].max(), np.median(w[:, 1]), w[:, 1].max(), np.median(w[:, 2])]
        for name, w in rows.items()
    }


def _drift(model: Any, hands: Sequence[Hand | None]) -> list[float]:
    """Return the ranges of the depth, the length of the flat hand, and the distance from wrist to middle tip, mm."""
    known = [hand for hand in hands if hand is not None]
    depth = [hand.parameters.translation[2] for hand in known]
    length = [float(flat_length(model, hand.parameters.betas)) for hand in known]
    posed = [np.linalg.norm(hand.joints[12] - hand.joints[0]) for hand in known]
    return [1e3 * float(np.ptp(values)) for values in (depth, length, posed)]


def _videos(config: SequenceBenchmark) -> dict[str, list[float]]:
    if not config.videos:
        return {}
    tailor, assets = ht.HandTailor.load(), load_assets()
    rows: dict[str, list[list[float]]] = {}
    for number in range(config.videos):
        key = jax.random.key(config.seed + 100 + number)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            truth, camera, moving = _render(assets, key, path, config.size)
            for name, hands in _recover(tailor, path, camera).items():
                rows.setdefault(name, []).append(_score(hands, truth, moving))
    return {name: np.nanmean(values, axis=0).tolist() for name, values in rows.items()}


def _render(assets: Any, key: Any, path: Path, size: int) -> tuple[np.ndarray, Camera, np.ndarray]:
    """Write a video; return joints (frames, 21, 3), metres, the camera, and whether the hand moves in each frame."""
    model, count = assets.hand, int(5 * RATE)
    times = np.arange(count) / RATE
    # The motion starts and stops smoothly.
    inside = np.clip((times - 1.0) / 3.0, 0.0, 1.0)
    clock = 3.0 * (inside - np.sin(2.0 * np.pi * inside) / (2.0 * np.pi))
    rng = np.random.default_rng(int(jax.random.bits(key)) % 2**31)
    first, second = (list(gestures().values())[i] for i in rng.choice(len(gestures()), 2, replace=False))
    focal = 1.6 * size
    camera = Camera.perspective(focal, focal, 0.5 * (size - 1), 0.5 * (size - 1))
    betas = sample_betas(model, jax.random.fold_in(key, 2))
    turn = matrix_from_axis_angle(sample_orientation(jax.random.fold_in(key, 3), PoseConfig(upright=1.0), model.dtype))

    @jax.jit
    def frame(clock: Any) -> Any:
        wave = jnp.sin(2.0 * jnp.pi * jnp.asarray([0.5, 0.7, 0.4, 0.6, 0.5], model.dtype) * clock)
        fingers = model.anatomy.finger_pose(jnp.asarray(first) + (0.5 + 0.5 * wave[0]) * jnp.asarray(second - first))
        tilt = matrix_from_axis_angle(jnp.stack([0.3 * wave[1], 0.4 * wave[2], 0.3 * wave[3]]))
        pose = jnp.concatenate([axis_angle_from_matrix(tilt @ turn)[None], fingers])
        root = jnp.asarray([0.05, 0.03, 0.05], model.dtype) * wave[jnp.asarray([4, 2, 1])]
        root = root + jnp.asarray([0.0, 0.0, 0.55], model.dtype)
        posed = model.shape(betas).pose(pose)
        hand = HandParameters(pose, betas, jnp.ones((), model.dtype), root)
        vertices, joints = (place(hand, x, posed.joints[ROOT_JOINT]) for x in (posed.skin().vertices, posed.keypoints))
        placed = Placement(vertices, joints, project(camera, joints), camera)
        return render_sample(assets, key, SyntheticConfig(size=size), (pose, betas, placed))

    joints = []
    with video_writer(path, RATE) as write:
        for i in tqdm(range(count), desc="rendering", leave=False):
            sample = frame(jnp.asarray(clock[i], model.dtype))
            joints.append(np.asarray(sample.joints))
            noisy = np.asarray(sample.image) + rng.normal(0.0, 3.0, sample.image.shape)
            write(np.clip(noisy, 0.0, 255.0).astype(np.uint8), times[i])
    return np.stack(joints), jax.device_get(camera), (inside > 0.0) & (inside < 1.0)


def _recover(tailor: Any, path: Path, camera: Camera) -> dict[str, list[Hand | None]]:
    """Return the hand of each frame: from this frame alone, smoothed over earlier frames, and over all frames."""
    settings = {
        "before smoothing": VideoConfig(hands=1, smooth=False, pose_share=0.0, shape_frames=1),
        "live: earlier frames": VideoConfig(hands=1),
        "file: all frames": VideoConfig(hands=1, smooth=False),
    }
    found = {}
    for name, setting in settings.items():
        follow, frames, times = HandVideo(tailor, camera, config=setting), [], []
        with Video(path) as video:
            for frame in tqdm(video, desc=name, leave=False):
                frames.append(follow(frame.image, frame.time))
                times.append(frame.time)
        if name.startswith("file"):
            frames = smooth_video(tailor.hand, frames, times)
        found[name] = [hands[0] if hands else None for hands in frames]
    return found


def _score(hands: Sequence[Hand | None], truth: np.ndarray, moving: np.ndarray) -> list[float]:
    """Return the share of frames with the hand (%), jitter, jitter while still (mm), lag (frames), and errors (mm).

    Jitter is the mean length of the second difference of a joint's error from frame to frame.
    """
    known = np.asarray([hand is not None for hand in hands])
    found = np.full_like(truth, np.nan)
    found[known] = [hand.joints for hand in hands if hand is not None]
    second = 1e3 * np.linalg.norm(np.diff(found - truth, 2, axis=0), axis=-1).mean(axis=-1)
    still = ~moving[1:-1] & ~np.isnan(second)

    def error(delay: float) -> float:
        """Return the image error against the ground truth `delay` frames ago, without the mean error."""
        frames = np.arange(len(truth), dtype=np.float64)
        ours, true = ((each[..., :2] / each[..., 2:]).reshape(len(truth), -1) for each in (found, truth))
        delayed = np.stack([np.interp(frames - delay, frames, x) for x in true.T], axis=-1)
        apart = (ours - delayed)[known & moving]
        return float(np.mean((apart - apart.mean(axis=0)) ** 2))

    delays = np.arange(-3.0, 4.0, 0.05)
    lag = float(delays[np.argmin([error(delay) for delay in delays])])
    relative = (found - found[:, ROOT, None]) - (truth - truth[:, ROOT, None])
    jitter = [float(np.nanmean(second)), float(second[still].mean()) if still.any() else np.nan]
    errors = [1e3 * float(np.nanmean(np.linalg.norm(each, axis=-1))) for each in (relative, (found - truth)[:, ROOT])]
    return [100.0 * float(known.mean()), *jitter, lag, *errors]


if __name__ == "__main__":
    command(SequenceBenchmark, measure, __doc__)

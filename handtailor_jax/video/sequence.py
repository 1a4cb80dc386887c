"""Fit a hand to the keypoints of many frames: one shape for all frames, and a smooth movement."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from handtailor_jax.detections import Detection, detection
from handtailor_jax.errors import InputError, checked_times, naming, warn
from handtailor_jax.fit import fit_detection
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import given_hand
from handtailor_jax.skeleton import ROOT
from handtailor_jax.tailor.tailor import TailorConfig
from handtailor_jax.types import Hand, Side
from handtailor_jax.video.smoothing import LONGEST_GAP, smooth_hands, smooth_parameters

# The keypoints of a frame may allow two hands. In each frame one is chosen so that the sum of two costs is least: its
# energy above the better hand's, and its jump from the last frame. Largest costs, in half squared standard deviations.
_MOST_GAP, _MOST_JUMP = 10.0, 20.0
_STEP = 0.008  # standard deviation of the keypoints' movement between frames, metres


def fit_sequence(
    keypoints_2d: Any,
    times: Any,
    *,
    confidence: Any = None,
    joints_3d: Any = None,
    hand: HandModel | None = None,
    **known: Any,
) -> list[Hand | None]:
    """Fit one hand to the keypoints of many frames: one shape, and a movement that is smooth in time.

    Each frame is fitted alone, as by `fit`; then all frames are fitted again with a common shape, and smoothed over all
    frames (`video.smoothing`). A frame with fewer than 6 keypoints of confidence above 0 does not show the hand.

    Args:
        keypoints_2d: (frames, 21, 2) Keypoints (u, v), pixels.
        times: (frames,) Times in seconds, each later than the one before; intervals may differ.
        confidence: (frames, 21) Confidences, 0 (missing) to 1; 1 if None.
        joints_3d: (frames, 21, 3) 3D keypoints in camera axes, any unit and origin: a hint for the depth.
        hand: Hand model; the embedded hand if None. A model of the other side is mirrored.
        **known: Properties of the hand in all frames: `side`, `convention`, `order`, `camera`, `betas`, `fixed_betas`,
            `hand_length`: see `detection`.

    Returns:
        A hand for each frame. Frames that do not show it are predicted from their neighbours in gaps of at most
        `LONGEST_GAP`, 0.5 seconds, with confidence 0; in longer gaps, at the beginning and at the end they are None.

    Raises:
        InputError: If an argument is invalid.
    """
    try:
        count = len(times)
    except TypeError:
        raise InputError(f"times is {str(times)[:40]!r}: give a time in seconds for each frame") from None
    moments = checked_times("times", times, (count,))
    optional = {"confidence": confidence, "joints_3d": joints_3d}
    given = {"keypoints_2d": keypoints_2d, **{name: each for name, each in optional.items() if each is not None}}
    for name, values in given.items():
        if not hasattr(values, "__len__") or len(values) != count:
            length = f"{len(values)} frames" if hasattr(values, "__len__") else "no frames"
            raise InputError(f"{name} has {length} and times has {count}: give one for each frame")
    if not count:
        raise InputError("times is empty: give at least one frame")
    for i in range(1, count):
        if not moments[i] > moments[i - 1]:
            raise InputError(f"times goes from {moments[i - 1]:g} to {moments[i]:g} at frame {i}: give rising times")
    if unknown := known.keys() & {"id", "image", "pose", "pca", "global_rotation", "flat_hand_mean", "time", "track"}:
        raise InputError(f"{min(unknown)} does not apply to a sequence: leave it out")
    frames = []
    for i, moment in enumerate(moments):
        with naming(f"frame {i}"):
            of_frame = {name: values[i] for name, values in given.items()}
            frames.append(detection(**of_frame, time=moment, hand=hand, **known))
    return fit_frames(frames, hand=hand)


def fit_frames(
    frames: Sequence[Detection],
    *,
    hand: HandModel | None = None,
    progress: Callable[[Iterable[Detection]], Iterable[Detection]] = iter,
) -> list[Hand | None]:
    """Fit the hands of checked detections with times, in any order; see `fit_sequence`.

    Detections of one side and track are one hand. `progress` wraps the detections of a hand, which are fitted twice.

    Raises:
        InputError: If a time is missing or given twice, frames of a hand differ in its camera, for example, or none
            shows the hand.
    """
    model = given_hand(hand)
    of_hands: dict[tuple[int, Side], list[int]] = {}
    for i in sorted(range(len(frames)), key=lambda i: _time(frames[i])):
        of_hands.setdefault((frames[i].track, frames[i].side), []).append(i)
    for indices in of_hands.values():
        _check([frames[i] for i in indices])
    results: list[Hand | None] = [None] * len(frames)
    for indices in of_hands.values():
        for i, found in zip(indices, _fit_hand([frames[i] for i in indices], model, progress), strict=True):
            results[i] = found
    return results


def _fit_hand(
    ordered: Sequence[Detection], model: HandModel, progress: Callable[[Iterable[Detection]], Iterable[Detection]]
) -> list[Hand | None]:
    """Fit one hand to frames in the order of their times."""
    times = [_time(each) for each in ordered]
    candidates = [_attempt(each, model) if each.confidence.any() else None for each in progress(ordered)]
    chosen = _alike(candidates, times)
    known = [each for each in chosen if each is not None]
    if not known:
        raise InputError("no frame shows a hand: give at least 6 keypoints a confidence above 0")
    # All frames are fitted again from the smoothed poses, which corrects a finger that is wrong in a single frame.
    starts = smooth_parameters(model, chosen, times)
    again: list[Hand | None] = []
    for each, start, found in zip(progress(ordered), starts, chosen, strict=True):
        if start is not None and found is not None:
            pose, energy = (start.pose, TailorConfig.keypoints_only()) if each.pose is None else (each.pose, None)
            betas = each.betas if each.fixed_betas else start.betas
            once = dataclasses.replace(each, pose=pose, betas=betas, fixed_betas=True)
            found = _attempt(once, model, energy)
        again.append(found)
    return smooth_hands(model, again, times, fill=True)


def _time(frame: Detection) -> float:
    if frame.time is None:
        raise InputError("time is missing: give the time of every frame, in seconds")
    return frame.time


def _check(frames: Sequence[Detection]) -> None:
    """Check the successive frames of a hand: their times differ, and the properties of the hand are the same."""
    for before, after in itertools.pairwise(frames):
        pair = f"{before.id} and {after.id}"
        if before.time == after.time:
            remedy = "give each frame its own time, and number the hands of one side by `track`"
            raise InputError(f"{pair} are both at {after.time:g} s: {remedy}")
        for name in ("convention", "camera", "hand_length", "fixed_betas", *(["betas"] if before.fixed_betas else [])):
            if not np.array_equal(getattr(before, name), getattr(after, name)):
                raise InputError(f"{pair} differ in {name}: give the same in all frames of a hand")
    intervals = np.diff([_time(each) for each in frames])
    if len(intervals) and (interval := float(np.median(intervals))) > LONGEST_GAP:
        warn(f"the frames are {interval:g} s apart, too far to be smoothed: give times in seconds")


def _attempt(frame: Detection, model: HandModel, config: TailorConfig | None = None) -> Hand | None:
    """Fit a hand to a frame; None if no hand fits."""
    try:
        return fit_detection(dataclasses.replace(frame, time=None), hand=model, config=config)
    except InputError:
        return None


def _alike(hands: Sequence[Hand | None], times: Sequence[float]) -> list[Hand | None]:
    """Choose the hand or its runner-up in each frame, so that the sum of energies and jumps is least."""
    results = list(hands)
    frames = [(i, [h] if h.runner_up is None else [h, h.runner_up]) for i, h in enumerate(hands) if h is not None]
    # The least cost up to a frame for each of its hands, and the hand of the frame before with which it is reached.
    costs, origins = np.zeros(1), []
    for n, (i, options) in enumerate(frames):
        gaps = np.asarray([0.0, float(min(options[0].energy_gap or 0.0, _MOST_GAP))][: len(options)])
        last, before = frames[n - 1] if n else (i, [])
        waited = 1.0 + (times[i] - times[last]) / 0.1
        jumps = np.asarray([[_jump(a, b) / waited for a in before] or [0.0] for b in options])
        total = costs + np.minimum(jumps, _MOST_JUMP)
        origins.append(total.argmin(axis=1))
        costs = total.min(axis=1) + gaps
    chosen = int(costs.argmin())
    for (i, options), origin in zip(reversed(frames), reversed(origins), strict=True):
        results[i] = options[chosen]
        chosen = int(origin[chosen])
    return results


def _jump(first: Hand, second: Hand) -> float:
    """Return half the squared distance of two hands' keypoints relative to the root, in standard deviations."""
    apart = (first.joints - first.joints[ROOT]) - (second.joints - second.joints[ROOT])
    return 0.5 * float(np.linalg.norm(apart, axis=-1).mean() / _STEP) ** 2

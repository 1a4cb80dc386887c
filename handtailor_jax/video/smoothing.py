"""Smooth the movement of a hand: in live video over earlier frames, in a recorded track over all of its frames.

Both use the filters of `handtailor_jax.video.filters`. Their groups of components are the rotation of each joint, the
direction of the root and the logarithm of its distance.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from scipy.spatial.transform import Rotation

from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.kinematics import ANCESTRY
from handtailor_jax.mano.landmarks import KEYPOINT_JOINT
from handtailor_jax.skeleton import NUM_JOINTS
from handtailor_jax.tailor.placement import flat_length, with_betas, with_parameters
from handtailor_jax.types import Hand, HandParameters, Side
from handtailor_jax.video.filters import Filters, FloatArray, near, smoothed

LONGEST_GAP = 0.5
"""Longest gap in seconds in which a hand that is not seen is predicted; smoothing starts anew after a longer gap."""

# Number of components of each group: quaternions, direction and log distance.
_WIDTHS = np.asarray([4.0] * NUM_JOINTS + [2.0, 1.0])
# Noise that is rarely exceeded: half radians, metres at the distance of the first frame, share of the distance.
_NOISE = np.asarray([0.08] * NUM_JOINTS + [0.003, 0.05])


class _Form:
    """Conversion of the parameters of a track to groups of components, and back."""

    def __init__(self, first: HandParameters, perspective: bool) -> None:
        self._perspective = perspective
        self._unit = 1.0 / abs(float(first.scale))
        if perspective:
            self._unit *= float(first.translation[2])
        self._before = np.zeros((NUM_JOINTS, 4))
        self._before[:, 3] = 1.0

    def values(self, parameters: HandParameters) -> FloatArray:
        """Return the groups (18, 4) of a hand."""
        found = np.zeros((len(_WIDTHS), 4))
        quaternions = Rotation.from_rotvec(np.asarray(parameters.pose, np.float64)).as_quat()
        # q and -q are the same rotation.
        quaternions *= np.where(np.sum(quaternions * self._before, axis=-1, keepdims=True) < 0.0, -1.0, 1.0)
        self._before = found[:NUM_JOINTS] = quaternions
        x, y, z = np.asarray(parameters.translation, np.float64)
        # The noise of the depth is by far the largest, and the division keeps it out of the direction.
        depth = z if self._perspective else 1.0
        found[NUM_JOINTS, :2] = self._unit * x / depth, self._unit * y / depth
        found[NUM_JOINTS + 1, 0] = np.log(depth / float(parameters.scale))
        return found

    def parameters(self, values: FloatArray, like: HandParameters) -> HandParameters:
        """Return the hand of the groups; its shape (and its scale, with intrinsics) are copied from `like`."""
        pose = Rotation.from_quat(values[:NUM_JOINTS]).as_rotvec()
        x, y = values[NUM_JOINTS, :2] / self._unit
        distance, scale, z = float(np.exp(values[NUM_JOINTS + 1, 0])), float(like.scale), float(like.translation[2])
        if self._perspective:
            z = distance * scale
            x, y = x * z, y * z
        else:
            scale = 1.0 / distance
        changed = {"pose": pose, "scale": scale, "translation": [x, y, z]}
        dtype = like.pose.dtype
        return dataclasses.replace(like, **{name: np.asarray(value, dtype) for name, value in changed.items()})


def _usable(parameters: HandParameters, perspective: bool) -> bool:
    """Return whether all numbers are finite and the hand is in front of the camera."""
    numbers = [parameters.scale, *parameters.translation, *np.ravel(parameters.pose)]
    depth = parameters.translation[2] if perspective else 1.0
    return bool(np.isfinite(numbers).all() and parameters.scale > 0.0 and depth > 0.0)


# Keypoints that each joint moves, (21, 16), as shares of their number.
_MOVED = ANCESTRY[list(KEYPOINT_JOINT)] / ANCESTRY[list(KEYPOINT_JOINT)].sum(axis=0)
_USUAL_ERROR = 0.01  # share of the hand size


def measurement_noise(hand: Hand) -> FloatArray:
    """Return the variances (16,) of the joint rotations of a fitted hand, relative to those of a good fit.

    They grow with the distance of the mesh from the keypoints, and are larger where the keypoints that a joint moves
    have low confidences.
    """
    error = float(hand.reprojection_after) / max(float(hand_size(np.asarray(hand.detected_keypoints_2d))), 1.0)
    seen = np.asarray(hand.confidence, np.float64) @ _MOVED
    return 0.5 * (1.0 + (error / _USUAL_ERROR) ** 2) / np.maximum(seen, 1e-3)


def _noise(noise: FloatArray | None) -> FloatArray:
    """Return the relative variances (18,) of all groups; direction and distance have the variance of the wrist."""
    noise = np.ones(NUM_JOINTS) if noise is None else noise
    return np.concatenate([noise, noise[:1], noise[:1]])


class HandSmoother:
    """Smoother of one hand from frame to frame, over earlier frames only; a new track needs a new smoother."""

    def __init__(self, perspective: bool) -> None:
        """Create a smoother for a perspective camera (translations in metres) or a weak-perspective one (pixels)."""
        self._perspective = perspective
        self._form: _Form | None = None
        self._filters = Filters(_WIDTHS, _NOISE)
        self._missed: list[FloatArray] = []

    def __call__(self, parameters: HandParameters, time: float, noise: FloatArray | None = None) -> HandParameters:
        """Return the smoothed parameters of one hand at a time in seconds; its shape is kept.

        Parameters that are not finite, or behind the camera, are returned unchanged and not used in later frames.

        Args:
            parameters: The hand in this frame.
            time: Time of the frame, later than in the call before.
            noise: (16,) variances from `measurement_noise`; all are equal if None.

        Raises:
            ValueError: If the time is not later than in the call before.
        """
        if not _usable(parameters, self._perspective):
            return parameters
        if self._form is None:
            self._form = _Form(parameters, self._perspective)
        self._filters.advance(time)
        measured, relative = self._form.values(parameters), _noise(noise)
        self._filters.update(measured, relative)
        mean, _ = self._filters.estimate(self._filters.score())
        value = mean[..., 0]
        self._missed = [*self._missed[-2:], (measured - value) / np.sqrt(relative)[:, None]]
        return self._form.parameters(near(value, self._missed, _NOISE, relative), parameters)


def smooth_track(
    track: Sequence[HandParameters | None],
    times: Sequence[float],
    perspective: bool,
    noises: Sequence[FloatArray | None] | None = None,
) -> list[HandParameters | None]:
    """Smooth a recorded hand over earlier and later frames; `times` and `noises` are as in `HandSmoother`.

    None stands for a frame without the hand. Such frames are predicted in gaps of at most `LONGEST_GAP`.
    """
    found = list(track)
    known = {i: each for i, each in enumerate(track) if each is not None and _usable(each, perspective)}
    for frames in _parts(list(known), times):
        form = _Form(known[frames[0]], perspective)
        part = range(frames[0], frames[-1] + 1)
        values = [form.values(known[i]) if i in known else None for i in part]
        variances = [_noise(noises[i] if noises else None) for i in part]
        measured = list(zip([times[i] for i in part], values, variances, strict=True))
        for i, value in zip(part, smoothed(measured, _WIDTHS, _NOISE), strict=True):
            found[i] = form.parameters(value, known.get(i, known[frames[0]]))
    return found


def _parts(frames: Sequence[int], times: Sequence[float]) -> list[list[int]]:
    """Split frames at gaps longer than `LONGEST_GAP`."""
    parts: list[list[int]] = []
    for frame in frames:
        if not parts or times[frame] - times[parts[-1][-1]] > LONGEST_GAP:
            parts.append([])
        parts[-1].append(frame)
    return parts


def smooth_hands(
    model: HandModel, hands: Sequence[Hand | None], times: Sequence[float], fill: bool = False
) -> list[Hand | None]:
    """Give the frames of one hand one shape, and smooth its movement over earlier and later frames.

    Args:
        model: Hand model of either side.
        hands: The hand in each frame; None where it is not seen.
        times: Times of the frames, rising, seconds.
        fill: Whether frames in short gaps are predicted; see `fit_sequence`.
    """
    results: list[Hand | None] = []
    for hand, parameters in zip(hands, smooth_parameters(model, hands, times), strict=True):
        found = hand
        if parameters is not None and (hand is not None or fill):
            like = next(each for each in hands if each is not None) if hand is None else hand
            found = jax.device_get(with_parameters(model, dataclasses.replace(like, track=None), parameters))
            found = dataclasses.replace(found if hand is not None else _predicted(found), track=like.track)
        results.append(found)
    return results


def smooth_parameters(
    model: HandModel, hands: Sequence[Hand | None], times: Sequence[float]
) -> list[HandParameters | None]:
    """Return the parameters of `smooth_hands`: one shape (with intrinsics, one scale), mostly from the best fits."""
    known = [hand for hand in hands if hand is not None]
    if not known:
        return [None] * len(hands)
    perspective, weights = known[0].perspective, [1.0 / measurement_noise(hand)[0] for hand in known]
    betas = np.average([hand.parameters.betas for hand in known], axis=0, weights=weights).astype(np.float32)
    lengths = [hand.parameters.scale * flat_length(model, hand.parameters.betas) for hand in known]
    mean_length = np.exp(np.average(np.log(np.abs(lengths)), weights=weights))
    scale = mean_length / float(flat_length(model, betas))
    track: list[HandParameters | None] = []
    for hand in hands:
        track.append(None if hand is None else with_betas(model, hand.parameters, betas, scale, perspective))
    noises = [None if hand is None else measurement_noise(hand) for hand in hands]
    return smooth_track(track, times, perspective, noises)


def _predicted(hand: Hand) -> Hand:
    """Mark a hand as predicted: its detected keypoints are the keypoints of the mesh, with confidence 0."""
    zero = np.zeros_like(hand.reprojection_after)
    return dataclasses.replace(
        hand,
        detected_keypoints_2d=hand.keypoints_2d,
        confidence=np.zeros_like(hand.confidence),
        reprojection_before=zero,
        reprojection_after=zero,
    )


def smooth_video(model: HandModel, frames: Sequence[Sequence[Hand]], times: Sequence[float]) -> list[list[Hand]]:
    """Smooth the hands of a recorded video, as `HandVideo` with `VideoConfig(smooth=False)` returns them.

    Each track is smoothed over earlier and later frames, so it does not lag. A track that changes sides is two hands.

    Args:
        model: Hand model of either side.
        frames: Hands of each frame.
        times: Times of the frames, rising, seconds.
    """
    tracks: dict[tuple[int | None, Side], list[Hand | None]] = {}
    for i, hands in enumerate(frames):
        for hand in hands:
            tracks.setdefault((hand.track, hand.side), [None] * len(frames))[i] = hand
    results: list[list[Hand]] = [[] for _ in frames]
    for _, track in sorted(tracks.items(), key=lambda item: (item[0][0] or 0, item[0][1])):
        for i, found in enumerate(smooth_hands(model, track, times)):
            if found is not None:
                results[i].append(found)
    return results

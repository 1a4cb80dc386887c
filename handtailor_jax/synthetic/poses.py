"""Random poses, shapes and orientations of hands, within the limits of the joints.

A pose is drawn in anatomical coordinates (flexion, abduction and twist of 15 joints) from a mixture of the joint prior,
named gestures, blends of two gestures, and combinations of fingers of different gestures. Of several candidates the
first one without colliding fingers is kept.
"""

import dataclasses
import functools
import importlib.resources
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, PRNGKeyArray

from handtailor_jax.data.draws import Draws
from handtailor_jax.data.readers.freihand import FreihandLayout
from handtailor_jax.errors import InputError, check_range
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle, matrix_from_quaternion
from handtailor_jax.mano.hand_model import HandModel, PosedHand
from handtailor_jax.mano.loading import recorded_poses
from handtailor_jax.skeleton import BONES, FINGERS, KEYPOINTS, MANO_JOINTS, ROOT, WRIST

_COORDINATES = {name: 3 * i for i, name in enumerate(MANO_JOINTS[1:])}  # index of a joint's flexion among the 45
_CURLING = np.asarray([_COORDINATES[f"{f}_{j}"] for f in FINGERS[1:] for j in ("mcp", "pip")], np.int32)
_DIP = np.asarray([_COORDINATES[f"{f}_dip"] for f in FINGERS[1:]], np.int32)
_PIP = np.asarray([_COORDINATES[f"{f}_pip"] for f in FINGERS[1:]], np.int32)
_FINGER_OF_JOINT = np.asarray([FINGERS.index(name.split("_")[0]) for name in MANO_JOINTS[1:]], np.int32)
_CURL = 0.5**0.5  # part of the standard deviation of flexion that the four fingers share

# Rest frame to camera: fingers up, palm toward the camera, the thumb of a right hand on the right of the image.
_PALM_TO_CAMERA = np.asarray([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)


@dataclasses.dataclass(frozen=True)
class PoseConfig:
    """Distribution of poses, shapes and orientations. The four kinds of pose are mixed by weight."""

    prior: float = 0.2
    """Weight of poses from the joint prior, in which the fingers curl together in part and DIP follows PIP."""
    gesture: float = 0.35
    """Weight of poses near one gesture."""
    blend: float = 0.2
    """Weight of poses between two gestures."""
    recombined: float = 0.25
    """Weight of poses whose five fingers come from five gestures or from the prior."""
    gesture_noise: float = 0.22
    """Spread around gestures, in standard deviations of the joint prior."""
    candidates: int = 8
    """Number of candidates per pose. The first one without a collision is kept, else the one with the least."""
    clearance: float = 0.004
    """Depth in metres to which the flesh of two fingers may be compressed without counting as a collision."""
    betas: float = 1.0
    """Standard deviation of the shape coefficients."""
    upright: float = 0.55
    """Share of hands held up in front of the camera, fingers within about 40 degrees of up; the others are uniform."""

    def __post_init__(self) -> None:
        weights = (self.prior, self.gesture, self.blend, self.recombined)
        if min(weights) < 0.0 or sum(weights) <= 0.0:
            raise InputError(f"PoseConfig: weights must not be negative, and one must be positive, got {weights}")
        check_range("PoseConfig: candidates", self.candidates, 1)
        check_range("PoseConfig: upright", self.upright, 0, 1)


@functools.cache
def gestures() -> dict[str, np.ndarray]:
    """Return named gestures as anatomical coordinates in radians, each (15, 3), in MANO's joint order."""
    found = {}
    for name in ("gestures.json", "more_gestures.json"):
        content = json.loads(importlib.resources.files("handtailor_jax").joinpath("assets", name).read_text())
        found.update({gesture: np.radians(np.asarray(angles, np.float32)) for gesture, angles in content.items()})
    return found


def sample_pose(hand: HandModel, key: PRNGKeyArray, config: PoseConfig = PoseConfig()) -> Float[Array, "16 3"]:
    """Draw a pose in MANO's order, axis-angle in radians, within the limits of `hand.anatomy`.

    Row 0 rotates the rest frame to the camera frame.
    """
    fingers, orientation = jax.random.split(key)
    turn = sample_orientation(orientation, config, hand.dtype)
    return jnp.concatenate([turn[None], sample_finger_pose(hand, fingers, config)])


def sample_finger_pose(hand: HandModel, key: PRNGKeyArray, config: PoseConfig = PoseConfig()) -> Float[Array, "15 3"]:
    """Draw axis-angle finger rotations (radians, MANO's order) of a pose without colliding fingers."""
    candidates = jax.vmap(lambda key: _coordinates(hand, key, config))(jax.random.split(key, config.candidates))
    poses = jax.vmap(hand.anatomy.finger_pose)(candidates)
    rest = hand.shape(jnp.zeros((hand.num_betas,), hand.dtype))
    still = jnp.zeros((1, 3), hand.dtype)
    depth = jax.vmap(lambda pose: collision_depth(rest.pose(jnp.concatenate([still, pose]))))(poses)
    free = depth <= config.clearance
    return poses[jnp.where(free.any(), jnp.argmax(free), jnp.argmin(depth))]


def sample_betas(hand: HandModel, key: PRNGKeyArray, config: PoseConfig = PoseConfig()) -> Float[Array, "betas"]:
    """Draw shape coefficients, normal and clipped to 2.5 standard deviations."""
    return config.betas * jnp.clip(jax.random.normal(key, (hand.num_betas,), hand.dtype), -2.5, 2.5)


def sample_orientation(key: PRNGKeyArray, config: PoseConfig, dtype: jnp.dtype) -> Float[Array, "3"]:
    """Draw a global rotation (axis-angle, radians): uniform, or of a hand held up in front of the camera."""
    draws = Draws(key, dtype)
    uniform = matrix_from_quaternion(draws.normal(4))  # a normal quaternion is a rotation uniform on SO(3)
    # Palm, back or edge toward the camera, then tilted a little, then rotated in the image.
    facing = draws.uniform()
    yaw = jnp.where(facing < 0.55, 0.0, jnp.where(facing < 0.8, math.pi, 0.5 * math.pi * jnp.sign(draws.normal())))
    yaw = yaw + math.radians(24.0) * draws.normal()
    pitch = math.radians(18.0) * draws.normal()
    roll = math.radians(24.0) * draws.normal()
    zero = jnp.zeros((), dtype)
    lean = matrix_from_axis_angle(jnp.stack([zero, zero, roll]))
    tilt = matrix_from_axis_angle(jnp.stack([pitch, zero, zero]))
    turn = matrix_from_axis_angle(jnp.stack([zero, yaw, zero]))
    upright = lean @ tilt @ turn @ jnp.asarray(_PALM_TO_CAMERA, dtype)
    return axis_angle_from_matrix(jnp.where(draws.uniform() < config.upright, upright, uniform))


@dataclasses.dataclass(frozen=True)
class RecordedPoses:
    """Source of finger poses for stage "ik", recombined from recorded ones."""

    poses: npt.NDArray[np.floating]
    """(n, 15, 3) recorded rotations relative to the flat hand, radians."""
    count: int
    """Number of samples per step."""
    seed: int

    @classmethod
    def read(cls, mano: Path | None, fits: Any, count: int, seed: int) -> "RecordedPoses":
        """Read the poses in a MANO file and in a FreiHAND reader (`fits`), if they are given.

        Raises:
            InputError: If the reader has no poses.
        """
        poses = [np.zeros((0, 15, 3))] if mano is None else [recorded_poses(mano)]
        if fits is not None:
            if not isinstance(fits, FreihandLayout) or not len(fits.finger_poses):
                needed = "unpack FreiHAND_pub_v2 and set hand to MANO_RIGHT.pkl, or leave dataset out"
                raise InputError(f"data.dataset is freihand, whose poses need its own archive and MANO: {needed}")
            poses.append(fits.finger_poses)
        return cls(np.concatenate(poses), count, seed)

    def batch(self, step: int, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return poses (positions, 15, 3): fingers of different recorded poses, each rotation times a random share.

        BiHand and Zhou et al. (CVPR 2020) augment recorded poses in this way.
        """
        rng = np.random.default_rng((self.seed, step))
        chosen = rng.integers(len(self.poses), size=(self.count, len(FINGERS)))[:, _FINGER_OF_JOINT]
        share = rng.random((self.count, 15, 1))
        return (share * self.poses[chosen, np.arange(15)])[list(positions)].astype(np.float32)


def _coordinates(hand: HandModel, key: PRNGKeyArray, config: PoseConfig) -> Float[Array, "15 3"]:
    """Draw one candidate in anatomical coordinates, radians, within the limits."""
    anatomy, dtype = hand.anatomy, hand.dtype
    draws = Draws(key, dtype)

    z = draws.normal(45)
    z = z.at[_CURLING].set(_CURL * z[_CURLING] + _CURL * draws.normal())
    prior = anatomy.mean.reshape(45) + anatomy.std.reshape(45) * z
    dip = 0.6 * prior[_PIP] + math.radians(10.0) * z[_DIP]
    prior = prior.at[_DIP].set(dip).reshape(15, 3)

    table = jnp.asarray(np.stack(list(gestures().values())), dtype)
    count = table.shape[0]
    first, second = table[draws.choice(count)], table[draws.choice(count)]
    chosen = (draws.uniform(len(FINGERS)) * count).astype(jnp.int32)[_FINGER_OF_JOINT]
    mixed = table[chosen, np.arange(15, dtype=np.int32)]
    from_prior = (draws.uniform(len(FINGERS)) < 0.25)[_FINGER_OF_JOINT]
    mixed = jnp.where(from_prior[:, None], prior, mixed)
    blended = first + draws.uniform() * (second - first)

    weights = np.cumsum([config.prior, config.gesture, config.blend, config.recombined])
    kind = jnp.searchsorted(jnp.asarray(weights[:-1] / weights[-1], dtype), draws.uniform())
    pose = jnp.stack([prior, first, blended, mixed])[kind]
    noise = jnp.where(kind == 0, 0.0, config.gesture_noise) * anatomy.std * draws.normal(15, 3)
    return jnp.clip(pose + noise, anatomy.lower, anatomy.upper)


def _radius_of(bone: tuple[int, int]) -> float:
    """Return the radius of the flesh around a bone in metres, for a hand of average shape."""
    finger, _, joint = KEYPOINTS[bone[1]].partition("_")
    along = {"mcp": 0.0095, "cmc": 0.012, "pip": 0.0085, "ip": 0.009, "dip": 0.0074, "tip": 0.0062}[joint]
    return along * {"thumb": 1.15, "little": 0.88}.get(finger, 1.0)


_RADII = np.asarray([_radius_of(bone) for bone in BONES], np.float32)


def _may_collide(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether two bones of different fingers collide on contact; next to metacarpals contact is normal."""
    fingers = {KEYPOINTS[bone[1]].split("_")[0] for bone in (first, second)}
    palm = sum(bone[0] == WRIST for bone in (first, second))
    bases = sum(bone[0] in _METACARPAL_ENDS for bone in (first, second))
    return len(fingers) == 2 and palm < 2 and not (palm == 1 and bases == 1)


_METACARPAL_ENDS = {bone[1] for bone in BONES if bone[0] == WRIST}
_PAIRS = np.asarray([(i, j) for i in range(len(BONES)) for j in range(i) if _may_collide(BONES[i], BONES[j])], np.int32)


def collision_depth(posed: PosedHand) -> Float[Array, ""]:
    """Return the greatest depth in metres to which capsules around bones of different fingers overlap, or 0."""
    keypoints = posed.keypoints
    length = jnp.sqrt(jnp.sum((keypoints[ROOT] - keypoints[WRIST]) ** 2))
    size = length / 0.095  # the radii are those of a hand whose reference bone has 95 mm
    bones = np.asarray(BONES, np.int32)
    start, end = keypoints[bones[:, 0]], keypoints[bones[:, 1]]
    first, second = _PAIRS[:, 0], _PAIRS[:, 1]
    distance = segment_distance(start[first], end[first], start[second], end[second])
    radii = size * jnp.asarray(_RADII[first] + _RADII[second], keypoints.dtype)
    return jnp.maximum(jnp.max(radii - distance), 0.0)


def segment_distance(
    a: Float[Array, "n 3"], b: Float[Array, "n 3"], c: Float[Array, "n 3"], d: Float[Array, "n 3"]
) -> Float[Array, "n"]:
    """Return the distances between the segments a-b and c-d."""
    u, v, w = b - a, d - c, a - c

    def dot(x: Array, y: Array) -> Array:
        return jnp.sum(x * y, axis=-1)

    uu, uv, vv, uw, vw = dot(u, u), dot(u, v), dot(v, v), dot(u, w), dot(v, w)
    # The nearest point of the first line, then alternately the nearest point of either segment. Two rounds are exact
    # unless both ends clamp, which needs a third.
    s = jnp.clip((uv * vw - vv * uw) / jnp.maximum(uu * vv - uv * uv, 1e-14), 0.0, 1.0)
    for _ in range(3):
        t = jnp.clip((uv * s + vw) / jnp.maximum(vv, 1e-14), 0.0, 1.0)
        s = jnp.clip((uv * t - uw) / jnp.maximum(uu, 1e-14), 0.0, 1.0)
    gap = w + s[:, None] * u - t[:, None] * v
    return jnp.sqrt(dot(gap, gap) + 1e-14)

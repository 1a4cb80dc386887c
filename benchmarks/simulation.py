"""Simulated problems of the tailor with known ground truth, for tests and benchmarks.

A problem is a hand in front of a camera, its noisy keypoints, and a noisy proposal of pose, shape and depth. The
problems depend only on the hand model, the seed, the count and the options.
"""

import functools
import importlib.resources
import json
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.data.draws import Draws
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import project, unproject
from handtailor_jax.geometry.lifting import reference_bone_length
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, axis_angle_from_quaternion, matrix_from_axis_angle
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import FINGERS, KEYPOINTS, MANO_JOINTS, ROOT_JOINT
from handtailor_jax.tailor.placement import camera_keypoints, initialize
from handtailor_jax.tailor.tailor import TailorConfig
from handtailor_jax.types import Camera, HandParameters, Observation, pytree

Noise = Literal["gaussian", "heavy_tailed"]
"""Keypoint noise: the same Gaussian for all keypoints, or Student-t with a width for each joint and with outliers."""

View = Literal["perspective", "weak_perspective"]

_CROP = 256  # pixels
_HAND = 0.18  # metres, length of a hand; sets the focal length at which the hand fills the crop
_BETAS_NOISE = 0.5  # standard deviations
_DEPTH_NOISE = 0.03  # share of the root's depth
_BONE_NOISE = 0.03  # share of the reference bone
_OUTLIERS = 0.02  # share of keypoints that are outliers under heavy-tailed noise
_OUTLIER_NOISE = 0.15  # standard deviation of outliers, share of the hand size

_GESTURES = 0.4  # share of hands near a gesture or between two gestures
_CURL = 0.5**0.5  # standard deviation of the flexion that four fingers share, relative to the whole

_COORDINATES = {name: 3 * i for i, name in enumerate(MANO_JOINTS[1:])}  # index of a joint's flexion among the 45
_CURLING = np.asarray([_COORDINATES[f"{f}_{j}"] for f in FINGERS[1:] for j in ("mcp", "pip")], np.int32)
_DIP = np.asarray([_COORDINATES[f"{f}_dip"] for f in FINGERS[1:]], np.int32)
_PIP = np.asarray([_COORDINATES[f"{f}_pip"] for f in FINGERS[1:]], np.int32)


def _noise_of(keypoint: str) -> float:
    """Return the noise of a keypoint relative to the mean: largest on fingertips and on the thumb."""
    along = {"mcp": 0.7, "cmc": 0.9, "pip": 0.9, "ip": 1.0, "dip": 1.0, "tip": 1.4}
    finger, _, joint = keypoint.partition("_")
    return 0.9 if not joint else along[joint] * (1.2 if finger == "thumb" else 1.0)


_JOINT_NOISE = np.asarray([_noise_of(name) for name in KEYPOINTS], np.float32)


@pytree
class TailorProblems:
    """Simulated problems along a leading axis."""

    truth: HandParameters
    """True hand in the camera frame; its scale is 1 in perspective."""
    keypoints: Float[Array, "*batch 21 3"]
    """True keypoints in the camera frame: metres, or pixels in weak perspective."""
    observation: Observation
    """Noisy keypoints in pixels of a 256 x 256 crop, their confidences, and the true camera."""
    pose: Float[Array, "*batch 16 3"]
    """Proposed rotations, axis-angle, radians."""
    betas: Float[Array, "*batch betas"]
    """Proposed shape, standard deviations."""
    root_depth: Float[Array, "*batch"]
    """Proposed depth of the root joint, metres; 0 in weak perspective."""
    bone: Float[Array, "*batch"]
    """Proposed length of the reference bone, metres."""

    def starts(self, hand: HandModel, config: TailorConfig) -> HandParameters:
        """Return the start of the tailor for every problem."""
        return jax.vmap(lambda problem: problem.start(hand, config))(self)

    def start(self, hand: HandModel, config: TailorConfig) -> HandParameters:
        """Return the start of the tailor for a single problem (no leading axis)."""
        proposal = (self.pose, self.betas, self.observation)
        return initialize(hand, *proposal, root_depth=self.root_depth, bone=self.bone, scale=config.scale)


def tailor_problems(
    hand: HandModel,
    count: int,
    seed: int,
    noise: Noise = "gaussian",
    camera: View = "perspective",
    *,
    keypoint_noise: float = 0.0125,
    start_noise: float = 0.15,
) -> TailorProblems:
    """Simulate hands in anatomically likely poses and shapes, seen from all sides at 0.3 to 1 m.

    Args:
        hand: Hand model.
        count: Number of problems.
        seed: Seed of all draws.
        noise: Kind of keypoint noise.
        camera: Kind of camera: a pinhole camera with fx != fy and an off-centre principal point, or weak perspective.
        keypoint_noise: Standard deviation of the keypoints per axis, share of the hand size; of heavy-tailed noise, the
            average over the joints without outliers.
        start_noise: Standard deviation of each proposed rotation about each axis, radians.

    Raises:
        ValueError: on an unknown `noise` or `camera`.
    """
    if noise not in get_args(Noise):
        raise ValueError(f"noise is {noise!r}: choose one of {', '.join(get_args(Noise))}")
    if camera not in get_args(View):
        raise ValueError(f"camera is {camera!r}: choose one of {', '.join(get_args(View))}")
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # the same problems on every accelerator
        widths = (jnp.asarray(width, hand.dtype) for width in (keypoint_noise, start_noise))
        return _problems(hand, jax.random.key(seed), count, noise, camera, *widths)


def _fingers(hand: HandModel, draws: Draws) -> Float[Array, "15 3"]:
    """Draw flexion, abduction and twist (radians) of a likely pose, within the joint limits."""
    anatomy, dtype = hand.anatomy, hand.dtype
    # A pose of the prior, in which fingers partly curl together and DIP joints follow PIP joints.
    z = draws.normal(45)
    z = z.at[_CURLING].set(_CURL * z[_CURLING] + _CURL * draws.normal())
    sample = anatomy.mean.reshape(45) + anatomy.std.reshape(45) * z
    dip = 0.6 * sample[_PIP] + math.radians(10.0) * z[_DIP]
    sample = sample.at[_DIP].set(dip).reshape(15, 3)
    # A pose near a gesture or between two.
    gestures = jnp.asarray(_gestures(), dtype)
    first, second = gestures[(draws.uniform(2) * gestures.shape[0]).astype(jnp.int32)]
    near = first + draws.uniform() * (second - first) + 0.3 * anatomy.std * draws.normal(15, 3)
    return jnp.clip(jnp.where(draws.uniform() < _GESTURES, near, sample), anatomy.lower, anatomy.upper)


def _gestures() -> np.ndarray:
    """Return the gestures of assets/gestures.json: anatomical coordinates (n, 15, 3), radians."""
    text = importlib.resources.files("handtailor_jax").joinpath("assets", "gestures.json").read_text()
    return np.radians(np.asarray(list(json.loads(text).values()), np.float32))


@functools.partial(jax.jit, static_argnames=("count", "noise", "view"))
def _problems(
    hand: HandModel, key: Array, count: int, noise: Noise, view: View, keypoint_noise: Array, start_noise: Array
) -> TailorProblems:
    def problem(key: Array) -> TailorProblems:
        normal, uniform = jax.random.split(key)
        draws = Draws(jnp.stack([uniform, normal]), hand.dtype, uniforms=64, normals=512)
        return _problem(hand, draws, noise, view, keypoint_noise, start_noise)

    return jax.vmap(problem)(jax.random.split(key, count))


def _problem(
    hand: HandModel, draws: Draws, noise: Noise, view: View, keypoint_noise: Array, start_noise: Array
) -> TailorProblems:
    fingers = hand.anatomy.finger_pose(_fingers(hand, draws))
    turn = axis_angle_from_quaternion(draws.normal(4))  # a normal quaternion gives a rotation uniform on SO(3)
    pose = jnp.concatenate([turn[None], fingers])
    betas = draws.normal(hand.num_betas)
    posed = hand.shape(betas).pose(pose)
    relative = posed.keypoints - posed.joints[ROOT_JOINT][None]
    true_bone = reference_bone_length(relative)

    camera, truth = _place(relative, pose, betas, view, draws.uniform(7))
    keypoints = camera_keypoints(hand, truth)
    pixels = project(camera, keypoints)
    size = hand_size(pixels)
    error, confidence = _keypoint_noise(draws, noise, keypoint_noise)
    disturbance = matrix_from_axis_angle(start_noise * draws.normal(16, 3))
    return TailorProblems(
        truth=truth,
        keypoints=keypoints,
        observation=Observation(pixels + size * error, confidence, camera),
        pose=axis_angle_from_matrix(jnp.einsum("jab,jbc->jac", disturbance, matrix_from_axis_angle(pose))),
        betas=betas + _BETAS_NOISE * draws.normal(hand.num_betas),
        root_depth=truth.translation[2] * (1.0 + _DEPTH_NOISE * draws.normal()),
        bone=true_bone * (1.0 + _BONE_NOISE * draws.normal()),
    )


def _place(
    relative: Float[Array, "21 3"],
    pose: Float[Array, "16 3"],
    betas: Float[Array, "betas"],
    view: View,
    uniform: Float[Array, "7"],
) -> tuple[Camera, HandParameters]:
    """Draw a camera and place the hand so that it fills between a half and three quarters of the crop."""
    dtype = relative.dtype
    middle = 0.5 * (jnp.max(relative, axis=0) + jnp.min(relative, axis=0))
    magnification = _CROP * (0.5 + 0.25 * uniform[0]) / _HAND  # pixels per metre
    centre = 0.5 * (_CROP - 1) + 0.1 * _CROP * (uniform[1:3] - 0.5)
    one = jnp.ones((), dtype)
    if view == "weak_perspective":
        camera = Camera.weak_perspective(one)
        translation = jnp.concatenate([centre - magnification * middle[:2], jnp.zeros((1,), dtype)])
        return camera, HandParameters(pose=pose, betas=betas, scale=magnification, translation=translation)
    distance = 0.3 + 0.7 * uniform[3]
    focal = magnification * distance
    # A crop of a larger image: the optical axis need not pass through it, and its pixels need not be square.
    principal = 0.5 * (_CROP - 1) + 0.5 * _CROP * (uniform[4:6] * 2.0 - 1.0)
    stretch = 0.95 + 0.1 * uniform[6]
    camera = Camera.perspective(focal * stretch, focal / stretch, principal[0], principal[1])
    translation = unproject(camera, centre[None], distance[None])[0] - middle
    return camera, HandParameters(pose=pose, betas=betas, scale=one, translation=translation)


def _keypoint_noise(draws: Draws, noise: Noise, width: Array) -> tuple[Float[Array, "21 2"], Float[Array, "21"]]:
    """Draw keypoint errors (share of the hand size), and confidences as a detector might report them."""
    error = width * draws.normal(21, 2)
    if noise == "gaussian":
        return error, jnp.ones((21,), width.dtype)
    # Student-t with 3 degrees of freedom, divided by the square root of its variance, which is 3.
    error = error / jnp.sqrt(jnp.sum(draws.normal(21, 2, 3) ** 2, axis=-1))
    error = error * jnp.asarray(_JOINT_NOISE, width.dtype)[:, None]
    error = jnp.where(draws.uniform(21, 1) < _OUTLIERS, _OUTLIER_NOISE * draws.normal(21, 2), error)
    # Confidence falls with the error, with noise of its own; one keypoint in five has confidence 1 at any error.
    relative = jnp.sqrt(jnp.sum(error * error, axis=-1)) / jnp.maximum(width, 1e-6)
    confidence = 1.0 / (1.0 + (relative * jnp.exp(0.5 * draws.normal(21)) / 3.0) ** 2)
    return error, jnp.where(draws.uniform(21) < 0.2, 1.0, confidence)

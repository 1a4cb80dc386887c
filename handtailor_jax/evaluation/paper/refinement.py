"""The tailor applied to estimates: hands before and after, in a form that can be scored."""

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float
from tqdm import tqdm

from handtailor_jax.detections import detection
from handtailor_jax.evaluation.paper.subjects import MARGIN, Estimates, Truth, cameras_of
from handtailor_jax.fit import fit_detection
from handtailor_jax.geometry.cameras import crop_affine, project, transform_camera, transform_pixels
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import MANO_VERTICES
from handtailor_jax.skeleton import KEYPOINTS_FROM_MANO, ROOT
from handtailor_jax.tailor.batch import tailor_batch
from handtailor_jax.tailor.initialize import StartScale, initialize
from handtailor_jax.tailor.placement import camera_keypoints, camera_mesh
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import Camera, HandParameters, Observation, pytree

CROP = 256
"""Side of the squares in whose pixels the tailor works: that of the paper, whose weights are meant for it."""

_PIECE = 500


@dataclasses.dataclass(frozen=True)
class Hands:
    """Hands as a table scores them."""

    joints: npt.NDArray[np.float32]
    """(n, 21, 3) metres: in the camera frame with intrinsics, relative to the root without."""
    pixels: npt.NDArray[np.float32]
    """(n, 21, 2) the hands' keypoints in pixels of the `CROP`; empty for a method that gives joints only."""
    parameters: HandParameters | None
    """In the camera frame; None for a method that gives joints only."""


@pytree
class Problem:
    """Estimates as the tailor takes them, in pixels of a square around every hand."""

    observation: Observation
    """Keypoints and cameras."""
    pose: Float[Array, "*n 16 3"]
    """Proposed rotations, axis-angle, radians."""
    betas: Float[Array, "*n betas"]
    """Proposed shape."""
    root_depth: Float[Array, "*n"]
    """Proposed z of the root, metres; 0 without intrinsics."""
    bone: Float[Array, "*n"] | None
    """Proposed length of the reference bone, metres; None for the model's own."""

    def some(self, rows: npt.NDArray[np.integer]) -> "Problem":
        """Those at some indices."""
        return jax.tree.map(lambda leaf: leaf[rows], self)

    def starts(self, hand: HandModel, scale: StartScale) -> HandParameters:
        """The hands where the tailor starts, or, with scale "proposed", as the method itself would place them."""
        return _starts(hand, self.pose, self.betas, self.observation, self.root_depth, self.bone, scale)


@functools.partial(jax.jit, static_argnames="scale")
def _starts(
    hand: HandModel,
    pose: Array,
    betas: Array,
    observation: Observation,
    root_depth: Array,
    bone: Array | None,
    scale: StartScale,
) -> HandParameters:
    def one(pose: Array, betas: Array, seen: Observation, depth: Array, bone: Array | None) -> HandParameters:
        return initialize(hand, pose, betas, seen, root_depth=depth, bone=bone, scale=scale)

    return jax.vmap(one)(pose, betas, observation, root_depth, bone)


def problem_of(truth: Truth, estimates: Estimates, *, known_cameras: bool, size: int = CROP) -> Problem:
    """Estimates with pose and betas as problems of the tailor. Without a root depth intrinsics are of no use."""
    assert estimates.pose is not None
    assert estimates.betas is not None
    low, high = truth.keypoints_2d.min(axis=1), truth.keypoints_2d.max(axis=1)
    side = MARGIN * np.maximum((high - low).max(axis=-1), 1.0)
    affine = crop_affine(jnp.asarray(0.5 * (low + high)), jnp.asarray(side), size)
    known = known_cameras and estimates.root_depth is not None
    camera = transform_camera(cameras_of(truth.intrinsics, known=known), affine)
    if not known:
        # In weak perspective the camera frame is measured in pixels: those of the crop.
        count = len(truth)
        camera = Camera.weak_perspective(np.ones(count, np.float32), np.zeros((count, 2), np.float32))
    keypoints = transform_pixels(affine, jnp.asarray(estimates.keypoints_2d))
    depth = np.zeros(len(truth), np.float32) if estimates.root_depth is None else estimates.root_depth
    return Problem(
        observation=Observation(keypoints, jnp.asarray(estimates.confidence), camera),
        pose=jnp.asarray(estimates.pose),
        betas=jnp.asarray(estimates.betas),
        root_depth=jnp.asarray(depth),
        bone=None if estimates.bone is None else jnp.asarray(estimates.bone),
    )


def proposed(hand: HandModel, problem: Problem) -> Hands:
    """The hands as the method itself gives them: its own size and depth, no tailor."""
    return scored(hand, problem.starts(hand, "proposed"), problem.observation.camera)


def refined(hand: HandModel, problem: Problem, config: TailorConfig) -> Hands:
    """The hands after the tailor."""
    starts = problem.starts(hand, config.scale)
    count, parts = starts.scale.shape[0], []
    for first in range(0, count, _PIECE):
        # The last piece is filled up, so that nothing is compiled twice.
        rows = jnp.minimum(jnp.arange(first, first + _PIECE), count - 1) if count > _PIECE else jnp.arange(count)
        some, seen = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (starts, problem.observation))
        parts.append(tailor_batch(hand, some, seen, config))
    fitted = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *parts)
    return scored(hand, fitted, problem.observation.camera)


def scored(hand: HandModel, parameters: HandParameters, camera: Camera) -> Hands:
    """Hands of given parameters."""
    joints, pixels = _describe(hand, parameters, camera)
    return Hands(np.asarray(joints), np.asarray(pixels), parameters)


@jax.jit
def _describe(hand: HandModel, parameters: HandParameters, camera: Camera) -> tuple[Array, Array]:
    def one(parameters: HandParameters, camera: Camera) -> tuple[Array, Array]:
        keypoints = camera_keypoints(hand, parameters)
        metres = (keypoints - keypoints[ROOT][None]) / parameters.scale
        return jnp.where(camera.perspectivity > 0.5, keypoints, metres), project(camera, keypoints)

    return jax.vmap(one)(parameters, camera)


def plugged_in(
    hand: HandModel, truth: Truth, estimates: Estimates, config: TailorConfig, *, known_cameras: bool
) -> tuple[Hands, Hands]:
    """Another method before and after the tailor (Table 2).

    With pose and betas they are refined. With joints only, the keypoints are fitted with those joints as a hint.
    """
    if estimates.pose is not None:
        problem = problem_of(truth, estimates, known_cameras=known_cameras)
        return proposed(hand, problem), refined(hand, problem, config)
    assert estimates.joints is not None
    nothing = np.zeros((0, 21, 2), np.float32)
    fitted = []
    for i in tqdm(range(len(truth)), desc=f"fitting {estimates.method}", unit="hand"):
        known: dict[str, Any] = {"joints_3d": estimates.joints[i], "confidence": estimates.confidence[i]}
        fitted.append(fit_detection(detection(estimates.keypoints_2d[i], **known), hand=hand).joints)
    return Hands(estimates.joints, nothing, None), Hands(np.stack(fitted), nothing, None)


def meshes(hand: HandModel, parameters: HandParameters) -> npt.NDArray[np.float32]:
    """Vertices in the camera frame, (n, vertices, 3)."""
    count = parameters.scale.shape[0]
    parts = []
    for first in range(0, count, _PIECE):
        piece = jax.tree.map(lambda leaf, first=first: leaf[first : first + _PIECE], parameters)
        parts.append(np.asarray(_vertices(hand, piece)))
    return np.concatenate(parts)


FREIHAND_TIPS = (744, 320, 443, 555, 672)
"""MANO vertices that FreiHAND takes for fingertips, thumb to little finger (datasets, section 0)."""


def freihand_joints(hand: HandModel, vertices: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """FreiHAND's joints of posed meshes: regressed from the posed vertices, with tips of its own (datasets, section 0).

    Args:
        hand: MANO, right.
        vertices: (n, 778, 3), any frame.

    Returns:
        (n, 21, 3) in the same frame.

    Raises:
        ValueError: for another mesh, of which FreiHAND's joints are not defined.
    """
    if vertices.shape[1] != MANO_VERTICES:
        raise ValueError(
            f"FreiHAND's joints are defined on MANO's {MANO_VERTICES} vertices, not on {vertices.shape[1]}"
        )
    joints = np.einsum("jv,nvi->nji", np.asarray(hand.joint_regressor), vertices)
    both = np.concatenate([joints, vertices[:, FREIHAND_TIPS]], axis=1)
    return both[:, KEYPOINTS_FROM_MANO].astype(np.float32)


@jax.jit
def _vertices(hand: HandModel, parameters: HandParameters) -> Array:
    return jax.vmap(lambda one: camera_mesh(hand, one).vertices)(parameters)


def single_hand(hand: HandModel, config: TailorConfig, problem: Problem, index: int) -> Callable[[], Any]:
    """Start, iterations and mesh of one hand in one compiled call, which is what Table 3 times."""

    @jax.jit
    def fit(hand: HandModel, inputs: tuple[Any, ...]) -> tuple[HandParameters, Array]:
        pose, betas, seen, depth, bone = inputs
        start = initialize(hand, pose, betas, seen, root_depth=depth, bone=bone, scale=config.scale)
        fitted = tailor(hand, start, seen, config)
        return fitted, camera_mesh(hand, fitted).vertices

    inputs = (problem.pose, problem.betas, problem.observation, problem.root_depth, problem.bone)
    return functools.partial(fit, hand, jax.tree.map(lambda leaf: leaf[index], inputs))


def milliseconds(calls: Sequence[Callable[[], Any]], rounds: int, seed: int = 0) -> list[float]:
    """Median time of each call, warm, in rounds that go through all of them in random order."""
    for call in calls:
        jax.block_until_ready(call())
    times: list[list[float]] = [[] for _ in calls]
    order, shuffle = list(range(len(calls))), random.Random(seed).shuffle
    for _ in range(rounds):
        shuffle(order)
        for i in order:
            jax.block_until_ready(calls[i]())
            started = time.perf_counter()
            jax.block_until_ready(calls[i]())
            times[i].append(time.perf_counter() - started)
    return [1e3 * float(np.median(each)) for each in times]

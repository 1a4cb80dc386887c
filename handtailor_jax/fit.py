"""Keypoints in, hand out: the tailor behind any other method's detections."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from handtailor_jax.detections import Detection, detection
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import project
from handtailor_jax.geometry.mirror import mirror_camera, mirror_parameters, mirror_pixels, mirror_points, mirror_pose
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import LandmarkConvention, load_convention
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.tailor.initialize import relative_depth
from handtailor_jax.tailor.placement import ROOT_JOINT, camera_keypoints, camera_mesh, place, posed_hand
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.search import SearchConfig, place_proposal, search, starts
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import Camera, HandParameters, Observation, Side, pytree

FloatArray = npt.NDArray[np.float32]

DEFAULT_SEARCH = SearchConfig()


@dataclasses.dataclass(frozen=True)
class HandFit:
    """A fitted hand. Camera-frame lengths are metres with intrinsics and pixels without (`scale` pixels a metre)."""

    side: Side
    camera: Camera
    """The image's camera; the unit weak-perspective camera where no intrinsics were given."""
    convention: str
    parameters: HandParameters
    """Pose, shape and placement of the hand model of `side`."""
    vertices: FloatArray
    """(V, 3) camera-frame mesh."""
    faces: npt.NDArray[np.int32]
    """(F, 3) triangles, normals outward."""
    joints: FloatArray
    """(21, 3) the model's joints, metres: camera frame with intrinsics, relative to the middle MCP without."""
    landmarks: FloatArray
    """(21, 3) the same in the input's convention."""
    keypoints_2d: FloatArray
    """(21, 2) reprojected landmarks in the image's pixels: the input's convention, canonical order."""
    reprojection_before: float
    """Mean distance of the start's landmarks from the keypoints, pixels, over keypoints of non-zero confidence."""
    reprojection_after: float
    """The same of the fitted hand."""
    runner_up: "RunnerUp | None"
    """The next best, clearly different hand; None if there is none or a pose was proposed."""

    @property
    def perspective(self) -> bool:
        """Whether intrinsics were given."""
        return bool(self.camera.perspectivity > 0.5)


@dataclasses.dataclass(frozen=True)
class RunnerUp:
    """Another hand that explains the keypoints nearly as well: a palm that faces the camera is truly ambiguous."""

    parameters: HandParameters
    joints: FloatArray
    """(21, 3) metres, as in `HandFit`."""
    energy_gap: float
    """How much worse it is, in half squared standard deviations; below about 3 both are plausible."""


@pytree
class Finished:
    """Everything about one fitted hand that takes compiled code to compute; what `HandFit` is made of."""

    parameters: HandParameters
    vertices: Float[Array, "*batch vertices 3"]
    joints: Float[Array, "*batch 21 3"]
    landmarks: Float[Array, "*batch 21 3"]
    keypoints_2d: Float[Array, "*batch 21 2"]
    before: Float[Array, "*batch"]
    after: Float[Array, "*batch"]
    energy_gap: Float[Array, "*batch"]
    second: HandParameters
    second_joints: Float[Array, "*batch 21 3"]


def fit(
    keypoints_2d: Any,
    *,
    hand: HandModel | None = None,
    config: TailorConfig | None = None,
    search_config: SearchConfig = DEFAULT_SEARCH,
    **known: Any,
) -> HandFit:
    """Fits a hand to 21 keypoints and whatever else is known.

    With a `pose` the tailor refines that proposal. Without, it searches: several starts, the best kept by energy.

    Args:
        keypoints_2d: (21, 2) pixels (u, v).
        hand: hand model; the embedded hand if None. A model of the other side is mirrored.
        config: `TailorConfig`; None picks `keypoints_only()` for a search and `plug_in()` for a proposal.
        search_config: effort of a search.
        **known: `confidence`, `side`, `convention`, `order`, `camera`, `joints_3d`, `pose`, `betas`: see `detection`.

    Raises:
        InputError: one line that names what is wrong.
    """
    return fit_detection(detection(keypoints_2d, **known), hand=hand, config=config, search_config=search_config)


def fit_detection(
    found: Detection,
    *,
    hand: HandModel | None = None,
    config: TailorConfig | None = None,
    search_config: SearchConfig = DEFAULT_SEARCH,
) -> HandFit:
    """`fit` of checked input."""
    hand = embedded_hand() if hand is None else hand
    convention = load_convention(found.convention)
    camera = Camera.weak_perspective() if found.camera is None else Camera.from_matrix(jnp.asarray(found.camera))
    # One compiled program serves both hands: the other side is mirrored about u = 0 on the way in and out.
    mirror = hand.side != found.side
    core_camera = mirror_camera(camera, 1.0) if mirror else camera
    points = jnp.asarray(found.keypoints_2d)
    points = mirror_pixels(points, 1.0) if mirror else points
    confidence = jnp.asarray(found.confidence)
    depth = None
    if found.joints_3d is not None:
        joints = jnp.asarray(found.joints_3d)
        depth = relative_depth(mirror_points(joints) if mirror else joints, points, confidence)
    observation = Observation(points, confidence, core_camera, depth)

    betas = jnp.zeros((hand.num_betas,), hand.dtype) if found.betas is None else jnp.asarray(found.betas)
    if found.pose is None:
        config = config or TailorConfig.keypoints_only()
        fitted = _search(hand, observation, convention, betas, config, search_config)
    else:
        config = config or TailorConfig.plug_in()
        pose = jnp.asarray(found.pose)
        fitted = _refine(hand, observation, convention, mirror_pose(pose) if mirror else pose, betas, config)
    if mirror:
        fitted = dataclasses.replace(
            fitted, parameters=mirror_parameters(fitted.parameters), second=mirror_parameters(fitted.second)
        )
    fitted = jax.device_get(fitted)
    if not np.isfinite(fitted.vertices).all():
        raise InputError("no hand could be fitted to these keypoints: check their order and units")
    return hand_fit(fitted, found.side, found.convention, camera, np.asarray(hand.faces), mirror)


@functools.partial(jax.jit, static_argnames=("config", "search_config"))
def _search(
    hand: HandModel,
    observation: Observation,
    convention: LandmarkConvention,
    betas: Array,
    config: TailorConfig,
    search_config: SearchConfig,
) -> Finished:
    found = search(hand, observation, config, search_config, convention=convention, betas_mean=betas)
    best = jax.tree.map(lambda leaf: leaf[0], found.parameters)
    second = jax.tree.map(lambda leaf: leaf[found.runner_up], found.parameters)
    before = jax.vmap(lambda p: _reprojection(hand, p, observation, convention)[1])(
        starts(hand, observation, convention, betas)
    )
    gap = jnp.where(found.runner_up > 0, found.energies[found.runner_up] - found.energies[0], jnp.inf)
    return finish(hand, best, observation, convention, jnp.min(before), second, gap)


@functools.partial(jax.jit, static_argnames=("config",))
def _refine(
    hand: HandModel,
    observation: Observation,
    convention: LandmarkConvention,
    pose: Array,
    betas: Array,
    config: TailorConfig,
) -> Finished:
    start = place_proposal(hand, pose, betas, observation, convention)
    fitted = tailor(hand, start, observation, config, convention=convention)
    before = _reprojection(hand, start, observation, convention)[1]
    return finish(hand, fitted, observation, convention, before, fitted, jnp.asarray(jnp.inf, hand.dtype))


def _reprojection(
    hand: HandModel, parameters: HandParameters, observation: Observation, convention: LandmarkConvention
) -> tuple[Array, Array]:
    """Reprojected landmarks and their mean distance from the observed ones, pixels."""
    pixels = project(observation.camera, camera_keypoints(hand, parameters, convention))
    distance = jnp.sqrt(jnp.sum((pixels - observation.keypoints_2d) ** 2, axis=-1))
    seen = observation.confidence > 0.0
    return pixels, jnp.sum(jnp.where(seen, distance, 0.0)) / jnp.sum(seen.astype(distance.dtype))


def finish(
    hand: HandModel,
    best: HandParameters,
    observation: Observation,
    convention: LandmarkConvention,
    before: Array,
    second: HandParameters,
    gap: Array,
) -> Finished:
    """Everything a result needs of a fitted hand, and of the next best one.

    Args:
        hand: the hand model.
        best: the fitted hand, in the camera frame of `observation.camera`.
        observation: what it was fitted to.
        convention: what the observed keypoints mark.
        before: mean reprojection error of the start, pixels.
        second: the next best hand.
        gap: how much higher its energy is; inf if there is none.
    """
    posed = posed_hand(hand, best)
    pixels, after = _reprojection(hand, best, observation, convention)
    return Finished(
        parameters=best,
        vertices=camera_mesh(hand, best).vertices,
        joints=_metres(camera_keypoints(hand, best), best, observation.camera),
        landmarks=_metres(place(best, convention.landmarks(posed), posed.joints[ROOT_JOINT]), best, observation.camera),
        keypoints_2d=pixels,
        before=before,
        after=after,
        energy_gap=gap,
        second=second,
        second_joints=_metres(camera_keypoints(hand, second), second, observation.camera),
    )


def _metres(points: Array, parameters: HandParameters, camera: Camera) -> Array:
    """Camera-frame points as they are with intrinsics; relative to the root and over the scale without."""
    relative = (points - parameters.translation[None]) / parameters.scale
    return jnp.where(camera.perspectivity > 0.5, points, relative)


def hand_fit(
    fitted: Finished, side: Side, convention: str, camera: Camera, faces: npt.NDArray[np.int32], mirror: bool
) -> HandFit:
    """The result as numpy arrays, points mirrored back; the parameters already are."""
    flip = np.asarray([-1.0, 1.0, 1.0], np.float32) if mirror else np.ones(3, np.float32)
    runner_up = None
    if np.isfinite(fitted.energy_gap):
        second = jax.tree.map(jnp.asarray, fitted.second)
        runner_up = RunnerUp(second, np.asarray(fitted.second_joints) * flip, float(fitted.energy_gap))
    return HandFit(
        side=side,
        camera=camera,
        convention=convention,
        parameters=jax.tree.map(jnp.asarray, fitted.parameters),
        vertices=np.asarray(fitted.vertices) * flip,
        faces=faces[:, ::-1] if mirror else faces,
        joints=np.asarray(fitted.joints) * flip,
        landmarks=np.asarray(fitted.landmarks) * flip,
        keypoints_2d=np.asarray(fitted.keypoints_2d) * flip[:2],
        reprojection_before=float(fitted.before),
        reprojection_after=float(fitted.after),
        runner_up=runner_up,
    )

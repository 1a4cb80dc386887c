"""Fit hands to the keypoints of any other method, in 2D or in 3D."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from handtailor_jax.detections import Detection, checked_betas, checked_joints, detection, labelling
from handtailor_jax.errors import InputError, check_range
from handtailor_jax.geometry import exact
from handtailor_jax.geometry.cameras import as_camera, project
from handtailor_jax.geometry.mirror import (
    choose,
    mirror_camera,
    mirror_hand,
    mirror_observation,
    mirror_points,
    mirror_pose,
)
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import LandmarkConvention, load_convention
from handtailor_jax.mano.loading import given_hand
from handtailor_jax.programs import kept
from handtailor_jax.tailor.calibrated import CalibratedEnergy
from handtailor_jax.tailor.joints import tailor_joints
from handtailor_jax.tailor.placement import describe, place_proposal, relative_depth, with_floats, with_length
from handtailor_jax.tailor.search import SearchConfig, search
from handtailor_jax.tailor.tailor import TailorConfig, tailor
from handtailor_jax.types import Camera, Hand, Numbers, Observation, pytree

DEFAULT_SEARCH = SearchConfig()

_FIXED_BETAS_STD = 1e-3


def fit(
    keypoints_2d: Any,
    *,
    hand: HandModel | None = None,
    config: TailorConfig | None = None,
    search_config: SearchConfig = DEFAULT_SEARCH,
    **known: Any,
) -> Hand:
    """Fit a hand to 21 keypoints and optional further estimates.

    If a `pose` is given, the tailor refines it. Otherwise a search solves from several starts and keeps the hand of
    least energy.

    Args:
        keypoints_2d: (21, 2) Keypoints (u, v), pixels.
        hand: Hand model; the embedded hand if None. A model of the other side is mirrored.
        config: Energy and solver; if None, `keypoints_only()` for a search and `plug_in()` for a given pose.
        search_config: Effort of a search.
        **known: `confidence`, `side`, `convention`, `order`, `camera`, `joints_3d`, `pose`, `pca`,
            `global_rotation`, `flat_hand_mean`, `betas`, `fixed_betas`, `hand_length`: see `detection`.

    Raises:
        InputError: If a value is invalid, or no hand can be fitted.
    """
    found = detection(keypoints_2d, hand=hand, **known)
    return fit_detection(found, hand=hand, config=config, search_config=search_config)


def fit_detection(
    found: Detection,
    *,
    hand: HandModel | None = None,
    config: TailorConfig | None = None,
    search_config: SearchConfig = DEFAULT_SEARCH,
) -> Hand:
    """Fit a hand to a checked detection; see `fit`."""
    if found.time is not None:
        raise InputError("time is given for a single hand: use fit_sequence, or leave it out")
    model = given_hand(hand)
    known = _Known(
        keypoints_2d=found.keypoints_2d,
        confidence=found.confidence,
        camera=as_camera(found.camera),
        joints_3d=found.joints_3d,
        pose=found.pose,
        betas=np.zeros(model.num_betas, np.float32) if found.betas is None else found.betas,
        mirror=np.asarray(model.side != found.side),
    )
    if config is None:
        config = TailorConfig.keypoints_only() if found.pose is None else TailorConfig.plug_in()
    if found.fixed_betas:
        config = _with_fixed_betas(config)
    fitted = jax.device_get(_fit(model, known, load_convention(found.convention), config, search_config))
    second, gap = fitted.runner_up, fitted.energy_gap
    if second is not None and not (second.finite and np.isfinite(gap)):
        fitted = dataclasses.replace(fitted, runner_up=None, energy_gap=None)
    if not fitted.finite:
        raise InputError("no hand could be fitted to these keypoints: check their order, their unit and the camera")
    return fitted if found.hand_length is None else with_length(model, fitted, found.hand_length)


def _with_fixed_betas(config: TailorConfig) -> TailorConfig:
    if not isinstance(config.energy, CalibratedEnergy):
        raise InputError("fixed_betas is given with the paper's energy, which changes betas: use a calibrated energy")
    energy = dataclasses.replace(config.energy, betas_std=_FIXED_BETAS_STD, size_share=0.0)
    return dataclasses.replace(config, energy=energy)


def fit_joints(
    joints_3d: Any,
    *,
    confidence: Any = None,
    side: str = "right",
    convention: str = "mano",
    order: str = "canonical",
    joint_std: float = 0.0005,
    betas: Any = None,
    fixed_betas: bool = False,
    camera: Any = None,
    hand: HandModel | None = None,
) -> Hand:
    """Fit a hand to 21 3D joints, for example from motion capture: pose, shape, scale and translation.

    Any right-handed frame is allowed; `parameters`, `vertices`, `joints` and `landmarks` of the result are in this
    frame. Joints do not determine the twist of a bone, and hardly separate shape from scale; both follow the prior.

    Args:
        joints_3d: (21, 3) Joints, metres.
        confidence: (21,) 0 (missing) to 1; 1 if None. At least 6 joints are needed.
        side: Side of the hand.
        convention: Landmark convention of the joints: a name in `CONVENTIONS`.
        order: Order of joints and confidence: a name in `KEYPOINT_ORDERS`.
        joint_std: Noise of the joints, metres. With the default, exact joints are matched within 0.3 mm (median).
        betas: Up to 10 shape coefficients, the mean of the shape prior; zero if None.
        fixed_betas: Whether the betas are known and kept.
        camera: Camera whose frame the joints are in; without it the 2D fields of the result have no meaning.
        hand: Hand model; the embedded hand if None. A model of the other side is mirrored.

    Raises:
        InputError: If a value is invalid, or no hand can be fitted.
    """
    to_canonical = labelling(side, convention, order)
    joints, weights = checked_joints(joints_3d, confidence)
    check_range("joint_std (metres)", joint_std, 1e-5, 0.1)
    shape = checked_betas(betas, fixed_betas)
    model = given_hand(hand)
    known = _Joints(
        joints=joints[to_canonical],
        confidence=weights[to_canonical],
        joint_std=np.asarray(joint_std, np.float32),
        betas=np.zeros(model.num_betas, np.float32) if shape is None else shape,
        betas_std=np.asarray(_FIXED_BETAS_STD if fixed_betas else 1.0, np.float32),
        camera=as_camera(np.eye(3) if camera is None else camera),
        mirror=np.asarray(model.side != side),
    )
    fitted = jax.device_get(_fit_joints(model, known, load_convention(convention)))
    if not fitted.finite:
        raise InputError("no hand could be fitted to these joints: check their order and unit")
    return fitted


@pytree
class _Joints:
    """Input of the compiled program of `fit_joints`."""

    joints: Float[Numbers, "21 3"]
    confidence: Float[Numbers, "21"]
    joint_std: Float[Numbers, ""]
    betas: Float[Numbers, "betas"]
    betas_std: Float[Numbers, ""]
    camera: Camera
    mirror: Bool[Numbers, ""]


@jax.jit
@exact
def _fit_joints(model: HandModel, known: _Joints, convention: LandmarkConvention) -> Hand:
    known, convention = with_floats(model.dtype, (known, convention))
    joints = choose(known.mirror, mirror_points(known.joints), known.joints)
    camera = choose(known.mirror, mirror_camera(known.camera, 1.0), known.camera)
    weights = known.confidence / known.joint_std**2
    fitted = tailor_joints(model, joints, weights, known.betas, known.betas_std, convention)
    seen = Observation(project(camera, joints), known.confidence, camera)
    hand = describe(model, fitted, seen, convention)
    return choose(known.mirror, mirror_hand(hand), hand)


@pytree
class _Known:
    """Input of the compiled program of `fit_detection`."""

    keypoints_2d: Float[Numbers, "21 2"]
    confidence: Float[Numbers, "21"]
    camera: Camera
    joints_3d: Float[Numbers, "21 3"] | None
    pose: Float[Numbers, "16 3"] | None
    betas: Float[Numbers, "betas"]
    mirror: Bool[Numbers, ""]
    """Whether hand and hand model are of different sides; a value, so that one program serves both sides."""


@functools.partial(jax.jit, static_argnames=("config", "search_config"))
def _fit(
    model: HandModel, known: _Known, convention: LandmarkConvention, config: TailorConfig, search_config: SearchConfig
) -> Hand:
    run = functools.partial(_fitted, config=config, search_config=search_config)
    return kept(run, "fit", config, search_config)(model, known, convention)


def _fitted(
    model: HandModel, known: _Known, convention: LandmarkConvention, config: TailorConfig, search_config: SearchConfig
) -> Hand:
    known, convention = with_floats(model.dtype, (known, convention))
    depth = None
    if known.joints_3d is not None:
        depth = relative_depth(known.joints_3d, known.keypoints_2d, known.confidence)
    seen = Observation(known.keypoints_2d, known.confidence, known.camera, depth)
    seen = choose(known.mirror, mirror_observation(seen), seen)
    if known.pose is None:
        hand = search(model, seen, config, search_config, convention=convention, betas_mean=known.betas)
    else:
        pose = choose(known.mirror, mirror_pose(known.pose), known.pose)
        start = place_proposal(model, pose, known.betas, seen, convention)
        fitted = tailor(model, start, seen, config, convention=convention)
        before = describe(model, start, seen, convention).reprojection_after
        hand = dataclasses.replace(describe(model, fitted, seen, convention), reprojection_before=before)
    return choose(known.mirror, mirror_hand(hand), hand)

"""Keypoints in, hand out: the tailor behind any other method's detections."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from handtailor_jax.detections import Detection, detection
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import as_camera
from handtailor_jax.geometry.mirror import choose, mirror_hand, mirror_observation, mirror_pose
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import LandmarkConvention, load_convention
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.tailor.placement import describe, place_proposal, relative_depth, with_floats
from handtailor_jax.tailor.search import SearchConfig, search
from handtailor_jax.tailor.tailor import TailorConfig, tailor
from handtailor_jax.types import Camera, Hand, Numbers, Observation, pytree

DEFAULT_SEARCH = SearchConfig()


def fit(
    keypoints_2d: Any,
    *,
    hand: HandModel | None = None,
    config: TailorConfig | None = None,
    search_config: SearchConfig = DEFAULT_SEARCH,
    **known: Any,
) -> Hand:
    """Fit a hand to 21 keypoints and whatever else is known.

    With a `pose` the tailor refines that proposal. Without one it searches: it solves from several starts and keeps the
    hand of least energy.

    Args:
        keypoints_2d: (21, 2) Keypoints (u, v), pixels.
        hand: Hand model; the embedded hand if None. A model of the other side is mirrored.
        config: Energy and solver; `keypoints_only()` for a search and `plug_in()` for a proposal if None.
        search_config: Effort of a search.
        **known: `confidence`, `side`, `convention`, `order`, `camera`, `joints_3d`, `pose`, `pca`,
            `global_rotation`, `flat_hand_mean`, `betas`: see `detection`.

    Raises:
        InputError: One line that names what is wrong.
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
    model = embedded_hand() if hand is None else hand
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
    fitted = jax.device_get(_fit(model, known, load_convention(found.convention), config, search_config))
    second, gap = fitted.runner_up, fitted.energy_gap
    if second is not None and not (second.finite and np.isfinite(gap)):
        fitted = dataclasses.replace(fitted, runner_up=None, energy_gap=None)
    if not fitted.finite:
        raise InputError("no hand could be fitted to these keypoints: check their order and units, and the camera's")
    return fitted


@pytree
class _Known:
    """A detection as the compiled program takes it."""

    keypoints_2d: Float[Numbers, "21 2"]
    confidence: Float[Numbers, "21"]
    camera: Camera
    joints_3d: Float[Numbers, "21 3"] | None
    pose: Float[Numbers, "16 3"] | None
    betas: Float[Numbers, "betas"]
    mirror: Bool[Numbers, ""]
    """Whether the hand is of the other side than the hand model, so that one program serves both sides."""


@functools.partial(jax.jit, static_argnames=("config", "search_config"))
def _fit(
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

"""The tailor: the hand that minimises an energy of observed keypoints, from a start."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.tailor.calibrated import CalibratedEnergy, CalibratedProblem
from handtailor_jax.tailor.paper import PaperProblem
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.solve import MinimisationProblem, solve
from handtailor_jax.types import HandParameters, Observation


def tailor(
    hand: HandModel,
    start: HandParameters,
    observation: Observation,
    config: TailorConfig | None = None,
    *,
    convention: LandmarkConvention = MANO,
) -> HandParameters:
    """Fit one hand to observed keypoints: minimise the configured energy from `start`.

    Use `tailor_batch`, or ``jax.vmap`` inside ``jit``, for several hands. The result is differentiable in every array
    argument; `config.gradient` selects how.

    Args:
        hand: Hand model of the side of the hand in the image.
        start: Proposed hand in the camera frame, from `initialize` or another method.
        observation: Keypoints (pixels), confidences and camera.
        config: Energy and solver; `TailorConfig.default()` if None.
        convention: Landmark convention of the observed keypoints.

    Returns:
        The fitted hand, in the camera frame of `observation.camera`.
    """
    config = config or TailorConfig.default()
    problem = pose_problem(hand, start, observation, config, convention)
    return problem.parameters(solve(problem, config.solver, config.gradient))


def tailor_batch(
    hand: HandModel,
    starts: HandParameters,
    observations: Observation,
    config: TailorConfig | None = None,
    *,
    convention: LandmarkConvention = MANO,
) -> HandParameters:
    """Fit many hands with one compiled program on one device.

    The arguments are those of `tailor`; starts, observations and the result have a leading axis (batch). The batch is
    not split over threads, because that deadlocks in XLA's CPU client of jax 0.10 and gains nothing on jax 0.12.
    """
    return _tailor_batch(hand, starts, observations, config or TailorConfig.default(), convention)


@functools.partial(jax.jit, static_argnames="config")
def _tailor_batch(
    hand: HandModel,
    starts: HandParameters,
    observations: Observation,
    config: TailorConfig,
    convention: LandmarkConvention,
) -> HandParameters:
    return jax.vmap(lambda start, seen: tailor(hand, start, seen, config, convention=convention))(starts, observations)


def pose_problem(
    hand: HandModel,
    start: HandParameters,
    observation: Observation,
    config: TailorConfig,
    convention: LandmarkConvention = MANO,
    betas_mean: Float[Array, "betas"] | None = None,
) -> MinimisationProblem:
    """Return the minimisation problem of a configuration; `betas_mean` is the mean of its shape prior, zero if None.

    Raises:
        ValueError: If the paper's energy is configured for keypoints of another convention than the model's own.
    """
    if isinstance(config.energy, CalibratedEnergy):
        mean = jnp.zeros((hand.num_betas,), hand.dtype) if betas_mean is None else betas_mean
        return CalibratedProblem(config.energy, hand, convention, start, observation, mean)
    if convention.offsets is not None:
        raise ValueError(
            f"the paper's energy is defined for the model's own keypoints, not for {convention.name!r} landmarks: "
            "use a calibrated energy"
        )
    return PaperProblem(config.energy, hand, start, observation)

"""The tailor: start, observation -> fitted hand."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.tailor.calibrated import CalibratedEnergy, CalibratedProblem
from handtailor_jax.tailor.paper import PaperProblem
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.solve import Problem, solve
from handtailor_jax.types import HandParameters, Observation


def tailor(
    hand: HandModel,
    start: HandParameters,
    observation: Observation,
    config: TailorConfig | None = None,
    *,
    convention: LandmarkConvention = MANO,
) -> HandParameters:
    """Makes a hand agree with observed keypoints: the minimiser of the configured energy, from `start`.

    One hand; use ``jax.vmap`` for many. Differentiable in every array argument, in the way `config.gradient` says.

    Args:
        hand: the hand model; its side is the side of the hand in the picture.
        start: proposed hand in the camera frame, from `initialize` (Eq. 12, 17) or another method.
        observation: keypoints (pixels), confidences and camera.
        config: energy and solver; `TailorConfig.default()` if None.
        convention: what the observed keypoints mark on the hand.

    Returns:
        The fitted hand, in the camera frame of `observation.camera`.
    """
    config = config or TailorConfig.default()
    problem = pose_problem(hand, start, observation, config, convention)
    return problem.parameters(solve(problem, config.solver, config.gradient))


def pose_problem(
    hand: HandModel,
    start: HandParameters,
    observation: Observation,
    config: TailorConfig,
    convention: LandmarkConvention = MANO,
    betas_mean: Float[Array, "betas"] | None = None,
) -> Problem:
    """The minimisation that a configuration stands for.

    Raises:
        ValueError: if the paper's energy is asked for keypoints of another convention than the model's own.
    """
    if isinstance(config.energy, CalibratedEnergy):
        mean = jnp.zeros((hand.num_betas,), hand.dtype) if betas_mean is None else betas_mean
        return CalibratedProblem(config.energy, hand, convention, start, observation, mean)
    if convention.offsets is not None:
        raise ValueError(f"the paper's energy knows the model's own keypoints only, not {convention.name!r} landmarks")
    return PaperProblem(config.energy, hand, start, observation)

"""Many hands at once."""

import functools

import jax

from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import HandParameters, Observation


def tailor_batch(
    hand: HandModel,
    starts: HandParameters,
    observations: Observation,
    config: TailorConfig | None = None,
    *,
    convention: LandmarkConvention = MANO,
) -> HandParameters:
    """Fit many hands with one compiled program.

    The batch is one program on one device. Splitting it over threads deadlocks in XLA's CPU client of jax 0.10 on two
    cores and gains nothing on jax 0.12, so it is not offered. Inside ``jit``, use ``jax.vmap(tailor, ...)``.

    Args:
        hand: Hand model of all hands.
        starts: Proposed hands, leading axis (batch).
        observations: Keypoints and cameras of the hands, leading axis (batch).
        config: Energy and solver; `TailorConfig.default()` if None.
        convention: Landmark definitions of the observed keypoints.

    Returns:
        The fitted hands, leading axis (batch).
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

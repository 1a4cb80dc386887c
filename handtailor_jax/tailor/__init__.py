"""The tailor module: makes a proposed hand agree with 2D keypoints."""

from handtailor_jax.tailor.batch import tailor_batch
from handtailor_jax.tailor.initialize import initialize
from handtailor_jax.tailor.presets import PRESETS, TailorConfig
from handtailor_jax.tailor.tailor import tailor

__all__ = ["PRESETS", "TailorConfig", "initialize", "tailor", "tailor_batch"]

"""The tailor module: fits a proposed hand to 2D keypoints."""

from handtailor_jax.tailor.initialize import initialize
from handtailor_jax.tailor.presets import PRESETS, TailorConfig
from handtailor_jax.tailor.tailor import tailor, tailor_batch

__all__ = ["PRESETS", "TailorConfig", "initialize", "tailor", "tailor_batch"]

"""The tailor module, which fits a proposed hand to 2D keypoints."""

from handtailor_jax.tailor.placement import initialize
from handtailor_jax.tailor.tailor import PRESETS, TailorConfig, tailor, tailor_batch

__all__ = ["PRESETS", "TailorConfig", "initialize", "tailor", "tailor_batch"]

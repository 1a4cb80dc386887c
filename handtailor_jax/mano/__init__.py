"""The hand model: from shape and pose to a mesh; its anatomy; readers of model files."""

from handtailor_jax.mano.hand_model import Anatomy, HandModel, LinearBlendSkin, PosedHand, ShapedHand
from handtailor_jax.mano.loading import embedded_hand, load_hand, load_mano

__all__ = [
    "Anatomy",
    "HandModel",
    "LinearBlendSkin",
    "PosedHand",
    "ShapedHand",
    "embedded_hand",
    "load_hand",
    "load_mano",
]

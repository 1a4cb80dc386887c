"""The learned half of the method: networks, losses, weights. Needs Flax."""

from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.iknet import IKNet
from handtailor_jax.hand_module.layers import inference_form
from handtailor_jax.hand_module.official import load_official

__all__ = ["HandModule", "HandModuleConfig", "IKNet", "inference_form", "load_official"]

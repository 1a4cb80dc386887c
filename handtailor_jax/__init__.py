"""HandTailor in JAX: 3D hand meshes from RGB images."""

import importlib
from typing import TYPE_CHECKING, Any

from handtailor_jax.detections import Detection, detection, read_detections
from handtailor_jax.errors import InputError
from handtailor_jax.fit import fit, fit_detection, fit_joints
from handtailor_jax.mano import HandModel, embedded_hand, load_hand, load_mano
from handtailor_jax.mano.landmarks import CONVENTIONS, LandmarkConvention, load_convention
from handtailor_jax.mediapipe import from_mediapipe
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, MANO_JOINTS
from handtailor_jax.tailor import PRESETS, TailorConfig, initialize, tailor, tailor_batch
from handtailor_jax.tailor.placement import camera_keypoints, camera_mesh, place_proposal
from handtailor_jax.tailor.search import SearchConfig, search
from handtailor_jax.types import Camera, Hand, HandEstimate, HandMesh, HandParameters, Observation, Region, Side, View

if TYPE_CHECKING:
    from handtailor_jax.hand_module.hand_module import HandModule, LandmarkHandModule
    from handtailor_jax.hand_module.weights import load_weights
    from handtailor_jax.hand_tailor import HandTailor
    from handtailor_jax.image_to_mesh import recover_hand
    from handtailor_jax.pipeline import recover, recover_views
    from handtailor_jax.video.sequence import fit_sequence
    from handtailor_jax.video.track import HandVideo

__version__ = "0.1.0"

__all__ = [
    "CONVENTIONS",
    "KEYPOINTS",
    "KEYPOINT_ORDERS",
    "MANO_JOINTS",
    "PRESETS",
    "Camera",
    "Detection",
    "Hand",
    "HandEstimate",
    "HandMesh",
    "HandModel",
    "HandModule",
    "HandParameters",
    "HandTailor",
    "HandVideo",
    "InputError",
    "LandmarkConvention",
    "LandmarkHandModule",
    "Observation",
    "Region",
    "SearchConfig",
    "Side",
    "TailorConfig",
    "View",
    "camera_keypoints",
    "camera_mesh",
    "detection",
    "embedded_hand",
    "fit",
    "fit_detection",
    "fit_joints",
    "fit_sequence",
    "from_mediapipe",
    "initialize",
    "load_convention",
    "load_hand",
    "load_mano",
    "load_weights",
    "place_proposal",
    "read_detections",
    "recover",
    "recover_hand",
    "recover_views",
    "search",
    "tailor",
    "tailor_batch",
]


_LATER = {
    "HandModule": "hand_module.hand_module",
    "HandTailor": "hand_tailor",
    "HandVideo": "video.track",
    "LandmarkHandModule": "hand_module.hand_module",
    "fit_sequence": "video.sequence",
    "load_weights": "hand_module.weights",
    "recover": "pipeline",
    "recover_hand": "image_to_mesh",
    "recover_views": "pipeline",
}
"""Module of each name that is imported on first use, because flax and SciPy would double the time of the import."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"handtailor_jax.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

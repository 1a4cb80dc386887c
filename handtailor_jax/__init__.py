"""HandTailor in JAX: a 3D hand mesh that agrees with the image."""

from typing import TYPE_CHECKING, Any

from handtailor_jax.detections import Detection, detection, read_detections
from handtailor_jax.errors import InputError
from handtailor_jax.fit import fit, fit_detection
from handtailor_jax.mano import HandModel, embedded_hand, load_hand, load_mano
from handtailor_jax.mano.landmarks import CONVENTIONS, LandmarkConvention, load_convention
from handtailor_jax.mediapipe import from_mediapipe
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, MANO_JOINTS
from handtailor_jax.tailor import PRESETS, TailorConfig, initialize, tailor, tailor_batch
from handtailor_jax.tailor.placement import camera_keypoints, camera_mesh, place_proposal
from handtailor_jax.tailor.search import SearchConfig, search
from handtailor_jax.types import Camera, Hand, HandEstimate, HandMesh, HandParameters, Observation, Side

if TYPE_CHECKING:
    from handtailor_jax.hand_tailor import HandTailor
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
    "HandParameters",
    "HandTailor",
    "HandVideo",
    "InputError",
    "LandmarkConvention",
    "Observation",
    "SearchConfig",
    "Side",
    "TailorConfig",
    "camera_keypoints",
    "camera_mesh",
    "detection",
    "embedded_hand",
    "fit",
    "fit_detection",
    "from_mediapipe",
    "initialize",
    "load_convention",
    "load_hand",
    "load_mano",
    "place_proposal",
    "read_detections",
    "search",
    "tailor",
    "tailor_batch",
]


def __getattr__(name: str) -> Any:
    # Networks need flax, whose import takes as long as everything else here, and fitting keypoints does without.
    if name == "HandTailor":
        from handtailor_jax.hand_tailor import HandTailor

        return HandTailor
    if name == "HandVideo":
        from handtailor_jax.video.track import HandVideo

        return HandVideo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Exported programs: the hand module, the tailor, or both, as files that run without this package.

    export_pipeline("pipeline.jaxexport", load_weights("weights.safetensors"))

writes pipeline.jaxexport and pipeline.jaxexport.json, which describes inputs and outputs with shapes and units. Running
the program needs jax, numpy and flatbuffers only:

    from pathlib import Path; import jax, jax.export
    program = jax.export.deserialize(bytearray(Path("pipeline.jaxexport").read_bytes())).call
    hands = jax.jit(program)(crops, intrinsics, to_crop, perspective)   # a dict of arrays; any batch size

Weights, hand model and configuration are constants of the program, so the file has about their size.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from handtailor_jax.geometry.cameras import transform_camera
from handtailor_jax.geometry.mirror import choose
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.layers import inference_form
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import given_hand
from handtailor_jax.pipeline import fitting_config, recover
from handtailor_jax.results import write_atomically, write_json
from handtailor_jax.skeleton import KEYPOINTS, MANO_JOINTS
from handtailor_jax.tailor.placement import camera_mesh, initialize
from handtailor_jax.tailor.tailor import TailorConfig, tailor
from handtailor_jax.types import Camera, HandParameters, Observation

PLATFORMS = ("cpu", "cuda", "tpu")
"""Default platforms of exported programs."""

_VERSION = 1
_NETWORK = TailorConfig.network()


class _Input(NamedTuple):
    """One argument of an exported program; the shape is without the batch axis."""

    shape: tuple[int, ...]
    meaning: str
    dtype: npt.DTypeLike = np.float32


_AXES = "x right, y down, z forward; "
_BOTH_FRAMES = f"{_AXES}metres with perspective 1, pixels of the image with perspective 0"
_ROTATIONS = "axis-angle, radians, in MANO's joint order, relative to the flat rest pose"
_CROPS = "square RGB images with a right hand, 0 to 255"
_PERSPECTIVE = _Input((), "1: the camera is a pinhole camera; 0: weak perspective, and intrinsics are ignored")
_FITTED_OUTPUTS = {
    "pose": f"rotations, {_ROTATIONS}",
    "betas": "shape, standard deviations",
    "scale": "camera-frame units per metre of the model",
    "translation": "camera-frame position of the middle MCP",
    "keypoints": "the 21 keypoints of the mesh in the camera frame",
    "vertices": "the mesh in the camera frame",
}
_ESTIMATE_OUTPUTS = {
    "keypoints_2d": "keypoints (u, v), pixels of the crop",
    "confidence": "confidence of each keypoint, 0 to 1",
    "joints": "lifted keypoints in the camera frame",
    "root_depth": "depth (z) of the middle MCP in the camera frame; 0 in weak perspective",
    "bone": "length from the wrist to the middle MCP, metres",
    "pose": f"proposed rotations, {_ROTATIONS}",
    "betas": "proposed shape, standard deviations",
}
_PIPELINE_OUTPUTS = {
    **_FITTED_OUTPUTS,
    "keypoints_2d": "keypoints (u, v) predicted by the network, pixels of the image",
    "confidence": "confidence of each keypoint, 0 to 1",
}


def export_tailor(
    path: str | os.PathLike[str],
    hand: HandModel | None = None,
    config: TailorConfig | None = None,
    *,
    perspective: bool = True,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Write the tailor, from keypoints and a proposal to a placed mesh, as a program of `jax.export`.

    The program takes arrays with a leading batch axis of any size, in the order and of the types that ``<path>.json``
    lists, and returns a dictionary of arrays. Camera-frame lengths are metres with intrinsics, pixels
    without.

    Args:
        path: File to write.
        hand: Hand model, which becomes a constant; the embedded right hand if None.
        config: Energy and solver; `TailorConfig.default()` if None.
        perspective: False for images without intrinsics: the program then takes no root depth and no intrinsics.
        platforms: Platforms on which the program can run: "cpu", "cuda", "rocm", "tpu".

    Returns:
        The path of the file.

    Raises:
        InputError: If the file cannot be written.
    """
    hand = given_hand(hand)
    config = config or TailorConfig.default()
    dtype = hand.dtype

    def fit(keypoints_2d: Array, confidence: Array, pose: Array, betas: Array, *rest: Array) -> dict[str, Array]:
        root_depth, intrinsics = rest if perspective else (jnp.zeros((), dtype), None)
        camera = Camera.weak_perspective() if intrinsics is None else Camera.from_matrix(intrinsics)
        observation = config.weighted(Observation(keypoints_2d, confidence, camera))
        start = initialize(hand, pose, betas, observation, root_depth=root_depth, scale=config.scale)
        return _placed(hand, tailor(hand, start, observation, config))

    inputs = {
        "keypoints_2d": _Input((21, 2), "keypoints (u, v), pixels, in the order of `keypoints`", dtype),
        "confidence": _Input((21,), "weight of each keypoint, 0 (ignored) to 1", dtype),
        "pose": _Input((16, 3), f"proposed rotations, {_ROTATIONS}", dtype),
        "betas": _Input((hand.num_betas,), "proposed shape, standard deviations", dtype),
    }
    if perspective:
        meaning = "proposed depth (z) of the middle MCP in the camera frame, metres"
        inputs["root_depth"] = _Input((), meaning, dtype)
        inputs["intrinsics"] = _Input((3, 3), "pinhole camera matrix K, pixels", dtype)
    frame = _AXES + ("metres" if perspective else "pixels")
    details = {"dtype": str(dtype), "side": hand.side, "camera_frame": frame, "config": repr(config)}
    return _export(path, "tailor", jax.vmap(fit), inputs, _FITTED_OUTPUTS, details, platforms)


def export_hand_module(
    path: str | os.PathLike[str], module: HandModule, *, platforms: Sequence[str] = PLATFORMS
) -> Path:
    """Write the hand module, from crops of right hands to keypoints, joints, pose and shape; see `export_tailor`.

    Its weights become constants. One program serves both kinds of camera, because the kind is an input.
    """
    module = inference_form(module)
    size = module.config.image_size
    inputs = {
        "crops": _Input((size, size, 3), _CROPS, np.uint8),
        "intrinsics": _Input((3, 3), "camera matrix K of the crop, pixels of the crop"),
        "perspective": _PERSPECTIVE,
    }

    def estimate(crops: Array, intrinsics: Array, perspective: Array) -> dict[str, Array]:
        found = module(crops.astype(jnp.float32) / 255.0, _camera(intrinsics, perspective))
        return {name: getattr(found, name) for name in _ESTIMATE_OUTPUTS}

    details = {"dtype": "float32", "side": "right", "camera_frame": _BOTH_FRAMES, "config": repr(module.config)}
    return _export(path, "hand module", estimate, inputs, _ESTIMATE_OUTPUTS, details, platforms)


def export_pipeline(
    path: str | os.PathLike[str],
    module: HandModule,
    hand: HandModel | None = None,
    config: TailorConfig | None = _NETWORK,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Write the whole method, from crops of right hands to placed meshes; see `export_tailor`.

    Weights and hand model become constants. One program serves both kinds of camera, because the kind is an input. For
    a left hand, mirror the image and its intrinsics before cropping; a left hand model is mirrored. If `config` is
    None, the proposal is not refined.
    """
    module = inference_form(module)
    hand = given_hand(hand)
    model = hand if hand.side == "right" else hand.mirrored()
    config, size = fitting_config(module, config), module.config.image_size
    to_crop = "affine map A from pixels of the image to the crop's, A @ (u, v, 1); [[1, 0, 0], [0, 1, 0]] if none"
    inputs = {
        "crops": _Input((size, size, 3), _CROPS, np.uint8),
        "intrinsics": _Input((3, 3), "camera matrix K of the image that contains the crop, pixels"),
        "to_crop": _Input((2, 3), to_crop),
        "perspective": _PERSPECTIVE,
    }

    def run(crops: Array, intrinsics: Array, to_crop: Array, perspective: Array) -> dict[str, Array]:
        cameras = _camera(intrinsics, perspective)
        estimate = module(crops.astype(jnp.float32) / 255.0, transform_camera(cameras, to_crop))
        found = recover(model, estimate, cameras, to_crop, size, config)
        placed = jax.vmap(lambda fitted: _placed(model, fitted))(found.parameters)
        return {**placed, "keypoints_2d": found.detected_keypoints_2d, "confidence": found.confidence}

    details = {
        "dtype": "float32",
        "side": "right",
        "camera_frame": _BOTH_FRAMES,
        "faces": np.asarray(model.faces).tolist(),
        "config": repr(config),
        "hand_module": repr(module.config),
    }
    return _export(path, "pipeline", run, inputs, _PIPELINE_OUTPUTS, details, platforms)


def _placed(hand: HandModel, fitted: HandParameters) -> dict[str, Array]:
    mesh = camera_mesh(hand, fitted)
    return {**vars(fitted), "keypoints": mesh.keypoints, "vertices": mesh.vertices}


def _camera(intrinsics: Float[Array, "batch 3 3"], perspective: Float[Array, "batch"]) -> Camera:
    """Return pinhole cameras where `perspective` is 1, and weak perspective in pixels elsewhere."""
    pixels = Camera.weak_perspective(jnp.ones_like(perspective))
    return jax.vmap(choose)(perspective > 0.5, Camera.from_matrix(intrinsics), pixels)


def _export(
    path: str | os.PathLike[str],
    part: str,
    function: Callable[..., dict[str, Array]],
    inputs: Mapping[str, _Input],
    outputs: Mapping[str, str],
    details: Mapping[str, Any],
    platforms: Sequence[str],
) -> Path:
    """Write a function of arrays with a leading batch axis, and its description."""
    path = Path(path)
    (batch,) = jax.export.symbolic_shape("batch")
    arguments = [jax.ShapeDtypeStruct((batch, *each.shape), each.dtype) for each in inputs.values()]
    exported = jax.export.export(jax.jit(function), platforms=tuple(platforms))(*arguments)
    results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    description = {
        "format": f"handtailor_jax {part}, version {_VERSION}",
        **details,
        "inputs": [
            {"name": name, "dtype": np.dtype(each.dtype).name, "shape": ["batch", *each.shape], "meaning": each.meaning}
            for name, each in inputs.items()
        ],
        "outputs": {
            name: {"shape": ["batch", *map(int, results[name].shape[1:])], "meaning": meaning}
            for name, meaning in outputs.items()
        },
        "keypoints": list(KEYPOINTS),
        "joints": list(MANO_JOINTS),
        "platforms": list(exported.platforms),
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
    }
    program = bytes(exported.serialize())
    write_atomically(path, lambda temporary: temporary.write_bytes(program))
    write_json(path.with_name(path.name + ".json"), description)
    return path

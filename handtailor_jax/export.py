"""Parts of the method as files that run without this package: the hand module, the tailor, and both fused.

    export_pipeline("pipeline.jaxexport", load_weights("weights.safetensors"))

writes pipeline.jaxexport and pipeline.jaxexport.json, which names inputs and outputs with shapes and units. Whoever
uses the file needs jax, numpy and flatbuffers, and nothing of this package:

    from pathlib import Path; import jax, jax.export
    program = jax.export.deserialize(bytearray(Path("pipeline.jaxexport").read_bytes())).call
    hands = jax.jit(program)(crops, intrinsics, to_crop, perspective)   # a dict of arrays; any batch size

Weights, hand model and configuration are constants of the program, so a file is about as large as they are.
"""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, UInt8

from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.hand_module import HandModule, inference_form
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.pipeline import recover
from handtailor_jax.results import write_atomically, write_json
from handtailor_jax.skeleton import KEYPOINTS, MANO_JOINTS
from handtailor_jax.tailor.initialize import initialize
from handtailor_jax.tailor.placement import camera_mesh
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import Camera, HandParameters, Observation

Part = Literal["tailor", "hand module", "pipeline"]
PARTS: tuple[Part, ...] = ("tailor", "hand module", "pipeline")

PLATFORMS = ("cpu", "cuda", "tpu")
"""Where exported programs run unless told otherwise."""

_VERSION = 1
_NETWORK = TailorConfig.network()


@dataclasses.dataclass(frozen=True)
class _Input:
    """One argument of an exported program."""

    shape: tuple[int, ...]
    """Without the batch axis."""
    meaning: str
    dtype: npt.DTypeLike = np.float32


_ROTATIONS = "axis-angle, radians, in MANO's joint order, relative to the flat rest pose"
_PERSPECTIVE = _Input((), "1: the camera is a pinhole camera; 0: weak perspective, and intrinsics are ignored")
_FITTED_OUTPUTS = {
    "pose": f"rotations, {_ROTATIONS}",
    "betas": "shape, standard deviations",
    "scale": "camera-frame units per metre of the model",
    "translation": "camera-frame position of the middle MCP",
    "keypoints": "the 21 keypoints of the mesh in the camera frame",
    "vertices": "the mesh in the camera frame",
}


def export_tailor(
    path: str | os.PathLike[str],
    hand: HandModel | None = None,
    config: TailorConfig | None = None,
    *,
    perspective: bool = True,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Writes the tailor, from keypoints and a proposal to a placed mesh, through `jax.export`.

    The program takes float32 arrays with a leading batch axis of any size, in the order of the description that is
    written beside it as ``<path>.json``, and returns a dictionary of arrays. Camera-frame lengths are metres with
    intrinsics and pixels without.

    Args:
        path: file to write.
        hand: hand model to bake in; the embedded right hand if None.
        config: energy and solver; `TailorConfig.default()` if None.
        perspective: False for pictures without intrinsics: the program then takes no root depth and no intrinsics.
        platforms: what the program can run on: "cpu", "cuda", "rocm", "tpu".

    Returns:
        The path of the file.

    Raises:
        InputError: if flatbuffers is not installed or the file cannot be written.
    """
    hand = embedded_hand() if hand is None else hand
    config = config or TailorConfig.default()
    inputs = {
        "keypoints_2d": _Input((21, 2), "keypoints (u, v), pixels, in the order of `keypoints`", hand.dtype),
        "confidence": _Input((21,), "weight of each keypoint, 0 (ignored) to 1", hand.dtype),
        "pose": _Input((16, 3), f"proposed rotations, {_ROTATIONS}", hand.dtype),
        "betas": _Input((hand.num_betas,), "proposed shape, standard deviations", hand.dtype),
    }
    if perspective:
        inputs["root_depth"] = _Input(
            (), "proposed depth (z) of the middle MCP in the camera frame, metres", hand.dtype
        )
        inputs["intrinsics"] = _Input((3, 3), "pinhole camera matrix K, pixels", hand.dtype)

    def fit(keypoints_2d: Array, confidence: Array, pose: Array, betas: Array, *rest: Array) -> dict[str, Array]:
        root_depth, intrinsics = rest if perspective else (jnp.zeros((), hand.dtype), None)
        camera = Camera.weak_perspective() if intrinsics is None else Camera.from_matrix(intrinsics)
        observation = Observation(keypoints_2d, confidence, camera)
        start = initialize(hand, pose, betas, observation, root_depth=root_depth, scale=config.scale)
        return _placed(hand, tailor(hand, start, observation, config))

    return _export(
        path,
        "tailor",
        jax.vmap(fit),
        inputs,
        _FITTED_OUTPUTS,
        {
            "dtype": str(hand.dtype),
            "side": hand.side,
            "camera_frame": _AXES + ("metres" if perspective else "pixels"),
            "config": repr(config),
        },
        platforms,
    )


def export_hand_module(
    path: str | os.PathLike[str], module: HandModule, *, platforms: Sequence[str] = PLATFORMS
) -> Path:
    """Writes the hand module, from crops of right hands to keypoints, joints, pose and shape; see `export_tailor`.

    One program serves both kinds of camera: which it is, is an input.

    Args:
        path: file to write.
        module: with trained weights, which are baked in.
        platforms: what the program can run on.

    Returns:
        The path of the file.

    Raises:
        InputError: if flatbuffers is not installed or the file cannot be written.
    """
    module = inference_form(module)
    size = module.config.image_size
    inputs = {
        "crops": _Input((size, size, 3), _CROPS, np.uint8),
        "intrinsics": _Input((3, 3), "camera matrix K of the crop, pixels of the crop"),
        "perspective": _PERSPECTIVE,
    }
    outputs = {
        "keypoints_2d": "keypoints (u, v), pixels of the crop",
        "confidence": "how sure the network is of each keypoint, 0 to 1",
        "joints": "lifted keypoints in the camera frame",
        "root_depth": "depth (z) of the middle MCP in the camera frame; 0 in weak perspective",
        "bone": "length from the wrist to the middle MCP, metres",
        "pose": f"proposed rotations, {_ROTATIONS}",
        "betas": "proposed shape, standard deviations",
    }

    def estimate(crops: Array, intrinsics: Array, perspective: Array) -> dict[str, Array]:
        found = module(_floats(crops), _camera(intrinsics, perspective))
        return {name: getattr(found, name) for name in outputs}

    details = {"dtype": "float32", "side": "right", "camera_frame": _BOTH_FRAMES, "config": repr(module.config)}
    return _export(path, "hand module", estimate, inputs, outputs, details, platforms)


def export_pipeline(
    path: str | os.PathLike[str],
    module: HandModule,
    hand: HandModel | None = None,
    config: TailorConfig | None = _NETWORK,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Writes the whole method, from crops of right hands to placed meshes; see `export_tailor`.

    One program serves both kinds of camera: which it is, is an input. A left hand is given as the mirrored crop of a
    mirrored picture.

    Args:
        path: file to write.
        module: with trained weights, which are baked in.
        hand: hand model to bake in, mirrored if it is a left one; the embedded hand if None.
        config: the tailor's energy and solver; None leaves the proposal as it is.
        platforms: what the program can run on.

    Returns:
        The path of the file.

    Raises:
        InputError: if flatbuffers is not installed or the file cannot be written.
    """
    module = inference_form(module)
    hand = embedded_hand() if hand is None else hand
    model = hand if hand.side == "right" else hand.mirrored()
    size = module.config.image_size
    inputs = {
        "crops": _Input((size, size, 3), _CROPS, np.uint8),
        "intrinsics": _Input((3, 3), "camera matrix K of the picture that the crop is from, pixels"),
        "to_crop": _Input(
            (2, 3),
            "affine map A from the picture's pixels to the crop's: A @ (u, v, 1); [[1, 0, 0], [0, 1, 0]] if none",
        ),
        "perspective": _PERSPECTIVE,
    }
    outputs = {
        **_FITTED_OUTPUTS,
        "keypoints_2d": "keypoints (u, v) that the network saw, pixels of the picture",
        "confidence": "how sure the network is of each, 0 to 1",
    }

    def run(crops: Array, intrinsics: Array, to_crop: Array, perspective: Array) -> dict[str, Array]:
        _, found = recover(module, model, _floats(crops), _camera(intrinsics, perspective), to_crop, config)
        placed = jax.vmap(lambda fitted: _placed(model, fitted))(found.parameters)
        return {
            **placed,
            "keypoints_2d": found.detected_keypoints_2d,
            "confidence": found.confidence,
        }

    details = {
        "dtype": "float32",
        "side": "right",
        "camera_frame": _BOTH_FRAMES,
        "faces": np.asarray(model.faces).tolist(),
        "config": repr(config),
        "hand_module": repr(module.config),
    }
    return _export(path, "pipeline", run, inputs, outputs, details, platforms)


_AXES = "x right, y down, z forward; "
_BOTH_FRAMES = f"{_AXES}metres with perspective 1, pixels of the picture with perspective 0"
_CROPS = "square RGB pictures with a right hand, 0 to 255"


def _placed(hand: HandModel, fitted: HandParameters) -> dict[str, Array]:
    mesh = camera_mesh(hand, fitted)
    return {**vars(fitted), "keypoints": mesh.keypoints, "vertices": mesh.vertices}


def _floats(crops: UInt8[Array, "batch size size 3"]) -> Float[Array, "batch size size 3"]:
    return crops.astype(jnp.float32) / 255.0


def _camera(intrinsics: Float[Array, "batch 3 3"], perspective: Float[Array, "batch"]) -> Camera:
    """Pinhole cameras where `perspective` is 1, and cameras of pictures without intrinsics elsewhere."""
    batch = perspective.shape[0]
    known = Camera.from_matrix(intrinsics)
    pixels = jnp.broadcast_to(jnp.eye(2, dtype=intrinsics.dtype), (batch, 2, 2))
    pinhole = perspective > 0.5
    return Camera(
        linear=jnp.where(pinhole[:, None, None], known.linear, pixels),
        center=jnp.where(pinhole[:, None], known.center, 0.0),
        perspectivity=pinhole.astype(intrinsics.dtype),
    )


def _export(
    path: str | os.PathLike[str],
    part: Part,
    function: Callable[..., dict[str, Array]],
    inputs: Mapping[str, _Input],
    outputs: Mapping[str, str],
    details: Mapping[str, Any],
    platforms: Sequence[str],
) -> Path:
    """Writes a function of arrays with a leading batch axis, and its description."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("export needs the package flatbuffers: pip install 'handtailor-jax[export]'")
    path = Path(path)
    (batch,) = jax.export.symbolic_shape("batch")
    arguments = [jax.ShapeDtypeStruct((batch, *each.shape), each.dtype) for each in inputs.values()]
    exported = jax.export.export(jax.jit(function), platforms=tuple(platforms))(*arguments)
    results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    description = {
        "format": _format(part),
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
    write_json(_description_path(path), description)
    return path


@dataclasses.dataclass(frozen=True)
class Exported:
    """A program read from a file; call it with the arrays that `inputs` names, in that order."""

    inputs: tuple[str, ...]
    """Names of the arguments."""
    description: dict[str, Any]
    """The JSON file beside the program."""
    function: Callable[..., dict[str, Float[Array, "..."]]]
    """The compiled program."""

    def __call__(self, *arrays: Any) -> dict[str, Float[Array, "..."]]:
        """The outputs by name; every argument and result has a leading batch axis."""
        return self.function(*arrays)


def load_exported(path: str | os.PathLike[str]) -> Exported:
    """Reads what one of the functions of this module wrote.

    Raises:
        InputError: if the files cannot be read or are not one of its programs.
    """
    path = Path(path)
    try:
        description = json.loads(_description_path(path).read_text())
        program = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{_description_path(path)} is not JSON: {error}") from error
    known = [_format(part) for part in PARTS]
    if not isinstance(description, dict) or description.get("format") not in known:
        raise InputError(f"{_description_path(path)} does not describe an exported program ({', '.join(known)})")
    try:
        exported = jax.export.deserialize(bytearray(program))
    except Exception as error:  # whatever flatbuffers meets in a broken file
        raise InputError(f"{path} is not a program of jax.export") from error
    return Exported(
        inputs=tuple(entry["name"] for entry in description["inputs"]),
        description=description,
        function=jax.jit(exported.call),
    )


def _format(part: Part) -> str:
    return f"handtailor_jax {part}, version {_VERSION}"


def _description_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")

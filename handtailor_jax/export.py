"""The tailor as a file that runs without this package.

    export_tailor("tailor.jaxexport")          # writes tailor.jaxexport and tailor.jaxexport.json, which describes it

Whoever uses the file needs jax, numpy and flatbuffers, and nothing of this package:

    from pathlib import Path; import jax.export
    tailor = jax.export.deserialize(bytearray(Path("tailor.jaxexport").read_bytes())).call
    fitted = tailor(keypoints_2d, confidence, pose, betas, root_depth, intrinsics)   # a dict of arrays; any batch size

The hand model and the configuration are constants of the program.
"""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.errors import InputError
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.results import write_atomically, write_json
from handtailor_jax.skeleton import KEYPOINTS, MANO_JOINTS
from handtailor_jax.tailor.initialize import initialize
from handtailor_jax.tailor.placement import camera_mesh
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import Camera, Observation

FORMAT = "handtailor_jax tailor, version 1"

_INPUTS = {
    "keypoints_2d": ((21, 2), "keypoints (u, v), pixels, in the order of `keypoints`"),
    "confidence": ((21,), "weight of each keypoint, 0 (ignored) to 1"),
    "pose": ((16, 3), "proposed rotations, axis-angle, radians, in MANO's joint order, relative to the flat rest pose"),
    "betas": (("betas",), "proposed shape, standard deviations"),
    "root_depth": ((), "proposed depth (z) of the middle MCP in the camera frame, metres"),
    "intrinsics": ((3, 3), "pinhole camera matrix K, pixels"),
}
_WITH_INTRINSICS_ONLY = ("root_depth", "intrinsics")
_OUTPUTS = {
    "pose": "fitted rotations, like the input",
    "betas": "fitted shape, like the input",
    "scale": "camera-frame units per metre of the model",
    "translation": "camera-frame position of the middle MCP",
    "keypoints": "the 21 keypoints in the camera frame",
    "vertices": "the mesh in the camera frame",
}


def export_tailor(
    path: str | os.PathLike[str],
    hand: HandModel | None = None,
    config: TailorConfig | None = None,
    *,
    perspective: bool = True,
    platforms: Sequence[str] = ("cpu",),
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
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("export needs the package flatbuffers: pip install 'handtailor-jax[export]'")
    path = Path(path)
    hand = embedded_hand() if hand is None else hand
    config = config or TailorConfig.default()

    def fit(keypoints_2d: Array, confidence: Array, pose: Array, betas: Array, *rest: Array) -> dict[str, Array]:
        root_depth, intrinsics = rest if perspective else (jnp.zeros((), hand.dtype), None)
        camera = Camera.weak_perspective() if intrinsics is None else Camera.from_matrix(intrinsics)
        observation = Observation(keypoints_2d, confidence, camera)
        start = initialize(hand, pose, betas, observation, root_depth=root_depth, scale=config.scale)
        fitted = tailor(hand, start, observation, config)
        mesh = camera_mesh(hand, fitted)
        return {**vars(fitted), "keypoints": mesh.keypoints, "vertices": mesh.vertices}

    (batch,) = jax.export.symbolic_shape("batch")
    names = [name for name in _INPUTS if perspective or name not in _WITH_INTRINSICS_ONLY]
    shapes = {n: tuple(hand.num_betas if d == "betas" else d for d in _INPUTS[n][0]) for n in names}
    arguments = [jax.ShapeDtypeStruct((batch, *shapes[name]), hand.dtype) for name in names]
    exported = jax.export.export(jax.jit(jax.vmap(fit)), platforms=tuple(platforms))(*arguments)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    description = {
        "format": FORMAT,
        "dtype": str(hand.dtype),
        "side": hand.side,
        "camera_frame": "x right, y down, z forward; " + ("metres" if perspective else "pixels"),
        "inputs": [{"name": n, "shape": ["batch", *shapes[n]], "meaning": _INPUTS[n][1]} for n in names],
        "outputs": {
            name: {"shape": ["batch", *map(int, outputs[name].shape[1:])], "meaning": meaning}
            for name, meaning in _OUTPUTS.items()
        },
        "keypoints": list(KEYPOINTS),
        "joints": list(MANO_JOINTS),
        "platforms": list(exported.platforms),
        "config": repr(config),
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
    }
    program = bytes(exported.serialize())
    write_atomically(path, lambda temporary: temporary.write_bytes(program))
    write_json(_description_path(path), description)
    return path


@dataclasses.dataclass(frozen=True)
class ExportedTailor:
    """A tailor read from a file; call it with the arrays that `inputs` names, in that order."""

    inputs: tuple[str, ...]
    """Names of the arguments."""
    description: dict[str, Any]
    """The JSON file beside the program."""
    function: Callable[..., dict[str, Float[Array, "..."]]]
    """The compiled program."""

    def __call__(self, *arrays: Any) -> dict[str, Float[Array, "..."]]:
        """Fitted hands; every argument and result has a leading batch axis."""
        return self.function(*arrays)


def load_exported(path: str | os.PathLike[str]) -> ExportedTailor:
    """Reads what `export_tailor` wrote.

    Raises:
        InputError: if the files cannot be read or are not an exported tailor.
    """
    path = Path(path)
    try:
        description = json.loads(_description_path(path).read_text())
        program = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{_description_path(path)} is not JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"{_description_path(path)} does not describe an exported tailor ({FORMAT})")
    try:
        exported = jax.export.deserialize(bytearray(program))
    except Exception as error:  # whatever flatbuffers meets in a broken file
        raise InputError(f"{path} is not a program of jax.export") from error
    return ExportedTailor(
        inputs=tuple(entry["name"] for entry in description["inputs"]),
        description=description,
        function=jax.jit(exported.call),
    )


def _description_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")

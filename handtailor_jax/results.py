"""Write results: JSON, meshes and images. Files appear complete or not at all."""

import contextlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handtailor_jax.errors import InputError, imported
from handtailor_jax.images import Image, opencv
from handtailor_jax.types import Hand


def to_json(hand: Hand) -> dict[str, Any]:
    """Return a hand as plain numbers; docs/cli.md lists the fields."""
    content: dict[str, Any] = {
        "side": hand.side,
        "projection": "perspective" if hand.perspective else "weak_perspective",
        "camera": _camera(hand),
        "convention": hand.convention,
        "keypoints_2d": _numbers(hand.keypoints_2d, 3),
        "joints": _numbers(hand.joints),
        "landmarks": _numbers(hand.landmarks),
        **_parameters(hand),
        "reprojection_error_before": round(float(hand.reprojection_before), 4),
        "reprojection_error_after": round(float(hand.reprojection_after), 4),
        "runner_up": None,
    }
    if hand.runner_up is not None and hand.energy_gap is not None:
        content["runner_up"] = {
            "energy_gap": round(float(hand.energy_gap), 4),
            "joints": _numbers(hand.runner_up.joints),
            **_parameters(hand.runner_up),
        }
    if hand.region is not None and hand.proposed is not None:
        content["side_probability"] = _number(hand.side_probability)
        content["presence"] = _number(hand.presence)
        content["region"] = {
            "center": _numbers(hand.region.center, 3),
            "side": round(float(hand.region.side), 3),
            "rotation": round(float(hand.region.rotation), 6),
        }
        content["box"] = _numbers(hand.box, 3)
        content["detected_keypoints_2d"] = _numbers(hand.detected_keypoints_2d, 3)
        content["confidence"] = _numbers(hand.confidence, 4)
        content["proposed"] = to_json(hand.proposed)
    return content


def _camera(hand: Hand) -> Any:
    if not hand.perspective:
        return None
    (fx, skew), (shear, fy) = np.asarray(hand.camera.linear, float).tolist()
    cx, cy = np.asarray(hand.camera.center, float).tolist()
    if skew == shear == 0.0:
        return {"fx": fx, "fy": fy, "cx": cx, "cy": cy}
    return [[fx, skew, cx], [shear, fy, cy], [0.0, 0.0, 1.0]]  # four numbers cannot hold skewed or rotated pixels


def _parameters(hand: Hand) -> dict[str, Any]:
    return {name: _numbers(getattr(hand.parameters, name)) for name in ("pose", "betas", "scale", "translation")}


def _numbers(values: Any, digits: int = 6) -> Any:
    return np.round(np.asarray(values, np.float64), digits).tolist()


def _number(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def scene_vertices(hands: Sequence[Hand]) -> list[np.ndarray]:
    """Return the vertices (V, 3) of several hands in one frame, metres.

    With intrinsics, this is the camera frame. Without intrinsics no distance is known: all hands are at one depth, in
    their own sizes, as far apart as in the image at their mean scale, and the origin is their middle.
    """
    meshes = [np.asarray(hand.vertices, np.float64) for hand in hands]
    if not hands or hands[0].perspective:
        return meshes
    per_metre = float(np.mean([hand.parameters.scale for hand in hands]))
    places = np.asarray([[*hand.parameters.translation[:2], 0.0] for hand in hands], np.float64) / per_metre
    sized = [
        (mesh - np.asarray(hand.parameters.translation)) / np.asarray(hand.parameters.scale)
        for mesh, hand in zip(meshes, hands, strict=True)
    ]
    return [mesh + place for mesh, place in zip(sized, places - places.mean(axis=0), strict=True)]


def write_json(path: Path, content: Any) -> None:
    """Write a value as a JSON file; numbers must be finite."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))


def write_mesh(path: Path, hands: Sequence[Hand]) -> None:
    """Write the meshes of hands in metres as one file; the suffix of the path (.obj, .ply, .glb) chooses the format.

    The frame is that of `scene_vertices`. OBJ and PLY keep the camera's axes (y down, z forward) and join the hands
    to one mesh; GLB has the axes of glTF (y up, z toward the viewer) and a node for each hand.
    """
    trimesh = mesh_library()
    placed = zip(scene_vertices(hands), hands, strict=True)
    meshes = [trimesh.Trimesh(vertices, hand.faces, process=False) for vertices, hand in placed]
    if path.suffix == ".glb":
        content = trimesh.Scene()
        for i, (hand, mesh) in enumerate(zip(hands, meshes, strict=True)):
            mesh.vertices = mesh.vertices * [1.0, -1.0, -1.0]
            name = f"hand_{i}_{hand.side}"
            content.add_geometry(mesh, node_name=name, geom_name=name)
    else:
        content = trimesh.util.concatenate(meshes)
    write_atomically(path, lambda temporary: content.export(temporary, file_type=path.suffix[1:]))


def write_image(path: Path, image: Image) -> None:
    """Write a uint8 RGB image; the suffix of the path chooses the format."""
    done, data = opencv().imencode(path.suffix, image[..., ::-1])
    if not done:
        raise InputError(f"{path}: the image cannot be encoded: choose the suffix .png or .jpg")
    write_atomically(path, lambda temporary: temporary.write_bytes(data.tobytes()))


def prepare_folder(folder: Path, names: Iterable[str] = (), inputs: Iterable[Path | None] = ()) -> None:
    """Check that files of the given names can be written to a folder, which need not exist yet.

    Raises:
        InputError: If the folder cannot be written to, or one of the files is a folder or an input file.
    """
    place = folder.absolute()
    try:
        read = {_identity(path) for path in inputs if path is not None}
        for path in (folder / name for name in names):
            if path.is_dir():
                raise InputError(f"{path}: is a folder where a file is to be written: choose another --out")
            if _identity(path) is not None and _identity(path) in read:
                raise InputError(f"{path}: is an input and would be overwritten: choose another --out")
        while True:
            with contextlib.suppress(FileNotFoundError):  # any other OSError: there cannot be a folder
                place.stat()
                break
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}): choose another --out") from None


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and number of a file, which are the same under all of its names; None if there is no file."""
    try:
        return path.stat().st_dev, path.stat().st_ino
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, whose folder is created; rename it to `path`, or remove it after an error.

    The caller writes a file or a folder there, or nothing. The temporary name is random, because process numbers repeat
    in containers. It keeps the suffix, because writers choose the format by it.

    Raises:
        InputError: If the operating system does not let the caller write, or the file cannot be renamed.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.exists():
            temporary.replace(path)
    except ConnectionError:  # of stdout or stderr, to which the caller prints
        raise
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be written ({reason}): choose another folder") from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():  # also False if the folder is a file, where unlink would raise
            temporary.unlink()


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path and rename the result to `path`; see `appearing`."""
    with appearing(path) as temporary:
        write(temporary)


def mesh_library() -> Any:
    """Import trimesh, or raise an `InputError` with the command that installs it."""
    return imported("trimesh", "meshes cannot be written", "pip install trimesh")

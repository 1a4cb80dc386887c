"""What `handtailor fit` writes: JSON, mesh and overlay of a fitted hand. Files appear complete or not at all."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handtailor_jax.errors import InputError
from handtailor_jax.fit import HandFit
from handtailor_jax.images import opencv


def to_json(fit: HandFit) -> dict[str, Any]:
    """The result as plain numbers; README describes the fields."""
    camera: Any = None
    if fit.perspective:
        k = np.asarray(fit.camera.matrix, float)
        camera = {"fx": k[0, 0], "fy": k[1, 1], "cx": k[0, 2], "cy": k[1, 2]}
        if k[0, 1] != 0.0 or k[1, 0] != 0.0:  # skewed or rotated pixels need the whole matrix
            camera = k.tolist()
    content: dict[str, Any] = {
        "side": fit.side,
        "projection": "perspective" if fit.perspective else "weak_perspective",
        "camera": camera,
        "convention": fit.convention,
        "keypoints_2d": _numbers(fit.keypoints_2d, 3),
        "joints": _numbers(fit.joints),
        "landmarks": _numbers(fit.landmarks),
        "pose": _numbers(fit.parameters.pose),
        "betas": _numbers(fit.parameters.betas),
        "scale": _numbers(fit.parameters.scale),
        "translation": _numbers(fit.parameters.translation),
        "reprojection_error_before": round(fit.reprojection_before, 4),
        "reprojection_error_after": round(fit.reprojection_after, 4),
        "runner_up": None,
    }
    if fit.runner_up is not None:
        second = fit.runner_up
        content["runner_up"] = {
            "energy_gap": round(second.energy_gap, 4),
            "joints": _numbers(second.joints),
            "pose": _numbers(second.parameters.pose),
            "betas": _numbers(second.parameters.betas),
            "scale": _numbers(second.parameters.scale),
            "translation": _numbers(second.parameters.translation),
        }
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name, then renames it."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8"))


def write_mesh(path: Path, fit: HandFit) -> None:
    """Writes the mesh; the format is that of the suffix (.obj, .ply, .glb).

    Units are metres: in the camera frame with intrinsics, relative to the middle MCP without. OBJ and PLY keep the
    camera's axes (y down, z forward); GLB is turned into glTF's (y up, z toward the viewer).
    """
    trimesh = mesh_library()
    vertices = metric_vertices(fit)
    if path.suffix == ".glb":
        vertices = vertices * [1.0, -1.0, -1.0]
    mesh = trimesh.Trimesh(vertices, fit.faces, process=False)
    write_atomically(path, lambda temporary: mesh.export(temporary, file_type=path.suffix[1:]))


def metric_vertices(fit: HandFit) -> np.ndarray:
    """(V, 3) metres, camera axes: in the camera frame with intrinsics, relative to the middle MCP without."""
    vertices = np.asarray(fit.vertices, np.float64)
    if fit.perspective:
        return vertices
    return (vertices - np.asarray(fit.parameters.translation)) / np.asarray(fit.parameters.scale)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes a uint8 RGB picture."""
    cv2 = opencv()

    def write(temporary: Path) -> None:
        done, data = cv2.imencode(path.suffix, picture[..., ::-1])
        if not done:
            raise OSError(f"{path}: the picture could not be encoded")
        temporary.write_bytes(data.tobytes())

    write_atomically(path, write)


def overlay(fit: HandFit, photograph: np.ndarray | None, keypoints_2d: Any, confidence: Any) -> np.ndarray:
    """Photograph with the observed keypoints, the mesh over it, and the mesh from a second view, uint8 RGB."""
    from handtailor_jax.render.overlay import overlay_figure

    seen = np.where((np.asarray(confidence) > 0)[:, None], keypoints_2d, np.nan)
    return overlay_figure(photograph, fit.vertices, fit.faces, fit.camera, seen, fit.keypoints_2d)


def sheet(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Overlays in a grid, reduced so that the sheet can be looked at as one picture."""
    from handtailor_jax.render.overlay import contact_sheet

    cv2 = opencv()
    grid = contact_sheet(pictures, 2 if len(pictures) <= 8 else 4, captions)
    zoom = min(1.0, _SHEET_WIDTH / grid.shape[1])
    return cv2.resize(grid, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)


def prepare_folder(folder: Path, names: Iterable[str] = ()) -> None:
    """Makes the output folder and sees that files can be written there.

    Args:
        folder: made with its parents if it does not exist.
        names: of the files to come; a folder of such a name is in their way.

    Raises:
        InputError: if they cannot.
    """
    for name in names:
        if (folder / name).is_dir():
            raise InputError(f"{folder / name}: is a folder where a file is to be written: choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}): choose another --out") from None


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary path beside `path` and renames the result, so no half-written file is ever seen.

    Raises:
        InputError: if the disk refuses.
    """
    # The suffix stays, since writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def mesh_library() -> Any:
    """trimesh, or one clear line."""
    try:
        import trimesh
    except ImportError as error:
        raise InputError(f"meshes cannot be written ({error}): pip install trimesh") from None
    return trimesh


def _numbers(values: Any, digits: int = 6) -> Any:
    return np.round(np.asarray(values, np.float64), digits).tolist()


_SHEET_WIDTH = 3200

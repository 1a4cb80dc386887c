"""Write a moving mesh as an animated GLB file."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError
from handtailor_jax.results import mesh_library, write_atomically

_SKIN = {"baseColorFactor": [0.8, 0.62, 0.53, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7}


def write_animation(
    path: Path,
    frames: Sequence[tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.integer[Any]]] | None],
    times: Sequence[float],
) -> None:
    """Write a moving mesh as an animated GLB file (glTF 2.0).

    Each frame is a mesh of its own, which a step animation of its scale shows and hides: every viewer can play that.
    Morph targets would have to be as many as the frames, and viewers support only a few.

    Args:
        path: Path of the file, ending in .glb.
        frames: Vertices (V, 3) in the camera frame (y down, z forward), metres, and triangles (F, 3) with outward
            normals of each frame; None without a hand. The file has the axes of glTF (y up, z toward the viewer).
        times: Times in seconds at which the frames begin.

    Raises:
        InputError: If no frame has a hand, or the file cannot be written.
        ValueError: If the times do not rise, or there is not one for each frame.
    """
    if len(times) != len(frames) or not np.all(np.diff(times) > 0.0):
        raise ValueError(f"{len(frames)} frames with {len(times)} times: give each frame a time, and times that rise")
    if all(mesh is None for mesh in frames):
        raise InputError(f"{path}: no frame shows a hand, so there is nothing to animate: leave out --mesh")
    starts = np.asarray(times, np.float64) - times[0]
    last = float(np.mean(np.diff(starts))) if len(starts) > 1 else 1.0
    ends = np.append(starts[1:], starts[-1] + last)

    file = _Glb()
    indices: dict[bytes, int] = {}
    nodes: list[Any] = []
    meshes, channels, samplers = [], [], []
    for mesh, start, end in zip(frames, starts, ends, strict=True):
        if mesh is None:
            continue
        points, faces = np.asarray(mesh[0], np.float64) * [1.0, -1.0, -1.0], mesh[1]
        attributes = _attributes(file, points, faces)
        key = faces.tobytes()  # frames with the same hands share their triangles
        if key not in indices:
            corners = faces.astype(np.uint16 if faces.max() < 2**16 - 1 else np.uint32).reshape(-1)
            indices[key] = file.accessor(corners, "SCALAR", 34963)
        meshes.append({"primitives": [{"attributes": attributes, "indices": indices[key], "material": 0}]})
        samplers.append(_visibility(file, start, end, stays=bool(end == ends[-1])))
        channels.append({"sampler": len(nodes), "target": {"node": len(nodes), "path": "scale"}})
        # Viewers without animation show the first hand.
        nodes.append({"mesh": len(nodes), "scale": [0.0 if nodes else 1.0] * 3})
    scene = {
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes)))}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": [{"pbrMetallicRoughness": _SKIN}],
        "animations": [{"name": "hand", "channels": channels, "samplers": samplers}],
    }
    write_atomically(path, lambda temporary: temporary.write_bytes(file.content(scene)))


def _attributes(file: "_Glb", points: npt.NDArray[np.float64], faces: npt.NDArray[np.integer[Any]]) -> dict[str, int]:
    """Append positions and normals of one mesh; return their accessors."""
    normals = mesh_library().Trimesh(points, faces, process=False).vertex_normals
    return {
        "POSITION": file.accessor(points.astype(np.float32), "VEC3", 34962, extent=True),
        "NORMAL": file.accessor(np.asarray(normals, np.float32), "VEC3", 34962),
    }


def _visibility(file: "_Glb", start: float, end: float, stays: bool) -> dict[str, Any]:
    """Return a sampler of a scale that is 1 from `start` on, to `end` unless it stays, and 0 otherwise."""
    keys = [(0.0, 0.0), (start, 1.0), (end, 1.0 if stays else 0.0)][0 if start > 0.0 else 1 :]
    moments, scales = (np.asarray(column, np.float32) for column in zip(*keys, strict=True))
    return {
        "input": file.accessor(moments, "SCALAR", extent=True),
        "output": file.accessor(np.repeat(scales[:, None], 3, axis=1), "VEC3"),
        "interpolation": "STEP",
    }


class _Glb:
    """Binary part of a GLB file and the accessors into it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._views: list[dict[str, Any]] = []
        self._accessors: list[dict[str, Any]] = []

    def accessor(self, values: npt.NDArray[Any], kind: str, target: int | None = None, extent: bool = False) -> int:
        """Append an array with one element a row; with `extent` also its minimum and maximum. Return its index."""
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self._data), "byteLength": values.nbytes}
        if target is not None:
            view["target"] = target
        self._views.append(view)
        self._data += np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        self._data += bytes(-len(self._data) % 4)
        component = {"float32": 5126, "uint32": 5125, "uint16": 5123}[values.dtype.name]
        accessor: dict[str, Any] = {
            "bufferView": len(self._views) - 1,
            "componentType": component,
            "count": len(values),
            "type": kind,
        }
        if extent:
            rows = values.reshape(len(values), -1)
            accessor |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        self._accessors.append(accessor)
        return len(self._accessors) - 1

    def content(self, scene: dict[str, Any]) -> bytes:
        """Return the whole file."""
        document = {
            "asset": {"version": "2.0", "generator": "handtailor"},
            **scene,
            "accessors": self._accessors,
            "bufferViews": self._views,
            "buffers": [{"byteLength": len(self._data)}],
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        chunks += struct.pack("<I4s", len(self._data), b"BIN\0") + self._data
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

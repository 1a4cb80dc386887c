"""Read the frames of a video file or webcam; write a video, JSON lines and a moving mesh, complete or not at all."""

import contextlib
import dataclasses
import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError, check_file
from handtailor_jax.images import Image, opencv, quiet
from handtailor_jax.results import appearing, mesh_library, write_atomically

_MOST_FAILURES = 50
"""Number of failed reads in a row after which a file ends that announces more frames."""

_SKIN = {"baseColorFactor": [0.8, 0.62, 0.53, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7}
_VERTICES, _INDICES = 34962, 34963  # glTF's targets of buffer views


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of a video."""

    index: int
    """Number of the frame from 0; frames that cannot be decoded count."""
    time: float
    """Time in seconds from the beginning; rises from frame to frame."""
    image: Image | None
    """(H, W, 3) RGB image; None if the frame cannot be decoded."""


class Video:
    """Frames of a video file or webcam in order: ``with Video(source) as video: for frame in video: ...``."""

    def __init__(self, source: Path | int) -> None:
        """Open a video file, or a webcam by its number from 0.

        Raises:
            InputError: If there is no such file or webcam, or the file is not a video.
        """
        cv2 = _opencv()
        self._live = isinstance(source, int)
        self.name = f"webcam {source}" if self._live else str(source)
        if isinstance(source, Path):
            try:
                check_file(source)
                os.fsencode(source).decode()  # OpenCV takes no other names
            except OSError as error:
                raise InputError(f"{source}: the video cannot be read ({error.strerror}): correct its name") from None
            except UnicodeDecodeError:
                raise InputError(f"{source}: the name is not UTF-8: rename the video") from None
        with quiet(cv2):
            self._capture = cv2.VideoCapture(source if isinstance(source, int) else _address(source))
        if not self._capture.isOpened():
            remedy = "connect it or choose another number" if self._live else "give an MP4, AVI, MOV or WebM file"
            raise InputError(f"{self.name}: {'does not answer' if self._live else 'is no video'}: {remedy}")
        rate, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate: float | None = float(rate) if 0.5 <= rate <= 1000.0 else None
        """Frames per second; None if unknown."""
        self.count: int | None = int(count) if not self._live and 1 <= count < 1e9 else None
        """Number of frames that the file announces, which may be an estimate; None if unknown."""

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the remaining frames. Those that cannot be decoded count if one follows that can.

        Raises:
            InputError: At the end, if no frame could be decoded.
        """
        cv2 = _opencv()
        start, last = time.monotonic(), -math.inf
        index = decoded = failures = 0
        undecoded: list[Frame] = []
        while True:
            with quiet(cv2):
                grabbed = self._capture.grab()
                done, image = self._capture.retrieve() if grabbed else (False, None)
                milliseconds = self._capture.get(cv2.CAP_PROP_POS_MSEC)
            failures = 0 if grabbed else failures + 1
            announced = self.count is not None and index < self.count
            if failures > (_MOST_FAILURES if announced else 0):
                break
            now = time.monotonic() - start if self._live else 1e-3 * milliseconds
            if not now > last:  # files without time stamps
                now = max(last, 0.0) + 1.0 / (self.rate or 30.0)
            last = now
            whole = np.ascontiguousarray(image[..., ::-1]) if done and image is not None else None
            undecoded.append(Frame(index, now, whole))
            index += 1
            if whole is not None:
                decoded += 1
                yield from undecoded
                undecoded.clear()
        if not decoded:
            raise InputError(f"{self.name}: no frame could be decoded: give a video that other programs can play")


def _address(path: Path) -> str:
    """Return the absolute name of a file: FFmpeg takes what is before a colon in a relative one for a protocol."""
    return str(path.absolute())


def _opencv() -> Any:
    # FFmpeg does not write to OpenCV's log. It reads this variable when the first video is opened.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return opencv()


@contextlib.contextmanager
def video_writer(path: Path, rate: float) -> Iterator[Callable[[Image], None]]:
    """Yield a function that appends uint8 RGB images of one size to an MP4 file (MPEG-4 part 2, in every OpenCV).

    The rate is in frames per second. An odd last row or column is left out, because the format cannot hold it. Without
    images no file is written.

    Raises:
        InputError: If the file cannot be written.
        ValueError: If an image has another size than the first one.
    """
    cv2 = _opencv()
    with appearing(path) as temporary:
        writer: Any = None
        shape: tuple[int, ...] = ()

        def write(image: Image) -> None:
            nonlocal writer, shape
            if writer is None:
                shape = image.shape
                code = cv2.VideoWriter_fourcc(*"mp4v")
                with quiet(cv2):
                    writer = cv2.VideoWriter(_address(temporary), code, rate, (shape[1] // 2 * 2, shape[0] // 2 * 2))
                if not writer.isOpened():
                    remedy = "choose another folder, and images of at least 2 x 2"
                    raise InputError(f"{path}: the video cannot be written: {remedy}")
            if image.shape != shape:
                raise ValueError(f"an image of a video has the shape {image.shape}, expected {shape}")
            even = image[: shape[0] // 2 * 2, : shape[1] // 2 * 2]
            writer.write(np.ascontiguousarray(even[..., ::-1]))

        try:
            yield write
        finally:
            if writer is not None:
                writer.release()
        if writer is not None:
            # OpenCV's writer does not report a full disk, so the file is opened again.
            with quiet(cv2):
                check = cv2.VideoCapture(_address(temporary))
                playable = check.isOpened() and check.read()[0]
                check.release()
            if not playable:
                raise InputError(f"{path}: the video is not complete: free disk space and write it again")


@contextlib.contextmanager
def json_lines(path: Path) -> Iterator[Callable[[Any], None]]:
    """Yield a function that appends a value as one line of JSON; lines appear in the temporary file at once.

    Raises:
        InputError: If the file cannot be written.
    """
    with appearing(path) as temporary, temporary.open("w", encoding="utf-8") as file:

        def write(content: Any) -> None:
            file.write(json.dumps(content, allow_nan=False) + "\n")
            file.flush()

        yield write


def write_animation(
    path: Path,
    frames: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]] | None],
    times: Sequence[float],
) -> None:
    """Write a moving mesh as an animated GLB file (glTF 2.0).

    Each frame is a mesh of its own, which a step animation of its scale shows and hides: every viewer can play that.
    Morph targets would have to be as many as the frames, and viewers support only a few. A frame is vertices (V, 3) in
    the camera frame, metres, and triangles (F, 3) with outward normals; None without a hand. Times are in seconds. The
    file has the axes of glTF (y up, z toward the viewer).

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
        normals = mesh_library().Trimesh(points, faces, process=False).vertex_normals
        attributes = {
            "POSITION": file.accessor(points.astype(np.float32), "VEC3", _VERTICES, extent=True),
            "NORMAL": file.accessor(np.asarray(normals, np.float32), "VEC3", _VERTICES),
        }
        key = faces.tobytes()  # frames with the same hands share their triangles
        if key not in indices:
            corners = faces.astype(np.uint16 if faces.max() < 2**16 - 1 else np.uint32).reshape(-1)
            indices[key] = file.accessor(corners, "SCALAR", _INDICES)
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


def _visibility(file: "_Glb", start: float, end: float, stays: bool) -> dict[str, Any]:
    """Return a sampler of a scale that is 1 from `start` on, to `end` unless it stays, and 0 otherwise."""
    keys = [(0.0, 0.0), (start, 1.0), (end, 1.0 if stays else 0.0)][0 if start > 0.0 else 1 :]
    moments, scales = (np.asarray(column, np.float32) for column in zip(*keys, strict=True))
    seconds = file.accessor(moments, "SCALAR", extent=True)
    shown = file.accessor(np.repeat(scales[:, None], 3, axis=1), "VEC3")
    return {"input": seconds, "output": shown, "interpolation": "STEP"}


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
        accessor: dict[str, Any] = {"componentType": component, "count": len(values), "type": kind}
        accessor["bufferView"] = len(self._views) - 1
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

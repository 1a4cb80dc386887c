"""Film in and out: frames of a video file or webcam; overlay video, JSON lines and an animated mesh.

Files appear complete or not at all, under a temporary name until then.
"""

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

from handtailor_jax.errors import InputError
from handtailor_jax.images import Picture, opencv, quiet

# A file that announces more frames is tried this often in a row before it counts as ended.
_MOST_FAILURES = 50


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of a film."""

    index: int
    """Its number, from 0, undecodable frames included."""
    time: float
    """Seconds from the beginning; rises from frame to frame."""
    picture: Picture | None
    """(H, W, 3) RGB; None if the frame cannot be decoded."""


class Film:
    """The frames of a video file or a webcam, once, in order: ``with Film(source) as film: for frame in film: ...``."""

    def __init__(self, source: Path | int) -> None:
        """Opens the source.

        Args:
            source: a file, or the number of a webcam, the first being 0.

        Raises:
            InputError: if there is no such file or webcam, or the file is no video.
        """
        cv2 = _opencv()
        self._live = isinstance(source, int)
        self.name = f"webcam {source}" if self._live else str(source)
        if isinstance(source, Path):
            try:
                source.open("rb").close()
            except OSError as error:
                raise InputError(f"{source}: the video cannot be read ({error.strerror}): correct its name") from None
        with quiet(cv2):
            self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            remedy = "connect it or choose another number" if self._live else "give an MP4, AVI, MOV or WebM file"
            raise InputError(f"{self.name}: {'does not answer' if self._live else 'is no video'}: {remedy}")
        rate, count, width, height = (
            self._capture.get(what)
            for what in (
                cv2.CAP_PROP_FPS,
                cv2.CAP_PROP_FRAME_COUNT,
                cv2.CAP_PROP_FRAME_WIDTH,
                cv2.CAP_PROP_FRAME_HEIGHT,
            )
        )
        self.rate: float | None = float(rate) if 0.5 <= rate <= 1000.0 else None
        """Frames per second, None if unknown."""
        self.count: int | None = int(count) if not self._live and 1 <= count < 1e9 else None
        """How many frames the file says it has, None if it does not."""
        self.size: tuple[int, int] = (int(width), int(height))
        """Width and height, pixels."""

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[Frame]:
        """The frames that are left.

        Raises:
            InputError: at the end, if none of a file's frames could be decoded.
        """
        cv2 = _opencv()
        start = time.monotonic()
        index = decoded = failures = 0
        last = -math.inf
        while True:
            with quiet(cv2):
                grabbed = self._capture.grab()
                done, picture = self._capture.retrieve() if grabbed else (False, None)
                milliseconds = self._capture.get(cv2.CAP_PROP_POS_MSEC)
            if not grabbed:
                failures += 1
                announced = self.count is not None and index < self.count
                if not announced or failures > _MOST_FAILURES:
                    break
            else:
                failures = 0
            now = time.monotonic() - start if self._live else 1e-3 * milliseconds
            if not now > last:  # files without time stamps
                now = max(last, 0.0) + 1.0 / (self.rate or 30.0)
            last = now
            whole = np.ascontiguousarray(picture[..., ::-1]) if done and picture is not None else None
            decoded += whole is not None
            yield Frame(index, now, whole)
            index += 1
        if not decoded:
            raise InputError(f"{self.name}: no frame could be decoded: give a video that other programs can play")


def _opencv() -> Any:
    # FFmpeg writes its complaints past OpenCV's log; the variable is read when the first film is opened.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return opencv()


# ---------------------------------------------------------------------------------------------------------------------
# Writing


@contextlib.contextmanager
def video_writer(path: Path, rate: float) -> Iterator[Callable[[Picture], None]]:
    """A function that appends uint8 RGB pictures of one size to an MP4 file (MPEG-4 part 2, in every build of OpenCV).

    An odd last row or column is left out, as the format cannot hold it. Without pictures no file is written.

    Args:
        path: of the file, ending in .mp4.
        rate: frames per second.

    Raises:
        InputError: if the file cannot be written.
        ValueError: if a picture has another size than the first.
    """
    cv2 = _opencv()
    with _appearing(path) as temporary:
        writer: Any = None
        shape: tuple[int, ...] = ()

        def write(picture: Picture) -> None:
            nonlocal writer, shape
            if writer is None:
                shape = picture.shape
                code = cv2.VideoWriter_fourcc(*"mp4v")
                with quiet(cv2):
                    writer = cv2.VideoWriter(str(temporary), code, rate, (shape[1] // 2 * 2, shape[0] // 2 * 2))
                if not writer.isOpened():
                    raise InputError(
                        f"{path}: the video cannot be written: choose another folder, and pictures >= 2 x 2"
                    )
            if picture.shape != shape:
                raise ValueError(f"a picture of a video has the shape {picture.shape} instead of {shape}")
            even = picture[: shape[0] // 2 * 2, : shape[1] // 2 * 2]
            writer.write(np.ascontiguousarray(even[..., ::-1]))

        try:
            yield write
        finally:
            if writer is not None:
                writer.release()
        if writer is not None:
            # The writer tells nobody of a full disk.
            with quiet(cv2):
                check = cv2.VideoCapture(str(temporary))
                playable = check.isOpened() and check.read()[0]
                check.release()
            if not playable:
                raise InputError(f"{path}: the video was not written whole: is the disk full?")


@contextlib.contextmanager
def json_lines(path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that appends a value as one line of JSON. Lines can be followed in the temporary file as they come.

    Raises:
        InputError: if the file cannot be written.
    """
    with _appearing(path) as temporary:
        try:
            file = temporary.open("w", encoding="utf-8")
        except OSError as error:
            raise _refusal(path, error) from None

        def write(content: Any) -> None:
            try:
                file.write(json.dumps(content) + "\n")
                file.flush()
            except OSError as error:
                raise _refusal(path, error) from None

        with file:
            yield write


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end and removed after an error."""
    # The suffix stays, since writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if temporary.exists():
            try:
                temporary.replace(path)
            except OSError as error:
                raise _refusal(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _refusal(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror or error}): choose another folder")


# ---------------------------------------------------------------------------------------------------------------------
# Animated mesh


def write_animation(
    path: Path,
    vertices: Sequence[npt.NDArray[np.floating[Any]] | None],
    faces: npt.NDArray[np.integer[Any]],
    times: Sequence[float],
) -> None:
    """Writes a moving mesh as an animated GLB file (glTF 2.0).

    Each frame is a mesh of its own that a step animation of its scale shows and hides, which every viewer can play;
    morph targets, of which viewers support few, would have to be as many as frames.

    Args:
        path: of the file, ending in .glb.
        vertices: (V, 3) of each frame in the camera frame (y down, z forward), metres; None where there is no hand.
            They are turned to glTF's axes (y up, z toward the viewer).
        faces: (F, 3) triangles with outward normals.
        times: seconds at which the frames begin, rising.

    Raises:
        InputError: if no frame has a hand, or the file cannot be written.
        ValueError: if times do not rise or are not as many as frames.
    """
    if len(times) != len(vertices) or not np.all(np.diff(times) > 0.0):
        raise ValueError("an animation needs a time for each frame, and times that rise")
    if all(mesh is None for mesh in vertices):
        raise InputError(f"{path}: no frame shows a hand, so there is nothing to animate: leave the animation out")
    starts = np.asarray(times, np.float64) - times[0]
    last = float(np.mean(np.diff(starts))) if len(starts) > 1 else 1.0
    ends = np.append(starts[1:], starts[-1] + last)

    file = _Glb()
    indices = file.accessor(
        faces.astype(np.uint16 if faces.max() < 2**16 - 1 else np.uint32).reshape(-1), "SCALAR", 34963
    )
    nodes: list[Any] = []
    meshes, channels, samplers = [], [], []
    for mesh, start, end in zip(vertices, starts, ends, strict=True):
        if mesh is None:
            continue
        points = np.asarray(mesh, np.float64) * [1.0, -1.0, -1.0]
        attributes = {
            "POSITION": file.accessor(points.astype(np.float32), "VEC3", 34962, extent=True),
            "NORMAL": file.accessor(_normals(points, faces).astype(np.float32), "VEC3", 34962),
        }
        # Seen from its time to the next; the file's last moment keeps the last frame.
        keys = [(0.0, 0.0), (start, 1.0), (end, 1.0 if end == ends[-1] else 0.0)][0 if start > 0.0 else 1 :]
        moments, scales = (np.asarray(column, np.float32) for column in zip(*keys, strict=True))
        samplers.append(
            {
                "input": file.accessor(moments, "SCALAR", extent=True),
                "output": file.accessor(np.repeat(scales[:, None], 3, axis=1), "VEC3"),
                "interpolation": "STEP",
            }
        )
        channels.append({"sampler": len(nodes), "target": {"node": len(nodes), "path": "scale"}})
        primitive = {"attributes": attributes, "indices": indices, "material": 0}
        meshes.append({"primitives": [primitive]})
        # What a viewer without animation shows is the first hand.
        nodes.append({"mesh": len(nodes), "scale": [0.0 if nodes else 1.0] * 3})
    skin = {"baseColorFactor": [0.8, 0.62, 0.53, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7}
    content = file.content(
        {
            "scene": 0,
            "scenes": [{"nodes": list(range(len(nodes)))}],
            "nodes": nodes,
            "meshes": meshes,
            "materials": [{"pbrMetallicRoughness": skin}],
            "animations": [{"name": "hand", "channels": channels, "samplers": samplers}],
        }
    )
    with _appearing(path) as temporary:
        try:
            temporary.write_bytes(content)
        except OSError as error:
            raise _refusal(path, error) from None


class _Glb:
    """The binary part of a GLB file and the accessors into it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._views: list[dict[str, Any]] = []
        self._accessors: list[dict[str, Any]] = []

    def accessor(self, values: npt.NDArray[Any], kind: str, target: int | None = None, extent: bool = False) -> int:
        """Appends an array, one row an element; `extent` also states its minimum and maximum."""
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
        """The whole file."""
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


def _normals(points: npt.NDArray[np.float64], faces: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """Unit vertex normals, averages of the adjacent triangles' by area."""
    corners = points[faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sums = np.zeros_like(points)
    for corner in range(3):
        np.add.at(sums, faces[:, corner], areas)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 0.0, sums / np.where(lengths > 0.0, lengths, 1.0), [0.0, 0.0, 1.0])

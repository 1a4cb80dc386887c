"""Show results on a page, with a time line for videos and sliders for the pose and the shape of the hands."""

import bisect
import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from handtailor_jax.errors import FloatArray, InputError, warn
from handtailor_jax.geometry.mirror import choose, mirror_parameters, mirror_points
from handtailor_jax.images import Image, read_image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import FINGER_JOINTS, FINGERS, MANO_JOINTS, REFERENCE_BONE, ROOT
from handtailor_jax.tailor.placement import camera_mesh
from handtailor_jax.types import Box, HandParameters, Numbers
from handtailor_jax.video.files import VIDEOS, Frame, Video
from handtailor_jax.view.page import Page, Viewpoint, whole_image
from handtailor_jax.view.recorded import Result

_ALL = "all hands"
_SAME_TIME = 1e-4
"""Largest difference in seconds between equal times, because results have rounded times."""
_SOON = 1.0
"""Largest step forward, in seconds, in which all frames are decoded instead of seeking."""
_TOLERANCE = 0.02
"""Largest distance of a result's joints from those of the hand model, in reference bones."""


class Player:
    """Player of results on a page. Its sliders change the displayed hands, not the files."""

    def __init__(self, page: Page, results: Sequence[Result], model: HandModel) -> None:
        """Add the controls to the page, and show the first result.

        Raises:
            InputError: If a result was made with another hand model.
        """
        self._page, self._model = page, model if model.side == "right" else model.mirrored()
        self._faces = {False: np.asarray(self._model.faces), True: np.asarray(self._model.mirrored().faces)}
        for result in results:
            self._check_model(result)
        names = [result.path.stem for result in results]
        if len(set(names)) < len(names):
            names = [str(result.path) for result in results]
        self._results = dict(zip(names, results, strict=True))
        gui = page.server.gui
        with gui.add_folder("Result", order=0):
            self._choice = page.watched(gui.add_dropdown("name", names))
            self._frame = page.watched(gui.add_slider("frame", 0, 1, 1, 0))
            self._playing = page.watched(gui.add_checkbox("play", False))
        self._sliders = _Sliders(page, self._model.num_betas)
        self._result: Result | None = None
        self._media = _Media(None)
        self._position, self._origin = -1, 0.0
        self.show()

    def run(self, seconds: float = float("inf")) -> None:
        """React to the controls of the page for some seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._playing.value:
                self._advance()
            else:
                self._position = -1
            if self._page.changed.is_set():
                self._page.changed.clear()
                self.show()
            self._page.changed.wait(0.01 if self._playing.value else 0.2)

    def show(self) -> None:
        """Show the result and the frame that the controls select."""
        result = self._results[self._choice.value]
        if result is not self._result:
            self._open(result)
        frame = result.frames[min(self._frame.value, len(result.frames) - 1)]
        bends, betas = self._sliders.values()
        meshes = {}
        for hand in frame.hands:
            share = np.float32(self._sliders.move(hand.name))
            vertices, _ = _placed(self._model, np.asarray(hand.left), hand.parameters, share * bends, share * betas)
            meshes[hand.name] = np.asarray(vertices), self._faces[hand.left]
        self._media.seek(frame.time)
        self._page.show(self._media.image, meshes)

    def close(self) -> None:
        """Close the video that is shown."""
        self._media.close()

    def _open(self, result: Result) -> None:
        self._media.close()
        self._result, self._media = result, _Media(None)
        try:
            self._media = _Media(result.media)
        except InputError as error:
            warn(f"{error}; {result.path} is shown without it")
        box = _around(result) if self._media.image is None else whole_image(self._media.image)
        self._page.look_through(Viewpoint.of(result.camera, box))
        video = len(result.frames) > 1
        self._frame.max, self._frame.visible, self._playing.visible = max(1, len(result.frames) - 1), video, video
        self._frame.value, self._playing.value = 0, False
        self._sliders.choose(sorted({hand.name for frame in result.frames for hand in frame.hands}))

    def _advance(self) -> None:
        """Move the time line to the frame that is due."""
        frames = self._results[self._choice.value].frames
        now = time.monotonic()
        if self._frame.value != self._position:  # the slider was moved, or playing began
            self._origin = now - frames[min(self._frame.value, len(frames) - 1)].time
        # The last frame is shown for the mean time of a frame.
        if now - self._origin > frames[-1].time * len(frames) / max(1, len(frames) - 1):
            self._origin = now
        self._position = bisect.bisect_right(frames, now - self._origin, key=lambda frame: frame.time) - 1
        self._frame.value = self._position = max(0, self._position)

    def _check_model(self, result: Result) -> None:
        hand = next((hand for frame in result.frames for hand in frame.hands), None)
        if hand is None:
            return
        betas = hand.parameters.betas
        if betas.shape == (self._model.num_betas,):
            bends = np.zeros((15, 3), np.float32)
            _, joints = _placed(self._model, np.asarray(hand.left), hand.parameters, bends, np.zeros_like(betas))
            if np.abs(_relative(np.asarray(joints)) - _relative(hand.joints)).max() < _TOLERANCE:
                return
        raise InputError(f"{result.path}: was made with another hand model: give that one as --hand")


def _relative(joints: FloatArray) -> FloatArray:
    """Return joints relative to the root, in reference bones."""
    start, end = REFERENCE_BONE
    return (joints - joints[ROOT]) / np.maximum(np.linalg.norm(joints[end] - joints[start]), 1e-9)


def _around(result: Result) -> Box:
    """Return the box around the keypoints of all frames, enlarged."""
    points = np.zeros((1, 1, 2))
    if hands := [hand.keypoints_2d for frame in result.frames for hand in frame.hands]:
        points = np.asarray(hands, np.float64)
    (x, y), (w, h) = points.min(axis=(0, 1)).tolist(), np.ptp(points, axis=(0, 1)).tolist()
    margin = 0.25 * max(w, h, 1.0)
    return x - margin, y - margin, w + 2 * margin, h + 2 * margin


@jax.jit
def _placed(
    model: HandModel,
    left: Bool[Numbers, ""],
    parameters: HandParameters,
    bends: Float[Numbers, "15 3"],
    betas: Float[Numbers, "betas"],
) -> tuple[Float[Array, "vertices 3"], Float[Array, "21 3"]]:
    """Return vertices and joints of a hand in the camera frame; `bends` (radians) and `betas` are added to it."""
    placed = choose(left, mirror_parameters(parameters), parameters)
    pose = placed.pose.at[1:].add(model.anatomy.finger_pose(bends))
    mesh = camera_mesh(model, dataclasses.replace(placed, pose=pose, betas=placed.betas + betas))
    points = mesh.vertices, mesh.keypoints
    return choose(left, (mirror_points(points[0]), mirror_points(points[1])), points)


class _Sliders:
    """Sliders of the pose and the shape, and the hands that they move."""

    def __init__(self, page: Page, num_betas: int) -> None:
        gui = page.server.gui
        self._bends, self._betas = {}, []
        with gui.add_folder("Pose: degrees to add"):
            self._hand = page.watched(gui.add_dropdown("move", [_ALL]))
            for finger, joints in zip(FINGERS, FINGER_JOINTS, strict=True):
                with gui.add_folder(finger, expand_by_default=False):
                    for joint in joints:
                        name = MANO_JOINTS[joint].rpartition("_")[2].upper()
                        self._bends[joint - 1, 0] = page.watched(gui.add_slider(f"{name} bend", -90, 90, 1, 0))
                    self._bends[joints[0] - 1, 1] = page.watched(gui.add_slider("spread", -45, 45, 1, 0))
        with gui.add_folder("Shape: standard deviations to add", expand_by_default=False):
            for i in range(num_betas):
                self._betas.append(page.watched(gui.add_slider(f"beta {i}", -4.0, 4.0, 0.1, 0.0)))
        gui.add_button("reset pose and shape").on_click(lambda _: self.reset())

    def reset(self) -> None:
        """Set all sliders to 0."""
        for slider in (*self._bends.values(), *self._betas):
            slider.value = 0

    def values(self) -> tuple[FloatArray, FloatArray]:
        """Return flexion, abduction and twist of the 15 joints (15, 3), radians, and shape coefficients to add."""
        bends = np.zeros((15, 3), np.float32)
        for place, slider in self._bends.items():
            bends[place] = np.radians(slider.value)
        return bends, np.asarray([slider.value for slider in self._betas], np.float32)

    def choose(self, names: Sequence[str]) -> None:
        """Reset the sliders, and offer these names as the hands to move."""
        self.reset()
        self._hand.options = (_ALL, *names)
        self._hand.visible = len(names) > 1

    def move(self, name: str) -> bool:
        """Return whether the sliders move a hand."""
        return self._hand.value in (_ALL, name)


class _Media:
    """The image of a result, or the frames of its video at any time."""

    def __init__(self, path: Path | None) -> None:
        self.image: Image | None = None
        """The image at the time of the last `seek`; None if it is unknown."""
        self._path = path
        self._video = None if path is None or path.suffix.lower() not in VIDEOS else Video(path)
        self._frames: Iterator[Frame] = iter(self._video or ())
        self._now = -_SAME_TIME
        if self._video is not None:
            self.seek(0.0)
        elif path is not None:
            self.image = read_image(path)

    def seek(self, time: float) -> None:
        """Go to the frame that is shown at a time, in seconds."""
        if self._video is None or abs(time - self._now) < _SAME_TIME:
            return
        if not 0.0 < time - self._now < _SOON:
            self._jump(time)
        with contextlib.suppress(InputError):  # no frame after this time can be decoded
            for frame in self._frames:
                self.image = self.image if frame.image is None else frame.image
                if frame.time > time - _SAME_TIME:
                    break
        self._now = time

    def _jump(self, time: float) -> None:
        """Move to some frame at or before a time. Some formats seek imprecisely, so earlier times are tried, too."""
        assert self._video is not None
        assert self._path is not None
        for earlier in (0.0, 2.0, 10.0, math.inf):
            if earlier == math.inf:
                self._video.close()
                self._video = Video(self._path)
            else:
                self._video.seek(max(0.0, time - earlier))
            self._frames = iter(self._video)
            with contextlib.suppress(InputError, StopIteration):  # the seek went past the last frame
                first = next(self._frames)
                self._frames = itertools.chain([first], self._frames)
                if first.time < time + _SAME_TIME:
                    break

    def close(self) -> None:
        """Close the video."""
        if self._video is not None:
            self._video.close()

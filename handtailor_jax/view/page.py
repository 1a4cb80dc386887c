"""The page: hands in 3D in front of their image, drawn by viser in the browser.

The scene has the axes of the camera frame (x right, y down, z forward). Seen from its origin, the hands lie over the
image, which is just behind them. Without intrinsics the origin is so far away that perspective hardly shows.
"""

import contextlib
import dataclasses
import io
import math
import socket
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError, check_range, imported, install
from handtailor_jax.images import Image, opencv
from handtailor_jax.types import Box, Camera, Hand

Meshes = Mapping[str, tuple[npt.NDArray[np.floating], npt.NDArray[np.integer]]]
"""Vertices (V, 3) in the camera frame and faces (F, 3) of each hand by its name, hand_<number>_<side>."""

_WEAK_FOV = math.radians(5.0)
"""Vertical field of view without intrinsics, radians."""
_COLOURS = {"right": (222, 170, 140), "left": (140, 178, 222)}
_GAP = 0.03
"""Distance of the image from the farthest point of the hands, in image heights."""
_LONGEST_SIDE = 1280
"""Longest side of images that are sent to the browser, pixels."""
_PLACES = ("behind the hands", "beside the hands", "hidden")


@dataclasses.dataclass(frozen=True)
class Viewpoint:
    """A pinhole camera at the origin of the scene, from which hands lie over their image."""

    focal: tuple[float, float]
    """Focal lengths, pixels."""
    center: tuple[float, float]
    """Principal point, pixels."""
    box: Box
    """Box of the image, or of the part around the hands if the size of the image is unknown, pixels."""
    factor: float
    """Scene units per unit of the camera frame."""
    shift: tuple[float, float, float]
    """Position of the camera frame's origin in the scene."""

    @classmethod
    def of(cls, camera: Camera, box: Box) -> "Viewpoint":
        """Return the viewpoint of a camera; without intrinsics, one from which the box is one unit high."""
        x, y, w, h = box
        if camera.perspectivity > 0.5:
            (fx, _), (_, fy) = np.asarray(camera.linear, float).tolist()
            cx, cy = np.asarray(camera.center, float).tolist()
            return cls((fx, fy), (cx, cy), box, 1.0, (0.0, 0.0, 0.0))
        distance = 0.5 / math.tan(_WEAK_FOV / 2.0)
        center = x + w / 2.0, y + h / 2.0
        return cls((distance * h,) * 2, center, box, 1.0 / h, (-center[0] / h, -center[1] / h, distance))

    def points(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Move points of the camera frame to the scene."""
        return np.asarray(points * self.factor + np.asarray(self.shift), np.float32)

    def plane(self, depth: float) -> tuple[npt.NDArray[np.float64], float, float]:
        """Return centre, width and height of the box at a depth of the scene."""
        x, y, w, h = self.box
        (fx, fy), (cx, cy) = self.focal, self.center
        middle = np.asarray([(x + w / 2.0 - cx) / fx, (y + h / 2.0 - cy) / fy, 1.0])
        return depth * middle, depth * w / fx, depth * h / fy


def whole_image(image: Image) -> Box:
    """Return the box of an image, from the outer edges of its first pixels to those of its last ones."""
    height, width = image.shape[:2]
    return -0.5, -0.5, float(width), float(height)


def meshes_of(hands: list[Hand]) -> Meshes:
    """Return the meshes of hands by their names."""
    return {
        f"hand_{i if hand.track is None else hand.track}_{hand.side}": (hand.vertices, hand.faces)
        for i, hand in enumerate(hands)
    }


class Page:
    """A page that shows one scene to every browser that opens its address.

    Viser runs callbacks in its own threads. They only set flags such as `changed`: the one thread that calls `show`
    does all other work, because compiled programs must not run side by side.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 8080) -> None:
        """Start the server; port 0 is any free one.

        Raises:
            InputError: If viser is not installed, or the address cannot be used.
        """
        self.server = _serve(host, port)
        self.address = f"http://{host}:{self.server.get_port()}"
        self.changed = threading.Event()
        """Set when a control of the page has changed."""
        self.server.gui.set_panel_label("handtailor")
        # The share button would publish the page through a server of viser's authors.
        self.server.gui.configure_theme(show_share_button=False, show_logo=False)
        self.server.gui.main_panel.dock_right()
        self.server.scene.set_up_direction("-y")
        self.server.scene.configure_default_lights(cast_shadow=False)
        self.meshes: dict[str, Any] = {}
        """Handles of the meshes in the scene by their names."""
        self._image: Any = None
        self._shown: Image | None = None
        self._viewpoint = Viewpoint.of(Camera.weak_perspective(), (0.0, 0.0, 1.0, 1.0))
        self._depth, self._near = 0.0, 1.0
        self._turn = True
        with self.server.gui.add_folder("View"):
            self._place = self.watched(self.server.gui.add_dropdown("image", _PLACES, initial_value=_PLACES[0]))
            self._opacity = self.watched(self.server.gui.add_slider("opacity of hands", 0.1, 1.0, 0.05, 1.0))
            self.server.gui.add_button("reset the view").on_click(lambda _: self._reset())
        self._place.on_update(lambda _: self._reset())

    def close(self) -> None:
        """Stop the server."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def watched(self, control: Any) -> Any:
        """Return a control of the page whose changes set `changed`."""
        control.on_update(lambda _: self.changed.set())
        return control

    def _reset(self) -> None:
        self._turn = True
        self.changed.set()

    def look_through(self, viewpoint: Viewpoint) -> None:
        """Clear the scene, and set the viewpoint of the next one."""
        self._viewpoint, self._depth, self._turn = viewpoint, 0.0, True
        for handle in (*self.meshes.values(), *([] if self._image is None else [self._image])):
            handle.remove()
        self.meshes, self._image, self._shown = {}, None, None

    def show(self, image: Image | None, meshes: Meshes) -> None:
        """Show these meshes and no others, in front of an image if there is one."""
        placed = {name: self._viewpoint.points(vertices) for name, (vertices, _) in meshes.items()}
        with self.server.atomic():
            for name, vertices in placed.items():
                if name in self.meshes:
                    self.meshes[name].vertices = vertices
                else:
                    colour = _COLOURS[name.rpartition("_")[2]]
                    self.meshes[name] = self.server.scene.add_mesh_simple(
                        f"/{name}", vertices, meshes[name][1], color=colour, side="double"
                    )
            for name, handle in self.meshes.items():
                handle.visible = name in placed
                handle.opacity = None if self._opacity.value == 1.0 else self._opacity.value
            if image is not self._shown and image is not None:  # an unchanged image is not sent again
                if self._image is None:
                    self._image = self.server.scene.add_image("/image", _reduced(image), 1.0, 1.0, receive_shadow=False)
                else:
                    self._image.image = _reduced(image)
                self._shown = image
            self._place_image([vertices[:, 2] for vertices in placed.values()])
            if self._turn:
                self._turn = False
                self._turn_cameras()
        self.server.flush()

    def _place_image(self, depths: list[npt.NDArray[np.float32]]) -> None:
        """Move the image behind the hands, or beside them."""
        if depths and max(each.max() for each in depths) > self._depth:
            self._turn |= self._depth == 0.0
            farthest = float(max(each.max() for each in depths))
            self._depth = farthest + _GAP * self._viewpoint.plane(farthest)[2]
            self._near = float(np.mean([each.mean() for each in depths]))
        if self._image is not None:
            position, width, height = self._viewpoint.plane(self._depth or self._near)
            position[0] -= self._aside * width
            self._image.position, self._image.visible = tuple(position), self._place.value != _PLACES[2]
            self._image.render_width, self._image.render_height = width, height

    @property
    def _aside(self) -> float:
        """Shift of the image to the side of the hands, in image widths."""
        return 1.05 if self._place.value == _PLACES[1] else 0.0

    def _turn_cameras(self) -> None:
        """Turn the cameras of all browsers, including those that connect later, to the hands and the image."""
        target, width, height = self._viewpoint.plane(self._near)
        middle = target[0] - 0.5 * self._aside * width
        for camera in (self.server.initial_camera, *(each.camera for each in self.server.get_clients().values())):
            across = width * (1.0 + self._aside) / getattr(camera, "aspect", 1.2)
            camera.position = (middle - target[0], 0.0, 0.0)
            camera.look_at, camera.fov = (middle, *target[1:]), 2.0 * math.atan(0.53 * max(height, across) / target[2])


def _reduced(image: Image) -> Image:
    """Return an image reduced to a longer side of at most `_LONGEST_SIDE` pixels."""
    height, width = image.shape[:2]
    share = _LONGEST_SIDE / max(height, width)
    if share >= 1.0:
        return image
    cv2 = opencv()
    reduced = cv2.resize(image, (round(width * share), round(height * share)), interpolation=cv2.INTER_AREA)
    return np.asarray(reduced, np.uint8)


def _serve(host: str, port: int) -> Any:
    """Start viser's server."""
    viser = imported("viser", "the page needs viser", install("view"))
    check_range("port", port, 0, 65535)
    # Check the address first: viser takes the next port if this one is taken, and waits forever if the host is wrong.
    try:
        with socket.create_server((host, port)) as free:
            port = free.getsockname()[1]
    except OSError as error:
        reason, _, _ = str(error.strerror or error).partition(" (while")
        remedy = "give another --port or --host"
        raise InputError(f"{host}:{port}: no page can be served here ({reason}): {remedy}") from None
    with contextlib.redirect_stdout(io.StringIO()):
        return viser.ViserServer(host=host, port=port, verbose=False)

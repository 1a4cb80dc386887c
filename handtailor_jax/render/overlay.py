"""Pictures for people: a mesh over its photograph, keypoints, a second view, contact sheets.

Everything here takes and returns uint8 RGB numpy images of any size; the mesh is rendered in a few fixed sizes
(`_SIZES`) and pasted, so that a new photograph size never compiles anything.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from handtailor_jax.geometry.cameras import depth_divisor, project, transform_camera
from handtailor_jax.images import opencv
from handtailor_jax.render.rasterise import NEAR
from handtailor_jax.render.shading import AMBIENT_REACH, SKIN, shaded_square
from handtailor_jax.skeleton import BONES, FINGER_KEYPOINTS
from handtailor_jax.types import Camera

FINGER_COLORS = ((236, 84, 72), (245, 166, 35), (72, 180, 97), (56, 139, 235), (176, 94, 214))
"""RGB of thumb, index, middle, ring and little finger in every picture."""

BACKGROUND = (241, 242, 244)
"""RGB behind a mesh without a photograph."""

_SIZES = (128, 256, 512, 1024)
_INK = (46, 48, 54)


def render_mesh(
    vertices: Any,
    faces: Any,
    camera: Camera,
    height: int,
    width: int,
    background: Any = BACKGROUND,
    colors: Any = None,
    opacity: float = 1.0,
) -> np.ndarray:
    """A shaded mesh as (height, width, 3) uint8 RGB.

    Args:
        vertices: (V, 3) camera-frame points; outward normals by the right-hand rule on the faces.
        faces: (F, 3) vertex indices.
        camera: perspective or weak perspective, in the pixels of the picture.
        height, width: size of the picture.
        background: a (height, width, 3) uint8 photograph, or one RGB colour from 0 to 255.
        colors: (V, 3) linear RGB from 0 to 1 at the vertices (see `region_colors`), or one colour; skin by default.
        opacity: of the mesh over the background, 0 to 1.

    Raises:
        ValueError: if the shapes do not fit.
    """
    vertices, faces = _mesh_arrays(vertices, faces)
    canvas = np.asarray(background)
    if canvas.ndim == 1:
        canvas = np.broadcast_to(canvas.astype(np.uint8), (height, width, 3))
    if canvas.shape != (height, width, 3) or (np.asarray(background).ndim > 1 and canvas.dtype != np.uint8):
        raise ValueError(
            f"background must be a uint8 picture of shape {(height, width, 3)} or one RGB colour, got {canvas.dtype} "
            f"of shape {canvas.shape}"
        )
    canvas = canvas.copy()
    box = _bounds(_projected(vertices, camera))
    if box is None:
        return canvas
    # The part of the picture that the mesh can touch, one pixel wider for the smoothed edge.
    left, top = (max(0, math.floor(x) - 1) for x in box[:2])
    right, bottom = min(width, math.ceil(box[2]) + 2), min(height, math.ceil(box[3]) + 2)
    if left >= right or top >= bottom:
        return canvas

    shade_colors = np.broadcast_to(np.asarray(SKIN if colors is None else colors, np.float32), vertices.shape)
    # A mesh larger than the largest size comes in pieces, which overlap by what shading looks at around a pixel.
    whole = max(bottom - top, right - left) <= _SIZES[-1]
    apron = 0 if whole else math.ceil(AMBIENT_REACH * _SIZES[-1]) + 1
    step = _SIZES[-1] - 2 * apron
    for y in range(top, bottom, step):
        for x in range(left, right, step):
            h, w = min(step, bottom - y), min(step, right - x)
            size = next(s for s in _SIZES if s >= max(h, w) + 2 * apron)
            moved = transform_camera(camera, _affine(1.0, float(x - apron), float(y - apron)))
            square = shaded_square(jnp.asarray(vertices), jnp.asarray(faces), moved, jnp.asarray(shade_colors), size)
            piece = np.asarray(square)[apron : apron + h, apron : apron + w].astype(np.float32)
            alpha = piece[..., 3:] * (opacity / 255.0)
            under = canvas[y : y + h, x : x + w]
            canvas[y : y + h, x : x + w] = np.rint(piece[..., :3] * alpha + under * (1.0 - alpha)).astype(np.uint8)
    return canvas


def draw_skeleton(
    image: Any,
    keypoints_2d: Any,
    line_width: float | None = None,
    confidence: Any = None,
    colors: Sequence[tuple[int, int, int]] = FINGER_COLORS,
    hollow: bool = False,
) -> np.ndarray:
    """A copy of an image with the 21 keypoints and 20 bones of a hand drawn on it, one colour a finger.

    Args:
        image: (H, W, 3) uint8 RGB.
        keypoints_2d: (21, 2) pixels (u, v); keypoints that are not finite are left out.
        line_width: pixels; chosen from the size of image and hand by default.
        confidence: (21,) keypoints with confidence 0 are left out.
        colors: RGB of the five fingers.
        hollow: rings only, without bones: a second set of keypoints over a first.

    Raises:
        InputError: without OpenCV.
        ValueError: if the shapes do not fit.
    """
    cv2 = opencv()
    canvas = _picture(image)
    points = np.asarray(keypoints_2d, np.float64)
    if points.shape != (21, 2):
        raise ValueError(f"keypoints_2d must have shape (21, 2), got {points.shape}")
    # OpenCV takes 16-bit-shifted integers: far outside the image is as good as absent.
    shown = np.isfinite(points).all(axis=-1) & (np.abs(points).max(axis=-1, initial=0.0, where=~np.isnan(points)) < 1e5)
    if confidence is not None:
        shown &= np.asarray(confidence) > 0
    if line_width is None:
        box = _bounds(points[shown])
        extent = max(box[2] - box[0], box[3] - box[1]) if box else 0.0
        line_width = float(np.clip(extent / 75.0, 1.0, max(canvas.shape[:2]) / 100.0 + 1.0))
    thickness = max(1, round(line_width))
    radius = 0.95 * line_width + 0.6
    shift = 4  # OpenCV then reads coordinates in sixteenths of a pixel

    def fixed(point: np.ndarray) -> tuple[int, int]:
        return round(point[0] * 2**shift), round(point[1] * 2**shift)

    def disc(point: np.ndarray, radius: float, color: tuple[int, ...], thickness: int = -1) -> None:
        cv2.circle(canvas, fixed(point), round(radius * 2**shift), color, thickness, cv2.LINE_AA, shift)

    finger_of = {k: finger for finger, keypoints in enumerate(FINGER_KEYPOINTS) for k in keypoints}
    outline = line_width >= 2.0
    if not hollow:
        for casing in (True, False) if outline else (False,):
            for parent, child in BONES:
                if shown[parent] and shown[child]:
                    color = _INK if casing else tuple(int(c) for c in colors[finger_of[child]])
                    ends = fixed(points[parent]), fixed(points[child])
                    cv2.line(canvas, *ends, color, thickness + (2 if casing else 0), cv2.LINE_AA, shift)
    for k in np.flatnonzero(shown).tolist():
        color = tuple(int(c) for c in colors[finger_of[k]]) if k in finger_of else (250, 250, 250)
        if hollow:
            disc(points[k], radius + 0.6 * line_width, _INK, max(2, thickness))
            disc(points[k], radius + 0.6 * line_width, (255, 255, 255), max(1, thickness // 3))
        else:
            if outline:
                disc(points[k], radius + 1.6, _INK)
            disc(points[k], radius + 0.5, (255, 255, 255))
            disc(points[k], 0.68 * radius, color if k in finger_of else _INK)
    return canvas


def second_view(
    vertices: Any,
    faces: Any,
    height: int,
    width: int,
    pixels_per_unit: float | None = None,
    angle: float = 75.0,
    colors: Any = None,
    background: tuple[int, int, int] = BACKGROUND,
) -> np.ndarray:
    """The mesh turned about the vertical axis through its centre, through a weak-perspective camera.

    Args:
        vertices: (V, 3) camera-frame points.
        faces: (F, 3) vertex indices.
        height, width: size of the picture.
        pixels_per_unit: scale; reduced if the mesh would not fit, and made to fit where None.
        angle: degrees; positive shows the hand's side that was on the picture's right.
        colors, background: as in `render_mesh`.
    """
    vertices, faces = _mesh_arrays(vertices, faces)
    finite = np.isfinite(vertices).all(axis=-1)
    if not finite.any():
        return np.broadcast_to(np.asarray(background, np.uint8), (height, width, 3)).copy()
    center = 0.5 * (vertices[finite].min(axis=0) + vertices[finite].max(axis=0))
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.asarray([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]], np.float32)
    turned = (vertices - center) @ turn.T
    low, high = turned[finite].min(axis=0), turned[finite].max(axis=0)
    extent = np.maximum(high - low, 1e-12)
    fitting = 0.88 * float(min(width / extent[0], height / extent[1]))
    scale = fitting if pixels_per_unit is None else min(fitting, pixels_per_unit)
    middle = 0.5 * (low + high)
    translation = (0.5 * (width - 1) - scale * middle[0], 0.5 * (height - 1) - scale * middle[1])
    camera = Camera.weak_perspective(scale, [float(t) for t in translation])
    return render_mesh(turned, faces, camera, height, width, background, colors)


def overlay_figure(
    image: Any,
    vertices: Any,
    faces: Any,
    camera: Camera,
    keypoints_2d: Any = None,
    fitted_keypoints_2d: Any = None,
    colors: Any = None,
    panel_height: int = 400,
    angle: float = 75.0,
) -> np.ndarray:
    """A fit as one picture: photograph with keypoints, photograph with the mesh over it, the mesh seen from the side.

    Small photographs are enlarged and large ones cropped around the hand or reduced, so that panels have the given
    height whatever the photograph.

    Args:
        image: (H, W, 3) uint8 RGB photograph, or None for a plain background.
        vertices: (V, 3) camera-frame points of the fitted mesh.
        faces: (F, 3) vertex indices.
        camera: the photograph's camera, perspective or weak perspective.
        keypoints_2d: (21, 2) input keypoints (u, v) in the photograph's pixels, drawn as a skeleton.
        fitted_keypoints_2d: (21, 2) keypoints of the fitted hand, drawn as rings.
        colors: as in `render_mesh`.
        panel_height: pixels.
        angle: of the side view, degrees.

    Returns:
        uint8 RGB, about `panel_height` high.

    Raises:
        InputError: without OpenCV.
        ValueError: if the shapes do not fit.
    """
    cv2 = opencv()
    photograph = None if image is None else _picture(image)
    vertices, faces = _mesh_arrays(vertices, faces)
    keypoint_sets = [np.asarray(k, np.float64) for k in (keypoints_2d, fitted_keypoints_2d) if k is not None]
    projected = _projected(vertices, camera)
    left, top, side_u, side_v = _window(photograph, [projected, *keypoint_sets])
    zoom = panel_height / side_v
    panel_width = max(1, round(side_u * zoom))
    affine = _affine(zoom, float(left), float(top))
    if photograph is None:
        panel = np.broadcast_to(np.asarray(BACKGROUND, np.uint8), (panel_height, panel_width, 3)).copy()
    else:
        crop = photograph[top : top + side_v, left : left + side_u]
        method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
        panel = cv2.resize(crop, (panel_width, panel_height), interpolation=method)
    moved = transform_camera(camera, affine)

    first = panel
    a = np.asarray(affine, np.float64)
    if keypoints_2d is not None:
        first = draw_skeleton(first, np.asarray(keypoints_2d, np.float64) @ a[:, :2].T + a[:, 2])
    if fitted_keypoints_2d is not None:
        first = draw_skeleton(first, np.asarray(fitted_keypoints_2d, np.float64) @ a[:, :2].T + a[:, 2], hollow=True)
    second = render_mesh(vertices, faces, moved, panel_height, panel_width, panel, colors)
    third = second_view(vertices, faces, panel_height, panel_height, _pixels_per_unit(vertices, moved), angle, colors)
    gap = np.full((panel_height, max(2, panel_height // 100), 3), 255, np.uint8)
    return np.concatenate([first, gap, second, gap, third], axis=1)


def contact_sheet(panels: Sequence[Any], columns: int, captions: Sequence[str] | None = None) -> np.ndarray:
    """Pictures in a grid on white, each centred in a cell of the largest size, with a line of text under it.

    Args:
        panels: (H, W, 3) uint8 RGB pictures of any sizes.
        columns: pictures in a row.
        captions: one short text a picture (ASCII; other characters become "?").

    Raises:
        InputError: without OpenCV.
        ValueError: without pictures or columns, or if there are not as many captions as pictures.
    """
    cv2 = opencv()
    pictures = [_picture(panel) for panel in panels]
    if not pictures or columns < 1:
        raise ValueError(f"a contact sheet needs pictures and columns, got {len(pictures)} and {columns}")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"{len(captions)} captions for {len(pictures)} pictures")
    gap = 8
    cell_height, cell_width = (max(p.shape[i] for p in pictures) for i in range(2))
    text_scale = float(np.clip(cell_width / 700.0, 0.38, 0.6))
    line = round(34 * text_scale) + 6 if captions is not None else 0
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    size = (rows * (cell_height + line + gap) + gap, columns * (cell_width + gap) + gap, 3)
    sheet = np.full(size, 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = gap + (i // columns) * (cell_height + line + gap), gap + (i % columns) * (cell_width + gap)
        dy, dx = (cell_height - picture.shape[0]) // 2, (cell_width - picture.shape[1]) // 2
        sheet[y + dy : y + dy + picture.shape[0], x + dx : x + dx + picture.shape[1]] = picture
        if captions is not None:
            text = captions[i].encode("ascii", "replace").decode()
            while len(text) > 1 and cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, text_scale, 1)[0][0] > cell_width:
                text = text[:-1]
            place = (x, y + cell_height + round(24 * text_scale) + 4)
            cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, text_scale, _INK, 1, cv2.LINE_AA)
    return sheet


def _picture(image: Any) -> np.ndarray:
    """A contiguous, writable copy of a uint8 RGB image."""
    picture = np.array(image, order="C")
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise ValueError(f"an image must be uint8 RGB of shape (H, W, 3), got {picture.dtype} of shape {picture.shape}")
    return picture


def _mesh_arrays(vertices: Any, faces: Any) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"vertices must have shape (V, 3), got {vertices.shape}")
    if faces.ndim != 2 or faces.shape[1] != 3 or not np.issubdtype(faces.dtype, np.integer):
        raise ValueError(f"faces must be integers of shape (F, 3), got {faces.dtype} of shape {faces.shape}")
    return vertices, faces.astype(np.int32)


def _affine(zoom: float, left: float, top: float) -> jnp.ndarray:
    """The pixel map of a crop at (left, top) resized by `zoom`, in which pixel centres are whole numbers."""
    offset = 0.5 * zoom - 0.5
    return jnp.asarray([[zoom, 0.0, offset - zoom * left], [0.0, zoom, offset - zoom * top]], jnp.result_type(float))


def _projected(vertices: np.ndarray, camera: Camera) -> np.ndarray:
    """Pixels of the vertices that the camera can see, (N, 2)."""
    visible = np.isfinite(vertices).all(axis=-1)
    if float(camera.perspectivity) > 0:
        visible &= vertices[:, 2] > NEAR
    safe = np.where(visible[:, None], vertices, np.float32(1.0))
    return np.asarray(project(camera, jnp.asarray(safe)), np.float64)[visible]


def _bounds(points: np.ndarray) -> tuple[float, float, float, float] | None:
    """left, top, right, bottom of the finite points; None without any."""
    points = points[np.isfinite(points).all(axis=-1)]
    if not len(points):
        return None
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _pixels_per_unit(vertices: np.ndarray, camera: Camera) -> float | None:
    """Scale of the picture at the mesh's median depth."""
    finite = vertices[np.isfinite(vertices).all(axis=-1)]
    if not len(finite):
        return None
    divisor = float(depth_divisor(camera, jnp.asarray(np.median(finite[:, 2:], axis=0)))[0])
    scale = math.sqrt(abs(float(np.linalg.det(np.asarray(camera.linear, np.float64))))) / divisor
    return scale if math.isfinite(scale) and scale > 0 else None


def _window(photograph: np.ndarray | None, point_sets: Sequence[np.ndarray]) -> tuple[int, int, int, int]:
    """left, top, width, height in whole pixels of what the panels show.

    The whole photograph if the hand fills a fair part of it and it is not much wider or higher than a square; else a
    square around the hand.
    """
    box = _bounds(np.concatenate(point_sets))
    if photograph is None:
        left, top, right, bottom = (0.0, 0.0, 255.0, 255.0) if box is None else box
        side = max(2, math.ceil(1.25 * max(right - left, bottom - top)))
        return math.floor(0.5 * (left + right - side)), math.floor(0.5 * (top + bottom - side)), side, side
    height, width = photograph.shape[:2]
    if box is None:
        return 0, 0, width, height
    left, right = (min(max(x, 0.0), float(width)) for x in (box[0], box[2]))
    top, bottom = (min(max(y, 0.0), float(height)) for y in (box[1], box[3]))
    extent = max(right - left, bottom - top)
    fair = extent >= 0.42 * max(height, width) and max(height, width) <= 1.5 * min(height, width)
    if fair or extent == 0:
        return 0, 0, width, height
    side = math.ceil(1.6 * extent)
    shown_width, shown_height = min(side, width), min(side, height)
    x = min(max(round(0.5 * (left + right - shown_width)), 0), width - shown_width)
    y = min(max(round(0.5 * (top + bottom - shown_height)), 0), height - shown_height)
    return x, y, shown_width, shown_height

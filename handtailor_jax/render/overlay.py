"""Overlays and figures: a mesh over its image, keypoints, a second view, contact sheets; all images are uint8 RGB."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import depth_divisor, transform_camera
from handtailor_jax.images import opencv
from handtailor_jax.render.shading import BACKGROUND, mesh_bounds, render_mesh
from handtailor_jax.skeleton import BONES, FINGER_KEYPOINTS, WRIST
from handtailor_jax.types import Camera

_Mesh = tuple[np.ndarray, np.ndarray]

FINGER_COLORS = ((236, 84, 72), (245, 166, 35), (72, 180, 97), (56, 139, 235), (176, 94, 214))
"""RGB of thumb, index, middle, ring and little finger in every image."""

_MOST_IN_SCENE = 8  # hands rendered together, with occlusion; of more hands, groups are drawn one over the other
_SMALLEST = 0.2  # share of the panel's height below which marks would cover a hand; panels become larger
_INK, _PAPER = (46, 48, 54), (255, 255, 255)
_SHIFT = 4  # OpenCV reads coordinates in sixteenths of a pixel
_FINGER_OF = {keypoint: finger for finger, keypoints in enumerate(FINGER_KEYPOINTS) for keypoint in keypoints}


def draw_skeleton(image: Any, keypoints_2d: Any, confidence: Any = None, hollow: bool = False) -> np.ndarray:
    """Return a copy of an image with 21 keypoints (u, v) and 20 bones drawn on it, one colour per finger.

    Keypoints that are not finite or have confidence 0 are left out. Hollow ones are rings without bones, to show a
    second set of keypoints over a first one.

    Raises:
        ValueError: If the shapes do not fit.
    """
    cv2 = opencv()
    canvas = _rgb_copy(image)
    points = np.asarray(keypoints_2d, np.float64)
    if points.shape != (21, 2):
        raise ValueError(f"keypoints_2d must have shape (21, 2), got {points.shape}")
    # OpenCV computes with integers that can overflow, so keypoints far outside the image are left out.
    shown = np.isfinite(points).all(axis=-1) & (np.abs(points).max(axis=-1, initial=0.0, where=~np.isnan(points)) < 1e5)
    if confidence is not None:
        shown &= np.asarray(confidence) > 0
    extent = float(hand_size(points[shown])) if shown.any() else 0.0
    line_width = float(np.clip(extent / 75.0, 1.0, max(canvas.shape[:2]) / 100.0 + 1.0))
    thickness, radius, outlined = max(1, round(line_width)), 0.95 * line_width + 0.6, line_width >= 2.0
    bones = [] if hollow else [(a, b) for a, b in BONES if shown[a] and shown[b]]
    for wider in (2, 0) if outlined else (0,):
        for parent, child in bones:
            color = _INK if wider else FINGER_COLORS[_FINGER_OF[child]]
            ends = _sixteenths(points[parent]), _sixteenths(points[child])
            cv2.line(canvas, *ends, color, thickness + wider, cv2.LINE_AA, _SHIFT)
    for k in np.flatnonzero(shown).tolist():
        color = FINGER_COLORS[_FINGER_OF[k]] if k in _FINGER_OF else _INK
        if hollow:
            ring = radius + 0.6 * line_width
            discs = [(ring, _INK, max(2, thickness)), (ring, _PAPER, max(1, thickness // 3))]
        else:
            discs = [(radius + 1.6, _INK, -1)] if outlined else []
            discs += [(radius + 0.5, _PAPER, -1), (0.68 * radius, color, -1)]
        for size, fill, line in discs:
            cv2.circle(canvas, _sixteenths(points[k]), round(size * 2**_SHIFT), fill, line, cv2.LINE_AA, _SHIFT)
    return canvas


def second_view(
    vertices: Any, faces: Any, height: int, width: int, pixels_per_unit: float | None = None, angle: float = 75.0
) -> np.ndarray:
    """Render the mesh (V, 3), (F, 3) rotated about the vertical axis through its centre, in weak perspective.

    The mesh fills the image, but at no more than `pixels_per_unit`. The angle is in degrees; a positive one shows the
    right side of the mesh.
    """
    vertices = np.asarray(vertices, np.float32)
    finite = np.isfinite(vertices).all(axis=-1)
    if not finite.any():
        return _plain(height, width)
    center = 0.5 * (vertices[finite].min(axis=0) + vertices[finite].max(axis=0))
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = (vertices - center) @ np.asarray([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]], np.float32).T
    low, high = turned[finite].min(axis=0), turned[finite].max(axis=0)
    extent, middle = np.maximum(high - low, 1e-12), 0.5 * (low + high)
    scale = 0.88 * float(min(width / extent[0], height / extent[1]))
    scale = scale if pixels_per_unit is None else min(scale, pixels_per_unit)
    translation = (0.5 * (width - 1) - scale * middle[0], 0.5 * (height - 1) - scale * middle[1])
    camera = Camera.weak_perspective(scale, [float(t) for t in translation])
    return render_mesh(turned, faces, camera, height, width)


def overlay_figure(
    image: Any,
    meshes: Sequence[tuple[Any, Any]],
    camera: Camera,
    keypoints_2d: Any = None,
    fitted_keypoints_2d: Any = None,
    names: Sequence[str] = (),
    panel_height: int = 400,
) -> np.ndarray:
    """Show fitted hands in three panels: image with keypoints, image with the meshes over it, meshes from the side.

    Images are enlarged, reduced or cropped around the hands to the height of the panels.

    Args:
        image: (H, W, 3) uint8 RGB image, or None for a plain background.
        meshes: Camera-frame vertices (V, 3) and faces (F, 3) of each hand. Without hands the image is shown alone.
        camera: Perspective or weak-perspective camera of the image.
        keypoints_2d: (hands, 21, 2) input keypoints (u, v) in pixels of the image, drawn as skeletons.
        fitted_keypoints_2d: (hands, 21, 2) keypoints of the fitted hands, drawn as rings.
        names: A short text for each hand, written at its fitted wrist.
        panel_height: Height of the figure in pixels; up to three times as much for small hands.

    Raises:
        ValueError: If the shapes do not fit.
    """
    meshes = [(np.asarray(vertices, np.float32), np.asarray(faces)) for vertices, faces in meshes]
    image = None if image is None else _rgb_copy(image)
    sets = (keypoints_2d, fitted_keypoints_2d)
    given, fitted = (np.zeros((0, 21, 2)) if points is None else np.asarray(points, np.float64) for points in sets)
    bounds = [mesh_bounds(vertices, camera) for vertices, _ in meshes]
    left, top, side_u, side_v = _window(image, np.concatenate([*bounds, given.reshape(-1, 2), fitted.reshape(-1, 2)]))
    smallest = min(map(float, hand_size(fitted)), default=math.nan) / side_v
    panel_height *= min(max(1, math.ceil(_SMALLEST / smallest)), 3) if smallest > 0.0 else 1
    zoom = panel_height / side_v
    panel_width = max(1, round(side_u * zoom))
    offset = 0.5 * zoom - 0.5
    affine = np.asarray([[zoom, 0.0, offset - zoom * left], [0.0, zoom, offset - zoom * top]], jnp.result_type(float))
    camera = transform_camera(camera, jnp.asarray(affine))
    first = second = _plain(panel_height, panel_width)
    if image is not None:
        cv2 = opencv()
        method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
        crop = image[top : top + side_v, left : left + side_u]
        first = second = cv2.resize(crop, (panel_width, panel_height), interpolation=method)

    affine = affine.astype(np.float64)
    for points in given:
        first = draw_skeleton(first, points @ affine[:, :2].T + affine[:, 2])
    for points in fitted:
        first = draw_skeleton(first, points @ affine[:, :2].T + affine[:, 2], hollow=True)
    for points, name in zip(fitted, names, strict=False):
        first = _caption(first, name, affine[:, :2] @ points[WRIST] + affine[:, 2])
    for group in distant_first(meshes, camera):
        second = render_mesh(*scene(group, camera), camera, panel_height, panel_width, second)
    third = _side_views(meshes, camera, panel_height)
    gap = np.full((panel_height, max(2, panel_height // 100), 3), 255, np.uint8)
    return np.concatenate([first, gap, second, gap, third], axis=1)


def scene(meshes: Sequence[_Mesh], camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Combine meshes into one, so that they occlude each other.

    Without intrinsics no hand's distance is known, so hands that are larger in the image are put in front. The number
    of meshes is padded to a power of two with empty ones, because each number of vertices compiles a program.
    """
    points: list[np.ndarray] = [np.asarray(vertices, np.float32) for vertices, _ in meshes]
    if float(camera.perspectivity) == 0.0 and len(points) > 1:
        extents = [float(np.ptp(p, axis=0).max()) for p in points]
        order = np.argsort(np.argsort(extents))
        depths = np.concatenate([p[:, 2] for p in points])
        away = np.asarray([0.0, 0.0, 2.0 * np.ptp(depths[np.isfinite(depths)])], np.float32)
        points = [p - np.float32(rank) * away for p, rank in zip(points, order, strict=True)]
    starts = np.cumsum([0, *(len(p) for p in points[:-1])])
    triangles = [np.asarray(faces) + start for (_, faces), start in zip(meshes, starts, strict=True)]
    empty = 2 ** math.ceil(math.log2(len(meshes))) - len(meshes)
    points += [np.broadcast_to(points[-1][:1], points[-1].shape)] * empty
    triangles += [np.zeros_like(triangles[-1])] * empty
    return np.concatenate(points), np.concatenate(triangles)


def distant_first(meshes: Sequence[_Mesh], camera: Camera) -> list[Sequence[_Mesh]]:
    """Return groups of meshes for the rasteriser, distant ones (small ones, without intrinsics) first."""
    known = float(camera.perspectivity) > 0.0
    ordered = sorted(meshes, key=lambda mesh: -mesh[0][:, 2].mean() if known else np.ptp(mesh[0], axis=0).max())
    return [ordered[first : first + _MOST_IN_SCENE] for first in range(0, len(ordered), _MOST_IN_SCENE)]


def _caption(image: np.ndarray, text: str, point: np.ndarray) -> np.ndarray:
    """Return a copy of an image with a text under a point, as far as possible inside."""
    cv2, canvas = opencv(), _rgb_copy(image)
    if not np.isfinite(point).all():
        return canvas
    width, height = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0]
    x, y = point[0] - 0.5 * width, point[1] + 1.8 * height
    place = (round(np.clip(x, 2, canvas.shape[1] - width - 2)), round(np.clip(y, height + 2, canvas.shape[0] - 4)))
    for color, thickness in ((_INK, 3), (_PAPER, 1)):
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, thickness, cv2.LINE_AA)
    return canvas


def _side_views(meshes: Sequence[_Mesh], camera: Camera, size: int) -> np.ndarray:
    """Return a square panel with a grid of up to nine hands, each from the side."""
    panel = _plain(size, size)
    shown = meshes[:9]
    columns = math.ceil(math.sqrt(max(len(shown), 1)))
    height, width = size // math.ceil(max(len(shown), 1) / columns), size // columns
    for i, (vertices, faces) in enumerate(shown):
        y, x = height * (i // columns), width * (i % columns)
        # One hand has the scale of the image; several fill their cells, because some may be small in the image.
        scale = _pixels_per_unit(vertices, camera) if len(shown) == 1 else None
        panel[y : y + height, x : x + width] = second_view(vertices, faces, height, width, scale)
    return panel


def contact_sheet(
    panels: Sequence[Any], columns: int, captions: Sequence[str] | None = None, most_width: int = 2**15
) -> np.ndarray:
    """Arrange images in rows of similar width on white, about `columns` in a row, scaled to one height, their median.

    Under each image is its caption, in which characters outside ASCII become "?". The height is less where a row would
    be wider than `most_width` pixels.

    Raises:
        ValueError: Without images or columns, or if the number of captions is not the number of images.
    """
    cv2, gap = opencv(), 8
    images = [_rgb_copy(panel) for panel in panels]
    if not images or columns < 1:
        raise ValueError(f"a contact sheet needs images and columns, got {len(images)} images and {columns} columns")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"a contact sheet needs one caption per image, got {len(captions)} for {len(images)} images")
    height = float(np.median([image.shape[0] for image in images]))
    widths = np.asarray([height * image.shape[1] / image.shape[0] for image in images])
    count = max(1, round(widths.sum() / (columns * np.median(widths))))
    middles = (np.cumsum(widths) - 0.5 * widths) / widths.sum()
    rows = [row for i in range(count) if (row := np.flatnonzero((count * middles).astype(int) == i).tolist())]
    zoom = min([1.0, *((most_width - gap * (len(row) + 1)) / widths[row].sum() for row in rows)])
    height, widths = round(zoom * height), np.maximum(np.floor(zoom * widths), 1).astype(int)
    text_scale = float(np.clip(np.median(widths) / 700.0, 0.38, 0.6))
    step = height + gap + (round(34 * text_scale) + 6 if captions is not None else 0)
    size = (len(rows) * step + gap, max(widths[row].sum() + gap * (len(row) + 1) for row in rows), 3)
    sheet, font = np.full(size, 255, np.uint8), cv2.FONT_HERSHEY_SIMPLEX
    for y, row in zip(range(gap, size[0], step), rows, strict=False):
        for i, x in zip(row, np.cumsum([gap, *(widths[row] + gap)]).tolist(), strict=False):
            width, how = int(widths[i]), cv2.INTER_AREA if images[i].shape[0] > height else cv2.INTER_LINEAR
            sheet[y : y + height, x : x + width] = cv2.resize(images[i], (width, height), interpolation=how)
            if captions is not None:
                text = captions[i].encode("ascii", "replace").decode()
                while len(text) > 1 and cv2.getTextSize(text, font, text_scale, 1)[0][0] > width:
                    text = text[:-1]
                baseline = y + height + round(24 * text_scale) + 4
                cv2.putText(sheet, text, (x, baseline), font, text_scale, _INK, 1, cv2.LINE_AA)
    return sheet


def _rgb_copy(image: Any) -> np.ndarray:
    """Return a contiguous, writable copy of a uint8 RGB image."""
    copy = np.array(image, order="C")
    if copy.ndim != 3 or copy.shape[2] != 3 or copy.dtype != np.uint8 or 0 in copy.shape:
        raise ValueError(f"an image must be uint8 RGB of shape (H, W, 3), got {copy.dtype} of shape {copy.shape}")
    return copy


def _plain(height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(BACKGROUND, np.uint8), (height, width, 3)).copy()


def _sixteenths(point: np.ndarray) -> tuple[int, int]:
    return round(point[0] * 2**_SHIFT), round(point[1] * 2**_SHIFT)


def _pixels_per_unit(vertices: np.ndarray, camera: Camera) -> float | None:
    """Return the pixels per camera-frame unit at the median depth of the mesh."""
    finite = vertices[np.isfinite(vertices).all(axis=-1)]
    if not len(finite):
        return None
    divisor = float(depth_divisor(camera, jnp.asarray(np.median(finite[:, 2:], axis=0)))[0])
    scale = math.sqrt(abs(float(np.linalg.det(np.asarray(camera.linear, np.float64))))) / divisor
    return scale if math.isfinite(scale) and scale > 0 else None


def _window(image: np.ndarray | None, points: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, width and height, in whole pixels, of the part of the image that the panels show.

    This is the whole image if it is nearly square and the hand fills a fair part of it, else a square around the hand.
    """
    points = points[np.isfinite(points).all(axis=-1)]
    box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist()) if len(points) else None
    if image is None:
        left, top, right, bottom = (0.0, 0.0, 255.0, 255.0) if box is None else box
        side = max(2, math.ceil(1.25 * max(right - left, bottom - top)))
        return math.floor(0.5 * (left + right - side)), math.floor(0.5 * (top + bottom - side)), side, side
    height, width = image.shape[:2]
    if box is None:
        return 0, 0, width, height
    left, right = (min(max(x, 0.0), float(width)) for x in (box[0], box[2]))
    top, bottom = (min(max(y, 0.0), float(height)) for y in (box[1], box[3]))
    extent = max(right - left, bottom - top)
    nearly_square = max(height, width) <= 1.5 * min(height, width)
    if extent == 0 or (nearly_square and extent >= 0.42 * max(height, width)):
        return 0, 0, width, height
    side = math.ceil(1.6 * extent)
    shown_width, shown_height = min(side, width), min(side, height)
    x = min(max(round(0.5 * (left + right - shown_width)), 0), width - shown_width)
    y = min(max(round(0.5 * (top + bottom - shown_height)), 0), height - shown_height)
    return x, y, shown_width, shown_height

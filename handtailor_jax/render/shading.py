"""Smooth shading of a mesh for overlays and documentation: skin under three soft lights.

A mesh is rendered in squares of a few sizes (`_SIZES`) and pasted, so a new image size compiles no new program.
Colours are linear RGB from 0 to 1 until `to_srgb`.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from handtailor_jax.geometry.cameras import crop_affine, project, transform_camera
from handtailor_jax.geometry.normals import face_normals, vertex_normals
from handtailor_jax.render.rasterise import NEAR, fragments_at, interpolate, nearest_faces
from handtailor_jax.types import Camera

SKIN = (0.58, 0.33, 0.235)
"""Linear RGB of skin, the default colour of a mesh."""

INSIDE = (0.21, 0.062, 0.055)
"""Linear RGB of the inner side of the skin, which is visible through the open wrist."""

AMBIENT_REACH = 0.06
"""Default radius of `ambient_openness` around a pixel, as a share of the shorter image side."""

BACKGROUND = (241, 242, 244)
"""sRGB, 0 to 255, behind a mesh without an image."""

# Compiled, because otherwise each of their operations costs a tenth of a millisecond.
_project, _moved = jax.jit(project), jax.jit(transform_camera)
_SIZES = (128, 256, 384, 512, 1024)  # sides of the squares in which meshes are rendered
_TILE, _CHUNK = 4, 64  # side of the tiles that are shaded, pixels, and their number at once: they fit into the cache
# Direction toward the light in the camera frame, colour times strength.
_LIGHTS = (
    ((-0.55, -0.75, -0.75), (1.00, 0.96, 0.90)),  # key: upper left, in front
    ((0.85, -0.10, -0.60), (0.26, 0.28, 0.33)),  # fill: right, cooler
    ((0.15, -0.80, 0.60), (0.32, 0.32, 0.34)),  # rim: from above, behind
)
_SKY, _GROUND = (0.27, 0.28, 0.31), (0.15, 0.13, 0.12)
# Light scatters through skin past the edge of a shadow, red farthest. R, G, B.
_WRAP = (0.38, 0.22, 0.17)
_GLOSS, _GLOSS_EXPONENT = 0.055, 22.0


def to_srgb(linear: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Convert linear values from 0 to 1 to sRGB values from 0 to 1."""
    x = jnp.clip(linear, 0.0, 1.0)
    return jnp.where(x <= 0.0031308, 12.92 * x, 1.055 * jnp.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055)


def to_linear(srgb: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Convert sRGB values from 0 to 1 to linear values from 0 to 1."""
    return jnp.where(srgb <= 0.04045, srgb / 12.92, ((jnp.maximum(srgb, 0.04045) + 0.055) / 1.055) ** 2.4)


def _light(
    vertices: Float[Array, "vertices 3"], faces: Int[Array, "faces 3"], camera: Camera, colors: Float[Array, "v 3"]
) -> Float[Array, "faces 3 3"]:
    """Return linear RGB of every corner of every face."""
    dtype = vertices.dtype
    flat = jnp.broadcast_to(face_normals(vertices, faces)[:, None], (*faces.shape, 3))
    smooth = vertex_normals(vertices, faces)[faces]

    # The viewer is at the camera's centre in perspective and along -z in weak perspective.
    backward = jnp.asarray([0.0, 0.0, -1.0], dtype)[None, None, :]
    p = camera.perspectivity
    toward_eye = _normalise(-p * vertices[faces] + (1.0 - p) * backward)
    outside = (flat * toward_eye).sum(axis=-1, keepdims=True) >= 0
    has_normal = (smooth * smooth).sum(axis=-1, keepdims=True) > 1e-6  # else the normals of the vertex's faces cancel
    normals = jnp.where(has_normal, _normalise(smooth), flat)
    normals = jnp.where(outside, normals, -normals)
    albedo = jnp.where(outside, colors.astype(dtype)[faces], jnp.asarray(INSIDE, dtype)[None, None, :])

    def rgb(values: Sequence[float]) -> Array:
        return jnp.asarray(values, dtype)[None, None, :]

    up = 0.5 - 0.5 * normals[..., 1:2]
    diffuse = up * rgb(_SKY) + (1.0 - up) * rgb(_GROUND)
    gloss = jnp.zeros_like(diffuse)
    for direction, strength in _LIGHTS:
        light = _normalise(rgb(direction))
        cosine = (normals * light).sum(axis=-1, keepdims=True)
        wrapped = jnp.maximum((cosine + rgb(_WRAP)) / (1.0 + rgb(_WRAP)), 0.0)
        diffuse = diffuse + rgb(strength) * wrapped * wrapped * (2.0 - wrapped)
        halfway = jnp.maximum((normals * _normalise(light + toward_eye)).sum(axis=-1, keepdims=True), 0.0)
        gloss = gloss + rgb(strength) * halfway**_GLOSS_EXPONENT * jnp.clip(4.0 * cosine, 0.0, 1.0)
    # Skin is brighter and glossier where it turns away from the viewer.
    grazing = (1.0 - jnp.clip((normals * toward_eye).sum(axis=-1, keepdims=True), 0.0, 1.0)) ** 4
    return albedo * diffuse + gloss * (_GLOSS + 0.25 * grazing) * outside.astype(dtype)


def ambient_openness(
    depth: Float[Array, "height width"], camera: Camera, reach: float = AMBIENT_REACH
) -> Float[Array, "height width"]:
    """Estimate how much ambient light reaches each pixel of a depth map (inf: background), from about 0.5 to 1 (open).

    Darkens gaps between fingers and contacts. A pixel is shadowed by neighbours in the depth map that are closer to the
    camera than the slope of a smooth surface explains; their distance is a share `reach` of the shorter image side.
    """
    height, width = depth.shape
    # Depth in pixels is comparable to the distance of neighbours in every unit of the camera frame.
    determinant = camera.linear[0, 0] * camera.linear[1, 1] - camera.linear[0, 1] * camera.linear[1, 0]
    focal = jnp.sqrt(jnp.abs(determinant))
    p, far = camera.perspectivity, 1e9
    mask = jnp.isfinite(depth)
    finite = jnp.where(mask, depth, 1.0)
    pixels = focal * (p * jnp.log(jnp.maximum(finite, 1e-12)) + (1.0 - p) * finite)
    pixels = jnp.where(mask, pixels, far)
    shadow = jnp.zeros_like(pixels)
    rings, directions = (0.3, 0.8), 8
    for ring, k in itertools.product(rings, range(directions)):
        radius = max(1.0, ring * reach * min(height, width))
        angle = 2.0 * math.pi * (k + 0.5 * ring) / directions
        dx, dy = round(radius * math.cos(angle)), round(radius * math.sin(angle))
        nearer = pixels - _shift(pixels, -dx, -dy, far)
        # On a smooth slope the opposite neighbour is as much farther: only the excess is a fold. Next to an outline the
        # opposite neighbour is the background, infinitely far, and the outline gets no dark border.
        slope = jnp.clip(_shift(pixels, dx, dy, far) - pixels, 0.0, None)
        bump = jnp.clip((nearer - slope) / radius, 0.0, None)
        # A surface far in front is detached and does not shadow the pixel.
        shadow = shadow + jnp.clip(bump, 0.0, 1.0) / (1.0 + (bump / 4.0) ** 2)
    return 1.0 - 0.5 * jnp.clip(shadow * (1.6 / (len(rings) * directions)), 0.0, 1.0)


def _shift(image: Float[Array, "height width"], dx: int, dy: int, fill: float) -> Float[Array, "height width"]:
    """Return the image moved by (dx, dy) pixels, with `fill` outside."""
    height, width = image.shape
    dx, dy = max(-width, min(width, dx)), max(-height, min(height, dy))
    padded = jnp.pad(image, ((max(dy, 0), max(-dy, 0)), (max(dx, 0), max(-dx, 0))), constant_values=fill)
    return padded[max(-dy, 0) : max(-dy, 0) + height, max(-dx, 0) : max(-dx, 0) + width]


def _normalise(vectors: Float[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
    """Scale vectors to length 1 (vectors shorter than 1e-12 stay short)."""
    return vectors / jnp.maximum(jnp.sqrt((vectors * vectors).sum(axis=-1, keepdims=True)), 1e-12)


@partial(jax.jit, static_argnames="size")
def shaded_square(
    vertices: Float[Array, "vertices 3"],
    faces: Int[Array, "faces 3"],
    camera: Camera,
    colors: Float[Array, "vertices 3"],
    size: int,
) -> UInt8[Array, "size size 4"]:
    """Render a shaded image in sRGB with straight alpha and smooth edges, averaged from twice the size in linear light.

    The program is compiled once per size: callers move the camera (`transform_camera`) instead of changing the size.
    """
    # The centre of the small image's pixel (0, 0) is the centre of a block of the large one.
    affine = crop_affine(jnp.full(2, 0.5 * (size - 1), jnp.float32), jnp.asarray(float(size), jnp.float32), 2 * size)
    large = transform_camera(camera, affine.astype(camera.linear.dtype))
    pixels = _mean_pixels(vertices, faces, large, _light(vertices, faces, large, colors), size)
    color, coverage, depth = pixels[..., :3], pixels[..., 3:4], pixels[..., 4]
    openness = jax.lax.optimization_barrier(ambient_openness(depth, camera))  # else it is computed for each channel
    straight = to_srgb(color * openness[..., None] / jnp.maximum(coverage, 1e-6))
    return jnp.round(255.0 * jnp.concatenate([straight, coverage], axis=-1)).astype(jnp.uint8)


def _mean_pixels(
    vertices: Float[Array, "vertices 3"],
    faces: Int[Array, "faces 3"],
    camera: Camera,
    light: Float[Array, "faces 3 3"],
    size: int,
) -> Float[Array, "size size 5"]:
    """Return linear RGB, coverage and least depth of each pixel, from 2 x 2 samples, the pixels of `camera`.

    Only tiles of the image that the mesh touches are computed, because it leaves most of a square empty.
    """
    face_index, corners = nearest_faces(vertices, faces, camera, 2 * size, 2 * size)
    across, side = size // _TILE, _TILE
    samples = face_index.reshape(across, side, 2, across, side, 2).transpose(0, 3, 1, 4, 2, 5).reshape(-1, side**2, 4)
    row, column, down, right = jnp.unravel_index(jnp.arange(4 * side * side), (side, side, 2, 2))
    v, u = ((2 * x + sample).reshape(1, -1, 4) for x, sample in ((row, down), (column, right)))
    touched = (samples >= 0).any(axis=(1, 2))
    count, tiles = touched.sum(), len(samples)
    listed = jnp.nonzero(touched, size=tiles + _CHUNK, fill_value=tiles)[0]

    def some(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        first, pixels = carry
        tile = jax.lax.dynamic_slice(listed, (first,), (_CHUNK,))
        index = samples.at[tile].get(mode="fill", fill_value=-1)
        left, top = (2 * side * x[:, None, None] for x in (tile % across, tile // across))
        seen = fragments_at(corners, index, left + u, top + v)
        colour, coverage = interpolate(seen, light).mean(axis=2), seen.mask.astype(light.dtype).mean(axis=2)
        found = jnp.concatenate([colour, coverage[..., None], seen.depth.min(axis=2)[..., None]], axis=-1)
        return first + _CHUNK, pixels.at[tile].set(found, mode="drop")

    empty = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 0.0, 0.0, jnp.inf], light.dtype), (tiles, side * side, 5))
    pixels = jax.lax.while_loop(lambda carry: carry[0] < count, some, (jnp.zeros_like(count), empty))[1]
    return pixels.reshape(across, across, side, side, 5).transpose(0, 2, 1, 3, 4).reshape(size, size, 5)


def render_mesh(
    vertices: Any,
    faces: Any,
    camera: Camera,
    height: int,
    width: int,
    background: Any = BACKGROUND,
    colors: Any = SKIN,
    opacity: float = 1.0,
) -> np.ndarray:
    """Render a shaded mesh as a (height, width, 3) uint8 RGB image.

    Args:
        vertices: (V, 3) camera-frame points.
        faces: (F, 3) vertex indices; normals point outward by the right-hand rule.
        camera: Camera in the pixels of the image.
        height: Image height in pixels.
        width: Image width in pixels.
        background: (height, width, 3) uint8 image, or one RGB colour from 0 to 255.
        colors: (V, 3) linear RGB from 0 to 1 of the vertices, or one colour.
        opacity: Opacity of the mesh over the background, 0 to 1.

    Raises:
        ValueError: If the shapes do not fit.
    """
    vertices, faces, canvas = np.asarray(vertices, np.float32), np.asarray(faces), np.array(background)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"vertices must have shape (V, 3), got {vertices.shape}")
    if faces.ndim != 2 or faces.shape[1] != 3 or not np.issubdtype(faces.dtype, np.integer):
        raise ValueError(f"faces must be integers of shape (F, 3), got {faces.dtype} of shape {faces.shape}")
    if canvas.ndim == 1:
        canvas = np.broadcast_to(canvas.astype(np.uint8), (height, width, 3)).copy()
    if canvas.shape != (height, width, 3) or canvas.dtype != np.uint8:
        expected = f"a uint8 image of shape {(height, width, 3)} or one RGB colour"
        raise ValueError(f"background must be {expected}, got {canvas.dtype} of shape {canvas.shape}")
    bounds = mesh_bounds(vertices, camera)
    if not len(bounds) or not len(faces):
        return canvas
    # The part of the image that the mesh can touch, one pixel wider for the smoothed edge.
    left, top = (max(0, math.floor(x) - 1) for x in bounds[0])
    right, bottom = (min(size, math.ceil(x) + 2) for x, size in zip(bounds[1], (width, height), strict=True))
    mesh_colors = np.broadcast_to(np.asarray(colors, np.float32), vertices.shape)
    mesh = vertices, faces.astype(np.int32)
    # A mesh larger than the largest size is rendered in pieces, which overlap by the reach of the shading.
    whole = max(bottom - top, right - left) <= _SIZES[-1]
    apron = 0 if whole else math.ceil(AMBIENT_REACH * _SIZES[-1]) + 1
    step = _SIZES[-1] - 2 * apron
    for y, x in itertools.product(range(top, bottom, step), range(left, right, step)):
        h, w = min(step, bottom - y), min(step, right - x)
        size = next(s for s in _SIZES if s >= max(h, w) + 2 * apron)
        offset = np.asarray([[1.0, 0.0, apron - x], [0.0, 1.0, apron - y]], camera.linear.dtype)
        square = np.asarray(shaded_square(*mesh, _moved(camera, offset), mesh_colors, size))
        piece = square[apron : apron + h, apron : apron + w].astype(np.float32)
        alpha = piece[..., 3:] * (opacity / 255.0)
        under = canvas[y : y + h, x : x + w]
        canvas[y : y + h, x : x + w] = np.rint(piece[..., :3] * alpha + under * (1.0 - alpha)).astype(np.uint8)
    return canvas


def mesh_bounds(vertices: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the corners (2, 2) of the pixel box of the vertices in front of the camera, or (0, 2) without any."""
    visible = np.isfinite(vertices).all(axis=-1)
    if float(camera.perspectivity) > 0:
        visible &= vertices[:, 2] > NEAR
    safe = np.where(visible[:, None], vertices, np.float32(1.0))
    pixels = np.asarray(_project(camera, safe), np.float64)[visible]
    pixels = pixels[np.isfinite(pixels).all(axis=-1)]
    return np.stack([pixels.min(axis=0), pixels.max(axis=0)]) if len(pixels) else pixels

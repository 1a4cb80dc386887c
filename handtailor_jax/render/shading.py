"""Smooth shading of a mesh: skin under three soft lights, written for pictures that people look at.

Colours are linear RGB from 0 to 1 until `to_srgb`.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from handtailor_jax.geometry.cameras import crop_affine, transform_camera
from handtailor_jax.render.rasterise import Fragments, face_normals, interpolate, rasterise, vertex_normals
from handtailor_jax.types import Camera

SKIN = (0.58, 0.33, 0.235)
"""Linear RGB of skin where a caller gives no colours."""

REGION_COLORS = ((0.61, 0.345, 0.25), (0.56, 0.32, 0.22), (0.74, 0.47, 0.39))
"""Linear RGB of the embedded hand's face regions: 0 palm, 1 back, 2 nails."""

INSIDE = (0.21, 0.062, 0.055)
"""Linear RGB of the inner side of the skin, seen through the open wrist."""

AMBIENT_REACH = 0.06
"""How far around a pixel `ambient_openness` looks, as a fraction of the picture's smaller side."""

# Direction toward the light (camera frame: x right, y down, z forward), colour times strength.
_LIGHTS = (
    ((-0.55, -0.75, -0.75), (1.00, 0.96, 0.90)),  # key: upper left, in front
    ((0.85, -0.10, -0.60), (0.26, 0.28, 0.33)),  # fill: right, cooler
    ((0.15, -0.80, 0.60), (0.32, 0.32, 0.34)),  # rim: from above, behind
)
_SKY, _GROUND = (0.27, 0.28, 0.31), (0.15, 0.13, 0.12)
# Light bleeds through skin past the shadow's edge, red farthest.
_WRAP = (0.38, 0.22, 0.17)
_GLOSS, _GLOSS_EXPONENT = 0.055, 22.0


def region_colors(
    num_vertices: int,
    faces: Int[Array, "faces 3"],
    regions: Int[Array, " faces"],
    colors: Sequence[tuple[float, float, float]] = REGION_COLORS,
) -> Float[Array, "vertices 3"]:
    """Vertex colours from face regions (linear RGB): the mean of the faces around a vertex, so borders are soft."""
    per_face = jnp.asarray(colors, jnp.float32)[regions]
    total = jnp.zeros((num_vertices, 4), jnp.float32)
    ones = jnp.ones((faces.shape[0], 1), jnp.float32)
    corners = jnp.repeat(jnp.concatenate([per_face, ones], axis=-1), 3, axis=0)
    total = total.at[faces.reshape(-1)].add(corners, mode="drop")
    return total[:, :3] / jnp.maximum(total[:, 3:], 1.0)


def to_srgb(linear: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Linear values from 0 to 1 to sRGB values from 0 to 1."""
    x = jnp.clip(linear, 0.0, 1.0)
    return jnp.where(x <= 0.0031308, 12.92 * x, 1.055 * jnp.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055)


def shade(
    fragments: Fragments,
    vertices: Float[Array, "vertices 3"],
    faces: Int[Array, "faces 3"],
    camera: Camera,
    colors: Float[Array, "vertices 3"],
) -> Float[Array, "height width 3"]:
    """Linear RGB of every pixel, 0 where no face is seen.

    Args:
        fragments: what `rasterise` returned for these vertices and this camera.
        vertices: camera-frame points; outward normals by the right-hand rule on the faces.
        camera: perspective or weak perspective.
        colors: linear RGB at the vertices.
    """
    dtype = vertices.dtype
    attributes = jnp.concatenate([vertices, vertex_normals(vertices, faces), colors.astype(dtype)], axis=-1)
    points, normals, albedo = jnp.split(interpolate(fragments, faces, attributes), 3, axis=-1)

    # Toward the eye: the camera's centre in perspective, -z in weak perspective, which looks along z.
    backward = jnp.asarray([0.0, 0.0, -1.0], dtype)[None, None, :]
    p = camera.perspectivity
    toward_eye = _normalise(-p * points + (1.0 - p) * backward)
    facing = face_normals(vertices, faces)[jnp.maximum(fragments.face_index, 0)] if faces.shape[0] else points
    outside = ((facing * toward_eye).sum(axis=-1, keepdims=True) >= 0) & fragments.mask[..., None]
    has_normal = (normals * normals).sum(axis=-1, keepdims=True) > 1e-6  # else its vertices belong to no other face
    normals = jnp.where(has_normal, _normalise(normals), facing)
    normals = jnp.where(outside, normals, -normals)
    albedo = jnp.where(outside, albedo, jnp.asarray(INSIDE, dtype)[None, None, :])

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
    # Skin grows brighter and glossier where it turns away from the eye.
    grazing = (1.0 - jnp.clip((normals * toward_eye).sum(axis=-1, keepdims=True), 0.0, 1.0)) ** 4
    gloss = gloss * (_GLOSS + 0.25 * grazing) * outside.astype(dtype)
    open_space = ambient_openness(fragments, camera)[..., None]
    color = (albedo * diffuse + gloss) * open_space
    return jnp.where(fragments.mask[..., None], color, 0.0)


def ambient_openness(
    fragments: Fragments, camera: Camera, reach: float = AMBIENT_REACH
) -> Float[Array, "height width"]:
    """How much light reaches each pixel past nearer surfaces around it, from about 0.5 (a deep fold) to 1 (open).

    Darkens the gaps between fingers and where a fingertip touches the palm. Estimated from the depth map: a pixel is
    shadowed by neighbours that are nearer to the camera than the slope of a smooth surface explains.

    Args:
        reach: distance of the neighbours as a fraction of the picture's smaller side.
    """
    height, width = fragments.depth.shape
    depth = fragments.depth
    # Depth in pixels, so that it compares with the distance of neighbours whatever the unit of the camera frame.
    determinant = camera.linear[0, 0] * camera.linear[1, 1] - camera.linear[0, 1] * camera.linear[1, 0]
    focal = jnp.sqrt(jnp.abs(determinant))
    p = camera.perspectivity
    finite = jnp.where(fragments.mask, depth, 1.0)
    pixels = focal * (p * jnp.log(jnp.maximum(finite, 1e-12)) + (1.0 - p) * finite)
    far = 1e9
    pixels = jnp.where(fragments.mask, pixels, far)
    shadow = jnp.zeros_like(pixels)
    rings, directions = (0.3, 0.8), 8
    for ring in rings:
        radius = max(1.0, ring * reach * min(height, width))
        for k in range(directions):
            angle = 2.0 * math.pi * (k + 0.5 * ring) / directions
            dx, dy = round(radius * math.cos(angle)), round(radius * math.sin(angle))
            rise = _shift(pixels, -dx, -dy, far)
            opposite = _shift(pixels, dx, dy, far)
            nearer = pixels - rise
            # On a smooth slope the opposite neighbour is as much farther: only what exceeds that is a fold. (Next to
            # an outline it is the background, infinitely farther, and the outline gets no dark border.)
            slope = jnp.clip(opposite - pixels, 0.0, None)
            bump = jnp.clip((nearer - slope) / radius, 0.0, None)
            # A surface far in front throws no near shadow: it stands free.
            shadow = shadow + jnp.clip(bump, 0.0, 1.0) / (1.0 + (jnp.clip(bump, 0.0, None) / 4.0) ** 2)
    return 1.0 - 0.5 * jnp.clip(shadow * (1.6 / (len(rings) * directions)), 0.0, 1.0)


def _shift(image: Float[Array, "height width"], dx: int, dy: int, fill: float) -> Float[Array, "height width"]:
    """The image moved by (dx, dy) pixels, `fill` coming in from outside."""
    height, width = image.shape
    dx, dy = max(-width, min(width, dx)), max(-height, min(height, dy))
    padded = jnp.pad(image, ((max(dy, 0), max(-dy, 0)), (max(dx, 0), max(-dx, 0))), constant_values=fill)
    return padded[max(-dy, 0) : max(-dy, 0) + height, max(-dx, 0) : max(-dx, 0) + width]


def _normalise(vectors: Float[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
    """Vectors of length 1; short ones stay short."""
    return vectors / jnp.maximum(jnp.sqrt((vectors * vectors).sum(axis=-1, keepdims=True)), 1e-12)


@partial(jax.jit, static_argnames=("size", "supersample"))
def shaded_square(
    vertices: Float[Array, "vertices 3"],
    faces: Int[Array, "faces 3"],
    camera: Camera,
    colors: Float[Array, "vertices 3"],
    size: int,
    supersample: int = 2,
) -> UInt8[Array, "size size 4"]:
    """A shaded picture of `size` x `size` pixels with straight alpha, sRGB, smooth at its edges.

    Rendered at `supersample` times the size and averaged in linear light. Compiled once per size: callers with pictures
    of many sizes move the camera (`transform_camera`) instead of changing the size.
    """
    n = supersample * size
    # Pixel centres: the middle of the small square's pixel (0, 0) is the middle of a block of the large one.
    affine = crop_affine(jnp.full(2, 0.5 * (size - 1), jnp.float32), jnp.asarray(float(size), jnp.float32), n)
    large = transform_camera(camera, affine.astype(camera.linear.dtype))
    fragments = rasterise(vertices, faces, large, n, n)
    color = shade(fragments, vertices, faces, large, colors)
    blocks = jnp.concatenate([color, fragments.mask[..., None].astype(color.dtype)], axis=-1)
    mean = blocks.reshape(size, supersample, size, supersample, 4).mean(axis=(1, 3))
    straight = to_srgb(mean[..., :3] / jnp.maximum(mean[..., 3:], 1e-6))
    return jnp.round(255.0 * jnp.concatenate([straight, mean[..., 3:]], axis=-1)).astype(jnp.uint8)

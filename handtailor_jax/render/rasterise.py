"""A z-buffered rasteriser in JAX: no OpenGL, no window system, runs wherever JAX runs.

How it works. The bounding box of a face covers a few small square tiles of the image; the (face, tile) pairs of all
faces form one list, which is walked in chunks of fixed size, each tile's depths being merged into the z-buffer as one
row (a scatter-min of rows). A second walk finds the lowest face at that depth. So the work follows what the faces
really cover, however big or small they are, the memory is the image plus one chunk, and nothing depends on the order of
execution. `vmap` puts the faces of all images into one list instead of running the loop once per image in lockstep.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handtailor_jax.geometry.cameras import depth_divisor, project
from handtailor_jax.types import Camera, pytree

NEAR = 1e-4
"""Faces with a vertex nearer than this to a perspective camera's plane are not drawn; camera-frame units."""

_CHUNK = 4096  # pairs a step; their pixels stay in the processor's cache (measured: 2048 alike, 16384 slower)
_NO_FACE = 2**31 - 1


@pytree
class Fragments:
    """What each pixel sees."""

    face_index: Int[Array, "*batch height width"]
    """The nearest face at the pixel's centre; -1 where there is none."""
    barycentrics: Float[Array, "*batch height width 3"]
    """Weights of the face's three vertices, so that weights times camera-frame vertices is the point seen
    (perspective-correct in perspective, affine in weak perspective); 0 where there is no face."""
    depth: Float[Array, "*batch height width"]
    """Camera-frame z of the point seen, in the unit of the vertices; inf where there is no face."""

    @property
    def mask(self) -> Bool[Array, "*batch height width"]:
        """Where a face is seen."""
        return self.face_index >= 0


def rasterise(
    vertices: Float[Array, "vertices 3"],
    faces: Int[Array, "faces 3"],
    camera: Camera,
    height: int,
    width: int,
    near: float = NEAR,
) -> Fragments:
    """The nearest face, its barycentric coordinates and its depth at every pixel centre (u, v) = (column, row).

    Both sides of a face are drawn. Surfaces nearer than each other by less than rounding (1e-6 of their depth) tie, and
    the face with the lower index is seen. Meshes that share vertices have no cracks: the edge between two faces is
    decided by the same arithmetic for both. Never drawn: faces with a vertex that is not finite or does not exist,
    faces without area in the image, and, in perspective, faces with a vertex behind the plane z = `near`; a face
    partly behind it is left out whole, not clipped.

    Depth and barycentrics carry gradients with respect to vertices and camera at fixed visibility; what moves an
    outline across a pixel has none.

    Args:
        vertices: camera-frame points (OpenCV axes).
        faces: vertex indices.
        camera: one camera (no batch axes; use vmap), in the pixels of the picture to draw.
        height, width: size of the picture in pixels; part of the compiled program.
        near: in the unit of the vertices; unused in weak perspective.

    Raises:
        ValueError: if the picture is empty, or so large that faces times tiles cannot be counted in 32 bits (3200
            faces: beyond some 6500 x 6500 pixels).
    """
    if height < 1 or width < 1:
        raise ValueError(f"a picture needs at least one pixel, got height {height}, width {width}")
    tiles = math.prod(_tiles(height, width)[1:])
    if tiles * faces.shape[0] > _NO_FACE:
        raise ValueError(f"{faces.shape[0]} faces in {height} x {width} pixels are too many; render it in parts")
    if faces.shape[0] == 0 or vertices.shape[0] == 0:
        return Fragments(
            face_index=jnp.full((height, width), -1, jnp.int32),
            barycentrics=jnp.zeros((height, width, 3), vertices.dtype),
            depth=jnp.full((height, width), jnp.inf, vertices.dtype),
        )
    return _rasterise(vertices, faces, camera, near, height, width)


@partial(jax.jit, static_argnames=("height", "width"))
def _rasterise(vertices: Array, faces: Array, camera: Camera, near: Any, height: int, width: int) -> Fragments:
    """`rasterise` of at least one face, compiled as one program also where nothing around it is."""
    faces = faces.astype(jnp.int32)
    exists = ((faces >= 0) & (faces < vertices.shape[0])).all(axis=-1)
    divisor = depth_divisor(camera, vertices[:, 2])
    in_front = jnp.isfinite(vertices).all(axis=-1) & ((vertices[:, 2] > near) | (camera.perspectivity == 0))
    # Double where: points that cannot be projected are moved to a place where they can, and their faces dropped.
    safe = jnp.where(in_front[:, None], vertices, jnp.ones((), vertices.dtype))
    corners = jnp.concatenate(
        [project(camera, safe), (1.0 / jnp.where(in_front, divisor, 1.0))[:, None], safe[:, 2:]], axis=-1
    )[faces]
    drawable = exists & in_front[faces].all(axis=-1)
    face_index = _nearest_face(jax.lax.stop_gradient(corners), drawable, 1, height, width)[0]

    seen = face_index >= 0
    corners = corners.reshape(-1, 12)[jnp.maximum(face_index, 0)].reshape(height, width, 3, 4)
    u = corners[..., 0] - jnp.arange(width).astype(corners.dtype)[None, :, None]
    v = corners[..., 1] - jnp.arange(height).astype(corners.dtype)[:, None, None]
    areas = jnp.stack([u[..., i - 2] * v[..., i - 1] - v[..., i - 2] * u[..., i - 1] for i in range(3)], axis=-1)
    weights = areas * corners[..., 2]
    total = weights.sum(axis=-1, keepdims=True)
    usable = seen[..., None] & (total != 0)
    weights = jnp.where(usable, weights / jnp.where(usable, total, 1.0), 1.0 / 3.0)
    weights = jnp.maximum(weights, 0.0)  # a pixel on an edge may round to -1e-7
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return Fragments(
        face_index=face_index,
        barycentrics=jnp.where(seen[..., None], weights, 0.0),
        depth=jnp.where(seen, (weights * corners[..., 3]).sum(axis=-1), jnp.inf),
    )


def interpolate(
    fragments: Fragments, faces: Int[Array, "faces 3"], attributes: Float[Array, "vertices channels"]
) -> Float[Array, "height width channels"]:
    """Values given at the vertices, at every pixel: (height, width, channels), 0 where no face is seen."""
    if faces.shape[0] == 0:
        return jnp.zeros((*fragments.face_index.shape, attributes.shape[-1]), attributes.dtype)
    channels = attributes.shape[-1]
    corners = attributes[faces].reshape(-1, 3 * channels)[jnp.maximum(fragments.face_index, 0)]
    corners = corners.reshape(*fragments.face_index.shape, 3, channels)
    # Multiply and add in full precision: a matrix product may be rounded to 10 bits on an accelerator.
    weights = fragments.barycentrics.astype(attributes.dtype)
    values = (weights[..., None] * corners).sum(axis=-2)
    return jnp.where(fragments.mask[..., None], values, jnp.zeros((), attributes.dtype))


def face_normals(vertices: Float[Array, "vertices 3"], faces: Int[Array, "faces 3"]) -> Float[Array, "faces 3"]:
    """Unit normals of the faces, by the right-hand rule on their vertex order; 0 for faces without area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return _unit(jnp.cross(b - a, c - a))


def vertex_normals(vertices: Float[Array, "vertices 3"], faces: Int[Array, "faces 3"]) -> Float[Array, "vertices 3"]:
    """Smooth unit normals: the faces' normals averaged by the angle that each face takes up at the vertex.

    The angle makes the result independent of how a surface is cut into triangles. Faces without area count for nothing;
    a vertex without any other face gets 0. Same frame as the vertices.
    """
    corners = vertices[faces]
    normals = face_normals(vertices, faces)
    to_next = _unit(jnp.roll(corners, -1, axis=1) - corners)
    to_previous = _unit(jnp.roll(corners, 1, axis=1) - corners)
    cosine = (to_next * to_previous).sum(axis=-1)
    inside = jnp.abs(cosine) < 1.0  # arccos has an infinite slope at the ends
    angle = jnp.where(inside, jnp.arccos(jnp.where(inside, cosine, 0.0)), 0.0)
    total = (
        jnp.zeros_like(vertices)
        .at[faces.reshape(-1)]
        .add((angle[..., None] * normals[:, None, :]).reshape(-1, 3), mode="drop")
    )
    return _unit(total)


def _unit(vectors: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Vectors of length 1; 0 (with gradient 0) for vectors of length 0 or not finite."""
    # Scaled by the largest component first: the square of a face's area in square metres underflows float32.
    largest = jnp.abs(vectors).max(axis=-1, keepdims=True)
    usable = (largest > 0) & jnp.isfinite(largest)
    scaled = jnp.where(usable, vectors / jnp.where(usable, largest, 1.0), 1.0)
    return jnp.where(usable, scaled / jnp.sqrt((scaled * scaled).sum(axis=-1, keepdims=True)), 0.0)


def _tiles(height: int, width: int) -> tuple[int, int, int]:
    """Side of a tile in pixels, rows and columns of tiles.

    Faces of a mesh grow with the picture. Measured on CPU with a hand of 3200 faces: a side of 8 wastes arithmetic on
    small pictures, 4 needs too many scatters on large ones, and single pixels cost ten times as much.
    """
    side = 4 if min(height, width) <= 320 else 8
    return side, math.ceil(height / side), math.ceil(width / side)


def _nearest_face(
    corners: Float[Array, "faces 3 4"], drawable: Bool[Array, " faces"], images: int, height: int, width: int
) -> Int[Array, "images height width"]:
    """Index of the nearest face at every pixel of `images` pictures, -1 where there is none.

    Args:
        corners: u, v, 1 / divisor and z of each face's vertices; the faces of `images` pictures, one picture after the
            other, equally many each. Indices count from 0 in each picture.
        drawable: which faces may be drawn.
    """
    walk = jax.custom_batching.custom_vmap(partial(_walk, images=images, height=height, width=width))

    @walk.def_vmap
    def together(axis_size: int, batched: list[bool], corners: Array, drawable: Array) -> tuple[Array, bool]:
        corners = corners if batched[0] else jnp.broadcast_to(corners, (axis_size, *corners.shape))
        drawable = drawable if batched[1] else jnp.broadcast_to(drawable, (axis_size, *drawable.shape))

        def several(corners: Array, drawable: Array) -> Array:
            n = corners.shape[0]
            merged = _nearest_face(corners.reshape(-1, 3, 4), drawable.reshape(-1), n * images, height, width)
            return merged.reshape(n, images, height, width)

        # As many pictures at once as can be counted in 32 bits, even if every face covered all of its picture.
        tiles = math.prod(_tiles(height, width)[1:])
        at_once = max(1, _NO_FACE // (tiles * corners.shape[1]))
        if axis_size <= at_once:
            return several(corners, drawable), True
        one = lambda pair: several(pair[0][None], pair[1][None])[0]  # noqa: E731
        return jax.lax.map(one, (corners, drawable), batch_size=at_once if at_once > 1 else None), True

    return walk(corners, drawable)


def _walk(corners: Any, drawable: Any, *, images: int, height: int, width: int) -> Any:
    """The two walks over the (face, tile) pairs; arguments and result as in `_nearest_face`."""
    faces, dtype = corners.shape[0], corners.dtype
    side, rows, columns = _tiles(height, width)
    tiles = rows * columns
    uv, inverse, z = corners[..., :2], corners[..., 2], corners[..., 3]

    # Tiles under each face's bounding box, if a pixel centre lies in it. The 1e-3 pixels keep a pixel that rounding
    # has put on the wrong side of a box.
    low, high = uv.min(axis=1), uv.max(axis=1)
    last = jnp.asarray([width - 1, height - 1], dtype)
    first_pixel = jnp.clip(jnp.ceil(low - 1e-3), 0.0, last[None])
    last_pixel = jnp.clip(jnp.floor(high + 1e-3), 0.0, last[None])
    on_picture = ((high > -1e-3) & (low < last[None] + 1e-3)).all(axis=-1)
    a, b, c = uv[:, 0], uv[:, 1], uv[:, 2]
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    drawable = (
        drawable
        & on_picture
        & (first_pixel <= last_pixel).all(axis=-1)
        & jnp.isfinite(corners).all(axis=(1, 2))
        & (jnp.abs(area) > 1e-5 * (high - low).max(axis=-1))  # thinner than 1e-5 pixels: its sides are mere rounding
    )
    first_pixel, last_pixel = (
        jnp.where(drawable[:, None], p, 0.0).astype(jnp.int32) for p in (first_pixel, last_pixel)
    )
    first_tile = first_pixel // side
    extent = last_pixel // side - first_tile + 1
    count = jnp.where(drawable, extent[:, 0] * extent[:, 1], 0)
    end = jnp.cumsum(count)
    total = end[-1]

    # Each edge runs from its lexicographically smaller end, so that the two faces at an edge compute the same number
    # with opposite signs and no pixel between them is lost.
    start, stop = jnp.roll(uv, -1, axis=1), jnp.roll(uv, -2, axis=1)
    swap = (stop[..., 0] < start[..., 0]) | ((stop[..., 0] == start[..., 0]) & (stop[..., 1] < start[..., 1]))
    anchor = jnp.where(swap[..., None], stop, start)
    edge = jnp.where(swap[..., None], start - stop, stop - start)
    sign = jnp.where(swap, -1.0, 1.0).astype(dtype)
    tolerance = 1e-6 * jnp.abs(z).max(axis=-1, keepdims=True)
    number = jnp.arange(faces, dtype=jnp.int32)
    image = number // (faces // images)
    reals = jnp.concatenate(
        [anchor[..., 0], anchor[..., 1], edge[..., 0] * sign, edge[..., 1] * sign, inverse, inverse * z, tolerance], -1
    )
    integers = jnp.stack(
        [
            jnp.arange(faces, dtype=jnp.int32),
            end - count,
            image * tiles,
            first_tile[:, 0],
            first_tile[:, 1],
            extent[:, 0],
        ],
        axis=-1,
    )

    # Faces that cover nothing leave the list, so that a chunk of pairs never touches more faces than it has pairs.
    chunk = min(_CHUNK, 256 * math.ceil(faces / 64))
    place = jnp.where(count > 0, jnp.cumsum((count > 0).astype(jnp.int32)) - 1, faces + chunk)
    order = jnp.zeros(faces + chunk, jnp.int32).at[place].set(number, mode="drop")
    begin = jnp.full(faces + chunk, _NO_FACE, jnp.int32).at[place].set(end - count, mode="drop")

    offset = jnp.arange(side * side, dtype=jnp.int32)
    right, down = ((x.astype(dtype))[None, None, :] for x in (offset % side, offset // side))

    def pairs(step: Array) -> tuple[Array, Array, Array, Array]:
        """Face, tolerance, tile (out of range: no pair) and depths (inf: not covered) of one chunk of pairs."""
        pair = step * chunk + jnp.arange(chunk, dtype=jnp.int32)
        first = jnp.searchsorted(begin, step * chunk, side="right").astype(jnp.int32) - 1
        begins = jax.lax.dynamic_slice(begin, (first,), (chunk,)) - step * chunk
        starts = jnp.zeros(chunk, jnp.int32).at[jnp.where(begins > 0, begins, chunk)].add(1, mode="drop")
        face = order[first + jnp.cumsum(starts)]
        real, integer = reals[face], integers[face]
        local = pair - integer[:, 1]
        column = integer[:, 3] + local % integer[:, 5]
        row = integer[:, 4] + local // integer[:, 5]
        exists = pair < total
        anchor_u, anchor_v, edge_u, edge_v, inverse, inverse_z = (real[:, i : i + 3] for i in range(0, 18, 3))
        left, top = ((x * side).astype(dtype)[:, None] for x in (column, row))
        corner = edge_u * (top - anchor_v) - edge_v * (left - anchor_u)
        edges = corner[..., None] + edge_u[..., None] * down - edge_v[..., None] * right
        inside = (edges >= 0).all(axis=1) | (edges <= 0).all(axis=1)
        numerator, denominator = (edges * inverse_z[..., None]).sum(axis=1), (edges * inverse[..., None]).sum(axis=1)
        covered = inside & exists[:, None] & (denominator != 0)
        depth = jnp.where(covered, numerator / jnp.where(covered, denominator, 1.0), jnp.inf)
        return face, real[:, 18:], jnp.where(exists, integer[:, 2] + row * columns + column, images * tiles), depth

    def nearest(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        step, buffer = carry
        _, _, tile, depth = pairs(step)
        return step + 1, buffer.at[tile].min(depth, mode="drop")

    # The depth of a pair is computed in both walks, and a compiler may round it differently in each: hence a
    # tolerance instead of equality, which also makes surfaces that coincide tie in spite of rounding.
    def lowest(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        step, index = carry
        face, tolerance, tile, depth = pairs(step)
        front = buffer.at[tile].get(mode="fill", fill_value=0.0)
        candidate = jnp.where((depth < jnp.inf) & (depth <= front + tolerance), face[:, None], _NO_FACE)
        return step + 1, index.at[tile].min(candidate, mode="drop")

    zero = jnp.zeros((), jnp.int32)
    steps = (total + chunk - 1) // chunk
    unfinished = lambda carry: carry[0] < steps  # noqa: E731
    shape = (images * tiles, side * side)
    buffer = jax.lax.while_loop(unfinished, nearest, (zero, jnp.full(shape, jnp.inf, dtype)))[1]
    index = jax.lax.while_loop(unfinished, lowest, (zero, jnp.full(shape, _NO_FACE, jnp.int32)))[1]

    index = index.reshape(images, rows, columns, side, side).transpose(0, 1, 3, 2, 4)
    index = index.reshape(images, rows * side, columns * side)[:, :height, :width]
    own = index - jnp.arange(images, dtype=jnp.int32)[:, None, None] * (faces // images)
    return jnp.where(index == _NO_FACE, -1, own)

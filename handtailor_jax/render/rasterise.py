"""A z-buffered rasteriser, and the tile walk by which it and `soft` find the nearest face or edge of every pixel.

Written here because it needs no OpenGL or window system, and compiles, batches and differentiates wherever JAX runs.

The tile walk: the bounding box of an item (a face, an edge) touches a few small square tiles of the image. The
(item, tile) pairs form one list, which is walked in chunks of fixed size: every pair scores the pixels of its tile, and
a scatter-min merges the scores into a buffer with one row per tile. A second walk finds the lowest item with the best
score. The work follows the covered area, the memory is the image plus one chunk, and the order of execution does not
matter. `vmap` joins the items of all images, because a loop per image would run as long as the slowest image.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handtailor_jax.geometry.cameras import depth_divisor, project
from handtailor_jax.types import Camera, pytree

NEAR = 1e-4
"""Faces with a vertex closer than this to a perspective camera's plane are not drawn; camera-frame units."""

_CHUNK = 4096  # measured on a CPU: 2048 is as fast, 1024 and 16384 are slower
_NO_ITEM = 2**31 - 1  # index of no item during a walk, and the largest number of (item, tile) pairs

Score = Callable[[Array, Array, Array, Array, Array], tuple[Array, Array]]


@pytree
class Fragments:
    """The nearest surface at every pixel."""

    face_index: Int[Array, "*batch height width"]
    """Index of the nearest face at the pixel centre; -1 without a face."""
    barycentrics: Float[Array, "*batch height width 3"]
    """Weights of the face's three vertices, whose weighted sum is the visible point; 0 without a face."""
    depth: Float[Array, "*batch height width"]
    """Camera-frame z of the visible point, in the unit of the vertices; inf without a face."""

    @property
    def mask(self) -> Bool[Array, "*batch height width"]:
        """Whether a face is visible."""
        return self.face_index >= 0


@partial(jax.jit, static_argnames=("height", "width"))
def rasterise(
    vertices: Float[Array, "vertices 3"], faces: Int[Array, "faces 3"], camera: Camera, height: int, width: int
) -> Fragments:
    """Find the nearest face, its barycentric coordinates and its depth at every pixel centre (u, v) = (column, row).

    Both sides of a face are drawn. Surfaces closer together than rounding (1e-6 of their depth) tie, and the face with
    the lower index is visible. Not drawn: faces with a vertex that does not exist or is not finite, faces without area
    in the image, and, in perspective, faces with a vertex behind the plane z = `NEAR` (whole, not clipped).

    Depth and barycentrics have gradients in vertices and camera at fixed visibility. An outline that moves across a
    pixel has no gradient; see `soft.soft_rasterise`.

    Vertices are camera-frame points. There are no batch axes (use vmap); `height` and `width` are static.

    Raises:
        ValueError: If the image is empty, or if faces times tiles exceed 32 bits (3200 faces: 6500 x 6500 pixels).
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image needs at least one pixel, got height {height}, width {width}")
    if faces.shape[0] == 0 or vertices.shape[0] == 0:
        far = jnp.full((height, width), jnp.inf, vertices.dtype)
        return Fragments(jnp.full_like(far, -1, jnp.int32), jnp.zeros((height, width, 3), far.dtype), far)
    face_index, corners = nearest_faces(vertices, faces, camera, height, width)
    return fragments_at(corners, face_index, jnp.arange(width)[None, :], jnp.arange(height)[:, None])


def nearest_faces(
    vertices: Float[Array, "vertices 3"], faces: Int[Array, "faces 3"], camera: Camera, height: int, width: int
) -> tuple[Int[Array, "height width"], Float[Array, "faces 3 4"]]:
    """Return the nearest face at every pixel centre (-1 without one), and the corners of all faces as `drawn_faces`."""
    points, in_front = project_vertices(vertices, camera)
    corners, area = drawn_faces(points, faces, in_front)
    fixed = jax.lax.stop_gradient((corners, area))
    return join_images(_nearest_faces, height, width, *(x[None] for x in fixed))[0], corners


def fragments_at(
    corners: Float[Array, "faces 3 4"], face_index: Int[Array, "*shape"], u: Int[Array, "..."], v: Int[Array, "..."]
) -> Fragments:
    """Return the surface of the given faces at the pixels (u, v), from the corners of all faces (`drawn_faces`)."""
    seen = face_index >= 0
    corners = corners.reshape(-1, 12)[jnp.maximum(face_index, 0)].reshape(*face_index.shape, 3, 4)
    u = corners[..., 0] - u.astype(corners.dtype)[..., None]
    v = corners[..., 1] - v.astype(corners.dtype)[..., None]
    areas = jnp.stack([u[..., i - 2] * v[..., i - 1] - v[..., i - 2] * u[..., i - 1] for i in range(3)], axis=-1)
    weights = areas * corners[..., 2]
    total = weights.sum(axis=-1, keepdims=True)
    usable = seen[..., None] & (total != 0)
    weights = jnp.where(usable, weights / jnp.where(usable, total, 1.0), 1.0 / 3.0)
    weights = jnp.maximum(weights, 0.0)  # a pixel on an edge may round to -1e-7
    weights = weights / weights.sum(axis=-1, keepdims=True)
    depth = jnp.where(seen, (weights * corners[..., 3]).sum(axis=-1), jnp.inf)
    return Fragments(face_index, jnp.where(seen[..., None], weights, 0.0), depth)


def interpolate(fragments: Fragments, corners: Float[Array, "faces 3 channels"]) -> Float[Array, "*pixels channels"]:
    """Interpolate attributes of the faces' corners at every pixel; 0 without a face."""
    channels, shape = corners.shape[-1], fragments.face_index.shape
    if corners.shape[0] == 0:
        return jnp.zeros((*shape, channels), corners.dtype)
    seen = corners.reshape(-1, 3 * channels)[jnp.maximum(fragments.face_index, 0)].reshape(*shape, 3, channels)
    # Multiply and add in full precision: a matrix product may be rounded to 10 bits on an accelerator.
    values = (fragments.barycentrics.astype(corners.dtype)[..., None] * seen).sum(axis=-2)
    return jnp.where(fragments.mask[..., None], values, jnp.zeros((), corners.dtype))


def project_vertices(
    vertices: Float[Array, "vertices 3"], camera: Camera
) -> tuple[Float[Array, "vertices 4"], Bool[Array, " vertices"]]:
    """Return u, v, 1 / depth divisor and z of every vertex, and whether the vertex is finite and beyond `NEAR`."""
    in_front = jnp.isfinite(vertices).all(axis=-1) & ((vertices[:, 2] > NEAR) | (camera.perspectivity == 0))
    # Double where: vertices that cannot be projected are replaced first, and their faces are not drawn.
    safe = jnp.where(in_front[:, None], vertices, jnp.ones((), vertices.dtype))
    inverse = 1.0 / jnp.where(in_front, depth_divisor(camera, safe[:, 2]), 1.0)
    return jnp.concatenate([project(camera, safe), inverse[:, None], safe[:, 2:]], axis=-1), in_front


def drawn_faces(
    points: Float[Array, "vertices 4"], faces: Int[Array, "faces 3"], in_front: Bool[Array, " vertices"]
) -> tuple[Float[Array, "faces 3 4"], Float[Array, " faces"]]:
    """Return the corners of the faces and twice their signed areas in pixels; the area of undrawn faces is 0."""
    exists = ((faces >= 0) & (faces < points.shape[0])).all(axis=-1)
    faces = jnp.where(exists[:, None], faces, 0).astype(jnp.int32)
    corners = points[faces]
    uv = corners[..., :2]
    b, c = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    area = b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0]
    extent = (uv.max(axis=1) - uv.min(axis=1)).max(axis=-1)
    # The sides of a face thinner than 1e-5 pixels are rounding errors.
    drawn = exists & in_front[faces].all(axis=-1) & jnp.isfinite(area) & (jnp.abs(area) > 1e-5 * extent)
    return corners, jnp.where(drawn, area, 0.0)


def _nearest_faces(corners: Any, area: Any, *, height: int, width: int) -> Any:
    """Walk over the faces (images, faces, 3, 4) of every image; see `nearest_item`."""
    dtype = corners.dtype
    corners = corners.reshape(-1, 3, 4)
    uv, inverse, z = corners[..., :2], corners[..., 2], corners[..., 3]
    # Each edge runs from its lexicographically smaller end: the two faces at an edge compute the same number with
    # opposite signs, and no pixel between them is lost.
    start, stop = jnp.roll(uv, -1, axis=1), jnp.roll(uv, -2, axis=1)
    swap = (stop[..., 0] < start[..., 0]) | ((stop[..., 0] == start[..., 0]) & (stop[..., 1] < start[..., 1]))
    anchor = jnp.where(swap[..., None], stop, start)
    edge = jnp.where(swap[..., None], start - stop, stop - start)
    sign = jnp.where(swap, -1.0, 1.0).astype(dtype)
    tolerance = 1e-6 * jnp.abs(z).max(axis=-1, keepdims=True)
    lines = anchor[..., 0], anchor[..., 1], edge[..., 0] * sign, edge[..., 1] * sign
    table = jnp.concatenate([*lines, inverse, inverse * z, tolerance], axis=-1)
    side = tile_grid(height, width)[0]
    offset = jnp.arange(side * side, dtype=jnp.int32)
    right, down = (x.astype(dtype)[None, None] for x in (offset % side, offset // side))

    def score(face: Array, image: Array, row: Array, column: Array, tile: Array) -> tuple[Array, Array]:
        """Return the depths at a tile's pixels (inf where the face does not cover them)."""
        real = table[face]
        anchor_u, anchor_v, edge_u, edge_v, inverse, inverse_z = (real[:, i : i + 3] for i in range(0, 18, 3))
        left, top = ((x * side).astype(dtype)[:, None] for x in (column, row))
        corner = edge_u * (top - anchor_v) - edge_v * (left - anchor_u)
        edges = corner[..., None] + edge_u[..., None] * down - edge_v[..., None] * right
        inside = (edges >= 0).all(axis=1) | (edges <= 0).all(axis=1)
        numerator, denominator = (edges * inverse_z[..., None]).sum(axis=1), (edges * inverse[..., None]).sum(axis=1)
        covered = inside & (denominator != 0)
        return jnp.where(covered, numerator / jnp.where(covered, denominator, 1.0), jnp.inf), real[:, 18:]

    # A margin of 1e-3 pixels keeps pixels that rounding puts on the wrong side of a box.
    low, high = uv.min(axis=1) - 1e-3, uv.max(axis=1) + 1e-3
    return nearest_item(low, high, area.reshape(-1) != 0, score, area.shape[0], height, width, _CHUNK)


def tile_grid(height: int, width: int) -> tuple[int, int, int]:
    """Return the side of a tile in pixels, and the number of rows and columns of tiles."""
    # Measured on a CPU with a hand of 3200 faces: a side of 8 wastes arithmetic on small images, 4 needs too many
    # scatters on large ones, and single pixels take ten times as long.
    side = 4 if min(height, width) <= 320 else 8
    return side, math.ceil(height / side), math.ceil(width / side)


def join_images(walk: Callable[..., Array], height: int, width: int, *arguments: Array) -> Array:
    """Call a walk in such a way that `vmap` appends images to its leading axis.

    The walk maps arrays (images, ...), `height` and `width` to indices (images, height, width). The second axis of the
    first array counts the items of an image.

    Raises:
        ValueError: If the (item, tile) pairs of one image could exceed 32 bits.
    """
    tiles, items = math.prod(tile_grid(height, width)[1:]), arguments[0].shape[1]
    if tiles * items > _NO_ITEM:
        raise ValueError(f"{items} faces or edges in {height} x {width} pixels are too many: render a smaller image")
    call = jax.custom_batching.custom_vmap(partial(walk, height=height, width=width))

    @call.def_vmap
    def joined(axis_size: int, batched: list[bool], *arguments: Array) -> tuple[Array, bool]:
        pairs = zip(arguments, batched, strict=True)
        whole = [x if own else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, own in pairs]

        def several(whole: list[Array]) -> Array:
            flat = [x.reshape(-1, *x.shape[2:]) for x in whole]
            return join_images(walk, height, width, *flat).reshape(*whole[0].shape[:2], height, width)

        # As many images at once as 32 bits can count, even if every item touched all tiles of its image.
        at_once = max(1, _NO_ITEM // (tiles * items * whole[0].shape[1]))
        if axis_size <= at_once:
            return several(whole), True
        one = lambda leaves: several([x[None] for x in leaves])[0]  # noqa: E731
        return jax.lax.map(one, whole, batch_size=at_once if at_once > 1 else None), True

    return call(*arguments)


def nearest_item(
    low: Array, high: Array, listed: Array, score: Score, images: int, height: int, width: int, chunk: int
) -> Int[Array, "images height width"]:
    """Find the item with the lowest score at every pixel, -1 without one. Of tied items the first one is taken.

    Items have boxes with corners `low` and `high` (items, 2) in pixels (u, v), and take part where `listed`. All images
    have the same number of items, stored image by image; indices count from 0 in each. `score` maps item, image, tile
    row, tile column and tile number of a chunk of pairs to scores (pairs, pixels of a tile; inf: no candidate) and to
    the tolerance within which scores tie. The pixels of a chunk should fit into the processor's cache.
    """
    side, rows, columns = tile_grid(height, width)
    shape = (images * rows * columns, side * side)
    pairs, steps = _pairs(low, high, listed, images, height, width, chunk)

    def best(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        step, buffer = carry
        some = pairs(step)
        return step + 1, buffer.at[some[-1]].min(score(*some)[0], mode="drop")

    # A compiler may round a score differently in each walk: hence a tolerance, which also lets coinciding surfaces tie.
    def first(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        step, index = carry
        some = pairs(step)
        scores, tolerance = score(*some)
        lowest = buffer.at[some[-1]].get(mode="fill", fill_value=0.0)
        candidate = jnp.where((scores < jnp.inf) & (scores <= lowest + tolerance), some[0][:, None], _NO_ITEM)
        return step + 1, index.at[some[-1]].min(candidate, mode="drop")

    unfinished, zero = lambda carry: carry[0] < steps, jnp.zeros((), jnp.int32)
    buffer = jax.lax.while_loop(unfinished, best, (zero, jnp.full(shape, jnp.inf, low.dtype)))[1]
    index = jax.lax.while_loop(unfinished, first, (zero, jnp.full(shape, _NO_ITEM, jnp.int32)))[1]
    index = index.reshape(images, rows, columns, side, side).transpose(0, 1, 3, 2, 4)
    index = index.reshape(images, rows * side, columns * side)[:, :height, :width]
    first_item = jnp.arange(images, dtype=jnp.int32)[:, None, None] * (low.shape[0] // images)
    return jnp.where(index == _NO_ITEM, -1, index - first_item)


def _pairs(
    low: Array, high: Array, listed: Array, images: int, height: int, width: int, chunk: int
) -> tuple[Callable[[Array], tuple[Array, ...]], Array]:
    """Return a function from a step to item, image, row, column and tile of its pairs, and the number of steps.

    Pairs beyond the end of the list have a tile out of range.
    """
    side, rows, columns = tile_grid(height, width)
    items, tiles = low.shape[0], rows * columns
    last = jnp.asarray([width - 1, height - 1], low.dtype)[None]
    first_pixel, last_pixel = jnp.clip(jnp.ceil(low), 0.0, last), jnp.clip(jnp.floor(high), 0.0, last)
    listed = listed & ((high >= 0) & (low <= last) & (first_pixel <= last_pixel)).all(axis=-1)
    pixels = (jnp.where(listed[:, None], pixel, 0.0).astype(jnp.int32) for pixel in (first_pixel, last_pixel))
    first_tile, last_tile = (pixel // side for pixel in pixels)
    extent = last_tile - first_tile + 1
    count = jnp.where(listed, extent[:, 0] * extent[:, 1], 0)
    end = jnp.cumsum(count)
    total = end[-1]
    number = jnp.arange(items, dtype=jnp.int32)
    image = number // (items // images)
    table = jnp.concatenate([(end - count)[:, None], image[:, None], first_tile, extent[:, :1]], axis=-1)
    # Items without tiles leave the list: a chunk of pairs never touches more items than it has pairs.
    chunk = min(chunk, 256 * math.ceil(items / 64))
    place = jnp.where(count > 0, jnp.cumsum((count > 0).astype(jnp.int32)) - 1, items + chunk)
    order = jnp.zeros(items + chunk, jnp.int32).at[place].set(number, mode="drop")
    begin = jnp.full(items + chunk, _NO_ITEM, jnp.int32).at[place].set(end - count, mode="drop")

    def pairs(step: Array) -> tuple[Array, ...]:
        pair = step * chunk + jnp.arange(chunk, dtype=jnp.int32)
        first = jnp.searchsorted(begin, step * chunk, side="right").astype(jnp.int32) - 1
        begins = jax.lax.dynamic_slice(begin, (first,), (chunk,)) - step * chunk
        starts = jnp.zeros(chunk, jnp.int32).at[jnp.where(begins > 0, begins, chunk)].add(1, mode="drop")
        item = order[first + jnp.cumsum(starts)]
        row_of = table[item]
        local, image, across = pair - row_of[:, 0], row_of[:, 1], row_of[:, 4]
        column, row = row_of[:, 2] + local % across, row_of[:, 3] + local // across
        tile = jnp.where(pair < total, image * tiles + row * columns + column, images * tiles)
        return item, image, row, column, tile

    return pairs, (total + chunk - 1) // chunk

"""A soft rasteriser: silhouette and depth of a mesh with gradients in vertices and camera, outlines included.

The silhouette is a sigmoid of the signed distance to the outline, as in SoftRas (Liu et al., "Soft Rasterizer", ICCV
2019), with two departures. The distance is to the outline of the whole mesh instead of each face's own: SoftRas joins
the faces by 1 - prod(1 - p), which widens a mesh whose faces are as small as a pixel (every face nearby adds its half),
so that a fit to an observed mask would shrink. And it enters linearly instead of squared, because a square has no slope
where it matters, on the outline.

How it works. In the image, an outline runs along contour edges: edges whose faces all lie on one side of them. A walk
over (contour edge, tile) pairs, as in `rasterise`, finds each pixel's nearest one. For a pixel outside the mesh it is
on the outline, as no part of the mesh is nearer; for one inside, only those edges count beyond which a finer mask shows
background. Distance and depth are then computed again from the edge and the face that a pixel has been found to depend
on, and JAX differentiates that: forward and backward hold a few numbers a pixel, never faces times pixels.

Not resolved: gaps narrower than a third of a pixel, which the finer mask misses.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handtailor_jax.geometry.cameras import depth_divisor, project, transform_camera
from handtailor_jax.render.rasterise import NEAR, _tiles, rasterise
from handtailor_jax.types import Camera, pytree

SIGMA = 0.5
"""Default softness of an outline, pixels; the silhouette then rises from 0.1 to 0.9 within about two pixels."""

REACH = 8.0
"""How many sigma from the outline a silhouette is soft; beyond (where the sigmoid is below 0.0004) it is 0 or 1."""

_FINER = 3  # odd, so that the finer mask has samples on the pixels' centres
_CHUNK = 1024  # pairs a step
_NONE = 2**31 - 1


@pytree
class SoftMaps:
    """What a camera sees of a mesh, softly."""

    silhouette: Float[Array, "*batch height width"]
    """sigmoid(d / sigma) with d the distance in pixels from the pixel's centre to the outline, negative outside."""
    depth: Float[Array, "*batch height width"]
    """Camera-frame z, in the unit of the vertices: of the face seen; outside the mesh, within reach of its outline, of
    the outline's nearest point; inf elsewhere."""


def soft_rasterise(
    vertices: Float[Array, "vertices 3"],
    faces: Int[Array, "faces 3"],
    camera: Camera,
    height: int,
    width: int,
    sigma: float | Float[Array, ""] = SIGMA,
    near: float = NEAR,
) -> SoftMaps:
    """Silhouette and depth at every pixel centre (u, v) = (column, row), differentiable in vertices and camera.

    As sigma goes to 0 the silhouette becomes the mask of `rasterise`; the depth equals its depth wherever a face is
    seen. What is not drawn there is not drawn here. Gradients are finite everywhere. They are those of the nearest
    surface and of the nearest piece of outline at fixed visibility: depth steps between parts of the mesh (a finger
    before the palm) move without one.

    Args:
        vertices: camera-frame points (OpenCV axes).
        faces: vertex indices; either side of a face may look outward.
        camera: one camera (no batch axes; use vmap), in the pixels of the maps.
        height, width: size of the maps in pixels; part of the compiled program.
        sigma: softness of the outline in pixels, > 0; time grows with it.
        near: as in `rasterise`.

    Raises:
        ValueError: if the maps are empty, or too large (as in `rasterise`, at a third of the size).
    """
    fragments = rasterise(vertices, faces, camera, height, width, near)
    if faces.shape[0] == 0 or vertices.shape[0] == 0:
        return SoftMaps(silhouette=jnp.zeros_like(fragments.depth), depth=fragments.depth)
    if 3 * faces.shape[0] * math.prod(_tiles(height, width)[1:]) > _NONE:
        raise ValueError(f"{faces.shape[0]} faces in {height} x {width} pixels are too many; render smaller maps")
    affine = jnp.asarray([[_FINER, 0.0, _FINER // 2], [0.0, _FINER, _FINER // 2]], camera.linear.dtype)
    finer = rasterise(
        *jax.lax.stop_gradient((vertices, faces, transform_camera(camera, affine))),
        _FINER * height,
        _FINER * width,
        near,
    )
    softness = jnp.asarray(sigma, vertices.dtype)
    return _soften(vertices, faces, camera, near, softness, fragments.depth, finer.mask)


@jax.jit
def _soften(
    vertices: Array, faces: Array, camera: Camera, near: Any, sigma: Array, depth: Array, finer: Array
) -> SoftMaps:
    """`soft_rasterise` from the hard depth (inf: no face) and a mask `_FINER` times as fine."""
    height, width = depth.shape
    inside = jnp.isfinite(depth)
    in_front = jnp.isfinite(vertices).all(axis=-1) & ((vertices[:, 2] > near) | (camera.perspectivity == 0))
    # Double where: points that cannot be projected are moved to a place where they can, and their faces dropped.
    safe = jnp.where(in_front[:, None], vertices, jnp.ones((), vertices.dtype))
    inverse = 1.0 / jnp.where(in_front, depth_divisor(camera, safe[:, 2]), 1.0)
    points = jnp.concatenate([project(camera, safe), inverse[:, None], (safe[:, 2] * inverse)[:, None]], axis=-1)

    ends, outer = _contour(jax.lax.stop_gradient(points[:, :2]), faces, in_front)
    uv = jax.lax.stop_gradient(points[:, :2])[ends].reshape(-1, 4)
    reach = jnp.broadcast_to(REACH * jax.lax.stop_gradient(sigma), (uv.shape[0], 1))
    edges = jnp.concatenate([uv, outer[:, None].astype(uv.dtype), reach], axis=-1)
    index = _nearest_edge(edges, inside[None], finer[None], height, width)[0]

    found = index >= 0
    pair = points[ends[jnp.maximum(index, 0)]]
    pair = jnp.where(found[..., None, None], pair, jnp.ones((), pair.dtype))  # double where
    start, stop = pair[..., 0, :], pair[..., 1, :]
    u, v = jnp.arange(width).astype(points.dtype)[None, :], jnp.arange(height).astype(points.dtype)[:, None]
    along, edge_u, edge_v, from_u, from_v = _along(start[..., :2], stop[..., :2], u, v)
    # Beside the edge, the distance from its line, which has a slope also where it is 0; else that from its nearer end.
    cross = edge_u * from_v - edge_v * from_u
    squared = edge_u * edge_u + edge_v * edge_v
    beside = (along > 0) & (along < 1)
    from_line = jnp.where(cross < 0, -cross, cross) / jnp.sqrt(jnp.where(beside, squared, 1.0))
    end = jax.lax.stop_gradient(along)
    squared = (from_u - end * edge_u) ** 2 + (from_v - end * edge_v) ** 2
    from_end = jnp.sqrt(jnp.where(squared > 0, squared, 1.0)) * (squared > 0).astype(squared.dtype)
    distance = jnp.where(beside, from_line, from_end)
    soft = jax.nn.sigmoid(jnp.where(inside, distance, -distance) / sigma)
    silhouette = jnp.where(found, soft, inside.astype(soft.dtype))

    denominator = (1.0 - along) * start[..., 2] + along * stop[..., 2]
    of_edge = ((1.0 - along) * start[..., 3] + along * stop[..., 3]) / denominator
    return SoftMaps(
        silhouette=silhouette,
        depth=jnp.where(inside, depth, jnp.where(found, of_edge, jnp.inf)),
    )


def _along(start: Array, stop: Array, u: Array, v: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Where on an edge the point nearest to (u, v) is (0 start to 1 stop), the edge, and (u, v) from its start."""
    edge_u, edge_v = (stop - start)[..., 0], (stop - start)[..., 1]
    from_u, from_v = u - start[..., 0], v - start[..., 1]
    squared = edge_u * edge_u + edge_v * edge_v
    has_length = squared > 1e-10
    along = (edge_u * from_u + edge_v * from_v) / jnp.where(has_length, squared, 1.0)
    return jnp.where(has_length, jnp.clip(along, 0.0, 1.0), 0.0), edge_u, edge_v, from_u, from_v


def _contour(
    pixels: Float[Array, "vertices 2"], faces: Int[Array, "faces 3"], in_front: Bool[Array, " vertices"]
) -> tuple[Int[Array, "edges 2"], Int[Array, " edges"]]:
    """The edges of a mesh, and which of them are contours in the image.

    Returns:
        The two vertices of each edge (3 F rows, of which those beyond the number of edges mean nothing), and 1 or -1
        for contours: the sign of (stop - start) x (p - start) for points p on the side without faces; 0 for others.
    """
    count = 3 * faces.shape[0]
    # Else the sort of a constant mesh is done by the compiler, which takes a second for it.
    faces = jax.lax.optimization_barrier(faces)
    exists = ((faces >= 0) & (faces < pixels.shape[0])).all(axis=-1)
    faces = jnp.where(exists[:, None], faces, 0).astype(jnp.int32)
    corners = pixels[faces]
    b, c = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0]
    extent = (corners.max(axis=1) - corners.min(axis=1)).max(axis=-1)
    # Faces that `rasterise` draws.
    drawn = exists & in_front[faces].all(axis=-1) & jnp.isfinite(area) & (jnp.abs(area) > 1e-5 * extent)
    facing = jnp.where(drawn, jnp.where(area > 0, 1, -1), 0).astype(jnp.int32)

    following = jnp.roll(faces, -1, axis=1)
    side = facing[:, None] * jnp.where(faces < following, 1, -1).astype(jnp.int32)
    low, high = jnp.minimum(faces, following).reshape(-1), jnp.maximum(faces, following).reshape(-1)
    low, high, order = jax.lax.sort((low, high, jnp.arange(count, dtype=jnp.int32)), num_keys=2)
    first = jnp.concatenate([jnp.ones(1, bool), (low[1:] != low[:-1]) | (high[1:] != high[:-1])])
    edge = jnp.cumsum(first.astype(jnp.int32)) - 1
    ends = jnp.zeros((count, 2), jnp.int32).at[edge].set(jnp.stack([low, high], axis=-1))
    # Faces on opposite sides cancel.
    sides = jnp.zeros(count, jnp.int32).at[edge].add(side.reshape(-1)[order])
    return ends, -jnp.sign(sides)


def _nearest_edge(
    edges: Float[Array, "edges 6"],
    inside: Bool[Array, "images height width"],
    finer: Bool[Array, "images finer_height finer_width"],
    height: int,
    width: int,
) -> Int[Array, "images height width"]:
    """Index of the nearest edge on the outline within reach of every pixel of some pictures, -1 where there is none.

    Args:
        edges: start (u, v), stop (u, v), outer side (0: no contour; see `_contour`) and reach in pixels; the edges of
            all pictures, one picture after the other, equally many each. Indices count from 0 in each picture.
        inside: where the mesh is seen.
        finer: the same in pixels `_FINER` times as small.
    """
    walk = jax.custom_batching.custom_vmap(_walk)

    @walk.def_vmap
    def together(axis_size: int, batched: list[bool], *arguments: Array) -> tuple[Array, bool]:
        whole = [
            argument if is_batched else jnp.broadcast_to(argument, (axis_size, *argument.shape))
            for argument, is_batched in zip(arguments, batched, strict=True)
        ]

        def several(arguments: list[Array]) -> Array:
            n, images = arguments[1].shape[:2]
            edges, inside, finer = (argument.reshape(-1, *argument.shape[2:]) for argument in arguments)
            return _nearest_edge(edges, inside, finer, height, width).reshape(n, images, height, width)

        # As many pictures at once as can be counted in 32 bits, even if every edge reached all of its picture.
        tiles = math.prod(_tiles(height, width)[1:])
        at_once = max(1, _NONE // (tiles * arguments[0].shape[-2]))
        if axis_size <= at_once:
            return several(whole), True
        one = lambda picture: several(jax.tree.map(lambda leaf: leaf[None], picture))[0]  # noqa: E731
        return jax.lax.map(one, whole, batch_size=at_once if at_once > 1 else None), True

    return walk(edges, inside, finer)


def _walk(edges: Any, inside: Any, finer: Any) -> Any:
    """Two walks over the (edge, tile) pairs; arguments and result as in `_nearest_edge`."""
    images, height, width = inside.shape
    count, dtype = edges.shape[0], edges.dtype
    side, rows, columns = _tiles(height, width)
    tiles = rows * columns

    start, stop, outer, reach = edges[:, :2], edges[:, 2:4], edges[:, 4], edges[:, 5:]
    low, high = jnp.minimum(start, stop) - reach, jnp.maximum(start, stop) + reach
    last = jnp.asarray([width - 1, height - 1], dtype)
    first_pixel = jnp.clip(jnp.ceil(low), 0.0, last[None])
    last_pixel = jnp.clip(jnp.floor(high), 0.0, last[None])
    reaches = (outer != 0) & ((high >= 0) & (low <= last[None]) & (first_pixel <= last_pixel)).all(axis=-1)
    first_tile, last_tile = (
        jnp.where(reaches[:, None], pixel, 0.0).astype(jnp.int32) // side for pixel in (first_pixel, last_pixel)
    )
    extent = last_tile - first_tile + 1
    pairs_of = jnp.where(reaches, extent[:, 0] * extent[:, 1], 0)
    end = jnp.cumsum(pairs_of)
    total = end[-1]
    image = jnp.arange(count, dtype=jnp.int32) // (count // images)
    integers = jnp.concatenate(
        [(end - pairs_of)[:, None], image[:, None], first_tile, extent[:, :1]], axis=-1, dtype=jnp.int32
    )

    padded = jnp.pad(inside, ((0, 0), (0, rows * side - height), (0, columns * side - width)))
    inside_tiles = padded.reshape(images, rows, side, columns, side).transpose(0, 1, 3, 2, 4)
    inside_tiles = inside_tiles.reshape(images * tiles, side * side)
    offset = jnp.arange(side * side, dtype=jnp.int32)[None]

    def pairs(step: Array) -> tuple[Array, Array, Array]:
        """Edge, tile (out of range: no pair) and squared distances (inf: not on the outline) of one chunk of pairs."""
        pair = step * _CHUNK + jnp.arange(_CHUNK, dtype=jnp.int32)
        edge = jnp.minimum(jnp.searchsorted(end, pair, side="right").astype(jnp.int32), count - 1)
        real, integer = edges[edge], integers[edge]
        local = pair - integer[:, 0]
        column = integer[:, 2] + local % integer[:, 4]
        row = integer[:, 3] + local // integer[:, 4]
        tile = jnp.where(pair < total, integer[:, 1] * tiles + row * columns + column, images * tiles)
        u = (column[:, None] * side + offset % side).astype(dtype)
        v = (row[:, None] * side + offset // side).astype(dtype)
        start, stop, outer, reach = real[:, None, :2], real[:, None, 2:4], real[:, 4:5], real[:, 5:]
        along, edge_u, edge_v, from_u, from_v = _along(start, stop, u, v)
        away_u, away_v = from_u - along * edge_u, from_v - along * edge_v
        squared = away_u * away_u + away_v * away_v

        # Just beyond the edge: the centre of the finer mask's pixel there is on the outer side too.
        length = jnp.sqrt(jnp.maximum(edge_u * edge_u + edge_v * edge_v, 1e-10))
        beyond = 0.75 * outer / length
        beyond_u = _FINER * (u - away_u) - beyond * edge_v + _FINER // 2
        beyond_v = _FINER * (v - away_v) + beyond * edge_u + _FINER // 2
        column_beyond, row_beyond = (
            jnp.clip(jnp.round(x), -1, size).astype(jnp.int32)
            for x, size in ((beyond_u, _FINER * width), (beyond_v, _FINER * height))
        )
        row_beyond = jnp.where(row_beyond < 0, _FINER * height, row_beyond)
        column_beyond = jnp.where(column_beyond < 0, _FINER * width, column_beyond)
        covered = finer.at[integer[:, 1:2], row_beyond, column_beyond].get(mode="fill", fill_value=False)
        inner = outer * (edge_u * from_v - edge_v * from_u) <= 0
        outside = ~inside_tiles.at[tile].get(mode="fill", fill_value=True)
        usable = (squared <= reach * reach) & (outside | (inner & ~covered))
        return edge, tile, jnp.where(usable, squared, jnp.inf)

    def nearest(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        step, buffer = carry
        _, tile, squared = pairs(step)
        return step + 1, buffer.at[tile].min(squared, mode="drop")

    # A compiler may round a distance differently in each walk: hence a tolerance instead of equality.
    def lowest(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        step, index = carry
        edge, tile, squared = pairs(step)
        least = buffer.at[tile].get(mode="fill", fill_value=0.0)
        candidate = jnp.where((squared < jnp.inf) & (squared <= 1.00001 * least + 1e-10), edge[:, None], _NONE)
        return step + 1, index.at[tile].min(candidate, mode="drop")

    zero = jnp.zeros((), jnp.int32)
    steps = (total + _CHUNK - 1) // _CHUNK
    unfinished = lambda carry: carry[0] < steps  # noqa: E731
    shape = (images * tiles, side * side)
    buffer = jax.lax.while_loop(unfinished, nearest, (zero, jnp.full(shape, jnp.inf, dtype)))[1]
    index = jax.lax.while_loop(unfinished, lowest, (zero, jnp.full(shape, _NONE, jnp.int32)))[1]

    index = index.reshape(images, rows, columns, side, side).transpose(0, 1, 3, 2, 4)
    index = index.reshape(images, rows * side, columns * side)[:, :height, :width]
    own = index - jnp.arange(images, dtype=jnp.int32)[:, None, None] * (count // images)
    return jnp.where(index == _NONE, -1, own)

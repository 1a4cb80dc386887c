"""A soft rasteriser: silhouette and depth of a mesh with gradients in vertices and camera, outlines included.

Written here because no JAX package has one whose memory is independent of the number of faces. The silhouette is a
sigmoid of the signed distance to the outline, as in SoftRas (Liu et al., "Soft Rasterizer", ICCV 2019), with two
differences. The distance is to the outline of the whole mesh, not of each face: SoftRas joins the faces by
1 - prod(1 - p), which widens a mesh with faces as small as a pixel, so that a fit to an observed mask shrinks. The
distance enters linearly, not squared, because a square has no slope on the outline.

In the image, an outline runs along contour edges: edges whose faces all lie on one side of them. The tile walk of
`rasterise` finds the nearest contour edge of each pixel. For a pixel outside the mesh this edge is on the outline,
because no part of the mesh is closer; for a pixel inside, only edges count beyond which a finer mask shows background.
Distance and depth are then computed again from the edge and the face found, and JAX differentiates that: the forward
and the backward pass hold a few numbers per pixel. Gaps narrower than a third of a pixel are not resolved.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from handtailor_jax.geometry.cameras import transform_camera
from handtailor_jax.render.rasterise import (
    drawn_faces,
    join_images,
    nearest_item,
    project_vertices,
    rasterise,
    tile_grid,
)
from handtailor_jax.types import Camera, pytree

SIGMA = 0.5
"""Default softness of an outline in pixels: the silhouette rises from 0.1 to 0.9 within about two pixels."""

REACH = 8.0
"""Width of the soft band on either side of the outline in sigma; beyond it the silhouette is 0 or 1 (within 0.0004)."""

_FINER = 3  # odd, so that the finer mask has samples at the pixel centres
_CHUNK = 1024  # few edges are contours, so that a larger chunk is rarely full


@pytree
class SoftMaps:
    """Soft silhouette and depth of a mesh."""

    silhouette: Float[Array, "*batch height width"]
    """sigmoid(d / sigma), where d is the distance in pixels from the pixel centre to the outline, negative outside."""
    depth: Float[Array, "*batch height width"]
    """Camera-frame z in the unit of the vertices: of the visible face; outside the mesh, within reach of the outline,
    of the nearest point of the outline; inf elsewhere."""


def soft_rasterise(
    vertices: Float[Array, "vertices 3"],
    faces: Int[Array, "faces 3"],
    camera: Camera,
    height: int,
    width: int,
    sigma: float | Float[Array, ""] = SIGMA,
) -> SoftMaps:
    """Render silhouette and depth at every pixel centre (u, v) = (column, row), differentiable in vertices and camera.

    The silhouette tends to the mask of `rasterise` as sigma tends to 0. The depth equals that of `rasterise` wherever a
    face is visible, and both leave out the same faces. Gradients are finite everywhere. They belong to the nearest
    surface and the nearest piece of outline at fixed visibility: a depth step between two parts of the mesh (a finger
    in front of the palm) moves without a gradient.

    Arguments are those of `rasterise`, and the softness `sigma` of the outline in pixels; a larger one takes longer.

    Raises:
        ValueError: If the maps are empty or too large (as in `rasterise`, at a third of the size).
    """
    fragments = rasterise(vertices, faces, camera, height, width)
    if faces.shape[0] == 0 or vertices.shape[0] == 0:
        return SoftMaps(silhouette=jnp.zeros_like(fragments.depth), depth=fragments.depth)
    affine = jnp.asarray([[_FINER, 0.0, _FINER // 2], [0.0, _FINER, _FINER // 2]], camera.linear.dtype)
    fixed = jax.lax.stop_gradient((vertices, faces, transform_camera(camera, affine)))
    finer = rasterise(*fixed, _FINER * height, _FINER * width)
    return _soften(vertices, faces, camera, jnp.asarray(sigma, vertices.dtype), fragments.depth, finer.mask)


@jax.jit
def _soften(vertices: Array, faces: Array, camera: Camera, sigma: Array, depth: Array, finer: Array) -> SoftMaps:
    """Compute the soft maps from the hard depth (inf: no face) and a mask `_FINER` times as fine."""
    height, width = depth.shape
    inside = jnp.isfinite(depth)
    points, in_front = project_vertices(vertices, camera)
    ends, outer = _contour(jax.lax.stop_gradient(points), faces, in_front)
    uv = jax.lax.stop_gradient(points[:, :2])[ends].reshape(-1, 4)
    reach = jnp.broadcast_to(REACH * jax.lax.stop_gradient(sigma), (uv.shape[0], 1))
    edges = jnp.concatenate([uv, outer[:, None].astype(uv.dtype), reach], axis=-1)
    index = join_images(_nearest_edges, height, width, edges[None], inside[None], finer[None])[0]

    found = index >= 0
    pair = points[ends[jnp.maximum(index, 0)]]
    pair = jnp.where(found[..., None, None], pair, jnp.ones((), pair.dtype))  # double where
    start, stop = pair[..., 0, :], pair[..., 1, :]
    u, v = jnp.arange(width).astype(points.dtype)[None, :], jnp.arange(height).astype(points.dtype)[:, None]
    along, edge_u, edge_v, from_u, from_v = _along(start[..., :2], stop[..., :2], u, v)
    # Beside the edge: the distance to its line, which has a slope also where it is 0. Else: to the closer end.
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

    # Depth along the edge, perspective-correct: z / divisor and 1 / divisor are linear in the image.
    first, second = (1.0 - along) * start[..., 2], along * stop[..., 2]
    edge_depth = (first * start[..., 3] + second * stop[..., 3]) / (first + second)
    return SoftMaps(silhouette=silhouette, depth=jnp.where(inside, depth, jnp.where(found, edge_depth, jnp.inf)))


def _along(start: Array, stop: Array, u: Array, v: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Return where on an edge the point nearest to (u, v) is (0 to 1), the edge, and (u, v) relative to its start."""
    edge_u, edge_v = (stop - start)[..., 0], (stop - start)[..., 1]
    from_u, from_v = u - start[..., 0], v - start[..., 1]
    squared = edge_u * edge_u + edge_v * edge_v
    has_length = squared > 1e-10
    along = (edge_u * from_u + edge_v * from_v) / jnp.where(has_length, squared, 1.0)
    return jnp.where(has_length, jnp.clip(along, 0.0, 1.0), 0.0), edge_u, edge_v, from_u, from_v


def _contour(points: Array, faces: Array, in_front: Array) -> tuple[Int[Array, "edges 2"], Int[Array, " edges"]]:
    """Return the two vertices of each edge, and 1 or -1 for edges that are contours in the image, 0 for others.

    There are 3 F rows, of which those beyond the number of edges are unused. The sign of a contour is that of
    (stop - start) x (p - start) for points p on the side without faces.
    """
    # Without the barrier the compiler sorts a constant mesh itself, which takes a second.
    faces = jax.lax.optimization_barrier(faces)
    facing = jnp.sign(drawn_faces(points, faces, in_front)[1]).astype(jnp.int32)
    exists = ((faces >= 0) & (faces < points.shape[0])).all(axis=-1)
    faces = jnp.where(exists[:, None], faces, 0).astype(jnp.int32)
    following = jnp.roll(faces, -1, axis=1)
    side = facing[:, None] * jnp.where(faces < following, 1, -1).astype(jnp.int32)
    low, high = jnp.minimum(faces, following).reshape(-1), jnp.maximum(faces, following).reshape(-1)
    count = low.shape[0]
    low, high, order = jax.lax.sort((low, high, jnp.arange(count, dtype=jnp.int32)), num_keys=2)
    first = jnp.concatenate([jnp.ones(1, bool), (low[1:] != low[:-1]) | (high[1:] != high[:-1])])
    edge = jnp.cumsum(first.astype(jnp.int32)) - 1
    ends = jnp.zeros((count, 2), jnp.int32).at[edge].set(jnp.stack([low, high], axis=-1))
    # Faces on opposite sides cancel.
    sides = jnp.zeros(count, jnp.int32).at[edge].add(side.reshape(-1)[order])
    return ends, -jnp.sign(sides)


def _nearest_edges(edges: Any, inside: Any, finer: Any, *, height: int, width: int) -> Any:
    """Find the nearest edge on the outline within reach of every pixel; a walk of `rasterise.join_images`.

    Edges (images, edges, 6) are start (u, v), stop (u, v), outer side (see `_contour`) and reach in pixels. `inside`
    (images, height, width) tells whether the mesh covers a pixel, `finer` the same in pixels `_FINER` times as small.
    """
    images, dtype = len(edges), edges.dtype
    side, rows, columns = tile_grid(height, width)
    padded = jnp.pad(inside, ((0, 0), (0, rows * side - height), (0, columns * side - width)))
    inside_tiles = padded.reshape(images, rows, side, columns, side).transpose(0, 1, 3, 2, 4).reshape(-1, side * side)
    edges = edges.reshape(-1, 6)
    offset = jnp.arange(side * side, dtype=jnp.int32)[None]

    def score(edge: Array, image: Array, row: Array, column: Array, tile: Array) -> tuple[Array, Array]:
        """Return squared distances to the edge (inf where it is not on the outline)."""
        real = edges[edge]
        u = (column[:, None] * side + offset % side).astype(dtype)
        v = (row[:, None] * side + offset // side).astype(dtype)
        outer, reach = real[:, 4:5], real[:, 5:]
        along, edge_u, edge_v, from_u, from_v = _along(real[:, None, :2], real[:, None, 2:4], u, v)
        away_u, away_v = from_u - along * edge_u, from_v - along * edge_v
        squared = away_u * away_u + away_v * away_v

        # A point just beyond the edge: the centre of its pixel in the finer mask is on the outer side too.
        beyond = 0.75 * outer / jnp.sqrt(jnp.maximum(edge_u * edge_u + edge_v * edge_v, 1e-10))
        beyond_u = _FINER * (u - away_u) - beyond * edge_v + _FINER // 2
        beyond_v = _FINER * (v - away_v) + beyond * edge_u + _FINER // 2
        # Negative indices would count from the end; an index past the end reads False.
        column_beyond, row_beyond = (
            jnp.where(x < 0, size, jnp.minimum(x, size)).astype(jnp.int32)
            for x, size in ((jnp.round(beyond_u), _FINER * width), (jnp.round(beyond_v), _FINER * height))
        )
        covered = finer.at[image[:, None], row_beyond, column_beyond].get(mode="fill", fill_value=False)
        inner = outer * (edge_u * from_v - edge_v * from_u) <= 0
        outside = ~inside_tiles.at[tile].get(mode="fill", fill_value=True)
        usable = (squared <= reach * reach) & (outside | (inner & ~covered))
        return jnp.where(usable, squared, jnp.inf), 1e-5 * squared + 1e-10

    low = jnp.minimum(edges[:, :2], edges[:, 2:4]) - edges[:, 5:]
    high = jnp.maximum(edges[:, :2], edges[:, 2:4]) + edges[:, 5:]
    return nearest_item(low, high, edges[:, 4] != 0, score, images, height, width, _CHUNK)

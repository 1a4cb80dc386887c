"""A z-buffered rasteriser and the normals of a mesh.

Kept by hand because it needs no OpenGL or window system, and compiles, batches and differentiates wherever JAX runs.
The search for the nearest face is the tile walk of `tiles`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handtailor_jax.geometry.cameras import depth_divisor, project
from handtailor_jax.render.tiles import join_images, nearest_item, tile_grid
from handtailor_jax.types import Camera, pytree

NEAR = 1e-4
"""Faces with a vertex closer than this to a perspective camera's plane are not drawn; camera-frame units."""

_CHUNK = 4096  # measured on a CPU: 2048 is as fast, 1024 and 16384 are slower


@pytree
class Fragments:
    """The nearest surface at every pixel."""

    face_index: Int[Array, "*batch height width"]
    """Index of the nearest face at the pixel centre; -1 without a face."""
    barycentrics: Float[Array, "*batch height width 3"]
    """Weights of the face's three vertices: weights times camera-frame vertices is the visible point, in perspective
    and in weak perspective. 0 without a face."""
    depth: Float[Array, "*batch height width"]
    """Camera-frame z of the visible point, in the unit of the vertices; inf without a face."""

    @property
    def mask(self) -> Bool[Array, "*batch height width"]:
        """Whether a face is visible."""
        return self.face_index >= 0


def rasterise(
    vertices: Float[Array, "vertices 3"],
    faces: Int[Array, "faces 3"],
    camera: Camera,
    height: int,
    width: int,
    near: float = NEAR,
) -> Fragments:
    """Find the nearest face, its barycentric coordinates and its depth at every pixel centre (u, v) = (column, row).

    Both sides of a face are drawn. Surfaces closer together than rounding (1e-6 of their depth) tie, and the face with
    the lower index is visible. Faces that share vertices leave no cracks. Not drawn: faces with a vertex that does not
    exist or is not finite, faces without area in the image, and, in perspective, faces with a vertex behind the plane
    z = `near` (they are left out whole, not clipped).

    Depth and barycentrics have gradients with respect to vertices and camera at fixed visibility. An outline that
    moves across a pixel has no gradient; see `soft.soft_rasterise`.

    Args:
        vertices: Camera-frame points.
        faces: Vertex indices.
        camera: One camera in the pixels of the image, without batch axes (use vmap).
        height: Image height in pixels, static.
        width: Image width in pixels, static.
        near: Distance of the near plane in the unit of the vertices; unused in weak perspective.

    Raises:
        ValueError: If the image is empty, or if faces times tiles exceed 32 bits (3200 faces: 6500 x 6500 pixels).
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image needs at least one pixel, got height {height}, width {width}")
    if faces.shape[0] == 0 or vertices.shape[0] == 0:
        return Fragments(
            face_index=jnp.full((height, width), -1, jnp.int32),
            barycentrics=jnp.zeros((height, width, 3), vertices.dtype),
            depth=jnp.full((height, width), jnp.inf, vertices.dtype),
        )
    return _rasterise(vertices, faces, camera, near, height, width)


@partial(jax.jit, static_argnames=("height", "width"))
def _rasterise(vertices: Array, faces: Array, camera: Camera, near: Any, height: int, width: int) -> Fragments:
    points, in_front = project_vertices(vertices, camera, near)
    corners, area = drawn_faces(points, faces, in_front)
    fixed = jax.lax.stop_gradient((corners, area))
    face_index = join_images(_nearest_faces, height, width, *(x[None] for x in fixed))[0]

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
    """Interpolate vertex attributes at every pixel; 0 without a face."""
    channels = attributes.shape[-1]
    if faces.shape[0] == 0:
        return jnp.zeros((*fragments.face_index.shape, channels), attributes.dtype)
    corners = attributes[faces].reshape(-1, 3 * channels)[jnp.maximum(fragments.face_index, 0)]
    corners = corners.reshape(*fragments.face_index.shape, 3, channels)
    # Multiply and add in full precision: a matrix product may be rounded to 10 bits on an accelerator.
    weights = fragments.barycentrics.astype(attributes.dtype)
    values = (weights[..., None] * corners).sum(axis=-2)
    return jnp.where(fragments.mask[..., None], values, jnp.zeros((), attributes.dtype))


def face_normals(vertices: Float[Array, "vertices 3"], faces: Int[Array, "faces 3"]) -> Float[Array, "faces 3"]:
    """Return unit normals of the faces by the right-hand rule; 0 for faces without area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return _unit(jnp.cross(b - a, c - a))


def vertex_normals(
    vertices: Float[Array, "vertices 3"], faces: Int[Array, "faces 3"], by_area: bool = False
) -> Float[Array, "vertices 3"]:
    """Return smooth unit normals in the frame of the vertices; 0 for vertices without a face with area.

    Args:
        vertices: Vertex positions.
        faces: Vertex indices.
        by_area: Average the face normals by area. By default they are averaged by the angle of each face at the vertex,
            which does not depend on how a surface is cut into triangles.
    """
    corners = vertices[faces]
    if by_area:
        edges = corners[:, 1:] - corners[:, :1]
        weighted = jnp.repeat(jnp.cross(edges[:, 0], edges[:, 1])[:, None], 3, axis=1)
    else:
        to_next = _unit(jnp.roll(corners, -1, axis=1) - corners)
        to_previous = _unit(jnp.roll(corners, 1, axis=1) - corners)
        cosine = (to_next * to_previous).sum(axis=-1)
        inside = jnp.abs(cosine) < 1.0  # arccos has an infinite slope at the ends
        angle = jnp.where(inside, jnp.arccos(jnp.where(inside, cosine, 0.0)), 0.0)
        weighted = angle[..., None] * face_normals(vertices, faces)[:, None, :]
    total = jnp.zeros_like(vertices).at[faces.reshape(-1)].add(weighted.reshape(-1, 3), mode="drop")
    return _unit(total)


def _unit(vectors: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Scale vectors to length 1; vectors of length 0 or not finite become 0, with gradient 0."""
    # Dividing by the largest component first keeps the square of a face's area in square metres from underflowing.
    largest = jnp.abs(vectors).max(axis=-1, keepdims=True)
    usable = (largest > 0) & jnp.isfinite(largest)
    scaled = jnp.where(usable, vectors / jnp.where(usable, largest, 1.0), 1.0)
    return jnp.where(usable, scaled / jnp.sqrt((scaled * scaled).sum(axis=-1, keepdims=True)), 0.0)


def project_vertices(
    vertices: Float[Array, "vertices 3"], camera: Camera, near: Any
) -> tuple[Float[Array, "vertices 4"], Bool[Array, " vertices"]]:
    """Return u, v, 1 / depth divisor and z of every vertex, and whether the vertex is finite and beyond `near`."""
    in_front = jnp.isfinite(vertices).all(axis=-1) & ((vertices[:, 2] > near) | (camera.perspectivity == 0))
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
    table = jnp.concatenate(
        [anchor[..., 0], anchor[..., 1], edge[..., 0] * sign, edge[..., 1] * sign, inverse, inverse * z, tolerance], -1
    )
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

"""Normals of triangle meshes."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def face_normals(vertices: Float[Array, "vertices 3"], faces: Int[Array, "faces 3"]) -> Float[Array, "faces 3"]:
    """Return unit normals of the faces by the right-hand rule; 0 for faces without area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return _unit(jnp.cross(b - a, c - a))


def vertex_normals(
    vertices: Float[Array, "vertices 3"], faces: Int[Array, "faces 3"], by_area: bool = False
) -> Float[Array, "vertices 3"]:
    """Return smooth unit normals in the frame of the vertices; 0 for vertices without a face with area.

    Face normals are averaged by area, or else by the angle of each face at the vertex, which does not depend on how a
    surface is cut into triangles.
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

"""The surface of a scene: its mesh, its visible part, and the shadows on it.

Images are kept as separate planes (height, width), one per quantity: XLA then looks values up and shades in one pass.
An array of records would be gathered first, which takes eight times as long on a CPU.
"""

import dataclasses
import importlib.resources
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from handtailor_jax.geometry.cameras import project
from handtailor_jax.geometry.normals import vertex_normals
from handtailor_jax.render.rasterise import rasterise
from handtailor_jax.types import Camera, pytree

SKIN, SLEEVE, BAND, HELD, FOREGROUND = range(5)
"""Materials: hand and bare arm, sleeve, watch or bracelet, object in the hand, object in front of it."""

# Positions of the rings: of the arm from the wrist's edge, of the sleeve from its start (metres), of the band (0 to 1).
ARM_ARC = (0.008, 0.02, 0.035, 0.055, 0.08, 0.11, 0.15, 0.19, 0.23, 0.255, 0.28, 0.34, 0.42, 0.52)
SLEEVE_STEPS = (-0.002, 0.0, 0.004, 0.02, 0.045, 0.075, 0.11, 0.16, 0.22, 0.3, 0.4, 0.5)
BAND_STEPS = (0.0, 0.12, 0.88, 1.0)
OBJECT_GRID = (13, 20)  # rows and columns of vertices of an object

# Patch of the arm in a free corner of the chart: u and v of its lower, then its upper corner. u goes along the arm, v
# around it. The distance from the wrist's edge is the length (metres) times a power of the position in the patch.
ARM_PATCH, ARM_LENGTH, ARM_EXPONENT = (0.52, 0.68, 0.98, 0.98), 0.52, 1.6

_SHADOW_SIZE, _SHADOW_TAPS = 128, 5
_SHADOW_SCALE = 0.5 * _SHADOW_SIZE / 0.16  # pixels per metre: the shadow map covers 32 cm around the hand

Plane = Float[Array, "height width"]
Planes3 = tuple[Plane, Plane, Plane]

T = TypeVar("T")


def once(values: T) -> T:
    """Return the values behind a barrier that keeps the compiler from computing them again at every use."""
    return jax.lax.optimization_barrier(values)


@pytree
class SceneTopology:
    """The constant part of the scene's mesh. `smooth_surface` divides all faces except those of objects."""

    faces: Int[Array, "faces 3"]  # hand, arm, sleeve, band, held object and foreground object, in this order
    is_hand: Int[Array, "faces"]  # 1 for faces of the hand model, which the labels describe
    edges: Int[Array, "edges 2"]  # of the divided faces
    smooth_faces: Int[Array, "smooth_faces 3"]
    material: Int[Array, "smooth_faces"]  # `SKIN` ... `FOREGROUND`
    uv: Float[Array, "6 smooth_faces"]
    """Chart coordinates of the corners of each smooth face: u of the three, then v of the three. On skin they refer to
    `skin.skin_chart`; elsewhere u goes around (0 to 1) and v along (metres; on objects 0 to 1)."""
    wrist_loop: Int[Array, "loop"]  # vertices of the hand's open edge, in order


def scene_topology(two_hands: bool = False) -> SceneTopology:
    """Return the topology of scenes with one or two embedded hands; tools/bake_scene.py made that of one."""
    asset = importlib.resources.files("handtailor_jax").joinpath("assets", "scene.npz")
    with asset.open("rb") as file, np.load(file) as arrays:
        topology = SceneTopology(**{name: jnp.asarray(array) for name, array in arrays.items()})
    return with_second_hand(topology) if two_hands else topology


def with_second_hand(topology: SceneTopology) -> SceneTopology:
    """Return the topology of a scene in which a copy of hand, arm, sleeve and band follows the other vertices.

    The labels describe the first hand only.
    """
    faces, smooth = np.asarray(topology.faces), np.asarray(topology.smooth_faces)
    edges, material = np.asarray(topology.edges), np.asarray(topology.material)
    objects = 2 * OBJECT_GRID[0] * OBJECT_GRID[1]
    total = int(faces.max()) + 1
    own = total - objects  # vertices of a hand with its arm, sleeve and band, the first ones
    middles = total + own  # the first middle of an edge, now that there are more vertices
    copied = material < HELD
    # Vertices of smooth faces are corners, then middles of edges, of which the copies follow the first ones.
    moved = np.where(smooth >= total, smooth + own, smooth)
    copy = np.where(smooth >= total, smooth - total + middles + len(edges), smooth + total)[copied]
    parts = {
        "faces": [faces, faces[(faces < own).all(axis=1)] + total],
        "is_hand": [np.asarray(topology.is_hand), np.zeros(int((faces < own).all(axis=1).sum()), np.int32)],
        "edges": [edges, edges + total],
        "smooth_faces": [moved, copy],
        "material": [material, material[copied]],
        "uv": [np.asarray(topology.uv), np.asarray(topology.uv)[:, copied]],
    }
    joined = {name: jnp.asarray(np.concatenate(part, axis=-1 if name == "uv" else 0)) for name, part in parts.items()}
    return dataclasses.replace(topology, **joined)


@pytree
class Surface:
    """The visible surface at every pixel of the supersampled image; 0 without one. Camera frame, metres."""

    face: Int[Array, "height width"]  # index of the smooth face, -1 without one
    material: Int[Array, "height width"]  # `SKIN` ... `FOREGROUND`, -1 without a face
    depth: Plane  # camera z, inf without a face
    points: Planes3
    normals: Planes3  # smooth unit normals, turned toward the camera
    chart: tuple[Plane, Plane]  # see `SceneTopology.uv`


def visible_surface(
    vertices: Float[Array, "vertices 3"], topology: SceneTopology, camera: Camera, size: int
) -> Surface:
    """Find the nearest point of the scene's smooth mesh at every pixel centre of a square image."""
    faces = topology.smooth_faces
    vertices, normals = once(smooth_surface(vertices, topology))
    face = once(rasterise(vertices, faces, camera, size, size).face_index)
    seen = face >= 0
    index = jnp.maximum(face, 0)

    pixels = project(camera, vertices)
    inverse = 1.0 / jnp.maximum(vertices[:, 2], 1e-4)
    columns = jnp.arange(size).astype(vertices.dtype)[None, :]
    rows = jnp.arange(size).astype(vertices.dtype)[:, None]
    corner = [faces[:, k] for k in range(3)]
    tables = once([[pixels[c, 0], pixels[c, 1], inverse[c]] for c in corner])
    u = [table[0][index] - columns for table in tables]
    v = [table[1][index] - rows for table in tables]
    sign = jnp.sign((u[1] - u[0]) * (v[2] - v[0]) - (v[1] - v[0]) * (u[2] - u[0]))
    weights = [
        jnp.maximum((u[k - 2] * v[k - 1] - v[k - 2] * u[k - 1]) * sign, 0.0) * tables[k][2][index] for k in range(3)
    ]
    total = weights[0] + weights[1] + weights[2]
    weights = [jnp.where(total > 0, w / jnp.where(total > 0, total, 1.0), 1.0 / 3.0) for w in weights]
    index, weights = once((index, weights))

    def mixed(corners: list[Array] | Float[Array, "3 faces"]) -> Plane:
        a, b, c = (weights[k] * corners[k][index] for k in range(3))
        return a + b + c

    def at_pixels(values: Float[Array, "vertices"]) -> Plane:
        return mixed(once([values[c] for c in corner]))

    x, y, z = (at_pixels(vertices[:, i]) for i in range(3))
    nx, ny, nz = (at_pixels(normals[:, i]) for i in range(3))
    length = jnp.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    away = jnp.where(nx * x + ny * y + nz * z > 0.25 * length * z, -1.0, 1.0) / length
    surface = Surface(
        face=face,
        material=jnp.where(seen, topology.material[index], -1),
        depth=jnp.where(seen, z, jnp.inf),
        points=(x, y, z),
        normals=(nx * away, ny * away, nz * away),
        chart=(mixed(topology.uv[:3]), mixed(topology.uv[3:])),
    )
    return once(surface)


def smooth_surface(
    vertices: Float[Array, "vertices 3"], topology: SceneTopology
) -> tuple[Float[Array, "smooth_vertices 3"], Float[Array, "smooth_vertices 3"]]:
    """Return vertices and unit normals of the smooth mesh: the given vertices, then the middles of edges.

    The middles lie on a curved surface through the vertices (PN triangles: Vlachos et al., I3D 2001), which rounds the
    outlines of the mesh.
    """
    normals = vertex_normals(vertices, topology.faces)
    start, end = vertices[topology.edges[:, 0]], vertices[topology.edges[:, 1]]
    first, second = normals[topology.edges[:, 0]], normals[topology.edges[:, 1]]
    edge = end - start

    def dot(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=-1, keepdims=True)

    middle = 0.5 * (start + end) - 0.125 * (dot(edge, first) * first - dot(edge, second) * second)
    both = first + second
    normal = both - 2.0 * dot(edge, both) / jnp.maximum(dot(edge, edge), 1e-12) * edge
    normal = normal / jnp.sqrt(dot(normal, normal) + 1e-12)
    return jnp.concatenate([vertices, middle]), jnp.concatenate([normals, normal])


def key_visibility(
    surface: Surface,
    vertices: Float[Array, "vertices 3"],
    topology: SceneTopology,
    toward: Float[Array, "3"],
    softness: Float[Array, ""],
    center: Float[Array, "3"],
) -> Plane:
    """Compute the share of the key light that reaches each pixel past the rest of the scene, with a shadow map.

    The light is in the direction `toward` (a unit vector) and the shadow map is centred on the middle of the hand. The
    edges of shadows have a radius of `softness` texels.
    """
    dtype = vertices.dtype
    x_axis, y_axis = jnp.asarray([1.0, 0.0, 0.0], dtype), jnp.asarray([0.0, 1.0, 0.0], dtype)
    helper = jnp.where(jnp.abs(toward[1]) < 0.9, y_axis, x_axis)
    right = jnp.cross(helper, toward)
    right = right / jnp.sqrt(jnp.sum(right * right))
    frame = jnp.stack([right, jnp.cross(toward, right), -toward])
    camera = Camera(
        linear=_SHADOW_SCALE * jnp.eye(2, dtype=dtype),
        center=jnp.full((2,), 0.5 * (_SHADOW_SIZE - 1), dtype),
        perspectivity=jnp.zeros((), dtype),
    )
    from_light = (vertices - center[None]) @ frame.T
    nearest = rasterise(from_light, topology.faces, camera, _SHADOW_SIZE, _SHADOW_SIZE).depth.reshape(-1)
    x, y, z = (surface.points[i] - center[i] for i in range(3))
    a, b, c = (row[0] * x + row[1] * y + row[2] * z for row in frame)
    nx, ny, nz = surface.normals
    facing = nx * toward[0] + ny * toward[1] + nz * toward[2]
    limit = c - 0.0025 - 0.003 * (1.0 - jnp.clip(facing, 0.0, 1.0))
    a, b = (_SHADOW_SCALE * x + 0.5 * (_SHADOW_SIZE - 1) for x in (a, b))
    a, b, limit, nearest = once((a, b, limit, nearest))
    # A ring of taps, turned by a 2 x 2 pattern of pixels: the average over pixels smooths the edge further.
    size = surface.depth.shape[0]
    pattern = (jnp.arange(size)[:, None] % 2) * 2 + jnp.arange(size)[None, :] % 2
    turn = pattern.astype(dtype) * (math.pi / 10.0)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    lit = jnp.zeros_like(a)
    for tap in range(_SHADOW_TAPS):
        angle, radius = 2.0 * math.pi * tap / _SHADOW_TAPS, math.sqrt((tap + 0.5) / _SHADOW_TAPS)
        dx, dy = radius * math.cos(angle), radius * math.sin(angle)
        column = jnp.round(a + softness * (dx * cos - dy * sin)).astype(jnp.int32)
        row = jnp.round(b + softness * (dx * sin + dy * cos)).astype(jnp.int32)
        inside = (column >= 0) & (column < _SHADOW_SIZE) & (row >= 0) & (row < _SHADOW_SIZE)
        depth = nearest[jnp.where(inside, row * _SHADOW_SIZE + column, 0)]
        lit = lit + jnp.where(inside & (depth < limit), 0.0, 1.0)
    return once(lit / _SHADOW_TAPS)

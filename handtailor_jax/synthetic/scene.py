"""What stands before the camera: the hand, the arm that it continues into, its sleeve, things held or in front of it.

All of it becomes one mesh with one list of faces, the same for every sample: parts that a sample does not have are
collapsed to a point, which the rasteriser skips.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from handtailor_jax.data.draws import Draws
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import crop_affine, project, transform_camera
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_arrays
from handtailor_jax.render.rasterise import vertex_normals
from handtailor_jax.synthetic.skin import ARM_PATCH, arm_chart
from handtailor_jax.types import Camera, pytree

SKIN, CLOTH, BAND, THING, FOREGROUND = range(5)
"""Materials: hand and bare arm, sleeve, watch or bracelet, thing in the hand, thing in front of it."""

_ARM_ARC = np.asarray(
    [0.008, 0.02, 0.035, 0.055, 0.08, 0.11, 0.15, 0.19, 0.23, 0.255, 0.28, 0.34, 0.42, 0.52], np.float32
)
_SLEEVE_STEPS = np.asarray([-0.002, 0.0, 0.004, 0.02, 0.045, 0.075, 0.11, 0.16, 0.22, 0.3, 0.4, 0.5], np.float32)
_SLEEVE_FLARE = np.asarray([0.2, 0.85, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], np.float32)
_BAND_STEPS = np.asarray([0.0, 0.12, 0.88, 1.0], np.float32)
_BAND_FLARE = np.asarray([0.0, 1.0, 1.0, 0.0], np.float32)
_THING_ROWS, _THING_COLUMNS = 13, 20


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """Camera, crop and company of the hand. Shares are probabilities."""

    distance: tuple[float, float] = (0.28, 1.4)
    """Metres from the camera to the middle MCP, uniform in the logarithm."""
    fill: tuple[float, float] = (0.40, 0.95)
    """Longer side of the box around the 21 keypoints as a share of the crop."""
    offset: float = 0.5
    """How far the box may leave the middle, as a share of the room it has on either side."""
    sleeve: float = 0.6
    """Share of arms in a sleeve, from the wrist to above the elbow."""
    band: float = 0.15
    """Share of wrists with a watch or bracelet."""
    held: float = 0.14
    """Share of hands with something in them."""
    foreground: float = 0.10
    """Share of hands with something in front of them."""

    def __post_init__(self) -> None:
        """Refuses ranges that cannot be drawn from.

        Raises:
            InputError: naming the field.
        """
        for name, (low, high) in (("distance", self.distance), ("fill", self.fill)):
            if not 0.0 < low <= high:
                raise InputError(f"SceneConfig: {name} must be an increasing positive range, got {low} ... {high}")
        if self.fill[1] > 1.0:
            raise InputError(f"SceneConfig: a hand cannot fill more than the whole crop, got fill {self.fill[1]}")


@pytree
class SceneTopology:
    """What the meshes of all samples have in common."""

    faces: Int[Array, "faces 3"]
    """Triangles of hand, arm, sleeve, band, thing and foreground, in this order."""
    is_hand: Int[Array, "faces"]
    """1 for faces of the hand model, which labels are about."""
    edges: Int[Array, "edges 2"]
    """Edges with a new vertex in the middle in the smooth mesh: all but those of things."""
    smooth_faces: Int[Array, "smooth_faces 3"]
    """Triangles of the smooth mesh."""
    material: Int[Array, "smooth_faces"]
    """`SKIN` ... `FOREGROUND`."""
    uv: Float[Array, "6 smooth_faces"]
    """Chart coordinates of each smooth face's corners: u of the three, then v of the three. On skin, those of
    `skin_chart`; elsewhere, how far around (0 to 1) and how far along (metres, or 0 to 1 on things)."""
    wrist_loop: Int[Array, "loop"]
    """Vertices of the hand's open edge, in order."""


@functools.cache
def _topology_arrays() -> dict[str, np.ndarray]:
    arrays = embedded_arrays()
    hand_faces = arrays["faces"].astype(np.int32)
    count = len(arrays["template"])
    loop = arrays["wrist_loop"].astype(np.int32)
    # Seen along the boundary edges of the hand's faces, so that the arm's faces continue with the same orientation.
    directed = {(int(a), int(b)) for f in hand_faces for a, b in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))}
    forward = (int(loop[0]), int(loop[1])) in directed
    ring = len(loop)

    faces, material, uv = [hand_faces], [np.full(len(hand_faces), SKIN)], [arrays["uv"].astype(np.float32)]

    def add(own: np.ndarray, kind: int, chart: np.ndarray) -> None:
        faces.append(own)
        material.append(np.full(len(own), kind))
        uv.append(chart)

    def tube(rows: list[np.ndarray], along: np.ndarray, kind: int, turned: bool) -> None:
        columns = len(rows[0])
        for r in range(len(rows) - 1):
            for c in range(columns):
                n = (c + 1) % columns
                quad = [(r, c, 0), (r, n, 1), (r + 1, n, 1), (r + 1, c, 0)]
                for corners in ((0, 1, 2), (0, 2, 3)):
                    corners = corners[::-1] if turned else corners
                    own = np.asarray([[rows[quad[k][0]][quad[k][1]] for k in corners]], np.int32)
                    chart = [[(c + quad[k][2]) / columns, along[quad[k][0]]] for k in corners]
                    add(own, kind, np.asarray([chart], np.float32))

    start = count
    rings = [loop]
    for _ in _ARM_ARC:
        rings.append(np.arange(start, start + ring, dtype=np.int32))
        start += ring
    first = len(faces)
    tube(rings, np.concatenate([[0.0], _ARM_ARC]), SKIN, turned=forward)
    u0, v0, u1, v1 = ARM_PATCH
    for i in range(first, len(uv)):
        around, along = uv[i][..., 0], arm_chart(uv[i][..., 1].astype(np.float64))
        uv[i] = np.stack([u0 + (u1 - u0) * along, v0 + (v1 - v0) * around], axis=-1).astype(np.float32)
    for steps, kind in ((_SLEEVE_STEPS, CLOTH), (_BAND_STEPS, BAND)):
        rows = [np.arange(start + r * ring, start + (r + 1) * ring, dtype=np.int32) for r in range(len(steps))]
        start += ring * len(steps)
        tube(rows, steps, kind, turned=forward)
    for kind in (THING, FOREGROUND):
        grid = start + np.arange(_THING_ROWS * _THING_COLUMNS, dtype=np.int32).reshape(_THING_ROWS, _THING_COLUMNS)
        start += grid.size
        tube(list(grid), np.linspace(0.0, 1.0, _THING_ROWS), kind, turned=False)
    own, kinds, chart = np.concatenate(faces).astype(np.int32), np.concatenate(material), np.concatenate(uv)
    smooth = kinds < THING
    sides = np.stack([own[smooth], np.roll(own[smooth], -1, axis=1)], axis=-1)
    edges, number = np.unique(np.sort(sides.reshape(-1, 2), axis=1), axis=0, return_inverse=True)
    middles = (start + number.reshape(-1, 3)).astype(np.int32)
    corners, chart_corners = own[smooth], chart[smooth]
    chart_middles = 0.5 * (chart_corners + np.roll(chart_corners, -1, axis=1))

    def four(at_corners: np.ndarray, at_middles: np.ndarray) -> np.ndarray:
        """Each triangle cut into the one in its middle and the three at its corners."""
        at_ends = [np.stack([at_corners[:, k], at_middles[:, k], at_middles[:, k - 1]], axis=1) for k in range(3)]
        return np.stack([at_middles, *at_ends], axis=1).reshape(-1, *at_corners.shape[1:])

    smooth_uv = np.concatenate([four(chart_corners, chart_middles), chart[~smooth]])
    return {
        "faces": own,
        "is_hand": (np.arange(len(own)) < len(hand_faces)).astype(np.int32),
        "edges": edges.astype(np.int32),
        "smooth_faces": np.concatenate([four(corners, middles), own[~smooth]]),
        "material": np.concatenate([np.repeat(kinds[smooth], 4), kinds[~smooth]]).astype(np.int32),
        "uv": np.ascontiguousarray(smooth_uv.transpose(2, 1, 0).reshape(6, -1)),
        "wrist_loop": loop,
    }


def scene_topology() -> SceneTopology:
    """Faces, materials and chart coordinates of every scene with the embedded hand."""
    return SceneTopology(**{name: jnp.asarray(array) for name, array in _topology_arrays().items()})


def smooth_surface(
    vertices: Float[Array, "vertices 3"], topology: SceneTopology
) -> tuple[Float[Array, "smooth_vertices 3"], Float[Array, "smooth_vertices 3"]]:
    """Vertices and unit normals of the smooth mesh: the given ones, then those in the middle of edges.

    The new vertices lie on a curved surface through the old ones (PN triangles: Vlachos et al., I3D 2001), so that
    outlines are round where the mesh has corners.
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


@pytree
class Placement:
    """A hand before a camera."""

    vertices: Float[Array, "vertices 3"]
    """Hand vertices, metres, camera frame."""
    joints: Float[Array, "21 3"]
    """Keypoints, metres, camera frame."""
    keypoints_2d: Float[Array, "21 2"]
    """Keypoints in the crop's pixels."""
    camera: Camera
    """Pinhole camera of the crop."""
    root: Float[Array, "3"]
    """Position of the middle MCP."""


def place_hand(
    hand: HandModel,
    pose: Float[Array, "16 3"],
    betas: Float[Array, "betas"],
    key: PRNGKeyArray,
    size: int,
    config: SceneConfig,
) -> Placement:
    """Puts a hand somewhere in front of a camera and crops the picture around it as a detector would.

    The crop is a square of the picture whose optical axis passes anywhere near, so the principal point is rarely its
    middle; pixels may be up to 3 % from square.
    """
    dtype = hand.dtype
    draws = Draws(key, dtype)
    posed = hand.shape(betas).pose(pose)
    mesh = posed.skin()
    root = mesh.keypoints[9]
    low, high = (math.log(d) for d in config.distance)
    distance = jnp.exp(draws.between(low, high))
    # Where in the frame: tangents of the angle off the optical axis, as far as common lenses see.
    aside = draws.between(-0.35, 0.35, 2)
    position = distance * jnp.concatenate([aside, jnp.ones((1,), dtype)])
    nearest = jnp.min(mesh.vertices[:, 2] - root[2])
    position = position * jnp.maximum(1.0, (0.10 - nearest) / position[2])  # no finger in the lens
    joints = mesh.keypoints - root[None] + position[None]
    vertices = mesh.vertices - root[None] + position[None]

    stretch = 1.0 + draws.between(-0.03, 0.03)
    zero = jnp.zeros((), dtype)
    linear = jnp.stack([jnp.stack([stretch, zero]), jnp.stack([zero, 1.0 / stretch])])
    unit = Camera(linear=linear, center=jnp.zeros((2,), dtype), perspectivity=jnp.ones((), dtype))
    pixels = project(unit, joints)
    least, most = jnp.min(pixels, axis=0), jnp.max(pixels, axis=0)
    side = jnp.max(most - least) / draws.between(*config.fill)
    room = 0.5 * (side - (most - least))
    center = 0.5 * (least + most) + config.offset * room * draws.between(-1.0, 1.0, 2)
    camera = transform_camera(unit, crop_affine(center, side, size))
    return Placement(
        vertices=vertices, joints=joints, keypoints_2d=project(camera, joints), camera=camera, root=position
    )


def company(
    placement: Placement,
    pose: Float[Array, "16 3"],
    topology: SceneTopology,
    key: PRNGKeyArray,
    config: SceneConfig,
) -> Float[Array, "scene_vertices 3"]:
    """Vertices of the whole scene: the hand, then arm, sleeve, band, held thing and foreground thing."""
    dtype = placement.vertices.dtype
    arm_key, thing_key = jax.random.split(key)
    arm = _arm(placement, pose, topology, Draws(arm_key, dtype), config)
    things = _things(placement, pose, Draws(thing_key, dtype), config)
    return jnp.concatenate([placement.vertices, arm, things])


def _arm(
    placement: Placement, pose: Float[Array, "16 3"], topology: SceneTopology, draws: Draws, config: SceneConfig
) -> Float[Array, "arm 3"]:
    """Rings of forearm, elbow and upper arm continuing the wrist's edge, then those of the sleeve and of the band."""
    dtype = placement.vertices.dtype
    loop = placement.vertices[topology.wrist_loop]
    middle = jnp.mean(loop, axis=0)
    turn = matrix_from_axis_angle(pose[0])
    back, side, flat = (turn[:, 0], turn[:, 2], turn[:, 1])  # away from the fingers, to the thumb, to the back
    # The wrist bends mostly toward palm or back, a little sideways; the elbow in any plane.
    flexion = jnp.clip(math.radians(22.0) * draws.normal(), -math.radians(55.0), math.radians(55.0))
    deviation = jnp.clip(math.radians(9.0) * draws.normal(), -math.radians(25.0), math.radians(25.0))
    bend = flexion * side + deviation * flat
    elbow_axis = draws.direction()
    elbow_axis = elbow_axis - jnp.sum(elbow_axis * back) * back
    elbow_axis = elbow_axis / jnp.sqrt(jnp.sum(elbow_axis * elbow_axis) + 1e-9)
    elbow = jnp.where(draws.uniform() < 0.7, draws.between(0.2, 1.9), 0.1) * elbow_axis
    widen = draws.between(0.9, 1.15)
    # Of the two ways to bend the elbow the one away from the camera, lest the arm hides the hand.
    direction = matrix_from_axis_angle(bend) @ back
    either = matrix_from_axis_angle(jnp.stack([elbow, -elbow])) @ direction
    away = jnp.where(either[0, 2] >= either[1, 2], 1.0, -1.0)
    elbow, beyond = away * elbow, jnp.where(away > 0, either[0], either[1])

    steps = [jnp.asarray(x, dtype) for x in (_ARM_ARC, _SLEEVE_STEPS, _BAND_STEPS)]
    sleeve_flare, band_flare = (jnp.asarray(x, dtype) for x in (_SLEEVE_FLARE, _BAND_FLARE))
    start = jnp.where(draws.uniform() < 0.6, draws.between(0.005, 0.06), draws.between(0.06, 0.30))
    loose = draws.between(0.0025, 0.009)
    folds = jnp.clip(1.0 + 0.25 * draws.normal(len(_SLEEVE_STEPS)), 0.5, 1.6)
    place, width = draws.between(0.002, 0.04), draws.between(0.004, 0.028)
    # Arc lengths from the wrist and how much wider than the arm: bare rings, then the sleeve's, then the band's.
    arc = jnp.concatenate([steps[0], start + steps[1], place + width * steps[2]])
    flare = jnp.concatenate(
        [jnp.zeros_like(steps[0]), loose * sleeve_flare * folds + 0.0008, draws.between(0.001, 0.004) * band_flare]
    )

    at_wrist = jnp.clip((arc + 0.012) / 0.045, 0.0, 1.0)
    at_elbow = jnp.clip((arc - 0.235) / 0.06, 0.0, 1.0)
    first = matrix_from_axis_angle(at_wrist[:, None] * bend[None])
    second = matrix_from_axis_angle(at_elbow[:, None] * elbow[None])
    # Arc lengths of the three straight parts; what lies in a bend counts half to either side.
    lower = jnp.clip(arc - 0.012, 0.0, 0.253)
    upper = jnp.maximum(arc - 0.265, 0.0)
    parts = jnp.stack([jnp.clip(arc, -0.1, 0.012), lower, upper], axis=-1)
    centers = middle[None] + parts @ jnp.stack([back, direction, beyond])

    # From the flat wrist to a round forearm, thickest before the elbow; the wrist's edge becomes a plane ring.
    growth = _interpolate(arc, (0.0, 0.05, 0.12, 0.20, 0.27, 0.5), (0.0, 0.02, 0.22, 0.42, 0.35, 0.6))
    rounder = _interpolate(arc, (0.0, 0.06, 0.15, 0.3), (0.0, 0.05, 0.18, 0.2))
    offsets = loop - middle[None]
    sagging, thickness = offsets @ back, offsets @ flat
    level = jnp.clip(arc / 0.02, 0.0, 1.0)
    rings = offsets[None] - (level[:, None] * sagging[None])[..., None] * back[None, None]
    rings = rings + (rounder[:, None] * thickness[None])[..., None] * flat[None, None]
    length = jnp.sqrt(jnp.sum(rings * rings, axis=-1, keepdims=True) + 1e-12)
    around = jnp.arange(loop.shape[0], dtype=dtype)[None] * (2.0 * math.pi / loop.shape[0])
    phase = (60.0 * draws.between(0.5, 1.5) * arc)[:, None]
    ripple = 0.25 * loose * draws.normal(2)
    wave = ripple[0] * jnp.sin(2.0 * around + phase) + ripple[1] * jnp.sin(3.0 * around - phase)
    is_sleeve = np.repeat(
        np.asarray([0.0, 1.0, 0.0], np.float32), [len(_ARM_ARC), len(_SLEEVE_STEPS), len(_BAND_STEPS)]
    )
    wave = wave * jnp.asarray(is_sleeve, dtype)[:, None]
    wider = 1.0 + widen * growth[:, None, None] + (flare[:, None] + wave)[..., None] / length
    rings = centers[:, None] + jnp.einsum("rab,rbc,rvc->rva", second, first, rings * wider)

    present = jnp.stack([jnp.ones((), dtype), draws.chance(config.sleeve), draws.chance(config.band)])
    present = jnp.repeat(present, np.asarray([len(x) for x in steps]), total_repeat_length=len(arc))
    return jnp.where(present[:, None, None] > 0, rings, middle[None, None]).reshape(-1, 3)


def _interpolate(x: Float[Array, "n"], knots: tuple[float, ...], values: tuple[float, ...]) -> Float[Array, "n"]:
    """Piecewise linear, constant beyond the last knot."""
    total = jnp.full_like(x, values[0])
    for k in range(len(knots) - 1):
        step = jnp.clip((x - knots[k]) / (knots[k + 1] - knots[k]), 0.0, 1.0)
        total = total + (values[k + 1] - values[k]) * step
    return total


def _superquadrics(radii: Float[Array, "n 3"], square: Float[Array, "n 2"]) -> Float[Array, "n points 3"]:
    """Anything from ellipsoids (1, 1) to cylinders (about 0.2, 1) and boxes (about 0.2, 0.2), around the z axis."""
    dtype = radii.dtype
    latitude = np.linspace(-0.5 * np.pi, 0.5 * np.pi, _THING_ROWS)
    longitude = np.arange(_THING_COLUMNS) * (2.0 * np.pi / _THING_COLUMNS)

    def power(x: np.ndarray, exponent: Float[Array, "n"]) -> Float[Array, "n k"]:
        size = jnp.asarray(np.log(np.maximum(np.abs(x), 1e-7)).astype(np.float32), dtype)
        return jnp.asarray(np.sign(x).astype(np.float32), dtype)[None] * jnp.exp(exponent[:, None] * size[None])

    equator = power(np.maximum(np.cos(latitude), 0.0), square[:, 0])[:, :, None]
    x = equator * power(np.cos(longitude), square[:, 1])[:, None, :]
    y = equator * power(np.sin(longitude), square[:, 1])[:, None, :]
    z = jnp.broadcast_to(power(np.sin(latitude), square[:, 0])[:, :, None], x.shape)
    return (jnp.stack([x, y, z], axis=-1) * radii[:, None, None]).reshape(radii.shape[0], -1, 3)


def _things(
    placement: Placement, pose: Float[Array, "16 3"], draws: Draws, config: SceneConfig
) -> Float[Array, "things 3"]:
    """A thing in the hand, lying across the palm under the fingers, and one between the hand and the camera."""
    dtype = placement.vertices.dtype
    joints = placement.joints
    turn = matrix_from_axis_angle(pose[0])
    palm, across, down = -turn[:, 1], turn[:, 2], turn[:, 0]
    kinds = jnp.asarray([[1.0, 1.0], [0.25, 1.0], [0.25, 0.25], [0.5, 0.9]], dtype)

    bases = 0.5 * (joints[5] + joints[17])
    tips = 0.25 * (joints[8] + joints[12] + joints[16] + joints[20])
    # Bent fingers close around the thing, straight ones leave it in front of the palm.
    between = 0.5 * (joints[6] + joints[18])
    axis = across + 0.25 * draws.normal() * down + 0.15 * draws.normal() * palm
    axis = axis / jnp.sqrt(jnp.sum(axis * axis))
    thickness = draws.between(0.006, 0.026)
    center = (
        0.45 * bases + 0.3 * tips + 0.25 * between + (0.006 + 0.8 * thickness) * palm + 0.006 * draws.normal() * down
    )
    second = down - jnp.sum(down * axis) * axis
    second = second / jnp.sqrt(jnp.sum(second * second))
    frame = jnp.stack([second, jnp.cross(axis, second), axis])
    long = thickness * jnp.exp(draws.between(0.0, 2.2))
    held_radii = jnp.stack([thickness, thickness * draws.between(0.5, 1.0), jnp.minimum(long, 0.14)])
    center = center + draws.between(-0.5, 0.5) * jnp.minimum(long, 0.06) * axis

    # In front: at one side of the hand's outline, so that part of the hand is covered.
    spot = joints[(draws.uniform() * 21.0).astype(jnp.int32)]
    ahead = draws.between(0.5, 0.9) * spot
    turned = matrix_from_axis_angle(2.0 * draws.normal(3))
    size = draws.between(0.010, 0.030) * ahead[2] / jnp.maximum(spot[2], 1e-3)
    front_radii = size * jnp.stack([draws.between(0.5, 1.2), draws.between(0.4, 1.0), draws.between(0.8, 3.0)])
    ahead = ahead + 0.03 * draws.normal(3)
    square = kinds[(4.0 * draws.uniform(2)).astype(jnp.int32)]
    shapes = jnp.einsum(
        "npa,nab->npb", _superquadrics(jnp.stack([held_radii, front_radii]), square), jnp.stack([frame, turned])
    )
    present = jnp.stack([draws.chance(config.held), draws.chance(config.foreground)])
    shapes = present[:, None, None] * shapes + jnp.stack([center, ahead])[:, None]
    return shapes.reshape(-1, 3)

"""Geometry of a scene: a hand in front of a camera, its arm, a sleeve, objects in it and in front, a second hand.

The scene is one mesh with one list of faces, the same for every sample. Parts that a sample does not have are collapsed
to a point, which the rasteriser skips.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray

from handtailor_jax.data.draws import Draws
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import crop_affine, project, transform_camera
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import BONES, KEYPOINTS, ROOT, WRIST
from handtailor_jax.synthetic.surface import ARM_ARC, BAND_STEPS, OBJECT_GRID, SLEEVE_STEPS, SceneTopology
from handtailor_jax.types import Camera, pytree

_RING_COUNTS = (len(ARM_ARC), len(SLEEVE_STEPS), len(BAND_STEPS))
_SLEEVE_FLARE, _BAND_FLARE = (0.2, 0.85) + 10 * (1.0,), (0.0, 1.0, 1.0, 0.0)
_OBJECT_SHAPES = ((1.0, 1.0), (0.25, 1.0), (0.25, 0.25), (0.5, 0.9))  # exponents of superquadrics
# Keypoints lie inside the hand: metres of flesh in front of a visible keypoint, for a reference bone of 95 mm.
_FLESH = np.asarray([0.028] + [0.030, 0.021, 0.016, 0.008] + [0.024, 0.015, 0.012, 0.007] * 4, np.float32)
_OTHER_SIDE, _TOUCHING = 0.85, 0.019  # share of the other side; metres between bones that touch


@pytree
class Placement:
    """A hand in front of the perspective camera of a crop: metres in the camera frame, pixels (u, v) of the crop."""

    vertices: Float[Array, "vertices 3"]
    joints: Float[Array, "21 3"]
    keypoints_2d: Float[Array, "21 2"]
    camera: Camera


def place_hand(hand: HandModel, pose: Float[Array, "16 3"], betas: Array, key: PRNGKeyArray, size: int) -> Placement:
    """Place a hand 0.28 to 1.4 m in front of a camera and crop the image around it, as a detector does.

    The hand fills 40 to 95 % of the crop, a square of a larger image, so the principal point is rarely its middle. The
    focal lengths fx and fy differ by up to 6 %.
    """
    dtype = hand.dtype
    draws = Draws(key, dtype)
    mesh = hand.shape(betas).pose(pose).skin()
    root = mesh.keypoints[ROOT]
    distance = jnp.exp(draws.between(math.log(0.28), math.log(1.4)))
    # Tangents of the angle off the optical axis, up to the field of view of common lenses.
    aside = draws.between(-0.35, 0.35, 2)
    position = distance * jnp.concatenate([aside, jnp.ones((1,), dtype)])
    nearest = jnp.min(mesh.vertices[:, 2] - root[2])
    position = position * jnp.maximum(1.0, (0.10 - nearest) / position[2])  # every vertex at least 10 cm away
    joints = mesh.keypoints - root[None] + position[None]
    vertices = mesh.vertices - root[None] + position[None]

    stretch = 1.0 + draws.between(-0.03, 0.03)
    zero = jnp.zeros((), dtype)
    linear = jnp.stack([jnp.stack([stretch, zero]), jnp.stack([zero, 1.0 / stretch])])
    unit = Camera(linear=linear, center=jnp.zeros((2,), dtype), perspectivity=jnp.ones((), dtype))
    pixels = project(unit, joints)
    low, high = jnp.min(pixels, axis=0), jnp.max(pixels, axis=0)
    side = hand_size(pixels) / draws.between(0.40, 0.95)
    room = 0.5 * (side - (high - low))
    center = 0.5 * (low + high) + 0.5 * room * draws.between(-1.0, 1.0, 2)
    camera = transform_camera(unit, crop_affine(center, side, size))
    return Placement(vertices=vertices, joints=joints, keypoints_2d=project(camera, joints), camera=camera)


def second_hand(
    hand: HandModel,
    first: Placement,
    pose: Float[Array, "16 3"],
    betas: Array,
    topology: SceneTopology,
    keys: Key[Array, "2"],
    share: float,
) -> Float[Array, "second_vertices 3"]:
    """Return the vertices of another hand near the first; in scenes without one all are a point of the first hand."""
    placed = place_second_hand(hand, first, pose, betas, topology, keys[0])
    return jnp.where(jax.random.uniform(keys[1]) < share, placed, first.joints[WRIST][None])


def place_second_hand(
    hand: HandModel,
    first: Placement,
    pose: Float[Array, "16 3"],
    betas: Array,
    topology: SceneTopology,
    key: PRNGKeyArray,
) -> Float[Array, "second_vertices 3"]:
    """Place another hand of the same size, mostly of the other side, so that it touches the first hand or nearly does.

    It comes from a random direction, more often from the side than from the front or from behind, and stops where its
    flesh meets that of the first hand. Vertices of hand, arm, sleeve and band, metres, camera frame.
    """
    dtype = hand.dtype
    arm_key, own = jax.random.split(key)
    draws = Draws(own, dtype)
    mesh = hand.shape(betas).pose(pose).skin()
    arm = _arm(mesh.vertices[topology.wrist_loop], matrix_from_axis_angle(pose[0]), Draws(arm_key, dtype))
    mirror = jnp.stack([jnp.where(draws.uniform() < _OTHER_SIDE, -1.0, 1.0), *jnp.ones((2,), dtype)])
    vertices = jnp.concatenate([mesh.vertices, arm]) * mirror[None]
    joints = mesh.keypoints * mirror[None]

    direction = draws.normal(3) * jnp.asarray([1.0, 1.0, 0.6], dtype)
    direction = direction / jnp.sqrt(jnp.sum(direction * direction) + 1e-12)
    start = jnp.mean(first.joints, axis=0) - jnp.mean(joints, axis=0)
    steps = jnp.linspace(0.0, 0.36, 37, dtype=dtype)
    moved = _filled(joints + start[None])[None] + (steps[:, None] * direction[None])[:, None]
    apart = moved[:, :, None] - _filled(first.joints)[None, None]
    nearest = jnp.sqrt(jnp.min(jnp.sum(apart * apart, axis=-1), axis=(1, 2)))
    shift = steps[jnp.argmax(nearest > _TOUCHING)] + 0.08 * jnp.maximum(draws.uniform() - 0.5, 0.0)
    return vertices + (start + shift * direction)[None]


def _filled(joints: Float[Array, "21 3"]) -> Float[Array, "41 3"]:
    """Return the keypoints and the middles of the bones."""
    bones = np.asarray(BONES, np.int32)
    return jnp.concatenate([joints, 0.5 * (joints[bones[:, 0]] + joints[bones[:, 1]])])


def visible_keypoints(placed: Placement, depth: Float[Array, "size size"]) -> Bool[Array, "21"]:
    """Return whether each keypoint is inside the image with nothing but its flesh in front, given the depth map."""
    size, dtype = depth.shape[0], depth.dtype
    pixel = jnp.round(placed.keypoints_2d).astype(jnp.int32)
    inside = jnp.all((pixel >= 0) & (pixel < size), axis=-1)
    column, row = (jnp.clip(pixel[:, i], 0, size - 1) for i in (0, 1))
    bone = jnp.sqrt(jnp.sum((placed.joints[ROOT] - placed.joints[WRIST]) ** 2))
    return inside & (depth[row, column] > placed.joints[:, 2] - bone / 0.095 * jnp.asarray(_FLESH, dtype))


def scene_vertices(
    placement: Placement, pose: Float[Array, "16 3"], topology: SceneTopology, key: PRNGKeyArray
) -> Float[Array, "scene_vertices 3"]:
    """Draw arm, sleeve, band and objects around a hand, and return the vertices of the whole scene."""
    dtype = placement.vertices.dtype
    arm_key, object_key = jax.random.split(key)
    turn = matrix_from_axis_angle(pose[0])
    arm = _arm(placement.vertices[topology.wrist_loop], turn, Draws(arm_key, dtype))
    objects = _objects(placement.joints, turn, Draws(object_key, dtype))
    return jnp.concatenate([placement.vertices, arm, objects])


def _arm(loop: Float[Array, "loop 3"], turn: Float[Array, "3 3"], draws: Draws) -> Float[Array, "arm 3"]:
    """Return the rings of the arm, which continue the wrist's edge, then the rings of sleeve and band."""
    dtype = loop.dtype
    middle = jnp.mean(loop, axis=0)
    back, side, flat = (turn[:, 0], turn[:, 2], turn[:, 1])  # away from the fingers, to the thumb, to the back
    bend, elbow, direction, beyond = _sample_bends(back, side, flat, draws)
    widen = draws.between(0.9, 1.15)
    arc, flare, loose = _sample_rings(draws, dtype)

    first = matrix_from_axis_angle(jnp.clip((arc + 0.012) / 0.045, 0.0, 1.0)[:, None] * bend[None])
    second = matrix_from_axis_angle(jnp.clip((arc - 0.235) / 0.06, 0.0, 1.0)[:, None] * elbow[None])
    # Lengths of the three straight parts; half of a bend belongs to either side.
    lower = jnp.clip(arc - 0.012, 0.0, 0.253)
    parts = jnp.stack([jnp.clip(arc, -0.1, 0.012), lower, jnp.maximum(arc - 0.265, 0.0)], axis=-1)
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
    wave = wave * jnp.asarray(np.repeat([0.0, 1.0, 0.0], _RING_COUNTS), dtype)[:, None]  # the sleeve alone
    wider = 1.0 + widen * growth[:, None, None] + (flare[:, None] + wave)[..., None] / length
    rings = centers[:, None] + jnp.einsum("rab,rbc,rvc->rva", second, first, rings * wider)

    present = jnp.stack([jnp.ones((), dtype), draws.chance(0.6), draws.chance(0.15)])
    present = jnp.repeat(present, np.asarray(_RING_COUNTS), total_repeat_length=len(arc))
    return jnp.where(present[:, None, None] > 0, rings, middle[None, None]).reshape(-1, 3)


def _sample_bends(back: Array, side: Array, flat: Array, draws: Draws) -> tuple[Array, Array, Array, Array]:
    """Draw the rotations of wrist and elbow (axis-angle), and return the directions of forearm and upper arm."""
    # The wrist bends mostly toward palm or back, a little sideways; the elbow in any plane.
    flexion = jnp.clip(math.radians(22.0) * draws.normal(), -math.radians(55.0), math.radians(55.0))
    deviation = jnp.clip(math.radians(9.0) * draws.normal(), -math.radians(25.0), math.radians(25.0))
    bend = flexion * side + deviation * flat
    axis = draws.direction()
    axis = axis - jnp.sum(axis * back) * back
    axis = axis / jnp.sqrt(jnp.sum(axis * axis) + 1e-9)
    elbow = jnp.where(draws.uniform() < 0.7, draws.between(0.2, 1.9), 0.1) * axis
    # Of the two ways to bend the elbow, the one away from the camera keeps the arm from hiding the hand.
    direction = matrix_from_axis_angle(bend) @ back
    either = matrix_from_axis_angle(jnp.stack([elbow, -elbow])) @ direction
    away = jnp.where(either[0, 2] >= either[1, 2], 1.0, -1.0)
    return bend, away * elbow, direction, jnp.where(away > 0, either[0], either[1])


def _sample_rings(draws: Draws, dtype: jnp.dtype) -> tuple[Float[Array, "rings"], Float[Array, "rings"], Array]:
    """Draw each ring's distance from the wrist and its gap to the arm, and the looseness of the sleeve, metres."""
    arm, sleeve, band, sleeve_flare, band_flare = (
        jnp.asarray(np.asarray(x, np.float32), dtype)
        for x in (ARM_ARC, SLEEVE_STEPS, BAND_STEPS, _SLEEVE_FLARE, _BAND_FLARE)
    )
    start = jnp.where(draws.uniform() < 0.6, draws.between(0.005, 0.06), draws.between(0.06, 0.30))
    loose = draws.between(0.0025, 0.009)
    folds = jnp.clip(1.0 + 0.25 * draws.normal(len(SLEEVE_STEPS)), 0.5, 1.6)
    place, width = draws.between(0.002, 0.04), draws.between(0.004, 0.028)
    arc = jnp.concatenate([arm, start + sleeve, place + width * band])
    flares = [jnp.zeros_like(arm), loose * sleeve_flare * folds + 0.0008, draws.between(0.001, 0.004) * band_flare]
    return arc, jnp.concatenate(flares), loose


def _interpolate(x: Float[Array, "n"], knots: tuple[float, ...], values: tuple[float, ...]) -> Float[Array, "n"]:
    """Interpolate linearly between knots; constant beyond the last knot."""
    total = jnp.full_like(x, values[0])
    for k in range(len(knots) - 1):
        step = jnp.clip((x - knots[k]) / (knots[k + 1] - knots[k]), 0.0, 1.0)
        total = total + (values[k + 1] - values[k]) * step
    return total


def _superquadrics(radii: Float[Array, "n 3"], exponents: Float[Array, "n 2"]) -> Float[Array, "n points 3"]:
    """Return points on ellipsoids (exponents 1, 1), cylinders (about 0.2, 1) and boxes (about 0.2, 0.2) about z."""
    dtype = radii.dtype
    latitude = np.linspace(-0.5 * np.pi, 0.5 * np.pi, OBJECT_GRID[0])
    longitude = np.arange(OBJECT_GRID[1]) * (2.0 * np.pi / OBJECT_GRID[1])

    def power(x: np.ndarray, exponent: Float[Array, "n"]) -> Float[Array, "n k"]:
        size = jnp.asarray(np.log(np.maximum(np.abs(x), 1e-7)).astype(np.float32), dtype)
        return jnp.asarray(np.sign(x).astype(np.float32), dtype)[None] * jnp.exp(exponent[:, None] * size[None])

    equator = power(np.maximum(np.cos(latitude), 0.0), exponents[:, 0])[:, :, None]
    x = equator * power(np.cos(longitude), exponents[:, 1])[:, None, :]
    y = equator * power(np.sin(longitude), exponents[:, 1])[:, None, :]
    z = jnp.broadcast_to(power(np.sin(latitude), exponents[:, 0])[:, :, None], x.shape)
    return (jnp.stack([x, y, z], axis=-1) * radii[:, None, None]).reshape(radii.shape[0], -1, 3)


def _objects(joints: Float[Array, "21 3"], turn: Float[Array, "3 3"], draws: Draws) -> Float[Array, "objects 3"]:
    """Draw an object in the hand, across the palm and under the fingers, and one between the hand and the camera."""
    palm, across, down = -turn[:, 1], turn[:, 2], turn[:, 0]

    def at(name: str) -> Float[Array, "3"]:
        return joints[KEYPOINTS.index(name)]

    bases = 0.5 * (at("index_mcp") + at("little_mcp"))
    tips = 0.25 * (at("index_tip") + at("middle_tip") + at("ring_tip") + at("little_tip"))
    # Bent fingers close around the object, straight fingers leave it in front of the palm.
    between = 0.5 * (at("index_pip") + at("little_pip"))
    axis = across + 0.25 * draws.normal() * down + 0.15 * draws.normal() * palm
    axis = axis / jnp.sqrt(jnp.sum(axis * axis))
    thickness = draws.between(0.006, 0.026)
    center = 0.45 * bases + 0.3 * tips + 0.25 * between
    center = center + (0.006 + 0.8 * thickness) * palm + 0.006 * draws.normal() * down
    second = down - jnp.sum(down * axis) * axis
    second = second / jnp.sqrt(jnp.sum(second * second))
    frame = jnp.stack([second, jnp.cross(axis, second), axis])
    long = thickness * jnp.exp(draws.between(0.0, 2.2))
    held_radii = jnp.stack([thickness, thickness * draws.between(0.5, 1.0), jnp.minimum(long, 0.14)])
    center = center + draws.between(-0.5, 0.5) * jnp.minimum(long, 0.06) * axis

    # The foreground object is near a random keypoint, so that it covers a part of the hand.
    spot = joints[(draws.uniform() * 21.0).astype(jnp.int32)]
    ahead = draws.between(0.5, 0.9) * spot
    turned = matrix_from_axis_angle(2.0 * draws.normal(3))
    size = draws.between(0.010, 0.030) * ahead[2] / jnp.maximum(spot[2], 1e-3)
    front_radii = size * jnp.stack([draws.between(0.5, 1.2), draws.between(0.4, 1.0), draws.between(0.8, 3.0)])
    ahead = ahead + 0.03 * draws.normal(3)
    exponents = jnp.asarray(_OBJECT_SHAPES, joints.dtype)[(4.0 * draws.uniform(2)).astype(jnp.int32)]
    points = _superquadrics(jnp.stack([held_radii, front_radii]), exponents)
    points = jnp.einsum("npa,nab->npb", points, jnp.stack([frame, turned]))
    present = jnp.stack([draws.chance(0.14), draws.chance(0.10)])
    return (present[:, None, None] * points + jnp.stack([center, ahead])[:, None]).reshape(-1, 3)

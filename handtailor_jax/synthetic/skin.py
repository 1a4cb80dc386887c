"""Texture chart of the skin: creases, nails, knuckles, veins and mottling, drawn by rule without any photograph.

Marks are placed at points of the rest pose (metres; fingers -x, palm -y, thumb +z) and looked up through the texture
coordinates of the embedded hand.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from handtailor_jax.geometry.normals import vertex_normals
from handtailor_jax.mano.loading import embedded_arrays
from handtailor_jax.render.rasterise import rasterise
from handtailor_jax.skeleton import FINGERS, JOINT_PARENTS, MANO_JOINTS
from handtailor_jax.synthetic.marks import Real, line, mottling, noise, palm_lines, smooth_step, veins
from handtailor_jax.synthetic.surface import ARM_EXPONENT, ARM_LENGTH, ARM_PATCH
from handtailor_jax.types import Camera

_NAIL_REGION = 2
_INNER_ARM = 0.4  # how palmar the inner side of wrist and arm is, 0 to 1


@dataclasses.dataclass
class Marks:
    """Channels of the chart at a set of points."""

    palm: Any = 0.0  # palmar skin, 0 to 1
    nail: Any = 0.0  # nail plate, 0 to 1
    cuticle: Any = 0.0  # fold of skin around the nail, 0 to 1
    crease: Any = 0.0  # permanently dark lines, 0 to 1
    relief: Any = 0.0  # height of wrinkles, tendons and pores, millimetres
    blood: Any = 0.0  # redder (positive) or paler skin than average
    vein: Any = 0.0  # veins under the back
    knuckle: Any = 0.0  # darker skin on the back of the joints, 0 to 1
    fine: Any = 0.0  # fine mottling, mean 0 and variance 1
    coarse: Any = 0.0  # coarse mottling, mean 0 and variance 1


CHANNELS = tuple(field.name for field in dataclasses.fields(Marks))


@functools.cache
def skin_chart(size: int) -> npt.NDArray[np.float32]:
    """Return the chart of the embedded hand, (channels, size, size); row 0 is v = 0."""
    arrays = embedded_arrays()
    corners = arrays["uv"].astype(np.float64).reshape(-1, 2) * size - 0.5
    triangles = jnp.asarray(np.concatenate([corners, np.ones((len(corners), 1))], axis=1), jnp.float32)
    faces = jnp.arange(len(corners), dtype=jnp.int32).reshape(-1, 3)
    texels = rasterise(triangles, faces, Camera.weak_perspective(), size, size)
    painted = np.asarray(texels.mask)
    hand = _hand_marks(np.asarray(texels.face_index)[painted], np.asarray(texels.barycentrics, np.float64)[painted])

    u0, v0, u1, v1 = (round(x * size) for x in ARM_PATCH)
    columns, rows = (x.ravel() for x in np.meshgrid(np.arange(u0, u1), np.arange(v0, v1)))
    along = ((columns + 0.5) / size - ARM_PATCH[0]) / (ARM_PATCH[2] - ARM_PATCH[0])
    around = ((rows + 0.5) / size - ARM_PATCH[1]) / (ARM_PATCH[3] - ARM_PATCH[1])
    loop = arrays["template"].astype(np.float64)[arrays["wrist_loop"]]
    arm = _arm_marks(loop, ARM_LENGTH * along**ARM_EXPONENT, around)
    filled = painted.copy()
    filled[rows, columns] = True
    chart = np.zeros((len(CHANNELS), size, size), np.float32)
    for i, channel in enumerate(CHANNELS):
        plane = np.zeros((size, size), np.float64)
        plane[painted], plane[rows, columns] = getattr(hand, channel), getattr(arm, channel)
        chart[i] = _bleed(plane, filled)
    return chart


def _bleed(plane: Real, painted: npt.NDArray[np.bool_], rings: int = 6) -> Real:
    """Extend values beyond the borders of the chart, because sampling near a seam reads texels on its other side."""
    plane, known = plane * painted, painted.astype(np.float64)
    for _ in range(rings):
        total, count = np.zeros_like(plane), np.zeros_like(plane)
        for axis, shift in itertools.product((0, 1), (-1, 1)):
            total += np.roll(plane, shift, axis) * np.roll(known, shift, axis)
            count += np.roll(known, shift, axis)
        new = (known == 0) & (count > 0)
        plane = np.where(new, total / np.maximum(count, 1.0), plane)
        known = np.where(new, 1.0, known)
    return plane


@dataclasses.dataclass(frozen=True)
class _Skin:
    """The hand in its rest pose, and the points at which marks are computed."""

    template: Real
    template_normals: Real
    joints: Real
    tips: Real
    points: Real
    normals: Real
    skinning: Real
    palmar: Real  # cosine between normal and palmar direction: of the own finger, or of the hand on the metacarpus
    wobble: Real  # noise that makes lines irregular, metres
    under: Real  # the palmar side, 0 to 1


def _hand_marks(face: npt.NDArray[np.integer], weights: Real) -> Marks:
    """Compute the marks of the hand at points on its faces, given by barycentric weights."""
    skin = _skin_at(face, weights)
    points, joints, palmar, skinning = skin.points, skin.joints, skin.palmar, skin.skinning
    marks = Marks(*(np.zeros(len(points)) for _ in CHANNELS))
    for finger in range(len(FINGERS)):
        _finger(marks, skin, finger)
        plate, fold = _nail(skin, finger)
        marks.nail, marks.cuticle = np.maximum(marks.nail, plate), np.maximum(marks.cuticle, fold)

    lines, mounds = palm_lines(points, joints)
    on_palm = smooth_step(0.35, 0.75, skinning[:, 0] + skinning[:, MANO_JOINTS.index("thumb_cmc")]) * skin.under
    marks.crease += on_palm * lines
    marks.relief -= 0.4 * on_palm * lines
    marks.blood += on_palm * mounds + 0.3 * marks.knuckle
    back = 1.0 - smooth_step(-0.5, 0.0, palmar)
    vein, tendon = veins(points, joints)
    marks.vein = vein * back * smooth_step(0.25, 0.7, skinning[:, 0])
    marks.relief += 0.5 * marks.vein + 0.7 * back * smooth_step(0.4, 0.8, skinning[:, 0]) * tendon
    pores = noise(points, 0.0016, 3) * 0.03 + noise(points, 0.0035, 4) * 0.035
    marks.relief += pores * (1.0 - marks.nail)
    marks.relief += 0.25 * marks.nail - 0.3 * marks.cuticle
    marks.coarse, marks.fine = mottling(points)
    # Toward the arm the inner side becomes less palmar.
    palm = smooth_step(-0.30, 0.35, palmar + 0.06 * noise(points, 0.012, 2))
    wrist = skin.template[embedded_arrays()["wrist_loop"]][:, 0].mean()
    palm = palm * (_INNER_ARM + (1.0 - _INNER_ARM) * smooth_step(0.004, 0.03, wrist - points[:, 0]))
    marks.palm = palm * (1.0 - marks.nail)
    marks.crease = np.clip(marks.crease, 0.0, 1.0) * (1.0 - marks.nail)
    marks.knuckle = np.clip(marks.knuckle, 0.0, 1.0) * (1.0 - marks.nail)
    return marks


def _skin_at(face: npt.NDArray[np.integer], weights: Real) -> _Skin:
    arrays = embedded_arrays()
    template = arrays["template"].astype(np.float64)
    faces = jnp.asarray(arrays["faces"].astype(np.int32))
    vertex = np.asarray(vertex_normals(jnp.asarray(template, jnp.float32), faces, by_area=True), np.float64)

    def at_points(values: Real) -> Real:
        return np.einsum("nk,nkc->nc", weights, values[arrays["faces"][face]])

    points, normals, skinning = map(at_points, (template, vertex, arrays["skinning_weights"].astype(np.float64)))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    joints, tips = arrays["joint_regressor"].astype(np.float64) @ template, template[arrays["tip_vertices"]]
    dominant, palmar = np.argmax(skinning, axis=1), -normals[:, 1]
    for j in range(1, len(MANO_JOINTS)):
        tip = tips[FINGERS.index(MANO_JOINTS[j].split("_")[0])]
        bone = (joints[JOINT_PARENTS.index(j)] if j in JOINT_PARENTS else tip) - joints[j]
        toward_palm = np.cross(arrays["anatomy_basis"].astype(np.float64)[j - 1, 0], bone / np.linalg.norm(bone))
        palmar = np.where(dominant == j, normals @ toward_palm, palmar)
    wobble, under = 0.0004 * noise(points, 0.006, 1), smooth_step(-0.25, 0.45, palmar)
    return _Skin(template, vertex, joints, tips, points, normals, skinning, palmar, wobble, under)


def _finger(marks: Marks, skin: _Skin, finger: int) -> None:
    """Add creases, wrinkles, knuckles and the red of the pad to one finger."""
    name, points = FINGERS[finger], skin.points
    names = ("cmc", "mcp", "ip") if name == "thumb" else ("mcp", "pip", "dip")
    chain = [MANO_JOINTS.index(f"{name}_{j}") for j in names]
    places = np.concatenate([skin.joints[chain], skin.tips[finger : finger + 1]])
    belongs = smooth_step(0.3, 0.7, skin.skinning[:, chain].sum(axis=1))
    width = {"thumb": 1.15, "little": 0.85}.get(name, 1.0)
    dorsal, under = 1.0 - smooth_step(-0.55, 0.1, skin.palmar), skin.under
    for k in range(3):
        before, after = places[k] - (places[k - 1] if k else skin.joints[0]), places[k + 1] - places[k]
        axis = before / np.linalg.norm(before) + after / np.linalg.norm(after)
        axis /= np.linalg.norm(axis)
        along = (points - places[k]) @ axis
        radial = np.linalg.norm((points - places[k]) - along[:, None] * axis, axis=1)
        near = belongs * smooth_step(0.024, 0.016, radial)
        reach = (0.0085 if k < 2 else 0.0055) * width
        if k > 0:
            shifted = along + skin.wobble
            double = 0.9 * line(shifted, 0.00065) + (0.6 * line(shifted - 0.0024, 0.0005) if k == 1 else 0.0)
            marks.crease += near * under * double
            marks.relief -= 0.35 * near * under * line(shifted, 0.0012)
            # Wrinkles on the back of the joint: arcs that open away from its middle.
            side = (points - places[k]) @ np.cross(axis, [0.0, 1.0, 0.0])
            arc = along * (1.0 + 18.0 * np.abs(side)) + 0.8 * skin.wobble
            waves = np.cos(arc * (2.0 * np.pi / (0.0026 * width)))
            envelope = near * dorsal * line(along, 0.75 * reach) * smooth_step(0.012, 0.004, np.abs(side))
            marks.crease += 0.5 * envelope * smooth_step(0.35, 1.0, waves)
            marks.relief += 0.16 * envelope * waves
        elif name != "thumb":  # where the finger leaves the palm
            base = along - 0.50 * np.linalg.norm(after) + 1.2 * skin.wobble
            lines = 0.9 * line(base, 0.00065) + 0.5 * line(base + 0.0022, 0.0005)
            marks.crease += near * under * lines
            marks.relief -= 0.35 * near * under * line(base, 0.001)
            marks.relief += 1.1 * near * dorsal * line(along, 0.008) * 0.3
        marks.knuckle += near * dorsal * line(along, reach) * (0.7 if k == 0 else 1.0)
    to_tip = np.linalg.norm(points - skin.tips[finger], axis=1)
    marks.blood += belongs * under * 0.9 * smooth_step(0.022, 0.004, to_tip)
    marks.blood += belongs * dorsal * 0.25 * smooth_step(0.02, 0.008, to_tip)


def _nail(skin: _Skin, finger: int) -> tuple[Real, Real]:
    """Return the nail plate of a finger (above 0.8 toward its free edge: lighter) and the fold of skin around it."""
    arrays, points, tips = embedded_arrays(), skin.points, skin.tips
    faces = arrays["faces"][arrays["face_regions"] == _NAIL_REGION]
    distances = np.linalg.norm(skin.template[faces].mean(axis=1)[:, None] - tips[None], axis=2)
    corners = np.unique(faces[np.argmin(distances, axis=1) == finger])
    cloud = skin.template[corners]
    up = skin.template_normals[corners].mean(axis=0)
    up /= np.linalg.norm(up)
    last = MANO_JOINTS.index("thumb_ip" if FINGERS[finger] == "thumb" else f"{FINGERS[finger]}_dip")
    along = tips[finger] - skin.joints[last]
    along -= (along @ up) * up
    along /= np.linalg.norm(along)
    across = np.cross(up, along)
    a, b = cloud @ along, cloud @ across
    u = (points @ along - 0.5 * (a.max() + a.min())) / (0.46 * (a.max() - a.min()))
    v = (points @ across - 0.5 * (b.max() + b.min())) / (0.43 * (b.max() - b.min()))
    near = (np.linalg.norm(points - cloud.mean(axis=0), axis=1) < 0.016) & (skin.normals @ up > 0.1)
    radius = np.where(near, (np.abs(u) ** 3.0 + np.abs(v) ** 3.0) ** (1.0 / 3.0), 9.0)
    lighter = 0.25 * smooth_step(0.72, 0.86, u) + 0.15 * smooth_step(1.0, 0.8, np.hypot(u + 0.95, 0.8 * v) * 1.6)
    fold = line(radius - 1.1, 0.11) * (1.0 - 0.6 * smooth_step(0.4, 0.8, u))
    return smooth_step(1.06, 0.94, radius) * (0.75 + lighter), fold * near


def _arm_marks(loop: Real, along: Real, around: Real) -> Marks:
    """Compute the marks of the arm, the wrist's edge `loop` extended along x; `around` is 0 to 1."""
    at = np.clip(around, 0.0, 1.0) * len(loop)
    first = np.floor(at).astype(int)
    edge = loop[first % len(loop)] + (at - first)[:, None] * (loop[(first + 1) % len(loop)] - loop[first % len(loop)])
    # The arm is wider than the wrist's edge and its texels are longer, so marks grow along it, too.
    points = edge + 0.1 * np.log1p(along / 0.1)[:, None] * np.array([1.0, 0.0, 0.0])
    outward = edge - loop.mean(axis=0)
    inner = smooth_step(-0.4, 0.6, -outward[:, 1] / np.linalg.norm(outward[:, 1:], axis=1))
    # Texels grow with the distance from the wrist: fine mottling, which they cannot hold, becomes coarser.
    coarse, fine = mottling(points)
    fine = fine * smooth_step(0.03, 0.0, along) + 0.6 * noise(points, 0.010, 41) * smooth_step(0.0, 0.03, along)
    side, wander = outward[:, 2], 0.004 * noise(points, 0.05, 40)
    vein = sum(line(side - place + wander, 0.0016) for place in (-0.008, 0.006, 0.015)) * inner
    tendon = sum(line(side - place, 0.0028) for place in (-0.003, 0.004)) * inner * smooth_step(0.08, 0.0, along)
    wrinkle = line(along - 0.006 + 0.2 * wander, 0.0009) + 0.6 * line(along - 0.013 + 0.25 * wander, 0.0008)
    return Marks(
        palm=_INNER_ARM * inner,
        crease=0.5 * inner * wrinkle,
        relief=0.3 * vein + 0.8 * tendon + 0.05 * fine - 0.2 * inner * wrinkle,
        blood=0.25 * coarse * 0.3,
        vein=0.7 * np.clip(vein, 0.0, 1.0) * smooth_step(0.3, 0.05, along),
        coarse=coarse,
        fine=fine,
    )

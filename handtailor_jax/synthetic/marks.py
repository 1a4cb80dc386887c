"""Marks on the skin of the hand, placed by rule in the rest pose: creases, nails, knuckles, veins, mottling.

Points are in metres in the rest frame (fingers -x, palm -y, thumb +z).
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.skeleton import FINGERS, JOINT_PARENTS, MANO_JOINTS

Real = npt.NDArray[np.float64]

_NAIL_REGION = 2
INNER_ARM = 0.4
"""How palmar the inner side of wrist and arm is, 0 to 1."""


@dataclasses.dataclass
class Marks:
    """Channels of the chart at a set of points."""

    palm: Any = 0.0
    """Palmar skin, 0 to 1."""
    nail: Any = 0.0
    """Nail plate, 0 to 1."""
    cuticle: Any = 0.0
    """Fold of skin around the nail, 0 to 1."""
    crease: Any = 0.0
    """Permanently dark lines, 0 to 1."""
    relief: Any = 0.0
    """Height of wrinkles, tendons and pores, millimetres."""
    blood: Any = 0.0
    """Redder (positive) or paler skin than average."""
    vein: Any = 0.0
    """Veins under the back."""
    knuckle: Any = 0.0
    """Darker skin on the back of the joints, 0 to 1."""
    fine: Any = 0.0
    """Fine mottling, mean 0 and variance 1."""
    coarse: Any = 0.0
    """Coarse mottling, mean 0 and variance 1."""


CHANNELS = tuple(field.name for field in dataclasses.fields(Marks))


@dataclasses.dataclass(frozen=True)
class _Skin:
    """The hand in its rest pose, and the points at which marks are computed."""

    template: Real
    joints: Real
    tips: Real
    points: Real
    normals: Real
    skinning: Real
    palmar: Real
    """Cosine between normal and palmar direction: of the own finger, or of the hand on the metacarpus."""
    wobble: Real
    """Noise that makes lines irregular, metres; then the palmar side, 0 to 1."""
    under: Real


def smooth_step(low: float, high: float, x: Real) -> Real:
    """Return 0 below `low`, 1 above `high` (or the reverse), and a smooth transition between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def hand_marks(
    arrays: Mapping[str, npt.NDArray[Any]], template_normals: Real, points: Real, normals: Real, skinning: Real
) -> Marks:
    """Compute the marks at points of the hand.

    Args:
        arrays: The embedded hand.
        template_normals: Unit normals of the template's vertices.
        points: Rest positions.
        normals: Unit normals.
        skinning: Skinning weights (points, joints).
    """
    template = arrays["template"].astype(np.float64)
    joints, tips = arrays["joint_regressor"].astype(np.float64) @ template, template[arrays["tip_vertices"]]
    palmar = _palmar(normals, skinning, joints, tips, arrays["anatomy_basis"].astype(np.float64))
    wobble, under = 0.0004 * noise(points, 0.006, 1), smooth_step(-0.25, 0.45, palmar)
    skin = _Skin(template, joints, tips, points, normals, skinning, palmar, wobble, under)
    marks = Marks(*(np.zeros(len(points)) for _ in dataclasses.fields(Marks)))
    for finger in range(len(FINGERS)):
        _finger(marks, skin, finger)
        plate, fold = _nail(arrays, template_normals, skin, finger)
        marks.nail, marks.cuticle = np.maximum(marks.nail, plate), np.maximum(marks.cuticle, fold)

    lines, mounds = _palm_lines(points, joints)
    on_palm = smooth_step(0.35, 0.75, skinning[:, 0] + skinning[:, MANO_JOINTS.index("thumb_cmc")]) * skin.under
    marks.crease += on_palm * lines
    marks.relief -= 0.4 * on_palm * lines
    marks.blood += on_palm * mounds + 0.3 * marks.knuckle
    back = 1.0 - smooth_step(-0.5, 0.0, palmar)
    vein, tendon = _veins(points, joints)
    marks.vein = vein * back * smooth_step(0.25, 0.7, skinning[:, 0])
    marks.relief += 0.5 * marks.vein + 0.7 * back * smooth_step(0.4, 0.8, skinning[:, 0]) * tendon
    pores = noise(points, 0.0016, 3) * 0.03 + noise(points, 0.0035, 4) * 0.035
    marks.relief += pores * (1.0 - marks.nail)
    marks.relief += 0.25 * marks.nail - 0.3 * marks.cuticle
    marks.coarse, marks.fine = mottling(points)
    # Toward the arm the inner side becomes less palmar.
    palm = smooth_step(-0.30, 0.35, palmar + 0.06 * noise(points, 0.012, 2))
    toward_arm = smooth_step(0.004, 0.03, template[arrays["wrist_loop"]][:, 0].mean() - points[:, 0])
    palm = palm * (INNER_ARM + (1.0 - INNER_ARM) * toward_arm)
    marks.palm = palm * (1.0 - marks.nail)
    marks.crease = np.clip(marks.crease, 0.0, 1.0) * (1.0 - marks.nail)
    marks.knuckle = np.clip(marks.knuckle, 0.0, 1.0) * (1.0 - marks.nail)
    return marks


def _palmar(normals: Real, skinning: Real, joints: Real, tips: Real, basis: Real) -> Real:
    dominant = np.argmax(skinning, axis=1)
    palmar = -normals[:, 1]
    for j in range(1, len(MANO_JOINTS)):
        finger = FINGERS.index(MANO_JOINTS[j].split("_")[0])
        end = joints[JOINT_PARENTS.index(j)] if j in JOINT_PARENTS else tips[finger]
        bone = end - joints[j]
        toward_palm = np.cross(basis[j - 1, 0], bone / np.linalg.norm(bone))
        palmar = np.where(dominant == j, normals @ toward_palm, palmar)
    return palmar


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
        before = places[k] - (places[k - 1] if k else skin.joints[0])
        after = places[k + 1] - places[k]
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


def _nail(
    arrays: Mapping[str, npt.NDArray[Any]], template_normals: Real, skin: _Skin, finger: int
) -> tuple[Real, Real]:
    """Return the nail plate of a finger (above 0.8 toward its free edge: lighter) and the fold of skin around it."""
    template, points, tips = skin.template, skin.points, skin.tips
    faces = arrays["faces"][arrays["face_regions"] == _NAIL_REGION]
    centers = template[faces].mean(axis=1)
    own = np.argmin(np.linalg.norm(centers[:, None] - tips[None], axis=2), axis=1) == finger
    corners = np.unique(faces[own])
    cloud = template[corners]
    up = template_normals[corners].mean(axis=0)
    up /= np.linalg.norm(up)
    name = FINGERS[finger]
    last = MANO_JOINTS.index(f"{name}_ip" if name == "thumb" else f"{name}_dip")
    along = tips[finger] - skin.joints[last]
    along -= (along @ up) * up
    along /= np.linalg.norm(along)
    across = np.cross(up, along)
    a, b = cloud @ along, cloud @ across
    u = (points @ along - 0.5 * (a.max() + a.min())) / (0.46 * (a.max() - a.min()))
    v = (points @ across - 0.5 * (b.max() + b.min())) / (0.43 * (b.max() - b.min()))
    near = (np.linalg.norm(points - cloud.mean(axis=0), axis=1) < 0.016) & (skin.normals @ up > 0.1)
    radius = np.where(near, (np.abs(u) ** 3.0 + np.abs(v) ** 3.0) ** (1.0 / 3.0), 9.0)
    plate = smooth_step(1.06, 0.94, radius)
    lighter = 0.25 * smooth_step(0.72, 0.86, u) + 0.15 * smooth_step(1.0, 0.8, np.hypot(u + 0.95, 0.8 * v) * 1.6)
    fold = line(radius - 1.1, 0.11) * (1.0 - 0.6 * smooth_step(0.4, 0.8, u))
    return plate * (0.75 + lighter), fold * near


def _palm_lines(points: Real, joints: Real) -> tuple[Real, Real]:
    """Return the lines of the palm, 0 to 1, and how much redder (mounds) or paler (hollow) than average it is."""
    index, middle, little = (joints[MANO_JOINTS.index(f"{f}_mcp")][[0, 2]] for f in ("index", "middle", "little"))
    plane = points[:, [0, 2]] + 0.0005 * np.stack([noise(points, 0.014, 20), noise(points, 0.014, 21)], axis=-1)
    width = index - little  # from the little finger's side to the thumb's
    down = joints[0][[0, 2]] - middle
    down = down / np.linalg.norm(down)

    def place(across: float, below: float) -> Real:
        return little + across * width + below * down

    heart = ((-0.30, 0.020), (0.2, 0.022), (0.55, 0.012), (0.82, -0.010))
    head = ((1.22, 0.016), (0.8, 0.022), (0.3, 0.036), (-0.05, 0.048))
    life = ((1.22, 0.017), (0.85, 0.022), (0.52, 0.050), (0.50, 0.090))
    fate = ((0.48, 0.085), (0.44, 0.055), (0.42, 0.025))
    total = np.zeros(len(points))
    strengths, widths = (0.9, 0.85, 1.0, 0.3), (0.0009, 0.0009, 0.001, 0.0008)
    for knots, strength, line_width in zip((heart, head, life, fate), strengths, widths, strict=True):
        distance, along = _curve_distance(plane, np.asarray([place(*knot) for knot in knots]))
        fade = smooth_step(0.0, 0.12, along) * smooth_step(1.0, 0.82, along)
        total += strength * fade * line(distance, line_width)
    rng = np.random.default_rng(7)
    for _ in range(14):  # small lines that cross the others
        start = place(rng.uniform(-0.1, 1.1), rng.uniform(0.01, 0.07))
        step = rng.normal(size=2) * 0.009
        distance, along = _curve_distance(plane, np.asarray([start, start + step, start + 2.0 * step]))
        total += 0.28 * np.sin(np.pi * along) * line(distance, 0.0006)
    below = (plane - little) @ down
    bow = 0.004 * ((plane - little) @ (width / np.linalg.norm(width)) / 0.05 - 0.5) ** 2
    for wrist, strength in ((0.094, 0.7), (0.100, 0.45)):
        total += strength * line(np.abs(below - wrist - bow), 0.0009)
    mounds = 0.55 * line(np.linalg.norm(plane - place(1.0, 0.058), axis=1), 0.022)  # thenar
    mounds += 0.5 * line(np.linalg.norm(plane - place(-0.05, 0.065), axis=1), 0.02)  # hypothenar
    mounds += 0.35 * line(below - 0.004, 0.010)
    mounds -= 0.4 * line(np.linalg.norm(plane - place(0.45, 0.042), axis=1), 0.016)  # hollow
    return np.clip(total, 0.0, 1.0), mounds


def _veins(points: Real, joints: Real) -> tuple[Real, Real]:
    """Return veins and tendons of the back as soft ridges, 0 to 1."""
    plane = points[:, [0, 2]] + 0.0022 * np.stack([noise(points, 0.02, 30), noise(points, 0.02, 31)], axis=-1)
    knuckles = [joints[MANO_JOINTS.index(f"{f}_mcp")][[0, 2]] for f in FINGERS[1:]]
    wrist = joints[0][[0, 2]]
    tendon = np.zeros(len(points))
    for knuckle in knuckles:
        distance, along = _curve_distance(points[:, [0, 2]], np.asarray([knuckle, 0.5 * (knuckle + wrist), wrist]))
        tendon += smooth_step(1.0, 0.5, along) * smooth_step(-0.01, 0.1, along) * line(distance, 0.0026)
    vein = np.zeros(len(points))
    between = [0.5 * (p + q) for p, q in itertools.pairwise(knuckles)]
    targets = [wrist + 0.45 * (between[i] - 0.5 * (between[0] + between[2])) for i in (0, 1, 1)]
    for start, end in zip(between, targets, strict=True):
        distance, along = _curve_distance(plane, np.asarray([start, 0.6 * start + 0.4 * end, end]))
        vein += smooth_step(0.0, 0.2, along) * line(distance, 0.0017)
    for start, end in ((0, 1), (1, 2)):
        p, q = (0.55 * between[i] + 0.45 * targets[i] for i in (start, end))
        distance, _ = _curve_distance(plane, np.asarray([p, 0.5 * (p + q) + [0.01, 0.0], q]))
        vein += 0.7 * line(distance, 0.0014)
    return np.clip(vein, 0.0, 1.0), np.clip(tendon, 0.0, 1.0)


def noise(points: Real, wavelength: float, seed: int, waves: int = 48) -> Real:
    """Return smooth noise of mean 0 and variance 1: a sum of random waves around one wavelength (metres)."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(waves, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = wavelength * np.exp(rng.normal(0.0, 0.25, waves))
    phases = rng.uniform(0.0, 2.0 * np.pi, waves)
    total = np.zeros(len(points))
    for direction, length, phase in zip(directions, lengths, phases, strict=True):
        total += np.cos(points @ direction * (2.0 * np.pi / length) + phase)
    return total * np.sqrt(2.0 / waves)


def mottling(points: Real) -> tuple[Real, Real]:
    """Return coarse and fine unevenness of the skin, mean 0 and variance about 1."""
    coarse = 0.75 * noise(points, 0.028, 5) + 0.65 * noise(points, 0.012, 6)
    fine = 0.8 * noise(points, 0.0045, 7) + 0.6 * noise(points, 0.0022, 8)
    return coarse, fine


def line(distance: Real, width: float) -> Real:
    """Return a soft line, 1 at distance 0."""
    return np.exp(-((distance / width) ** 2))


def _curve_distance(points: Real, knots: Real) -> tuple[Real, Real]:
    """Return the distance in the palm's plane to a Bezier curve, and the parameter of its nearest point, 0 to 1."""
    t = np.linspace(0.0, 1.0, 80)
    layers = [np.broadcast_to(knot, (len(t), 2)) for knot in knots]
    while len(layers) > 1:  # de Casteljau's algorithm
        layers = [(1.0 - t)[:, None] * p + t[:, None] * q for p, q in itertools.pairwise(layers)]
    best, along = np.full(len(points), np.inf), np.zeros(len(points))
    for parameter, place in zip(t, layers[0], strict=True):
        d = np.hypot(points[:, 0] - place[0], points[:, 1] - place[1])
        nearer = d < best
        best, along = np.where(nearer, d, best), np.where(nearer, parameter, along)
    return best, along

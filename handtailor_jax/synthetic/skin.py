"""What is painted on the hand: a texture chart of creases, nails, knuckles, veins and mottling, made by rule.

Nothing here is a photograph. The marks are placed in the rest pose, relative to joints, nails and the palm, and then
looked up through the texture coordinates of the embedded hand.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.mano.loading import embedded_arrays
from handtailor_jax.skeleton import FINGERS, JOINT_PARENTS, MANO_JOINTS

CHANNELS = (
    "palm",
    "nail",
    "cuticle",
    "crease",
    "relief",
    "blood",
    "vein",
    "knuckle",
    "fine",
    "coarse",
)
"""Channels of the chart. palm: palmar skin, 0 to 1. nail: the nail plate; cuticle: the fold around it. crease: lines
that stay dark, 0 to 1. relief: height of wrinkles, tendons and pores, millimetres. blood: where skin is redder
(positive) or paler than average. vein: veins under the back. knuckle: the darker skin on the back of the joints.
fine, coarse: mottling, mean 0 and variance 1."""

ARM_PATCH = (0.52, 0.68, 0.98, 0.98)
"""Where the chart of the arm is, in a corner that the hand leaves free: u and v of its lower, then its upper corner. u
goes along the arm, v around it."""

Real = npt.NDArray[np.float64]

ARM_LENGTH = 0.52
"""Metres of arm from the wrist's edge that the patch covers."""


def arm_chart(along: Real) -> Real:
    """Where in the patch (0 to 1) a distance from the wrist's edge (metres) lies; near the hand there is more room."""
    return (along / ARM_LENGTH) ** (1.0 / 1.6)


_NAIL_REGION = 2


def smooth_step(low: float, high: float, x: Real) -> Real:
    """0 below `low`, 1 above `high` (or the other way round), smooth between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


@functools.cache
def skin_chart(size: int) -> npt.NDArray[np.float32]:
    """The chart of the embedded hand, (channels, size, size); row 0 is v = 0."""
    arrays = embedded_arrays()
    face, weights = _rasterise_chart(arrays["uv"].astype(np.float64), size)
    painted = face >= 0
    corners = arrays["faces"][face[painted]]
    barycentrics = weights[painted]

    def at_texels(values: Real) -> Real:
        return np.einsum("nk,nkc->nc", barycentrics, values[corners])

    template = arrays["template"].astype(np.float64)
    points = at_texels(template)
    normals = at_texels(_vertex_normals(template, arrays["faces"]))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    skinning = at_texels(arrays["skinning_weights"].astype(np.float64))
    marks = _marks(arrays, points, normals, skinning)
    columns, rows, arm = _arm_marks(arrays, size)
    filled = painted.copy()
    filled[rows, columns] = True
    chart = np.zeros((len(CHANNELS), size, size), np.float32)
    for i, channel in enumerate(CHANNELS):
        plane = np.zeros((size, size), np.float64)
        plane[painted] = marks[channel]
        plane[rows, columns] = arm.get(channel, 0.0)
        chart[i] = _bleed(plane, filled)
    return chart


def _arm_marks(
    arrays: Mapping[str, npt.NDArray[Any]], size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[str, Real]]:
    """Columns and rows of the arm's patch and what is painted there: the arm as the wrist's edge drawn out along x."""
    u0, v0, u1, v1 = (round(x * size) for x in ARM_PATCH)
    columns, rows = (x.ravel() for x in np.meshgrid(np.arange(u0, u1), np.arange(v0, v1)))
    along = ARM_LENGTH * (((columns + 0.5) / size - ARM_PATCH[0]) / (ARM_PATCH[2] - ARM_PATCH[0])) ** 1.6
    around = ((rows + 0.5) / size - ARM_PATCH[1]) / (ARM_PATCH[3] - ARM_PATCH[1])
    template = arrays["template"].astype(np.float64)
    loop = template[arrays["wrist_loop"]]
    at = np.clip(around, 0.0, 1.0) * len(loop)
    first = np.floor(at).astype(int)
    edge = loop[first % len(loop)] + (at - first)[:, None] * (loop[(first + 1) % len(loop)] - loop[first % len(loop)])
    # The arm is wider than the wrist's edge and its texels longer: marks grow along it, too.
    points = edge + 0.1 * np.log1p(along / 0.1)[:, None] * np.array([1.0, 0.0, 0.0])
    outward = edge - loop.mean(axis=0)
    palmar = -outward[:, 1] / np.linalg.norm(outward[:, 1:], axis=1)
    inner = smooth_step(-0.4, 0.6, palmar)
    # Fine marks that the patch, whose texels grow with the distance from the wrist, could not hold become coarser.
    coarse, fine = _mottling(points)
    fine = fine * smooth_step(0.03, 0.0, along) + 0.6 * _noise(points, 0.010, 41) * smooth_step(0.0, 0.03, along)
    side = outward[:, 2]
    wander = 0.004 * _noise(points, 0.05, 40)
    vein = sum(_line(side - place + wander, 0.0016) for place in (-0.008, 0.006, 0.015)) * inner
    tendon = sum(_line(side - place, 0.0028) for place in (-0.003, 0.004)) * inner * smooth_step(0.08, 0.0, along)
    wrinkle = _line(along - 0.006 + 0.2 * wander, 0.0009) + 0.6 * _line(along - 0.013 + 0.25 * wander, 0.0008)
    marks = {
        "palm": _INNER_ARM * inner,
        "crease": 0.5 * inner * wrinkle,
        "relief": 0.3 * vein + 0.8 * tendon + 0.05 * fine - 0.2 * inner * wrinkle,
        "blood": 0.25 * coarse * 0.3,
        "vein": 0.7 * np.clip(vein, 0.0, 1.0) * smooth_step(0.3, 0.05, along),
        "coarse": coarse,
        "fine": fine,
    }
    return columns, rows, marks


_INNER_ARM = 0.4  # how palm-like the inner side of wrist and arm is


def _mottling(points: Real) -> tuple[Real, Real]:
    """Coarse and fine unevenness of skin, mean 0 and variance about 1."""
    coarse = 0.75 * _noise(points, 0.028, 5) + 0.65 * _noise(points, 0.012, 6)
    fine = 0.8 * _noise(points, 0.0045, 7) + 0.6 * _noise(points, 0.0022, 8)
    return coarse, fine


def _rasterise_chart(uv: Real, size: int) -> tuple[npt.NDArray[np.int32], Real]:
    """Face and barycentric weights of every texel of the chart; -1 where there is none."""
    face = np.full((size, size), -1, np.int32)
    weights = np.zeros((size, size, 3))
    texels = uv * size - 0.5
    for f, (a, b, c) in enumerate(texels):
        low = np.floor(np.min((a, b, c), axis=0)).astype(int)
        high = np.ceil(np.max((a, b, c), axis=0)).astype(int)
        (x0, y0), (x1, y1) = np.clip(low, 0, size - 1), np.clip(high, 0, size - 1)
        x, y = np.meshgrid(np.arange(x0, x1 + 1), np.arange(y0, y1 + 1))
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) < 1e-9:
            continue
        wb = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
        wc = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
        inside = (wb >= -1e-6) & (wc >= -1e-6) & (wb + wc <= 1.0 + 1e-6)
        face[y[inside], x[inside]] = f
        weights[y[inside], x[inside]] = np.stack([1.0 - wb - wc, wb, wc], axis=-1)[inside]
    return face, weights


def _bleed(plane: Real, painted: npt.NDArray[np.bool_], rings: int = 6) -> Real:
    """Carries values over the borders of the chart, so that sampling near a seam finds skin and not emptiness."""
    plane, known = plane * painted, painted.astype(np.float64)
    for _ in range(rings):
        total, count = np.zeros_like(plane), np.zeros_like(plane)
        for axis in (0, 1):
            for shift in (-1, 1):
                total += np.roll(plane, shift, axis) * np.roll(known, shift, axis)
                count += np.roll(known, shift, axis)
        new = (known == 0) & (count > 0)
        plane = np.where(new, total / np.maximum(count, 1.0), plane)
        known = np.where(new, 1.0, known)
    return plane


def _vertex_normals(vertices: Real, faces: npt.NDArray[np.int32]) -> Real:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normals = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(normals, faces[:, i], np.cross(b - a, c - a))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _noise(points: Real, wavelength: float, seed: int, waves: int = 48) -> Real:
    """Smooth noise of mean 0 and variance 1 in space: a sum of random waves around one wavelength (metres)."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(waves, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = wavelength * np.exp(rng.normal(0.0, 0.25, waves))
    phases = rng.uniform(0.0, 2.0 * np.pi, waves)
    total = np.zeros(len(points))
    for direction, length, phase in zip(directions, lengths, phases, strict=True):
        total += np.cos(points @ direction * (2.0 * np.pi / length) + phase)
    return total * np.sqrt(2.0 / waves)


def _line(distance: Real, width: float) -> Real:
    """A soft line, 1 at distance 0."""
    return np.exp(-((distance / width) ** 2))


def _curve_distance(points: Real, knots: Real) -> tuple[Real, Real]:
    """Distance (in the palm's plane) to a smooth curve through knots, and how far along it the nearest point is."""
    t = np.linspace(0.0, 1.0, 80)
    # Bezier curve of the knots, by de Casteljau's scheme.
    layers = [np.broadcast_to(knot, (len(t), 2)) for knot in knots]
    while len(layers) > 1:
        layers = [(1.0 - t)[:, None] * p + t[:, None] * q for p, q in itertools.pairwise(layers)]
    curve = layers[0]
    best = np.full(len(points), np.inf)
    along = np.zeros(len(points))
    for parameter, place in zip(t, curve, strict=True):
        d = np.hypot(points[:, 0] - place[0], points[:, 1] - place[1])
        nearer = d < best
        best, along = np.where(nearer, d, best), np.where(nearer, parameter, along)
    return best, along


def _marks(arrays: Mapping[str, npt.NDArray[Any]], points: Real, normals: Real, skinning: Real) -> dict[str, Real]:
    """The channels at texels given by rest position, normal and skinning weights."""
    joints = arrays["joint_regressor"].astype(np.float64) @ arrays["template"].astype(np.float64)
    tips = arrays["template"].astype(np.float64)[arrays["tip_vertices"]]
    basis = arrays["anatomy_basis"].astype(np.float64)
    zero = np.zeros(len(points))
    crease, relief, knuckle, nail, cuticle, blood = (zero.copy() for _ in range(6))
    wobble = 0.0004 * _noise(points, 0.006, 1)

    # How palmar a texel is: by the side of its own finger, and on the metacarpus by its normal.
    dominant = np.argmax(skinning, axis=1)
    palmar = -normals[:, 1]
    for j in range(1, len(MANO_JOINTS)):
        end = _end_of(j, joints, tips)
        bone = end - joints[j]
        toward_palm = np.cross(basis[j - 1, 0], bone / np.linalg.norm(bone))
        palmar = np.where(dominant == j, normals @ toward_palm, palmar)
    palm = smooth_step(-0.30, 0.35, palmar + 0.06 * _noise(points, 0.012, 2))
    dorsal = 1.0 - smooth_step(-0.55, 0.1, palmar)
    under = smooth_step(-0.25, 0.45, palmar)

    for finger, name in enumerate(FINGERS):
        chain = [
            MANO_JOINTS.index(f"{name}_{j}")
            for j in (("cmc", "mcp", "ip") if name == "thumb" else ("mcp", "pip", "dip"))
        ]
        places = np.concatenate([joints[chain], tips[finger : finger + 1]])
        belongs = smooth_step(0.3, 0.7, skinning[:, chain].sum(axis=1))
        width = {"thumb": 1.15, "little": 0.85}.get(name, 1.0)
        for k in range(3):
            before = places[k] - (places[k - 1] if k else joints[0])
            after = places[k + 1] - places[k]
            axis = before / np.linalg.norm(before) + after / np.linalg.norm(after)
            axis /= np.linalg.norm(axis)
            along = (points - places[k]) @ axis
            radial = np.linalg.norm((points - places[k]) - along[:, None] * axis, axis=1)
            near = belongs * smooth_step(0.024, 0.016, radial)
            if k == 0 and name != "thumb":  # where the finger leaves the palm
                base = along - 0.50 * np.linalg.norm(after) + 1.2 * wobble
                lines = 0.9 * _line(base, 0.00065) + 0.5 * _line(base + 0.0022, 0.0005)
                crease += near * under * lines
                relief -= 0.35 * near * under * _line(base, 0.001)
            elif k > 0:
                shifted = along + wobble
                double = 0.9 * _line(shifted, 0.00065) + (0.6 * _line(shifted - 0.0024, 0.0005) if k == 1 else 0.0)
                crease += near * under * double
                relief -= 0.35 * near * under * _line(shifted, 0.0012)
            # Wrinkles on the back of the joint: arcs that open away from its middle.
            reach = (0.0085 if k < 2 else 0.0055) * width
            if k > 0:
                side = (points - places[k]) @ np.cross(axis, [0.0, 1.0, 0.0])
                arc = along * (1.0 + 18.0 * np.abs(side)) + 0.8 * wobble
                waves = np.cos(arc * (2.0 * np.pi / (0.0026 * width)))
                envelope = near * dorsal * _line(along, 0.75 * reach) * smooth_step(0.012, 0.004, np.abs(side))
                crease += 0.5 * envelope * smooth_step(0.35, 1.0, waves)
                relief += 0.16 * envelope * waves
            knuckle += near * dorsal * _line(along, reach) * (0.7 if k == 0 else 1.0)
            if k == 0 and name != "thumb":
                relief += 1.1 * near * dorsal * _line(along, 0.008) * 0.3
        # Pads are red; the skin before a crease a little.
        to_tip = np.linalg.norm(points - tips[finger], axis=1)
        blood += belongs * under * 0.9 * smooth_step(0.022, 0.004, to_tip)
        blood += belongs * dorsal * 0.25 * smooth_step(0.02, 0.008, to_tip)
        plate, fold = _nail(arrays, points, normals, finger, tips)
        nail, cuticle = np.maximum(nail, plate), np.maximum(cuticle, fold)

    lines, mounds = _palm_lines(points, joints)
    on_palm = smooth_step(0.35, 0.75, skinning[:, 0] + skinning[:, MANO_JOINTS.index("thumb_cmc")]) * under
    crease += on_palm * lines
    relief -= 0.4 * on_palm * lines
    blood += on_palm * mounds + 0.3 * knuckle
    on_back = (1.0 - smooth_step(-0.5, 0.0, palmar)) * smooth_step(0.4, 0.8, skinning[:, 0])
    vein, tendon = _veins(points, joints)
    vein = vein * (1.0 - smooth_step(-0.5, 0.0, palmar)) * smooth_step(0.25, 0.7, skinning[:, 0])
    relief += 0.5 * vein + 0.7 * on_back * tendon
    pores = _noise(points, 0.0016, 3) * 0.03 + _noise(points, 0.0035, 4) * 0.035
    relief += pores * (1.0 - nail)
    relief += 0.25 * nail - 0.3 * cuticle
    coarse, fine = _mottling(points)
    # Toward the arm the inner side becomes less like a palm.
    edge = arrays["template"].astype(np.float64)[arrays["wrist_loop"]]
    palm = palm * (_INNER_ARM + (1.0 - _INNER_ARM) * smooth_step(0.004, 0.03, edge[:, 0].mean() - points[:, 0]))
    return {
        "palm": palm * (1.0 - nail),
        "nail": nail,
        "cuticle": cuticle,
        "crease": np.clip(crease, 0.0, 1.0) * (1.0 - nail),
        "relief": relief,
        "blood": blood,
        "vein": vein,
        "knuckle": np.clip(knuckle, 0.0, 1.0) * (1.0 - nail),
        "fine": fine,
        "coarse": coarse,
    }


def _end_of(joint: int, joints: Real, tips: Real) -> Real:
    """Where the bone that starts at a joint ends."""
    if joint in JOINT_PARENTS:
        return joints[JOINT_PARENTS.index(joint)]
    return tips[FINGERS.index(MANO_JOINTS[joint].split("_")[0])]


def _nail(
    arrays: Mapping[str, npt.NDArray[Any]], points: Real, normals: Real, finger: int, tips: Real
) -> tuple[Real, Real]:
    """The nail plate of a finger (above 0.8 toward its free edge: lighter) and the fold of skin around it."""
    faces = arrays["faces"][arrays["face_regions"] == _NAIL_REGION]
    template = arrays["template"].astype(np.float64)
    centres = template[faces].mean(axis=1)
    own = np.argmin(np.linalg.norm(centres[:, None] - tips[None], axis=2), axis=1) == finger
    corners = np.unique(faces[own])
    cloud = template[corners]
    up = _vertex_normals(template, arrays["faces"])[corners].mean(axis=0)
    up /= np.linalg.norm(up)
    name = FINGERS[finger]
    last = MANO_JOINTS.index(f"{name}_ip" if name == "thumb" else f"{name}_dip")
    joints = arrays["joint_regressor"].astype(np.float64) @ template
    along = tips[finger] - joints[last]
    along -= (along @ up) * up
    along /= np.linalg.norm(along)
    across = np.cross(up, along)
    a, b = cloud @ along, cloud @ across
    u = (points @ along - 0.5 * (a.max() + a.min())) / (0.46 * (a.max() - a.min()))
    v = (points @ across - 0.5 * (b.max() + b.min())) / (0.43 * (b.max() - b.min()))
    near = (np.linalg.norm(points - cloud.mean(axis=0), axis=1) < 0.016) & (normals @ up > 0.1)
    radius = np.where(near, (np.abs(u) ** 3.0 + np.abs(v) ** 3.0) ** (1.0 / 3.0), 9.0)
    plate = smooth_step(1.06, 0.94, radius)
    lighter = 0.25 * smooth_step(0.72, 0.86, u) + 0.15 * smooth_step(1.0, 0.8, np.hypot(u + 0.95, 0.8 * v) * 1.6)
    fold = _line(radius - 1.1, 0.11) * (1.0 - 0.6 * smooth_step(0.4, 0.8, u))
    return plate * (0.75 + lighter), fold * near


def _palm_lines(points: Real, joints: Real) -> tuple[Real, Real]:
    """The lines of the palm, 0 to 1, and how much redder (mounds) or paler (hollow) than average it is."""
    index, middle, little = (joints[MANO_JOINTS.index(f"{f}_mcp")][[0, 2]] for f in ("index", "middle", "little"))
    wrist = joints[0][[0, 2]]
    plane = points[:, [0, 2]] + 0.0005 * np.stack([_noise(points, 0.014, 20), _noise(points, 0.014, 21)], axis=-1)
    width = index - little  # from the little finger's side to the thumb's
    down = wrist - middle
    down = down / np.linalg.norm(down)

    def place(across: float, below: float) -> Real:
        return little + across * width + below * down

    heart = [place(-0.30, 0.020), place(0.2, 0.022), place(0.55, 0.012), place(0.82, -0.010)]
    head = [place(1.22, 0.016), place(0.8, 0.022), place(0.3, 0.036), place(-0.05, 0.048)]
    life = [place(1.22, 0.017), place(0.85, 0.022), place(0.52, 0.050), place(0.50, 0.090)]
    fate = [place(0.48, 0.085), place(0.44, 0.055), place(0.42, 0.025)]
    total = np.zeros(len(points))
    for knots, strength, line_width in (
        (heart, 0.9, 0.0009),
        (head, 0.85, 0.0009),
        (life, 1.0, 0.001),
        (fate, 0.3, 0.0008),
    ):
        distance, along = _curve_distance(plane, np.asarray(knots))
        fade = smooth_step(0.0, 0.12, along) * smooth_step(1.0, 0.82, along)
        total += strength * fade * _line(distance, line_width)
    rng = np.random.default_rng(7)
    for _ in range(14):  # small lines that cross the others
        start = place(rng.uniform(-0.1, 1.1), rng.uniform(0.01, 0.07))
        step = rng.normal(size=2) * 0.009
        distance, along = _curve_distance(plane, np.asarray([start, start + step, start + 2.0 * step]))
        total += 0.28 * np.sin(np.pi * along) * _line(distance, 0.0006)
    for below, strength in ((0.094, 0.7), (0.100, 0.45)):  # wrist
        distance = np.abs(
            (plane - little) @ down
            - below
            - 0.004 * ((plane - little) @ (width / np.linalg.norm(width)) / 0.05 - 0.5) ** 2
        )
        total += strength * _line(distance, 0.0009)
    hollow = place(0.45, 0.042)
    thenar, hypothenar = place(1.0, 0.058), place(-0.05, 0.065)
    mounds = 0.55 * _line(np.linalg.norm(plane - thenar, axis=1), 0.022)
    mounds += 0.5 * _line(np.linalg.norm(plane - hypothenar, axis=1), 0.02)
    mounds += 0.35 * _line((plane - little) @ down - 0.004, 0.010)
    mounds -= 0.4 * _line(np.linalg.norm(plane - hollow, axis=1), 0.016)
    return np.clip(total, 0.0, 1.0), mounds


def _veins(points: Real, joints: Real) -> tuple[Real, Real]:
    """Veins and tendons of the back as soft ridges, 0 to 1."""
    plane = points[:, [0, 2]] + 0.0022 * np.stack([_noise(points, 0.02, 30), _noise(points, 0.02, 31)], axis=-1)
    knuckles = [joints[MANO_JOINTS.index(f"{f}_mcp")][[0, 2]] for f in FINGERS[1:]]
    wrist = joints[0][[0, 2]]
    tendon = np.zeros(len(points))
    for knuckle in knuckles:
        distance, along = _curve_distance(points[:, [0, 2]], np.asarray([knuckle, 0.5 * (knuckle + wrist), wrist]))
        tendon += smooth_step(1.0, 0.5, along) * smooth_step(-0.01, 0.1, along) * _line(distance, 0.0026)
    vein = np.zeros(len(points))
    between = [0.5 * (p + q) for p, q in itertools.pairwise(knuckles)]
    targets = [wrist + 0.45 * (between[i] - 0.5 * (between[0] + between[2])) for i in (0, 1, 1)]
    for start, end in zip(between, targets, strict=True):
        distance, along = _curve_distance(plane, np.asarray([start, 0.6 * start + 0.4 * end, end]))
        vein += smooth_step(0.0, 0.2, along) * _line(distance, 0.0017)
    for start, end in ((0, 1), (1, 2)):
        p, q = (0.55 * between[i] + 0.45 * targets[i] for i in (start, end))
        distance, _ = _curve_distance(plane, np.asarray([p, 0.5 * (p + q) + [0.01, 0.0], q]))
        vein += 0.7 * _line(distance, 0.0014)
    return np.clip(vein, 0.0, 1.0), np.clip(tendon, 0.0, 1.0)

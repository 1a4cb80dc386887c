"""Marks on the skin at points of the rest pose: noise, lines of the palm, veins and tendons of the back."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.skeleton import FINGERS, MANO_JOINTS

Real = npt.NDArray[np.float64]


def smooth_step(low: float, high: float, x: Any) -> Any:
    """Return 0 below `low`, 1 above `high` (or the reverse), and a smooth transition between."""
    t = ((x - low) / (high - low)).clip(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def line(distance: Real, width: float) -> Real:
    """Return a soft line, 1 at distance 0."""
    return np.exp(-((distance / width) ** 2))


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
    return coarse, 0.8 * noise(points, 0.0045, 7) + 0.6 * noise(points, 0.0022, 8)


def _curve_distance(points: Real, knots: list[Real]) -> tuple[Real, Real]:
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


def palm_lines(points: Real, joints: Real) -> tuple[Real, Real]:
    """Return the lines of the palm, 0 to 1, and how much redder (mounds) or paler (hollow) than average it is."""
    index, middle, little = (joints[MANO_JOINTS.index(f"{f}_mcp")][[0, 2]] for f in ("index", "middle", "little"))
    plane = points[:, [0, 2]] + 0.0005 * np.stack([noise(points, 0.014, 20), noise(points, 0.014, 21)], axis=-1)
    width = index - little  # from the little finger's side to the thumb's
    down = joints[0][[0, 2]] - middle
    down = down / np.linalg.norm(down)

    def place(across: float, below: float) -> Real:
        return little + across * width + below * down

    total = np.zeros(len(points))
    for strength, line_width, knots in (  # heart, head, life and fate line
        (0.9, 0.0009, ((-0.30, 0.020), (0.2, 0.022), (0.55, 0.012), (0.82, -0.010))),
        (0.85, 0.0009, ((1.22, 0.016), (0.8, 0.022), (0.3, 0.036), (-0.05, 0.048))),
        (1.0, 0.001, ((1.22, 0.017), (0.85, 0.022), (0.52, 0.050), (0.50, 0.090))),
        (0.3, 0.0008, ((0.48, 0.085), (0.44, 0.055), (0.42, 0.025))),
    ):
        distance, along = _curve_distance(plane, [place(*knot) for knot in knots])
        fade = smooth_step(0.0, 0.12, along) * smooth_step(1.0, 0.82, along)
        total += strength * fade * line(distance, line_width)
    rng = np.random.default_rng(7)
    for _ in range(14):  # small lines that cross the others
        start = place(rng.uniform(-0.1, 1.1), rng.uniform(0.01, 0.07))
        step = rng.normal(size=2) * 0.009
        distance, along = _curve_distance(plane, [start, start + step, start + 2.0 * step])
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


def veins(points: Real, joints: Real) -> tuple[Real, Real]:
    """Return veins and tendons of the back as soft ridges, 0 to 1."""
    plane = points[:, [0, 2]] + 0.0022 * np.stack([noise(points, 0.02, 30), noise(points, 0.02, 31)], axis=-1)
    knuckles = [joints[MANO_JOINTS.index(f"{f}_mcp")][[0, 2]] for f in FINGERS[1:]]
    wrist = joints[0][[0, 2]]
    vein, tendon = np.zeros(len(points)), np.zeros(len(points))
    for knuckle in knuckles:
        distance, along = _curve_distance(points[:, [0, 2]], [knuckle, 0.5 * (knuckle + wrist), wrist])
        tendon += smooth_step(1.0, 0.5, along) * smooth_step(-0.01, 0.1, along) * line(distance, 0.0026)
    between = [0.5 * (p + q) for p, q in itertools.pairwise(knuckles)]
    targets = [wrist + 0.45 * (between[i] - 0.5 * (between[0] + between[2])) for i in (0, 1, 1)]
    for start, end in zip(between, targets, strict=True):
        distance, along = _curve_distance(plane, [start, 0.6 * start + 0.4 * end, end])
        vein += smooth_step(0.0, 0.2, along) * line(distance, 0.0017)
    for p, q in itertools.pairwise(0.55 * start + 0.45 * end for start, end in zip(between, targets, strict=True)):
        vein += 0.7 * line(_curve_distance(plane, [p, 0.5 * (p + q) + [0.01, 0.0], q])[0], 0.0014)
    return np.clip(vein, 0.0, 1.0), np.clip(tendon, 0.0, 1.0)

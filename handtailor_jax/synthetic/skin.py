"""Texture chart of the skin: creases, nails, knuckles, veins and mottling, drawn by rule without any photograph.

Marks are computed in the rest pose and looked up through the texture coordinates of the embedded hand.
"""

import functools

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from handtailor_jax.mano.loading import embedded_arrays
from handtailor_jax.render.rasterise import rasterise, vertex_normals
from handtailor_jax.synthetic.marks import (
    CHANNELS,
    INNER_ARM,
    Marks,
    Real,
    hand_marks,
    line,
    mottling,
    noise,
    smooth_step,
)
from handtailor_jax.synthetic.surface import ARM_EXPONENT, ARM_LENGTH, ARM_PATCH
from handtailor_jax.types import Camera


@functools.cache
def skin_chart(size: int) -> npt.NDArray[np.float32]:
    """Return the chart of the embedded hand, (channels, size, size); row 0 is v = 0."""
    arrays = embedded_arrays()
    corners = arrays["uv"].astype(np.float64).reshape(-1, 2) * size - 0.5
    texels = rasterise(
        jnp.asarray(np.concatenate([corners, np.ones((len(corners), 1))], axis=1), jnp.float32),
        jnp.arange(len(corners), dtype=jnp.int32).reshape(-1, 3),
        Camera.weak_perspective(),
        size,
        size,
    )
    painted = np.asarray(texels.mask)
    vertices = arrays["faces"][np.asarray(texels.face_index)[painted]]
    weights = np.asarray(texels.barycentrics, np.float64)[painted]

    def at_texels(values: Real) -> Real:
        return np.einsum("nk,nkc->nc", weights, values[vertices])

    template = arrays["template"].astype(np.float64)
    faces = jnp.asarray(arrays["faces"].astype(np.int32))
    vertex = np.asarray(vertex_normals(jnp.asarray(template, jnp.float32), faces, by_area=True), np.float64)
    normals = at_texels(vertex)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    skinning = at_texels(arrays["skinning_weights"].astype(np.float64))
    hand = hand_marks(arrays, vertex, at_texels(template), normals, skinning)

    u0, v0, u1, v1 = (round(x * size) for x in ARM_PATCH)
    columns, rows = (x.ravel() for x in np.meshgrid(np.arange(u0, u1), np.arange(v0, v1)))
    along = ((columns + 0.5) / size - ARM_PATCH[0]) / (ARM_PATCH[2] - ARM_PATCH[0])
    around = ((rows + 0.5) / size - ARM_PATCH[1]) / (ARM_PATCH[3] - ARM_PATCH[1])
    arm = arm_marks(template[arrays["wrist_loop"]], ARM_LENGTH * along**ARM_EXPONENT, around)
    filled = painted.copy()
    filled[rows, columns] = True
    chart = np.zeros((len(CHANNELS), size, size), np.float32)
    for i, channel in enumerate(CHANNELS):
        plane = np.zeros((size, size), np.float64)
        plane[painted] = getattr(hand, channel)
        plane[rows, columns] = getattr(arm, channel)
        chart[i] = _bleed(plane, filled)
    return chart


def arm_marks(loop: Real, along: Real, around: Real) -> Marks:
    """Compute the marks of the arm, which is the wrist's edge extended along x.

    Args:
        loop: Positions of the wrist's edge (loop, 3).
        along: Distance of each point from the edge, metres.
        around: Position around the edge, 0 to 1.
    """
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
    side = outward[:, 2]
    wander = 0.004 * noise(points, 0.05, 40)
    vein = sum(line(side - place + wander, 0.0016) for place in (-0.008, 0.006, 0.015)) * inner
    tendon = sum(line(side - place, 0.0028) for place in (-0.003, 0.004)) * inner * smooth_step(0.08, 0.0, along)
    wrinkle = line(along - 0.006 + 0.2 * wander, 0.0009) + 0.6 * line(along - 0.013 + 0.25 * wander, 0.0008)
    return Marks(
        palm=INNER_ARM * inner,
        crease=0.5 * inner * wrinkle,
        relief=0.3 * vein + 0.8 * tendon + 0.05 * fine - 0.2 * inner * wrinkle,
        blood=0.25 * coarse * 0.3,
        vein=0.7 * np.clip(vein, 0.0, 1.0) * smooth_step(0.3, 0.05, along),
        coarse=coarse,
        fine=fine,
    )


def _bleed(plane: Real, painted: npt.NDArray[np.bool_], rings: int = 6) -> Real:
    """Extend values beyond the borders of the chart, because sampling near a seam reads texels on its other side."""
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

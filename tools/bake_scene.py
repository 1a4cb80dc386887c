"""Write handtailor_jax/assets/scene.npz: the faces of a rendered scene, which are the same for every sample.

    python tools/bake_scene.py

The scene is the embedded hand, its arm, a sleeve, a band and two objects. Run it again after bake_hand/.
"""

from pathlib import Path

import numpy as np

from handtailor_jax.mano.loading import embedded_arrays
from handtailor_jax.synthetic.surface import (
    ARM_ARC,
    ARM_EXPONENT,
    ARM_LENGTH,
    ARM_PATCH,
    BAND,
    BAND_STEPS,
    FOREGROUND,
    HELD,
    OBJECT_GRID,
    SKIN,
    SLEEVE,
    SLEEVE_STEPS,
)

TARGET = Path(__file__).resolve().parents[1] / "handtailor_jax" / "assets" / "scene.npz"


def scene_arrays() -> dict[str, np.ndarray]:
    """Return the arrays of `handtailor_jax.synthetic.surface.SceneTopology`."""
    arrays = embedded_arrays()
    hand_faces, loop = arrays["faces"].astype(np.int32), arrays["wrist_loop"].astype(np.int32)
    # The arm continues with the orientation of the hand's faces at the loop.
    corners = np.stack([hand_faces, np.roll(hand_faces, -1, axis=1)], axis=-1)
    forward = bool((corners == loop[:2]).all(axis=-1).any())
    start = len(arrays["template"])

    def rows(count: int, columns: int) -> np.ndarray:
        nonlocal start
        start += count * columns
        return np.arange(start - count * columns, start, dtype=np.int32).reshape(count, columns)

    arm, chart = _tube(np.concatenate([loop[None], rows(len(ARM_ARC), len(loop))]), (0.0, *ARM_ARC), forward)
    u0, v0, u1, v1 = ARM_PATCH
    down = (chart[..., 1].astype(np.float64) / ARM_LENGTH) ** (1.0 / ARM_EXPONENT)  # texels near the hand are smaller
    chart = np.stack([u0 + (u1 - u0) * down, v0 + (v1 - v0) * chart[..., 0]], axis=-1)
    parts = [(hand_faces, arrays["uv"], SKIN), (arm, chart, SKIN)]
    parts += [
        (*_tube(rows(len(steps), len(loop)), steps, forward), kind)
        for steps, kind in ((SLEEVE_STEPS, SLEEVE), (BAND_STEPS, BAND))
    ]
    along = np.linspace(0.0, 1.0, OBJECT_GRID[0]).tolist()
    parts += [(*_tube(rows(*OBJECT_GRID), along, False), kind) for kind in (HELD, FOREGROUND)]
    faces, uv = (np.concatenate([part[i] for part in parts]) for i in range(2))
    material = np.concatenate([np.full(len(part[0]), part[2]) for part in parts])
    return {
        "faces": faces.astype(np.int32),
        "is_hand": (np.arange(len(faces)) < len(hand_faces)).astype(np.int32),
        "wrist_loop": loop,
        **_divided(faces.astype(np.int32), uv.astype(np.float32), material, start),
    }


def _tube(rows: np.ndarray, along: tuple[float, ...] | list[float], turned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the faces (F, 3) between rings of vertices (rows, columns) and their chart (F, 3, 2): around, along."""
    columns = rows.shape[1]
    following = np.roll(rows, -1, axis=1)
    quads = np.stack([rows[:-1], following[:-1], following[1:], rows[1:]], axis=-1)
    around = (np.arange(columns)[:, None] + np.asarray([0, 1, 1, 0])) / columns
    down = np.asarray(along)[np.arange(len(rows) - 1)[:, None] + np.asarray([0, 0, 1, 1])]
    chart = np.stack(np.broadcast_arrays(around[None], down[:, None]), axis=-1)
    order = [[2, 1, 0], [3, 2, 0]] if turned else [[0, 1, 2], [0, 2, 3]]
    return quads[:, :, order].reshape(-1, 3), chart[:, :, order].reshape(-1, 3, 2).astype(np.float32)


def _divided(faces: np.ndarray, uv: np.ndarray, material: np.ndarray, vertices: int) -> dict[str, np.ndarray]:
    """Return edges, faces, materials and chart of the smooth mesh, with four faces for one of skin or cloth."""
    smooth = material < HELD
    sides = np.stack([faces[smooth], np.roll(faces[smooth], -1, axis=1)], axis=-1)
    edges, number = np.unique(np.sort(sides.reshape(-1, 2), axis=1), axis=0, return_inverse=True)
    middles = (vertices + number.reshape(-1, 3)).astype(np.int32)
    uv_middles = 0.5 * (uv[smooth] + np.roll(uv[smooth], -1, axis=1))

    def four(at_corners: np.ndarray, at_middles: np.ndarray) -> np.ndarray:
        at_ends = [np.stack([at_corners[:, k], at_middles[:, k], at_middles[:, k - 1]], axis=1) for k in range(3)]
        return np.stack([at_middles, *at_ends], axis=1).reshape(-1, *at_corners.shape[1:])

    smooth_uv = np.concatenate([four(uv[smooth], uv_middles), uv[~smooth]])
    return {
        "edges": edges.astype(np.int32),
        "smooth_faces": np.concatenate([four(faces[smooth], middles), faces[~smooth]]),
        "material": np.concatenate([np.repeat(material[smooth], 4), material[~smooth]]).astype(np.int32),
        "uv": np.ascontiguousarray(smooth_uv.transpose(2, 1, 0).reshape(6, -1)),
    }


if __name__ == "__main__":
    np.savez_compressed(TARGET, **scene_arrays())
    print(f"wrote {TARGET}: {TARGET.stat().st_size / 1e3:.0f} kB")

"""Rotations: axis-angle vectors (radians), 3 x 3 matrices and quaternions (w, x, y, z).

Power series in the squared angle (at zero) and double ``where`` (at pi) keep values and gradients of all orders finite.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

# Below this squared angle the series are used; their first neglected term is then under 1e-12 relative.
_SERIES_BELOW = 1e-2


def _sinc_coefficients(squared_angle: Array) -> tuple[Array, Array, Array]:
    """Return sin(t)/t, (1 - cos(t))/t^2 and (t - sin(t))/t^3 as functions of t^2, smooth at zero."""
    t2 = squared_angle
    small = t2 < _SERIES_BELOW
    safe = jnp.where(small, 1.0, t2)  # double where: the unused branch must not divide by zero in its gradient
    t = jnp.sqrt(safe)
    half_sine, sine = jnp.sin(0.5 * t), jnp.sin(t)
    a = jnp.where(small, _alternating(t2, 6.0, 20.0, 42.0, 72.0), sine / t)
    b = jnp.where(small, 0.5 * _alternating(t2, 12.0, 30.0, 56.0, 90.0), 2.0 * half_sine * half_sine / safe)
    c = jnp.where(small, _alternating(t2, 20.0, 42.0, 72.0, 110.0) / 6.0, (t - sine) / (safe * t))
    return a, b, c


def _alternating(x: Array, *divisors: float) -> Array:
    """Return 1 - x / d0 (1 - x / d1 (1 - ...))."""
    return 1.0 - x / divisors[0] * (_alternating(x, *divisors[1:]) if len(divisors) > 1 else 1.0)


def skew(vector: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """Return the matrix of the cross product: ``skew(v) @ x == cross(v, x)``."""
    x, y, z = (vector[..., i] for i in range(3))
    zero = jnp.zeros_like(x)
    return jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*vector.shape[:-1], 3, 3)


def matrix_from_axis_angle(axis_angle: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """Convert axis-angle vectors (radians) to matrices by Rodrigues' formula, R = I + a [v] + b [v]^2."""
    t2 = jnp.sum(axis_angle * axis_angle, axis=-1)
    a, b, _ = _sinc_coefficients(t2)
    return _combine(1.0 - b * t2, a, b, axis_angle)  # [v]^2 = v v^T - |v|^2 I


def left_jacobian(axis_angle: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """Return J with ``R(v + dv) = R(J dv) R(v)`` to first order; it maps axis-angle rates to angular velocity."""
    return _combine(*_sinc_coefficients(jnp.sum(axis_angle * axis_angle, axis=-1)), axis_angle)


def _combine(identity: Array, cross: Array, outer: Array, vector: Array) -> Array:
    """Return a weighted sum of the identity, the cross product's matrix and the outer product of vectors."""
    product = vector[..., :, None] * vector[..., None, :]
    eye = jnp.broadcast_to(jnp.eye(3, dtype=vector.dtype), product.shape)
    return identity[..., None, None] * eye + cross[..., None, None] * skew(vector) + outer[..., None, None] * product


def axis_angle_from_quaternion(quaternion: Float[Array, "*batch 4"]) -> Float[Array, "*batch 3"]:
    """Convert quaternions (w, x, y, z) of any length to axis-angle vectors of at most pi radians.

    q and -q give the same vector. A zero quaternion gives the zero vector.
    """
    norm2 = jnp.sum(quaternion * quaternion, axis=-1, keepdims=True)
    degenerate = norm2 <= 0.0
    q = jnp.where(degenerate, 0.0, quaternion / jnp.sqrt(jnp.where(degenerate, 1.0, norm2)))
    w, xyz = q[..., :1], q[..., 1:]
    xyz, w = jnp.where(w < 0.0, -xyz, xyz), jnp.abs(w)
    sine2 = jnp.sum(xyz * xyz, axis=-1, keepdims=True)
    small = sine2 < 1e-8
    sine = jnp.sqrt(jnp.where(small, 1.0, sine2))
    # atan2(s, w)/s -> 1/w (1 - s^2 / (3 w^2)) near s = 0, where w is close to 1.
    safe_w = jnp.where(small & ~degenerate, w, 1.0)
    factor = jnp.where(
        small,
        2.0 / safe_w * (1.0 - sine2 / (3.0 * safe_w * safe_w)),
        2.0 * jnp.arctan2(sine, jnp.where(small, 1.0, w)) / sine,
    )
    return factor * xyz


def quaternion_from_matrix(matrix: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch 4"]:
    """Convert rotation matrices to unit quaternions (w, x, y, z) by the best conditioned of Shepperd's four forms."""
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    rows = (  # row i is 4 q_i q
        (1.0 + xx + yy + zz, wx, wy, wz),
        (wx, 1.0 + xx - yy - zz, xy, xz),
        (wy, xy, 1.0 - xx + yy - zz, yz),
        (wz, xz, yz, 1.0 - xx - yy + zz),
    )
    candidates = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    diagonal = jnp.stack([candidates[..., i, i] for i in range(4)], axis=-1)
    best = jnp.argmax(diagonal, axis=-1)[..., None, None]
    q = jnp.take_along_axis(candidates, best, axis=-2)[..., 0, :]
    return q / jnp.sqrt(jnp.sum(q * q, axis=-1, keepdims=True))


def axis_angle_from_matrix(matrix: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch 3"]:
    """Convert rotation matrices to axis-angle vectors of at most pi radians."""
    return axis_angle_from_quaternion(quaternion_from_matrix(matrix))


def matrix_from_quaternion(quaternion: Float[Array, "*batch 4"]) -> Float[Array, "*batch 3 3"]:
    """Convert quaternions (w, x, y, z) of any non-zero length to rotation matrices."""
    s = (2.0 / jnp.sum(quaternion * quaternion, axis=-1))[..., None, None]
    w, v = quaternion[..., 0], quaternion[..., 1:]
    eye = jnp.broadcast_to(jnp.eye(3, dtype=v.dtype), (*v.shape, 3))
    return eye + s * _combine(-jnp.sum(v * v, axis=-1), w, jnp.ones_like(w), v)


def angle_between(first: Float[Array, "*batch 3 3"], second: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch"]:
    """Return the geodesic distance between rotation matrices, 0 to pi radians."""
    relative = jnp.einsum("...ji,...jk->...ik", first, second, precision="highest")
    squared = jnp.sum(axis_angle_from_matrix(relative) ** 2, axis=-1)
    equal = squared <= 0.0
    return jnp.where(equal, 0.0, jnp.sqrt(jnp.where(equal, 1.0, squared)))  # double where: gradient 0, not NaN, at 0


def rotate_towards(
    start: Float[Array, "*batch 3"], end: Float[Array, "*batch 3"], share: Float[Array, ""]
) -> Float[Array, "*batch 3"]:
    """Interpolate from `start` (share 0) to `end` (share 1) along the shortest path; axis-angle, radians."""
    product = functools.partial(jnp.einsum, precision="highest")
    first = matrix_from_axis_angle(start)
    turn = axis_angle_from_matrix(product("...ba,...bc->...ac", first, matrix_from_axis_angle(end)))
    return axis_angle_from_matrix(product("...ab,...bc->...ac", first, matrix_from_axis_angle(share * turn)))

"""Residuals and terms of the tailor's energies, one function each; weights are applied by the energies."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.geometry.cameras import project
from handtailor_jax.mano.anatomy import Anatomy
from handtailor_jax.skeleton import FINGER_KEYPOINTS
from handtailor_jax.types import Camera

# (5, 4) keypoints a, b, c, d of each finger, from tip to palm.
_TIP_TO_PALM = np.asarray(FINGER_KEYPOINTS, np.int32)[:, ::-1]


def reprojection(
    camera: Camera, keypoints: Float[Array, "21 3"], observed: Float[Array, "21 2"]
) -> Float[Array, "21 2"]:
    """Return pi(K; X) - x in pixels for camera-frame keypoints: the residual of Eq. 8, 9 and 16 of the paper."""
    return project(camera, keypoints) - observed


def squared(residual: Float[Array, "..."]) -> Float[Array, ""]:
    """Return ||r||^2: E_J (Eq. 9 of the paper) of the reprojection, E_id (Eq. 11) of a parameter's change."""
    return jnp.sum(residual * residual)


def depth(
    rendered: Float[Array, "height width"], observed: Float[Array, "height width"]
) -> Float[Array, "height width"]:
    """Return rendered minus observed depth where both are finite, else 0: the residual of E_d (Table 4)."""
    both = jnp.isfinite(rendered) & jnp.isfinite(observed)
    return jnp.where(both, rendered, 0.0) - jnp.where(both, observed, 0.0)


def silhouette(
    rendered: Float[Array, "height width"], observed: Float[Array, "height width"]
) -> Float[Array, "height width"]:
    """Return rendered minus observed coverage of each pixel, -1 to 1: the residual of E_sil (Table 4)."""
    return rendered - observed


def twist(keypoints: Float[Array, "21 3"]) -> tuple[Float[Array, "5"], Float[Array, "5"]]:
    """Return both parts of E_g (Eq. 10 of the paper) for each finger: non-planarity and backward bend.

    With V_ab = p_a - p_b from tip to palm, the non-planarity |(V_ab x V_bc) . V_cd| grows as the finger leaves its
    plane, and the backward bend (V_ab x V_bc) . (V_bc x V_cd) is negative if consecutive joints bend in opposite
    directions; the energies clamp it to at most 0. For keypoints in a unit u, the parts are in u^3 and u^4.
    """
    finger = keypoints[_TIP_TO_PALM]
    bones = finger[:, :-1] - finger[:, 1:]
    ab, bc, cd = bones[:, 0], bones[:, 1], bones[:, 2]
    normal = jnp.cross(ab, bc)
    return jnp.abs(jnp.sum(normal * cd, axis=-1)), jnp.sum(normal * jnp.cross(bc, cd), axis=-1)


def limit_excess(anatomy: Anatomy, coordinates: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
    """Return the signed excess (radians) of finger coordinates over the joint limits, 0 within; not in the paper."""
    above = jnp.maximum(coordinates - anatomy.upper, 0.0)
    below = jnp.maximum(anatomy.lower - coordinates, 0.0)
    return above - below

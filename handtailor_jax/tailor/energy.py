"""The tailor's energy terms, one function a term; weights stay outside.

Keypoints are ordered canonically. "Model" quantities are in the camera frame or in the unit that the caller chose;
each docstring says which.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.geometry.cameras import project
from handtailor_jax.mano.anatomy import Anatomy
from handtailor_jax.skeleton import FINGER_KEYPOINTS, REFERENCE_BONE
from handtailor_jax.types import Camera

# (5, 4) keypoints a, b, c, d of each finger, from tip to palm.
_TIP_TO_PALM = np.asarray(FINGER_KEYPOINTS, np.int32)[:, ::-1]


def reprojection(
    camera: Camera, keypoints: Float[Array, "21 3"], observed: Float[Array, "21 2"]
) -> Float[Array, "21 2"]:
    """pi(K; X) - x in pixels, for camera-frame keypoints; the residual of E_s (Eq. 8), E_J (Eq. 9) and Eq. 16."""
    return project(camera, keypoints) - observed


def squared(residual: Float[Array, "..."]) -> Float[Array, ""]:
    """||r||^2: E_J (Eq. 9) of the reprojection, E_id (Eq. 11) of a parameter's departure from its start."""
    return jnp.sum(residual * residual)


def depth(
    rendered: Float[Array, "height width"], observed: Float[Array, "height width"]
) -> Float[Array, "height width"]:
    """Rendered minus observed depth, in their unit, where both are finite, else 0; the residual of E_d (Table 4)."""
    both = jnp.isfinite(rendered) & jnp.isfinite(observed)
    return jnp.where(both, rendered, 0.0) - jnp.where(both, observed, 0.0)


def silhouette(
    rendered: Float[Array, "height width"], observed: Float[Array, "height width"]
) -> Float[Array, "height width"]:
    """Rendered minus observed coverage of each pixel, -1 to 1; the residual of E_sil (Table 4)."""
    return rendered - observed


def twist(keypoints: Float[Array, "21 3"]) -> tuple[Float[Array, "5"], Float[Array, "5"]]:
    """The two parts of E_g (Eq. 10) for each finger: (non-planarity, backward bend), both zero for a natural finger.

    With V_ab = p_a - p_b from tip to palm: |(V_ab x V_bc) . V_cd|, which grows when the finger leaves its plane, and
    (V_ab x V_bc) . (V_bc x V_cd), which is negative when consecutive joints bend opposite ways; the caller clamps it.
    The keypoints may be in any unit u; the parts are in u^3 and u^4.
    """
    finger = keypoints[_TIP_TO_PALM]
    bones = finger[:, :-1] - finger[:, 1:]
    ab, bc, cd = bones[:, 0], bones[:, 1], bones[:, 2]
    normal = jnp.cross(ab, bc)
    return jnp.abs(jnp.sum(normal * cd, axis=-1)), jnp.sum(normal * jnp.cross(bc, cd), axis=-1)


def limit_excess(anatomy: Anatomy, coordinates: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
    """Signed distance (radians) of finger coordinates beyond the joint limits, zero inside them; not in the paper."""
    above = jnp.maximum(coordinates - anatomy.upper, 0.0)
    below = jnp.maximum(anatomy.lower - coordinates, 0.0)
    return above - below


def reference_bone_length(keypoints: Float[Array, "21 3"]) -> Float[Array, ""]:
    """Distance from the wrist to the middle MCP, in the keypoints' unit."""
    bone = keypoints[REFERENCE_BONE[0]] - keypoints[REFERENCE_BONE[1]]
    return jnp.sqrt(jnp.sum(bone * bone))

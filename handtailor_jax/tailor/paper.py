"""The energy of the paper (Eq. 13) and of the released program: its terms, one function each, and their sum.

The unknowns are axis-angle pose and shape.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.errors import InputError
from handtailor_jax.geometry import exact
from handtailor_jax.geometry.cameras import place, project
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.render.soft import soft_rasterise
from handtailor_jax.skeleton import FINGER_KEYPOINTS, JOINT_PARENTS, ROOT, ROOT_JOINT
from handtailor_jax.types import Camera, HandParameters, Observation, pytree

# Keypoints a, b, c, d of each finger, from tip to palm, (5, 4).
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


@dataclasses.dataclass(frozen=True)
class PaperEnergy:
    """Weights of the terms of Eq. 13, E = E_J + E_g + E_id."""

    joint: float = 1.0
    """Weight of E_J (Eq. 9): the sum of squared pixel distances."""
    non_planarity: float = 100.0
    """Weight of the first part of E_g (Eq. 10): the sum over fingers, in units of the reference bone."""
    backward_bend: float = 100.0
    """Weight of the second part of E_g (Eq. 10): the sum over fingers, in units of the reference bone."""
    identity_pose: float = 0.1
    """Weight of the pose's squared change from the start (Eq. 11)."""
    identity_betas: float = 0.1
    """Weight of the betas' squared change from the start (Eq. 11)."""
    depth: float = 0.0
    """Weight of E_d (Table 4): the sum of squared differences from the observed depth map, in its unit. If this or
    `silhouette` is not 0, every evaluation renders the hand in the size of the observed map."""
    silhouette: float = 0.0
    """Weight of E_sil (Table 4): the sum of squared differences from the observed mask."""
    released: bool = False
    """True for the energy of the released program, which differs from the paper: the length of the reference bone is
    fixed instead of the model's scale; with intrinsics this length is optimised, but the result has its initial value,
    and E_g is in camera-frame units; the backward bends of all fingers are summed before clamping."""

    def without_twist(self) -> "PaperEnergy":
        """Return the energy without E_g."""
        return dataclasses.replace(self, non_planarity=0.0, backward_bend=0.0)

    def without_identity(self) -> "PaperEnergy":
        """Return the energy without E_id."""
        return dataclasses.replace(self, identity_pose=0.0, identity_betas=0.0)


@pytree
class PaperProblem:
    """Minimisation of Eq. 13 for one hand; the unknowns x are pose (48), betas and the reference bone."""

    weights: PaperEnergy = dataclasses.field(metadata={"static": True})
    hand: HandModel
    start: HandParameters
    observation: Observation

    @property
    def initial(self) -> Float[Array, "unknowns"]:
        """The unknowns before the first step."""
        return jnp.concatenate([self.start.pose.reshape(48), self.start.betas, self._start_bone()[None]])

    @exact
    def energy(self, x: Float[Array, "unknowns"]) -> Float[Array, ""]:
        """Return E (Eq. 13 of the paper)."""
        w, start, seen = self.weights, self.start, self.observation
        parameters = self._parameters(x, x[-1])
        posed = self.hand.shape(parameters.betas).pose(parameters.pose)
        keypoints = posed.keypoints
        relative = keypoints - keypoints[ROOT][None]  # root-relative, because a large translation loses precision
        unit = 1.0 / self._model_bone(parameters.betas)
        if w.released:
            unit = jnp.where(seen.camera.perspectivity > 0.5, parameters.scale, unit)
        non_planarity, bend = twist(relative * unit)
        backward = jnp.minimum(jnp.sum(bend), 0.0) if w.released else jnp.sum(jnp.minimum(bend, 0.0))
        placed = parameters.scale * relative + parameters.translation[None]
        residual = reprojection(seen.camera, placed, seen.keypoints_2d)
        energy = (
            w.joint * jnp.sum(seen.confidence[:, None] * residual * residual)
            + w.non_planarity * jnp.sum(non_planarity)
            - w.backward_bend * backward
            + w.identity_pose * squared(parameters.pose - start.pose)
            + w.identity_betas * squared(parameters.betas - start.betas)
        )
        if w.depth or w.silhouette:
            energy = energy + self._image_energy(place(parameters, posed.skin().vertices, posed.joints[ROOT_JOINT]))
        return energy

    def _image_energy(self, vertices: Float[Array, "vertices 3"]) -> Float[Array, ""]:
        """Return the weighted sum of E_d and E_sil (Table 4) of camera-frame vertices."""
        w, seen = self.weights, self.observation
        observed = seen.depth_map if w.depth else seen.mask
        if observed is None or (w.silhouette and seen.mask is None):
            raise InputError(
                "the observation lacks the depth_map or mask that the energy weighs: give it, or set its weight to 0"
            )
        maps = soft_rasterise(vertices, self.hand.faces, seen.camera, *observed.shape)
        energy = jnp.zeros((), vertices.dtype)
        if w.depth and seen.depth_map is not None:
            energy = energy + w.depth * squared(depth(maps.depth, seen.depth_map))
        if w.silhouette and seen.mask is not None:
            energy = energy + w.silhouette * squared(silhouette(maps.silhouette, seen.mask))
        return energy

    def parameters(self, x: Float[Array, "unknowns"]) -> HandParameters:
        """Return the hand at x, with the size of the start (the released program discards the optimised bone)."""
        return self._parameters(x, self._start_bone())

    def _parameters(self, x: Float[Array, "unknowns"], bone: Float[Array, ""]) -> HandParameters:
        betas, scale = x[48:-1], self.start.scale
        if self.weights.released:
            # The bone is an unknown with intrinsics only.
            perspective = self.observation.camera.perspectivity > 0.5
            scale = jnp.where(perspective, bone, self._start_bone()) / self._model_bone(betas)
        return dataclasses.replace(self.start, pose=x[:48].reshape(16, 3), betas=betas, scale=scale)

    def _model_bone(self, betas: Float[Array, "betas"]) -> Float[Array, ""]:
        joints = self.hand.shape(betas).rest_joints
        bone = joints[JOINT_PARENTS[ROOT_JOINT]] - joints[ROOT_JOINT]
        return jnp.sqrt(jnp.sum(bone * bone))

    def _start_bone(self) -> Float[Array, ""]:
        return self.start.scale * self._model_bone(self.start.betas)

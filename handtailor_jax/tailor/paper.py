"""The energy of the paper (Eq. 13) and of the released program; the unknowns are axis-angle pose and shape."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.errors import InputError
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.render.soft import soft_rasterise
from handtailor_jax.skeleton import JOINT_PARENTS, ROOT, ROOT_JOINT
from handtailor_jax.tailor import energy as terms
from handtailor_jax.tailor.placement import place, posed_hand
from handtailor_jax.types import HandParameters, Observation, pytree


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
    """Weight of E_d (Table 4): the sum of squared differences to the observed depth map, in its unit. If this or
    `silhouette` is not 0, every evaluation renders the hand in the size of the observed map."""
    silhouette: float = 0.0
    """Weight of E_sil (Table 4): the sum of squared differences to the observed mask."""
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
        return jnp.concatenate([self.start.pose.reshape(48), self.start.betas, self._bone(self.start)[None]])

    def energy(self, x: Float[Array, "unknowns"]) -> Float[Array, ""]:
        """Return E (Eq. 13 of the paper)."""
        w, start = self.weights, self.start
        parameters = self._parameters(x, x[-1])
        posed = posed_hand(self.hand, parameters)
        keypoints = posed.keypoints
        relative = keypoints - keypoints[ROOT][None]  # in pixels, a translation would cost digits
        unit = 1.0 / self._model_bone(parameters.betas)
        if w.released:
            unit = jnp.where(self.observation.camera.perspectivity > 0.5, parameters.scale, unit)
        non_planarity, bend = terms.twist(relative * unit)
        backward = jnp.minimum(jnp.sum(bend), 0.0) if w.released else jnp.sum(jnp.minimum(bend, 0.0))
        placed = parameters.scale * relative + parameters.translation[None]
        residual = terms.reprojection(self.observation.camera, placed, self.observation.keypoints_2d)
        energy = (
            w.joint * jnp.sum(self.observation.confidence[:, None] * residual * residual)
            + w.non_planarity * jnp.sum(non_planarity)
            - w.backward_bend * backward
            + w.identity_pose * terms.squared(parameters.pose - start.pose)
            + w.identity_betas * terms.squared(parameters.betas - start.betas)
        )
        if w.depth or w.silhouette:
            energy = energy + self._image_energy(place(parameters, posed.skin().vertices, posed.joints[ROOT_JOINT]))
        return energy

    def _image_energy(self, vertices: Float[Array, "vertices 3"]) -> Float[Array, ""]:
        """Return the weighted sum of E_d and E_sil (Table 4) of camera-frame vertices."""
        w, seen = self.weights, self.observation
        depth_map = seen.depth_map if w.depth else None
        mask = seen.mask if w.silhouette else None
        observed = depth_map if mask is None else mask
        if observed is None or (w.depth and depth_map is None) or (w.silhouette and mask is None):
            raise InputError(
                "the observation lacks the depth_map or mask that the energy weighs: give it, or set its weight to 0"
            )
        maps = soft_rasterise(vertices, self.hand.faces, seen.camera, *observed.shape)
        energy = jnp.zeros((), vertices.dtype)
        if depth_map is not None:
            energy = energy + w.depth * terms.squared(terms.depth(maps.depth, depth_map))
        if mask is not None:
            energy = energy + w.silhouette * terms.squared(terms.silhouette(maps.silhouette, mask))
        return energy

    def parameters(self, x: Float[Array, "unknowns"]) -> HandParameters:
        """Return the hand at x, with the size of the start (the released program discards the optimised bone)."""
        return self._parameters(x, self._bone(self.start))

    def _parameters(self, x: Float[Array, "unknowns"], bone: Float[Array, ""]) -> HandParameters:
        betas = x[48:-1]
        if self.weights.released:
            # The bone is an unknown with intrinsics only.
            perspective = self.observation.camera.perspectivity > 0.5
            bone = jnp.where(perspective, bone, self._bone(self.start))
            scale = bone / self._model_bone(betas)
        else:
            scale = self.start.scale
        return dataclasses.replace(self.start, pose=x[:48].reshape(16, 3), betas=betas, scale=scale)

    def _model_bone(self, betas: Float[Array, "betas"]) -> Float[Array, ""]:
        joints = self.hand.shape(betas).rest_joints
        bone = joints[JOINT_PARENTS[ROOT_JOINT]] - joints[ROOT_JOINT]
        return jnp.sqrt(jnp.sum(bone * bone))

    def _bone(self, parameters: HandParameters) -> Float[Array, ""]:
        return parameters.scale * self._model_bone(parameters.betas)

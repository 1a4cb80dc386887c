"""The energy of the paper (Eq. 13) and that of the released program, over axis-angle pose and shape."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.errors import InputError
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.render.soft import soft_rasterise
from handtailor_jax.skeleton import ROOT
from handtailor_jax.tailor import energy as terms
from handtailor_jax.tailor.placement import ROOT_JOINT, place, posed_hand
from handtailor_jax.types import HandParameters, Observation, pytree


@dataclasses.dataclass(frozen=True)
class PaperEnergy:
    """Weights of Eq. 13, E = joint E_J + twist E_g + identity E_id, and the released program's departures from it."""

    joint: float = 1.0
    """Weight of E_J, the sum of squared pixel distances (Eq. 9)."""
    non_planarity: float = 100.0
    """Weight of the first part of E_g, summed over fingers, in reference-bone units (Eq. 10)."""
    backward_bend: float = 100.0
    """Weight of the second part of E_g (Eq. 10)."""
    identity_pose: float = 0.1
    """Weight of ||theta - theta'||^2 (Eq. 11)."""
    identity_betas: float = 0.1
    """Weight of ||beta - beta'||^2 (Eq. 11)."""
    depth: float = 0.0
    """Weight of E_d, the sum of squared differences to the observed depth map, in its unit (Table 4). The hand is
    rendered in every evaluation, in the observed map's size, if this or `silhouette` is not 0."""
    silhouette: float = 0.0
    """Weight of E_sil, the sum of squared differences to the observed mask (Table 4)."""
    released: bool = False
    """The released program: the reference bone's length, not the scale of the model, is what stays fixed; with
    intrinsics that length is optimised too but thrown away at the end, and E_g is taken in camera-frame units; the
    backward bends of all fingers are summed before they are clamped."""


@pytree
class PaperProblem:
    """Eq. 13 for one hand: unknowns x = (pose (48), betas, reference bone), energy E(x), result HandParameters(x)."""

    weights: PaperEnergy = dataclasses.field(metadata={"static": True})
    hand: HandModel
    start: HandParameters
    observation: Observation

    @property
    def initial(self) -> Float[Array, "unknowns"]:
        """x before the first step."""
        return jnp.concatenate([self.start.pose.reshape(48), self.start.betas, self._bone(self.start)[None]])

    def energy(self, x: Float[Array, "unknowns"]) -> Float[Array, ""]:
        """E (Eq. 13)."""
        w, start = self.weights, self.start
        parameters = self._parameters(x, x[-1])
        posed = posed_hand(self.hand, parameters)
        keypoints = posed.keypoints
        relative = keypoints - keypoints[ROOT][None]  # placed later: pixels of translation would swallow small hands
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
        """The weighted sum of E_d and E_sil (Table 4) of camera-frame vertices."""
        w, seen = self.weights, self.observation
        depth_map = seen.depth_map if w.depth else None
        mask = seen.mask if w.silhouette else None
        observed = depth_map if mask is None else mask
        if observed is None or (w.depth and depth_map is None) or (w.silhouette and mask is None):
            raise InputError("an energy with a weight for depth or silhouette needs an observed depth_map or mask")
        maps = soft_rasterise(vertices, self.hand.faces, seen.camera, *observed.shape)
        energy = jnp.zeros((), vertices.dtype)
        if depth_map is not None:
            energy = energy + w.depth * terms.squared(terms.depth(maps.depth, depth_map))
        if mask is not None:
            energy = energy + w.silhouette * terms.squared(terms.silhouette(maps.silhouette, mask))
        return energy

    def parameters(self, x: Float[Array, "unknowns"]) -> HandParameters:
        """The hand at x; its size is that of the start (the released program discards the optimised bone)."""
        return self._parameters(x, self._bone(self.start))

    def _parameters(self, x: Float[Array, "unknowns"], bone: Float[Array, ""]) -> HandParameters:
        betas = x[48:-1]
        if self.weights.released:
            # Only with intrinsics is the bone an unknown.
            perspective = self.observation.camera.perspectivity > 0.5
            bone = jnp.where(perspective, bone, self._bone(self.start))
            scale = bone / self._model_bone(betas)
        else:
            scale = self.start.scale
        return dataclasses.replace(self.start, pose=x[:48].reshape(16, 3), betas=betas, scale=scale)

    def _model_bone(self, betas: Float[Array, "betas"]) -> Float[Array, ""]:
        joints = self.hand.shape(betas).rest_joints
        bone = joints[0] - joints[4]
        return jnp.sqrt(jnp.sum(bone * bone))

    def _bone(self, parameters: HandParameters) -> Float[Array, ""]:
        return parameters.scale * self._model_bone(parameters.betas)

"""The calibrated energy, the default: every residual is divided by its standard deviation, which replaces its weight.

    E = 1/2 sum_k c_k^p rho(|pi(X_k) - x_k|^2 / sigma_px^2)      robust reprojection (Eq. 9 of the paper)
      + 1/2 sum_k c_k^p |d(X_k) - d_k|^2 / sigma_depth^2         relative depths, where they are observed
      + 1/2 (x - mean)' Q (x - mean)                             identity (Eq. 11) and priors, one Gaussian
      + 1/2 sum |excess over joint limits|^2 / sigma_limit^2

The unknowns x are the fingers in anatomical coordinates (flexion, abduction, twist; radians), betas, a rotation vector
applied after the start's global rotation, the root's pixel (in hand sizes, relative to the start) and a log zoom. Zoom
changes the hand's depth with intrinsics and its scale without, so one parametrisation serves both kinds of camera.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.geometry.boxes import largest
from handtailor_jax.geometry.cameras import depth_divisor, focal_length, held_depth, inverse_linear, project, unproject
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, left_jacobian, matrix_from_axis_angle
from handtailor_jax.mano.hand_model import Anatomy, HandModel, PosedHand
from handtailor_jax.mano.kinematics import ANCESTRY, PARENTS
from handtailor_jax.mano.landmarks import KEYPOINT_JOINT, LandmarkConvention
from handtailor_jax.skeleton import FINGER_JOINTS, KEYPOINTS_FROM_MANO, ROOT, ROOT_JOINT
from handtailor_jax.types import HandParameters, Observation, pytree

# Places of the unknowns in x.
_FINGERS, _BETAS, _ROTATION, _PIXEL, _ZOOM = slice(0, 45), slice(45, -6), slice(-6, -3), slice(-3, -1), -1

_TIP_JOINT = np.asarray(FINGER_JOINTS, np.int32)[:, -1]

# 1 where a finger coordinate moves a keypoint, (21, 45).
_MOVES = np.repeat(ANCESTRY[list(KEYPOINT_JOINT), 1:], 3, axis=1)
# The 21 keypoints as sums of bone vectors (of 16 joints and 5 tips) along the chain.
_CHAIN = np.block([[ANCESTRY, np.zeros((16, 5))], [ANCESTRY[_TIP_JOINT], np.eye(5)]])[np.asarray(KEYPOINTS_FROM_MANO)]
# Indices of the flexion coordinates of the four fingers: (4, 3), MCP, PIP and DIP.
_FLEXION = 3 * (np.asarray(FINGER_JOINTS[1:], np.int32) - 1)
# Largest move of the root, in hand sizes, and largest log zoom.
_FARTHEST = 3.0
# Mean flexion of a DIP or an MCP joint per flexion of the PIP joint of the same finger.
_FLEXION_RATIO = 0.6


@dataclasses.dataclass(frozen=True)
class CalibratedEnergy:
    """Standard deviations of all residuals; ``math.inf`` disables a term.

    The identity terms' deviations are the expected errors of the start in pose, shape and placement.
    """

    keypoint_std: float = 0.02
    """Noise of the 2D keypoints, as a share of the hand size (longer side of the keypoints' box)."""
    confidence_power: int = 1
    """Exponent p: a keypoint of confidence c has the weight c^p, that is, the noise keypoint_std / c^(p / 2)."""
    robustness: float = 4.0
    """Degrees of freedom of the Student-t reprojection residual; ``math.inf`` is the plain square."""
    depth_std: float = 0.125
    """Noise of observed relative depths, as a share of the hand size."""
    rotation_std: float = 0.15
    """Identity: standard deviation of the global rotation, radians."""
    finger_std: float = 0.15
    """Identity: standard deviation of the finger rotations, radians."""
    betas_std: float = 1.0
    """Identity: standard deviation of the shape coefficients."""
    pixel_std: float = 20.0
    """Identity: standard deviation of the root's pixel, as a share of the hand size."""
    zoom_std: float = 20.0
    """Identity: standard deviation of the log depth (with intrinsics) or log scale (without)."""
    size_share: float = 0.0
    """Share of a zoom that changes the hand's scale instead of its depth, with intrinsics: 0 keeps the start's scale,
    1 its depth."""
    prior: float = 0.0
    """Factor on the precision of the anatomical pose prior, including the coupling of flexions."""
    betas_prior: float = 0.0
    """Factor on the precision of the unit-variance shape prior."""
    extent: float = 0.159
    """Prior without intrinsics: mean of the length in metres that corresponds to the hand size in the image."""
    extent_std: float = math.inf
    """Prior without intrinsics: standard deviation of the log extent."""
    dip_std: float = math.radians(15.0)
    """Prior: standard deviation of DIP flexion - 0.6 PIP flexion of a finger (shared tendons), radians."""
    mcp_std: float = math.inf
    """Prior: standard deviation of MCP flexion - 0.6 PIP flexion of a finger (all joints close together), radians."""
    limit_std: float = math.radians(3.0)
    """Standard deviation of the excess over joint limits, radians."""


class _State(NamedTuple):
    """Intermediate values of an energy evaluation that the closed-form Jacobian uses."""

    posed: PosedHand
    landmarks: Float[Array, "21 3"]
    rotation: Float[Array, "3 3"]
    root: Float[Array, "3"]
    scale: Float[Array, ""]
    points: Float[Array, "21 3"]
    relative: Float[Array, "21 3"]
    magnification: Float[Array, ""]
    weights: Float[Array, "residuals"]


@pytree
class CalibratedProblem:
    """Minimisation of the energy for one hand; the unknowns x are 45 fingers, betas, 3 rotation, 2 pixel and 1 zoom."""

    config: CalibratedEnergy = dataclasses.field(metadata={"static": True})
    hand: HandModel
    convention: LandmarkConvention
    start: HandParameters
    observation: Observation
    betas_mean: Float[Array, "betas"] | None = None
    """Mean of the shape prior; zero if None."""

    @property
    def initial(self) -> Float[Array, "unknowns"]:
        """The unknowns before the first step."""
        fingers = self.hand.anatomy.coordinates(self.start.pose[1:])
        return jnp.concatenate([fingers.reshape(45), self.start.betas, jnp.zeros((6,), self.hand.dtype)])

    @property
    def size(self) -> Float[Array, ""]:
        """Hand size: longer side of the box of the observed keypoints with a confidence above 0, at least 1 pixel."""
        x, seen = self.observation.keypoints_2d, self.observation.confidence[:, None] > 0.0
        box = largest(jnp.where(seen, x, -jnp.inf)) + largest(jnp.where(seen, -x, -jnp.inf))
        return jnp.maximum(largest(box[:, None])[0], 1.0)

    def parameters(self, x: Float[Array, "unknowns"]) -> HandParameters:
        """Return the hand at x."""
        fingers = self.hand.anatomy.finger_pose(x[_FINGERS].reshape(15, 3))
        rotation, root, scale = self._placement(x)
        pose = jnp.concatenate([axis_angle_from_matrix(rotation)[None], fingers])
        return HandParameters(pose=pose, betas=x[_BETAS], scale=scale, translation=root)

    def energy(self, x: Float[Array, "unknowns"]) -> Float[Array, ""]:
        """Return E(x)."""
        return self._energy(x)[0]

    def normal_equations(
        self, x: Float[Array, "unknowns"]
    ) -> tuple[Float[Array, ""], Float[Array, "unknowns"], Float[Array, "unknowns unknowns"]]:
        """Return E, its exact gradient and a Gauss-Newton approximation of its Hessian at x.

        The Hessian treats each fingertip as rigid with its last bone, without skinning and pose blend shapes. The
        gradient is exact, so the minimum is not affected.
        """
        (value, state), gradient = jax.value_and_grad(self._energy, has_aux=True)(x)
        jacobian = self._jacobian(x, state)
        weighted = jacobian * state.weights[:, None]
        curvature = weighted.T @ jacobian + self._precision()[0]
        beyond = (limit_excess(self.hand.anatomy, x[_FINGERS].reshape(15, 3)) != 0.0).reshape(45)
        stiffness = jnp.concatenate([beyond.astype(x.dtype), jnp.zeros((x.shape[0] - 45,), x.dtype)])
        return value, gradient, curvature + jnp.diag(stiffness / self.config.limit_std**2)

    def _placement(self, x: Float[Array, "unknowns"]) -> tuple[Array, Array, Array]:
        """Return the global rotation (3, 3), the camera-frame root (3,) and the scale at x."""
        camera, start = self.observation.camera, self.start
        rotation = matrix_from_axis_angle(x[_ROTATION]) @ matrix_from_axis_angle(start.pose[0])
        # Ordinary hands never reach these limits; they bound hands in the first steps of a network's training.
        moved, zoom = jnp.clip(x[_PIXEL], -_FARTHEST, _FARTHEST), jnp.clip(x[_ZOOM], -_FARTHEST, _FARTHEST)
        pixel = project(camera, start.translation[None])[0] + self.size * moved
        scale_share, depth_share = self._shares()
        depth = held_depth(camera, start.translation[2] * jnp.exp(-depth_share * zoom))
        root = unproject(camera, pixel[None], depth[None])[0]
        return rotation, root, start.scale * jnp.exp(scale_share * zoom)

    def _shares(self) -> tuple[Array, Array]:
        """Return the shares of the zoom that change the scale and the (inverse) depth."""
        depth = self.observation.camera.perspectivity * (1.0 - self.config.size_share)
        return 1.0 - depth, depth

    def _energy(self, x: Float[Array, "unknowns"]) -> tuple[Float[Array, ""], _State]:
        """Return E(x) and the values that the Jacobian reuses."""
        c, camera, anatomy = self.config, self.observation.camera, self.hand.anatomy
        coordinates = x[_FINGERS].reshape(15, 3)
        # The hand is posed in the palm's frame; the global rotation is part of the placement.
        finger_pose = jnp.concatenate([jnp.zeros((1, 3), x.dtype), anatomy.finger_pose(coordinates)])
        posed = self.hand.shape(x[_BETAS]).pose(finger_pose)
        landmarks = self.convention.landmarks(posed)
        rotation, root, scale = self._placement(x)
        relative = scale * ((landmarks - posed.joints[ROOT_JOINT][None]) @ rotation.T)
        points = relative + root[None]

        residual = (project(camera, points) - self.observation.keypoints_2d) / (c.keypoint_std * self.size)
        squares = jnp.sum(residual * residual, axis=-1)
        confidence = self.observation.confidence**c.confidence_power
        if math.isinf(c.robustness):
            loss, weight = squares, jnp.ones_like(squares)
        else:
            # Student-t: (nu + 1) log(1 + r^2 / nu), scaled so that it is r^2 near zero.
            loss, weight = c.robustness * jnp.log1p(squares / c.robustness), 1.0 / (1.0 + squares / c.robustness)
        terms = [jnp.sum(confidence * loss)]
        weights = jnp.broadcast_to((confidence * weight)[:, None], (21, 2))

        # Pixels per camera-frame unit at the root.
        magnification = focal_length(camera) / depth_divisor(camera, root[2:])[0]
        if self.observation.relative_depth is not None:
            known = jnp.isfinite(self.observation.relative_depth)
            depth = jnp.where(known, self.observation.relative_depth, 0.0)
            weight = jnp.where(known, confidence, 0.0)
            deviation = magnification * relative[:, 2] - depth
            terms.append(jnp.sum(weight * (deviation / (c.depth_std * self.size)) ** 2))
            weights = jnp.concatenate([weights, weight[:, None]], axis=-1)

        precision, mean = self._precision()
        terms.append((x - mean) @ (precision @ (x - mean)))
        terms.append(jnp.sum(limit_excess(anatomy, coordinates) ** 2) / c.limit_std**2)
        energy, weights = 0.5 * sum(terms, jnp.zeros((), x.dtype)), weights.reshape(-1)
        return energy, _State(posed, landmarks, rotation, root, scale, points, relative, magnification, weights)

    def _precision(self) -> tuple[Array, Array]:
        """Return the precision matrix and the mean of the Gaussian that combines identity and priors."""
        c, camera, anatomy, dtype = self.config, self.observation.camera, self.hand.anatomy, self.hand.dtype
        betas, start = self.hand.num_betas, self.initial
        stds = [c.finger_std] * 45 + [c.betas_std] * betas + [c.rotation_std] * 3 + [c.pixel_std] * 2 + [c.zoom_std]
        identity = jnp.asarray([std**-2 for std in stds], dtype)
        if c.prior == 0.0 and c.betas_prior == 0.0 and math.isinf(c.extent_std):
            return jnp.diag(identity), start
        prior = jnp.concatenate([c.prior / anatomy.std.reshape(45) ** 2, jnp.full((betas,), c.betas_prior, dtype)])
        # The extent prior applies without intrinsics only, where the hand size in pixels does not determine a depth.
        zoom = (1.0 - camera.perspectivity) / c.extent_std**2
        per_metre = focal_length(camera) * jnp.abs(self.start.scale)
        zoom_mean = jnp.log(self.size / (c.extent * jnp.maximum(per_metre, 1e-12)))
        zeros = jnp.zeros((5,), dtype)
        prior = jnp.diag(jnp.concatenate([prior, zeros, zoom[None]]))
        betas_mean = jnp.zeros((betas,), dtype) if self.betas_mean is None else self.betas_mean
        prior_mean = jnp.concatenate([anatomy.mean.reshape(45), betas_mean, zeros, zoom_mean[None]])
        coupling = jnp.asarray(math.sqrt(c.prior) * _couplings(c, 51 + betas), dtype)
        precision = jnp.diag(identity) + prior + coupling.T @ coupling
        # The minimum of the sum of the three quadratics; unknowns without any precision stay at the start.
        free = jnp.diagonal(precision) == 0.0
        target = identity * start + prior @ prior_mean + jnp.where(free, start, 0.0)
        mean = jnp.linalg.solve(precision + jnp.diag(free.astype(dtype)), target)
        return precision, mean

    def _jacobian(self, x: Float[Array, "unknowns"], s: _State) -> Float[Array, "residuals unknowns"]:
        """Return the derivative of the scaled residuals in closed form.

        A finger joint that rotates about the axis e through p moves a point q by e x (q - p). For a row g of the
        projection's derivative, g . (e x (q - p)) = (q x g) . e + g . (p x e), so the derivatives by all finger
        coordinates are one (rows, 6) by (6, 45) product.
        """
        c, camera, anatomy, dtype = self.config, self.observation.camera, self.hand.anatomy, x.dtype
        divisor = depth_divisor(camera, s.points[:, 2])[:, None]
        slope = -camera.perspectivity * s.points[:, :2] / divisor
        ray = jnp.concatenate([jnp.broadcast_to(jnp.eye(2, dtype=dtype)[None], (21, 2, 2)), slope[..., None]], axis=-1)
        rows = jnp.einsum("ab,kbc->kac", camera.linear, ray) / divisor[..., None] / (c.keypoint_std * self.size)
        root_divisor = depth_divisor(camera, s.root[2:])[0]
        pixel = jnp.einsum("kab,bc->kac", rows[..., :2], inverse_linear(camera)) * (root_divisor * self.size)
        scale_share, depth_share = self._shares()
        zoom = jnp.einsum("kab,kb->ka", rows, scale_share * s.relative - depth_share * s.root[None])
        if self.observation.relative_depth is not None:
            towards = s.magnification / (c.depth_std * self.size)
            row = jnp.broadcast_to(towards * jnp.asarray([0.0, 0.0, 1.0], dtype)[None, None], (21, 1, 3))
            rows = jnp.concatenate([rows, row], axis=1)
            pixel = jnp.concatenate([pixel, jnp.zeros((21, 1, 2), dtype)], axis=1)
            zoom = jnp.concatenate([zoom, towards * s.relative[:, 2:]], axis=1)
        count = rows.shape[1]

        local = s.scale * jnp.einsum("kab,bc->kac", rows, s.rotation)  # in the palm's frame
        torque = jnp.cross(jnp.broadcast_to(s.landmarks[:, None], local.shape), local)
        parents = s.posed.joint_rotations[PARENTS]
        axes = jnp.einsum(
            "jab,jbc,jdc->jda", parents, left_jacobian(anatomy.finger_pose(x[_FINGERS].reshape(15, 3))), anatomy.axes
        )
        moments = jnp.cross(jnp.broadcast_to(s.posed.joints[1:, None], axes.shape), axes)
        wrench = jnp.concatenate([torque, local], axis=-1).reshape(21 * count, 6)
        screws = jnp.concatenate([axes, moments], axis=-1).reshape(45, 6)
        fingers = (wrench @ screws.T) * jnp.asarray(np.repeat(_MOVES, count, axis=0), dtype)

        stretch = self.hand.joint_shape_directions
        bones = jnp.einsum("jab,jbs->jas", parents, stretch[1:] - stretch[PARENTS])
        tips = jnp.einsum(
            "tab,tbs->tas", s.posed.joint_rotations[_TIP_JOINT], self.hand.tips.shape_directions - stretch[_TIP_JOINT]
        )
        growth = jnp.asarray(_CHAIN, dtype) @ jnp.concatenate([stretch[:1], bones, tips]).reshape(21, -1)
        growth = (growth - growth[ROOT][None]).reshape(21, 3, -1)
        betas = jnp.einsum("kab,kbs->kas", local, growth)

        turn = jnp.cross(jnp.broadcast_to(s.relative[:, None], rows.shape), rows)
        turn = jnp.einsum("kab,bc->kac", turn, left_jacobian(x[_ROTATION]))
        rest = jnp.concatenate([betas, turn, pixel, zoom[..., None]], axis=-1)
        return jnp.concatenate([fingers, rest.reshape(21 * count, -1)], axis=1)


def limit_excess(anatomy: Anatomy, coordinates: Float[Array, "15 3"]) -> Float[Array, "15 3"]:
    """Return the signed excess (radians) of finger coordinates over the joint limits, 0 within."""
    return jnp.maximum(coordinates - anatomy.upper, 0.0) - jnp.maximum(anatomy.lower - coordinates, 0.0)


def _couplings(c: CalibratedEnergy, unknowns: int) -> np.ndarray:
    """Return the rows of the prior that couple flexions, each divided by its standard deviation."""
    rows = np.zeros((4, 2, unknowns))
    for finger, (mcp, pip, dip) in enumerate(_FLEXION):
        for row, joint, std in zip(rows[finger], (dip, mcp), (c.dip_std, c.mcp_std), strict=True):
            row[joint], row[pip] = 1.0 / std, -_FLEXION_RATIO / std
    return rows.reshape(8, unknowns)

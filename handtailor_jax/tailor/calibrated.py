"""Our energy: every residual divided by its standard deviation, so that weights are noise levels and need no tuning.

    E = 1/2 sum_k c_k^p rho(|pi(X_k) - x_k|^2 / sigma_px^2)      robust reprojection (Eq. 9 in units of its noise)
      + 1/2 (x - mean)' Q (x - mean)                           identity (Eq. 11) and pose prior, one Gaussian
      + 1/2 sum |excess over joint limits|^2 / sigma_limit^2

The unknowns x are the fingers in anatomical coordinates (flexion, abduction, twist; radians), betas, a rotation vector
applied after the start's global rotation, the root's pixel (in hand sizes, relative to the start) and a log zoom. Zoom
moves the hand in depth with intrinsics and scales it without, so one parametrisation serves both cameras.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.geometry.cameras import depth_divisor, inverse_linear, project, unproject
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, left_jacobian, matrix_from_axis_angle
from handtailor_jax.mano.hand_model import ANCESTRY, HandModel, PosedHand
from handtailor_jax.mano.landmarks import KEYPOINT_JOINT, LandmarkConvention
from handtailor_jax.skeleton import FINGERS, JOINT_PARENTS, KEYPOINTS_FROM_MANO, MANO_JOINTS
from handtailor_jax.tailor import energy as terms
from handtailor_jax.tailor.placement import ROOT_JOINT
from handtailor_jax.types import HandParameters, Observation, pytree

_FINGERS = slice(0, 45)
_KEYPOINT_JOINT = np.asarray(KEYPOINT_JOINT, np.int32)
_TIP_JOINT = np.asarray([KEYPOINT_JOINT[k] for k in (4, 8, 12, 16, 20)], np.int32)
_PARENTS = np.asarray(JOINT_PARENTS[1:], np.int32)

# Which of the 45 finger coordinates move each keypoint, (21, 45).
_MOVES = np.repeat(ANCESTRY[_KEYPOINT_JOINT, 1:], 3, axis=1)
# Sums of bone vectors along the chain give keypoints: 16 joints and 5 tips to 21 keypoints.
_CHAIN = np.block([[ANCESTRY, np.zeros((16, 5))], [ANCESTRY[_TIP_JOINT], np.eye(5)]])[np.asarray(KEYPOINTS_FROM_MANO)]
# Flexion coordinates of the four fingers, (finger, MCP PIP DIP).
_FLEXION = np.asarray(
    [[3 * (MANO_JOINTS.index(f"{f}_{j}") - 1) for j in ("mcp", "pip", "dip")] for f in FINGERS if f != "thumb"],
    np.int32,
)


_FLEXION_RATIO = 0.6
"""Flexion of a DIP or an MCP joint per flexion of the PIP joint of the same finger."""


@dataclasses.dataclass(frozen=True)
class CalibratedEnergy:
    """Standard deviations of every residual; ``math.inf`` switches one off.

    Those of the identity terms are the noise of the start: how far pose, shape and placement that another method
    proposed are expected to be from the truth.
    """

    keypoint_std: float = 0.02
    """Noise of the 2D keypoints, as a share of the hand's size (longer side of the box around its keypoints)."""
    confidence_power: int = 1
    """A keypoint of confidence c has the weight c^power, that is, noise of keypoint_std / c^(power / 2)."""
    robustness: float = 4.0
    """Degrees of freedom of the Student-t reprojection residual; ``math.inf`` gives the plain square."""
    depth_std: float = 0.125
    """Noise of observed relative depths, as a share of the hand's size."""
    rotation_std: float = 0.15
    """Identity: global rotation, radians."""
    finger_std: float = 0.15
    """Identity: finger rotations, radians."""
    betas_std: float = 1.0
    """Identity: shape coefficients."""
    pixel_std: float = math.inf
    """Identity: the root's pixel, as a share of the hand's size."""
    zoom_std: float = math.inf
    """Identity: log depth (with intrinsics) or log scale (without)."""
    size_share: float = 0.0
    """With intrinsics a hand that looks too small is smaller or farther away. This share of the log ratio goes to its
    scale, the rest to its depth: 0 trusts the start's scale, 1 its depth."""
    prior: float = 0.0
    """Precision multiplier of the anatomical pose prior, including the coupling of DIP to PIP flexion."""
    betas_prior: float = 0.0
    """Precision multiplier of the unit-variance shape prior."""
    extent: float = 0.159
    """Prior without intrinsics: metres that the hand's size in the picture covers."""
    extent_std: float = math.inf
    """Prior without intrinsics: standard deviation of the log extent."""
    dip_std: float = math.radians(15.0)
    """Prior: DIP flexion - 0.6 PIP flexion of a finger (its tendons are shared), radians."""
    mcp_std: float = math.inf
    """Prior: MCP flexion - 0.6 PIP flexion of a finger (a finger closes as a whole), radians."""
    limit_std: float = math.radians(3.0)
    """Joint limits: how firmly they hold, radians."""


@pytree
class CalibratedProblem:
    """Our energy for one hand: unknowns x (45 fingers, betas, 3 rotation, 2 pixel, 1 zoom), E(x), HandParameters(x)."""

    config: CalibratedEnergy = dataclasses.field(metadata={"static": True})
    hand: HandModel
    convention: LandmarkConvention
    start: HandParameters
    observation: Observation
    betas_mean: Float[Array, "betas"]
    """Mean of the shape prior."""

    @property
    def initial(self) -> Float[Array, "unknowns"]:
        """x before the first step."""
        fingers = self.hand.anatomy.coordinates(self.start.pose[1:])
        return jnp.concatenate([fingers.reshape(45), self.start.betas, jnp.zeros((6,), self.hand.dtype)])

    @property
    def size(self) -> Float[Array, ""]:
        """Longer side of the box around the observed keypoints (those of any confidence), pixels."""
        x, seen = self.observation.keypoints_2d, self.observation.confidence[:, None] > 0.0
        box = jnp.max(jnp.where(seen, x, -jnp.inf), axis=0) - jnp.min(jnp.where(seen, x, jnp.inf), axis=0)
        return jnp.maximum(jnp.max(box), 1e-6)

    def parameters(self, x: Float[Array, "unknowns"]) -> HandParameters:
        """The hand at x."""
        camera, start = self.observation.camera, self.start
        n = 45 + self.hand.num_betas
        rotation = matrix_from_axis_angle(x[n : n + 3]) @ matrix_from_axis_angle(start.pose[0])
        fingers = self.hand.anatomy.finger_pose(x[_FINGERS].reshape(15, 3))
        pixel, scale, depth = self._placement(x)
        return HandParameters(
            pose=jnp.concatenate([axis_angle_from_matrix(rotation)[None], fingers]),
            betas=x[45:n],
            scale=scale,
            translation=unproject(camera, pixel[None], depth[None])[0],
        )

    def energy(self, x: Float[Array, "unknowns"]) -> Float[Array, ""]:
        """E(x)."""
        return self._energy(x)[0]

    def normal_equations(
        self, x: Float[Array, "unknowns"]
    ) -> tuple[Float[Array, ""], Float[Array, "unknowns"], Float[Array, "unknowns unknowns"]]:
        """E, its exact gradient, and a Gauss-Newton approximation of its Hessian.

        The curvature treats each fingertip as rigid with its last bone, which is exact but for blended skinning weights
        and pose blend shapes at the tips; the gradient is differentiated exactly, so the minimum is not affected.
        """
        (value, state), gradient = jax.value_and_grad(self._energy, has_aux=True)(x)
        jacobian = self._jacobian(x, state)
        weighted = jacobian * state.weights[:, None]
        curvature = weighted.T @ jacobian + self._precision()[0]
        beyond = (terms.limit_excess(self.hand.anatomy, x[_FINGERS].reshape(15, 3)) != 0.0).reshape(45)
        stiffness = jnp.concatenate([beyond.astype(x.dtype), jnp.zeros((x.shape[0] - 45,), x.dtype)])
        return value, gradient, curvature + jnp.diag(stiffness / self.config.limit_std**2)

    def _placement(self, x: Float[Array, "unknowns"]) -> tuple[Array, Array, Array]:
        """Root pixel, scale and root depth at x."""
        camera, start = self.observation.camera, self.start
        pixel = project(camera, start.translation[None])[0] + self.size * x[-3:-1]
        size, depth = self._shares()
        return pixel, start.scale * jnp.exp(size * x[-1]), start.translation[2] * jnp.exp(-depth * x[-1])

    def _shares(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """How much of the zoom goes to scale and to (inverse) depth."""
        depth = self.observation.camera.perspectivity * (1.0 - self.config.size_share)
        return 1.0 - depth, depth

    def _energy(self, x: Float[Array, "unknowns"]) -> tuple[Float[Array, ""], "_State"]:
        c, camera, anatomy = self.config, self.observation.camera, self.hand.anatomy
        n = 45 + self.hand.num_betas
        coordinates = x[_FINGERS].reshape(15, 3)
        # The global rotation is part of the placement: the fingers move in the frame of the palm.
        finger_pose = jnp.concatenate([jnp.zeros((1, 3), x.dtype), anatomy.finger_pose(coordinates)])
        posed = self.hand.shape(x[45:n]).pose(finger_pose)
        landmarks = self.convention.landmarks(posed)
        rotation = matrix_from_axis_angle(x[n : n + 3]) @ matrix_from_axis_angle(self.start.pose[0])
        pixel, scale, depth = self._placement(x)
        root = unproject(camera, pixel[None], depth[None])[0]
        relative = scale * ((landmarks - posed.joints[ROOT_JOINT][None]) @ rotation.T)
        points = relative + root[None]

        residual = terms.reprojection(camera, points, self.observation.keypoints_2d) / (c.keypoint_std * self.size)
        squares = jnp.sum(residual * residual, axis=-1)
        confidence = self.observation.confidence**c.confidence_power
        if math.isinf(c.robustness):
            loss, weight = squares, jnp.ones_like(squares)
        else:
            # Student-t: (nu + 1) log(1 + r^2 / nu), scaled to r^2 near zero
            loss, weight = c.robustness * jnp.log1p(squares / c.robustness), 1.0 / (1.0 + squares / c.robustness)
        data = jnp.sum(confidence * loss)
        weights = jnp.broadcast_to((confidence * weight)[:, None], (21, 2))

        # Pixels per camera-frame unit at the root
        magnification = jnp.sqrt(jnp.abs(jnp.linalg.det(camera.linear))) / depth_divisor(camera, depth[None])[0]
        if self.observation.relative_depth is not None:
            deviation = magnification * relative[:, 2] - self.observation.relative_depth
            data = data + jnp.sum(confidence * (deviation / (c.depth_std * self.size)) ** 2)
            weights = jnp.concatenate([weights, confidence[:, None]], axis=-1)

        precision, mean = self._precision()
        departure = x - mean
        excess = terms.limit_excess(anatomy, coordinates)
        value = 0.5 * (data + departure @ (precision @ departure) + terms.squared(excess) / c.limit_std**2)
        return value, _State(
            posed=posed,
            landmarks=landmarks,
            rotation=rotation,
            scale=scale,
            depth=depth,
            points=points,
            relative=relative,
            magnification=magnification,
            weights=weights.reshape(-1),
        )

    def _precision(self) -> tuple[Float[Array, "unknowns unknowns"], Float[Array, "unknowns"]]:
        """Precision matrix and mean of the Gaussian that joins identity and prior."""
        c, anatomy, dtype = self.config, self.hand.anatomy, self.hand.dtype
        betas = self.hand.num_betas
        start = self.initial
        stds = [c.finger_std] * 45 + [c.betas_std] * betas + [c.rotation_std] * 3 + [c.pixel_std] * 2 + [c.zoom_std]
        identity = jnp.asarray([std**-2 for std in stds], dtype)
        if c.prior == 0.0 and c.betas_prior == 0.0:
            return jnp.diag(identity), start
        prior = jnp.concatenate([c.prior / anatomy.std.reshape(45) ** 2, jnp.full((betas,), c.betas_prior, dtype)])
        # Only without intrinsics is the size of the hand in the picture unrelated to its size in metres.
        camera = self.observation.camera
        zoom = (1.0 - camera.perspectivity) / c.extent_std**2
        per_metre = jnp.sqrt(jnp.abs(jnp.linalg.det(camera.linear))) * jnp.abs(self.start.scale)
        zoom_mean = jnp.log(self.size / (c.extent * jnp.maximum(per_metre, 1e-12)))
        zeros = jnp.zeros((5,), dtype)
        prior = jnp.diag(jnp.concatenate([prior, zeros, zoom[None]]))
        prior_mean = jnp.concatenate([anatomy.mean.reshape(45), self.betas_mean, zeros, zoom_mean[None]])
        coupling = jnp.asarray(math.sqrt(c.prior) * _couplings(c, 51 + betas), dtype)
        precision = jnp.diag(identity) + prior + coupling.T @ coupling
        # Minimum of the sum of the three quadratics; unknowns without any precision stay at the start.
        free = jnp.diagonal(precision) == 0.0
        target = identity * start + prior @ prior_mean + jnp.where(free, start, 0.0)
        mean = jnp.linalg.solve(precision + jnp.diag(free.astype(dtype)), target)
        return precision, mean

    def _jacobian(self, x: Float[Array, "unknowns"], s: "_State") -> Float[Array, "residuals unknowns"]:
        """Derivative of the scaled residuals, in closed form.

        A finger joint turning about the axis e through p moves a point q by e x (q - p). A row g of the projection sees
        g . (e x (q - p)) = (q x g) . e + g . (p x e), so all fingers together are one (rows, 6) by (6, 45) product.
        """
        c, camera, anatomy = self.config, self.observation.camera, self.hand.anatomy
        n = 45 + self.hand.num_betas
        dtype = x.dtype

        divisor = depth_divisor(camera, s.points[:, 2])[:, None]
        slope = -camera.perspectivity * s.points[:, :2] / divisor
        ray = jnp.concatenate([jnp.broadcast_to(jnp.eye(2, dtype=dtype)[None], (21, 2, 2)), slope[..., None]], axis=-1)
        rows = jnp.einsum("ab,kbc->kac", camera.linear, ray) / divisor[..., None] / (c.keypoint_std * self.size)
        root_divisor = depth_divisor(camera, s.depth[None])[0]
        pixel = jnp.einsum("kab,bc->kac", rows[..., :2], inverse_linear(camera)) * (root_divisor * self.size)
        root = s.points[0] - s.relative[0]
        size, depth = self._shares()
        zoom = jnp.einsum("kab,kb->ka", rows, size * s.relative - depth * root[None])
        if self.observation.relative_depth is not None:
            towards = s.magnification / (c.depth_std * self.size)
            row = jnp.broadcast_to(towards * jnp.asarray([0.0, 0.0, 1.0], dtype)[None, None], (21, 1, 3))
            rows = jnp.concatenate([rows, row], axis=1)
            pixel = jnp.concatenate([pixel, jnp.zeros((21, 1, 2), dtype)], axis=1)
            zoom = jnp.concatenate([zoom, towards * s.relative[:, 2:]], axis=1)
        count = rows.shape[1]

        local = s.scale * jnp.einsum("kab,bc->kac", rows, s.rotation)  # rows of the projection in the palm's frame
        torque = jnp.cross(jnp.broadcast_to(s.landmarks[:, None], local.shape), local)
        parents = s.posed.joint_rotations[_PARENTS]
        axes = jnp.einsum(
            "jab,jbc,jdc->jda", parents, left_jacobian(anatomy.finger_pose(x[_FINGERS].reshape(15, 3))), anatomy.axes
        )
        moments = jnp.cross(jnp.broadcast_to(s.posed.joints[1:, None], axes.shape), axes)
        wrench = jnp.concatenate([torque, local], axis=-1).reshape(21 * count, 6)
        screws = jnp.concatenate([axes, moments], axis=-1).reshape(45, 6)
        moves = jnp.asarray(np.repeat(_MOVES, count, axis=0), dtype)
        fingers = (wrench @ screws.T) * moves

        stretch = self.hand.joint_shape_directions
        bones = jnp.einsum("jab,jbs->jas", parents, stretch[1:] - stretch[_PARENTS])
        tips = jnp.einsum(
            "tab,tbs->tas", s.posed.joint_rotations[_TIP_JOINT], self.hand.tips.shape_directions - stretch[_TIP_JOINT]
        )
        growth = jnp.concatenate([stretch[:1], bones, tips])
        growth = jnp.asarray(_CHAIN, dtype) @ growth.reshape(21, -1)
        growth = (growth - growth[9][None]).reshape(21, 3, -1)
        betas = jnp.einsum("kab,kbs->kas", local, growth)

        turn = jnp.cross(jnp.broadcast_to(s.relative[:, None], rows.shape), rows)
        turn = jnp.einsum("kab,bc->kac", turn, left_jacobian(x[n : n + 3]))
        rest = jnp.concatenate([betas, turn, pixel, zoom[..., None]], axis=-1)
        return jnp.concatenate([fingers, rest.reshape(21 * count, -1)], axis=1)


def _couplings(c: CalibratedEnergy, unknowns: int) -> np.ndarray:
    """Rows of the prior that tie flexions together, each divided by its standard deviation."""
    rows = []

    for mcp, pip, dip in _FLEXION:
        for joint, std in ((dip, c.dip_std), (mcp, c.mcp_std)):
            row = np.zeros(unknowns)
            row[joint], row[pip] = 1.0 / std, -_FLEXION_RATIO / std
            rows.append(row)
    return np.stack(rows)


@pytree
class _State:
    """What the closed-form Jacobian needs of an energy evaluation."""

    posed: PosedHand
    landmarks: Float[Array, "21 3"]
    rotation: Float[Array, "3 3"]
    scale: Float[Array, ""]
    depth: Float[Array, ""]
    points: Float[Array, "21 3"]
    relative: Float[Array, "21 3"]
    magnification: Float[Array, ""]
    weights: Float[Array, "residuals"]

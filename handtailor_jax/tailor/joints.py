"""The tailor for 3D joints: it fits pose, shape, scale and translation of a hand to 21 observed 3D landmarks.

    E = 1/2 sum_k w_k |X_k - x_k|^2         distance in 3D; w_k is the inverse of the variance
      + 1/2 |(x - mean) / std|^2            prior of fingers, betas and log scale
      + 1/2 sum |excess over joint limits|^2 / sigma_limit^2

In 3D the palm determines the global rotation, so one start for each finger curl replaces the search.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.geometry import exact
from handtailor_jax.geometry.cameras import place
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.geometry.similarity import best_similarity
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.skeleton import ROOT_JOINT
from handtailor_jax.tailor.calibrated import limit_excess
from handtailor_jax.tailor.curls import PALM, PALM_WEIGHTS, curled_fingers
from handtailor_jax.tailor.placement import with_floats
from handtailor_jax.tailor.solve import LevenbergMarquardt
from handtailor_jax.types import HandParameters, pytree

_SOLVER = LevenbergMarquardt(iterations=25)
_SCALE_STD = 0.05  # standard deviation of the log scale of the hand model
_LIMIT_STD = math.radians(3.0)  # standard deviation of the excess over joint limits
# Weight of the finger keypoints in the alignment of a start; it is small, because the finger pose is unknown.
_FINGERS = 0.01


@pytree
class JointsProblem:
    """Minimisation for one hand; the unknowns x are 45 fingers, betas, 3 rotation, 3 translation and 1 log scale."""

    hand: HandModel
    convention: LandmarkConvention
    start: HandParameters
    """The hand before the first step. Its shape is also the mean of the shape prior."""
    joints: Float[Array, "21 3"]
    """Observed landmarks, metres."""
    weights: Float[Array, "21"]
    """Inverse of the variance of each landmark along each axis, 1 / metres^2; 0 if the landmark is unknown."""
    betas_std: Float[Array, ""]
    """Standard deviation of the shape coefficients about their mean."""

    @property
    def initial(self) -> Float[Array, "unknowns"]:
        """The unknowns before the first step."""
        fingers = self.hand.anatomy.coordinates(self.start.pose[1:])
        return jnp.concatenate([fingers.reshape(45), self.start.betas, jnp.zeros((7,), self.hand.dtype)])

    def parameters(self, x: Float[Array, "unknowns"]) -> HandParameters:
        """Return the hand at x."""
        turn, move, zoom = x[-7:-4], x[-4:-1], x[-1]
        rotation = matrix_from_axis_angle(turn) @ matrix_from_axis_angle(self.start.pose[0])
        fingers = self.hand.anatomy.finger_pose(x[:45].reshape(15, 3))
        pose = jnp.concatenate([axis_angle_from_matrix(rotation)[None], fingers])
        return HandParameters(pose, x[45:-7], self.start.scale * jnp.exp(zoom), self.start.translation + move)

    def residuals(self, x: Float[Array, "unknowns"]) -> Float[Array, "residuals"]:
        """Return all residuals, in standard deviations."""
        anatomy, placed = self.hand.anatomy, self.parameters(x)
        coordinates = x[:45].reshape(15, 3)
        posed = self.hand.shape(placed.betas).pose(placed.pose)
        points = place(placed, self.convention.landmarks(posed), posed.joints[ROOT_JOINT])
        data = jnp.sqrt(self.weights)[:, None] * (points - self.joints)
        prior = (coordinates - anatomy.mean) / anatomy.std
        shape = (placed.betas - self.start.betas) / self.betas_std
        limits = limit_excess(anatomy, coordinates) / _LIMIT_STD
        size = jnp.log(placed.scale)[None] / _SCALE_STD
        return jnp.concatenate([data.reshape(63), prior.reshape(45), shape, size, limits.reshape(45)])

    @exact
    def energy(self, x: Float[Array, "unknowns"]) -> Float[Array, ""]:
        """Return E(x)."""
        residuals = self.residuals(x)
        return 0.5 * residuals @ residuals

    @exact
    def normal_equations(
        self, x: Float[Array, "unknowns"]
    ) -> tuple[Float[Array, ""], Float[Array, "unknowns"], Float[Array, "unknowns unknowns"]]:
        """Return E, its gradient and the Gauss-Newton approximation of its Hessian at x."""
        residuals, jacobian = self.residuals(x), jax.jacfwd(self.residuals)(x)
        return 0.5 * residuals @ residuals, jacobian.T @ residuals, jacobian.T @ jacobian


def tailor_joints(
    hand: HandModel,
    joints: Float[Array, "21 3"],
    weights: Float[Array, "21"],
    betas: Float[Array, "betas"],
    betas_std: Float[Array, ""],
    convention: LandmarkConvention = MANO,
) -> HandParameters:
    """Fit a hand to the 3D landmarks of a hand of the model's side, in metres, in any right-handed frame.

    The arguments are those of `JointsProblem`; `betas` are the mean of the shape prior. The fit solves once from each
    finger curl and returns the hand of least energy.
    """
    given = joints, weights, betas, betas_std, convention
    joints, weights, betas, betas_std, convention = with_floats(hand.dtype, given)
    trust = jnp.full((21,), _FINGERS, hand.dtype).at[PALM].set(jnp.asarray(PALM_WEIGHTS, hand.dtype))
    trust = trust * (weights / jnp.max(weights) + 1e-6)

    @jax.vmap
    def solve(fingers: Float[Array, "15 3"]) -> tuple[HandParameters, Array]:
        posed = hand.shape(betas).pose(jnp.concatenate([jnp.zeros((1, 3), hand.dtype), fingers]))
        aligned = best_similarity(convention.landmarks(posed), joints, trust)
        pose = jnp.concatenate([axis_angle_from_matrix(aligned.rotation.T)[None], fingers])
        scale = jnp.clip(aligned.scale[0, 0], 0.5, 2.0)
        root = aligned.apply(posed.joints[ROOT_JOINT][None])[0]
        start = HandParameters(pose, betas, scale, root)
        problem = JointsProblem(hand, convention, start, joints, weights, betas_std)
        x = _SOLVER.minimise(problem)[0]
        energy = problem.energy(x)
        return problem.parameters(x), jnp.where(jnp.isfinite(energy), energy, jnp.inf)

    found, energies = solve(curled_fingers(hand))
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(energies)], found)

"""Search for a hand from 2D keypoints alone: a batch of solves from several starts, of which the least energy is kept.

The keypoints of a distant palm are an affine image of the flat model palm. This determines the global rotation up to
the Necker ambiguity (the palm tilted the other way). Each palm hypothesis is combined with each of three finger curls.
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from handtailor_jax.errors import check_range
from handtailor_jax.geometry import exact
from handtailor_jax.geometry.cameras import focal_length, inverse_linear, project, unproject
from handtailor_jax.geometry.lifting import turn_to_axis
from handtailor_jax.geometry.rotations import axis_angle_from_matrix
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.skeleton import FINGER_JOINTS, ROOT, ROOT_JOINT
from handtailor_jax.tailor.calibrated import CalibratedEnergy, CalibratedProblem
from handtailor_jax.tailor.curls import CURLS, PALM, PALM_WEIGHTS, THUMB_CURLS, curl_finger, curled_fingers
from handtailor_jax.tailor.placement import camera_keypoints, describe, reprojection_error, with_floats
from handtailor_jax.tailor.solve import LevenbergMarquardt
from handtailor_jax.tailor.tailor import TailorConfig
from handtailor_jax.types import Hand, HandParameters, Observation

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Effort of a search."""

    screening: int = 6
    """Levenberg-Marquardt iterations of every start."""
    survivors: int = 5
    """Number of starts that are solved with all iterations."""
    distinct: float = 0.01
    """Mean distance of keypoints (metres of the model) at which two solutions count as different hands."""

    def __post_init__(self) -> None:
        """Raise an InputError if a number is out of range."""
        check_range("screening", self.screening, 0, 1000)
        check_range("survivors", self.survivors, 1, 100)


def palm_rotations(
    observation: Observation, palm: Float[Array, "6 3"], root: Float[Array, "3"]
) -> tuple[Float[Array, "5 3 3"], Float[Array, ""], Float[Array, "2"]]:
    """Return five hypotheses of the global rotation, pixels per metre and the root's pixel, from the palm's keypoints.

    The keypoints are an affine image A of the palm plane (x, z): A = s (r_x, r_z) without the rows of depth, so s is
    A's larger singular value, and the missing entries of the unit vectors r_x and r_z are known up to sign. The
    hypotheses are the four signs of tilt and facing (an edge-on palm shows neither palm nor back), and the untilted
    palm. `palm` and `root` are model points in the rest frame, metres.
    """
    dtype = palm.dtype
    weight = jnp.asarray(PALM_WEIGHTS, dtype) * observation.confidence[PALM] + 1e-6
    weight = weight / jnp.sum(weight)
    plane = palm[:, jnp.asarray([0, 2])]
    center = weight @ plane
    model = plane - center[None]
    # Pixels of a camera with square pixels, so that fx != fy or a rotated image do not skew A.
    focal = focal_length(observation.camera)
    rays = observation.keypoints_2d[PALM] @ inverse_linear(observation.camera).T * focal
    image_center = weight @ rays
    weighted = model * weight[:, None]
    normal = weighted.T @ model + 1e-9 * jnp.eye(2, dtype=dtype)
    a = jnp.linalg.solve(normal, weighted.T @ (rays - image_center[None])).T
    root_ray = image_center + a @ (root[jnp.asarray([0, 2])] - center)

    u, sigma, vt = jnp.linalg.svd(a)
    scale = jnp.maximum(sigma[0], 1e-6)

    def rotation(affine: Array, sign: float) -> Array:
        ax, az = affine[:, 0] / scale, affine[:, 1] / scale
        dx, dz = (jnp.sqrt(jnp.maximum(1.0 - jnp.sum(column * column), 0.0)) for column in (ax, az))
        # r_x and r_z are orthogonal, so the product of their depths has the sign of minus the product in the image.
        dz = jnp.where(jnp.sum(ax * az) > 0.0, -dz, dz)
        rx = jnp.concatenate([ax, sign * dx[None]])
        rz = jnp.concatenate([az, sign * dz[None]])
        rx = rx / jnp.sqrt(jnp.sum(rx * rx) + 1e-12)
        rz = rz - jnp.sum(rx * rz) * rx
        rz = rz / jnp.sqrt(jnp.sum(rz * rz) + 1e-12)
        return jnp.stack([rx, jnp.cross(rz, rx), rz], axis=-1)

    other = u @ jnp.diag(sigma * jnp.asarray([1.0, -1.0], dtype)) @ vt
    signs = [rotation(affine, sign) for affine in (a, other) for sign in (1.0, -1.0)]
    untilted = rotation(u @ vt * scale, 0.0)
    return jnp.stack([*signs, untilted]), scale, observation.camera.linear @ root_ray / focal


def starts(
    hand: HandModel, observation: Observation, convention: LandmarkConvention, betas: Float[Array, "betas"]
) -> HandParameters:
    """Return the starts of the search, palm hypotheses times curls, along a leading axis."""
    dtype, camera, fingers = hand.dtype, observation.camera, curled_fingers(hand)

    rest = hand.shape(betas).pose(jnp.concatenate([jnp.zeros((1, 3), dtype), fingers[0]]))
    palm = convention.landmarks(rest)[PALM]
    rotations, magnification, root_pixel = palm_rotations(observation, palm, rest.joints[ROOT_JOINT])
    perspective = camera.perspectivity > 0.5
    focal = focal_length(camera)
    depth = jnp.where(perspective, focal / magnification, 0.0)
    root = unproject(camera, root_pixel[None], depth[None])[0]
    # Away from the optical axis the affine approximation is valid in a frame whose z axis is the line of sight.
    sight = jnp.where(perspective, root, jnp.asarray([0.0, 0.0, 1.0], dtype))
    rotations = jnp.einsum("ba,nbc->nac", turn_to_axis(sight), rotations)

    count = rotations.shape[0]
    global_rotation = jnp.repeat(axis_angle_from_matrix(rotations), len(CURLS), axis=0)[:, None]
    pose = jnp.concatenate([global_rotation, jnp.tile(fingers, (count, 1, 1))], axis=1)
    placed = betas, jnp.where(perspective, 1.0, magnification / focal), root
    return HandParameters(pose, *_repeat(placed, pose.shape[0]))


@exact
def search(
    hand: HandModel,
    observation: Observation,
    config: TailorConfig,
    search_config: SearchConfig = SearchConfig(),
    *,
    convention: LandmarkConvention = MANO,
    betas_mean: Float[Array, "betas"] | None = None,
) -> Hand:
    """Search for the hand with the least energy, without a proposal.

    Args:
        hand: Hand model of the side of the hand in the image.
        observation: Keypoints, confidences, camera, and relative depths if another method has estimated them.
        config: Energy (a `CalibratedEnergy` with a prior) and a Levenberg-Marquardt solver.
        search_config: Effort of the search.
        convention: Landmark convention of the keypoints.
        betas_mean: Shape of the starts and mean of the shape prior; zero if None.

    Returns:
        The hand of least energy, with a runner-up: the best hand that is clearly different, or the same hand with an
        infinite `energy_gap` if there is none. `reprojection_before` is the error of the best start.

    Raises:
        ValueError: If the energy is not calibrated or the solver is not Levenberg-Marquardt.
    """
    energy, solver = config.energy, config.solver
    if not (isinstance(energy, CalibratedEnergy) and isinstance(solver, LevenbergMarquardt)):
        raise ValueError("the search needs another energy or solver: use CalibratedEnergy and LevenbergMarquardt")
    observation, convention, betas_mean = with_floats(hand.dtype, (observation, convention, betas_mean))
    mean = jnp.zeros((hand.num_betas,), hand.dtype) if betas_mean is None else betas_mean

    def solve(candidates: HandParameters, iterations: int) -> tuple[HandParameters, Array]:
        @jax.vmap
        def solve_one(start: HandParameters) -> tuple[HandParameters, Array]:
            problem = CalibratedProblem(energy, hand, convention, start, observation, mean)
            x = dataclasses.replace(solver, iterations=iterations).minimise(problem)[0]
            value = problem.energy(x)
            return problem.parameters(x), jnp.where(jnp.isfinite(value), value, jnp.inf)

        return solve_one(candidates)

    first = starts(hand, observation, convention, mean)
    screened = solve(first, search_config.screening)
    # A finger bent toward the camera and one bent away look alike, so each finger of the best hand is curled alone.
    swapped = solve(_finger_swaps(hand, _take(screened[0], jnp.argmin(screened[1]))), search_config.screening)
    found = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), screened, swapped)
    keep = _distinct(_model_keypoints(hand, found[0]), found[1], search_config)
    parameters, energies = solve(_take(found[0], keep), solver.iterations)
    parameters, energies = _take((parameters, energies), jnp.argsort(energies))
    keypoints = _model_keypoints(hand, parameters)
    second = jnp.argmax(_apart(keypoints, keypoints[0]) > search_config.distinct)  # 0 if all solutions are one hand

    @jax.vmap
    def error(start: HandParameters) -> Array:
        return reprojection_error(project(observation.camera, camera_keypoints(hand, start, convention)), observation)

    best, other = (describe(hand, _take(parameters, i), observation, convention) for i in (0, second))
    gap = jnp.where(second > 0, energies[second] - energies[0], jnp.inf)
    return dataclasses.replace(best, reprojection_before=jnp.min(error(first)), runner_up=other, energy_gap=gap)


def _take(tree: T, index: int | Int[Array, "..."]) -> T:
    """Index the leading axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _repeat(tree: T, count: int) -> T:
    """Repeat every leaf along a new leading axis."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)


def _model_keypoints(hand: HandModel, parameters: HandParameters) -> Float[Array, "hands 21 3"]:
    """Return the root-relative keypoints of several hands, metres of the model."""
    keypoints = jax.vmap(lambda p: camera_keypoints(hand, p))(parameters)
    return (keypoints - keypoints[:, ROOT, None]) / parameters.scale[:, None, None]


def _apart(keypoints: Float[Array, "hands 21 3"], reference: Float[Array, "21 3"]) -> Float[Array, "hands"]:
    """Return the mean distance of each hand's keypoints from those of one hand, metres."""
    return jnp.mean(jnp.sqrt(jnp.sum((keypoints - reference[None]) ** 2, axis=-1)), axis=-1)


def _distinct(
    keypoints: Float[Array, "hands 21 3"], energies: Float[Array, "hands"], config: SearchConfig
) -> Int[Array, "survivors"]:
    """Select the best hands that differ from each other, because near-copies of the best would displace the others."""
    chosen = []
    for _ in range(config.survivors):
        best = jnp.argmin(energies)
        chosen.append(best)
        energies = jnp.where(_apart(keypoints, keypoints[best]) < config.distinct, jnp.inf, energies)
    return jnp.stack(chosen)


def _finger_swaps(hand: HandModel, parameters: HandParameters) -> HandParameters:
    """Return the hand with one finger at a time in each curl, along a leading axis (15)."""
    coordinates = hand.anatomy.coordinates(parameters.pose[1:])
    swapped = jnp.stack(
        [
            hand.anatomy.finger_pose(curl_finger(hand, coordinates, joints, curl))
            for joints, curls in zip(FINGER_JOINTS, (THUMB_CURLS, *[CURLS] * 4), strict=True)
            for curl in curls
        ]
    )
    swaps = _repeat(parameters, swapped.shape[0])
    return dataclasses.replace(swaps, pose=jnp.concatenate([swaps.pose[:, :1], swapped], axis=1))

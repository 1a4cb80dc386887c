"""From 2D keypoints alone to a hand: several starts, one batch of solves, the best kept by energy.

A palm seen from afar is an affine image of the flat model palm, which fixes the global rotation up to the Necker twin
(the palm tilted the other way). Each palm hypothesis is tried with each of three finger curls.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from handtailor_jax.geometry.cameras import inverse_linear, project, unproject
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.skeleton import KEYPOINTS, MANO_JOINTS, ROOT
from handtailor_jax.tailor.placement import ROOT_JOINT, camera_keypoints, describe, reprojection_error
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.solve import LeastSquaresProblem, LevenbergMarquardt
from handtailor_jax.tailor.tailor import pose_problem
from handtailor_jax.types import Hand, HandParameters, Observation

_PALM = np.asarray(
    [KEYPOINTS.index(n) for n in ("wrist", "thumb_cmc", "index_mcp", "middle_mcp", "ring_mcp", "little_mcp")], np.int32
)
# The thumb's base moves against the palm, so it counts less.
_PALM_WEIGHTS = np.asarray([1.0, 0.3, 1.0, 1.0, 1.0, 1.0], np.float32)

# Flexion (degrees) of MCP, PIP and DIP of the four fingers in each start; None keeps the mean of the pose prior.
_CURLS = (None, (45.0, 50.0, 30.0), (75.0, 95.0, 55.0))
_THUMB_CURLS = ((-25.0, -10.0, 0.0), (20.0, 15.0, 20.0), (45.0, 40.0, 60.0))
_THUMB_JOINTS = np.asarray([MANO_JOINTS.index(f"thumb_{j}") - 1 for j in ("cmc", "mcp", "ip")], np.int32)
_FINGER_JOINTS = np.asarray(
    [[MANO_JOINTS.index(f"{f}_{j}") - 1 for j in ("mcp", "pip", "dip")] for f in ("index", "middle", "ring", "little")],
    np.int32,
)


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How many iterations the starts get, and how many survive the first round."""

    screening: int = 6
    """Levenberg-Marquardt iterations of every start."""
    survivors: int = 5
    """Starts that are solved to the end."""
    distinct: float = 0.01
    """Mean distance of keypoints (metres, in units of the model) from which two solutions count as different."""


def palm_rotations(
    observation: Observation, palm: Float[Array, "6 3"], root: Float[Array, "3"]
) -> tuple[Float[Array, "5 3 3"], Float[Array, ""], Float[Array, "2"]]:
    """Five hypotheses of the global rotation, pixels per metre and the root's pixel, from the keypoints of the palm.

    The keypoints are an affine image A of the palm plane (x, z): A = s (r_x, r_z) restricted to the picture, so s is
    its larger singular value and the rows missing from r_x and r_z have known length. Their sign is the Necker
    ambiguity. The four sign choices of tilt and of the facing (palm or back, which an edge-on palm hides), then the
    untilted palm.

    Args:
        observation: keypoints and camera.
        palm: model points that the palm's keypoints mark, rest frame.
        root: rest-frame root joint.
    """
    dtype = palm.dtype
    weight = jnp.asarray(_PALM_WEIGHTS, dtype) * observation.confidence[_PALM] + 1e-6
    weight = weight / jnp.sum(weight)
    plane = palm[:, jnp.asarray([0, 2])]
    center = weight @ plane
    model = plane - center[None]
    # Rays through the camera's linear part: pixels of a unit camera, so that fx != fy or a rotated image do not skew A
    focal = jnp.sqrt(jnp.abs(jnp.linalg.det(observation.camera.linear)))
    rays = observation.keypoints_2d[_PALM] @ inverse_linear(observation.camera).T * focal
    image_center = weight @ rays
    weighted = model * weight[:, None]
    normal = weighted.T @ model + 1e-9 * jnp.eye(2, dtype=dtype)
    a = jnp.linalg.solve(normal, weighted.T @ (rays - image_center[None])).T
    root_ray = image_center + a @ (root[jnp.asarray([0, 2])] - center)

    u, sigma, vt = jnp.linalg.svd(a)
    scale = jnp.maximum(sigma[0], 1e-6)

    def rotation(affine: Array, sign: float, tilt: float) -> Array:
        ax, az = affine[:, 0] / scale, affine[:, 1] / scale
        dx = jnp.sqrt(jnp.maximum(1.0 - jnp.sum(ax * ax), 0.0))
        dz = jnp.sqrt(jnp.maximum(1.0 - jnp.sum(az * az), 0.0))
        # r_x and r_z are orthogonal, so their depths have the sign of minus the product of their image parts
        dz = jnp.where(jnp.sum(ax * az) > 0.0, -dz, dz)
        rx = jnp.concatenate([ax, sign * tilt * dx[None]])
        rz = jnp.concatenate([az, sign * tilt * dz[None]])
        rx = rx / jnp.sqrt(jnp.sum(rx * rx) + 1e-12)
        rz = rz - jnp.sum(rx * rz) * rx
        rz = rz / jnp.sqrt(jnp.sum(rz * rz) + 1e-12)
        return jnp.stack([rx, jnp.cross(rz, rx), rz], axis=-1)

    other = u @ jnp.diag(sigma * jnp.asarray([1.0, -1.0], dtype)) @ vt
    flat = u @ vt * scale
    hypotheses = [rotation(a, 1.0, 1.0), rotation(a, -1.0, 1.0), rotation(other, 1.0, 1.0), rotation(other, -1.0, 1.0)]
    root_pixel = observation.camera.linear @ root_ray / focal
    return jnp.stack([*hypotheses, rotation(flat, 1.0, 0.0)]), scale, root_pixel


def starts(
    hand: HandModel, observation: Observation, convention: LandmarkConvention, betas: Float[Array, "betas"]
) -> HandParameters:
    """The starts of the search, palm hypotheses times curls, along a leading axis."""
    dtype = hand.dtype
    camera = observation.camera
    means = hand.anatomy.mean
    coordinates = []
    for curl in _CURLS:
        if curl is None:
            coordinates.append(means)
        else:
            flexion = jnp.asarray(np.tile(np.radians(curl), (4, 1)), dtype)
            coordinates.append(means.at[_FINGER_JOINTS, 0].set(flexion))
    fingers = jnp.stack([hand.anatomy.finger_pose(c) for c in coordinates])

    shaped = hand.shape(betas)
    rest = shaped.pose(jnp.concatenate([jnp.zeros((1, 3), dtype), fingers[0]]))
    palm = convention.landmarks(rest)[_PALM]
    rotations, magnification, root_pixel = palm_rotations(observation, palm, rest.joints[ROOT_JOINT])
    perspective = camera.perspectivity > 0.5
    focal = jnp.sqrt(jnp.abs(jnp.linalg.det(camera.linear)))
    depth = jnp.where(perspective, focal / magnification, 0.0)
    scale = jnp.where(perspective, 1.0, magnification / focal)
    root = unproject(camera, root_pixel[None], depth[None])[0]
    # Off the optical axis the affine view holds in a frame that looks along the ray.
    ray = jnp.where(
        perspective, root / jnp.maximum(jnp.sqrt(jnp.sum(root * root)), 1e-6), jnp.asarray([0.0, 0.0, 1.0], dtype)
    )
    rotations = jnp.einsum("ab,nbc->nac", _turn_to(ray), rotations)

    count, curls = rotations.shape[0], len(_CURLS)
    global_rotation = jnp.repeat(axis_angle_from_matrix(rotations), curls, axis=0)[:, None]
    n = count * curls
    return HandParameters(
        pose=jnp.concatenate([global_rotation, jnp.tile(fingers, (count, 1, 1))], axis=1),
        betas=jnp.broadcast_to(betas[None], (n, betas.shape[0])),
        scale=jnp.broadcast_to(scale, (n,)),
        translation=jnp.broadcast_to(root[None], (n, 3)),
    )


def search(
    hand: HandModel,
    observation: Observation,
    config: TailorConfig,
    search_config: SearchConfig = SearchConfig(),
    *,
    convention: LandmarkConvention = MANO,
    betas_mean: Float[Array, "betas"] | None = None,
) -> Hand:
    """Solve for a hand without any proposal; see the module docstring.

    Args:
        hand: the hand model; its side is the side of the hand in the picture.
        observation: keypoints, confidences, camera, and relative depths if some method knows them.
        config: energy (a `CalibratedEnergy` with a prior) and a Levenberg-Marquardt solver.
        search_config: effort.
        convention: what the keypoints mark on the hand.
        betas_mean: shape to start from and mean of its prior; zero if None.

    Returns:
        The hand of least energy, with a runner-up: the best hand that is clearly different, or the same hand with an
        infinite `energy_gap` if there is none. `reprojection_before` is the error of the best start.
    """
    if not isinstance(config.solver, LevenbergMarquardt):
        raise ValueError("a search over starts needs the Levenberg-Marquardt solver")
    mean = jnp.zeros((hand.num_betas,), hand.dtype) if betas_mean is None else betas_mean

    def solve_from(start: HandParameters, iterations: int) -> tuple[HandParameters, Array]:
        problem = cast(LeastSquaresProblem, pose_problem(hand, start, observation, config, convention, mean))
        x = dataclasses.replace(config.solver, iterations=iterations).minimise(problem)[0]
        energy = problem.energy(x)
        return problem.parameters(x), jnp.where(jnp.isfinite(energy), energy, jnp.inf)

    def screen(candidates: HandParameters) -> tuple[HandParameters, Array]:
        return jax.vmap(lambda start: solve_from(start, search_config.screening))(candidates)

    def together(first: Any, second: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)

    def shape_of(parameters: HandParameters) -> Array:
        keypoints = camera_keypoints(hand, parameters)
        return (keypoints - keypoints[ROOT][None]) / parameters.scale

    first = starts(hand, observation, convention, mean)
    found = screen(first)
    best = jax.tree.map(lambda leaf: leaf[jnp.argmin(found[1])], found[0])
    # A finger bent toward the camera and one bent away look alike: each finger of the best hand is tried again alone.
    found = together(found, screen(_finger_swaps(hand, best)))
    keep = _distinct(jax.vmap(shape_of)(found[0]), found[1], search_config)
    solved, energies = jax.vmap(lambda start: solve_from(start, config.solver.iterations))(
        jax.tree.map(lambda leaf: leaf[keep], found[0])
    )
    order = jnp.argsort(energies)
    solved, energies = jax.tree.map(lambda leaf: leaf[order], (solved, energies))

    keypoints = jax.vmap(shape_of)(solved)
    second = jnp.argmax(_apart(keypoints, keypoints[0]) > search_config.distinct)  # 0 if all solutions are one hand
    best, runner_up = (
        describe(hand, jax.tree.map(lambda leaf, i=i: leaf[i], solved), observation, convention) for i in (0, second)
    )

    def start_error(start: HandParameters) -> Array:
        pixels = project(observation.camera, camera_keypoints(hand, start, convention))
        return reprojection_error(pixels, observation)

    return dataclasses.replace(
        best,
        reprojection_before=jnp.min(jax.vmap(start_error)(first)),
        runner_up=runner_up,
        energy_gap=jnp.where(second > 0, energies[second] - energies[0], jnp.inf),
    )


def _apart(keypoints: Float[Array, "hands 21 3"], reference: Float[Array, "21 3"]) -> Float[Array, "hands"]:
    """Mean distance of the keypoints of each hand from those of one hand, metres."""
    return jnp.mean(jnp.sqrt(jnp.sum((keypoints - reference[None]) ** 2, axis=-1)), axis=-1)


def _distinct(
    keypoints: Float[Array, "hands 21 3"], energies: Float[Array, "hands"], config: SearchConfig
) -> Int[Array, "survivors"]:
    """The best hands none of which is nearly another: near-copies of the best would crowd out its mirror twin."""
    chosen = []
    for _ in range(config.survivors):
        best = jnp.argmin(energies)
        chosen.append(best)
        energies = jnp.where(_apart(keypoints, keypoints[best]) < config.distinct, jnp.inf, energies)
    return jnp.stack(chosen)


def _finger_swaps(hand: HandModel, parameters: HandParameters) -> HandParameters:
    """The hand with one finger at a time in one of the curls, along a leading axis (15)."""
    coordinates = hand.anatomy.coordinates(parameters.pose[1:])
    swapped = []
    for finger, curls in [(_THUMB_JOINTS, _THUMB_CURLS), *((joints, _CURLS) for joints in _FINGER_JOINTS)]:
        for curl in curls:
            flexion = hand.anatomy.mean[finger, 0] if curl is None else jnp.asarray(np.radians(curl), hand.dtype)
            swapped.append(hand.anatomy.finger_pose(coordinates.at[finger, 0].set(flexion)))
    count = len(swapped)
    pose = jnp.concatenate([jnp.tile(parameters.pose[:1], (count, 1, 1)), jnp.stack(swapped)], axis=1)
    swaps = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (count, *leaf.shape)), parameters)
    return dataclasses.replace(swaps, pose=pose)


def place_proposal(
    hand: HandModel,
    pose: Float[Array, "16 3"],
    betas: Float[Array, "betas"],
    observation: Observation,
    convention: LandmarkConvention = MANO,
) -> HandParameters:
    """Places a proposed pose and shape whose position is unknown: scale and translation by weighted least squares.

    The same closed form as Eq. 17, with the translation free instead of pinned to the root's keypoint, in the
    landmarks of any convention. With intrinsics the scale becomes a depth at the model's own size.

    Args:
        hand: the hand model.
        pose: proposed rotations in camera axes, axis-angle, radians.
        betas: proposed shape.
        observation: keypoints, confidences and camera.
        convention: what the keypoints mark on the hand.
    """
    posed = hand.shape(betas).pose(pose)
    camera = observation.camera
    focal = jnp.sqrt(jnp.abs(jnp.linalg.det(camera.linear)))
    weight = observation.confidence / jnp.maximum(jnp.sum(observation.confidence), 1e-6)
    model = convention.landmarks(posed)[:, :2]
    rays = observation.keypoints_2d @ inverse_linear(camera).T * focal
    model_center, ray_center = weight @ model, weight @ rays
    model, rays = model - model_center[None], rays - ray_center[None]
    per_metre = jnp.sum(weight[:, None] * model * rays) / jnp.maximum(jnp.sum(weight[:, None] * model * model), 1e-12)
    # A proposal that points the wrong way would give a negative size; start it at the size of the spread instead.
    spread = jnp.sqrt(jnp.sum(weight[:, None] * rays * rays) / jnp.sum(weight[:, None] * model * model))
    per_metre = jnp.where(per_metre > 0.2 * spread, per_metre, spread)
    root_pixel = camera.linear @ (ray_center + per_metre * (posed.joints[ROOT_JOINT, :2] - model_center)) / focal
    perspective = camera.perspectivity > 0.5
    depth = jnp.where(perspective, focal / per_metre, 0.0)
    return HandParameters(
        pose=pose,
        betas=betas,
        scale=jnp.where(perspective, 1.0, per_metre / focal),
        translation=unproject(camera, root_pixel[None], depth[None])[0],
    )


def _turn_to(direction: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """The smallest rotation that takes the optical axis to a unit direction in front of the camera."""
    x, y, z = direction[0], direction[1], direction[2]
    sine2 = x * x + y * y
    sine = jnp.sqrt(jnp.maximum(sine2, 1e-20))
    angle = jnp.arctan2(jnp.sqrt(sine2 + 1e-20), z)
    return matrix_from_axis_angle(jnp.stack([-y, x, jnp.zeros_like(x)]) * (angle / sine))

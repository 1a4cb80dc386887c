"""Every equation of the paper, computed by hand on a small example."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handtailor_jax.geometry.cameras import place, project
from handtailor_jax.geometry.heatmaps import expected_index, expected_value
from handtailor_jax.geometry.lifting import lift, lift_scale
from handtailor_jax.hand_module import losses
from handtailor_jax.skeleton import FINGER_KEYPOINTS, JOINT_PARENTS, KEYPOINTS, ROOT, WRIST
from handtailor_jax.tailor import paper
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.placement import camera_keypoints, closed_form_scale
from handtailor_jax.tailor.tailor import TailorConfig, pose_problem
from handtailor_jax.training.config import LossWeights
from handtailor_jax.types import Camera, HandParameters, Observation

CAMERA = Camera.perspective(100.0, 200.0, 50.0, 60.0)
WEAK = Camera.weak_perspective(2.0, (10.0, 20.0))
PIXELS = Camera.weak_perspective()
"""Camera of an image without intrinsics, whose camera frame is measured in pixels."""

THUMB, INDEX = KEYPOINTS.index("thumb_tip"), KEYPOINTS.index("index_tip")


def close(value, expected):
    np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-5, atol=1e-6)


def points(columns, **values):
    """Twenty-one rows of zeros, except for the named keypoints."""
    rows = np.zeros((21, columns), np.float32)
    for name, value in values.items():
        rows[KEYPOINTS.index(name)] = value
    return jnp.asarray(rows)


@pytest.fixture(scope="module")
def hand_parameters():
    """A bent, shaped and turned hand in front of `CAMERA`."""
    random = np.random.default_rng(0)
    return HandParameters(
        pose=jnp.asarray(0.4 * random.normal(size=(16, 3)), jnp.float32),
        betas=jnp.asarray(random.normal(size=10), jnp.float32),
        scale=jnp.asarray(1.1, jnp.float32),
        translation=jnp.asarray([0.02, -0.03, 0.5], jnp.float32),
    )


def test_eq_1_linear_blend_skinning(hand, hand_parameters):
    skin, pose, betas = (hand.skin, np.asarray(hand_parameters.pose), np.asarray(hand_parameters.betas))
    rest = np.asarray(skin.template) + np.asarray(skin.shape_directions) @ betas
    joints = np.asarray(hand.joint_regressor) @ rest
    rotations = Rotation.from_rotvec(pose).as_matrix()
    rest = rest + np.asarray(skin.pose_directions) @ (rotations[1:] - np.eye(3)).ravel()
    turns, places = [rotations[0]], [joints[0]]
    for joint, parent in list(enumerate(JOINT_PARENTS))[1:]:
        turns.append(turns[parent] @ rotations[joint])
        places.append(places[parent] + turns[parent] @ (joints[joint] - joints[parent]))
    moved = np.stack(
        [(rest - joint) @ turn.T + place for joint, turn, place in zip(joints, turns, places, strict=True)]
    )
    expected = np.einsum("vj,jvi->vi", np.asarray(skin.weights), moved)
    mesh = jax.jit(lambda p: hand.shape(p.betas).pose(p.pose).skin())(hand_parameters)
    np.testing.assert_allclose(mesh.vertices, expected, atol=2e-6)


def test_eq_2_perspective():
    close(project(CAMERA, jnp.asarray([[0.1, -0.05, 0.5]])), [[100 * 0.2 + 50, 200 * -0.1 + 60]])


def test_eq_3_weak_perspective():
    close(project(WEAK, jnp.asarray([[5.0, 6.0, 0.7]])), [[2 * 5 + 10, 2 * 6 + 20]])


def test_eq_4_soft_argmax():
    # One row of three columns: a quarter of the mass in the first, three quarters in the last.
    heatmap = jnp.asarray([[[0.25], [0.0], [0.75]]])
    close(expected_index(heatmap), [[1.5, 0.0]])
    close(expected_value(heatmap, jnp.asarray([[[-1.0], [9.0], [1.0]]])), [0.5])


def test_eq_5_lifting_with_intrinsics():
    lifted = lift(CAMERA, points(3, thumb_tip=(70.0, 120.0, 0.5)), jnp.asarray(0.1), jnp.asarray(0.95))
    close(lifted[THUMB], [0.2, 0.3, 1.0])
    close(lifted[INDEX], [-50 / 100 * 0.95, -60 / 200 * 0.95, 0.95])


def test_eq_6_and_7_losses():
    weights = LossWeights.paper()
    heatmap, true_heatmap = jnp.asarray([[[0.5], [0.0]]]), jnp.asarray([[[1.0], [0.0]]])
    keypoints_2d = jnp.mean(losses.keypoint_2d_loss(heatmap, true_heatmap))
    joints = jnp.mean(losses.keypoint_3d_loss(jnp.full((21, 3), 0.3), jnp.full((21, 3), 0.1)))
    depth = losses.depth_loss(jnp.asarray(0.5), jnp.asarray(0.8))
    close([keypoints_2d, joints, depth], [0.125, 0.04, 0.09])
    pose = weights.paper_heatmap * keypoints_2d + weights.paper_joints * joints + weights.paper_root_depth * depth
    close(pose, 100 * 0.125 + 1 * 0.04 + 0.1 * 0.09)
    betas = losses.beta_loss(jnp.asarray([1.0, -2.0] + 8 * [0.0]))
    mano = jnp.mean(losses.mano_loss(jnp.full((21, 3), 0.2), jnp.full((21, 3), 0.5)))
    close(pose + weights.paper_betas * betas + weights.paper_model_keypoints * mano, 12.549 + 1 * 5 + 0.1 * 0.09)


def test_eq_8_and_9_reprojection():
    # The thumb is seen (3, 4) pixels away from where it projects, every other keypoint where it projects.
    model = points(3, thumb_tip=(0.1, 0.2, 0.0))
    parameters = HandParameters(jnp.zeros((16, 3)), jnp.zeros(10), jnp.asarray(2.0), jnp.asarray([0.0, 0.0, 4.0]))
    placed = place(parameters, model, model[ROOT])
    close(placed[THUMB], [0.2, 0.4, 4.0])
    observed = np.tile(np.asarray([50.0, 60.0], np.float32), (21, 1))
    observed[THUMB] = (50 + 100 * 0.05 + 3, 60 + 200 * 0.1 + 4)
    close(paper.squared(paper.reprojection(CAMERA, placed, jnp.asarray(observed))), 25.0)


@pytest.mark.parametrize(
    ("tip", "twist", "bend"),
    [
        ((2.0, 1.0, 1.0), 1.0, 0.0),  # out of the plane of the other bones
        ((3.0, 1.0, 0.0), 0.0, -1.0),  # in the plane, bent back
        ((2.0, 2.0, 0.0), 0.0, 1.0),  # in the plane, bent on
    ],
)
def test_eq_10_twist(tip, twist, bend):
    finger = points(3, index_mcp=(0.0, 0.0, 0.0), index_pip=(1.0, 0.0, 0.0), index_dip=(2.0, 1.0, 0.0), index_tip=tip)
    non_planarity, backward = paper.twist(finger)
    close(non_planarity, [0.0, twist, 0.0, 0.0, 0.0])
    close(backward, [0.0, bend, 0.0, 0.0, 0.0])


def test_eq_11_identity(hand, hand_parameters):
    observation = Observation(jnp.zeros((21, 2)), jnp.ones(21), CAMERA)
    only_identity = PaperEnergy(joint=0.0, non_planarity=0.0, backward_bend=0.0)
    config = dataclasses.replace(TailorConfig.paper(), energy=only_identity)
    problem = pose_problem(hand, hand_parameters, observation, config)
    moved = problem.initial.at[0].add(0.5).at[47].add(-0.5).at[50].add(2.0)  # two rotations and one shape coefficient
    close(problem.energy(moved), 0.1 * (0.5**2 + 0.5**2 + 2**2))


def test_eq_13_total_energy_at_the_start(hand, hand_parameters):
    keypoints = np.asarray(camera_keypoints(hand, hand_parameters))
    observed = project(CAMERA, jnp.asarray(keypoints)) + jnp.asarray([[3.0, 4.0]])
    problem = pose_problem(hand, hand_parameters, Observation(observed, jnp.ones(21), CAMERA), TailorConfig.paper())
    # E_J is 21 times 5^2 and E_id is 0. E_g is measured in reference bones.
    relative = (keypoints - keypoints[ROOT]) / np.linalg.norm(keypoints[ROOT] - keypoints[WRIST])
    twist = 0.0
    for finger in FINGER_KEYPOINTS:
        d, c, b, a = relative[list(finger)]
        normal = np.cross(a - b, b - c)
        twist += abs(normal @ (c - d)) - min(0.0, normal @ np.cross(b - c, c - d))
    assert twist > 0.01
    np.testing.assert_allclose(problem.energy(problem.initial), 1 * 21 * 25 + 100 * twist, rtol=1e-4)


def test_eq_12_scale_with_intrinsics():
    # (f_x x, f_y y) is (100, 0) and (0, 400), and the root is seen at the principal point.
    model = points(3, thumb_tip=(1.0, 0.0, 0.3), index_tip=(0.0, 2.0, -0.3))
    observed = jnp.asarray([[50.0, 60.0]]) + points(2, thumb_tip=(30.0, 0.0), index_tip=(0.0, 120.0))
    scale = closed_form_scale(Observation(observed, jnp.ones(21), CAMERA), model, jnp.asarray([0.0, 0.0, 4.0]))
    close(scale, 4 * (100 * 30 + 400 * 120) / (100**2 + 400**2))


def test_eq_14_lifting_without_intrinsics():
    lifted = lift(WEAK, points(3, thumb_tip=(14.0, 26.0, 0.5)), jnp.asarray(3.0), jnp.asarray(0.0))
    close(lifted[THUMB], [2.0, 3.0, 1.5])


def test_eq_15_scale_of_the_reference_bone():
    close(lift_scale(points(3, wrist=(3.0, 4.0, 0.6))), np.sqrt((3**2 + 4**2) / (1 - 0.6**2)))


def test_eq_16_reprojection_without_intrinsics():
    model = points(3, thumb_tip=(1.0, 2.0, 5.0), middle_mcp=(0.5, 0.5, 0.5))
    parameters = HandParameters(jnp.zeros((16, 3)), jnp.zeros(10), jnp.asarray(6.0), jnp.asarray([30.0, 40.0, 0.0]))
    pixels = project(PIXELS, place(parameters, model, model[ROOT]))
    close(pixels[ROOT], [30.0, 40.0])
    close(pixels[THUMB], [6 * 0.5 + 30, 6 * 1.5 + 40])


def test_eq_17_scale_without_intrinsics():
    model = points(3, thumb_tip=(1.0, 0.0, 0.3), index_tip=(0.0, 2.0, -0.3))
    observed = jnp.asarray([[7.0, 9.0]]) + points(2, thumb_tip=(30.0, 0.0), index_tip=(0.0, 120.0))
    scale = closed_form_scale(Observation(observed, jnp.ones(21), PIXELS), model, jnp.zeros(3))
    close(scale, (1 * 30 + 2 * 120) / (1**2 + 2**2))

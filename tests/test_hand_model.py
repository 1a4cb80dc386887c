"""The hand model against three published MANO layers, and the properties of the embedded hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.mano.loading import MANO_TIP_VERTICES, embedded_arrays, embedded_hand, load_mano
from handtailor_jax.skeleton import (
    FINGER_KEYPOINTS,
    JOINT_PARENTS,
    KEYPOINTS,
    KEYPOINTS_FROM_MANO,
    MANO_JOINTS,
    NUM_JOINTS,
    ROOT,
    permutation,
)
from handtailor_jax.tailor.calibrated import limit_excess
from tests import goldens

AXIAL = np.array([1.0, -1.0, -1.0])  # what x' = -x makes of an axis-angle vector
VARIANTS = {  # name: (first n PCA coefficients or None for axis-angle, flat_hand_mean)
    "axisang_flat": (None, True),
    "axisang_mean": (None, False),
    "pca6_flat": (6, True),
    "pca6_mean": (6, False),
    "pca45_mean": (45, False),
}


@pytest.fixture(scope="module")
def golden():
    return goldens.golden("mano_layers")


@jax.jit
def mesh(hand, pose, betas):
    return jax.vmap(lambda pose, betas: hand.shape(betas).pose(pose).skin())(pose, betas)


@jax.jit
def keypoints(hand, pose, betas):
    return jax.vmap(lambda pose, betas: hand.shape(betas).pose(pose).keypoints)(pose, betas)


@jax.jit
def joints(hand, pose, betas):
    return jax.vmap(lambda pose, betas: hand.shape(betas).pose(pose).joints)(pose, betas)


def random_hands(rng, dtype=np.float32, count=4):
    pose = jnp.asarray(rng.normal(scale=0.4, size=(count, 16, 3)), dtype)
    return pose, jnp.asarray(rng.normal(size=(count, 10)), dtype)


def kept(vertices, golden):
    """Select the vertices whose positions are in the golden file."""
    return vertices[:, golden["kept_vertices"]]


def golden_pose(model, golden, variant):
    """Return the poses of a golden variant, converted by our model."""
    number, flat = VARIANTS[variant]
    if number is None:
        fingers = jax.vmap(lambda p: model.finger_pose_from_axis_angle(p, flat_hand_mean=flat))(
            jnp.asarray(golden["pose"][:, 3:].reshape(8, 15, 3))
        )
    else:
        fingers = jax.vmap(lambda c: model.finger_pose_from_pca(c, flat_hand_mean=flat))(
            jnp.asarray(golden["pca_coeffs"][:, :number])
        )
    return jnp.concatenate([jnp.asarray(golden["pose"][:, None, :3]), fingers], axis=1)


# --- published layers -------------------------------------------------------------------------------------------------


def test_handtailor_layer(mano, golden):
    result = mesh(mano, golden["pose"].reshape(8, 16, 3), golden["betas"])
    root = result.keypoints[:, ROOT, None]  # HandTailor centres the hand on keypoint 9
    np.testing.assert_allclose(result.keypoints - root, golden["handtailor/joints"], atol=1e-6)
    np.testing.assert_allclose(kept(result.vertices - root, golden), golden["handtailor/verts"], atol=1e-6)


def test_handtailor_layer_gradients(mano, golden):
    def value(pose, betas, cotangent):
        points = mano.shape(betas).pose(pose).keypoints
        return jnp.sum((points - points[ROOT][None]) * cotangent)

    gradient = jax.jit(jax.vmap(jax.grad(value, argnums=(0, 1))))
    pose, betas = gradient(golden["pose"].reshape(8, 16, 3), golden["betas"], golden["cotangent_joints"])
    for ours, name in ((pose.reshape(8, 48), "grad_pose"), (betas, "grad_betas")):
        theirs = golden[f"handtailor/{name}"]
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_manopth_layer_is_ours_in_millimetres(mano, golden, variant):
    result = mesh(mano, golden_pose(mano, golden, variant), golden["betas"])
    vertices = kept(result.vertices, golden)
    np.testing.assert_allclose(1000.0 * vertices, golden[f"manopth/{variant}/verts_mm"], atol=1e-3)
    np.testing.assert_allclose(1000.0 * result.keypoints, golden[f"manopth/{variant}/joints_mm"], atol=1e-3)
    assert np.abs(vertices - golden[f"manopth/{variant}/verts_mm"]).max() > 10.0  # the unit is not a detail


def test_manopth_layer_centred_on_keypoint_9(mano, golden):
    result = mesh(mano, golden_pose(mano, golden, "axisang_flat"), golden["betas"])
    for ours, name in ((kept(result.vertices, golden), "verts_mm"), (result.keypoints, "joints_mm")):
        centred = 1000.0 * (ours - result.keypoints[:, ROOT, None])
        np.testing.assert_allclose(centred, golden[f"manopth/axisang_flat_center9/{name}"], atol=1e-3)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "pca45_mean"])
def test_smplx_layer_has_the_16_joints_in_manos_order(mano, golden, variant):
    pose = golden_pose(mano, golden, variant)
    ours, theirs = joints(mano, pose, golden["betas"]), golden[f"smplx/{variant}/joints"]
    vertices = kept(mesh(mano, pose, golden["betas"]).vertices, golden)
    np.testing.assert_allclose(vertices, golden[f"smplx/{variant}/verts"], atol=1e-6)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # The same joints by name among the 21 keypoints; by position they differ by centimetres.
    named = permutation(KEYPOINTS, MANO_JOINTS)
    points = keypoints(mano, pose, golden["betas"])
    np.testing.assert_allclose(points[:, np.asarray(named)], theirs, atol=1e-6)
    assert np.abs(points[:, :16] - theirs).max() > 0.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_reference(mano_path, golden, x64, variant):
    model = load_mano(mano_path, dtype=np.float64)
    pose = golden_pose(model, {k: golden[k].astype(np.float64) for k in ("pose", "pca_coeffs")}, variant)
    betas = golden["betas"].astype(np.float64)
    vertices = kept(mesh(model, pose, betas).vertices, golden)
    np.testing.assert_allclose(vertices, golden[f"float64/{variant}/verts"], atol=1e-12)
    np.testing.assert_allclose(joints(model, pose, betas), golden[f"float64/{variant}/joints16"], atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_within_a_micrometre_of_float64(mano, golden, variant):
    pose = golden_pose(mano, golden, variant)
    vertices = kept(mesh(mano, pose, golden["betas"]).vertices, golden)
    np.testing.assert_allclose(vertices, golden[f"float64/{variant}/verts"], atol=1e-6)
    np.testing.assert_allclose(joints(mano, pose, golden["betas"]), golden[f"float64/{variant}/joints16"], atol=1e-6)


def test_zero_coefficients_mean_the_flat_or_the_mean_pose(mano, golden):
    zero = jnp.zeros(6)
    np.testing.assert_array_equal(mano.finger_pose_from_pca(zero, flat_hand_mean=True), np.zeros((15, 3)))
    mean = mano.finger_pose_from_pca(zero, flat_hand_mean=False)
    np.testing.assert_array_equal(mean, mano.pose_mean.reshape(15, 3))
    assert np.abs(mean).max() > 0.05


def test_tips_are_the_chosen_vertices(mano, golden):
    assert MANO_TIP_VERTICES["right"] == tuple(golden["tip_vertices_right"])
    result = mesh(mano, golden["pose"].reshape(8, 16, 3), golden["betas"])
    tips = np.asarray(FINGER_KEYPOINTS)[:, -1]
    np.testing.assert_allclose(
        result.keypoints[:, tips], result.vertices[:, np.asarray(MANO_TIP_VERTICES["right"])], atol=1e-7
    )
    smplx_tips = (744, 320, 443, 554, 671)
    assert np.abs(result.keypoints[:, tips] - result.vertices[:, np.asarray(smplx_tips)]).max() > 1e-3


# --- properties of any hand -------------------------------------------------------------------------------------------


def reference_hand(arrays, pose, betas):
    """Skin one hand joint by joint with 4 x 4 matrices, in NumPy and independently of the package."""
    rest = arrays["template"] + arrays["shape_directions"] @ betas
    rest_joints = arrays["joint_regressor"] @ rest
    rotations = np.asarray(matrix_from_axis_angle(jnp.asarray(pose)))
    rest = rest + arrays["pose_directions"].astype(np.float64) @ (rotations[1:] - np.eye(3)).reshape(135)
    world = []
    for j, parent in enumerate(JOINT_PARENTS):
        local = np.eye(4)
        local[:3, :3] = rotations[j]
        local[:3, 3] = rest_joints[j] - (rest_joints[parent] if parent >= 0 else 0.0)
        world.append(world[parent] @ local if parent >= 0 else local)
    from_rest = np.stack(
        [m @ np.block([[np.eye(3), -r[:, None]], [0, 0, 0, 1]]) for m, r in zip(world, rest_joints, strict=True)]
    )
    blended = np.einsum("vj,jab->vab", arrays["skinning_weights"], from_rest)
    vertices = np.einsum("vab,vb->va", blended, np.concatenate([rest, np.ones((len(rest), 1))], axis=1))[:, :3]
    points = np.concatenate([np.stack(world)[:, :3, 3], vertices[arrays["tip_vertices"]]])
    return vertices, points[np.asarray(KEYPOINTS_FROM_MANO)]


def test_embedded_hand_is_plain_linear_blend_skinning(hand64, rng):
    arrays = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in embedded_arrays().items()}
    pose, betas = random_hands(rng, np.float64)
    result = mesh(hand64, pose, betas)
    for i in range(len(pose)):
        vertices, points = reference_hand(arrays, np.asarray(pose[i]), np.asarray(betas[i]))
        np.testing.assert_allclose(result.vertices[i], vertices, atol=1e-12)
        np.testing.assert_allclose(result.keypoints[i], points, atol=1e-12)


def test_keypoints_without_skinning_are_those_of_the_full_mesh(hand, rng):
    pose, betas = random_hands(rng)
    alone, full = keypoints(hand, pose, betas), mesh(hand, pose, betas)
    picked = jnp.concatenate([joints(hand, pose, betas), full.vertices[:, hand.tip_vertices]], axis=1)
    np.testing.assert_allclose(alone, picked[:, np.asarray(KEYPOINTS_FROM_MANO)], atol=1e-7)
    np.testing.assert_allclose(alone, full.keypoints, atol=1e-7)


def test_vmap_equals_a_loop(hand, rng):
    pose, betas = random_hands(rng)
    batch = mesh(hand, pose, betas)
    one = jax.jit(lambda pose, betas: hand.shape(betas).pose(pose).skin())
    for i in range(len(pose)):
        single = one(pose[i], betas[i])
        np.testing.assert_allclose(batch.vertices[i], single.vertices, atol=1e-6)
        np.testing.assert_allclose(batch.keypoints[i], single.keypoints, atol=1e-6)


def test_articulate_takes_the_matrices_of_the_pose(hand, rng):
    pose, betas = random_hands(rng, count=1)
    shaped = hand.shape(betas[0])
    by_matrix = jax.jit(lambda r: shaped.articulate(r).skin().vertices)(matrix_from_axis_angle(pose[0]))
    np.testing.assert_allclose(by_matrix, mesh(hand, pose, betas).vertices[0], atol=1e-6)


def test_global_rotation_turns_the_hand_about_its_wrist(hand64, rng):
    pose, betas = random_hands(rng, np.float64)
    still = pose.at[:, 0].set(0.0)
    turned, base = mesh(hand64, pose, betas), mesh(hand64, still, betas)
    rotation = np.asarray(matrix_from_axis_angle(pose[:, 0]))
    for ours, theirs in ((turned.vertices, base.vertices), (turned.keypoints, base.keypoints)):
        wrist = np.asarray(base.keypoints[:, :1])
        expected = np.einsum("nab,nvb->nva", rotation, np.asarray(theirs) - wrist) + wrist
        # Stored as float32, the blend weights sum to 1 within 1e-7, and the wrist is centimetres from the origin.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


def test_bones_keep_their_lengths(hand64, rng):
    pose, betas = random_hands(rng, np.float64)
    rest = joints(hand64, jnp.zeros_like(pose), betas)
    posed = joints(hand64, pose, betas)
    parents = np.asarray(JOINT_PARENTS[1:])
    lengths = [np.linalg.norm(j[:, 1:] - j[:, parents], axis=-1) for j in (np.asarray(rest), np.asarray(posed))]
    np.testing.assert_allclose(*lengths, atol=1e-15)


def test_a_joint_moves_what_lies_below_it_only(hand, rng):
    pose = np.zeros((1, 16, 3), np.float32)
    pose[0, MANO_JOINTS.index("ring_pip")] = [0.3, -0.2, 0.6]
    betas = jnp.zeros((1, 10))
    moved = keypoints(hand, jnp.asarray(pose), betas) - keypoints(hand, jnp.zeros((1, 16, 3)), betas)
    names = {KEYPOINTS[k] for k in np.flatnonzero(np.linalg.norm(moved[0], axis=-1) > 1e-3)}
    assert names == {"ring_dip", "ring_tip"}


def test_zero_pose_has_finite_derivatives_of_both_orders(hand):
    def value(parameters):
        return jnp.sum(jnp.sin(20.0 * hand.shape(parameters[:10]).pose(parameters[10:].reshape(16, 3)).keypoints))

    zero = jnp.zeros(58)
    gradient, hessian = jax.jit(lambda p: (jax.grad(value)(p), jax.jacfwd(jax.grad(value))(p)))(zero)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.isfinite(hessian))
    assert np.abs(gradient).max() > 0.1


def test_gradients_match_central_differences(hand64, rng):
    pose, betas = random_hands(rng, np.float64, 1)
    pose = pose.at[:, 5].set(0.0)
    weights = jnp.asarray(rng.normal(size=hand64.skin.template.shape))

    def value(parameters):
        posed = hand64.shape(parameters[:10]).pose(parameters[10:].reshape(16, 3))
        return jnp.sum(posed.skin().vertices * weights) + jnp.sum(posed.keypoints**2)

    parameters = jnp.concatenate([betas[0], pose[0].reshape(48)])
    h = 1e-5

    @jax.jit
    def both(p):
        steps = h * jnp.eye(58)
        return jax.grad(value)(p), jax.lax.map(lambda s: (value(p + s) - value(p - s)) / (2 * h), steps)

    gradient, difference = both(parameters)
    np.testing.assert_allclose(gradient, difference, atol=1e-8 * float(jnp.abs(gradient).max()))


def test_the_model_itself_is_differentiable(hand, rng):
    pose, betas = random_hands(rng, count=1)
    floats, structure = jax.tree.flatten(hand)

    def value(rest):
        skin = dataclasses.replace(hand.skin, rest=rest)
        return jnp.sum(dataclasses.replace(hand, skin=skin).shape(betas[0]).pose(pose[0]).skin().vertices)

    gradient = jax.jit(jax.grad(value))(hand.skin.rest)
    assert np.all(np.isfinite(gradient))
    assert np.abs(gradient).max() > 0.1
    rebuilt = jax.tree.unflatten(structure, floats)
    assert rebuilt.side == "right"


# --- left hands -------------------------------------------------------------------------------------------------------


def test_mirrored_twice_is_the_same_hand(hand):
    twice = hand.mirrored().mirrored()
    assert hand.mirrored().side == "left"
    assert jax.tree.structure(twice) == jax.tree.structure(hand)
    for ours, theirs in zip(jax.tree.leaves(twice), jax.tree.leaves(hand), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_mirrored_hand_in_the_mirrored_pose_is_the_mirrored_mesh(hand, rng):
    pose, betas = random_hands(rng)
    mirrored_pose = pose * jnp.asarray(AXIAL, jnp.float32)[None, None]
    right, left = mesh(hand, pose, betas), mesh(hand.mirrored(), mirrored_pose, betas)
    flip = np.array([-1.0, 1.0, 1.0])
    np.testing.assert_allclose(left.vertices, np.asarray(right.vertices) * flip, atol=1e-6)
    np.testing.assert_allclose(left.keypoints, np.asarray(right.keypoints) * flip, atol=1e-6)


def test_the_mirrored_hand_keeps_outward_normals(hand):
    for model in (hand, hand.mirrored()):
        assert signed_volume(np.asarray(model.skin.template), np.asarray(model.faces)) > 1e-5


def test_mirrored_conversions_agree(hand, rng):
    left = hand.mirrored()
    coefficients = jnp.asarray(rng.normal(size=7), jnp.float32)
    for flat in (True, False):
        ours = left.finger_pose_from_pca(coefficients, flat_hand_mean=flat)
        theirs = hand.finger_pose_from_pca(coefficients, flat_hand_mean=flat)
        np.testing.assert_allclose(ours, np.asarray(theirs) * AXIAL, atol=1e-6)
    pose = jnp.asarray(rng.normal(size=(15, 3)), jnp.float32)
    mirrored_pose = pose * jnp.asarray(AXIAL, jnp.float32)[None]
    np.testing.assert_allclose(left.anatomy.coordinates(mirrored_pose), hand.anatomy.coordinates(pose), atol=1e-6)


def test_embedded_left_hand_is_the_mirrored_right_one(hand):
    for ours, theirs in zip(jax.tree.leaves(embedded_hand("left")), jax.tree.leaves(hand.mirrored()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- the embedded hand ------------------------------------------------------------------------------------------------


def signed_volume(vertices, faces):
    """Return the volume of a mesh whose holes are closed by fans; positive if its normals point outward."""
    centre = vertices.mean(axis=0)
    a, b, c = (vertices[faces[:, i]] - centre for i in range(3))
    return np.sum(np.einsum("ni,ni->n", a, np.cross(b, c))) / 6.0


def components(count, pairs):
    """Count the connected components of a graph."""
    label = np.arange(count)
    while True:
        low = np.minimum(label[pairs[:, 0]], label[pairs[:, 1]])
        updated = label.copy()
        np.minimum.at(updated, pairs[:, 0], low)
        np.minimum.at(updated, pairs[:, 1], low)
        if np.array_equal(updated, label):
            return len(np.unique(label))
        label = updated


def test_embedded_mesh_is_one_surface_with_one_opening(hand):
    faces = np.asarray(hand.faces)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert len(np.unique(edges, axis=0)) == len(edges), "two faces run along an edge in the same direction"
    assert components(len(hand.skin.template), edges) == 1
    directed = {tuple(e) for e in edges.tolist()}
    boundary = np.asarray([e for e in directed if (e[1], e[0]) not in directed])
    starts, ends = np.unique(boundary[:, 0], return_counts=True), np.unique(boundary[:, 1], return_counts=True)
    assert set(starts[1]) == set(ends[1]) == {1}
    vertices = starts[0]
    assert components(len(vertices), np.searchsorted(vertices, boundary)) == 1
    assert sorted(embedded_arrays()["wrist_loop"]) == sorted(vertices)
    # The opening is at the wrist, the end of the hand away from the fingers.
    x = np.asarray(hand.skin.template)[:, 0]
    assert x[vertices].min() > np.quantile(x, 0.9)


def test_embedded_sums(hand64):
    np.testing.assert_allclose(np.sum(hand64.skin.weights, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.sum(hand64.joint_regressor, axis=1), 1.0, atol=1e-6)
    assert np.min(hand64.skin.weights) >= 0.0
    np.testing.assert_allclose(hand64.joint_regressor @ hand64.skin.template, hand64.rest_joints, atol=1e-12)
    components = np.asarray(hand64.pose_components)
    np.testing.assert_allclose(components @ components.T, np.eye(45), atol=1e-5)


def test_embedded_rest_frame(hand64):
    points = np.asarray(hand64.shape(jnp.zeros(10)).pose(jnp.zeros((16, 3))).keypoints)
    at = dict(zip(KEYPOINTS, points, strict=True))
    assert 0.088 < np.linalg.norm(at["middle_mcp"] - at["wrist"]) < 0.102
    along = at["middle_tip"] - at["wrist"]
    assert along[0] / np.linalg.norm(along) < -0.95  # fingers along -x
    assert at["thumb_tip"][2] > at["index_mcp"][2] > at["little_mcp"][2]  # thumb toward +z
    assert at["thumb_tip"][1] < at["middle_mcp"][1] - 0.02  # the thumb lies on the palm's side, -y
    faces, vertices = np.asarray(hand64.faces), np.asarray(hand64.skin.template)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    regions = embedded_arrays()["face_regions"]
    fingers = np.mean(a[:, 0:1], axis=1) < at["index_pip"][0]  # away from the round of the palm and the thumb
    assert normals[(regions == 0) & fingers].sum(axis=0)[1] < 0.0  # palm toward -y
    assert normals[(regions == 1) & fingers].sum(axis=0)[1] > 0.0  # back toward +y


def test_embedded_tips_are_the_extreme_points(hand64):
    """Along its last bone no vertex of a finger lies more than a millimetre beyond the tip vertex."""
    points = np.asarray(hand64.shape(jnp.zeros(10)).pose(jnp.zeros((16, 3))).keypoints)
    vertices = np.asarray(hand64.skin.template)
    for finger in FINGER_KEYPOINTS:
        last_joint = KEYPOINTS_FROM_MANO[finger[2]]
        own = np.asarray(hand64.skin.weights)[:, last_joint] > 0.5
        bone = points[finger[3]] - points[finger[2]]
        reach = vertices[own] @ (bone / np.linalg.norm(bone))
        assert reach.max() - points[finger[3]] @ (bone / np.linalg.norm(bone)) < 1e-3


def test_embedded_anatomy(hand64):
    anatomy = hand64.anatomy
    assert np.all(anatomy.lower < anatomy.mean)
    assert np.all(anatomy.mean < anatomy.upper)
    assert np.all(anatomy.std > 0.0)
    products = np.einsum("jab,jcb->jac", anatomy.axes, anatomy.axes)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), (15, 3, 3)), atol=1e-6)
    points = np.asarray(hand64.shape(jnp.zeros(10)).pose(jnp.zeros((16, 3))).keypoints)
    for joint in range(1, NUM_JOINTS):
        keypoint = KEYPOINTS.index(MANO_JOINTS[joint])
        bone = points[keypoint + 1] - points[keypoint]
        assert bone / np.linalg.norm(bone) @ np.asarray(anatomy.axes[joint - 1, 2]) > 0.97, MANO_JOINTS[joint]


@pytest.mark.parametrize("side", ["right", "left"])
def test_positive_flexion_curls_toward_the_palm_and_abduction_toward_the_thumb(side):
    hand = embedded_hand(side)
    across = -1.0 if side == "left" else 1.0

    def tip_moves(axis):
        coordinates = jnp.zeros((15, 15, 3)).at[jnp.arange(15), jnp.arange(15), axis].set(0.3)
        fingers = jax.vmap(hand.anatomy.finger_pose)(coordinates)
        pose = jnp.concatenate([jnp.zeros((15, 1, 3)), fingers], axis=1)
        rest = keypoints(hand, jnp.zeros((1, 16, 3)), jnp.zeros((1, 10)))
        moved = np.asarray(keypoints(hand, pose, jnp.zeros((15, 10))) - rest)
        last = [next(f[3] for f in FINGER_KEYPOINTS if KEYPOINTS.index(name) in f) for name in MANO_JOINTS[1:]]
        return moved[np.arange(15), last]

    flexion, abduction = tip_moves(0), tip_moves(1)
    assert np.all(flexion[:12, 1] < -1e-3), "fingers curl toward the palm, -y"
    assert np.all(flexion[:12, 0] * across > 0.0), "and back toward the wrist"
    # The thumb closes across the palm: toward the fingers' side, away from where it points at rest.
    assert np.all(flexion[12:, 2] < 0.0)
    assert np.all(abduction[:12, 2] > 1e-4), "abduction is toward the thumb, +z, on either side"


def test_limits_measure_the_excess_in_radians(hand):
    anatomy = hand.anatomy
    np.testing.assert_array_equal(limit_excess(anatomy, anatomy.mean), np.zeros((15, 3)))
    np.testing.assert_allclose(limit_excess(anatomy, anatomy.upper + 0.25), 0.25, atol=1e-6)
    np.testing.assert_allclose(limit_excess(anatomy, anatomy.lower - 0.5), -0.5, atol=1e-6)


def test_anatomical_coordinates_and_back(hand, rng):
    pose = jnp.asarray(rng.normal(size=(15, 3)), jnp.float32)
    np.testing.assert_allclose(hand.anatomy.finger_pose(hand.anatomy.coordinates(pose)), pose, atol=1e-6)


def test_astype_converts_every_float_and_nothing_else(hand64):
    single = hand64.astype(jnp.float32)
    assert single.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(single)} == {"float32", "int32"}
    assert single.num_betas == 10

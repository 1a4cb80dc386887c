"""What training minimises: a weighted sum of terms, each a mean over the whole batch on all devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from handtailor_jax.data.augmentation import MAP_STRIDE, map_affine
from handtailor_jax.data.sample import Batch
from handtailor_jax.geometry.cameras import project, transform_camera
from handtailor_jax.geometry.heatmaps import (
    expected_index,
    expected_value,
    gaussian_heatmaps,
    indices_from_pixels,
    pixels_from_indices,
    softmax_heatmaps,
)
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.hand_module import losses
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.iknet import Rotations, normalise_joints
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.pipeline import recover
from handtailor_jax.render.soft import SoftMaps, soft_rasterise
from handtailor_jax.skeleton import REFERENCE_BONE, ROOT
from handtailor_jax.tailor.placement import camera_mesh
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.training.config import LossWeights, TrainingConfig
from handtailor_jax.types import Camera, HandEstimate, pytree

_NEAREST = 0.02  # metres


@pytree
class Term:
    """A weighted mean in two parts, so that means over several devices are those over their union."""

    total: Float[Array, ""]
    """Sum of weighted values."""
    weight: Float[Array, ""]
    """Sum of weights."""


@pytree
class Losses:
    """The terms of the objective."""

    heatmap: Term
    """Cross-entropy of the heatmaps of all stacks, against Gaussians of sum 1."""
    keypoints_2d: Term
    """Smooth absolute error of the keypoints, shares of the crop."""
    relative_depth: Term
    """Smooth absolute error of the relative depths, reference bones."""
    joints: Term
    """Smooth absolute error of the lifted keypoints, root-relative, reference bones."""
    rotations: Term
    """L_ik of the rotations from the predicted joints."""
    rotations_from_truth: Term
    """L_ik of the rotations from the true joints with noise."""
    model_keypoints: Term
    """Smooth absolute error of the hand model's keypoints under the predicted pose and shape, reference bones."""
    model_keypoints_2d: Term
    """The same after orthographic projection that fits best, in shares of the hand's size: needs no 3D truth."""
    betas: Term
    """Mean squared error of the shape coefficients."""
    bone: Term
    """Squared error of the logarithm of the reference bone's length."""
    root_depth: Term
    """Squared error of the logarithm of the root's depth."""
    paper_heatmap: Term
    """L_kpt2D: squared error of sigmoid heatmaps against Gaussians of peak 1."""
    paper_joints: Term
    """L_kpt3D: squared error of the lifted keypoints, metres, camera frame."""
    paper_root_depth: Term
    """L_d: squared error of the root's depth, metres."""
    paper_betas: Term
    """L_beta = ||beta||^2."""
    paper_model_keypoints: Term
    """L_mano: squared error of the hand model's keypoints at the true root, metres."""
    paper_depth: Term
    """L_betaD (Table 4): squared error of the rendered depth where both it and the true depth know the hand, metres."""
    paper_silhouette: Term
    """L_betaS (Table 4): squared error of the rendered silhouette, shares of pixels."""
    tailored_keypoints: Term
    """Smooth absolute error of the fitted hand's keypoints, root-relative, reference bones; through the tailor."""
    tailored_mesh: Term
    """Smooth absolute error of the fitted hand's vertices, likewise."""


def image_losses(
    module: HandModule, hand: HandModel, batch: Batch, keys: Key[Array, "batch"], config: TrainingConfig
) -> tuple[Losses, HandEstimate]:
    """The terms for pictures; those of weight 0 are empty.

    Terms of joints and lengths count where the joints are known, those of rotations and shape where pose and shape are,
    and terms of depths from the camera only where its intrinsics are known too.

    Args:
        module: in training mode.
        hand: right hand model.
        batch: crops of the network's size.
        keys: one a sample, for the noise on true joints.
        config: of the run.
    """
    weights = config.loss
    image = batch.image.astype(hand.dtype) / 255.0
    through_tailor = weights.tailored_keypoints > 0.0 or weights.tailored_mesh > 0.0
    if through_tailor:
        identity = jnp.broadcast_to(jnp.eye(2, 3, dtype=hand.dtype), (image.shape[0], 2, 3))
        estimate, found = recover(module, hand, image, batch.camera, identity, TailorConfig.network())
    elif config.detached:
        estimate = _detached_estimate(module, image, batch.camera)
    else:
        estimate = module(image, batch.camera)
    batch = _completed(batch, estimate)
    truth = matrix_from_axis_angle(batch.pose)
    true_bone = _bone(batch.joints)
    true_joints = _relative(batch.joints) / true_bone[:, None, None]
    inside = _inside(batch, config)
    has_joints, has_3d = batch.has_joints, batch.has_3d
    has_depth = has_joints * batch.has_intrinsics
    terms = {field.name: _empty() for field in dataclasses.fields(Losses)}

    index = indices_from_pixels(batch.keypoints_2d, config.module.image_size // config.module.map_size)
    shape = (config.module.map_size, config.module.map_size)
    if weights.heatmap > 0.0 or weights.paper_heatmap > 0.0:
        peaks = gaussian_heatmaps(index, shape, config.heatmap_sigma)
        if weights.heatmap > 0.0:
            sums = jnp.maximum(jnp.sum(peaks, axis=(1, 2), keepdims=True), 1e-6)
            each = [losses.heatmap_cross_entropy(logits, peaks / sums) for logits in estimate.heatmap_logits]
            terms["heatmap"] = _mean(functools.reduce(jnp.add, each) / len(each), inside)
        if weights.paper_heatmap > 0.0:
            each = [
                jnp.mean(losses.keypoint_2d_loss(jax.nn.sigmoid(logits), peaks), axis=(1, 2))
                for logits in estimate.heatmap_logits
            ]
            terms["paper_heatmap"] = _mean(functools.reduce(jnp.add, each), inside)
    if weights.keypoints_2d > 0.0:
        error = (estimate.keypoints_2d - batch.keypoints_2d) / config.module.image_size
        terms["keypoints_2d"] = _mean(jnp.sum(smooth_absolute(error, 0.01), axis=-1), inside)
    known = jnp.broadcast_to(has_joints[:, None], (has_joints.shape[0], 21))
    if weights.relative_depth > 0.0:
        error = estimate.relative_depth - true_relative_depth(batch, config.module.decoding == "released")
        terms["relative_depth"] = _mean(smooth_absolute(error, 0.05), known)
    if weights.joints > 0.0:
        error = normalise_joints(estimate.joints) - true_joints
        terms["joints"] = _mean(jnp.sum(smooth_absolute(error, 0.05), axis=-1), known)
    known_rotations = jnp.broadcast_to(has_3d[:, None], (has_3d.shape[0], 16))
    predicted = Rotations(estimate.raw_rotations, estimate.rotations, estimate.pose)
    if weights.rotations > 0.0:
        terms["rotations"] = _mean(losses.ik_loss(predicted, truth), known_rotations)
    if weights.rotations_from_truth > 0.0:
        noise = _noise(keys, config.joint_noise, true_joints.dtype)
        again = module.iknet(normalise_joints(true_joints + noise))
        terms["rotations_from_truth"] = _mean(losses.ik_loss(again, truth), known_rotations)
    if weights.model_keypoints > 0.0 or weights.model_keypoints_2d > 0.0 or weights.paper_model_keypoints > 0.0:
        model = model_keypoints(hand, estimate.betas, estimate.rotations)
        error = normalise_joints(model) - true_joints
        terms["model_keypoints"] = _mean(jnp.sum(smooth_absolute(error, 0.05), axis=-1), known)
        sure = jnp.asarray(batch.keypoint_weight)
        flat = project(batch.camera, _toward(batch, model, true_bone))
        error = best_placed(flat, batch.keypoints_2d, sure) - batch.keypoints_2d
        extent = _extent(batch.keypoints_2d)[:, None, None]
        terms["model_keypoints_2d"] = _mean(jnp.sum(smooth_absolute(error / extent, 0.02), axis=-1), sure)
        error = _relative(model) - _relative(batch.joints)
        terms["paper_model_keypoints"] = _mean(jnp.mean(jnp.square(error), axis=-1), known)
    if weights.betas > 0.0:
        terms["betas"] = _mean(jnp.mean(jnp.square(estimate.betas - batch.betas), axis=-1), has_3d)
    if weights.bone > 0.0:
        terms["bone"] = _mean(jnp.square(jnp.log(estimate.bone) - jnp.log(true_bone)), has_joints)
    if weights.root_depth > 0.0:
        safe = jnp.where(has_depth > 0.0, estimate.root_depth, 1.0)
        true_depth = jnp.where(has_depth > 0.0, batch.joints[:, ROOT, 2], 1.0)
        error = jnp.log(jnp.maximum(safe, 1e-3)) - jnp.log(jnp.maximum(true_depth, 1e-3))
        terms["root_depth"] = _mean(smooth_absolute(error, 0.1), has_depth)
    if weights.paper_joints > 0.0:
        error = losses.keypoint_3d_loss(estimate.joints, batch.joints)
        terms["paper_joints"] = _mean(jnp.mean(error, axis=-1), known * batch.has_intrinsics[:, None])
    if weights.paper_root_depth > 0.0:
        error = losses.depth_loss(estimate.root_depth, batch.joints[:, ROOT, 2])
        terms["paper_root_depth"] = _mean(error, has_depth)
    if weights.paper_betas > 0.0:
        terms["paper_betas"] = _mean(losses.beta_loss(estimate.betas), jnp.ones_like(has_3d))
    if weights.paper_depth > 0.0 or weights.paper_silhouette > 0.0:
        maps = rendered_maps(hand, estimate.betas, estimate.rotations, batch, config.module.image_size // MAP_STRIDE)
        if weights.paper_depth > 0.0:
            assert batch.depth is not None
            terms["paper_depth"] = _mean(depth_map_loss(maps.depth, jnp.asarray(batch.depth)), has_depth)
        if weights.paper_silhouette > 0.0:
            assert batch.mask is not None
            error = losses.shape_silhouette_loss(maps.silhouette, batch.mask.astype(hand.dtype) / 255.0)
            terms["paper_silhouette"] = _mean(jnp.mean(error, axis=(1, 2)), has_depth)
    if through_tailor:
        fitted = jax.vmap(lambda one: camera_mesh(hand, one))(found.parameters)
        true_mesh = jax.vmap(lambda betas, pose: hand.shape(betas).pose(pose).skin())(batch.betas, batch.pose)
        size = _bone(fitted.keypoints)[:, None, None]
        error = normalise_joints(fitted.keypoints) - true_joints
        terms["tailored_keypoints"] = _mean(jnp.sum(smooth_absolute(error, 0.05), axis=-1), known)
        error = (fitted.vertices - fitted.keypoints[:, ROOT, None]) / size
        error = error - (true_mesh.vertices - true_mesh.keypoints[:, ROOT, None]) / true_bone[:, None, None]
        terms["tailored_mesh"] = _mean(jnp.mean(jnp.sum(smooth_absolute(error, 0.05), axis=-1), axis=-1), has_3d)
    return Losses(**terms), estimate


def _completed(batch: Batch, estimate: HandEstimate) -> Batch:
    """The batch with the estimated joints where the true ones are unknown, and a hand at rest where its pose is.

    No term counts either. But what fills the gaps must not reach a gradient, as 0 times something that is not finite
    would; and IKNet, whose batch statistics are those of all samples, must see hands.
    """
    known, posed = batch.has_joints > 0.0, batch.has_3d > 0.0
    return dataclasses.replace(
        batch,
        joints=jnp.where(known[:, None, None], batch.joints, jax.lax.stop_gradient(estimate.joints)),
        pose=jnp.where(posed[:, None, None], batch.pose, 0.0),
        betas=jnp.where(posed[:, None], batch.betas, 0.0),
    )


def _detached_estimate(module: HandModule, image: Float[Array, "batch size size 3"], camera: Camera) -> HandEstimate:
    """The network's estimate, in which only keypoints and relative depths pass gradients on to the maps."""
    stacks = module.stacks(module.stem(image - 0.5))
    features, shape_vector = module.shape_branch(stacks[-1].encoding)
    estimate = module.decode(camera, jax.lax.stop_gradient(stacks), features, shape_vector)
    last, stride = stacks[-1], module.config.image_size // module.config.map_size
    assert last.depth_maps is not None
    heatmaps = softmax_heatmaps(last.heatmap_logits.astype(image.dtype))
    depth = expected_value(heatmaps, last.depth_maps.astype(image.dtype))
    return dataclasses.replace(
        estimate,
        heatmap_logits=tuple(stack.heatmap_logits for stack in stacks),
        keypoints_2d=pixels_from_indices(expected_index(heatmaps), stride),
        relative_depth=depth - depth[:, ROOT, None],
    )


def pose_losses(
    module: HandModule, hand: HandModel, pose: Array, betas: Array, keys: Key[Array, "batch"], config: TrainingConfig
) -> Losses:
    """The terms for poses without pictures: L_ik and L_xyz of IKNet on the joints of sampled hands."""
    joints = jax.vmap(lambda p, b: hand.shape(b).pose(p).keypoints)(pose, betas)
    # A camera looks at the hand from anywhere, and the network's joints are never exact.
    noise = _noise(keys, config.joint_noise, joints.dtype)
    normalised = normalise_joints(joints)
    found = module.iknet(normalise_joints(normalised + noise))
    truth = matrix_from_axis_angle(pose)
    posed = model_keypoints(hand, betas, found.matrices)
    error = normalise_joints(posed) - normalised
    terms = {field.name: _empty() for field in dataclasses.fields(Losses)}
    each = losses.ik_loss(found, truth)
    terms["rotations_from_truth"] = _mean(each, jnp.ones_like(each))
    each = jnp.sum(smooth_absolute(error, 0.05), axis=-1)
    terms["model_keypoints"] = _mean(each, jnp.ones_like(each))
    return Losses(**terms)


def objective(terms: Losses, weights: LossWeights, share: Losses) -> Float[Array, ""]:
    """The weighted sum of the terms.

    Args:
        terms: of this device's samples.
        weights: of the terms.
        share: whose `weight`s are the sums over all devices.
    """
    total = jnp.zeros((), terms.heatmap.total.dtype)
    for field in dataclasses.fields(Losses):
        weight = getattr(weights, field.name)
        if weight > 0.0:
            term, whole = getattr(terms, field.name), getattr(share, field.name)
            total = total + weight * term.total / jnp.maximum(whole.weight, 1e-6)
    return total


def true_relative_depth(batch: Batch, along_camera: bool) -> Float[Array, "batch 21"]:
    """Depths relative to the root in reference bones, along the line of sight to the root or the camera's z axis."""
    relative = _relative(batch.joints)
    axis = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0], relative.dtype), relative[:, 0].shape)
    if not along_camera:
        root = jnp.asarray(batch.joints[:, ROOT])
        distance = jnp.sqrt(jnp.sum(jnp.square(root), axis=-1, keepdims=True))
        sight = root / jnp.maximum(distance, 1e-6)
        axis = jnp.where(batch.has_intrinsics[:, None] > 0.0, sight, axis)
    return jnp.einsum("bki,bi->bk", relative, axis) / _bone(batch.joints)[:, None]


def model_keypoints(
    hand: HandModel, betas: Float[Array, "batch 10"], rotations: Float[Array, "batch 16 3 3"]
) -> Float[Array, "batch 21 3"]:
    """The hand model's keypoints, metres, in its own frame turned by the global rotation."""
    return jax.vmap(lambda b, r: hand.shape(b).articulate(r).keypoints)(betas, rotations)


def rendered_maps(
    hand: HandModel,
    betas: Float[Array, "batch 10"],
    rotations: Float[Array, "batch 16 3 3"],
    batch: Batch,
    size: int,
) -> SoftMaps:
    """Silhouettes and depths of hands in the batch's crops.

    The hand is put where its true root is, as L_mano does, so that shape and pose are learnt from them, not placement.

    Args:
        hand: the hand model.
        betas, rotations: of the hands.
        batch: its cameras and joints.
        size: side of the maps, pixels; a pixel is `MAP_STRIDE` of the crop's.
    """
    identity = jnp.broadcast_to(jnp.eye(2, 3, dtype=hand.dtype), (betas.shape[0], 2, 3))
    cameras = transform_camera(batch.camera, map_affine(identity))

    def one(betas: Array, rotations: Array, root: Array, camera: Camera) -> SoftMaps:
        posed = hand.shape(betas).articulate(rotations)
        vertices = posed.skin().vertices + (root - posed.keypoints[ROOT])[None]
        return soft_rasterise(vertices, hand.faces, camera, size, size)

    return jax.vmap(one)(betas, rotations, jnp.asarray(batch.joints[:, ROOT]), cameras)


def depth_map_loss(
    rendered: Float[Array, "batch size size"], observed: Float[Array, "batch size size"]
) -> Float[Array, "batch"]:
    """L_betaD: mean of `losses.shape_depth_loss` over the pixels where both maps know the hand; 0 without any.

    Args:
        rendered: metres; inf where no hand is.
        observed: metres; 0 where unknown.
    """
    both = jnp.isfinite(rendered) & (observed > 0.0)
    error = losses.shape_depth_loss(jnp.where(both, rendered, 0.0), jnp.where(both, observed, 0.0))
    return jnp.sum(error, axis=(1, 2)) / jnp.maximum(jnp.sum(both, axis=(1, 2), dtype=error.dtype), 1.0)


def best_placed(
    points: Float[Array, "batch 21 2"], target: Float[Array, "batch 21 2"], weight: Float[Array, "batch 21"]
) -> Float[Array, "batch 21 2"]:
    """`points` scaled and shifted (Eq. 17 about the centroid) to lie closest to `target`."""
    share = weight / jnp.maximum(jnp.sum(weight, axis=-1, keepdims=True), 1e-6)
    p = points - jnp.einsum("bk,bki->bi", share, points)[:, None]
    t = target - jnp.einsum("bk,bki->bi", share, target)[:, None]
    squared = jnp.einsum("bk,bki,bki->b", share, p, p)
    scale = jnp.einsum("bk,bki,bki->b", share, p, t) / jnp.maximum(squared, 1e-9)
    return scale[:, None, None] * p + jnp.einsum("bk,bki->bi", share, target)[:, None]


def smooth_absolute(error: Float[Array, "*shape"], width: float) -> Float[Array, "*shape"]:
    """|error|, rounded to a parabola where it is below `width`."""
    size = jnp.abs(error)
    return jnp.where(size < width, 0.5 * jnp.square(error) / width, size - 0.5 * width)


def _toward(batch: Batch, model: Float[Array, "batch 21 3"], true_bone: Float[Array, "batch"]) -> Array:
    """The model's keypoints where the true hand is, in front of the batch's cameras; metres."""
    scaled = _relative(model) * (true_bone / jnp.maximum(_bone(model), 1e-6))[:, None, None]
    placed = scaled + batch.joints[:, ROOT, None]
    # Some hands of RHD begin behind the camera, where nothing can be projected.
    return jnp.concatenate([placed[..., :2], jnp.maximum(placed[..., 2:], _NEAREST)], axis=-1)


def _inside(batch: Batch, config: TrainingConfig) -> Float[Array, "batch 21"]:
    """Weights of the keypoints that lie in the picture."""
    last = config.module.image_size - 0.5
    inside = jnp.all((batch.keypoints_2d > -0.5) & (batch.keypoints_2d < last), axis=-1)
    return jnp.where(inside, batch.keypoint_weight, 0.0)


def _relative(joints: Array) -> Array:
    return joints - joints[:, ROOT, None]


def _bone(joints: Array) -> Float[Array, "batch"]:
    bone = joints[:, REFERENCE_BONE[1]] - joints[:, REFERENCE_BONE[0]]
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(bone), axis=-1), 1e-12))


def _extent(keypoints: Array) -> Float[Array, "batch"]:
    return jnp.maximum(jnp.max(jnp.max(keypoints, axis=1) - jnp.min(keypoints, axis=1), axis=-1), 1.0)


def _noise(keys: Key[Array, "batch"], level: float, dtype: jnp.dtype) -> Float[Array, "batch 21 3"]:
    return level * jax.vmap(lambda key: jax.random.normal(key, (21, 3), dtype))(keys)


def _mean(values: Array, weights: Array) -> Term:
    return Term(jnp.sum(jnp.where(weights == 0.0, 0.0, values) * weights), jnp.sum(weights))


def _empty() -> Term:
    return Term(jnp.zeros(()), jnp.zeros(()))

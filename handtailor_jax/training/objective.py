"""The objective of training: a sum of terms with their weights.

To add a loss: write a function of a batch and a prediction that returns a term, add a field for its weight to
`LossWeights` (training/config.py), and add one line to `objective`. Losses of the paper are in hand_module/losses.py.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from handtailor_jax.data.sample import Batch
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import project
from handtailor_jax.geometry.heatmaps import gaussian_heatmaps, indices_from_pixels
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.hand_module import losses
from handtailor_jax.hand_module.iknet import Rotations, normalise_joints
from handtailor_jax.hand_module.losses import Term, weighted_mean
from handtailor_jax.skeleton import REFERENCE_BONE, ROOT
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.prediction import Prediction

_NEAREST = 0.02  # metres; some hands of RHD reach behind the camera, where nothing can be projected

Loss = Callable[[Batch, Prediction], Term]


def objective(config: TrainingConfig, others: Sequence[tuple[float, Loss]] = ()) -> tuple[tuple[float, Loss], ...]:
    """Return the terms of the configured stage and the other losses, each with its weight, if that is above 0."""
    w = config.loss
    of_poses: list[tuple[float, Loss]] = [
        (w.rotations_from_truth, rotations_from_truth),
        (w.model_keypoints, model_keypoints),
    ]
    of_images: list[tuple[float, Loss]] = [
        (w.heatmap, heatmap),
        (w.keypoints_2d, keypoints_2d),
        (w.relative_depth, relative_depth),
        (w.joints, joints),
        (w.rotations, rotations),
        (w.model_keypoints_2d, model_keypoints_2d),
        (w.betas, betas),
        (w.bone, bone),
        (w.root_depth, root_depth),
        (w.paper_heatmap, paper_heatmap),
        (w.paper_joints, paper_joints),
        (w.paper_root_depth, paper_root_depth),
        (w.paper_betas, paper_betas),
        (w.paper_model_keypoints, paper_model_keypoints),
        (w.paper_depth, paper_depth),
        (w.paper_silhouette, paper_silhouette),
        (w.tailored_keypoints, tailored_keypoints),
        (w.tailored_mesh, tailored_mesh),
    ]
    listed = [*of_poses, *([] if config.stage == "ik" else of_images), *others]
    return tuple((weight, loss) for weight, loss in listed if weight > 0.0)


# The terms. Joints and lengths are weighted by `has_joints`, rotations and shape by `has_3d`, and distances from the
# camera and rendered maps by `has_joints` times `has_intrinsics`.


def heatmap(batch: Batch, prediction: Prediction) -> Term:
    """Mean cross-entropy of the heatmaps of all stacks against Gaussians of sum 1."""
    peaks = _target_heatmaps(batch, prediction.config)
    target = peaks / jnp.maximum(jnp.sum(peaks, axis=(1, 2), keepdims=True), 1e-6)
    logits = prediction.estimated.heatmap_logits
    error = sum((losses.heatmap_cross_entropy(each, target) for each in logits), start=jnp.zeros_like(target[:, 0, 0]))
    return weighted_mean(error / len(logits), _inside(batch))


def keypoints_2d(batch: Batch, prediction: Prediction) -> Term:
    """Huber error of the keypoints, in crop sides."""
    error = (prediction.estimated.keypoints_2d - batch.keypoints_2d) / batch.image.shape[-2]
    return weighted_mean(_huber(error, 0.01), _inside(batch))


def relative_depth(batch: Batch, prediction: Prediction) -> Term:
    """Huber error of the relative depths, in reference bones."""
    along_camera = prediction.config.module.decoding != "corrected"
    error = prediction.estimated.relative_depth - true_relative_depth(batch, along_camera)
    return weighted_mean(_huber(error[..., None], 0.05), batch.has_joints)


def joints(batch: Batch, prediction: Prediction) -> Term:
    """Huber error of the lifted keypoints, root-relative, in reference bones."""
    error = normalise_joints(prediction.estimated.joints) - normalise_joints(batch.joints)
    return weighted_mean(_huber(error, 0.05), batch.has_joints)


def rotations(batch: Batch, prediction: Prediction) -> Term:
    """L_ik, without L_xyz, of the rotations from the predicted joints."""
    estimate = prediction.estimated
    predicted = Rotations(estimate.raw_rotations, estimate.rotations, estimate.pose)
    return weighted_mean(losses.ik_loss(predicted, matrix_from_axis_angle(batch.pose)), batch.has_3d)


def rotations_from_truth(batch: Batch, prediction: Prediction) -> Term:
    """L_ik, without L_xyz, of the rotations from the true joints with noise."""
    error = losses.ik_loss(prediction.rotations_from_truth, matrix_from_axis_angle(batch.pose))
    return weighted_mean(error, batch.has_3d)


def model_keypoints(batch: Batch, prediction: Prediction) -> Term:
    """L_xyz of L_ik: error of the posed hand model's keypoints, root-relative, in reference bones.

    It is the squared distance for quaternions, as published, and the Huber error for matrices.
    """
    error = normalise_joints(prediction.model_keypoints) - normalise_joints(batch.joints)
    if prediction.config.module.rotation == "quaternion":
        return weighted_mean(jnp.sum(jnp.square(error), axis=-1), batch.has_joints)
    return weighted_mean(_huber(error, 0.05), batch.has_joints)


def model_keypoints_2d(batch: Batch, prediction: Prediction) -> Term:
    """Huber error of the posed hand model's keypoints in the image, in hand sizes.

    The model is placed at the true root in the true size, then scaled and shifted in the image to fit best (Eq. 17).
    """
    model = _relative(prediction.model_keypoints)
    size = _bone(batch.joints) / jnp.maximum(_bone(model), 1e-6)
    placed = size[:, None, None] * model + batch.joints[:, ROOT, None]
    placed = jnp.concatenate([placed[..., :2], jnp.maximum(placed[..., 2:], _NEAREST)], axis=-1)
    weight = jnp.asarray(batch.keypoint_weight)
    error = best_placed(project(batch.camera, placed), batch.keypoints_2d, weight) - batch.keypoints_2d
    extent = jnp.maximum(hand_size(batch.keypoints_2d), 1.0)
    return weighted_mean(_huber(error / extent[:, None, None], 0.02), weight)


def betas(batch: Batch, prediction: Prediction) -> Term:
    """Mean squared error of the shape coefficients."""
    error = jnp.mean(jnp.square(prediction.estimated.betas - batch.betas), axis=-1)
    return weighted_mean(error, batch.has_3d)


def bone(batch: Batch, prediction: Prediction) -> Term:
    """Squared error of the logarithm of the reference bone's length."""
    error = jnp.log(prediction.estimated.bone) - jnp.log(_bone(batch.joints))
    return weighted_mean(jnp.square(error), batch.has_joints)


def root_depth(batch: Batch, prediction: Prediction) -> Term:
    """Huber error of the logarithm of the root depth."""
    known = _known_depth(batch)
    depth = jnp.where(known > 0.0, prediction.estimated.root_depth, 1.0)
    true_depth = jnp.where(known > 0.0, batch.joints[:, ROOT, 2], 1.0)
    error = jnp.log(jnp.maximum(depth, 1e-3)) - jnp.log(jnp.maximum(true_depth, 1e-3))
    return weighted_mean(_huber(error[..., None], 0.1), known)


def paper_heatmap(batch: Batch, prediction: Prediction) -> Term:
    """L_kpt2D of sigmoid heatmaps against Gaussians of peak 1, summed over the stacks."""
    target = _target_heatmaps(batch, prediction.config)
    error = jnp.zeros_like(target[:, 0, 0])
    for logits in prediction.estimated.heatmap_logits:
        error = error + jnp.mean(losses.keypoint_2d_loss(jax.nn.sigmoid(logits), target), axis=(1, 2))
    return weighted_mean(error, _inside(batch))


def paper_joints(batch: Batch, prediction: Prediction) -> Term:
    """L_kpt3D of the lifted keypoints in the camera frame, in reference bones."""
    estimate = prediction.estimated
    lifted = estimate.joints / _positive(estimate.scale)[:, None, None]
    error = losses.keypoint_3d_loss(lifted, batch.joints / _bone(batch.joints)[:, None, None])
    return weighted_mean(jnp.mean(error, axis=-1), _known_depth(batch))


def paper_root_depth(batch: Batch, prediction: Prediction) -> Term:
    """L_d of the root depth, in reference bones."""
    estimate = prediction.estimated
    depth, true_depth = estimate.root_depth / _positive(estimate.scale), batch.joints[:, ROOT, 2] / _bone(batch.joints)
    return weighted_mean(losses.depth_loss(depth, true_depth), _known_depth(batch))


def paper_betas(batch: Batch, prediction: Prediction) -> Term:
    """L_beta of the shape coefficients; needs no ground truth."""
    return weighted_mean(losses.beta_loss(prediction.estimated.betas), jnp.ones_like(batch.has_3d))


def paper_model_keypoints(batch: Batch, prediction: Prediction) -> Term:
    """L_mano of the posed hand model at the true root, in reference bones."""
    error = losses.mano_loss(normalise_joints(prediction.model_keypoints), normalise_joints(batch.joints))
    return weighted_mean(jnp.mean(error, axis=-1), batch.has_joints)


def paper_depth(batch: Batch, prediction: Prediction) -> Term:
    """L_betaD of the rendered depth map, in reference bones."""
    bone = _bone(batch.joints)[:, None, None]
    depth = jnp.asarray(batch.depth)
    return weighted_mean(losses.shape_depth_loss(prediction.maps.depth / bone, depth / bone), _known_depth(batch))


def paper_silhouette(batch: Batch, prediction: Prediction) -> Term:
    """L_betaS of the rendered silhouette, in shares of a pixel."""
    rendered = prediction.maps.silhouette
    target = jnp.asarray(batch.mask).astype(rendered.dtype) / 255.0
    return weighted_mean(losses.shape_silhouette_loss(rendered, target), _known_depth(batch))


def tailored_keypoints(batch: Batch, prediction: Prediction) -> Term:
    """Huber error of the tailored hand's keypoints, root-relative, in reference bones."""
    error = normalise_joints(prediction.tailored_mesh.keypoints) - normalise_joints(batch.joints)
    return weighted_mean(_huber(error, 0.05), batch.has_joints)


def tailored_mesh(batch: Batch, prediction: Prediction) -> Term:
    """Huber error of the tailored hand's vertices, root-relative, in reference bones."""
    hand, mesh = prediction.hand, prediction.tailored_mesh
    true_mesh = jax.vmap(lambda shape, pose: hand.shape(shape).pose(pose).skin())(batch.betas, batch.pose)
    error = (mesh.vertices - mesh.keypoints[:, ROOT, None]) / _bone(mesh.keypoints)[:, None, None]
    error = error - (true_mesh.vertices - true_mesh.keypoints[:, ROOT, None]) / _bone(batch.joints)[:, None, None]
    return weighted_mean(jnp.mean(_huber(error, 0.05), axis=-1), batch.has_3d)


# Quantities that several terms use.


def true_relative_depth(batch: Batch, along_camera: bool) -> Float[Array, "batch 21"]:
    """Return true depths relative to the root, in reference bones, along the camera's z axis or the line of sight."""
    relative = _relative(batch.joints)
    axis = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0], relative.dtype), relative[:, 0].shape)
    if not along_camera:
        root = jnp.asarray(batch.joints[:, ROOT])
        distance = jnp.sqrt(jnp.sum(jnp.square(root), axis=-1, keepdims=True))
        axis = jnp.where(batch.has_intrinsics[:, None] > 0.0, root / jnp.maximum(distance, 1e-6), axis)
    return jnp.einsum("bki,bi->bk", relative, axis) / _bone(batch.joints)[:, None]


def best_placed(
    points: Float[Array, "batch 21 2"], target: Float[Array, "batch 21 2"], weight: Float[Array, "batch 21"]
) -> Float[Array, "batch 21 2"]:
    """Scale and shift points (Eq. 17 about the centroid) to lie closest to a target."""
    share = weight / jnp.maximum(jnp.sum(weight, axis=-1, keepdims=True), 1e-6)
    p = points - jnp.einsum("bk,bki->bi", share, points)[:, None]
    t = target - jnp.einsum("bk,bki->bi", share, target)[:, None]
    squared = jnp.einsum("bk,bki,bki->b", share, p, p)
    scale = jnp.einsum("bk,bki,bki->b", share, p, t) / jnp.maximum(squared, 1e-9)
    return scale[:, None, None] * p + jnp.einsum("bk,bki->bi", share, target)[:, None]


def _target_heatmaps(batch: Batch, config: TrainingConfig) -> Float[Array, "batch rows columns 21"]:
    size = config.module.map_size
    index = indices_from_pixels(batch.keypoints_2d, config.module.stride)
    return gaussian_heatmaps(index, (size, size), config.heatmap_sigma)


def _huber(error: Float[Array, "*axes n"], width: float) -> Float[Array, "*axes"]:
    """Return the Huber error, summed over the last axis: a parabola below `width`, then a line of slope 1."""
    return jnp.sum(optax.huber_loss(error, delta=width), axis=-1) / width


def _inside(batch: Batch) -> Float[Array, "batch 21"]:
    """Return the weights of the keypoints, 0 for those outside of the crop."""
    last = batch.image.shape[-2] - 0.5
    inside = jnp.all((batch.keypoints_2d > -0.5) & (batch.keypoints_2d < last), axis=-1)
    return jnp.where(inside, batch.keypoint_weight, 0.0)


def _known_depth(batch: Batch) -> Float[Array, "batch"]:
    """Return the weights of depths from the camera."""
    return batch.has_joints * batch.has_intrinsics


def _positive(length: Float[Array, "batch"]) -> Float[Array, "batch"]:
    return jnp.maximum(length, 1e-3)  # a millimetre: the bone of an untrained network may be shorter


def _relative(joints: Array) -> Float[Array, "batch 21 3"]:
    return joints - joints[:, ROOT, None]


def _bone(joints: Array) -> Float[Array, "batch"]:
    reference = joints[:, REFERENCE_BONE[1]] - joints[:, REFERENCE_BONE[0]]
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(reference), axis=-1), 1e-12))

"""Every loss of the paper (Eq. 6, 7 and Table 4): one function each, which returns the errors of single elements.

`weighted_mean` turns the errors into a term; training/objective.py lists the terms with their weights, and
`LossWeights.paper` has the weights of Eq. 6 (L_theta = 100 L_kpt2D + L_kpt3D + 0.1 L_d) and of Eq. 7
(L = L_theta + L_beta + 0.1 L_mano).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.geometry.rotations import quaternion_from_matrix
from handtailor_jax.hand_module.iknet import Rotations, normalise_quaternion
from handtailor_jax.types import pytree

Maps = Float[Array, "*batch rows columns k"]
DepthMap = Float[Array, "*batch rows columns"]
Joints = Float[Array, "*batch 21 3"]


@pytree
class Term:
    """A weighted mean in two parts, so that the parts of several devices add up to the mean over all their samples."""

    total: Float[Array, ""]
    """Sum of the weighted errors."""
    weight: Float[Array, ""]
    """Sum of the weights."""


def weighted_mean(errors: Float[Array, "..."], weights: Float[Array, "..."]) -> Term:
    """Return the mean of errors as a term.

    Args:
        errors: Errors; elements of weight 0 may hold anything, NaN included.
        weights: Weights of the leading axes of the errors: one per sample, per keypoint, and so on.
    """
    _refuse_to_broadcast(errors.shape[: weights.ndim], weights.shape)
    weights = jnp.broadcast_to(weights.reshape(*weights.shape, *([1] * (errors.ndim - weights.ndim))), errors.shape)
    return Term(jnp.sum(jnp.where(weights == 0.0, 0.0, errors) * weights), jnp.sum(weights))


def keypoint_2d_loss(heatmaps: Maps, target: Maps) -> Maps:
    """L_kpt2D: squared error of heatmaps, per pixel; both of peak 1, or both of sum 1."""
    return _squared_error(heatmaps, target)


def heatmap_cross_entropy(logits: Maps, target: Maps) -> Float[Array, "*batch k"]:
    """Cross-entropy of softmax heatmaps against maps of sum 1, per keypoint; not in the paper.

    The gradient of the squared error vanishes where the heatmap misses a narrow peak altogether; this one does not.
    """
    _refuse_to_broadcast(logits.shape, target.shape)
    return -jnp.sum(target * jax.nn.log_softmax(logits, axis=(-3, -2)), axis=(-3, -2))


def keypoint_3d_loss(joints: Joints, target: Joints) -> Joints:
    """L_kpt3D: squared error of the lifted keypoints, per coordinate; both in the same frame and unit."""
    return _squared_error(joints, target)


def depth_loss(root_depth: Float[Array, "*batch"], target: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """L_d: squared error of the root depth."""
    return _squared_error(root_depth, target)


def beta_loss(betas: Float[Array, "*batch 10"]) -> Float[Array, "*batch"]:
    """L_beta = ||beta||^2."""
    return jnp.sum(jnp.square(betas), axis=-1)


def mano_loss(joints: Joints, target: Joints) -> Joints:
    """L_mano: squared error of the hand model's own keypoints under the predicted pose and shape, per coordinate."""
    return _squared_error(joints, target)


def ik_loss(rotations: Rotations, target: Float[Array, "*batch 16 3 3"]) -> Float[Array, "*batch 16"]:
    """L_cos + L_l2 + L_norm of L_ik, per rotation (Zhou et al., CVPR 2020); L_xyz is a loss of the posed keypoints.

    For quaternions as published, L_cos = 1 - Re(q* q^-1) and L_l2 = ||q* - q||^2, with w >= 0 in the ground truth q*.
    For matrices ours, L_cos = 1 - cos of the angle between prediction and ground truth, L_l2 their squared distance.
    """
    if rotations.raw.shape[-1] == 4:
        true = quaternion_from_matrix(target)
        true = jnp.where(true[..., :1] < 0.0, -true, true)
        squared = jnp.sum(_squared_error(normalise_quaternion(rotations.raw), true), axis=-1)
        # ||q* - q||^2 = 2 (1 - Re(q* q^-1)) for unit quaternions.
        return 0.5 * squared + squared + normalisation_loss(rotations.raw)
    difference = jnp.sum(_squared_error(rotations.matrices, target), axis=(-2, -1))
    # ||R - R*||^2 = 2 (3 - tr(R^T R*)) = 4 (1 - cos), without the cancellation that 1 - cos would suffer.
    return 0.25 * difference + difference + normalisation_loss(rotations.raw)


def normalisation_loss(raw: Float[Array, "*batch parameters"]) -> Float[Array, "*batch"]:
    """L_norm: squared deviation of a quaternion from length 1, or of two columns of a matrix from orthonormality."""
    if raw.shape[-1] == 4:
        return jnp.square(1.0 - jnp.sum(jnp.square(raw), axis=-1))
    columns = raw.reshape(*raw.shape[:-1], 2, 3)
    lengths = jnp.sum(jnp.square(1.0 - jnp.sum(jnp.square(columns), axis=-1)), axis=-1)
    return lengths + jnp.square(jnp.sum(columns[..., 0, :] * columns[..., 1, :], axis=-1))


def shape_depth_loss(rendered: DepthMap, target: DepthMap) -> Float[Array, "*batch"]:
    """L_betaD (Table 4): mean squared error of a rendered depth map over the pixels that both maps cover; 0 if none.

    Args:
        rendered: Camera z of the rendered mesh; not finite where no hand is.
        target: Camera z in the same unit; 0 where unknown.
    """
    both = jnp.isfinite(rendered) & (target > 0.0)
    # Masked before the difference: an infinite error times a weight of 0 would have a gradient that is not a number.
    error = _squared_error(jnp.where(both, rendered, 0.0), jnp.where(both, target, 0.0))
    return jnp.sum(error, axis=(-2, -1)) / jnp.maximum(jnp.sum(both, axis=(-2, -1), dtype=error.dtype), 1.0)


def shape_silhouette_loss(rendered: DepthMap, target: DepthMap) -> Float[Array, "*batch"]:
    """L_betaS (Table 4): mean squared error of the rendered mesh's soft silhouette, 0 to 1."""
    return jnp.mean(_squared_error(rendered, target), axis=(-2, -1))


def _squared_error(prediction: Float[Array, "..."], target: Float[Array, "..."]) -> Float[Array, "..."]:
    _refuse_to_broadcast(prediction.shape, target.shape)
    return jnp.square(prediction - target)


def _refuse_to_broadcast(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    # A missing axis would silently average the wrong differences.
    if first != second:
        raise ValueError(f"shapes {first} and {second} differ: a loss does not broadcast, give arrays of equal shapes")

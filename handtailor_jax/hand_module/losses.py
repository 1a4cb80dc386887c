"""The losses, one function each, element by element: masks and means are the caller's (`masked_mean`).

Every function takes arrays of equal shapes and refuses to broadcast: a missing axis would silently average the wrong
differences.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.hand_module.iknet import Rotations


def keypoint_2d_loss(
    heatmaps: Float[Array, "*batch rows columns k"], target: Float[Array, "*batch rows columns k"]
) -> Float[Array, "*batch rows columns k"]:
    """L_kpt2D: squared error of heatmaps against Gaussians, per pixel; both of peak 1, or both of sum 1."""
    return _squared_error(heatmaps, target)


def heatmap_cross_entropy(
    logits: Float[Array, "*batch rows columns k"], target: Float[Array, "*batch rows columns k"]
) -> Float[Array, "*batch k"]:
    """Cross-entropy of softmax heatmaps against maps of sum 1, per keypoint; not in the paper.

    Its gradient, unlike the squared error's, does not vanish where a narrow peak is missed altogether.
    """
    _refuse_to_broadcast(logits, target)
    log_heatmaps = jax.nn.log_softmax(logits, axis=(-3, -2))
    return -jnp.sum(target * log_heatmaps, axis=(-3, -2))


def keypoint_3d_loss(
    joints: Float[Array, "*batch 21 3"], target: Float[Array, "*batch 21 3"]
) -> Float[Array, "*batch 21 3"]:
    """L_kpt3D: squared error of the lifted keypoints, per coordinate; both in the same frame and unit."""
    return _squared_error(joints, target)


def depth_loss(root_depth: Float[Array, "*batch"], target: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """L_d: squared error of the root's depth."""
    return _squared_error(root_depth, target)


def beta_loss(betas: Float[Array, "*batch 10"]) -> Float[Array, "*batch"]:
    """L_beta = ||beta||^2."""
    return jnp.sum(jnp.square(betas), axis=-1)


def mano_loss(joints: Float[Array, "*batch 21 3"], target: Float[Array, "*batch 21 3"]) -> Float[Array, "*batch 21 3"]:
    """L_mano: squared error of the hand model's own keypoints under the predicted pose and shape, per coordinate."""
    return _squared_error(joints, target)


def ik_loss(rotations: Rotations, target: Float[Array, "*batch 16 3 3"]) -> Float[Array, "*batch 16"]:
    """L_ik but for its joints: L_cos + L_l2 + L_norm per rotation (Zhou et al., CVPR 2020).

    Written for matrices, on which the sign of a quaternion leaves no trace: L_cos = 1 - cos of the angle between
    prediction and truth, L_l2 the squared distance of the matrices, L_norm how far the raw prediction is from
    normalised. Add L_xyz, `mano_loss` of the keypoints posed with these rotations.
    """
    difference = jnp.sum(_squared_error(rotations.matrices, target), axis=(-2, -1))
    # ||R - R*||^2 = 2 (3 - tr(R^T R*)) = 4 (1 - cos), without the cancellation that 1 - cos would suffer.
    return 0.25 * difference + difference + normalisation_loss(rotations.raw)


def normalisation_loss(raw: Float[Array, "*batch parameters"]) -> Float[Array, "*batch"]:
    """L_norm: how far a quaternion is from length 1, or two columns of a matrix from being orthonormal."""
    if raw.shape[-1] == 4:
        return jnp.square(1.0 - jnp.sum(jnp.square(raw), axis=-1))
    columns = raw.reshape(*raw.shape[:-1], 2, 3)
    lengths = jnp.sum(jnp.square(1.0 - jnp.sum(jnp.square(columns), axis=-1)), axis=-1)
    return lengths + jnp.square(jnp.sum(columns[..., 0, :] * columns[..., 1, :], axis=-1))


def shape_depth_loss(
    rendered: Float[Array, "*batch rows columns"], target: Float[Array, "*batch rows columns"]
) -> Float[Array, "*batch rows columns"]:
    """L_betaD: squared error of the rendered mesh's depth map, per pixel; mask the pixels that either leaves out."""
    return _squared_error(rendered, target)


def shape_silhouette_loss(
    rendered: Float[Array, "*batch rows columns"], target: Float[Array, "*batch rows columns"]
) -> Float[Array, "*batch rows columns"]:
    """L_betaS: squared error of the rendered mesh's soft silhouette, 0 to 1, per pixel."""
    return _squared_error(rendered, target)


def pose_loss(kpt_2d: Float[Array, ""], kpt_3d: Float[Array, ""], root_depth: Float[Array, ""]) -> Float[Array, ""]:
    """L_theta = 100 L_kpt2D + L_kpt3D + 0.1 L_d, of means (Eq. 6)."""
    return 100.0 * kpt_2d + kpt_3d + 0.1 * root_depth


def total_loss(pose: Float[Array, ""], betas: Float[Array, ""], mano: Float[Array, ""]) -> Float[Array, ""]:
    """L = L_theta + L_beta + 0.1 L_mano, of means (Eq. 7)."""
    return pose + betas + 0.1 * mano


def masked_mean(values: Float[Array, "*axes"], mask: Float[Array, "*axes"]) -> Float[Array, ""]:
    """The mean of the values weighted by a mask of the same shape, e.g. visibility; 0 where all is masked."""
    _refuse_to_broadcast(values, mask)
    # What a mask hides may be anything, also not a number.
    hidden = mask == 0.0
    return jnp.sum(jnp.where(hidden, 0.0, values) * mask) / jnp.maximum(jnp.sum(mask), 1e-6)


def _squared_error(prediction: Float[Array, "..."], target: Float[Array, "..."]) -> Float[Array, "..."]:
    _refuse_to_broadcast(prediction, target)
    return jnp.square(prediction - target)


def _refuse_to_broadcast(first: Float[Array, "..."], second: Float[Array, "..."]) -> None:
    if first.shape != second.shape:
        raise ValueError(f"shapes {first.shape} and {second.shape} differ, and a loss does not broadcast")

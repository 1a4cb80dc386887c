"""The prediction that the terms of the objective compare with a batch."""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray

from handtailor_jax.data.augmentation import MAP_STRIDE, map_affine
from handtailor_jax.data.sample import Batch, labelled_batch
from handtailor_jax.evaluation.freihand import FREIHAND_TIPS
from handtailor_jax.geometry import exact
from handtailor_jax.geometry.cameras import transform_camera
from handtailor_jax.geometry.heatmaps import expected_index, expected_value, normalised, pixels_from_indices
from handtailor_jax.hand_module.hand_module import HandModule, HourglassEstimate
from handtailor_jax.hand_module.iknet import Rotations, normalise_joints
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import MANO_VERTICES
from handtailor_jax.pipeline import recover
from handtailor_jax.render.soft import SoftMaps, soft_rasterise
from handtailor_jax.skeleton import KEYPOINTS_FROM_MANO, ROOT
from handtailor_jax.synthetic.poses import PoseConfig, sample_betas, sample_pose
from handtailor_jax.tailor.placement import camera_mesh
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.types import Camera, HandMesh


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Everything that a term may compare with a batch; a part is computed when a term first reads it.

    A prediction exists only while a step is traced.
    """

    batch: Batch
    module: HandModule
    hand: HandModel
    config: TrainingConfig
    noise_keys: Key[Array, "batch"]
    """Random keys of the noise on true joints."""
    estimate: HourglassEstimate | None
    """Output of the hand module; None in stage "ik"."""

    @property
    def estimated(self) -> HourglassEstimate:
        """Output of the hand module, for terms of images."""
        assert self.estimate is not None, "stage ik has no images"
        return self.estimate

    @cached_property
    def rotations_from_truth(self) -> Rotations:
        """IKNet's rotations from the true joints with noise."""
        joints = normalise_joints(self.batch.joints)
        draw = jax.vmap(lambda key: jax.random.normal(key, (21, 3), joints.dtype))
        return self.module.iknet(normalise_joints(joints + self.config.joint_noise * draw(self.noise_keys)))

    @cached_property
    def model_keypoints(self) -> Float[Array, "batch 21 3"]:
        """Keypoints of the hand model under the predicted pose and shape (the true shape in stage "ik"), metres."""
        if self.estimate is None:
            return posed_keypoints(self.hand, jnp.asarray(self.batch.betas), self.rotations_from_truth.matrices)
        return posed_keypoints(self.hand, self.estimate.betas, self.estimate.rotations, self.config.freihand_joints)

    @cached_property
    def maps(self) -> SoftMaps:
        """Silhouette and depth map of the hand model under the predicted pose and shape."""
        size = self.config.module.image_size // MAP_STRIDE
        return rendered_maps(self.hand, self.estimated.betas, self.estimated.rotations, self.batch, size)

    @cached_property
    def tailored_mesh(self) -> HandMesh:
        """Mesh of the tailored hand in the camera frame."""
        size, dtype = self.module.image_size, self.hand.dtype
        identity = jnp.broadcast_to(jnp.eye(2, 3, dtype=dtype), (self.batch.image.shape[0], 2, 3))
        found = recover(self.hand, self.estimated, self.batch.camera, identity, size, self.config.tailor)
        return jax.vmap(lambda one: camera_mesh(self.hand, one))(found.parameters)


def predict(
    module: HandModule, hand: HandModel, batch: Batch, noise_keys: Key[Array, "batch"], config: TrainingConfig
) -> Prediction:
    """Predict the hands of a batch: crops of the network's size, or poses without images in stage "ik".

    The batch of the prediction has no gaps: unknown joints are the estimated ones, and unknown poses are the rest pose.
    Terms of unknown quantities have weight 0, but their values must be finite, because 0 times a gradient that is not
    finite is not a number, and IKNet's batch statistics include every sample.
    """
    if config.stage == "ik":
        return Prediction(batch, module, hand, config, noise_keys, None)
    image = batch.image.astype(hand.dtype) / 255.0
    estimate = _detached_estimate(module, image, batch.camera) if config.detached else module(image, batch.camera)
    known, posed = batch.has_joints > 0.0, batch.has_3d > 0.0
    batch = dataclasses.replace(
        batch,
        joints=jnp.where(known[:, None, None], batch.joints, jax.lax.stop_gradient(estimate.joints)),
        pose=jnp.where(posed[:, None, None], batch.pose, 0.0),
        betas=jnp.where(posed[:, None], batch.betas, 0.0),
    )
    return Prediction(batch, module, hand, config, noise_keys, estimate)


def _detached_estimate(
    module: HandModule, image: Float[Array, "batch size size 3"], camera: Camera
) -> HourglassEstimate:
    """Return an estimate in which only keypoints and relative depths have gradients to the heatmaps and depth maps."""
    stacks = module.stacks(module.stem(image - 0.5))
    features, shape_vector = module.shape_branch(stacks[-1].encoding)
    estimate = module.decode(camera, jax.lax.stop_gradient(stacks), features, shape_vector)
    last, stride = stacks[-1], module.config.stride
    assert last.depth_maps is not None
    heatmaps = normalised(last.heatmap_logits.astype(image.dtype), "corrected")
    depth = expected_value(heatmaps, last.depth_maps.astype(image.dtype))
    return dataclasses.replace(
        estimate,
        heatmap_logits=tuple(stack.heatmap_logits for stack in stacks),
        keypoints_2d=pixels_from_indices(expected_index(heatmaps), stride),
        relative_depth=depth - depth[:, ROOT, None],
    )


@exact
def posed_keypoints(
    hand: HandModel,
    betas: Float[Array, "batch 10"],
    rotations: Float[Array, "batch 16 3 3"],
    freihand: bool = False,
) -> Float[Array, "batch 21 3"]:
    """Return the hand model's keypoints, metres, in its own frame turned by the global rotation.

    With `freihand`, the keypoints of MANO are regressed from the posed mesh, with FreiHAND's fingertips.
    """
    if freihand and hand.skin.template.shape[0] == MANO_VERTICES:
        vertices = jax.vmap(lambda b, r: hand.shape(b).articulate(r).skin().vertices)(betas, rotations)
        joints = jnp.einsum("jv,nvi->nji", hand.joint_regressor, vertices)
        both = jnp.concatenate([joints, vertices[:, np.asarray(FREIHAND_TIPS)]], axis=1)
        return both[:, np.asarray(KEYPOINTS_FROM_MANO)]
    return jax.vmap(lambda b, r: hand.shape(b).articulate(r).keypoints)(betas, rotations)


def rendered_maps(
    hand: HandModel, betas: Float[Array, "batch 10"], rotations: Float[Array, "batch 16 3 3"], batch: Batch, size: int
) -> SoftMaps:
    """Render silhouettes and depth maps (metres) with a side of `size` map pixels in the crops of a batch.

    Each hand is put at its true root, as in L_mano, so that the losses train shape and pose, not placement.
    """
    identity = jnp.broadcast_to(jnp.eye(2, 3, dtype=hand.dtype), (betas.shape[0], 2, 3))
    cameras = transform_camera(batch.camera, map_affine(identity))

    def one(betas: Array, rotations: Array, root: Array, camera: Camera) -> SoftMaps:
        posed = hand.shape(betas).articulate(rotations)
        vertices = posed.skin().vertices + (root - posed.keypoints[ROOT])[None]
        return soft_rasterise(vertices, hand.faces, camera, size, size)

    return jax.vmap(one)(betas, rotations, jnp.asarray(batch.joints[:, ROOT]), cameras)


def sampled_poses(
    hand: HandModel,
    keys: Key[Array, "batch"],
    betas_std: float = 1.0,
    recorded: Float[Array, "batch 15 3"] | None = None,
) -> Batch:
    """Sample poses and shapes for IKNet, one per key, as a batch whose images are empty.

    Half of the hands get `recorded` finger poses, if there are any.
    """
    config = PoseConfig(betas=betas_std)

    def one(key: PRNGKeyArray, recorded: Array | None) -> tuple[Array, Array, Array]:
        first, second = jax.random.split(key)
        pose, betas = sample_pose(hand, first, config), sample_betas(hand, second, config)
        if recorded is not None:
            fingers = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 2)), recorded, pose[1:])
            pose = jnp.concatenate([pose[:1], fingers])
        return pose, betas, hand.shape(betas).pose(pose).keypoints

    pose, betas, joints = jax.vmap(one)(keys, recorded)
    count = pose.shape[0]
    seen: dict[str, Any] = {"keypoints_2d": jnp.zeros((count, 21, 2)), "intrinsics": jnp.zeros((count, 3, 3))}
    seen["image"] = jnp.zeros((count, 0, 0, 3), jnp.uint8)
    return labelled_batch(joints=joints, pose=pose, betas=betas, **seen, keypoints=0.0, intrinsics_known=0.0)

"""The hand module: an image and its camera in, keypoints, joints, pose and shape out."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import inverse_linear
from handtailor_jax.geometry.heatmaps import (
    expected_index,
    expected_value,
    mass_near,
    pixels_from_indices,
    sigmoid_heatmaps,
    softmax_heatmaps,
)
from handtailor_jax.geometry.lifting import lift, lift_scale, root_depth_in_bones, turn_to_axis
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hourglass import PatchStem, Stack, StackOutput, StridedStem
from handtailor_jax.hand_module.iknet import IKNet, normalise_joints
from handtailor_jax.hand_module.shape_branch import ShapeBranch
from handtailor_jax.skeleton import ROOT
from handtailor_jax.types import Camera, HandEstimate

# The released network's depth maps cover this range of relative depth, in reference bones.
_DEPTH_MIN, _DEPTH_RANGE = -1.5, 3.0

# An adult's reference bone, metres: where the corrected head's bone length starts.
_USUAL_BONE = 0.09


class HandModule(nnx.Module):
    """The learned half of the method. Crops of right hands in, a `HandEstimate` in the crop's camera frame out."""

    def __init__(self, config: HandModuleConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = (StridedStem if config.stem == "strided" else PatchStem)(config, rngs=rngs)
        self.stacks_2d = nnx.List([Stack(config, depth_maps=False, rngs=rngs) for _ in range(config.stacks_2d)])
        self.stacks_3d = nnx.List([Stack(config, depth_maps=True, rngs=rngs) for _ in range(config.stacks_3d)])
        self.shape_branch = ShapeBranch(config, rngs=rngs)
        self.iknet = IKNet(config, rngs=rngs)

    def __call__(self, image: Float[Array, "batch height width 3"], camera: Camera | None = None) -> HandEstimate:
        """Estimates the hand in each image.

        Args:
            image: square RGB crops in [0, 1] of side `config.image_size`.
            camera: the crops' cameras, with the batch axis; None for weak perspective in pixels.

        Returns:
            The estimate, with the batch axis, in pixels of the crop and in the camera frame.

        Raises:
            InputError: if the crops have another size.
        """
        size = self.config.image_size
        if image.shape[1:] != (size, size, 3):
            raise InputError(
                f"image has shape {image.shape}: this hand module takes crops of (batch, {size}, {size}, 3)"
            )
        if camera is None:
            camera = _pixel_camera(image)
        stacks = self.stacks(self.stem(image - 0.5))
        features, shape_vector = self.shape_branch(stacks[-1].encoding)
        return self.decode(camera, stacks, features, shape_vector)

    def stacks(self, features: Float[Array, "batch rows columns channels"]) -> list[StackOutput]:
        """What every stack computes from the stem's features, 2D stacks first."""
        outputs: list[StackOutput] = []
        for stack in [*self.stacks_2d, *self.stacks_3d]:
            outputs.append(stack(features))
            features = outputs[-1].encoding
        return outputs

    def decode(
        self,
        camera: Camera,
        stacks: list[StackOutput],
        features: Float[Array, "batch features"],
        shape_vector: Float[Array, "batch 12"],
    ) -> HandEstimate:
        """Geometry from maps and shape vector, in at least float32 (Eq. 4, 5, 14, 15)."""
        released = self.config.decoding == "released"
        precision = camera.linear.dtype
        last = jax.tree.map(lambda a: a.astype(precision), stacks[-1])
        shape_vector = shape_vector.astype(precision)
        perspective = camera.perspectivity > 0.5

        heatmaps = (sigmoid_heatmaps if released else softmax_heatmaps)(last.heatmap_logits)
        index = expected_index(heatmaps)
        depth = expected_value(heatmaps, last.depth_maps)
        stride = self.config.image_size // self.config.map_size
        if released:
            keypoints_2d = stride * index
            # Its mode without intrinsics leaves the minimum out, which only moves the hand along z.
            relative_depth = _DEPTH_RANGE * depth + (_DEPTH_MIN * camera.perspectivity)[:, None]
        else:
            keypoints_2d = pixels_from_indices(index, stride)
            relative_depth = depth - depth[:, ROOT, None]

        rays = jnp.einsum("bij,bkj->bki", inverse_linear(camera), keypoints_2d - camera.center[:, None])
        turn = None
        if not released:
            # The picture does not say where the hand was seen from, so the network's depths are meant along the line
            # of sight to the root; the hand is lifted in a frame with this line as its z axis, and turned back.
            rays, turn = _along_line_of_sight(rays, camera.perspectivity)
        rays_per_bone = lift_scale(jnp.concatenate([rays, relative_depth[..., None]], axis=-1))
        if released:
            bone, root_depth = jax.nn.sigmoid(shape_vector[:, 0]), jax.nn.sigmoid(shape_vector[:, 1])
        else:
            # As a factor of the depth at which the bone would look as long as it does, the network's word means the
            # same under every focal length.
            bone = _USUAL_BONE * jnp.exp(jnp.tanh(shape_vector[:, 0]))
            in_bones = root_depth_in_bones(rays, relative_depth)
            root_depth = bone * in_bones * jnp.exp(jnp.tanh(shape_vector[:, 1]))
        scale = jnp.where(perspective, bone, rays_per_bone)
        root_depth = jnp.where(perspective, root_depth, 0.0)
        joints = _lift_rays(camera.perspectivity, rays, relative_depth, scale, root_depth)
        if turn is not None:
            joints = jnp.einsum("bji,bkj->bki", turn, joints)
            root_depth = joints[:, ROOT, 2]
        rotations = self.iknet(normalise_joints(joints))
        return HandEstimate(
            heatmap_logits=tuple(stack.heatmap_logits for stack in stacks),
            depth_maps=tuple(stack.depth_maps for stack in stacks if stack.depth_maps is not None),
            heatmaps=heatmaps,
            keypoints_2d=keypoints_2d,
            confidence=mass_near(heatmaps, index, self.config.confidence_radius),
            relative_depth=relative_depth,
            bone=bone,
            scale=scale,
            root_depth=root_depth,
            joints=joints,
            raw_rotations=rotations.raw,
            rotations=rotations.matrices,
            pose=rotations.pose,
            betas=shape_vector[:, 2:],
            shape_features=features,
            shape_vector=shape_vector,
        )


def _along_line_of_sight(
    rays: Float[Array, "batch 21 2"], perspectivity: Float[Array, "batch"]
) -> tuple[Float[Array, "batch 21 2"], Float[Array, "batch 3 3"]]:
    """Points of the plane z = 1 in a frame whose z axis passes through the root, and the rotation into that frame.

    In weak perspective all lines of sight are parallel to the z axis, and nothing is turned.
    """
    directions = jnp.concatenate([rays, jnp.ones_like(rays[..., :1])], axis=-1)
    sideways = rays[:, ROOT] * perspectivity[:, None]
    turn = turn_to_axis(jnp.concatenate([sideways, jnp.ones_like(sideways[:, :1])], axis=-1))
    turned = jnp.einsum("bij,bkj->bki", turn, directions)
    # Keypoints at right angles to the line of sight are errors of a network that has learned nothing.
    depth = jnp.where(perspectivity[:, None] > 0.5, jnp.maximum(turned[..., 2], 0.1), 1.0)
    return turned[..., :2] / depth[..., None], turn


def _lift_rays(
    perspectivity: Float[Array, "batch"],
    rays: Float[Array, "batch 21 2"],
    relative_depth: Float[Array, "batch 21"],
    bone: Float[Array, "batch"],
    root_depth: Float[Array, "batch"],
) -> Float[Array, "batch 21 3"]:
    """Eq. 5 and 14 for keypoints that are given as points of the plane z = 1 (x and y in weak perspective)."""
    eye = jnp.broadcast_to(jnp.eye(2, dtype=rays.dtype), (rays.shape[0], 2, 2))
    unit = Camera(linear=eye, center=jnp.zeros_like(rays[:, 0]), perspectivity=perspectivity)
    return lift(unit, jnp.concatenate([rays, relative_depth[..., None]], axis=-1), bone, root_depth)


def _pixel_camera(image: Float[Array, "batch height width 3"]) -> Camera:
    """The camera of images without intrinsics: weak perspective, measured in pixels."""
    batch, dtype = image.shape[0], np.promote_types(image.dtype, np.float32)
    return Camera(
        linear=jnp.broadcast_to(jnp.eye(2, dtype=dtype), (batch, 2, 2)),
        center=jnp.zeros((batch, 2), dtype),
        perspectivity=jnp.zeros(batch, dtype),
    )

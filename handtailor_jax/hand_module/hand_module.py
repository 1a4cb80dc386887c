"""The hand modules: keypoints, joints, pose and shape from a crop and its camera.

`HandModule` is the paper's: stacked hourglasses, shape branch and IKNet. `LandmarkHandModule`, the default, is the hand
landmark network and IKNet.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from handtailor_jax.detector.landmark_network import HandLandmarkNetwork, Landmarks, by_crop, right_probability
from handtailor_jax.errors import InputError
from handtailor_jax.geometry import exact
from handtailor_jax.geometry.cameras import inverse_linear
from handtailor_jax.geometry.heatmaps import expected_index, expected_value, mass_near, normalised, pixels_from_indices
from handtailor_jax.geometry.lifting import lift, lift_scale, root_depth_in_bones, turn_to_axis
from handtailor_jax.geometry.mirror import mirror_points, mirror_pose
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hourglass import STEMS, LandmarkStem, ShapeBranch, Stack, StackOutput
from handtailor_jax.hand_module.iknet import IKNet, normalise_joints
from handtailor_jax.skeleton import NUM_BETAS, ROOT
from handtailor_jax.types import Camera, HandEstimate, pytree

# Range of relative depth, in reference bones, that the released network's depth maps cover.
_DEPTH_MIN, _DEPTH_RANGE = -1.5, 3.0

# Reference bone of an adult, metres: new networks predict a bone length relative to it.
_USUAL_BONE = 0.09
# Root depth in reference bones at which a network with the paper's decoding starts: it predicts 1.8 to 36 bones.
_USUAL_DEPTH = 8.0


@pytree
class HourglassEstimate(HandEstimate):
    """Output of the paper's network, with every intermediate. All hands are right ones."""

    root_depth: Float[Array, "*batch"]
    """z of the root joint in the camera frame: metres (perspective), 0 (weak perspective)."""
    bone: Float[Array, "*batch"]
    """Length of the reference bone, metres, from the shape branch."""
    heatmap_logits: tuple[Float[Array, "*batch rows columns 21"], ...]
    """Heatmaps before their sigmoid or softmax: every 2D stack's, then every 3D stack's; the last one is decoded."""
    depth_maps: tuple[Float[Array, "*batch rows columns 21"], ...]
    """Depth maps D of every 3D stack, as the network scales them; the last one is decoded."""
    heatmaps: Float[Array, "*batch rows columns 21"]
    """H of Eq. 4: the decoded heatmaps, each with sum 1. `confidence` is the share that lies close to the keypoint."""
    relative_depth: Float[Array, "*batch 21"]
    """Depth of each keypoint relative to the root, in reference bones (Eq. 4): along the line of sight to the root with
    decoding "corrected", otherwise along the camera's z axis."""
    scale: Float[Array, "*batch"]
    """Camera-frame units per reference bone: the bone's length in metres (perspective), Eq. 15 (weak perspective)."""
    raw_rotations: Float[Array, "*batch 16 parameters"]
    """Output of IKNet before normalisation: quaternions (w, x, y, z), or two columns of each matrix."""
    rotations: Float[Array, "*batch 16 3 3"]
    """Rotation matrices of MANO's 16 joints."""
    shape_features: Float[Array, "*batch features"]
    """Input of the shape branch's regressor."""
    shape_vector: Float[Array, "*batch 12"]
    """Raw output of the shape regressor: bone length, root depth, betas."""


class HandModule(nnx.Module):
    """The learned half of the method: from crops of right hands to a `HourglassEstimate` in the crop's camera frame."""

    def __init__(self, config: HandModuleConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = STEMS[config.stem](config, rngs=rngs)
        self.stacks_2d = nnx.List([Stack(config, depth_maps=False, rngs=rngs) for _ in range(config.stacks_2d)])
        self.stacks_3d = nnx.List([Stack(config, depth_maps=True, rngs=rngs) for _ in range(config.stacks_3d)])
        self.shape_branch = ShapeBranch(config, rngs=rngs)
        self.iknet = IKNet(config, rngs=rngs)

    @property
    def image_size(self) -> int:
        """Side of the crops, pixels."""
        return self.config.image_size

    @property
    def landmark_network(self) -> HandLandmarkNetwork | None:
        """The landmark network in the stem; None in other stems."""
        stem = getattr(self, "stem", None)  # a subclass may do without
        return stem.network if isinstance(stem, LandmarkStem) else None

    def __call__(self, image: Num[Array, "..."], camera: Camera | None = None) -> HourglassEstimate:
        """Estimate the hand in each crop, in its pixels and camera frame.

        Args:
            image: (batch, size, size, 3) RGB crops with values 0 to 1 and side `config.image_size`.
            camera: Cameras of the crops, with the batch axis; None for weak perspective in pixels.

        Raises:
            InputError: If the crops have another shape or type.
        """
        _check_crops(image, self.image_size, camera)
        if camera is None:
            camera = Camera.weak_perspective(jnp.ones(image.shape[0]))
            camera = jax.tree.map(lambda leaf: leaf.astype(np.promote_types(image.dtype, np.float32)), camera)
        stacks = self.stacks(self.stem(image - 0.5))
        features, shape_vector = self.shape_branch(stacks[-1].encoding)
        return self.decode(camera, stacks, features, shape_vector)

    def stacks(self, features: Float[Array, "batch rows columns channels"]) -> list[StackOutput]:
        """Return the outputs of all stacks, 2D stacks first, from the features of the stem."""
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
    ) -> HourglassEstimate:
        """Convert maps and shape vector to an estimate, in at least float32 (Eq. 4, 5, 14, 15 of the paper)."""
        decoding = self.config.decoding
        precision = camera.linear.dtype
        last = jax.tree.map(lambda a: a.astype(precision), stacks[-1])
        shape_vector = shape_vector.astype(precision)

        heatmaps = normalised(last.heatmap_logits, decoding)
        index = expected_index(heatmaps)
        depth = expected_value(heatmaps, last.depth_maps)
        stride = self.config.stride
        keypoints_2d = stride * index if decoding == "released" else pixels_from_indices(index, stride)
        if decoding == "released":
            # Without intrinsics the released program leaves out the minimum, which only moves the hand along z.
            relative_depth = _DEPTH_RANGE * depth + (_DEPTH_MIN * camera.perspectivity)[:, None]
        else:
            relative_depth = (_DEPTH_RANGE if decoding == "paper" else 1.0) * (depth - depth[:, ROOT, None])
        bone, scale, root_depth, joints = self._lift(camera, keypoints_2d, relative_depth, shape_vector[:, :2])
        rotations = self.iknet(normalise_joints(joints))
        return HourglassEstimate(
            left=jnp.zeros(keypoints_2d.shape[0], bool),
            presence=None,
            right=None,
            convention="mano",
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

    @exact
    def _lift(
        self,
        camera: Camera,
        keypoints_2d: Float[Array, "batch 21 2"],
        relative_depth: Float[Array, "batch 21"],
        raw_lengths: Float[Array, "batch 2"],
    ) -> tuple[Float[Array, "batch"], Float[Array, "batch"], Float[Array, "batch"], Float[Array, "batch 21 3"]]:
        """Return bone, scale, root depth and joints; see the fields of `HourglassEstimate`."""
        decoding, perspective = self.config.decoding, camera.perspectivity > 0.5
        rays = jnp.einsum("bij,bkj->bki", inverse_linear(camera), keypoints_2d - camera.center[:, None])
        turn = None
        if decoding == "corrected":
            # A crop does not show its place in the image, so depths are predicted along the line of sight to the
            # root. The hand is lifted in a frame with this line as its z axis, and the joints are rotated back.
            rays, turn = _along_line_of_sight(rays, camera.perspectivity)
        rays_per_bone = lift_scale(jnp.concatenate([rays, relative_depth[..., None]], axis=-1))
        if decoding == "released":
            bone, root_depth = jax.nn.sigmoid(raw_lengths[:, 0]), jax.nn.sigmoid(raw_lengths[:, 1])
        else:
            # Relative to the depth that the apparent bone length implies: so the focal length does not matter.
            bone = _USUAL_BONE * jnp.exp(jnp.tanh(raw_lengths[:, 0]))
            if decoding == "paper":
                root_depth = bone * _USUAL_DEPTH * jnp.exp(1.5 * jnp.tanh(raw_lengths[:, 1]))
            else:
                root_depth = bone * root_depth_in_bones(rays, relative_depth) * jnp.exp(jnp.tanh(raw_lengths[:, 1]))
        scale = jnp.where(perspective, bone, rays_per_bone)
        root_depth = jnp.where(perspective, root_depth, 0.0)
        # Rays are already points of the plane z = 1 (x and y in weak perspective): a camera with K = I lifts them.
        identity = jnp.broadcast_to(jnp.eye(2, dtype=rays.dtype), camera.linear.shape)
        unit = dataclasses.replace(camera, linear=identity, center=jnp.zeros_like(camera.center))
        joints = lift(unit, jnp.concatenate([rays, relative_depth[..., None]], axis=-1), scale, root_depth)
        if turn is not None:
            joints = jnp.einsum("bji,bkj->bki", turn, joints)
            root_depth = joints[:, ROOT, 2]
        return bone, scale, root_depth, joints


@exact
def _along_line_of_sight(
    rays: Float[Array, "batch 21 2"], perspectivity: Float[Array, "batch"]
) -> tuple[Float[Array, "batch 21 2"], Float[Array, "batch 3 3"]]:
    """Return points of the plane z = 1 in a frame whose z axis passes through the root, and the rotation to that frame.

    In weak perspective the rotation is the identity.
    """
    directions = jnp.concatenate([rays, jnp.ones_like(rays[..., :1])], axis=-1)
    sideways = rays[:, ROOT] * perspectivity[:, None]
    turn = turn_to_axis(jnp.concatenate([sideways, jnp.ones_like(sideways[:, :1])], axis=-1))
    turned = jnp.einsum("bij,bkj->bki", turn, directions)
    # Only an untrained network predicts keypoints perpendicular to the line of sight; 0.1 keeps the divisor positive.
    depth = jnp.where(perspectivity[:, None] > 0.5, jnp.maximum(turned[..., 2], 0.1), 1.0)
    return turned[..., :2] / depth[..., None], turn


def _check_crops(image: Array, size: int, camera: Camera | None) -> None:
    if image.ndim != 4 or image.shape[1:] != (size, size, 3):
        remedy = "add the batch axis with image[None]" if image.ndim == 3 else "resample the crops"
        problem = f"image has shape {image.shape}: this hand module takes crops of (batch, {size}, {size}, 3)"
        raise InputError(f"{problem}; {remedy}")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise InputError(f"image has type {image.dtype}: give floats of 0 to 1; divide uint8 values by 255")
    if camera is not None and camera.linear.shape != (image.shape[0], 2, 2):  # len fails for exported batches
        raise InputError(f"camera.linear has shape {camera.linear.shape}: give one camera for each crop")


class LandmarkHandModule(nnx.Module):
    """Keypoints, side and presence from the hand landmark network, and pose from IKNet.

    It takes crops of both sides. Shape, depth and size are not estimated: betas are 0, and the tailor places the hand.
    """

    def __init__(self, network: HandLandmarkNetwork, iknet: IKNet):
        self.landmark_network, self.iknet = network, iknet

    @property
    def image_size(self) -> int:
        """Side of the crops, pixels."""
        return self.landmark_network.config.image_size

    def __call__(
        self, image: Num[Array, "..."], camera: Camera, right: Float[Array, "batch"] | None = None
    ) -> HandEstimate:
        """Estimate the hand in each crop, in its pixels.

        Args:
            image: (batch, size, size, 3) RGB crops, 0 to 1, in which the hand points up (`detector.regions`).
            camera: Cameras of the crops, with the batch axis. They are rotated as the crops are.
            right: Prior probability of a right hand: 1 or 0 where the side is known. 0.5 if None.

        Raises:
            InputError: If the crops have another shape or type.
        """
        _check_crops(image, self.image_size, camera)
        return self.estimate(by_crop(self.landmark_network, image), camera, right)

    def estimate(self, landmarks: Landmarks, camera: Camera, right: Array | None = None) -> HandEstimate:
        """Estimate the hands from outputs of the landmark network; see `__call__` for the arguments."""
        probability = right_probability(landmarks, right)
        left = probability <= 0.5
        keypoints, joints, mirrored = landmarks.crop[..., :2], camera_joints(landmarks, camera), left[:, None, None]
        pose = self.iknet(normalise_joints(jnp.where(mirrored, mirror_points(joints), joints))).pose
        return HandEstimate(
            left=left,
            keypoints_2d=keypoints,
            confidence=jnp.ones(keypoints.shape[:2], keypoints.dtype),
            joints=joints,
            pose=jnp.where(mirrored, mirror_pose(pose), pose),
            betas=jnp.zeros((len(keypoints), NUM_BETAS), keypoints.dtype),
            root_depth=None,
            bone=None,
            presence=landmarks.presence,
            right=probability,
            convention="mediapipe",
        )


@exact
def camera_joints(landmarks: Landmarks, camera: Camera) -> Float[Array, "batch 21 3"]:
    """Return 3D keypoints in camera axes: directions of the 2D keypoints, and depths of the world landmarks.

    The 2D keypoints are more accurate than the world landmarks' x and y. The world landmarks are in the frame of the
    crop, whose rotation follows from the crop's camera.
    """
    to_frame = inverse_linear(camera)
    rays = jnp.einsum("bij,bkj->bki", to_frame, landmarks.crop[..., :2] - camera.center[:, None])
    rays = rays - rays[:, ROOT, None]
    # The rotation closest to the linear map.
    cosine = to_frame[:, 0, 0] + to_frame[:, 1, 1]
    sine = to_frame[:, 1, 0] - to_frame[:, 0, 1]
    length = jnp.sqrt(cosine**2 + sine**2)
    cosine, sine = (cosine / length)[:, None], (sine / length)[:, None]
    world = landmarks.world - landmarks.world[:, ROOT, None]
    x = cosine * world[..., 0] - sine * world[..., 1]
    y = sine * world[..., 0] + cosine * world[..., 1]
    # Length of the rays per metre, by least squares over x and y.
    per_metre = jnp.sum(rays[..., 0] * x + rays[..., 1] * y, axis=-1) / (jnp.sum(x**2 + y**2, axis=-1) + 1e-12)
    depth = per_metre[:, None] * world[..., 2]
    return jnp.concatenate([rays, depth[..., None]], axis=-1)

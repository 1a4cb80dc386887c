"""The hand module behind the detector: landmarks of the hand landmark network, pose by IKNet."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from handtailor_jax.detector.landmark_network import HandLandmarkNetwork, Landmarks
from handtailor_jax.detector.weights import load_landmark_network
from handtailor_jax.geometry.cameras import inverse_linear
from handtailor_jax.geometry.mirror import mirror_points, mirror_pose
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.iknet import IKNet, normalise_joints
from handtailor_jax.skeleton import ROOT
from handtailor_jax.types import Camera, HandEstimate


class LandmarkHandModule(nnx.Module):
    """Keypoints, side and presence from the hand landmark network, and pose from IKNet.

    It takes crops of both sides. Shape, depth and size are not estimated: betas are 0, and the tailor places the hand.
    """

    def __init__(self, network: HandLandmarkNetwork, iknet: IKNet):
        self.network, self.iknet = network, iknet

    @classmethod
    def beside(cls, module: HandModule) -> "LandmarkHandModule":
        """Combine the embedded landmark network with the IKNet of another hand module."""
        return cls(load_landmark_network(), module.iknet)

    @property
    def image_size(self) -> int:
        """Side of the crops, pixels."""
        return self.network.config.image_size

    def __call__(
        self,
        image: Float[Array, "batch size size 3"],
        camera: Camera,
        right: Float[Array, "batch"] | None = None,
    ) -> HandEstimate:
        """Estimate the hand in each crop.

        Args:
            image: RGB crops with values 0 to 1, in which the hand points up (`detector.regions`).
            camera: Cameras of the crops, with the batch axis. They are rotated as the crops are.
            right: Prior probability of a right hand: 1 or 0 where the side is known. 0.5 if None.

        Returns:
            The estimates, with the batch axis, in pixels of the crop.
        """
        landmarks = self._landmarks(image)
        prior = jnp.full_like(landmarks.right, 0.5) if right is None else right.astype(landmarks.right.dtype)
        probability = _posterior(landmarks.right, prior)
        left = probability <= 0.5
        keypoints = landmarks.crop[..., :2]
        joints = _joints(landmarks, camera)
        mirrored = left[:, None, None]
        pose = self.iknet(normalise_joints(jnp.where(mirrored, mirror_points(joints), joints))).pose
        batch = image.shape[0]
        return HandEstimate(
            left=left,
            keypoints_2d=keypoints,
            confidence=jnp.ones(keypoints.shape[:2], keypoints.dtype),
            joints=joints,
            pose=jnp.where(mirrored, mirror_pose(pose), pose),
            betas=jnp.zeros((batch, 10), keypoints.dtype),
            root_depth=None,
            bone=None,
            presence=landmarks.presence,
            right=probability,
            convention="mediapipe",
        )

    def _landmarks(self, image: Float[Array, "batch size size 3"]) -> Landmarks:
        # A CPU is faster with one crop after the other, whose maps stay in its cache.
        def one_by_one(crops: Array) -> Landmarks:
            return jax.tree.map(lambda leaf: leaf[:, 0], jax.lax.map(lambda crop: self.network(crop[None]), crops))

        return jax.lax.platform_dependent(image, cpu=one_by_one, default=self.network)


def _joints(landmarks: Landmarks, camera: Camera) -> Float[Array, "batch 21 3"]:
    """Return 3D keypoints in camera axes: directions of the 2D keypoints, and depths of the world landmarks.

    The 2D keypoints are more accurate than the world landmarks' x and y. The world landmarks are in the frame of the
    crop, whose rotation follows from the crop's camera.
    """
    to_frame = inverse_linear(camera)
    rays = jnp.einsum("bij,bkj->bki", to_frame, landmarks.crop[..., :2] - camera.center[:, None])
    rays = rays - rays[:, ROOT, None]
    # The rotation closest to the linear map (of a crop's map, the map without its scale).
    cosine = to_frame[:, 0, 0] + to_frame[:, 1, 1]
    sine = to_frame[:, 1, 0] - to_frame[:, 0, 1]
    length = jnp.sqrt(cosine**2 + sine**2)
    cosine, sine = (cosine / length)[:, None], (sine / length)[:, None]
    world = landmarks.world - landmarks.world[:, ROOT, None]
    x = cosine * world[..., 0] - sine * world[..., 1]
    y = sine * world[..., 0] + cosine * world[..., 1]
    # The size of a ray per metre that fits x and y best.
    per_metre = jnp.sum(rays[..., 0] * x + rays[..., 1] * y, axis=-1) / (jnp.sum(x**2 + y**2, axis=-1) + 1e-12)
    depth = per_metre[:, None] * world[..., 2]
    return jnp.concatenate([rays, depth[..., None]], axis=-1)


def _posterior(likelihood: Float[Array, "batch"], prior: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """Combine the network's probability of a right hand with a prior probability, by Bayes' rule."""
    likelihood = jnp.clip(likelihood, 1e-6, 1.0 - 1e-6)
    right = likelihood * prior
    return right / (right + (1.0 - likelihood) * (1.0 - prior))

"""Sample, which every reader returns, and Batch, which a training step takes."""

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Float, UInt8

from handtailor_jax.geometry.mirror import Numbers, mirror_intrinsics, mirror_pixels, mirror_points, mirror_pose
from handtailor_jax.types import Camera, pytree

FloatArray = npt.NDArray[np.float32]

JointDefinition = Literal["model", "freihand", "annotated"]
"""Definition of 3D joints: "model" joints are on the hand model's kinematic chain; "freihand" joints are regressed from
the posed mesh and differ because of pose blend shapes; "annotated" joints were marked or measured by somebody.
One metric never mixes definitions."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image of a right hand with its labels. Readers mirror left hands together with their cameras.

    Camera frame: OpenCV axes (x right, y down, z forward), metres. Keypoints and joints: `skeleton.KEYPOINTS` order.
    Pixels: (u, v); the centre of the top left pixel is (0, 0).
    """

    name: str
    """Name of the sample, unique within its dataset and split."""
    image: npt.NDArray[np.uint8]
    """(height, width, 3) sRGB image."""
    keypoints_2d: FloatArray
    """(21, 2) keypoints in pixels; they may lie outside the image."""
    visible: npt.NDArray[np.bool_]
    """(21,) visibility of each keypoint; all True if the dataset has no visibility."""
    joints: FloatArray | None
    """(21, 3) joints in the camera frame, metres; None if only 2D keypoints are known."""
    intrinsics: FloatArray | None
    """(3, 3) intrinsic matrix K, pixels; None if unknown."""
    mirrored: bool
    """Whether the original image shows a left hand."""
    joint_definition: JointDefinition = "annotated"
    """Definition of `joints`."""
    vertices: FloatArray | None = None
    """(vertices, 3) mesh vertices in the camera frame, metres."""
    pose: FloatArray | None = None
    """(16, 3) axis-angle rotations of the right hand in MANO's order, radians, relative to the flat rest pose."""
    betas: FloatArray | None = None
    """(10,) shape coefficients."""
    depth: FloatArray | None = None
    """(height, width) camera z, metres; 0 where unknown."""
    mask: npt.NDArray[np.bool_] | None = None
    """(height, width) pixels that this hand covers."""


@runtime_checkable
class Reader(Protocol):
    """Random access to the samples of one split of a dataset. Images are decoded on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at an index.

        Raises:
            IndexError: if the index is not in 0 ... len - 1.
            handtailor_jax.errors.InputError: if the sample cannot be decoded; names the file and the remedy.
        """


def mirrored_sample(sample: Sample) -> Sample:
    """Return the mirror image of a sample: u' = (width - 1) - u, x' = -x, cx' = (width - 1) - cx."""
    width = sample.image.shape[1]
    return dataclasses.replace(
        sample,
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        keypoints_2d=mirror_pixels(sample.keypoints_2d, width),
        joints=None if sample.joints is None else mirror_points(sample.joints),
        intrinsics=None if sample.intrinsics is None else mirror_intrinsics(sample.intrinsics, width),
        mirrored=not sample.mirrored,
        vertices=None if sample.vertices is None else mirror_points(sample.vertices),
        pose=None if sample.pose is None else mirror_pose(sample.pose),
        depth=None if sample.depth is None else np.ascontiguousarray(sample.depth[:, ::-1]),
        mask=None if sample.mask is None else np.ascontiguousarray(sample.mask[:, ::-1]),
    )


@pytree
class Batch:
    """Images of right hands and their labels, in host or device memory. Unknown labels are finite and have weight 0."""

    image: UInt8[Numbers, "*batch size size 3"]
    """sRGB images."""
    keypoints_2d: Float[Numbers, "*batch 21 2"]
    """Keypoints (u, v) in pixels of the image; they may lie outside it."""
    keypoint_weight: Float[Numbers, "*batch 21"]
    """Weight of each keypoint: 0 if unknown, 1 if certain."""
    intrinsics: Float[Numbers, "*batch 3 3"]
    """Intrinsic matrix K in pixels. The identity if `has_intrinsics` is 0: a weak-perspective camera in pixels."""
    joints: Float[Numbers, "*batch 21 3"]
    """Joints in the camera frame, metres. Without intrinsics only their differences and directions are meaningful."""
    pose: Float[Numbers, "*batch 16 3"]
    """Axis-angle rotations in MANO's order, radians; row 0 rotates the hand in the camera frame."""
    betas: Float[Numbers, "*batch 10"]
    """Shape coefficients."""
    has_joints: Float[Numbers, "*batch"]
    """Weight of `joints`: 1 for ground truth, 0 if unknown, between 0 and 1 for estimates."""
    has_3d: Float[Numbers, "*batch"]
    """Weight of `pose` and `betas`, which are known only where joints are known."""
    has_intrinsics: Float[Numbers, "*batch"]
    """1 if the camera is known, 0 otherwise."""
    mask: UInt8[Numbers, "*batch side side"] | None = None
    """Share of each pixel that the hand covers, 0 to 255. None unless a loss needs it. After augmentation it is as
    coarse as the network's heatmaps."""
    depth: Float[Numbers, "*batch side side"] | None = None
    """Camera z of the hand, metres, 0 where there is no hand or its depth is unknown. None unless a loss needs it."""

    @property
    def camera(self) -> Camera:
        """Cameras of the images; weak perspective where intrinsics are unknown."""
        return Camera(
            linear=jnp.asarray(self.intrinsics[..., :2, :2]),
            center=jnp.asarray(self.intrinsics[..., :2, 2]),
            perspectivity=jnp.asarray(self.has_intrinsics),
        )

"""What every reader gives: one picture of a right hand with whatever its dataset says about it."""

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

JointDefinition = Literal["model", "freihand", "annotated"]
"""What the 3D joints are: those of the hand model's kinematic chain, those that FreiHAND regresses from the posed mesh
(the two differ because of pose blend shapes), or points that somebody marked or measured. Never mixed in one metric."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One hand, always a right one: readers mirror left hands, and their cameras with them.

    Camera frame: OpenCV axes (x right, y down, z forward), metres. Joints: canonical order (`skeleton.KEYPOINTS`).
    Pixels: (u, v), the centre of the top left pixel is (0, 0).
    """

    name: str
    """Unique within the dataset and split, for reports and file names."""
    image: npt.NDArray[np.uint8]
    """(height, width, 3) sRGB."""
    keypoints_2d: FloatArray
    """(21, 2) pixels; they may lie outside of the picture."""
    visible: npt.NDArray[np.bool_]
    """(21,) what the dataset says is seen; all True where it says nothing."""
    joints: FloatArray | None
    """(21, 3) camera frame, metres; None where only 2D is known."""
    intrinsics: FloatArray | None
    """K (3, 3), pixels; None where unknown."""
    mirrored: bool
    """Whether this was a left hand."""
    joint_definition: JointDefinition = "annotated"
    """What `joints` are."""
    vertices: FloatArray | None = None
    """(vertices, 3) camera frame, metres."""
    pose: FloatArray | None = None
    """(16, 3) axis-angle, MANO's order, radians, relative to the flat rest pose; of the right hand."""
    betas: FloatArray | None = None
    """(10,) shape coefficients."""
    depth: FloatArray | None = None
    """(height, width) camera z, metres; 0 where unknown."""
    mask: npt.NDArray[np.bool_] | None = None
    """(height, width) where this hand is."""


@runtime_checkable
class Reader(Protocol):
    """Random access to the samples of one split of one dataset; nothing is decoded before it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at an index.

        Raises:
            IndexError: outside of 0 ... len - 1.
            handtailor_jax.errors.InputError: if it cannot be decoded, naming the file and the remedy.
        """


def mirrored_sample(sample: Sample) -> Sample:
    """The mirror image of a sample: u' = (W - 1) - u, x' = -x and cx' = (W - 1) - cx.

    Of a left hand this makes a right one. Mirroring a rotation negates the y and z of its axis.
    """
    width = sample.image.shape[1]
    flip_x = np.asarray([-1.0, 1.0, 1.0], np.float32)
    flip_yz = np.asarray([1.0, -1.0, -1.0], np.float32)
    intrinsics = None
    if sample.intrinsics is not None:
        # diag(-1, 1, 1) on both sides keeps the focal lengths positive and turns the sign of any skew.
        intrinsics = sample.intrinsics * np.asarray([[1, -1, -1], [-1, 1, 1], [1, 1, 1]], np.float32)
        intrinsics[0, 2] += np.float32(width - 1)
    points = np.stack([np.float32(width - 1) - sample.keypoints_2d[:, 0], sample.keypoints_2d[:, 1]], axis=-1)
    return dataclasses.replace(
        sample,
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        keypoints_2d=points.astype(np.float32),
        joints=None if sample.joints is None else sample.joints * flip_x,
        intrinsics=intrinsics,
        mirrored=not sample.mirrored,
        vertices=None if sample.vertices is None else sample.vertices * flip_x,
        pose=None if sample.pose is None else sample.pose * flip_yz,
        depth=None if sample.depth is None else np.ascontiguousarray(sample.depth[:, ::-1]),
        mask=None if sample.mask is None else np.ascontiguousarray(sample.mask[:, ::-1]),
    )

"""`Sample`, which readers return; `Batch`, which a training step takes; and the crop that makes a batch of a sample."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Float, UInt8

from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import box_center, centered_square, hand_size
from handtailor_jax.geometry.mirror import mirror_intrinsics, mirror_pixels, mirror_points, mirror_pose
from handtailor_jax.images import Image, crop_square, read_image, whole
from handtailor_jax.skeleton import NUM_BETAS, NUM_JOINTS, NUM_KEYPOINTS
from handtailor_jax.types import Camera, Numbers, pytree

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

# Joints where only 2D keypoints are known, metres: in front of the camera, all different. Their weight is 0.
_UNKNOWN_JOINTS = np.stack([0.01 * np.arange(NUM_KEYPOINTS), np.zeros(NUM_KEYPOINTS), np.full(NUM_KEYPOINTS, 0.5)], 1)

JointDefinition = Literal["model", "freihand", "annotated"]
"""Definition of 3D joints: "model" joints are on the hand model's kinematic chain; "freihand" joints are regressed from
the posed mesh and differ because of pose blend shapes; "annotated" joints were marked in images or measured.
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
    mirrored: bool = False
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
            InputError: if the sample cannot be decoded; names the file and the remedy.
        """


def check_choice(name: str, value: str | None, allowed: Sequence[str | None], dataset: str) -> None:
    """Raise an InputError if a choice does not exist in a dataset."""
    if value not in allowed:
        raise InputError(f"unknown {name} {value!r} of {dataset}: choose {' or '.join(map(str, allowed))}")


def check_folders(folders: Iterable[Path], remedy: str) -> None:
    """Raise an InputError that ends with the remedy if a folder does not exist."""
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder: {remedy}")


def read_aligned(path: Path, image: Image, remedy: str) -> Image:
    """Read a map that belongs to an image and has its size, such as a mask or an encoded depth map, as uint8 RGB."""
    aligned = read_image(path)
    if aligned.shape != image.shape:
        (height, width), (rows, columns) = image.shape[:2], aligned.shape[:2]
        raise InputError(f"{path}: is {columns} x {rows} pixels, but its image is {width} x {height}: {remedy}")
    return aligned


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
    """Share of each pixel that the hand covers, 0 to 255. None unless a loss needs it. After augmentation a pixel of
    mask and depth is `augmentation.MAP_STRIDE` pixels of the image wide."""
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


def labelled_batch(
    *, keypoints: float = 1.0, weight_3d: float = 1.0, intrinsics_known: float = 1.0, **labels: Any
) -> Batch:
    """Return samples with equal weights: of keypoints, of joints, pose and betas (`weight_3d`), and of the cameras."""
    axes, dtype = labels["joints"].shape[:-2], labels["joints"].dtype
    numpy = np if isinstance(labels["joints"], np.ndarray) else jnp
    return Batch(
        keypoint_weight=numpy.full((*axes, NUM_KEYPOINTS), keypoints, dtype),
        has_joints=numpy.full(axes, weight_3d, dtype),
        has_3d=numpy.full(axes, weight_3d, dtype),
        has_intrinsics=numpy.full(axes, intrinsics_known, dtype),
        **labels,
    )


def crop_sample(sample: Sample, size: int, factor: float) -> Batch:
    """Crop the square around a hand's keypoints and move all labels along.

    The affine map that moves the pixels also moves keypoints and camera (K' = A K), in float64. The camera frame stays.
    A keypoint has weight 0 if it is not finite, behind the camera, or farther outside the image than the image is
    large; it is then placed at the middle of the crop. The crop holds the whole image if no keypoint has weight 1.

    Args:
        sample: image and labels of one hand.
        size: side of the crop, pixels.
        factor: side of the square as a multiple of the hand size.

    Returns:
        A batch without leading axes; `mask` and `depth` are None if the sample has none.
    """
    _check(sample)
    points, usable = _usable_keypoints(sample)
    box = whole(sample.image)
    if usable.any():
        known = points[usable]
        center = box_center(known)
        box = centered_square(center, factor * max(float(hand_size(known)), 1.0))
    image, affine32, _ = crop_square(sample.image, box, size)
    affine = affine32.astype(np.float64)
    mask = depth = None
    if sample.mask is not None:
        mask, _, _ = crop_square(255 * sample.mask.astype(np.uint8), box, size, outside=0)
    if sample.depth is not None:
        of_hand = sample.depth if sample.mask is None else np.where(sample.mask, sample.depth, np.float32(0.0))
        depth = nearest_pixels(of_hand, affine, size)
    keypoints = np.where(usable[:, None], points @ affine[:, :2].T + affine[:, 2], 0.5 * (size - 1))
    intrinsics = None
    if sample.intrinsics is not None:
        intrinsics = np.concatenate([affine, [[0.0, 0.0, 1.0]]]) @ sample.intrinsics.astype(np.float64)
    joints = sample.joints if intrinsics is not None else None  # without K, their frame is unrelated to the image
    has_pose = joints is not None and sample.pose is not None and sample.betas is not None

    def floats(values: Any) -> FloatArray:
        return np.asarray(values, np.float32)

    return Batch(
        image=image,
        keypoints_2d=floats(keypoints),
        keypoint_weight=floats(usable),
        intrinsics=floats(np.eye(3) if intrinsics is None else intrinsics),
        joints=floats(_UNKNOWN_JOINTS if joints is None else joints),
        pose=floats(sample.pose if has_pose else np.zeros((NUM_JOINTS, 3))),
        betas=floats(sample.betas if has_pose else np.zeros(NUM_BETAS)),
        has_joints=floats(joints is not None),
        has_3d=floats(has_pose),
        has_intrinsics=floats(intrinsics is not None),
        mask=mask,
        depth=depth,
    )


def _check(sample: Sample) -> None:
    """Raise an InputError if a reader's sample has arrays of other shapes or types than it must have."""
    image = getattr(sample, "image", None)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = type(image).__name__ if not isinstance(image, np.ndarray) else f"{image.dtype} {image.shape}"
        raise InputError(f"{getattr(sample, 'name', 'sample')}: its image is {found}: give uint8 (H, W, 3), RGB")
    shapes = {"keypoints_2d": (NUM_KEYPOINTS, 2), "joints": (NUM_KEYPOINTS, 3), "intrinsics": (3, 3)}
    for name, shape in shapes.items():
        values = getattr(sample, name)
        if values is not None and np.shape(values) != shape:
            raise InputError(f"{sample.name}: its {name} have shape {np.shape(values)}: give {shape}")
        if values is not None and name != "keypoints_2d" and not np.isfinite(values).all():
            raise InputError(f"{sample.name}: its {name} are not finite: give None where they are unknown")


def _usable_keypoints(sample: Sample) -> tuple[DoubleArray, npt.NDArray[np.bool_]]:
    extent = np.asarray(sample.image.shape[1::-1], np.float64)
    points = sample.keypoints_2d.astype(np.float64)
    usable = np.asarray(np.isfinite(points).all(axis=1))
    points = np.where(usable[:, None], points, 0.0)
    usable &= (np.abs(points - 0.5 * (extent - 1.0)) < 1.5 * extent).all(axis=1)
    if sample.joints is not None and sample.intrinsics is not None:
        usable &= sample.joints[:, 2] > 0.0
    return points, usable


def nearest_pixels(values: FloatArray, affine: DoubleArray, size: int) -> FloatArray:
    """Resample a map (height, width) to (size, size) by nearest pixels: a mean across an outline is no depth.

    `affine` (2, 3) maps its pixels to those of the result without rotation; outside of the map the result is 0.
    """
    column, row = (np.round((np.arange(size) - affine[i, 2]) / affine[i, i]).astype(int) for i in (0, 1))
    height, width = values.shape
    inside = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))[None]
    found = values[np.clip(row, 0, height - 1)[:, None], np.clip(column, 0, width - 1)[None]]
    return np.where(inside, found, np.float32(0.0)).astype(np.float32)

"""Pytrees that the stages exchange; the text of each field gives its unit and frame.

Camera frame: OpenCV axes (x right, y down, z forward). Pixels: (u, v) = (column, row); the centre of the top left
pixel is (0, 0). Arrays may carry leading batch axes.
"""

import dataclasses
from typing import Any, Literal, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, Int, Num

T = TypeVar("T")

Side = Literal["right", "left"]

NetworkName = Literal["landmarks", "hourglass"]
"""landmarks: the hand landmark network with IKNet. hourglass: the paper's network."""

Numbers = Any
"""A JAX array inside the graph, or a NumPy array on the host."""

Box = tuple[float, float, float, float]
"""(x, y, w, h): left, top, width and height in pixels; x = 0 and y = 0 are the outer edges of the image."""


def static(**kwargs: Any) -> Any:
    """Declare a dataclass field that is part of a pytree's structure (hashable), not a leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a JAX pytree: `static` fields are structure, the others are leaves."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    meta = [f.name for f in fields if f.metadata.get("static")]
    jax.tree_util.register_dataclass(cls, [f.name for f in fields if f.name not in meta], meta)
    return cls


@pytree
class Camera:
    """A perspective or weak-perspective camera. The kind is a value, so one compiled program serves both.

    A point p in the camera frame projects to ``linear @ (x, y) / d + center`` with d = z (perspective, Eq. 2 of
    the paper) or d = 1 (weak perspective, Eq. 3).
    """

    linear: Float[Numbers, "*batch 2 2"]
    """Upper left block of the intrinsic matrix, pixels (perspective) or pixels per camera-frame unit (weak
    perspective). It is diagonal unless the image was rotated."""
    center: Float[Numbers, "*batch 2"]
    """Principal point (perspective) or translation t (weak perspective), pixels."""
    perspectivity: Float[Numbers, "*batch"]
    """1 for perspective, 0 for weak perspective."""

    @classmethod
    def perspective(cls, fx: Any, fy: Any, cx: Any, cy: Any) -> "Camera":
        """Create a pinhole camera from focal lengths and principal point in pixels (Eq. 2 of the paper)."""
        fx, fy, cx, cy = (jnp.asarray(value, jnp.result_type(float)) for value in (fx, fy, cx, cy))
        return cls(_diagonal(fx, fy), jnp.stack([cx, cy], axis=-1), jnp.ones_like(fx))

    @classmethod
    def from_matrix(cls, intrinsics: Any) -> "Camera":
        """Create a pinhole camera from an intrinsic matrix K (..., 3, 3) in pixels."""
        k = jnp.asarray(intrinsics, jnp.result_type(float))
        return cls(k[..., :2, :2], k[..., :2, 2], jnp.ones_like(k[..., 0, 0]))

    @classmethod
    def weak_perspective(cls, scale: Any = 1.0, translation: Any = (0.0, 0.0)) -> "Camera":
        """Create a scaled orthographic camera, (u, v) = s (x, y) + t (Eq. 3 of the paper).

        With the default scale and translation, the unit of the camera frame is a pixel. This is the camera of an image
        without intrinsics: a hand is placed in it by its own scale (pixels per metre) and translation (pixels).
        """
        scale = jnp.asarray(scale, jnp.result_type(float))
        center = jnp.broadcast_to(jnp.asarray(translation, scale.dtype), (*scale.shape, 2))
        return cls(_diagonal(scale, scale), center, jnp.zeros_like(scale))

    @property
    def matrix(self) -> Float[Array, "*batch 3 3"]:
        """The intrinsic matrix K (last row 0 0 1)."""
        top = jnp.concatenate([self.linear, self.center[..., None]], axis=-1)
        bottom = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0], top.dtype), (*top.shape[:-2], 1, 3))
        return jnp.concatenate([top, bottom], axis=-2)


def _diagonal(first: Float[Array, "*batch"], second: Float[Array, "*batch"]) -> Float[Array, "*batch 2 2"]:
    return jnp.einsum("...i,ij->...ij", jnp.stack([first, second], axis=-1), jnp.eye(2, dtype=first.dtype))


@pytree
class Region:
    """A rotated square of an image. Its frame has x to the right and y down where the hand points up."""

    center: Float[Numbers, "*batch 2"]
    """Centre (u, v), pixels of the image."""
    side: Float[Numbers, "*batch"]
    """Length of a side, pixels of the image."""
    rotation: Float[Numbers, "*batch"]
    """Angle from the image's u axis to the region's x axis, radians, positive from u toward v (clockwise on screen)."""


@pytree
class Observation:
    """Input of the tailor besides the start: observed keypoints, camera and maps of one hand."""

    keypoints_2d: Float[Array, "*batch 21 2"]
    """Keypoints (u, v) in pixels, canonical order."""
    confidence: Float[Array, "*batch 21"]
    """Confidence of each keypoint, 0 (ignored) to 1; the energy weights the keypoint's squared error with it."""
    camera: Camera
    """Camera of the image that has these keypoints."""
    relative_depth: Float[Array, "*batch 21"] | None = None
    """Depth (camera z) of each keypoint relative to the root, converted to pixels at the root's depth. Not finite where
    it is unknown; None if no depth is known."""
    depth_map: Float[Array, "*batch height width"] | None = None
    """Camera z at each pixel of `camera`, metres (camera-frame units in weak perspective); not finite where unknown."""
    mask: Float[Array, "*batch height width"] | None = None
    """Share of each pixel of `camera` that the hand covers, 0 to 1."""


@pytree
class HandEstimate:
    """Output of a hand module for one hand; "crop" is the module's input image."""

    left: Bool[Array, "*batch"]
    """Whether the hand is a left hand."""
    keypoints_2d: Float[Array, "*batch 21 2"]
    """Keypoints (u, v) in pixels of the crop (Eq. 4)."""
    confidence: Float[Array, "*batch 21"]
    """Confidence of each keypoint, 0 to 1."""
    joints: Float[Array, "*batch 21 3"]
    """3D keypoints in camera axes. With a `root_depth` they are in the camera frame (Eq. 5, 14; metres with intrinsics,
    pixels without); otherwise their position and size are unknown."""
    pose: Float[Array, "*batch 16 3"]
    """Rotations of MANO's 16 joints for the hand model of this side, axis-angle, radians."""
    betas: Float[Array, "*batch 10"]
    """Shape coefficients in standard deviations."""
    root_depth: Float[Array, "*batch"] | None
    """z of the root joint in the camera frame: metres (perspective), 0 (weak perspective). None if not estimated."""
    bone: Float[Array, "*batch"] | None
    """Length of the reference bone, metres. None if not estimated."""
    presence: Float[Array, "*batch"] | None
    """Probability that the crop shows a hand. None if not estimated."""
    right: Float[Array, "*batch"] | None
    """Probability that the hand is a right hand. None if not estimated."""
    convention: str = static()
    """Landmark convention of the keypoints."""


@pytree
class HandParameters:
    """Pose, shape and placement of a hand.

    A point p of the posed model (metres) is at ``scale * (p - root) + translation`` in the camera frame, where the root
    is the middle MCP (keypoint 9).
    """

    pose: Float[Numbers, "*batch 16 3"]
    """Axis-angle rotations in MANO's joint order, radians, relative to the flat rest pose; row 0 is global."""
    betas: Float[Numbers, "*batch 10"]
    """Shape coefficients in standard deviations."""
    scale: Float[Numbers, "*batch"]
    """Camera-frame units per metre of the model: a factor near 1 with intrinsics, pixels per metre without."""
    translation: Float[Numbers, "*batch 3"]
    """Position of the root in the camera frame: metres with intrinsics, pixels without (the third entry is then 0)."""


@pytree
class HandMesh:
    """A skinned hand."""

    vertices: Float[Array, "*batch vertices 3"]
    """Vertex positions: metres in the rest frame, or camera-frame units after placement."""
    faces: Int[Array, "faces 3"]
    """Triangles with outward normals, vertex indices."""
    keypoints: Float[Array, "*batch 21 3"]
    """The 21 keypoints in canonical order; same frame and unit as the vertices."""


@pytree
class Hand:
    """A fitted hand, whether from keypoints, an image or a video.

    The graph computes it as JAX arrays, with a leading batch axis; on the host it is one hand of NumPy arrays. Pixels
    are pixels of the image. Camera-frame lengths are metres with intrinsics and pixels without.
    """

    left: Bool[Numbers, "*batch"]
    """Whether the hand is a left hand; see also `side`."""
    camera: Camera
    """Camera of the image; without intrinsics, the weak-perspective camera whose unit is a pixel."""
    parameters: HandParameters
    """Pose, shape and placement of the hand model of this side."""
    vertices: Float[Numbers, "*batch vertices 3"]
    """Mesh vertices in the camera frame."""
    faces: Int[Numbers, "*batch faces 3"]
    """Triangles with outward normals, vertex indices."""
    joints: Float[Numbers, "*batch 21 3"]
    """Keypoints of the hand model in metres: camera frame with intrinsics, relative to the middle MCP without."""
    landmarks: Float[Numbers, "*batch 21 3"]
    """3D keypoints in the landmark convention of the detected keypoints; same frame and unit as `joints`."""
    keypoints_2d: Float[Numbers, "*batch 21 2"]
    """Reprojected landmarks (u, v), pixels."""
    detected_keypoints_2d: Float[Numbers, "*batch 21 2"]
    """Keypoints (u, v) to which the hand is fitted, pixels: given by the caller, or detected by the hand module."""
    confidence: Float[Numbers, "*batch 21"]
    """Confidence of each detected keypoint, 0 to 1."""
    reprojection_before: Float[Numbers, "*batch"]
    """Mean distance of the start's landmarks from the detected keypoints of non-zero confidence, pixels."""
    reprojection_after: Float[Numbers, "*batch"]
    """Mean distance of the fitted hand's landmarks from the same keypoints, pixels."""
    region: Region | None = None
    """Square that the hand module's crop shows; it may extend beyond the image. None if keypoints were given."""
    presence: Float[Numbers, "*batch"] | None = None
    """Probability that the region shows a hand, 0 to 1. None if no network has estimated it."""
    side_probability: Float[Numbers, "*batch"] | None = None
    """Probability of the hand's side, 0.5 to 1; 1 if the side was given. None if no network has estimated it."""
    track: int | None = None
    """Number of the hand in a video, from 0, on the host; it is the same in all frames. None in images."""
    proposed: "Hand | None" = None
    """The hand module's proposal, before the tailor; None if keypoints were given."""
    runner_up: "Hand | None" = None
    """Best hand that is clearly different from this one; None, on the host, if there is none or a pose was given."""
    energy_gap: Float[Numbers, "*batch"] | None = None
    """Energy of the runner-up minus energy of this hand, in half squared standard deviations: below about 3 both are
    plausible. None without a runner-up."""
    convention: str = static(default="mano")
    """Landmark convention of the detected keypoints."""

    @property
    def side(self) -> Side:
        """Side of the hand, on the host."""
        return "left" if self.left else "right"

    @property
    def perspective(self) -> bool:
        """Whether intrinsics were known, on the host."""
        return bool(self.camera.perspectivity > 0.5)

    @property
    def finite(self) -> bool:
        """Whether all numbers are finite, on the host."""
        return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(self))

    @property
    def box(self) -> npt.NDArray[np.floating] | None:
        """The region without its rotation, as a square (x, y, w, h) in pixels, on the host."""
        if self.region is None:
            return None
        side = self.region.side
        return np.asarray([*(np.asarray(self.region.center) - 0.5 * side), side, side])


@pytree
class View:
    """Input of the graph: the crop of one hand, and its place in the original image."""

    crop: Num[Numbers, "*batch size size 3"]
    """RGB crop, 0 to 255: uint8, or floats where gradients must reach the pixels."""
    to_crop: Float[Numbers, "*batch 2 3"]
    """Affine map from pixels of the image to pixels of the crop."""
    region: Region
    """Square of the image that the crop shows."""
    camera: Camera
    """Camera of the image."""
    right: Float[Numbers, "*batch"]
    """Prior probability that the hand is a right hand: 1 or 0 if the side is known, 0.5 if it is not."""


@pytree
class Memory:
    """The hand in earlier frames of a video; the tailor starts between this hand and the hand module's proposal."""

    pose: Float[Numbers, "*batch 16 3"]
    """Last pose of the hand, axis-angle, radians."""
    betas: Float[Numbers, "*batch betas"]
    """Shape of the hand, standard deviations."""
    pose_share: Float[Numbers, "*batch"]
    """Position of the tailor's start between the proposed pose (0) and the last pose (1)."""
    betas_share: Float[Numbers, "*batch"]
    """Position of the tailor's start between the proposed shape (0) and the remembered shape (1)."""

    @classmethod
    def nothing(cls, num_betas: int) -> "Memory":
        """Return the memory of a hand without earlier frames."""
        none = np.zeros((), np.float32)
        return cls(np.zeros((16, 3), np.float32), np.zeros(num_betas, np.float32), none, none)

"""Pytrees that travel between the stages: every field names its shape, unit and frame.

Camera frame: OpenCV axes (x right, y down, z forward). Pixels: (u, v) = (column, row); the centre of the top left
pixel is (0, 0). Arrays may carry leading batch axes.
"""

import dataclasses
from typing import Any, Literal, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

T = TypeVar("T")

Side = Literal["right", "left"]


def static(**kwargs: Any) -> Any:
    """A dataclass field that belongs to a pytree's structure (hashable), not to its leaves."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[T]) -> type[T]:
    """A frozen dataclass registered with JAX; `static` fields are part of its type, the others are its leaves."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    jax.tree_util.register_dataclass(
        cls,
        data_fields=[f.name for f in fields if not f.metadata.get("static")],
        meta_fields=[f.name for f in fields if f.metadata.get("static")],
    )
    return cls


def _diagonal(entries: Float[Array, "*batch n"]) -> Float[Array, "*batch n n"]:
    """Diagonal matrices of the given entries."""
    eye = jnp.eye(entries.shape[-1], dtype=entries.dtype)
    return jnp.einsum("...i,ij->...ij", entries, eye)


@pytree
class Camera:
    """A perspective or weak-perspective camera; which of them is a value, so one compiled program serves both.

    A point p in the camera frame projects to ``linear @ (x, y) / d + center`` with d = z (perspective, Eq. 2) or
    d = 1 (weak perspective, Eq. 3).
    """

    linear: Float[Array, "*batch 2 2"]
    """Upper left block of the intrinsic matrix, pixels (perspective) or pixels per unit of length (weak). Diagonal
    unless the image was rotated: a rotation carries fx != fy over exactly."""
    center: Float[Array, "*batch 2"]
    """Principal point (perspective) or translation t (weak perspective), pixels."""
    perspectivity: Float[Array, "*batch"]
    """1 for perspective, 0 for weak perspective."""

    @classmethod
    def perspective(cls, fx: Any, fy: Any, cx: Any, cy: Any) -> "Camera":
        """Pinhole camera from focal lengths and principal point in pixels (Eq. 2)."""
        fx, fy, cx, cy = (jnp.asarray(value, jnp.result_type(float)) for value in (fx, fy, cx, cy))
        return cls(
            linear=_diagonal(jnp.stack([fx, fy], axis=-1)),
            center=jnp.stack([cx, cy], axis=-1),
            perspectivity=jnp.ones_like(fx),
        )

    @classmethod
    def from_matrix(cls, intrinsics: Any) -> "Camera":
        """Pinhole camera from a (..., 3, 3) intrinsic matrix K in pixels."""
        k = jnp.asarray(intrinsics, jnp.result_type(float))
        return cls(linear=k[..., :2, :2], center=k[..., :2, 2], perspectivity=jnp.ones_like(k[..., 0, 0]))

    @classmethod
    def weak_perspective(cls, scale: Any = 1.0, translation: Any = (0.0, 0.0)) -> "Camera":
        """Scaled orthographic camera, (u, v) = s (x, y) + t (Eq. 3).

        With the default scale and translation the camera frame is measured in pixels: that is the camera of an image
        without intrinsics, in which a hand is placed by its own scale (pixels per metre) and translation (pixels).
        """
        scale = jnp.asarray(scale, jnp.result_type(float))
        center = jnp.asarray(translation, scale.dtype)
        return cls(
            linear=_diagonal(jnp.stack([scale, scale], axis=-1)),
            center=jnp.broadcast_to(center, (*scale.shape, 2)),
            perspectivity=jnp.zeros_like(scale),
        )

    @property
    def matrix(self) -> Float[Array, "*batch 3 3"]:
        """The intrinsic matrix K (last row 0 0 1)."""
        top = jnp.concatenate([self.linear, self.center[..., None]], axis=-1)
        bottom = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0], top.dtype), (*top.shape[:-2], 1, 3))
        return jnp.concatenate([top, bottom], axis=-2)


@pytree
class Observation:
    """What a picture says about one hand: the input of the tailor besides the start."""

    keypoints_2d: Float[Array, "*batch 21 2"]
    """Keypoints (u, v) in pixels, canonical order."""
    confidence: Float[Array, "*batch 21"]
    """Weight of each keypoint's squared error, 0 (ignored) to 1."""
    camera: Camera
    """The camera in whose pixels the keypoints are."""
    relative_depth: Float[Array, "*batch 21"] | None = None
    """Depth of each keypoint relative to the root (camera z), in pixels at the root's depth: metres times the pixels
    that a metre covers there. None where no method has estimated it."""
    depth_map: Float[Array, "*batch height width"] | None = None
    """Camera z seen at each pixel of `camera` (element [v, u] belongs to the pixel (u, v)): metres, or camera-frame
    units in weak perspective; not finite where unknown. None where there is no such map."""
    mask: Float[Array, "*batch height width"] | None = None
    """How much of each pixel of `camera` the hand covers, 0 to 1. None where there is no such map."""


@pytree
class HandEstimate:
    """What the hand module says about one hand, with every intermediate; "crop" is the module's input image."""

    heatmap_logits: tuple[Float[Array, "*batch rows columns 21"], ...]
    """Heatmaps before their sigmoid or softmax: every 2D stack's, then every 3D stack's; the last one is decoded."""
    depth_maps: tuple[Float[Array, "*batch rows columns 21"], ...]
    """Depth maps D of every 3D stack, as the network scales them; the last one is decoded."""
    heatmaps: Float[Array, "*batch rows columns 21"]
    """H of Eq. 4: the decoded heatmaps, each with sum 1."""
    keypoints_2d: Float[Array, "*batch 21 2"]
    """Keypoints (u, v) in pixels of the crop (Eq. 4)."""
    confidence: Float[Array, "*batch 21"]
    """The share of H that lies close to its keypoint, 0 to 1."""
    relative_depth: Float[Array, "*batch 21"]
    """Depth of each keypoint relative to the root, in reference bones (Eq. 4): camera z in the released network, along
    the line of sight to the root in ours."""
    bone: Float[Array, "*batch"]
    """Length of the reference bone, metres, from the shape branch."""
    scale: Float[Array, "*batch"]
    """Camera-frame units per reference bone: the bone's length in metres (perspective), Eq. 15 (weak perspective)."""
    root_depth: Float[Array, "*batch"]
    """z of the root joint in the camera frame: metres (perspective), 0 (weak perspective)."""
    joints: Float[Array, "*batch 21 3"]
    """The lifted keypoints in the camera frame (Eq. 5, 14): metres (perspective), pixels (weak perspective)."""
    raw_rotations: Float[Array, "*batch 16 parameters"]
    """IKNet's output before normalisation: quaternions (w, x, y, z), or two columns of each matrix."""
    rotations: Float[Array, "*batch 16 3 3"]
    """Rotation matrices of MANO's 16 joints."""
    pose: Float[Array, "*batch 16 3"]
    """The same rotations as axis-angle vectors, radians."""
    betas: Float[Array, "*batch 10"]
    """Shape coefficients in standard deviations."""
    shape_features: Float[Array, "*batch features"]
    """What the shape branch's regressor reads."""
    shape_vector: Float[Array, "*batch 12"]
    """What it says: raw bone length, raw root depth, betas."""


@pytree
class HandParameters:
    """A posed, shaped and placed hand.

    A model point p (metres) sits at ``scale * (p - root joint) + translation`` in the camera frame, where the root is
    the middle MCP (keypoint 9) of the posed model.
    """

    pose: Float[Array, "*batch 16 3"]
    """Axis-angle rotations in MANO's joint order, radians, relative to the flat rest pose; row 0 is the global one."""
    betas: Float[Array, "*batch 10"]
    """Shape coefficients in standard deviations."""
    scale: Float[Array, "*batch"]
    """Camera-frame units per model metre: about 1 (perspective), pixels per metre (weak perspective)."""
    translation: Float[Array, "*batch 3"]
    """Position of the root joint in the camera frame: metres (perspective), pixels (weak perspective)."""


@pytree
class HandMesh:
    """A skinned hand."""

    vertices: Float[Array, "*batch vertices 3"]
    """Vertex positions; metres in the frame in which the hand was posed."""
    faces: Int[Array, "faces 3"]
    """Triangles with outward normals, vertex indices."""
    keypoints: Float[Array, "*batch 21 3"]
    """The 21 keypoints in canonical order; same frame and unit as the vertices."""

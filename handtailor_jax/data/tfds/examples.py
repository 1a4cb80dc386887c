"""A `Sample` as an example of tensorflow_datasets, and back."""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from handtailor_jax.data.sample import JointDefinition, Sample
from handtailor_jax.errors import InputError
from handtailor_jax.images import opencv

_DEFINITIONS: dict[str, JointDefinition] = {name: name for name in get_args(JointDefinition)}


def features(tfds: Any) -> Any:
    """The fields of `Sample`, of the same shapes, units and frames; what a sample does not have is an empty array.

    Args:
        tfds: the module tensorflow_datasets.
    """
    feature = tfds.features

    def rows(doc: str) -> Any:
        return feature.Tensor(shape=(None, 3), dtype=np.float32, doc=doc)

    def pixels(dtype: type, doc: str) -> Any:
        # Two unknown dimensions must be encoded; compressed, depths and masks are kept exactly.
        return feature.Tensor(shape=(None, None), dtype=dtype, encoding="zlib", doc=doc)

    return feature.FeaturesDict(
        {
            "name": feature.Text(doc="unique within the dataset and split"),
            "image": feature.Image(shape=(None, None, 3), encoding_format="png", doc="sRGB, a right hand"),
            "keypoints_2d": feature.Tensor(shape=(21, 2), dtype=np.float32, doc="pixels (u, v), canonical order"),
            "visible": feature.Tensor(shape=(21,), dtype=np.bool_, doc="what the dataset says is seen"),
            "joints": rows("(21, 3) camera frame, metres"),
            "intrinsics": rows("K (3, 3), pixels"),
            "mirrored": feature.Scalar(dtype=np.bool_, doc="whether this was a left hand"),
            "joint_definition": feature.Text(doc="what the joints are"),
            "vertices": rows("(vertices, 3) camera frame, metres"),
            "pose": rows("(16, 3) axis-angle, MANO's order, radians, relative to the flat rest pose"),
            "betas": feature.Tensor(shape=(None,), dtype=np.float32, doc="(10,) shape coefficients"),
            "depth": pixels(np.float32, "(height, width) camera z, metres; 0 where unknown"),
            "mask": pixels(np.bool_, "(height, width) where this hand is"),
        }
    )


def example(sample: Sample) -> dict[str, Any]:
    """A sample as a dictionary for `features`. Its picture is compressed without loss: that of a mirrored hand is in
    no file, and that of a JPEG would change if it were compressed again.

    Raises:
        InputError: if OpenCV is missing.
    """
    done, picture = opencv().imencode(".png", np.ascontiguousarray(sample.image[..., ::-1]))
    assert done, "OpenCV always writes PNG"

    def array(content: Any, shape: tuple[int, ...], dtype: type = np.float32) -> Any:
        return np.zeros(shape, dtype) if content is None else np.asarray(content, dtype)

    return {
        "name": sample.name,
        "image": picture.tobytes(),
        "keypoints_2d": array(sample.keypoints_2d, (21, 2)),
        "visible": array(sample.visible, (21,), np.bool_),
        "joints": array(sample.joints, (0, 3)),
        "intrinsics": array(sample.intrinsics, (0, 3)),
        "mirrored": bool(sample.mirrored),
        "joint_definition": sample.joint_definition,
        "vertices": array(sample.vertices, (0, 3)),
        "pose": array(sample.pose, (0, 3)),
        "betas": array(sample.betas, (0,)),
        "depth": array(sample.depth, (0, 0)),
        "mask": array(sample.mask, (0, 0), np.bool_),
    }


def sample_of(decoded: Mapping[str, Any]) -> Sample:
    """The sample whose example this is, as a data source of tensorflow_datasets decodes it.

    Raises:
        InputError: if it is none.
    """

    def text(name: str) -> str:
        value = decoded[name]
        return value.decode() if isinstance(value, bytes) else str(value)

    def optional(name: str, dtype: type = np.float32) -> Any:
        # Copies: what is decoded from bytes cannot be written to.
        value: Any = np.array(decoded[name], dtype)
        return value if value.size else None

    try:
        return Sample(
            name=text("name"),
            image=np.array(decoded["image"], np.uint8),
            keypoints_2d=np.array(decoded["keypoints_2d"], np.float32),
            visible=np.array(decoded["visible"], np.bool_),
            joints=optional("joints"),
            intrinsics=optional("intrinsics"),
            mirrored=bool(decoded["mirrored"]),
            joint_definition=_DEFINITIONS[text("joint_definition")],
            vertices=optional("vertices"),
            pose=optional("pose"),
            betas=optional("betas"),
            depth=optional("depth"),
            mask=optional("mask", np.bool_),
        )
    except KeyError as error:
        raise InputError(f"a prepared example is not of this version ({error}): prepare the dataset again") from None

"""The sizes and conventions of a hand module."""

import dataclasses
from typing import Literal

from handtailor_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class HandModuleConfig:
    """Sizes and conventions of a `HandModule`; the named constructors are the two that have weights."""

    image_size: int
    """Side of the square input crop, pixels."""
    stem: Literal["strided", "patches"]
    """How a map cell sees its 4 x 4 pixels: a strided 7 x 7 convolution, a bottleneck and a pool, or all at once."""
    stem_channels: int
    """Channels of the strided stem's first convolution; the stem of patches has none of its own."""
    channels: int
    """Channels of the features at map resolution."""
    depth: int
    """Levels of each hourglass; the innermost map is 2^depth times smaller."""
    stacks_2d: int
    """Hourglasses that predict heatmaps."""
    stacks_3d: int
    """Hourglasses that predict heatmaps and depth maps."""
    shape_channels: int
    """Channels of the shape branch's convolutions."""
    shape_levels: int
    """Halvings of the map in the shape branch."""
    shape_blocks: int
    """Bottlenecks per level of the shape branch."""
    shape_hidden: tuple[int, ...]
    """Hidden layers of the shape branch's regressor."""
    ik_hidden: tuple[int, ...]
    """Hidden layers of IKNet."""
    rotation: Literal["quaternion", "matrix"]
    """What IKNet predicts: quaternions, or two columns of each rotation matrix, which is continuous."""
    decoding: Literal["released", "corrected"]
    """Heatmaps to keypoints and shape vector to lengths as the released program does it, or without its biases."""
    confidence_radius: float
    """Map cells around a keypoint whose heatmap mass counts as confidence."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type in which layers compute; None takes the parameters' own. Decoding never falls below float32."""
    batch_axis: str | None = None
    """Name of a mapped device axis over which training batch statistics are averaged."""

    def __post_init__(self) -> None:
        cells = 2 ** max(self.depth, self.shape_levels)
        if self.image_size <= 0 or self.map_size * 4 != self.image_size or self.map_size % cells:
            raise InputError(
                f"image_size {self.image_size} does not fit a hand module with {self.depth} hourglass levels and "
                f"{self.shape_levels} shape levels: choose a multiple of {4 * cells}"
            )
        if min(self.stacks_2d, self.stacks_3d, self.depth, self.shape_levels, self.shape_blocks) < 1:
            raise InputError("stacks_2d, stacks_3d, depth, shape_levels and shape_blocks have to be at least 1")

    @property
    def map_size(self) -> int:
        """Side of the heatmaps and depth maps."""
        return self.image_size // 4

    @classmethod
    def official(cls) -> "HandModuleConfig":
        """The released network, 24 932 042 parameters."""
        return cls(
            image_size=256,
            stem="strided",
            stem_channels=64,
            channels=256,
            depth=4,
            stacks_2d=2,
            stacks_3d=2,
            shape_channels=512,
            shape_levels=4,
            shape_blocks=2,
            shape_hidden=(512, 512, 1024, 1024, 512, 256),
            ik_hidden=(256, 512, 1024, 1024, 512, 256),
            rotation="quaternion",
            decoding="released",
            confidence_radius=6.0,
        )

    @classmethod
    def small(cls) -> "HandModuleConfig":
        """Ours, for the latency of a CPU: 128 x 128 pixels, 32 x 32 maps, under 3 M parameters."""
        return cls(
            image_size=128,
            stem="patches",
            stem_channels=0,
            channels=96,
            depth=3,
            stacks_2d=1,
            stacks_3d=1,
            shape_channels=192,
            shape_levels=3,
            shape_blocks=1,
            shape_hidden=(256, 256),
            ik_hidden=(256, 512, 512, 256),
            rotation="matrix",
            decoding="corrected",
            confidence_radius=3.0,
        )

"""Configuration of a hand module."""

import dataclasses
from typing import Literal

from handtailor_jax.errors import InputError, check_range


@dataclasses.dataclass(frozen=True)
class HandModuleConfig:
    """Sizes and conventions of a `HandModule`. The defaults are the released network's."""

    image_size: int = 256
    """Side of the square input crop, pixels."""
    stem: Literal["strided", "patches", "landmarks"] = "strided"
    """First layers: "strided" (7 x 7 convolution, bottlenecks, pool), "patches" (convolution over 4 x 4 pixels), or
    "landmarks" (the pretrained hand landmark network, whose maps have an eighth of the image's size, not a quarter)."""
    stem_channels: int = 64
    """Channels of the first convolution of stem "strided"; the other stems ignore it."""
    channels: int = 256
    """Channels of the features at map resolution."""
    depth: int = 4
    """Levels of each hourglass; its innermost map is 2^depth times smaller."""
    stacks_2d: int = 2
    """Number of hourglasses that predict heatmaps."""
    stacks_3d: int = 2
    """Number of hourglasses that predict heatmaps and depth maps."""
    shape_channels: int = 512
    """Channels of the shape branch's convolutions."""
    shape_levels: int = 4
    """Number of times the shape branch halves the map."""
    shape_blocks: int = 2
    """Bottlenecks per level of the shape branch."""
    shape_hidden: tuple[int, ...] = (512, 512, 1024, 1024, 512, 256)
    """Widths of the hidden layers of the shape regressor."""
    ik_hidden: tuple[int, ...] = (256, 512, 1024, 1024, 512, 256)
    """Widths of the hidden layers of IKNet."""
    rotation: Literal["quaternion", "matrix"] = "quaternion"
    """Output of IKNet: quaternions, or the first two columns of each rotation matrix, which is continuous."""
    decoding: Literal["released", "paper", "corrected"] = "released"
    """Decoding of maps and shape vector to keypoints and lengths. "released" is the released program's, which its
    weights need; "paper" lacks that program's biases and predicts the root depth in reference bones; "corrected" is
    this project's: softmax heatmaps, and depths along the line of sight."""
    confidence_radius: float = 6.0
    """Radius, in map cells, of the window around a keypoint; its confidence is the heatmap's mass in this window."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type in which layers compute; None is the parameters' type. Decoding uses at least float32."""
    batch_axis: str | None = None
    """Name of a mapped device axis over which training averages batch statistics."""

    def __post_init__(self) -> None:
        for name in ("depth", "shape_levels", "shape_blocks", "stacks_2d", "stacks_3d"):
            check_range(name, getattr(self, name), 1, 16)
        for name in ("channels", "shape_channels", "shape_hidden", "ik_hidden"):
            check_range(name, getattr(self, name), 1, 16384)
        check_range("stem_channels", self.stem_channels, 1 if self.stem == "strided" else 0, 16384)
        check_range("confidence_radius", self.confidence_radius, 1e-3)
        check_range("image_size", self.image_size, 1, 4096)
        cells = 2 ** max(self.depth, self.shape_levels)
        if self.map_size * self.stride != self.image_size or self.map_size % cells:
            raise InputError(
                f"image_size {self.image_size} does not fit a hand module with {self.depth} hourglass levels and "
                f"{self.shape_levels} shape levels: choose a multiple of {self.stride * cells}"
            )

    @property
    def map_size(self) -> int:
        """Side of the heatmaps and depth maps, cells."""
        return self.image_size // self.stride

    @property
    def stride(self) -> int:
        """Pixels of the crop per cell of the maps."""
        return 8 if self.stem == "landmarks" else 4

    @classmethod
    def official(cls) -> "HandModuleConfig":
        """Return the configuration of the released network, which has 24,932,042 parameters."""
        return cls()

    @classmethod
    def small(cls) -> "HandModuleConfig":
        """Return a configuration for CPUs, without pretrained layers: 128 x 128 pixels, under 2 million parameters."""
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

    @classmethod
    def landmarks(cls) -> "HandModuleConfig":
        """Return the configuration of the embedded weights: hourglasses on the maps of the hand landmark network."""
        return dataclasses.replace(
            cls.small(),
            image_size=224,
            stem="landmarks",
            channels=64,
            depth=2,
            shape_channels=128,
            shape_levels=2,
        )

"""The builder of STB (Stereo Hand Pose Tracking Benchmark)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from handtailor_jax.data.readers import open_dataset
from handtailor_jax.data.sample import Reader
from handtailor_jax.data.tfds.builder import ArchiveBuilder


@dataclasses.dataclass
class StbConfig(tfds.core.BuilderConfig):
    """A variant of STB."""

    camera: str = "SK"
    """Whose pictures: "SK" (colour camera), "BB_left" or "BB_right"."""
    wrist: str = "bihand"
    """How the wrist is made of the palm point: "bihand", "ge" or "palm"."""


class Stb(ArchiveBuilder):
    """STB, by default the colour camera's frames, with the wrist that BiHand makes of the palm point."""

    BUILDER_CONFIGS: ClassVar[list[StbConfig]] = [
        StbConfig(name=f"{camera}-{wrist}", camera=camera, wrist=wrist)
        for wrist in ("bihand", "ge", "palm")
        for camera in ("SK", "BB_left", "BB_right")
    ]
    FOLDER = "STB"
    HOMEPAGE = "https://sites.google.com/site/zhjw1988"
    DESCRIPTION = "One person's hand, 640 x 480 pixels, mirrored to a right hand: camera-frame joints in metres."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"ask for STB at {HOMEPAGE} and unpack it into the manual directory as {FOLDER}, with images/ and labels/ in it"
    )

    def readers(self, folder: Path, cache: Path) -> Mapping[str, Reader]:
        """Both splits."""
        options = {"camera": self.builder_config.camera, "wrist": self.builder_config.wrist}
        return {split: open_dataset("stb", folder, split, **options) for split in ("train", "test")}

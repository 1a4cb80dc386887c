"""The builder of FreiHAND."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds

from handtailor_jax.data.readers import open_dataset
from handtailor_jax.data.sample import Reader
from handtailor_jax.data.tfds.builder import ArchiveBuilder
from handtailor_jax.errors import InputError


class Freihand(ArchiveBuilder):
    """FreiHAND, version 2: all four backgrounds of the training split, and the evaluation split.

    The evaluation has joints and meshes if its truth, FreiHAND_pub_v2_eval, is in the manual directory as well.
    """

    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="plain", description="Without poses, which need MANO's mean pose."),
        tfds.core.BuilderConfig(name="posed", description="With poses relative to the flat hand."),
    ]
    FOLDER = "FreiHAND_pub_v2"
    HOMEPAGE = "https://lmb.informatik.uni-freiburg.de/projects/freihand/"
    DESCRIPTION = "Right hands, 224 x 224 pixels, with fitted meshes: camera-frame joints and vertices in metres."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"accept the licence of FreiHAND at {HOMEPAGE} and unpack it into the manual directory as {FOLDER}"
    )

    def __init__(
        self, *, hands_mean: npt.NDArray[Any] | None = None, config: str | None = None, **arguments: Any
    ) -> None:
        """A builder of one of the variants.

        Args:
            hands_mean: (45,) MANO's mean pose, radians, to which the annotated poses are relative.
            config: "plain" or "posed"; what `hands_mean` allows if None.
            **arguments: of every builder.
        """
        self._hands_mean = None if hands_mean is None else np.asarray(hands_mean)
        super().__init__(config=config or ("plain" if hands_mean is None else "posed"), **arguments)

    def readers(self, folder: Path, cache: Path) -> Mapping[str, Reader]:
        """Both splits, with masks in the training, which has them.

        Raises:
            InputError: if poses are wanted without the mean pose, or the archive cannot be read.
        """
        posed = self.builder_config.name == "posed"
        if posed and self._hands_mean is None:
            raise InputError("freihand: the variant 'posed' needs MANO's mean pose: give hands_mean")
        shared = {"hands_mean": self._hands_mean if posed else None, "cache": cache}
        return {
            "training": open_dataset("freihand", folder, "training", mask=True, **shared),
            "evaluation": open_dataset("freihand", folder, "evaluation", **shared),
        }

"""The builder of RHD (Rendered Handpose Dataset)."""

from collections.abc import Mapping
from pathlib import Path

from handtailor_jax.data.readers import open_dataset
from handtailor_jax.data.sample import Reader
from handtailor_jax.data.tfds.builder import ArchiveBuilder


class Rhd(ArchiveBuilder):
    """RHD: one hand of every rendered picture, with its mask; depth maps would make it several times as large."""

    FOLDER = "RHD_published_v2"
    HOMEPAGE = "https://lmb.informatik.uni-freiburg.de/resources/datasets/RenderedHandposeDataset.en.html"
    DESCRIPTION = "Rendered hands, 320 x 320 pixels, as right hands: camera-frame joints in metres, and masks."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"accept the licence of RHD at {HOMEPAGE} and unpack it into the manual directory as {FOLDER}"
    )

    def readers(self, folder: Path, cache: Path) -> Mapping[str, Reader]:
        """Both splits, with the masks that backgrounds are replaced around."""
        return {split: open_dataset("rhd", folder, split, mask=True) for split in ("training", "evaluation")}

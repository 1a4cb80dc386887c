"""Reader of labelled photographs: a folder of pictures and a labels.json, as `data.photos` describes it."""

from pathlib import Path

import numpy as np

from handtailor_jax.data.photos import read_labels
from handtailor_jax.data.sample import Sample, mirrored_sample
from handtailor_jax.errors import InputError
from handtailor_jax.images import read_picture
from handtailor_jax.skeleton import NUM_KEYPOINTS


class Photos:
    """Photographs of one split with keypoints in 2D, sorted by name.

    The labels' 3D joints are a hint without unit or camera, so that samples have neither joints nor intrinsics.
    """

    def __init__(self, root: Path, split: str) -> None:
        """Reads the labels; pictures are decoded when they are asked for.

        Args:
            root: folder with labels.json and the pictures that it names.
            split: as in the labels.

        Raises:
            InputError: if there is no such folder or split, or a label is unusable.
        """
        root = Path(root)
        if not root.is_dir():
            raise InputError(f"{root}: no such folder: give the one with labels.json and its pictures")
        self._labels = read_labels(root, split)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        """The sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        label = self._labels[index]
        sample = Sample(
            name=label.name,
            image=read_picture(label.path),
            keypoints_2d=label.keypoints_2d,
            visible=np.ones(NUM_KEYPOINTS, np.bool_),
            joints=None,
            intrinsics=None,
            mirrored=False,
        )
        return mirrored_sample(sample) if label.side == "left" else sample

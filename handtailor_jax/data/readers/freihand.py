"""FreiHAND v2, and rendered hands, which `handtailor synth` writes in the same layout (docs/datasets.md, "FreiHAND").

    ROOT/training/rgb/00000000.jpg ...   ROOT/training/mask/00000000.jpg ...
    ROOT/training_{K,mano,scale,verts,xyz}.json
    ROOT/evaluation/rgb/ ...             ROOT/evaluation_{K,scale}.json

The ground truth of the evaluation split was published later, as `evaluation_{K,mano,scale,verts,xyz}.json` in
FreiHAND_pub_v2_eval.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.data.readers.json_lists import converted_list
from handtailor_jax.data.sample import JointDefinition, Sample, read_aligned
from handtailor_jax.errors import InputError
from handtailor_jax.images import read_image
from handtailor_jax.mano.loading import MANO_VERTICES, embedded_arrays
from handtailor_jax.skeleton import NUM_BETAS, NUM_JOINTS, NUM_KEYPOINTS

RENDERED_PARTS = {"train": "training", "test": "evaluation"}
"""FreiHAND's name of each split of rendered hands."""

VERSIONS = ("gs", "hom", "sample", "auto")
"""Backgrounds of each training sample: the green screen and three ways of replacing it."""

_SPLITS = ("training", "evaluation")
_TRUTH_FOLDER = "FreiHAND_pub_v2_eval"
_MANO_SHAPE = (1, 3 * NUM_JOINTS + NUM_BETAS + 3)  # pose, shape, u and v of the root, scale
_MASK_THRESHOLD = 127  # JPEG blurs the borders between 0 and 255


@dataclasses.dataclass(frozen=True, eq=False)
class SyntheticOptions:
    """Parts of a sample of rendered hands.

    Raises:
        InputError: if the mean pose has a wrong shape.
    """

    hands_mean: npt.NDArray[Any] | None = None
    """(45,) mean pose to which the annotated pose is relative, radians. Rendered hands: the embedded hand's if None.
    FreiHAND: MANO's; samples have no pose if None."""
    vertices: bool = True
    """Whether samples have a mesh."""
    mask: bool = False
    """Whether samples have a mask. FreiHAND: training split only; all versions share the mask of the green screen."""
    cache: Path | None = None
    """Folder of the converted lists; .handtailor_cache next to the lists if None."""

    def __post_init__(self) -> None:
        mean = self.hands_mean
        if mean is not None and (mean.shape != (3 * (NUM_JOINTS - 1),) or not np.isfinite(mean).all()):
            raise InputError(f"hands_mean has shape {mean.shape}: give the 45 finite numbers of MANO's hands_mean")


@dataclasses.dataclass(frozen=True, eq=False)
class FreihandOptions(SyntheticOptions):
    """Parts of a sample of FreiHAND, and versions of the training split.

    Raises:
        InputError: if a version does not exist or occurs twice, or the mean pose has a wrong shape.
    """

    versions: tuple[str, ...] = VERSIONS
    """Backgrounds of the training samples to read, one after the other."""
    truth: Path | None = None
    """Folder with the ground truth of the evaluation split; the root, or FreiHAND_pub_v2_eval beside it, if None."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = set(self.versions) & set(VERSIONS)
        if not known or len(known) != len(self.versions):
            raise InputError(f"unknown or repeated versions {self.versions} of FreiHAND: choose from {VERSIONS}")


def open_freihand(root: Path, split: str, options: FreihandOptions = FreihandOptions()) -> "FreihandLayout":
    """Open a split of FreiHAND v2: 32,560 annotations with four images each, or 3,960 with one.

    Joints are those that FreiHAND regresses from the posed mesh. Samples of the evaluation split have no joints, and
    NaN as keypoints, if its ground truth is not found.

    Args:
        root: folder FreiHAND_pub_v2.
        split: training or evaluation.
        options: parts and versions to read.

    Raises:
        InputError: if a file is missing, damaged or of another version, or the split does not exist.
    """
    root = Path(root)
    if split not in _SPLITS:
        raise InputError(f"unknown split {split!r} of FreiHAND: choose {' or '.join(_SPLITS)}")
    truth: Path | None = root
    if split == "evaluation":
        if options.mask:
            raise InputError("FreiHAND has masks for its training split only: read the evaluation split without mask")
        places = (root, root.parent / _TRUTH_FOLDER)
        truth = options.truth or next((place for place in places if (place / "evaluation_xyz.json").is_file()), None)
    return FreihandLayout(
        root,
        split,
        options,
        truth=truth,
        versions=tuple(VERSIONS.index(name) for name in options.versions) if split == "training" else (0,),
        num_vertices=MANO_VERTICES,
        joint_definition="freihand",
        remedy="download FreiHAND_pub_v2 and give its folder",
    )


def open_synthetic(root: Path, split: str, options: SyntheticOptions = SyntheticOptions()) -> "FreihandLayout":
    """Open a split that `handtailor synth` has written: one image per annotation, any number of vertices.

    Joints are those of the hand model's kinematic chain.

    Args:
        root: folder that `handtailor synth` has written.
        split: train or test.
        options: parts to read.

    Raises:
        InputError: if a file is missing or damaged, or the split does not exist.
    """
    root = Path(root)
    if split not in RENDERED_PARTS:
        raise InputError(f"unknown split {split!r} of rendered hands: choose {' or '.join(RENDERED_PARTS)}")
    if options.hands_mean is None:
        options = dataclasses.replace(options, hands_mean=embedded_arrays()["pose_mean"])
    return FreihandLayout(
        root,
        RENDERED_PARTS[split],
        options,
        truth=root,
        versions=(0,),
        num_vertices=-1,
        joint_definition="model",
        remedy=f"write the folder with `handtailor synth --split {split}`",
    )


class FreihandLayout:
    """Samples in FreiHAND's layout. With n annotations, image v n + a is version v of annotation a."""

    def __init__(
        self,
        root: Path,
        part: str,
        options: SyntheticOptions,
        *,
        truth: Path | None,
        versions: tuple[int, ...],
        num_vertices: int,
        joint_definition: JointDefinition,
        remedy: str,
    ) -> None:
        """Open the lists and convert those that have changed; images are decoded on access.

        Args:
            root: folder of the dataset.
            part: training or evaluation.
            options: parts of a sample to read.
            truth: folder of all lists except K; None if there is no ground truth.
            versions: versions of the images to read.
            num_vertices: number of vertices of a mesh; -1 for any.
            joint_definition: definition of the joints.
            remedy: end of error messages about damaged files.
        """
        for folder in (root, root / part / "rgb", *([root / part / "mask"] if options.mask else [])):
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder: {remedy}")
        self._folder, self._part, self._versions = root / part, part, versions
        self._options, self._joint_definition, self._remedy = options, joint_definition, remedy
        self._k = converted_list(root / f"{part}_K.json", (3, 3), np.float64, options.cache, remedy)
        self._xyz = self._mano = self._vertices = None
        if truth is not None:
            self._xyz = self._list(truth, "xyz", (NUM_KEYPOINTS, 3))
            # Some copies of the evaluation's ground truth have no parameters.
            if part == "training" or (truth / f"{part}_mano.json").exists():
                self._mano = self._list(truth, "mano", _MANO_SHAPE)
            if options.vertices:
                self._vertices = self._list(truth, "verts", (num_vertices, 3), np.float32)

    def _list(
        self, folder: Path, field: str, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float64
    ) -> npt.NDArray[Any]:
        path = folder / f"{self._part}_{field}.json"
        return converted_list(path, shape, dtype, self._options.cache, self._remedy, len(self._k))

    def __len__(self) -> int:
        return len(self._versions) * len(self._k)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        place, entry = divmod(index, len(self._k))
        file = f"{self._versions[place] * len(self._k) + entry:08d}"
        image = read_image(self._folder / "rgb" / f"{file}.jpg")
        intrinsics = np.asarray(self._k[entry])
        keypoints = np.full((NUM_KEYPOINTS, 2), np.nan)
        joints = pose = betas = mask = None
        if self._xyz is not None:
            joints = np.asarray(self._xyz[entry])
            if not (joints[:, 2] > 0.0).all():
                raise InputError(f"{self._part} {file}: a joint is not in front of the camera: {self._remedy}")
            pixels = joints @ intrinsics.T
            keypoints = pixels[:, :2] / pixels[:, 2:]
        if self._mano is not None:
            parts = [3 * NUM_JOINTS, 3 * NUM_JOINTS + NUM_BETAS]
            angles, betas, _ = np.split(np.asarray(self._mano[entry, 0]), parts)
            if self._options.hands_mean is not None:
                # The file's finger rotations are relative to the mean pose; samples' are relative to the flat hand.
                angles = angles + np.concatenate([np.zeros(3), self._options.hands_mean])
                pose = angles.reshape(NUM_JOINTS, 3).astype(np.float32)
        if self._options.mask:
            path = self._folder / "mask" / f"{entry:08d}.jpg"
            mask = read_aligned(path, image, self._remedy)[..., 0] > _MASK_THRESHOLD
        return Sample(
            name=f"{self._part}/{file}",
            image=image,
            keypoints_2d=keypoints.astype(np.float32),
            visible=np.ones(NUM_KEYPOINTS, np.bool_),
            joints=None if joints is None else joints.astype(np.float32),
            intrinsics=intrinsics.astype(np.float32),
            mirrored=False,
            joint_definition=self._joint_definition,
            vertices=None if self._vertices is None else np.array(self._vertices[entry]),
            pose=pose,
            betas=None if betas is None else betas.astype(np.float32),
            mask=mask,
        )

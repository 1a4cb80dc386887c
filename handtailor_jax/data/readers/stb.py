"""STB, the Stereo Hand Pose Tracking Benchmark (docs/datasets.md, "STB").

    ROOT/images/B1Counting/  BB_left_0.png  BB_right_0.png  SK_color_0.png  SK_depth_0.png ...
    ROOT/labels/             B1Counting_BB.mat  B1Counting_SK.mat ...

There are twelve sequences (B1 to B6, Counting and Random) of 1,500 frames, 640 x 480 pixels. The sequences may also be
directly in ROOT. All hands are left hands. The labels have neither 2D keypoints nor visibility.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from handtailor_jax.data.sample import DoubleArray, FloatArray, Sample, mirrored_sample, read_aligned
from handtailor_jax.errors import InputError
from handtailor_jax.images import Image, read_image
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_KEYPOINTS, ROOT, WRIST, permutation

CAMERAS = {"SK": "SK_color", "BB_left": "BB_left", "BB_right": "BB_right"}
"""Prefix of the image names of each camera."""
WRISTS = ("bihand", "ge", "palm")
"""Recipes for joint 0; see `StbOptions.wrist`."""

SPLITS = {"train": (2, 3, 4, 5, 6), "val": (2,), "test": (1,)}
"""Backgrounds in each split. The train split contains the val split."""

BB_CAMERA = np.asarray([[822.79041, 0.0, 318.47345], [0.0, 822.79041, 250.31296], [0.0, 0.0, 1.0]])
"""K of both cameras of the stereo rig, pixels."""
BB_BASELINE = 0.120054
"""Distance from the left to the right camera along x, metres."""
SK_COLOUR_CAMERA = np.asarray([[607.92271, 0.0, 314.78337], [0.0, 607.88192, 236.42484], [0.0, 0.0, 1.0]])
"""K of the colour camera, pixels."""
SK_DEPTH_CAMERA = np.asarray([[475.62768, 0.0, 336.41179], [0.0, 474.77709, 238.77962], [0.0, 0.0, 1.0]])
"""K of the depth camera, pixels."""
# From the colour to the depth camera: rotation vector in radians, translation in metres.
_SK_ROTATION = (0.00531, -0.01196, 0.00301)
_SK_TRANSLATION = (-0.0240381, -0.0004563, -0.0012326)

_ORDER = list(permutation(KEYPOINT_ORDERS["stb"], KEYPOINTS))
_RING = KEYPOINTS.index("ring_mcp")
_REMEDY = "unpack STB again"


@dataclasses.dataclass(frozen=True)
class StbOptions:
    """Choices that affect scores on STB, and parts of a sample to decode.

    Raises:
        InputError: if a choice does not exist, or the camera has no depth or mask.
    """

    camera: str = "SK"
    """Camera of the images: the colour camera SK, or BB_left or BB_right of the stereo rig."""
    wrist: str = "bihand"
    """Recipe that turns the annotated palm point into joint 0. "bihand": p9 + 2.2 (palm - p9). "ge": p13 + 2 (palm -
    p13). "palm": the palm point itself. It changes the reference bone, and so the scaled score of every joint."""
    depth: bool = False
    """Whether samples have a depth map: SK_depth in the colour camera's pixels, 0 where no depth pixel falls."""
    mask: bool = False
    """Whether samples have a mask, from SK_depth_seg, which is in BiHand's STB_supp, not in STB's archive."""

    def __post_init__(self) -> None:
        for name, allowed in (("camera", tuple(CAMERAS)), ("wrist", WRISTS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"unknown {name} {getattr(self, name)!r} of STB: choose from {', '.join(allowed)}")
        if self.camera != "SK" and (self.depth or self.mask):
            raise InputError(f"STB has depth and masks for the camera SK only, not for {self.camera}: choose SK")


class Stb:
    """Frames of a split of STB, ordered by sequence and number, mirrored to right hands."""

    def __init__(self, root: Path, split: str, options: StbOptions = StbOptions()) -> None:
        """Read the labels; images are decoded on access.

        Args:
            root: folder with `labels`, and with `images` or the sequences.
            split: train (B2 to B6), val (B2) or test (B1).
            options: choices and parts to decode.

        Raises:
            InputError: if a file is missing or damaged, the split does not exist, or scipy is missing.
        """
        root = Path(root)
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r} of STB: choose from {', '.join(SPLITS)}")
        if not (root / "labels").is_dir():
            raise InputError(f"{root / 'labels'}: no such folder: give the folder of STB, unpacked")
        self._options = options
        self._frames: list[tuple[Path, int]] = []
        joints = []
        device = options.camera.split("_")[0]
        for sequence in (f"B{number}{kind}" for number in SPLITS[split] for kind in ("Counting", "Random")):
            folder = next((path for path in (root / "images" / sequence, root / sequence) if path.is_dir()), None)
            if folder is None:
                raise InputError(f"{root / 'images' / sequence}: no such folder: {_REMEDY}")
            points = _labels(root / "labels" / f"{sequence}_{device}.mat")
            # File names are made from frame numbers, because frame 10 sorts before frame 2 as text.
            self._frames += [(folder, frame) for frame in range(len(points))]
            joints.append(points)
        points = np.concatenate(joints)[:, _ORDER]
        if options.camera == "SK":
            points = depth_to_colour(points)
        elif options.camera == "BB_right":
            points = points - np.asarray([BB_BASELINE, 0.0, 0.0])
        self._joints = _with_wrist(points, options.wrist)
        self._k = SK_COLOUR_CAMERA if options.camera == "SK" else BB_CAMERA

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        folder, frame = self._frames[index]
        file = f"{CAMERAS[self._options.camera]}_{frame}"
        joints = self._joints[index]
        if not np.isfinite(joints).all() or not (joints[:, 2] > 0.0).all():
            raise InputError(f"{folder.name}: a joint of frame {frame} is not in front of the camera: {_REMEDY}")
        image = read_image(folder / f"{file}.png")
        mask = depth = None
        if self._options.mask:
            mask = stb_depth(read_aligned(folder / f"SK_depth_seg_{frame}.png", image, _REMEDY)) > 0.0
        if self._options.depth:
            depth = _seen_by_colour(stb_depth(read_aligned(folder / f"SK_depth_{frame}.png", image, _REMEDY)))
        pixels = joints @ self._k.T
        return mirrored_sample(
            Sample(
                name=f"{folder.name}/{file}",
                image=image,
                keypoints_2d=(pixels[:, :2] / pixels[:, 2:]).astype(np.float32),
                visible=np.ones(NUM_KEYPOINTS, np.bool_),
                joints=joints.astype(np.float32),
                intrinsics=self._k.astype(np.float32),
                mirrored=False,
                depth=depth,
                mask=mask,
            )
        )


def stb_depth(encoded: Image) -> FloatArray:
    """Decode a depth map (height, width, RGB) to metres (height, width): 1 mm (R + 256 G), unlike RHD's."""
    # Wider integers first, because 256 times a byte overflows.
    return ((encoded[..., 0] + encoded[..., 1].astype(np.int32) * 256) / 1000.0).astype(np.float32)


def depth_to_colour(points: DoubleArray) -> DoubleArray:
    """Transform points (..., 3), metres, from the frame of SK's depth camera to the frame of its colour camera."""
    from scipy.spatial.transform import Rotation

    # Colour to depth is R x + t; the inverse on row vectors is (x - t) R.
    return (points - np.asarray(_SK_TRANSLATION)) @ Rotation.from_rotvec(_SK_ROTATION).as_matrix()


def _with_wrist(points: DoubleArray, wrist: str) -> DoubleArray:
    """Replace joint 0, the palm point, of joints (n, 21, 3) by a recipe's wrist."""
    points = points.copy()
    if wrist == "bihand":
        points[:, WRIST] = points[:, ROOT] + 2.2 * (points[:, WRIST] - points[:, ROOT])
    elif wrist == "ge":
        points[:, WRIST] = points[:, _RING] + 2.0 * (points[:, WRIST] - points[:, _RING])
    return points


def _seen_by_colour(depth: FloatArray) -> FloatArray:
    """Warp a depth map, metres, from the depth camera's pixels to the colour camera's; near points hide far ones."""
    v, u = np.nonzero(depth)
    z = depth[v, u].astype(np.float64)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(SK_DEPTH_CAMERA).T
    points = depth_to_colour(rays * z[:, None])
    pixels = points @ SK_COLOUR_CAMERA.T
    columns, rows = np.round(pixels[:, :2] / pixels[:, 2:]).astype(np.int64).T
    height, width = depth.shape
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    order = np.flatnonzero(inside)
    order = order[np.argsort(-points[order, 2], kind="stable")]
    result = np.zeros_like(depth)
    result[rows[order], columns[order]] = points[order, 2]
    return result


def _labels(path: Path) -> DoubleArray:
    """Read the annotated points of a sequence, (frames, 21, 3), metres."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError(f"scipy, which reads STB's labels, is missing ({error}): {_INSTALL}") from None
    if not path.is_file():
        raise InputError(f"{path}: no such file: {_REMEDY}")
    content: dict[str, Any]
    try:
        content = loadmat(path, variable_names=["handPara"])
    except Exception:  # damaged files raise errors of any kind
        raise InputError(f"{path}: is cut short or not a MATLAB file: {_REMEDY}") from None
    points = content.get("handPara")
    if not isinstance(points, np.ndarray) or points.ndim != 3 or points.shape[:2] != (3, NUM_KEYPOINTS):
        raise InputError(f"{path}: has no handPara of shape (3, 21, frames) as STB's labels do: {_REMEDY}")
    return points.transpose(2, 1, 0).astype(np.float64) / 1000.0


_INSTALL = "pip install 'handtailor-jax[datasets]'"

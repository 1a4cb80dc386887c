"""STB, the Stereo Hand Pose Tracking Benchmark (docs/datasets.md, "STB").

    ROOT/images/B1Counting/  BB_left_0.png  BB_right_0.png  SK_color_0.png  SK_depth_0.png ...
    ROOT/labels/             B1Counting_BB.mat  B1Counting_SK.mat ...

There are twelve sequences (B1 to B6, Counting and Random) of 1,500 frames, 640 x 480 pixels. The sequences may also be
directly in ROOT. All hands are left hands. The labels have neither 2D keypoints nor visibility.
"""

from pathlib import Path

import numpy as np

from handtailor_jax.data.sample import (
    DoubleArray,
    FloatArray,
    Sample,
    check_choice,
    check_folders,
    mirrored_sample,
    read_aligned,
)
from handtailor_jax.errors import InputError
from handtailor_jax.images import Image, read_image
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_KEYPOINTS, ROOT, WRIST, permutation

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


class Stb:
    """Frames of a split of STB, ordered by sequence and number, mirrored to right hands."""

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        camera: str = "SK",
        wrist: str = "bihand",
        depth: bool = False,
        mask: bool = False,
    ) -> None:
        """Read the labels; images are decoded on access.

        Args:
            root: folder with `labels`, and with `images` or the sequences.
            split: train (B2 to B6), val (B2) or test (B1).
            camera: camera of the images: the colour camera SK, or BB_left or BB_right of the stereo rig.
            wrist: recipe that turns the annotated palm point into joint 0. "bihand": p9 + 2.2 (palm - p9). "ge":
                p13 + 2 (palm - p13). "palm": the palm point itself. It changes the reference bone, and so the scaled
                score of every joint.
            depth: whether samples have a depth map: SK_depth in the colour camera's pixels, 0 where no depth pixel
                falls.
            mask: whether samples have a mask, from SK_depth_seg, which is in BiHand's STB_supp, not in STB's archive.

        Raises:
            InputError: if a file is missing or damaged, a split or option does not exist, the camera has no depth or
                mask.
        """
        check_choice("camera", camera, ("SK", "BB_left", "BB_right"), "STB")
        check_choice("wrist", wrist, ("bihand", "ge", "palm"), "STB")
        if camera != "SK" and (depth or mask):
            raise InputError(f"STB has depth and masks for the camera SK only, not for {camera}: choose SK")
        check_choice("split", split, tuple(SPLITS), "STB")
        check_folders([root / "labels"], "give the folder of STB, unpacked")
        self._prefix, self._depth, self._mask = "SK_color" if camera == "SK" else camera, depth, mask
        self._frames: list[tuple[Path, int]] = []
        joints = []
        for sequence in (f"B{number}{kind}" for number in SPLITS[split] for kind in ("Counting", "Random")):
            nested = root / "images" / sequence
            folder = root / sequence if (root / sequence).is_dir() and not nested.is_dir() else nested
            check_folders([folder], _REMEDY)
            points = _labels(root / "labels" / f"{sequence}_{camera[:2]}.mat")
            # File names are made from frame numbers, because frame 10 sorts before frame 2 as text.
            self._frames += [(folder, frame) for frame in range(len(points))]
            joints.append(points)
        points = np.concatenate(joints)[:, _ORDER]
        if camera == "SK":
            points = depth_to_colour(points)
        elif camera == "BB_right":
            points = points - np.asarray([BB_BASELINE, 0.0, 0.0])
        if wrist == "bihand":
            points[:, WRIST] = points[:, ROOT] + 2.2 * (points[:, WRIST] - points[:, ROOT])
        elif wrist == "ge":
            points[:, WRIST] = points[:, _RING] + 2.0 * (points[:, WRIST] - points[:, _RING])
        self._joints, self._k = points, SK_COLOUR_CAMERA if camera == "SK" else BB_CAMERA

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        folder, frame = self._frames[index]
        joints = self._joints[index]
        if not np.isfinite(joints).all() or not (joints[:, 2] > 0.0).all():
            raise InputError(f"{folder.name}: a joint of frame {frame} is not in front of the camera: {_REMEDY}")
        image = read_image(folder / f"{self._prefix}_{frame}.png")

        def depth_map(name: str) -> FloatArray:
            return stb_depth(read_aligned(folder / f"{name}_{frame}.png", image, _REMEDY))

        pixels = joints @ self._k.T
        return mirrored_sample(
            Sample(
                name=f"{folder.name}/{self._prefix}_{frame}",
                image=image,
                keypoints_2d=(pixels[:, :2] / pixels[:, 2:]).astype(np.float32),
                visible=np.ones(NUM_KEYPOINTS, np.bool_),
                joints=joints.astype(np.float32),
                intrinsics=self._k.astype(np.float32),
                depth=_seen_by_colour(depth_map("SK_depth")) if self._depth else None,
                mask=depth_map("SK_depth_seg") > 0.0 if self._mask else None,
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


def _seen_by_colour(depth: FloatArray) -> FloatArray:
    """Warp a depth map, metres, from the depth camera's pixels to the colour camera's; near points hide far ones."""
    v, u = np.nonzero(depth)
    z = depth[v, u].astype(np.float64)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(SK_DEPTH_CAMERA).T
    points = depth_to_colour(rays * z[:, None])
    points = points[np.argsort(-points[:, 2], kind="stable")]
    pixels = points @ SK_COLOUR_CAMERA.T
    columns, rows = np.round(pixels[:, :2] / pixels[:, 2:]).astype(np.int64).T
    height, width = depth.shape
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    result = np.zeros_like(depth)
    result[rows[inside], columns[inside]] = points[inside, 2]
    return result


def _labels(path: Path) -> DoubleArray:
    """Read the annotated points of a sequence, (frames, 21, 3), metres."""
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError(f"{path}: no such file: {_REMEDY}")
    try:
        points = loadmat(path, variable_names=["handPara"]).get("handPara")
    except Exception:  # damaged files raise errors of any kind
        raise InputError(f"{path}: is cut short or not a MATLAB file: {_REMEDY}") from None
    if not isinstance(points, np.ndarray) or points.ndim != 3 or points.shape[:2] != (3, NUM_KEYPOINTS):
        raise InputError(f"{path}: has no handPara of shape (3, 21, frames) as STB's labels do: {_REMEDY}")
    return points.transpose(2, 1, 0).astype(np.float64) / 1000.0

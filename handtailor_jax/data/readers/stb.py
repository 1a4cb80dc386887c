"""Reader of the Stereo Hand Pose Tracking Benchmark, STB (datasets, section 1.2).

    ROOT/images/B1Counting/  BB_left_0.png  BB_right_0.png  SK_color_0.png  SK_depth_0.png ...
    ROOT/labels/             B1Counting_BB.mat  B1Counting_SK.mat ...

Twelve sequences (B1 to B6, Counting and Random) of 1,500 frames, 640 x 480; `images` may be left out of the path. All
hands are left ones. Nothing is annotated in 2D and nothing said about what is seen.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.data.sample import Sample, mirrored_sample
from handtailor_jax.errors import InputError
from handtailor_jax.images import read_picture
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_KEYPOINTS, ROOT, WRIST, permutation

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

CAMERAS = {"SK": "SK_color", "BB_left": "BB_left", "BB_right": "BB_right"}
"""The cameras, and how the names of their pictures begin."""
WRISTS = ("bihand", "ge", "palm")
"""How joint 0 is made; see `StbOptions.wrist`."""

SPLITS = {"train": (2, 3, 4, 5, 6), "val": (2,), "test": (1,)}
"""Which of the six backgrounds are in each split; val is a part of train: leave it out of training by hand."""

BB_CAMERA = np.asarray([[822.79041, 0.0, 318.47345], [0.0, 822.79041, 250.31296], [0.0, 0.0, 1.0]])
"""K of both cameras of the stereo rig, pixels."""
BB_BASELINE = 0.120054
"""From the left to the right camera along x, metres."""
SK_COLOUR_CAMERA = np.asarray([[607.92271, 0.0, 314.78337], [0.0, 607.88192, 236.42484], [0.0, 0.0, 1.0]])
"""K of the colour camera, pixels."""
SK_DEPTH_CAMERA = np.asarray([[475.62768, 0.0, 336.41179], [0.0, 474.77709, 238.77962], [0.0, 0.0, 1.0]])
"""K of the depth camera, pixels."""
_SK_ROTATION = np.asarray([0.00531, -0.01196, 0.00301])
_SK_TRANSLATION = np.asarray([-0.0240381, -0.0004563, -0.0012326])  # metres

_ORDER = list(permutation(KEYPOINT_ORDERS["stb"], KEYPOINTS))
_RING = KEYPOINTS.index("ring_mcp")
_AGAIN = "unpack STB again"


@dataclasses.dataclass(frozen=True)
class StbOptions:
    """What a number on STB depends on, and what is decoded.

    Raises:
        InputError: for a choice that does not exist, or depth or mask of a camera that has none.
    """

    camera: str = "SK"
    """Whose pictures: the colour camera's, or one of the stereo rig's."""
    wrist: str = "bihand"
    """How joint 0 is made of the annotated palm point: bihand p9 + 2.2 (palm - p9), ge p13 + 2 (palm - p13), or palm,
    which leaves it. It changes the reference bone, and so the scaled score of every joint."""
    depth: bool = False
    """Whether SK_depth is decoded and brought to the colour camera's pixels; those that no depth pixel falls on are
    unknown, 0."""
    mask: bool = False
    """Whether samples have a mask, from SK_depth_seg, which is not in the archive but in BiHand's STB_supp."""

    def __post_init__(self) -> None:
        for name, allowed in (("camera", tuple(CAMERAS)), ("wrist", WRISTS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"unknown {name} {getattr(self, name)!r} of STB: choose from {', '.join(allowed)}")
        if self.camera != "SK" and (self.depth or self.mask):
            raise InputError(f"STB has depth and masks for the camera SK only, not for {self.camera}: choose SK")


class Stb:
    """The frames of a split of STB in the order of their sequences and numbers, mirrored: all its hands are left."""

    def __init__(self, root: Path, split: str, options: StbOptions = StbOptions()) -> None:
        """Reads the labels; pictures are decoded when they are asked for.

        Args:
            root: the folder with `labels`, and `images` or the sequences.
            split: train (B2 to B6), val (B2) or test (B1).
            options: see there.

        Raises:
            InputError: if a file is missing, cut short or foreign, the split does not exist, or scipy is missing.
        """
        root = Path(root)
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r} of STB: choose from {', '.join(SPLITS)}")
        if not (root / "labels").is_dir():
            raise InputError(f"{root / 'labels'}: no such folder: give the path of STB, unpacked")
        self._options = options
        self._frames: list[tuple[Path, int]] = []
        joints = []
        device = options.camera.split("_")[0]
        for sequence in (f"B{number}{kind}" for number in SPLITS[split] for kind in ("Counting", "Random")):
            folder = next((path for path in (root / "images" / sequence, root / sequence) if path.is_dir()), None)
            if folder is None:
                raise InputError(f"{root / 'images' / sequence}: no such folder: {_AGAIN}")
            points = _labels(root / "labels" / f"{sequence}_{device}.mat")
            # Names are made from frame numbers: sorted as text, frame 10 would come before frame 2.
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
        """The sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        folder, frame = self._frames[index]
        file = f"{CAMERAS[self._options.camera]}_{frame}"
        joints = self._joints[index]
        if not np.isfinite(joints).all() or not (joints[:, 2] > 0.0).all():
            raise InputError(f"{folder.name}: frame {frame} has a joint that is not in front of the camera: {_AGAIN}")
        image = read_picture(folder / f"{file}.png")
        mask = None
        if self._options.mask:
            mask = stb_depth(_read_like(folder / f"SK_depth_seg_{frame}.png", image)) > 0.0
        depth = None
        if self._options.depth:
            depth = _seen_by_colour(stb_depth(_read_like(folder / f"SK_depth_{frame}.png", image)))
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


def stb_depth(picture: npt.NDArray[np.uint8]) -> FloatArray:
    """Metres (height, width) of a depth map (height, width, RGB): 1 mm (R + 256 G), unlike RHD's."""
    # Wider integers first: 256 times a byte is no byte.
    return ((picture[..., 0] + picture[..., 1].astype(np.int32) * 256) / 1000.0).astype(np.float32)


def depth_to_colour(points: DoubleArray) -> DoubleArray:
    """Points (..., 3) in metres from the frame of SK's depth camera to that of its colour camera."""
    # Colour to depth is R x + t; its inverse on row vectors is (x - t) R.
    return (points - _SK_TRANSLATION) @ _rodrigues(_SK_ROTATION)


def _rodrigues(vector: DoubleArray) -> DoubleArray:
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / angle
    cross = np.asarray([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def _with_wrist(points: DoubleArray, wrist: str) -> DoubleArray:
    """Joints (n, 21, 3) with joint 0, the palm point, replaced by the recipe's wrist."""
    points = points.copy()
    if wrist == "bihand":
        points[:, WRIST] = points[:, ROOT] + 2.2 * (points[:, WRIST] - points[:, ROOT])
    elif wrist == "ge":
        points[:, WRIST] = points[:, _RING] + 2.0 * (points[:, WRIST] - points[:, _RING])
    return points


def _seen_by_colour(depth: FloatArray) -> FloatArray:
    """A depth map of the depth camera's pixels as one of the colour camera's, metres; nearer points hide others."""
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


def _read_like(path: Path, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    picture = read_picture(path)
    if picture.shape != image.shape:
        raise InputError(f"{path}: has another size than its colour picture: {_AGAIN}")
    return picture


def _labels(path: Path) -> DoubleArray:
    """The points of a sequence as annotated, (frames, 21, 3), metres."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError(f"STB's labels need scipy ({error}): pip install 'handtailor-jax[datasets]'") from None
    if not path.is_file():
        raise InputError(f"{path}: no such file: {_AGAIN}")
    content: dict[str, Any]
    try:
        content = loadmat(path, variable_names=["handPara"])
    except Exception:  # damaged files end in errors of any kind
        raise InputError(f"{path}: is cut short or no MATLAB file: {_AGAIN}") from None
    points = content.get("handPara")
    if not isinstance(points, np.ndarray) or points.ndim != 3 or points.shape[:2] != (3, NUM_KEYPOINTS):
        raise InputError(f"{path}: has no handPara of shape (3, 21, frames), as STB's labels do: {_AGAIN}")
    return points.transpose(2, 1, 0).astype(np.float64) / 1000.0

"""Miniature archives of the datasets, in the published layouts (docs/datasets.md).

Every writer returns the ground truth of what it wrote: hands before any reader mirrors them. Images show dots on a
plain background. Nothing in an archive tells a reader that it is a fixture.
"""

import dataclasses
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError, install
from handtailor_jax.images import Image, opencv
from handtailor_jax.mano.loading import MANO_VERTICES, embedded_arrays
from handtailor_jax.skeleton import (
    FINGER_KEYPOINTS,
    KEYPOINT_ORDERS,
    KEYPOINT_PARENTS,
    KEYPOINTS,
    KEYPOINTS_FROM_MANO,
    ROOT,
    WRIST,
    permutation,
)

DoubleArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class WrittenHand:
    """Ground truth of one hand: canonical keypoint order, camera of the written image."""

    joints: DoubleArray
    """(21, 3) joints in the camera frame, metres."""
    keypoints_2d: DoubleArray
    """(21, 2) keypoints in pixels; they may lie outside the image."""
    intrinsics: DoubleArray
    """(3, 3) intrinsic matrix K, pixels."""
    left: bool
    """Whether the image shows a left hand."""
    visible: npt.NDArray[np.bool_]
    """(21,) visibility of each keypoint."""
    image: Image
    """(height, width, 3) RGB image before compression."""
    pose: DoubleArray | None = None
    """(16, 3) axis-angle rotations relative to the flat hand, radians."""
    betas: DoubleArray | None = None
    """(10,) shape coefficients."""
    vertices: DoubleArray | None = None
    """(vertices, 3) mesh vertices in the camera frame, metres."""
    depth: DoubleArray | None = None
    """(height, width) camera z, metres."""
    mask: npt.NDArray[np.bool_] | None = None
    """(height, width) pixels that this hand covers."""


def random_hands(count: int, seed: int = 0) -> DoubleArray:
    """Return joints (count, 21, 3), metres, of right hands with bent fingers in any orientation, root at the origin."""
    random = np.random.default_rng(seed)
    arrays = embedded_arrays()
    template = arrays["template"].astype(np.float64)
    joints = np.concatenate([arrays["joint_regressor"].astype(np.float64) @ template, template[arrays["tip_vertices"]]])
    rest = joints[list(KEYPOINTS_FROM_MANO)]
    index, little = (rest[KEYPOINTS.index(f"{finger}_mcp")] - rest[WRIST] for finger in ("index", "little"))
    palmward = np.cross(index, little)
    palmward /= np.linalg.norm(palmward)
    hands = []
    for _ in range(count):
        hand = rest.copy()
        for finger in FINGER_KEYPOINTS[1:]:
            along = rest[finger[-1]] - rest[finger[0]]
            axis = np.cross(along, palmward)
            for joint in finger[:-1]:
                bend = _rotation(axis, random.uniform(0.1, 0.9))
                further = [k for k in finger if k > joint]
                hand[further] = (hand[further] - hand[joint]) @ bend.T + hand[joint]
        turn = _rotation(random.normal(size=3), random.uniform(0.0, np.pi))
        hands.append(random.uniform(0.85, 1.15) * (hand - hand[ROOT]) @ turn.T)
    return np.stack(hands)


def mirrored_hands(hands: DoubleArray) -> DoubleArray:
    """Turn right hands into left hands and back, x' = -x."""
    return hands * np.asarray([-1.0, 1.0, 1.0])


def _rotation(axis: DoubleArray, angle: float) -> DoubleArray:
    matrix, _ = opencv().Rodrigues(np.asarray(axis, np.float64) / np.linalg.norm(axis) * angle)
    return np.asarray(matrix, np.float64)


# ---------------------------------------------------------------------------------------------------------------------
# RHD

RHD_CASES = ("left", "right", "tie", "behind", "one more")
"""Samples of each split: left hand larger; right hand larger, with a joint outside the image; equal numbers of pixels;
left hand larger, with a joint of the right hand behind the camera; left hand larger by a single pixel."""

_RHD_SIZE = 320
_LEFT_IDS, _RIGHT_IDS, _PERSON = range(2, 18), range(18, 34), 1
_RHD_FAR = 3.2  # metres; the first byte of its code is 163
_RHD_RAW = list(permutation(KEYPOINTS, KEYPOINT_ORDERS["rhd"]))


def write_rhd(root: Path, hands: DoubleArray | None = None) -> dict[str, list[WrittenHand]]:
    """Write RHD_published_v2 with an image for each of `RHD_CASES` in both splits.

    Args:
        root: folder to write.
        hands: (20, 21, 3) right hands from `random_hands`, two per image.

    Returns:
        The hand of each image that the mask rule chooses, by split.
    """
    hands = random_hands(4 * len(RHD_CASES), 1) if hands is None else hands
    truth: dict[str, list[WrittenHand]] = {}
    for part, split in enumerate(("training", "evaluation")):
        folder = root / split
        for name in ("color", "depth", "mask"):
            (folder / name).mkdir(parents=True)
        annotation: dict[int, dict[str, npt.NDArray[Any]]] = {}
        truth[split] = []
        # Readers must accept both types.
        dtype = np.float32 if split == "training" else np.float64
        for number, case in enumerate(RHD_CASES):
            pair = hands[2 * (part * len(RHD_CASES) + number) :][:2]
            entry, images, hand = _rhd_sample(case, 280.0 + 9.5 * number, pair)
            annotation[number] = {name: array.astype(dtype) for name, array in entry.items()}
            truth[split].append(hand)
            for name, image in images.items():
                _write(folder / name / f"{number:05d}.png", image)
        (folder / f"anno_{split}.pickle").write_bytes(pickle.dumps(annotation, protocol=2))
    return truth


def _rhd_sample(
    case: str, focal: float, pair: DoubleArray
) -> tuple[dict[str, DoubleArray], dict[str, npt.NDArray[np.uint8]], WrittenHand]:
    """Return the annotation, the images by folder, and the ground truth of the chosen hand."""
    left_chosen = case not in ("right", "tie")
    k = np.asarray([[focal, 0.0, 160.0], [0.0, focal, 160.0], [0.0, 0.0, 1.0]])
    both = np.stack([mirrored_hands(pair[0]), pair[1]])
    both += np.asarray([[-0.12, 0.02, 0.55], [0.12, -0.02, 0.6]])[:, None]
    if case == "right":
        # The outermost joint leaves the image through its right border.
        outermost = both[1, np.argmax(both[1, :, 0] / both[1, :, 2])]
        both[1, :, 0] += (325.0 - 160.0) / focal * outermost[2] - outermost[0]
    if case == "behind":
        both[1, KEYPOINTS.index("ring_tip"), 2] = -0.03
    pixels = both @ k.T
    uv = pixels[..., :2] / pixels[..., 2:]
    xyz, uv = _significant(both, 4), _significant(uv, 4)
    seen = np.ones((2, len(KEYPOINTS)), np.bool_)
    seen[int(left_chosen), 8:] = False
    seen &= ((uv >= 0) & (uv <= _RHD_SIZE - 1)).all(axis=-1)

    part_ids = np.zeros((_RHD_SIZE, _RHD_SIZE), np.uint8)
    part_ids[100:310, 60:260] = _PERSON
    for side in (int(left_chosen), 1 - int(left_chosen)):  # the chosen hand is drawn last
        _draw_parts(part_ids, uv[side], (_LEFT_IDS, _RIGHT_IDS)[side][0])
    counts = [int(np.isin(part_ids, list(ids)).sum()) for ids in (_LEFT_IDS, _RIGHT_IDS)]
    wanted = {
        "left": (counts[0], min(counts) // 2),
        "right": (min(counts) // 2, counts[1]),
        "tie": (min(counts), min(counts)),
        "behind": (counts[0], min(counts) // 2),
        "one more": (min(counts), min(counts) - 1),
    }[case]
    for ids, count in zip((_LEFT_IDS, _RIGHT_IDS), wanted, strict=True):
        surplus = np.flatnonzero(np.isin(part_ids, list(ids)))[count:]
        part_ids.ravel()[surplus] = _PERSON

    chosen = 0 if left_chosen else 1
    mask = np.isin(part_ids, list((_LEFT_IDS, _RIGHT_IDS)[chosen]))
    metres = np.where(mask, both[chosen, ROOT, 2], _RHD_FAR)
    code = np.round(metres / 5.0 * 65535.0).astype(np.int64)
    # The third byte is unused; a value other than 0 reveals a reader that takes it for the first byte.
    depth = np.stack([code // 256, code % 256, np.full_like(code, 77)], axis=-1).astype(np.uint8)
    image = _dots((_RHD_SIZE, _RHD_SIZE), (70, 90, 60), uv)
    uv_vis = np.concatenate([uv, seen[..., None]], axis=-1)
    entry = {"uv_vis": uv_vis[:, _RHD_RAW].reshape(-1, 3), "xyz": xyz[:, _RHD_RAW].reshape(-1, 3), "K": k}
    hand = WrittenHand(
        joints=xyz[chosen],
        keypoints_2d=uv[chosen],
        intrinsics=k,
        left=left_chosen,
        visible=seen[chosen],
        image=image,
        depth=code / 65535.0 * 5.0,
        mask=mask,
    )
    return entry, {"color": image, "depth": depth, "mask": part_ids}, hand


def _draw_parts(part_ids: npt.NDArray[np.uint8], uv: DoubleArray, first: int) -> None:
    """Draw a hand's 16 parts into a mask: three numbers per finger from tip to base, then the palm."""
    cv2 = opencv()
    points = np.round(uv).astype(np.int32)
    palm = [WRIST, *(finger[0] for finger in FINGER_KEYPOINTS)]
    cv2.fillConvexPoly(part_ids, cv2.convexHull(points[palm]), first + 15)
    for number, finger in enumerate(FINGER_KEYPOINTS):
        for part, (far, near) in enumerate(zip(finger[:0:-1], finger[-2::-1], strict=True)):
            cv2.line(part_ids, points[far].tolist(), points[near].tolist(), first + 3 * number + part, 5)


def _significant(values: DoubleArray, digits: int) -> DoubleArray:
    """Round to significant digits, as RHD's annotation is."""
    exponent = np.floor(np.log10(np.maximum(np.abs(values), 1e-12)))
    unit = 10.0 ** (exponent - digits + 1)
    return np.round(values / unit) * unit


# ---------------------------------------------------------------------------------------------------------------------
# STB

STB_SEQUENCES = tuple(f"B{number}{kind}" for number in range(1, 7) for kind in ("Counting", "Random"))
"""Names of the twelve sequences."""

_STB_SHAPE = (480, 640)
_BB_K = np.asarray([[822.79041, 0.0, 318.47345], [0.0, 822.79041, 250.31296], [0.0, 0.0, 1.0]])
_COLOUR_K = np.asarray([[607.92271, 0.0, 314.78337], [0.0, 607.88192, 236.42484], [0.0, 0.0, 1.0]])
_DEPTH_K = np.asarray([[475.62768, 0.0, 336.41179], [0.0, 474.77709, 238.77962], [0.0, 0.0, 1.0]])
_COLOUR_TO_DEPTH = np.asarray([0.00531, -0.01196, 0.00301])
_COLOUR_TO_DEPTH_MM = np.asarray([-24.0381, -0.4563, -1.2326])
_STB_RAW = list(permutation(KEYPOINTS, KEYPOINT_ORDERS["stb"]))


def write_stb(
    root: Path,
    sequences: Sequence[str] = STB_SEQUENCES,
    frames: int = 11,
    hands: DoubleArray | None = None,
    *,
    palm: Literal["bihand", "ge"] = "bihand",
    images: bool = True,
) -> dict[str, dict[str, list[WrittenHand]]]:
    """Write STB with BiHand's segmented depth maps.

    Args:
        root: folder to write.
        sequences: sequences to write.
        frames: number of frames per sequence; with 11 or more, frame 10 sorts before frame 2 as text.
        hands: (sequences x frames, 21, 3) right hands from `random_hands`; their mirror images are written.
        palm: recipe that turns the labels' palm point back into the wrist.
        images: whether the sequences are in a folder `images`.

    Returns:
        The ground truth of each frame by camera (SK, BB_left or BB_right) and sequence.

    Raises:
        InputError: if scipy is missing.
    """
    try:
        from scipy.io import savemat
    except ImportError as error:
        raise InputError(f"STB's labels need scipy ({error}): {install('datasets')}") from None
    hands = random_hands(len(sequences) * frames, 2) if hands is None else hands
    (root / "labels").mkdir(parents=True)
    truth: dict[str, dict[str, list[WrittenHand]]] = {"SK": {}, "BB_left": {}, "BB_right": {}}
    for number, sequence in enumerate(sequences):
        folder = (root / "images" if images else root) / sequence
        folder.mkdir(parents=True)
        joints = mirrored_hands(hands[number * frames :][:frames]) + np.asarray([0.02, -0.01, 0.6])
        sk = [_stb_hand(points, _COLOUR_K) for points in joints]
        left = [_stb_hand(points, _BB_K) for points in joints]
        right = [_stb_hand(points - np.asarray([0.120054, 0.0, 0.0]), _BB_K) for points in joints]
        labelled = 1000.0 * _stb_palm(joints, palm)
        rotation = np.asarray(opencv().Rodrigues(_COLOUR_TO_DEPTH)[0])
        in_depth = labelled @ rotation.T + _COLOUR_TO_DEPTH_MM
        for device, points in (("BB", labelled), ("SK", in_depth)):
            savemat(root / "labels" / f"{sequence}_{device}.mat", {"handPara": points[:, _STB_RAW].transpose(2, 1, 0)})
        for frame in range(frames):
            for name, hand in (("SK_color", sk), ("BB_left", left), ("BB_right", right)):
                _write(folder / f"{name}_{frame}.png", hand[frame].image)
            millimetres = _blobs(1000.0 * joints[frame] @ rotation.T + _COLOUR_TO_DEPTH_MM, _DEPTH_K)
            _write(folder / f"SK_depth_{frame}.png", _stb_code(millimetres))
            segmented = _blobs(1000.0 * joints[frame], _COLOUR_K)
            _write(folder / f"SK_depth_seg_{frame}.png", _stb_code(segmented))
            sk[frame] = dataclasses.replace(sk[frame], mask=segmented > 0, depth=segmented / 1000.0)
        for camera, written in (("SK", sk), ("BB_left", left), ("BB_right", right)):
            truth[camera][sequence] = written
    return truth


def _stb_palm(joints: DoubleArray, recipe: str) -> DoubleArray:
    """Replace the wrist of joints (n, 21, 3) by the palm point that the recipe turns into it."""
    joints = joints.copy()
    anchor, factor = (ROOT, 2.2) if recipe == "bihand" else (KEYPOINTS.index("ring_mcp"), 2.0)
    joints[:, WRIST] = joints[:, anchor] + (joints[:, WRIST] - joints[:, anchor]) / factor
    return joints


def _stb_hand(joints: DoubleArray, k: DoubleArray) -> WrittenHand:
    pixels = joints @ k.T
    uv = pixels[:, :2] / pixels[:, 2:]
    image = _dots(_STB_SHAPE, (90, 80, 70), uv[None])
    return WrittenHand(joints, uv, k, True, np.ones(len(KEYPOINTS), np.bool_), image)


def _blobs(points: DoubleArray, k: DoubleArray) -> npt.NDArray[np.int64]:
    """Return a depth map (480, 640) in millimetres: a disc at each point's depth, the nearest on top; 0 elsewhere."""
    result = np.zeros(_STB_SHAPE, np.int32)
    pixels = points @ k.T
    for joint in np.argsort(-points[:, 2]):
        u, v = np.round(pixels[joint, :2] / pixels[joint, 2]).astype(int).tolist()
        opencv().circle(result, (u, v), 5, round(float(points[joint, 2])), -1)
    return result.astype(np.int64)


def _stb_code(millimetres: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return np.stack([millimetres % 256, millimetres // 256, np.full_like(millimetres, 77)], axis=-1).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# FreiHAND

FREIHAND_BACKGROUNDS = ((40, 160, 60), (90, 90, 160), (150, 90, 60), (60, 60, 60))
"""Background colours of the four versions of each training sample."""

_FREIHAND_SIZE = 224


def write_freihand_fixture(
    root: Path,
    annotations: int = 3,
    tests: int = 2,
    hands: DoubleArray | None = None,
    *,
    truth: Literal["none", "root", "sibling"] = "none",
    hands_mean: npt.NDArray[Any] | None = None,
) -> dict[str, list[WrittenHand]]:
    """Write FreiHAND_pub_v2.

    Args:
        root: folder to write.
        annotations: number of training annotations, each with four images and one mask.
        tests: number of evaluation samples.
        hands: (annotations + tests, 21, 3) right hands from `random_hands`.
        truth: place of the evaluation's ground truth: nowhere, beside its K and scale, or in FreiHAND_pub_v2_eval
            beside `root`.
        hands_mean: (45,) mean pose to which annotated poses are relative; the embedded hand's if None.

    Returns:
        The ground truth of each annotation by split, with the image of the first version. Meshes are points around the
        bones and poses are random angles: both are unrelated to the joints.
    """
    hands = random_hands(annotations + tests, 3) if hands is None else hands
    mean = np.asarray(embedded_arrays()["pose_mean"] if hands_mean is None else hands_mean, np.float64)
    random = np.random.default_rng(4)
    written: dict[str, list[WrittenHand]] = {}
    for split, chosen in (("training", hands[:annotations]), ("evaluation", hands[annotations:][:tests])):
        for name in ("rgb", "mask") if split == "training" else ("rgb",):
            (root / split / name).mkdir(parents=True)
        lists: dict[str, list[Any]] = {name: [] for name in ("K", "scale", "mano", "verts", "xyz")}
        written[split] = []
        for number, points in enumerate(chosen):
            hand, entry = _freihand_hand(points, number, mean, random)
            written[split].append(hand)
            for name, value in entry.items():
                lists[name].append(value)
            for version, colour in enumerate(FREIHAND_BACKGROUNDS if split == "training" else FREIHAND_BACKGROUNDS[:1]):
                shape = (_FREIHAND_SIZE, _FREIHAND_SIZE)
                image = _dots(shape, colour, hand.keypoints_2d[None])
                _write(root / split / "rgb" / f"{version * len(chosen) + number:08d}.jpg", image)
            if split == "training":
                assert hand.mask is not None
                mask = np.repeat(255 * hand.mask.astype(np.uint8)[..., None], 3, axis=-1)
                _write(root / split / "mask" / f"{number:08d}.jpg", mask)
        for name, values in lists.items():
            if split == "training" or name in ("K", "scale") or truth == "root":
                (root / f"{split}_{name}.json").write_text(json.dumps(values))
            if split == "evaluation" and truth == "sibling":
                folder = root.parent / "FreiHAND_pub_v2_eval"
                folder.mkdir(exist_ok=True)
                (folder / f"{split}_{name}.json").write_text(json.dumps(values))
    return written


def _freihand_hand(
    points: DoubleArray, number: int, mean: DoubleArray, random: np.random.Generator
) -> tuple[WrittenHand, dict[str, Any]]:
    """Return the ground truth of one sample and its entry in each list."""
    k = np.asarray([[480.0 + number, 0.0, 109.3], [0.0, 484.5, 115.8 - number], [0.0, 0.0, 1.0]])
    joints = points + np.asarray([0.01, -0.005, 0.75])
    pixels = joints @ k.T
    uv = pixels[:, :2] / pixels[:, 2:]
    child = random.integers(1, len(KEYPOINTS), MANO_VERTICES)
    parent = np.asarray(KEYPOINT_PARENTS)[child]
    share = random.uniform(size=(MANO_VERTICES, 1))
    vertices = share * joints[child] + (1.0 - share) * joints[parent]
    vertices += random.normal(0.0, 0.004, vertices.shape)
    theta, betas = random.normal(0.0, 0.3, 48), random.normal(0.0, 1.0, 10)
    scale = float(np.linalg.norm(joints[ROOT] - joints[ROOT + 1]))
    # uv_root and the fit's scale put joint 9 at ((uv_root - centre), f) / scale.
    pixels_per_metre = 0.5 * (k[0, 0] + k[1, 1]) / joints[ROOT, 2]
    uv_root = k[:2, 2] + pixels_per_metre * joints[ROOT, :2]
    mano = [np.concatenate([theta, betas, uv_root, [pixels_per_metre]]).tolist()]
    shape = (_FREIHAND_SIZE, _FREIHAND_SIZE)
    mask = np.asarray(_dots(shape, (0, 0, 0), uv[None], radius=9).any(axis=-1))
    hand = WrittenHand(
        joints=joints,
        keypoints_2d=uv,
        intrinsics=k,
        left=False,
        visible=np.ones(len(KEYPOINTS), np.bool_),
        image=_dots(shape, FREIHAND_BACKGROUNDS[0], uv[None]),
        pose=(theta + np.concatenate([np.zeros(3), mean])).reshape(16, 3),
        betas=betas,
        vertices=vertices,
        mask=mask,
    )
    entry = {"K": k.tolist(), "scale": scale, "mano": mano, "verts": vertices.tolist(), "xyz": joints.tolist()}
    return hand, entry


# ---------------------------------------------------------------------------------------------------------------------
# Labelled photographs


def write_photos(root: Path, hands: DoubleArray | None = None) -> dict[str, list[WrittenHand]]:
    """Write images with a labels.json: a left and a right hand in each of the splits train and val.

    Args:
        root: folder to write.
        hands: (4, 21, 3) right hands from `random_hands`.

    Returns:
        The ground truth by split, sorted by name. The labels contain neither joints in metres nor intrinsics.
    """
    hands = random_hands(4, 5) if hands is None else hands
    k = np.asarray([[300.0, 0.0, 80.0], [0.0, 300.0, 60.0], [0.0, 0.0, 1.0]])
    labels: dict[str, Any] = {}
    written: dict[str, list[WrittenHand]] = {"train": [], "val": []}
    for number, points in enumerate(hands[:4]):
        left, split = number % 2 == 0, "train" if number < 2 else "val"
        joints = (mirrored_hands(points) if left else points) + np.asarray([0.0, 0.0, 0.8])
        pixels = joints @ k.T
        uv = pixels[:, :2] / pixels[:, 2:]
        image = _dots((120, 160), (200, 190, 180), uv[None])
        name = f"fixture/{number}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        _write(root / name, image)
        side = "left" if left else "right"
        hint = (10.0 * (joints - joints[ROOT])).tolist()
        labels[name] = {"side": side, "split": split, "keypoints_2d": uv.tolist(), "joints_3d": hint}
        written[split].append(WrittenHand(joints, uv, k, left, np.ones(len(KEYPOINTS), np.bool_), image))
    (root / "labels.json").write_text(json.dumps(labels))
    return written


def _dots(shape: tuple[int, int], background: tuple[int, int, int], uv: DoubleArray, radius: int = 3) -> Image:
    """Draw a dot for each keypoint of each hand, uv (hands, 21, 2), in a colour per finger."""
    image = np.empty((*shape, 3), np.uint8)
    image[:] = background
    colours = ((255, 255, 255), (255, 60, 60), (255, 200, 0), (0, 255, 120), (0, 160, 255), (255, 0, 255))
    for points in np.round(np.clip(uv, -1e4, 1e4)).astype(int).tolist():
        for joint, point in enumerate(points):
            opencv().circle(image, point, radius, colours[(joint + 3) // 4], -1)
    return image


def _write(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write an RGB image (height, width, 3) or a grey one (height, width) as PNG or JPEG."""
    cv2 = opencv()
    how = [cv2.IMWRITE_PNG_COMPRESSION, 1] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 95]
    data = image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
    path.write_bytes(cv2.imencode(path.suffix, data, how)[1].tobytes())

"""Photographs as training samples: fitted once, so that their keypoints mark what the hand model's keypoints mark."""

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from handtailor_jax.data.readers.photos import PhotoLabel, hand_mask, read_labels
from handtailor_jax.data.sample import Batch
from handtailor_jax.detections import detection
from handtailor_jax.errors import InputError
from handtailor_jax.fit import fit_detection
from handtailor_jax.geometry.boxes import square_around
from handtailor_jax.geometry.cameras import project
from handtailor_jax.images import crop_square, read_picture
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.render.shading import to_srgb
from handtailor_jax.results import write_atomically
from handtailor_jax.synthetic.backgrounds import procedural_background
from handtailor_jax.tailor.placement import camera_keypoints
from handtailor_jax.types import Hand

FACTOR = 2.0
"""Side of the squares that are kept, in sides of the box around the hand's keypoints."""

_WORST = 0.04  # a fit further off than this share of the hand's size has misunderstood the photograph
_VERSION = 2
_PLAIN = ("digits",)
_BACKGROUNDS = 512
_OUTSIDE = (128, 0)


@dataclasses.dataclass(frozen=True)
class PhotoSet:
    """The photographs of a split, as right hands, around which a square of `FACTOR` times their size is kept."""

    name: np.ndarray
    """(n,) path in the labels."""
    image: npt.NDArray[np.uint8]
    """(n, size, size, 3) sRGB; beyond the photograph its border goes on."""
    inside: npt.NDArray[np.uint8]
    """(n, size, size) 255 where the photograph is."""
    mask: npt.NDArray[np.uint8]
    """(n, size, size) 255 where the hand is; all 0 where that is unknown."""
    keypoints_2d: npt.NDArray[np.float32]
    """(n, 21, 2) the fitted model's keypoints, pixels of the square."""
    labelled_2d: npt.NDArray[np.float32]
    """(n, 21, 2) the labels, in their own convention."""
    joints: npt.NDArray[np.float32]
    """(n, 21, 3) the fitted model's keypoints, metres, relative to the root."""
    pose: npt.NDArray[np.float32]
    """(n, 16, 3) axis-angle, radians."""
    betas: npt.NDArray[np.float32]
    """(n, 10)."""

    def __len__(self) -> int:
        return len(self.name)

    @property
    def source(self) -> np.ndarray:
        """(n,) collection that each is from."""
        return np.asarray([name.split("/")[0] for name in self.name])

    def batch(self, indices: npt.NDArray[np.integer], image: npt.NDArray[np.uint8], weight_3d: float) -> Batch:
        """Samples with the given pictures."""
        count = len(indices)
        return Batch(
            image=image,
            keypoints_2d=self.keypoints_2d[indices],
            keypoint_weight=np.ones((count, 21), np.float32),
            intrinsics=np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)),
            joints=self.joints[indices],
            pose=self.pose[indices],
            betas=self.betas[indices],
            has_joints=np.full(count, weight_3d, np.float32),
            has_3d=np.full(count, weight_3d, np.float32),
            has_intrinsics=np.zeros(count, np.float32),
        )


def prepare_photographs(folder: Path, split: str, size: int, cache: Path) -> PhotoSet:
    """Reads, fits and cuts out the photographs of a split; a later call reads the result from the cache.

    Args:
        folder: photographs and labels.json.
        split: "train" or "val".
        size: side of the squares, pixels.
        cache: folder for the result.

    Raises:
        InputError: if a photograph, its labels or the cache cannot be used.
    """
    labels = read_labels(folder, split)
    known = json.dumps([_VERSION, size, FACTOR, [[x.name, x.keypoints_2d.tolist(), x.convention] for x in labels]])
    path = cache / f"photographs-{split}-{size}px-{hashlib.sha256(known.encode()).hexdigest()[:8]}.npz"
    if path.is_file():
        return _load(path)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache}: cannot be written to ({error.strerror}): choose another cache") from None
    hand = embedded_hand()
    rows = [_prepare(label, hand, size) for label in tqdm(labels, desc=f"fitting {split} photographs", unit="photo")]
    good = [row for row in rows if row is not None]
    if not good:
        raise InputError(f"{folder}: none of the {split} photographs could be explained by a hand: check the labels")
    columns = {field.name: np.stack([row[field.name] for row in good]) for field in dataclasses.fields(PhotoSet)}
    data = io.BytesIO()
    np.savez(data, **columns)  # type: ignore[arg-type]
    write_atomically(path, lambda temporary: temporary.write_bytes(data.getvalue()))
    return PhotoSet(**columns)


def _load(path: Path) -> PhotoSet:
    try:
        with np.load(path) as stored:
            return PhotoSet(**{field.name: stored[field.name] for field in dataclasses.fields(PhotoSet)})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is damaged ({error}): remove it, it is made again") from None


def _prepare(label: PhotoLabel, hand: HandModel, size: int) -> dict[str, np.ndarray] | None:
    picture, points, joints = read_picture(label.path), label.keypoints_2d, label.joints_3d
    if label.side == "left":
        picture = np.ascontiguousarray(picture[:, ::-1])
        points = np.stack([picture.shape[1] - 1.0 - points[:, 0], points[:, 1]], axis=-1).astype(np.float32)
        joints = None if joints is None else joints * np.asarray([-1.0, 1.0, 1.0], np.float32)
    try:
        found = fit_detection(detection(points, convention=label.convention, joints_3d=joints), hand=hand)
    except InputError as error:
        raise InputError(f"{label.path}: {error}") from None
    extent = float(np.ptp(points, axis=0).max())
    if found.reprojection_after > _WORST * extent:
        return None
    keypoints = np.asarray(_model_keypoints(hand, found), np.float32)
    box = square_around(keypoints, FACTOR)
    square, affine, _ = crop_square(picture, box, size, outside=None)
    inside, _, _ = crop_square(np.full(picture.shape[:2], 255, np.uint8), box, size, outside=0)
    mask = np.zeros((size, size), np.uint8)
    moved = keypoints @ affine[:, :2].T + affine[:, 2]
    if label.source in _PLAIN:
        seen = hand_mask(square, moved)
        mask = mask if seen is None else np.minimum(seen, inside)
    return {
        "name": np.asarray(label.name),
        "image": square,
        "inside": inside,
        "mask": mask,
        "keypoints_2d": moved,
        "labelled_2d": points @ affine[:, :2].T + affine[:, 2],
        "joints": found.joints,
        "pose": np.asarray(found.parameters.pose),
        "betas": np.asarray(found.parameters.betas),
    }


@jax.jit
def _project_model(hand: HandModel, parameters: object, camera: object) -> jax.Array:
    return project(camera, camera_keypoints(hand, parameters))  # type: ignore[arg-type]


def _model_keypoints(hand: HandModel, found: Hand) -> jax.Array:
    """The fitted model's own keypoints in the picture."""
    return _project_model(hand, found.parameters, found.camera)


def backgrounds(size: int, cache: Path, count: int = _BACKGROUNDS) -> npt.NDArray[np.uint8]:
    """Procedural backgrounds, sRGB (count, size, size, 3); a later call reads them from the cache."""
    path = cache / f"backgrounds-{count}x{size}px-{_VERSION}.npz"
    if path.is_file():
        try:
            with np.load(path) as stored:
                return stored["pictures"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: is damaged ({error}): remove it, it is made again") from None
    make = jax.jit(lambda keys: jax.lax.map(lambda key: procedural_background(key, size, jnp.dtype(jnp.float32)), keys))
    pieces = []
    for start in tqdm(range(0, count, 32), desc="backgrounds", unit="32 pictures"):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(4), i))(jnp.arange(start, start + 32))
        pieces.append(np.asarray(jnp.round(255.0 * to_srgb(jnp.clip(make(keys), 0.0, 1.0))).astype(jnp.uint8)))
    pictures = np.concatenate(pieces)[:count]
    data = io.BytesIO()
    np.savez(data, pictures=pictures)
    write_atomically(path, lambda temporary: temporary.write_bytes(data.getvalue()))
    return pictures


def composed(
    photographs: PhotoSet,
    index: int,
    random: np.random.Generator,
    pictures: npt.NDArray[np.uint8],
    pasted: float,
) -> npt.NDArray[np.uint8]:
    """One photograph (size, size, 3), before another background or with what is beyond its border filled in.

    Args:
        photographs: the set.
        index: which of them.
        random: decides.
        pictures: backgrounds of the same size.
        pasted: share of hands with a mask that are put before another background.
    """
    image, mask, inside = photographs.image[index], photographs.mask[index], photographs.inside[index]
    choice, outside, which, exposure = random.random(), random.random(), random.integers(len(pictures)), random.random()
    if mask.any() and choice < pasted:
        background = pictures[which]
        background = background[:, ::-1] if random.random() < 0.5 else background
        weight = mask
    elif outside < 0.6:
        background = np.full_like(image, _OUTSIDE[0] if outside < 0.45 else _OUTSIDE[1])
        weight = inside
    else:
        return image
    share = weight[..., None].astype(np.float32) / 255.0
    light = 0.8 + 0.4 * exposure if weight is mask else 1.0
    mixed = share * np.minimum(light * image, 255.0) + (1.0 - share) * background
    return np.round(mixed).astype(np.uint8)

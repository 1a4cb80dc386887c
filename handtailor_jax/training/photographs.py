"""Photographs as training samples: the hand model is fitted to the labels once, and its keypoints replace them."""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from handtailor_jax.data.loader import paste
from handtailor_jax.data.readers.photos import PhotoLabel, hand_mask, read_labels
from handtailor_jax.data.sample import Batch
from handtailor_jax.detections import detection
from handtailor_jax.errors import InputError
from handtailor_jax.fit import fit_detection
from handtailor_jax.geometry.boxes import hand_size, square_around
from handtailor_jax.geometry.mirror import mirror_pixels, mirror_points
from handtailor_jax.images import crop_square, read_image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.render.shading import to_srgb
from handtailor_jax.results import write_atomically
from handtailor_jax.synthetic.backgrounds import procedural_background

FACTOR = 2.0
"""Side of the stored squares as a multiple of the hand size."""

_WORST = 0.04  # largest mean reprojection error of a usable fit, in hand sizes
_VERSION = 2
_PLAIN = ("digits",)  # collections with a plain background
_BACKGROUNDS = 512

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PhotoSet:
    """The photographs of a split, mirrored to right hands and cropped to squares of `FACTOR` times the hand size."""

    name: np.ndarray
    """(n,) path in labels.json."""
    image: npt.NDArray[np.uint8]
    """(n, size, size, 3) sRGB; the border of the photograph is repeated outside of it."""
    inside: npt.NDArray[np.uint8]
    """(n, size, size) 255 inside of the photograph, 0 outside."""
    mask: npt.NDArray[np.uint8]
    """(n, size, size) 255 on the hand; all 0 if unknown."""
    keypoints_2d: npt.NDArray[np.float32]
    """(n, 21, 2) keypoints of the fitted hand model, pixels of the square."""
    labelled_2d: npt.NDArray[np.float32]
    """(n, 21, 2) labels in their own convention, pixels of the square."""
    joints: npt.NDArray[np.float32]
    """(n, 21, 3) keypoints of the fitted hand model, metres, relative to the root."""
    pose: npt.NDArray[np.float32]
    """(n, 16, 3) axis-angle, radians."""
    betas: npt.NDArray[np.float32]
    """(n, 10) shape coefficients."""

    @property
    def source(self) -> np.ndarray:
        """(n,) collection of each photograph: the first folder of its name."""
        return np.asarray([name.split("/")[0] for name in self.name])

    def batch(self, rows: npt.NDArray[np.integer], image: npt.NDArray[np.uint8], weight_3d: float) -> Batch:
        """Return samples with the given images, whose 3D labels have a weight."""
        ones = np.ones(len(rows), np.float32)
        return Batch(
            image=image,
            keypoints_2d=self.keypoints_2d[rows],
            keypoint_weight=np.ones((len(rows), 21), np.float32),
            intrinsics=np.tile(np.eye(3, dtype=np.float32), (len(rows), 1, 1)),
            joints=self.joints[rows],
            pose=self.pose[rows],
            betas=self.betas[rows],
            has_joints=np.float32(weight_3d) * ones,
            has_3d=np.float32(weight_3d) * ones,
            has_intrinsics=0.0 * ones,
        )


def prepare_photographs(folder: Path, split: str, size: int, cache: Path) -> PhotoSet:
    """Read, fit and crop the photographs of a split; later calls read the result from the cache.

    Args:
        folder: Folder of the photographs and labels.json.
        split: "train" or "val".
        size: Side of the squares, pixels.
        cache: Folder for the result.

    Raises:
        InputError: If a photograph, its label or the cache cannot be used.
    """
    labels = read_labels(folder, split)

    def make() -> Arrays:
        hand = embedded_hand()
        rows = [_prepare(each, hand, size) for each in tqdm(labels, desc=f"fitting {split} photographs", unit="photo")]
        good = [row for row in rows if row is not None]
        if not good:
            raise InputError(f"{folder}: the hand model fits none of the {split} photographs: check the labels")
        return {field.name: np.stack([row[field.name] for row in good]) for field in dataclasses.fields(PhotoSet)}

    known = json.dumps([_VERSION, size, FACTOR, [[x.name, x.keypoints_2d.tolist(), x.convention] for x in labels]])
    digest = hashlib.sha256(known.encode()).hexdigest()[:8]
    return PhotoSet(**_cached(cache / f"photographs-{split}-{size}px-{digest}.npz", make))


def _prepare(label: PhotoLabel, hand: HandModel, size: int) -> Arrays | None:
    """Return the columns of one photograph; None if the hand model does not fit its label."""
    image, points, joints = read_image(label.path), label.keypoints_2d, label.joints_3d
    if label.side == "left":
        points, image = mirror_pixels(points, image.shape[1]), np.ascontiguousarray(image[:, ::-1])
        joints = None if joints is None else mirror_points(joints)
    try:
        found = fit_detection(detection(points, convention=label.convention, joints_3d=joints), hand=hand)
    except InputError as error:
        raise InputError(f"{label.path}: {error}") from None
    if found.reprojection_after > _WORST * hand_size(points):
        return None
    # Without intrinsics a fit is in pixels, and its joints are relative to the root.
    placed = np.asarray(found.parameters.scale) * found.joints + np.asarray(found.parameters.translation)
    keypoints = placed[:, :2].astype(np.float32)
    box = square_around(keypoints, FACTOR)
    square, affine, _ = crop_square(image, box, size, outside=None)
    inside, _, _ = crop_square(np.full(image.shape[:2], 255, np.uint8), box, size, outside=0)
    moved = keypoints @ affine[:, :2].T + affine[:, 2]
    mask = hand_mask(square, moved) if label.source in _PLAIN else None
    return {
        "name": np.asarray(label.name),
        "image": square,
        "inside": inside,
        "mask": np.zeros((size, size), np.uint8) if mask is None else np.minimum(mask, inside),
        "keypoints_2d": moved,
        "labelled_2d": points @ affine[:, :2].T + affine[:, 2],
        "joints": np.asarray(found.joints),
        "pose": np.asarray(found.parameters.pose),
        "betas": np.asarray(found.parameters.betas),
    }


def backgrounds(size: int, cache: Path) -> npt.NDArray[np.uint8]:
    """Return procedural backgrounds, sRGB (count, size, size, 3); later calls read them from the cache."""

    def make() -> Arrays:
        def rendered(keys: jax.Array) -> jax.Array:
            linear = jax.lax.map(lambda key: procedural_background(key, size, jnp.dtype(jnp.float32)), keys)
            return jnp.round(255.0 * to_srgb(jnp.clip(linear, 0.0, 1.0))).astype(jnp.uint8)

        render, pieces = jax.jit(rendered), []
        for start in tqdm(range(0, _BACKGROUNDS, 32), desc="backgrounds", unit="32 images"):
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(4), i))(jnp.arange(start, start + 32))
            pieces.append(np.asarray(render(keys)))
        return {"pictures": np.concatenate(pieces)}

    return _cached(cache / f"backgrounds-{_BACKGROUNDS}x{size}px-{_VERSION}.npz", make)["pictures"]


def composed(
    photographs: PhotoSet, index: int, random: np.random.Generator, images: npt.NDArray[np.uint8], pasted: float
) -> npt.NDArray[np.uint8]:
    """Return one photograph (size, size, 3), pasted onto a background or with its outside filled in.

    Args:
        photographs: The photographs.
        index: Number of the photograph.
        random: Generator of the choices.
        images: Backgrounds of the same size.
        pasted: Share of the hands with a mask that are pasted onto a background.
    """
    image, mask, inside = photographs.image[index], photographs.mask[index], photographs.inside[index]
    choice, outside, which, exposure = random.random(), random.random(), random.integers(len(images)), random.random()
    if mask.any() and choice < pasted:
        background = images[which]
        background = background[:, ::-1] if random.random() < 0.5 else background
        lit = np.minimum((0.8 + 0.4 * exposure) * image, 255.0).round().astype(np.uint8)
        return paste(lit, mask, background)
    if outside < 0.6:
        return paste(image, inside, np.full_like(image, 128 if outside < 0.45 else 0))
    return image


def _cached(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of a file, which is made if it does not exist.

    Raises:
        InputError: If the file is damaged or cannot be written.
    """
    if path.is_file():
        try:
            with np.load(path) as stored:
                return dict(stored)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: is damaged ({error}): remove it, and it is made again") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written to ({error.strerror}): choose another cache") from None
    arrays, data = make(), io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    write_atomically(path, lambda temporary: temporary.write_bytes(data.getvalue()))
    return arrays

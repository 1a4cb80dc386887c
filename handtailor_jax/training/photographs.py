"""Photographs as training samples: fits of the hand model to their labels, and backgrounds.

The hand model is fitted to the labels once, and its keypoints replace them. Whatever takes time is kept in a cache.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from handtailor_jax.data.loader import index_stream
from handtailor_jax.data.readers.photos import PhotoLabel, hand_mask, read_labels, without_hand
from handtailor_jax.data.sample import Batch, labelled_batch
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
from handtailor_jax.training.config import TrainingConfig

Bytes = npt.NDArray[np.uint8]

_FACTOR = 2.0  # side of the stored squares of photographs as a multiple of the hand size
_WORST = 0.04  # largest mean reprojection error of a usable fit, in hand sizes
_VERSION = 2
_PLAIN = ("digits",)  # collections with a plain background
_BACKGROUNDS = 512
_SURROUNDINGS = 192  # side of photographs whose hand was removed, pixels
_BLACK = 12  # grey level up to which a border is black


@dataclasses.dataclass(frozen=True)
class PhotoSet:
    """The photographs of a split, mirrored to right hands and cropped to squares of twice the hand size."""

    name: np.ndarray
    """(n,) path in labels.json."""
    inside: Bytes
    """(n, size, size) 255 inside of the photograph, 0 outside, where the image repeats the border."""
    samples: Batch
    """Images with the keypoints, joints (relative to the root), pose and shape of the fitted hand model; masks are 0
    everywhere if unknown."""

    @property
    def collection(self) -> np.ndarray:
        """(n,) collection of each photograph: the first folder of its name."""
        return np.asarray([name.split("/")[0] for name in self.name])


def prepare_photographs(folder: Path, split: str, size: int, cache: Path, weight_3d: float = 1.0) -> PhotoSet:
    """Read, fit and crop the photographs of a split; later calls read the result from the cache.

    Args:
        folder: Folder of the photographs and labels.json.
        split: "train" or "val".
        size: Side of the squares, pixels.
        cache: Folder for the result.
        weight_3d: Weight of the joints, pose and shape.
    """
    labels = read_labels(folder, split)

    def make() -> dict[str, np.ndarray]:
        hand = embedded_hand()
        rows = [_fitted(each, hand, size) for each in tqdm(labels, desc=f"fitting {split} photographs", unit="photo")]
        good = [row for row in rows if row is not None]
        if not good:
            raise InputError(f"{folder}: the hand model fits none of the {split} photographs: check the labels")
        return {name: np.stack([row[name] for row in good]) for name in good[0]}

    known = json.dumps([_VERSION, size, _FACTOR, [[x.name, x.keypoints_2d.tolist(), x.convention] for x in labels]])
    digest = hashlib.sha256(known.encode()).hexdigest()[:8]
    found = _cached(cache / f"photographs-{split}-{size}px-{digest}.npz", make)
    fields: Any = {name: found[name] for name in ("image", "mask", "keypoints_2d", "joints", "pose", "betas")}
    fields["intrinsics"] = np.tile(np.eye(3, dtype=np.float32), (len(found["name"]), 1, 1))
    return PhotoSet(found["name"], found["inside"], labelled_batch(**fields, weight_3d=weight_3d, intrinsics_known=0.0))


def _fitted(label: PhotoLabel, hand: HandModel, size: int) -> dict[str, np.ndarray] | None:
    """Return the row of one photograph; None if the hand model does not fit its label."""
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
    box = square_around(keypoints, _FACTOR)
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
        "joints": np.asarray(found.joints),
        "pose": np.asarray(found.parameters.pose),
        "betas": np.asarray(found.parameters.betas),
    }


def photograph_stream(config: TrainingConfig) -> Any:
    """Return photographs, some pasted onto backgrounds: each collection equally often, each epoch in another order."""
    data = config.data
    assert data.photographs is not None
    found = prepare_photographs(data.photographs, "train", data.size, data.cache, data.photograph_3d)
    images = backgrounds(data.size, data.cache)

    def sample(position: int, row: int) -> Batch:
        one = jax.tree.map(lambda leaf: leaf[row], found.samples)
        random = np.random.default_rng([config.seed, position])
        return dataclasses.replace(one, image=composed(one, found.inside[row], random, images), mask=None)

    streams = []
    for number, name in enumerate(sorted(set(found.collection.tolist()))):
        rows = np.flatnonzero(found.collection == name)
        order = index_stream(len(rows), config.seed + 1 + number)
        streams.append(order.map(lambda place, rows=rows: int(rows[place])))
    return type(streams[0]).mix(streams).map_with_index(sample)


def composed(one: Batch, inside: Bytes, random: np.random.Generator, images: Bytes, pasted: float = 0.6) -> Bytes:
    """Return the image of a photograph: its outside filled in, or the hand pasted onto one of the background images.

    `inside` is the row of `PhotoSet.inside`, `pasted` the share of the hands with a mask that are pasted.
    """
    image, mask = np.asarray(one.image), np.asarray(one.mask)
    choice, outside, which, exposure = random.random(), random.random(), random.integers(len(images)), random.random()
    if mask.any() and choice < pasted:
        background = images[which]
        background = background[:, ::-1] if random.random() < 0.5 else background
        return paste(np.minimum((0.8 + 0.4 * exposure) * image, 255.0).round().astype(np.uint8), mask, background)
    if outside < 0.6:
        return paste(image, inside, np.full_like(image, 128 if outside < 0.45 else 0))
    return image


def paste(image: Bytes, mask: Bytes, background: Any) -> Bytes:
    """Blend images (..., size, size, 3) over a background by masks (..., size, size) from 0 to 255."""
    share = mask[..., None].astype(np.float32) / np.float32(255.0)
    mixed = share * image.astype(np.float32) + (np.float32(1.0) - share) * np.float32(background)
    return np.round(mixed).astype(np.uint8)


def backgrounds(size: int, cache: Path) -> Bytes:
    """Return procedural backgrounds, sRGB (count, size, size, 3); later calls read them from the cache."""

    def make() -> dict[str, np.ndarray]:
        def one(key: jax.Array) -> jax.Array:
            linear = procedural_background(key, size, jnp.dtype(jnp.float32))
            return jnp.round(255.0 * to_srgb(jnp.clip(linear, 0.0, 1.0))).astype(jnp.uint8)

        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(4), i))(jnp.arange(_BACKGROUNDS))
        return {"pictures": np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(keys))}

    return _cached(cache / f"backgrounds-{_BACKGROUNDS}x{size}px-{_VERSION}.npz", make)["pictures"]


def surroundings(folder: Path, cache: Path) -> Bytes:
    """Return the photographs of the split `train` without their hands, sRGB (count, side, side, 3), as backgrounds.

    Collections with a plain background are left out. At most 800 photographs are used, evenly spread over the names.
    """
    labels = [label for label in read_labels(folder, "train") if label.source not in _PLAIN]
    if not labels:
        raise InputError(f"{folder}: all photographs have a plain background: set data.photograph_backgrounds to False")
    chosen = [labels[i] for i in np.unique(np.linspace(0, len(labels) - 1, min(800, len(labels))).round().astype(int))]

    def make() -> dict[str, np.ndarray]:
        squares = []
        for label in tqdm(chosen, desc="removing hands from photographs", unit="photo"):
            image = without_hand(read_image(label.path), label.keypoints_2d)
            rows, columns = (np.flatnonzero(image.max(axis=(axis, 2)) > _BLACK) for axis in (1, 0))
            if not len(rows):
                continue
            image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # without black borders
            height, width = image.shape[:2]
            short = float(min(height, width))
            box = ((width - short) // 2, (height - short) // 2, short, short)
            squares.append(crop_square(image, box, _SURROUNDINGS)[0])
        return {"pictures": np.stack(squares)}

    digest = hashlib.sha256(json.dumps([[x.name, x.keypoints_2d.tolist()] for x in chosen]).encode()).hexdigest()[:8]
    return _cached(cache / f"surroundings-{_SURROUNDINGS}px-{digest}.npz", make)["pictures"]


def _cached(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of a file, which is made if it does not exist."""
    if path.is_file():
        try:
            with np.load(path) as stored:
                return dict(stored)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: is damaged ({error}): remove it to make it again") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written to ({error.strerror}): choose another cache") from None
    arrays, data = make(), io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    write_atomically(path, lambda temporary: temporary.write_bytes(data.getvalue()))
    return arrays

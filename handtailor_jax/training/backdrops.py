"""Backgrounds of training samples: generated ones, and photographs without their hands; both are kept in a cache."""

import hashlib
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

from handtailor_jax.data.readers.photos import read_labels, read_photograph, without_hand
from handtailor_jax.data.sample import Batch
from handtailor_jax.errors import InputError
from handtailor_jax.images import crop_square
from handtailor_jax.render.shading import to_srgb
from handtailor_jax.results import write_atomically
from handtailor_jax.synthetic.backgrounds import procedural_background

Bytes = npt.NDArray[np.uint8]

PLAIN = ("digits",)
"""Collections of photographs with a plain background."""

_VERSION = 2
_BACKGROUNDS = 512
_SURROUNDINGS = 192  # side of photographs whose hand was removed, pixels
_BLACK = 12  # grey level up to which a border is black


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

    return cached(cache / f"backgrounds-{_BACKGROUNDS}x{size}px-{_VERSION}.npz", make)["pictures"]


def surroundings(folder: Path, cache: Path) -> Bytes:
    """Return the photographs of the split `train` without their hands, sRGB (count, side, side, 3), as backgrounds.

    Collections with a plain background are left out. At most 800 photographs are used, evenly spread over the names.

    Raises:
        InputError: If none is left, or one cannot be read.
    """
    labels = [label for label in read_labels(folder, "train") if label.source not in PLAIN]
    if not labels:
        raise InputError(f"{folder}: all photographs have a plain background: set data.photograph_backgrounds to False")
    chosen = [labels[i] for i in np.unique(np.linspace(0, len(labels) - 1, min(800, len(labels))).round().astype(int))]

    def make() -> dict[str, np.ndarray]:
        squares = []
        for label in tqdm(chosen, desc="removing hands from photographs", unit="photo"):
            image = without_hand(read_photograph(label), label.keypoints_2d)
            rows, columns = (np.flatnonzero(image.max(axis=(axis, 2)) > _BLACK) for axis in (1, 0))
            if len(rows):  # cut black borders off
                image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            height, width = image.shape[:2]
            short = float(min(height, width))
            box = ((width - short) // 2, (height - short) // 2, short, short)
            squares.append(crop_square(image, box, _SURROUNDINGS)[0])
        return {"pictures": np.stack(squares)}

    digest = hashlib.sha256(json.dumps([[x.name, x.keypoints_2d.tolist()] for x in chosen]).encode()).hexdigest()[:8]
    return cached(cache / f"surroundings-{_SURROUNDINGS}px-{digest}.npz", make)["pictures"]


def cached(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
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
    arrays: Any = make()
    write_atomically(path, lambda temporary: np.savez(temporary, **arrays))
    return arrays

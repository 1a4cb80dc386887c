"""Images as arrays: reading them from files, and cropping the square input of a network."""

import contextlib
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Num

from handtailor_jax.errors import InputError, check_file, install, naming, numbers, warn
from handtailor_jax.types import Box, Numbers

Image = npt.NDArray[np.uint8]
"""An RGB image (height, width, 3)."""

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .bmp .tif .tiff .webp .gif .avif .heic .heif .jp2 .ppm .pgm".split()  # noqa: SIM905
)
"""Suffixes by which files of a folder are recognised as images."""

# Largest number of pixels of an image; OpenCV reads the environment variable when it is imported.
_LIMIT, _MOST_PIXELS = "OPENCV_IO_MAX_IMAGE_PIXELS", 2**28
_MOST_BYTES = 2**31
_ONE_THREAD = threading.Lock()


def opencv() -> Any:
    """Import cv2, or raise an `InputError` with the command that installs it."""
    limit = os.environ.setdefault(_LIMIT, str(_MOST_PIXELS))
    if not limit.isdecimal() or not int(limit):  # OpenCV would end the process
        raise InputError(f"the environment variable {_LIMIT} is {limit!r}: give a whole number of pixels, or remove it")
    try:
        import cv2
    except ImportError as error:
        # Uninstalling another OpenCV package also removes the cv2 folder of this one, which pip does not notice.
        remedy = "pip install --force-reinstall --no-deps opencv-python-headless"
        raise InputError(f"OpenCV cannot be imported ({error}): {remedy}") from None
    return cv2


def read_image(path: str | Path) -> Image:
    """Read an image file as uint8 RGB, rotated by its EXIF orientation; 16-bit, grey and RGBA images are converted.

    Pillow, if it is installed, reads files that OpenCV cannot read, with pillow-heif also HEIC. Images of more than
    2^28 pixels are refused; the environment variable OPENCV_IO_MAX_IMAGE_PIXELS sets another limit.

    Raises:
        InputError: If the file is missing or cannot be read.
    """
    path = Path(path)
    try:
        if check_file(path) > _MOST_BYTES:
            raise InputError(f"{path}: the image has more than {_MOST_BYTES} bytes: give a smaller file")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the image cannot be read ({error.strerror}): correct its path") from None
    with naming(path):
        # Pillow reads these first, because OpenCV ignores the orientation in the container of AVIF images.
        heif = data[4:8] == b"ftyp" and re.search(rb"mif1|msf1|hei|avi[fs]", data[8:40]) is not None
        short = _cut_short(data)
        for decode in (_by_pillow, _by_opencv) if heif else (_by_opencv, _by_pillow):
            if not short and (image := decode(data)) is not None:
                return image
        if heif and not short:
            reason = "is a HEIC or AVIF image that is damaged or lacks a decoder"
            raise InputError(f"{reason}: {install('heif')}, or convert it to JPEG")
        raise InputError("is not an image that can be read: give a complete PNG or JPEG")


def _by_opencv(data: bytes) -> Image | None:
    cv2 = opencv()
    try:
        with quiet(cv2):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        if "MAX_IMAGE_PIXELS" in str(error):
            raise _too_large() from None
        return None
    return None if image is None else as_rgb(image[..., ::-1])


def _by_pillow(data: bytes) -> Image | None:
    try:
        import PIL.Image
        import PIL.ImageOps

        with contextlib.suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
        # Pillow warns about large images. One thread at a time, because warning filters apply to the whole process.
        with _ONE_THREAD, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with PIL.Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > int(os.environ.get(_LIMIT, _MOST_PIXELS)):
                    raise _too_large()
                return np.array(PIL.ImageOps.exif_transpose(image).convert("RGB"))
    except InputError:
        raise
    except Exception:  # Pillow is missing; a damaged file can raise any exception
        return None


def _too_large() -> InputError:
    limit = os.environ.get(_LIMIT, _MOST_PIXELS)
    return InputError(f"has more than {limit} pixels: reduce it, or set the environment variable {_LIMIT}")


def as_rgb(image: Any) -> Image:
    """Convert an array to uint8 RGB (H, W, 3).

    The array may be uint8, uint16 (taken for the least of 8, 10, 12, 14 and 16 bits that hold its largest value) or
    float with values 0 to 1; grey (H, W) or (H, W, 1), RGB, or RGBA, of which alpha is ignored. Pillow images with a
    palette or in another colour space are converted.

    Raises:
        InputError: If it is anything else.
    """
    if image is None or isinstance(image, str | Path):
        hint = "give an array, such as the result of read_image; cv2.imread returns None for a file that it cannot read"
        raise InputError(f"image is {image!r}: {hint}")
    if getattr(image, "mode", "RGB") in ("1", "P", "PA", "LA", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")  # a Pillow image
    try:
        array = np.asarray(image)
    except ValueError:
        raise InputError("image has rows of different lengths: give an array, such as read_image returns") from None
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or min(array.shape[:2]) < 1:
        raise InputError(f"image has shape {np.shape(image)}: give (H, W, 3), (H, W, 4), (H, W, 1) or (H, W) pixels")
    if array.dtype == np.uint16:
        # Cameras store 10, 12 or 14 bits in 16.
        bits = next(bits for bits in (8, 10, 12, 14, 16) if array.max() < 2**bits)
        array = (array.astype(np.uint32) * 255 // (2**bits - 1)).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0.0 or array.max() > 1.0:
            raise InputError("image has float values outside 0 to 1: scale them, or give uint8 values")
        array = np.round(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"image has type {array.dtype}: give uint8, uint16 or float values")
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else np.ascontiguousarray(array[..., :3])


def whole(image: Num[Numbers, "height width ..."]) -> Box:
    """Return the box of the whole image."""
    return 0.0, 0.0, float(image.shape[1]), float(image.shape[0])


def box_numbers(box: Any) -> Box:
    """Convert a box to four floats; `check_box` also compares it with its image.

    Raises:
        InputError: If it is not four finite numbers, or has no area.
    """
    values = np.asarray(numbers("box", box))
    if values.shape != (4,) or not np.isfinite(values).all():
        raise InputError(f"box is {' '.join(str(box).split())[:80]}: give four finite numbers x y w h")
    x, y, w, h = map(float, values)
    if w <= 0.0 or h <= 0.0:
        raise InputError(f"box {x:g} {y:g} {w:g} {h:g} has no area: give its left, top, width and height in pixels")
    return x, y, w, h


def check_box(box: Any, image: Num[Numbers, "height width ..."]) -> Box:
    """Check a box and convert it to four floats.

    Raises:
        InputError: If it is not four finite numbers, is too small or too large, or lies outside the image.
    """
    x, y, w, h = box_numbers(box)
    height, width = image.shape[:2]
    if x >= width or y >= height or x + w <= 0.0 or y + h <= 0.0:
        raise InputError(f"box {x:g} {y:g} {w:g} {h:g} lies outside the {width} x {height} image: give pixels of it")
    if max(w, h) < 4.0:
        raise InputError(
            f"box {x:g} {y:g} {w:g} {h:g} is smaller than 4 pixels: give pixels, not fractions of the image"
        )
    if max(w, h) > 2 * max(width, height) + 4096:
        raise InputError(
            f"box {x:g} {y:g} {w:g} {h:g} is far larger than the {width} x {height} image: give pixels of it"
        )
    inside = (min(x + w, width) - max(x, 0.0)) * (min(y + h, height) - max(y, 0.0))
    if inside < 0.5 * w * h:
        outside = f"more than half of the box {x:g} {y:g} {w:g} {h:g} lies outside the {width} x {height} image"
        warn(f"{outside}: give left, top, width and height, not two corners")
    return x, y, w, h


def crop_square(
    image: Image, box: Box, size: int, outside: int | None = 128
) -> tuple[Image, npt.NDArray[np.float32], Box]:
    """Crop the square around a box's centre with the box's longer side and resample it to `size` pixels.

    The square is first rounded to whole pixels, so the returned affine map is exact; `transform_camera` applies it to
    the camera.

    The image may have one channel (height, width). Pixels outside it have the value `outside`; None repeats its border.

    Returns:
        The crop, the affine map (2, 3) from pixels of the image to pixels of the crop, and the square.
    """
    x, y, w, h = box
    side = max(1, round(max(w, h)))
    left, top = round(x + 0.5 * (w - side)), round(y + 0.5 * (h - side))
    square = _window(image, left, top, side, outside)
    if side != size:
        cv2 = opencv()
        # Averaging over areas avoids aliasing when shrinking; enlarging needs interpolation.
        square = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
    zoom = size / side
    # OpenCV resamples about pixel centres: u' + 1/2 = zoom (u - left + 1/2).
    offsets = zoom * (0.5 - left) - 0.5, zoom * (0.5 - top) - 0.5
    affine = np.asarray([[zoom, 0.0, offsets[0]], [0.0, zoom, offsets[1]]], np.float32)
    return np.ascontiguousarray(square), affine, (float(left), float(top), float(side), float(side))


def _window(image: Image, left: int, top: int, side: int, outside: int | None) -> Image:
    height, width = image.shape[:2]
    if left >= 0 and top >= 0 and left + side <= width and top + side <= height:
        return image[top : top + side, left : left + side]
    rows, columns = np.arange(top, top + side), np.arange(left, left + side)
    window = image[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)[None, :]]
    if outside is not None:
        window[(rows < 0) | (rows >= height)] = outside
        window[:, (columns < 0) | (columns >= width)] = outside
    return window


def _cut_short(data: bytes) -> bool:
    """Return whether an image file is truncated; decoders only warn on stderr or fill the rest with grey."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" not in data
    if data[:2] == b"\xff\xd8":
        place = 2  # metadata come first, and may hold a whole thumbnail with an end of its own
        while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        return b"\xff\xd9" not in data[place:]
    if data[4:8] == b"ftyp":  # HEIC, AVIF: boxes that begin with their size
        place, kinds = 0, set()
        while place + 8 <= len(data):
            size = int.from_bytes(data[place : place + 4], "big")
            size = int.from_bytes(data[place + 8 : place + 16], "big") if size == 1 else size or len(data) - place
            kinds.add(data[place + 4 : place + 8])
            place += max(size, 8)
        return place > len(data) or b"mdat" not in kinds
    return not data


@contextlib.contextmanager
def quiet(cv2: Any) -> Iterator[None]:
    """Silence OpenCV's warnings, because the errors of this package report unreadable images and videos."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)

"""Images as arrays, and crops."""

import cv2
import numpy as np
import pytest

from handtailor_jax.errors import InputError
from handtailor_jax.images import as_rgb, check_box, crop_square, read_image


def dot(height, width, u, v, sigma):
    """Return a grey image with a bright Gaussian at (u, v)."""
    y, x = np.mgrid[:height, :width]
    value = 128.0 + 127.0 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2.0 * sigma**2))
    return np.repeat(np.round(value).astype(np.uint8)[..., None], 3, axis=2)


def centre(image):
    weight = np.maximum(image[..., 0].astype(float) - 135.0, 0.0)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.asarray([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize(
    "box", [(100, 40, 200, 120), (100.4, 40.7, 150, 151), (-20, 20, 240, 240), (150, 90, 64, 64), (0, 0, 320, 240)]
)
def test_affine_map_of_a_crop_moves_its_pixels(box):
    image = dot(240, 320, 182.3, 121.6, 6.0)
    crop, affine, square = crop_square(image, check_box(box, image), 128)
    assert crop.shape == (128, 128, 3)
    expected = affine[:, :2] @ np.asarray([182.3, 121.6]) + affine[:, 2]
    np.testing.assert_allclose(centre(crop), expected, atol=0.08)
    # The square has the box's centre, to a pixel, and its longer side.
    assert square[2] == square[3] == round(max(box[2:]))
    assert abs(square[0] + square[2] / 2 - box[0] - box[2] / 2) <= 1.0


def test_outside_of_the_image_is_grey():
    crop, affine, _ = crop_square(np.zeros((10, 10, 3), np.uint8), (-10.0, 0.0, 20.0, 10.0), 20)
    assert (crop[:, :10] == 128).all()
    assert (crop[5:15, 10:] == 0).all()
    np.testing.assert_allclose(affine, [[1, 0, 10], [0, 1, 5]])


def test_kinds_of_arrays():
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    np.testing.assert_array_equal(as_rgb(rgb), rgb)
    np.testing.assert_array_equal(as_rgb(np.dstack([rgb, rgb[..., :1]])), rgb)
    np.testing.assert_array_equal(as_rgb(rgb.astype(np.uint16) * 257), rgb)
    np.testing.assert_array_equal(as_rgb(rgb / 255.0), rgb)
    grey = rgb[..., 0]
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(as_rgb(array), np.repeat(grey[..., None], 3, axis=2))
    assert as_rgb(np.zeros((1, 1), np.uint8)).shape == (1, 1, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((2, 2, 3), np.int64),
        np.full((2, 2, 3), 2.0),
        np.full((2, 2, 3), np.nan),
    ],
)
def test_invalid_images_are_refused(array):
    with pytest.raises(InputError, match="image"):
        as_rgb(array)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((1, 2, 3), "four"),
        ((0, 0, np.nan, 5), "four"),
        ((0, 0, 0, 5), "no area"),
        ((0, 0, 5, -1), "no area"),
        ((30, 0, 5, 5), "outside"),
        ((0, -9, 5, 5), "outside"),
    ],
)
def test_invalid_boxes_are_refused(box, reason):
    with pytest.raises(InputError, match=reason):
        check_box(box, np.zeros((20, 30, 3), np.uint8))


def test_files_of_every_kind(tmp_path):
    """16-bit, grey and RGBA files become 8-bit RGB; EXIF orientation rotates the image."""
    rgb = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), rgb[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(path), rgb)
    cv2.imwrite(str(path), rgb[..., 0])
    np.testing.assert_array_equal(read_image(path), np.repeat(rgb[..., :1], 3, axis=2))
    cv2.imwrite(str(path), np.dstack([rgb[..., ::-1], rgb[..., 0]]))
    np.testing.assert_array_equal(read_image(path), rgb)

    smooth = dot(24, 48, 10.0, 6.0, 4.0)
    done, data = cv2.imencode(".jpg", smooth)
    assert done
    # Orientation 6: turn clockwise by a quarter to look upright.
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    jpeg = data.tobytes()
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    turned = read_image(path)
    assert turned.shape == (48, 24, 3)
    np.testing.assert_allclose(centre(turned), [23 - 6.0, 10.0], atol=0.3)

"""Folders of photographs in the formats of phones and cameras: read, or named."""

import builtins
import io

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from handtailor_jax.errors import InputError, InputWarning
from handtailor_jax.images import _cut_short, read_image
from handtailor_jax.inputs import find_sources

PIXELS = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 64, 3)).copy()
HEIC = (24).to_bytes(4, "big") + b"ftypheic" + bytes(4) + b"mif1heic" + (300).to_bytes(4, "big") + b"mdat" + bytes(292)


def test_what_is_passed_over_is_counted_and_named(tmp_path):
    for name in ("a.jpg", "b.HEIC", "c.gif", "d.mp4", "e.JFIF", "f.mpo", "g.avif", "n.txt", "r.cr2", ".hidden.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "below").mkdir()
    with pytest.warns(InputWarning, match=r"2 files ignored, without a suffix of images or videos: n\.txt, r\.cr2$"):
        found = find_sources([str(tmp_path)])
    assert [source.id for source in found] == list("abcdefg")
    for number in range(9):
        (tmp_path / f"{number}.dng").write_bytes(b"x")
    with pytest.warns(InputWarning, match=r"11 files ignored.*0\.dng, 1\.dng, 2\.dng, 3\.dng, 4\.dng, \.\.\.$"):
        find_sources([str(tmp_path)])


def test_broken_links_are_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "missing.jpg")
    for given in (tmp_path, tmp_path / "*.jpg"):
        with pytest.warns(InputWarning, match=r"1 file ignored, links to missing files: b\.jpg$"):
            assert [source.id for source in find_sources([str(given)])] == ["a"]
    with pytest.raises(InputError, match=r"b\.jpg: is a link to a missing file"):
        find_sources([str(tmp_path / "b.jpg")])


@pytest.mark.parametrize("name", ["labels.json", "list.CSV"])
def test_lists_are_no_images(tmp_path, name):
    (tmp_path / name).write_text("[]")
    with pytest.raises(InputError, match=rf"is neither an image nor a video: .* --inputs .*{name}"):
        find_sources([str(tmp_path / name)])


@pytest.mark.parametrize("name", ["a.gif", "a.jfif", "a.mpo", "a.jp2", "a.avif", "a.tiff", "a.webp", "a.ppm"])
def test_formats_that_opencv_or_pillow_reads(tmp_path, name):
    try:
        PIL.Image.fromarray(PIXELS).save(tmp_path / name)
    except (OSError, KeyError, ValueError):
        pytest.skip("this build of Pillow cannot write the format")
    found = read_image(tmp_path / name)
    assert found.shape == PIXELS.shape
    assert np.abs(found.astype(int) - PIXELS).mean() < 6


def test_heic_is_named_with_its_remedy(tmp_path):
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(
        InputError, match=r"a\.heic: is a HEIC or AVIF image that .* lacks a decoder: pip install '.\[heif\]'"
    ):
        read_image(tmp_path / "a.heic")


@pytest.mark.parametrize(
    "content", [HEIC[:-1], HEIC[:24], HEIC.replace(b"mif1heic", b"isommp42").replace(b"heic", b"mp42")]
)
def test_images_of_phones_that_are_cut_short_or_are_videos(tmp_path, content):
    (tmp_path / "a.heic").write_bytes(content)
    with pytest.raises(InputError, match="is not an image that can be read: give a complete"):
        read_image(tmp_path / "a.heic")


def test_the_end_of_a_thumbnail_is_not_the_end_of_a_photograph():
    thumbnail, photograph = io.BytesIO(), io.BytesIO()
    PIL.Image.fromarray(PIXELS[::4, ::4].copy()).save(thumbnail, "JPEG")
    PIL.Image.fromarray(PIXELS).save(photograph, "JPEG")
    metadata = b"Exif\0\0" + thumbnail.getvalue()
    head = b"\xff\xd8\xff\xe1" + (len(metadata) + 2).to_bytes(2, "big") + metadata
    whole = head + photograph.getvalue()[2:]
    assert not _cut_short(whole)
    assert all(_cut_short(whole[:length]) for length in (len(head), len(head) + 50, len(whole) - 2))


@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
def test_avif_that_is_cut_short(tmp_path, part):
    try:
        PIL.Image.fromarray(PIXELS).save(tmp_path / "a.avif")
    except (OSError, KeyError, ValueError):
        pytest.skip("this build of Pillow cannot write the format")
    content = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.avif").write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match="is not an image that can be read: give a complete"):
        read_image(tmp_path / "a.avif")


@pytest.mark.parametrize(("name", "extra"), [("a.heic", "pillow_heif"), ("a.heif", "pillow_heif"), ("a.avif", None)])
def test_images_of_phones(tmp_path, name, extra):
    """They are read and turned as their container says; HEIC with the extra heif."""
    if extra is not None:
        pytest.importorskip(extra).register_heif_opener()
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    try:
        PIL.Image.fromarray(PIXELS).save(tmp_path / name, exif=exif)
    except (OSError, KeyError, ValueError):
        pytest.skip("this build of Pillow cannot write the format")
    with PIL.Image.open(tmp_path / name) as stored:
        expected = np.asarray(PIL.ImageOps.exif_transpose(stored).convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / name), expected)
    assert expected.shape == ((64, 48, 3) if name == "a.avif" else PIXELS.shape) or extra


def test_without_pillow(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **more):
        if name.startswith(("PIL", "pillow")):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(InputError, match="is not an image that can be read"):
        read_image(tmp_path / "a.png")
    assert cv2.imwrite(str(tmp_path / "b.png"), PIXELS)
    assert read_image(tmp_path / "b.png").shape == PIXELS.shape

"""Videos read and written, JSON lines, and errors with them."""

import json
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from handtailor_jax.errors import InputError
from handtailor_jax.images import opencv
from handtailor_jax.video.files import Video, json_lines, video_writer

ROOT = Path(__file__).resolve().parents[1]
SIZE = (48, 64)
COUNT = 12


def grey_image(i, size=SIZE):
    """Brightness tells the number, colour the channel order."""
    return np.broadcast_to(np.asarray([20 * i, 10 * i, 5], np.uint8), (*size, 3)).copy()


def brightness(frame):
    return None if frame.image is None else round(float(frame.image[..., 0].mean()) / 20.0)


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "video.mp4"
    with video_writer(path, 25.0) as write:
        for i in range(COUNT):
            write(grey_image(i))
    return path


def test_what_is_written_is_read(video):
    with Video(video) as opened:
        assert (opened.rate, opened.count) == (25.0, COUNT)
        frames = list(opened)
    assert [frame.index for frame in frames] == list(range(COUNT))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(COUNT) / 25.0, atol=1e-3)
    assert [brightness(frame) for frame in frames] == list(range(COUNT))
    for i, frame in enumerate(frames):
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
        assert np.abs(frame.image.astype(int) - grey_image(i)).max() < 8, "RGB"
    assert [file.name for file in video.parent.iterdir()] == ["video.mp4"]


def mjpeg(path):
    """A video of independent JPEG images, so that one of them can be damaged."""
    cv2 = opencv()
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25.0, SIZE[::-1])
    for i in range(COUNT):
        writer.write(np.ascontiguousarray(grey_image(i)[..., ::-1]))
    writer.release()
    return path.read_bytes()


def test_undecodable_frames_are_reported_and_passed_over(tmp_path):
    path = tmp_path / "video.avi"
    raw = bytearray(mjpeg(path))
    # A chunk is its name, its length and a JPEG.
    place = -1
    for _ in range(5):
        place = raw.index(b"00dc", place + 1)
    length = struct.unpack_from("<I", raw, place + 4)[0]
    raw[place + 8 : place + 8 + length] = bytes(length)
    path.write_bytes(raw)
    with Video(path) as opened:
        frames = list(opened)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert np.all(np.diff([frame.time for frame in frames]) > 0.0)
    seen = [brightness(frame) for frame in frames]
    assert seen == [None if i == 4 else i for i in range(COUNT)]


def test_a_video_that_is_cut_short_gives_what_it_has(tmp_path):
    path = tmp_path / "video.avi"
    raw = mjpeg(path)
    path.write_bytes(raw[: len(raw) * 2 // 3])
    with Video(path) as opened:
        seen = [brightness(frame) for frame in opened]
    whole = [number for number in seen if number is not None]
    assert whole == list(range(len(whole)))
    assert len(whole) >= COUNT // 3


@pytest.mark.parametrize("content", [b"", b"this is no video", bytes(5000), "header"])
def test_files_that_are_no_video(tmp_path, video, content):
    path = tmp_path / "other.mp4"
    path.write_bytes(video.read_bytes()[:200] if content == "header" else content)
    with pytest.raises(InputError, match=r"other.mp4: is no video: give") as caught:
        Video(path)
    assert "\n" not in str(caught.value)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none.mp4: the video cannot be read \(No such file"):
        Video(tmp_path / "none.mp4")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory"):
        Video(tmp_path)
    with pytest.raises(InputError, match=r"webcam 97: does not answer: connect it"):
        Video(97)


def test_no_warning_reaches_the_user(tmp_path):
    (tmp_path / "other.mp4").write_bytes(b"this is no video")
    code = """
        import contextlib, pathlib, sys
        from handtailor_jax.errors import InputError
        from handtailor_jax.video.files import Video
        for source in (pathlib.Path(sys.argv[1]), 97):
            with contextlib.suppress(InputError):
                Video(source)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "other.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("size", [(49, 65), (2, 2), (101, 30)])
def test_odd_sizes_lose_their_last_row_or_column(tmp_path, size):
    path = tmp_path / "video.mp4"
    with video_writer(path, 30.0) as write:
        for i in range(3):
            write(grey_image(i, size))
    with Video(path) as opened:
        shapes = {frame.image.shape for frame in opened}
    assert shapes == {(size[0] // 2 * 2, size[1] // 2 * 2, 3)}


def write_video(path, *images, error=None):
    with video_writer(path, 30.0) as write:
        for each in images:
            write(each)
        if error is not None:
            raise error


def test_an_interrupted_video_leaves_nothing(tmp_path):
    path = tmp_path / "video.mp4"
    with pytest.raises(KeyError):
        write_video(path, grey_image(1), error=KeyError())
    with pytest.raises(ValueError, match=r"has the shape \(20, 20, 3\), expected"):
        write_video(path, grey_image(1), grey_image(2, (20, 20)))
    write_video(path)
    assert list(tmp_path.iterdir()) == []


def test_videos_that_cannot_be_written(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match=r"cannot be written"):
        write_video(tmp_path / "a" / "f.mp4", grey_image(1))
    (tmp_path / "video.mp4").mkdir()
    with pytest.raises(InputError, match=r"cannot be written"):
        write_video(tmp_path / "video.mp4", grey_image(1))
    assert {file.name for file in tmp_path.iterdir()} == {"a", "video.mp4"}


def test_json_lines_come_one_by_one_and_appear_at_the_end(tmp_path):
    path = tmp_path / "video.jsonl"
    with json_lines(path) as write:
        for i in range(3):
            write({"frame": i, "text": "ü"})
            (temporary,) = tmp_path.iterdir()
            assert temporary != path
            assert len(temporary.read_text("utf-8").splitlines()) == i + 1
    assert [json.loads(line)["frame"] for line in path.read_text("utf-8").splitlines()] == [0, 1, 2]
    with pytest.raises(TypeError):
        lines(tmp_path / "other.jsonl", [1, object()])
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match=r"cannot be written"):
        lines(path / "f.jsonl", [])


def lines(path, contents):
    with json_lines(path) as write:
        for content in contents:
            write(content)

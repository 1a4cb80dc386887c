"""Videos read and written, JSON lines, and errors with them."""

import fractions
import json
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest

from handtailor_jax.errors import InputError
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
            write(grey_image(i), i / 25.0)
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


def mjpeg(path, damaged=()):
    """A video of independent JPEG images, of which some are damaged."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuvj420p"
        for i in range(COUNT):
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey_image(i))):
                length = packet.size
                if i in damaged:
                    packet, old = av.Packet(bytes(length)), packet
                    packet.pts, packet.dts, packet.time_base, packet.stream = old.pts, old.dts, old.time_base, stream
                file.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize("damaged", [(4,), (0, 1), (3, 4, 5), (10, 11)])
def test_undecodable_frames_are_reported_and_passed_over(tmp_path, damaged):
    mjpeg(tmp_path / "video.avi", damaged)
    with Video(tmp_path / "video.avi") as opened:
        frames = list(opened)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert np.all(np.diff([frame.time for frame in frames]) > 0.0)
    seen = [None if i in damaged else i for i in range(COUNT)]
    while seen[-1] is None:  # undecodable frames at the end are its end
        seen.pop()
    assert [brightness(frame) for frame in frames] == seen


def test_a_video_without_frames(tmp_path):
    mjpeg(tmp_path / "video.avi", range(COUNT))
    with Video(tmp_path / "video.avi") as opened, pytest.raises(InputError, match="no frame could be decoded"):
        list(opened)


def test_a_video_that_is_cut_short_gives_what_it_has(tmp_path):
    path = tmp_path / "video.avi"
    raw = mjpeg(path)
    path.write_bytes(raw[: len(raw) * 2 // 3])
    with Video(path) as opened:
        seen = [brightness(frame) for frame in opened]
    whole = [number for number in seen if number is not None]
    assert whole == list(range(len(whole)))
    assert len(whole) >= COUNT // 3


TIMES = (0.0, 0.04, 0.2, 0.24, 0.5, 1.0)  # of a variable frame rate


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mp4", "libx265"),
        ("a.webm", "libvpx-vp9"),
        ("a.mkv", "libsvtav1"),
        ("a.mov", "mpeg4"),
        ("a.mts", "libx264"),
        ("a.wmv", "wmv2"),
        ("a.flv", "flv1"),
        ("a.3gp", "mpeg4"),
    ],
)
def test_every_format_gives_the_frames_at_their_times(tmp_path, name, codec):
    """Also where the sound is three times as long as the pictures, and where the frame rate varies."""
    path = tmp_path / name
    container = {".mts": "mpegts", ".wmv": "asf"}.get(path.suffix)
    with av.open(str(path), "w", format=container) as file:
        pictures = file.add_stream(codec, rate=25, options={"bf": "0"} if codec == "libx264" else {})
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        # Windows Media and FLV count milliseconds; some encoders refuse finer clocks than their format has.
        clock = fractions.Fraction(1, 1000 if codec != "mpeg4" else 25)
        times = TIMES if codec != "mpeg4" else tuple(round(25 * time) / 25 for time in TIMES)
        pictures.codec_context.time_base = clock
        sound = file.add_stream({".webm": "libopus", ".3gp": "aac"}.get(path.suffix, "aac"), rate=48000, layout="mono")
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(grey_image(i, (64, 64)))
            frame.pts, frame.time_base = round(time / clock), clock
            file.mux(pictures.encode(frame))
        file.mux(pictures.encode(None))
        for i in range(150):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
            silence.pts, silence.sample_rate = 960 * i, 48000
            file.mux(sound.encode(silence))
        file.mux(sound.encode(None))
    with Video(path) as opened:
        frames = list(opened)
    assert [brightness(frame) for frame in frames] == list(range(len(times)))
    np.testing.assert_allclose([frame.time for frame in frames], times, atol=2e-3)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_phones_turn_their_videos(tmp_path, turn):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = 255  # upper left
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        file.mux(stream.encode(None))
    # The matrix of the track header in 16.16 numbers: (p', q') = (a p + c q, b p + d q).
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    matrix = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    raw = bytearray(path.read_bytes())
    place = raw.index(b"tkhd") + 44
    raw[place : place + 36] = matrix
    path.write_bytes(raw)
    with Video(path) as opened:
        (frame,) = opened
    # With x right and y down, this matrix turns clockwise.
    assert frame.image.shape[:2] == ((48, 64) if turn in (0, 180) else (64, 48))
    assert np.abs(frame.image.astype(int) - np.rot90(image, -turn // 90)).mean() < 8


def test_overlays_are_as_long_as_their_source(tmp_path):
    path = tmp_path / "video.mp4"
    with video_writer(path, 25.0) as write:
        for i, time in enumerate(TIMES):
            write(grey_image(i), time)
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        assert file.duration / av.time_base == pytest.approx(TIMES[-1] + 1 / 25.0, abs=2e-3)
    with Video(path) as opened:
        np.testing.assert_allclose([frame.time for frame in opened], TIMES, atol=1e-3)


@pytest.mark.parametrize("content", [b"", b"this is no video", bytes(5000), "header"])
def test_files_that_are_no_video(tmp_path, video, content):
    path = tmp_path / "other.mp4"
    path.write_bytes(video.read_bytes()[:200] if content == "header" else content)
    with pytest.raises(InputError, match=r"other.mp4: is not a video: give") as caught:
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
            write(grey_image(i, size), i / 30.0)
    with Video(path) as opened:
        shapes = {frame.image.shape for frame in opened}
    assert shapes == {(size[0] // 2 * 2, size[1] // 2 * 2, 3)}


def write_video(path, *images, error=None):
    with video_writer(path, 30.0) as write:
        for i, each in enumerate(images):
            write(each, i / 30.0)
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

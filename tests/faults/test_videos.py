"""Videos whose length is an estimate, whose frames are damaged, and whose names look like addresses."""

import cv2
import numpy as np
import pytest

from handtailor_jax import predict
from handtailor_jax.errors import InputError
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.predict import HandFiles, Source
from handtailor_jax.video.files import Video, video_writer

IMAGE = np.full((48, 64, 3), 128, np.uint8)


@pytest.fixture
def decoder(monkeypatch, tmp_path):
    """Replaces OpenCV's decoder: `frames` says which frames can be decoded, `announced` is the estimated count."""
    (tmp_path / "a.mkv").write_bytes(b"x")

    def decoder(frames, announced):
        class Capture:
            def __init__(self, name):
                self.position = -1

            def isOpened(self):
                return True

            def get(self, name):
                return {cv2.CAP_PROP_FPS: 25.0, cv2.CAP_PROP_FRAME_COUNT: announced}.get(name, 40.0 * self.position)

            def grab(self):
                self.position += 1
                return self.position < len(frames) and frames[self.position]

            def retrieve(self):
                return True, IMAGE

            def release(self):
                pass

        monkeypatch.setattr(cv2, "VideoCapture", Capture)
        return tmp_path / "a.mkv"

    return decoder


@pytest.mark.parametrize(
    ("frames", "announced", "decoded"),
    [
        ([True] * 12, 60, [True] * 12),
        ([True] * 12, 5, [True] * 12),
        ([True] * 12, -1, [True] * 12),
        ([True, False, True] + [False] * 3, 40, [True, False, True]),
        ([False, False, True], 3, [False, False, True]),
    ],
)
def test_frames_are_what_the_decoder_yields(decoder, frames, announced, decoded):
    with Video(decoder(frames, announced)) as video:
        found = list(video)
    assert [frame.image is not None for frame in found] == decoded
    assert [frame.index for frame in found] == list(range(len(decoded)))
    assert all(np.diff([frame.time for frame in found]) > 0)


def test_a_video_without_frames(decoder):
    with Video(decoder([False] * 5, 60)) as video, pytest.raises(InputError, match="no frame could be decoded"):
        list(video)


@pytest.mark.parametrize(("frames", "skipped"), [([True, False, False, True] * 3, 1), ([True, False, True] * 3, 0)])
def test_half_of_the_frames_cannot_be_decoded(hand, decoder, tmp_path, monkeypatch, capsys, frames, skipped):
    class Follow:
        def __init__(self, *_):
            self.frames = 0

        def __call__(self, image, time):
            self.frames += 1
            return []

    monkeypatch.setattr(predict, "HandVideo", Follow)
    source = Source("a", decoder(frames, len(frames)), video=True)
    files = HandFiles(tmp_path / "out", None, overlay=False)
    tailor = object.__new__(HandTailor)
    tailor.hand = hand
    assert predict.predict([source], tailor, files) == skipped
    assert len((tmp_path / "out" / "a.jsonl").read_text().splitlines()) == len(frames)
    assert ("6 of 12 frames could not be decoded" in capsys.readouterr().err) == bool(skipped)


def test_names_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    for name in ("12:30.mp4", "http:a.mp4", "file:b.mp4"):
        with video_writer(Path(name), 25.0) as write:
            for _ in range(3):
                write(IMAGE)
        with Video(Path(name)) as video:
            assert len(list(video)) == 3

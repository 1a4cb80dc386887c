"""Videos whose frames are damaged, and whose names look like addresses."""

import numpy as np
import pytest

from handtailor_jax import predict
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.predict import HandFiles, Source
from handtailor_jax.video.files import Video, video_writer
from tests.test_video import COUNT, mjpeg

IMAGE = np.full((48, 64, 3), 128, np.uint8)


@pytest.mark.parametrize("damaged", [(1, 2, 4, 5, 7, 8), (1, 4, 7)])
def test_half_of_the_frames_cannot_be_decoded(hand, tmp_path, monkeypatch, capsys, damaged):
    class Follow:
        def __init__(self, *_):
            self.frames = 0

        def __call__(self, image, time):
            self.frames += 1
            return []

    monkeypatch.setattr(predict, "HandVideo", Follow)
    mjpeg(tmp_path / "a.avi", damaged)
    source = Source("a", tmp_path / "a.avi", video=True)
    files = HandFiles(tmp_path / "out", None, overlay=False)
    tailor = object.__new__(HandTailor)
    tailor.hand = hand
    skipped = len(damaged) >= COUNT / 2
    assert predict.predict([source], tailor, files) == skipped
    assert len((tmp_path / "out" / "a.jsonl").read_text().splitlines()) == COUNT
    assert ("6 of 12 frames could not be decoded" in capsys.readouterr().err) == skipped


def test_names_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    for name in ("12:30.mp4", "http:a.mp4", "file:b.mp4"):
        with video_writer(Path(name), 25.0) as write:
            for i in range(3):
                write(IMAGE, i / 25.0)
        with Video(Path(name)) as video:
            assert len(list(video)) == 3

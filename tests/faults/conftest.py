"""What the tests of bad input share: each runs a command in this process and looks at its status and its one line."""

import json

import cv2
import numpy as np
import pytest

from handtailor_jax import cli


@pytest.fixture
def refused(capfd):
    """Runs a command that must end with status 2; the line on stderr without its beginning."""

    def refused(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        assert end.value.code == 2
        assert printed.err.count("\n") == 1, printed.err
        assert printed.err.startswith("handtailor: error: ")
        return printed.err.removeprefix("handtailor: error: ").rstrip("\n")

    return refused


@pytest.fixture(scope="session")
def entry():
    """An object with the keypoints of a packaged example."""
    return {"id": "one", "keypoints_2d": json.loads(cli.EXAMPLES.read_text())[0]["keypoints_2d"]}


@pytest.fixture
def image(tmp_path):
    """The path of an image."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    assert cv2.imwrite(str(tmp_path / "image.png"), pixels)
    return tmp_path / "image.png"

"""Names, pipes, devices and streams that gave a traceback or no end."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from handtailor_jax import cli
from handtailor_jax.commands import command, keep_compiled_programs
from handtailor_jax.detections import read_detections
from handtailor_jax.errors import InputError, InputWarning, read_file, read_json, warn
from handtailor_jax.images import read_image
from handtailor_jax.inputs import find_sources
from handtailor_jax.video.files import Video, video_writer

LONG = 300 * "x"


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


READERS = {
    "fit": lambda path, _: ("fit", path),
    "fit --hand": lambda path, hands: ("fit", hands, "--hand", path),
    "predict": lambda path, _: ("predict", path),
    "predict --weights": lambda path, hands: ("predict", hands, "--weights", path),
    "predict --hand": lambda path, hands: ("predict", hands, "--hand", path),
    "synth": lambda path, hands: ("synth", "--backgrounds", path),
    "convert-official": lambda path, hands: ("convert-official", path, hands.with_name("new.safetensors")),
    "export --hand": lambda path, hands: ("export", "tailor", hands.with_name("new"), "--hand", path),
    "export --weights": lambda path, hands: ("export", "hand-module", hands.with_name("new"), "--weights", path),
}
OUT = ("fit", "predict", "synth")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["pipe", "device", "long", "below a file"])
def test_inputs_that_are_no_files(capfd, entry, pipe, tmp_path, reader, name):
    """Every command ends with status 2 and one line about the path, at once."""
    (tmp_path / "in.json").write_text(json.dumps(entry))
    places = {"device": "/dev/zero", "long": tmp_path / LONG, "below a file": tmp_path / "in.json" / "x"}
    arguments = READERS[reader](places.get(name, pipe), tmp_path / "in.json")
    arguments = (*arguments, *(("--out", tmp_path / "out") if arguments[0] in OUT else ()))
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    assert end.value.code == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(("handtailor: error: ", "handtailor: skipped: "))
    assert str(places.get(name, pipe)) in errors[0]


@pytest.mark.parametrize("ending", [".png", ".mp4"])
def test_pipes_among_the_inputs(tmp_path, ending):
    path = tmp_path / f"pipe{ending}"
    os.mkfifo(path)
    with pytest.raises(InputError, match="pipe or device"):
        read_image(path) if ending == ".png" else Video(path)


@pytest.mark.parametrize("out", [LONG, "in.json", "in.json/x"])
@pytest.mark.parametrize("reader", ["fit", "synth", "convert"])
def test_outputs_that_cannot_be(refused, entry, tmp_path, out, reader):
    (tmp_path / "in.json").write_text(json.dumps(entry))
    if reader == "convert":
        assert refused("convert-official", tmp_path / "in.json", tmp_path / out / "x.safetensors")
    else:
        assert out in refused(
            *(("fit", tmp_path / "in.json") if reader == "fit" else ("synth",)), "--out", tmp_path / out
        )


def test_the_working_folder_is_no_new_dataset(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (".", tmp_path):
        assert "is the working folder" in refused("synth", "--count", 1, "--size", 32, "--out", out)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(entry, tmp_path, encoding):
    (tmp_path / "in.json").write_text(json.dumps(entry), encoding)
    assert read_detections(tmp_path / "in.json")[0].id == "one"


def test_integers_of_thousands_of_digits(tmp_path):
    (tmp_path / "in.json").write_text('{"id": ' + 5000 * "9" + "}")
    with pytest.raises(InputError, match=r"in\.json: holds a number of thousands of digits"):
        read_json(tmp_path / "in.json", "remedy")


def test_names_that_are_no_utf_8(tmp_path, image):
    odd = tmp_path / os.fsdecode(b"\xff.png")
    try:
        odd.write_bytes(image.read_bytes())
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    (source,) = find_sources([str(odd)])
    assert source.id == "\N{REPLACEMENT CHARACTER}"
    assert read_image(odd).shape == (48, 64, 3)
    video = tmp_path / os.fsdecode(b"\xff.mp4")
    with video_writer(video, 25.0) as write:
        write(np.zeros((16, 16, 3), np.uint8), 0.0)
    with Video(video) as opened:
        assert len(list(opened)) == 1


def test_users_without_a_home(monkeypatch):
    """Path.home raises for them; programs are not kept then."""
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    keep_compiled_programs()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PermissionError(13, "Permission denied", "a/b"), 2, "prog: error: a/b: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "prog: error: No space left on device\n"),
        (OSError("something"), 2, "prog: error: something\n"),
        (MemoryError(), 2, "prog: error: not enough memory: give smaller inputs\n"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, "prog: error: not enough memory: give smaller inputs\n"),
        (InputError("of two\nlines"), 2, "prog: error: of two lines\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
        (ConnectionResetError(104, "Connection reset by peer"), 141, ""),
        (UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "x"), 2, "prog: error: 'a\\udcff': the name is not UTF-8"),
    ],
)
def test_errors_of_the_system(error, status, line, capsys):
    @command("prog")
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == status
    assert capsys.readouterr().err.startswith(line)


def test_errors_of_the_program_keep_their_traceback():
    @command("prog")
    def main():
        raise ValueError

    with pytest.raises(ValueError) as error:  # noqa: PT011
        main()
    assert "please report it" in error.value.__notes__[0]


def test_warnings_are_one_line(capsys):
    @command("prog")
    def main():
        for _ in range(3):
            warn("two\nlines")

    main()
    assert capsys.readouterr().err == "prog: warning: two lines\n"
    with pytest.warns(InputWarning, match="two"):
        warn("two")


PROGRAM = """
import pathlib
import sys
from tqdm import tqdm
from handtailor_jax.commands import command
from handtailor_jax.results import appearing
@command("prog")
def main():
    if "file" in sys.argv:  # whose writer prints to a pipe that nobody reads
        with appearing(pathlib.Path("written")):
            for _ in range(100_000):
                print("line", file=sys.stderr)
    for _ in tqdm(range(3), disable="bar" not in sys.argv):
        tqdm.write("stderr", file=sys.stderr) if "bar" in sys.argv else None
    for _ in range(100_000):
        print("h\\u00e4nd \\udcff")
main()
"""


@pytest.mark.parametrize(
    ("shell", "status", "line"),
    [
        ("{} | head -1", 141, ""),
        ("{} > /dev/full", 2, "prog: error: No space left on device\n"),
        ("{} >&-", 0, ""),
        ("{} 2>&- | head -1", 141, ""),
        ("{} bar 2>&-", 0, ""),
        ("{} bar 2>&1 | head -1", 141, ""),
        ("{} file 2>&1 | head -1", 141, ""),
        ("PYTHONIOENCODING=ascii {} > /dev/null", 0, ""),
    ],
)
def test_streams(tmp_path, shell, status, line):
    """Standard output and error whose reader ends, that are full, closed or ASCII."""
    (tmp_path / "program.py").write_text(PROGRAM)
    run = "set -o pipefail; " + shell.format(f"{sys.executable} program.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        ["bash", "-c", run], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, line)


def test_too_many_pixels(tmp_path):
    """A small file that would take gigabytes is refused by its header; the limit can be raised."""
    assert cv2.imwrite(str(tmp_path / "bomb.png"), np.zeros((20000, 20000), np.uint8))
    assert cv2.imwrite(str(tmp_path / "small.png"), np.zeros((20, 20), np.uint8))
    program = (
        "import pathlib, sys\nfrom handtailor_jax.images import read_image\n"
        "try: print(read_image(pathlib.Path(sys.argv[1])).shape)\nexcept ValueError as error: print(error)"
    )
    for name, limit, printed in (
        ("bomb.png", None, "bomb.png: has more than 268435456 pixels: reduce it, or set the environment variable"),
        ("small.png", "399", "small.png: has more than 399 pixels"),
        ("small.png", "400", "(20, 20, 3)"),
    ):
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
        environment |= {} if limit is None else {"OPENCV_IO_MAX_IMAGE_PIXELS": limit}
        run = [sys.executable, "-c", program, name]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(printed)


def test_whole_files(tmp_path):
    with pytest.raises(InputError, match="this is a folder; x"):
        read_file(tmp_path, 10, "x")
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(InputError, match="at most 10 expected; x"):
        read_file(tmp_path / "large", 10, "x")


@pytest.mark.skipif(importlib.util.find_spec("orbax") is None, reason="training needs Orbax")
def test_checkpoints_with_other_numbers_are_damaged(tmp_path, monkeypatch):
    from handtailor_jax.training import state as states
    from tests.test_checkpoints import state

    checkpoints = states.Checkpoints(tmp_path)
    whole = states._named
    monkeypatch.setattr(states, "_named", lambda tree: whole(tree) | {states._CHECKSUM: np.asarray(1, np.uint32)})
    checkpoints.save(state(1))
    checkpoints.finish()
    monkeypatch.undo()
    with pytest.raises(InputError, match="checksum differs"):
        checkpoints.restore(state(1))
    checkpoints.close()

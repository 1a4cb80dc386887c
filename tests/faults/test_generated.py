"""Generated JSON, npz, image headers and pickles: read, or refused in one line; nothing else is raised.

tests/test_fuzz_files.py mutates files of more kinds, in processes with limits of memory and time.
"""

import contextlib
import io
import json
import os
import pickle
import zipfile

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handtailor_jax import cli
from handtailor_jax.data.readers.photos import read_labels
from handtailor_jax.data.readers.rhd import _annotation
from handtailor_jax.detections import read_detections
from handtailor_jax.errors import InputError, InputWarning
from handtailor_jax.evaluation.paper.sources import read_predictions
from handtailor_jax.hand_module.torch_file import read_state_dict
from handtailor_jax.images import read_image
from handtailor_jax.mano.loading import load_hand

COUNT = int(os.environ.get("HANDTAILOR_FUZZ_FILES", "60"))
generated = settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
POINTS = json.loads(cli.EXAMPLES.read_text())[0]["keypoints_2d"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generated")


def read_or_refused(reader, path, content):
    """Whether a file was read; if not, by an InputError of one line that names it."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        reader(path)
    except InputError as error:
        refused = str(error)
    else:
        return True
    assert "\n" not in refused
    assert path.name in refused
    return False


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
rows = st.lists(st.lists(st.floats() | st.integers(), min_size=2, max_size=3), min_size=20, max_size=22)
NAMES = ("id", "side", "convention", "order", "confidence", "camera", "joints_3d", "pose", "pca")
NAMES += ("global_rotation", "flat_hand_mean", "betas", "fixed_betas", "hand_length", "image")
entries = st.fixed_dictionaries(
    {"keypoints_2d": st.just(POINTS) | rows | plain},
    optional={name: plain | rows | st.lists(st.floats(), min_size=3, max_size=21) for name in NAMES},
)


@generated
@given(entry=entries)
@pytest.mark.filterwarnings("ignore::handtailor_jax.errors.InputWarning")
def test_keypoints(folder, entry):
    read_or_refused(read_detections, folder / "in.json", json.dumps(entry))


@generated
@given(
    entry=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("split", "side", "keypoints_2d", "convention"), plain | rows)
    )
)
@pytest.mark.filterwarnings("ignore::handtailor_jax.errors.InputWarning")
def test_labels(folder, entry):
    for content in (json.dumps({"a.jpg": entry}), json.dumps(entry), json.dumps([entry])[:-3]):
        read_or_refused(lambda path: read_labels(path.parent, "train"), folder / "labels.json", content)


shapes = st.lists(st.integers(0, 23), max_size=4).map(tuple)
kinds = st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "c8", "U3", "S2", "M8[s]", ">f4"])
arrays = st.builds(np.zeros, shapes, kinds)
PREDICTIONS = {"keypoints_2d": np.zeros((2, 21, 2)), "joints_3d": np.zeros((2, 21, 3)), "confidence": np.ones((2, 21))}


@generated
@given(
    changes=st.dictionaries(st.sampled_from([*PREDICTIONS, "pose", "betas", "order"]), arrays, max_size=3),
    cut=st.integers(0, 400),
    compressed=st.booleans(),
)
def test_predictions(folder, changes, cut, compressed):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **{**PREDICTIONS, **changes})
    content = file.getvalue()
    read_or_refused(lambda path: read_predictions(path, 2), folder / "other.npz", content[: len(content) - cut // 4])


@generated
@given(
    changes=st.dictionaries(
        st.sampled_from(["template", "faces", "tip_vertices", "v_template", "f"]), arrays, min_size=1
    )
)
def test_hand_models(folder, changes):
    file = io.BytesIO()
    np.savez(file, **changes)
    assert not read_or_refused(load_hand, folder / "hand.npz", file.getvalue())


def encoded(ending):
    done, data = cv2.imencode(ending, np.resize(np.arange(256, dtype=np.uint8), (48, 40, 3)))
    assert done
    return data.tobytes()


IMAGES = {ending: encoded(ending) for ending in (".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm", ".jp2")}
IMAGES[".gif"] = (
    b"GIF89a\x0c\x00\x10\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x0c\x00\x10\x00\x00\x02\x01;"
)
IMAGES[".heic"] = (24).to_bytes(4, "big") + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(60)


@generated
@given(
    ending=st.sampled_from(sorted(IMAGES)),
    edits=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 30),
)
def test_headers_of_images(folder, ending, edits, cut):
    data = bytearray(IMAGES[ending])
    for place, value in edits:
        data[place % len(data)] = value
    with contextlib.suppress(InputWarning):
        read_or_refused(read_image, folder / f"a{ending}", bytes(data[: len(data) - cut]))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


@generated
@given(
    value=values,
    protocol=st.integers(0, 5),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    zipped=st.booleans(),
)
def test_pickles(folder, value, protocol, edits, zipped):
    """Without edits they are pickles of something else than what is expected; nothing in them is called."""
    data = bytearray(pickle.dumps(value, protocol))
    for place, byte in edits:
        data[place % len(data)] = byte
    content = bytes(data)
    read_or_refused(load_hand, folder / "MANO_RIGHT.pkl", content)
    read_or_refused(_annotation, folder / "anno.pickle", content)
    if zipped:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("m/data.pkl", content)
        content = file.getvalue()
    read_or_refused(read_state_dict, folder / "m.pt", content)

"""npz archives from strangers: limits are checked before anything is unpacked."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from handtailor_jax.errors import InputError
from handtailor_jax.mano.safe_arrays import parse_npz, read_npz


def npz(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def zipped(compression=zipfile.ZIP_DEFLATED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(array=None, header=None):
    file = io.BytesIO()
    if header is None:
        np.save(file, array)
    else:
        np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_of_numpy(tmp_path, rng, save):
    arrays = {
        "plain": rng.random((3, 4)),
        "columns": np.asfortranarray(rng.random((3, 4, 2))),
        "big_endian": rng.random(3).astype(">f4"),
        "half": rng.random(3).astype(np.float16),
        "flags": np.asarray([True, False]),
        "text": np.asarray("some text"),
        "bytes": np.asarray([b"ab", b"c"]),
        "scalar": np.asarray(3),
        "empty": np.zeros((0, 3)),
    }
    path = tmp_path / "arrays.npz"
    path.write_bytes(npz(save, **arrays))
    got = read_npz(path)
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array, strict=True)
        assert got[name].flags.writeable
    assert list(read_npz(path, ["half", "missing"])) == ["half"]


def test_messages_name_the_file(tmp_path):
    for content, message in (
        (b"", "the file is empty"),
        (b"PK\x03\x04", "damaged or cut short"),
        (npz(a=np.ones(3))[:-30], "damaged or cut short"),
        (npz(a=np.ones(300)), "the file has .* bytes; at most 1000 expected"),
    ):
        path = tmp_path / "arrays.npz"
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            read_npz(path, most_bytes=1000)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_npz(tmp_path / "missing.npz")


HUGE = {"descr": "<f8", "fortran_order": False, "shape": (10**9,)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or cut short"),
        (npz(a=np.asarray([{}], object)), "pickled object"),
        (npz(a=np.zeros(3, [("x", "f4")])), "elements of type"),
        (npz(a=np.zeros(3, complex)), "elements of type"),
        (npz(a=np.zeros(3, "M8[s]")), "elements of type"),
        (zipped(a=npy(header=HUGE)), "takes 8000000000 bytes by its header, but 0 are stored"),
        (zipped(a=npy(header={**HUGE, "shape": (2**62, 2**62)})), "by its header"),
        (zipped(a=npy(header={**HUGE, "shape": (-1, -8)})), "impossible shape"),
        (zipped(a=npy(header={**HUGE, "shape": (0,) * 40})), "impossible shape"),
        (zipped(a=npy(np.ones(3)) + b"more"), "but 28 are stored"),
        (zipped(a=npy(np.ones(3))[:-8]), "but 16 are stored"),
        (zipped(a=b"\x93NUMPY\x02\x00" + b"\xff" * 4), "format version"),
        (zipped(a=b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535), "damaged"),
        (zipped(a=b"no array"), "damaged"),
        (zipped(zipfile.ZIP_BZIP2, a=npy(np.ones(3))), "unusual compression"),
        (zipped(zipfile.ZIP_LZMA, a=npy(np.ones(3))), "unusual compression"),
        (npz(**{f"a{n}": np.ones(1) for n in range(1001)}), "more than 1000 members"),
        (npz(a=np.ones(3)).replace(np.ones(1).tobytes(), np.zeros(1).tobytes()), "damaged"),
    ],
)
def test_archives_that_are_refused(content, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_npz(content)
    assert "\n" not in str(caught.value)


def test_a_small_file_of_a_large_array():
    content = npz(np.savez_compressed, a=np.zeros(2**26, np.uint8), b=np.ones(3))
    tracemalloc.start()
    with pytest.raises(InputError, match="its arrays take 67108992 bytes; at most 1048576 expected"):
        parse_npz(content, ["a"], most_bytes=2**20)
    np.testing.assert_array_equal(parse_npz(content, ["b"], most_bytes=2**20)["b"], np.ones(3))
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()

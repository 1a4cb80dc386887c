"""The restricted pickle reader: what it reads, what it refuses, and that hostile files stay small and quick."""

import collections
import contextlib
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.torch_file import read_state_dict
from handtailor_jax.mano.loading import load_mano
from handtailor_jax.mano.safe_arrays import NUMPY_GLOBALS, UnreadableArray, array_of
from handtailor_jax.mano.safe_pickle import (
    Call,
    ForeignGlobal,
    Global,
    Limits,
    PickleCutShort,
    Reference,
    UnreadablePickle,
    unpickle,
)

LIMITS = Limits(opcodes=20_000, text=10**6)


def read(data, allowed=lambda module, name: True, **options):
    return unpickle(data, allowed, LIMITS, **options).value


# --- what is read -----------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=40, deadline=None)
@given(plain, st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_plain_values(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=40, deadline=None)
@given(texts, st.integers(0, 2))
def test_plain_values_of_old_protocols(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


def test_byte_strings_of_python_2():
    every = bytes(range(256))
    for data in (
        b"S" + repr(every)[1:].encode() + b"\n.",
        b"T\x00\x01\x00\x00" + every + b".",
        b"U\xff" + every[:255] + b".",
    ):
        assert every.decode("latin1").startswith(read(data))
        assert len(read(data)) >= 255


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays(rng, protocol):
    for array in (
        rng.random((3, 4)),
        rng.random((3, 4)).astype(">f4"),
        np.asfortranarray(rng.random((3, 4))),
        np.arange(5, dtype=np.uint8),
        np.zeros((0, 3)),
        np.asarray(1.5, np.float16),
    ):
        got = array_of(read(pickle.dumps(array, protocol), lambda *name: name in NUMPY_GLOBALS))
        np.testing.assert_array_equal(got, array)
        assert got.shape == array.shape
        assert got.dtype.isnative
        assert got.flags.writeable


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_ordered_dictionaries_and_sets(protocol):
    assert read(pickle.dumps(collections.OrderedDict(b=1, a=2), protocol)) == {"b": 1, "a": 2}
    got = read(pickle.dumps({1, 2}, protocol))
    numbers = got.arguments[0] if type(got) is Call else got
    assert sorted(numbers) == [1, 2]


def test_an_ordered_dictionary_of_python_2():
    assert read(b"\x80\x02ccollections\nOrderedDict\n](](U\x01aK\x01e](U\x01bK\x02ee\x85R.") == {"a": 1, "b": 2}


def test_every_end_is_reported(rng):
    data = pickle.dumps({"a": rng.random(3), "b": ["text", 1, 2.5]}, 4)
    for length in range(len(data)):
        with pytest.raises(PickleCutShort):
            read(data[:length])


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_are_read_only():
    """Nothing of a record can change after its check."""
    for record in (Global("a", "b"), Call(Global("a", "b"), ()), Reference(("storage", 1))):
        assert not hasattr(record, "__dict__")
        assert not hasattr(record, "__setstate__")
        for name in ("name", "arguments", "id", "other"):
            with pytest.raises(AttributeError, match="read-only"):
                setattr(record, name, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cm\nf\n}b.", "sets the state of an object that has none"),
        (b"U\x01aQ}b.", "sets the state of an object that has none"),
        (b"]}b.", "sets the state of an object that has none"),
        (b"cm\nf\n)R}b}b.", "sets the state of an object that has none"),
        (b"cm\nf\nU\x01aK\x01s.", "sets entries of an object that is not a dictionary"),
        (b"cm\nf\n)RU\x01aK\x01s.", "sets entries of an object that is not a dictionary"),
        (b"cm\nf\n)RK\x01a.", "appends to an object that is not a list"),
        (b"cm\nf\n)R(K\x01e.", "appends to an object that is not a list"),
        (b"cm\nf\n)R)R.", "calls an object that is not a function or class"),
        (b"cm\nf\n]R.", "calls an object that is not a function or class"),
        (b"}(U\x01aK\x01U\x01bu.", "does not fit its operands"),
        (b"(im\nf\n.", "no opcode of a data file"),
        (b"\x82\x01.", "no opcode of a data file"),
        (b"\x97.", "no opcode of a data file"),
        (b"0.", "does not fit its operands"),
        (b"K\x01\x86.", "does not fit its operands"),
        (b"h\x00.", "refers to value 0, which it has not stored"),
        (b"F1.0junk\n.", "does not fit its operands"),
        (b"I" + b"9" * 5000 + b"\n.", "has a number or name of 5000 characters"),
        (b"S'\\q'\n.", "unknown escape"),
        (b"Sabc\n.", "without quotes"),
    ],
)
def test_opcodes_that_are_refused(data, message):
    with pytest.raises(UnreadablePickle, match=message):
        read(data, references=True)


def test_names_are_checked_before_use():
    with pytest.raises(ForeignGlobal, match=r"os\.system"):
        read(b"cos\nsystem\n(U\x04echotR.", lambda module, name: False)
    with pytest.raises(UnreadablePickle, match="outside the file"):
        read(b"U\x01aQ.")


@pytest.mark.parametrize(
    "state", [b"(K\x01K\x03\x85", b"(K\x01)cnumpy\ndtype\nU\x02O8\x85R\x89]t", b"(K\x01K\xff\x85Nt"]
)
def test_records_that_are_no_arrays(state):
    with pytest.raises((UnreadableArray, UnreadablePickle)):
        array_of(read(b"cnumpy.core.multiarray\n_reconstruct\n)R" + state + b"b."))


def test_sizes_of_arrays_are_checked():
    def array(shape, code=b"f8", raw=bytes(16)):
        dtype = b"cnumpy\ndtype\nU\x02" + code + b"\x85R(K\x03U\x01<t" + b"b"
        return b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + shape + dtype + b"\x89U%c" % len(raw) + raw + b"tb."

    assert array_of(read(array(b"K\x02\x85"))).shape == (2,)
    for shape in (b"K\x03\x85", b"J\xff\xff\xff\xff\x85", b"U\x01a\x85", b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85"):
        with pytest.raises(UnreadableArray):
            array_of(read(array(shape)))
    for code in (b"f3", b"O8", b"V8"):
        with pytest.raises(UnreadableArray, match="element type"):
            array_of(read(array(b"K\x02\x85", code)))


# --- hostile files ----------------------------------------------------------------------------------------------------


BOMBS = {
    "memo index": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "memo index of protocol 0": b"Np2147483647\n.",
    "key of nested tuples": b"\x80\x02)q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"}h\x00Ns.",
    "set of nested tuples": b"\x80\x04)q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"\x8f(h\x00\x90.",
    "declared text": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.",
    "declared bytes": b"\x80\x04B" + struct.pack("<I", 2**31) + b"abc.",
    "declared array": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "declared number": b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b"abc.",
    "declared frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "long number": b"L" + b"9" * 10**6 + b"L\n.",
    "marks": b"(" * 10**4 + b".",
    "opcodes": b"]" * 10**5,
    "deep lists": b"\x80\x02" + b"]" * 3000 + b"a" * 2999 + b".",
    "shared lists": b"\x80\x02]q\x00" + b"0](h\x00h\x00eq\x00" * 60 + b".",
    "shared lists as arrays": b"\x80\x02]q\x00(K\x01K\x02e" + b"0](h\x00h\x00eq\x00" * 30 + b"}U\x01fh\x00s.",
    "text": b"\x80\x02" + (b"T\xa0\x86\x01\x00" + bytes(100_000) + b"0") * 20 + b"N.",
    "colliding keys": b"\x80\x02}("
    + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(1, 3200))
    + b"u.",
}


def bounded(action):
    """Peak memory (bytes) and time (seconds) of an action."""
    tracemalloc.start()
    start = time.process_time()
    try:
        action()
    finally:
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, seconds


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_small_and_quick(name):
    def action():
        with contextlib.suppress(UnreadablePickle):
            read(BOMBS[name])

    peak, seconds = bounded(action)
    assert peak < 100 * 2**20
    assert seconds < 5.0


@pytest.mark.parametrize("name", sorted(set(BOMBS) - {"opcodes"}))  # the checks of this test run are slow
def test_readers_survive_bombs(tmp_path, name):
    from handtailor_jax.data.readers.rhd import _annotation

    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    for content, reader, error in (
        (BOMBS[name], load_mano, InputError),
        (BOMBS[name], _annotation, InputError),
        (BOMBS[name], read_state_dict, InputError),
        (magic + BOMBS[name], read_state_dict, InputError),
    ):
        path = tmp_path / "MANO_RIGHT.pkl"
        path.write_bytes(content)

        def action(path=path, reader=reader, error=error):
            with pytest.raises(error) as caught:
                reader(path)
            assert "\n" not in str(caught.value)

        peak, seconds = bounded(action)
        assert peak < 300 * 2**20
        assert seconds < 5.0

"""PyTorch checkpoints read without PyTorch: both file formats, views, element types, and files that must be refused."""

import collections
import contextlib
import io
import pickle
import runpy
import sys
import types
import zipfile

import numpy as np
import pytest

from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.torch_file import read_state_dict

KINDS = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
}
MAGIC = 0x1950A86A20F9469CFC6C


class Storage:
    def __init__(self, values, kind=None, device="cpu"):
        self.values = np.ascontiguousarray(values).ravel()
        self.kind = kind or KINDS[self.values.dtype.name]
        self.device = device


class Tensor:
    """What torch.save makes of a tensor: a call of _rebuild_tensor_v2."""

    def __init__(self, storage, shape, strides, offset=0):
        self.storage = storage
        self.arguments = (offset, tuple(shape), tuple(strides), False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (self.storage, *self.arguments)


class Parameter(Tensor):
    def __reduce__(self):
        tensor = Tensor(self.storage, *self.arguments[1:3], self.arguments[0])
        return sys.modules["torch._utils"]._rebuild_parameter, (tensor, True, collections.OrderedDict())


def tensor(values, **known):
    values = np.asarray(values)
    strides = [stride // values.itemsize for stride in np.array(values, order="C").strides]
    return Tensor(Storage(values, **known), values.shape, strides)


@pytest.fixture
def torch(monkeypatch):
    """The names that PyTorch's pickles refer to, so that they can be written; removed before anything is read."""
    names = {
        "torch": [f"{kind}Storage" for kind in (*KINDS.values(), "BFloat16", "ComplexFloat")],
        "torch._utils": ["_rebuild_tensor_v2", "_rebuild_parameter"],
    }
    for name, members in names.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, type(member, (), {"__module__": name, "__qualname__": member}))
        monkeypatch.setitem(sys.modules, name, module)
    return sys.modules["torch"]


def dump(content, storages, torch, legacy, views):
    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if not isinstance(thing, Storage):
                return None
            key = storages.setdefault(id(thing), (str(len(storages)), thing))[0]
            pid = ("storage", getattr(torch, f"{thing.kind}Storage"), key, thing.device, thing.values.size)
            return (*pid, views.get(id(thing))) if legacy else pid

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def checkpoint(content, torch, monkeypatch, *, legacy=False, big_endian=False, extra=(), views=None, compress=False):
    """The bytes of a checkpoint file."""
    storages = {}
    pickled = dump(content, storages, torch, legacy, views or {})
    monkeypatch.delitem(sys.modules, "torch")
    order = ">" if big_endian else "<"
    data = {key: s.values.astype(s.values.dtype.newbyteorder(order)) for key, s in storages.values()}
    file = io.BytesIO()
    if legacy:
        sizes = {"short": 2, "int": 4, "long": 4}
        for part in (MAGIC, 1001, {"protocol_version": 1001, "little_endian": not big_endian, "type_sizes": sizes}):
            pickle.dump(part, file, protocol=2)
        file.write(pickled)
        pickle.dump(list(data), file, protocol=2)
        for values in data.values():
            file.write(np.asarray(values.size, f"{order}i8").tobytes() + values.tobytes())
        return file.getvalue()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        if big_endian:
            archive.writestr("archive/byteorder", "big")
        for key, values in data.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())
        archive.writestr("archive/version", "3\n")
        for name, raw in extra:
            archive.writestr(name, raw)
    return file.getvalue()


@pytest.fixture
def read(tmp_path, torch, monkeypatch):
    """Writes a checkpoint and reads it."""

    def read(content, **options):
        path = tmp_path / "model.pt"
        with monkeypatch.context() as patch:
            path.write_bytes(checkpoint(content, torch, patch, **options))
            patch.setitem(sys.modules, "torch", None)  # reading must do without it
            return read_state_dict(path)

    return read


BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@BOTH
@pytest.mark.parametrize("big_endian", [False, True])
def test_every_element_type(read, rng, legacy, big_endian):
    wanted = {name: rng.integers(0, 2, (2, 3)).astype(name) for name in KINDS} | {"scalar": np.asarray(7)}
    got = read({"model": {n: tensor(a) for n, a in wanted.items()}}, legacy=legacy, big_endian=big_endian)
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, strict=True)
        assert got[name].flags.c_contiguous
        assert got[name].flags.writeable
        assert got[name].dtype.isnative


@BOTH
def test_bfloat16_becomes_float32(read, legacy):
    values = np.asarray([1.0, -2.5, 3.140625, np.inf], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    got = read({"model": {"w": tensor(upper, kind="BFloat16")}}, legacy=legacy)
    np.testing.assert_array_equal(got["w"], values, strict=True)


@BOTH
def test_views_of_one_storage(read, legacy):
    base = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    shared = Storage(base, device="cuda:0")
    got = read(
        {
            "model": {
                "all": Tensor(shared, (4, 6), (6, 1)),
                "transposed": Parameter(shared, (6, 4), (1, 6)),
                "part": Tensor(shared, (2, 3), (6, 1), offset=8),
                "repeated": Tensor(shared, (3, 2), (0, 1), offset=22),
                "none": Tensor(shared, (0, 5), (5, 1), offset=24),
            }
        },
        legacy=legacy,
    )
    wanted = {
        "all": base,
        "transposed": base.T,
        "part": base[1:3, 2:5],
        "repeated": np.tile(base[3, 4:], (3, 1)),
        "none": np.zeros((0, 5), np.float32),
    }
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, strict=True)
    got["all"][0, 0] = -1.0
    assert got["transposed"][0, 0] == 0.0


def test_storage_views_of_the_legacy_format(read):
    values = Storage(np.arange(10.0, dtype=np.float32))
    content = {"model": {"w": Tensor(values, (3,), (1,), offset=1)}}
    got = read(content, legacy=True, views={id(values): ("view", 4, 5)})
    np.testing.assert_array_equal(got["w"], np.asarray([5.0, 6.0, 7.0], np.float32), strict=True)
    with pytest.raises(InputError, match=r"reaches beyond"):
        read(content, legacy=True, views={id(values): ("view", 8, 3)})
    with pytest.raises(InputError, match=r"'w': reaches beyond the 3 numbers"):
        read(content, legacy=True, views={id(values): ("view", 4, 3)})


@BOTH
def test_what_is_beside_the_model_is_left_out(read, legacy):
    state = collections.OrderedDict(w=tensor(np.ones(3, np.float32)))
    state._metadata = collections.OrderedDict([("", {"version": 1})])
    optimiser = {"state": {0: {"exp_avg": tensor(np.ones(3))}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}]}
    beside = {"epoch": 12, "loss": np.float64(0.5), "note": "text", "optimizer": optimiser, "none": None}
    assert list(read({"model": state, **beside}, legacy=legacy)) == ["w"]
    assert list(read(state, legacy=legacy)) == ["w"], "a bare state dict"


@BOTH
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "no entry 'model' and is no state dict itself"),
        ({"net": {"w": tensor(np.ones(2))}}, "no entry 'model'"),
        ({"model": {}}, "'model' is no state dict"),
        ({"model": {"w": 3.0}}, "'w' in 'model' is no tensor"),
        ([1, 2], "no dictionary"),
        ({"model": {"w": tensor(np.ones(2)), "f": io.BytesIO}}, "refers to '_io.BytesIO'"),
        ({"model": {"w": tensor(np.ones(2, np.int64), kind="ComplexFloat")}}, "refers to 'torch.ComplexFloatStorage'"),
        ({"model": {"w": Tensor(Storage(np.ones(5)), (2, 3), (3, 1))}}, "'w': reaches beyond the 5 numbers"),
        ({"model": {"w": Tensor(Storage(np.ones(5)), (2,), (1,), offset=4)}}, "reaches beyond"),
        ({"model": {"w": Tensor(Storage(np.ones(5)), (2,), (1,), offset=-1)}}, "negative"),
        ({"model": {"w": Tensor(Storage(np.ones(5)), (2,), (-1,), offset=1)}}, "negative"),
        ({"model": {"w": Tensor(Storage(np.ones(1)), (2**40,), (0,))}}, "more numbers than the file can hold"),
        ({"model": {"w": Tensor(Storage(np.ones(1)), (2**62, 2**62), (0, 0))}}, "more numbers"),
        ({"model": {"w": Tensor(Storage(np.ones(1)), ("1",), (0,))}}, "whole numbers"),
        ({"model": {str(i): Tensor(Storage(np.ones(1)), (300_000,), (0,)) for i in range(9)}}, "more numbers"),
    ],
)
def test_content_that_is_refused(read, content, message, legacy):
    with pytest.raises(InputError, match=message) as caught:
        read(content, legacy=legacy)
    assert "model.pt: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_in_the_file_is_called(read, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "was_here").touch, ()

    with pytest.raises(InputError, match=r"nothing was executed"):
        read({"model": {"w": tensor(np.ones(2))}, "x": Evil()})
    assert not (tmp_path / "was_here").exists()


def write(path, raw):
    path.write_bytes(raw)
    return path


def zipped(*records, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, raw in records:
            archive.writestr(name, raw)
    return file.getvalue()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"hello", "no PyTorch checkpoint"),
        (pickle.dumps({"model": {}}), "no PyTorch checkpoint"),
        (pickle.dumps(MAGIC, 2) + pickle.dumps(1002, 2), "unknown format version 1002"),
        (zipped(("readme.txt", "hello")), "no PyTorch checkpoint"),
        (zipped(("a/data.pkl", b"N."), ("b/data.pkl", b"N.")), "no PyTorch checkpoint"),
        (zipped(("a/data.pkl", b"N."), ("a/byteorder", b"middle")), "byte order"),
        (zipped(("a/data.pkl", b"N."), ("a/data/0", bytes(10**6)), compression=zipfile.ZIP_DEFLATED), "compressed"),
        # A pickle whose memo would take 64 GB, and one that claims a text of 2**60 bytes.
        (zipped(("a/data.pkl", b"\x80\x02Nr\xff\xff\xff\xff.")), "stores a value under number 4294967295"),
        (zipped(("a/data.pkl", b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"abc.")), "damaged"),
        (zipped(("a/data.pkl", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")), "no dictionary"),
    ],
)
def test_files_that_are_refused(tmp_path, raw, message):
    with pytest.raises(InputError, match=message) as caught:
        read_state_dict(write(tmp_path / "model.pt", raw))
    assert str(caught.value).startswith(f"{tmp_path / 'model.pt'}: ")
    assert "; " in str(caught.value), "the remedy"


def test_paths_that_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no such file"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"is a folder"):
        read_state_dict(tmp_path)


def test_records_that_are_missing_or_of_another_size(tmp_path, torch, monkeypatch):
    raw = checkpoint({"model": {"w": tensor(np.ones(4, np.float32))}}, torch, monkeypatch)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    for changed, message in (
        ({"archive/data/0": bytes(12)}, "12 bytes instead of 16"),
        ({"archive/data/0": None}, "lacks the record '0'"),
    ):
        kept = [(name, value) for name, value in (records | changed).items() if value is not None]
        with pytest.raises(InputError, match=message):
            read_state_dict(write(tmp_path / "model.pt", zipped(*kept)))


@BOTH
def test_damaged_files_raise_one_line(tmp_path, torch, monkeypatch, rng, legacy):
    state = {f"layer{i}.weight": tensor(rng.standard_normal((3, 4))) for i in range(4)}
    raw = checkpoint({"model": state}, torch, monkeypatch, legacy=legacy)
    path = tmp_path / "model.pt"
    for length in range(0, len(raw), 7):
        with pytest.raises(InputError) as caught:
            read_state_dict(write(path, raw[:length]))
        assert "\n" not in str(caught.value)
    for place in rng.integers(0, len(raw), 400):
        damaged = bytearray(raw)
        damaged[place] ^= int(rng.integers(1, 256))
        # Unless it is in a number, a name or a part that nobody reads.
        with contextlib.suppress(InputError):
            assert all(array.shape == (3, 4) for array in read_state_dict(write(path, bytes(damaged))).values())


STORAGE = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
SIZES = b"K\x00K\x04\x85K\x01\x85\x89}tR"
FAR = b"\x8a\x06" + (2**38).to_bytes(6, "little")
FARTHER = b"\x8a\x06" + (2**45).to_bytes(6, "little")
BEYOND = b"(K\x00" + FAR + b"t"


def entered(name, value):
    return b"}U%c" % len(name) + name + value + b"s"


def raw_checkpoint(record, legacy, keys=("0",)):
    """A checkpoint of one tensor `w` with a hand-made pickle; every storage holds 0, 1, 2, 3."""
    pickled = b"\x80\x02}U\x01w" + record + b"s."
    numbers = np.arange(4, dtype="<f4").tobytes()
    if not legacy:
        return zipped(("m/data.pkl", pickled), *((f"m/data/{key}", numbers) for key in keys))
    parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {})]
    runs = [(4).to_bytes(8, "little") + numbers for _ in keys]
    return b"".join([*parts, pickled, pickle.dumps(list(keys), 2), *runs])


@BOTH
@pytest.mark.parametrize(
    "fields",
    [entered(b"view", b"K\x00" + FARTHER + b"\x86"), entered(b"count", FARTHER), entered(b"id", b")")],
    ids=["view", "count", "id"],
)
def test_a_view_cannot_leave_its_storage(tmp_path, fields, legacy):
    """A file that changed the reader's record of a storage after its check ended the process."""
    record = REBUILD + b"(" + STORAGE + fields + b"bK\x00K\x02\x85" + FAR + b"\x85\x89}tR"
    with pytest.raises(InputError, match=r"sets the state of an object that has none"):
        read_state_dict(write(tmp_path / "model.pt", raw_checkpoint(record, legacy)))


@pytest.mark.parametrize("as_slots", [False, True])
@BOTH
@pytest.mark.parametrize(
    ("record", "fields"),
    [
        # Fields of the reader's own records, set after the checks, so that the view leaves its storage.
        (REBUILD + b"(" + STORAGE + b"%s" + SIZES, {b"view": BEYOND, b"first": FAR, b"length": FAR, b"id": b")"}),
        (
            REBUILD + b"(" + STORAGE + SIZES + b"%s",
            {b"offset": FAR, b"strides": FAR + b"\x85", b"shape": FAR + b"\x85"},
        ),
        (REBUILD + b"%s(" + STORAGE + SIZES, {b"__defaults__": b"N", b"function": b"N"}),
        (REBUILD + b"(" + STORAGE.replace(b"FloatStorage\n", b"FloatStorage\n%s") + SIZES, {b"dtype": b"U\x02f8"}),
    ],
)
def test_records_cannot_be_changed_after_their_check(tmp_path, record, fields, legacy, as_slots):
    for name, value in fields.items():
        state = b"N" + entered(name, value) + b"\x86b" if as_slots else entered(name, value) + b"b"
        raw = raw_checkpoint(record.replace(b"%s", state), legacy)
        # A tensor may have a state, which is ignored; all else is refused.
        with contextlib.suppress(InputError):
            got = read_state_dict(write(tmp_path / "model.pt", raw))
            np.testing.assert_array_equal(got["w"], np.arange(4, dtype=np.float32))


@BOTH
def test_a_dimension_of_one_may_have_any_stride(read, legacy):
    got = read({"model": {"w": Tensor(Storage(np.arange(4.0)), (1, 4), (2**62, 1))}}, legacy=legacy)
    np.testing.assert_array_equal(got["w"], np.arange(4.0)[None])


def test_a_zip_with_very_many_records(tmp_path):
    raw = zipped(("a/data.pkl", b"N.")) + b"PK\x01\x02" * 100_001
    with pytest.raises(InputError, match="more than 100000 records"):
        read_state_dict(write(tmp_path / "model.pt", raw))


@pytest.mark.slow
@BOTH
def test_the_whole_official_state_dict(read, shared, legacy):
    tools = runpy.run_path(str(shared / "golden" / "make_official_weights.py"))
    weights = tools["make_weights"](tools["load_spec"]())
    got = read({"model": {name: tensor(array) for name, array in weights.items()}, "it": 3}, legacy=legacy)
    assert list(got) == list(weights)
    assert tools["digest"](got) == "1d7fc09c78c1c899902224c1497821f633eab8fd238c146b54390ba60f1da6bd"

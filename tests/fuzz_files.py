"""Mutates small files of every kind that the package reads from strangers, and reads them in a limited process.

    python tests/fuzz_files.py mano 20000          # kinds: mano, torch_zip, torch_legacy, rhd, npz

A worker process reads the files with at most 1 GiB of memory beyond its own and 5 s of processor time each, so that a
crash, a hang or a flood of memory ends it. Prints one line of JSON; a failure prints the number of the file, which
`python tests/fuzz_files.py KIND 1 NUMBER` repeats.
"""

import contextlib
import functools
import io
import json
import os
import pickle
import pickletools
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

KINDS = ("mano", "torch_zip", "torch_legacy", "rhd", "npz")
MEMORY = 2**30
SECONDS = 5.0
SNIPPETS = (
    *(bytes([code]) for code in b"0.(NIKMJULSTXVGabdeust]})lp2Q1RiocPg\x80\x81\x85\x86\x87\x8f\x90\x91\x92\x93\x94"),
    b"h\x00",
    b"h\x01",
    b"h\x02",
    b"q\x00",
    b"r\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f\x01",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"K\xff",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"cposix\nsystem\n",
    b"cbuiltins\neval\n",
    b"cnumpy\nndarray\n",
    b"ccollections\nOrderedDict\n",
    b"}(X\x05\x00\x00\x00countJ\xff\xff\xff\x7fub",
    b"\x86q\x00h\x00h\x00",
    b"]q\x00h\x00h\x00\x86",
)


# --- small files of every kind ----------------------------------------------------------------------------------------


def mano_files():
    import numpy as np
    from scipy import sparse

    from handtailor_jax.mano.checks import MANO_SHAPES

    rng = np.random.default_rng(0)
    sizes = {"V": 2, "F": 2, "B": 2}
    shapes = {
        name: [sizes.get(s, min(s, 3) if isinstance(s, int) else 2) for s in shape]
        for name, shape in MANO_SHAPES.items()
    }
    plain = {name: rng.random(shape).astype(rng.choice(["f4", "f8"])) for name, shape in shapes.items()}
    regressor = np.zeros((16, 778))
    regressor[np.arange(16), np.arange(16)] = 1.0
    for protocol in (0, 2, 4, 5):
        yield pickle.dumps(plain, protocol)
    for form in (sparse.csc_matrix, sparse.csr_matrix, sparse.coo_matrix):
        yield pickle.dumps({"J_regressor": form(regressor), "f": [[0, 1, 2]], **plain}, 2)
    array = pickle.dumps(rng.random(6), 2)[2:-1]
    indices = pickle.dumps(np.arange(4), 2)[2:-1]
    for name in (b"weights", b"shapedirs"):
        yield (
            b"\x80\x02}U" + bytes([len(name)]) + name + b"cchumpy.reordering\nSelect\n)\x81}(U\x01a"
            b"cchumpy.ch\nCh\n)\x81}(U\x01x" + array + b"U\x0b_dirty_varsc__builtin__\nset\n]\x85Rub"
            b"U\x04idxs" + indices + b"U\x0fpreferred_shapeK\x02K\x02\x86ubs."
        )


def torch_pickle():
    """The content of a checkpoint of two tensors and a parameter, of which two share a storage."""

    def storage(key, kind, count):
        return b"(U\x07storagectorch\n%s\nU\x01%sU\x03cpuK%ctQ" % (kind, key, count)

    def tensor(storage, shape, strides):
        sizes = b"".join(b"K%c" % n for n in shape), b"".join(b"K%c" % n for n in strides)
        return b"ctorch._utils\n_rebuild_tensor_v2\n(%sK\x00(%st(%st\x89ccollections\nOrderedDict\n)RtR" % (
            storage,
            *sizes,
        )

    tensors = {
        b"a": tensor(storage(b"0", b"FloatStorage", 12), (3, 4), (4, 1)),
        b"b": tensor(storage(b"0", b"FloatStorage", 12), (4, 3), (1, 4)),
        b"c": b"ctorch._utils\n_rebuild_parameter\n%s\x88N\x87R" % tensor(storage(b"1", b"HalfStorage", 4), (4,), (1,)),
    }
    state = b"".join(b"U\x01%s%sq%c" % (name, record, n) for n, (name, record) in enumerate(tensors.items()))
    return b"\x80\x02}(U\x05modelccollections\nOrderedDict\n)R(%su}U\x09_metadata}sbU\x02itK\x05u." % state


TORCH_DATA = {"0": bytes(range(48)), "1": bytes(8)}


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def torch_zip_files():
    data = {f"m/data/{key}": raw for key, raw in TORCH_DATA.items()}
    yield zipped({"m/data.pkl": torch_pickle(), "m/byteorder": b"little", **data})


def torch_legacy_files():
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    data = [(12).to_bytes(8, "little") + TORCH_DATA["0"], (4).to_bytes(8, "little") + TORCH_DATA["1"]]
    yield b"".join([*head, torch_pickle(), pickle.dumps(["0", "1"], 2), *data])


def rhd_files():
    import numpy as np

    rng = np.random.default_rng(0)
    samples = {
        n: {"uv_vis": rng.random((42, 3)), "xyz": rng.random((42, 3)), "K": np.eye(3, dtype="f4")} for n in (0, 1)
    }
    for protocol in (0, 2, 4, 5):
        yield pickle.dumps(samples, protocol)


def small_hand():
    """A valid hand of 21 vertices, which are its joints and tips."""
    import numpy as np

    from handtailor_jax.mano.loading import MANO_VERTICES, embedded_arrays

    assert MANO_VERTICES == 778
    stored = embedded_arrays()
    joints = stored["joint_regressor"] @ stored["template"]
    tips = stored["tip_vertices"]
    template = np.concatenate([joints, stored["template"][tips]])
    own = {name: stored[name] for name in stored if name.startswith(("anatomy", "pose_"))}
    return {
        **own,
        "template": template.astype("f4"),
        "faces": np.asarray([[0, 1, 2], [3, 4, 5]]),
        "shape_directions": np.full((21, 3, 10), 1e-3, "f4"),
        "pose_directions": np.zeros((21, 3, 135), "f2"),
        "joint_regressor": np.eye(16, 21, dtype="f4"),
        "skinning_weights": np.eye(21, 16, dtype="f4") + np.r_[np.zeros(16), np.ones(5)].astype("f4")[:, None] / 16,
        "tip_vertices": np.arange(16, 21),
    }


def npz_files():
    import numpy as np

    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **small_hand())
        yield file.getvalue()


# --- mutations --------------------------------------------------------------------------------------------------------


@functools.cache
def opcodes(content):
    """Offsets of the opcodes of the pickles at the beginning of a file."""
    places, file = [], io.BytesIO(content)
    with contextlib.suppress(ValueError):
        while True:
            places += [place for _, _, place in pickletools.genops(file)]
    return places or [0]


def mutated(content, rng):
    """Edits of bytes, of pieces, or of opcodes, which leave more of the file readable."""
    data, places = bytearray(content), opcodes(content)
    manner = rng.choice(("bytes", "pieces", "opcodes", "opcodes"))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(data) + 1)
        if manner == "bytes":
            length = rng.choice((1, 1, 4))
            data[place : place + length] = rng.choice(
                (bytes([rng.randrange(256)]), b"\xff" * length, b"\xff" * (length - 1) + b"\x7f", bytes(length))
            )
        elif manner == "pieces":
            length = rng.choice((1, 2, 8, 64, 512))
            start = rng.randrange(len(data) + 1)
            piece = rng.choice((b"", data[start : start + length], rng.choice(SNIPPETS) * rng.choice((1, 50, 5000))))
            data[place : place + rng.choice((0, length))] = piece
            if rng.random() < 0.1:
                del data[place:]
        else:
            here, there = rng.randrange(len(places) - 1) if len(places) > 1 else 0, rng.randrange(len(places))
            start, end = places[here], places[min(here + rng.choice((0, 1, 1, 1, 3)), len(places) - 1)]
            other = data[places[there] : places[min(there + rng.choice((1, 1, 2, 5)), len(places) - 1)]]
            data[start:end] = rng.choice((other, other, rng.choice(SNIPPETS), b"K" + bytes([rng.randrange(256)])))
    return bytes(data)


def mutated_zip(content, rng):
    """Half of the files are damaged as a whole, half in one member whose checksum is then right."""
    if rng.random() < 0.5:
        return mutated(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        method = archive.infolist()[0].compress_type
    name = "m/data.pkl" if "m/data.pkl" in members and rng.random() < 0.8 else rng.choice(list(members))
    head = 130 if name.endswith(".npy") and rng.random() < 0.7 else len(members[name])
    members[name] = mutated(members[name][:head], rng) + members[name][head:]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for member, raw in members.items():
            archive.writestr(member, raw)
    return file.getvalue()


def file_number(kind, bases, number):
    rng = random.Random(f"{kind} {number}")
    return (mutated_zip if kind in ("torch_zip", "npz") else mutated)(rng.choice(bases), rng)


# --- the worker -------------------------------------------------------------------------------------------------------


def reader(kind):
    if kind == "mano":
        from handtailor_jax.mano.loading import read_arrays

        return read_arrays
    if kind == "rhd":
        from handtailor_jax.data.readers.rhd import _annotation

        return _annotation
    if kind == "npz":
        from handtailor_jax.mano.loading import load_hand

        return load_hand
    from handtailor_jax.hand_module.torch_file import read_state_dict

    return read_state_dict


class Guard:
    """Ends the process when a file being read starts something."""

    forbidden = (
        "os.system",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "os.spawn",
        "subprocess.Popen",
        "pickle.find_class",
    )
    armed = False

    def __call__(self, event, arguments):
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if self.armed and (event in self.forbidden or event.startswith(("socket.", "shutil.")) or writes):
            print(f"the file caused {event} {arguments!r}", flush=True)
            os._exit(3)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def was_out_of_memory(error):
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__context__
    return False


def check_message(error):
    assert "\n" not in str(error), str(error)
    assert len(str(error)) < 1000, str(error)
    assert not was_out_of_memory(error), "ran out of memory"


def work(kind, count, first, progress):
    from handtailor_jax.errors import InputError

    read, bases = (
        reader(kind),
        list(
            {
                "mano": mano_files,
                "torch_zip": torch_zip_files,
                "torch_legacy": torch_legacy_files,
                "rhd": rhd_files,
                "npz": npz_files,
            }[kind]()
        ),
    )
    path = progress.with_suffix(".input")
    for base in bases:  # valid files, which also loads everything that reading needs
        path.write_bytes(base)
        read(path)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    sys.addaudithook(guard := Guard())
    before, slowest, read_files = peak(), 0.0, 0
    for number in range(first, first + count):
        path.write_bytes(file_number(kind, bases, number))
        progress.write_text(str(number))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        start, guard.armed = time.process_time(), True
        try:
            read(path)
            read_files += 1
        except InputError as error:
            check_message(error)
        guard.armed = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - start)
    result = {"kind": kind, "files": count, "read": read_files, "refused": count - read_files}
    print(json.dumps({**result, "slowest_s": round(slowest, 3), "growth_mib": round((peak() - before) / 2**20, 1)}))


def fuzz(kind, count, first=0):
    """Reads mutated files in a worker process; the counts, or an AssertionError that names the file."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        command = [sys.executable, __file__, "--work", kind, str(count), str(first), str(progress)]
        environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        number = "no file"
        with contextlib.suppress(FileNotFoundError):
            number = progress.read_text()
    assert done.returncode == 0, (
        f"{kind}: file {number} ended the reader ({done.returncode}): {done.stdout}{done.stderr}"
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        print(json.dumps(fuzz(sys.argv[1], *map(int, sys.argv[2:]))))

"""Hand model files: every layout of the published pickles, the npz forms, and files that must be refused."""

import builtins
import io
import os
import pickle
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from handtailor_jax.errors import InputError
from handtailor_jax.mano.loading import (
    MANO_TIP_VERTICES,
    embedded_arrays,
    embedded_hand,
    load_hand,
    load_mano,
)
from handtailor_jax.skeleton import FINGER_KEYPOINTS, KEYPOINTS, MANO_JOINTS
from tests import goldens


@pytest.fixture(scope="module")
def arrays():
    return goldens.mano_arrays()


@pytest.fixture(scope="module")
def layout(arrays):
    """The published dictionary: a sparse regressor and plain strings."""
    sparse = pytest.importorskip("scipy.sparse")
    strings = {name: str(arrays[name]) for name in ("bs_style", "bs_type")}
    return {**arrays, **strings, "J_regressor": sparse.csc_matrix(arrays["J_regressor"])}


@pytest.fixture
def chumpy(monkeypatch):
    """A stand-in for the chumpy package, good enough to write its objects with."""
    package, ch, reordering = (types.ModuleType(n) for n in ("chumpy", "chumpy.ch", "chumpy.reordering"))
    ch.Ch = type("Ch", (), {"__module__": "chumpy.ch", "__getstate__": lambda self: dict(self.__dict__)})
    reordering.Select = type("Select", (ch.Ch,), {"__module__": "chumpy.reordering"})
    reordering.Transpose = type("Transpose", (ch.Ch,), {"__module__": "chumpy.reordering"})
    for module in (package, ch, reordering):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def make(cls, **state):
        instance = cls()
        instance.__dict__.update(state)
        return instance

    return types.SimpleNamespace(
        ch=lambda x: make(ch.Ch, x=np.asarray(x), _dirty_vars={"x"}),
        select=lambda **state: make(reordering.Select, **state),
        transpose=lambda **state: make(reordering.Transpose, **state),
    )


def write(path, content, protocol=2):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


def assert_is_the_model(model, arrays):
    np.testing.assert_array_equal(model.skin.template, arrays["v_template"].astype(np.float32))
    np.testing.assert_array_equal(model.skin.shape_directions, arrays["shapedirs"].astype(np.float32))
    np.testing.assert_array_equal(model.skin.pose_directions, arrays["posedirs"].astype(np.float32))
    np.testing.assert_array_equal(model.skin.weights, arrays["weights"].astype(np.float32))
    np.testing.assert_array_equal(model.joint_regressor, arrays["J_regressor"].astype(np.float32))
    np.testing.assert_array_equal(model.pose_mean, arrays["hands_mean"].astype(np.float32))
    np.testing.assert_array_equal(model.pose_components, arrays["hands_components"].astype(np.float32))
    np.testing.assert_array_equal(model.faces, arrays["f"])
    np.testing.assert_array_equal(model.tips.template, model.skin.template[model.tip_vertices])
    np.testing.assert_allclose(model.rest_joints, arrays["J"], atol=1e-8)


def refusal(path, **arguments):
    """The message with which a file is refused; it must be one line that names the file."""
    with pytest.raises(InputError) as raised:
        load_mano(path, **arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


# --- files that load --------------------------------------------------------------------------------------------------


def test_chumpy_pickle_of_python_2(arrays, tmp_path):
    model = load_mano(write(tmp_path / "MANO_RIGHT.pkl", goldens.chumpy_pickle()))
    assert_is_the_model(model, arrays)
    assert model.side == "right"
    assert_is_the_model(load_mano(write(tmp_path / "other.pkl", goldens.chumpy_pickle()), "right"), arrays)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickle_of_every_protocol(layout, arrays, tmp_path, protocol):
    assert_is_the_model(load_mano(write(tmp_path / "MANO_RIGHT.pkl", layout, protocol)), arrays)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_chumpy_objects(layout, arrays, tmp_path, chumpy, protocol):
    shape = arrays["shapedirs"].shape
    more = np.concatenate([arrays["shapedirs"], np.ones(shape)], axis=2)
    chosen = np.arange(more.size).reshape(more.shape)[:, :, : shape[2]].ravel()
    content = {
        **layout,
        **{name: chumpy.ch(arrays[name]) for name in ("v_template", "posedirs", "weights")},
        "shapedirs": chumpy.select(a=chumpy.ch(more), idxs=chosen, preferred_shape=shape),
    }
    path = write(tmp_path / "MANO_RIGHT.pkl", content, protocol)
    assert_is_the_model(load_mano(path), arrays)


def test_big_endian_single_precision_and_column_major_arrays(layout, arrays, tmp_path):
    content = {
        **layout,
        "v_template": arrays["v_template"].astype(">f8"),
        "weights": np.asfortranarray(arrays["weights"]),
        "posedirs": arrays["posedirs"].astype(np.float32),
    }
    for protocol in (2, 5):
        assert_is_the_model(load_mano(write(tmp_path / "MANO_RIGHT.pkl", content, protocol)), arrays)


def test_neither_scipy_nor_chumpy_is_imported(tmp_path):
    path = write(tmp_path / "MANO_RIGHT.pkl", goldens.chumpy_pickle())
    code = (  # jax itself imports parts of scipy: hidden is what reading a sparse matrix would use
        "import sys\n"
        "sys.modules.update({'scipy.sparse': None, 'scipy.sparse.csc': None, 'chumpy': None, 'chumpy.ch': None})\n"
        "from handtailor_jax.mano import load_mano\n"
        f"print(load_mano({str(path)!r}).skin.template.shape)\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.split() == ["(778,", "3)"], result.stderr


def test_npz_with_manos_names(arrays, tmp_path):
    np.savez(tmp_path / "MANO_RIGHT.npz", **arrays)
    assert_is_the_model(load_mano(tmp_path / "MANO_RIGHT.npz"), arrays)
    np.savez_compressed(tmp_path / "hand.npz", **{**arrays, "kintree_table": arrays["kintree_table"].astype(np.uint32)})
    assert_is_the_model(load_mano(tmp_path / "hand.npz", "right"), arrays)


@pytest.mark.parametrize("form", ["csc_matrix", "csr_matrix", "coo_matrix", "csc_array", "csr_array", "coo_array"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_sparse_regressors_of_every_form(layout, arrays, tmp_path, form, protocol):
    regressor = getattr(pytest.importorskip("scipy.sparse"), form)(arrays["J_regressor"])
    path = write(tmp_path / "MANO_RIGHT.pkl", {**layout, "J_regressor": regressor}, protocol)
    assert_is_the_model(load_mano(path), arrays)


def test_sparse_regressors_that_are_refused(layout, arrays, tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    path = tmp_path / "MANO_RIGHT.pkl"

    def message(form, **changes):
        regressor = getattr(sparse, form)(arrays["J_regressor"])
        for name, change in changes.items():
            change(getattr(regressor, name))
        return refusal(write(path, {**layout, "J_regressor": regressor}))

    def put(value):
        return lambda array: array.__setitem__(-1, value)

    assert "index outside of 0 to 15" in message("csc_matrix", indices=put(16))
    assert "index outside of 0 to 777" in message("csr_matrix", indices=put(778))
    assert "index outside of 0 to 15" in message("coo_matrix", row=put(-1))
    assert "index outside of 0 to 777" in message("coo_matrix", col=put(778))
    assert "index pointers" in message("csr_matrix", indptr=put(3))
    assert "index outside" in message("csr_matrix", indptr=put(10**6))
    assert "save it as a csc_matrix or a plain array" in message("lil_matrix")
    transposed = sparse.csc_matrix(arrays["J_regressor"].T)
    assert "has shape (778, 16)" in refusal(write(path, {**layout, "J_regressor": transposed}))


def test_nested_lists_are_bounded(layout, tmp_path):
    """Lists that share their parts are small in the file and without bound as an array."""
    shared = [1.0, 2.0]
    for _ in range(3):
        shared = [shared] * 1000
    path = tmp_path / "MANO_RIGHT.pkl"
    assert "more than 1000000 numbers in lists" in refusal(write(path, {**layout, "hands_mean": shared}))
    assert "more than 4 levels" in refusal(write(path, {**layout, "hands_mean": [[[[[1.0]]]]]}))
    assert "other than numbers" in refusal(write(path, {**layout, "hands_mean": ["0.0"] * 45}))


def test_more_than_ten_shape_directions_are_cut(arrays, tmp_path):
    np.savez(tmp_path / "MANO_RIGHT.npz", **{**arrays, "shapedirs": np.concatenate([arrays["shapedirs"]] * 2, axis=2)})
    assert_is_the_model(load_mano(tmp_path / "MANO_RIGHT.npz"), arrays)


# --- left hands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def left_arrays(arrays):
    """The mirrored synthetic hand with the fault of the released left hand: x of its shape directions unmirrored."""
    flip = np.array([-1.0, 1.0, 1.0])
    entries = np.tile(np.outer(flip, flip).ravel(), 15)
    return {
        **arrays,
        "v_template": arrays["v_template"] * flip,
        "J": arrays["J"] * flip,
        "f": arrays["f"][:, ::-1],
        "posedirs": arrays["posedirs"] * flip[:, None] * entries,
        "hands_mean": arrays["hands_mean"] * np.tile(-flip, 15),
        "hands_components": arrays["hands_components"] * np.tile(-flip, 15),
    }


def test_released_left_hand_is_corrected_unless_told_not_to(left_arrays, arrays, tmp_path):
    path = tmp_path / "MANO_LEFT.npz"
    np.savez(path, **left_arrays)
    corrected, as_released = load_mano(path), load_mano(path, correct_left_shape=False)
    assert corrected.side == as_released.side == "left"
    flip = np.array([-1.0, 1.0, 1.0])
    expected = (arrays["shapedirs"] * flip[:, None]).astype(np.float32)
    np.testing.assert_array_equal(corrected.skin.shape_directions, expected)
    np.testing.assert_array_equal(as_released.skin.shape_directions, arrays["shapedirs"].astype(np.float32))
    np.savez(tmp_path / "MANO_RIGHT.npz", **arrays)
    right = load_mano(tmp_path / "MANO_RIGHT.npz")
    assert_is_the_model(load_mano(tmp_path / "MANO_RIGHT.npz", correct_left_shape=False), arrays)
    np.testing.assert_allclose(corrected.joint_shape_directions, right.mirrored().joint_shape_directions, atol=1e-7)
    # The left hand's middle tip is another vertex, which on this made-up mesh lies elsewhere.
    same = np.asarray([name != "middle_dip" for name in MANO_JOINTS[1:]])
    np.testing.assert_allclose(corrected.anatomy.axes[same], right.mirrored().anatomy.axes[same], atol=1e-6)
    np.testing.assert_array_equal(corrected.tip_vertices, [745, 317, 445, 556, 673])


def test_the_side_must_be_known_and_right(arrays, left_arrays, tmp_path):
    np.savez(tmp_path / "hand.npz", **arrays)
    assert "contains no side" in refusal(tmp_path / "hand.npz")
    assert load_mano(tmp_path / "hand.npz", "right").side == "right"
    assert "direction of a right hand" in refusal(tmp_path / "hand.npz", side="left")
    np.savez(tmp_path / "MANO_LEFT.npz", **left_arrays)
    assert "name says left" in refusal(tmp_path / "MANO_LEFT.npz", side="right")
    np.savez(tmp_path / "MANO_RIGHT.npz", **left_arrays)
    assert "direction of a left hand" in refusal(tmp_path / "MANO_RIGHT.npz")
    with pytest.raises(Exception, match="middle"):
        load_mano(tmp_path / "hand.npz", "middle")


# --- one entry for all of them ----------------------------------------------------------------------------------------


def test_load_hand_tells_files_apart_by_content(arrays, left_arrays, tmp_path, layout):
    assert load_hand().side == "right"
    assert load_hand(None, "left").side == "left"
    np.savez(tmp_path / "my.bin.npz", **embedded_arrays())
    own = (tmp_path / "my.bin.npz").rename(tmp_path / "my.pkl")
    for side in ("right", "left"):
        for ours, theirs in zip(
            jax.tree.leaves(load_hand(own, side)), jax.tree.leaves(embedded_hand(side)), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    mano = write(tmp_path / "MANO_RIGHT.npz", layout)  # a pickle in spite of its name
    assert_is_the_model(load_hand(str(mano)), arrays)
    mirrored = load_hand(mano, "left")
    assert mirrored.side == "left"
    np.testing.assert_array_equal(mirrored.skin.template, load_hand(mano).mirrored().skin.template)
    np.savez(tmp_path / "unnamed.npz", **left_arrays)
    assert load_hand(tmp_path / "unnamed.npz", "left").side == "left"


def test_double_precision_is_kept(arrays, tmp_path, x64):
    np.savez(tmp_path / "MANO_RIGHT.npz", **arrays)
    np.testing.assert_array_equal(
        load_mano(tmp_path / "MANO_RIGHT.npz", dtype=np.float64).skin.template, arrays["v_template"]
    )
    assert embedded_hand(dtype=np.float64).dtype == np.float64


def test_anatomy_of_a_mano_file_follows_its_own_bones(arrays, tmp_path):
    np.savez(tmp_path / "MANO_RIGHT.npz", **arrays)
    model = load_mano(tmp_path / "MANO_RIGHT.npz")
    axes = np.asarray(model.anatomy.axes, np.float64)
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.broadcast_to(np.eye(3), axes.shape), atol=1e-6)
    embedded = np.asarray(embedded_hand().anatomy.axes, np.float64)
    np.testing.assert_allclose(np.linalg.det(axes), np.linalg.det(embedded), atol=1e-5)
    ends = np.concatenate([arrays["J"], arrays["v_template"][list(MANO_TIP_VERTICES["right"])]])
    for joint, name in enumerate(MANO_JOINTS[1:], start=1):
        finger = FINGER_KEYPOINTS[("thumb", "index", "middle", "ring", "little").index(name.split("_")[0])]
        below = KEYPOINTS[KEYPOINTS.index(name) + 1]
        end = ends[MANO_JOINTS.index(below)] if below in MANO_JOINTS else ends[16 + FINGER_KEYPOINTS.index(finger)]
        bone = end - arrays["J"][joint]
        np.testing.assert_allclose(axes[joint - 1, 2], bone / np.linalg.norm(bone), atol=1e-5)
        # Flexion lies in the plane of the bone and the embedded flexion axis, on the latter's side.
        assert abs(np.cross(embedded[joint - 1, 0], bone) @ axes[joint - 1, 0]) < 1e-6
        assert embedded[joint - 1, 0] @ axes[joint - 1, 0] > 0.6
    for name in ("lower", "upper", "mean", "std"):
        np.testing.assert_array_equal(getattr(model.anatomy, name), getattr(embedded_hand().anatomy, name))


# --- files that are refused -------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nested(module, name, argument):
    """A protocol 4 pickle that calls a dotted attribute of a module."""
    out = io.BytesIO(b"")
    out.write(b"\x80\x04")
    for text in (module, name):
        out.write(b"\x8c" + bytes([len(text)]) + text.encode())
    out.write(b"\x93\x8c" + bytes([len(argument)]) + argument.encode() + b"\x85R.")
    return out.getvalue()


def attacks(marker):
    """Programs that would create the file `marker`, or reach what could, and the global that gives them away."""
    touch = f"touch {marker}"
    state = pickle.dumps(os.system)
    return {
        "os.system": (pickle.dumps({"v_template": Calls(os.system, touch)}), "system"),
        "old protocol": (pickle.dumps(Calls(os.system, touch), 0), "system"),
        "eval": (pickle.dumps(Calls(builtins.eval, f"open({str(marker)!r}, 'w')"), 4), "builtins.eval"),
        "exec": (pickle.dumps(Calls(exec, f"open({str(marker)!r}, 'w')"), 2), "exec"),
        "getattr": (pickle.dumps(Calls(getattr, "", "format"), 4), "builtins.getattr"),
        "dotted": (nested("os", "path.join", "x"), "os.path.join"),
        "dotted through an allowed module": (nested("numpy", "core.os.system", touch), "numpy.core.os.system"),
        "numpy.load": (pickle.dumps(Calls(np.load, str(marker)), 4), "load"),
        "numpy.memmap": (pickle.dumps(Calls(np.memmap, str(marker), "uint8", "w+", 0, (4,)), 4), "memmap"),
        "chumpy's own os": (nested("chumpy.ch", "os.system", touch), "chumpy.ch.os.system"),
        "chumpy look-alike": (nested("chumpyx", "Ch", touch), "chumpyx.Ch"),
        "subprocess": (pickle.dumps(Calls(subprocess.Popen, ["touch", str(marker)]), 4), "subprocess.Popen"),
        "function": (state, "system"),
    }


@pytest.mark.parametrize("name", attacks("x"))
def test_foreign_globals_are_named_and_never_called(tmp_path, name):
    marker = tmp_path / "executed"
    content, culprit = attacks(marker)[name]
    message = refusal(write(tmp_path / "MANO_RIGHT.pkl", content))
    assert culprit in message
    assert "nothing was executed" in message
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path):
    marker = tmp_path / "executed"
    pickle.loads(attacks(marker)["os.system"][0])
    assert marker.exists()


@pytest.mark.parametrize("kind", ["plain", "chumpy", "npz"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_cut_short(layout, arrays, tmp_path, kind, share):
    if kind == "chumpy":
        content = goldens.chumpy_pickle()
    elif kind == "plain":
        content = pickle.dumps(layout, 2)
    else:
        np.savez(stream := io.BytesIO(), **arrays)
        content = stream.getvalue()
    message = refusal(write(tmp_path / "MANO_RIGHT.pkl", content[: int(share * len(content))]))
    assert "cut short" in message or "empty" in message


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>Please sign in</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        bytes(1000),
        b"\x80\x02}q\x00X",
        b"PK\x03\x04 and nothing more",
    ],
)
def test_something_else(tmp_path, content):
    message = refusal(write(tmp_path / "MANO_RIGHT.pkl", content))
    assert "neither a pickle nor an npz" in message or "cut short" in message


@pytest.mark.parametrize("value", [[1, 2], "text", None, {"a": np.ones(3)}, {"v_template": np.ones((778, 3))}])
def test_pickles_that_hold_no_hand(tmp_path, value):
    assert "https://mano.is.tue.mpg.de" in refusal(write(tmp_path / "MANO_RIGHT.pkl", value))


def test_missing_file_and_folder(tmp_path):
    assert "no such file" in refusal(tmp_path / "MANO_RIGHT.pkl")
    (tmp_path / "MANO_LEFT.pkl").mkdir()
    assert "folder" in refusal(tmp_path / "MANO_LEFT.pkl")


def damaged(arrays):
    spoilt = arrays["posedirs"].copy()
    spoilt[5, 1, 7] = np.nan
    infinite = arrays["v_template"].copy()
    infinite[3] = np.inf
    weights = arrays["weights"].copy()
    weights[100] *= 1.5
    parents = arrays["kintree_table"].copy()
    parents[0, 7] = 6
    faces = arrays["f"].copy()
    faces[0, 0] = 778
    regressor = arrays["J_regressor"]
    return {
        "not finite": ("posedirs", spoilt),
        "values that are not": ("v_template", infinite),
        "sum to 1": ("weights", weights),
        "parents": ("kintree_table", parents),
        "outside the 778": ("f", faces),
        "v_template has shape": ("v_template", arrays["v_template"][:700]),
        "shape directions": ("shapedirs", arrays["shapedirs"][..., :4]),
        "posedirs has shape": ("posedirs", arrays["posedirs"][..., :100]),
        "J_regressor has shape": ("J_regressor", regressor.T),
        "weights has shape": ("weights", arrays["weights"][:, :15]),
        "hands_mean has shape": ("hands_mean", arrays["hands_mean"][:, None]),
        "hands_components has shape": ("hands_components", arrays["hands_components"][:6]),
        "instead of numbers": ("hands_mean", np.full(45, "0.0")),
    }


FAULTS = (
    "not finite",
    "values that are not",
    "sum to 1",
    "parents",
    "outside the 778",
    "v_template has shape",
    "shape directions",
    "posedirs has shape",
    "J_regressor has shape",
    "weights has shape",
    "hands_mean has shape",
    "hands_components has shape",
    "instead of numbers",
)


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_models(arrays, tmp_path, fault):
    name, value = damaged(arrays)[fault]
    np.savez(tmp_path / "MANO_RIGHT.npz", **{**arrays, name: value})
    message = refusal(tmp_path / "MANO_RIGHT.npz")
    assert fault in message


@pytest.mark.parametrize("name", ["v_template", "shapedirs", "J_regressor", "f", "hands_mean", "kintree_table"])
def test_missing_arrays_are_named(arrays, tmp_path, name):
    np.savez(tmp_path / "MANO_RIGHT.npz", **{k: v for k, v in arrays.items() if k != name})
    assert name in refusal(tmp_path / "MANO_RIGHT.npz")


def test_contents_that_cannot_be_decoded(layout, arrays, tmp_path, chumpy):
    path = tmp_path / "MANO_RIGHT.pkl"
    objects = np.empty((778, 3), object)
    assert "v_template" in refusal(write(path, {**layout, "v_template": objects}))
    assert "Transpose" in refusal(write(path, {**layout, "weights": chumpy.transpose(a=chumpy.ch(arrays["weights"]))}))
    assert "f:" in refusal(write(path, {**layout, "f": "text"}))
    broken = chumpy.select(a=chumpy.ch(arrays["weights"]), idxs=np.array([10**6]), preferred_shape=(1,))
    assert "shapedirs cannot be decoded" in refusal(write(path, {**layout, "shapedirs": broken}))


def test_an_npz_with_pickled_objects_is_not_unpickled(arrays, tmp_path):
    marker = tmp_path / "executed"
    objects = np.array([Calls(os.system, f"touch {marker}")], object)
    np.savez(tmp_path / "MANO_RIGHT.npz", **{**arrays, "weights": objects})
    assert "pickled object" in refusal(tmp_path / "MANO_RIGHT.npz")
    assert not marker.exists()


def test_own_files_are_checked_too(tmp_path):
    stored = dict(embedded_arrays())
    np.savez(tmp_path / "my.npz", **{**stored, "anatomy_basis": stored["anatomy_basis"][:3]})
    with pytest.raises(InputError, match=r"my.npz: anatomy_basis has shape \(3, 3, 3\) instead of \(15, 3, 3\)"):
        load_hand(tmp_path / "my.npz")
    del stored["faces"]
    np.savez(tmp_path / "my.npz", **stored)
    with pytest.raises(InputError, match="lacks faces"):
        load_hand(tmp_path / "my.npz")


def changed(name, change):
    stored = dict(embedded_arrays())
    array = stored[name].copy()
    result = change(array)
    return {**stored, name: array if result is None else result}


def put(place, value):
    return lambda array: array.__setitem__(place, value)


EMBEDDED_FAULTS = {
    "zero template": ("template", np.zeros_like, "0 m between wrist and"),
    "template in millimetres": ("template", lambda a: 1000 * a, "template contains a value of magnitude 186"),
    "template with a hidden infinity": ("template", put((5, 1), 1e30), "value of magnitude 1e+30; at most 1 expected"),
    "zero shape directions": ("shape_directions", np.zeros_like, "shape_directions moves no vertex in direction 0"),
    "huge shape direction": ("shape_directions", put((5, 1, 3), -1e30), "shape_directions contains a value"),
    "huge pose direction": ("pose_directions", lambda a: a.astype("f8") * 1e30, "pose_directions contains a value"),
    "zero regressor": ("joint_regressor", np.zeros_like, "joint_regressor of a joint sum to 0"),
    "huge regressor": ("joint_regressor", put((0, 0), 1e30), "joint_regressor contains a value"),
    "zero weights": ("skinning_weights", np.zeros_like, "skinning_weights of a vertex sum to 0"),
    "negative weights": ("skinning_weights", lambda a: 2.0 * a - 1.0 / 16, "has a weight of -0.0625"),
    "zero components": ("pose_components", np.zeros_like, "pose_components has rank below 45"),
    "huge mean": ("pose_mean", put(3, 1e30), "pose_mean contains a value of magnitude 1e+30"),
    "zero axes": ("anatomy_basis", np.zeros_like, "anatomy_basis is not orthonormal"),
    "limits the wrong way round": ("anatomy_upper", lambda a: -a - 3.0, "below anatomy_lower"),
    "infinite limit": ("anatomy_upper", put((0, 0), 1e30), "anatomy_upper contains a value of magnitude 1e+30"),
    "zero deviations": ("anatomy_std", np.zeros_like, "anatomy_std contains 0; at least 0.001 rad expected"),
    "negative deviation": ("anatomy_std", put((3, 2), -0.1), "anatomy_std contains -0.1"),
    "tip out of range": ("tip_vertices", put(2, 1609), "tip_vertices refers to vertices outside the 1609"),
    "negative tip": ("tip_vertices", put(2, -1), "tip_vertices refers to vertices outside the 1609"),
    "fractional tip": ("tip_vertices", lambda a: a + 0.5, "tip_vertices contains fractions"),
    "equal tips": ("tip_vertices", lambda a: np.full_like(a, a[0]), "names a vertex twice"),
    "no faces": ("faces", lambda a: a[:0], "has 0 faces"),
    "face out of range": ("faces", put((7, 1), 1609), "faces refers to vertices outside the 1609"),
}


@pytest.mark.parametrize("fault", EMBEDDED_FAULTS)
def test_damaged_own_files(tmp_path, fault):
    name, change, expected = EMBEDDED_FAULTS[fault]
    np.savez(tmp_path / "my.npz", **changed(name, change))
    with pytest.raises(InputError) as raised:
        load_hand(tmp_path / "my.npz")
    assert expected in str(raised.value)
    assert "; " in str(raised.value), "the remedy"
    assert "\n" not in str(raised.value)


def test_large_files_are_refused_before_they_are_unpacked(tmp_path):
    path = tmp_path / "MANO_RIGHT.npz"
    np.savez_compressed(path, template=np.zeros(2**27, np.uint8))
    assert path.stat().st_size < 2**20
    assert "its arrays take 134217856 bytes; at most 67108864 expected" in refusal(path)
    with path.open("wb") as file:
        file.truncate(2**27)
    assert "the file has 134217728 bytes; at most 67108864 expected" in refusal(path)

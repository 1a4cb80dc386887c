"""Shared set-up: a strict JAX, run-time shape checks on the package, and the fixtures that most tests use."""

import ctypes
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Several virtual devices, so that the code for many devices is tested on one machine. Read once, when JAX starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Nearly all of the time goes into compiling, of which optimising is half. The older of the two code generators of
# jax 0.10 takes a third of the time of the other, which users have by default; later versions do not have it.
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# One compilation for all workers, commands and processes of a test run, and none for the next run: its folder is a new
# one. The commands take this folder instead of the user's, and programs of one folder are not found in another.
if "HANDTAILOR_TEST_CACHE" not in os.environ:
    os.environ["HANDTAILOR_TEST_CACHE"] = tempfile.mkdtemp(prefix="handtailor-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["HANDTAILOR_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Tests replace functions of the package; what is traced then must not be kept.
os.environ["HANDTAILOR_TRACED_PROGRAMS"] = "0"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", os.environ.get("HANDTAILOR_TEST_PLATFORM", "cpu"))  # "cuda": tests on a GPU
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

PACKAGE = "handtailor_jax"
# Bytes that a worker keeps after a test; more make the slow tests faster.
_MOST_MEMORY = float(os.environ.get("HANDTAILOR_TEST_MEMORY", "1.3e9"))


def _register_dataclass_unchecked(cls: type, data_fields: Any = None, meta_fields: Any = None, **kwargs: Any) -> type:
    """Registers the package's dataclasses so that JAX rebuilds them without calling their checked constructor.

    JAX also fills pytrees with things that are no arrays (axis numbers, None, markers) and adds batch axes to them
    from outside. What the package itself constructs keeps being checked.
    """
    if not cls.__module__.startswith(PACKAGE):
        return _register_dataclass(cls, data_fields, meta_fields, **kwargs)
    data_fields, meta_fields = tuple(data_fields), tuple(meta_fields)

    def flatten_with_keys(tree: Any) -> Any:
        children = tuple((jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in data_fields)
        return children, tuple(getattr(tree, name) for name in meta_fields)

    def flatten(tree: Any) -> Any:
        return tuple(getattr(tree, name) for name in data_fields), tuple(getattr(tree, name) for name in meta_fields)

    def unflatten(meta: Any, children: Any) -> Any:
        tree = object.__new__(cls)
        for name, value in zip(data_fields + meta_fields, (*children, *meta), strict=True):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


assert not any(name.split(".")[0] == PACKAGE for name in sys.modules), "imported before the checks were installed"
_register_dataclass = jax.tree_util.register_dataclass
jax.tree_util.register_dataclass = _register_dataclass_unchecked  # type: ignore[assignment]
install_import_hook(PACKAGE, "beartype.beartype")

from benchmarks.simulation import TailorProblems, tailor_problems
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand, load_mano
from tests.goldens import write_mano

# glibc keeps what is freed: after the compilation of a training step more than a gigabyte. Other systems lack the call.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def _give_back(event: str = "", seconds: float = np.inf, **_: Any) -> None:
    """Return freed memory to the system; as a listener, after every compilation that took more than a second."""
    if _trim is not None and seconds > 1.0 and (not event or "backend_compile" in event):
        _trim(0)


jax.monitoring.register_event_duration_secs_listener(_give_back)


def _resident() -> int:
    """Memory of this process in bytes; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files with the most slow tests first, in both halves, so that the last ones are light."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = {path: sum(item.get_closest_marker("slow") is not None for item in own) for path, own in files.items()}
    order = sorted(files, key=lambda path: -slow[path])
    items[:] = [item for path in (*order[0::2], *order[1::2]) for item in files[path]]


@pytest.fixture(scope="module", autouse=True)
def freed() -> Iterator[None]:
    """Frees the compiled programs of a module after its last test: kept, they fill several gigabytes in a worker."""
    yield
    jax.clear_caches()
    gc.collect()
    _give_back()


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Frees them earlier if a worker holds too much; they are loaded again from the cache of the run."""
    yield
    if _resident() > _MOST_MEMORY - 1e8:
        _give_back()
    if _resident() > _MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        _give_back()


@pytest.fixture(scope="session")
def hand() -> HandModel:
    """The embedded right hand, float32."""
    return embedded_hand()


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test with 64-bit types; without it they would silently become 32-bit ones."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def hand64(x64: None) -> HandModel:
    """The embedded right hand, float64; the test runs with 64-bit types."""
    return embedded_hand(dtype=np.float64)


@pytest.fixture(scope="session")
def quick_process() -> dict[str, str]:
    """Environment of processes that start quickly: on one device, with traced programs loaded, as users' are."""
    root = str(Path(__file__).resolve().parents[1])
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    jax_only = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return os.environ | jax_only | {"PYTHONPATH": root, "HANDTAILOR_TRACED_PROGRAMS": "1"}


@pytest.fixture(scope="session")
def optimised_process(quick_process: dict[str, str]) -> dict[str, str]:
    """The same with programs as users have them, which compile longer; for processes that run them for long."""
    return quick_process | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


@pytest.fixture(scope="session")
def simulated(hand: HandModel) -> Callable[..., TailorProblems]:
    """The first `count` of 300 simulated problems, whose generator is thus compiled once for all tests."""

    def first(count: int, seed: int, *kinds: Any, **options: Any) -> TailorProblems:
        made = jax.device_get(tailor_problems(hand, 300, seed, *kinds, **options))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[:count]), made)

    return first


@pytest.fixture(scope="session")
def mano_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in MANO's layout with the made-up hand model of the golden vectors."""
    return write_mano(tmp_path_factory.mktemp("mano") / "MANO_RIGHT.npz")


@pytest.fixture(scope="session")
def mano(mano_path: Path) -> HandModel:
    """The made-up hand model of the golden vectors, float32."""
    return load_mano(mano_path)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with photographs, which are not part of the repository."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("HANDTAILOR_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no photographs: {folder} does not exist (set HANDTAILOR_SHARED to the folder that has them)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator of random numbers."""
    return np.random.default_rng(0)

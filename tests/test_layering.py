"""Order of the package's parts, limits of its size, and cost of importing it."""

import ast
import functools
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "handtailor_jax"

# Each part may import from earlier ones and from itself; two of the same rank never import each other.
RANKS = (
    {"errors", "skeleton", "types"},
    {"geometry", "commands"},
    {"mano", "images"},
    {"render", "detections", "results", "weight_files"},
    {"programs"},
    {"detector", "tailor", "mediapipe"},
    {"hand_module", "finders"},
    {"fit", "pipeline"},
    {"hand_tailor", "image_to_mesh"},
    {"video"},
    {"data"},
    {"synthetic"},
    {"training", "evaluation"},
    {"export", "inputs"},
    {"bulk"},
    {"predict", "labelling", "view"},
    {"cli_data"},
    {"cli", "__main__"},
)
RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts}
WITHIN_A_RANK = {("types", "skeleton"), ("training", "evaluation")}


def modules():
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(ROOT / PACKAGE).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imports(path, module):
    """Names of everything that a file imports, wherever in it; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, which this test does not follow"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name):
    return name.split(".")[1] if name.startswith(f"{PACKAGE}.") else None


def owner(name):
    """The module of the package that an imported name belongs to."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("module", [name for name in MODULES if name != PACKAGE])
def test_imports_point_one_way(module):
    part = part_of(module)
    assert part in RANK, f"{part} has no place in the order of the parts"
    for name in imports(MODULES[module], module):
        other = part_of(name)
        if other and other != part:
            allowed = RANK[other] < RANK[part] or (part, other) in WITHIN_A_RANK
            assert allowed, f"{module} ({part}) imports {name}"


@functools.cache
def import_graph():
    """For each module the modules that it imports; the names that the package itself collects are left out."""
    return {
        module: {owner(name) for name in imports(path, module) if name.startswith(f"{PACKAGE}.")} - {module, PACKAGE}
        for module, path in MODULES.items()
        if module != PACKAGE
    }


def test_no_cycles():
    assert sum(map(len, import_graph().values())) > 10
    list(TopologicalSorter(import_graph()).static_order())


def lines(path):
    return len(path.read_text().splitlines())


def test_size_of_the_package():
    """The package should only shrink from here: the aim is 80 modules and 14,500 lines."""
    count = sum(path.name != "__init__.py" for path in MODULES.values())
    assert count <= 117
    assert sum(map(lines, MODULES.values())) <= 23_471


def test_size_of_modules():
    assert {name: lines(path) for name, path in MODULES.items() if lines(path) > 300} == {}


def test_size_of_functions():
    long = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > 60:
                    long[f"{module}.{node.name}"] = length
    assert long == {}


def test_depth_of_imports():
    """The longest chain of modules that import each other has ten links."""
    depth = {}
    for module in TopologicalSorter(import_graph()).static_order():
        depth[module] = 1 + max((depth[other] for other in import_graph()[module]), default=-1)
    deepest = max(depth, key=depth.get)
    assert depth[deepest] <= 10, deepest


def test_number_of_public_names():
    assert len(importlib.import_module(PACKAGE).__all__) <= 50


def test_no_drawer_for_odds_and_ends_and_no_import_of_tools():
    for module, path in MODULES.items():
        assert not {"utils", "util", "helpers", "misc", "common"} & set(module.split("."))
        for name in imports(path, module):
            assert name.split(".")[0] not in ("tools", "tests", "configs", "benchmarks", "examples"), (
                f"{module} imports {name}"
            )


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_importing_the_package_is_light():
    heavy = {"cv2", "tensorflow", "torch", "trimesh", "matplotlib", "scipy", "tensorflow_datasets", "anny", "PIL"}
    # jax itself may import some of them; only what comes on top of it is ours.
    code = f"import jax, sys; old = set(sys.modules); import {PACKAGE}.mano; print(*(set(sys.modules) - old))"
    loaded = {name.split(".")[0] for name in run(code)}
    assert PACKAGE in loaded
    assert not heavy & loaded


def test_importing_the_package_starts_no_backend():
    early = {"skeleton", "types", "geometry", "mano", "tailor"}
    everything = ", ".join(module for module in MODULES if part_of(module) in early)
    code = f"import {PACKAGE}, {everything}; from jax._src import xla_bridge as b; print(b.backends_are_initialized())"
    assert run(code) == ["False"]

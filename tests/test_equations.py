"""Every equation of the paper has a place in the code, and the README's index says which."""

import re
from pathlib import Path

import pytest

DASH = "\N{EN DASH}"
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "handtailor_jax"


def numbers(text):
    """The whole numbers of a list with ranges: "1, 2, 5" and a dash and "7"."""
    found = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        first, _, last = part.partition(DASH)
        found |= set(range(int(first), int(last or first) + 1))
    return found


def index():
    """The README's table: files (or folders) and the equations said to be in them."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("| where | what | equations |")[1]
    rows = {}
    for line in table.splitlines()[2:]:
        if not line.startswith("|"):
            break
        where, _, equations = (cell.strip() for cell in line.strip("|").split("|"))
        folder, paths = "", []
        for name in re.findall(r"`([^`]+)`", where):
            folder = name.rpartition("/")[0] or folder
            paths.append(name if "/" in name or (PACKAGE / name).exists() else f"{folder}/{name}")
        rows[where] = (paths, numbers(equations))
    return rows


def mentioned(path):
    """Equations that a file or the files of a folder name in the form (Eq. 3), (Eq. 8-11) or Eq. 12, 17."""
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    found = set()
    for text in (file.read_text(encoding="utf-8") for file in files):
        for listed in re.findall(rf"Eq\. (\d+(?:(?:, | and |-|{DASH}| / )\d+)*)", text):
            found |= numbers(re.sub(r" and | / ", ",", listed).replace("-", DASH))
    return found


def test_index_names_all_equations():
    assert set().union(*(equations for _, equations in index().values())) == set(range(1, 18))


@pytest.mark.parametrize("row", index())
def test_files_name_the_equations_of_the_index(row):
    paths, equations = index()[row]
    places = [PACKAGE / path if (PACKAGE / path).exists() else ROOT / path for path in paths]
    assert all(place.exists() for place in places), paths
    missing = equations - set().union(*(mentioned(place) for place in places))
    assert not missing, f"{row} does not name equations {missing}"

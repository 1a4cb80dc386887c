"""docs/notebook.ipynb: its cells run, and it is stored with the pictures of a run.

The code is executed in one namespace, so no Jupyter is needed. To write the pictures anew:
jupyter nbconvert --to notebook --execute --inplace docs/notebook.ipynb
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def cells():
    content = json.loads(NOTEBOOK.read_text("utf-8"))
    assert content["nbformat"] == 4
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def test_ten_cells_with_pictures(cells):
    assert len(cells) == 10
    assert NOTEBOOK.stat().st_size < 600_000
    assert "(docs/notebook.ipynb)" in (ROOT / "README.md").read_text("utf-8")
    assert [cell["execution_count"] for cell in cells] == list(range(1, 11))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 7
    assert {output["output_type"] for output in outputs} == {"display_data", "stream"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)


@pytest.mark.slow
def test_its_cells_run(cells, capsys):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), matplotlib.rc_context():
        for number, cell in enumerate(cells):
            exec(compile("".join(cell["source"]), f"cell {number + 1}", "exec"), namespace)
    assert len(plt.get_fignums()) == 7
    plt.close("all")
    assert [hand.side for hand in namespace["hands"]] == ["left", "right"]
    printed = capsys.readouterr().out.splitlines()
    stored = "".join(line for cell in cells for output in cell["outputs"] for line in output.get("text", []))
    assert len(printed) == len(stored.splitlines())
    # The gradients are those of the hand and its pixels, not nothing.
    assert np.isfinite(namespace["arrows"]).all()
    assert np.abs(namespace["arrows"]).max() > 1e-6
    region, strength = namespace["hand"].region, namespace["strength"]
    (left, top), (right, bottom) = (np.rint(region.center + sign * region.side / 2.0).astype(int) for sign in (-1, 1))
    assert strength[max(top, 0) : bottom, max(left, 0) : right].sum() > 0.9 * strength.sum() > 0.0

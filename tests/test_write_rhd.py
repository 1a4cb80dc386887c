"""tools/write_rhd.py: what it writes, the reader of RHD reads back as it was rendered."""

import runpy
import types
from pathlib import Path

import numpy as np
import pytest

from handtailor_jax.data import open_dataset
from handtailor_jax.data.sample import labelled_batch
from handtailor_jax.evaluation.paper.sources import synthetic_truth
from handtailor_jax.evaluation.paper.subjects import rows
from handtailor_jax.skeleton import ROOT

TOOL = Path(__file__).resolve().parents[1] / "tools" / "write_rhd.py"


@pytest.mark.slow
def test_renderings_come_back_from_rhds_layout(tmp_path, hand):
    truth = rows(synthetic_truth(12), [0, 1])  # as many as in test_evaluate.py, for one program

    class Pool:
        """Labels of the test split with grey images, because rendering is a program of its own."""

        def __len__(self):
            return 2

        def batch(self, indices):
            names = ("keypoints_2d", "intrinsics", "joints", "pose", "betas")
            return labelled_batch(
                image=np.full((len(indices), 256, 256, 3), 90, np.uint8),
                **{name: getattr(truth, name)[indices] for name in names},
            )

    tool = types.SimpleNamespace(**runpy.run_path(str(TOOL)))
    tool.write_split(Pool(), hand, tmp_path / "evaluation")
    reader = open_dataset("rhd", tmp_path, "evaluation", mask=True, depth=True)
    assert len(reader) == 2
    for index in range(2):
        sample = reader[index]
        assert sample.mirrored == (index == 1)
        assert sample.image.shape == (320, 320, 3)
        # The reader mirrors left hands back, so both are the rendered right hands.
        np.testing.assert_allclose(sample.joints, truth.joints[index], atol=1e-5)
        pixels = sample.joints @ sample.intrinsics.T
        np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], sample.keypoints_2d, atol=1e-3)
        moved = 320.0 / 256.0 * (truth.keypoints_2d[index] + 0.5) - 0.5
        np.testing.assert_allclose(sample.keypoints_2d, moved, atol=1e-2)
        # The mask is where the keypoints are, and its depth is the hand's, a finger's or a palm's thickness off.
        inside = ((sample.keypoints_2d > 0) & (sample.keypoints_2d < 319)).all(axis=1)
        column, row = np.round(sample.keypoints_2d[inside]).astype(int).T
        assert sample.mask[row, column].mean() > 0.9
        on_hand = sample.mask[row, column]
        near = sample.depth[row, column] - sample.joints[inside, 2]
        assert np.abs(near[on_hand]).max() < 0.12
        assert sample.depth[~sample.mask].min() == pytest.approx(3.0, abs=1e-3)
        assert abs(sample.depth[sample.mask].mean() - sample.joints[ROOT, 2]) < 0.1

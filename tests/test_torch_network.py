"""The comparison network in PyTorch; most of this needs PyTorch and is skipped without it."""

import sys

import numpy as np
import pytest

from benchmarks.torch_network import torch_network
from handtailor_jax.errors import InputError
from tests import goldens


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needs PyTorch .*: pip install torch"):
        torch_network({})


@pytest.fixture(scope="module")
def weights():
    tensors = goldens.official_weights()
    return tensors | goldens.batch_counters(tensors)


@pytest.mark.slow
def test_it_is_the_official_network(weights):
    torch = pytest.importorskip("torch")
    network = torch_network({**weights, "mano_layer.th_betas": np.zeros((1, 10), np.float32)})
    assert sum(parameter.numel() for parameter in network.parameters()) == 24_932_042
    golden = goldens.golden("official_network")
    images = np.moveaxis(goldens.network_images(), -1, 1) / np.float32(255.0) - np.float32(0.5)
    with torch.no_grad():
        got = network(torch.from_numpy(images), torch.from_numpy(golden["intr"].astype(np.float32)))
    # The tolerances are those of tests/golden/README.md.
    for name, values, tolerance in (
        ("hm3d_stack1", got.heatmaps[:, :, 2::8, 2::8], 1e-4),
        ("uvd", got.uvd, 1e-5),
        ("joint_xyz", got.joints, 1e-4),
        ("bone_vis", got.bone, 1e-4),
        ("quat", got.quaternions, 3e-4),
        ("so3", got.so3, 5e-4),
        ("beta", got.betas, 3e-4),
    ):
        wanted = golden[f"persp/{name}"]
        wanted = wanted[:, :21] if name == "hm3d_stack1" else wanted
        np.testing.assert_allclose(values.numpy(), wanted, rtol=0.0, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_other_state_dicts_are_refused(weights):
    pytest.importorskip("torch")
    name = "iknet.invk_layers.18.weight"
    for changed in ({**weights, "more": np.zeros(1)}, {n: a for n, a in weights.items() if n != name}):
        with pytest.raises(InputError, match="not the official network's state dict") as caught:
            torch_network(changed)
        assert "\n" not in str(caught.value)

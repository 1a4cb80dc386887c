"""The official hand module in PyTorch: the reference for the speed of ours.

Written from the description of the released architecture. It loads the released state dict strictly and reproduces the
golden outputs of tests/golden. Only this comparison needs PyTorch, which is imported when the network is built.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from handtailor_jax.errors import InputError

DEPTH_RANGE = 3.0
DEPTH_MIN = -1.5


@dataclasses.dataclass(frozen=True)
class TorchEstimate:
    """Outputs of the network for a batch of images; every field is a torch tensor."""

    heatmaps: Any
    """(N, 21, 64, 64) heatmaps of the last 3D stack."""
    uvd: Any
    """(N, 21, 3) column and row as shares of the size of the map, and depth in [0, 1]."""
    joints: Any
    """(N, 21, 3) joints in the camera frame, metres."""
    bone: Any
    """(N, 1, 1) length of the reference bone of `joints`, metres."""
    quaternions: Any
    """(N, 16, 4) rotations as unit quaternions, w first, in MANO's joint order."""
    so3: Any
    """(N, 48) rotations as axis-angle vectors."""
    betas: Any
    """(N, 10) shape coefficients."""


def torch_library() -> Any:
    """Import PyTorch, or raise an InputError that names the remedy."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"the comparison needs PyTorch ({error}): pip install torch") from None
    return torch


def torch_network(state: Mapping[str, npt.NDArray[Any]]) -> Any:
    """Return the network in evaluation mode, a ``torch.nn.Module`` called with a batch and intrinsics.

    The call takes (N, 3, 256, 256) float32 RGB in [-0.5, 0.5] and (N, 3, 3) intrinsic matrices of the 256-pixel image
    and returns a `TorchEstimate`.

    Args:
        state: Tensors by official name; tensors of the MANO layer are ignored.

    Raises:
        InputError: if PyTorch is not installed, or if the names or shapes are not the official ones.
    """
    torch = torch_library()
    network = _build(torch)
    tensors = {n: torch.from_numpy(np.array(array)) for n, array in state.items() if "mano_layer" not in n}
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"not the official network's state dict ({' '.join(str(error).split())[:200]}): convert model.pt again"
        ) from None
    return network.eval()


def seeded_state(seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return a state dict with the official names and with PyTorch's random initial weights.

    Raises:
        InputError: if PyTorch is not installed.
    """
    torch = torch_library()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: tensor.numpy() for name, tensor in _build(torch).state_dict().items()}


def _build(torch: Any) -> Any:
    """Build the network with fresh weights; its classes are defined here because their base class is PyTorch's."""
    nn = torch.nn
    relu, max_pool = nn.functional.relu, nn.functional.max_pool2d

    class Bottleneck(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            middle = max(inputs, outputs) // 2
            self.conv1 = nn.Conv2d(inputs, middle, 1)
            self.bn1 = nn.BatchNorm2d(middle)
            self.conv2 = nn.Conv2d(middle, middle, 3, padding=1)
            self.bn2 = nn.BatchNorm2d(middle)
            self.conv3 = nn.Conv2d(middle, outputs, 1)
            self.bn3 = nn.BatchNorm2d(outputs)
            if inputs != outputs:
                self.conv4 = nn.Conv2d(inputs, outputs, 1)

        def forward(self, x: Any) -> Any:
            y = relu(self.bn1(self.conv1(x)))
            y = relu(self.bn2(self.conv2(y)))
            skip = self.conv4(x) if hasattr(self, "conv4") else x
            return relu(self.bn3(self.conv3(y) + skip))

    def one(inputs: int, outputs: int) -> Any:
        return nn.Sequential(Bottleneck(inputs, outputs))

    class Hourglass(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, levels: int = 4) -> None:
            super().__init__()
            # A level has a block for the skip, one on the way in and one on the way out; the innermost has one more.
            self.hg = nn.ModuleList(
                nn.ModuleList(one(256, 256) for _ in range(3 if level else 4)) for level in range(levels)
            )

        def forward(self, x: Any, level: int = 3) -> Any:
            blocks = self.hg[level]
            low = blocks[1](max_pool(x, 2))
            low = self.forward(low, level - 1) if level else blocks[3](low)
            return blocks[0](x) + nn.functional.interpolate(blocks[2](low), scale_factor=2, mode="nearest")

    class Stack(nn.Module):  # type: ignore[name-defined, misc]
        """Two hourglasses in a row; the maps after each are joined to its features."""

        hourglasses: str
        heads: str

        def add_stacks(self, maps: int) -> None:
            setattr(self, self.hourglasses, nn.ModuleList(Hourglass() for _ in range(2)))
            self.res = nn.ModuleList(one(256, 256) for _ in range(2))
            setattr(self, self.heads, nn.ModuleList(nn.Conv2d(256, maps, 1) for _ in range(2)))
            self.fc = nn.ModuleList(
                nn.Sequential(nn.Conv2d(256 + maps, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU())
                for _ in range(2)
            )

        def run_stacks(self, x: Any) -> tuple[Any, Any]:
            """Return features and maps of the last stack."""
            parts = (getattr(self, self.hourglasses), self.res, getattr(self, self.heads), self.fc)
            for hourglass, residual, head, merge in zip(*parts, strict=True):
                x = residual(hourglass(x))
                maps = torch.sigmoid(head(x))
                x = merge(torch.cat([x, maps], dim=1))
            return x, maps

    class Hand2D(Stack):
        hourglasses, heads = "hg2b", "hm"

        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
            self.bn1 = nn.BatchNorm2d(64)
            self.layer1 = one(64, 128)
            self.layer2 = one(128, 256)
            self.layer3 = one(256, 256)
            self.add_stacks(21)

        def forward(self, x: Any) -> Any:
            x = self.layer1(relu(self.bn1(self.conv1(x))))
            return self.run_stacks(self.layer3(self.layer2(max_pool(x, 2))))[0]

    class Hand3D(Stack):
        hourglasses, heads = "hg3d2b", "hm3d"

        def __init__(self) -> None:
            super().__init__()
            self.add_stacks(42)

        def forward(self, x: Any) -> tuple[Any, Any]:
            return self.run_stacks(x)

    class HeatmapBranch(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.hand2d = Hand2D()
            self.hand2dto3d = Hand3D()

        def forward(self, x: Any) -> tuple[Any, Any]:
            return self.hand2dto3d(self.hand2d(x))

    class Decoder(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            for level in range(1, 5):
                first = Bottleneck(256 if level == 1 else 512, 512)
                setattr(self, f"layer{level}", nn.Sequential(first, Bottleneck(512, 512)))

        def forward(self, x: Any) -> Any:
            for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = layer(max_pool(x, 3, stride=2, padding=1))
            return x.mean(dim=(2, 3))

    def perceptron(*widths: int) -> Any:
        layers: list[Any] = []
        for inputs, outputs in itertools.pairwise(widths[:-1]):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(*widths[-2:]))

    class InverseKinematics(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.invk_layers = perceptron(63, 256, 512, 1024, 1024, 512, 256, 64)

        def forward(self, x: Any) -> Any:
            return nn.functional.normalize(self.invk_layers(x).reshape(-1, 16, 4), dim=-1, eps=1e-12)

    class HandModule(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.hand3d = HeatmapBranch()
            self.decoder = Decoder()
            self.shapereg_layers = perceptron(512, 512, 512, 1024, 1024, 512, 256, 12)
            self.iknet = InverseKinematics()

        def forward(self, x: Any, intrinsics: Any) -> TorchEstimate:
            features, maps = self.hand3d(x)
            shape = self.shapereg_layers(self.decoder(features))
            scale, depth = torch.sigmoid(shape[:, :2]).unbind(-1)
            uvd = _soft_argmax(torch, maps[:, :21], maps[:, 21:])
            z = (DEPTH_RANGE * uvd[..., 2] + DEPTH_MIN) * scale[:, None] + depth[:, None]
            focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=-1)
            xy = (x.shape[-1] * uvd[..., :2] - intrinsics[:, None, :2, 2]) / focal[:, None] * z[..., None]
            joints = torch.cat([xy, z[..., None]], dim=-1)
            bone = torch.linalg.vector_norm(joints[:, :1] - joints[:, 9:10], dim=-1, keepdim=True)
            quaternions = self.iknet(((joints - joints[:, 9:10]) / bone).reshape(-1, 63))
            so3 = _axis_angle(torch, quaternions).reshape(-1, 48)
            return TorchEstimate(maps[:, :21], uvd, joints, bone, quaternions, so3, shape[:, 2:])

    return HandModule()


def _soft_argmax(torch: Any, heatmaps: Any, depth_maps: Any) -> Any:
    """Return (N, 21, 3) expectations of column and row, as shares of the maps' size, and of depth (Eq. 4)."""
    weights = heatmaps / heatmaps.sum(dim=(2, 3), keepdim=True)
    size = heatmaps.shape[-1]
    index = torch.arange(size, dtype=weights.dtype)
    u = (weights.sum(dim=2) * index).sum(dim=-1) / size
    v = (weights.sum(dim=3) * index).sum(dim=-1) / size
    return torch.stack([u, v, (weights * depth_maps).sum(dim=(2, 3))], dim=-1)


def _axis_angle(torch: Any, quaternions: Any) -> Any:
    """Return the axis-angle vectors of unit quaternions, with angles in [-pi, pi]."""
    w, xyz = quaternions[..., :1], quaternions[..., 1:]
    sine = torch.linalg.vector_norm(xyz, dim=-1, keepdim=True)
    angle = 2.0 * torch.where(w < 0.0, torch.atan2(-sine, -w), torch.atan2(sine, w))
    return torch.where(sine > 0.0, angle / sine, 2.0) * xyz

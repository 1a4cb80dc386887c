"""Train on your own data with your own loss, on all devices: pip install '.[train]', then

    python examples/05_pmap_on_your_own_data.py [--out runs/own] [--steps 200]

The training step runs under `jax.pmap`: each device computes its share of the batch.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import handtailor_jax as ht
from handtailor_jax.data.sample import Sample
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.losses import weighted_mean
from handtailor_jax.images import read_image
from handtailor_jax.training.config import OptimizerConfig, TrainingConfig
from handtailor_jax.training.custom import Custom
from handtailor_jax.training.loop import train

EXAMPLES = Path(ht.__file__).parent / "assets" / "examples"


class MyData:
    """Images of right hands with keypoints; 3D joints and intrinsics are None where they are unknown."""

    def __init__(self):
        self.labels = [each for each in ht.read_detections(EXAMPLES / "hands.json") if each.side == "right"]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        label = self.labels[index]
        image, visible = read_image(label.image), np.ones(21, bool)
        return Sample(label.id, image, label.keypoints_2d, visible, joints=None, intrinsics=label.camera)


def palm_shape(batch, prediction):
    """Return the mean squared error of the distances from the wrist to the knuckles in the image, in crop sides."""
    length = lambda points: jnp.linalg.norm(points[:, 5:18:4] - points[:, :1] + 1e-6, axis=-1)  # noqa: E731
    error = length(prediction.estimated.keypoints_2d) - length(batch.keypoints_2d)
    return weighted_mean(jnp.square(error / batch.image.shape[1]), batch.keypoint_weight[:, 5:18:4])


def main(out: Path = Path("runs/own"), steps: int = 200) -> Path:
    """Train, starting from the embedded weights; `sources` may list several datasets with their sampling weights."""
    weights = Path(ht.__file__).parent / "assets" / "hourglass.safetensors"
    module, tuning = HandModuleConfig.landmarks(), OptimizerConfig(learning_rate=1e-4, warm_up=10)
    config = TrainingConfig(module, steps=steps, batch=16, weights=weights, optimizer=tuning, evaluate_every=100)
    custom = Custom(sources=[(MyData(), 1.0)], evaluation=MyData(), losses=[(1.0, palm_shape)])
    print(f"{jax.local_device_count()} devices")
    return train(config, out, custom=custom)


if __name__ == "__main__":
    print(tyro.cli(main))

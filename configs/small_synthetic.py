"""The small network on rendered samples and photographs: the second of three runs for the embedded weights.

python train.py --config configs/small_synthetic.py --out runs/small [--data.photographs DIR]

It starts with the IKNet of configs/small_iknet.py. DIR holds photographs and labels.json (`data.photos.read_labels`).
Hardware: 2 CPU cores, 5 GB of memory, 2 GB of disk, 100 minutes. Expected score, keypoints within 10 % of the hand's
size: .51 on renderings, .98 on photographs of digits, .91 on those of a webcam.
"""

import math
from pathlib import Path

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.training.config import DataConfig, OptimizerConfig, TrainingConfig

config = TrainingConfig(
    steps=5_000,
    batch=32,
    data=DataConfig(pool=10_240, photograph_share=0.5),
    augmentation=AugmentationConfig(rotation=math.pi / 4.0, rotation_photographs=math.pi / 6.0),
    optimizer=OptimizerConfig(learning_rate=1e-3, warm_up=200),
    iknet_weights=Path("runs/small_iknet/weights.safetensors"),
    log_every=20,
    evaluate_every=500,
    checkpoint_every=250,
)

"""A small network without pretrained layers, on rendered samples and photographs, in two runs.

    python train.py --config configs/small.py --out runs/small [--data.photographs DIR]
    python train.py --config configs/small.py --out runs/small_photographs --data.photographs DIR \
        --weights runs/small/weights.safetensors --steps 5500 --data.photograph-share 0.6 --loss.betas 0.1 \
        --iknet-weights None --optimizer.learning-rate 8e-4

The first command starts with the IKNet of configs/small_iknet.py. The second command fine-tunes on more photographs;
rendered samples keep the third dimension from drifting, and --iknet-weights None keeps the IKNet of --weights. DIR has
images and labels.json (docs/training.md, Your own photographs).

Hardware: 2 CPU cores, 5 GB of memory, 2 GB of disk; 100 minutes each.
Expected score, keypoints within 10 % of the hand size: .51 on renderings, .98 on photographs of digits, .91 on
photographs of a webcam; after the second command .56, .99 and .93 (docs/model-card.md).
"""

import math
from pathlib import Path

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.training.config import DataConfig, TrainingConfig

config = TrainingConfig(
    steps=5_000,
    batch=32,
    data=DataConfig(pool=10_240, photograph_share=0.5),
    augmentation=AugmentationConfig(rotation=math.pi / 4.0, rotation_photographs=math.pi / 6.0),
    iknet_weights=Path("runs/small_iknet/weights.safetensors"),
    log_every=20,
    evaluate_every=500,
    checkpoint_every=250,
)

"""The network of the embedded hourglass, stem included, on one large GPU, which renders new samples in every step.

    python train.py --config configs/small_iknet.py --out runs/small_iknet
    python train.py --config configs/hourglass_gpu.py --out runs/hourglass_gpu [--data.photographs DIR]

DIR has images and labels.json (docs/training.md, Your own photographs).

Hardware: estimated at an accelerator with 24 GB; `python benchmarks/train.py --config configs/hourglass_gpu.py`
measures the speed. Hours: about nine on an NVIDIA H200, by the 160 images/s of its first 99 steps; not run to the end.
Expected score: not measured; the run takes 40 times as many images as the run of configs/hourglass.py.
"""

import dataclasses
import math
from pathlib import Path

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.training.config import DataConfig, OptimizerConfig, TrainingConfig

config = TrainingConfig(
    module=dataclasses.replace(HandModuleConfig.landmarks(), dtype="bfloat16"),
    steps=20_000,
    batch=256,
    data=DataConfig(size=256, synthetic="rendered", photograph_share=0.5, test=1024),
    augmentation=AugmentationConfig(
        upright=1.0, fill=(0.4, 0.85), rotation=math.pi / 5.0, rotation_photographs=math.pi / 5.0
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, warm_up=500, trunk=0.1),
    iknet_weights=Path("runs/small_iknet/weights.safetensors"),
    log_every=50,
    checkpoint_every=1_000,
)

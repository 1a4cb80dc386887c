"""The small network on one large GPU, which renders new samples for every step.

    python train.py --config configs/small_iknet.py --out runs/small_iknet
    python train.py --config configs/small_gpu.py --out runs/small_gpu [--data.photographs DIR]

Hardware: one accelerator with 24 GB or more; `python benchmarks/train.py --config configs/small_gpu.py` measures it.
Hours: not run yet. Expected score: not measured; it sees 30 times as many images as configs/small.py.
"""

import dataclasses
import math
from pathlib import Path

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.training.config import DataConfig, OptimizerConfig, TrainingConfig

config = TrainingConfig(
    module=dataclasses.replace(HandModuleConfig.small(), dtype="bfloat16"),
    steps=20_000,
    batch=256,
    data=DataConfig(synthetic="rendered", test=1024),
    augmentation=AugmentationConfig(rotation=math.pi / 3.0, rotation_photographs=math.pi / 4.0),
    optimizer=OptimizerConfig(learning_rate=2e-3, warm_up=500),
    iknet_weights=Path("runs/small_iknet/weights.safetensors"),
    log_every=50,
    checkpoint_every=1_000,
)

"""The recipe of the embedded weights for one large GPU, which renders new samples for every step.

python train.py --config configs/small_iknet.py --out runs/small_iknet
python train.py --config configs/small_gpu.py --out runs/small_gpu [--data.photographs DIR]

Hardware: one accelerator with 24 GB or more; run there with --benchmark first. Hours: not run on one yet.
Expected score: none measured; it should pass that of configs/small_synthetic.py, which sees 30 times fewer pictures.
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
    data=DataConfig(synthetic="rendered", photograph_share=0.25, test=1024),
    augmentation=AugmentationConfig(rotation=math.pi / 3.0, rotation_photographs=math.pi / 4.0),
    optimizer=OptimizerConfig(learning_rate=2e-3, warm_up=500),
    iknet_weights=Path("runs/small_iknet/weights.safetensors"),
    log_every=50,
    evaluate_every=1_000,
    checkpoint_every=1_000,
)

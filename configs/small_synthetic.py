"""The small network on rendered samples and photographs, for a CPU.

python train.py --config configs/small_synthetic.py --out runs/small [--data.photographs DIR]

DIR holds photographs and labels.json (`data.photos.read_labels`). Hardware: 2 CPU cores, 4 GB of memory, 2 GB of disk,
about 9 hours at 20 images/s. Expected score: not run to its end yet.
"""

import math

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.training.config import DataConfig, OptimizerConfig, TrainingConfig

config = TrainingConfig(
    steps=20_000,
    batch=32,
    data=DataConfig(pool=12_288, photograph_share=0.375),
    augmentation=AugmentationConfig(rotation=math.pi / 3.0, rotation_photographs=math.pi / 4.0),
    optimizer=OptimizerConfig(learning_rate=1e-3, warm_up=300),
    log_every=20,
    evaluate_every=500,
    checkpoint_every=250,
)

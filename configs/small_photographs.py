"""Fine-tuning on photographs, with renderings so that 3D does not drift: third of three runs for the embedded weights.

python train.py --config configs/small_photographs.py --out runs/small_photographs --data.photographs DIR \
    [--weights FILE]

DIR holds photographs and labels.json (`data.photos.read_labels`); FILE are the weights to start from, those of
configs/small_synthetic.py if not given. Hardware: 2 CPU cores, 5 GB of memory, 2 GB of disk, 100 minutes.
Expected score, keypoints within 10 % of the hand's size: .56 on renderings, .99 on photographs of digits, .93 on
those of a webcam (docs/model-card.md).
"""

import dataclasses
import math
from pathlib import Path

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.training.config import DataConfig, LossWeights, OptimizerConfig, TrainingConfig

config = TrainingConfig(
    steps=5_500,
    batch=32,
    data=DataConfig(pool=10_240, photograph_share=0.6),
    augmentation=AugmentationConfig(rotation=math.pi / 4.0, rotation_photographs=math.pi / 6.0),
    loss=dataclasses.replace(LossWeights.ours(), betas=0.1),
    optimizer=OptimizerConfig(learning_rate=8e-4, warm_up=200),
    weights=Path("runs/small/weights.safetensors"),
    log_every=20,
    evaluate_every=500,
    checkpoint_every=250,
)

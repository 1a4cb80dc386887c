"""Fine-tuning with losses on the tailored mesh, from trained weights.

    python train.py --config configs/through_tailor.py --out runs/through \
        --weights handtailor_jax/assets/hourglass.safetensors
    python train.py --config configs/through_tailor.py --out runs/without \
        --weights handtailor_jax/assets/hourglass.safetensors --loss.tailored-keypoints 1e-9 --loss.tailored-mesh 1e-9

The second run gets the same samples in the same order and reports the same losses, but does not follow their gradients.
Hardware: a CPU core and 4 GB of memory for each, 35 minutes after the rendering. Expected score: in docs/model-card.md.
"""

import dataclasses
import math

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.training.config import DataConfig, LossWeights, OptimizerConfig, TrainingConfig

config = TrainingConfig(
    module=HandModuleConfig.landmarks(),
    steps=3_000,
    batch=16,
    data=DataConfig(size=256, pool=10_240),
    augmentation=AugmentationConfig(upright=1.0, fill=(0.4, 0.85), rotation=math.pi / 5.0),
    loss=dataclasses.replace(LossWeights.ours(), tailored_keypoints=3.0, tailored_mesh=3.0),
    detached=False,
    optimizer=OptimizerConfig(learning_rate=1e-4, warm_up=20, average=0.99),
    log_every=10,
    evaluate_every=500,
    checkpoint_every=100,
)

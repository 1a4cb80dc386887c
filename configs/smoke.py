"""A run of a tiny network that uses every part of the training.

    python train.py --config configs/smoke.py --out runs/smoke

Hardware: any; about three minutes on 2 CPU cores, mostly compilation. Expected score: none, the network is too small.
"""

import dataclasses

from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.training.config import DataConfig, OptimizerConfig, TrainingConfig

config = TrainingConfig(
    module=dataclasses.replace(
        HandModuleConfig.small(),
        image_size=32,
        channels=16,
        depth=2,
        shape_channels=16,
        shape_levels=2,
        shape_hidden=(32,),
        ik_hidden=(64, 64),
    ),
    steps=20,
    batch=8,
    data=DataConfig(size=48, pool=128, test=32),
    optimizer=OptimizerConfig(warm_up=5),
    log_every=5,
    evaluate_every=10,
    checkpoint_every=5,
)

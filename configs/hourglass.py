"""The embedded hourglass, on the maps of the pretrained hand landmark network, whose weights stay as they are.

    python train.py --config configs/hourglass.py --out runs/hourglass [--data.photographs DIR]

    python train.py --config configs/hourglass.py --out runs/tuned --data.photographs DIR --data.pool 6144 \
        --weights runs/hourglass/weights.safetensors --iknet-weights None --steps 1500 \
        --optimizer.learning-rate 5e-4 --augmentation.motion 3

    python train.py --config configs/hourglass.py --out runs/last --data.photographs DIR --data.pool 4096 \
        --data.second-hand 0.3 --data.photograph-backgrounds --weights runs/tuned/weights.safetensors \
        --iknet-weights None --steps 1500 --optimizer.learning-rate 3e-4 --optimizer.average 0.995 \
        --augmentation.motion 3 --no-detached --loss.tailored-keypoints 3 --loss.tailored-mesh 3

The first command starts with the IKNet of configs/small_iknet.py; that of the embedded weights started with the IKNet
of configs/small.py after both of its runs. The second command fine-tunes with motion blur. For the embedded weights it
was also the first run with the present landmark convention, with which photographs are fitted (docs/model-card.md). The
third command is the last stage, through the tailor; on jax 0.10 it needs one device, the default on a CPU.
The hand points up in all crops, as in the regions of the detector. DIR has images and labels.json (docs/training.md,
Your own photographs).

Hardware: 2 CPU cores, 6 GB of memory, 7 GB of disk; 20 minutes of rendering and an hour of training, then half
an hour, then 15 and 40 minutes.
Expected score, keypoints within 10 % of the hand size: in docs/model-card.md.
"""

import math
from pathlib import Path

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.training.config import DataConfig, TrainingConfig

config = TrainingConfig(
    module=HandModuleConfig.landmarks(),
    steps=4_000,
    batch=32,
    data=DataConfig(size=256, pool=10_240, photograph_share=0.5),
    augmentation=AugmentationConfig(
        upright=1.0, fill=(0.4, 0.85), rotation=math.pi / 5.0, rotation_photographs=math.pi / 5.0
    ),
    iknet_weights=Path("runs/small_iknet/weights.safetensors"),
    log_every=20,
    evaluate_every=500,
    checkpoint_every=250,
)

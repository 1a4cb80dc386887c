"""The paper's first stage: heatmaps, depths and lengths (Eq. 6), 100 epochs at 3e-4.

    python train.py --config configs/paper_keypoints.py --out runs/keypoints --data.dataset-folder RHD_published_v2
    python train.py ... --data.dataset stb --data.dataset-folder STB --steps 23438
    python train.py ... --data.dataset freihand --data.dataset-folder FreiHAND_pub_v2 --steps 203500

--steps is 100 epochs. FreiHAND is evaluated with the ground truth that was published later: put FreiHAND_pub_v2_eval
beside its folder.

The network is the released one, with a decoding without the released program's biases. The paper states neither the
batch size nor the augmentation. Those here are BiHand's, on whose code HandTailor's training was built.

Hardware: estimated at one GPU with 80 GB, or less with --optimizer.accumulate 4; 8 CPU cores decode the images.
Hours: not run; at 6.5e12 operations a step, 12 (RHD), 4 (STB) and 37 (FreiHAND) at 10 Tflop/s.
Expected score: not measured, and not stated in the paper.
"""

import dataclasses
import math
from pathlib import Path

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.training.config import DataConfig, LossWeights, OptimizerConfig, TrainingConfig

BATCH = 64

config = TrainingConfig(
    module=dataclasses.replace(HandModuleConfig.official(), decoding="paper"),
    stage="keypoints",
    steps=math.ceil(100 * 41_258 / BATCH),
    batch=BATCH,
    # Twice the hand size is 320 pixels, so the smallest crop, 1.6 hand sizes, has the network's 256.
    data=DataConfig(size=320, dataset="rhd", dataset_folder=Path("RHD_published_v2")),
    augmentation=AugmentationConfig(
        # Squares of twice the hand size, larger or smaller by up to 20 %, moved by up to about an eighth per axis.
        fill=(1.0 / 2.4, 1.0 / 1.6),
        shift=0.0,
        rotation=math.pi / 2.0,
        drop_intrinsics=0.0,  # the paper trains in perspective only
        gamma=0.0,
        saturation=(0.5, 1.5),
        grey=0.0,
        blur=0.5,
        noise=0.0,
        cut_out=0.0,
    ),
    # Eq. 6 is in reference bones, so the length of the reference bone needs a separate loss.
    loss=dataclasses.replace(LossWeights.paper("keypoints"), bone=0.1),
    detached=False,
    heatmap_sigma=2.0,
    # Plain Adam: no warm-up, no decay, no clipping, no average.
    optimizer=OptimizerConfig(3e-4, warm_up=0, final=1.0, weight_decay=0.0, clip=1e9, average=0.0),
    log_every=50,
    evaluate_every=2_000,
    checkpoint_every=1_000,
)

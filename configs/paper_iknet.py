"""The paper's second stage: IKNet on sampled poses alone (L_ik), 50 epochs at 3e-4; the same for every dataset.

    python train.py --config configs/paper_iknet.py --out runs/iknet [--hand MANO_RIGHT.pkl]

The paper uses MANO; the embedded hand works, too. The last stage needs the same hand. Half of the poses are recombined
from those that the MANO file carries (`hands_coeffs`) and, with `--data.dataset freihand --data.dataset-folder
FreiHAND_pub_v2`, from FreiHAND's fits. The paper does not state how many poses are in an epoch: here it is the million
of BiHand's SIK-1M, sampled anew in every epoch.

Hardware: any. Hours: not run; 48,829 steps of 1,024 poses.
Expected score: not measured, and not stated in the paper.
"""

import dataclasses
import math
import runpy
from pathlib import Path

from handtailor_jax.training.config import DataConfig, LossWeights

BATCH = 1024

config = dataclasses.replace(
    runpy.run_path(str(Path(__file__).with_name("paper_keypoints.py")))["config"],
    stage="ik",
    steps=math.ceil(50 * 1_000_000 / BATCH),
    batch=BATCH,
    data=DataConfig(size=320),
    loss=LossWeights.paper("ik"),
    betas_std=3.0,  # as in Zhou et al. (CVPR 2020), the source of L_ik
    log_every=100,
    checkpoint_every=2_000,
)

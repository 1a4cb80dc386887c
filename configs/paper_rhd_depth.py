"""The paper on RHD, last of three stages, with a depth loss on the rendered hand (Table 4, L_beta + depth).

python train.py --config configs/paper_rhd_depth.py --out runs/rhd_depth \
    --data.dataset-folder RHD_published_v2 [--hand MANO_RIGHT.pkl]

As paper_rhd_end_to_end.py, which is the row L_beta. The paper does not say how it weighs the loss: 1 here, like L_beta.

Hardware: as paper_rhd_end_to_end.py, with 64 renderings of 64 x 64 pixels a step. Hours: not run here.
Expected score: none measured; the paper's is AUC 20-50 .956, AUC 5-20 .653 after the tailor.
"""

import dataclasses
from pathlib import Path

from handtailor_jax.training.config import LossWeights
from handtailor_jax.training.paper import end_to_end_stage

SAMPLES = 41_258  # pictures of the training split, one hand each

config = dataclasses.replace(
    end_to_end_stage(
        "rhd",
        SAMPLES,
        Path("RHD_published_v2"),
        keypoints=Path("runs/rhd_keypoints/weights.safetensors"),
        iknet=Path("runs/paper_iknet/weights.safetensors"),
    ),
    loss=dataclasses.replace(LossWeights.paper(), paper_depth=1.0),
)

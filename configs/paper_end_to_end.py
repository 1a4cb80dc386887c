"""The paper's third stage: everything (Eq. 7), 100 epochs at 3e-5.

    python train.py --config configs/paper_end_to_end.py --out runs/rhd --data.dataset-folder RHD_published_v2 \
        [--hand MANO_RIGHT.pkl]

It starts from runs/keypoints and runs/iknet, the runs of paper_keypoints.py and paper_iknet.py (--weights and
--iknet-weights change that). The hand must be the one of paper_iknet.py. paper_keypoints.py lists the flags of the
other datasets.

Table 4, left: this run on RHD is the row L_beta; `--loss.paper-depth 1` and `--loss.paper-silhouette 1` are the rows
with a depth and a silhouette loss on the rendered hand. The paper does not state their weights; 1 is L_beta's.

Hardware: estimated at one GPU with 80 GB, or less with --optimizer.accumulate 4; 8 CPU cores decode the images.
Hours: not run; at 6.5e12 operations a step, 12 (RHD), 4 (STB) and 37 (FreiHAND) at 10 Tflop/s.
Expected score: not measured. The paper states AUC 20-50 .949 (RHD) and .997 (STB) before the tailor, .958 and .998
after it (Table 1), PA-MPJPE 8.5 mm and 8.2 mm on FreiHAND, and for Table 4 AUC 20-50 .956 (depth), .955 (silhouette).
"""

import dataclasses
import runpy
from pathlib import Path

from handtailor_jax.training.config import LossWeights

first = runpy.run_path(str(Path(__file__).with_name("paper_keypoints.py")))["config"]

config = dataclasses.replace(
    first,
    stage="end_to_end",
    loss=dataclasses.replace(LossWeights.paper("end_to_end"), bone=first.loss.bone),
    optimizer=dataclasses.replace(first.optimizer, learning_rate=3e-5),
    weights=Path("runs/keypoints/weights.safetensors"),
    iknet_weights=Path("runs/iknet/weights.safetensors"),
)

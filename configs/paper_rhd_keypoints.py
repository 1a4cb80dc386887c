"""The paper on RHD, first of three stages: heatmaps, depths and lengths (Eq. 6), 100 epochs at 3e-4.

python train.py --config configs/paper_rhd_keypoints.py --out runs/rhd_keypoints \
    --data.dataset-folder RHD_published_v2

Hardware: a GPU with 80 GB by estimate, or --optimizer.accumulate 4; 8 cores decode. Hours: not run here; 64,466 steps
of 6.5e12 operations take 12 at 10 Tflop/s. Expected score: none measured, and none in the paper.
"""

from pathlib import Path

from handtailor_jax.training.paper import keypoint_stage

SAMPLES = 41_258  # pictures of the training split, one hand each

config = keypoint_stage("rhd", SAMPLES, Path("RHD_published_v2"))

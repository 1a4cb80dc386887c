"""The paper on FreiHAND, first of three stages: heatmaps, depths and lengths (Eq. 6), 100 epochs at 3e-4.

python train.py --config configs/paper_freihand_keypoints.py --out runs/freihand_keypoints \
    --data.dataset-folder FreiHAND_pub_v2

Its evaluation needs the truth that was published later: put FreiHAND_pub_v2_eval beside the folder.

Hardware: a GPU with 80 GB by estimate, or --optimizer.accumulate 4; 8 cores decode. Hours: not run here; 203,500 steps
of 6.5e12 operations take 37 at 10 Tflop/s. Expected score: none measured, and none in the paper.
"""

from pathlib import Path

from handtailor_jax.training.paper import keypoint_stage

SAMPLES = 130_240  # 32,560 annotations with four pictures each

config = keypoint_stage("freihand", SAMPLES, Path("FreiHAND_pub_v2"))

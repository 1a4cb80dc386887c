"""The paper's first stage: heatmaps, depths and lengths (Eq. 6), 100 epochs at 3e-4.

    python train.py --config configs/paper_keypoints.py --out runs/keypoints --data.dataset-folder RHD_published_v2
    python train.py ... --data.dataset stb --data.dataset-folder STB --steps 23438
    python train.py ... --data.dataset freihand --data.dataset-folder FreiHAND_pub_v2 --steps 203500

--steps is 100 epochs. FreiHAND is evaluated with the ground truth that was published later: put FreiHAND_pub_v2_eval
beside its folder.

Hardware: estimated at one GPU with 80 GB, or less with --optimizer.accumulate 4; 8 CPU cores decode the images.
Hours: not run; at 6.5e12 operations a step, 12 (RHD), 4 (STB) and 37 (FreiHAND) at 10 Tflop/s.
Expected score: not measured, and not stated in the paper.
"""

from handtailor_jax.training.config import TrainingConfig

config = TrainingConfig.paper("keypoints")

"""The paper on STB, first of three stages: heatmaps, depths and lengths (Eq. 6), 100 epochs at 3e-4.

python train.py --config configs/paper_stb_keypoints.py --out runs/stb_keypoints \
    --data.dataset-folder STB

Hardware: a GPU with 80 GB by estimate, or --optimizer.accumulate 4; 8 cores decode. Hours: not run here; 23,438 steps
of 6.5e12 operations take 4 at 10 Tflop/s. Expected score: none measured, and none in the paper.
"""

from pathlib import Path

from handtailor_jax.training.paper import keypoint_stage

SAMPLES = 15_000  # frames of the sequences B2 to B6, of the colour camera

config = keypoint_stage("stb", SAMPLES, Path("STB"))

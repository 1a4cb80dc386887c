"""The paper on RHD, last of three stages: everything (Eq. 7), 100 epochs at 3e-5.

python train.py --config configs/paper_rhd_end_to_end.py --out runs/rhd \
    --data.dataset-folder RHD_published_v2 [--hand MANO_RIGHT.pkl]

It starts from the weights of paper_rhd_keypoints.py and paper_iknet.py, the latter with the same --hand.
With MANO, as in the paper, or with the embedded hand; the weights of this run are Table 4's row L_beta.

Hardware: a GPU with 80 GB by estimate, or --optimizer.accumulate 4; 8 cores decode. Hours: not run here; 64,466 steps
of 6.5e12 operations take 12 at 10 Tflop/s.
Expected score: none measured; the paper's is AUC 20-50 .949 before the tailor, .958 after it (Table 1).
"""

from pathlib import Path

from handtailor_jax.training.paper import end_to_end_stage

SAMPLES = 41_258  # pictures of the training split, one hand each

config = end_to_end_stage(
    "rhd",
    SAMPLES,
    Path("RHD_published_v2"),
    keypoints=Path("runs/rhd_keypoints/weights.safetensors"),
    iknet=Path("runs/paper_iknet/weights.safetensors"),
)

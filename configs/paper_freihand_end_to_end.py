"""The paper on FreiHAND, last of three stages: everything (Eq. 7), 100 epochs at 3e-5.

python train.py --config configs/paper_freihand_end_to_end.py --out runs/freihand \
    --data.dataset-folder FreiHAND_pub_v2 [--hand MANO_RIGHT.pkl]

It starts from the weights of paper_freihand_keypoints.py and paper_iknet.py, the latter with the same --hand.
With MANO, as in the paper, or with the embedded hand.

Its evaluation needs the truth that was published later: put FreiHAND_pub_v2_eval beside the folder.

Hardware: a GPU with 80 GB by estimate, or --optimizer.accumulate 4; 8 cores decode. Hours: not run here; 203,500 steps
of 6.5e12 operations take 37 at 10 Tflop/s.
Expected score: none measured; the paper's is PA-MPJPE 8.5 mm before the tailor, 8.2 mm after it.
"""

from pathlib import Path

from handtailor_jax.training.paper import end_to_end_stage

SAMPLES = 130_240  # 32,560 annotations with four pictures each

config = end_to_end_stage(
    "freihand",
    SAMPLES,
    Path("FreiHAND_pub_v2"),
    keypoints=Path("runs/freihand_keypoints/weights.safetensors"),
    iknet=Path("runs/paper_iknet/weights.safetensors"),
)

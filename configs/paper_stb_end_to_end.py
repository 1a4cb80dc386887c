"""The paper on STB, last of three stages: everything (Eq. 7), 100 epochs at 3e-5.

python train.py --config configs/paper_stb_end_to_end.py --out runs/stb \
    --data.dataset-folder STB [--hand MANO_RIGHT.pkl]

It starts from the weights of paper_stb_keypoints.py and paper_iknet.py, the latter with the same --hand.
With MANO, as in the paper, or with the embedded hand.

Hardware: a GPU with 80 GB by estimate, or --optimizer.accumulate 4; 8 cores decode. Hours: not run here; 23,438 steps
of 6.5e12 operations take 4 at 10 Tflop/s.
Expected score: none measured; the paper's is AUC 20-50 .997 before the tailor, .998 after it (Table 1).
"""

from pathlib import Path

from handtailor_jax.training.paper import end_to_end_stage

SAMPLES = 15_000  # frames of the sequences B2 to B6, of the colour camera

config = end_to_end_stage(
    "stb",
    SAMPLES,
    Path("STB"),
    keypoints=Path("runs/stb_keypoints/weights.safetensors"),
    iknet=Path("runs/paper_iknet/weights.safetensors"),
)

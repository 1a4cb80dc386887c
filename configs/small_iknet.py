"""IKNet alone, on sampled poses: small.py, hourglass.py and hourglass_gpu.py start from its weights.

    python train.py --config configs/small_iknet.py --out runs/small_iknet

Hardware: 2 CPU cores, 2 GB of memory; 4 minutes.
Expected score: 7.1 degrees and 3.9 mm on held-out poses.
"""

from handtailor_jax.training.config import TrainingConfig

config = TrainingConfig(
    stage="ik",
    steps=4_000,
    batch=256,
    log_every=50,
    evaluate_every=500,
    checkpoint_every=1_000,
)

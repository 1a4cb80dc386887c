"""IKNet of the small network on sampled poses alone: the first of three runs for the embedded weights.

    python train.py --config configs/small_iknet.py --out runs/small_iknet

Its weights start configs/small.py. Hardware: 2 CPU cores, 2 GB of memory; 4 minutes.
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

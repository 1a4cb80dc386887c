"""The paper's second of three stages, which its datasets share: IKNet on poses alone (L_ik), 50 epochs at 3e-4.

python train.py --config configs/paper_iknet.py --out runs/paper_iknet [--hand MANO_RIGHT.pkl]

With MANO, as in the paper, or with the embedded hand; the last stage wants the same. The paper does not say how many
poses make an epoch: here as many as in BiHand's SIK-1M, drawn anew in each.

Hardware: anything. Hours: not run here; 48,829 steps of 1,024 poses. Expected score: none measured, and none in the
paper.
"""

from handtailor_jax.training.paper import iknet_stage

POSES = 1_000_000

config = iknet_stage(POSES)

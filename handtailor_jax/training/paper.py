"""The paper's three stages (method, section "Hand module"): keypoints, IKNet on poses, then everything end to end.

The paper's: Eq. 6 and 7 with their weights, Adam at 3e-4 and 3e-5, 100, 50 and 100 epochs; the network is the released
one. It names neither batch size nor augmentation nor how many poses IKNet learns from: those here are BiHand's, from
whose code HandTailor's training was made (datasets, section 4).
"""

import dataclasses
import math
from pathlib import Path

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.training.config import (
    DataConfig,
    DatasetChoice,
    LossWeights,
    OptimizerConfig,
    Stage,
    TrainingConfig,
)

_BATCH, _POSES = 64, 1024
_EPOCHS, _IK_EPOCHS = 100, 50
_NO_CLIPPING = 1e9

_AUGMENTATION = AugmentationConfig(
    # Squares of 2.0 times the box around the joints, larger or smaller by up to 20 %.
    fill=(1.0 / 2.4, 1.0 / 1.6),
    # With the room that such a box leaves, its middle moves by up to a tenth of the square's side even so.
    shift=0.0,
    rotation=math.pi / 2.0,
    # The network is trained in perspective alone.
    drop_intrinsics=0.0,
    exposure=0.25,
    tint=0.08,
    gamma=0.0,
    contrast=0.25,
    saturation=(0.5, 1.5),
    grey=0.0,
    blur=0.5,
    noise=0.0,
    cut_out=0.0,
)


def keypoint_stage(dataset: DatasetChoice, samples: int, folder: Path) -> TrainingConfig:
    """The first stage: all but IKNet on Eq. 6, from nothing, Adam at 3e-4.

    Args:
        dataset: to train on.
        samples: of its training split, which make an epoch.
        folder: of the dataset.
    """
    weights = dataclasses.replace(LossWeights.paper(), paper_betas=0.0, paper_model_keypoints=0.0)
    return _stage(dataset, samples, folder, "keypoints", weights, 3e-4)


def iknet_stage(poses: int) -> TrainingConfig:
    """The second stage: IKNet on L_ik, Adam at 3e-4; its poses are sampled anew for every step.

    Args:
        poses: that make an epoch.
    """
    return TrainingConfig(
        module=HandModuleConfig.official(),
        stage="ik",
        steps=_steps(_IK_EPOCHS, poses, _POSES),
        batch=_POSES,
        # Of L_ik, L_xyz is the term of the keypoints.
        loss=LossWeights(rotations_from_truth=1.0, model_keypoints=1.0),
        detached=False,
        optimizer=_adam(3e-4),
        log_every=100,
        evaluate_every=2_000,
        checkpoint_every=2_000,
    )


def end_to_end_stage(
    dataset: DatasetChoice, samples: int, folder: Path, keypoints: Path, iknet: Path
) -> TrainingConfig:
    """The third stage: everything on Eq. 7, Adam at 3e-5.

    Args:
        dataset: to train on.
        samples: of its training split, which make an epoch.
        folder: of the dataset.
        keypoints: weights of the first stage.
        iknet: weights of the second stage.
    """
    first = _stage(dataset, samples, folder, "end_to_end", LossWeights.paper(), 3e-5)
    return dataclasses.replace(first, weights=keypoints, iknet_weights=iknet)


def _stage(
    dataset: DatasetChoice, samples: int, folder: Path, stage: Stage, loss: LossWeights, rate: float
) -> TrainingConfig:
    return TrainingConfig(
        module=HandModuleConfig.official(),
        stage=stage,
        steps=_steps(_EPOCHS, samples, _BATCH),
        batch=_BATCH,
        # Crops of 256 pixels from squares of 2.0 boxes: as many pixels in the smallest crop, of 1.6 boxes.
        data=DataConfig(size=320, dataset=dataset, dataset_folder=folder),
        augmentation=_AUGMENTATION,
        loss=loss,
        detached=False,
        heatmap_sigma=2.0,
        optimizer=_adam(rate),
        log_every=50,
        evaluate_every=2_000,
        checkpoint_every=1_000,
    )


def _adam(rate: float) -> OptimizerConfig:
    """Adam as such, without all that `OptimizerConfig` offers besides."""
    return OptimizerConfig(learning_rate=rate, warm_up=0, final=1.0, weight_decay=0.0, clip=_NO_CLIPPING, average=0.0)


def _steps(epochs: int, samples: int, batch: int) -> int:
    return math.ceil(epochs * samples / batch)

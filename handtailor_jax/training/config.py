"""The configuration of a training run. The field texts are the help texts of train.py."""

import dataclasses
import math
from pathlib import Path
from typing import Literal, NamedTuple

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.synthetic.poses import PoseConfig

Stage = Literal["keypoints", "ik", "end_to_end"]
DatasetChoice = Literal["rhd", "stb", "freihand"]


class Counts(NamedTuple):
    """Number of samples per step from each kind of source."""

    synthetic: int
    photographs: int
    dataset: int


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources of the training samples."""

    cache: Path = Path("cache")
    """Folder for everything that is computed once: rendered samples, fitted photographs, backgrounds."""
    size: int = 160
    """Side of the images before augmentation, pixels; somewhat larger than the network's input."""
    synthetic: Literal["pool", "rendered"] = "pool"
    """Rendered samples: a fixed pool on disk, or new samples rendered in every step, which needs an accelerator."""
    pool: int = 16384
    """Number of samples in the pool."""
    photographs: Path | None = None
    """Folder of labelled photographs (docs/training.md, Your own photographs); none if not given."""
    photograph_share: float = 0.25
    """Share of photographs in every batch."""
    photograph_3d: float = 0.2
    """Weight of the 3D terms of photographs, whose pose and shape are fits to their keypoints; 0 trains in 2D only."""
    pasted: float = 0.6
    """Share of photographs with a plain background whose hand is pasted onto another background."""
    dataset: DatasetChoice | None = None
    """Published dataset whose training split is used; none if not given."""
    dataset_folder: Path | None = None
    """Folder of the dataset, as its archive unpacks."""
    dataset_share: float = 1.0
    """Share of the dataset in every batch. Samples that are neither from the dataset nor photographs are rendered."""
    test: int = 256
    """Number of samples in each test set, rendered or from the dataset, for the periodic evaluation."""
    poses: PoseConfig = dataclasses.field(default_factory=PoseConfig)
    """Poses that IKNet is trained on in stage "ik"."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: If counts or shares give no data.
        """
        if self.pool < 1 or self.test < 1:
            raise InputError(f"data.pool and data.test must be at least 1, got {self.pool} and {self.test}")
        if not 0.0 <= self.photograph_share <= 1.0:
            raise InputError(f"data.photograph_share is a share between 0 and 1, got {self.photograph_share}")
        if self.photographs is None and self.photograph_share == 1.0:
            raise InputError("data.photograph_share is 1 but there are no photographs: set data.photographs")
        if not 0.0 < self.dataset_share <= 1.0:
            raise InputError(f"data.dataset_share is a share above 0 and at most 1, got {self.dataset_share}")
        if (self.dataset is None) != (self.dataset_folder is None):
            given, missing = ("dataset_folder", "dataset") if self.dataset is None else ("dataset", "dataset_folder")
            raise InputError(f"data.{given} is set but data.{missing} is not: set both or neither")
        shares = self.dataset_share + self.photograph_share
        if self.dataset is not None and self.photographs is not None and shares > 1.0:
            raise InputError(
                f"data.dataset_share and data.photograph_share add up to {shares:g}: lower them to a sum of at most 1"
            )

    def counts(self, batch: int) -> Counts:
        """Return the number of samples from each kind of source in a batch."""
        photographs = 0 if self.photographs is None else round(self.photograph_share * batch)
        dataset = 0 if self.dataset is None else min(round(self.dataset_share * batch), batch - photographs)
        return Counts(synthetic=batch - photographs - dataset, photographs=photographs, dataset=dataset)


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weight of every term of the objective; 0 leaves the term out. training/objective.py defines the terms."""

    heatmap: float = 0.0
    """Weight of the cross-entropy of all stacks' heatmaps against Gaussians of sum 1."""
    keypoints_2d: float = 0.0
    """Weight of the Huber error of the keypoints, in crop sides."""
    relative_depth: float = 0.0
    """Weight of the Huber error of the relative depths, in reference bones."""
    joints: float = 0.0
    """Weight of the Huber error of the lifted keypoints, root-relative, in reference bones."""
    rotations: float = 0.0
    """Weight of L_ik (without L_xyz) of the rotations predicted from the predicted joints."""
    rotations_from_truth: float = 0.0
    """Weight of L_ik (without L_xyz) of the rotations predicted from the true joints with noise."""
    model_keypoints: float = 0.0
    """Weight of the Huber error of the posed hand model's keypoints, root-relative, in reference bones."""
    model_keypoints_2d: float = 0.0
    """Weight of the Huber error of the posed hand model's keypoints after the best-fitting scale and shift in the
    image, in hand sizes; needs no 3D ground truth."""
    betas: float = 0.0
    """Weight of the mean squared error of the shape coefficients."""
    bone: float = 0.0
    """Weight of the squared error of the logarithm of the reference bone's length."""
    root_depth: float = 0.0
    """Weight of the Huber error of the logarithm of the root depth."""
    paper_heatmap: float = 0.0
    """Weight of L_kpt2D: squared error of sigmoid heatmaps against Gaussians of peak 1."""
    paper_joints: float = 0.0
    """Weight of L_kpt3D: squared error of the lifted keypoints in the camera frame, in metres."""
    paper_root_depth: float = 0.0
    """Weight of L_d: squared error of the root depth, in metres."""
    paper_betas: float = 0.0
    """Weight of L_beta: squared norm of the shape coefficients."""
    paper_model_keypoints: float = 0.0
    """Weight of L_mano: squared error of the posed hand model's keypoints, root-relative, in metres."""
    paper_depth: float = 0.0
    """Weight of L_betaD (Table 4): squared error of the rendered depth map where both maps show the hand, in metres."""
    paper_silhouette: float = 0.0
    """Weight of L_betaS (Table 4): squared error of the rendered silhouette, in shares of a pixel."""
    tailored_keypoints: float = 0.0
    """Weight of the Huber error of the tailored hand's keypoints, root-relative, in reference bones."""
    tailored_mesh: float = 0.0
    """Weight of the Huber error of the tailored hand's vertices, root-relative, in reference bones."""

    @classmethod
    def ours(cls) -> "LossWeights":
        """Return our weights for `HandModuleConfig.small`."""
        return cls(
            heatmap=0.3,
            keypoints_2d=10.0,
            relative_depth=1.0,
            joints=1.0,
            rotations=0.5,
            rotations_from_truth=0.25,
            model_keypoints=1.0,
            model_keypoints_2d=1.0,
            betas=0.02,
            bone=1.0,
            root_depth=0.3,
        )

    @classmethod
    def paper(cls, stage: Stage = "end_to_end") -> "LossWeights":
        """Return the weights of the paper: Eq. 7 for "end_to_end", Eq. 6 for "keypoints", L_ik for "ik"."""
        if stage == "ik":
            return cls(rotations_from_truth=1.0, model_keypoints=1.0)  # the second term is L_xyz
        eq_6 = cls(paper_heatmap=100.0, paper_joints=1.0, paper_root_depth=0.1)
        if stage == "keypoints":
            return eq_6
        return dataclasses.replace(eq_6, paper_betas=1.0, paper_model_keypoints=0.1)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay of the learning rate."""

    learning_rate: float = 1e-3
    """Highest learning rate."""
    warm_up: int = 200
    """Number of warm-up steps, during which the learning rate rises linearly from 0."""
    final: float = 0.02
    """Learning rate at the last step as a share of the highest; 1 keeps the learning rate constant."""
    weight_decay: float = 1e-4
    """Weight decay of kernels; biases and normalisation parameters are not decayed."""
    clip: float = 5.0
    """Largest global norm of the gradients; longer gradients are scaled down to it."""
    average: float = 0.999
    """Decay of the exponential moving average of the weights, which is evaluated and exported."""
    accumulate: int = 1
    """Number of microbatches that a batch is split into to save memory; their gradients are averaged."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """One training run."""

    module: HandModuleConfig = dataclasses.field(default_factory=HandModuleConfig.small)
    """Network architecture."""
    hand: Path | None = None
    """Hand model (MANO pickle or npz); the embedded hand if not given. FreiHAND's poses and shapes are MANO's, so only
    runs with MANO use them; other hand models use FreiHAND's joints alone."""
    stage: Stage = "end_to_end"
    """Trained part: everything but IKNet ("keypoints"), IKNet alone on sampled poses ("ik"), or everything."""
    steps: int = 20_000
    """Total number of steps."""
    batch: int = 32
    """Number of samples per step over all devices."""
    seed: int = 0
    """Seed of the initial weights and of the data order."""
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    loss: LossWeights = dataclasses.field(default_factory=LossWeights.ours)
    detached: bool = True
    """Stop the gradients of lifted joints, rotations and lengths at the heatmaps and depth maps. In an untrained
    network all keypoints coincide, and these gradients, divided by the length of a bone in pixels, exceed the heatmaps'
    own. Switch off to fine-tune."""
    heatmap_sigma: float = 1.0
    """Standard deviation of the target Gaussians, in heatmap cells."""
    joint_noise: float = 0.05
    """Standard deviation of the noise on the true joints that IKNet is trained on, in reference bones."""
    optimizer: OptimizerConfig = OptimizerConfig()
    weights: Path | None = None
    """Weight file to start from (.safetensors)."""
    iknet_weights: Path | None = None
    """Weight file whose IKNet is the initial IKNet (.safetensors)."""
    log_every: int = 20
    """Number of steps between lines in metrics.jsonl."""
    evaluate_every: int = 1000
    """Number of steps between evaluations."""
    checkpoint_every: int = 500
    """Number of steps between checkpoints."""

    @classmethod
    def paper(cls, stage: Stage) -> "TrainingConfig":
        """Return a stage of the paper's training, for RHD: Eq. 6 and 7, Adam at 3e-4 and 3e-5, 100, 50 and 100 epochs.

        The network is the released one. The paper states neither the batch size nor the augmentation nor the number of
        poses that IKNet is trained on. Those here are BiHand's, on whose code HandTailor's training was built.
        """
        ik, rate = stage == "ik", 3e-5 if stage == "end_to_end" else 3e-4
        samples, epochs, batch = (1_000_000, 50, 1024) if ik else (41_258, 100, 64)
        data = DataConfig(size=320)  # as many pixels across as the smallest crop of 256 has
        return cls(
            module=HandModuleConfig.official(),
            stage=stage,
            steps=math.ceil(epochs * samples / batch),
            batch=batch,
            data=data if ik else dataclasses.replace(data, dataset="rhd", dataset_folder=Path("RHD_published_v2")),
            augmentation=AugmentationConfig(
                # Squares of twice the hand size, larger or smaller by up to 20 %, whose centre moves by up to a tenth.
                fill=(1.0 / 2.4, 1.0 / 1.6),
                shift=0.0,
                rotation=math.pi / 2.0,
                drop_intrinsics=0.0,  # the paper trains in perspective only
                gamma=0.0,
                saturation=(0.5, 1.5),
                grey=0.0,
                blur=0.5,
                noise=0.0,
                cut_out=0.0,
            ),
            loss=LossWeights.paper(stage),
            detached=False,
            heatmap_sigma=2.0,
            # Plain Adam: no warm-up, no decay, no clipping, no average.
            optimizer=OptimizerConfig(rate, warm_up=0, final=1.0, weight_decay=0.0, clip=1e9, average=0.0),
            log_every=100 if ik else 50,
            evaluate_every=2_000,
            checkpoint_every=2_000 if ik else 1_000,
        )

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: If the settings contradict each other.
        """
        for name in ("steps", "batch", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        parts = self.optimizer.accumulate
        if parts < 1 or self.batch % parts:
            raise InputError(
                f"batch {self.batch} cannot be split into optimizer.accumulate = {parts} parts: choose a divisor of it"
            )
        tailored = self.loss.tailored_keypoints + self.loss.tailored_mesh > 0.0
        if self.detached and (self.module.decoding == "released" or tailored):
            raise InputError(
                "detached needs our decoding and no losses through the tailor: set detached to False for the released "
                "decoding or to train through the tailor"
            )
        if self.module.batch_axis is not None:
            raise InputError("module.batch_axis is set by the training itself: leave it out")
        dataset = self.data.counts(self.batch).dataset
        if self.data.dataset is not None and dataset == 0:
            raise InputError(
                f"data.dataset_share {self.data.dataset_share:g} of batch {self.batch} is not one sample: raise either"
            )
        if self.hand is not None and self.stage != "ik" and dataset < self.batch:
            raise InputError(
                "hand is set, but rendered samples and photographs are labelled with the embedded hand: train on "
                "data.dataset alone, or leave hand out"
            )
        for name, weight in (("paper_depth", self.loss.paper_depth), ("paper_silhouette", self.loss.paper_silhouette)):
            if weight > 0.0 and (self.stage == "ik" or dataset < self.batch):
                raise InputError(
                    f"loss.{name} needs the masks and depth maps of data.dataset, which sampled poses, renderings and "
                    "photographs lack: train on the dataset alone, or leave the loss out"
                )
        if self.loss.paper_depth > 0.0 and self.data.dataset == "freihand":
            raise InputError("loss.paper_depth needs depth maps, which FreiHAND lacks: train on rhd or stb")

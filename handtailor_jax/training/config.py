"""Everything that decides what a training run does."""

import dataclasses
from pathlib import Path
from typing import Literal

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.synthetic.poses import PoseConfig

Stage = Literal["keypoints", "ik", "end_to_end"]
DatasetChoice = Literal["rhd", "stb", "freihand"]


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many samples of a step come from where."""

    synthetic: int
    photographs: int
    dataset: int


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where training samples come from."""

    cache: Path = Path("cache")
    """Folder for what is computed once: rendered samples, fitted photographs, backgrounds."""
    size: int = 160
    """Side of the pictures before augmentation, pixels; somewhat more than the network's input."""
    synthetic: Literal["pool", "rendered"] = "pool"
    """Rendered samples: a fixed number from disk, or new ones all the time, which wants an accelerator."""
    pool: int = 16384
    """Samples in the pool."""
    photographs: Path | None = None
    """Folder of labelled photographs, layout "photos"; None trains without."""
    photograph_share: float = 0.25
    """Share of photographs in every batch."""
    photograph_3d: float = 0.2
    """Weight of the 3D terms of photographs, whose pose and shape are fits to their keypoints; 0 is 2D supervision."""
    pasted: float = 0.6
    """Share of photographs with a plain background whose hand is put before another background."""
    dataset: DatasetChoice | None = None
    """Published dataset whose training split is learnt from; None trains without."""
    dataset_folder: Path | None = None
    """Its folder, as its archive unpacks."""
    dataset_share: float = 1.0
    """Share of the dataset in every batch; 1 is the paper's. What is neither of it nor of photographs is rendered."""
    test: int = 256
    """Samples of each test split, synthetic or of the dataset, for the periodic evaluation."""
    poses: PoseConfig = dataclasses.field(default_factory=PoseConfig)
    """Poses that IKNet is trained on in stage "ik"."""

    def __post_init__(self) -> None:
        """Refuses counts and shares that make no data.

        Raises:
            InputError: naming the field.
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
        if self.dataset is not None and self.photographs is not None:
            shares = self.dataset_share + self.photograph_share
            if shares > 1.0:
                raise InputError(
                    f"data.dataset_share and data.photograph_share are {shares:g} together: lower them to 1 at most"
                )

    def counts(self, batch: int) -> "Counts":
        """How many of a batch's samples come from where."""
        photographs = 0 if self.photographs is None else round(self.photograph_share * batch)
        dataset = 0 if self.dataset is None else min(round(self.dataset_share * batch), batch - photographs)
        return Counts(synthetic=batch - photographs - dataset, photographs=photographs, dataset=dataset)


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """The weight of every term of the objective (`objective.Losses`); 0 leaves a term out."""

    heatmap: float = 0.0
    keypoints_2d: float = 0.0
    relative_depth: float = 0.0
    joints: float = 0.0
    rotations: float = 0.0
    rotations_from_truth: float = 0.0
    model_keypoints: float = 0.0
    model_keypoints_2d: float = 0.0
    betas: float = 0.0
    bone: float = 0.0
    root_depth: float = 0.0
    paper_heatmap: float = 0.0
    paper_joints: float = 0.0
    paper_root_depth: float = 0.0
    paper_betas: float = 0.0
    paper_model_keypoints: float = 0.0
    paper_depth: float = 0.0
    paper_silhouette: float = 0.0
    tailored_keypoints: float = 0.0
    tailored_mesh: float = 0.0

    @classmethod
    def ours(cls) -> "LossWeights":
        """Our recipe for `HandModuleConfig.small`."""
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
    def paper(cls) -> "LossWeights":
        """Eq. 6 and 7: 100 L_kpt2D + L_kpt3D + 0.1 L_d + L_beta + 0.1 L_mano."""
        return cls(
            paper_heatmap=100.0,
            paper_joints=1.0,
            paper_root_depth=0.1,
            paper_betas=1.0,
            paper_model_keypoints=0.1,
        )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warm-up and a cosine decay."""

    learning_rate: float = 1e-3
    """The highest."""
    warm_up: int = 200
    """Steps in which it grows from 0."""
    final: float = 0.02
    """What is left of it at the last step, as a share; 1 keeps it constant."""
    weight_decay: float = 1e-4
    """Of kernels; not of biases and normalisation."""
    clip: float = 5.0
    """The gradient's norm is kept below this."""
    average: float = 0.999
    """Decay of the running average of the weights, which is what is evaluated and kept."""
    accumulate: int = 1
    """Parts that a batch is split into, one after the other, where memory is short."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """One training run."""

    module: HandModuleConfig = dataclasses.field(default_factory=HandModuleConfig.small)
    """The network."""
    hand: Path | None = None
    """Hand model that the network is to pose (MANO pickle or npz); the embedded hand if None. FreiHAND's poses and
    shapes are MANO's and are learnt from only with MANO; with another hand, its joints alone are."""
    stage: Stage = "end_to_end"
    """What is trained: all but IKNet, IKNet on poses alone, or everything."""
    steps: int = 20_000
    """Steps in all."""
    batch: int = 32
    """Samples a step, over all devices."""
    seed: int = 0
    """Of weights and data."""
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    loss: LossWeights = dataclasses.field(default_factory=LossWeights.ours)
    detached: bool = True
    """Losses of lifted joints, rotations and lengths do not reach the maps. At first all keypoints coincide, and those
    gradients, divided by the length of a bone in pixels, drown the heatmaps' own; switch off to fine-tune."""
    heatmap_sigma: float = 1.0
    """Standard deviation of heatmap targets in map cells."""
    joint_noise: float = 0.05
    """Standard deviation of noise on true joints that IKNet is trained on, in reference bones."""
    optimizer: OptimizerConfig = OptimizerConfig()
    weights: Path | None = None
    """Weights to start from (.safetensors)."""
    iknet_weights: Path | None = None
    """Weights whose IKNet to start from (.safetensors)."""
    log_every: int = 20
    """Steps between lines in metrics.jsonl."""
    evaluate_every: int = 1000
    """Steps between evaluations."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be run.

        Raises:
            InputError: naming the field.
        """
        counts = ("steps", "batch", "log_every", "evaluate_every", "checkpoint_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.optimizer.accumulate < 1 or self.batch % self.optimizer.accumulate:
            raise InputError(
                f"batch {self.batch} cannot be split into optimizer.accumulate = {self.optimizer.accumulate} parts"
            )
        if self.detached and (
            self.module.decoding == "released" or self.loss.tailored_keypoints + self.loss.tailored_mesh
        ):
            raise InputError(
                "detached applies to our decoding without the tailor's losses: set detached to False for the released "
                "decoding or to train through the tailor"
            )
        self._check_shape_losses()
        if self.module.batch_axis is not None:
            raise InputError("module.batch_axis is set by training itself: leave it out")
        of_dataset = self.data.counts(self.batch).dataset
        if self.data.dataset is not None and of_dataset == 0:
            raise InputError(
                f"data.dataset_share {self.data.dataset_share:g} of batch {self.batch} is not one sample: raise either"
            )
        if self.hand is not None and self.stage != "ik" and of_dataset < self.batch:
            raise InputError(
                "hand is set, but rendered samples and photographs are labelled with the embedded hand: train on "
                "data.dataset alone, or leave hand out"
            )

    def _check_shape_losses(self) -> None:
        """Refuses masks and depth maps where there are none."""
        for name, weight in (("paper_depth", self.loss.paper_depth), ("paper_silhouette", self.loss.paper_silhouette)):
            if weight <= 0.0:
                continue
            if self.stage == "ik" or self.data.counts(self.batch).dataset < self.batch:
                raise InputError(
                    f"loss.{name} compares with masks and depth maps of data.dataset, which poses, renderings and "
                    "photographs lack: train on the dataset alone, or leave it out"
                )
            if name == "paper_depth" and self.data.dataset == "freihand":
                raise InputError("loss.paper_depth needs depth maps, which FreiHAND lacks: train on rhd or stb")

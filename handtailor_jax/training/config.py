"""The configuration of a training run. The field texts are the help texts of train.py."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from tyro.conf import Suppress

from handtailor_jax.data.augmentation import AugmentationConfig
from handtailor_jax.errors import InputError, check_range
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.tailor.tailor import TailorConfig

Stage = Literal["keypoints", "ik", "end_to_end"]


def _check(valid: bool, message: str) -> None:
    if not valid:
        raise InputError(message)


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
    second_hand: float = 0.0
    """Share of rendered samples with another hand that touches the labelled one or nearly does."""
    photograph_backgrounds: bool = False
    """Use the training photographs, without their hands, as backgrounds of half of the pool."""
    photographs: Path | None = None
    """Folder of labelled photographs (docs/training.md, Your own photographs); none if not given."""
    photograph_share: float = 0.25
    """Share of photographs in every batch."""
    photograph_3d: float = 0.2
    """Weight of the 3D terms of photographs, whose pose and shape are fits to their keypoints; 0 trains in 2D only."""
    dataset: Literal["rhd", "stb", "freihand", "custom"] | None = None
    """Published dataset whose training split is used; none if not given. "custom" is set by runs from Python that bring
    their own datasets (docs/training.md)."""
    dataset_folder: Path | None = None
    """Folder of the dataset, as its archive unpacks."""
    dataset_share: float = 1.0
    """Share of the dataset in every batch. Samples that are neither from the dataset nor photographs are rendered."""
    test: int = 256
    """Number of samples in each test set, rendered or from the dataset, for the periodic evaluation."""

    def __post_init__(self) -> None:
        """Raise an InputError if counts or shares give no data."""
        _check(min(self.pool, self.test) > 0, f"data.pool and data.test must be positive: {self.pool}, {self.test}")
        check_range("data.size", self.size, 32, 4096)
        check_range("data.photograph_3d", self.photograph_3d, 0)
        check_range("data.second_hand", self.second_hand, 0, 1)
        unused = self.photograph_backgrounds and (self.photographs is None or self.synthetic != "pool")
        _check(not unused, "data.photograph_backgrounds needs a pool and data.photographs: set both, or leave it out")
        share, dataset = self.photograph_share, self.dataset_share
        _check(0.0 <= share <= 1.0, f"data.photograph_share is a share between 0 and 1, got {share}")
        _check(0.0 < dataset <= 1.0, f"data.dataset_share is a share above 0 and at most 1, got {dataset}")
        for one, other in (("dataset", "dataset_folder"), ("dataset_folder", "dataset")):
            missing = getattr(self, one) not in (None, "custom") and getattr(self, other) is None
            _check(not missing, f"data.{one} is set but data.{other} is not: set both or neither")
        _check(
            self.dataset is None or self.photographs is None or share + dataset <= 1.0,
            f"data.dataset_share and data.photograph_share add up to {share + dataset:g}: lower them to at most 1",
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
    """Weight of L_xyz of L_ik: error of the posed hand model's keypoints, root-relative, in reference bones; squared if
    IKNet's output is quaternions, else Huber's."""
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
    """Weight of L_kpt3D: squared error of the lifted keypoints in the camera frame, in reference bones."""
    paper_root_depth: float = 0.0
    """Weight of L_d: squared error of the root depth, in reference bones."""
    paper_betas: float = 0.0
    """Weight of L_beta: squared norm of the shape coefficients."""
    paper_model_keypoints: float = 0.0
    """Weight of L_mano: squared error of the posed hand model's keypoints, root-relative, in reference bones."""
    paper_depth: float = 0.0
    """Weight of L_betaD (Table 4): squared error of the rendered depth map where both maps show the hand, in
    reference bones."""
    paper_silhouette: float = 0.0
    """Weight of L_betaS (Table 4): squared error of the rendered silhouette, in shares of a pixel."""
    tailored_keypoints: float = 0.0
    """Weight of the Huber error of the tailored hand's keypoints, root-relative, in reference bones."""
    tailored_mesh: float = 0.0
    """Weight of the Huber error of the tailored hand's vertices, root-relative, in reference bones."""

    def __post_init__(self) -> None:
        """Raise an InputError if a weight is negative or not finite."""
        for name, value in vars(self).items():
            check_range(f"loss.{name}", value, 0)

    @classmethod
    def ours(cls) -> "LossWeights":
        """Return the default weights, which this project's own networks are trained with."""
        of_maps = cls(heatmap=0.3, keypoints_2d=10.0, relative_depth=1.0, joints=1.0, bone=1.0, root_depth=0.3)
        of_model = {"model_keypoints": 1.0, "model_keypoints_2d": 1.0, "betas": 0.02}
        return dataclasses.replace(of_maps, rotations=0.5, rotations_from_truth=0.25, **of_model)

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
    """Learning rate at the last step as a share of the highest; 1 keeps it constant after the warm-up."""
    weight_decay: float = 1e-4
    """Weight decay of kernels; biases and normalisation parameters are not decayed."""
    clip: float = 5.0
    """Largest global norm of the gradients; longer gradients are scaled down to it."""
    average: float = 0.999
    """Decay of the exponential moving average of the weights, which is evaluated and exported."""
    trunk: float = 0.0
    """Learning rate of the pretrained convolutions of stem "landmarks", as a share of the learning rate; at 0 they are
    frozen, which halves the time of a step."""
    accumulate: int = 1
    """Number of microbatches that a batch is split into to save memory; their gradients are averaged."""

    def __post_init__(self) -> None:
        """Raise an InputError if a number is out of range."""
        for name in ("learning_rate", "clip"):
            check_range(f"optimizer.{name}", getattr(self, name), 1e-12)
        for name in ("weight_decay", "average", "final", "trunk"):
            check_range(f"optimizer.{name}", getattr(self, name), 0, 1)
        check_range("optimizer.warm_up", self.warm_up, 0)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """One training run."""

    module: HandModuleConfig = dataclasses.field(default_factory=HandModuleConfig.small)
    """Network architecture."""
    hand: Path | None = None
    """Hand model (MANO pickle or npz); the embedded hand if not given. FreiHAND's poses and shapes are MANO's, so only
    runs with MANO use them; other hand models are trained on FreiHAND's joints alone."""
    stage: Stage = "end_to_end"
    """Trained part: everything but IKNet ("keypoints"), IKNet alone on sampled poses ("ik"), or everything
    ("end_to_end")."""
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
    network all keypoints coincide, and these gradients, divided by the length of a bone in pixels, exceed the
    gradients of the heatmap losses. Switch off to fine-tune."""
    heatmap_sigma: float = 1.0
    """Standard deviation of the target Gaussians, in heatmap cells."""
    joint_noise: float = 0.05
    """Standard deviation of the noise on the true joints that IKNet is trained on, in reference bones."""
    betas_std: float = 1.0
    """Standard deviation of the shapes that IKNet is trained on in stage "ik"."""
    tailor: Annotated[TailorConfig, Suppress] = dataclasses.field(default_factory=TailorConfig.network)
    """Energy and solver of the tailor in the losses through it."""
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

    def __post_init__(self) -> None:
        """Raise an InputError if the settings contradict each other."""
        for name in ("steps", "log_every", "evaluate_every", "checkpoint_every"):
            check_range(name, getattr(self, name), 1)
        check_range("batch", self.batch, 1, 8192)
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("joint_noise", self.joint_noise, 0)
        check_range("betas_std", self.betas_std, 0, 10)
        check_range("heatmap_sigma", self.heatmap_sigma, 1e-3)
        parts = self.optimizer.accumulate
        _check(
            parts > 0 and self.batch % parts == 0,
            f"batch {self.batch} cannot be split into optimizer.accumulate = {parts} parts: choose a divisor of it",
        )
        through_tailor = self.loss.tailored_keypoints + self.loss.tailored_mesh > 0.0
        _check(
            not self.detached or (self.module.decoding == "corrected" and not through_tailor),
            'detached needs module.decoding "corrected" and no losses through the tailor: set detached to False',
        )
        _check(self.module.batch_axis is None, "module.batch_axis is set by the training itself: leave it out")
        data, dataset = self.data, self.data.counts(self.batch).dataset
        _check(
            data.dataset is None or dataset > 0,
            f"data.dataset_share {data.dataset_share:g} of batch {self.batch} is not one sample: raise either",
        )
        _check(
            self.hand is None or self.stage == "ik" or dataset == self.batch,
            "hand is set, but rendered samples and photographs are labelled with the embedded hand: train on "
            "data.dataset alone, or leave hand out",
        )
        for name in ("paper_depth", "paper_silhouette"):
            _check(
                getattr(self.loss, name) <= 0.0 or (self.stage != "ik" and dataset == self.batch),
                f"loss.{name} needs the masks and depth maps of data.dataset, which sampled poses, renderings and "
                "photographs lack: train on the dataset alone, or leave the loss out",
            )
        _check(
            self.loss.paper_depth <= 0.0 or data.dataset != "freihand",
            "loss.paper_depth needs depth maps, which FreiHAND lacks: train on rhd or stb",
        )

    @property
    def freihand_joints(self) -> bool:
        """Whether all true joints are FreiHAND's, which are regressed from the posed mesh."""
        return self.data.dataset == "freihand" and self.data.counts(self.batch).dataset == self.batch

    @property
    def rendered(self) -> int:
        """Number of samples per step that are rendered on the devices."""
        on_devices = self.stage != "ik" and self.data.synthetic == "rendered"
        return self.data.counts(self.batch).synthetic if on_devices else 0

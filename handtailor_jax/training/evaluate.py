"""Evaluation of a network on samples that it is not trained on: figures, and a sheet of images."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from handtailor_jax.data.augmentation import center_crop, without_intrinsics
from handtailor_jax.data.sample import Batch
from handtailor_jax.evaluation.alignment import similarity
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.rotations import angle_between, matrix_from_axis_angle
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.iknet import normalise_joints
from handtailor_jax.images import opencv
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import BONES, ROOT
from handtailor_jax.synthetic.storage import SamplePool
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.photographs import prepare_photographs
from handtailor_jax.training.prediction import posed_keypoints
from handtailor_jax.training.sources import evaluation_samples, synthetic_config
from handtailor_jax.training.state import Network, TrainState
from handtailor_jax.training.step import sampled_poses
from handtailor_jax.types import pytree

T = TypeVar("T")

_PIECE = 32
_LOOSE = 1.6
"""Side of evaluation crops as a multiple of the hand size, as a loose detector gives them."""
_SHOWN = 8
_PIXELS = 256
_IK_POSES = 512
_FINGER_COLORS = ((255, 80, 60), (255, 200, 40), (80, 220, 80), (60, 170, 255), (200, 100, 255))


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Fixed crops of one kind, in host memory."""

    name: str
    crops: Batch
    metric: bool
    """Whether the true joints are in metres."""


def test_sets(config: TrainingConfig, hand: HandModel) -> list[TestSet]:
    """Return the samples that a run is evaluated on; none in stage "ik".

    Rendered samples and datasets are evaluated with and without their intrinsics, photographs per collection.
    """
    data = config.data
    if config.stage == "ik":
        return []
    metric: dict[str, Batch] = {}
    if data.counts(config.batch).synthetic:
        pool = SamplePool(data.cache, synthetic_config(config), data.test, "test")
        metric["synthetic"] = pool.batch(np.arange(data.test))
    if data.dataset is not None:
        metric[data.dataset] = evaluation_samples(config, hand)
    sets = []
    for name, batch in metric.items():
        crops = crops_of(batch, config.module.image_size)
        unknown = jax.tree.map(np.asarray, without_intrinsics(jax.tree.map(jnp.asarray, crops)))
        sets += [TestSet(name, crops, True), TestSet(f"{name}_without_intrinsics", unknown, True)]
    if data.photographs is not None:
        found = prepare_photographs(data.photographs, "val", data.size, data.cache)
        # Mid-grey outside of the photograph.
        share = found.inside[..., None].astype(np.float32) / 255.0
        images = np.round(share * found.image + (1.0 - share) * 128.0).astype(np.uint8)
        for source in sorted(set(found.source.tolist())):
            rows = np.flatnonzero(found.source == source)
            crops = crops_of(found.batch(rows, images[rows], 1.0), config.module.image_size)
            sets.append(TestSet(source, crops, False))
    return sets


def crops_of(batch: Batch, size: int) -> Batch:
    """Crop samples to the square around their hands, in host memory."""
    crop = jax.jit(lambda batch: center_crop(batch, size, _LOOSE))
    return _in_pieces(lambda piece: crop(piece), batch)


@pytree
class Errors:
    """Errors of single samples."""

    keypoints: Float[Array, "*batch 21"]
    """Distances of the keypoints, in hand sizes."""
    joints: Float[Array, "*batch"]
    """Mean distance of the lifted keypoints, root-relative, mm."""
    joints_aligned: Float[Array, "*batch"]
    """Mean distance of the lifted keypoints after similarity alignment, mm."""
    model_aligned: Float[Array, "*batch"]
    """Mean distance of the posed hand model's keypoints after similarity alignment, mm."""
    angle: Float[Array, "*batch"]
    """Mean angle between predicted and true joint rotations, degrees."""
    predicted: Float[Array, "*batch 21 2"]
    """Predicted keypoints, pixels of the crop."""


def errors_of(module: HandModule, hand: HandModel, batch: Batch) -> Errors:
    """Return the errors of a network in evaluation mode on crops."""
    estimate = module(batch.image.astype(hand.dtype) / 255.0, batch.camera)
    distance = jnp.sqrt(jnp.sum(jnp.square(estimate.keypoints_2d - batch.keypoints_2d), axis=-1))
    truth = batch.joints - batch.joints[:, ROOT, None]
    lifted = normalise_joints(estimate.joints) * estimate.bone[:, None, None]
    model = posed_keypoints(hand, estimate.betas, estimate.rotations)
    angle = angle_between(estimate.rotations, matrix_from_axis_angle(jnp.asarray(batch.pose)))
    return Errors(
        keypoints=distance / hand_size(batch.keypoints_2d)[:, None],
        joints=1e3 * _mean_distance(lifted, truth),
        joints_aligned=1e3 * _mean_distance(similarity(lifted, truth), truth),
        model_aligned=1e3 * _mean_distance(similarity(model, truth), truth),
        angle=jnp.degrees(jnp.mean(angle, axis=-1)),
        predicted=estimate.keypoints_2d,
    )


class Evaluator:
    """Evaluates states of one network on fixed samples."""

    def __init__(self, network: Network, hand: HandModel, sets: list[TestSet]) -> None:
        self._hand, self._sets = hand, sets
        self._errors = jax.jit(lambda state, batch, hand: errors_of(network.averaged(state), hand, batch))

    def figures(self, state: TrainState) -> tuple[dict[str, float], npt.NDArray[np.uint8] | None]:
        """Return named figures, and a sheet of images (height, width, 3) with true (white) and predicted keypoints.

        Args:
            state: The state of one device.
        """
        figures: dict[str, float] = {}
        rows = []
        for each in self._sets:
            crops = each.crops
            errors = _in_pieces(lambda piece: self._errors(state, piece, self._hand), crops)
            keypoints = errors.keypoints[crops.keypoint_weight > 0.0]
            figures[f"{each.name}/pck10"] = float((keypoints < 0.1).mean())
            figures[f"{each.name}/median_percent"] = 100.0 * float(np.median(keypoints))
            # Measured datasets have joints but no poses.
            known, posed = crops.has_joints > 0.0, crops.has_3d > 0.0
            if known.any():
                figures[f"{each.name}/joints_aligned_mm"] = float(errors.joints_aligned[known].mean())
                figures[f"{each.name}/model_aligned_mm"] = float(errors.model_aligned[known].mean())
            if posed.any():
                figures[f"{each.name}/angle_degrees"] = float(errors.angle[posed].mean())
            if each.metric and known.any():
                figures[f"{each.name}/joints_mm"] = float(errors.joints[known].mean())
            shown = np.linspace(0, len(crops.image) - 1, _SHOWN).round().astype(int).tolist()
            rows.append(np.concatenate([_drawn(crops, errors.predicted[i], i) for i in shown], axis=1))
        return figures, np.concatenate(rows)


class PoseEvaluator:
    """Evaluates IKNet alone on held-out poses."""

    def __init__(self, network: Network, hand: HandModel, config: TrainingConfig) -> None:
        self._hand = hand
        # A seed that training does not use.
        keys = jax.random.split(jax.random.key(config.seed + 1_000_003), _IK_POSES)
        self._poses = jax.jit(lambda hand, keys: sampled_poses(hand, keys, config))(hand, keys)

        def run(state: TrainState, hand: HandModel, poses: Batch) -> tuple[Array, Array]:
            found = network.averaged(state).iknet(normalise_joints(poses.joints))
            angle = angle_between(found.matrices, matrix_from_axis_angle(poses.pose))
            posed = posed_keypoints(hand, poses.betas, found.matrices)
            truth = poses.joints - poses.joints[:, ROOT, None]
            distance = _mean_distance(posed - posed[:, ROOT, None], truth)
            return jnp.degrees(jnp.mean(angle)), 1e3 * jnp.mean(distance)

        self._run = jax.jit(run)

    def figures(self, state: TrainState) -> tuple[dict[str, float], npt.NDArray[np.uint8] | None]:
        """Return the mean angle in degrees and the mean joint error in mm; there are no images."""
        angle, joints = self._run(state, self._hand, self._poses)
        return {"poses/angle_degrees": float(angle), "poses/joints_mm": float(joints)}, None


def create_evaluator(network: Network, hand: HandModel, config: TrainingConfig) -> Evaluator | PoseEvaluator:
    """Return the evaluator of a stage."""
    if config.stage == "ik":
        return PoseEvaluator(network, hand, config)
    return Evaluator(network, hand, test_sets(config, hand))


def score(figures: Mapping[str, float | int]) -> float | None:
    """Return the figure that the best checkpoint has most of; None if the figures are of no evaluation.

    That is the share of keypoints within 10 % of the hand size, averaged over the test sets; in stage "ik" the negative
    angle.
    """
    if "poses/angle_degrees" in figures:
        return -figures["poses/angle_degrees"]
    shares = [value for name, value in figures.items() if name.endswith("/pck10")]
    return sum(shares) / len(shares) if shares else None


def _mean_distance(points: Array, target: Array) -> Float[Array, "batch"]:
    return jnp.mean(jnp.sqrt(jnp.sum(jnp.square(points - target), axis=-1)), axis=-1)


def _in_pieces(function: Callable[[Batch], T], batch: Batch) -> T:
    """Call a compiled function on pieces of one size, the last filled up with its last sample; results on the host."""
    count, parts = len(batch.image), []
    for start in range(0, count, _PIECE):
        rows = np.minimum(np.arange(start, start + _PIECE), count - 1)
        parts.append(jax.device_get(function(jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


def _drawn(batch: Batch, predicted: npt.NDArray[np.floating], index: int) -> npt.NDArray[np.uint8]:
    cv2 = opencv()
    image = np.ascontiguousarray(batch.image[index])
    zoom = _PIXELS / image.shape[0]
    image = cv2.resize(image, (_PIXELS, _PIXELS), interpolation=cv2.INTER_LINEAR)

    def draw(points: npt.NDArray[np.floating], color: tuple[int, int, int] | None, width: int) -> None:
        places = np.round((points + 0.5) * zoom - 0.5).clip(-1e4, 1e4).astype(int).tolist()
        for a, b in BONES:
            shade = _FINGER_COLORS[(b - 1) // 4] if color is None else color
            cv2.line(image, places[a], places[b], shade, width, cv2.LINE_AA)

    draw(np.asarray(batch.keypoints_2d[index]), (255, 255, 255), 1)
    draw(predicted, None, 2)
    return image

"""Evaluation of a network on samples that it is not trained on: figures, and a sheet of images."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handtailor_jax.data.augmentation import center_crop, without_intrinsics
from handtailor_jax.data.sample import Batch, Reader
from handtailor_jax.evaluation.alignment import similarity
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.rotations import angle_between, matrix_from_axis_angle
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.iknet import normalise_joints
from handtailor_jax.images import Image, opencv
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.render.overlay import draw_skeleton
from handtailor_jax.skeleton import ROOT
from handtailor_jax.synthetic.dataset import SyntheticConfig
from handtailor_jax.synthetic.storage import SamplePool
from handtailor_jax.training.backdrops import paste
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.prediction import posed_keypoints, sampled_poses
from handtailor_jax.training.sources import evaluation_samples, prepare_photographs
from handtailor_jax.training.state import Network, TrainState
from handtailor_jax.types import pytree

T = TypeVar("T")

Figures = tuple[dict[str, float], Image | None]
"""Named figures, and a sheet of images with the predicted keypoints and rings at the true ones."""

_PIECE = 32
_LOOSE = 1.6  # side of evaluation crops in hand sizes, as large as the boxes of a loose detector
_SHOWN, _PIXELS = 8, 256
_IK_POSES = 512


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Fixed crops of one kind, in host memory."""

    name: str
    crops: Batch
    metric: bool
    """Whether the true joints are in metres."""


def test_sets(config: TrainingConfig, hand: HandModel, own: Reader | None) -> list[TestSet]:
    """Return the samples on which a run with images is evaluated; `own` is the reader of `Custom.evaluation`.

    Rendered samples and datasets are evaluated with and without their intrinsics, each collection of photographs alone.
    """
    data, size = config.data, config.module.image_size
    sets, metric = [], {}
    upright = config.augmentation.upright > 0.5
    if data.counts(config.batch).synthetic:
        pool = SamplePool(data.cache, SyntheticConfig(size=data.size), data.test, "test")
        metric["synthetic"] = pool.batch(np.arange(data.test))
    if own is not None or data.dataset not in (None, "custom"):
        metric["custom" if own is not None else str(data.dataset)] = evaluation_samples(config, hand, own)
    for name, batch in metric.items():
        crops = _crops_of(batch, size, upright)
        unknown = jax.tree.map(np.asarray, without_intrinsics(jax.tree.map(jnp.asarray, crops)))
        sets += [TestSet(name, crops, True), TestSet(f"{name}_without_intrinsics", unknown, True)]
    if data.photographs is not None:
        found = prepare_photographs(data.photographs, "val", data.size, data.cache)
        # Mid-grey outside of the photograph.
        image = paste(np.asarray(found.samples.image), found.inside, 128.0)
        photographs = dataclasses.replace(found.samples, image=image, mask=None)
        for name in sorted(set(found.collection.tolist())):
            of_collection = jax.tree.map(lambda leaf, name=name: leaf[found.collection == name], photographs)
            sets.append(TestSet(name, _crops_of(of_collection, size, upright), False))
    return sets


def _crops_of(batch: Batch, size: int, upright: bool) -> Batch:
    """Crop samples to the square around their hands, in host memory."""
    return _in_pieces(jax.jit(lambda batch: center_crop(batch, size, _LOOSE, upright=upright)), batch)


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


def errors_of(module: HandModule, hand: HandModel, batch: Batch, freihand: bool = False) -> Errors:
    """Return the errors of a network in evaluation mode on crops."""
    estimate = module(batch.image.astype(hand.dtype) / 255.0, batch.camera)
    distance = jnp.sqrt(jnp.sum(jnp.square(estimate.keypoints_2d - batch.keypoints_2d), axis=-1))
    truth = batch.joints - batch.joints[:, ROOT, None]
    lifted = normalise_joints(estimate.joints) * estimate.bone[:, None, None]
    model = posed_keypoints(hand, estimate.betas, estimate.rotations, freihand)
    angle = angle_between(estimate.rotations, matrix_from_axis_angle(jnp.asarray(batch.pose)))
    return Errors(
        keypoints=distance / hand_size(batch.keypoints_2d)[:, None],
        joints=1e3 * _mean_distance(lifted, truth),
        joints_aligned=1e3 * _mean_distance(similarity(lifted, truth), truth),
        model_aligned=1e3 * _mean_distance(similarity(model, truth), truth),
        angle=jnp.degrees(jnp.mean(angle, axis=-1)),
        predicted=estimate.keypoints_2d,
    )


def create_evaluator(
    network: Network, hand: HandModel, config: TrainingConfig, own: Reader | None = None
) -> Callable[[TrainState], Figures]:
    """Return the function that evaluates the averaged weights of a state: on images, or in stage "ik" on poses."""
    return _on_poses(network, hand, config) if config.stage == "ik" else _on_images(network, hand, config, own)


def _on_images(
    network: Network, hand: HandModel, config: TrainingConfig, own: Reader | None
) -> Callable[[TrainState], Figures]:
    sets = test_sets(config, hand, own)
    freihand = config.freihand_joints
    compiled = jax.jit(lambda state, batch, hand: errors_of(network.averaged(state), hand, batch, freihand))

    def evaluate(state: TrainState) -> Figures:
        figures: dict[str, float] = {}
        rows = []
        for each in sets:
            crops = each.crops
            errors = _in_pieces(lambda piece: compiled(state, piece, hand), crops)
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
        return figures, np.concatenate(rows) if rows else None

    return evaluate


def _on_poses(network: Network, hand: HandModel, config: TrainingConfig) -> Callable[[TrainState], Figures]:
    # A seed that training does not use.
    keys = jax.random.split(jax.random.key(config.seed + 1_000_003), _IK_POSES)
    poses = jax.jit(sampled_poses)(hand, keys)

    @jax.jit
    def compiled(state: TrainState, hand: HandModel, poses: Batch) -> tuple[Array, Array]:
        found = network.averaged(state).iknet(normalise_joints(poses.joints))
        angle = angle_between(found.matrices, matrix_from_axis_angle(poses.pose))
        posed = posed_keypoints(hand, poses.betas, found.matrices)
        truth = poses.joints - poses.joints[:, ROOT, None]
        distance = _mean_distance(posed - posed[:, ROOT, None], truth)
        return jnp.degrees(jnp.mean(angle)), 1e3 * jnp.mean(distance)

    def evaluate(state: TrainState) -> Figures:
        angle, joints = compiled(state, hand, poses)
        return {"poses/angle_degrees": float(angle), "poses/joints_mm": float(joints)}, None

    return evaluate


def _mean_distance(points: Array, target: Array) -> Float[Array, "batch"]:
    return jnp.mean(jnp.sqrt(jnp.sum(jnp.square(points - target), axis=-1)), axis=-1)


def _in_pieces(function: Callable[[Batch], T], batch: Batch) -> T:
    """Call a function on pieces of equal size, filling up the last with its last sample; return results on the host."""
    count, parts = len(batch.image), []
    for start in range(0, count, _PIECE):
        rows = np.minimum(np.arange(start, start + _PIECE), count - 1)
        parts.append(jax.device_get(function(jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


def _drawn(batch: Batch, predicted: np.ndarray, index: int) -> Image:
    image, zoom = np.asarray(batch.image[index]), _PIXELS / batch.image.shape[1]
    image = opencv().resize(image, (_PIXELS, _PIXELS), interpolation=opencv().INTER_LINEAR)
    drawn = draw_skeleton(image, (predicted + 0.5) * zoom - 0.5)
    return draw_skeleton(drawn, (np.asarray(batch.keypoints_2d[index]) + 0.5) * zoom - 0.5, hollow=True)

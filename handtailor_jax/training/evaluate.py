"""How well a network does on samples it never trains on: figures and a sheet of pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from handtailor_jax.data.augmentation import center_crop, without_intrinsics
from handtailor_jax.data.sample import Batch
from handtailor_jax.evaluation.alignment import similarity
from handtailor_jax.geometry.rotations import angle_between, matrix_from_axis_angle
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.iknet import normalise_joints
from handtailor_jax.images import opencv
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import BONES, ROOT
from handtailor_jax.synthetic.poses import sample_betas, sample_pose
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.objective import model_keypoints
from handtailor_jax.training.state import Network, TrainState
from handtailor_jax.types import pytree

_PIECE = 32
_LOOSE = 1.6
"""Side of evaluation crops in sides of the keypoints' box."""
_SHOWN = 8
_PIXELS = 256
_IK_POSES = 512


@pytree
class Errors:
    """Errors of single samples."""

    keypoints: Float[Array, "*batch 21"]
    """Distances of keypoints, shares of the hand's size (longer side of the true keypoints' box)."""
    joints: Float[Array, "*batch"]
    """Mean distance of lifted keypoints, root-relative, mm."""
    joints_aligned: Float[Array, "*batch"]
    """The same after similarity alignment."""
    model_aligned: Float[Array, "*batch"]
    """That of the hand model's keypoints under the predicted pose and shape, mm."""
    angle: Float[Array, "*batch"]
    """Mean angle between predicted and true joint rotations, degrees."""
    predicted: Float[Array, "*batch 21 2"]
    """Keypoints, pixels of the crop."""


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Fixed crops of one kind."""

    name: str
    crops: Batch
    """On the host."""
    metric: bool
    """Whether its 3D truth is true."""


def crops_of(name: str, batch: Batch, config: TrainingConfig, *, metric: bool, known_cameras: bool = True) -> TestSet:
    """Crops of samples around their hands, by a factor that a loose detector would give."""
    size = config.module.image_size
    crop = jax.jit(lambda batch: center_crop(batch, size, _LOOSE))
    count = len(batch.image)
    pieces = [crop(_rows(batch, start)) for start in range(0, count, _PIECE)]
    crops = jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves])[:count], *pieces)
    if metric and not known_cameras:
        crops = jax.tree.map(np.asarray, without_intrinsics(jax.tree.map(jnp.asarray, crops)))
    return TestSet(name, crops, metric)


def errors_of(module: HandModule, hand: HandModel, batch: Batch) -> Errors:
    """Errors of a network in evaluation mode on crops."""
    estimate = module(batch.image.astype(hand.dtype) / 255.0, batch.camera)
    low, high = jnp.min(batch.keypoints_2d, axis=1), jnp.max(batch.keypoints_2d, axis=1)
    size = jnp.max(high - low, axis=-1)
    distance = jnp.sqrt(jnp.sum(jnp.square(estimate.keypoints_2d - batch.keypoints_2d), axis=-1))
    truth = batch.joints - batch.joints[:, ROOT, None]
    lifted = normalise_joints(estimate.joints) * estimate.bone[:, None, None]
    model = model_keypoints(hand, estimate.betas, estimate.rotations)
    angle = angle_between(estimate.rotations, matrix_from_axis_angle(jnp.asarray(batch.pose)))
    return Errors(
        keypoints=distance / size[:, None],
        joints=1e3 * _mean_distance(lifted, truth),
        joints_aligned=1e3 * _mean_distance(similarity(lifted, truth), truth),
        model_aligned=1e3 * _mean_distance(similarity(model, truth), truth),
        angle=jnp.degrees(jnp.mean(angle, axis=-1)),
        predicted=estimate.keypoints_2d,
    )


class Evaluator:
    """Evaluates states of one network on fixed samples."""

    def __init__(self, network: Network, hand: HandModel, sets: list[TestSet]) -> None:
        self._network, self._hand, self._sets = network, hand, sets

        def run(state: TrainState, batch: Batch, hand: HandModel) -> Errors:
            return errors_of(network.averaged(state), hand, batch)

        self._run = jax.jit(run)

    def figures(self, state: TrainState) -> tuple[dict[str, float], npt.NDArray[np.uint8]]:
        """Named figures, and a sheet of pictures (height, width, 3) with true (white) and predicted keypoints.

        Args:
            state: of one device.
        """
        figures: dict[str, float] = {}
        rows = []
        for each in self._sets:
            count = len(each.crops.image)
            pieces = [
                jax.device_get(self._run(state, _rows(each.crops, start), self._hand))
                for start in range(0, count, _PIECE)
            ]
            errors = _joined(pieces, count)
            keypoints = errors.keypoints[each.crops.keypoint_weight > 0.0]
            figures[f"{each.name}/pck10"] = float((keypoints < 0.1).mean())
            figures[f"{each.name}/median_percent"] = 100.0 * float(np.median(keypoints))
            # Datasets that were measured know joints but no pose.
            known, posed = each.crops.has_joints > 0.0, each.crops.has_3d > 0.0
            if known.any():
                figures[f"{each.name}/joints_aligned_mm"] = float(errors.joints_aligned[known].mean())
                figures[f"{each.name}/model_aligned_mm"] = float(errors.model_aligned[known].mean())
            if posed.any():
                figures[f"{each.name}/angle_degrees"] = float(errors.angle[posed].mean())
            if each.metric and known.any():
                figures[f"{each.name}/joints_mm"] = float(errors.joints[known].mean())
            chosen = np.linspace(0, count - 1, _SHOWN).round().astype(int)
            rows.append(
                np.concatenate([_drawn(each.crops, np.asarray(errors.predicted), int(i)) for i in chosen], axis=1)
            )
        return figures, np.concatenate(rows)


class PoseEvaluator:
    """Evaluates IKNet alone on held-out poses."""

    def __init__(self, network: Network, hand: HandModel, config: TrainingConfig) -> None:
        self._hand = hand

        def truth(hand: HandModel) -> tuple[Array, Array, Array]:
            # A seed that training does not use.
            keys = jax.random.split(jax.random.key(config.seed + 1_000_003), _IK_POSES)
            first, second = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
            pose = jax.vmap(lambda key: sample_pose(hand, key, config.data.poses))(first)
            betas = jax.vmap(lambda key: sample_betas(hand, key, config.data.poses))(second)
            return pose, betas, jax.vmap(lambda p, b: hand.shape(b).pose(p).keypoints)(pose, betas)

        self._pose, self._betas, self._joints = jax.jit(truth)(hand)

        def run(state: TrainState, hand: HandModel, pose: Array, betas: Array, joints: Array) -> Array:
            found = network.averaged(state).iknet(normalise_joints(joints))
            angle = jnp.degrees(jnp.mean(angle_between(found.matrices, matrix_from_axis_angle(pose))))
            posed = model_keypoints(hand, betas, found.matrices)
            relative = (posed - posed[:, ROOT, None]) - (joints - joints[:, ROOT, None])
            return jnp.stack([angle, 1e3 * jnp.mean(jnp.sqrt(jnp.sum(jnp.square(relative), axis=-1)))])

        self._run = jax.jit(run)

    def figures(self, state: TrainState) -> dict[str, float]:
        """Mean angle error in degrees and mean joint error in mm."""
        angle, joints = self._run(state, self._hand, self._pose, self._betas, self._joints)
        return {"poses/angle_degrees": float(angle), "poses/joints_mm": float(joints)}


def _mean_distance(points: Array, target: Array) -> Float[Array, "batch"]:
    return jnp.mean(jnp.sqrt(jnp.sum(jnp.square(points - target), axis=-1)), axis=-1)


def _rows(batch: Batch, start: int) -> Batch:
    """`_PIECE` samples from `start` on, the last one repeated where there are fewer: one shape, one program."""
    count = len(batch.image)
    rows = np.minimum(np.arange(start, start + _PIECE), count - 1)
    return jax.tree.map(lambda leaf: leaf[rows], batch)


def _joined(pieces: list[Errors], count: int) -> Errors:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *pieces)


def _drawn(batch: Batch, predicted: npt.NDArray[np.floating], index: int) -> npt.NDArray[np.uint8]:
    cv2 = opencv()
    picture = np.ascontiguousarray(batch.image[index])
    zoom = _PIXELS / picture.shape[0]
    picture = cv2.resize(picture, (_PIXELS, _PIXELS), interpolation=cv2.INTER_LINEAR)

    def draw(points: npt.NDArray[np.floating], color: tuple[int, int, int] | None, width: int) -> None:
        places = np.round((points + 0.5) * zoom - 0.5).clip(-1e4, 1e4).astype(int).tolist()
        for a, b in BONES:
            shade = _FINGER_COLORS[(b - 1) // 4] if color is None else color
            cv2.line(picture, places[a], places[b], shade, width, cv2.LINE_AA)

    draw(np.asarray(batch.keypoints_2d[index]), (255, 255, 255), 1)
    draw(predicted[index], None, 2)
    return picture


_FINGER_COLORS = ((255, 80, 60), (255, 200, 40), (80, 220, 80), (60, 170, 255), (200, 100, 255))

__all__ = ["Errors", "Evaluator", "PoseEvaluator", "TestSet", "crops_of", "errors_of"]

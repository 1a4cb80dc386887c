"""Where subjects come from: ground truth of a dataset, and predictions of a network, a file or a noise model."""

import dataclasses
import functools
import itertools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from handtailor_jax.data.sample import Reader, Sample
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.paper.subjects import MARGIN, GroundTruth, Numbers, Predictions, weak_cameras
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import inverse_affine, transform_camera, transform_pixels
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.hand_module.hand_module import HandModule, inference_form
from handtailor_jax.images import crop_square
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_BETAS, NUM_KEYPOINTS, ROOT, WRIST, permutation
from handtailor_jax.synthetic import dataset as synthetic
from handtailor_jax.types import Camera

_IMAGE_SIZE = 256  # pixels, of rendered images
_CENTRAL_SQUARE = 130.0 / 224.0  # of the image's width: HandMesh's box on FreiHAND, which needs no ground truth
_PIECE = 250
_NETWORK_BATCH = 32


def synthetic_truth(count: int) -> GroundTruth:
    """Return the first hands of the synthetic test split, whose images are rendered one by one when asked for.

    Raises:
        InputError: if there are not that many.
    """
    if not 1 <= count <= synthetic.TEST_SAMPLES:
        raise InputError(
            f"--count must be between 1 and {synthetic.TEST_SAMPLES} for the synthetic test split, got {count}"
        )
    dataset = synthetic.SyntheticDataset(synthetic.SyntheticConfig(size=_IMAGE_SIZE, images_at_once=1), "test")
    # The last piece is filled up, so that one program serves all pieces.
    indices = np.arange(-(-count // _PIECE) * _PIECE, dtype=np.int32).reshape(-1, _PIECE) % synthetic.TEST_SAMPLES
    pieces = [
        jax.device_get(_synthetic_labels(dataset.assets, jnp.asarray(piece), dataset.config)) for piece in indices
    ]
    pose, betas, joints, keypoints, intrinsics = (np.concatenate(each)[:count] for each in zip(*pieces, strict=True))
    return GroundTruth(
        dataset="synthetic, test split",
        joint_definition="model",
        joints=joints,
        keypoints_2d=keypoints,
        visible=np.ones((count, NUM_KEYPOINTS), bool),
        intrinsics=intrinsics,
        index=np.arange(count),
        pose=pose,
        betas=betas,
        read_image=lambda i: np.asarray(dataset[i].image),
    )


@functools.partial(jax.jit, static_argnames="config")
def _synthetic_labels(
    assets: synthetic.SyntheticAssets, indices: Int[Array, "n"], config: synthetic.SyntheticConfig
) -> tuple[Array, ...]:
    """Return pose, betas, joints, keypoints and K of samples of the test split, without rendering them."""

    def one(index: Array) -> tuple[Array, ...]:
        pose, betas, placed = synthetic.sample_hand(assets, synthetic.sample_key(0, "test", index), config)
        return pose, betas, placed.joints, placed.keypoints_2d, placed.camera.matrix

    return jax.vmap(one)(indices)


def reader_truth(
    dataset: str, samples: Iterator[tuple[int, Sample]], reader: Reader, count: int, *, labelled: bool = True
) -> GroundTruth:
    """Return the ground truth of a dataset's samples. Images are decoded again when asked for, to bound memory.

    Args:
        dataset: Name of dataset and split.
        samples: Index and sample of all samples that can be read.
        reader: Reader that decodes the images.
        count: Number of samples to take.
        labelled: Whether labels are used. If not, boxes are a fixed square in the middle of the image and joints are 0.

    Raises:
        InputError: if a sample lacks 3D joints or intrinsics, which every table needs, or there are none.
    """
    indices: list[int] = []
    found: list[Sample] = []
    for index, sample in tqdm(itertools.islice(samples, count), total=count, desc="reading", unit="sample"):
        sample = sample if labelled else _unlabelled(sample)
        if sample.joints is None or sample.intrinsics is None:
            raise InputError(f"{sample.name}: has no 3D joints or no intrinsics, which tables need: use another split")
        indices.append(index)
        found.append(dataclasses.replace(sample, image=np.zeros((0, 0, 3), np.uint8), depth=None, mask=None))
    if not found:
        raise InputError(f"{dataset}: not one sample could be read: check --root and --split")

    def column(values: list[Any]) -> Any:
        return None if any(value is None for value in values) else np.stack(values)

    return GroundTruth(
        dataset=dataset,
        joint_definition=found[0].joint_definition,
        joints=column([sample.joints for sample in found]),
        keypoints_2d=column([sample.keypoints_2d for sample in found]),
        visible=column([sample.visible for sample in found]),
        intrinsics=column([sample.intrinsics for sample in found]),
        index=np.asarray(indices),
        pose=column([sample.pose for sample in found]),
        betas=column([sample.betas for sample in found]),
        vertices=column([sample.vertices for sample in found]),
        read_image=lambda i: reader[i].image,
    )


def _unlabelled(sample: Sample) -> Sample:
    """Replace the keypoints by corners of the fixed square, and drop all other labels."""
    height, width = sample.image.shape[:2]
    half = 0.5 * _CENTRAL_SQUARE * width / MARGIN
    corners = np.asarray([[-half, -half], [half, half]], np.float32)[np.arange(NUM_KEYPOINTS) % 2]
    middle = np.asarray([0.5 * (width - 1), 0.5 * (height - 1)], np.float32)
    joints = np.zeros((NUM_KEYPOINTS, 3), np.float32)
    keypoints = (middle + corners).astype(np.float32)
    return dataclasses.replace(sample, keypoints_2d=keypoints, joints=joints, vertices=None, pose=None, betas=None)


@dataclasses.dataclass(frozen=True)
class NoiseModel:
    """Standard deviations of a simulated network's errors. They were not measured on any network.

    Every hand has a difficulty that scales all of its errors, because a hand that is hard to see has worse keypoints
    and a worse pose. The values are those at the median difficulty.
    """

    keypoints: float = 0.0125
    """Keypoint error per axis, share of the hand size."""
    rotations: float = 0.15
    """Error of each rotation about each axis, radians."""
    betas: float = 0.5
    """Error of each shape coefficient."""
    root_depth: float = 0.03
    """Error of the root's depth, share of the depth."""
    bone: float = 0.03
    """Error of the reference bone, share of its length."""
    spread: float = 0.5
    """Standard deviation of the logarithm of the difficulty."""


def simulated_predictions(truth: GroundTruth, seed: int, noise: NoiseModel = NoiseModel()) -> Predictions:
    """Return predictions of a noise model in place of a network.

    Raises:
        InputError: if the true poses, to which noise is added, are unknown.
    """
    if truth.pose is None or truth.betas is None:
        raise InputError(
            f"--predictions simulated needs true poses, which {truth.dataset} does not have: give --weights or a file"
        )
    random, n = np.random.default_rng([seed, 5]), len(truth)
    difficulty = np.exp(noise.spread * random.normal(size=n))
    width = noise.keypoints * difficulty * hand_size(truth.keypoints_2d)
    turns = noise.rotations * np.sqrt(difficulty)[:, None, None] * random.normal(size=(n, 16, 3))
    true_bone = np.linalg.norm(truth.joints[:, ROOT] - truth.joints[:, WRIST], axis=-1)
    keypoints = truth.keypoints_2d + width[:, None, None] * random.normal(size=(n, NUM_KEYPOINTS, 2))
    return Predictions(
        method="simulated network",
        keypoints_2d=keypoints.astype(np.float32),
        confidence=np.ones((n, NUM_KEYPOINTS), np.float32),
        pose=np.asarray(_turned(jnp.asarray(truth.pose), jnp.asarray(turns.astype(np.float32)))),
        betas=(truth.betas + noise.betas * random.normal(size=(n, NUM_BETAS))).astype(np.float32),
        root_depth=(truth.joints[:, ROOT, 2] * (1.0 + noise.root_depth * random.normal(size=n))).astype(np.float32),
        bone=(true_bone * (1.0 + noise.bone * random.normal(size=n))).astype(np.float32),
    )


@jax.jit
def _turned(pose: Float[Array, "n 16 3"], turns: Float[Array, "n 16 3"]) -> Float[Array, "n 16 3"]:
    both = jnp.einsum("njab,njbc->njac", matrix_from_axis_angle(turns), matrix_from_axis_angle(pose))
    return axis_angle_from_matrix(both)


def network_predictions(truth: GroundTruth, module: HandModule, hand: HandModel) -> tuple[Predictions, Predictions]:
    """Return predictions of a hand module with and without intrinsics; each image is decoded once.

    Args:
        truth: Hands with images; the boxes around them are given to the network.
        module: Hand module.
        hand: Hand model, for its dtype.

    Raises:
        InputError: if there are no images, or one cannot be decoded.
    """
    graph, state = nnx.split(inference_form(module))

    @jax.jit
    def run(state: Any, crops: Array, camera: Camera, to_crop: Array) -> tuple[Array, ...]:
        estimate = nnx.merge(graph, state)(crops.astype(hand.dtype) / 255.0, transform_camera(camera, to_crop))
        keypoints = transform_pixels(inverse_affine(to_crop), estimate.keypoints_2d)
        return keypoints, estimate.confidence, estimate.pose, estimate.betas, estimate.root_depth, estimate.bone

    with_k: list[Predictions] = []
    without_k: list[Predictions] = []
    boxes = truth.boxes
    for start in tqdm(range(0, len(truth), _NETWORK_BATCH), desc="hand module", unit="batch"):
        # The last batch is filled up, so that one program serves all batches.
        batch = np.minimum(np.arange(start, start + _NETWORK_BATCH), len(truth) - 1)
        real = batch[: len(truth) - start].tolist()
        cut = [crop_square(truth.image(i), boxes[i], module.config.image_size) for i in real]
        cut += cut[-1:] * (_NETWORK_BATCH - len(real))
        crops = np.stack([crop for crop, _, _ in cut])
        to_crop = jnp.asarray(np.stack([affine for _, affine, _ in cut]))
        known = Camera.from_matrix(truth.intrinsics[batch])
        for camera, predictions in ((known, with_k), (weak_cameras(_NETWORK_BATCH), without_k)):
            found = run(state, crops, camera, to_crop)
            keypoints, confidence, pose, betas, depth, bone = (np.asarray(array)[: len(real)] for array in found)
            predictions.append(
                Predictions("hand module", keypoints, confidence, pose, betas, root_depth=depth, bone=bone)
            )
    all_with_k, all_without_k = (
        jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts) for parts in (with_k, without_k)
    )
    return all_with_k, all_without_k


_SHAPES = {"keypoints_2d": (21, 2), "confidence": (21,), "pose": (16, 3), "betas": (NUM_BETAS,), "joints_3d": (21, 3)}
"""Shapes of the arrays of a prediction file, for one hand; `root_depth` and `bone` are numbers."""


def read_predictions(path: Path, count: int) -> Predictions:
    """Read another method's predictions for the same hands in the same order.

    The file is an npz with `keypoints_2d` (n, 21, 2), pixels of the image of a right hand, and either `pose` (n, 16, 3)
    axis-angle with `betas` (n, 10), or `joints_3d` (n, 21, 3) in any unit. Optional are `confidence` (n, 21),
    `root_depth` (n,) and `bone` (n,) in metres, `order`, a name of `KEYPOINT_ORDERS` for all keypoints, and `method`.

    Args:
        path: The file.
        count: Number of hands n.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    stored = _npz_arrays(path)
    if "keypoints_2d" not in stored or not ({"pose", "joints_3d"} & stored.keys()):
        raise InputError(f"{path}: needs keypoints_2d and either pose with betas or joints_3d; it has {sorted(stored)}")
    if "pose" in stored and "betas" not in stored:
        raise InputError(f"{path}: has pose without betas: add betas (n, {NUM_BETAS})")
    order = str(stored.get("order", "canonical"))
    if order not in KEYPOINT_ORDERS:
        raise InputError(f"{path}: order {order!r} is unknown: use one of {', '.join(KEYPOINT_ORDERS)}")
    reordered = np.asarray(permutation(KEYPOINT_ORDERS[order], KEYPOINTS))

    def array(name: str) -> Numbers | None:
        if name not in stored:
            return None
        values, wanted = stored[name], (count, *_SHAPES.get(name, ()))
        if values.shape != wanted:
            raise InputError(f"{path}: {name} has shape {values.shape}, not {wanted}: predict every sample, in order")
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise InputError(f"{path}: {name} holds something that is no finite number: remove it")
        values = values.astype(np.float32)
        return values[:, reordered] if wanted[1:2] == (NUM_KEYPOINTS,) else values

    keypoints, confidence = array("keypoints_2d"), array("confidence")
    assert keypoints is not None
    return Predictions(
        method=str(stored.get("method", path.stem)),
        keypoints_2d=keypoints,
        confidence=np.ones((count, NUM_KEYPOINTS), np.float32) if confidence is None else confidence,
        pose=array("pose"),
        betas=array("betas"),
        joints=array("joints_3d"),
        root_depth=array("root_depth"),
        bone=array("bone"),
    )


def _npz_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, because NumPy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): give an npz of predictions") from None
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError):
        raise InputError(f"{path}: is no npz of plain arrays, or is damaged: write it with numpy.savez") from None

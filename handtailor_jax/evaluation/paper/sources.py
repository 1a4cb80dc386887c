"""Sources of subjects: ground truth of a dataset, and predictions of a network, a file or a noise model."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from handtailor_jax.data.sample import Reader, Sample
from handtailor_jax.detector.detector import HandDetector
from handtailor_jax.detector.regions import square_region
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.paper.subjects import MARGIN, GroundTruth, Predictions, weak_cameras
from handtailor_jax.finders import LandmarkFinder
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import as_camera, inverse_affine, transform_camera, transform_pixels
from handtailor_jax.geometry.mirror import mirror_pixels, mirror_points, mirror_pose
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.layers import inference_form
from handtailor_jax.images import Image, crop_square
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.safe_arrays import read_npz
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_BETAS, NUM_KEYPOINTS, ROOT, WRIST, permutation
from handtailor_jax.synthetic import dataset as synthetic
from handtailor_jax.types import Box, Camera

HAND_MODULE = "hand module"
"""Name of predictions by a hand module of this project."""

_IMAGE_SIZE = 256  # pixels, of rendered images
_CENTRAL_SQUARE = 130.0 / 224.0  # of the image's width: HandMesh's box on FreiHAND, which needs no ground truth
_PIECE = 250
_NETWORK_BATCH = 32
# Shapes of the arrays of a prediction file, for one hand; `root_depth` and `bone` are numbers.
_SHAPES = {
    "keypoints_2d": (21, 2),
    "confidence": (21,),
    "pose": (16, 3),
    "betas": (NUM_BETAS,),
    "joints_3d": (21, 3),
    "boxes": (4,),
}


def synthetic_truth(count: int) -> GroundTruth:
    """Return the first hands of the synthetic test split, whose images are rendered one by one when asked for.

    Raises:
        InputError: If the split has fewer hands.
    """
    most = synthetic.TEST_SAMPLES
    if not 1 <= count <= most:
        raise InputError(f"count must be between 1 and {most} for the synthetic test split, got {count}")
    dataset = synthetic.SyntheticDataset(synthetic.SyntheticConfig(size=_IMAGE_SIZE, images_at_once=1), "test")
    # The last piece is filled up, so that one program serves all pieces.
    indices = np.arange(-(-count // _PIECE) * _PIECE, dtype=np.int32).reshape(-1, _PIECE) % most
    pieces = jax.device_get([_labels(dataset.assets, jnp.asarray(piece), dataset.config) for piece in indices])
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
def _labels(
    assets: synthetic.SyntheticAssets, indices: Int[Array, "n"], config: synthetic.SyntheticConfig
) -> tuple[Array, ...]:
    """Return pose, betas, joints, keypoints and K of samples of the test split, without rendering them."""

    def one(index: Array) -> tuple[Array, ...]:
        pose, betas, placed = synthetic.sample_hand(assets, synthetic.sample_key(0, "test", index), config)
        return pose, betas, placed.joints, placed.keypoints_2d, placed.camera.matrix

    return jax.vmap(one)(indices)


def reader_truth(
    dataset: str,
    samples: Iterator[tuple[int, Sample]],
    reader: Reader,
    count: int,
    *,
    labelled: bool = True,
    posed: bool = False,
    read_maps: Callable[[int], Sample] | None = None,
) -> GroundTruth:
    """Return the ground truth of a dataset's samples. Images are decoded again when asked for, to bound memory.

    Args:
        dataset: Name of dataset and split.
        samples: Index and sample of all samples that can be read.
        reader: Reader that decodes the images.
        count: Number of samples to take.
        labelled: Whether labels are used. If not, boxes are a fixed square in the middle of the image; joints are 0.
        posed: Whether poses are needed, for `simulated_predictions`.
        read_maps: See `GroundTruth`.

    Raises:
        InputError: If a sample lacks 3D joints or intrinsics, which every table needs, or a needed pose, or if there
            are no samples.
    """
    indices: list[int] = []
    found: list[Sample] = []
    for index, sample in tqdm(itertools.islice(samples, count), total=count, desc="reading", unit="sample"):
        sample = sample if labelled else _unlabelled(sample)
        if sample.joints is None or sample.intrinsics is None:
            raise InputError(f"{sample.name}: has no 3D joints or no intrinsics, which tables need: use another split")
        if posed and (sample.pose is None or sample.betas is None):
            raise _without_poses(dataset)
        indices.append(index)
        found.append(dataclasses.replace(sample, image=np.zeros((0, 0, 3), np.uint8), depth=None, mask=None))
    if not found:
        raise InputError(f"{dataset}: not one sample could be read: check --root and --split")

    def column(name: str) -> Any:
        values = [getattr(sample, name) for sample in found]
        return None if any(value is None for value in values) else np.stack(values)

    names = ("joints", "keypoints_2d", "visible", "intrinsics", "pose", "betas", "vertices")
    labels = {name: column(name) for name in names}
    kind = found[0].joint_definition
    functions: dict[str, Any] = {"read_image": lambda i: reader[i].image, "read_maps": read_maps}
    return GroundTruth(dataset, kind, index=np.asarray(indices), **functions, **labels)


def _unlabelled(sample: Sample) -> Sample:
    """Replace the keypoints by corners of a fixed square in the middle of the image, and drop all other labels."""
    height, width = sample.image.shape[:2]
    half = 0.5 * _CENTRAL_SQUARE * width / MARGIN
    corners = np.asarray([[-half, -half], [half, half]], np.float32)[np.arange(NUM_KEYPOINTS) % 2]
    middle = np.asarray([0.5 * (width - 1), 0.5 * (height - 1)], np.float32)
    joints, keypoints = np.zeros((NUM_KEYPOINTS, 3), np.float32), (middle + corners).astype(np.float32)
    return dataclasses.replace(sample, keypoints_2d=keypoints, joints=joints, vertices=None, pose=None, betas=None)


def simulated_predictions(truth: GroundTruth, seed: int, noise: float = 1.0) -> Predictions:
    """Return predictions of a noise model in place of a network; its widths were not measured on any network.

    Every hand has a difficulty that scales all of its errors, because a hand that is hard to see has worse keypoints
    and a worse pose. At the median difficulty the standard deviations are 1.25 % of the hand size (keypoints, per
    axis), 0.15 rad (rotations, per axis), 0.5 (betas), 3 % (root depth) and 3 % (bone), times `noise`.

    Raises:
        InputError: If the true poses, to which noise is added, are unknown.
    """
    if truth.pose is None or truth.betas is None:
        raise _without_poses(truth.dataset)
    random, n = np.random.default_rng([seed, 5]), len(truth)
    difficulty = np.exp(0.5 * random.normal(size=n))
    width = noise * 0.0125 * difficulty * hand_size(truth.keypoints_2d)
    turns = noise * 0.15 * np.sqrt(difficulty)[:, None, None] * random.normal(size=(n, 16, 3))
    true_bone = np.linalg.norm(truth.joints[:, ROOT] - truth.joints[:, WRIST], axis=-1)
    keypoints = truth.keypoints_2d + width[:, None, None] * random.normal(size=(n, NUM_KEYPOINTS, 2))
    return Predictions(
        method="simulated network",
        keypoints_2d=keypoints.astype(np.float32),
        confidence=np.ones((n, NUM_KEYPOINTS), np.float32),
        pose=np.asarray(_turned(jnp.asarray(truth.pose), jnp.asarray(turns.astype(np.float32)))),
        betas=(truth.betas + noise * 0.5 * random.normal(size=(n, NUM_BETAS))).astype(np.float32),
        root_depth=(truth.joints[:, ROOT, 2] * (1.0 + noise * 0.03 * random.normal(size=n))).astype(np.float32),
        bone=(true_bone * (1.0 + noise * 0.03 * random.normal(size=n))).astype(np.float32),
    )


def _without_poses(dataset: str) -> InputError:
    needed = f"--predictions simulated needs true poses, which {dataset} does not have"
    return InputError(f"{needed}: give --weights or a file")


@jax.jit
def _turned(pose: Float[Array, "n 16 3"], turns: Float[Array, "n 16 3"]) -> Float[Array, "n 16 3"]:
    both = jnp.einsum("njab,njbc->njac", matrix_from_axis_angle(turns), matrix_from_axis_angle(pose))
    return axis_angle_from_matrix(both)


def network_predictions(truth: GroundTruth, module: HandModule, hand: HandModel) -> tuple[Predictions, Predictions]:
    """Return predictions of a hand module with and without intrinsics; each image is decoded once.

    The boxes around the true hands are given; with a landmark network in the stem, the crops are rotated to the hands.

    Raises:
        InputError: If there are no images, or one cannot be decoded.
    """
    graph, state = nnx.split(inference_form(module))

    @jax.jit
    def run(state: Any, crops: Array, camera: Camera, to_crop: Array) -> tuple[Array, ...]:
        estimate = nnx.merge(graph, state)(crops.astype(hand.dtype) / 255.0, transform_camera(camera, to_crop))
        keypoints = transform_pixels(inverse_affine(to_crop), estimate.keypoints_2d)
        return keypoints, estimate.confidence, estimate.pose, estimate.betas, estimate.root_depth, estimate.bone

    def joined(parts: list[tuple[Array, ...]]) -> Predictions:
        arrays = (np.concatenate(each)[: len(truth)] for each in zip(*parts, strict=True))
        keypoints, confidence, pose, betas, depth, bone = arrays
        return Predictions(HAND_MODULE, keypoints, confidence, pose, betas, root_depth=depth, bone=bone)

    with_k: list[tuple[Array, ...]] = []
    without_k: list[tuple[Array, ...]] = []
    look, boxes = _looking(module), truth.boxes
    for start in tqdm(range(0, len(truth), _NETWORK_BATCH), desc="hand module", unit="batch"):
        # The last batch is filled up, so that one program serves all batches.
        batch = np.minimum(np.arange(start, start + _NETWORK_BATCH), len(truth) - 1)
        real = batch[: len(truth) - start].tolist()
        cut = [look(truth.image(i), boxes[i]) for i in real]
        cut += cut[-1:] * (_NETWORK_BATCH - len(real))
        crops, to_crop = np.stack([crop for crop, _ in cut]), jnp.asarray(np.stack([affine for _, affine in cut]))
        with_k.append(run(state, crops, Camera.from_matrix(truth.intrinsics[batch]), to_crop))
        without_k.append(run(state, crops, weak_cameras(_NETWORK_BATCH), to_crop))
    return joined(with_k), joined(without_k)


def _looking(module: HandModule) -> Callable[[Image, Box], tuple[Image, npt.NDArray[np.float32]]]:
    """Return a function from an image and a box to the crop and the affine map to its pixels."""
    size = module.config.image_size
    if module.landmark_network is None:
        return lambda image, box: crop_square(image, box, size)[:2]
    detector, inset = HandDetector(landmark_network=module.landmark_network), 0.5 - 0.5 / MARGIN

    def look(image: Image, box: Box) -> tuple[Image, npt.NDArray[np.float32]]:
        x, y, w, h = box
        hand = detector.in_box(image, (x + inset * w, y + inset * h, w / MARGIN, h / MARGIN), passes=1)
        region = square_region(box) if hand is None else hand.next_region
        view = LandmarkFinder(detector, size).view(image, as_camera(None), region, 1.0)
        return view.crop, view.to_crop

    return look


def read_predictions(path: Path, count: int) -> Predictions:
    """Read another method's predictions for the same `count` hands in the same order (docs/protocols.md).

    Raises:
        InputError: If the file cannot be used; it names the file.
    """
    stored = read_npz(path)
    if "keypoints_2d" not in stored or not ({"pose", "joints_3d"} & stored.keys()):
        raise InputError(f"{path}: needs keypoints_2d and either pose with betas or joints_3d; it has {sorted(stored)}")
    if "pose" in stored and "betas" not in stored:
        raise InputError(f"{path}: has pose without betas: add betas (n, {NUM_BETAS})")
    order = str(stored.get("order", "canonical"))
    if order not in KEYPOINT_ORDERS:
        raise InputError(f"{path}: order {order!r} is unknown: use one of {', '.join(KEYPOINT_ORDERS)}")
    reordered = np.asarray(permutation(KEYPOINT_ORDERS[order], KEYPOINTS))

    def array(name: str) -> Any:
        if name not in stored:
            return None
        values, wanted = stored[name], (count, *_SHAPES.get(name, ()))
        if values.shape != wanted:
            raise InputError(f"{path}: {name} has shape {values.shape}, not {wanted}: predict every sample, in order")
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise InputError(f"{path}: {name} holds something that is not a finite number: remove it")
        values = values.astype(np.float32)
        return values[:, reordered] if wanted[1:2] == (NUM_KEYPOINTS,) else values

    confidence = array("confidence")
    predictions = Predictions(
        method=str(stored.get("method", path.stem)),
        keypoints_2d=array("keypoints_2d"),
        confidence=np.ones((count, NUM_KEYPOINTS), np.float32) if confidence is None else confidence,
        joints=array("joints_3d"),
        **{name: array(name) for name in ("pose", "betas", "root_depth", "bone")},
    )
    if array("boxes") is None and "crop_size" not in stored:
        return predictions
    size = np.asarray(stored.get("crop_size", 0))
    if array("boxes") is None or size.shape or size.dtype.kind not in "fiu" or not 1 <= size < np.inf:
        raise InputError(f"{path}: needs both boxes (n, 4) and crop_size, a number of pixels, or neither")
    return _out_of_crops(predictions, array("boxes"), float(size), mirrored=bool(np.any(stored.get("mirrored", False))))


def _out_of_crops(predictions: Predictions, boxes: Any, size: float, *, mirrored: bool) -> Predictions:
    """Move keypoints from pixels of crops to pixels of the images, and mirror them back if the crops were mirrored."""
    keypoints, joints, pose = predictions.keypoints_2d, predictions.joints, predictions.pose
    if mirrored:
        keypoints = mirror_pixels(keypoints, size)
        joints = None if joints is None else mirror_points(joints)
        pose = None if pose is None else mirror_pose(pose)
    # A box begins at the edge of a pixel, and coordinates count from its centre.
    keypoints = boxes[:, None, :2] - 0.5 + (keypoints + 0.5) * boxes[:, None, 2:] / size
    return dataclasses.replace(predictions, keypoints_2d=keypoints.astype(np.float32), joints=joints, pose=pose)

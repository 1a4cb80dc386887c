"""What the tables are about: hands whose truth is known, and what a method says about each of them.

Truth comes from the synthetic test split (labels alone, or with pictures) or from a dataset's reader. Estimates come
from a hand module, from a file that another method wrote, or from a noise model in place of a network.
"""

import dataclasses
import itertools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jaxtyping import Array, Float
from tqdm import tqdm

from handtailor_jax.data.sample import JointDefinition, Reader, Sample
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import Box
from handtailor_jax.geometry.cameras import inverse_affine, transform_camera, transform_pixels
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.inference import inference_form
from handtailor_jax.images import Picture, crop_square
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import KEYPOINT_ORDERS, KEYPOINTS, NUM_BETAS, ROOT, WRIST, permutation
from handtailor_jax.synthetic.dataset import TEST_SAMPLES, SyntheticConfig, SyntheticDataset, sample_hand, sample_key
from handtailor_jax.types import Camera, HandEstimate

Numbers = npt.NDArray[np.float32]

MARGIN = 2.0
"""Side of the network's box over the longer side of the true keypoints' box (datasets, section 1.4): a privilege, which
every table states."""

_CENTRE = 130.0 / 224.0  # HandMesh's square on FreiHAND, where no truth is known at test time (datasets 1.3)
_PICTURE = 256
_PIECE = 250
_NETWORK_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known about every hand of a split; right hands, canonical joints, metres, camera frame."""

    dataset: str
    """Name and split, for titles."""
    joints: Numbers
    """(n, 21, 3)."""
    keypoints_2d: Numbers
    """(n, 21, 2) pixels of the picture."""
    visible: npt.NDArray[np.bool_]
    """(n, 21)."""
    intrinsics: Numbers
    """(n, 3, 3) K of the picture."""
    joint_definition: JointDefinition
    """What the joints are."""
    pose: Numbers | None = None
    """(n, 16, 3) axis-angle of the hand model; None where the dataset has none."""
    betas: Numbers | None = None
    """(n, 10)."""
    vertices: Numbers | None = None
    """(n, vertices, 3) camera frame, metres, where the dataset has meshes."""
    picture: Callable[[int], Picture] | None = None
    """The picture of a hand, decoded or rendered when asked for; None where there are labels only."""

    def __len__(self) -> int:
        return len(self.joints)

    @property
    def extent(self) -> Numbers:
        """(n,) longer side of the box around the keypoints, pixels: the hand's size in the picture."""
        return np.ptp(self.keypoints_2d, axis=1).max(axis=-1)

    def boxes(self, margin: float = MARGIN) -> list[Box]:
        """The square around every hand, `margin` times the keypoints' box."""
        low, high = self.keypoints_2d.min(axis=1), self.keypoints_2d.max(axis=1)
        middle, side = 0.5 * (low + high), margin * np.maximum((high - low).max(axis=-1), 1.0)
        left_top = middle - 0.5 * side[:, None]
        return [(float(x), float(y), float(s), float(s)) for (x, y), s in zip(left_top, side, strict=True)]

    def some(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> "Truth":
        """The hands at some indices."""
        rows = np.asarray(indices)
        chosen = {
            field.name: getattr(self, field.name)[rows]
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        picture = self.picture
        if picture is not None:
            chosen["picture"] = lambda i: picture(int(rows[i]))
        return dataclasses.replace(self, **chosen)


@dataclasses.dataclass(frozen=True)
class Estimates:
    """What a method says about the same hands, before the tailor."""

    method: str
    """Its name."""
    keypoints_2d: Numbers
    """(n, 21, 2) pixels of the picture."""
    confidence: Numbers
    """(n, 21) from 0 to 1."""
    pose: Numbers | None
    """(n, 16, 3) axis-angle, radians, flat hand = 0; None where the method gives joints only."""
    betas: Numbers | None
    """(n, 10)."""
    joints: Numbers | None
    """(n, 21, 3) its own 3D joints, metres or any unit; None where they follow from pose and betas."""
    root_depth: Numbers | None
    """(n,) z of the middle MCP, metres; None where unknown, and the hand is then placed without intrinsics."""
    bone: Numbers | None
    """(n,) length of the reference bone, metres; None for the model's own."""

    def some(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> "Estimates":
        """Those at some indices."""
        rows = np.asarray(indices)
        chosen = {
            field.name: getattr(self, field.name)[rows]
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        return dataclasses.replace(self, **chosen)


def synthetic_truth(count: int, hand: HandModel) -> Truth:
    """The first `count` hands of the synthetic test split; pictures are rendered one by one when asked for.

    Raises:
        InputError: if there are not that many.
    """
    if not 1 <= count <= TEST_SAMPLES:
        raise InputError(f"--count must be between 1 and {TEST_SAMPLES} for the synthetic test split, got {count}")
    config = SyntheticConfig(size=_PICTURE, images_at_once=1)
    dataset = SyntheticDataset(config, "test")

    @jax.jit
    def labels(indices: Array) -> tuple[Array, ...]:
        def one(index: Array) -> tuple[Array, ...]:
            pose, betas, placed = sample_hand(dataset.assets, sample_key(0, "test", index), config)
            return pose, betas, placed.joints, placed.keypoints_2d, placed.camera.matrix

        return jax.vmap(one)(indices)

    # Always whole pieces, so that nothing is compiled twice.
    numbers = np.arange(-(-count // _PIECE) * _PIECE, dtype=np.int32).reshape(-1, _PIECE) % TEST_SAMPLES
    pieces = [jax.device_get(labels(piece)) for piece in numbers]
    pose, betas, joints, keypoints, intrinsics = (np.concatenate(each)[:count] for each in zip(*pieces, strict=True))
    return Truth(
        dataset="synthetic, test split",
        joints=joints,
        keypoints_2d=keypoints,
        visible=np.ones((count, 21), bool),
        intrinsics=intrinsics,
        joint_definition="model",
        pose=pose,
        betas=betas,
        picture=lambda i: np.asarray(dataset[i].image),
    )


def reader_truth(
    name: str, samples: Iterator[tuple[int, Sample]], reader: Reader, total: int, *, labelled: bool = True
) -> Truth:
    """The truth of a dataset's samples. Pictures are decoded again when asked for: memory stays flat.

    Args:
        name: of dataset and split.
        samples: (index, sample) pairs of what can be read.
        reader: to decode pictures from.
        total: how many to take, for the bar.
        labelled: whether the labels are used. Without, as for a submission, boxes are a fixed square in the middle of
            each picture, `_CENTRE` of its width, and joints are 0.

    Raises:
        InputError: if a sample lacks 3D joints or intrinsics, which every table needs, or there are none.
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    for index, sample in tqdm(itertools.islice(samples, total), total=total, desc="reading", unit="sample"):
        if not labelled:
            sample = _unlabelled(sample)
        if sample.joints is None or sample.intrinsics is None:
            raise InputError(f"{sample.name}: has no 3D joints or no intrinsics, which tables need: use another split")
        fields = {
            "joints": sample.joints,
            "keypoints_2d": sample.keypoints_2d,
            "visible": sample.visible,
            "intrinsics": sample.intrinsics,
            "pose": sample.pose,
            "betas": sample.betas,
            "vertices": sample.vertices,
        }
        rows.append((index, fields | {"definition": sample.joint_definition}))
    if not rows:
        raise InputError(f"{name}: not one sample could be read: check --root and --split")

    def column(field: str) -> Any:
        values = [fields[field] for _, fields in rows]
        return None if any(value is None for value in values) else np.stack(values)

    numbers = [index for index, _ in rows]
    return Truth(
        dataset=name,
        joint_definition=rows[0][1]["definition"],
        picture=lambda i: reader[numbers[i]].image,
        **{field: column(field) for field in rows[0][1] if field != "definition"},
    )


def _unlabelled(sample: Sample) -> Sample:
    """The sample with keypoints that only say where the fixed square is."""
    height, width = sample.image.shape[:2]
    half = 0.5 * _CENTRE * width / MARGIN
    corners = np.asarray([[-half, -half], [half, half]], np.float32)[np.arange(21) % 2]
    middle = np.asarray([0.5 * (width - 1), 0.5 * (height - 1)], np.float32)
    return dataclasses.replace(
        sample,
        keypoints_2d=(middle + corners).astype(np.float32),
        joints=np.zeros((21, 3), np.float32),
        vertices=None,
        pose=None,
        betas=None,
    )


@dataclasses.dataclass(frozen=True)
class NoiseModel:
    """A network as a source of noise. No network was measured for it: it says what a tailor does with such errors.

    Every hand has a difficulty of its own, common to all its errors: hands that are hard to see have both keypoints and
    pose further off.
    """

    keypoints: float = 0.0125
    """Standard deviation of keypoints per axis, share of the hand's size, at the median difficulty."""
    rotations: float = 0.15
    """The same of each rotation about each axis, radians."""
    betas: float = 0.5
    """The same of shape coefficients."""
    root_depth: float = 0.03
    """The same of the root's depth, share."""
    bone: float = 0.03
    """The same of the reference bone, share."""
    spread: float = 0.5
    """Standard deviation of the logarithm of the difficulty."""


def simulated(truth: Truth, seed: int, noise: NoiseModel = NoiseModel()) -> Estimates:
    """Estimates by a noise model in place of a network.

    Raises:
        InputError: where the true pose, from which it starts, is unknown.
    """
    if truth.pose is None or truth.betas is None:
        raise InputError(
            f"--predictions simulated needs true poses, which {truth.dataset} does not have: give --weights or a file"
        )
    random, n = np.random.default_rng([seed, 5]), len(truth)
    difficulty = np.exp(noise.spread * random.normal(size=n))
    width = noise.keypoints * difficulty * truth.extent
    turns = noise.rotations * np.sqrt(difficulty)[:, None, None] * random.normal(size=(n, 16, 3))
    true_bone = np.linalg.norm(truth.joints[:, ROOT] - truth.joints[:, WRIST], axis=-1)
    return Estimates(
        method="simulated network",
        keypoints_2d=(truth.keypoints_2d + width[:, None, None] * random.normal(size=(n, 21, 2))).astype(np.float32),
        confidence=np.ones((n, 21), np.float32),
        pose=np.asarray(_turned(jnp.asarray(truth.pose), jnp.asarray(turns.astype(np.float32)))),
        betas=(truth.betas + noise.betas * random.normal(size=(n, NUM_BETAS))).astype(np.float32),
        joints=None,
        root_depth=(truth.joints[:, ROOT, 2] * (1.0 + noise.root_depth * random.normal(size=n))).astype(np.float32),
        bone=(true_bone * (1.0 + noise.bone * random.normal(size=n))).astype(np.float32),
    )


@jax.jit
def _turned(pose: Float[Array, "n 16 3"], turns: Float[Array, "n 16 3"]) -> Float[Array, "n 16 3"]:
    both = jnp.einsum("njab,njbc->njac", matrix_from_axis_angle(turns), matrix_from_axis_angle(pose))
    return axis_angle_from_matrix(both)


def network_estimates(truth: Truth, module: HandModule, hand: HandModel) -> tuple[Estimates, Estimates]:
    """What a hand module says about the pictures, with intrinsics and without; each picture is decoded once.

    Args:
        truth: with pictures; the boxes are its own, `MARGIN` times as large as the hands.
        module: the hand module.
        hand: for its dtype.

    Raises:
        InputError: without pictures, or if a picture cannot be decoded.
    """
    if truth.picture is None:
        raise InputError(f"{truth.dataset} has no pictures for a network: use --predictions")
    graph, state = nnx.split(inference_form(module))
    size = module.config.image_size

    @jax.jit
    def run(state: Any, crops: Array, cameras: Camera) -> HandEstimate:
        return nnx.merge(graph, state)(crops.astype(hand.dtype) / 255.0, cameras)

    boxes = truth.boxes()
    rows: tuple[list[list[Any]], list[list[Any]]] = ([], [])
    with tqdm(total=len(truth), desc="hand module", unit="picture") as bar:
        for start in range(0, len(truth), _NETWORK_BATCH):
            real = range(start, min(start + _NETWORK_BATCH, len(truth)))
            cut = [crop_square(truth.picture(i), boxes[i], size) for i in real]
            missing = _NETWORK_BATCH - len(cut)  # the last batch is filled up, so that nothing is compiled twice
            cut += cut[-1:] * missing
            to_crop = jnp.asarray(np.stack([affine for _, affine, _ in cut]))
            intrinsics = truth.intrinsics[list(real) + [real[-1]] * missing]
            crops = np.stack([crop for crop, _, _ in cut])
            for known, of_mode in zip((True, False), rows, strict=True):
                found = run(state, crops, transform_camera(cameras_of(intrinsics, known=known), to_crop))
                pixels = transform_pixels(inverse_affine(to_crop), found.keypoints_2d)
                arrays = (pixels, found.confidence, found.pose, found.betas, found.root_depth, found.bone)
                of_mode.append([np.asarray(x)[: len(real)] for x in arrays])
            bar.update(len(real))

    def joined(of_mode: list[list[Any]]) -> Estimates:
        columns = [np.concatenate(each) for each in zip(*of_mode, strict=True)]
        keypoints, confidence, pose, betas, root_depth, bone = columns
        return Estimates("hand module", keypoints, confidence, pose, betas, None, root_depth, bone)

    return joined(rows[0]), joined(rows[1])


def cameras_of(intrinsics: npt.NDArray[np.floating], *, known: bool) -> Camera:
    """Cameras with the given K, or those of pictures without intrinsics."""
    if known:
        return Camera.from_matrix(intrinsics)
    return Camera.weak_perspective(np.ones(len(intrinsics), np.float32), np.zeros((len(intrinsics), 2), np.float32))


def read_estimates(path: Path, count: int) -> Estimates:
    """Another method's predictions, for the same hands in the same order.

    An npz with `keypoints_2d` (n, 21, 2) pixels of the (right-handed) picture, and either `pose` (n, 16, 3) axis-angle
    with `betas` (n, 10), or `joints_3d` (n, 21, 3) in any unit; optionally `confidence` (n, 21), `root_depth` (n,)
    and `bone` (n,) in metres, `order` (a name of `KEYPOINT_ORDERS`) that holds for all keypoints, and `method`.

    Raises:
        InputError: naming the file and what is wrong.
    """
    try:
        # Opened here, since numpy leaves files open that turn out to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): give an npz of predictions") from None
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError):
        raise InputError(f"{path}: is no npz of plain arrays, or is damaged: write it with numpy.savez") from None
    if "keypoints_2d" not in arrays or not ({"pose", "joints_3d"} & arrays.keys()):
        raise InputError(f"{path}: needs keypoints_2d and either pose with betas or joints_3d; it has {sorted(arrays)}")
    if "pose" in arrays and "betas" not in arrays:
        raise InputError(f"{path}: has pose without betas: add betas (n, {NUM_BETAS})")
    order = str(arrays["order"]) if "order" in arrays else "canonical"
    if order not in KEYPOINT_ORDERS:
        raise InputError(f"{path}: order {order!r} is unknown: use one of {', '.join(KEYPOINT_ORDERS)}")
    rows = np.asarray(permutation(KEYPOINT_ORDERS[order], KEYPOINTS))
    shapes = {
        "keypoints_2d": (21, 2),
        "confidence": (21,),
        "pose": (16, 3),
        "betas": (NUM_BETAS,),
        "joints_3d": (21, 3),
        "root_depth": (),
        "bone": (),
    }

    def array(name: str) -> Numbers | None:
        if name not in arrays:
            return None
        values, wanted = arrays[name], (count, *shapes[name])
        if values.shape != wanted:
            raise InputError(f"{path}: {name} has shape {values.shape}, not {wanted}: predict every sample, in order")
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise InputError(f"{path}: {name} holds something that is no finite number: remove it")
        values = values.astype(np.float32)
        return values[:, rows] if shapes[name][:1] == (21,) else values

    keypoints, confidence = array("keypoints_2d"), array("confidence")
    assert keypoints is not None
    return Estimates(
        method=str(arrays["method"]) if "method" in arrays else path.stem,
        keypoints_2d=keypoints,
        confidence=np.ones((count, 21), np.float32) if confidence is None else confidence,
        pose=array("pose"),
        betas=array("betas"),
        joints=array("joints_3d"),
        root_depth=array("root_depth"),
        bone=array("bone"),
    )

"""Fine-tune the IKNet of the embedded hourglass for the hand landmark network, and write it into the package.

python tools/train_landmark_iknet.py --cache runs/pool --photos DIR ...

Half of each batch are outputs of the landmark network for rendered hands of known pose. The others are poses of the
synthetic distribution: landmarks of the hand model in MediaPipe's convention, with errors of the landmark network
added. These errors are measured on the same renderings, without those of the largest errors, because errors on
photographs are smaller. Outputs for photographs of the split `train`, whose pose is not known, are added with a loss on
the distance of the found hand's landmarks from the 2D keypoints. The last renderings and every 12th photograph are held
out: the table compares the new IKNet with the one of the embedded hourglass on them.

Hardware: 2 CPU cores; about 35 minutes for the renderings, once, and 20 minutes for the rest.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jaxtyping import Array, Float
from tqdm import tqdm

from handtailor_jax.data.readers.photos import PhotoLabel, read_labels
from handtailor_jax.detector.landmark_network import HandLandmarkNetwork
from handtailor_jax.detector.regions import cut, from_landmarks, to_image
from handtailor_jax.detector.weights import load_landmark_network
from handtailor_jax.evaluation.alignment import similarity
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import inverse_affine, transform_camera
from handtailor_jax.geometry.mirror import mirror_points
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.hand_module.hand_module import camera_joints
from handtailor_jax.hand_module.iknet import IKNet, normalise_joints
from handtailor_jax.hand_module.weights import LANDMARK_IKNET, load_iknet, load_module, save_weights
from handtailor_jax.images import Image, read_image
from handtailor_jax.mano.landmarks import load_convention
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.results import write_atomically
from handtailor_jax.skeleton import NUM_BETAS, ROOT
from handtailor_jax.synthetic.dataset import SyntheticConfig
from handtailor_jax.synthetic.poses import PoseConfig, sample_betas, sample_pose
from handtailor_jax.synthetic.storage import SamplePool
from handtailor_jax.types import Camera, Region

ASSETS = Path(__file__).resolve().parents[1] / "handtailor_jax" / "assets"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the training."""

    cache: Path
    """Folder for the renderings; renderings that it holds already are used."""
    photos: tuple[Path, ...]
    """Folders with labels.json and its photographs."""
    renderings: int = 5632
    """Number of rendered hands of the training split."""
    copies: int = 4
    """Regions of each rendering: shifted, turned and scaled at random around the true one."""
    held: int = 256
    """Number of renderings that are held out."""
    noise: float = 0.4
    """Largest share of a rendering's error that is added to a pose."""
    clear: float = 0.4
    """Share of the renderings whose errors are added to poses, those with the smallest errors."""
    seen: float = 0.5
    """Share of each batch that are outputs of the landmark network."""
    photographs: int = 64
    """Outputs for photographs in each step, in addition to `batch`."""
    consistency: float = 1.0
    """Weight of their loss."""
    steps: int = 12_000
    """Number of training steps."""
    batch: int = 256
    """Renderings and poses in each step."""
    out: Path = ASSETS / LANDMARK_IKNET
    """Weight file to write."""


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Outputs of the landmark network for renderings, and the true hands."""

    rendering: np.ndarray
    """(n,) number of the rendering."""
    joints: np.ndarray
    """(n, 21, 3) input of IKNet."""
    pose: np.ndarray
    """(n, 16, 3) true pose."""
    betas: np.ndarray
    """(n, 10) true shape."""

    def rows(self, chosen: np.ndarray) -> "Outputs":
        """Return some rows."""
        return Outputs(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


HAND, CONVENTION = embedded_hand(), load_convention("mediapipe")


def landmarks(pose: Float[Array, "16 3"], betas: Float[Array, "10"]) -> Float[Array, "21 3"]:
    """Return the landmarks of the hand model as IKNet gets them."""
    return normalise_joints(CONVENTION.landmarks(HAND.shape(betas).pose(pose)))


@nnx.jit
def _run(network: HandLandmarkNetwork, crop: Array, camera: Camera) -> tuple[Array, Array, Array]:
    found = network(crop[None].astype(jnp.float32) / 255.0)
    return normalise_joints(camera_joints(found, camera))[0], found.presence[0], found.right[0]


def look(network: HandLandmarkNetwork, image: Image, camera: Camera, region: Region) -> tuple[np.ndarray, Any, Any]:
    """Return IKNet's input (21, 3), presence and probability of a right hand in a region; the camera is the image's."""
    affine = to_image(region, network.config.image_size)
    crop = cut(image, np.asarray(affine), network.config.image_size, extend=True)
    batched = jax.tree.map(lambda leaf: leaf[None], camera)
    return jax.device_get(_run(network, crop, transform_camera(batched, inverse_affine(affine[None]))))


def network_outputs(options: Options) -> Outputs:
    """Run the landmark network on the renderings; hands that it misses or takes for left ones are left out."""
    pool = SamplePool(options.cache, SyntheticConfig(images_at_once=4), options.renderings, "train")
    network, draws, rows = load_landmark_network(), np.random.default_rng(0), []
    for copy in range(options.copies):
        for number in tqdm(range(options.renderings), desc=f"landmark network, copy {copy + 1}", unit="image"):
            sample = jax.tree.map(lambda leaf: leaf[0], pool.batch(np.asarray([number])))
            region = near(sample.keypoints_2d, draws)
            joints, presence, right = look(network, sample.image, Camera.from_matrix(sample.intrinsics), region)
            if min(presence, right) > 0.5:
                rows.append((number, joints, sample.pose, sample.betas))
    return Outputs(*(np.stack(column) for column in zip(*rows, strict=True)))


def photograph_outputs(labels: Sequence[PhotoLabel]) -> np.ndarray:
    """Return IKNet's inputs (n, 21, 3) for photographs; hands that the landmark network misses are left out."""
    network, draws, rows = load_landmark_network(), np.random.default_rng(1), []
    for label in tqdm(labels, desc="photographs", unit="image"):
        region = near(label.keypoints_2d, draws)
        joints, presence, right = look(network, read_image(label.path), Camera.weak_perspective(), region)
        if presence > 0.5:
            rows.append(joints if right > 0.5 else mirror_points(joints))
    return np.stack(rows)


def near(keypoints_2d: np.ndarray, draws: np.random.Generator) -> Region:
    """Return a region around keypoints with random errors, like those of the detector or of the last video frame."""
    size = hand_size(keypoints_2d)
    exact = from_landmarks(jnp.asarray(keypoints_2d + 0.02 * size * draws.normal(size=(21, 2)), jnp.float32))
    return Region(
        exact.center + jnp.asarray(0.05 * size * draws.normal(size=2), jnp.float32),
        exact.side * jnp.float32(np.exp(0.08 * draws.normal())),
        exact.rotation + jnp.float32(0.12 * draws.normal()),
    )


def pose_loss(iknet: IKNet, joints: Array, matrices: Array, betas: Array) -> Array:
    """Return the loss of poses that are known: rotations (n, 16, 3, 3), and the keypoints of these shapes."""
    found = iknet(joints).matrices
    rotation = jnp.mean(jnp.sum((found - matrices) ** 2, axis=(-1, -2)))
    keypoints = jax.vmap(lambda betas, matrices: normalise_joints(HAND.shape(betas).articulate(matrices).keypoints))
    apart = keypoints(betas, found) - keypoints(betas, matrices)
    return rotation + 3.0 * jnp.mean(jnp.sqrt(jnp.sum(apart**2, axis=-1) + 1e-8))


def photograph_loss(iknet: IKNet, joints: Array) -> Array:
    """Return the mean distance of landmarks, in the image, from joints (n, 21, 3), in root mean squares of these.

    Scale and shift are the best ones, as when the tailor places the hand; the shape is the mean one.
    """
    articulate = jax.vmap(HAND.shape(jnp.zeros(NUM_BETAS)).articulate)
    found = jax.vmap(CONVENTION.landmarks)(articulate(iknet(joints).matrices))[..., :2]
    found, seen = (points - jnp.mean(points, axis=1, keepdims=True) for points in (found, joints[..., :2]))
    scale = jnp.sum(found * seen, axis=(1, 2)) / jnp.sum(found * found, axis=(1, 2))
    apart = scale[:, None, None] * found - seen
    size = jnp.sqrt(jnp.mean(jnp.sum(seen * seen, axis=-1), axis=-1))
    return jnp.mean(jnp.sqrt(jnp.sum(apart**2, axis=-1) + 1e-8) / size[:, None])


def made_poses(keys: Array, errors: Array, count: int, noise: float) -> tuple[Array, Array, Array]:
    """Return inputs (n, 21, 3) of IKNet for poses of the synthetic distribution, with shares of `errors`; the poses
    (n, 16, 3) and shapes (n, 10).
    """
    poses = PoseConfig(candidates=1, betas=1.5)
    pose = jax.vmap(lambda key: sample_pose(HAND, key, poses))(jax.random.split(keys[0], count))
    betas = jax.vmap(lambda key: sample_betas(HAND, key, poses))(jax.random.split(keys[1], count))
    error = errors[jax.random.randint(keys[2], (count,), 0, len(errors))]
    share = noise * jax.random.uniform(keys[3], (count, 1, 1))
    turn = about_axis(jax.random.uniform(keys[4], (count,), maxval=2.0 * jnp.pi))
    return jax.vmap(landmarks)(pose, betas) + share * jnp.einsum("bij,bkj->bki", turn, error), pose, betas


def train(options: Options, outputs: Outputs, photographs: np.ndarray) -> IKNet:
    """Train the IKNet."""
    errors = outputs.joints - np.asarray(jax.jit(jax.vmap(landmarks))(outputs.pose, outputs.betas))
    size = np.sqrt(np.mean(errors**2, axis=(1, 2)))
    clear = size <= np.quantile(size, options.clear)
    seen = round(options.seen * options.batch)
    made = options.batch - seen
    iknet = load_module(None, None).iknet
    iknet.train()
    schedule = optax.cosine_decay_schedule(5e-4, options.steps)
    optimizer = nnx.Optimizer(iknet, optax.adamw(schedule, weight_decay=1e-3), wrt=nnx.Param)

    def batch(key: Array, outputs: Outputs, errors: Array, photographs: Array) -> tuple[Array, Array, Array]:
        keys = jax.random.split(key, 8)
        noisy, pose, betas = made_poses(keys, errors, made, options.noise)
        row = jax.random.randint(keys[5], (seen,), 0, len(outputs.joints))
        shown = photographs[jax.random.randint(keys[7], (options.photographs,), 0, len(photographs))]
        joints = jnp.concatenate([noisy, outputs.joints[row], shown])
        matrices = matrix_from_axis_angle(jnp.concatenate([pose, outputs.pose[row]]))
        # Turn the hands about the optical axis.
        turn = about_axis(0.6 * jax.random.normal(keys[6], (len(joints),)))
        joints, turn = normalise_joints(jnp.einsum("bij,bkj->bki", turn, joints)), turn[: options.batch]
        matrices = jnp.concatenate([turn[:, None] @ matrices[:, :1], matrices[:, 1:]], axis=1)
        return joints, matrices, jnp.concatenate([betas, outputs.betas[row]])

    def loss(iknet: IKNet, joints: Array, matrices: Array, betas: Array) -> Array:
        known, shown = joints[: options.batch], joints[options.batch :]
        return pose_loss(iknet, known, matrices, betas) + options.consistency * photograph_loss(iknet, shown)

    @nnx.jit
    def step(iknet: IKNet, optimizer: nnx.Optimizer, number: Array, known: tuple[Array, ...], others: Any) -> Array:
        joints, matrices, betas = batch(jax.random.fold_in(jax.random.key(1), number), Outputs(*known), *others)
        value, gradient = nnx.value_and_grad(loss)(iknet, joints, matrices, betas)
        optimizer.update(iknet, gradient)
        return value

    known = tuple(jnp.asarray(getattr(outputs, field.name)) for field in dataclasses.fields(Outputs))
    others = jnp.asarray(errors[clear]), jnp.asarray(photographs)
    progress = tqdm(range(options.steps), desc="training", unit="step")
    for number in progress:
        value = step(iknet, optimizer, jnp.asarray(number), known, others)
        if number % 100 == 0:
            progress.set_postfix(loss=f"{float(value):.3f}")
    iknet.eval()
    return iknet


def about_axis(angle: Float[Array, "n"]) -> Float[Array, "n 3 3"]:
    """Return rotations about the optical axis."""
    zero = jnp.zeros_like(angle)
    return matrix_from_axis_angle(jnp.stack([zero, zero, angle], axis=-1))


def report(name: str, iknet: IKNet, held: Outputs, photographs: np.ndarray) -> str:
    """Return a row of the table: errors of an IKNet's poses on held-out outputs, with the mean shape."""
    found = iknet(jnp.asarray(held.joints))
    cosine = (np.einsum("bjik,bjik->bj", found.matrices, matrix_from_axis_angle(held.pose)) - 1.0) / 2.0
    angles = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    keypoints = jax.jit(jax.vmap(lambda pose, betas: HAND.shape(betas).pose(pose).keypoints))
    predicted = np.asarray(keypoints(found.pose, jnp.zeros_like(held.betas)), np.float64)
    true = np.asarray(keypoints(held.pose, held.betas), np.float64)
    root = np.linalg.norm((predicted - predicted[:, ROOT, None]) - (true - true[:, ROOT, None]), axis=-1)
    aligned = np.linalg.norm(similarity(predicted, true) - true, axis=-1)
    mapped = np.asarray(jax.jit(jax.vmap(landmarks))(found.pose, jnp.zeros_like(held.betas)))
    off = np.linalg.norm((mapped - held.joints)[..., :2], axis=-1).mean(axis=1)
    relative = off / np.ptp(held.joints[..., :2], axis=1).max(axis=1)
    return (
        f"| {name} | {angles[:, 0].mean():.1f} | {angles[:, 1:].mean():.1f} | {1e3 * root.mean():.1f} | "
        f"{1e3 * aligned.mean():.1f} | {100.0 * np.median(relative):.1f} | "
        f"{100.0 * photograph_loss(iknet, jnp.asarray(photographs)):.1f} |"
    )


def main(options: Options) -> None:
    """Train, print the table of the held-out renderings, and write the weights."""
    begin = time.time()
    store = options.cache / "outputs.npz"
    if store.exists():
        outputs = Outputs(**np.load(store))
    else:
        outputs = network_outputs(options)
        write_atomically(store, lambda path: np.savez(path, **dataclasses.asdict(outputs)))
    held = outputs.rendering >= options.renderings - options.held
    parts: tuple[list[PhotoLabel], ...] = [], []
    for folder in options.photos:
        for number, label in enumerate(read_labels(folder, "train")):
            parts[number % 12 == 0].append(label)
    photographs, held_photographs = map(photograph_outputs, parts)
    iknet = train(options, outputs.rows(~held), photographs)
    head = ("IKNet", "global rotation, degrees", "joints, degrees", "root-aligned, mm", "PA, mm", "reprojection, %")
    print(f"| {' | '.join(head)} | photographs, % of the RMS |\n{'|---' * (len(head) + 1)}|")
    known = outputs.rows(held), held_photographs
    print(report("of the embedded hourglass", load_module(None, None).iknet, *known))
    kept = [field for field in dataclasses.asdict(options) if field not in ("cache", "out", "photos")]
    settings = {name: getattr(options, name) for name in kept}
    provenance = {
        "licence": "Apache-2.0; trained in part on photographs under open licences, see hourglass.NOTICE.txt",
        "command": "python tools/train_landmark_iknet.py",
        "options": json.dumps(settings),
        "jax": jax.__version__,
        "minutes": f"{(time.time() - begin) / 60:.0f}",
    }
    save_weights(options.out, iknet, provenance, dtype="float16")
    print(report("new", load_iknet(options.out), *known))
    print(f"written to {options.out.name}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))

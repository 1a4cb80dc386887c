"""Train the landmark network's IKNet through the tailor, and write it into the package.

python tools/finetune_landmark_iknet.py --cache runs/pool --photos DIR ...

The last stage, after tools/train_landmark_iknet.py and with the same folders: the loss is that of the hands after the
tailor. It is the error of the 3D joints for renderings, and for photographs of the split `train` the distance of the
mesh's keypoints from those of the landmark network, which keeps the mesh on the image. The losses of the first stage
stay beside them. The last renderings and every 12th photograph are held out.

Hardware: 2 CPU cores; about 10 minutes for the network's outputs, once, and half an hour for the rest.
"""

import dataclasses
import json
import time
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
from train_landmark_iknet import ASSETS, HAND, landmarks, made_poses, near, photograph_loss, pose_loss

from handtailor_jax.data.readers.photos import read_labels
from handtailor_jax.detector.landmark_network import HandLandmarkNetwork, Landmarks
from handtailor_jax.detector.regions import cut, to_image
from handtailor_jax.detector.weights import load_landmark_network
from handtailor_jax.evaluation.alignment import similarity
from handtailor_jax.geometry.cameras import inverse_affine, transform_camera
from handtailor_jax.geometry.mirror import mirror_points
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.hand_module.hand_module import LandmarkHandModule, camera_joints
from handtailor_jax.hand_module.iknet import IKNet, normalise_joints
from handtailor_jax.hand_module.weights import LANDMARK_IKNET, load_iknet, save_weights
from handtailor_jax.images import Image, read_image
from handtailor_jax.pipeline import recover
from handtailor_jax.results import write_atomically
from handtailor_jax.skeleton import ROOT
from handtailor_jax.synthetic.dataset import SyntheticConfig
from handtailor_jax.synthetic.storage import SamplePool
from handtailor_jax.tailor import TailorConfig
from handtailor_jax.types import Camera, Hand, Region, pytree


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
    joints: float = 0.1
    """Weight of the tailored joints' error, 1/mm."""
    keypoints: float = 1.0
    """Weight of the tailored keypoints' distance, in percent of the hand size, and of the first stage's photographs."""
    poses: float = 1.0
    """Weight of the first stage's loss of poses that are known."""
    made: int = 128
    """Poses of the synthetic distribution in each step."""
    batch: int = 48
    """Renderings in each step."""
    photographs: int = 16
    """Photographs in each step."""
    rate: float = 2e-4
    """Highest learning rate."""
    steps: int = 2500
    """Number of training steps."""
    start: Path = ASSETS / LANDMARK_IKNET
    """Weight file of the first stage."""
    out: Path = ASSETS / LANDMARK_IKNET
    """Weight file to write."""


@pytree
class Crops:
    """Outputs of the landmark network for crops."""

    found: Landmarks
    """In pixels of the crops."""
    to_image: Float[Array, "n 2 3"]
    """Affine maps from pixels of the crops to pixels of the images."""
    camera: Camera
    """Cameras of the images."""


@pytree
class Truth:
    """True hands of renderings."""

    rendering: Float[Array, "n"]
    """Numbers of the renderings."""
    joints: Float[Array, "n 21 3"]
    """In camera axes, metres."""
    pose: Float[Array, "n 16 3"]
    betas: Float[Array, "n 10"]


def rows(tree: Any, chosen: Any) -> Any:
    """Return some rows of all arrays."""
    return jax.tree.map(lambda leaf: leaf[chosen], tree)


def stacked(parts: list[Any]) -> Any:
    """Return pytrees as one with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


@nnx.jit
def _run(network: HandLandmarkNetwork, crop: Array) -> Landmarks:
    return jax.tree.map(lambda leaf: leaf[0], network(crop[None].astype(jnp.float32) / 255.0))


def look(network: HandLandmarkNetwork, image: Image, camera: Camera, region: Region) -> Crops:
    """Run the landmark network on a region."""
    affine, size = np.asarray(to_image(region, network.config.image_size)), network.config.image_size
    found = _run(network, cut(image, affine, size, extend=True))
    return jax.device_get(Crops(found, affine, jax.tree.map(np.float32, camera)))


def of_renderings(options: Options) -> tuple[Crops, Truth]:
    """Run the landmark network on the renderings; hands that it misses or takes for left ones are left out."""
    pool = SamplePool(options.cache, SyntheticConfig(images_at_once=4), options.renderings, "train")
    network, found = load_landmark_network(), []
    for copy in range(options.copies):
        draws = np.random.default_rng(100 + copy)
        for number in tqdm(range(options.renderings), desc=f"landmark network, copy {copy + 1}", unit="image"):
            sample = rows(pool.batch(np.asarray([number])), 0)
            region = near(sample.keypoints_2d, draws)
            crop = look(network, sample.image, Camera.from_matrix(sample.intrinsics), region)
            if min(crop.found.presence, crop.found.right) > 0.5:
                found.append((crop, Truth(np.asarray(number), sample.joints, sample.pose, sample.betas)))
    return stacked(found)


def of_photographs(options: Options) -> tuple[Crops, Crops]:
    """Run the landmark network on the photographs, and on those held out; hands that it misses are left out."""
    network, draws = load_landmark_network(), np.random.default_rng(200)
    parts: tuple[list[Crops], list[Crops]] = [], []
    for folder in options.photos:
        for number, label in enumerate(tqdm(read_labels(folder, "train"), desc="photographs", unit="image")):
            region = near(label.keypoints_2d, draws)
            crop = look(network, read_image(label.path), Camera.weak_perspective(), region)
            if crop.found.presence > 0.5:
                parts[number % 12 == 0].append(crop)
    return stacked(parts[0]), stacked(parts[1])


def tailored(iknet: IKNet, crops: Crops) -> tuple[Hand, Array]:
    """Return the hands after the tailor, and IKNet's inputs (n, 21, 3)."""
    module = LandmarkHandModule(load_landmark_network(), iknet)
    to_crop = inverse_affine(crops.to_image)
    cameras = transform_camera(crops.camera, to_crop)
    estimate = module.estimate(crops.found, cameras)
    hands = recover(HAND, estimate, crops.camera, to_crop, module.image_size, TailorConfig.landmarks())
    joints = camera_joints(crops.found, cameras)
    return hands, normalise_joints(jnp.where(estimate.left[:, None, None], mirror_points(joints), joints))


def joint_error(hands: Hand, truth: Truth) -> Float[Array, ""]:
    """Return the mean distance of joints from the true ones, mm, with the same root and the best scale."""
    found, true = hands.joints - hands.joints[:, ROOT, None], truth.joints - truth.joints[:, ROOT, None]
    scale = jnp.sum(found * true, axis=(1, 2)) / jnp.sum(found * found, axis=(1, 2))
    return 1e3 * jnp.mean(jnp.sqrt(jnp.sum((scale[:, None, None] * found - true) ** 2, axis=-1) + 1e-8))


def keypoint_distance(hands: Hand) -> Float[Array, ""]:
    """Return the mean distance of the mesh's keypoints from the landmark network's, in percent of the hand size."""
    found, seen = hands.keypoints_2d, hands.detected_keypoints_2d
    distance = jnp.sqrt(jnp.sum((found - seen) ** 2, axis=-1) + 1e-6)
    return 100.0 * jnp.mean(distance / jnp.max(jnp.ptp(seen, axis=1), axis=-1)[:, None])


def train(options: Options, crops: Crops, truth: Truth, photographs: Crops) -> IKNet:
    """Train the IKNet."""
    iknet, count = load_iknet(options.start), options.batch
    graph, params = nnx.split(iknet)
    schedule = optax.warmup_cosine_decay_schedule(0.0, options.rate, 50, options.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-3))
    # A gradient that is not finite is left out.
    optimizer = optax.apply_if_finite(optimizer, max_consecutive_errors=5)
    exact = jax.jit(jax.vmap(landmarks))(truth.pose, truth.betas)
    cameras = transform_camera(crops.camera, inverse_affine(crops.to_image))
    errors = np.asarray(normalise_joints(camera_joints(crops.found, cameras)) - exact)
    size = np.sqrt(np.mean(errors**2, axis=(1, 2)))
    errors = jnp.asarray(errors[size <= np.quantile(size, 0.4)])

    def loss(params: Any, key: Array, both: Crops, truth: Truth) -> tuple[Array, Array]:
        iknet = nnx.merge(graph, params)
        hands, joints = tailored(iknet, both)
        first, second = rows(hands, slice(count)), rows(hands, slice(count, None))
        made, pose, betas = made_poses(jax.random.split(key, 5), errors, options.made, 0.4)
        known = pose_loss(iknet, joints[:count], matrix_from_axis_angle(truth.pose), truth.betas)
        known = 0.5 * (known + pose_loss(iknet, made, matrix_from_axis_angle(pose), betas))
        error, distance = joint_error(first, truth), keypoint_distance(second)
        shown = options.keypoints * (distance + photograph_loss(iknet, joints[count:]))
        return options.joints * error + shown + options.poses * known, jnp.stack([error, distance])

    @jax.jit
    def step(params: Any, state: Any, key: Array, both: Crops, truth: Truth) -> tuple[Any, Any, Array]:
        gradient, found = jax.grad(loss, has_aux=True)(params, key, both, truth)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, found

    state, draws, mean = optimizer.init(params), np.random.default_rng(0), None
    progress = tqdm(range(options.steps), desc="training", unit="step")
    for number in progress:
        chosen = draws.integers(0, len(truth.rendering), count)
        shown = rows(photographs, draws.integers(0, len(photographs.to_image), options.photographs))
        both = jax.tree.map(lambda a, b: np.concatenate([a, b]), rows(crops, chosen), shown)
        key = jax.random.fold_in(jax.random.key(3), number)
        params, state, found = step(params, state, key, both, rows(truth, chosen))
        if number % 20 == 0:
            found = np.asarray(found)
            mean = found if mean is None else 0.8 * mean + 0.2 * found
            progress.set_postfix(joints_mm=f"{mean[0]:.2f}", keypoints_percent=f"{mean[1]:.2f}")
    return nnx.merge(graph, params)


def report(name: str, iknet: IKNet, crops: Crops, truth: Truth, photographs: Crops) -> str:
    """Return a row of the table: errors after the tailor on renderings and photographs that are held out."""
    program = jax.jit(lambda crops: tailored(iknet, crops)[0])
    hands, shown = jax.device_get((program(crops), program(photographs)))
    found, true = np.asarray(hands.joints, np.float64), np.asarray(truth.joints, np.float64)
    aligned = 1e3 * np.linalg.norm(similarity(found, true) - true, axis=-1).mean()
    return f"| {name} | {joint_error(hands, truth):.2f} | {aligned:.2f} | {keypoint_distance(shown):.2f} |"


def main(options: Options) -> None:
    """Train, print the table of what is held out, and write the weights."""
    begin = time.time()
    store = options.cache / "crops.npz"
    if not store.exists():
        leaves = jax.tree.leaves(of_renderings(options))
        write_atomically(store, lambda path: np.savez(path, *leaves))
    structure = jax.tree.structure((Crops(Landmarks(0, 0, 0, 0), 0, Camera(0, 0, 0)), Truth(0, 0, 0, 0)))
    crops, truth = jax.tree.unflatten(structure, list(np.load(store).values()))
    held = truth.rendering >= options.renderings - options.held
    photographs, held_photographs = of_photographs(options)
    iknet = train(options, rows(crops, ~held), rows(truth, ~held), photographs)
    print("| IKNet | joints after the tailor, mm | PA, mm | photographs, % of the hand size |\n|---|---|---|---|")
    known = rows(crops, held), rows(truth, held), held_photographs
    print(report("before", load_iknet(options.start), *known))
    kept = [field for field in dataclasses.asdict(options) if field not in ("cache", "out", "photos", "start")]
    provenance = {
        "licence": "Apache-2.0; trained in part on photographs under open licences, see hourglass.NOTICE.txt",
        "command": "python tools/train_landmark_iknet.py, then python tools/finetune_landmark_iknet.py",
        "options": json.dumps({name: getattr(options, name) for name in kept}),
        "jax": jax.__version__,
        "minutes": f"{(time.time() - begin) / 60:.0f}",
    }
    save_weights(options.out, iknet, provenance, dtype="float16")
    print(report("after", load_iknet(options.out), *known))
    print(f"written to {options.out.name}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))

"""Learn where MediaPipe's keypoints lie on the embedded hand, and write it into the package.

    python tools/learn_convention.py --cache runs/pool --photos DIR ...

A keypoint of MediaPipe's convention is the model's keypoint plus one offset that moves with the bone above and one that
moves with the bone below. Robust linear least squares find the offsets in two steps:

1. from the outputs of the landmark network for rendered hands, whose pose is known;
2. from fits to labelled photographs of the split `train`, with a penalty on the change from step 1, because photographs
   alone cannot show the offsets: a shorter finger and a keypoint farther from its end look the same.

Hardware: 2 CPU cores; about 6 minutes for the renderings, once, and 4 minutes for the rest.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, Float
from tqdm import tqdm

from handtailor_jax.data.readers.photos import PhotoLabel, read_labels
from handtailor_jax.data.sample import Batch
from handtailor_jax.detector.landmark_network import HandLandmarkNetwork
from handtailor_jax.detector.regions import cut, from_landmarks, to_image
from handtailor_jax.detector.weights import load_landmark_network
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import place, transform_pixels
from handtailor_jax.geometry.lifting import reference_bone_length
from handtailor_jax.geometry.mirror import mirror_points
from handtailor_jax.mano.landmarks import KEYPOINT_JOINT, LandmarkConvention
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.results import write_json
from handtailor_jax.skeleton import JOINT_PARENTS, KEYPOINTS, ROOT_JOINT
from handtailor_jax.synthetic.dataset import SyntheticConfig
from handtailor_jax.synthetic.storage import SamplePool
from handtailor_jax.tailor.placement import relative_depth
from handtailor_jax.tailor.search import SearchConfig, search
from handtailor_jax.tailor.tailor import TailorConfig
from handtailor_jax.types import Camera, Observation

HAND = embedded_hand()
BELOW = np.asarray(KEYPOINT_JOINT)
ABOVE = np.asarray([max(JOINT_PARENTS[j], 0) for j in KEYPOINT_JOINT])
CERTAIN = 0.9  # presence, and probability of a right hand, of the rendered hands that are used
OUTLIER = 0.06  # distance at which the weight of a keypoint begins to fall, reference bones
RIDGE = 3.0  # weight of the squared offsets in step 1
ROUNDS = 4  # of choosing hands and solving in step 1
PHOTO_ROUNDS = 2  # of fitting and solving in step 2


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the solve."""

    cache: Path
    """Folder for the renderings; renderings that it holds already are used."""
    photos: tuple[Path, ...]
    """Folders of labelled photographs with joints_3d."""
    renderings: int = 3072
    """Number of rendered hands of the training split."""
    clear: float = 0.5
    """Share of the rendered hands that are used, those with the smallest errors."""
    per_collection: int = 120
    """Number of photographs of each collection, chosen at random."""
    kept: float = 120.0
    """Weight of the squared change from step 1 to step 2."""
    out: Path = Path(__file__).resolve().parents[1] / "handtailor_jax" / "assets" / "mediapipe.json"
    """File to write."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """Labelled keypoints beside the hands that they are of."""

    residual: np.ndarray
    """(n, 21, 2) Label minus the model's keypoint, reference bones of the hand."""
    frames: np.ndarray
    """(n, 21, 2, 6) Image axes in the frames of the bone above and of the bone below each keypoint."""
    size: np.ndarray
    """(n,) Hand sizes, reference bones."""

    def distance(self, offsets: Float[np.ndarray, "21 6"]) -> np.ndarray:
        """Return the distances (n, 21) of the labels from a convention's landmarks."""
        return np.linalg.norm(self.residual - np.einsum("nkra,ka->nkr", self.frames, offsets), axis=-1)


def joined(rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, float]]) -> Seen:
    """Gather hands: differences (21, 2) in bones, joint rotations (16, 3, 3), keypoints (21, 2), bones per pixel."""
    residual, rotations, keypoints, bones = (np.stack(column) for column in zip(*rows, strict=True))
    frames = np.concatenate([rotations[:, ABOVE, :2], rotations[:, BELOW, :2]], axis=-1)
    return Seen(residual, frames, hand_size(keypoints) * bones)


def solve(seen: Seen, offsets: np.ndarray, center: np.ndarray, ridge: float) -> np.ndarray:
    """Return offsets (21, 6) near `center`; keypoints far from the landmarks of the last `offsets` count less."""
    weight = 1.0 / np.maximum(1.0, seen.distance(offsets) / OUTLIER) ** 2
    normal = np.einsum("nk,nkra,nkrb->kab", weight, seen.frames, seen.frames) + ridge * np.eye(6)
    right = np.einsum("nk,nkra,nkr->ka", weight, seen.frames, seen.residual) + ridge * center
    return np.linalg.solve(normal, right[..., None])[..., 0]


def look(options: Options) -> Seen:
    """Run the landmark network on the renderings; hands that it is not certain of are left out."""
    pool = SamplePool(options.cache, SyntheticConfig(), options.renderings, "train")
    network = load_landmark_network()
    graph, state = nnx.split(network)
    size = network.config.image_size

    @jax.jit
    def run(state: nnx.State, crop: Array, affine: Array) -> tuple[Array, Array]:
        network: HandLandmarkNetwork = nnx.merge(graph, state)
        found = network(crop[None].astype(jnp.float32) / 255.0)
        certain = jnp.minimum(found.presence, found.right)[0] > CERTAIN
        return transform_pixels(affine, found.crop[0, :, :2]), certain

    @jax.jit
    def posed(pose: Float[Array, "16 3"], betas: Float[Array, "10"]) -> tuple[Array, Array]:
        posed = HAND.shape(betas).pose(pose)
        return posed.joint_rotations, reference_bone_length(posed.keypoints)

    rows = []
    for number in tqdm(range(options.renderings), desc="landmark network", unit="image"):
        one: Batch = jax.tree.map(lambda leaf: leaf[0], pool.batch(np.asarray([number])))
        region = from_landmarks(jnp.asarray(one.keypoints_2d))
        for _ in range(2):  # the second region is around the network's own keypoints, as in use
            affine = to_image(region, size)
            keypoints, certain = run(state, cut(one.image, np.asarray(affine), size, extend=True), affine)
            region = from_landmarks(keypoints)
        if certain:
            rotations, bone = jax.device_get(posed(one.pose, one.betas))
            bones = one.joints[:, 2] / one.intrinsics[0, 0] / bone
            pixels = np.asarray(keypoints) - one.keypoints_2d
            rows.append((pixels * bones[:, None], rotations, one.keypoints_2d, bones[0]))
    return joined(rows)


@jax.jit
def fit(
    keypoints: Float[Array, "21 2"], depth: Float[Array, "21"], offsets: Float[Array, "21 2 3"]
) -> tuple[Array, Array, Array]:
    """Fit the hand to a label: the model's keypoints in pixels, joint rotations, and bones per pixel."""
    seen = Observation(keypoints, jnp.ones(21), Camera.weak_perspective(), depth)
    convention = LandmarkConvention(offsets, "learned")
    effort = SearchConfig(screening=6, survivors=3)
    found = search(HAND, seen, TailorConfig.keypoints_only(), effort, convention=convention).parameters
    posed = HAND.shape(found.betas).pose(found.pose)
    pixels = place(found, posed.keypoints, posed.joints[ROOT_JOINT])[:, :2]
    return pixels, posed.joint_rotations, 1.0 / (found.scale * reference_bone_length(posed.keypoints))


def photographs(options: Options) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return keypoints (21, 2) and relative depths (21,) in pixels; left hands are mirrored."""
    collections: dict[str, list[PhotoLabel]] = {}
    for folder in options.photos:
        for label in read_labels(folder, "train"):
            if label.joints_3d is not None:
                collections.setdefault(label.source, []).append(label)
    draws, rows = np.random.default_rng(0), []
    for labels in collections.values():
        for i in draws.permutation(len(labels))[: options.per_collection]:
            keypoints, joints = labels[i].keypoints_2d, labels[i].joints_3d
            if labels[i].side == "left":
                keypoints, joints = keypoints * np.asarray([-1.0, 1.0], np.float32), mirror_points(joints)
            rows.append((keypoints, np.asarray(relative_depth(jnp.asarray(joints), keypoints, jnp.ones(21)))))
    return rows


def fitted(photos: Sequence[tuple[np.ndarray, np.ndarray]], offsets: np.ndarray) -> Seen:
    """Fit the hand to all photographs under the present offsets."""
    rows = []
    for keypoints, depth in tqdm(photos, desc="photographs", unit="image"):
        pixels, rotations, bones = jax.device_get(fit(keypoints, depth, jnp.asarray(offsets.reshape(21, 2, 3), "f4")))
        rows.append(((keypoints - pixels) * bones, rotations, keypoints, bones))
    return joined(rows)


def main(options: Options) -> None:
    """Learn the offsets, print where each keypoint lies, and write the file."""
    photos, rendered = photographs(options), look(options)
    offsets = nothing = np.zeros((21, 6))
    for _ in range(ROUNDS):
        error = rendered.distance(offsets).mean(axis=1) / rendered.size
        clear = error <= np.quantile(error, options.clear)
        print(f"clear renderings: median distance {100.0 * np.median(error[clear]):.2f} % of the hand size")
        chosen = Seen(rendered.residual[clear], rendered.frames[clear], rendered.size[clear])
        offsets = solve(chosen, offsets, nothing, RIDGE)
    first = offsets
    for _ in range(PHOTO_ROUNDS):
        seen = fitted(photos, offsets)
        error = seen.distance(offsets).mean(axis=1) / seen.size
        print(f"photographs: median distance {100.0 * np.median(error):.2f} % of the hand size")
        offsets = solve(seen, offsets, first, options.kept)
    for name, before, after in zip(KEYPOINTS, first.reshape(21, 2, 3), offsets.reshape(21, 2, 3), strict=True):
        print(
            f"{name:12} {np.round(before.sum(axis=0), 3)} from renderings, {np.round(after.sum(axis=0), 3)} in the end"
        )
    source = "MediaPipe's hand landmark network on renderings of the embedded hand, and its labels of photographs"
    counts = {"renderings": int(clear.sum()), "photographs": len(photos)}
    content = {"name": "mediapipe", "source": source, **counts}
    write_json(options.out, {**content, "offsets": np.round(offsets.reshape(21, 2, 3), 5).tolist()})
    print(f"written to {options.out.name}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))

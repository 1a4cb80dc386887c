"""Learn a landmark convention from labelled photographs: the place of each labelled keypoint on the embedded hand.

    python tools/learn_convention.py --photos DIR --name mediapipe --out handtailor_jax/assets/mediapipe.json

DIR holds a labels.json: path -> {split, side, size, keypoints_2d (21x2 pixels), joints_3d (21x3 metres, a hint)}.
Only the `train` split is used. Fitting the hand (2D keypoints with the depth hint) alternates with a linear
least-squares solve for the offsets: each label is the model's keypoint plus one offset that moves with the bone above
and one that moves with the bone below. The median shape of the photographs is printed; FINGER_LENGTH_SHIFT in
tools/bake_hand/shape_space.py comes from it.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from handtailor_jax.geometry.cameras import place
from handtailor_jax.mano.landmarks import KEYPOINT_JOINT, LandmarkConvention
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.results import write_json
from handtailor_jax.skeleton import JOINT_PARENTS, REFERENCE_BONE, ROOT_JOINT
from handtailor_jax.tailor.placement import relative_depth
from handtailor_jax.tailor.search import SearchConfig, search
from handtailor_jax.tailor.tailor import TailorConfig
from handtailor_jax.types import Camera, Observation

BELOW = np.asarray(KEYPOINT_JOINT)
ABOVE = np.asarray([max(JOINT_PARENTS[j], 0) for j in KEYPOINT_JOINT])
# The least-squares solves keep photographs with large errors, because these are the rare views (a palm seen edge-on)
# that show the offsets across the palm.


def read_photos(folder: Path, per_group: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return right-handed keypoints (n, 21, 2) and relative depths (n, 21), both in pixels.

    At most `per_group` photographs of each collection are chosen at random.
    """
    labels = json.loads((folder / "labels.json").read_text())
    generator = np.random.default_rng(seed)
    train = {path: label for path, label in labels.items() if label["split"] == "train"}
    chosen: list[dict] = []
    for source in sorted({path.split("/")[0] for path in train}):
        paths = [path for path in train if path.startswith(source + "/")]
        chosen += [train[path] for path in generator.permutation(paths)[:per_group]]
    keypoints, depths = [], []
    for label in chosen:
        uv = np.asarray(label["keypoints_2d"], np.float32)
        xyz = np.asarray(label["joints_3d"], np.float32)
        if label["side"] == "left":
            uv[:, 0] = label["size"][0] - 1 - uv[:, 0]
            xyz[:, 0] *= -1.0
        keypoints.append(uv)
        depths.append(np.asarray(relative_depth(jnp.asarray(xyz), jnp.asarray(uv), jnp.ones(21))))
    return np.stack(keypoints), np.stack(depths)


def learn(keypoints: np.ndarray, depths: np.ndarray, rounds: int, ridge: float) -> np.ndarray:
    """Return offsets (21, 2, 3) in reference bones."""
    hand = embedded_hand()
    config = TailorConfig.keypoints_only()

    @jax.jit
    def fit(uv, depth, offsets):
        convention = LandmarkConvention(offsets, "learned")
        seen = Observation(uv, jnp.ones(21), Camera.weak_perspective(), depth)
        found = search(hand, seen, config, SearchConfig(screening=6, survivors=3), convention=convention)
        best = found.parameters
        posed = hand.shape(best.betas).pose(best.pose)
        root = posed.joints[ROOT_JOINT]
        bone = posed.joints[KEYPOINT_JOINT[REFERENCE_BONE[0]]] - posed.joints[KEYPOINT_JOINT[REFERENCE_BONE[1]]]
        model = place(best, posed.keypoints, root)[:, :2]
        label = place(best, convention.landmarks(posed), root)[:, :2]
        return model, label, best.scale * jnp.sqrt(jnp.sum(bone * bone)), posed.joint_rotations, best.betas

    size = (keypoints.max(axis=1) - keypoints.min(axis=1)).max(axis=-1)
    offsets = np.zeros((21, 2, 3))
    for number in range(rounds):
        fits = [
            jax.device_get(fit(uv, depth, jnp.asarray(offsets, jnp.float32)))
            for uv, depth in tqdm(list(zip(keypoints, depths, strict=True)), desc=f"round {number + 1}/{rounds}")
        ]
        model, label, bone, rotations, shapes = (np.stack(parts) for parts in zip(*fits, strict=True))
        error = np.linalg.norm(label - keypoints, axis=-1).mean(axis=1) / size
        print(f"error: median {100 * np.median(error):.2f} %, 97th percentile {100 * np.quantile(error, 0.97):.2f} %")
        residual = (keypoints - model) / size[:, None, None]
        for k in range(21):
            frames = np.concatenate([rotations[:, ABOVE[k], :2], rotations[:, BELOW[k], :2]], axis=-1)
            frames = frames * (bone / size)[:, None, None]
            normal = np.einsum("nra,nrb->ab", frames, frames) + ridge * np.eye(6)
            offsets[k] = np.linalg.solve(normal, np.einsum("nra,nr->a", frames, residual[:, k])).reshape(2, 3)
        print(f"median betas {np.round(np.median(shapes, axis=0), 2)}")
    return offsets


def main() -> None:
    """Read the photographs, learn the offsets and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", default="", help="origin of the labels, stored in the file")
    parser.add_argument("--per-group", type=int, default=300, help="photographs of each collection")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--ridge", type=float, default=1.0, help="weight of the squared offsets")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keypoints, depths = read_photos(options.photos, options.per_group, options.seed)
    offsets = learn(keypoints, depths, options.rounds, options.ridge)
    content = {
        "name": options.name,
        "source": options.source,
        "photographs": len(keypoints),
        "offsets": np.round(offsets, 5).tolist(),
    }
    write_json(options.out, content)


if __name__ == "__main__":
    main()

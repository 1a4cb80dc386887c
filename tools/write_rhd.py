"""Write renderings in the layout of RHD_published_v2: a miniature to rehearse the paper's training and tables on.

    python tools/write_rhd.py rehearsal/RHD_published_v2 --training 2560 --evaluation 200

Differences from the published dataset: every image shows one hand (every second one a left hand; the labels of the
other hand, which is not in the image, are a mirror image beside it), 3D labels have full precision, fx and fy differ by
up to 6 %, and the principal point is not the middle of the image. Masks and depth maps show the hand model alone:
objects in front of the hand are not cut out.
"""

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from handtailor_jax.commands import command, keep_compiled_programs
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.mirror import mirror_intrinsics, mirror_points
from handtailor_jax.images import crop_square, whole
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.render.rasterise import rasterise
from handtailor_jax.results import appearing, write_image
from handtailor_jax.skeleton import FINGER_JOINTS, KEYPOINT_ORDERS, KEYPOINTS, NUM_JOINTS, ROOT, permutation
from handtailor_jax.synthetic.dataset import Split, SyntheticConfig
from handtailor_jax.synthetic.storage import SamplePool
from handtailor_jax.types import Camera

SIDE = 320
"""Side of RHD's images, pixels."""

_TO_RHD = list(permutation(KEYPOINTS, KEYPOINT_ORDERS["rhd"]))
_FIRST_ID = {"left": 2, "right": 18}  # first part number in a mask: fingers from tip to base, then the palm
_PALM = 15
_FARTHEST, _BACKGROUND = 5.0, 3.0  # depth of the largest code, and of the background, metres
_BESIDE = 0.3  # metres between the hand and its mirror image


@dataclasses.dataclass(frozen=True)
class WriteRhd:
    """Write renderings in the layout of RHD_published_v2."""

    out: tyro.conf.Positional[Path]
    """New folder to write."""
    training: int = 2560
    """Number of training images."""
    evaluation: int = 200
    """Number of evaluation images."""
    cache: Path = Path("cache")
    """Folder of the rendered samples; missing ones are rendered, about 500 a minute on two CPU cores."""


def parts_of_vertices(hand: HandModel) -> np.ndarray:
    """Return RHD's part number of each vertex, 0 to 15, by the joint that moves it most."""
    part = np.full(NUM_JOINTS, _PALM)
    for finger, joints in enumerate(FINGER_JOINTS):
        part[list(joints[::-1])] = 3 * finger + np.arange(3)
    return part[np.asarray(hand.skin.weights).argmax(axis=1)]


def maps(hand: HandModel, parts: Any, pose: Any, betas: Any, root: Any, intrinsics: Any) -> tuple[Any, Any]:
    """Return depth in metres, and part number 0 to 15 or -1 outside of the hand, of one hand."""
    mesh = hand.shape(betas).pose(pose).skin()
    vertices = mesh.vertices - mesh.keypoints[ROOT][None] + root[None]
    seen = rasterise(vertices, hand.faces, Camera.from_matrix(intrinsics), SIDE, SIDE)
    part = parts[hand.faces[jnp.maximum(seen.face_index, 0), 0]]
    return jnp.where(seen.mask, seen.depth, _BACKGROUND), jnp.where(seen.mask, part, -1)


def write_split(pool: SamplePool, hand: HandModel, folder: Path) -> None:
    """Write the samples of a pool as one split; every second hand is mirrored to a left hand."""
    for name in ("color", "depth", "mask"):
        (folder / name).mkdir(parents=True)
    parts = jnp.asarray(parts_of_vertices(hand))
    render = jax.jit(lambda *labels: maps(hand, parts, *labels))
    annotation = {}
    for index in tqdm(range(len(pool)), desc=f"writing {folder.name}", unit="image"):
        one = jax.tree.map(lambda leaf: leaf[0], pool.batch(np.asarray([index])))
        image, affine, _ = crop_square(one.image, whole(one.image), SIDE)
        k = np.concatenate([affine, [[0.0, 0.0, 1.0]]]) @ one.intrinsics
        depth, part = jax.device_get(render(one.pose, one.betas, one.joints[ROOT], k.astype(np.float32)))
        joints, side = np.asarray(one.joints, np.float64), "right" if index % 2 == 0 else "left"
        if side == "left":
            image, depth, part = (np.ascontiguousarray(each[:, ::-1]) for each in (image, depth, part))
            joints, k = mirror_points(joints), mirror_intrinsics(k, SIDE)
        code = np.round(depth / _FARTHEST * 65535.0).astype(np.int64)
        encoded = np.stack([code // 256, code % 256, np.zeros_like(code)], axis=-1).astype(np.uint8)
        mask = np.where(part < 0, 0, part + _FIRST_ID[side]).astype(np.uint8)
        for name, values in (("color", image), ("depth", encoded), ("mask", np.repeat(mask[..., None], 3, axis=-1))):
            write_image(folder / name / f"{index:05d}.png", values)
        annotation[index] = _entry(joints, k, side)
    (folder / f"anno_{folder.name}.pickle").write_bytes(pickle.dumps(annotation, protocol=2))


def _entry(joints: np.ndarray, k: np.ndarray, side: str) -> dict[str, np.ndarray]:
    """Return the annotation of an image: uv_vis (42, 3), xyz (42, 3) and K (3, 3), the left hand first."""
    beside = mirror_points(joints - joints[ROOT]) + joints[ROOT] + np.asarray([_BESIDE, 0.0, 0.0])
    both = np.stack([joints, beside] if side == "left" else [beside, joints])[:, _TO_RHD]
    pixels = both @ k.T
    uv = pixels[..., :2] / pixels[..., 2:]
    inside = ((uv >= 0.0) & (uv <= SIDE - 1.0)).all(axis=-1)
    inside[1 if side == "left" else 0] = False
    uv_vis = np.concatenate([uv, inside[..., None]], axis=-1).reshape(-1, 3)
    return {
        "uv_vis": uv_vis.astype(np.float32),
        "xyz": both.reshape(-1, 3).astype(np.float32),
        "K": k.astype(np.float32),
    }


@command("write_rhd.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write both splits; the folder appears when it is complete."""
    options = tyro.cli(WriteRhd, args=arguments, prog="write_rhd.py")
    if min(options.training, options.evaluation) < 1:
        raise InputError("--training and --evaluation must be at least 1")
    if options.out.exists():
        raise InputError(f"{options.out}: exists already: choose another folder or remove it")
    keep_compiled_programs()
    splits: tuple[tuple[str, Split, int], ...] = (
        ("training", "train", options.training),
        ("evaluation", "test", options.evaluation),
    )
    pools = {name: SamplePool(options.cache, SyntheticConfig(), count, split) for name, split, count in splits}
    with appearing(options.out) as folder:
        for name, pool in pools.items():
            write_split(pool, embedded_hand(), folder / name)
    print(f"written to {options.out}: {options.training} training and {options.evaluation} evaluation images")


if __name__ == "__main__":
    main()

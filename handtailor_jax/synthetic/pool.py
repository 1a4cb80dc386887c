"""Rendered samples kept on disk, for machines that train faster than they render.

A pool is a folder of shards; a shard is a folder of .npy files, which training maps into memory. Only complete shards
get their final name, so interrupted rendering continues with the next shard, and a pool can grow.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from handtailor_jax.data.sample import Batch
from handtailor_jax.errors import InputError
from handtailor_jax.results import appearing
from handtailor_jax.skeleton import NUM_KEYPOINTS
from handtailor_jax.synthetic.dataset import Split, SyntheticConfig, SyntheticDataset

SHARD = 128
"""Number of samples in a shard."""

_FIELDS = ("image", "keypoints_2d", "intrinsics", "joints", "pose", "betas")


class SamplePool:
    """Random access to the first samples of a split; missing samples are rendered when the pool is opened."""

    def __init__(
        self, folder: Path, config: SyntheticConfig, count: int, split: Split = "train", seed: int = 0
    ) -> None:
        """Open a pool and render missing shards.

        Args:
            folder: Folder of all pools; every configuration, split and seed has a folder of its own in it.
            config: Distribution of the samples.
            count: Number of samples.
            split: "train" or "test".
            seed: Seed of the training split.

        Raises:
            InputError: If the folder cannot be written or a shard is damaged.
        """
        self.count = count
        self.folder = folder / _name(config, split, seed)
        shards = -(-count // SHARD)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            missing = [i for i in range(shards) if not self._shard(i).is_dir()]
            if missing:
                self._render(SyntheticDataset(config, split, seed), missing)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror}): choose another cache folder"
            ) from None
        self._arrays = [self._open(self._shard(i)) for i in range(shards)]

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the samples of several indices, in host memory.

        Raises:
            IndexError: If an index is outside the pool.
        """
        wanted = np.asarray(indices)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.count:
            raise IndexError(f"the pool has samples 0 to {self.count - 1}, got {wanted}")
        rows = [divmod(int(i), SHARD) for i in wanted]
        columns = {name: np.stack([self._arrays[shard][name][row] for shard, row in rows]) for name in _FIELDS}
        ones = np.ones(len(rows), np.float32)
        return Batch(
            keypoint_weight=np.ones((len(rows), NUM_KEYPOINTS), np.float32),
            has_joints=ones,
            has_3d=ones,
            has_intrinsics=ones,
            **columns,
        )

    def _shard(self, number: int) -> Path:
        return self.folder / f"{number:05d}"

    def _open(self, shard: Path) -> dict[str, np.ndarray]:
        try:
            return {name: np.load(shard / f"{name}.npy", mmap_mode="r") for name in _FIELDS}
        except (OSError, ValueError) as error:
            raise InputError(f"{shard}: is damaged ({error}): remove this folder to render it again") from None

    def _render(self, dataset: SyntheticDataset, missing: list[int]) -> None:
        piece = 16
        with tqdm(total=SHARD * len(missing), desc=f"rendering {dataset.split} samples", unit="image") as progress:
            for number in missing:
                parts = []
                for start in range(0, SHARD, piece):
                    first = number * SHARD + start
                    sample = dataset.batch(np.arange(first, first + piece))
                    fields = {
                        "image": sample.image,
                        "keypoints_2d": sample.keypoints_2d,
                        "intrinsics": sample.camera.matrix,
                        "joints": sample.joints,
                        "pose": sample.pose,
                        "betas": sample.betas,
                    }
                    parts.append(jax.device_get(fields))
                    progress.update(piece)
                self._write(self._shard(number), {k: np.concatenate([p[k] for p in parts]) for k in _FIELDS})

    def _write(self, shard: Path, arrays: dict[str, np.ndarray]) -> None:
        try:
            with appearing(shard) as temporary:
                temporary.mkdir()
                for name, array in arrays.items():
                    np.save(temporary / f"{name}.npy", array)
        except (OSError, InputError):
            # Another process may have rendered the same shard meanwhile, with the same content.
            if not shard.is_dir():
                raise


def _name(config: SyntheticConfig, split: Split, seed: int) -> str:
    """Return a folder name that differs where samples differ."""
    # The samples do not depend on the number of images rendered at once.
    settings = dataclasses.asdict(dataclasses.replace(config, images_at_once=1))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{split}-{config.size}px-seed{seed}-{digest}"

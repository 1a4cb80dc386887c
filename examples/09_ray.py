"""Hands of many images on a cluster, with Ray Data: python examples/09_ray.py [--images folder] [--out hands.parquet].

It needs `pip install '.[cluster]'`. `--address auto` joins a running cluster. The folder may be remote (s3://, gs://).
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ray
import tyro

import handtailor_jax as ht
from handtailor_jax.errors import InputError
from handtailor_jax.hand_tailor import Request

EXAMPLES = str(Path(ht.__file__).parent / "assets" / "examples")
COLUMNS = ("path", "error", "side", "vertices", "keypoints_2d")  # in pixels, because no camera is given


def decode(row: dict[str, Any]) -> dict[str, Any]:
    """Decode one file; the result has no pixels if the file cannot be decoded."""
    image = cv2.imdecode(np.frombuffer(row["bytes"], np.uint8), cv2.IMREAD_COLOR_RGB)
    return {"path": row["path"], "image": np.zeros((0, 0, 3), np.uint8) if image is None else image}


class RecoverHands:
    """Actor that loads the networks once and compiles one program for all batches."""

    def __init__(self) -> None:
        self._tailor = ht.HandTailor.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return a row for each hand of a batch of images, and one for each image without hands or with an error."""
        rows = []
        found = self._tailor.many(Request(image) for image in batch["image"])
        for path, (_, hands) in zip(batch["path"], found, strict=True):
            if isinstance(hands, InputError) or not hands:
                rows.append((path, str(hands or "no hand found"), "", [], []))
            else:
                rows += [(path, "", hand.side, hand.vertices.tolist(), hand.keypoints_2d.tolist()) for hand in hands]
        return dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))


def main(
    images: str = EXAMPLES, out: str = "hands.parquet", workers: int = 2, batch: int = 64, address: str | None = None
) -> None:
    """Decode on all processors, recover the hands on some workers, and write a folder of Parquet files."""
    ray.init(address)
    files = ray.data.read_binary_files(images, include_paths=True, file_extensions=["jpg", "jpeg", "png", "webp"])
    actors = ray.data.ActorPoolStrategy(size=workers)
    # Half a processor for each actor leaves processors for reading. With GPUs, add "num_gpus": 1.
    options = {"num_cpus": 0.5, "scheduling_strategy": "SPREAD"}
    files.map(decode).map_batches(RecoverHands, batch_size=batch, compute=actors, **options).write_parquet(out)
    print(f"written to {out}")


if __name__ == "__main__":
    tyro.cli(main)

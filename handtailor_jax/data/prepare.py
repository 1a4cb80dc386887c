"""Write a dataset as ArrayRecord files, which are faster to read from network storage than single images.

    python -m handtailor_jax.data.prepare rhd RHD_published_v2 prepared --mask

prints the folder of the prepared dataset, which train.py, evaluate.py and `open_dataset` take like the published one.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from handtailor_jax.data import open_dataset, reader_options
from handtailor_jax.data.tfds import write_prepared
from handtailor_jax.errors import InputError
from handtailor_jax.mano.loading import load_hand

SPLITS = {"rhd": ("training", "evaluation"), "stb": ("train", "test"), "freihand": ("training", "evaluation")}
"""Splits of each dataset that can be prepared."""


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write a dataset as ArrayRecord files that train.py, evaluate.py and `open_dataset` read."""

    name: Literal["rhd", "stb", "freihand"]
    """Dataset to prepare."""
    root: Path
    """Folder of the dataset as published."""
    out: Path
    """Folder for the prepared dataset, which is written to OUT/NAME/1.0.0."""
    mask: bool = False
    """Include masks (FreiHAND: of the training split; STB: needs BiHand's STB_supp)."""
    depth: bool = False
    """Include depth maps (RHD, STB)."""
    camera: str | None = None
    """Camera of the images (STB): SK (default), BB_left or BB_right."""
    wrist: str | None = None
    """Recipe for the wrist (STB): bihand (default), ge or palm."""
    hand: Path | None = None
    """MANO model whose mean pose completes the annotated poses (FreiHAND); without it samples have no pose."""


def prepare(name: str, root: Path, out: Path, **options: Any) -> Path:
    """Write a dataset as ArrayRecord files, unless it is there with the same options; return its folder.

    Args:
        name: rhd, stb or freihand.
        root: folder of the dataset as published; it is not written to.
        out: folder for the result.
        **options: options of the dataset's reader.

    Raises:
        InputError: if the dataset cannot be read, `out` holds it with other options, or a package is missing.
    """
    if name not in SPLITS:
        raise InputError(f"{name} cannot be prepared: choose one of {', '.join(SPLITS)}")
    chosen = reader_options(name, options)
    if name == "freihand":
        options.setdefault("cache", Path(out) / ".handtailor_cache")
    readers = {}
    for split in SPLITS[name]:
        # FreiHAND has no masks in its evaluation split.
        without = {"mask": False} if (name, split) == ("freihand", "evaluation") else {}
        readers[split] = open_dataset(name, root, split, **options | without)
    return write_prepared(Path(out), name, readers, chosen)


def main(arguments: list[str] | None = None) -> None:
    """Prepare a dataset from the command line."""
    import tyro
    from tyro.conf import PositionalRequiredArgs

    program = "python -m handtailor_jax.data.prepare"
    config = tyro.cli(Prepare, args=arguments, prog=program, config=(PositionalRequiredArgs,))
    given = {"mask": config.mask, "depth": config.depth, "camera": config.camera, "wrist": config.wrist}
    options: dict[str, Any] = {name: value for name, value in given.items() if value}
    try:
        if config.hand is not None:
            options["hands_mean"] = np.asarray(load_hand(config.hand).pose_mean)
        folder = prepare(config.name, config.root, config.out, **options)
    except InputError as error:
        print(f"handtailor_jax.data.prepare: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"prepared {folder}: give it as --root to evaluate.py or as --data.dataset-folder to train.py")


if __name__ == "__main__":
    main()

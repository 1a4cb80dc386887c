"""Readers of datasets as published, one module per dataset; docs/datasets.md describes their formats.

To add a dataset, write a module here with a reader class (`data.sample.Reader`) and a dataclass of its options, add its
name to `DatasetName` and a line to `_READERS`.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from handtailor_jax.data.readers.freihand import FreihandOptions, SyntheticOptions, open_freihand, open_synthetic
from handtailor_jax.data.readers.photos import Photos, PhotosOptions
from handtailor_jax.data.readers.rhd import Rhd, RhdOptions
from handtailor_jax.data.readers.stb import Stb, StbOptions
from handtailor_jax.data.sample import Reader
from handtailor_jax.errors import InputError

DatasetName = Literal["rhd", "stb", "freihand", "synthetic", "photos"]
"""Datasets that have a reader."""

# How to open a split, and the options.
_READERS: dict[str, tuple[Any, Any]] = {
    "rhd": (Rhd, RhdOptions),
    "stb": (Stb, StbOptions),
    "freihand": (open_freihand, FreihandOptions),
    "synthetic": (open_synthetic, SyntheticOptions),
    "photos": (Photos, PhotosOptions),
}


def open_archive(name: str, root: Path, split: str, **options: Any) -> Reader:
    """Open one split of a dataset as published.

    Args:
        name: a `DatasetName`.
        root: folder into which the dataset's archive was unpacked.
        split: rhd, freihand: training or evaluation. stb: train, val or test. synthetic: train or test. photos: a split
            of labels.json.
        **options: fields of the dataset's options: `RhdOptions`, `StbOptions`, `FreihandOptions`, `SyntheticOptions`.

    Raises:
        InputError: if a name, split or option does not exist, or data is missing or damaged.
    """
    chosen = reader_options(name, options)
    return _READERS[name][0](Path(root), split, chosen)


def reader_options(name: str, options: dict[str, Any]) -> Any:
    """Return the options of a dataset, with defaults for those that are not given.

    Raises:
        InputError: if the dataset, or an option or its value, does not exist.
    """
    if name not in _READERS:
        raise InputError(f"unknown dataset {name!r}: choose one of {', '.join(_READERS)}")
    kind = _READERS[name][1]
    names = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in names:
            raise InputError(f"{name} has no option {option!r}: choose from {', '.join(names) or 'none'}")
    return kind(**options)

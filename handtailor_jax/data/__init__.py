"""Datasets as samples and batches: `open_dataset` reads any dataset, `data.loader` makes batches of it.

To add a dataset, write a module in `data/readers/` with a reader class (`data.sample.Reader`) and a dataclass of its
options, and add its name to `DatasetName` and to `_READERS`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from handtailor_jax.data.readers.freihand import FreihandOptions, SyntheticOptions, open_freihand, open_synthetic
from handtailor_jax.data.readers.photos import Photos, PhotosOptions
from handtailor_jax.data.readers.rhd import Rhd, RhdOptions
from handtailor_jax.data.readers.stb import Stb, StbOptions
from handtailor_jax.data.sample import Reader, Sample
from handtailor_jax.data.tfds import is_prepared, open_prepared
from handtailor_jax.errors import InputError

__all__ = ["DatasetName", "open_dataset", "readable"]

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


def open_dataset(name: str, root: Path, split: str, **options: Any) -> Reader:
    """Open one split of a dataset, as published or prepared by `python -m handtailor_jax.data.prepare`.

    Args:
        name: a `DatasetName`.
        root: folder into which the archive was unpacked, or folder of the prepared dataset.
        split: rhd, freihand: training or evaluation. stb: train, val or test. synthetic: train or test. photos: a split
            of labels.json.
        **options: fields of the dataset's options: `RhdOptions`, `StbOptions`, `FreihandOptions`, `SyntheticOptions`.

    Raises:
        InputError: if a name, split or option does not exist, or data is missing or damaged.
    """
    chosen = reader_options(name, options)
    if is_prepared(Path(root)):
        return open_prepared(Path(root), name, split, chosen)
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


def readable(
    reader: Reader, skipped: Callable[[int, InputError], object] | None = None
) -> Iterator[tuple[int, Sample]]:
    """Yield the index and the sample of all samples that can be decoded, in order.

    Args:
        reader: dataset to go through.
        skipped: called with the index and the error of each sample that cannot be decoded.
    """
    for index in range(len(reader)):
        try:
            sample = reader[index]
        except InputError as error:
            if skipped is not None:
                skipped(index, error)
            continue
        yield index, sample

"""Readers of datasets: RHD, STB, FreiHAND v2, this project's own renderings and labelled photographs.

Every reader gives right hands only, in metres and OpenCV camera axes, with the 21 keypoints in canonical order; what
each archive looks like is in datasets, section 1. Nothing is downloaded: the archives' licences ask for a click.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from handtailor_jax.data.readers.freihand import Freihand, FreihandOptions, Synthetic, SyntheticOptions
from handtailor_jax.data.readers.photos import Photos
from handtailor_jax.data.readers.rhd import Rhd, RhdOptions
from handtailor_jax.data.readers.stb import Stb, StbOptions
from handtailor_jax.data.sample import Reader, Sample
from handtailor_jax.errors import InputError

DatasetName = Literal["rhd", "stb", "freihand", "synthetic", "photos"]
"""The datasets that there are readers for."""


def open_dataset(name: str, root: Path, split: str, **options: Any) -> Reader:
    """The reader of one split of a dataset.

    Args:
        name: a `DatasetName`.
        root: the dataset's folder, as its archive unpacks.
        split: rhd, freihand: training or evaluation. stb: train, val or test. synthetic: train or test. photos: what
            the labels say.
        **options: fields of `RhdOptions`, `StbOptions`, `FreihandOptions` or `SyntheticOptions`; photos have none.

    Raises:
        InputError: for a name, split or option that does not exist, or data that is missing or damaged.
    """
    if name == "rhd":
        return Rhd(root, split, RhdOptions(**_known(name, options, RhdOptions)))
    if name == "stb":
        return Stb(root, split, StbOptions(**_known(name, options, StbOptions)))
    if name == "freihand":
        return Freihand(root, split, FreihandOptions(**_known(name, options, FreihandOptions)))
    if name == "synthetic":
        return Synthetic(root, split, SyntheticOptions(**_known(name, options, SyntheticOptions)))
    if name == "photos":
        _known(name, options, None)
        return Photos(root, split)
    raise InputError(f"unknown dataset {name!r}: choose one of {', '.join(get_args(DatasetName))}")


def readable(
    reader: Reader, skipped: Callable[[int, InputError], object] | None = None
) -> Iterator[tuple[int, Sample]]:
    """The samples that can be decoded, in order, each with its index.

    Args:
        reader: where they come from.
        skipped: is told index and error of every sample that is left out.
    """
    for index in range(len(reader)):
        try:
            sample = reader[index]
        except InputError as error:
            if skipped is not None:
                skipped(index, error)
            continue
        yield index, sample


def _known(name: str, options: dict[str, Any], kind: type | None) -> dict[str, Any]:
    """The options, if the dataset has them all."""
    names = [] if kind is None else [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in names:
            raise InputError(f"{name} has no option {option!r}: choose from {', '.join(names) or 'none'}")
    return options

"""Datasets as samples and batches: `open_dataset` reads any dataset, `data.loader` makes batches of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from handtailor_jax.data.readers import DatasetName, open_archive, reader_options
from handtailor_jax.data.sample import Reader, Sample
from handtailor_jax.errors import InputError

__all__ = ["DatasetName", "open_dataset", "readable"]


def open_dataset(name: str, root: Path, split: str, **options: Any) -> Reader:
    """Open one split of a dataset, as published or prepared by `python -m handtailor_jax.data.tfds`.

    Args:
        name: a `DatasetName`.
        root: folder of the archive, or of the prepared dataset.
        split: split of the dataset; see `readers.open_archive`.
        **options: options of the dataset's reader; see `readers.open_archive`.

    Raises:
        InputError: if a name, split or option does not exist, or data is missing or damaged.
    """
    from handtailor_jax.data.tfds import is_prepared, open_prepared

    if is_prepared(Path(root)):
        return open_prepared(Path(root), name, split, reader_options(name, options))
    return open_archive(name, root, split, **options)


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

"""Datasets as samples and batches: `open_dataset` reads any dataset, `data.loader` makes batches of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from handtailor_jax.data.readers import open_archive, reader_options
from handtailor_jax.data.sample import Reader, Sample
from handtailor_jax.errors import InputError

__all__ = ["open_dataset", "readable"]


def open_dataset(name: str, root: Path, split: str, **options: Any) -> Reader:
    """Open one split of a dataset, as published or prepared by `python -m handtailor_jax.data.prepare`.

    Args:
        name: rhd, stb, freihand, synthetic or photos.
        root: folder of the unpacked archive or of the prepared dataset.
        split: rhd, freihand: training or evaluation. stb: train, val or test. synthetic: train or test. photos: a split
            of labels.json.
        **options: keyword arguments of the reader: `Rhd`, `Stb`, `open_freihand`, `open_synthetic`, `Photos`.

    Raises:
        InputError: if a name, split or option does not exist, or data is missing or damaged.
    """
    chosen = reader_options(name, options)
    if (Path(root) / "dataset_info.json").is_file():
        from handtailor_jax.data.prepare import open_prepared

        return open_prepared(Path(root), name, split, chosen)
    return open_archive(name, root, split, **chosen)


def readable(
    reader: Reader, skipped: Callable[[int, InputError], object] | None = None
) -> Iterator[tuple[int, Sample]]:
    """Yield the index and the sample of all samples that can be decoded, in order.

    `skipped` is called with the index and the error of each other sample.
    """
    for index in range(len(reader)):
        try:
            sample = reader[index]
        except InputError as error:
            if skipped is not None:
                skipped(index, error)
            continue
        yield index, sample

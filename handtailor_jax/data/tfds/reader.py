"""Preparing and reading the datasets with tensorflow_datasets, without TensorFlow."""

import importlib
from pathlib import Path
from typing import Any

from handtailor_jax.data.sample import Sample
from handtailor_jax.data.tfds.examples import sample_of
from handtailor_jax.errors import InputError

BUILDERS = {"rhd": "Rhd", "stb": "Stb", "freihand": "Freihand"}
"""Module in this package to class name of every builder; the module's name is the dataset's."""


class TfdsReader:
    """A `Reader` over one split of a prepared dataset, in the plain reader's order."""

    def __init__(self, source: Any, name: str) -> None:
        """Reads a random-access data source.

        Args:
            source: sequence of decoded examples, as `builder.as_data_source(split)` gives it.
            name: of the dataset, for messages.
        """
        self._source, self._name = source, name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        """The sample at an index.

        Raises:
            IndexError: outside of 0 ... len - 1.
            InputError: if it cannot be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} has samples 0 to {len(self) - 1}, got {index}")
        try:
            return sample_of(self._source[index])
        except Exception as error:  # records, protocol buffers and pictures each fail in their own way
            line = str(error).partition("\n")[0]
            raise InputError(f"{self._name}: sample {index} cannot be read ({line}): prepare it again") from None


def prepare(name: str, manual_dir: Path, data_dir: Path, *, config: str | None = None, **options: Any) -> Path:
    """Writes a dataset as ArrayRecord files, unless it is there already; pictures are kept as PNG, without loss.

    Args:
        name: "rhd", "stb" or "freihand".
        manual_dir: folder in which the archive is unpacked, under the name that the archive has.
        data_dir: folder for the result, in which tensorflow_datasets makes folders for dataset and version.
        config: which variant of the dataset, if it has several; its default if None.
        **options: of the builder: `hands_mean` of FreiHAND.

    Returns:
        The folder with the prepared dataset.

    Raises:
        InputError: if there is no such dataset, tensorflow-datasets or the archive is missing, or it cannot be read.
    """
    tfds = _tfds()
    if name not in BUILDERS:
        raise InputError(f"there is no builder {name!r}: choose one of {', '.join(sorted(BUILDERS))}")
    module = importlib.import_module(f"handtailor_jax.data.tfds.{name}")
    builder_class = getattr(module, BUILDERS[name])
    variants = [each.name for each in builder_class.BUILDER_CONFIGS]
    if config is not None and config not in variants:
        raise InputError(f"{name} has no variant {config!r}: choose one of {', '.join(variants) or 'None'}")
    builder = builder_class(data_dir=data_dir, config=config, **options)
    settings = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    builder.download_and_prepare(download_config=settings, file_format="array_record")
    return Path(builder.data_dir)


def open_prepared(folder: Path, split: str) -> TfdsReader:
    """A split of a prepared dataset.

    Args:
        folder: as `prepare` returns it.
        split: as the dataset names it; slices such as "training[:10%]" work too.

    Raises:
        InputError: if tensorflow-datasets is missing, nothing is prepared there, or there is no such split.
    """
    tfds = _tfds()
    if not (folder / "dataset_info.json").is_file():
        raise InputError(f"{folder}: holds no prepared dataset: prepare it first")
    builder = tfds.builder_from_directory(folder)
    known = sorted(builder.info.splits)
    if split.partition("[")[0] not in known:
        raise InputError(f"{folder}: has no split {split!r}: choose one of {', '.join(known)}")
    return TfdsReader(builder.as_data_source(split), f"{builder.name} {split}")


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"tensorflow-datasets is not usable ({error}): pip install 'handtailor-jax[datasets]'"
        ) from None
    return tensorflow_datasets

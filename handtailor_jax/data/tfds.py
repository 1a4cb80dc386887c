"""Samples as ArrayRecord files of tensorflow_datasets, written and read without TensorFlow (see `data.prepare`)."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handtailor_jax.data.sample import Reader, Sample
from handtailor_jax.errors import InputError
from handtailor_jax.images import opencv

_VERSION = "1.0.0"
_PLACES = ("truth", "cache")  # options that name folders of the archive
_PARTS = ("mask", "depth", "vertices")  # options that add a field to samples


def is_prepared(folder: Path) -> bool:
    """Return whether the folder holds a prepared dataset."""
    return (folder / "dataset_info.json").is_file()


def write_prepared(out: Path, name: str, readers: Mapping[str, Reader], options: Any) -> Path:
    """Write a dataset, with its samples in order and images as PNG, unless it is there; return its folder.

    Args:
        out: folder for the result.
        name: name of the dataset.
        readers: reader of each split.
        options: options of the readers, which are stored with the samples.

    Raises:
        InputError: if a sample cannot be read, `out` holds the dataset with other options, or a package is missing.
    """
    tfds, stored = _tfds(), _stored(options)
    folder = out / name / _VERSION
    if is_prepared(folder):
        found = tfds.builder_from_directory(folder).info.metadata
        if found != stored:
            raise InputError(f"{folder}: holds the dataset with other options ({found}): choose another folder")
        return folder

    class PreparedDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
        VERSION = tfds.core.Version(_VERSION)

        def __init__(self, **arguments: Any) -> None:
            self.name = name
            super().__init__(**arguments)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=features(tfds),
                disable_shuffling=True,  # loaders shuffle
                metadata=tfds.core.MetadataDict(stored),
            )

        def _split_generators(self, _: Any) -> dict[str, Any]:
            return {split: self._generate_examples(reader) for split, reader in readers.items()}

        def _generate_examples(self, reader: Reader) -> Iterator[tuple[int, dict[str, Any]]]:
            for index in range(len(reader)):
                yield index, example(reader[index])

    PreparedDataset(data_dir=out, file_format="array_record").download_and_prepare(file_format="array_record")
    return folder


def open_prepared(folder: Path, name: str, split: str, options: Any) -> "PreparedReader":
    """Open a split of a prepared dataset.

    Args:
        folder: folder of the prepared dataset.
        name: name of the dataset.
        split: split of the dataset; slices such as "training[:10%]" work too.
        options: options of the dataset's reader, with which the prepared dataset must agree.

    Raises:
        InputError: if the folder holds another dataset or other options, has no such split, or a package is missing.
    """
    builder = _tfds().builder_from_directory(folder)
    if builder.name != name:
        raise InputError(f"{folder}: holds {builder.name}, not {name}: give another folder")
    known = sorted(builder.info.splits)
    if split.partition("[")[0] not in known:
        raise InputError(f"{folder}: has no split {split!r}: choose one of {', '.join(known)}")
    left_out, stored = [], builder.info.metadata or {}
    for field, value in _stored(options).items():
        if field in _PARTS or (field == "hands_mean" and value is None):
            if value and not stored.get(field):
                raise InputError(f"{folder}: was prepared without {field}: prepare it again with it")
            if not value:
                left_out.append("pose" if field == "hands_mean" else field)
        elif value != stored.get(field):
            raise InputError(f"{folder}: was prepared with {field}={stored.get(field)}, not {value}: prepare it again")
    return PreparedReader(builder.as_data_source(split), f"{name} {split}", tuple(left_out))


class PreparedReader:
    """Samples of one split of a prepared dataset, in the order of the plain reader."""

    def __init__(self, source: Any, name: str, left_out: tuple[str, ...] = ()) -> None:
        """Read a data source.

        Args:
            source: sequence of decoded examples, as `builder.as_data_source(split)` returns it.
            name: name of dataset and split, for error messages.
            left_out: fields of samples to set to None.
        """
        self._source, self._name = source, name
        self._left_out: dict[str, Any] = dict.fromkeys(left_out)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} has samples 0 to {len(self) - 1}, got {index}")
        try:
            return dataclasses.replace(sample_of(self._source[index]), **self._left_out)
        except Exception as error:  # records, protocol buffers and images raise errors of any kind
            line = str(error).partition("\n")[0]
            raise InputError(f"{self._name}: sample {index} cannot be read ({line}): prepare it again") from None


def features(tfds: Any) -> Any:
    """Return the features of an example: the fields of `Sample`, of which an empty array stands for None."""
    feature = tfds.features

    def floats(*shape: int | None) -> Any:
        return feature.Tensor(shape=shape, dtype=np.float32)

    def pixels(dtype: type) -> Any:
        # Two unknown dimensions need an encoding; zlib is lossless.
        return feature.Tensor(shape=(None, None), dtype=dtype, encoding="zlib")

    return feature.FeaturesDict(
        {
            "name": feature.Text(),
            "image": feature.Image(shape=(None, None, 3), encoding_format="png"),
            "keypoints_2d": floats(21, 2),
            "visible": feature.Tensor(shape=(21,), dtype=np.bool_),
            "joints": floats(None, 3),
            "intrinsics": floats(None, 3),
            "mirrored": feature.Scalar(dtype=np.bool_),
            "joint_definition": feature.Text(),
            "vertices": floats(None, 3),
            "pose": floats(None, 3),
            "betas": floats(None),
            "depth": pixels(np.float32),
            "mask": pixels(np.bool_),
        }
    )


def example(sample: Sample) -> dict[str, Any]:
    """Return a sample as an example for `features`; OpenCV encodes the image as PNG."""
    _, image = opencv().imencode(".png", np.ascontiguousarray(sample.image[..., ::-1]))
    empty = {"betas": (0,), "depth": (0, 0), "mask": (0, 0)}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(sample):
        value = getattr(sample, field.name)
        if value is None:
            value = np.zeros(empty.get(field.name, (0, 3)), np.bool_ if field.name == "mask" else np.float32)
        found[field.name] = value
    return found | {"image": image.tobytes()}


def sample_of(decoded: Mapping[str, Any]) -> Sample:
    """Return the sample of an example that a data source of tensorflow_datasets has decoded.

    Raises:
        InputError: if it is not an example of this version.
    """
    try:
        # Copies, because arrays decoded from bytes cannot be written to.
        found: dict[str, Any] = {field.name: np.array(decoded[field.name]) for field in dataclasses.fields(Sample)}
    except KeyError as error:
        raise InputError(f"the example is not of this version ({error}): prepare the dataset again") from None
    found |= {name: None for name, value in found.items() if value.size == 0}
    for name in ("name", "joint_definition"):
        found[name] = decoded[name].decode() if isinstance(decoded[name], bytes) else str(decoded[name])
    return Sample(**found | {"mirrored": bool(found["mirrored"])})


def _stored(options: Any) -> dict[str, Any]:
    """Return the options that change samples, as JSON values."""
    found = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in _PLACES:
            if isinstance(value, np.ndarray):
                value = np.round(value.astype(np.float64), 6).tolist()
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"tensorflow-datasets cannot be imported ({error}): pip install 'handtailor-jax[datasets]'"
        ) from None
    return tensorflow_datasets

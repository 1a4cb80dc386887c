"""Datasets as ArrayRecord files, which are faster to read from network storage than single images.

    python -m handtailor_jax.data.prepare rhd RHD_published_v2 prepared --mask

prints the folder of the prepared dataset, which train.py, evaluate.py and `open_dataset` take like the published one.
The files are those of tensorflow_datasets, written and read without TensorFlow.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from handtailor_jax.commands import command, parsed
from handtailor_jax.data.readers import open_archive, reader_options
from handtailor_jax.data.sample import Reader, Sample
from handtailor_jax.errors import InputError, imported, install
from handtailor_jax.images import opencv
from handtailor_jax.mano.loading import load_hand

SPLITS = {"rhd": ("training", "evaluation"), "stb": ("train", "test"), "freihand": ("training", "evaluation")}
"""Splits of each dataset that can be prepared."""

_VERSION = "1.0.0"
_PLACES = ("truth", "cache")  # options that name folders of the archive
_PARTS = ("mask", "depth", "vertices")  # options that add a field to samples


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
    """Write a dataset, with its samples in order and images as PNG, unless it is there; return its folder.

    Args:
        name: rhd, stb or freihand.
        root: folder of the dataset as published; it is not written to.
        out: folder for the result.
        **options: options of the dataset's reader, which are stored with the samples.

    Raises:
        InputError: if the dataset cannot be read, `out` holds it with other options, or a package is missing.
    """
    if name not in SPLITS:
        raise InputError(f"{name} cannot be prepared: choose one of {', '.join(SPLITS)}")
    stored, folder = _stored(reader_options(name, options)), Path(out) / name / _VERSION
    if name == "freihand":
        options.setdefault("cache", Path(out) / ".handtailor_cache")
    readers = {}
    for split in SPLITS[name]:
        # FreiHAND has no masks in its evaluation split.
        without = {"mask": False} if (name, split) == ("freihand", "evaluation") else {}
        readers[split] = open_archive(name, root, split, **options | without)
    tfds = _tfds()
    if (folder / "dataset_info.json").is_file():
        found = tfds.builder_from_directory(folder).info.metadata
        if found != stored:
            raise InputError(f"{folder}: holds the dataset with other options ({found}): choose another folder")
        return folder
    builder = _builder(tfds, name, readers, stored)(data_dir=Path(out), file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return folder


def _builder(tfds: Any, dataset: str, readers: Mapping[str, Reader], stored: dict[str, Any]) -> Any:
    class PreparedDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
        VERSION = tfds.core.Version(_VERSION)
        name = dataset

        def _info(self) -> Any:
            metadata = tfds.core.MetadataDict(stored)
            # Examples keep their order, because loaders shuffle.
            return tfds.core.DatasetInfo(
                builder=self, features=features(tfds), disable_shuffling=True, metadata=metadata
            )

        def _split_generators(self, _: Any) -> dict[str, Any]:
            return {split: self._generate_examples(reader) for split, reader in readers.items()}

        def _generate_examples(self, reader: Reader) -> Iterator[tuple[int, dict[str, Any]]]:
            return ((index, example(reader[index])) for index in range(len(reader)))

    return PreparedDataset


def open_prepared(folder: Path, name: str, split: str, options: Mapping[str, Any]) -> "PreparedReader":
    """Open a split of a prepared dataset; slices such as "training[:10%]" work too.

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
    return PreparedReader(builder.as_data_source(split), f"{name} {split}", left_out)


class PreparedReader:
    """Samples of one split of a prepared dataset, in the order of the reader that it was prepared from."""

    def __init__(self, source: Any, name: str, left_out: Sequence[str] = ()) -> None:
        """Read decoded examples, as `builder.as_data_source(split)` returns them.

        `name` is for error messages; the fields of samples in `left_out` become None.
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
    """Return the features of an example: the fields of `Sample`, with an empty array for None."""
    feature, floats = tfds.features, functools.partial(tfds.features.Tensor, dtype=np.float32)
    # Two unknown dimensions need an encoding; zlib is lossless.
    pixels = functools.partial(feature.Tensor, shape=(None, None), encoding="zlib")
    return feature.FeaturesDict(
        {
            "name": feature.Text(),
            "image": feature.Image(shape=(None, None, 3), encoding_format="png"),
            "keypoints_2d": floats(shape=(21, 2)),
            "visible": feature.Tensor(shape=(21,), dtype=np.bool_),
            "joints": floats(shape=(None, 3)),
            "intrinsics": floats(shape=(None, 3)),
            "mirrored": feature.Scalar(dtype=np.bool_),
            "joint_definition": feature.Text(),
            "vertices": floats(shape=(None, 3)),
            "pose": floats(shape=(None, 3)),
            "betas": floats(shape=(None,)),
            "depth": pixels(dtype=np.float32),
            "mask": pixels(dtype=np.bool_),
        }
    )


def example(sample: Sample) -> dict[str, Any]:
    """Return a sample as an example for `features`; OpenCV encodes the image as PNG."""
    _, image = opencv().imencode(".png", np.ascontiguousarray(sample.image[..., ::-1]))
    empty: dict[str, Any] = dict.fromkeys(("joints", "intrinsics", "vertices", "pose"), np.zeros((0, 3), np.float32))
    empty |= {"betas": np.zeros(0, np.float32), "depth": np.zeros((0, 0), np.float32), "mask": np.zeros((0, 0), bool)}
    known = {name: value for name, value in vars(sample).items() if value is not None}
    return empty | known | {"image": image.tobytes()}


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


def _stored(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that change samples, as JSON values."""
    found = {name: value for name, value in options.items() if name not in _PLACES}
    for name, value in found.items():
        if isinstance(value, np.ndarray):
            found[name] = np.round(value.astype(np.float64), 6).tolist()
        elif isinstance(value, tuple):
            found[name] = list(value)
    return found


def _tfds() -> Any:
    return imported("tensorflow_datasets", "tensorflow-datasets cannot be imported", install("datasets"))


@command("handtailor_jax.data.prepare")
def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare a dataset from the command line."""
    from tyro.conf import PositionalRequiredArgs

    program = "python -m handtailor_jax.data.prepare"
    with parsed(Prepare, program, arguments, config=(PositionalRequiredArgs,)) as config:
        options = {name: value for name in ("mask", "depth", "camera", "wrist") if (value := getattr(config, name))}
        if config.hand is not None:
            options["hands_mean"] = np.asarray(load_hand(config.hand).pose_mean)
        folder = prepare(config.name, config.root, config.out, **options)
    print(f"prepared {folder}: give it as --root to evaluate.py or as --data.dataset-folder to train.py")


if __name__ == "__main__":
    main()

"""Prepared datasets: a dataset as ArrayRecord files of tensorflow_datasets, written and read without TensorFlow.

    python -m handtailor_jax.data.tfds rhd RHD_published_v2 prepared --mask

writes one and prints its folder, which train.py, evaluate.py and `open_dataset` take in place of the published one.
Samples are read through the plain readers, so both forms hold the same samples in the same order.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from handtailor_jax.data.readers import open_archive, reader_options
from handtailor_jax.data.sample import Reader, Sample
from handtailor_jax.errors import InputError
from handtailor_jax.images import opencv
from handtailor_jax.mano.loading import load_hand

SPLITS: Mapping[str, tuple[str, ...]] = {
    "rhd": ("training", "evaluation"),
    "stb": ("train", "test"),
    "freihand": ("training", "evaluation"),
}
"""Splits of each prepared dataset."""

_VERSION = "1.0.0"
_PLACES = ("truth", "cache")  # options that name folders of the archive
_PARTS = ("mask", "depth", "vertices")  # options that add a field to samples


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write a dataset as ArrayRecord files that `open_dataset`, train.py and evaluate.py read."""

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

    def options(self) -> dict[str, Any]:
        """Return the options of the dataset's reader that were given."""
        given = {"mask": self.mask, "depth": self.depth, "camera": self.camera, "wrist": self.wrist}
        options: dict[str, Any] = {name: value for name, value in given.items() if value}
        if self.hand is not None:
            options["hands_mean"] = np.asarray(load_hand(self.hand).pose_mean)
        return options


def prepare(name: str, root: Path, out: Path, **options: Any) -> Path:
    """Write a dataset as ArrayRecord files, unless it is there with the same options.

    Images are stored as PNG, without loss.

    Args:
        name: rhd, stb or freihand.
        root: folder of the dataset as published; it is not written to.
        out: folder for the result.
        **options: options of the dataset's reader.

    Returns:
        The folder of the prepared dataset.

    Raises:
        InputError: if the dataset cannot be read, `out` holds it with other options, or a package is missing.
    """
    tfds = _tfds()
    if name not in SPLITS:
        raise InputError(f"{name} cannot be prepared: choose one of {', '.join(SPLITS)}")
    stored = _stored(reader_options(name, options))
    folder = Path(out) / name / _VERSION
    if is_prepared(folder):
        found = tfds.builder_from_directory(folder).info.metadata
        if found != stored:
            raise InputError(f"{folder}: holds the dataset with other options ({found}): choose another folder")
        return folder
    if name == "freihand":
        options.setdefault("cache", Path(out) / ".handtailor_cache")
    readers = {}
    for split in SPLITS[name]:
        # FreiHAND has no masks in its evaluation split.
        without = {"mask": False} if (name, split) == ("freihand", "evaluation") else {}
        readers[split] = open_archive(name, root, split, **options | without)
    builder = _builder(tfds, name, readers, stored)(data_dir=out, file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)


def is_prepared(folder: Path) -> bool:
    """Return whether the folder holds a prepared dataset."""
    return (folder / "dataset_info.json").is_file()


def open_prepared(folder: Path, name: str, split: str, options: Any) -> "PreparedReader":
    """Open a split of a prepared dataset.

    Args:
        folder: folder that `prepare` returned.
        name: name of the dataset.
        split: split of the dataset; slices such as "training[:10%]" work too.
        options: options of the dataset's reader, with which it must agree.

    Raises:
        InputError: if the folder holds another dataset or other options, has no such split, or a package is missing.
    """
    tfds = _tfds()
    builder = tfds.builder_from_directory(folder)
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
            left_out: fields of samples that were not asked for.
        """
        self._source, self._name, self._left_out = source, name, left_out

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at an index; see `data.sample.Reader`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} has samples 0 to {len(self) - 1}, got {index}")
        try:
            sample = sample_of(self._source[index])
        except Exception as error:  # records, protocol buffers and images raise errors of any kind
            line = str(error).partition("\n")[0]
            raise InputError(f"{self._name}: sample {index} cannot be read ({line}): prepare it again") from None
        nothing: dict[str, Any] = dict.fromkeys(self._left_out)
        return dataclasses.replace(sample, **nothing)


def features(tfds: Any) -> Any:
    """Return the features of an example: the fields of `Sample`, of which an empty array stands for None.

    Args:
        tfds: the module tensorflow_datasets.
    """
    feature = tfds.features

    def rows(doc: str) -> Any:
        return feature.Tensor(shape=(None, 3), dtype=np.float32, doc=doc)

    def pixels(dtype: type, doc: str) -> Any:
        # Two unknown dimensions need an encoding; zlib is lossless.
        return feature.Tensor(shape=(None, None), dtype=dtype, encoding="zlib", doc=doc)

    return feature.FeaturesDict(
        {
            "name": feature.Text(doc="unique within the dataset and split"),
            "image": feature.Image(shape=(None, None, 3), encoding_format="png", doc="sRGB, a right hand"),
            "keypoints_2d": feature.Tensor(shape=(21, 2), dtype=np.float32, doc="pixels (u, v), canonical order"),
            "visible": feature.Tensor(shape=(21,), dtype=np.bool_, doc="visibility of each keypoint"),
            "joints": rows("(21, 3) camera frame, metres"),
            "intrinsics": rows("K (3, 3), pixels"),
            "mirrored": feature.Scalar(dtype=np.bool_, doc="whether the original image shows a left hand"),
            "joint_definition": feature.Text(doc="definition of the joints"),
            "vertices": rows("(vertices, 3) camera frame, metres"),
            "pose": rows("(16, 3) axis-angle, MANO's order, radians, relative to the flat rest pose"),
            "betas": feature.Tensor(shape=(None,), dtype=np.float32, doc="(10,) shape coefficients"),
            "depth": pixels(np.float32, "(height, width) camera z, metres; 0 where unknown"),
            "mask": pixels(np.bool_, "(height, width) pixels that this hand covers"),
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


def _builder(tfds: Any, dataset: str, readers: Mapping[str, Reader], stored: dict[str, Any]) -> Any:
    class PreparedDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
        VERSION = tfds.core.Version(_VERSION)

        def __init__(self, **arguments: Any) -> None:
            self.name = dataset
            super().__init__(**arguments)

        def _info(self) -> Any:
            # Examples stay in the reader's order; loaders shuffle.
            return tfds.core.DatasetInfo(
                builder=self,
                description="Right hands as handtailor_jax reads them: metres, camera frame, canonical joints.",
                features=features(tfds),
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(stored),
            )

        def _split_generators(self, _: Any) -> dict[str, Any]:
            return {split: self._generate_examples(reader) for split, reader in readers.items()}

        def _generate_examples(self, reader: Reader) -> Iterator[tuple[int, dict[str, Any]]]:
            for index in range(len(reader)):
                yield index, example(reader[index])

    return PreparedDataset


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"tensorflow-datasets cannot be imported ({error}): pip install 'handtailor-jax[datasets]'"
        ) from None
    return tensorflow_datasets


def main(arguments: list[str] | None = None) -> None:
    """Prepare a dataset from the command line."""
    import tyro
    from tyro.conf import PositionalRequiredArgs

    config = tyro.cli(
        Prepare, args=arguments, prog="python -m handtailor_jax.data.tfds", config=(PositionalRequiredArgs,)
    )
    try:
        folder = prepare(config.name, config.root, config.out, **config.options())
    except InputError as error:
        print(f"handtailor_jax.data.tfds: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"prepared {folder}: give it as --root to evaluate.py or as --data.dataset-folder to train.py")


if __name__ == "__main__":
    main()

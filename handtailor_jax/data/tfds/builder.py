"""What the builders share: they go over the plain readers, so there is one interpretation of every archive."""

import abc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from handtailor_jax.data.sample import Reader
from handtailor_jax.data.tfds.examples import example, features
from handtailor_jax.errors import InputError


class ArchiveBuilder(tfds.core.GeneratorBasedBuilder):
    """Right hands from an archive that somebody who accepted its licence has unpacked; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Canonical joints, metres, right hands."}
    FOLDER: ClassVar[str]
    """The archive's folder in the manual directory."""
    HOMEPAGE: ClassVar[str]
    DESCRIPTION: ClassVar[str]

    def __init__(self, *, file_format: Any = "array_record", **arguments: Any) -> None:
        """A builder that writes ArrayRecord files, the format that can be read without TensorFlow."""
        super().__init__(file_format=file_format, **arguments)

    @abc.abstractmethod
    def readers(self, folder: Path, cache: Path) -> Mapping[str, Reader]:
        """The plain reader of every split.

        Args:
            folder: the unpacked archive, which may be read-only.
            cache: folder for whatever a reader converts.

        Raises:
            InputError: if the archive cannot be read.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=features(tfds),
            homepage=self.HOMEPAGE,
            # Examples stay in the reader's order, so that index i means the same in both; loaders shuffle.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        try:
            manual = Path(dl_manager.manual_dir)
        except AssertionError as error:
            # What is wrong with which folder, then a request to follow the instructions, which are ours.
            raise self._missing(str(error).partition("\n")[0].partition(" Create it")[0].rstrip(".")) from None
        folder = manual / self.FOLDER
        if not folder.is_dir():
            raise self._missing(f"{folder} does not exist")
        readers = self.readers(folder, Path(dl_manager.download_dir) / self.name)
        return {split: self._generate_examples(reader) for split, reader in readers.items()}

    def _generate_examples(self, reader: Reader) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(reader)):
            yield index, example(reader[index])

    def _missing(self, what: str) -> InputError:
        return InputError(f"{self.name}: {what}: {' '.join(self.MANUAL_DOWNLOAD_INSTRUCTIONS.split())}")

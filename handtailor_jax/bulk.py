"""Runs over many images: decoding of images ahead of time, and recognition of results that are already complete."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import as_camera
from handtailor_jax.hand_tailor import HandTailor, Request
from handtailor_jax.images import Image, opencv, quiet, read_image
from handtailor_jax.inputs import Source

_THREADS, _AHEAD = 2, 4  # threads that decode, and images that are decoded before they are needed


@contextlib.contextmanager
def read_ahead(sources: Sequence[Source]) -> Iterator[Iterator[Request | InputError]]:
    """Yield an iterator over the requests of images, which other threads decode ahead of time inside the block."""
    # Quiet once around all threads, because OpenCV's log level applies to the whole process.
    with quiet(opencv()), ThreadPoolExecutor(_THREADS) as threads:
        try:
            yield _requests(sources, threads)
        finally:
            threads.shutdown(cancel_futures=True)


def _requests(sources: Sequence[Source], threads: ThreadPoolExecutor) -> Iterator[Request | InputError]:
    rest, ahead = iter(sources), deque[tuple[Source, Future[Image]]]()
    while True:
        for source in itertools.islice(rest, _AHEAD - len(ahead)):
            ahead.append((source, threads.submit(read_image, source.file)))
        if not ahead:
            return
        source, decoded = ahead.popleft()
        try:
            yield Request(decoded.result(), source.camera, source.box, source.side)
        except InputError as error:
            yield error


class Settings:
    """Digests of everything that determines the files of an image; its JSON file stores its digest."""

    def __init__(self, tailor: HandTailor, mesh: str | None, overlay: bool, options: Mapping[str, Any]) -> None:
        self._tailor, self._mesh, self._overlay, self._options = tailor, mesh, overlay, options

    @functools.cached_property
    def _common(self) -> bytes:
        """Digest of everything that is common to all images."""
        tailor = self._tailor
        about = version("handtailor-jax"), tailor.config, tailor.hand_length, self._mesh, self._overlay, self._options
        digest = hashlib.sha256(repr(about).encode())
        for leaf in jax.tree.leaves((nnx.state(tailor.module), tailor.hand)):
            digest.update(np.asarray(leaf).tobytes())
        return digest.digest()

    def of(self, source: Source) -> str:
        """Return the digest of an image; its file is represented by its size and its time of change."""
        camera = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(as_camera(source.camera))]
        file = source.file.stat() if source.file.exists() else None  # it may have been moved meanwhile
        about = camera, source.box, source.side, file and (file.st_size, file.st_mtime_ns)
        return hashlib.sha256(self._common + repr(about).encode()).hexdigest()[:16]

    def complete(self, folder: Path, source: Source) -> dict[str, Any] | None:
        """Return the JSON content of an image if its files are complete; otherwise None.

        They are if the JSON file, which is written last, names this image and has the same settings, and the other
        files exist and are not empty.
        """
        path = folder / f"{source.id}.json"
        try:
            content = json.loads(path.read_bytes())
            if (content["image"], content["settings"]) != (os.path.relpath(source.file, folder), self.of(source)):
                return None
            endings = [f".{self._mesh}"] if self._mesh and content["hands"] else []
        except (OSError, ValueError, KeyError, TypeError):  # missing, or not written by this package
            return None
        endings += ["_overlay.png"] if self._overlay else []
        files = [folder / f"{source.id}{ending}" for ending in endings]
        return content if all(file.is_file() and file.stat().st_size for file in files) else None

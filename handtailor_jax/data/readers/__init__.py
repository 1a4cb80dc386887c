"""Readers of datasets as published, one module per dataset; docs/datasets.md describes their formats.

To add a dataset, write a module with a reader (`data.sample.Reader`), and add it to `_READERS`.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from handtailor_jax.data.readers.freihand import open_freihand, open_synthetic
from handtailor_jax.data.readers.photos import Photos
from handtailor_jax.data.readers.rhd import Rhd
from handtailor_jax.data.readers.stb import Stb
from handtailor_jax.data.sample import Reader
from handtailor_jax.errors import InputError

# Called with the folder, the split and, as keywords, the options.
_READERS: dict[str, Callable[..., Reader]] = {
    "rhd": Rhd,
    "stb": Stb,
    "freihand": open_freihand,
    "synthetic": open_synthetic,
    "photos": Photos,
}


def reader_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a dataset's reader, with defaults for those that are not given."""
    if name not in _READERS:
        raise InputError(f"unknown dataset {name!r}: choose one of {', '.join(_READERS)}")
    parameters = inspect.signature(_READERS[name]).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    for option in options:
        if option not in defaults:
            raise InputError(f"{name} has no option {option!r}: choose from {', '.join(defaults) or 'none'}")
    return defaults | options


def open_archive(name: str, root: Path, split: str, **options: Any) -> Reader:
    """Open one split of a dataset as published; see `handtailor_jax.data.open_dataset`."""
    return _READERS[name](Path(root), split, **reader_options(name, options))

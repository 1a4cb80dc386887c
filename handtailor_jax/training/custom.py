"""Your own data, losses and network in a training run."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from handtailor_jax.data.sample import Reader
from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.losses import Term
from handtailor_jax.training.config import TrainingConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Custom:
    """Data, losses and a network that a configuration cannot name; `train` takes them beside it."""

    sources: Sequence[tuple[Reader, float]] = ()
    """Datasets with their weights: readers of your own (`data.sample.Reader`) or from `data.open_dataset`. Together
    they fill the share `data.dataset_share` of every batch, each in proportion to its weight. They replace
    `data.dataset`; stage "ik" takes none."""
    evaluation: Reader | None = None
    """Dataset of which `data.test` samples are evaluated during the run; none if not given."""
    losses: Sequence[tuple[float, Callable[..., Term]]] = ()
    """Losses (`objective.Loss`) with their weights, in addition to those of the configuration; each metric has the name
    of its function."""
    network: Callable[..., HandModule] = HandModule
    """Class of the network: a subclass of `HandModule`, with the same arguments. `load_weights(path, network)` loads
    its weights."""


NOTHING = Custom()


def with_custom(config: TrainingConfig, custom: Custom) -> TrainingConfig:
    """Return the configuration, with the dataset "custom" if there are sources of your own.

    Raises:
        InputError: If the configuration contradicts the sources or the evaluation.
    """
    data = config.data
    if config.stage == "ik" and (custom.sources or custom.evaluation is not None):
        raise InputError("stage is ik, which samples poses: leave out sources and evaluation, or choose another stage")
    if not custom.sources:
        return config
    if data.dataset not in (None, "custom") or data.dataset_folder is not None:
        problem = "data.dataset and data.dataset_folder are given beside sources, which replace them"
        raise InputError(f"{problem}: leave them out, and give open_dataset(...) as one of the sources")
    return dataclasses.replace(config, data=dataclasses.replace(data, dataset="custom"))


def checked_sources(sources: Any) -> list[tuple[Reader, float]]:
    """Return a user's readers with their weights.

    Raises:
        InputError: If they are something else.
    """
    expected = "give a list of (reader, weight) with weights above 0, such as [(reader, 1.0)]"
    if not isinstance(sources, list | tuple):
        raise InputError(f"sources is a {type(sources).__name__}: {expected}")
    for entry in sources:
        pair = isinstance(entry, tuple) and len(entry) == 2 and hasattr(entry[0], "__getitem__")
        if not pair or not isinstance(entry[1], int | float) or not 0.0 < entry[1] < math.inf:
            raise InputError(f"sources holds {str(entry)[:80]}: {expected}")
    return list(sources)

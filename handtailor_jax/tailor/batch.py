"""Many hands at once."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import HandParameters, Observation

# Below this many hands a thread costs more than it saves.
_HANDS_PER_WORKER = 32


def tailor_batch(
    hand: HandModel,
    starts: HandParameters,
    observations: Observation,
    config: TailorConfig | None = None,
    *,
    convention: LandmarkConvention = MANO,
    workers: int | None = None,
) -> HandParameters:
    """`tailor` for many hands, compiled; on a CPU the batch is shared out over its cores.

    XLA runs a call of this program on one core of a CPU. Two halves of a batch in two threads run side by side, because
    a compiled call does not hold Python's lock. To be called outside ``jit``; inside, use ``jax.vmap(tailor, ...)``.

    Args:
        hand: the hand model, for all.
        starts: proposed hands, leading axis (batch).
        observations: what was seen of them, leading axis (batch).
        config: energy and solver; `TailorConfig.default()` if None.
        convention: what the observed keypoints mark on the hand.
        workers: number of threads; one for each core of a CPU and one for an accelerator if None.

    Returns:
        The fitted hands, leading axis (batch).
    """
    config = config or TailorConfig.default()

    def solve_some(batch: tuple[HandParameters, Observation]) -> HandParameters:
        return _solve_all(hand, *batch, config, convention)

    return in_parallel(solve_some, (starts, observations), workers)


def in_parallel(function: Callable[[Any], Any], batch: Any, workers: int | None = None) -> Any:
    """``function(batch)`` for a compiled function of a batch, with the batch shared out over the cores of a CPU.

    Args:
        function: from a pytree with a leading axis on every leaf to another.
        batch: its argument.
        workers: number of threads; one for each core of a CPU and one for an accelerator if None.
    """
    leaves = jax.tree.leaves(batch)
    count = leaves[0].shape[0]
    if workers is None:
        workers = min(_cores(), count // _HANDS_PER_WORKER) if _is_on_cpu(leaves[0]) else 1
    workers = min(workers, count)
    if workers <= 1:
        return function(batch)

    host = jax.tree.map(np.asarray, batch)  # views, on a CPU
    bounds = [count * i // workers for i in range(workers + 1)]

    def part(first: int, last: int) -> Any:
        some = jax.tree.map(lambda leaf: jnp.asarray(leaf[first:last]), host)
        return jax.block_until_ready(function(some))

    with ThreadPoolExecutor(workers) as threads:
        parts = list(threads.map(part, bounds[:-1], bounds[1:]))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@functools.partial(jax.jit, static_argnames="config")
def _solve_all(
    hand: HandModel,
    starts: HandParameters,
    observations: Observation,
    config: TailorConfig,
    convention: LandmarkConvention,
) -> HandParameters:
    return jax.vmap(lambda start, seen: tailor(hand, start, seen, config, convention=convention))(starts, observations)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_on_cpu(array: Any) -> bool:
    devices = array.devices() if isinstance(array, jax.Array) else {jax.devices()[0]}
    return all(device.platform == "cpu" for device in devices)

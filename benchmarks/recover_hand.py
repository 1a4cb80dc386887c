"""`recover_hand` under jit, vmap and grad of both networks: seconds of the first call, and milliseconds of later ones.

The image is a packaged example of one hand, 320 x 320 pixels with intrinsics; the box is around the hand. The gradient
is that of the mesh's mean depth with respect to weights, pixels, camera and box. No compiled programs are taken from a
cache, so a first call is tracing, compilation and one run.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from timing import check, command, interleaved, report, seconds, table

import handtailor_jax as ht
from handtailor_jax.errors import InputError
from handtailor_jax.images import read_image

EXAMPLES = Path(ht.__file__).parent / "assets" / "examples"
BOX = (45.0, 20.0, 235.0, 245.0)


@dataclasses.dataclass(frozen=True)
class RecoverHandBenchmark:
    """Options of the benchmark."""

    networks: tuple[Literal["landmarks", "hourglass"], ...] = ("landmarks", "hourglass")
    """Hand modules."""
    forms: tuple[Literal["jit", "vmap", "grad"], ...] = ("jit", "vmap", "grad")
    """Forms of the call."""
    rounds: int = 20
    """Rounds of timing."""
    batch: int = 4
    """Boxes of one image under vmap."""
    seed: int = 0
    """Seed of the order of the calls."""
    json: Path | None = None
    """JSON file to which the results are also written."""


def calls(network: ht.HandTailor, batch: int) -> dict[str, Callable[[int], Any]]:
    """Return the three calls by name."""
    module, hand = network.module, network.hand
    known = ht.read_detections(EXAMPLES / "hands.json")[0]
    pixels = jnp.asarray(read_image(known.image), jnp.float32) / 255.0
    camera, box = jnp.asarray(known.camera), jnp.asarray(BOX)
    boxes = box[None] + jnp.linspace(0.0, 10.0, batch)[:, None] * jnp.asarray([[-1.0, -1.0, 2.0, 2.0]])

    def depth(given: Any) -> jax.Array:
        module, pixels, camera, box = given
        return jnp.mean(ht.recover_hand(module, hand, pixels, camera, box).vertices[:, 2])

    one = jax.jit(ht.recover_hand)
    many = jax.jit(jax.vmap(ht.recover_hand, in_axes=(None, None, None, None, 0)))
    gradient = jax.jit(jax.grad(depth))
    return {
        "jit": lambda i: one(module, hand, pixels, camera, box),
        "vmap": lambda i: many(module, hand, pixels, camera, boxes),
        "grad": lambda i: gradient((module, pixels, camera, box)),
    }


def measure(config: RecoverHandBenchmark) -> None:
    """Measure, print the table, and write the JSON file if one is asked for.

    Raises:
        InputError: If a count is not positive, nothing is to be measured, or the JSON file cannot be written.
    """
    check(config, "rounds", "batch")
    if not config.networks or not config.forms:
        raise InputError("--networks and --forms must not be empty")
    jax.config.update("jax_enable_compilation_cache", False)
    timed = {
        (name, form): call
        for name in config.networks
        for form, call in calls(ht.HandTailor.load(network=name), config.batch).items()
        if form in config.forms
    }
    first = {key: seconds(lambda: call(0)) for key, call in timed.items()}  # noqa: B023
    later = {key: np.median(times[1]) for key, times in interleaved(timed, config.rounds, config.seed, "calls").items()}
    rows = [
        {"network": network, "call": form, "first, s": first[network, form], "later, ms": 1000.0 * later[network, form]}
        for network, form in timed
    ]
    report(table(rows), {"rows": rows}, config.json)


if __name__ == "__main__":
    command(RecoverHandBenchmark, measure, __doc__)

"""Does an accelerator compute what a CPU computes? Writes the results of a device, and compares them with another's.

    JAX_PLATFORMS=cpu python benchmarks/devices.py cpu.npz
    python benchmarks/devices.py gpu.npz --reference cpu.npz
    JAX_DEFAULT_MATMUL_PRECISION=highest python benchmarks/devices.py exact.npz --reference cpu.npz

The results are posed meshes, tailored hands of simulated problems with their gradients, and the hands of the examples.
"""

import dataclasses
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array
from simulation import tailor_problems
from timing import command

from handtailor_jax import HandTailor, TailorConfig, camera_keypoints, camera_mesh, embedded_hand
from handtailor_jax.images import read_image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.safe_arrays import read_npz
from handtailor_jax.results import write_atomically
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import HandParameters, NetworkName, Observation

_PROBLEMS = 64
_EXAMPLES = Path(__file__).parents[1] / "handtailor_jax" / "assets" / "examples"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    out: Annotated[Path, tyro.conf.Positional]
    """File for this device's results (.npz)."""
    reference: Path | None = None
    """File of another device's results to compare with."""


Results = Iterator[tuple[str, np.ndarray]]


def results() -> Results:
    """Compute on the default device, and yield names with arrays: points in mm, keypoints of pictures in pixels."""
    hand = embedded_hand()
    random = np.random.default_rng(0)
    poses = random.normal(0.0, 0.5, (_PROBLEMS, 16, 3)).astype(np.float32)
    betas = random.normal(0.0, 1.0, (_PROBLEMS, hand.num_betas)).astype(np.float32)
    posed = jax.jit(jax.vmap(lambda betas, pose: hand.shape(betas).pose(pose).skin().vertices))(betas, poses)
    yield "posed meshes, mm", 1e3 * np.asarray(posed)
    yield from _tailored(hand, "network", TailorConfig.network())
    yield from _tailored(hand, "landmarks", TailorConfig.landmarks())
    for network in get_args(NetworkName):
        recover = HandTailor.load(network=network)
        for path in sorted(_EXAMPLES.glob("*.jpg")):
            for number, each in enumerate(recover(read_image(path))):
                yield f"{network}, {path.stem} {number}: keypoints, px", np.asarray(each.keypoints_2d)
                yield f"{network}, {path.stem} {number}: joints, mm", 1e3 * np.asarray(each.joints)


def _tailored(hand: HandModel, name: str, preset: TailorConfig) -> Results:
    problems = tailor_problems(hand, _PROBLEMS, seed=0)
    starts = problems.starts(hand, preset)

    def fit(start: HandParameters, seen: Observation) -> tuple[Array, Array]:
        fitted = tailor(hand, start, seen, preset)
        return camera_mesh(hand, fitted).vertices, camera_keypoints(hand, fitted)

    def middle(points: Array, start: HandParameters, seen: Observation) -> Array:
        return jnp.sum(fit(start, dataclasses.replace(seen, keypoints_2d=points))[1])

    vertices, keypoints = jax.jit(jax.vmap(fit))(starts, problems.observation)
    yield f"tailor {name}: meshes, mm", 1e3 * np.asarray(vertices)
    errors = np.linalg.norm(np.asarray(keypoints) - np.asarray(problems.keypoints), axis=-1)
    yield f"tailor {name}: error to the truth, mm", 1e3 * errors
    gradient = jax.jit(jax.vmap(jax.grad(middle)))(problems.observation.keypoints_2d, starts, problems.observation)
    yield f"tailor {name}: gradient, mm per px", 1e3 * np.asarray(gradient)


def measure(options: Options) -> None:
    """Write this device's results, and print the differences to the reference.

    Raises:
        InputError: The reference cannot be read.
    """
    expected = {} if options.reference is None else read_npz(options.reference)
    print(f"{jax.devices()[0].device_kind}, matrix products: {jax.config.jax_default_matmul_precision or 'default'}")
    found: dict[str, np.ndarray] = {}
    begin = time.perf_counter()
    for name, array in results():
        found[name], text = array, f"{time.perf_counter() - begin:.0f} s, {name}: mean {array.mean():.5g}"
        if name in expected and expected[name].shape == array.shape:
            gap, mean = np.abs(array - expected[name]), expected[name].mean()
            text += f" against {mean:.5g}; difference: median {np.median(gap):.1e}, largest {gap.max():.1e}"
        print(text, flush=True)
    missing = sorted(expected.keys() - found.keys())
    print(f"Only in the reference: {', '.join(missing)}" if missing else "Everything in the reference was found.")
    content = io.BytesIO()
    np.savez(content, **found)  # type: ignore[arg-type]
    write_atomically(options.out, lambda temporary: temporary.write_bytes(content.getvalue()))


if __name__ == "__main__":
    command(Options, measure, __doc__)

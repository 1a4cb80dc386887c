"""Table 3 for this package: time and error of the tailor by solver and iterations, and hands per second in batches.

The baseline is the tailor as the released program runs it (`original_way.OriginalWay`). The problems come from
simulation.py. For one core: taskset -c 0 python benchmarks/tailor.py
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float
from original_way import OriginalWay
from simulation import Noise, TailorProblems, tailor_problems
from timing import check, command, interleaved, publish, seconds

from handtailor_jax.evaluation.report import environment, markdown_table
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import project
from handtailor_jax.geometry.lifting import reference_bone_length
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.skeleton import ROOT
from handtailor_jax.tailor.placement import camera_keypoints, camera_mesh
from handtailor_jax.tailor.solve import Adam, LevenbergMarquardt
from handtailor_jax.tailor.tailor import TailorConfig, tailor
from handtailor_jax.types import HandParameters

ORIGINAL = "original's way"
NOISES: tuple[Noise, ...] = ("gaussian", "heavy_tailed")


@dataclasses.dataclass(frozen=True)
class TailorBenchmark:
    """Options of the benchmark."""

    iterations: tuple[int, ...] = (10, 20, 50, 100)
    """Iterations of the Adam solvers (Table 3)."""
    damped_iterations: tuple[int, ...] = (1, 2, 3, 5)
    """Iterations of the Levenberg-Marquardt solver."""
    problems: int = 1000
    """Number of hands on which errors are measured, for each kind of noise."""
    seed: int = 2
    """Seed of the problems. The default preset was chosen on seed 1."""
    rounds: int = 60
    """Rounds of timing."""
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    """Batch sizes for hands per second."""
    json: Path | None = None
    """JSON file to which the results are also written."""


@dataclasses.dataclass(frozen=True)
class TailorErrors:
    """Errors of tailored hands: an array with one entry a problem, or the mean over problems."""

    reprojection_px: Any
    """Mean distance to the observed keypoints, pixels of the 256 px crop."""
    reprojection_percent: Any
    """Mean distance to the observed keypoints in percent of the hand size."""
    error_mm: Any
    """Mean root-relative distance to the true keypoints, millimetres."""
    error_lit_mm: Any
    """Mean distance to the true keypoints after scaling the hand to the true reference bone, millimetres."""


ErrorsByNoise = dict[Noise, TailorErrors]


@dataclasses.dataclass(frozen=True)
class SolverRow:
    """One solver with one number of iterations."""

    solver: str
    """Name of the preset, or of the energy and solver."""
    iterations: int
    """Iterations of the solver."""
    milliseconds: float
    """Median warm time for one hand: scale, iterations and mesh."""
    fastest_milliseconds: float
    """Fastest warm time."""
    ratio: float
    """Warm time of the original's way, with as many iterations (or 20), divided by the warm time of this solver."""
    cold_milliseconds: float
    """Median cold time."""
    cold_ratio: float
    """Ratio of the cold times."""
    errors: ErrorsByNoise
    """Mean errors by kind of noise."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Error of the default preset minus the error of another preset on the same problems."""

    noise: Noise
    other: str
    """Name of the other preset."""
    metric: str
    """Field of `TailorErrors`."""
    mean: float
    low: float
    """Lower end of the 95 % bootstrap interval of the mean."""
    high: float
    """Upper end of the 95 % bootstrap interval of the mean."""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Median rate of one batch size."""

    batch: int
    preset: str
    parameters: float
    """Hands per second up to pose, shape and placement."""
    meshes: float
    """Hands per second with the skinned mesh."""


@dataclasses.dataclass(frozen=True)
class TailorReport:
    """All measurements of one run."""

    environment: dict[str, Any]
    start_errors: ErrorsByNoise
    """Errors before the tailor: proposed pose and shape, scale in closed form."""
    rows: list[SolverRow]
    differences: list[Difference]
    throughput: list[Throughput]

    def to_markdown(self) -> str:
        """Return the tables."""
        noises = [noise.replace("_", "-") for noise in NOISES]
        header = ["solver", "iterations", "ms", "ratio to original", "cold: ms", "cold: ratio"]
        header += [f"{noise}: {column}" for noise in noises for column in ("px (%)", "3D / lit, mm")]
        body = [["start", "0", "", "", "", "", *_cells(self.start_errors)]]
        for row in self.rows:
            times = [f"{row.milliseconds:.3f}", f"{row.ratio:.1f}", f"{row.cold_milliseconds:.3f}"]
            body.append([row.solver, str(row.iterations), *times, f"{row.cold_ratio:.1f}", *_cells(row.errors)])
        differences = [
            [d.noise.replace("_", "-"), d.other, d.metric, f"{d.mean:+.3f}", f"[{d.low:+.3f}, {d.high:+.3f}]"]
            for d in self.differences
        ]
        presets = list(dict.fromkeys(rate.preset for rate in self.throughput))
        rates = [
            [str(batch)]
            + [
                f"{t.parameters:,.0f} / {t.meshes:,.0f}"
                for p in presets
                for t in self.throughput
                if (t.batch, t.preset) == (batch, p)
            ]
            for batch in dict.fromkeys(rate.batch for rate in self.throughput)
        ]
        lines = [", ".join(f"{key} {value}" for key, value in self.environment.items()), ""]
        lines += [
            "One hand: closed-form scale, iterations and mesh in one call.",
            "",
            *markdown_table(header, body),
            "",
        ]
        lines += ["Default minus other preset at 20 iterations, same hands, mean and 95 % interval:", ""]
        lines += markdown_table(["noise", "other", "metric", "mean", "interval"], differences)
        lines += ["", "Hands per second in batches (parameters only / with mesh):", ""]
        return "\n".join([*lines, *markdown_table(["batch", *presets], rates)]) + "\n"


def measure(config: TailorBenchmark, hand: HandModel | None = None) -> TailorReport:
    """Measure, print the tables, and write the JSON file if one is asked for.

    Raises:
        InputError: An option is not positive, or the JSON file cannot be written.
    """
    check(config, "iterations", "damped_iterations", "batches", "problems", "rounds")
    hand = embedded_hand() if hand is None else hand
    problems = {noise: tailor_problems(hand, config.problems, config.seed, noise) for noise in NOISES}
    variants = _variants(config)
    errors = {
        key: {noise: tailor_errors(hand, problems[noise], variant) for noise in NOISES}
        for key, variant in variants.items()
    }
    times = _times_of_one_hand(hand, problems["gaussian"], variants, config)
    # A learning rate of 0 leaves the start where Eq. 12 of the paper puts it.
    start_only = dataclasses.replace(TailorConfig.paper(), solver=Adam(learning_rate=0.0, iterations=1))
    report = TailorReport(
        environment={**environment(), "problems": config.problems, "seed": config.seed, "rounds": config.rounds},
        start_errors=_means({noise: tailor_errors(hand, problems[noise], start_only) for noise in NOISES}),
        rows=[_row(key, times, errors) for key in times],
        differences=_differences(errors, config.seed),
        throughput=_throughput(hand, config),
    )
    publish(report.to_markdown(), dataclasses.asdict(report), config.json)
    return report


def tailor_errors(hand: HandModel, problems: TailorProblems, config: TailorConfig) -> TailorErrors:
    """Return the errors of the tailored hand for every problem."""
    return TailorErrors(*map(np.asarray, _errors(hand, problems, config)))


@functools.partial(jax.jit, static_argnames="config")
def _errors(hand: HandModel, problems: TailorProblems, config: TailorConfig) -> tuple[Float[Array, "problems"], ...]:
    """Return the fields of `TailorErrors` in their order."""

    def errors_of_one(problem: TailorProblems) -> tuple[Array, ...]:
        seen = problem.observation
        fitted = tailor(hand, problem.start(hand, config), seen, config)
        keypoints = camera_keypoints(hand, fitted)
        pixels = _mean_distance(project(seen.camera, keypoints) - seen.keypoints_2d)
        # Without intrinsics the camera frame is in pixels, so hands are compared in the model's metres.
        perspective = seen.camera.perspectivity > 0.5
        unit, true_unit = (jnp.where(perspective, 1.0, p.scale) for p in (fitted, problem.truth))
        ours = (keypoints - keypoints[ROOT][None]) / unit
        true = (problem.keypoints - problem.keypoints[ROOT][None]) / true_unit
        lit = ours * (reference_bone_length(true) / reference_bone_length(ours))
        percent = 100.0 * pixels / hand_size(seen.keypoints_2d)
        return pixels, percent, 1e3 * _mean_distance(ours - true), 1e3 * _mean_distance(lit - true)

    return jax.vmap(errors_of_one)(problems)


def _mean_distance(difference: Float[Array, "21 n"]) -> Float[Array, ""]:
    return jnp.mean(jnp.sqrt(jnp.sum(difference * difference, axis=-1)))


Variant = tuple[str, int]
"""Name of a solver, and its iterations."""


def _variants(config: TailorBenchmark) -> dict[Variant, TailorConfig]:
    default, official, paper = TailorConfig.default(), TailorConfig.official(), TailorConfig.paper()
    adam = dataclasses.replace(default, solver=Adam(0.05, b1=0.5, b2=0.5, final_learning_rate=0.01))
    variants = {}
    for name, preset in (("paper", paper), ("official", official), ("default energy, Adam", adam)):
        for n in sorted({*config.iterations} if preset is adam else {*config.iterations, 20}):
            variants[name, n] = dataclasses.replace(preset, solver=dataclasses.replace(preset.solver, iterations=n))
    assert isinstance(default.solver, LevenbergMarquardt)
    for n in sorted({*config.damped_iterations, default.solver.iterations}):
        name = "default" if n == default.solver.iterations else "default energy, LM"
        variants[name, n] = dataclasses.replace(default, solver=dataclasses.replace(default.solver, iterations=n))
    return variants


def _times_of_one_hand(
    hand: HandModel, problems: TailorProblems, variants: dict[Variant, TailorConfig], config: TailorBenchmark
) -> dict[Variant, npt.NDArray[np.float64]]:
    """Return cold and warm seconds of start, iterations and mesh, the original's way first."""
    hands = [jax.tree.map(lambda leaf, i=i: leaf[i], problems) for i in range(min(8, config.problems))]
    original = OriginalWay(hand)
    calls: dict[Variant, Callable[[int], Any]] = {
        (ORIGINAL, n): lambda i, n=n: original(hands[i % len(hands)], n) for n in sorted({*config.iterations, 20})
    }
    for key, variant in variants.items():
        program = _compiled(hand, variant)
        calls[key] = lambda i, program=program: program(hands[i % len(hands)])  # type: ignore[misc]
    for call in calls.values():
        jax.block_until_ready(call(0))
    return interleaved(calls, config.rounds, config.seed, "rounds")


def _compiled(hand: HandModel, config: TailorConfig) -> Callable[[TailorProblems], Any]:
    def fit(problem: TailorProblems) -> tuple[HandParameters, Array]:
        fitted = tailor(hand, problem.start(hand, config), problem.observation, config)
        return fitted, camera_mesh(hand, fitted).vertices

    return jax.jit(fit)


def _row(
    key: Variant, times: dict[Variant, npt.NDArray[np.float64]], errors: dict[Variant, ErrorsByNoise]
) -> SolverRow:
    solver, n = key
    cold, warm = 1e3 * np.median(times[key], axis=1)
    original_cold, original_warm = 1e3 * np.median(times[ORIGINAL, n if (ORIGINAL, n) in times else 20], axis=1)
    # The original's way has the energy and the steps of the official preset, so the errors are the same.
    same_errors = ("official", n) if solver == ORIGINAL else key
    return SolverRow(
        solver=solver,
        iterations=n,
        milliseconds=float(warm),
        fastest_milliseconds=1e3 * float(times[key][1].min()),
        ratio=float(original_warm / warm),
        cold_milliseconds=float(cold),
        cold_ratio=float(original_cold / cold),
        errors=_means(errors[same_errors]),
    )


def _throughput(hand: HandModel, config: TailorBenchmark) -> list[Throughput]:
    rates = []
    for batch in config.batches:
        problems = tailor_problems(hand, batch, config.seed)
        for name, preset in (("default", TailorConfig.default()), ("official", TailorConfig.official())):

            def parameters(problem: TailorProblems, preset: TailorConfig = preset) -> HandParameters:
                return tailor(hand, problem.start(hand, preset), problem.observation, preset)

            def mesh(problem: TailorProblems, parameters: Callable[..., HandParameters] = parameters) -> Array:
                return camera_mesh(hand, parameters(problem)).vertices

            both = []
            for function in (parameters, mesh):
                program = functools.partial(jax.jit(jax.vmap(function)), problems)
                seconds(program)  # compiles
                times = [seconds(program) for _ in range(max(3, min(config.rounds, 4096 // batch)))]
                both.append(batch / float(np.median(times)))
            rates.append(Throughput(batch, name, *both))
    return rates


def _differences(errors: dict[Variant, ErrorsByNoise], seed: int) -> list[Difference]:
    """Return paired differences of the default to the other presets at 20 iterations."""
    [default] = [of_noise for (name, _), of_noise in errors.items() if name == "default"]
    rng = np.random.default_rng(seed)
    differences = []
    for noise in NOISES:
        for other in ("paper", "official"):
            for metric in ("error_mm", "error_lit_mm", "reprojection_px"):
                paired = getattr(default[noise], metric) - getattr(errors[other, 20][noise], metric)
                picks = rng.integers(0, paired.size, (2000, paired.size))
                low, high = np.quantile(paired[picks].mean(axis=1), [0.025, 0.975])
                differences.append(Difference(noise, other, metric, float(paired.mean()), float(low), float(high)))
    return differences


def _means(errors: ErrorsByNoise) -> ErrorsByNoise:
    return {
        noise: TailorErrors(*(float(np.mean(values)) for values in dataclasses.astuple(of_noise)))
        for noise, of_noise in errors.items()
    }


def _cells(errors: ErrorsByNoise) -> list[str]:
    cells = []
    for of_noise in errors.values():
        cells.append(f"{of_noise.reprojection_px:.2f} ({of_noise.reprojection_percent:.2f})")
        cells.append(f"{of_noise.error_mm:.2f} / {of_noise.error_lit_mm:.2f}")
    return cells


if __name__ == "__main__":
    command(TailorBenchmark, measure, __doc__)

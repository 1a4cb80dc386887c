"""Table 3 for this package: time and error of the tailor by solver and iterations, and hands per second in batches.

The yardstick is the original's way of running the tailor, reproduced here; see `OriginalWay`. All times are medians
over rounds in which every variant runs twice, in random order, in one process, so that a busy machine is busy for all
of them alike. The second run is the time of a warmed-up program; the first, whose code and constants the other variants
have driven out of the processor's caches, is reported beside it as cold. The problems are those of
`evaluation.simulation`, seeded.
"""

import dataclasses
import functools
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float
from tqdm import tqdm

from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.report import environment, markdown_table
from handtailor_jax.evaluation.simulation import Noise, TailorProblems, tailor_problems
from handtailor_jax.geometry.cameras import project
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.results import write_atomically
from handtailor_jax.skeleton import JOINT_PARENTS, KEYPOINTS_FROM_MANO, ROOT
from handtailor_jax.tailor import energy as terms
from handtailor_jax.tailor.initialize import closed_form_scale_with_depths, root_position
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.placement import camera_keypoints, camera_mesh
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.solve import Adam, LevenbergMarquardt
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import HandParameters

NOISES: tuple[Noise, ...] = ("gaussian", "heavy_tailed")
METRICS = ("reprojection_px", "reprojection_percent", "error_mm", "error_lit_mm")


@dataclasses.dataclass(frozen=True)
class TailorBenchmark:
    """Time and error of the tailor by solver and iterations, and hands per second in batches."""

    iterations: tuple[int, ...] = (10, 20, 50, 100)
    """Iterations of the Adam solvers (Table 3)."""
    damped_iterations: tuple[int, ...] = (1, 2, 3, 5)
    """Iterations of the Levenberg-Marquardt solver."""
    problems: int = 1000
    """Number of hands on which errors are measured, for each kind of noise."""
    seed: int = 2
    """Seed of the problems; the default preset was chosen on seed 1."""
    rounds: int = 60
    """Rounds of timing."""
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    """Batch sizes for hands per second."""
    json: Path | None = None
    """File for the same figures as JSON."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One solver with one number of iterations."""

    solver: str
    iterations: int
    milliseconds: float
    """Median time for one hand, warm: scale, iterations and mesh."""
    fastest_milliseconds: float
    """The same, fastest round."""
    ratio: float
    """Median time of the original's way, with as many iterations (20 against Levenberg-Marquardt), over this one's."""
    cold_milliseconds: float
    """Median time of a call that follows another variant's."""
    cold_ratio: float
    """`ratio` of the cold times."""
    errors: dict[str, dict[str, float]]
    """By kind of noise: mean over problems of the METRICS."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A metric of the default less that of another preset, on the same problems: below zero the default is better."""

    noise: str
    other: str
    metric: str
    mean: float
    low: float
    """Lower end of the 95 % bootstrap interval of the mean."""
    high: float
    """Upper end."""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Hands per second for one batch size; median over rounds."""

    batch: int
    solver: str
    parameters: float
    """Hands per second up to pose, shape and placement."""
    meshes: float
    """Hands per second with the skinned mesh."""


@dataclasses.dataclass(frozen=True)
class TailorReport:
    """What `run` measured."""

    environment: dict[str, Any]
    start_errors: dict[str, dict[str, float]]
    """Errors before the tailor: proposed pose and shape, scale in closed form."""
    rows: list[Row]
    differences: list[Difference]
    throughput: list[Throughput]

    def to_json(self) -> str:
        """The figures as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The figures as tables."""
        lines = [", ".join(f"{key} {value}" for key, value in self.environment.items()), ""]
        lines += [
            "One hand: closed-form scale, iterations and mesh in one call. Reprojection error is the mean distance to"
            " the observed keypoints, in pixels of the 256 px crop and in % of the hand's size; 3D error is the mean"
            " root-relative distance in mm, as it is / with the true bone's length.",
            "",
        ]
        header = ["solver", "iterations", "ms", "ratio to original", "cold: ms", "cold: ratio"]
        header += [f"{noise.replace('_', '-')}: {what}" for noise in NOISES for what in ("px (%)", "3D / lit, mm")]
        body = [["start", "0", "", "", "", "", *_cells(self.start_errors)]]
        for row in self.rows:
            cells = [row.solver, str(row.iterations), f"{row.milliseconds:.3f}", f"{row.ratio:.1f}"]
            cells += [f"{row.cold_milliseconds:.3f}", f"{row.cold_ratio:.1f}"]
            body.append(cells + _cells(row.errors))
        lines += markdown_table(header, body)
        lines += ["", "Default less other preset at 20 iterations, same hands, mean and 95 % interval:", ""]
        body = [
            [d.noise.replace("_", "-"), d.other, d.metric, f"{d.mean:+.3f}", f"[{d.low:+.3f}, {d.high:+.3f}]"]
            for d in self.differences
        ]
        lines += markdown_table(["noise", "other", "metric", "mean", "interval"], body)
        lines += ["", "Hands per second in batches (parameters only / with mesh):", ""]
        solvers = list(dict.fromkeys(t.solver for t in self.throughput))
        body = []
        for batch in dict.fromkeys(t.batch for t in self.throughput):
            of_batch = {t.solver: t for t in self.throughput if t.batch == batch}
            body.append([str(batch), *(f"{of_batch[s].parameters:,.0f} / {of_batch[s].meshes:,.0f}" for s in solvers)])
        lines += markdown_table(["batch", *solvers], body)
        return "\n".join(lines) + "\n"


def run(config: TailorBenchmark, hand: HandModel | None = None) -> TailorReport:
    """Measures, prints the tables, and writes the JSON file if one is asked for.

    Raises:
        InputError: if the JSON file cannot be written, or a count is not positive.
    """
    for name in ("iterations", "damped_iterations", "batches", "problems", "rounds"):
        if np.min(np.atleast_1d(getattr(config, name)), initial=1) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive")
    if config.json is not None and (config.json.is_dir() or not os.access(config.json.absolute().parent, os.W_OK)):
        raise InputError(f"cannot write {config.json}: not a file in a writable folder")
    hand = embedded_hand() if hand is None else hand
    problems = {noise: tailor_problems(hand, config.problems, config.seed, noise) for noise in NOISES}
    configs = _variants(config)
    steps = 2 * len(configs) + config.rounds + 2 * len(config.batches) * len(_BATCHED)
    with tqdm(total=steps, desc="bench tailor", leave=False) as progress:
        errors = {}
        for variant, tailor_config in configs.items():
            errors[variant] = {noise: evaluate(hand, problems[noise], tailor_config) for noise in NOISES}
            progress.update()
        times = _time_single(hand, problems["gaussian"], configs, config, progress)
        throughput = _throughput(hand, config, progress)

    rows = []
    for solver, n in [*((ORIGINAL, n) for n in _original_iterations(config)), *configs]:
        cold_ms, warm_ms = 1e3 * times[solver, n]
        cold_against, warm_against = 1e3 * times[ORIGINAL, n if (ORIGINAL, n) in times else 20]
        twin = ("official", n) if solver == ORIGINAL else (solver, n)  # the same energy and steps, so the same errors
        rows.append(
            Row(
                solver=solver,
                iterations=n,
                milliseconds=float(np.median(warm_ms)),
                fastest_milliseconds=float(np.min(warm_ms)),
                ratio=float(np.median(warm_against) / np.median(warm_ms)),
                cold_milliseconds=float(np.median(cold_ms)),
                cold_ratio=float(np.median(cold_against) / np.median(cold_ms)),
                errors=_means(errors.get(twin, {})),
            )
        )
    start = {noise: evaluate(hand, problems[noise], _start_only()) for noise in NOISES}
    report = TailorReport(
        environment=_environment(config),
        start_errors=_means(start),
        rows=rows,
        differences=_differences(errors, config.seed),
        throughput=throughput,
    )
    print(report.to_markdown())
    if config.json is not None:
        text = report.to_json()
        write_atomically(config.json, lambda temporary: temporary.write_text(text))
    return report


def evaluate(
    hand: HandModel, problems: TailorProblems, config: TailorConfig
) -> dict[str, Float[np.ndarray, "problems"]]:
    """Each of the METRICS of the tailored hands, for every problem."""
    errors = _errors(hand, problems, _fitted(hand, problems, config))
    return {metric: np.asarray(values) for metric, values in zip(METRICS, errors, strict=True)}


@functools.partial(jax.jit, static_argnames="config")
def _fitted(hand: HandModel, problems: TailorProblems, config: TailorConfig) -> HandParameters:
    return jax.vmap(lambda problem: tailor(hand, problem.start(hand, config), problem.observation, config))(problems)


@jax.jit
def _errors(hand: HandModel, problems: TailorProblems, fitted: HandParameters) -> tuple[Float[Array, "problems"], ...]:
    """The METRICS in their order."""

    def of_one(problem: TailorProblems, fitted: HandParameters) -> tuple[Array, ...]:
        keypoints, seen = camera_keypoints(hand, fitted), problem.observation
        pixels = _mean_distance(project(seen.camera, keypoints) - seen.keypoints_2d)
        size = jnp.max(jnp.max(seen.keypoints_2d, axis=0) - jnp.min(seen.keypoints_2d, axis=0))
        # Without intrinsics the camera frame is in pixels, and the model's own metres are what is compared.
        perspective = seen.camera.perspectivity > 0.5
        unit, true_unit = (jnp.where(perspective, 1.0, p.scale) for p in (fitted, problem.truth))
        ours = (keypoints - keypoints[ROOT][None]) / unit
        true = (problem.keypoints - problem.keypoints[ROOT][None]) / true_unit
        lit = ours * (terms.reference_bone_length(true) / terms.reference_bone_length(ours))
        return pixels, 100.0 * pixels / size, 1e3 * _mean_distance(ours - true), 1e3 * _mean_distance(lit - true)

    return jax.vmap(of_one)(problems, fitted)


def _mean_distance(difference: Float[Array, "21 n"]) -> Float[Array, ""]:
    return jnp.mean(jnp.sqrt(jnp.sum(difference * difference, axis=-1)))


ORIGINAL = "original's way"


class OriginalWay:
    """The released program's way of running the tailor, on the same hand model, for one hand with intrinsics.

    What it has in common with the released demo: a hand model that the compiled functions close over; textbook skinning
    of the whole mesh, from which the keypoints are taken, and reverse-mode differentiation of all of that; the camera
    as a numpy array in every call; and a Python loop of three compiled calls an iteration, for the parameters out of
    the optimiser's state, their gradient and Adam's update (0.03, b1 = b2 = 0.5, index from 1). The root, the initial
    joints, the scale and the final mesh are one compiled call each. Left out, in its favour, is to copy the network's
    results to and fro before. It computes what the `official` preset computes.
    """

    def __init__(self, hand: HandModel) -> None:
        config = TailorConfig.official()
        weights, adam = config.energy, config.solver
        assert isinstance(weights, PaperEnergy)
        assert isinstance(adam, Adam)

        def energy(params: dict[str, Array], problem: TailorProblems, root: Array, camera: Array) -> Array:
            keypoints = _in_bones(_textbook_layer(hand, params)[1]) * params["bone"]
            seen = problem.observation
            placed = keypoints + root[None]
            residual = placed[:, :2] / placed[:, 2:] * camera[:, :2] + camera[:, 2:] - seen.keypoints_2d
            non_planarity, bend = terms.twist(keypoints)
            return (
                weights.joint * jnp.sum(seen.confidence[:, None] * residual * residual)
                + weights.non_planarity * jnp.sum(non_planarity)
                - weights.backward_bend * jnp.minimum(jnp.sum(bend), 0.0)
                + weights.identity_pose * terms.squared(params["so3"] - problem.pose.reshape(48))
                + weights.identity_betas * terms.squared(params["beta"] - problem.betas)
            )

        def scale(joints: Array, problem: TailorProblems, root: Array) -> Array:
            factor = closed_form_scale_with_depths(problem.observation, joints, root, problem.bone)
            return problem.bone * jnp.maximum(factor, 0.9)

        def update(i: Array, gradient: Any, state: Any) -> Any:
            params, mean, square = state
            mean = jax.tree.map(lambda m, g: adam.b1 * m + (1.0 - adam.b1) * g, mean, gradient)
            square = jax.tree.map(lambda v, g: adam.b2 * v + (1.0 - adam.b2) * g * g, square, gradient)

            def step(x: Array, m: Array, v: Array) -> Array:
                m, v = m / (1.0 - adam.b1 ** (i + 1.0)), v / (1.0 - adam.b2 ** (i + 1.0))
                return x - adam.learning_rate * m / (jnp.sqrt(v) + adam.eps)

            return jax.tree.map(step, params, mean, square), mean, square

        def mesh(params: dict[str, Array], bone: Array, root: Array) -> Array:
            vertices, keypoints = _textbook_layer(hand, params)
            return _in_bones(keypoints, vertices) * bone + root[None]

        self._root = jax.jit(lambda problem: root_position(problem.observation, problem.root_depth))
        self._joints = jax.jit(lambda params: _in_bones(_textbook_layer(hand, params)[1]))
        self._scale = jax.jit(scale)
        self._init = jax.jit(lambda params: (params, *2 * (jax.tree.map(jnp.zeros_like, params),)))
        self._get_params = jax.jit(lambda state: state[0])
        self._gradient = jax.jit(jax.grad(energy))
        self._update = jax.jit(update)
        self._mesh = jax.jit(mesh)

    def __call__(self, problem: TailorProblems, iterations: int) -> Float[Array, "vertices 3"]:
        """The mesh in the camera frame, metres."""
        params = {"so3": problem.pose.reshape(48), "beta": problem.betas}
        root = self._root(problem)
        bone = self._scale(self._joints(params), problem, root)
        matrix = np.asarray(problem.observation.camera.matrix)
        camera = np.tile(
            matrix[[0, 1, 0, 1], [0, 1, 2, 2]], (21, 1)
        )  # fx, fy, cx, cy for every keypoint, from the host
        state = self._init({**params, "bone": bone})
        for i in range(1, iterations + 1):
            params = self._get_params(state)
            gradient = self._gradient(params, problem, root, camera)
            state = self._update(float(i), gradient, state)
        # The released program throws the optimised bone away.
        return self._mesh(self._get_params(state), bone, root)


def _textbook_layer(hand: HandModel, params: dict[str, Array]) -> tuple[Array, Array]:
    """All vertices and the 21 keypoints (metres, rest frame) by textbook linear blend skinning.

    Everything that a mesh needs is computed for every vertex, in homogeneous coordinates: shape, joints regressed from
    the shaped vertices, pose correction, one 4x4 transform a joint, one blended 4x4 transform a vertex.
    """
    skin, dtype = hand.skin, hand.dtype
    rotations = matrix_from_axis_angle(params["so3"].reshape(16, 3))
    shaped = skin.rest_vertices(params["beta"])
    joints = hand.joint_regressor @ shaped
    correction = (rotations[1:] - jnp.eye(3, dtype=dtype)[None]).reshape(135)
    rest = shaped + skin.pose_directions @ correction

    def transform(rotation: Array, translation: Array) -> Array:
        return jnp.eye(4, dtype=dtype).at[:3, :3].set(rotation).at[:3, 3].set(translation)

    chained: list[Array] = []
    for joint, parent in enumerate(JOINT_PARENTS):
        step = joints[joint] if parent < 0 else joints[joint] - joints[parent]
        local = transform(rotations[joint], step)
        chained.append(local if parent < 0 else chained[parent] @ local)
    world = jnp.stack(chained)
    from_rest = jnp.stack([world[j] @ transform(jnp.eye(3, dtype=dtype), -joints[j]) for j in range(len(chained))])
    blended = jnp.einsum("vj,jab->vab", skin.weights, from_rest)
    homogeneous = jnp.concatenate([rest, jnp.ones((rest.shape[0], 1), dtype)], axis=1)
    vertices = jnp.einsum("vab,vb->va", blended, homogeneous)[:, :3]
    keypoints = jnp.concatenate([world[:, :3, 3], vertices[hand.tip_vertices]])
    return vertices, keypoints[np.asarray(KEYPOINTS_FROM_MANO, np.int32)]


def _in_bones(keypoints: Float[Array, "21 3"], points: Float[Array, "n 3"] | None = None) -> Float[Array, "n 3"]:
    """Points (the keypoints themselves if None) relative to the root, in units of the reference bone."""
    points = keypoints if points is None else points
    return (points - keypoints[ROOT][None]) / terms.reference_bone_length(keypoints)


def _variants(config: TailorBenchmark) -> dict[tuple[str, int], TailorConfig]:
    """The solvers to compare, by name and number of iterations."""
    default, official, paper = TailorConfig.default(), TailorConfig.official(), TailorConfig.paper()
    ours = dataclasses.replace(default, solver=Adam(0.05, b1=0.5, b2=0.5, final_learning_rate=0.01))
    configs = {}
    for name, preset in (("paper", paper), ("official", official), ("default energy, Adam", ours)):
        for n in sorted({*config.iterations, 20} if name != "default energy, Adam" else {*config.iterations}):
            configs[name, n] = dataclasses.replace(preset, solver=dataclasses.replace(preset.solver, iterations=n))
    assert isinstance(default.solver, LevenbergMarquardt)
    for n in sorted({*config.damped_iterations, default.solver.iterations}):
        solver = dataclasses.replace(default.solver, iterations=n)
        name = "default" if n == default.solver.iterations else "default energy, LM"
        configs[name, n] = dataclasses.replace(default, solver=solver)
    return configs


def _original_iterations(config: TailorBenchmark) -> list[int]:
    return sorted({*config.iterations, 20})


def _start_only() -> TailorConfig:
    """A configuration that leaves the start where Eq. 12 puts it."""
    return dataclasses.replace(TailorConfig.paper(), solver=Adam(learning_rate=0.0, iterations=1))


def _time_single(
    hand: HandModel,
    problems: TailorProblems,
    configs: dict[tuple[str, int], TailorConfig],
    config: TailorBenchmark,
    progress: Any,
) -> dict[tuple[str, int], npt.NDArray[np.float64]]:
    """Seconds for one hand, per variant: (cold and warm, rounds)."""
    original = OriginalWay(hand)
    calls: dict[tuple[str, int], Callable[[TailorProblems], Any]] = {}
    for key, tailor_config in configs.items():
        calls[key] = _single(hand, tailor_config)
    for n in _original_iterations(config):
        calls[ORIGINAL, n] = lambda problem, n=n: original(problem, n)  # type: ignore[misc]
    hands = [jax.tree.map(lambda leaf, i=i: leaf[i], problems) for i in range(min(8, config.problems))]
    for call in calls.values():
        jax.block_until_ready(call(hands[0]))
        progress.update()
    times: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in calls}
    order = list(calls)
    shuffle = random.Random(config.seed).shuffle
    for i in range(config.rounds):
        shuffle(order)
        for key in order:
            problem = hands[i % len(hands)]
            times[key].append((_seconds(calls[key], problem), _seconds(calls[key], problem)))
        progress.update()
    return {key: np.asarray(values).T for key, values in times.items()}


def _single(hand: HandModel, config: TailorConfig) -> Callable[[TailorProblems], Any]:
    """Start, iterations and mesh of one hand in one compiled call."""

    def fit(problem: TailorProblems) -> tuple[HandParameters, Array]:
        fitted = tailor(hand, problem.start(hand, config), problem.observation, config)
        return fitted, camera_mesh(hand, fitted).vertices

    return jax.jit(fit)


_BATCHED = ("default", "official")


def _throughput(hand: HandModel, config: TailorBenchmark, progress: Any) -> list[Throughput]:
    results = []
    for batch in config.batches:
        problems = tailor_problems(hand, batch, config.seed)
        for name in _BATCHED:
            preset = getattr(TailorConfig, name)()

            def parameters(problem: TailorProblems, preset: TailorConfig = preset) -> HandParameters:
                return tailor(hand, problem.start(hand, preset), problem.observation, preset)

            def mesh(problem: TailorProblems, parameters: Callable[..., HandParameters] = parameters) -> Array:
                return camera_mesh(hand, parameters(problem)).vertices

            rates = []
            for function in (parameters, mesh):
                compiled = jax.jit(jax.vmap(function))
                jax.block_until_ready(compiled(problems))
                seconds = [_seconds(compiled, problems) for _ in range(max(3, min(config.rounds, 4096 // batch)))]
                rates.append(batch / float(np.median(seconds)))
                progress.update()
            results.append(Throughput(batch, name, *rates))
    return results


def _seconds(call: Callable[[Any], Any], argument: Any) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call(argument))
    return time.perf_counter() - begin


def _differences(errors: dict[tuple[str, int], dict[Any, dict[str, Any]]], seed: int) -> list[Difference]:
    """Paired differences of the default to the other presets at 20 iterations."""
    default = next(value for (name, _), value in errors.items() if name == "default")
    rng = np.random.default_rng(seed)
    results = []
    for noise in NOISES:
        for other in ("paper", "official"):
            for metric in ("error_mm", "error_lit_mm", "reprojection_px"):
                difference = default[noise][metric] - errors[other, 20][noise][metric]
                picks = rng.integers(0, difference.size, (2000, difference.size))
                low, high = np.quantile(difference[picks].mean(axis=1), [0.025, 0.975])
                mean = float(difference.mean())
                results.append(Difference(noise, other, metric, mean, float(low), float(high)))
    return results


def _means(errors: dict[Any, dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {noise: {metric: float(v.mean()) for metric, v in of.items()} for noise, of in errors.items()}


def _environment(config: TailorBenchmark) -> dict[str, Any]:
    return {**environment(), "problems": config.problems, "seed": config.seed, "rounds": config.rounds}


def _cells(errors: dict[str, dict[str, float]]) -> list[str]:
    cells = []
    for noise in NOISES:
        if noise not in errors:
            cells += ["", ""]
            continue
        e = errors[noise]
        cells.append(f"{e['reprojection_px']:.2f} ({e['reprojection_percent']:.2f})")
        cells.append(f"{e['error_mm']:.2f} / {e['error_lit_mm']:.2f}")
    return cells

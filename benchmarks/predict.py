"""Latency from picture to mesh, by stage and batch size, for both networks, against the official network in PyTorch.

Latency does not depend on what a network has learned, so weights are drawn at random. Every call of a batch size is
measured in turn in one process, in random order, so that a busy machine is busy for all of them alike; times are
medians over rounds. A call is timed right after another one of its own, which leaves it the processor's caches and the
other library's threads asleep; one that takes long does that by itself. PyTorch runs the official network alone, in
evaluation mode and without gradients, in both memory layouts, of which the faster counts; cropping, tailor and mesh
are not asked of it. With PyTorch there is one set of official weights for both libraries.
"""

import copy
import dataclasses
import importlib
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.report import environment, markdown_table, usable_cores
from handtailor_jax.evaluation.simulation import TailorProblems, tailor_problems
from handtailor_jax.geometry.cameras import transform_camera
from handtailor_jax.images import Box, Picture, crop_square
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.results import prepare_folder, write_json
from handtailor_jax.tailor.placement import camera_mesh
from handtailor_jax.tailor.presets import TailorConfig
from handtailor_jax.tailor.tailor import tailor
from handtailor_jax.types import Camera, HandParameters

Network = Literal["small", "official"]

STAGES = ("preprocess", "network", "tailor", "mesh", "whole")
EITHER = "either"
TORCH = "official in PyTorch"
LAYOUTS = ("NCHW", "channels_last")

PICTURE_SIZE = (1280, 960)
_INTRINSICS = np.asarray([[1200.0, 0.0, 640.0], [0.0, 1200.0, 480.0], [0.0, 0.0, 1.0]], np.float32)

# From here on, milliseconds, what ran before a call no longer matters to its time.
_LONG = 300.0


@dataclasses.dataclass(frozen=True)
class PredictBenchmark:
    """Latency from picture to mesh, by stage and batch size; with PyTorch installed also against it."""

    networks: tuple[Network, ...] = ("small", "official")
    """Which of the two networks."""
    batches: tuple[int, ...] = (1, 4, 16, 64)
    """Pictures in one call."""
    rounds: int = 30
    """Rounds of timing for a batch size."""
    seconds: float = 60.0
    """A batch size that would take longer gets fewer rounds, but at least three."""
    torch: bool = True
    """Compare with the official network in PyTorch if that is installed."""
    seed: int = 0
    """Seed of weights and order."""
    json: Path | None = None
    """File for the same figures as JSON."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One stage of one network with one batch size."""

    network: str
    """"small", "official", EITHER where it does not matter, or TORCH."""
    batch: int
    stage: str
    """One of STAGES, "whole" being a call of `HandTailor` with everything in it; for PyTorch one of LAYOUTS."""
    first_seconds: float
    """The first call, which compiles."""
    milliseconds: float
    """Median time of a warm call."""
    fastest_milliseconds: float
    rounds: int


@dataclasses.dataclass(frozen=True)
class PredictReport:
    """What `run` measured."""

    environment: dict[str, Any]
    rows: list[Row]

    def milliseconds(self, network: str, batch: int, stage: str) -> float | None:
        """Median time of a warm call, None if it was not measured."""
        for row in self.rows:
            if (row.network, row.batch, row.stage) == (network, batch, stage):
                return row.milliseconds
        return None

    def ratios(self, batch: int) -> dict[str, float]:
        """Times over that of the official network in PyTorch, in its faster layout; empty without PyTorch."""
        theirs = [time for layout in LAYOUTS if (time := self.milliseconds(TORCH, batch, layout)) is not None]
        compared = {"official, network": ("official", "network"), "small, whole": ("small", "whole")}
        ours = {name: self.milliseconds(network, batch, stage) for name, (network, stage) in compared.items()}
        return {name: time / min(theirs) for name, time in ours.items() if theirs and time is not None}

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        batches = dict.fromkeys(row.batch for row in self.rows)
        return {**dataclasses.asdict(self), "ratios_to_torch": {str(batch): self.ratios(batch) for batch in batches}}

    def to_markdown(self) -> str:
        """The figures as tables."""
        width, height = PICTURE_SIZE
        lines = [
            ", ".join(f"{key} {value}" for key, value in self.environment.items()),
            "",
            f"Milliseconds of a warm call (seconds of the first one, which compiles). Preprocess cuts the crops out of "
            f"{width} x {height} pictures; whole is one call of HandTailor, from pictures to results in numpy.",
            "",
        ]
        batches = list(dict.fromkeys(row.batch for row in self.rows))
        names = list(dict.fromkeys((row.network, row.stage) for row in self.rows))
        body = []
        for network, stage in names:
            of_stage = {row.batch: row for row in self.rows if (row.network, row.stage) == (network, stage)}
            cells = [f"{of_stage[b].milliseconds:.2f} ({of_stage[b].first_seconds:.1f})" for b in batches]
            body.append([network, stage, *cells])
        lines += markdown_table(["network", "stage", *(f"batch {batch}" for batch in batches)], body)
        ratios = {batch: self.ratios(batch) for batch in batches}
        if any(ratios.values()):
            lines += ["", "Time over that of the official network in PyTorch (faster layout, network alone):", ""]
            compared = list(dict.fromkeys(name for of_batch in ratios.values() for name in of_batch))
            body = [[name, *(f"{ratios[batch][name]:.3f}" for batch in batches)] for name in compared]
            lines += markdown_table(["", *(f"batch {batch}" for batch in batches)], body)
        elif "torch" not in self.environment:
            lines += ["", "For the comparison with PyTorch: pip install 'handtailor-jax[bench]'"]
        return "\n".join(lines) + "\n"


def run(config: PredictBenchmark, hand: HandModel | None = None) -> PredictReport:
    """Measures, prints the tables, and writes the JSON file if one is asked for.

    Raises:
        InputError: if the JSON file cannot be written, or a count is not positive.
    """
    for name in ("networks", "batches"):
        if not getattr(config, name):
            raise InputError(f"--{name} is empty: give at least one")
    for name in ("batches", "rounds", "seconds"):
        if np.min(np.atleast_1d(getattr(config, name))) <= 0:
            raise InputError(f"--{name} must be positive")
    if config.json is not None:
        prepare_folder(config.json.absolute().parent, [config.json.name])
    # A program that an earlier run has compiled would make the first call's time meaningless.
    jax.config.update("jax_enable_compilation_cache", False)

    hand = embedded_hand() if hand is None else hand
    torch = _torch(config)
    measured = subjects(config, hand, torch)
    rows: list[Row] = []
    with tqdm(total=len(config.batches), desc="bench predict", unit="batch size", leave=False) as progress:
        for batch in config.batches:
            calls = {(name, stage): call for name, of in measured.items() for stage, call in of(batch).items()}
            rows += _measure(calls, batch, config)
            progress.update()
    versions = {} if torch is None else {"torch": torch.__version__}
    report = PredictReport({**environment(), **versions, "seed": config.seed}, rows)
    print(report.to_markdown())
    if config.json is not None:
        write_json(config.json, report.to_json())
    return report


def _measure(calls: Mapping[tuple[str, str], Callable[[], Any]], batch: int, config: PredictBenchmark) -> list[Row]:
    first = {key: _milliseconds(call) for key, call in calls.items()}
    second = {key: _milliseconds(call) for key, call in calls.items()}
    cost = sum((1 if time > _LONG else 2) * time for time in second.values())
    rounds = max(3, min(config.rounds, int(1e3 * config.seconds / cost)))
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    shuffle = random.Random(config.seed).shuffle
    for _ in range(rounds):
        order = list(calls)
        shuffle(order)
        for key in order:
            if second[key] <= _LONG:
                _milliseconds(calls[key])
            times[key].append(_milliseconds(calls[key]))
    return [
        Row(network, batch, stage, 1e-3 * first[network, stage], float(np.median(each)), float(np.min(each)), rounds)
        for (network, stage), each in times.items()
    ]


def _milliseconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - begin)


Calls = Callable[[int], dict[str, Callable[[], Any]]]
"""What is to be timed for a batch size, by stage."""


def subjects(config: PredictBenchmark, hand: HandModel, torch: Any) -> dict[str, Calls]:
    """What is measured, by the name of the network; the official ones share their weights."""
    # Imported here because the command line imports this module for its options, and flax takes a while.
    from flax import nnx

    from benchmarks.torch_network import seeded_state, torch_network
    from handtailor_jax.hand_module.config import HandModuleConfig
    from handtailor_jax.hand_module.hand_module import HandModule
    from handtailor_jax.hand_module.official import load_official

    state = None if torch is None else seeded_state(config.seed)
    networks: dict[str, Calls] = {}
    for name in config.networks:
        if name == "official" and state is not None:
            module = load_official(state)
        else:
            module = HandModule(getattr(HandModuleConfig, name)(), rngs=nnx.Rngs(config.seed))
            module.eval()
        networks[name] = _ours(module, hand)
    networks[EITHER] = _tailor_and_mesh(hand)
    if state is not None:
        networks[TORCH] = _theirs(torch, torch_network(state))
    return networks


def _ours(module: Any, hand: HandModel) -> Calls:
    from flax import nnx

    from handtailor_jax.hand_module.inference import inference_form
    from handtailor_jax.pipeline import HandTailor

    whole = HandTailor(module, hand)
    size = module.config.image_size
    graph, state = nnx.split(inference_form(module))

    def network(
        state: Any, crops: UInt8[Array, "batch size size 3"], cameras: Camera, to_crop: Float[Array, "batch 2 3"]
    ) -> dict[str, Array]:
        found = nnx.merge(graph, state)(crops.astype(jnp.float32) / 255.0, transform_camera(cameras, to_crop))
        return {name: getattr(found, name) for name in _ESTIMATED}

    def calls(batch: int) -> dict[str, Callable[[], Any]]:
        pictures, boxes = _pictures(batch)

        def preprocess() -> tuple[np.ndarray, np.ndarray]:
            cut = [crop_square(picture, box, size)[:2] for picture, box in zip(pictures, boxes, strict=True)]
            crops, affines = zip(*cut, strict=True)
            return np.stack(crops), np.stack(affines)

        crops, to_crop = map(jnp.asarray, preprocess())
        cameras = jax.tree.map(lambda leaf: jnp.stack([leaf] * batch), Camera.from_matrix(_INTRINSICS))
        of_network = jax.jit(network)
        return {
            "preprocess": preprocess,
            "network": lambda: of_network(state, crops, cameras, to_crop),
            "whole": lambda: whole.batch(pictures, [_INTRINSICS] * batch, boxes),
        }

    return calls


def _tailor_and_mesh(hand: HandModel) -> Calls:
    """The stages after the network, which are the same for both; proposals of another source cost them as much."""
    preset = TailorConfig.network()

    def refine(hand: HandModel, problems: TailorProblems) -> HandParameters:
        return jax.vmap(lambda p: tailor(hand, p.start(hand, preset), p.observation, preset))(problems)

    def mesh(hand: HandModel, fitted: HandParameters) -> Float[Array, "batch vertices 3"]:
        return jax.vmap(lambda one: camera_mesh(hand, one).vertices)(fitted)

    def calls(batch: int) -> dict[str, Callable[[], Any]]:
        problems = tailor_problems(hand, batch, seed=0)
        of_tailor, of_mesh = jax.jit(refine), jax.jit(mesh)
        return {"tailor": lambda: of_tailor(hand, problems), "mesh": lambda: of_mesh(hand, problems.truth)}

    return calls


# What the official network in PyTorch gives, and what the tailor needs.
_ESTIMATED = (
    "heatmaps",
    "keypoints_2d",
    "confidence",
    "relative_depth",
    "bone",
    "root_depth",
    "joints",
    "raw_rotations",
    "pose",
    "betas",
)


def _pictures(batch: int) -> tuple[list[Picture], list[Box]]:
    """Pictures, and a box around the hand in each."""
    width, height = PICTURE_SIZE
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return [picture] * batch, [(300.0 + i, 200.0, 420.0, 420.0) for i in range(batch)]


def _theirs(torch: Any, network: Any) -> Calls:
    torch.set_num_threads(usable_cores())
    in_layout = {
        "NCHW": (network, torch.contiguous_format),
        "channels_last": (copy.deepcopy(network).to(memory_format=torch.channels_last), torch.channels_last),
    }

    def calls(batch: int) -> dict[str, Callable[[], Any]]:
        size = 256
        picture = np.random.default_rng(0).uniform(-0.5, 0.5, (batch, 3, size, size)).astype(np.float32)
        intrinsics = torch.from_numpy(np.repeat(_INTRINSICS[None], batch, axis=0))

        def call(layout: str) -> Callable[[], Any]:
            module, memory = in_layout[layout]
            given = torch.from_numpy(picture).contiguous(memory_format=memory)

            def run() -> Any:
                with torch.no_grad():
                    return module(given, intrinsics)

            return run

        return {layout: call(layout) for layout in LAYOUTS}

    return calls


def _torch(config: PredictBenchmark) -> Any:
    """torch if it is installed and wanted, else None."""
    if not config.torch:
        return None
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None

"""Latency from image to mesh, by stage and batch size, for both hand modules, against the official one in PyTorch.

Latency does not depend on trained values, so the weights are random; both libraries get the same official weights. A
call is timed right after another run of itself, so that its data is in the processor's caches and the other library's
threads are idle. PyTorch runs the official network alone, in evaluation mode and without gradients, in both memory
layouts, of which the faster one is compared; its time does not include cropping, tailor and mesh.
"""

import copy
import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from simulation import TailorProblems, tailor_problems
from timing import check, command, interleaved, publish, seconds
from torch_network import seeded_state, torch_network

from handtailor_jax.detector.regions import square_region
from handtailor_jax.errors import InputError, install
from handtailor_jax.evaluation.report import environment, markdown_table, usable_cores
from handtailor_jax.geometry.cameras import as_camera, transform_camera
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.layers import inference_form
from handtailor_jax.hand_module.official import load_official
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import Image, crop_square
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.tailor.placement import camera_mesh
from handtailor_jax.tailor.tailor import TailorConfig, tailor
from handtailor_jax.types import Box, Camera, HandParameters

Network = Literal["small", "official"]

STAGES = ("preprocess", "network", "tailor", "mesh", "whole")
EITHER = "either"
TORCH = "official in PyTorch"
LAYOUTS = ("NCHW", "channels_last")

IMAGE_SIZE = (1280, 960)
_INTRINSICS = np.asarray([[1200.0, 0.0, 640.0], [0.0, 1200.0, 480.0], [0.0, 0.0, 1.0]], np.float32)


@dataclasses.dataclass(frozen=True)
class PredictBenchmark:
    """Options of the benchmark."""

    networks: tuple[Network, ...] = ("small", "official")
    """Hand modules to measure."""
    batches: tuple[int, ...] = (1, 4, 16, 64)
    """Images in one call."""
    rounds: int = 30
    """Rounds of timing for a batch size."""
    seconds: float = 60.0
    """Time limit in seconds for a batch size: slow ones have fewer rounds, but at least three."""
    torch: bool = True
    """Compare with the official network in PyTorch, if PyTorch is installed."""
    seed: int = 0
    """Seed of the weights and of the order of the calls."""
    json: Path | None = None
    """JSON file to which the results are also written."""


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One stage of one network with one batch size."""

    network: str
    """"small", "official", EITHER where the stage is the same for both, or TORCH."""
    batch: int
    stage: str
    """One of STAGES ("whole" is `HandTailor`, from images to hands); for PyTorch one of LAYOUTS."""
    first_seconds: float
    """Time of the first call, which compiles."""
    milliseconds: float
    """Median time of a warm call."""
    fastest_milliseconds: float
    rounds: int


@dataclasses.dataclass(frozen=True)
class PredictReport:
    """All measurements of one run."""

    environment: dict[str, Any]
    rows: list[StageRow]

    def milliseconds(self, network: str, batch: int, stage: str) -> float | None:
        """Return the median time of a warm call, or None if it was not measured."""
        for row in self.rows:
            if (row.network, row.batch, row.stage) == (network, batch, stage):
                return row.milliseconds
        return None

    def ratios(self, batch: int) -> dict[str, float]:
        """Return times relative to the official network in PyTorch, in its faster layout; empty without PyTorch."""
        theirs = [time for layout in LAYOUTS if (time := self.milliseconds(TORCH, batch, layout)) is not None]
        compared = {"official, network": ("official", "network"), "small, whole": ("small", "whole")}
        ours = {name: self.milliseconds(network, batch, stage) for name, (network, stage) in compared.items()}
        return {name: time / min(theirs) for name, time in ours.items() if theirs and time is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        batches = dict.fromkeys(row.batch for row in self.rows)
        return {**dataclasses.asdict(self), "ratios_to_torch": {str(batch): self.ratios(batch) for batch in batches}}

    def to_markdown(self) -> str:
        """Return the tables."""
        width, height = IMAGE_SIZE
        lines = [
            ", ".join(f"{key} {value}" for key, value in self.environment.items()),
            "",
            f"Milliseconds of a warm call (seconds of the first one, which compiles). Preprocess cuts the crops out of "
            f"{width} x {height} images; whole is HandTailor from images to hands, at most eight at once.",
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
            lines += ["", "Time relative to the official network in PyTorch (faster layout, network alone):", ""]
            compared = list(dict.fromkeys(name for of_batch in ratios.values() for name in of_batch))
            body = [[name, *(f"{ratios[batch][name]:.3f}" for batch in batches)] for name in compared]
            lines += markdown_table(["", *(f"batch {batch}" for batch in batches)], body)
        elif "torch" not in self.environment:
            lines += ["", f"For the comparison with PyTorch: {install('bench')}"]
        return "\n".join(lines) + "\n"


def measure(config: PredictBenchmark, hand: HandModel | None = None) -> PredictReport:
    """Measure, print the tables, and write the JSON file if one is asked for.

    Raises:
        InputError: An option is not positive or empty, or the JSON file cannot be written.
    """
    check(config, "batches", "rounds", "seconds")
    if not config.networks:
        raise InputError("--networks is empty: give small, official or both")
    # A program compiled by an earlier run would make the time of the first call meaningless.
    jax.config.update("jax_enable_compilation_cache", False)
    hand = embedded_hand() if hand is None else hand
    torch = _torch(config)
    measured = subjects(config, hand, torch)
    rows: list[StageRow] = []
    for batch in config.batches:
        calls = {(name, stage): call for name, of in measured.items() for stage, call in of(batch).items()}
        rows += _rows(calls, batch, config)
    versions = {} if torch is None else {"torch": torch.__version__}
    report = PredictReport({**environment(), **versions, "seed": config.seed}, rows)
    publish(report.to_markdown(), report.to_json(), config.json)
    return report


def _rows(calls: Mapping[tuple[str, str], Callable[[], Any]], batch: int, config: PredictBenchmark) -> list[StageRow]:
    first = {key: seconds(call) for key, call in calls.items()}
    round_seconds = 2.0 * sum(seconds(call) for call in calls.values())
    rounds = max(3, min(config.rounds, int(config.seconds / round_seconds)))
    timed = {key: lambda _, call=call: call() for key, call in calls.items()}
    times = interleaved(timed, rounds, config.seed, f"batch {batch}")
    return [
        StageRow(name, batch, stage, first[name, stage], 1e3 * float(np.median(t)), 1e3 * float(t.min()), rounds)
        for (name, stage), (_, t) in times.items()
    ]


Calls = Callable[[int], dict[str, Callable[[], Any]]]
"""From a batch size to the calls to time, by stage."""


def subjects(config: PredictBenchmark, hand: HandModel, torch: Any) -> dict[str, Calls]:
    """Return the calls to measure, by name of the network; both official networks share their weights."""
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


def _ours(module: HandModule, hand: HandModel) -> Calls:
    whole = HandTailor(module, hand)
    size = module.config.image_size
    graph, state = nnx.split(inference_form(module))

    def network(
        state: Any, crops: UInt8[Array, "batch size size 3"], cameras: Camera, to_crop: Float[Array, "batch 2 3"]
    ) -> dict[str, Array]:
        found = nnx.merge(graph, state)(crops.astype(jnp.float32) / 255.0, transform_camera(cameras, to_crop))
        return {name: getattr(found, name) for name in _ESTIMATED}

    def calls(batch: int) -> dict[str, Callable[[], Any]]:
        images, boxes = _images(batch)

        def preprocess() -> tuple[np.ndarray, np.ndarray]:
            cut = [crop_square(image, box, size)[:2] for image, box in zip(images, boxes, strict=True)]
            crops, affines = zip(*cut, strict=True)
            return np.stack(crops), np.stack(affines)

        def recover() -> list[Any]:
            pairs = zip(images, boxes, strict=True)
            return whole.recover([whole.finder.view(image, camera, square_region(box), 1.0) for image, box in pairs])

        camera = as_camera(_INTRINSICS)
        crops, to_crop = map(jnp.asarray, preprocess())
        cameras = jax.tree.map(lambda leaf: jnp.stack([leaf] * batch), camera)
        of_network = jax.jit(network)
        return {
            "preprocess": preprocess,
            "network": lambda: of_network(state, crops, cameras, to_crop),
            "whole": recover,
        }

    return calls


def _tailor_and_mesh(hand: HandModel) -> Calls:
    """Return the stages after the network; their cost does not depend on the source of the proposals."""
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


# Outputs to compute: those of the official network in PyTorch, and the inputs of the tailor.
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


def _images(batch: int) -> tuple[list[Image], list[Box]]:
    """Return images of noise, and a box in each."""
    width, height = IMAGE_SIZE
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return [image] * batch, [(300.0 + i, 200.0, 420.0, 420.0) for i in range(batch)]


def _theirs(torch: Any, network: Any) -> Calls:
    torch.set_num_threads(usable_cores())
    in_layout = {
        "NCHW": (network, torch.contiguous_format),
        "channels_last": (copy.deepcopy(network).to(memory_format=torch.channels_last), torch.channels_last),
    }

    def calls(batch: int) -> dict[str, Callable[[], Any]]:
        size = 256
        image = np.random.default_rng(0).uniform(-0.5, 0.5, (batch, 3, size, size)).astype(np.float32)
        intrinsics = torch.from_numpy(np.repeat(_INTRINSICS[None], batch, axis=0))

        def call(layout: str) -> Callable[[], Any]:
            module, memory = in_layout[layout]
            given = torch.from_numpy(image).contiguous(memory_format=memory)

            def run() -> Any:
                with torch.no_grad():
                    return module(given, intrinsics)

            return run

        return {layout: call(layout) for layout in LAYOUTS}

    return calls


def _torch(config: PredictBenchmark) -> Any:
    """Return torch if it is installed and asked for, else None."""
    if not config.torch:
        return None
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


if __name__ == "__main__":
    command(PredictBenchmark, measure, __doc__)

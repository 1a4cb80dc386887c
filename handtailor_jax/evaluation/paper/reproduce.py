"""Reproduce the paper's tables and figures on any data with ground truth; see `evaluate.py --help`."""

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from handtailor_jax.commands import refuse_idle
from handtailor_jax.data import open_dataset, readable
from handtailor_jax.data.sample import Reader, Sample
from handtailor_jax.errors import InputError, check_range
from handtailor_jax.evaluation.alignment import GivenTruth, Protocol, ScoredJoints, WristRecipe
from handtailor_jax.evaluation.freihand import freihand_joints, write_predictions
from handtailor_jax.evaluation.paper import figures
from handtailor_jax.evaluation.paper.ablations import table3, table4
from handtailor_jax.evaluation.paper.accuracy import networks, table1, table2
from handtailor_jax.evaluation.paper.sources import (
    network_predictions,
    read_predictions,
    reader_truth,
    simulated_predictions,
    synthetic_truth,
)
from handtailor_jax.evaluation.paper.subjects import GroundTruth, Subject, meshes
from handtailor_jax.evaluation.report import Cell, Findings, environment
from handtailor_jax.hand_module.weights import load_weights
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import MANO_VERTICES, load_hand
from handtailor_jax.results import prepare_folder, write_atomically, write_json
from handtailor_jax.tailor.tailor import PresetName

Part = Literal["table1", "table2", "table3", "table4", "figure2", "figure3", "figure4", "networks"]
Dataset = Literal["synthetic", "rhd", "stb", "freihand"]

# Options that only affect some parts.
_OF_PARTS: Mapping[str, tuple[Part | Literal["freihand-submission"], ...]] = {
    "others": ("table2",),
    "shape_weights": ("table4",),
    "rounds": ("table3", "table4"),
    "iterations": ("table3",),
    "damped_iterations": ("table3",),
    "shown": ("figure2", "figure4"),
    "rendered": ("table4",),
    "preset": ("table1", "table2", "table4", "figure2", "figure3", "networks", "freihand-submission"),
}
_MAPS = {"rhd": ("mask", "depth"), "stb": ("mask", "depth"), "freihand": ("mask",)}  # maps that Table 4 uses
_SHAPE_LOSSES = ("L_beta", "L_beta + depth", "L_beta + silhouette")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Method and data to evaluate, and the folder of the results."""

    what: Part | Literal["freihand-submission", "all"]
    """Table, figure or comparison to compute, or the file for FreiHAND's server; all: everything except this file."""
    out: Path = Path("evaluation")
    """Folder for report.md, one CSV file per table, results.json and the figures."""
    dataset: Dataset = "synthetic"
    """Dataset to evaluate on. synthetic: this project's own test split, rendered here, without download."""
    root: Path | None = None
    """Folder of the dataset, as published."""
    split: str | None = None
    """Split of the dataset; its test split if not given."""
    count: int | None = None
    """Number of samples, from the first; all if not given."""
    predictions: str | None = None
    """Predictions to evaluate: `simulated` (a noise model in place of a network), or an npz file of another method."""
    weights: Path | None = None
    """Weights of the hand module to evaluate (.safetensors)."""
    others: tuple[Path, ...] = ()
    """Predictions of other methods (npz) for Table 2."""
    shape_weights: tuple[Path, ...] = ()
    """Weights for the left half of Table 4, one file per shape loss, in the order L_beta, + depth, + silhouette."""
    hand: Path | None = None
    """Hand model (MANO pickle or npz); the embedded hand if not given."""
    preset: PresetName | None = None
    """Preset of the tailor under evaluation; if not given, "network" with --weights and "default" without."""
    wrist: WristRecipe | None = None
    """Recipe by which STB's wrist is derived from the palm point; bihand if not given."""
    stb_camera: Literal["SK", "BB_left", "BB_right"] | None = None
    """Camera whose images of STB are used; SK if not given."""
    seed: int = 0
    """Seed of the noise model, of confidence intervals and of the order of timing."""
    rounds: int = 20
    """Number of timing rounds of Table 3; Table 4 has at most 3 rounds."""
    iterations: tuple[int, ...] = (10, 20, 50, 100)
    """Iterations of Adam in Table 3."""
    damped_iterations: tuple[int, ...] = (1, 2, 3, 5)
    """Iterations of Levenberg-Marquardt in Table 3."""
    shown: int = 8
    """Number of hands in Figures 2 and 4."""
    rendered: int = 64
    """Number of hands of the right half of Table 4, in which some energies render the hand."""
    skip_unreadable: bool = False
    """Leave out samples that cannot be decoded and report them, instead of stopping."""


def evaluate(config: EvaluationConfig) -> Findings:
    """Compute the tables and figures of a configuration, and write them to its folder.

    Raises:
        InputError: If an input cannot be used. Nothing has been written in that case.
    """
    hand = load_hand(config.hand)
    hand = hand if hand.side == "right" else hand.mirrored()
    _check(config)
    # All files are read first: with `all`, a part without its data is left out, but an unreadable file is an error.
    shape_modules = [load_weights(path) for path in config.shape_weights]
    prepare_folder(config.out)
    truth = read_truth(config)
    others = [read_predictions(path, len(truth)) for path in config.others]
    subject = _subject(config, truth, hand)
    if config.what == "freihand-submission":
        _write_submission(config, subject)
        return Findings()

    def left_half() -> list:
        named = zip(_SHAPE_LOSSES, shape_modules, strict=False)
        return [(name, network_predictions(truth, module, hand)[0]) for name, module in named]

    parts: Mapping[Part, Callable[[], Findings]] = {
        "table1": lambda: table1(subject),
        "table2": lambda: table2(subject, others),
        "table3": lambda: table3(subject, config.rounds, config.iterations, config.damped_iterations),
        "table4": lambda: table4(subject, config.rendered, min(config.rounds, 3), left_half()),
        "figure2": lambda: figures.figure2(subject, config.out, config.shown),
        "figure3": lambda: figures.figure3(subject, config.out),
        "figure4": lambda: figures.figure4(subject, config.out, config.shown),
        "networks": lambda: networks(subject),
    }
    findings = Findings()
    for name, compute in parts.items():
        if config.what not in (name, "all"):
            continue
        try:
            findings += compute()
        except InputError as error:
            if config.what != "all":
                raise
            findings += Findings(left_out=(f"{name}: {error}",))
        _write(config, findings)  # after every part, because the whole may take hours
    return findings


def _check(config: EvaluationConfig) -> None:
    for name in ("count", "rounds", "iterations", "damped_iterations", "shown", "rendered"):
        value = getattr(config, name)
        if value == ():
            raise InputError(f"{name} has no value: give at least one number")
        if value is not None:
            check_range(name, value, 1)
    check_range("seed", config.seed, 0, 2**31 - 1)
    given = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default}
    idle: dict[str, str] = {name: config.what for name, what in _OF_PARTS.items() if config.what not in (*what, "all")}
    dataset, is_rendered = f"--dataset {config.dataset}", config.dataset == "synthetic" and config.root is None
    idle |= dict.fromkeys(("wrist", "stb_camera") if config.dataset != "stb" else (), dataset)
    idle |= dict.fromkeys(("split", "skip_unreadable") if is_rendered else (), dataset)
    refuse_idle({f"{name} does not apply to {of}": name in given for name, of in idle.items()})
    if config.predictions is None and config.weights is None:
        raise InputError("nothing to evaluate: give --weights FILE, or --predictions simulated or an npz")
    if config.predictions is not None and config.weights is not None:
        raise InputError("--predictions and --weights are both given: choose one")
    if config.what == "networks" and config.weights is None:
        raise InputError("networks compares hand modules: give --weights instead of --predictions")
    files, most = len(config.shape_weights), len(_SHAPE_LOSSES)
    if files > most:
        raise InputError(
            f"--shape-weights has {files} files: it takes at most {most} files: {', '.join(_SHAPE_LOSSES)}"
        )


def read_truth(config: EvaluationConfig) -> GroundTruth:
    """Read the ground truth of the hands under evaluation.

    Raises:
        InputError: If the data cannot be read.
    """
    if config.dataset == "synthetic" and config.root is None:
        return synthetic_truth(4000 if config.count is None else config.count)
    if config.root is None:
        raise InputError(f"--root is missing: give the folder of {config.dataset} as published")
    split = config.split or ("evaluation" if config.dataset in ("rhd", "freihand") else "test")
    chosen = {"wrist": config.wrist, "camera": config.stb_camera}  # only for STB; the reader has the defaults
    options = {name: value for name, value in chosen.items() if value is not None}
    reader = open_dataset(config.dataset, config.root, split, **options)
    count = len(reader) if config.count is None else min(config.count, len(reader))
    samples: Iterator[tuple[int, Sample]] = ((index, reader[index]) for index in range(count))
    if config.skip_unreadable:
        samples = readable(reader, lambda index, error: print(f"skipped sample {index}: {error}"))

    @functools.cache
    def with_maps() -> Reader:
        maps = dict.fromkeys(_MAPS.get(config.dataset, ()), True)
        return open_dataset(config.dataset, root, split, **options, **maps)

    name, root = f"{config.dataset}, split {split}", config.root
    labelled, posed = config.what != "freihand-submission", config.predictions == "simulated"
    read_maps = lambda index: with_maps()[index]  # noqa: E731
    return reader_truth(name, samples, reader, count, labelled=labelled, posed=posed, read_maps=read_maps)


def _subject(config: EvaluationConfig, truth: GroundTruth, hand: HandModel) -> Subject:
    given: tuple[GivenTruth, ...] = ("intrinsics",)
    if config.weights is not None:
        predictions, without_k = network_predictions(truth, load_weights(config.weights), hand)
        given = ("box", "intrinsics")
    elif config.predictions == "simulated":
        predictions = without_k = simulated_predictions(truth, config.seed)
    else:
        predictions = without_k = read_predictions(Path(str(config.predictions)), len(truth))
        if predictions.pose is None:
            raise InputError(
                f"{config.predictions}: has joints_3d without pose and betas: give it as --others, for Table 2"
            )
    scored: ScoredJoints = "model"
    if hand.skin.template.shape[0] == MANO_VERTICES:  # whose vertices the other definitions name
        by_wrist: ScoredJoints = "palm" if config.dataset == "stb" and config.wrist == "palm" else "model"
        scored = "freihand" if truth.joint_definition == "freihand" else by_wrist
    protocol = Protocol(
        joint_definition=scored,
        wrist=config.wrist or "bihand",
        stb_camera="SK" if config.stb_camera in (None, "SK") else "BB",
        given_truth=given,
    )
    preset: PresetName = config.preset or ("default" if config.weights is None else "network")
    return Subject(hand, truth, predictions, without_k, protocol, preset, config.seed)


def _write_submission(config: EvaluationConfig, subject: Subject) -> None:
    """Write pred.json for FreiHAND's server. No label is used, because the evaluation split had none for years."""
    hands = subject.with_k.after
    assert hands.parameters is not None
    vertices = meshes(subject.hand, hands.parameters)
    path = config.out / "pred.json"
    if vertices.shape[1] == MANO_VERTICES:
        joints, definition = freihand_joints(subject.hand, vertices), "FreiHAND's joints"
    else:
        joints, definition = hands.joints, "the model's joints, since FreiHAND's are defined on MANO's mesh (--hand)"
    write_predictions(path, joints, vertices)
    print(f"written to {path}: {len(vertices)} hands of {vertices.shape[1]} vertices, {definition}")


def _write(config: EvaluationConfig, findings: Findings) -> None:
    _write_text(config.out / "report.md", findings.markdown())
    for table in findings.tables:
        text = io.StringIO()
        csv.writer(text).writerows([table.header, *table.rows])
        _write_text(config.out / f"{table.name}.csv", text.getvalue())
    content = {
        "config": {key: str(value) for key, value in dataclasses.asdict(config).items()},
        "environment": environment(),
        "tables": [
            {**table._asdict(), "rows": [[_plain(cell) for cell in row] for row in table.rows]}
            for table in findings.tables
        ],
        "claims": [claim._asdict() for claim in findings.claims],
        "left_out": list(findings.left_out),
    }
    write_json(config.out / "results.json", content)


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _plain(cell: Cell) -> Cell | None:
    return None if isinstance(cell, float) and not np.isfinite(cell) else cell

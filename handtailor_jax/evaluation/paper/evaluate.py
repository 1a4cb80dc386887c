"""Every table and figure of the paper by one command, on whatever data there is; see `evaluate.py --help`."""

import contextlib
import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from handtailor_jax.data import DatasetName, open_dataset, readable
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.freihand import write_predictions
from handtailor_jax.evaluation.paper import figures, tables
from handtailor_jax.evaluation.paper.refinement import freihand_joints, meshes
from handtailor_jax.evaluation.paper.subjects import (
    Estimates,
    Truth,
    network_estimates,
    read_estimates,
    reader_truth,
    simulated,
    synthetic_truth,
)
from handtailor_jax.evaluation.paper.tables import Before, Claim, Setting, Table, before_and_after
from handtailor_jax.evaluation.protocols import Protocol
from handtailor_jax.evaluation.report import environment
from handtailor_jax.hand_module.hand_module import HandModule
from handtailor_jax.hand_module.weights import load_weights
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.loading import MANO_VERTICES, load_hand
from handtailor_jax.results import prepare_folder, write_atomically, write_json
from handtailor_jax.tailor.presets import PresetName

What = Literal["table1", "table2", "table3", "table4", "figure2", "figure3", "figure4", "freihand-submission", "all"]

_DEFAULT_SPLITS = {"synthetic": "test", "rhd": "evaluation", "stb": "test", "freihand": "evaluation"}


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, on what, and where the results go."""

    what: What
    """Which table or figure; all of them that the data allows."""
    out: Path = Path("evaluation")
    """Folder for report.md, a CSV a table, results.json and the figures."""
    dataset: Literal["synthetic", "rhd", "stb", "freihand"] = "synthetic"
    """The data. synthetic: this project's own test split, rendered here, nothing to download."""
    root: Path | None = None
    """Folder of the dataset, as published."""
    split: str | None = None
    """Split of the dataset; its test split if not given."""
    count: int | None = None
    """How many samples, from the first on; all if not given."""
    predictions: str | None = None
    """`simulated`, a noise model in place of a network, or an npz of another method's predictions."""
    weights: Path | None = None
    """Weights of the hand module to evaluate (.safetensors)."""
    others: tuple[Path, ...] = ()
    """Other methods' predictions (npz) for Table 2."""
    shape_weights: tuple[Path, ...] = ()
    """Weights trained with each shape loss for the left half of Table 4, in the order L_beta, + depth, + silhouette."""
    hand: Path | None = None
    """Hand model (MANO pickle or npz); the embedded hand if not given."""
    preset: PresetName | None = None
    """The tailor under evaluation; "network" with --weights and "default" without, if not given."""
    wrist: Literal["bihand", "ge", "palm"] = "bihand"
    """STB: how the wrist is made of the palm point."""
    stb_camera: Literal["SK", "BB_left", "BB_right"] = "SK"
    """STB: whose pictures."""
    seed: int = 0
    """Of the noise model, intervals and order of timing."""
    rounds: int = 20
    """Rounds of timing in Table 3."""
    iterations: tuple[int, ...] = (10, 20, 50, 100)
    """Of Adam in Table 3."""
    damped_iterations: tuple[int, ...] = (1, 2, 3, 5)
    """Of Levenberg-Marquardt in Table 3."""
    shown: int = 8
    """Hands on Figures 2 and 4."""
    rendered: int = 64
    """Hands of the right half of Table 4, whose energies render."""
    skip_unreadable: bool = False
    """Leave out samples that cannot be decoded, saying which, instead of stopping."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a run found."""

    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    pictures: tuple[str, ...]
    left_out: tuple[str, ...]
    """What was asked for with `all` but is not to be had on this data, and why."""

    def markdown(self) -> str:
        """The report."""
        lines = ["# Evaluation", ""]
        lines += [", ".join(f"{key} {value}" for key, value in environment().items()), ""]
        lines += [table.markdown() for table in self.tables]
        if self.claims:
            lines += ["## The paper's statements on this data", "", "| statement | measured | holds |", "|---|---|---|"]
            words = {True: "yes", False: "**no**", None: "not measured"}
            lines += [f"| {each.statement} | {each.measured} | {words[each.holds]} |" for each in self.claims] + [""]
        lines += [f"![{name}]({name})" for name in self.pictures]
        lines += [f"Left out: {reason}" for reason in self.left_out]
        return "\n".join(lines) + "\n"


def evaluate(config: EvaluationConfig) -> Evaluation:
    """Computes what was asked for and writes it to the folder.

    Raises:
        InputError: one line that names what is wrong; nothing has been written then.
    """
    hand = load_hand(config.hand)
    hand = hand if hand.side == "right" else hand.mirrored()
    if config.predictions is None and config.weights is None:
        raise InputError("nothing to evaluate: give --weights FILE, or --predictions simulated or an npz")
    if config.predictions is not None and config.weights is not None:
        raise InputError("--predictions and --weights are both given: choose one")
    if len(config.shape_weights) > len(_SHAPE_LOSSES):
        raise InputError(f"--shape-weights takes at most {len(_SHAPE_LOSSES)} files: {', '.join(_SHAPE_LOSSES)}")
    # A file that cannot be read is an error before anything is computed, not something that the data lacks.
    shape_modules = [load_weights(path) for path in config.shape_weights]
    prepare_folder(config.out)
    truth = read_truth(config, hand)
    others = [read_estimates(path, len(truth)) for path in config.others]
    setting = _setting(config, truth, hand)
    if config.what == "freihand-submission":
        return _submission(config, setting)

    known, unknown = (before_and_after(setting, known_cameras=flag) for flag in (True, False))
    found_tables: list[Table] = []
    claims: list[Claim] = []
    pictures: list[str] = []
    left_out: list[str] = []
    for what in [each for each in get_args(What) if config.what in (each, "all") and each not in _NOT_OF_ALL]:
        # What this data cannot give is an error where it was asked for, and a line in the report of everything.
        with _noting(left_out, what) if config.what == "all" else contextlib.nullcontext():
            some_tables, some_claims, some_pictures = _compute(
                what, config, setting, known, unknown, others, shape_modules
            )
            found_tables += some_tables
            claims += some_claims
            pictures += some_pictures
    result = Evaluation(tuple(found_tables), tuple(claims), tuple(pictures), tuple(left_out))
    _write(config, result)
    return result


_NOT_OF_ALL = ("all", "freihand-submission")
_SHAPE_LOSSES = ("L_beta", "L_beta + depth", "L_beta + silhouette")


def _compute(
    what: str,
    config: EvaluationConfig,
    setting: Setting,
    known: Before,
    unknown: Before,
    others: Sequence[Estimates],
    shape_modules: Sequence[HandModule],
) -> tuple[list[Table], list[Claim], list[str]]:
    out = config.out
    if what == "table1":
        table, claims = tables.table1(setting, known, unknown)
        own = config.dataset in ("synthetic", "freihand")  # the others have no meshes
        return [table, *([tables.freihand_table(setting, known, unknown)] if own else [])], claims, []
    if what == "table2":
        return [tables.table2(setting, known, others)], [], []
    if what == "table3":
        table, claims = tables.table3(setting, known, config.rounds, config.iterations, config.damped_iterations)
        return [table], claims, []
    if what == "table4":
        variants = {
            name: network_estimates(setting.truth, module, setting.hand)[0]
            for name, module in zip(_SHAPE_LOSSES, shape_modules, strict=False)
        }
        both, claims = tables.table4(setting, known, config.rendered, min(config.rounds, 3), variants)
        return both, claims, []
    if what == "figure2":
        figures.figure2(setting, known, out / "figure2.jpg", config.shown)
        return [], [], ["figure2.jpg"]
    if what == "figure3":
        figures.figure3a(setting, known, unknown, out / "figure3a.png")
        figures.figure3b(setting, known, out / "figure3b.png")
        claim = tables.figure3b_claim(*tables.figure3b_points(setting, known))
        return [], [claim], ["figure3a.png", "figure3b.png"]
    figures.figure4(setting, known, out / "figure4.jpg", config.shown)
    return [], [], ["figure4.jpg"]


@contextlib.contextmanager
def _noting(reasons: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        reasons.append(f"{what}: {error}")


def read_truth(config: EvaluationConfig, hand: HandModel) -> Truth:
    """The hands under evaluation.

    Raises:
        InputError: if the data cannot be read.
    """
    if config.dataset == "synthetic" and config.root is None:
        return synthetic_truth(4000 if config.count is None else config.count, hand)
    if config.root is None:
        raise InputError(f"--root is missing: give the folder of {config.dataset} as published")
    name: DatasetName = config.dataset
    split = config.split or _DEFAULT_SPLITS[name]
    options: dict[str, object] = {"wrist": config.wrist, "camera": config.stb_camera} if name == "stb" else {}
    reader = open_dataset(name, config.root, split, **options)
    count = len(reader) if config.count is None else min(config.count, len(reader))
    if config.skip_unreadable:
        samples = readable(reader, lambda index, error: print(f"skipped sample {index}: {error}"))
    else:
        samples = ((index, reader[index]) for index in range(count))
    labelled = config.what != "freihand-submission"
    return reader_truth(f"{name}, split {split}", samples, reader, count, labelled=labelled)


def _setting(config: EvaluationConfig, truth: Truth, hand: HandModel) -> Setting:
    estimates: Estimates
    if config.weights is not None:
        module = load_weights(config.weights)
        estimates, without = network_estimates(truth, module, hand)
        used: tuple[str, ...] = ("box", "intrinsics")
    elif config.predictions == "simulated":
        estimates = without = simulated(truth, config.seed)
        used = ("intrinsics",)
    else:
        assert config.predictions is not None
        estimates = without = read_estimates(Path(config.predictions), len(truth))
        used = ("intrinsics",)
        if estimates.pose is None:
            raise InputError(
                f"{config.predictions}: has joints_3d without pose and betas: give it as --others, for Table 2"
            )
    own = truth.joint_definition == "freihand" and hand.skin.template.shape[0] == MANO_VERTICES
    protocol = Protocol(
        joint_definition="freihand" if own else "model",
        wrist=config.wrist,
        stb_camera="SK" if config.stb_camera == "SK" else "BB",
        truth_used=used,
    )
    preset = config.preset or ("default" if config.weights is None else "network")
    return Setting(hand, truth, estimates, without, protocol, preset, config.seed)


def _submission(config: EvaluationConfig, setting: Setting) -> Evaluation:
    """pred.json, which FreiHAND's scorer takes: joints and vertices after the tailor, camera frame, metres.

    No label is looked at, since the evaluation split had none for years: the network sees the middle of each picture.
    """
    refined = before_and_after(setting, known_cameras=True).refined
    assert refined.parameters is not None
    vertices = meshes(setting.hand, refined.parameters)
    path = config.out / "pred.json"
    if vertices.shape[1] == MANO_VERTICES:
        joints, definition = freihand_joints(setting.hand, vertices), "FreiHAND's joints"
    else:
        joints, definition = refined.joints, "the model's joints, since FreiHAND's are defined on MANO's mesh (--hand)"
    write_predictions(path, np.asarray(joints, np.float64), np.asarray(vertices, np.float64))
    print(f"written to {path}: {len(vertices)} hands of {vertices.shape[1]} vertices, {definition}")
    return Evaluation((), (), (), ())


def _write(config: EvaluationConfig, result: Evaluation) -> None:
    _write_text(config.out / "report.md", result.markdown())
    for table in result.tables:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(table.header)
        writer.writerows(table.rows)
        _write_text(config.out / f"{table.name}.csv", text.getvalue())
    content = {
        "config": {key: str(value) for key, value in dataclasses.asdict(config).items()},
        "environment": environment(),
        "tables": [
            {**dataclasses.asdict(table), "rows": [[_plain(cell) for cell in row] for row in table.rows]}
            for table in result.tables
        ],
        "claims": [dataclasses.asdict(claim) for claim in result.claims],
        "left_out": list(result.left_out),
    }
    write_json(config.out / "results.json", content)


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _plain(cell: str | float) -> str | float | None:
    return None if isinstance(cell, float) and not np.isfinite(cell) else cell

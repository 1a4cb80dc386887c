"""The `handtailor` command: fit, bench, export.

Bad input prints one line and exits with status 2. Everything is checked before anything is written.
"""

import dataclasses
import importlib.resources
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tyro.conf import Positional, arg, subcommand

from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.fit_benchmark import FitBenchmark
from handtailor_jax.evaluation.tailor_benchmark import TailorBenchmark


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fit a hand mesh to 2D keypoints, and whatever else a method knows, from a JSON file.

    Without FILE, fits the examples that come with the package. Writes <id>.json, <id>_overlay.png and, on request,
    meshes; several hands also give sheet.png.
    """

    file: Positional[Path | None] = None
    """JSON: an object or a list of objects with keypoints_2d (21 [u, v] pairs, pixels) and optionally id, image,
    convention, order, confidence, joints_3d, pose, betas, camera {fx, fy, cx, cy}, side."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("fits")
    """Folder for the results."""
    mesh: Literal["obj", "ply", "glb"] | None = None
    """Also write meshes in this format."""
    hand: Path | None = None
    """Hand model: MANO_RIGHT.pkl, MANO_LEFT.pkl or an npz. The embedded hand if not given."""
    overlay: bool = True
    """Write the pictures."""


@dataclasses.dataclass(frozen=True)
class ExportTailor:
    """Write the tailor alone as a jax.export file that runs without this package (extra `export`)."""

    out: Positional[Path]
    """File to write."""
    hand: Path | None = None
    """Hand model, baked into the file; the embedded hand if not given."""
    preset: Literal["default", "paper", "official"] = "default"
    """What the tailor minimises, and how."""
    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu",)
    """Where the file can run."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure speed and error on this machine."""

    what: (
        Annotated[TailorBenchmark, subcommand("tailor", description="Table 3: the tailor by solver and iterations.")]
        | Annotated[FitBenchmark, subcommand("fit", description="2D keypoints alone: error against rendered truth.")]
    )


Command = (
    Annotated[Fit, subcommand("fit")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[ExportTailor, subcommand("export-tailor")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs the command."""
    command = tyro.cli(
        Command,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        prog="handtailor",
        description=__doc__,
        args=arguments,
    )  # type: ignore[arg-type]
    try:
        keep_compiled_programs()
        run(command)
    except InputError as error:
        print(f"handtailor: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run(command: Fit | Bench | ExportTailor) -> None:
    """Runs one parsed command.

    Raises:
        InputError: one line that names the input and the remedy.
    """
    if isinstance(command, Fit):
        run_fit(command)
    elif isinstance(command, ExportTailor):
        run_export(command)
    elif isinstance(command.what, TailorBenchmark):
        from handtailor_jax.evaluation import tailor_benchmark

        tailor_benchmark.run(command.what)
    else:
        from handtailor_jax.evaluation import fit_benchmark

        print(fit_benchmark.run(command.what))


def run_fit(command: Fit) -> None:
    """Fits every hand of a file and writes the results."""
    from tqdm import tqdm

    from handtailor_jax import results
    from handtailor_jax.detections import read_detections
    from handtailor_jax.fit import fit_detection
    from handtailor_jax.mano.loading import load_hand

    with importlib.resources.as_file(importlib.resources.files("handtailor_jax") / "assets" / "examples") as examples:
        found = read_detections(examples / "hands.json" if command.file is None else command.file)
        # Everything that can be wrong with the input is found before the first file is written.
        hand = load_hand(command.hand)
        endings = [".json"]
        if command.mesh is not None:
            results.mesh_library()
            endings.append(f".{command.mesh}")
        if command.overlay:
            results.opencv()
            endings.append("_overlay.png")
            for detection in found:
                if detection.image is not None:
                    results.read_picture(detection.image)
        names = [f"{detection.id}{ending}" for detection in found for ending in endings]
        results.prepare_folder(command.out, [*names, "sheet.png"] if command.overlay else names)

        pictures: list[np.ndarray] = []
        captions: list[str] = []
        for detection in tqdm(found, desc="fit", unit="hand", disable=len(found) == 1):
            try:
                fit = fit_detection(detection, hand=hand)
            except InputError as error:
                raise InputError(f"{detection.id}: {error}") from None
            results.write_json(command.out / f"{detection.id}.json", results.to_json(fit))
            if command.mesh is not None:
                results.write_mesh(command.out / f"{detection.id}.{command.mesh}", fit)
            if command.overlay:
                photograph = None if detection.image is None else results.read_picture(detection.image)
                picture = results.overlay(fit, photograph, detection)
                results.write_picture(command.out / f"{detection.id}_overlay.png", picture)
                if len(pictures) < _MOST_ON_SHEET:
                    pictures.append(picture)
                    captions.append(f"{detection.id}  {fit.reprojection_before:.1f} > {fit.reprojection_after:.1f} px")
            if len(found) <= _MOST_LINES:
                tqdm.write(
                    f"{detection.id}: mean reprojection error {fit.reprojection_before:.2f} px at the start, "
                    f"{fit.reprojection_after:.2f} px fitted"
                )
        if len(pictures) > 1:
            results.write_picture(command.out / "sheet.png", results.sheet(pictures, captions))
    print(f"{len(found)} hand{'s' if len(found) != 1 else ''} written to {command.out}")


def run_export(command: ExportTailor) -> None:
    """Writes the exported tailor."""
    from handtailor_jax import results
    from handtailor_jax.export import export_tailor
    from handtailor_jax.mano.loading import load_hand
    from handtailor_jax.tailor import PRESETS

    hand = load_hand(command.hand)
    results.prepare_folder(command.out.parent, [command.out.name])
    export_tailor(command.out, hand=hand, config=PRESETS[command.preset](), platforms=command.platforms)
    print(f"written to {command.out}")


def keep_compiled_programs() -> None:
    """Keeps compiled programs between runs: the search takes half a minute to compile and milliseconds to run."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "handtailor_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


_MOST_ON_SHEET = 40
_MOST_LINES = 20

if __name__ == "__main__":
    main()

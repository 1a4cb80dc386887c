"""The `handtailor` command: predict, demo, fit, synth, export, and the files it reads and writes.

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
from handtailor_jax.synthetic.freihand_layout import Synth
from handtailor_jax.tailor.presets import PresetName


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
class Predict:
    """Recover hand meshes from photographs and videos.

    INPUT: images, folders, patterns such as "photos/*.jpg", videos, or the number of a webcam. Images give <id>.json,
    <id>_overlay.png and, on request, a mesh; several also sheet.png. Videos give <id>.jsonl (a line a frame),
    <id>_overlay.mp4 and, with --mesh glb, a moving mesh. What cannot be read is reported and skipped; the exit status
    is then 2.
    """

    inputs: Positional[tuple[str, ...]]
    """Images, folders, patterns, videos or the number of a webcam."""
    weights: Path | None = None
    """Weights of the hand module (.safetensors), from `handtailor convert-official` or training; the embedded ones if
    not given."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("hands")
    """Folder for the results."""
    camera: tuple[float, float, float, float] | None = None
    """Intrinsics FX FY CX CY in pixels of the images; weak perspective if not given."""
    side: Literal["right", "left"] = "right"
    """Which hand the images show."""
    box: tuple[float, float, float, float] | None = None
    """Box X Y W H around the hand, with a margin, pixels; the hand is looked for if not given."""
    hand: Path | None = None
    """Hand model: MANO_RIGHT.pkl, MANO_LEFT.pkl or an npz, with --weights trained for it; the embedded hand if not
    given."""
    mesh: Literal["obj", "ply", "glb"] | None = None
    """Also write meshes in this format; videos can only be glb."""
    preset: PresetName = "network"
    """What the tailor minimises, and how."""
    tailor: bool = True
    """Refine the network's proposal."""
    looks: int = 2
    """How often the network looks at an image: the first time at the box, then at the square around what it found."""
    batch: int = 1
    """Images in one call of the network."""
    overlay: bool = True
    """Write the pictures and videos to look at."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Recover hand meshes from the pictures that come with the package.

    They are renderings of the embedded hand that the network has not seen. Writes what `predict` does: <id>.json,
    <id>_overlay.png, <id>.glb and sheet.png.
    """

    out: Annotated[Path, arg(aliases=["-o"])] = Path("demo")
    """Folder for the results."""


@dataclasses.dataclass(frozen=True)
class ConvertOfficial:
    """Convert the released checkpoint of HandTailor (PyTorch) to a weight file of this package, without PyTorch."""

    checkpoint: Positional[Path]
    """The released checkpoint, in either format of PyTorch."""
    weights: Positional[Path]
    """File to write, ending in .safetensors."""


Platforms = tuple[Literal["cpu", "cuda", "tpu"], ...]


@dataclasses.dataclass(frozen=True)
class ExportTailor:
    """From keypoints and a proposed pose to the placed mesh."""

    out: Positional[Path]
    """File to write."""
    hand: Path | None = None
    """Hand model, baked into the file; the embedded hand if not given."""
    preset: PresetName = "default"
    """What the tailor minimises, and how."""
    perspective: bool = True
    """For pictures with intrinsics; otherwise the file is for pictures without."""
    platforms: Platforms = ("cpu", "cuda", "tpu")
    """Where the file can run."""


@dataclasses.dataclass(frozen=True)
class ExportHandModule:
    """From a crop and its camera to keypoints, joints, pose and shape."""

    out: Positional[Path]
    """File to write."""
    weights: Path | None = None
    """Weights of the hand module (.safetensors), baked into the file; the embedded ones if not given."""
    platforms: Platforms = ("cpu", "cuda", "tpu")
    """Where the file can run."""


@dataclasses.dataclass(frozen=True)
class ExportPipeline:
    """From a crop and the picture's camera to the placed mesh."""

    out: Positional[Path]
    """File to write."""
    weights: Path | None = None
    """Weights of the hand module (.safetensors), baked into the file; the embedded ones if not given."""
    hand: Path | None = None
    """Hand model, baked into the file; the embedded hand if not given."""
    preset: PresetName = "network"
    """What the tailor minimises, and how."""
    tailor: bool = True
    """Refine the network's proposal."""
    platforms: Platforms = ("cpu", "cuda", "tpu")
    """Where the file can run."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a part of the method as a jax.export file that runs without this package (extra `export`)."""

    what: (
        Annotated[ExportTailor, subcommand("tailor")]
        | Annotated[ExportHandModule, subcommand("hand-module")]
        | Annotated[ExportPipeline, subcommand("pipeline")]
    )


Command = (
    Annotated[Predict, subcommand("predict")]
    | Annotated[Demo, subcommand("demo")]
    | Annotated[Fit, subcommand("fit")]
    | Annotated[Synth, subcommand("synth")]
    | Annotated[ConvertOfficial, subcommand("convert-official")]
    | Annotated[Export, subcommand("export")]
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


def run(command: Predict | Demo | Fit | Synth | ConvertOfficial | Export) -> None:
    """Runs one parsed command.

    Raises:
        InputError: one line that names the input and the remedy.
    """
    if isinstance(command, Predict):
        run_predict(command)
    elif isinstance(command, Demo):
        run_demo(command)
    elif isinstance(command, ConvertOfficial):
        run_convert(command)
    elif isinstance(command, Fit):
        run_fit(command)
    elif isinstance(command, Synth):
        from handtailor_jax.synthetic.freihand_layout import synth

        print(f"written to {synth(command)}")
    else:
        run_export(command.what)


def run_predict(command: Predict) -> None:
    """Recovers the hands of all inputs."""
    from handtailor_jax import predict
    from handtailor_jax.mano.loading import load_hand
    from handtailor_jax.pipeline import HandTailor, as_camera
    from handtailor_jax.tailor import PRESETS

    if command.batch < 1:
        raise InputError(f"--batch has to be at least 1, not {command.batch}")
    if command.looks < 1:
        raise InputError(f"--looks has to be at least 1, not {command.looks}")
    camera = None
    if command.camera is not None:
        fx, fy, cx, cy = command.camera
        camera = np.asarray([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], np.float32)
        as_camera(camera)
    sources = predict.find_sources(command.inputs)
    config = PRESETS[command.preset]() if command.tailor else None
    tailor = HandTailor.load(command.weights, None if command.hand is None else load_hand(command.hand), config)
    options = predict.Options(
        out=command.out,
        camera=camera,
        side=command.side,
        box=command.box,
        mesh=command.mesh,
        batch=command.batch,
        looks=command.looks,
        overlay=command.overlay,
    )
    skipped = predict.predict(sources, tailor, options)
    print(f"{len(sources) - skipped} of {len(sources)} inputs written to {command.out}")
    if skipped:
        raise SystemExit(2)


def run_demo(command: Demo) -> None:
    """Recovers the hands of the packaged pictures."""
    from handtailor_jax import predict
    from handtailor_jax.detections import read_detections
    from handtailor_jax.pipeline import HandTailor

    with importlib.resources.as_file(importlib.resources.files("handtailor_jax") / "assets" / "examples") as examples:
        sources = [
            predict.Source(each.id, each.image, film=False, camera=each.camera, side=each.side)
            for each in read_detections(examples / "hands.json")
            if each.image is not None
        ]
        predict.predict(sources, HandTailor.load(), predict.Options(out=command.out, mesh="glb"))
    print(f"{len(sources)} hands written to {command.out}: look at {command.out / 'sheet.png'}")


def run_convert(command: ConvertOfficial) -> None:
    """Writes the released checkpoint as a weight file."""
    from handtailor_jax import results
    from handtailor_jax.hand_module.official import load_official
    from handtailor_jax.hand_module.torch_file import read_state_dict
    from handtailor_jax.hand_module.weights import save_weights

    module = load_official(read_state_dict(command.checkpoint))
    results.prepare_folder(command.weights.absolute().parent, [command.weights.name])
    save_weights(command.weights, module, {"source": f"released checkpoint {command.checkpoint.name}, converted"})
    print(f"written to {command.weights}")


def run_fit(command: Fit) -> None:
    """Fits every hand of a file and writes the results."""
    from tqdm import tqdm

    from handtailor_jax import images, results
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
            images.opencv()
            endings.append("_overlay.png")
            for detection in found:
                if detection.image is not None:
                    images.read_picture(detection.image)
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
                photograph = None if detection.image is None else images.read_picture(detection.image)
                picture = results.overlay(fit, photograph, detection.keypoints_2d, detection.confidence)
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


def run_export(command: ExportTailor | ExportHandModule | ExportPipeline) -> None:
    """Writes a part of the method as a program, and its description."""
    from handtailor_jax import export, results
    from handtailor_jax.mano.loading import load_hand
    from handtailor_jax.pipeline import load_module
    from handtailor_jax.tailor import PRESETS

    if not command.platforms:
        raise InputError("--platforms names no platform: give at least one of cpu, cuda, tpu")
    out, platforms = command.out, command.platforms

    def prepare() -> None:
        # After everything that can be wrong with the inputs.
        results.prepare_folder(out.absolute().parent, [out.name, f"{out.name}.json"])

    if isinstance(command, ExportTailor):
        hand = load_hand(command.hand)
        prepare()
        config = PRESETS[command.preset]()
        export.export_tailor(out, hand, config, perspective=command.perspective, platforms=platforms)
    elif isinstance(command, ExportHandModule):
        module = load_module(command.weights, None)
        prepare()
        export.export_hand_module(out, module, platforms=platforms)
    else:
        hand = load_hand(command.hand)
        module = load_module(command.weights, None if command.hand is None else hand)
        prepare()
        refine = PRESETS[command.preset]() if command.tailor else None
        export.export_pipeline(out, module, hand, refine, platforms=platforms)
    print(f"written to {out} ({out.stat().st_size / 1e6:.1f} MB) and {out.name}.json")


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

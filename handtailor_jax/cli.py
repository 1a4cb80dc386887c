"""The `handtailor` command: hand meshes from images, videos and keypoints; rendered hands; conversion and export.

Input that cannot be used prints one line and exits with status 2, before anything is written.
"""

import importlib.resources
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import tyro

from handtailor_jax.commands import Command, ConvertOfficial, Demo, Export, Fit, Predict, Synth
from handtailor_jax.errors import InputError, command

# Everything else is imported by the command that needs it, so that --help does not import the networks.


@command("handtailor")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run the command."""
    options: Predict | Demo | Fit | Synth | ConvertOfficial | Export = tyro.cli(
        Command,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        prog="handtailor",
        description=__doc__,
        args=arguments,
    )  # type: ignore[arg-type]
    keep_compiled_programs()
    match options:
        case Predict():
            run_predict(options)
        case Demo():
            run_demo(options)
        case Fit():
            run_fit(options)
        case Synth():
            run_synth(options)
        case ConvertOfficial():
            run_convert(options)
        case Export():
            run_export(options)


def run_predict(options: Predict) -> None:
    """Recover the hands of all inputs and write the results."""
    from handtailor_jax import predict
    from handtailor_jax.geometry.cameras import as_camera
    from handtailor_jax.hand_tailor import HandTailor
    from handtailor_jax.mano.loading import load_hand
    from handtailor_jax.tailor.presets import PRESETS, TailorConfig

    for name, value in (("--hands", options.hands), ("--passes", options.passes)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: give at least 1")
    as_camera(options.camera)
    sources = predict.find_sources(options.inputs)
    config: TailorConfig | Literal["auto"] | None = "auto" if options.preset is None else PRESETS[options.preset]()
    hand = None if options.hand is None else load_hand(options.hand)
    tailor = HandTailor.load(options.weights, hand, config if options.tailor else None, options.network)
    skipped = predict.predict(sources, tailor, options)
    print(f"{len(sources) - skipped} of {len(sources)} inputs written to {options.out}")
    if skipped:
        raise SystemExit(2)


def run_demo(options: Demo) -> None:
    """Recover the hands of the packaged images and write the results."""
    from handtailor_jax import predict
    from handtailor_jax.detections import read_detections
    from handtailor_jax.hand_tailor import HandTailor

    with packaged_examples() as examples:
        images = {each.image: each for each in read_detections(examples) if each.image is not None}
        sources = [predict.Source(image.stem, image, False, each.camera) for image, each in images.items()]
        predict.predict(sources, HandTailor.load(), Predict(inputs=(), out=options.out, mesh="glb"))
    print(f"{len(sources)} images written to {options.out}: look at {options.out / 'sheet.png'}")


def run_fit(options: Fit) -> None:
    """Fit every hand of the file and write the results."""
    from tqdm import tqdm

    from handtailor_jax.detections import read_detections
    from handtailor_jax.fit import fit_detection
    from handtailor_jax.images import read_image
    from handtailor_jax.mano.loading import load_hand
    from handtailor_jax.results import MOST_LINES, HandFiles, to_json

    with packaged_examples() as examples:
        detections = read_detections(examples if options.file is None else options.file)
        # Everything that can be wrong with the input is found before the first file is written.
        model = load_hand(options.hand)
        files = HandFiles(options.out, options.mesh, options.overlay)
        for each in detections:
            if options.overlay and each.image is not None:
                read_image(each.image)
        files.prepare([each.id for each in detections])

        for each in tqdm(detections, desc="fit", unit="hand", disable=len(detections) == 1):
            try:
                hand = fit_detection(each, hand=model)
            except InputError as error:
                raise InputError(f"{each.id}: {error}") from None
            before, after = hand.reprojection_before, hand.reprojection_after
            image = read_image(each.image) if options.overlay and each.image is not None else None
            files.write(each.id, to_json(hand), [hand], image, f"{each.id}  {before:.1f} > {after:.1f} px")
            if len(detections) <= MOST_LINES:
                tqdm.write(f"{each.id}: mean reprojection error {before:.2f} px at the start, {after:.2f} px fitted")
        files.write_sheet()
    print(f"{len(detections)} hand{'s' if len(detections) != 1 else ''} written to {options.out}")


def run_synth(options: Synth) -> None:
    """Render the samples and write them."""
    from handtailor_jax.synthetic.dataset import SyntheticConfig, SyntheticDataset
    from handtailor_jax.synthetic.storage import read_photographs, write_freihand

    images = None if options.backgrounds is None else read_photographs(options.backgrounds)
    dataset = SyntheticDataset(SyntheticConfig(size=options.size), options.split, options.seed, images)
    write_freihand(dataset, options.count, options.out)
    print(f"written to {options.out}")


def run_convert(options: ConvertOfficial) -> None:
    """Write the released checkpoint as a weight file."""
    from handtailor_jax.hand_module.official import load_official
    from handtailor_jax.hand_module.torch_file import read_state_dict
    from handtailor_jax.hand_module.weights import save_weights
    from handtailor_jax.results import prepare_folder

    module = load_official(read_state_dict(options.checkpoint))
    prepare_folder(options.weights.absolute().parent, [options.weights.name])
    save_weights(options.weights, module, {"source": f"released checkpoint {options.checkpoint.name}, converted"})
    print(f"written to {options.weights}")


def run_export(options: Export) -> None:
    """Write a part of the method as a program, and its description."""
    from handtailor_jax import export
    from handtailor_jax.hand_module.weights import load_module
    from handtailor_jax.mano.loading import load_hand
    from handtailor_jax.results import prepare_folder
    from handtailor_jax.tailor.presets import PRESETS

    refuse_idle_options(options)
    out, platforms = options.out, options.platforms
    if not platforms:
        raise InputError("--platforms names no platform: give at least one of cpu, cuda, tpu")
    hand = load_hand(options.hand)
    module = None
    if options.part != "tailor":
        module = load_module(options.weights, None if options.hand is None else hand)
    preset = PRESETS[options.preset or ("default" if options.part == "tailor" else "network")]()
    # The folder is made after everything that can be wrong with the inputs.
    prepare_folder(out.absolute().parent, [out.name, f"{out.name}.json"])
    if module is None:
        export.export_tailor(out, hand, preset, perspective=options.perspective, platforms=platforms)
    elif options.part == "hand-module":
        export.export_hand_module(out, module, platforms=platforms)
    else:
        export.export_pipeline(out, module, hand, preset if options.tailor else None, platforms=platforms)
    print(f"written to {out} ({out.stat().st_size / 1e6:.1f} MB) and {out.name}.json")


def refuse_idle_options(options: Export) -> None:
    """Raise an InputError for an option that does not apply to the part that is exported."""
    given = {
        "--weights": options.weights is not None,
        "--hand": options.hand is not None,
        "--preset": options.preset is not None,
        "--no-tailor": not options.tailor,
        "--no-perspective": not options.perspective,
    }
    idle = {
        "tailor": ("--weights", "--no-tailor"),
        "hand-module": ("--hand", "--preset", "--no-tailor", "--no-perspective"),
        "pipeline": ("--no-perspective",),
    }
    for name in idle[options.part]:
        if given[name]:
            raise InputError(f"{name} does not apply to `handtailor export {options.part}`: leave it out")


@contextmanager
def packaged_examples() -> Iterator[Path]:
    """Yield the JSON file of the packaged examples."""
    with importlib.resources.as_file(importlib.resources.files("handtailor_jax") / "assets" / "examples") as folder:
        yield folder / "hands.json"


def keep_compiled_programs() -> None:
    """Keep compiled programs between runs in the user's cache folder, because compiling takes half a minute."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "handtailor_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    main()

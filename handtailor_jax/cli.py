"""The `handtailor` command: hand meshes from images, videos and keypoints; rendered hands; conversion and export.

Input that cannot be used prints one line and exits with status 2, before anything is written.
"""

import dataclasses
import importlib.resources
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg, subcommand

from handtailor_jax.commands import ConvertOfficial, Export, Synth
from handtailor_jax.errors import InputError, command
from handtailor_jax.tailor.presets import PRESETS, PresetName

# Everything else is imported by the command that needs it, so that --help does not import the networks.

MeshFormat = Literal["obj", "ply", "glb"]


@dataclasses.dataclass(frozen=True)
class Predict:
    """Recover hand meshes from images and videos.

    An image gives <id>.json, <id>_overlay.png and, with --mesh, a mesh; several images also give sheet.png. A video
    gives <id>.jsonl with a line for each frame, <id>_overlay.mp4 and, with --mesh glb, a moving mesh. Inputs that
    cannot be read are reported and skipped; the exit status is then 2.
    """

    inputs: Positional[tuple[str, ...]]
    """Images, folders, patterns such as "photos/*.jpg", videos, or the number of a webcam."""
    weights: Path | None = None
    """Weights of the hand module (.safetensors), from training or `handtailor convert-official`; the embedded weights
    if not given."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("hands")
    """Folder for the results."""
    camera: tuple[float, float, float, float] | None = None
    """Intrinsics FX FY CX CY of the images, pixels; weak perspective if not given."""
    side: Literal["right", "left"] = "right"
    """Side of the hands."""
    box: tuple[float, float, float, float] | None = None
    """Box X Y W H around the hand with a margin, pixels; the hand is looked for if not given."""
    hand: Path | None = None
    """Hand model (MANO_RIGHT.pkl, MANO_LEFT.pkl or npz) for which --weights were trained; the embedded hand if not
    given."""
    mesh: MeshFormat | None = None
    """Format of the meshes, glb for videos; no meshes if not given."""
    preset: PresetName = "network"
    """Energy and solver of the tailor: for detected keypoints (network), for precise keypoints (default), the paper's
    (paper) or the released program's (official)."""
    tailor: bool = True
    """Fit the network's hand to the detected keypoints."""
    looks: int = 2
    """Number of forward passes an image: the first crops the box, each further one the square around the keypoints."""
    batch: int = 1
    """Number of images in one forward pass."""
    overlay: bool = True
    """Write overlays: images or videos with the mesh drawn over them."""

    def run(self) -> None:
        """Recover the hands of all inputs and write the results."""
        from handtailor_jax import predict
        from handtailor_jax.detections import intrinsic_matrix
        from handtailor_jax.mano.loading import load_hand
        from handtailor_jax.pipeline import HandTailor

        for name, value in (("--batch", self.batch), ("--looks", self.looks)):
            if value < 1:
                raise InputError(f"{name} is {value}: give at least 1")
        camera = None if self.camera is None else intrinsic_matrix(self.camera)
        sources = predict.find_sources(self.inputs)
        config = PRESETS[self.preset]() if self.tailor else None
        tailor = HandTailor.load(self.weights, None if self.hand is None else load_hand(self.hand), config)
        options = predict.Options(
            out=self.out,
            camera=camera,
            side=self.side,
            box=self.box,
            mesh=self.mesh,
            batch=self.batch,
            looks=self.looks,
            overlay=self.overlay,
        )
        skipped = predict.predict(sources, tailor, options)
        print(f"{len(sources) - skipped} of {len(sources)} inputs written to {self.out}")
        if skipped:
            raise SystemExit(2)


@dataclasses.dataclass(frozen=True)
class Demo:
    """Recover hand meshes from the images that come with the package.

    The images are renderings of the embedded hand that the network was not trained on. The results are those of
    `handtailor predict`: <id>.json, <id>_overlay.png, <id>.glb and sheet.png.
    """

    out: Annotated[Path, arg(aliases=["-o"])] = Path("demo")
    """Folder for the results."""

    def run(self) -> None:
        """Recover the hands of the packaged images."""
        from handtailor_jax import predict
        from handtailor_jax.detections import read_detections
        from handtailor_jax.pipeline import HandTailor

        with packaged_examples() as examples:
            sources = [
                predict.Source(each.id, each.image, video=False, camera=each.camera, side=each.side)
                for each in read_detections(examples)
                if each.image is not None
            ]
            predict.predict(sources, HandTailor.load(), predict.Options(out=self.out, mesh="glb"))
        print(f"{len(sources)} hands written to {self.out}: look at {self.out / 'sheet.png'}")


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fit hand meshes to 2D keypoints, and to whatever else is known, from a JSON file.

    Each hand gives <id>.json, <id>_overlay.png and, with --mesh, a mesh; several hands also give sheet.png.
    """

    file: Positional[Path | None] = None
    """JSON file: an object or a list of objects with keypoints_2d (21 [u, v] pairs, pixels) and optionally id, image,
    convention, order, confidence, joints_3d, pose, betas, camera {fx, fy, cx, cy}, side; the packaged examples if not
    given."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("fits")
    """Folder for the results."""
    mesh: MeshFormat | None = None
    """Format of the meshes; no meshes if not given."""
    hand: Path | None = None
    """Hand model: MANO_RIGHT.pkl, MANO_LEFT.pkl or npz; the embedded hand if not given."""
    overlay: bool = True
    """Write overlays: the keypoints, the mesh over the image, and the mesh from the side."""

    def run(self) -> None:
        """Fit every hand of the file and write the results."""
        from tqdm import tqdm

        from handtailor_jax.detections import read_detections
        from handtailor_jax.fit import fit_detection
        from handtailor_jax.images import read_picture
        from handtailor_jax.mano.loading import load_hand
        from handtailor_jax.results import MOST_LINES, HandFiles

        with packaged_examples() as examples:
            detections = read_detections(examples if self.file is None else self.file)
            # Everything that can be wrong with the input is found before the first file is written.
            model = load_hand(self.hand)
            files = HandFiles(self.out, self.mesh, self.overlay)
            for each in detections:
                if self.overlay and each.image is not None:
                    read_picture(each.image)
            files.prepare([each.id for each in detections])

            for each in tqdm(detections, desc="fit", unit="hand", disable=len(detections) == 1):
                try:
                    hand = fit_detection(each, hand=model)
                except InputError as error:
                    raise InputError(f"{each.id}: {error}") from None
                before, after = hand.reprojection_before, hand.reprojection_after
                image = read_picture(each.image) if self.overlay and each.image is not None else None
                files.write(each.id, hand, image, f"{each.id}  {before:.1f} > {after:.1f} px")
                if len(detections) <= MOST_LINES:
                    tqdm.write(
                        f"{each.id}: mean reprojection error {before:.2f} px at the start, {after:.2f} px fitted"
                    )
            files.write_sheet()
        print(f"{len(detections)} hand{'s' if len(detections) != 1 else ''} written to {self.out}")


Command = (
    Annotated[Predict, subcommand("predict")]
    | Annotated[Demo, subcommand("demo")]
    | Annotated[Fit, subcommand("fit")]
    | Annotated[Synth, subcommand("synth")]
    | Annotated[ConvertOfficial, subcommand("convert-official")]
    | Annotated[Export, subcommand("export")]
)


@command("handtailor")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run the command."""
    parsed: Predict | Demo | Fit | Synth | ConvertOfficial | Export = tyro.cli(
        Command,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        prog="handtailor",
        description=__doc__,
        args=arguments,
    )  # type: ignore[arg-type]
    keep_compiled_programs()
    parsed.run()


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

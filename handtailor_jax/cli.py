"""The `handtailor` command: hand meshes from images, videos and keypoints; rendered hands; conversion and export.

Invalid input is reported in one line, and the exit status is 2.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg

from handtailor_jax.cli_data import ConvertOfficial, Export, File, Label, Number, Preset, Synth
from handtailor_jax.commands import announce_compiling, command, finish, keep_compiled_programs, parsed, refuse_idle
from handtailor_jax.errors import InputError, naming, warn
from handtailor_jax.types import NetworkName, Side

if TYPE_CHECKING:
    from handtailor_jax.mano.hand_model import HandModel

Out = Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")]
Four = tuple[float, float, float, float]
MeshFormat = Annotated[Literal["obj", "ply", "glb"] | None, arg(metavar="{obj,ply,glb}", help_behavior_hint="")]
_ERROR = "Errors are mean distances from mesh to keypoints, relative to the hand size."
EXAMPLES = Path(__file__).with_name("assets") / "examples" / "hands.json"


@dataclasses.dataclass(frozen=True)
class Predict:
    """Find all hands in images and videos and recover their meshes.

    An image gives <id>.json with all hands, <id>_overlay.png and, with --mesh, their meshes; several images also give
    sheet.png. A video gives <id>.jsonl with a line for each frame, <id>_overlay.mp4 and, with --mesh glb, rigged
    meshes. Inputs that cannot be read are reported and skipped; the exit status is then 2.
    """

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="[INPUT ...]", help_behavior_hint="")] = ()
    """Images, folders, patterns such as "photos/*.jpg", videos, or the number of a webcam."""
    inputs: File = None
    """CSV or JSON list of images with boxes, sides and cameras, instead of INPUT; docs/cli.md lists its fields."""
    network: NetworkName = "landmarks"
    """landmarks: landmark network and IKNet. hourglass: the paper's network, on top of the landmark network."""
    hands: Number = None
    """Largest number of hands; if not given, all hands of an image and two of a video."""
    thorough: bool = False
    """Search overlapping tiles of every image, 4 to 10 times slower; if not given, only where no hand is found."""
    weights: File = None
    """Weights of the hand module (.safetensors), the embedded ones if not given; landmarks uses only their IKNet."""
    out: Out = Path("hands")
    """Folder for the results."""
    camera: Annotated[Four | None, arg(metavar="FX FY CX CY", help_behavior_hint="")] = None
    """Intrinsics FX FY CX CY of the images, pixels; weak perspective if not given."""
    hand_length: Annotated[float | None, arg(metavar="METRES", help_behavior_hint="")] = None
    """Distance from the wrist to the middle fingertip of the flat hand, metres: makes depths metric; needs --camera."""
    side: Annotated[Side | None, arg(metavar="{right,left}", help_behavior_hint="")] = None
    """Side of all hands; estimated for each hand if not given."""
    box: Annotated[Four | None, arg(metavar="X Y W H", help_behavior_hint="")] = None
    """Box X Y W H in pixels around the only hand to recover, in a video in its first frame; all hands if not given."""
    hand: File = None
    """Hand model (MANO .pkl or npz), the embedded hand if not given; hourglass needs the model of its training."""
    mesh: MeshFormat = None
    """Format of the meshes, glb for videos; no meshes if not given."""
    skeleton: Annotated[Literal["bvh"] | None, arg(metavar="{bvh}", help_behavior_hint="")] = None
    """Format of the moving skeletons of videos; no skeletons if not given."""
    preset: Preset = None
    """Energy and solver of the tailor; the network's own if not given. paper and official need network hourglass."""
    tailor: bool = True
    """Fit the network's hand to the detected keypoints."""
    passes: int = 2
    """Number of forward passes for a --box: the first crops the box, each further one crops the hand that was found."""
    overlay: bool = True
    """Write overlays: images or videos with the mesh drawn over them."""
    resume: bool = False
    """Keep the files of images that an earlier run with the same options completed; videos are processed again."""

    def __call__(self) -> None:
        """Recover the hands of all inputs and write the results."""
        from handtailor_jax.geometry.cameras import as_camera, checked_length
        from handtailor_jax.hand_tailor import HandTailor, check_arguments
        from handtailor_jax.images import box_numbers
        from handtailor_jax.inputs import find_sources, read_list
        from handtailor_jax.mano.loading import load_hand
        from handtailor_jax.predict import HandFiles, predict
        from handtailor_jax.tailor.tailor import PRESETS, TailorConfig

        check_arguments(self.side, self.hands, self.passes)
        if self.files and self.inputs is not None:
            raise InputError(f"{self.files[0]} is given as INPUT and {self.inputs} as --inputs: give one of the two")
        as_camera(self.camera)
        if self.box is not None:
            box_numbers(self.box)
        known: dict[str, Any] = {"camera": self.camera, "box": self.box, "side": self.side}
        sources = find_sources(self.files, **known) if self.inputs is None else read_list(self.inputs, **known)
        boxes = [source.box is not None for source in sources]
        idle = {
            "--preset does not apply with --no-tailor": self.preset and not self.tailor,
            "--passes does not apply without --box": self.passes != 2 and not any(boxes),
            "--hands and --thorough do not apply with --box": all(boxes) and (self.thorough or (self.hands or 1) > 1),
        }
        refuse_idle(idle)
        if self.hand_length is not None:
            for source in sources:
                checked_length(self.hand_length, source.camera)
        config: TailorConfig | Literal["auto"] | None = "auto" if self.preset is None else PRESETS[self.preset]()
        hand = None if self.hand is None else load_hand(self.hand)
        tailor = HandTailor.load(self.weights, hand, config if self.tailor else None, self.network, self.hand_length)
        refuse_idle({"--thorough does not apply to these weights": self.thorough and not tailor.finds_all})
        files = HandFiles(self.out, self.mesh, self.overlay, self.skeleton is not None)
        options: dict[str, Any] = {"hands": self.hands, "thorough": self.thorough, "passes": self.passes}
        skipped = predict(sources, tailor, files, **options, resume=self.resume)
        finish(skipped, len(sources), self.out, "" if all(source.video for source in sources) else f" {_ERROR}")


@dataclasses.dataclass(frozen=True)
class Demo:
    """Run `predict --mesh glb` on the packaged images: renderings on which no network was trained."""

    out: Out = Path("demo")
    """Folder for the results."""

    def __call__(self) -> None:
        """Recover the hands of the packaged images and write the results."""
        from handtailor_jax.detections import read_detections
        from handtailor_jax.hand_tailor import HandTailor
        from handtailor_jax.inputs import Source
        from handtailor_jax.predict import HandFiles, predict

        images = {each.image: each.camera for each in read_detections(EXAMPLES) if each.image is not None}
        sources = [Source(image.stem, image, camera=camera) for image, camera in images.items()]
        skipped = predict(sources, HandTailor.load(), HandFiles(self.out, "glb", True))
        finish(skipped, len(sources), self.out, f" Look at {self.out / 'sheet.png'}. {_ERROR}")


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fit hand meshes to the 2D keypoints and further estimates in a JSON file.

    Each hand gives <id>.json, <id>_overlay.png and, with --mesh, a mesh; several hands also give sheet.png. Entries
    with a time are frames of a moving hand, which keeps one shape and is smoothed in time. All entries are checked
    first. Keypoints that no hand fits are reported and skipped; the exit status is then 2.
    """

    file: Annotated[Positional[Path | None], arg(metavar="[FILE]", help_behavior_hint="")] = None
    """JSON file of hands with keypoints_2d and the other fields of docs/cli.md; packaged examples if not given."""
    out: Out = Path("fits")
    """Folder for the results."""
    mesh: MeshFormat = None
    """Format of the meshes; no meshes if not given."""
    hand: File = None
    """Hand model: MANO_RIGHT.pkl, MANO_LEFT.pkl or npz; the embedded hand if not given."""
    overlay: bool = True
    """Write overlays: the keypoints, the mesh over the image, and the mesh from the side."""

    def __call__(self) -> None:
        """Fit every hand of the file and write the results."""
        from tqdm import tqdm

        from handtailor_jax.detections import read_detections
        from handtailor_jax.fit import fit_detection
        from handtailor_jax.geometry.boxes import hand_size
        from handtailor_jax.images import read_image
        from handtailor_jax.mano.loading import load_hand
        from handtailor_jax.predict import MOST_LINES, HandFiles
        from handtailor_jax.results import to_json
        from handtailor_jax.video.sequence import fit_frames

        # All input is checked before the first file is written.
        model = load_hand(self.hand)
        detections = read_detections(EXAMPLES if self.file is None else self.file, model)
        files = HandFiles(self.out, self.mesh, self.overlay)
        images = [each.image if self.overlay else None for each in detections]
        for image in filter(None, images):
            read_image(image)
        files.prepare([each.id for each in detections], [self.file, *(each.image for each in detections), self.hand])
        announce_compiling()
        several, skipped, unseen = len(detections) != 1, 0, 0
        progress = functools.partial(tqdm, desc="fit", unit="hand", disable=not several)
        with naming(self.file or EXAMPLES):
            in_time = detections[0].time is not None
            moving = fit_frames(detections, hand=model, progress=progress) if in_time else None
        for i, each in enumerate(detections if in_time else progress(detections)):
            try:
                hand = fit_detection(each, hand=model) if moving is None else moving[i]
            except InputError as error:
                tqdm.write(f"handtailor: skipped: {each.id}: {error}", file=sys.stderr)
                skipped += 1
                continue
            if hand is None:
                unseen += 1
                continue
            size = max(float(hand_size(each.keypoints_2d)), 1.0)
            before, after = hand.reprojection_before / size, hand.reprojection_after / size
            if after > 0.5:
                doubt = "the fitted hand is far from the keypoints: check their order, the side and joints_3d"
                tqdm.write(f"handtailor: warning: {each.id}: {doubt}", file=sys.stderr)
            caption = f"{each.id}: error {before:.1%} at the start, {after:.1%} fitted"
            when = {"time": each.time, "seen": bool(hand.confidence.any())} if in_time else {}
            path = images[i]
            files.write(each.id, {**when, **to_json(hand)}, [hand], None if path is None else read_image(path), caption)
            if len(detections) <= MOST_LINES:
                tqdm.write(caption)
        skipped += files.close()
        note = f"; {unseen} frames do not show the hand" if unseen else ""
        count = f"{len(detections) - skipped - unseen} hand{'s' if several else ''}"
        print(f"{count} written to {self.out}{note}. {_ERROR}")
        if skipped:
            raise SystemExit(2)


@dataclasses.dataclass(frozen=True)
class View:
    """Show results, or the hands in front of a webcam, in 3D in the browser.

    The page, at the address that is printed, shows the meshes in front of their image, a time line for videos, and
    sliders for pose and shape. With --live it shows a webcam's hands in real time, with frame rate and latency.
    """

    results: Annotated[Positional[tuple[str, ...]], arg(metavar="[RESULT ...]", help_behavior_hint="")] = ()
    """Files that `predict` or `fit` wrote (.json, .jsonl), or folders of such files."""
    media: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """Image or video of the results, or its folder; if not given, it is looked up by its name in the results."""
    live: Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="")] = None
    """Number of the webcam whose hands are shown, 0 for the first; or a video, which is played instead."""
    hands: Number = None
    """Largest number of hands with --live; 2 if not given."""
    camera: Annotated[Four | None, arg(metavar="FX FY CX CY", help_behavior_hint="")] = None
    """Intrinsics FX FY CX CY with --live, pixels; weak perspective if not given."""
    hand: File = None
    """Hand model, the embedded hand if not given; results need the model with which they were made."""
    host: str = "127.0.0.1"
    """Address at which the page is served; 0.0.0.0 shows it to other machines, without a password."""
    port: int = 8080
    """Port of the page; 0 for any free one."""

    def __call__(self) -> None:
        """Serve the page until it is interrupted."""
        from handtailor_jax.mano.loading import load_hand

        if bool(self.results) == bool(self.live):
            raise InputError("nothing to show: name results of predict or fit, or give --live 0; not both")
        refuse_idle({"--media does not apply with --live": self.live and self.media})
        refuse_idle({"--hands and --camera apply with --live only": not self.live and (self.hands or self.camera)})
        hand = load_hand(self.hand)
        if self.live:
            self._show_webcam(self.live, hand)
        else:
            self._show_results(hand)

    def _show_results(self, hand: "HandModel") -> None:
        from handtailor_jax.view.page import Page
        from handtailor_jax.view.player import Player
        from handtailor_jax.view.recorded import read_results

        results = read_results(self.results, self.media)
        with contextlib.ExitStack() as stack:
            page = stack.enter_context(contextlib.closing(Page(self.host, self.port)))
            player = stack.enter_context(contextlib.closing(Player(page, results, hand)))
            for result in results:
                if result.media is None:
                    warn(f"{result.path}: its image or video was not found: give it as --media")
            print(f"{page.address} shows {len(results)} result{'s'[: len(results) != 1]}; Ctrl-C ends", flush=True)
            player.run()

    def _show_webcam(self, live: str, hand: "HandModel") -> None:
        from handtailor_jax.geometry.cameras import as_camera
        from handtailor_jax.hand_tailor import HandTailor, check_arguments
        from handtailor_jax.inputs import find_sources
        from handtailor_jax.view.live import LatestFrame, Live
        from handtailor_jax.view.page import Page

        check_arguments(hands=self.hands)
        as_camera(self.camera)
        source = find_sources([live])[0]
        if not source.video:
            raise InputError(f"--live is {live}: give the number of a webcam, or a video")
        with contextlib.ExitStack() as stack:
            frames = stack.enter_context(contextlib.closing(LatestFrame(source.path)))
            page = stack.enter_context(contextlib.closing(Page(self.host, self.port)))
            print(f"{page.address} shows {live}; Ctrl-C ends", flush=True)
            announce_compiling()
            Live(page, HandTailor.load(hand=hand), self.camera, self.hands or 2).run(frames)


@command("handtailor")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run the command."""
    commands = Predict | Demo | Fit | View | Synth | Label | ConvertOfficial | Export
    config = (OmitSubcommandPrefixes, OmitArgPrefixes)
    arguments = sys.argv[1:] if arguments is None else arguments
    with parsed(commands, "handtailor", arguments or ["--help"], description=__doc__, config=config) as run:
        keep_compiled_programs()
        run()


if __name__ == "__main__":
    main()

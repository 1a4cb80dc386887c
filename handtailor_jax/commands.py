"""The commands of `handtailor` and their options. The first line of a command and the text under a field are its help.

Nothing heavy is imported here, so that --help is fast.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from handtailor_jax.tailor.presets import PresetName
from handtailor_jax.types import NetworkName, Side

Out = Annotated[Path, arg(aliases=["-o"])]
MeshFormat = Literal["obj", "ply", "glb"]


@dataclasses.dataclass(frozen=True)
class Predict:
    """Find all hands in images and videos, and recover their meshes.

    An image gives <id>.json with all hands, <id>_overlay.png and, with --mesh, their meshes; several images also give
    sheet.png. A video gives <id>.jsonl with a line for each frame, <id>_overlay.mp4 and, with --mesh glb, moving
    meshes. Inputs that cannot be read are reported and skipped; the exit status is then 2.
    """

    inputs: Positional[tuple[str, ...]]
    """Images, folders, patterns such as "photos/*.jpg", videos, or the number of a webcam."""
    network: NetworkName = "landmarks"
    """Network that recovers the hands: landmarks (palm detector, hand landmark network and IKNet: all hands, both
    sides) or hourglass (the paper's network: one hand, without a detector)."""
    hands: int | None = None
    """Largest number of hands; in images all hands if not given, in videos 2."""
    thorough: bool = False
    """Search overlapping tiles of images as well, for small or faint hands. This takes four to ten times as long. It is
    done by itself for images in which no hand is found otherwise."""
    weights: Path | None = None
    """Weights of the hand module (.safetensors), from training or `handtailor convert-official`; network landmarks uses
    their IKNet alone. The embedded weights if not given."""
    out: Out = Path("hands")
    """Folder for the results."""
    camera: tuple[float, float, float, float] | None = None
    """Intrinsics FX FY CX CY of the images, pixels; weak perspective if not given."""
    side: Side | None = None
    """Side of all hands; estimated for each hand if not given (network hourglass assumes right hands)."""
    box: tuple[float, float, float, float] | None = None
    """Box X Y W H around the only hand to recover, pixels, in videos of the first frame; hands are searched if not
    given."""
    hand: Path | None = None
    """Hand model (MANO_RIGHT.pkl, MANO_LEFT.pkl or npz); with network hourglass, --weights must be trained for it. The
    embedded hand if not given."""
    mesh: MeshFormat | None = None
    """Format of the meshes, glb for videos; no meshes if not given."""
    preset: PresetName | None = None
    """Energy and solver of the tailor: for the hourglass's keypoints (network), for precise keypoints (default), the
    paper's (paper) or the released program's (official); the two last ones are for network hourglass. The preset of the
    network if not given."""
    tailor: bool = True
    """Fit the network's hand to the detected keypoints."""
    passes: int = 2
    """Number of forward passes for a --box: the first crops the box, each further one the hand that was found."""
    overlay: bool = True
    """Write overlays: images or videos with the mesh drawn over them."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Recover hand meshes from the images that come with the package.

    The images are renderings of the embedded hand that the network was not trained on. The results are those of
    `handtailor predict`: <id>.json, <id>_overlay.png, <id>.glb and sheet.png.
    """

    out: Out = Path("demo")
    """Folder for the results."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fit hand meshes to 2D keypoints, and to whatever else is known, from a JSON file.

    Each hand gives <id>.json, <id>_overlay.png and, with --mesh, a mesh; several hands also give sheet.png.
    """

    file: Positional[Path | None] = None
    """JSON file: an object or a list of objects with keypoints_2d (21 [u, v] pairs, pixels) and optionally id, image,
    convention, order, confidence, joints_3d, pose, betas, camera {fx, fy, cx, cy}, side; the packaged examples if not
    given."""
    out: Out = Path("fits")
    """Folder for the results."""
    mesh: MeshFormat | None = None
    """Format of the meshes; no meshes if not given."""
    hand: Path | None = None
    """Hand model: MANO_RIGHT.pkl, MANO_LEFT.pkl or npz; the embedded hand if not given."""
    overlay: bool = True
    """Write overlays: the keypoints, the mesh over the image, and the mesh from the side."""


@dataclasses.dataclass(frozen=True)
class Synth:
    """Render hands with exact labels, as files in the layout of the FreiHAND dataset."""

    out: Path
    """Folder to write; it must not exist, or be empty."""
    split: Literal["train", "test"] = "train"
    """train: as many samples as wanted, by seed. test: the 4,000 samples of this project's evaluation."""
    count: int = 1000
    """Number of samples."""
    size: int = 224
    """Side of the images in pixels, a multiple of 16."""
    seed: int = 0
    """Seed of the train split."""
    backgrounds: Path | None = None
    """Folder of images to put behind half of the hands; generated backgrounds only if not given."""


@dataclasses.dataclass(frozen=True)
class ConvertOfficial:
    """Convert the checkpoint that HandTailor's authors released (PyTorch) to a weight file; PyTorch is not needed."""

    checkpoint: Positional[Path]
    """Released checkpoint, in either file format of PyTorch."""
    weights: Positional[Path]
    """Weight file to write, ending in .safetensors."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a part of the method as a jax.export file, which runs without this package."""

    part: Positional[Literal["tailor", "hand-module", "pipeline"]]
    """tailor: keypoints and a proposed pose in, placed mesh out. hand-module: crop and camera in; keypoints, joints,
    pose and shape out. pipeline: crop and camera in, placed mesh out."""
    out: Positional[Path]
    """File to write."""
    weights: Path | None = None
    """Weights of the hand module (.safetensors) that become part of the file; the embedded weights if not given."""
    hand: Path | None = None
    """Hand model that becomes part of the file; the embedded hand if not given."""
    preset: PresetName | None = None
    """Energy and solver of the tailor; if not given, `default` for the tailor and `network` for the pipeline."""
    tailor: bool = True
    """Fit the network's hand to the detected keypoints, in the pipeline."""
    perspective: bool = True
    """Export the tailor for images with intrinsics; otherwise for images without."""
    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """Platforms on which the file can run."""


Command = (
    Annotated[Predict, subcommand("predict")]
    | Annotated[Demo, subcommand("demo")]
    | Annotated[Fit, subcommand("fit")]
    | Annotated[Synth, subcommand("synth")]
    | Annotated[ConvertOfficial, subcommand("convert-official")]
    | Annotated[Export, subcommand("export")]
)

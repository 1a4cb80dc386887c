"""Commands of `handtailor` that write other files than hands: rendered hands, converted weights, exported programs."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

from handtailor_jax.errors import InputError
from handtailor_jax.tailor.presets import PRESETS, PresetName

# Everything else is imported by the command that needs it, so that --help does not import the networks.

Platforms = tuple[Literal["cpu", "cuda", "tpu"], ...]


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

    def run(self) -> None:
        """Render the samples and write them."""
        from handtailor_jax.synthetic.backgrounds import read_photographs
        from handtailor_jax.synthetic.dataset import SyntheticConfig, SyntheticDataset
        from handtailor_jax.synthetic.freihand_layout import write_freihand

        images = None if self.backgrounds is None else read_photographs(self.backgrounds)
        dataset = SyntheticDataset(SyntheticConfig(size=self.size), self.split, self.seed, images)
        write_freihand(dataset, self.count, self.out)
        print(f"written to {self.out}")


@dataclasses.dataclass(frozen=True)
class ConvertOfficial:
    """Convert the checkpoint that HandTailor's authors released (PyTorch) to a weight file; PyTorch is not needed."""

    checkpoint: Positional[Path]
    """Released checkpoint, in either file format of PyTorch."""
    weights: Positional[Path]
    """Weight file to write, ending in .safetensors."""

    def run(self) -> None:
        """Convert the checkpoint."""
        from handtailor_jax.hand_module.official import load_official
        from handtailor_jax.hand_module.torch_file import read_state_dict
        from handtailor_jax.hand_module.weights import save_weights
        from handtailor_jax.results import prepare_folder

        module = load_official(read_state_dict(self.checkpoint))
        prepare_folder(self.weights.absolute().parent, [self.weights.name])
        save_weights(self.weights, module, {"source": f"released checkpoint {self.checkpoint.name}, converted"})
        print(f"written to {self.weights}")


@dataclasses.dataclass(frozen=True)
class ExportTailor:
    """Export the tailor: keypoints and a proposed pose in, placed mesh out."""

    out: Positional[Path]
    """File to write."""
    hand: Path | None = None
    """Hand model that becomes part of the file; the embedded hand if not given."""
    preset: PresetName = "default"
    """Energy and solver of the tailor."""
    perspective: bool = True
    """Export for images with intrinsics; otherwise for images without."""
    platforms: Platforms = ("cpu", "cuda", "tpu")
    """Platforms on which the file can run."""

    def write(self) -> None:
        """Write the file."""
        from handtailor_jax.export import export_tailor
        from handtailor_jax.mano.loading import load_hand

        hand = load_hand(self.hand)
        prepare_export(self.out)
        config = PRESETS[self.preset]()
        export_tailor(self.out, hand, config, perspective=self.perspective, platforms=self.platforms)


@dataclasses.dataclass(frozen=True)
class ExportHandModule:
    """Export the hand module: crop and camera in; keypoints, joints, pose and shape out."""

    out: Positional[Path]
    """File to write."""
    weights: Path | None = None
    """Weights of the hand module (.safetensors) that become part of the file; the embedded weights if not given."""
    platforms: Platforms = ("cpu", "cuda", "tpu")
    """Platforms on which the file can run."""

    def write(self) -> None:
        """Write the file."""
        from handtailor_jax.export import export_hand_module
        from handtailor_jax.hand_module.weights import load_module

        module = load_module(self.weights, None)
        prepare_export(self.out)
        export_hand_module(self.out, module, platforms=self.platforms)


@dataclasses.dataclass(frozen=True)
class ExportPipeline:
    """Export the whole method: crop and camera in, placed mesh out."""

    out: Positional[Path]
    """File to write."""
    weights: Path | None = None
    """Weights of the hand module (.safetensors) that become part of the file; the embedded weights if not given."""
    hand: Path | None = None
    """Hand model that becomes part of the file; the embedded hand if not given."""
    preset: PresetName = "network"
    """Energy and solver of the tailor."""
    tailor: bool = True
    """Fit the network's hand to the detected keypoints."""
    platforms: Platforms = ("cpu", "cuda", "tpu")
    """Platforms on which the file can run."""

    def write(self) -> None:
        """Write the file."""
        from handtailor_jax.export import export_pipeline
        from handtailor_jax.hand_module.weights import load_module
        from handtailor_jax.mano.loading import load_hand

        hand = load_hand(self.hand)
        module = load_module(self.weights, None if self.hand is None else hand)
        prepare_export(self.out)
        config = PRESETS[self.preset]() if self.tailor else None
        export_pipeline(self.out, module, hand, config, platforms=self.platforms)


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a part of the method as a jax.export file, which runs without this package."""

    what: (
        Annotated[ExportTailor, subcommand("tailor")]
        | Annotated[ExportHandModule, subcommand("hand-module")]
        | Annotated[ExportPipeline, subcommand("pipeline")]
    )

    def run(self) -> None:
        """Write the file and its description."""
        if not self.what.platforms:
            raise InputError("--platforms names no platform: give at least one of cpu, cuda, tpu")
        self.what.write()
        out = self.what.out
        print(f"written to {out} ({out.stat().st_size / 1e6:.1f} MB) and {out.name}.json")


def prepare_export(out: Path) -> None:
    """Create the folder of an exported file, after everything that can be wrong with its inputs."""
    from handtailor_jax.results import prepare_folder

    prepare_folder(out.absolute().parent, [out.name, f"{out.name}.json"])

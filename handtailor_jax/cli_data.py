"""Commands of `handtailor` for data and weights: rendered hands, pseudo-labels, conversion and export."""

# Each command is a class: its docstring and fields are the help, a call runs it. Only the call imports heavy modules.

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from handtailor_jax.commands import announce_compiling, refuse_idle
from handtailor_jax.errors import InputError
from handtailor_jax.tailor.tailor import PresetName

# In the help, metavar replaces the type, and the empty hint hides a default of None.
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Number = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Preset = Annotated[PresetName | None, arg(metavar="{landmarks,network,default,paper,official}", help_behavior_hint="")]


@dataclasses.dataclass(frozen=True)
class Synth:
    """Render hands with exact labels, in the file layout of the FreiHAND dataset."""

    out: Path
    """Folder to create, or an empty one; it appears when it is complete. Repeat the command to resume after a stop."""
    split: Literal["train", "test"] = "train"
    """train: any number of samples, drawn by the seed. test: the first of the 4,000 samples of the project's tables."""
    count: Number = None
    """Number of samples; if not given, 1,000 of train and all of test."""
    size: int = 224
    """Side of the images in pixels, a multiple of 16."""
    seed: Number = None
    """Seed of the train split; 0 if not given."""
    backgrounds: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder of images, used as backgrounds of half of the hands; only generated backgrounds if not given."""
    second_hand: Annotated[float, arg(metavar="SHARE")] = 0.0
    """Share of samples in which another hand, without labels, touches the labelled one or nearly does."""

    def __call__(self) -> None:
        """Render the samples and write them."""
        from handtailor_jax.synthetic.dataset import SyntheticConfig, SyntheticDataset
        from handtailor_jax.synthetic.storage import read_photographs, write_freihand

        refuse_idle({"--seed changes the train split only": self.seed is not None and self.split == "test"})
        announce_compiling()
        images = None if self.backgrounds is None else read_photographs(self.backgrounds)
        config = SyntheticConfig(size=self.size, second_hand=self.second_hand)
        dataset = SyntheticDataset(config, self.split, self.seed or 0, images)
        count = self.count if self.count is not None else len(dataset) if self.split == "test" else 1000
        write_freihand(dataset, count, self.out)
        print(f"written to {self.out}")


@dataclasses.dataclass(frozen=True)
class Label:
    """Write pseudo-labels of the hands in photographs, for training with train.py.

    Keypoints, side and 3D joints come from the network `landmarks`. A hand is labelled if the network's estimates agree
    in four copies of the image: unchanged, mirrored, and rotated by 20 degrees in both directions. Repeat the
    command to resume after an interruption.
    """

    photographs: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Folder of the photographs; training samples its subfolders equally often."""
    out: File = None
    """File to write, in FOLDER or in a folder above it; FOLDER/labels.json if not given."""
    val: float = 0.1
    """Share of the images of each folder that are held out for evaluation: the last images by name."""
    spread: float = 0.03
    """Largest mean distance of the copies' keypoints from their median, in hand sizes."""

    def __call__(self) -> None:
        """Label the photographs."""
        from handtailor_jax.labelling import UNREADABLE, label_folder

        announce_compiling()
        out = self.photographs / "labels.json" if self.out is None else self.out
        counts = label_folder(self.photographs, out, spread=self.spread, val=self.val)
        labelled = counts.pop("labelled")
        left_out = ", ".join(f"{reason}: {number}" for reason, number in sorted(counts.items()) if number)
        print(f"hands written to {out}: {labelled}{'; left out: ' + left_out if left_out else ''}")
        if counts[UNREADABLE]:
            raise SystemExit(2)


@dataclasses.dataclass(frozen=True)
class ConvertOfficial:
    """Convert the checkpoint that HandTailor's authors released (PyTorch) to a weight file; PyTorch is not needed."""

    checkpoint: Positional[Path]
    """Released checkpoint, in either file format of PyTorch."""
    weights: Positional[Path]
    """Weight file to write, ending in .safetensors."""

    def __call__(self) -> None:
        """Write the released checkpoint as a weight file."""
        from handtailor_jax.hand_module.official import load_official
        from handtailor_jax.hand_module.torch_file import read_state_dict
        from handtailor_jax.hand_module.weights import save_weights
        from handtailor_jax.results import prepare_folder

        module = load_official(read_state_dict(self.checkpoint))
        prepare_folder(self.weights.absolute().parent, [self.weights.absolute().name], [self.checkpoint])
        save_weights(self.weights, module, {"source": f"released checkpoint {self.checkpoint.name}, converted"})
        print(f"written to {self.weights}")


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a part of the method as a jax.export file, which runs without this package."""

    part: Positional[Literal["tailor", "hand-module", "pipeline"]]
    """tailor (keypoints to mesh), hand-module (crop to keypoints, pose and shape) or pipeline (crop to mesh)."""
    out: Positional[Path]
    """File to write; OUT.json, written beside it, describes its inputs and outputs."""
    weights: File = None
    """Weights of the hand module (.safetensors) that become part of the file; the embedded weights if not given."""
    hand: File = None
    """Hand model that becomes part of the file; the embedded hand if not given."""
    preset: Preset = None
    """Energy and solver of the tailor; if not given, `default` for the tailor and `network` for the pipeline."""
    tailor: bool = True
    """Include the tailor in the pipeline."""
    perspective: bool = True
    """Export the tailor for images with intrinsics, or else for images without."""
    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """Platforms on which the file can run."""

    def __call__(self) -> None:
        """Write a part of the method as a program, and its description."""
        from handtailor_jax import export
        from handtailor_jax.hand_module.weights import load_module
        from handtailor_jax.mano.loading import load_hand
        from handtailor_jax.results import prepare_folder
        from handtailor_jax.tailor.tailor import PRESETS

        idle = {
            "--weights": self.weights is not None and self.part == "tailor",
            "--hand": self.hand is not None and self.part == "hand-module",
            "--preset": self.preset is not None and self.part == "hand-module",
            "--preset landmarks": self.preset == "landmarks" and self.part == "pipeline",
            "--no-tailor": not self.tailor and self.part != "pipeline",
            "--no-perspective": not self.perspective and self.part != "tailor",
        }
        refuse_idle({f"{name} does not apply to `handtailor export {self.part}`": idle[name] for name in idle})
        if not self.platforms:
            raise InputError("--platforms names no platform: give at least one of cpu, cuda, tpu")
        hand = load_hand(self.hand)
        module = None if self.part == "tailor" else load_module(self.weights, None if self.hand is None else hand)
        preset = PRESETS[self.preset or ("default" if self.part == "tailor" else "network")]()
        # Checked last, because a wrong input is the more likely error.
        out = self.out.absolute()
        prepare_folder(out.parent, [out.name, f"{out.name}.json"], [self.weights, self.hand])
        if module is None:
            export.export_tailor(self.out, hand, preset, perspective=self.perspective, platforms=self.platforms)
        elif self.part == "hand-module":
            export.export_hand_module(self.out, module, platforms=self.platforms)
        else:
            export.export_pipeline(self.out, module, hand, preset if self.tailor else None, platforms=self.platforms)
        print(f"written to {self.out} ({self.out.stat().st_size / 1e6:.1f} MB) and {self.out.name}.json")

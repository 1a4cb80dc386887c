"""Export the tailor as a program that runs without this package: python examples/07_export.py.

`handtailor export pipeline` exports the network together with the tailor (docs/export.md).
"""

import json
from pathlib import Path

import jax
import jax.export
import numpy as np
import tyro

import handtailor_jax as ht
from handtailor_jax.export import export_tailor

EXAMPLES = Path(ht.__file__).parent / "assets" / "examples"


def main(out: Path = Path("tailor.jaxexport")) -> None:
    """Export the program, load it as another project would, and run it."""
    export_tailor(out, platforms=["cpu"])
    description = json.loads(out.with_name(out.name + ".json").read_text("utf-8"))
    for each in description["inputs"]:
        print(each["name"], each["shape"], "-", each["meaning"])

    # From here on only jax, numpy and flatbuffers are needed.
    program = jax.jit(jax.export.deserialize(bytearray(out.read_bytes())).call)
    known = {each.id: each for each in ht.read_detections(EXAMPLES / "hands.json")}["fist"]
    inputs = {
        "keypoints_2d": known.keypoints_2d[None],
        "confidence": np.ones((1, 21), np.float32),
        "pose": known.pose[None],
        "betas": known.betas[None],
        "root_depth": np.asarray([0.45], np.float32),
        "intrinsics": known.camera[None],
    }
    fitted = program(*inputs.values())
    print({name: value.shape for name, value in fitted.items()})


if __name__ == "__main__":
    tyro.cli(main)

"""Convert one of MediaPipe's hand networks to a weight file of this package.

python tools/convert_mediapipe.py FILE.tflite OUT.safetensors

FILE is palm_detection_full, palm_detection_lite, hand_landmark_full or hand_landmark_lite (.tflite), as in the
mediapipe 0.10.14 wheel (unzip it: mediapipe/modules/palm_detection, mediapipe/modules/hand_landmark). Other versions
are refused by their sha256. Needs the extra `convert`; neither TensorFlow nor MediaPipe.

The layers of the file, in order, fill the rows of the tables below. Every layer must be used and every tensor filled.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.numpy

from handtailor_jax.commands import command
from handtailor_jax.detector.landmark_network import HandLandmarkConfig
from handtailor_jax.detector.palm_detector import PalmDetectorConfig
from handtailor_jax.detector.weights import CONFIGS, FORMAT, VERSION, structure
from handtailor_jax.errors import InputError

SHA256 = {
    "1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54": "palm_detection_full",
    "e9a4aaddf90dda56a87235303cf00e4c2d3fb28725f68fd88772997dac905c18": "palm_detection_lite",
    "11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3": "hand_landmark_full",
    "048edd3645c9bf7397d19a9f6e3a42957d6e414c9bea6598030a2e9b624156e6": "hand_landmark_lite",
}

Kind = Literal["convolution", "depthwise", "linear", "prelu"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of the .tflite file with its tensors in this package's layout, float32."""

    kind: Kind
    """Kind of the layer; 1 x 1 convolutions and dense layers are both linear."""
    kernel: np.ndarray
    """(k, k, inputs, outputs), (k, k, channels), (inputs, outputs) or, for slopes, (channels,)."""
    bias: np.ndarray | None
    """(outputs,); None for slopes."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a port table: the module that the next layer of the file belongs to."""

    kind: Kind
    """The kind that the layer must have."""
    module: str
    """Dotted path of the module."""
    index: int | None = None
    """Place in the module's stacked tensors; None where they are not stacked."""


def palm_table(config: PalmDetectorConfig) -> Iterator[Row]:
    """Yield the modules of a palm detector, in the order of the file."""

    def block(module: str, index: int | None = None) -> Iterator[Row]:
        yield Row("depthwise", f"{module}.depthwise", index)
        yield Row("linear", f"{module}.pointwise", index)
        yield Row("prelu", f"{module}.activation", index)

    yield Row("convolution", "stem")
    yield Row("prelu", "activation")
    for i in range(config.depth):
        yield from block("first.blocks", i)
    for stage in range(len(config.widths) - 1):
        yield from block(f"stages.{stage}.reduce")
        for i in range(config.depth):
            yield from block(f"stages.{stage}.equal.blocks", i)
    for level in ("coarse", "fine"):
        yield Row("linear", f"{level}.lateral")
        yield Row("prelu", f"{level}.activation")
        for i in range(config.level_depth):
            yield from block(f"{level}.equal.blocks", i)
        yield Row("linear", f"{level}.score")
        yield Row("linear", f"{level}.box")


def landmark_table(config: HandLandmarkConfig) -> Iterator[Row]:
    """Yield the modules of a hand landmark network, in the order of the file."""
    yield Row("convolution", "stem.layer")
    yield Row("depthwise", "stem_mix.layer")
    yield Row("linear", "stem_project")
    for i in range(sum(blocks for _, _, blocks in config.stages)):
        yield Row("linear", f"blocks.{i}.expand.layer")
        yield Row("depthwise", f"blocks.{i}.mix.layer")
        yield Row("linear", f"blocks.{i}.project")
    yield Row("linear", "expand.layer")
    yield Row("depthwise", "mix.layer")
    for head in ("right", "presence", "landmarks", "world"):
        yield Row("linear", head)


TABLES = {
    name: tuple(palm_table(config) if isinstance(config, PalmDetectorConfig) else landmark_table(config))
    for name, config in CONFIGS.items()
}


def tensor_shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all tensors of a network."""
    return {".".join(map(str, place)): variable.shape for place, variable in structure(network)[1].items()}


def save_weights(path: Path, network: str, tensors: Mapping[str, np.ndarray], provenance: Mapping[str, str]) -> None:
    """Write the weights of a network as float16."""
    metadata = {"format": FORMAT, "version": VERSION, "network": network, "provenance": json.dumps(dict(provenance))}
    path.write_bytes(safetensors.numpy.save({n: t.astype(np.float16) for n, t in tensors.items()}, metadata))


def read_layers(data: bytes) -> Iterator[Layer]:
    """Yield the layers with weights of a .tflite file, in order."""
    import tflite

    graph = (model := tflite.Model.GetRootAsModel(data, 0)).Subgraphs(0)
    operator = tflite.BuiltinOperator
    stored: dict[int, int] = {}  # the float16 tensor behind each dequantized one

    def tensor(index: int) -> np.ndarray:
        entry = graph.Tensors(stored.get(index, index))
        dtype = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.FLOAT32: np.float32}[entry.Type()]
        numbers = model.Buffers(entry.Buffer()).DataAsNumpy().view(dtype)
        return numbers.reshape(entry.ShapeAsNumpy()).astype(np.float32)

    for i in range(graph.OperatorsLength()):
        entry = graph.Operators(i)
        code = model.OperatorCodes(entry.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        inputs = [int(index) for index in entry.InputsAsNumpy()]
        if kind == operator.DEQUANTIZE:
            stored[int(entry.Outputs(0))] = inputs[0]
        elif kind == operator.CONV_2D:
            kernel = tensor(inputs[1]).transpose(1, 2, 3, 0)  # (outputs, k, k, inputs)
            point = kernel.shape[:2] == (1, 1)
            yield Layer("linear" if point else "convolution", kernel[0, 0] if point else kernel, tensor(inputs[2]))
        elif kind == operator.DEPTHWISE_CONV_2D:
            yield Layer("depthwise", tensor(inputs[1])[0], tensor(inputs[2]))  # (1, k, k, channels)
        elif kind == operator.FULLY_CONNECTED:
            yield Layer("linear", tensor(inputs[1]).T, tensor(inputs[2]))  # (outputs, inputs)
        elif kind == operator.PRELU:
            yield Layer("prelu", tensor(inputs[1]).reshape(-1), None)  # (1, 1, channels)


def port(network: str, layers: Iterable[Layer]) -> dict[str, np.ndarray]:
    """Return the tensors of a network, named by their dotted path, from the layers of its .tflite file.

    Raises:
        InputError: if a layer is left over or of another kind or shape, if a tensor stays empty, or if a bias that the
            network does not have is not zero.
    """
    table, layers, shapes = TABLES[network], list(layers), tensor_shapes(network)
    if len(table) != len(layers):
        raise InputError(f"{network}: the file has {len(layers)} layers with weights instead of {len(table)}")
    tensors = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}

    def fill(row: Row, name: str, numbers: np.ndarray) -> None:
        place = tensors[name] if row.index is None else tensors[name][row.index]
        if place.shape != numbers.shape:
            raise InputError(f"{network}: {name} has shape {place.shape}, the file's layer {numbers.shape}")
        if not np.isnan(place).all():
            raise InputError(f"{network}: two layers of the file belong to {name}")
        place[...] = numbers

    for row, layer in zip(table, layers, strict=True):
        if row.kind != layer.kind:
            raise InputError(f"{network}: {row.module} is a {row.kind} layer, the file has a {layer.kind} layer there")
        fill(row, f"{row.module}.{'slope' if row.kind == 'prelu' else 'kernel'}", layer.kernel)
        if f"{row.module}.bias" in shapes:
            assert layer.bias is not None
            fill(row, f"{row.module}.bias", layer.bias)
        elif layer.bias is not None and layer.bias.any():
            raise InputError(f"{network}: {row.module} has no bias, the file's layer has one that is not zero")
    for name, numbers in tensors.items():
        if np.isnan(numbers).any():
            raise InputError(f"{network}: {name} is not filled by the file")
    return tensors


def convert(source: Path, target: Path) -> str:
    """Convert a .tflite file and return the name of its network.

    Raises:
        InputError: if the file is not one of the four known ones.
    """
    data = source.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest not in SHA256:
        raise InputError(f"{source}: has the unknown sha256 {digest}: give {', '.join(SHA256.values())}")
    network = SHA256[digest]
    provenance = {
        "source": f"{network}.tflite of the mediapipe 0.10.14 wheel",
        "sha256": digest,
        "licence": "Apache-2.0",
        "copyright": "The MediaPipe Authors / Google LLC",
        "changes": "converted to safetensors; tensors renamed, transposed and stacked; numbers as published (float16)",
    }
    save_weights(target, network, port(network, read_layers(data)), provenance)
    return network


@command("convert_mediapipe")
def main() -> None:
    """Convert the file on the command line."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = map(Path, sys.argv[1:])
    print(f"{target}: {convert(source, target)}")


if __name__ == "__main__":
    main()

"""Golden vectors of tests/golden/, and the made-up hand model and network weights that they were computed with."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.official import weight_table
from handtailor_jax.hand_module.weights import module_structure

FOLDER = Path(__file__).parent / "golden"

Arrays = dict[str, npt.NDArray]


def golden(name: str) -> Arrays:
    """Read the arrays of one golden file."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def network_images() -> npt.NDArray[np.uint8]:
    """Read the network's two input images, (2, 256, 256, 3) uint8 RGB."""
    both = cv2.imread(str(FOLDER / "official_network_images.png"))[..., ::-1]
    return np.stack(np.split(both, 2, axis=1))


def mano_arrays() -> Arrays:
    """Build a hand model with the arrays of a MANO file (names, shapes, float64) and made-up numbers.

    Blend shapes are sums of cosines over the template, so only frequencies, phases and amplitudes are stored.
    """
    stored = golden("mano_model")
    template = stored["template"]

    def scatter(name: str, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
        dense = np.zeros(shape)
        dense[stored[f"{name}_row"], stored[f"{name}_column"]] = stored[f"{name}_value"]
        return dense

    def waves(name: str) -> npt.NDArray[np.float64]:
        frequency, phase, amplitude = (stored[f"{name}_{part}"] for part in ("frequency", "phase", "amplitude"))
        cosines = np.cos(frequency @ template.T + phase[..., None])
        return (amplitude[..., None] * cosines).sum(axis=2).transpose(2, 1, 0)

    regressor = scatter("regressor", (16, len(template)))
    return {
        "v_template": template,
        "shapedirs": waves("shape") * 0.003 * 0.85 ** np.arange(10),
        "posedirs": waves("pose") * 0.0006,
        "J_regressor": regressor,
        "J": regressor @ template,
        "weights": scatter("weights", (len(template), 16)),
        "f": stored["faces"].astype(np.uint32),
        "kintree_table": np.stack([stored["parents"], np.arange(16)]),
        "hands_components": stored["pose_components"],
        "hands_mean": stored["pose_mean"],
        "bs_style": np.array("lbs"),
        "bs_type": np.array("lrotmin"),
    }


def write_mano(path: Path) -> Path:
    """Write the made-up hand model as an npz file of MANO's layout, and return its path."""
    np.savez(path, **mano_arrays())
    return path


def chumpy_pickle() -> bytes:
    """Build the made-up hand model as a pickle with chumpy objects, as Python 2 wrote it (protocol 2, byte strings).

    The stored parts are the opcodes between the large arrays. MANO's `hands_coeffs` are zeros.
    """
    arrays, parts = mano_arrays(), golden("mano_python2_pickle")
    # A chumpy Select takes the first 10 of 20 shape directions; the others are arbitrary.
    others = 1e-4 * np.random.RandomState(1).standard_normal(arrays["shapedirs"].shape)
    indices = 20 * np.arange(3 * len(arrays["v_template"]))[:, None] + np.arange(10)
    inserted = [
        arrays["hands_components"],
        arrays["f"],
        np.zeros((1554, 45)),
        arrays["weights"],
        arrays["posedirs"].T,
        arrays["v_template"],
        np.concatenate([arrays["shapedirs"], others], axis=2),
        indices,
    ]
    content = parts["part_0"].tobytes()
    for number, array in enumerate(inserted, start=1):
        content += array.tobytes() + parts[f"part_{number}"].tobytes()
    return content


def official_weights() -> Arrays:
    """Draw the made-up weights of the released network, by the names of its checkpoint and in its layout.

    Each tensor has its own generator, seeded with the CRC-32 of its name, so the weights depend on the names only.
    """
    shapes = dict(checkpoint_shapes(HandModuleConfig.official()))
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def checkpoint_shapes(config: HandModuleConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor of a released checkpoint, in PyTorch's layout, without batch counters."""
    shapes = {path: variable.shape for path, variable in module_structure(config)[1].items()}
    for row in weight_table(config):
        shape = shapes[row.path]
        if len(shape) == 4:
            shape = (shape[3], shape[2], shape[0], shape[1])
        elif len(shape) == 2:
            fully_connected = row.name.startswith(("shapereg_layers.", "iknet."))
            shape = shape[::-1] if fully_connected else (*shape[::-1], 1, 1)
        yield row.name, shape


def batch_counters(weights: Arrays) -> Arrays:
    """Draw the counters of batches that accompany the weights in a checkpoint; they are ignored when it is read."""
    names = [name.replace("running_var", "num_batches_tracked") for name in weights if name.endswith(".running_var")]
    return {name: np.asarray(_generator(name).integers(1_000, 100_000), np.int64) for name in names}


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def _draw(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    random, leaf = _generator(name), name.rpartition(".")[2]
    head = ".hm." in name or ".hm3d." in name
    if leaf == "running_var":
        # The normalisation bn3 follows the sum of two branches.
        drawn = random.uniform(*((2.0, 4.0) if ".bn3." in name else (0.8, 1.6)), shape)
    elif leaf in ("running_mean", "bias"):
        drawn = 0.1 * random.standard_normal(shape)
        if leaf == "bias" and head:
            drawn[:21] -= 5.0  # heatmaps are mostly dark; the channels of depth maps stay near one half
    elif len(shape) == 1:
        drawn = random.uniform(0.7, 1.3, shape)
    else:
        drawn = random.standard_normal(shape)
        # Removing part of the mean over the inputs keeps two images apart without amplifying rounding errors.
        last = name.startswith(("decoder.", "shapereg_layers.", "iknet."))
        share = 1.0 if head else 0.7 if last else 0.2
        drawn -= share * drawn.mean(axis=tuple(range(1, len(shape))), keepdims=True)
        if head:
            gain = 1.5 if ".hm3d." in name else 3.0
        elif name.endswith("hand2d.conv1.weight"):
            gain = 6.0
        else:
            gain = 1.0 / np.sqrt(0.341 + (1.0 - share) ** 2 * 0.159)
        drawn = gain / np.sqrt(int(np.prod(shape[1:]))) * drawn
    return drawn.astype(np.float32)

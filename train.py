"""Trains a hand module: python train.py --config configs/smoke.py --out runs/smoke [--resume] [--steps 100 ...].

A config file holds `config`, a `TrainingConfig`; every field can be overridden, as --help with --config shows.
On several machines, each with its number: --coordinator HOST:PORT --processes N --process I.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import tyro

from handtailor_jax.errors import InputError, command
from handtailor_jax.training.config import TrainingConfig


@command("train.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--benchmark", action="store_true")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    known, overrides = parser.parse_known_args(arguments)
    if known.config is None:
        raise InputError("--config is missing: give one of the files in configs/")
    default = read_config(known.config)
    config = tyro.cli(TrainingConfig, default=default, args=overrides, description=__doc__, prog="train.py")
    if known.out is None:
        raise InputError("--out is missing: give a folder for the run")
    run(config, known)


def run(config: TrainingConfig, known: argparse.Namespace) -> None:
    """Trains or measures.

    Raises:
        InputError: one line that names what is wrong.
    """
    try:
        from benchmarks import train as benchmark
        from handtailor_jax.training import loop
    except ImportError as error:
        raise InputError(f"training needs more packages ({error}): pip install 'handtailor-jax[train]'") from None
    if known.coordinator is not None:
        loop.connect(known.coordinator, known.processes, known.process)
    elif known.processes != 1:
        raise InputError("--processes needs --coordinator HOST:PORT, the same for all processes")
    if known.benchmark:
        print(benchmark.benchmark(config, known.out, devices=known.devices))
    else:
        print(loop.train(config, known.out, resume=known.resume, devices=known.devices))


def read_config(path: Path) -> TrainingConfig:
    """The `config` of a Python file.

    Raises:
        InputError: if there is none.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file: give one of the files in configs/")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error}): correct it") from None
    config = getattr(module, "config", None)
    if not isinstance(config, TrainingConfig):
        raise InputError(f"{path}: defines no config of type TrainingConfig")
    return config


if __name__ == "__main__":
    main()

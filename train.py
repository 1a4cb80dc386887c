"""Train a hand module: python train.py --config configs/smoke.py --out runs/smoke [--resume] [--steps 100 ...].

A config file defines `config`, a `TrainingConfig`. Every field can be overridden on the command line;
`--config FILE --help` lists all fields with the file's values. docs/training.md explains the rest.
"""

import dataclasses
import importlib.util
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from handtailor_jax.commands import command, parse, spelling
from handtailor_jax.errors import InputError, install
from handtailor_jax.training.config import TrainingConfig


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """The part of the command line that is read first, because the file has the defaults of all other options."""

    config: Path | None = None


@dataclasses.dataclass(frozen=True)
class Command:
    """Command line of train.py."""

    config: Path | None = None
    """Config file, such as one of configs/."""
    out: Path | None = None
    """Folder of the run."""
    resume: bool = False
    """Continue from the latest checkpoint in the folder."""
    devices: int | None = None
    """Number of local devices; all if not given."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes, the same for all of them; not needed under SLURM, Open MPI, indexed
    jobs of Kubernetes, and on TPUs, where the processes find each other."""
    processes: int = 1
    """Number of processes."""
    process: int = 0
    """Number of this process, from 0."""
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainingConfig)


@command("train.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    file, _ = parse(ConfigFile, "train.py", arguments, return_unknown_args=True, add_help=False)
    if file.config is None and not {"-h", "--help"} & set(sys.argv[1:] if arguments is None else arguments):
        raise InputError("--config is missing: give one of the files in configs/")
    default = Command() if file.config is None else Command(training=read_config(file.config))
    with spelling(default.training):
        print(run(parse(Command, "train.py", arguments, default=default, description=__doc__)))


def run(options: Command) -> Path:
    """Train, and return the path of the weight file.

    Raises:
        InputError: With one line that names what is wrong.
    """
    if options.out is None:
        raise InputError("--out is missing: give a folder for the run")
    try:
        from handtailor_jax.training import loop
    except ImportError as error:
        raise InputError(f"training needs more packages ({error}): {install('train')}") from None
    connect(options)
    return loop.train(options.training, options.out, resume=options.resume, devices=options.devices)


def connect(options: Command) -> None:
    """Join the processes of a run on several machines, before anything else is done with JAX.

    Raises:
        InputError: If the options contradict each other, or the processes do not find each other.
    """
    address, count, process = options.coordinator, options.processes, options.process
    if address is None:
        if count != 1:
            raise InputError("--processes needs --coordinator HOST:PORT, the same for all processes")
        if in_cluster(os.environ):
            initialize("cluster", "give --coordinator, --processes and --process")
        return
    port = address.rpartition(":")[2]
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:9]) < 2**16):
        raise InputError(f"--coordinator {address} has no port: give HOST:PORT with a port of 1 to 65535")
    if not 0 <= process < count:
        raise InputError(f"--process {process} is not one of 0 to {count - 1}: number the processes from 0")
    initialize(address, "give all processes the same --coordinator HOST:PORT", num_processes=count, process_id=process)


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Return whether this is one of several processes that a cluster has started, or runs on a TPU."""
    counts = [("SLURM_NTASKS", "SLURM_STEP_NODELIST"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")]
    # SLURM's count alone is also set in the shell from which steps are started.
    several = any(environment.get(count, "1") != "1" and mark in environment for count, mark in counts)
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    tpu = importlib.util.find_spec("libtpu") is not None and any(Path("/dev").glob("accel*"))
    return several or kubernetes or tpu


def initialize(name: str, remedy: str, **options: Any) -> None:
    """Call `jax.distributed.initialize`, or raise an InputError; "cluster" lets JAX find the processes."""
    import jax

    try:
        jax.distributed.initialize(None if name == "cluster" else name, **options)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{name}: the processes did not find each other ({reason}): {remedy}") from None


def read_config(path: Path) -> TrainingConfig:
    """Return the `config` of a Python file.

    Raises:
        InputError: If there is none.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file: give one of the files in configs/")
    try:
        config = runpy.run_path(str(path)).get("config")
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # the file may raise anything
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error}): correct it") from None
    if not isinstance(config, TrainingConfig):
        raise InputError(f"{path}: does not define `config` of type TrainingConfig: define it")
    return config


if __name__ == "__main__":
    main()

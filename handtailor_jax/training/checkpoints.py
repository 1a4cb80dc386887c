"""Checkpoints by Orbax: the latest ones and the best one, each complete or absent."""

import logging
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from handtailor_jax.errors import InputError
from handtailor_jax.training.state import TrainState

_KEEP = 2


class Checkpoints:
    """The checkpoints of a run, in its folder."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder; nothing is read yet.

        Raises:
            InputError: if Orbax is not installed or the folder cannot be used.
        """
        try:
            import orbax.checkpoint as orbax
        except ImportError as error:
            raise InputError(f"training needs Orbax ({error}): pip install orbax-checkpoint") from None
        # Orbax logs an error with its traceback in each of its threads; here it becomes one line.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._orbax = orbax
        self._folder = folder
        try:
            self._last = self._manager(folder / "last", _KEEP)
            self._best = self._manager(folder / "best", 1)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror}): choose another --out") from None

    def _manager(self, folder: Path, keep: int) -> Any:
        # Every process holds the whole state in host memory: the first one writes, all read, and none waits in Orbax.
        process = jax.process_index()
        alone = self._orbax.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"{folder.name}{process}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        return self._orbax.CheckpointManager(
            folder.absolute(),
            item_handlers=self._orbax.StandardCheckpointHandler(multiprocessing_options=alone),
            options=self._orbax.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=process == 0,
                create=False,
                multiprocessing_options=alone,
            ),
        )

    def save(self, state: TrainState, best: bool = False) -> None:
        """Starts writing a checkpoint, in the first process only; training may go on meanwhile.

        Args:
            state: of one device, in host memory.
            best: also keep it as the best one so far.

        Raises:
            InputError: if the disk refuses; the checkpoints before are still there.
        """
        if jax.process_index() != 0:
            return
        step, arrays = int(state.step), _named(state)
        try:
            if step not in self._last.all_steps():
                self._last.save(step, args=self._orbax.args.StandardSave(arrays))
            if best:
                self._best.save(step, args=self._orbax.args.StandardSave(arrays))
        except (OSError, ValueError) as error:
            self._refused(error)

    def finish(self) -> None:
        """Waits until everything is on disk.

        Raises:
            InputError: if the disk refuses.
        """
        try:
            self._last.wait_until_finished()
            self._best.wait_until_finished()
        except (OSError, ValueError) as error:
            self._refused(error)

    def close(self) -> None:
        """Waits and frees what the managers hold."""
        self.finish()
        self._last.close()
        self._best.close()

    def latest(self) -> int | None:
        """The step of the latest checkpoint; None if there is none."""
        return self._last.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """The latest checkpoint.

        Args:
            like: a state of the shapes that the run's configuration gives.

        Raises:
            InputError: if it was written under another configuration or cannot be read.
        """
        return self._restore(self._last, like)

    def restore_best(self, like: TrainState) -> TrainState:
        """The best checkpoint, or the latest if none was evaluated."""
        return self._restore(self._best if self._best.latest_step() is not None else self._last, like)

    def _restore(self, manager: Any, like: TrainState) -> TrainState:
        step = manager.latest_step()
        where = f"{self._folder}: checkpoint {step}"
        wanted = _named(like)
        try:
            shapes = {name: tuple(leaf.shape) for name, leaf in manager.item_metadata(step).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where} cannot be read ({_line(error)}): remove it or choose another --out") from None
        expected = {name: leaf.shape for name, leaf in wanted.items()}
        if shapes != expected:
            names = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
            raise InputError(
                f"{where} is of another configuration ({len(names)} arrays differ, such as {names[0]}): resume with "
                "the run's own configuration or choose another --out"
            )
        try:
            arrays = manager.restore(step, args=self._orbax.args.StandardRestore(wanted))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{where} cannot be read ({_line(error)}): remove it or choose another --out") from None
        empty = {name: leaf for name, leaf in zip(_names(like), jax.tree.leaves(like), strict=True) if not leaf.size}
        leaves = [jnp.asarray(arrays[name]) if name in arrays else empty[name] for name in _names(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _refused(self, error: Exception) -> None:
        system = re.search(r"([^:]+) \[os_error_code", str(error))
        reason = getattr(error, "strerror", None) or (system[1].strip() if system else _line(error))
        raise InputError(
            f"{self._folder}: a checkpoint cannot be written ({reason}); earlier ones are intact: make room, then "
            "--resume"
        ) from None


def _names(state: TrainState) -> list[str]:
    return [jax.tree_util.keystr(path).replace("/", "|") for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]


def _named(state: TrainState) -> dict[str, np.ndarray]:
    named = zip(_names(state), map(np.asarray, jax.tree.leaves(state)), strict=True)
    # Orbax refuses arrays without elements, such as the frozen numbers of a stage that trains everything.
    return {name: array for name, array in named if array.size}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]

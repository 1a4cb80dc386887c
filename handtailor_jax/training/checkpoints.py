"""Checkpoints of a run, written by Orbax: the latest two and the best one, each complete or absent."""

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
        """Open the folder; nothing is read yet.

        Raises:
            InputError: If Orbax is not installed or the folder cannot be used.
        """
        try:
            import orbax.checkpoint as orbax
        except ImportError as error:
            raise InputError(f"training needs Orbax ({error}): pip install orbax-checkpoint") from None
        # Orbax logs an error with its traceback in each of its threads; `_refused` turns it into one line.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._orbax = orbax
        self._folder = folder
        try:
            self._last = self._manager(folder / "last", _KEEP)
            self._best = self._manager(folder / "best", 1)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror}): choose another --out") from None

    def _manager(self, folder: Path, keep: int) -> Any:
        # Every process has the whole state in host memory: the first writes, all read, and none waits in Orbax.
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
        """Start writing a checkpoint, in the first process only; training may continue meanwhile.

        Args:
            state: The state of one device, in host memory.
            best: Whether to keep it as the best one so far, too.

        Raises:
            InputError: If the disk refuses; earlier checkpoints are intact.
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
        """Wait until everything is on disk.

        Raises:
            InputError: If the disk refuses.
        """
        try:
            self._last.wait_until_finished()
            self._best.wait_until_finished()
        except (OSError, ValueError) as error:
            self._refused(error)

    def close(self) -> None:
        """Wait, and free the resources of the managers."""
        self.finish()
        self._last.close()
        self._best.close()

    def latest(self) -> int | None:
        """Return the step of the latest checkpoint; None if there is none."""
        return self._last.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """Read the latest checkpoint.

        Args:
            like: A state with the shapes that the run's configuration gives.

        Raises:
            InputError: If the checkpoint has another configuration or cannot be read.
        """
        return self._restore(self._last, like)

    def restore_best(self, like: TrainState) -> TrainState:
        """Read the best checkpoint, or the latest if none was evaluated."""
        return self._restore(self._best if self._best.latest_step() is not None else self._last, like)

    def _restore(self, manager: Any, like: TrainState) -> TrainState:
        step = manager.latest_step()
        where = f"{self._folder}: checkpoint {step}"
        wanted = _named(like)
        try:
            shapes = {name: tuple(leaf.shape) for name, leaf in manager.item_metadata(step).items()}
            expected = {name: leaf.shape for name, leaf in wanted.items()}
            different = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
            if different:
                raise InputError(
                    f"{where} has another configuration ({len(different)} arrays differ, such as {different[0]}): "
                    "resume with the run's own configuration or choose another --out"
                )
            arrays = manager.restore(step, args=self._orbax.args.StandardRestore(wanted))
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where} cannot be read ({_line(error)}): remove it or choose another --out") from None
        return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in wanted])

    def _refused(self, error: Exception) -> None:
        system = re.search(r"([^:]+) \[os_error_code", str(error))
        reason = getattr(error, "strerror", None) or (system[1].strip() if system else _line(error))
        raise InputError(
            f"{self._folder}: a checkpoint cannot be written ({reason}); earlier ones are intact: make room, then "
            "--resume"
        ) from None


def _named(state: TrainState) -> dict[str, np.ndarray]:
    """Return the arrays of a state by path."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path).replace("/", "|"): np.asarray(leaf) for path, leaf in leaves}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]

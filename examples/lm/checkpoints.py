"""Checkpoints of a run, written by Orbax in the background while training continues."""

import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from .devices import is_first, shardings_of, wait_for_all


class Checkpoints:
    """The last two checkpoints of a run, under `directory`.

    All processes of the run write to one shared folder, in the background. A checkpoint becomes visible only when it is
    complete, and can be restored on a different number of devices and processes. Set `settings` before the first
    `save` or `restore`.
    """

    settings: dict[str, Any]

    def __init__(self, directory: Path, mesh: jax.sharding.Mesh, *, resume: bool):
        if not resume:
            if is_first():
                shutil.rmtree(directory, ignore_errors=True)
            wait_for_all("old checkpoints are gone")
        self.mesh = mesh
        self.manager = ocp.CheckpointManager(
            directory.resolve(), options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        )

    def saved_settings(self) -> dict[str, Any] | None:
        """The settings of the last checkpoint, or None if there is none."""
        step = self.manager.latest_step()
        if step is None:
            return None
        return self.manager.restore(step, args=ocp.args.Composite(settings=ocp.args.JsonRestore()))["settings"]

    def save(self, step: int, state: Any, history: dict[str, Any]) -> None:
        """Write the state, by the names of its arrays. They are copied first: the next step donates them."""
        arrays = {_name(path): jax.numpy.copy(leaf) for path, leaf in jax.tree.leaves_with_path(state)}
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays),
                history=ocp.args.JsonSave(history),
                settings=ocp.args.JsonSave(self.settings),
            ),
        )

    def restore(self, state: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, history) of the last checkpoint, or None if there is none.

        Raises:
            SystemExit: the checkpoint was made with other settings.
        """
        step, saved = self.manager.latest_step(), self.saved_settings()
        if step is None or saved is None:
            return None
        if saved != self.settings:
            different = {name: saved.get(name) for name in self.settings if saved.get(name) != self.settings[name]}
            raise SystemExit(
                f"the checkpoint in {self.manager.directory} was made with {different}. Give the same flags to go on "
                "with it, another --out to keep it, or --no-resume to begin anew in its place."
            )
        names = [_name(path) for path, _ in jax.tree.leaves_with_path(state)]
        like = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for name, leaf, sharding in zip(
                names, jax.tree.leaves(state), jax.tree.leaves(shardings_of(state, self.mesh)), strict=True
            )
        }
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(like), history=ocp.args.JsonRestore()),
        )
        leaves = [restored["state"][name] for name in names]
        return step, jax.tree.unflatten(jax.tree.structure(state), leaves), restored["history"]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.close()  # waits for checkpoints that are still being written


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")

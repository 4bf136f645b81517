"""The output folder of a run, which no other run may write into or resume from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from ..refcache import write_atomic
from . import checkpoints, identity
from .config import RunConfig
from .plot import METRICS_FILE, PLOT_FILE
from .prepare import say

# Files of a run that has begun; a start that failed leaves only identity.json.
FINISHED = "finished.json"
_RUN_FILES = (METRICS_FILE, PLOT_FILE, checkpoints.STATE, FINISHED)
# Files that saving a model writes beside its weights.
_MODEL_RECORDS = (
    *("README.md", "adapter_config.json", "chat_template.jinja", "config.json"),
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json"),
)
_MODEL_FILES = ("*.safetensors", "pytorch_model*.bin")


class OutputFolder:
    """The output folder of a trainer.

    run: identity of what it trains; None for a trainer that only evaluates.
    """

    def __init__(self, args: RunConfig, run: identity.Identity | None) -> None:
        self.args = args
        self.run = run
        self._begun = False

    def begin(self, asked: str | bool | None, wait: Callable[[], None]) -> Path | None:
        """Check that folder and checkpoint are this run's; return the checkpoint to resume from.

        A trainer that has begun may begin again.

        Args:
            asked: True for the newest complete checkpoint, or the folder of one.
            wait: waits for all ranks.

        Returns:
            None: start from the beginning.
        """
        folder = Path(str(self.args.output_dir))
        checkpoint = checkpoints.find(asked, folder)
        if asked is True and checkpoint is not None:
            say(self.args, f"resuming from {checkpoint}")
        elif asked is True and left_by_a_run(folder):
            say(self.args, f"{folder} holds no complete checkpoint: new start")
        if self.run is not None and checkpoint is not None:
            identity.check_same_run(checkpoint, self.run)
        if self.run is not None and not self._begun:
            check_usable(folder, self.run, resuming=bool(asked), checkpoint=checkpoint)
        # Ranks have checked the folder before any of them writes to it.
        wait()
        if self.args.should_save:
            self.identify(folder)
            (folder / FINISHED).unlink(missing_ok=True)
        self._begun = True
        return checkpoint

    def finished_steps(self) -> int | None:
        """Return the steps of the finished run in the folder; None if it has to go on.

        Raises:
            InputError: the folder holds another run.
        """
        folder = Path(str(self.args.output_dir))
        if self.run is None or not (folder / FINISHED).exists():
            return None
        identity.check_same_run(folder, self.run, "output_dir")
        done = json.loads((folder / FINISHED).read_bytes())
        if self.args.max_steps > 0:
            is_long_enough = done["steps"] >= self.args.max_steps
        else:
            is_long_enough = done["epochs"] >= self.args.num_train_epochs
        return int(done["steps"]) if is_long_enough else None

    def mark_finished(self, steps: int, epochs: float) -> None:
        """Note that the run has ended and its model is saved."""
        if self.run is not None and self.args.should_save:
            done = json.dumps({"steps": steps, "epochs": epochs}).encode()
            write_atomic(Path(str(self.args.output_dir)) / FINISHED, done)

    def identify(self, folder: Path) -> None:
        """Write the run's identity into `folder`, the output folder or a checkpoint."""
        if self.run is not None:
            identity.write(folder, self.run)


def left_by_a_run(folder: Path) -> list[str]:
    """Return the names of checkpoints, non-empty metrics and weights in `folder`.

    A run would overwrite or continue them. The reference cache, which runs may share, is not
    among them.
    """
    names = [path.name for path in checkpoints.all_checkpoints(folder)]
    records = (folder / name for name in (*_RUN_FILES, *_MODEL_RECORDS))
    names += [path.name for path in records if path.exists() and path.stat().st_size > 0]
    return names + _weights(folder)


def check_settings(folder: Path, args: RunConfig) -> None:
    """Raise if `folder` holds something else than a run of these settings.

    This needs neither model nor data: `OutputFolder.begin` compares everything.
    """
    if found := left_by_a_run(folder):
        known = folder if (folder / identity.FILE).exists() else checkpoints.newest_complete(folder)
        if known is None:
            raise _used(folder, found)
        identity.check_same_run(known, identity.settings(args), "output_dir")


def check_usable(
    folder: Path, own: identity.Identity, *, resuming: bool, checkpoint: Path | None
) -> None:
    """Raise unless `folder` is unused, or holds the run `own`, which is being resumed.

    checkpoint: where to resume from, known to be this run's; None: from the start.
    """
    found = left_by_a_run(folder)
    if found and not resuming:
        raise _used(folder, found)
    if found and (checkpoint is None or (folder / identity.FILE).exists()):
        identity.check_same_run(folder, own, "output_dir")
    elif found and checkpoint is not None and checkpoint.resolve().parent != folder.resolve():
        raise _used(folder, found)
    if checkpoint is None and (weights := _weights(folder)):
        raise InputError(
            "resume_from_checkpoint",
            "a complete checkpoint to resume from",
            f"{folder} without one, but with a trained model ({weights[0]})",
            "Start in another output_dir, or remove the folder.",
        )


def check_writable(folder: Path, argument: str = "output_dir") -> None:
    """Create `folder`, which `argument` named; raise if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{folder}: {error.strerror}"
        raise InputError(argument, "a folder that can be created", problem) from error
    if not os.access(folder, os.W_OK):
        raise InputError(argument, "a folder that can be written to", folder)


def _weights(folder: Path) -> list[str]:
    return sorted(path.name for pattern in _MODEL_FILES for path in folder.glob(pattern))


def _used(folder: Path, found: list[str]) -> InputError:
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return InputError(
        "output_dir",
        "a folder without another run and without files that this one would overwrite",
        f"{folder} with {', '.join(found[:4])}{more}",
        "To continue a run give its command again (in Python train(resume_from_checkpoint=True)); "
        "for a new run choose another output_dir or remove the folder.",
    )

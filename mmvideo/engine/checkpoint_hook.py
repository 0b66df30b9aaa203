"""When training commits its state."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from mmvideo.errors import ConfigError
from mmvideo.registry import HOOKS


@HOOKS.register_module(force=True)
class CheckpointHook(Hook):
    """Commits ``work_dir/iter_N`` every ``interval`` steps and after the last one.

    Takes the place of MMEngine's hook of the same name, whose files are pickles that its own
    runner cannot read back, and which deletes the old checkpoint before it writes the new one.

    Args:
        interval: steps between checkpoints.
        max_keep_ckpts: how many of the newest to keep.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval: int = 1000, max_keep_ckpts: int = 2) -> None:
        for name, value in (('interval', interval), ('max_keep_ckpts', max_keep_ckpts)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f'CheckpointHook.{name}={value!r}: expected an integer >= 1.')
        self.interval = interval
        self.keep = max_keep_ckpts
        self._due = False

    def after_train_iter(self, runner: Any, batch_idx: int, **kwargs: Any) -> None:
        """Remember that a commit is due; the step is counted only after all hooks ran."""
        self._due = (runner.iter + 1) % self.interval == 0

    def before_train_iter(self, runner: Any, batch_idx: int, **kwargs: Any) -> None:
        """Commit at the step boundary."""
        if self._due:
            self._due = False
            runner.commit(self.keep)

    def after_train(self, runner: Any) -> None:
        """Commit the end of training."""
        runner.commit(self.keep)

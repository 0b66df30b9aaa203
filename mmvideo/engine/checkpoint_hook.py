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
        self._committed: int | None = None

    def at_step_boundary(self, runner: Any) -> None:
        """Commit when due: the step is counted, and nothing of the next one is drawn yet."""
        if runner.iter % self.interval == 0:
            self._commit(runner)

    def after_train(self, runner: Any) -> None:
        """Commit the end of training."""
        if runner.iter != self._committed:
            self._commit(runner)

    def _commit(self, runner: Any) -> None:
        runner.commit(self.keep)
        self._committed = runner.iter

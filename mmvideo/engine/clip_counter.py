"""How many clips a test has done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook


class ClipCounter(Hook):
    """Tells how many clips are done after each batch of a test.

    Args:
        tell: called as ``(clips done, clips)``.
        clips: of the test set.
    """

    def __init__(self, tell: Callable[[int, int], None], clips: int) -> None:
        self.tell, self.clips, self.done = tell, clips, 0

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Count a batch of every process; the last one may be padded."""
        self.done = min(self.clips, self.done + len(outputs) * get_world_size())
        self.tell(self.done, self.clips)

"""What a finished training leaves for others: weights in the hub's layout."""

from __future__ import annotations

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmvideo.engine.ema import averaged
from mmvideo.registry import HOOKS


@HOOKS.register_module()
class ExportHook(Hook):
    """Writes the editor's trained parts (EMA where there is one) when training ends.

    The folder has the layout that ``from_pretrained`` reads, so the next stage's config names it.

    Args:
        out_dir: where to; None is ``work_dir/export``.
        dtype: ``'float16'`` halves the files; None keeps the parameters' type.
    """

    priority = 'LOWEST'

    def __init__(self, out_dir: str | None = None, dtype: str | None = None) -> None:
        self.out_dir = out_dir
        self.dtype = dtype

    def after_train(self, runner: Runner) -> None:
        """Export."""
        if not is_main_process():
            return
        folder = Path(self.out_dir or Path(runner.work_dir) / 'export')
        model = getattr(runner.model, 'module', runner.model)
        with averaged(runner):
            model.save_pretrained(folder, dtype=self.dtype)
        runner.logger.info(f'exported the trained parts to {folder}')

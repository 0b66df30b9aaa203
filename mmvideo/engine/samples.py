"""Samples during training, written as files that a person can look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmvideo.config_check import FILE_KEYS
from mmvideo.engine.ema import averaged
from mmvideo.media.writers import save_videos_grid
from mmvideo.registry import HOOKS


@HOOKS.register_module()
class SampleHook(Hook):
    """Writes what the editor's ``draw(batch, **arguments)`` gives every ``interval`` steps.

    Args:
        interval: steps between samples.
        arguments: what the editor's ``infer`` takes (prompts, seeds, steps); an autoencoder needs
            none.
        columns: pictures side by side.
    """

    priority = 'LOW'

    def __init__(
        self, interval: int = 1000, arguments: dict | None = None, columns: int = 4
    ) -> None:
        self.interval = interval
        # A config's `infer` may say how files are written too, which is decided here.
        self.arguments = {k: v for k, v in (arguments or {}).items() if k not in FILE_KEYS}
        self.columns = columns

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Write ``work_dir/samples/iter_N*`` when due."""
        step = runner.iter + 1
        if step % self.interval or not is_main_process():
            return
        model = getattr(runner.model, 'module', runner.model)
        model.eval()
        with averaged(runner), torch.random.fork_rng():
            samples = model.draw(data_batch, **self.arguments)
        model.train()
        path = Path(runner.work_dir) / 'samples' / f'iter_{step}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.with_suffix('.png' if samples.shape[2] == 1 else '.mp4')
        save_videos_grid(samples, path, n_rows=self.columns)
        runner.logger.info(f'samples: {path}')

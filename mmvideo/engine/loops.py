"""The training loop: one iteration is one optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.runner import BaseLoop, Runner

from mmvideo.errors import ConfigError
from mmvideo.registry import LOOPS


@LOOPS.register_module()
class StepTrainLoop(BaseLoop):
    """Counts optimizer steps, whatever the gradient accumulation.

    MMEngine's ``IterBasedTrainLoop`` counts micro-batches, so learning-rate schedules, intervals
    and ``max_iters`` change their meaning with ``accumulative_counts``. Here ``max_iters=1000``
    is a thousand updates. A resumed run tells the sampler where to start instead of reading and
    dropping all that was consumed.

    Args:
        max_iters: optimizer steps in all.
        val_interval: steps between validations; None validates only at the end.
    """

    def __init__(
        self, runner: Runner, dataloader: Any, max_iters: int, val_interval: int | None = None
    ) -> None:
        self.check(dict(max_iters=max_iters, val_interval=val_interval))
        super().__init__(runner, dataloader)
        self._max_iters = max_iters
        self.val_interval = val_interval or max_iters
        self.val_begin = 1
        self._iter = 0
        self._epoch = 0
        self._max_epochs = 1
        self.stop_training = False

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be; ``val_interval`` may be absent or None."""
        for name in ('max_iters', 'val_interval'):
            value = settings.get(name)
            if name == 'val_interval' and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f'train_cfg.{name}={value!r}: expected an integer >= 1.')

    @property
    def max_epochs(self) -> int:
        """The whole training counts as one epoch."""
        return self._max_epochs

    @property
    def max_iters(self) -> int:
        """Optimizer steps in all."""
        return self._max_iters

    @property
    def epoch(self) -> int:
        """Always 0: see ``max_epochs``."""
        return self._epoch

    @property
    def iter(self) -> int:
        """Optimizer steps done."""
        return self._iter

    def run(self) -> Any:
        """Train from the current step to ``max_iters``."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        micro = self.runner.optim_wrapper._accumulative_counts
        self.runner.optim_wrapper.initialize_count_status(
            self.runner.model, self._iter * micro, self._max_iters * micro
        )
        self._seek(self._iter * micro)
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter([next(batches) for _ in range(micro)])
            self._validate()
            self.runner.call_hook('at_step_boundary')
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_iter(self, data_batches: list) -> None:
        """One optimizer step over the given micro-batches."""
        self.runner.call_hook('before_train_iter', batch_idx=self._iter, data_batch=data_batches[0])
        for data in data_batches:
            outputs = self.runner.model.train_step(data, optim_wrapper=self.runner.optim_wrapper)
        self.runner.call_hook(
            'after_train_iter', batch_idx=self._iter, data_batch=data_batches[-1], outputs=outputs
        )
        self._iter += 1

    def _seek(self, batches: int) -> None:
        sampler = self.dataloader.sampler
        if hasattr(sampler, 'set_start'):
            sampler.set_start(batches * self.dataloader.batch_size)
        elif batches:
            raise ConfigError(
                f'train_dataloader.sampler {type(sampler).__name__!r} cannot resume in the '
                "middle: use dict(type='ResumableSampler')."
            )

    def _batches(self) -> Any:
        while True:
            # A new iterator draws a seed for its workers, also where there are none. A resumed run
            # makes one more of them, and must not be moved by it.
            with torch.random.fork_rng(devices=[]):
                batches = iter(self.dataloader)
            yield from batches

    def _validate(self) -> None:
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if self.runner.val_loop is not None and due:
            self.runner.val_loop.run()

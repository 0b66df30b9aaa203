"""Exponential moving average of the trained parameters only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmvideo.errors import ConfigError
from mmvideo.registry import HOOKS


@HOOKS.register_module(force=True)
class EMAHook(Hook):
    """Keeps an average of every parameter with ``requires_grad``.

    MMEngine's hook copies the whole model, frozen VAE and text encoder included. The average is
    saved in every checkpoint, and validation, samples and exports use it.

    Args:
        decay: the average's memory; it grows to this value as ``(1 + n) / (10 + n)`` after n
            updates, so a short run is not dominated by its start.
    """

    priority = 'NORMAL'

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f'EMAHook.decay={decay!r}: expected 0 <= decay < 1.')
        self.decay = decay
        self.averages: dict[str, torch.Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Start from the current parameters, unless a checkpoint brought the averages."""
        if not self.averages:
            self.averages = {n: p.detach().clone() for n, p in _trained(runner.model)}

    @torch.no_grad()
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: object = None,
        outputs: dict | None = None,
    ) -> None:
        """Move the averages towards the parameters of the step just made."""
        decay = min(self.decay, (1 + runner.iter) / (10 + runner.iter))
        names, parameters = zip(*_trained(runner.model), strict=True)
        averages = [self.averages[name] for name in names]
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - decay)

    def before_val(self, runner: Runner) -> None:
        """Validate the averaged parameters."""
        self._swap(runner.model)

    def after_val(self, runner: Runner) -> None:
        """Put the trained parameters back."""
        self._swap(runner.model)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The averages in place of the parameters, inside a ``with``."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, parameter in _trained(model):
            kept = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    model = getattr(model, 'module', model)
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


@contextmanager
def averaged(runner: Runner) -> Iterator[None]:
    """The runner's EMA weights in place of the trained ones; nothing changes without an EMAHook."""
    hook = next((h for h in runner.hooks if isinstance(h, EMAHook)), None)
    if hook is None or not hook.averages:
        yield
        return
    with hook.applied(runner.model):
        yield

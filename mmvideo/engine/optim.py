"""Optimizer wrapper and constructor: autocast on any device, trained parameters only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmvideo.errors import ConfigError, nearest
from mmvideo.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS

PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """``OptimWrapper`` whose forward pass runs under bf16 autocast, on the CPU and on a GPU.

    MMEngine's ``AmpOptimWrapper`` refuses to run on a CPU. bf16 has float32's range, so no loss
    scaler is needed; parameters, gradients and optimizer state stay float32.

    Args:
        dtype: ``'bfloat16'`` or ``'float32'`` (no autocast).
        kwargs: as MMEngine's ``OptimWrapper`` (``optimizer``, ``clip_grad``,
            ``accumulative_counts``).
    """

    def __init__(self, dtype: str = 'bfloat16', **kwargs: Any) -> None:
        self.check(dict(dtype=dtype))
        super().__init__(**kwargs)
        self.dtype = PRECISIONS[dtype]

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None:
        """Refuse a precision that there is not."""
        dtype = settings.get('dtype', 'bfloat16')
        if dtype not in PRECISIONS:
            raise ConfigError(
                f'optim_wrapper.dtype={dtype!r}: expected one of {sorted(PRECISIONS)}.'
                + nearest(dtype, PRECISIONS)
            )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and no gradient synchronisation while micro-batches accumulate."""
        device = next(model.parameters()).device.type
        enabled = self.dtype is not torch.float32
        with (
            super().optim_context(model),
            torch.autocast(device, dtype=self.dtype if enabled else None, enabled=enabled),
        ):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainableParams:
    """Builds the optimizer over parameters with ``requires_grad`` only, in two groups.

    MMEngine's default constructor passes frozen parameters to the optimizer too, or, with
    ``paramwise_cfg``, makes one group a tensor. Here there is one group with weight decay and one
    without it (``paramwise_cfg=dict(no_decay_1d=True)``: norms and biases are not decayed).
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.cfg = dict(optim_wrapper_cfg)
        self.paramwise = dict(paramwise_cfg or {})
        unknown = set(self.paramwise) - {'no_decay_1d'}
        if unknown:
            raise ConfigError(
                f'optim_wrapper.paramwise_cfg: unknown key {sorted(unknown)[0]!r}; '
                "expected 'no_decay_1d'."
            )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The optimizer wrapper over ``model``'s trainable parameters."""
        model = getattr(model, 'module', model)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ConfigError('no parameter is trainable: `model.trainable` matches nothing.')
        optimizer_cfg = dict(self.cfg.pop('optimizer'))
        optimizer_cfg['params'] = self._groups(named)
        optimizer = OPTIMIZERS.build(optimizer_cfg)
        return OPTIM_WRAPPERS.build(self.cfg, default_args=dict(optimizer=optimizer))

    def _groups(self, named: list[tuple[str, nn.Parameter]]) -> list[dict]:
        if not self.paramwise.get('no_decay_1d', False):
            return [dict(params=[p for _, p in named])]
        groups: list[dict] = [
            dict(params=[p for _, p in named if p.ndim > 1]),
            dict(params=[p for _, p in named if p.ndim <= 1], weight_decay=0.0),
        ]
        return [group for group in groups if group['params']]

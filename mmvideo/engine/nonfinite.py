"""A loss that is not finite stops training before it can touch a parameter."""

from __future__ import annotations

import math

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmvideo.registry import HOOKS


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite."""


@HOOKS.register_module()
class NonFiniteGuard(Hook):
    """Refuses an optimizer step whose loss or gradients are not finite.

    The check sits in front of ``optimizer.step`` (a pre-hook of the optimizer), so the parameters
    of the last good step stay as they are.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Hang the check in front of every optimizer step."""
        optimizer = runner.optim_wrapper.optimizer

        def check(opt: torch.optim.Optimizer, args: object, kwargs: object) -> None:
            grads = [p.grad for g in opt.param_groups for p in g['params'] if p.grad is not None]
            norms = torch.stack(torch._foreach_norm(grads))
            if not math.isfinite(float(norms.sum())):
                raise NonFiniteError(
                    f'non-finite gradient at step {runner.iter + 1}: the update was not applied.'
                )

        optimizer.register_step_pre_hook(check)

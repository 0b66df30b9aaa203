"""Optimizer wrapper and constructor: autocast on any device, trained parameters only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmvideo.errors import ConfigError, nearest
from mmvideo.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS

PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
PARAMWISE_KEYS = ('no_decay_1d', 'lr_mult')


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
    """Builds the optimizer over parameters with ``requires_grad`` only, in as few groups as can be.

    MMEngine's default constructor passes frozen parameters to the optimizer too, or, with
    ``paramwise_cfg``, makes one group a tensor. Here there is one group for each learning rate,
    with weight decay, and one without it.

    Args:
        optim_wrapper_cfg: the wrapper's config, with ``optimizer`` in it.
        paramwise_cfg: ``no_decay_1d=True`` spares norms and biases from the weight decay.
            ``lr_mult={r'^unet[.]conv_in': 10.0}`` multiplies the learning rate of the parameters
            in whose name (as in ``model.named_parameters()``) the regular expression is found.
            A schedule that multiplies the rate keeps the ratio. Every pattern must match a
            trained parameter, and a parameter at most one pattern.

    Raises:
        ConfigError: an unknown key, a pattern that is none, a factor that is not above 0.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.check(paramwise_cfg)
        self.cfg = dict(optim_wrapper_cfg)
        self.paramwise = dict(paramwise_cfg or {})
        self.factors = {p: float(f) for p, f in (self.paramwise.get('lr_mult') or {}).items()}

    @staticmethod
    def check(paramwise_cfg: Mapping[str, Any] | None) -> None:
        """Refuse what can be told to be wrong without a model."""
        where = 'optim_wrapper.paramwise_cfg'
        if paramwise_cfg is not None and not isinstance(paramwise_cfg, Mapping):
            raise ConfigError(f'{where} is {paramwise_cfg!r}, expected a dict.')
        settings = paramwise_cfg or {}
        for key in settings:
            if key not in PARAMWISE_KEYS:
                raise ConfigError(
                    f'{where}: unknown key {key!r}; expected one of {list(PARAMWISE_KEYS)}.'
                    + nearest(key, PARAMWISE_KEYS)
                )
        if not isinstance(settings.get('no_decay_1d', False), bool):
            raise ConfigError(f'{where}.no_decay_1d={settings["no_decay_1d"]!r}: expected a bool.')
        factors = settings.get('lr_mult')
        if factors is not None and not isinstance(factors, Mapping):
            raise ConfigError(
                f'{where}.lr_mult is {factors!r}, expected a dict of pattern: factor.'
            )
        for pattern, factor in (factors or {}).items():
            _check_factor(f'{where}.lr_mult', pattern, factor)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The optimizer wrapper over ``model``'s trainable parameters.

        Raises:
            ConfigError: nothing is trainable, or a pattern of ``lr_mult`` matches nothing of it or
                what another one matches.
        """
        model = getattr(model, 'module', model)
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise ConfigError('no parameter is trainable: `model.trainable` matches nothing.')
        optimizer_cfg = dict(self.cfg.pop('optimizer'))
        optimizer_cfg['params'] = self._groups(named, self._factor_by_name(model))
        optimizer = OPTIMIZERS.build(optimizer_cfg)
        for group in optimizer.param_groups:
            _multiply_rate(group)
        return OPTIM_WRAPPERS.build(self.cfg, default_args=dict(optimizer=optimizer))

    def _factor_by_name(self, model: nn.Module) -> dict[str, float]:
        """The factor of every trained parameter that a pattern matches."""
        matched_by: dict[str, str] = {}
        for pattern in self.factors:
            where = f'optim_wrapper.paramwise_cfg.lr_mult: {pattern!r} matches'
            found = {n: p for n, p in model.named_parameters() if re.search(pattern, n)}
            trained = [n for n, p in found.items() if p.requires_grad]
            if not trained and found:
                raise ConfigError(
                    f'{where} frozen parameters only, such as {next(iter(found))!r}; '
                    'expected one that `model.trainable` names.'
                )
            if not trained:
                names = [n for n, p in model.named_parameters() if p.requires_grad]
                hint = nearest(pattern, names) or f' They are named as {names[0]!r}.'
                raise ConfigError(f'{where} none of the {len(names)} trained parameters.{hint}')
            for name in trained:
                if name in matched_by:
                    raise ConfigError(
                        f'{where} {name!r}, and so does {matched_by[name]!r}: '
                        'expected one pattern a parameter.'
                    )
                matched_by[name] = pattern
        return {name: self.factors[pattern] for name, pattern in matched_by.items()}

    def _groups(
        self, named: Mapping[str, nn.Parameter], factors: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """One group for each factor and decay; that of the plain rate, which is logged, first."""
        spare = self.paramwise.get('no_decay_1d', False)
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for factor in dict.fromkeys((1.0, *self.factors.values())):
            groups |= {(factor, False): [], (factor, True): []}
        for name, parameter in named.items():
            groups[factors.get(name, 1.0), spare and parameter.ndim <= 1].append(parameter)
        return [_group(params, *key) for key, params in groups.items() if params]


def _group(params: list[nn.Parameter], factor: float, spared: bool) -> dict[str, Any]:
    group: dict[str, Any] = dict(params=params)
    if factor != 1.0:
        group['lr_mult'] = factor
    if spared:
        group['weight_decay'] = 0.0
    return group


def _multiply_rate(group: dict[str, Any]) -> None:
    """Apply ``lr_mult`` to a group that has its rate, be it the config's or the default."""
    if 'lr_mult' not in group:
        return
    if not isinstance(group['lr'], (int, float)):
        raise ConfigError(
            'optim_wrapper.paramwise_cfg.lr_mult needs a learning rate to multiply: '
            'set optim_wrapper.optimizer.lr.'
        )
    group['lr'] *= group['lr_mult']


def _check_factor(where: str, pattern: Any, factor: Any) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(f'{where}: {pattern!r} is no regular expression: {error}.') from error
    number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
    if not number or not 0 < factor < math.inf:
        raise ConfigError(
            f'{where}[{pattern!r}]={factor!r}: expected a number above 0; what is not to be '
            'trained is left out of `model.trainable`.'
        )

"""What a config's training parts refuse, asked before any weight is read.

MMEngine's runner builds the model first, so a mistake in the dataset or the loop would be found
only after minutes of reading.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmvideo.errors import ConfigError
from mmvideo.registry import (
    DATASETS,
    HOOKS,
    LOOPS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
)


def check_training(cfg: Any) -> None:
    """Let editor, loop, optimizer, schedules, hooks and dataset of a config check their settings.

    Raises:
        UserError: of the part that refuses.
    """
    check_model(cfg.get('model'))
    _ask(LOOPS, cfg.get('train_cfg'))
    _ask(OPTIM_WRAPPERS, cfg.get('optim_wrapper'))
    check_constructor(cfg.get('optim_wrapper'))
    check_schedules(cfg.get('param_scheduler'), cfg.get('train_cfg'))
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    for hook in hooks:
        if isinstance(hook, Mapping):
            HOOKS.build(copy.deepcopy(hook))
    check_dataset((cfg.get('train_dataloader') or {}).get('dataset'))


def check_model(model: Any) -> None:
    """Let the editor's class check what training reads of its settings, where it can."""
    if not isinstance(model, Mapping) or 'type' not in model:
        return
    if (check := getattr(MODELS.get(model['type']), 'check_training', None)) is not None:
        check(model)


def check_constructor(optim_wrapper: Any) -> None:
    """Let the constructor of the optimizer check ``paramwise_cfg``, where it has a ``check``."""
    if not isinstance(optim_wrapper, Mapping) or 'constructor' not in optim_wrapper:
        return
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get(optim_wrapper['constructor'])
    if (check := getattr(constructor, 'check', None)) is not None:
        check(optim_wrapper.get('paramwise_cfg'))


def check_schedules(schedules: Any, train_cfg: Any) -> None:
    """That every schedule of steps begins before it ends: without an end of its own, as training.

    Raises:
        ConfigError: naming the schedule.
    """
    steps = (train_cfg or {}).get('max_iters')
    if not isinstance(schedules, list | tuple):
        schedules = [] if schedules is None else [schedules]
    for place, schedule in enumerate(schedules):
        if not isinstance(schedule, Mapping) or schedule.get('by_epoch', True):
            continue
        begin, end = schedule.get('begin', 0), schedule.get('end', steps)
        if end is not None and begin >= end:
            where = '' if 'end' in schedule else ', as the training does (train_cfg.max_iters)'
            raise ConfigError(
                f'param_scheduler.{place} begins at step {begin} and ends at step {end}{where}; '
                'expected an earlier begin. param_scheduler=[] trains at one rate.'
            )


def check_dataset(dataset: Any) -> None:
    """Build a dataset once for its checks; of one around another, such as a cache, the inner one:
    the cache itself would encode its clips."""
    if not isinstance(dataset, Mapping):
        return
    if isinstance(dataset.get('dataset'), Mapping):
        check_dataset(dataset['dataset'])
    else:
        DATASETS.build(copy.deepcopy(dataset))


def _ask(registry: Any, part: Any) -> None:
    """Call the ``check`` of a part's class, where it has one, with the part's settings."""
    if not isinstance(part, Mapping) or 'type' not in part:
        return
    check = getattr(registry.get(part['type']), 'check', None)
    if check is not None:
        check(part)

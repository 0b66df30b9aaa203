"""The registries of mmvideo: children of MMEngine's that build registered names only.

MMEngine's ``Registry.get`` falls back to importing any dotted name, so a config with
``type='subprocess.getoutput'`` would run a command. Here a name is looked up in this registry and
its ancestors, and nothing is ever imported because a config says so.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mmengine.registry as root
from mmengine.registry import Registry as _Registry

SCOPE = 'mmvideo'


@contextmanager
def _not_imported(name: str) -> Iterator[None]:
    """Let ``import name`` fail as if it were not installed; nothing if it is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what Python reads as "not to be found"
    try:
        yield
    finally:
        del sys.modules[name]


# ``mmengine.optim`` registers one optimizer of transformers if it can import it, and with it come
# transformers' trainer and peft: about 4 seconds, for every command and every refusal of a
# mistake. It is registered below under the same name, and imported by the training that uses it.
with _not_imported('transformers'):
    import mmengine.optim  # noqa: F401


class UnknownTypeError(KeyError):
    """A config names a ``type`` that no registry knows."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(_Registry):
    """An MMEngine registry that never imports what a config names."""

    def get(self, key: str) -> Any:
        """Return the class registered as ``key`` here or in a parent.

        Raises:
            UnknownTypeError: naming the nearest registered name.
        """
        if not isinstance(key, str):
            raise TypeError(f'{self.name} type must be a string, got {key!r}')
        self.import_from_location()
        name = key.removeprefix(f'{SCOPE}.')
        registry: _Registry | None = self
        while registry is not None:
            registry.import_from_location()
            if name in registry.module_dict:
                return registry.module_dict[name]
            registry = registry.parent
        raise UnknownTypeError(self._unknown(key))

    def names(self) -> list[str]:
        """Every name that ``get`` would answer, sorted."""
        self.import_from_location()
        found: set[str] = set()
        registry: _Registry | None = self
        while registry is not None:
            found.update(registry.module_dict)
            registry = registry.parent
        return sorted(found)

    def _unknown(self, key: str) -> str:
        if '.' in key:
            return (
                f'{key!r} is a dotted path; a config may only name types that are registered '
                f'in {self.name!r}. Register the class with @register_module() and import it.'
            )
        near = difflib.get_close_matches(key, self.names(), n=1, cutoff=0.5)
        hint = f' Did you mean {near[0]!r}?' if near else ''
        return f'unknown {self.name} type {key!r}.{hint}'


def _child(node: str, *locations: str) -> Registry:
    parent = getattr(root, node)
    return Registry(
        parent.name,
        build_func=parent.build_func,
        parent=parent,
        scope=SCOPE,
        locations=[f'mmvideo.{location}' for location in locations],
    )


# Every root node has a child: a missing one makes MMEngine warn at each build.
RUNNERS = _child('RUNNERS')
RUNNER_CONSTRUCTORS = _child('RUNNER_CONSTRUCTORS')
LOOPS = _child('LOOPS', 'engine')
HOOKS = _child('HOOKS', 'engine')
LOG_PROCESSORS = _child('LOG_PROCESSORS')
OPTIMIZERS = _child('OPTIMIZERS')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS', 'engine')
PARAM_SCHEDULERS = _child('PARAM_SCHEDULERS')
DATASETS = _child('DATASETS', 'datasets')
DATA_SAMPLERS = _child('DATA_SAMPLERS', 'datasets')
TRANSFORMS = _child('TRANSFORMS', 'datasets')
MODELS = _child('MODELS', 'models', 'editors')
MODEL_WRAPPERS = _child('MODEL_WRAPPERS')
WEIGHT_INITIALIZERS = _child('WEIGHT_INITIALIZERS')
TASK_UTILS = _child('TASK_UTILS')
METRICS = _child('METRICS', 'evaluation')
EVALUATOR = _child('EVALUATOR', 'evaluation')
VISUALIZERS = _child('VISUALIZERS', 'engine')
VISBACKENDS = _child('VISBACKENDS', 'engine')
STRATEGIES = _child('STRATEGIES')
FUNCTIONS = _child('FUNCTIONS', 'datasets')
INFERENCERS = _child('INFERENCERS', 'apis')
SCHEDULERS = Registry('scheduler', scope=SCOPE, locations=['mmvideo.models'])
TOKENIZERS = Registry('tokenizer', scope=SCOPE, locations=['mmvideo.models'])


def _adafactor(
    params: Any,
    lr: float | None = None,
    eps: tuple[float, float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> Any:
    """transformers' Adafactor (Shazeer and Stern 2018), imported when it is built."""
    from transformers import Adafactor

    return Adafactor(
        params, lr, eps, clip_threshold, decay_rate, beta1, weight_decay, scale_parameter,
        relative_step, warmup_init,
    )  # fmt: skip


if 'Adafactor' not in root.OPTIMIZERS.module_dict:
    root.OPTIMIZERS.register_module(name='Adafactor', module=_adafactor)

"""MMEngine's Runner with checkpoints of our own: directories that are verified, never pickles."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object, barrier, get_dist_info, is_main_process
from mmengine.runner import Runner
from torch import nn

from mmvideo.checkpoints.commit import checkpoints, commit, prune, read_commit
from mmvideo.engine.ema import EMAHook
from mmvideo.engine.precheck import check_training
from mmvideo.errors import UserError, WeightsError
from mmvideo.registry import RUNNERS

# The sections that make two runs the same experiment. The rest (work dir, hooks, launcher, length
# of training, validation) may change between a run and its continuation.
IDENTITY = ('model', 'train_dataloader', 'optim_wrapper', 'randomness', 'data_preprocessor')


@RUNNERS.register_module()
class VideoRunner(Runner):
    """A Runner whose checkpoints hold what was trained, and nothing that runs as code.

    A checkpoint is the directory ``work_dir/iter_N``: trained parameters, EMA, optimizer state,
    schedulers, every random generator, the step and a fingerprint of the config.
    """

    _has_loaded: bool

    @classmethod
    def from_cfg(cls, cfg: Any) -> Runner:
        """Build a runner; what cannot be is refused before any weight is read.

        Raises:
            UserError: naming the setting that a part refuses, or, when resuming, the key in which
                the checkpoint's config differs.
        """
        if cfg.get('train_cfg') is not None:
            check_training(cfg)
        if cfg.get('resume') and (folder := to_resume(cfg.work_dir, cfg.get('load_from'))):
            check_same_experiment(folder, cfg)
        return super().from_cfg(cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """As MMEngine's, but a model that nothing is trained of stays as it is.

        DistributedDataParallel exchanges gradients and refuses a model without any; the processes
        of a test only share its clips.
        """
        if any(parameter.requires_grad for parameter in model.parameters()):
            return super().wrap_model(model_wrapper_cfg, model)
        return model.to(get_device())

    def load_or_resume(self) -> None:
        """Resume the newest checkpoint of the work dir, or the one named by ``load_from``."""
        if self._has_loaded:
            return
        if self._resume:
            folder = to_resume(self.work_dir, self._load_from)
            if folder:
                self.resume(folder)
            else:
                self.logger.info(f'nothing to resume in {self.work_dir}: starting at step 0')
        elif self._load_from:
            tensors, _ = read_commit(Path(self._load_from))
            load_trained(self.model, tensors['model'], Path(self._load_from))
        self._has_loaded = True

    def resume(self, filename: Path | str, **kwargs: Any) -> None:
        """Continue from a checkpoint directory, bit for bit.

        Raises:
            WeightsError: the checkpoint is damaged or belongs to another config.
        """
        folder = Path(filename)
        tensors, state = read_commit(folder)
        check_same_experiment(folder, self.cfg)
        load_trained(self.model, tensors['model'], folder)
        load_optimizer(self.optim_wrapper.optimizer, tensors['optimizer'], state['optimizer'])
        for scheduler, saved in zip(self.param_schedulers or [], state['schedulers'], strict=True):
            # `end` follows the config, so that raising max_iters does not freeze the rate.
            scheduler.load_state_dict({k: v for k, v in saved.items() if k != 'end'})
        for hook in self.hooks:
            if isinstance(hook, EMAHook) and 'ema' in tensors:
                hook.averages = {k: v.to(self._device()) for k, v in tensors['ema'].items()}
        self.train_loop._iter = state['iter']
        self._restore_rng(tensors['rng'], state['rng'])
        self.logger.info(f'resumed {folder} at step {state["iter"]}')

    def commit(self, keep: int) -> None:
        """Write ``iter_N`` now (main process; others wait) and keep the newest ``keep``."""
        generators = all_gather_object(dump_rng())  # every process draws its own noise
        if is_main_process():
            commit(Path(self.work_dir) / f'iter_{self.iter}', *self._snapshot(generators))
            prune(Path(self.work_dir), keep)
        barrier()

    def _snapshot(self, generators: list[tuple[dict, dict]]) -> tuple[dict, dict]:
        optimizer, optimizer_state = dump_optimizer(self.optim_wrapper.optimizer)
        rng = {f'{rank}.{k}': v for rank, (own, _) in enumerate(generators) for k, v in own.items()}
        tensors = dict(model=trained_parameters(self.model), optimizer=optimizer, rng=rng)
        for hook in self.hooks:
            if isinstance(hook, EMAHook):
                tensors['ema'] = hook.averages
        state = dict(
            iter=self.iter,
            optimizer=optimizer_state,
            schedulers=[plain(s.state_dict()) for s in self.param_schedulers or []],
            rng=[plain_state for _, plain_state in generators],
            config=config_summary(self.cfg),
        )
        return tensors, state

    def _restore_rng(self, tensors: dict[str, torch.Tensor], states: list[dict]) -> None:
        rank, world_size = get_dist_info()
        if len(states) != world_size:
            self.logger.warning(
                f'the checkpoint was made by {len(states)} processes, here are {world_size}: '
                'random numbers go on differently than in a run that was not stopped'
            )
            return
        start = f'{rank}.'
        own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        restore_rng(own, states[rank])

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def to_resume(work_dir: str | Path, named: str | Path | None) -> Path | None:
    """The checkpoint to continue: the one that is named, or the newest of the work dir, if any."""
    return Path(named) if named else next(reversed(checkpoints(Path(work_dir))), None)


def check_same_experiment(folder: Path, cfg: Any) -> None:
    """Refuse a checkpoint of another config; reads its state, no weights."""
    try:
        saved = json.loads((folder / 'state.json').read_text(encoding='utf-8'))['config']
    except FileNotFoundError:
        raise WeightsError(f'{folder} is no checkpoint: it has no state.json.') from None
    except (ValueError, KeyError, TypeError):
        raise WeightsError(f'{folder}/state.json is damaged: it is no JSON of ours.') from None
    if difference := config_difference(saved, config_summary(cfg)):
        raise UserError(
            f'{folder} was made by another config: {difference}. '
            'Use another --work-dir, or load its weights only with load_from.'
        )


def trained_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters with ``requires_grad``, without any wrapper's prefix."""
    model = getattr(model, 'module', model)
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def load_measured(model: nn.Module, folder: Path) -> str:
    """Fill a model that is measured with a checkpoint's EMA copy, which exports are made of.

    Returns:
        ``'ema'``, or ``'model'`` for the trained parameters of a checkpoint without a copy.
    """
    tensors, _ = read_commit(folder)
    kind = 'ema' if tensors.get('ema') else 'model'
    load_trained(model, tensors[kind], folder)
    return kind


@torch.no_grad()
def load_trained(model: nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Copy saved parameters into the trained ones; every name and shape must match."""
    own = trained_parameters(model)
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or extra:
        raise WeightsError(
            f'{source} is not a checkpoint of this model: {len(missing)} trained parameters are '
            f'missing ({", ".join(missing[:3])}), {len(extra)} are not trained here '
            f'({", ".join(extra[:3])}).'
        )
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise WeightsError(
                f'{source}: {name} has shape {tuple(tensors[name].shape)}, '
                f'expected {tuple(parameter.shape)}.'
            )
        parameter.copy_(tensors[name])


def dump_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """An optimizer's state as named tensors, and its groups and scalars as plain data."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in state['state'].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f'{index}.{key}'] = value
            else:
                scalars[f'{index}.{key}'] = value
    return tensors, dict(groups=plain(state['param_groups']), scalars=plain(scalars))


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], saved: dict
) -> None:
    """Put back what ``dump_optimizer`` gave."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *saved['scalars'].items()]:
        index, key = name.split('.', 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({'state': state, 'param_groups': saved['groups']})


def dump_rng() -> tuple[dict[str, torch.Tensor], dict]:
    """The state of every random generator that this process draws from in training."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = dict(
        torch=torch.get_rng_state(), numpy=torch.from_numpy(np.asarray(keys).astype(np.int64))
    )
    if _cuda():
        tensors['cuda'] = torch.cuda.get_rng_state()  # of this process's device
    version, internal, gauss = random.getstate()
    python = [version, list(internal), gauss]
    return tensors, dict(python=python, numpy=[name, position, has_gauss, cached])


def restore_rng(tensors: dict[str, torch.Tensor], state: dict) -> None:
    """Put back what ``dump_rng`` gave."""
    torch.set_rng_state(tensors['torch'].cpu())
    name, position, has_gauss, cached = state['numpy']
    keys = tensors['numpy'].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    if _cuda() and 'cuda' in tensors:
        torch.cuda.set_rng_state(tensors['cuda'].cpu())


def config_summary(cfg: Any) -> dict:
    """What identifies an experiment: the config as plain data, without how it is run."""
    return {key: plain(cfg[key]) for key in IDENTITY if cfg.get(key) is not None}


def config_difference(saved: dict, current: dict, path: str = '') -> str:
    """The first key in which two configs differ, with both values; empty when they agree."""
    for key in sorted({*saved, *current}):
        a, b, where = saved.get(key), current.get(key), f'{path}{key}'
        if isinstance(a, dict) and isinstance(b, dict):
            if found := config_difference(a, b, f'{where}.'):
                return found
        elif a != b:
            return f'{where} was {a!r}, is now {b!r}'
    return ''


def plain(value: Any) -> Any:
    """A copy made of JSON's types only."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic | torch.Tensor):
        return value.item()
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return repr(value)


def _cuda() -> bool:
    return torch.cuda.is_available()

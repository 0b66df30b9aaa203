"""From a config to a trained model, and to its figures on a test set."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmvideo.checkpoints.commit import checkpoints
from mmvideo.checkpoints.files import write_text
from mmvideo.config import load_config, parse_cfg_options
from mmvideo.errors import ConfigError, InputError

TRAIN_SECTIONS = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
TEST_SECTIONS = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')
TRAIN_ONLY = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'custom_hooks')


def train(
    config: str | Path,
    work_dir: str | None = None,
    resume: bool = False,
    launcher: str = 'none',
    cfg_options: Sequence[str] = (),
) -> None:
    """Train what ``config`` describes.

    Args:
        config: path of a config.
        work_dir: where checkpoints, samples and logs go; None is ``work_dirs/<config name>``.
        resume: continue the newest checkpoint there.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
        cfg_options: ``key=value`` strings.

    Raises:
        UserError: before any weight is read, where the input allows it.
    """
    cfg = _prepare(config, work_dir, launcher, cfg_options, TRAIN_SECTIONS)
    cfg.resume = resume
    # Test sections would make the runner ask for a complete test set-up.
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg.pop(key, None)
    found = checkpoints(Path(cfg.work_dir))
    if found and not resume:
        raise InputError(
            f'{cfg.work_dir} holds another run ({found[-1].name}): '
            'continue it with --resume, or choose another --work-dir.'
        )
    _check_writable(Path(cfg.work_dir))
    with _runner(cfg) as runner:
        runner.train()


def test(
    config: str | Path,
    work_dir: str | None = None,
    checkpoint: str | None = None,
    launcher: str = 'none',
    cfg_options: Sequence[str] = (),
    out: str | None = None,
) -> dict[str, float]:
    """Figures of the config's test evaluator; arguments as ``train``.

    Args:
        checkpoint: a training checkpoint whose trained parameters are tested.
        out: a JSON file for the figures.
    """
    cfg = _prepare(config, work_dir, launcher, cfg_options, TEST_SECTIONS)
    for key in TRAIN_ONLY:
        cfg.pop(key, None)
    cfg.load_from = checkpoint
    _check_writable(Path(cfg.work_dir))
    with _runner(cfg) as runner:
        figures = runner.test()
    if out is not None:
        write_text(Path(out), json.dumps(figures, indent=2) + '\n')
    return figures


def _prepare(
    config: str | Path,
    work_dir: str | None,
    launcher: str,
    cfg_options: Sequence[str],
    sections: Sequence[str],
) -> Config:
    cfg = load_config(config, parse_cfg_options(cfg_options))
    for section in sections:
        if cfg.get(section) is None:
            raise ConfigError(f'{config}: {section!r} is missing, and this needs it.')
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(config).stem}'
    cfg.launcher = launcher
    return cfg


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'--work-dir {folder}: cannot be made ({error.strerror}).') from error
    if not os.access(folder, os.W_OK):
        raise InputError(f'--work-dir {folder}: not writable.')


@contextmanager
def _runner(cfg: Config) -> Iterator[Any]:
    from mmvideo.engine import VideoRunner

    _start_gloo_without_gpu(cfg)
    try:
        yield VideoRunner.from_cfg(cfg)
        # Rank 0 may still be writing; without this, the others end and take it down.
        if _distributed():
            torch.distributed.barrier()
    finally:
        if _distributed():
            torch.distributed.destroy_process_group()


def _start_gloo_without_gpu(cfg: Config) -> None:
    # MMEngine's init_dist sets a CUDA device even for gloo; an initialised group makes it skip.
    # Its wrapper names a device too, which DistributedDataParallel refuses for CPU modules.
    if cfg.launcher == 'none' or torch.cuda.is_available():
        return
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
        )


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()

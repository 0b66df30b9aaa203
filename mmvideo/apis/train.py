"""From a config to a trained model, and to its figures on a test set."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process

from mmvideo.apis.cli import json_file
from mmvideo.apis.devices import dtype_name, pick_device, pick_dtype
from mmvideo.apis.progress import Progress
from mmvideo.checkpoints.commit import MANIFEST, checkpoints
from mmvideo.checkpoints.files import write_text
from mmvideo.config import load_config, parse_cfg_options
from mmvideo.errors import ConfigError, InputError, nearest

TRAIN_SECTIONS = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
TEST_SECTIONS = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')
TRAIN_ONLY = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'custom_hooks')
_FIGURES_ONLY = dict(type='LoggerHook', interval=10**9)


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
    dtype: str = 'float32',
    limit: int | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Figures of the config's test evaluator; arguments as ``train``.

    They are also written to ``figures.json`` beside the log, with what they were measured on and
    what each clip was found to be.

    Args:
        checkpoint: a training checkpoint (``iter_N``) to test: its EMA copy, as in validation and
            exports, or its trained parameters where it has none. The file says which (``weights``).
        out: another JSON file for the same.
        dtype: what the model's parameters are and compute in, as in ``VideoInferencer``.
        limit: test the first so many clips.
        progress: show the clips done and the time left on stderr.

    Raises:
        UserError: before any weight is read, where the input allows it.
    """
    from mmvideo.engine.clip_counter import ClipCounter
    from mmvideo.engine.precheck import check_dataset
    from mmvideo.engine.runner import load_measured

    out_file = json_file(out)
    cfg = _prepare(config, work_dir, launcher, cfg_options, TEST_SECTIONS)
    for key in TRAIN_ONLY:
        cfg.pop(key, None)
    precision = pick_dtype(dtype, pick_device())
    cfg.load_from = None
    folder = None if checkpoint is None else _checkpoint(checkpoint)
    check_dataset(cfg.test_dataloader.get('dataset'))
    if limit is not None:
        if limit < 1:
            raise InputError(f'limit={limit}: expected at least 1 clip.')
        loader = cfg.test_dataloader
        loader.dataset = dict(type='FirstItems', dataset=loader.dataset, count=limit)
    # The progress takes the place of a line every few batches.
    cfg.default_hooks = {**(cfg.get('default_hooks') or {}), 'logger': _FIGURES_ONLY}
    _check_writable(Path(cfg.work_dir))
    with _runner(cfg) as runner:
        weights = None if folder is None else load_measured(runner.model, folder)
        getattr(runner.model, 'module', runner.model).to(dtype=precision)
        clips = len(runner.test_dataloader.dataset)
        shown = progress and is_main_process()
        with Progress(1, clips, 'testing', shown, unit='clip') as bar:
            bar.next_clip()
            runner.register_hook(ClipCounter(bar.callback, clips))
            begin = time.monotonic()
            figures = runner.test()
        found = dict(
            config=str(config),
            checkpoint=checkpoint,
            weights=weights,
            cfg_options=list(cfg_options),
            clips=clips,
            dtype=dtype_name(precision),
            device=next(runner.model.parameters()).device.type,
            seconds=round(time.monotonic() - begin, 1),
            figures=figures,
            # What a metric keeps of single clips.
            each={
                type(metric).__name__: metric.clips
                for metric in runner.test_evaluator.metrics
                if getattr(metric, 'clips', None)
            },
        )
        if is_main_process():
            for path in filter(None, (Path(runner.log_dir) / 'figures.json', out_file)):
                write_text(path, json.dumps(found, indent=2) + '\n')
    return figures


def _checkpoint(named: str) -> Path:
    """The folder of ``--checkpoint``; what is in it is verified when it is read."""
    folder = Path(named).expanduser()
    if not (folder / MANIFEST).is_file():
        names = [path.name for path in checkpoints(folder if folder.is_dir() else folder.parent)]
        hint = nearest(folder.name, names) or (f' There is {names[-1]!r}.' if names else '')
        raise InputError(
            f'--checkpoint {named}: expected a folder iter_N of a training, with its {MANIFEST}.'
            + hint
        )
    return folder


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

"""The sprite family, stage by stage: each trains on what the stages before it exported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmvideo.checkpoints.files import sha256, write_text
from mmvideo.config import load_config
from mmvideo.errors import InputError, UserError

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = 'manifest.json'


@dataclass(frozen=True)
class Stage:
    """One training: its config, the sources that its config names, and what it leaves.

    Attributes:
        config: file below ``configs``.
        sources: config keys whose ``from_pretrained`` is the family's folder.
        parts: exported folder to its name in the family.
    """

    config: str
    sources: tuple[str, ...]
    parts: dict[str, str]


_TEXT = ('model.text_encoder', 'model.tokenizer')
_LATENTS = ('model.vae', 'train_dataloader.dataset.vae')
_T2I = {'unet': 'unet', 'text_encoder': 'text_encoder', 'tokenizer': 'tokenizer'}
_MOTION = {'motion_adapter': 'motion_adapter'}
_PIA = {'motion_adapter': 'pia'}
_SVD = {'unet': 'unet_svd'}
_I2VGEN_XL = {'unet': 'unet_i2vgen-xl'}
_MOVING = (*_LATENTS, *_TEXT, 'model.unet', 'model.motion_module')
STAGES = {
    'vae': Stage('sprites/train_vae_sprites.py', (), {'vae': 'vae'}),
    'vae_decoder': Stage('sprites/train_vae_decoder_sprites.py', ('model.vae',), {'vae': 'vae'}),
    't2i_near': Stage('sprites/train_t2i_sprites_near.py', _LATENTS, _T2I),
    't2i': Stage('sprites/train_t2i_sprites.py', (*_LATENTS, *_TEXT, 'model.unet'), _T2I),
    'animatediff_centred': Stage(
        'sprites/train_animatediff_sprites_centred.py', (*_LATENTS, *_TEXT, 'model.unet'), _MOTION
    ),
    'animatediff': Stage('sprites/train_animatediff_sprites.py', _MOVING, _MOTION),
    'animatediff_joint': Stage(
        'sprites/train_animatediff_sprites_joint.py', _MOVING, {**_T2I, **_MOTION}
    ),
    'animatediff_turning': Stage('sprites/train_animatediff_sprites_turning.py', _MOVING, _MOTION),
    'pia_still': Stage('sprites/train_pia_sprites_still.py', _MOVING, _PIA),
    'pia_short': Stage('sprites/train_pia_sprites_short.py', _MOVING, _PIA),
    'pia': Stage('sprites/train_pia_sprites.py', _MOVING, _PIA),
    'sketch': Stage(
        'sprites/train_t2i_sprites_sketch.py',
        (*_LATENTS, *_TEXT, 'model.unet'),
        {'lora': 'lora_sketch'},
    ),
    'svd_vae': Stage(
        'svd/train_vae_svd_sprites.py', ('model.vae.image_weights',), {'vae': 'vae_svd'}
    ),
    'svd_frames': Stage(
        'svd/train_svd_sprites_frames.py', _LATENTS, {**_SVD, 'image_encoder': 'image_encoder'}
    ),
    'svd': Stage(
        'svd/train_svd_sprites.py', (*_LATENTS, 'model.image_encoder', 'model.unet'), _SVD
    ),
    'i2vgen-xl_short': Stage(
        'i2vgen_xl/train_i2vgen-xl_sprites_short.py',
        (*_LATENTS, *_TEXT, 'model.image_encoder', 'model.unet.image_weights'),
        _I2VGEN_XL,
    ),
    'i2vgen-xl': Stage(
        'i2vgen_xl/train_i2vgen-xl_sprites.py',
        (*_LATENTS, *_TEXT, 'model.image_encoder', 'model.unet'),
        _I2VGEN_XL,
    ),
}


def train_family(
    out: str | Path, work_dir: str | Path, stages: Sequence[str], steps_scale: float = 1.0
) -> None:
    """Train ``stages`` in the family's order, and gather their weights in ``out``.

    Args:
        out: the family's folder, as ``package://sprites`` is.
        work_dir: checkpoints and logs, one folder a stage.
        stages: names of ``STAGES``.
        steps_scale: factor on every stage's steps, and on the clips that it caches.

    Raises:
        UserError: a stage failed, or lacks the weights of an earlier one.
    """
    if steps_scale <= 0:
        raise InputError(f'--steps-scale {steps_scale}: expected a number above 0.')
    out, work_dir = Path(out), Path(work_dir)
    for name in STAGES:
        if name in stages:
            _train_stage(name, out, work_dir, steps_scale)


def _train_stage(name: str, out: Path, work_dir: Path, steps_scale: float) -> None:
    stage = STAGES[name]
    config = ROOT / 'configs' / stage.config
    folder = work_dir / name
    cfg = load_config(config)
    steps = _scaled(cfg.train_cfg.max_iters, steps_scale)
    begin = time.monotonic()
    done = (folder / 'export').is_dir()
    if done and name in _manifest(out)['stages']:
        # Not installed again: a later stage may have replaced its weights.
        print(f'{name}: done before', flush=True)
        return
    if not done:
        options = [f'{key}.from_pretrained={out}' for key in stage.sources]
        if steps_scale != 1:
            options += _trial(cfg, steps_scale)
        _run(config, folder, options)
    for exported, part in stage.parts.items():
        _install(folder / 'export' / exported, out / part)
    _note(out, name, stage, steps, time.monotonic() - begin)
    print(f'{name}: {steps} steps in {(time.monotonic() - begin) / 60:.1f} minutes', flush=True)


def _scaled(number: int, scale: float) -> int:
    return max(1, round(number * scale))


def _trial(cfg: Config, scale: float) -> list[str]:
    """Options of a shorter training: fewer steps, and fewer clips to encode before the first."""
    # It is too short for a warm-up and a decay of its own.
    options = [f'train_cfg.max_iters={_scaled(cfg.train_cfg.max_iters, scale)}']
    options.append('param_scheduler=[]')
    loader = cfg.train_dataloader
    if 'num_clips' in loader.dataset:
        clips = max(loader.batch_size, _scaled(loader.dataset.num_clips, scale))
        options.append(f'train_dataloader.dataset.num_clips={clips}')
    return options


def _run(config: Path, folder: Path, options: Sequence[str]) -> None:
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--resume']
    command += ['--work-dir', str(folder)]
    command += ['--cfg-options', *options] if options else []
    done = subprocess.run(command, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise UserError(f'{config.name} failed with exit code {done.returncode}; see {folder}.')


def _install(source: Path, target: Path) -> None:
    """Replace a part's folder by a copy, complete before it is visible."""
    aside = target.with_name(target.name + '.new')
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def _note(out: Path, name: str, stage: Stage, steps: int, seconds: float) -> None:
    """Record in the manifest what made the weights."""
    manifest = _manifest(out)
    files = [f for part in stage.parts.values() for f in sorted((out / part).glob('*.safetensors'))]
    made = {str(f.relative_to(out)): sha256(f) for f in files}
    for earlier in manifest['stages'].values():  # what this stage trained on is replaced by it
        earlier['files'] = {k: v for k, v in earlier['files'].items() if k not in made}
    manifest['stages'][name] = dict(
        config=f'configs/{stage.config}',
        steps=steps,
        minutes=round(seconds / 60, 1),
        files=made,
    )
    manifest['licence'] = 'Apache-2.0'
    write_text(out / MANIFEST, json.dumps(manifest, indent=2) + '\n')


def _manifest(out: Path) -> dict[str, Any]:
    path = out / MANIFEST
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {'stages': {}}

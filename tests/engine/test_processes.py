"""tools/train.py as real processes: killed and resumed, refused, and two at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mmengine import Config

from mmvideo.apis.train import train
from mmvideo.checkpoints.files import read_tensors
from mmvideo.checkpoints.save import save_part
from mmvideo.errors import UserError
from mmvideo.registry import MODELS

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'train.py'
CONFIG = Path(__file__).with_name('tiny_train.py')
TENSORS = ('model', 'ema', 'optimizer', 'rng')
TIMEOUT = 600


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_OFFLINE': '1'}


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A config whose clips are cached latents, of which training draws random windows.

    Everything that a resumed run must draw again is in it: windows, latents of the posterior,
    noise, timesteps and dropped captions.
    """
    vae = Config.fromfile(CONFIG).model.vae.to_dict()
    save_part(tmp_path / 'base' / 'vae', dict((built := MODELS.build(vae)).config), built)
    source = dict(type='AutoencoderKL', from_pretrained=str(tmp_path / 'base'), subfolder='vae')
    dataset = dict(
        type='CachedLatents',
        _delete_=True,
        dataset=dict(type='SpriteWorld', length=8, num_frames=4, size=32),
        vae=source,
        cache_dir=str(tmp_path / 'cache'),
        num_clips=8,
        num_frames=3,
    )
    path = tmp_path / 'cached.py'
    path.write_text(
        f'_base_ = {str(CONFIG)!r}\n'
        f'model = dict(vae=dict(_delete_=True, **{source!r}), caption_dropout=0.5)\n'
        f'train_dataloader = dict(dataset={dataset!r})\n'
        'train_cfg = dict(max_iters=14)\n'
        'default_hooks = dict(checkpoint=dict(interval=2))\n'
    )
    return path


def test_killed_and_resumed_is_as_if_never_stopped(cached: Path, tmp_path: Path) -> None:
    run(tmp_path, TOOL, cached, '--work-dir', 'whole')
    command = [sys.executable, str(TOOL), str(cached), '--work-dir', 'parts']
    with open(tmp_path / 'log', 'w') as log:
        child = subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=log, stderr=subprocess.STDOUT
        )
        start = time.monotonic()
        while not (tmp_path / 'parts' / 'iter_4').is_dir():
            assert child.poll() is None and time.monotonic() - start < TIMEOUT, log.name
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait(TIMEOUT)
    assert not (tmp_path / 'parts' / 'iter_14').exists()
    run(tmp_path, TOOL, cached, '--work-dir', 'parts', '--resume')
    whole, parts = tmp_path / 'whole' / 'iter_14', tmp_path / 'parts' / 'iter_14'
    for name in TENSORS:
        file = f'{name}.safetensors'
        assert (whole / file).read_bytes() == (parts / file).read_bytes(), name
    assert (whole / 'state.json').read_text() == (parts / 'state.json').read_text()
    kept = sorted(p.name for p in (tmp_path / 'parts').glob('iter_*'))
    assert kept == ['iter_12', 'iter_14']


@pytest.fixture(scope='module')
def three_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of a run of three steps; not to be changed."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    train(CONFIG, str(folder))
    return folder


@pytest.fixture
def finished(three_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may damage, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(three_steps, tmp_path / 'run')
    return tmp_path / 'run'


@pytest.fixture
def unbuildable(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where no model can be built any more, so none is read before a refusal."""
    monkeypatch.setattr('mmvideo.registry.MODELS.build', None)
    return finished


def test_another_runs_folder_is_not_written_to(unbuildable: Path) -> None:
    with pytest.raises(UserError, match=r'run holds another run \(iter_3\).*--resume'):
        train(CONFIG, 'run')


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('optim_wrapper.optimizer.lr=0.5', r'optim_wrapper\.optimizer\.lr was 0\.01, is now 0\.5'),
        ('model.caption_dropout=0.3', r'model\.caption_dropout was .*, is now 0\.3'),
        ('train_dataloader.batch_size=2', r'train_dataloader\.batch_size was 1, is now 2'),
        ('randomness.seed=1', r'randomness\.seed was 0, is now 1'),
    ],
)
def test_resuming_with_another_config_is_refused(
    unbuildable: Path, option: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(CONFIG, 'run', resume=True, cfg_options=[option])


@pytest.mark.parametrize('name', ['model', 'ema', 'optimizer', 'rng'])
@pytest.mark.parametrize('damage', ['flipped', 'cut', 'missing'])
def test_a_damaged_checkpoint_is_refused_by_name(finished: Path, name: str, damage: str) -> None:
    path = finished / 'iter_3' / f'{name}.safetensors'
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == 'flipped' else content[: len(content) // 2])
    if damage == 'missing':
        path.unlink()
    with pytest.raises(UserError, match=rf'iter_3/{name}\.safetensors is (damaged|missing)'):
        train(CONFIG, 'run', resume=True, cfg_options=['train_cfg.max_iters=4'])


def test_a_longer_run_may_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(CONFIG, 'run', cfg_options=['train_cfg.max_iters=2'])
    train(CONFIG, 'run', resume=True, cfg_options=['train_cfg.max_iters=4'])
    train(CONFIG, 'whole', cfg_options=['train_cfg.max_iters=4'])
    for name in TENSORS:
        file = f'iter_4/{name}.safetensors'
        assert (tmp_path / 'run' / file).read_bytes() == (tmp_path / 'whole' / file).read_bytes()


def test_resumed_with_workers_is_as_if_never_stopped(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows are drawn in the workers; how many there are changes nothing either."""
    monkeypatch.chdir(tmp_path)
    two, one = 'train_dataloader.num_workers=2', 'train_dataloader.num_workers=1'
    train(cached, 'run', cfg_options=['train_cfg.max_iters=3', two])
    train(cached, 'run', resume=True, cfg_options=['train_cfg.max_iters=6', two])
    train(cached, 'whole', cfg_options=['train_cfg.max_iters=6', one])
    for name in TENSORS:
        file = f'iter_6/{name}.safetensors'
        assert (tmp_path / 'run' / file).read_bytes() == (tmp_path / 'whole' / file).read_bytes()


def test_two_processes_equal_one_with_their_batch(tmp_path: Path) -> None:
    script = Path(__file__).with_name('fixed_noise_train.py')

    def options(batch: int) -> list[Any]:
        return [
            '--cfg-options', f'train_dataloader.batch_size={batch}', 'model.caption_dropout=0.0',
            'optim_wrapper.clip_grad.max_norm=0.01',
        ]  # fmt: skip

    run(tmp_path, script, CONFIG, '--work-dir', 'one', *options(4))
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2]
    run(tmp_path, *launcher, script, CONFIG, '--work-dir', 'two', '--launcher', 'pytorch',
        *options(2))  # fmt: skip
    for name in ('model', 'ema'):
        one = read_tensors(tmp_path / 'one' / 'iter_3' / f'{name}.safetensors')
        two = read_tensors(tmp_path / 'two' / 'iter_3' / f'{name}.safetensors')
        assert set(one) == set(two) and len(one) > 10
        assert max(float((one[key] - two[key]).abs().max()) for key in one) <= 1e-6

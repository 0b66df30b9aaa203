"""Mistakes through the real tools: one line that names the thing, exit code 2, at once.

The weight files are poison: whoever reads one before the mistake is found fails with another
message. Configs and ``config.json`` files are as they should be.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
LIMIT = 5  # seconds of processor time
POISON = b'this is no weight file'

CONFIG = """
base = {folder!r}
model = dict(
    type='PIA',
    vae=dict(type='AutoencoderKL', from_pretrained=base, subfolder='sd15/vae'),
    text_encoder=dict(type='CLIPTextModel', from_pretrained=base, subfolder='sd15/text_encoder'),
    tokenizer=dict(type='CLIPTokenizer', from_pretrained=base, subfolder='sd15/tokenizer'),
    scheduler=dict(type='DDIMScheduler', beta_start=0.00085, beta_end=0.012),
    unet=dict(type='VideoUNet', from_pretrained=base, subfolder='sd15/unet'),
    motion_module=dict(type='MotionModule', from_pretrained=base, subfolder='pia'),
    condition_module=dict(type='PIACondition'),
)
infer = dict(prompt='a boat', image='boat.png', video_length=4, num_inference_steps=2, seed=0)
"""
TRAINING = """
_base_ = ['model.py', {train!r}]
infer = dict(_delete_=True)
model = dict(trainable=['motion_modules'], condition_module=dict(statistics='webvid'))
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(type='SpriteWorld', length=8, num_frames=4),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
"""


@dataclass(frozen=True)
class Mistake:
    """What is wrong, the command, and what its message must say.

    ``edit`` replaces text in ``model.py``; ``says`` are parts of the one line.
    """

    name: str
    arguments: list[str]
    says: list[str]
    tool: str = 'infer'
    edit: tuple[str, str] = ('', '')


INFER = [
    Mistake('unknown config key', ['model.py'], ["'guidence'"],
            edit=('infer = ', 'guidence = 3\ninfer = ')),
    Mistake('unknown key of a part', ['model.py'], ["'norm_scop'", "Did you mean 'norm_scope'"],
            edit=("type='MotionModule',", "type='MotionModule', norm_scop='frame',")),
    Mistake('unknown argument', ['model.py'], ["'video_lenght'", "Did you mean 'video_length'"],
            edit=('video_length', 'video_lenght')),
    Mistake('misspelt type', ['model.py'], ["'VideoUnet'", "Did you mean 'VideoUNet'"],
            edit=("'VideoUNet'", "'VideoUnet'")),
    Mistake('dotted type', ['model.py'], ["'os.system'"], edit=("'PIA'", "'os.system'")),
    Mistake('misspelt option', ['model.py', '--cfg-options', 'model.scheduler.beta_stat=0.1'],
            ["'beta_stat'", "Did you mean 'beta_start'"]),
    Mistake('option without a value', ['model.py', '--cfg-options', 'model.type'], ['KEY=VALUE']),
    Mistake('missing image', ['model.py', '--image', 'baot.png'],
            ['baot.png', "Did you mean 'boat.png'"]),
    Mistake('damaged image', ['model.py', '--image', 'cut.png'], ['cut.png', 'damaged']),
    Mistake('empty image', ['model.py', '--image', 'empty.png'], ['empty.png', '0 bytes']),
    Mistake('text as an image', ['model.py', '--image', 'text.png'], ['text.png', 'png, jpeg']),
    Mistake('size of no multiple', ['model.py', '--height', '100', '--width', '64'],
            ['height=100', 'multiple of 8', '96 or 104']),
    Mistake('size of a smaller VAE', ['model.py', '--height', '66', '--width', '64'],
            ['height=66', 'multiple of 4', '64 or 68'],
            edit=("type='AutoencoderKL', from_pretrained=base, subfolder='sd15/vae'",
                  "type='AutoencoderKL', block_out_channels=(8, 8, 8)")),
    Mistake('too many frames', ['model.py', '--num-frames', '33'], ['33', 'at most 32']),
    Mistake('motion scale', ['model.py', '--motion-scale', '9'], ['motion_scale=9', '0 to 8']),
    Mistake('name of a motion scale', ['model.py', '--motion-scale', 'loop-smal'],
            ["'loop-smal'", "Did you mean 'loop-small'"]),
    Mistake('negative seed', ['model.py', '--seed', '-1'], ['seed', '-1', 'integer from 0']),
    Mistake('steps', ['model.py', '--steps', '2.5'], ['steps', '2.5', 'integer']),
    Mistake('condition frame', ['model.py', '--condition-frame', '4'],
            ['condition_frame=4', '0 to 3']),
    Mistake('strength', ['model.py', '--strength', '0'], ['strength=0', '(0, 1]']),
    Mistake('unwritable folder', ['model.py', '--out', 'locked/a.mp4'], ['locked']),
    Mistake('file as a folder', ['model.py', '--out', 'text.png/a.mp4'], ['text.png']),
    Mistake('missing folder', ['model.py', '--out', 'missing/a.mp4'], ['missing']),
    Mistake('unknown suffix', ['model.py', '--out', 'a.avi'], ['.avi', '.mp4']),
    Mistake('empty config', ['empty.py'], ['empty.py', 'empty', 'model = dict(type=...)']),
    Mistake('syntax error', ['broken.py'], ['broken.py', 'line 2']),
    Mistake('missing config', ['modle.py'], ['modle.py', "Did you mean 'model.py'"]),
    Mistake('no prompt', ['model.py'], ['prompt is missing'], edit=("prompt='a boat', ", '')),
    Mistake('no recipe inside', ['text.mp4'], ['text.mp4']),
    Mistake('unknown device', ['model.py', '--device', 'gpu'], ['gpu', 'cpu']),
    Mistake('unknown dtype', ['model.py', '--dtype', 'float61'], ["'float61'", 'float16']),
    Mistake('missing weight file', ['model.py'],
            ['sd15/bare', 'diffusion_pytorch_model.safetensors'],
            edit=("subfolder='sd15/unet'", "subfolder='sd15/bare'")),
    Mistake('weights of another shape', ['wide.py'],
            ['time_embedding.linear_1.weight is [128, 32], expected [256, 64]']),
]  # fmt: skip

TRAIN = [
    Mistake('nothing to train on', ['model.py'], ["'train_dataloader' is missing"], tool='train'),
    Mistake('empty dataset', ['train.py', '--cfg-options', 'train_dataloader.dataset.length=0'],
            ['empty dataset', 'length is 0'], tool='train'),
    Mistake('folder of another run', ['train.py', '--work-dir', 'run'],
            ['run holds another run (iter_3)', '--resume'], tool='train'),
    Mistake('checkpoint of another config', ['train.py', '--work-dir', 'run', '--resume'],
            ['iter_3', "model.condition_module was None"], tool='train'),
    Mistake('folder that cannot be made', ['train.py', '--work-dir', 'text.png/run'],
            ['text.png/run'], tool='train'),
    Mistake('misspelt setting', ['train.py', '--cfg-options', 'train_cfg.max_iter=5'],
            ["'max_iter'", "Did you mean 'max_iters'"], tool='train'),
    Mistake('precision', ['train.py', '--cfg-options', 'optim_wrapper.dtype=bfloat61'],
            ["'bfloat61'", "Did you mean 'bfloat16'"], tool='train'),
    Mistake('steps that are no number', ['train.py', '--cfg-options', 'train_cfg.max_iters=2.5'],
            ['train_cfg.max_iters=2.5', 'integer'], tool='train'),
]  # fmt: skip
MISTAKES = INFER + TRAIN


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in the hub's layout, whole."""
    folder = tmp_path_factory.mktemp('small') / 'model'
    tool = ROOT / 'tools' / 'make_random_weights.py'
    command = [sys.executable, str(tool), str(folder), '--small', '--dtype', 'float32']
    subprocess.run(command, env=environment(), check=True, timeout=600)
    return folder


@pytest.fixture(scope='module')
def place(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the poisoned model, configs and pictures."""
    folder = tmp_path_factory.mktemp('place')
    shutil.copytree(model, folder / 'model')
    for path in (folder / 'model').rglob('*.safetensors'):
        path.write_bytes(POISON)
    bare = folder / 'model' / 'sd15' / 'bare'
    bare.mkdir()
    shutil.copy(model / 'sd15' / 'unet' / 'config.json', bare)
    (folder / 'locked').mkdir(mode=0o555)
    shutil.copytree(model, folder / 'wide')
    unet = folder / 'wide' / 'sd15' / 'unet' / 'config.json'
    unet.write_text(json.dumps({**json.loads(unet.read_text()), 'block_out_channels': [64, 64]}))
    (folder / 'wide.py').write_text(
        CONFIG.format(folder='wide').replace("type='PIA'", "type='TextToImage'")
        .replace("    condition_module=dict(type='PIACondition'),\n", '')
        .replace("    motion_module=dict(type='MotionModule', from_pretrained=base, "
                 "subfolder='pia'),\n", '')
        .replace("image='boat.png', video_length=4, ", '')
    )  # fmt: skip
    (folder / 'train.py').write_text(
        TRAINING.format(train=str(ROOT / 'configs' / '_base_' / 'train.py'))
    )
    Image.effect_noise((64, 64), 60).save(folder / 'boat.png')
    (folder / 'cut.png').write_bytes((folder / 'boat.png').read_bytes()[:900])
    (folder / 'text.png').write_text('no picture')
    (folder / 'text.mp4').write_text('no video')
    for name in ('empty.png', 'empty.py'):
        (folder / name).write_text('')
    (folder / 'broken.py').write_text('model = dict(\n    type=,\n)\n')
    checkpoint = folder / 'run' / 'iter_3'
    checkpoint.mkdir(parents=True)
    (checkpoint / 'state.json').write_text(json.dumps(dict(config=dict(model=dict(
        type='AnimateDiff')), iter=3)))  # fmt: skip
    return folder


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_OFFLINE': '1'}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.is_file())


def test_there_are_enough_of_them() -> None:
    assert len(MISTAKES) >= 22 and len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)


def run(folder: Path, mistake: Mistake) -> tuple[int, str, str, float]:
    """Exit code, output, errors and processor seconds of a tool."""
    tool = ROOT / 'tools' / f'{mistake.tool}.py'
    with open(folder.parent / 'out', 'w+') as out, open(folder.parent / 'err', 'w+') as err:
        child = subprocess.Popen(
            [sys.executable, str(tool), *mistake.arguments],
            cwd=folder,
            env=environment(),
            stdout=out,
            stderr=err,
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        seconds = usage.ru_utime + usage.ru_stime
        return child.returncode, out.read(), err.read(), seconds


@pytest.mark.parametrize('mistake', MISTAKES, ids=[m.name.replace(' ', '-') for m in MISTAKES])
def test_mistake(place: Path, mistake: Mistake, record_property: Callable) -> None:
    text = CONFIG.format(folder='model')
    assert mistake.edit[0] in text
    (place / 'model.py').write_text(text.replace(*mistake.edit) if mistake.edit[0] else text)
    if mistake.name == 'unwritable folder' and os.access(place / 'locked', os.W_OK):
        pytest.skip('this user may write everywhere')
    before = files(place)
    code, out, err, seconds = run(place, mistake)
    record_property('processor_seconds', round(seconds, 2))
    print(f'{mistake.name}: {seconds:.2f} s of processor time')
    lines = err.splitlines()
    assert code == 2, err[-2000:]
    assert out == ''
    assert len(lines) == 1 and lines[0].startswith('error: '), err
    for part in mistake.says:
        assert part in lines[0]
    assert files(place) == before
    if seconds > LIMIT:  # once more: what else the machine does only adds
        seconds = run(place, mistake)[-1]
    assert seconds <= LIMIT

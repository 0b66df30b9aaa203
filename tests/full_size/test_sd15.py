"""Stable Diffusion 1.5 with motion modules at full size, through the tool, within 16 GiB."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmvideo.apis import read_recipe

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'infer.py'
LIMIT = 16 * 2**30
BASE_PARTS = ('vae', 'text_encoder', 'tokenizer', 'unet')

pytestmark = pytest.mark.slow


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_OFFLINE': '1'}


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of random weights in the hub's layout, float16 as people download them."""
    folder = tmp_path_factory.mktemp('random')
    subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'make_random_weights.py'), str(folder)],
        env=environment(),
        check=True,
        timeout=1800,
    )
    yield folder
    for path in folder.rglob('*.safetensors'):
        path.unlink()  # pytest keeps the last folders; six gigabytes each are too much


def peak_of(arguments: list[str], folder: Path) -> int:
    """Peak memory in bytes of one run of the tool."""
    child = subprocess.Popen(
        [sys.executable, str(TOOL), *arguments], cwd=folder, env=environment(),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, errors[-3000:]
    return usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


@pytest.mark.parametrize(
    ('config', 'adapter'),
    [('animatediff/animatediff-v2_sd15.py', 'motion_adapter'), ('pia/pia_sd15.py', 'pia')],
)
def test_full_size(weights: Path, tmp_path: Path, config: str, adapter: str) -> None:
    options = [f'model.{part}.from_pretrained={weights / "sd15"}' for part in BASE_PARTS]
    options.append(f'model.motion_module.from_pretrained={weights / adapter}')
    arguments = [
        str(ROOT / 'configs' / config), '--prompt', 'a boat on the sea', '--steps', '2',
        '--height', '256', '--width', '256', '--num-frames', '16', '--out', 'a.mp4',
    ]  # fmt: skip
    if adapter == 'pia':
        Image.linear_gradient('L').resize((320, 256)).save(tmp_path / 'a.png')
        arguments += ['--image', 'a.png']
    peak = peak_of([*arguments, '--cfg-options', *options], tmp_path)
    print(f'{config}: peak {peak / 2**30:.2f} GiB')
    recipe = read_recipe(tmp_path / 'a.mp4')
    assert (recipe['output']['frames'], recipe['output']['height']) == (16, 256)
    assert peak <= LIMIT

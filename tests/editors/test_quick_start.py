"""MMagic's way of running AnimateDiff, with this package in the place of that one.

A project that moves here changes the names of the packages, of the config, and the two lines that
read what only MMagic's config has (configs/animatediff/README.md); the calls, their arguments, the
result's key and what is written stay the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]

SCRIPT = """
from pathlib import Path
import torch
from mmengine import Config

from mmvideo.models.editors.animatediff import save_videos_grid
from mmvideo.registry import MODELS
from mmvideo.utils import register_all_modules

register_all_modules()

cfg = Config.fromfile('tiny.py')
animatediff = MODELS.build(cfg.model).to('cpu')
prompts = ['best quality, a red fish, upper body, dress,', 'a blue car / in the city']
negative_prompts = ['', 'badhandv4,easynegative, bad-artist']
random_seeds = [16931037867122267877, 8893659]
savedir = f'samples/{Path(cfg.filename).stem}'
samples = []
for index, (prompt, n_prompt, seed) in enumerate(zip(prompts, negative_prompts, random_seeds)):
    output_dict = animatediff.infer(
        prompt, negative_prompt=n_prompt, video_length=4, height=16, width=24, seed=seed,
        num_inference_steps=2)
    sample = output_dict['samples']
    prompt = '-'.join((prompt.replace('/', '').split(' ')[:10]))
    save_videos_grid(sample, f'{savedir}/sample/{index}-{prompt}.gif')
    samples.append(sample)
samples = torch.concat(samples)
save_videos_grid(samples, 'samples/tiny/sample.gif', n_rows=4)
"""


def test_quick_start_of_mmagic(tmp_path: Path) -> None:
    config = (ROOT / 'tests' / 'apis' / 'tiny_pia.py').read_text()
    config = config.replace("type='PIA',", "type='AnimateDiff',", 1)
    config = config.replace("    condition_module=dict(type='PIACondition'),\n", '')
    (tmp_path / 'tiny.py').write_text(config)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(SCRIPT)],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': path, 'HF_HUB_OFFLINE': '1'},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*.gif'))
    assert len(files) == 3 and files[0] == 'samples/tiny/sample.gif'
    assert files[1].startswith('samples/tiny/sample/0-best-quality,')
    with Image.open(tmp_path / files[0]) as grid:
        assert grid.n_frames == 4 and grid.size == (2 * 26 + 2, 20)

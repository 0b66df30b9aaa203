"""Keyframes, windows and several pictures from configs to files, recipes and plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmvideo.apis import VideoInferencer, read_recipe
from mmvideo.apis.jobs import make_jobs
from mmvideo.config import load_config, parse_cfg_options
from mmvideo.errors import InputError

CONFIG = Path(__file__).with_name('tiny_pia.py')


def tiny(config: Any = CONFIG, **options: Any) -> VideoInferencer:
    """An inferencer whose random weights are the same every time."""
    inferencer = VideoInferencer(config, device='cpu', **options)
    torch.manual_seed(0)
    assert inferencer.editor is inferencer.editor
    return inferencer


CHANGING: dict[str, Any] = dict(
    prompt={0: 'a red fish', 7: 'a fish', 'interpolation': 'ease-in'},
    negative_prompt='0: a\n9: red',
    guidance_scale={0: 3.0, 9: 1.5},
    video_length=10,
    motion_scale={0: 1.0, 9: 0.4},
    motion_strength={'up': {0: 1.0, 9: 0.5}},
    windows=dict(length=6, overlap=2, schedule='looped'),
    free_init=dict(num_iters=2),
    free_u=True,
    guidance_interval=[0.0, 0.5],
    deep_cache=dict(interval=2, depth=2),
)


def test_a_recipe_holds_everything_that_changes(tmp_path: Path) -> None:
    """In JSON the keys of keyframes are texts."""
    first = tiny()(tmp_path / 'a.webp', progress=False, **CHANGING)
    assert first['samples'].shape[2] == 10
    assert read_recipe(tmp_path / 'a.webp')['arguments']['prompt']['7'] == 'a fish'
    again = tiny(tmp_path / 'a.webp')(tmp_path / 'b.webp', progress=False)
    assert torch.equal(first['samples'], again['samples'])


def test_a_config_holds_them_too(tmp_path: Path) -> None:
    path = tmp_path / 'changing.py'
    anew = {'_delete_': True}  # a dict where the base has a text or a number
    infer = {**CHANGING, **{key: anew | CHANGING[key] for key in ('prompt', 'guidance_scale')}}
    path.write_text(f'_base_ = {str(CONFIG)!r}\ninfer = {infer!r}\n')
    config = load_config(path)
    config.infer.image = str(CONFIG.with_name('tiny.png'))
    plan = tiny(config).plan(out=False)
    text = '\n'.join(plan.lines())
    assert 'guidance 3 from 0 to 0.5 of the steps, the whole denoiser in one of 2' in text
    assert 'windows: looped, 3 of 6 frames over 10, overlap 2, pyramid, moved in every step' in text
    assert '    0 ######....' in text and '    8 ####....##' in text and 'guidance 3' in text


def test_windows_from_the_command_line() -> None:
    windows = "infer.windows={'length': 6, 'schedule': 'uniform'}"
    given = [windows, 'infer.guidance_scale={0: 4, 9: 1}']
    inferencer = VideoInferencer(CONFIG, device='cpu', cfg_options=parse_cfg_options(given))
    plan = inferencer.plan(out=False, video_length=10)
    assert plan.windows[0].startswith('windows: uniform, 2 of 6 frames over 10, overlap 1')
    assert plan.guidance_scale == 4
    with pytest.raises(InputError, match="windows.schedule='unifrom'.*Did you mean 'uniform'"):
        inferencer.plan(out=False, video_length=10, windows=dict(schedule='unifrom'))


def test_a_plan_without_windows_draws_none() -> None:
    assert not any('windows' in line for line in tiny().plan(out=False).lines())


def test_windows_need_less_memory_than_the_clip() -> None:
    long = dict(out=False, video_length=64, decode_chunk_size=1)
    small = tiny().plan(**long, windows=dict(length=4)).working_bytes
    large = tiny().plan(**long, windows=dict(length=8)).working_bytes
    assert small is not None and large == 2 * small


def test_two_pictures_of_a_clip(tmp_path: Path) -> None:
    names = []
    for index, colour in enumerate(('red', 'blue')):
        names.append(str(tmp_path / f'{index}.png'))
        Image.new('RGB', (16, 16), colour).save(names[-1])
    inferencer = tiny()
    call = dict(image=names, condition_frame=[0, 3], motion_scale='fit-large', progress=False)
    result = inferencer(tmp_path / 'a.webp', **call)
    assert len(result['paths']) == 1 and len(result['recipe']['arguments']['image']) == 2
    for name in names:
        Path(name).unlink()
    again = tiny(tmp_path / 'a.webp')(False, progress=False)
    assert torch.equal(result['samples'], again['samples'])


def test_jobs_of_clips_with_several_pictures() -> None:
    shared = dict(prompt='a', seed=0, condition_frame=[0, 3])
    (job,) = make_jobs(dict(shared, image=['x', 'y']))
    assert job.arguments['image'] == ['x', 'y']
    jobs = make_jobs(dict(shared, image=[['x', 'y'], ['u', 'v']]))
    assert [job.arguments['image'] for job in jobs] == [['x', 'y'], ['u', 'v']]
    with pytest.raises(InputError, match='3 images for 2 condition frames'):
        make_jobs(dict(shared, image=['x', 'y', 'z']))


def test_jobs_with_a_motion_each() -> None:
    jobs = make_jobs(dict(prompt='a', seed=0, motion_scale=['small', {0: 1.0, 3: 0.5}]))
    assert [job.arguments['motion_scale'] for job in jobs] == ['small', {0: 1.0, 3: 0.5}]
    (job,) = make_jobs(dict(prompt='a', seed=0, motion_scale=[1.0, 0.5]))
    assert job.arguments['motion_scale'] == [1.0, 0.5]


def test_lines_of_a_prompt_are_one_video() -> None:
    (job,) = make_jobs(dict(prompt='0: spring\n8: summer', seed=0))
    assert job.arguments['prompt'] == '0: spring\n8: summer'

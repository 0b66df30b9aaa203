"""Stable Video Diffusion through the inferencer: one rate, a complete recipe, the same frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmvideo.apis.inferencer import VideoInferencer
from mmvideo.errors import InputError
from mmvideo.media.recipe import read_recipe

TINY = Path(__file__).with_name('tiny_svd.py')


@pytest.fixture(scope='module')
def inferencer() -> VideoInferencer:
    torch.manual_seed(0)
    made = VideoInferencer(TINY, device='cpu', dtype='float32')
    assert made.editor is made.editor  # random weights, drawn once
    return made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (10, 41, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'wide.png')
    return tmp_path / 'wide.png'


def test_the_recipe_says_what_the_call_left_open(
    inferencer: VideoInferencer, image: Path, tmp_path: Path
) -> None:
    made = inferencer(tmp_path / 'a.png', progress=False, image=str(image))
    said = made['recipe']['arguments']
    assert said['video_length'] == 3 and (said['height'], said['width']) == (8, 32)
    assert said['fps'] == made['recipe']['fps'] == 7  # the editor's own
    assert made['samples'].shape == (1, 3, 3, 8, 32)
    stored = read_recipe(made['paths'][0])
    again = VideoInferencer(made['paths'][0], device='cpu')
    again._editor = inferencer.editor
    assert torch.equal(again(False, progress=False)['samples'], made['samples'])
    assert stored['arguments']['min_guidance_scale'] == 1.0


def test_the_rate_of_the_file_is_told_to_the_model(
    inferencer: VideoInferencer, image: Path
) -> None:
    slow, fast, same = (
        inferencer(False, fps, progress=False, image=str(image)) for fps in (7, 24, None)
    )
    assert fast['recipe']['arguments']['fps'] == fast['recipe']['fps'] == 24
    assert torch.equal(slow['samples'], same['samples'])
    assert (slow['samples'] - fast['samples']).abs().max() > 1e-5


def test_the_plan_knows_frames_and_size(inferencer: VideoInferencer, image: Path) -> None:
    plan = inferencer.plan(False, image=str(image), num_frames=5)
    assert (plan.frames, plan.height, plan.width, plan.fps) == (5, 8, 32, 7)
    assert plan.guidance_scale == 3.0
    assert {'unet', 'vae', 'image_encoder'} <= {part.name for part in plan.parts}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(prompt='a fish'), 'StableVideoDiffusion takes no text'),
        (dict(num_frames=0), 'num_frames=0'),
        (dict(height=7), 'height=7'),
        (dict(height='x'), "height='x'"),
    ],
)
def test_mistakes_are_refused(
    inferencer: VideoInferencer, image: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        inferencer.prepare(False, **{'image': str(image), **arguments})
    with pytest.raises(InputError, match='fps=0'):
        inferencer.prepare(False, fps=0, image=str(image))

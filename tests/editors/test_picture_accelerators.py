"""Guidance in some of the steps, and DeepCache, in the families that animate a picture alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmvideo.config import load_config
from mmvideo.registry import MODELS

HERE = Path(__file__).parent
CONFIGS = {'svd': HERE.parent / 'apis' / 'tiny_svd.py', 'i2vgen': HERE / 'tiny_i2vgen.py'}
FRAMES, STEPS = 4, 6
GUIDED = {
    'svd': dict(min_guidance_scale=3.0, max_guidance_scale=3.0),
    'i2vgen': dict(guidance_scale=3.0, prompt='a red fish', height=16, width=16),
}


@pytest.fixture(scope='module', params=CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope='module')
def editor(family: str) -> Any:
    torch.manual_seed(0)
    editor = MODELS.build(load_config(CONFIGS[family]).model.to_dict()).eval()
    with torch.no_grad():
        for parameter in editor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return editor


@pytest.fixture
def calls(editor: Any) -> Iterator[dict[str, list[int]]]:
    """Rows in each call of the denoiser, and of its middle."""
    seen: dict[str, list[int]] = dict(trunk=[], middle=[])
    parts = dict(trunk=editor.unet, middle=editor.unet.mid_block)
    hooks = [
        part.register_forward_pre_hook(lambda _, given, kept=seen[name]: kept.append(len(given[0])))
        for name, part in parts.items()
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def make(editor: Any, family: str, **arguments: Any) -> Tensor:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    given = dict(image=picture, video_length=FRAMES, num_inference_steps=STEPS, seed=0)
    return editor.infer(**given, **(GUIDED[family] | arguments))['samples']


def test_the_middle_runs_in_every_second_step(
    editor: Any, family: str, calls: dict[str, list[int]]
) -> None:
    plain = make(editor, family)
    assert len(calls['trunk']) == len(calls['middle']) == STEPS
    calls['trunk'].clear(), calls['middle'].clear()
    cached = make(editor, family, deep_cache=2)
    assert len(calls['trunk']) == STEPS and len(calls['middle']) == STEPS // 2
    assert 0 < float((plain - cached).abs().max()) < 0.5


@pytest.mark.parametrize('depth', [1, 2])
def test_an_interval_of_one_changes_nothing(editor: Any, family: str, depth: int) -> None:
    cached = make(editor, family, deep_cache=dict(interval=1, depth=depth))
    assert torch.equal(cached, make(editor, family))


def test_guidance_in_a_part_of_the_steps(
    editor: Any, family: str, calls: dict[str, list[int]]
) -> None:
    plain = make(editor, family)
    both = calls['trunk'][0]
    calls['trunk'].clear()
    part = make(editor, family, guidance_interval=[0.0, 0.5])
    assert calls['trunk'] == [both] * 3 + [both // 2] * 3
    assert float((plain - part).abs().max()) > 0
    assert torch.equal(plain, make(editor, family, guidance_interval=[0, 1]))

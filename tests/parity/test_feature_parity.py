"""FreeU, FreeInit, FreeNoise and prompts that change, end to end against diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import two_pipelines as parts

PROMPTS, NEGATIVE = parts.PROMPTS, parts.NEGATIVE


def compare(
    pair: Any, editor: Any, ours: dict[str, Any], theirs: dict[str, Any], frames: int, steps: int
) -> None:
    shared = dict(negative_prompt=NEGATIVE, guidance_scale=4.0)
    generators = [torch.Generator().manual_seed(11) for _ in range(2)]
    parts.compare(
        editor,
        pair.pipeline,
        dict(shared, generator=generators[0], video_length=frames, **ours),
        dict(shared, generator=generators[1], num_frames=frames, **theirs),
        steps=steps,
    )


@pytest.mark.parametrize('family', ['v1', 'v2'])
def test_free_u(pairs: Callable, family: str) -> None:
    pair = pairs(family)
    editor = pair.use('DDIMScheduler')
    settings = dict(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    prompt = dict(prompt=PROMPTS[0])
    pair.pipeline.enable_freeu(**settings)
    try:
        compare(pair, editor, dict(prompt, free_u=settings), prompt, 5, 3)
    finally:
        pair.pipeline.disable_freeu()


@pytest.mark.parametrize('fast', [False, True])
@pytest.mark.parametrize('method', ['butterworth', 'gaussian', 'ideal'])
def test_free_init(pairs: Callable, method: str, fast: bool) -> None:
    pair = pairs('v2')
    editor = pair.use('DDIMScheduler')
    settings = dict(num_iters=2, use_fast_sampling=fast, method=method, order=4,
                    spatial_stop_frequency=0.3, temporal_stop_frequency=0.4)  # fmt: skip
    prompt = dict(prompt=PROMPTS[0])
    pair.pipeline.enable_free_init(**settings)
    try:
        compare(pair, editor, dict(prompt, free_init=settings), prompt, 6, 2)
    finally:
        pair.pipeline.disable_free_init()


@pytest.mark.parametrize(
    ('noise', 'weighting', 'changing'),
    [
        ('shuffle_context', 'pyramid', True),
        ('shuffle_context', 'flat', False),
        ('random', 'pyramid', False),
    ],
)
def test_free_noise(pairs: Callable, noise: str, weighting: str, changing: bool) -> None:
    """Over a length that windows divide; diffusers weighs the rest of others unevenly."""
    pair = pairs('v2')
    editor = pair.use('DDIMScheduler')
    prompt = dict(prompt={0: PROMPTS[0], 5: PROMPTS[1]} if changing else PROMPTS[0])
    settings: dict[str, Any] = dict(context_length=8, context_stride=4)
    settings.update(weighting_scheme=weighting, noise_type=noise)
    pair.pipeline.enable_free_noise(**settings)
    try:
        compare(pair, editor, dict(prompt, free_noise=settings), prompt, 16, 2)
    finally:
        pair.pipeline.disable_free_noise()

"""FreeInit through ``infer``: its rounds, with a strength, over windows and with other samplers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_calls import caller, distance, picture
from torch import Tensor

from mmvideo.diffusion.free_init import FreeInit
from mmvideo.diffusion.free_noise import FreeNoise

PROMPTS = ['a red fish', 'a blue car']
FAST = dict(num_inference_steps=2, guidance_scale=3.0, seed=0)
make = caller(video_length=4, **FAST)
FREE_NOISE = FreeNoise(8, 2)  # of windows of 8 frames


def test_one_round_of_free_init_is_plain(animatediff: Any) -> None:
    plain = make(animatediff, PROMPTS)
    assert torch.equal(plain, make(animatediff, PROMPTS, free_init=dict(num_iters=1)))
    assert distance(plain, make(animatediff, PROMPTS, free_init=dict(num_iters=2))) > 1e-3


def test_free_init_keeps_the_strength(pia: Any, calls: list) -> None:
    """Public pipelines start from the whole schedule again, or apply the strength twice."""
    shared = dict(image=picture(), strength=0.5, num_inference_steps=4, guidance_scale=1.0)
    make(pia, 'a car', **shared)
    plain = [call['step'] for call in calls]
    calls.clear()
    make(pia, 'a car', **shared, free_init=dict(num_iters=3))
    assert len(plain) == 2 and [call['step'] for call in calls] == plain * 3


def test_the_filter_is_built_once(animatediff: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple] = []
    low_pass = FreeInit.low_pass

    def spy(self: FreeInit, *size: int) -> Tensor:
        built.append(size)
        return low_pass(self, *size)

    monkeypatch.setattr(FreeInit, 'low_pass', spy)
    make(animatediff, 'a car', free_init=dict(num_iters=4))
    assert built == [(4, 8, 8)]


def test_fast_rounds_keep_a_step(pia: Any, calls: list) -> None:
    make(pia, 'a car', image=picture(), strength=0.3, num_inference_steps=4, guidance_scale=1.0,
         free_init=dict(num_iters=4, use_fast_sampling=True))  # fmt: skip
    assert len(calls) == 4


def test_free_init_with_strength_restarts_from_the_picture(pia: Any) -> None:
    """With filters that keep nothing, a round is a plain sampling from the next noise."""
    nothing = dict(num_iters=2, spatial_stop_frequency=0)
    shared = dict(image=picture(), strength=0.5, num_inference_steps=4)
    twice = make(pia, 'a car', **shared, free_init=nothing)
    # The order of draws: the clip's noise, the sample of the picture's latent, the next noise.
    generator = torch.Generator().manual_seed(0)
    torch.randn(4, 4, 8, 8, generator=generator)
    before_picture = torch.Generator()
    before_picture.set_state(generator.get_state())
    torch.randn(1, 4, 8, 8, generator=generator)
    latents = torch.randn(1, 4, 4, 8, 8, generator=generator)
    once = make(pia, 'a car', **shared, latents=latents, generator=before_picture)
    assert distance(twice, once) <= 1e-5


@pytest.mark.parametrize(
    ('sampler', 'calls_a_round'),
    [
        ('EulerDiscreteScheduler', 2),
        ('DPMSolverMultistepScheduler', 2),
        ('EulerAncestralDiscreteScheduler', 2),
        ('HeunDiscreteScheduler', 3),  # of order 2, but in its last step
    ],
)
def test_free_init_in_the_scale_of_each_sampler(
    build: Callable, sampler: str, calls_a_round: int
) -> None:
    """Euler's clips start at another scale; a public pipeline asks it for a step it has not."""
    scheduler = dict(type=sampler, beta_start=0.00085, beta_end=0.012, beta_schedule='linear')
    editor = build('AnimateDiff', scheduler=scheduler)
    states: list[Tensor] = []
    make(editor, 'a car', free_init=dict(num_iters=2), callback=lambda *s: states.append(s))
    total = 2 * calls_a_round
    assert [state[:2] for state in states] == [(i + 1, total) for i in range(total)]
    first, second = states[0][2].std(), states[calls_a_round][2].std()
    assert 0.3 <= float(second / first) <= 3


def test_free_init_over_one_window_is_plain(animatediff: Any) -> None:
    settings = dict(video_length=8, free_init=dict(num_iters=2))
    plain = make(animatediff, PROMPTS, **settings)
    assert distance(plain, make(animatediff, PROMPTS, **settings, windows=8)) <= 1e-5


def test_free_init_over_windows(animatediff: Any, calls: list) -> None:
    """Each round begins with one clip of noise: windows see their frames of it, and share it."""
    shared = dict(video_length=12, num_inference_steps=1, guidance_scale=1.0)
    nothing = dict(num_iters=2, spatial_stop_frequency=0)  # all of a round's start is its noise
    make(animatediff, 'a car', **shared, free_init=nothing, windows=dict(length=8, overlap=4))
    starts = [call['sample'][0] for call in calls]  # frames 0 to 7 and 4 to 11, in two rounds
    assert len(starts) == 4
    for first, second in (starts[:2], starts[2:]):
        assert torch.equal(first[:, 4:], second[:, :4])
        for frame in range(8, 12):
            group = (frame - 8) // 2 * 2  # a quarter of a window is shuffled together
            same = [torch.equal(second[:, frame - 4], first[:, group + i]) for i in range(2)]
            assert sum(same) == 1
    assert float((starts[0] - starts[2]).abs().mean()) > 0.5


def test_free_init_over_windows_keeps_low_frequencies(animatediff: Any, calls: list) -> None:
    """Those of the whole clip, over the borders of its windows."""
    settings = dict(video_length=12, windows=dict(length=8, overlap=4), guidance_scale=1.0)
    first = animatediff.infer('a car', **FAST | settings, output_type='latent')['latents'].cpu()
    count = len(calls)
    everything = dict(num_iters=2, method='gaussian', spatial_stop_frequency=1.0)
    make(animatediff, 'a car', **settings, free_init=everything)
    one, two = (call['sample'] for call in calls[2 * count : 2 * count + 2])
    start = torch.cat([one, two[:, :, 4:]], dim=2)
    generator = torch.Generator().manual_seed(0)
    noise, fresh = (
        FREE_NOISE.arranged(torch.randn(4, 12, 8, 8, generator=generator), generator)[None]
        for _ in range(2)
    )
    scheduler = copy.deepcopy(animatediff.scheduler)
    kept = scheduler.add_noise(first, noise, torch.tensor([999]))
    low = FreeInit(**everything).low_pass(12, 8, 8)
    axes = (-3, -2, -1)
    mixed = torch.fft.fftn(kept, dim=axes) * low + torch.fft.fftn(fresh, dim=axes) * (1 - low)
    assert distance(start, torch.fft.ifftn(mixed, dim=axes).real) <= 1e-4

"""FreeInit, FreeU and FreeNoise apart from any model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmvideo.diffusion.free_init import METHODS, FreeInit, replace_high_frequencies
from mmvideo.diffusion.free_noise import NOISES, FreeNoise
from mmvideo.diffusion.free_u import FreeU, scale_lows

AXES = (-3, -2, -1)


def looped_filter(method: str, shape: tuple[int, int, int], spatial: float, temporal: float,
                  order: float) -> Tensor:  # fmt: skip
    """The filter written out place by place, zero frequency in the middle."""
    mask = torch.zeros(shape)
    for t in range(shape[0]):
        for h in range(shape[1]):
            for w in range(shape[2]):
                d = (spatial / temporal * (2 * t / shape[0] - 1)) ** 2
                d += (2 * h / shape[1] - 1) ** 2 + (2 * w / shape[2] - 1) ** 2
                mask[t, h, w] = {
                    'butterworth': 1 / (1 + (d / spatial**2) ** order),
                    'gaussian': math.exp(-d / (2 * spatial**2)),
                    'ideal': float(d <= 2 * spatial),
                }[method]
    return mask


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('shape', [(8, 8, 8), (5, 7, 4), (1, 6, 6)])
@pytest.mark.parametrize(('spatial', 'temporal', 'order'), [(0.25, 0.25, 4), (0.5, 0.1, 2)])
def test_the_filter_at_once_equals_place_by_place(
    method: str, shape: tuple, spatial: float, temporal: float, order: float
) -> None:
    free_init = FreeInit(2, method, order, spatial, temporal)
    expected = looped_filter(method, shape, spatial, temporal, order)
    assert torch.allclose(torch.fft.fftshift(free_init.low_pass(*shape)), expected, atol=1e-6)


def test_a_stop_frequency_of_0_keeps_nothing() -> None:
    low_pass = FreeInit(spatial_stop_frequency=0).low_pass(4, 8, 8)
    kept, fresh = torch.randn(1, 2, 4, 8, 8), torch.randn(1, 2, 4, 8, 8)
    assert torch.equal(replace_high_frequencies(kept, fresh, low_pass), fresh)


def test_frequencies_come_from_where_they_should() -> None:
    kept, fresh = torch.randn(2, 3, 6, 8, 8), torch.randn(2, 3, 6, 8, 8)
    low_pass = FreeInit(method='ideal').low_pass(6, 8, 8)
    mixed = torch.fft.fftn(replace_high_frequencies(kept, fresh, low_pass), dim=AXES)
    expected = torch.fft.fftn(kept, dim=AXES) * low_pass
    expected += torch.fft.fftn(fresh, dim=AXES) * (1 - low_pass)
    whole = torch.fft.ifftn(expected, dim=AXES).real
    assert torch.allclose(torch.fft.ifftn(mixed, dim=AXES).real, whole, atol=1e-5)
    assert 0 < low_pass.mean() < 1


def test_steps_of_each_round() -> None:
    assert FreeInit(3).steps(25) == [25, 25, 25]
    assert FreeInit(3, use_fast_sampling=True).steps(25) == [8, 16, 25]
    assert FreeInit(5, use_fast_sampling=True).steps(2) == [1, 1, 1, 1, 2]


@pytest.mark.parametrize('size', [(8, 8), (16, 4), (5, 7), (2, 2), (1, 6), (6, 1), (1, 1)])
def test_freeu_filter_is_that_of_the_published_mask(size: tuple[int, int]) -> None:
    from diffusers.utils.torch_utils import fourier_filter

    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(scale_lows(x, 0.3), fourier_filter(x, 1, 0.3), atol=1e-5)
    assert torch.allclose(scale_lows(x, 1.0), x, atol=1e-6)


def test_freeu_changes_the_two_coarsest_stages_and_no_input() -> None:
    x, skip = torch.randn(2, 6, 4, 4), torch.randn(2, 3, 4, 4)
    before = x.clone(), skip.clone()
    free_u = FreeU(0.9, 0.2, 1.5, 1.6)
    for stage, factor in ((0, 1.5), (1, 1.6)):
        changed, damped = free_u(stage, x, skip)
        assert torch.equal(changed[:, :3], x[:, :3] * factor)
        assert torch.equal(changed[:, 3:], x[:, 3:])
        assert not torch.allclose(damped, skip)
    assert all(a is b for a, b in zip(free_u(2, x, skip), (x, skip), strict=True))
    assert torch.equal(x, before[0]) and torch.equal(skip, before[1])


SHAPE = (4, 20, 2, 2)


def drawn(noise: str, shape: tuple[int, ...] = SHAPE, seed: int = 0, **settings: int) -> Tensor:
    settings = dict(context_length=8, context_stride=4) | settings
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(shape, generator=generator)
    return FreeNoise(noise_type=noise, **settings).arranged(plain, generator)


def test_repeated_noise_repeats() -> None:
    """Of a public library the setting does nothing."""
    noise = drawn('repeat_context')
    assert torch.equal(noise[:, 8:16], noise[:, :8]) and torch.equal(noise[:, 16:], noise[:, :4])
    plain = drawn('random')
    assert torch.equal(noise[:, :8], plain[:, :8]) and not torch.equal(noise, plain)


def test_shuffled_noise_has_the_frames_one_window_before_in_groups() -> None:
    noise = drawn('shuffle_context')
    assert torch.equal(noise[:, :8], drawn('random')[:, :8])
    groups = noise.unfold(1, 4, 4).permute(1, 4, 0, 2, 3)  # groups, 4, C, H, W
    for group in (2, 3, 4):
        frames, before = list(groups[group]), list(groups[group - 2])
        assert all(any(torch.equal(f, b) for b in before) for f in frames)
        assert all(not torch.equal(f, g) for i, f in enumerate(frames) for g in frames[:i])
    assert not torch.equal(groups[2], groups[0])


@pytest.mark.parametrize('noise', NOISES)
@pytest.mark.parametrize('frames', [1, 5, 8, 9, 13])
def test_any_number_of_frames(noise: str, frames: int) -> None:
    shape = (4, frames, 2, 2)
    assert drawn(noise, shape).shape == shape
    assert torch.equal(drawn(noise, shape), drawn(noise, shape))
    assert FreeNoise(8, 4, noise_type=noise).plan(frames).longest == min(frames, 8)


def test_windows_of_the_attention() -> None:
    starts = [window[0] for window in FreeNoise(16, 4).plan(25).frames]
    assert starts == [0, 4, 8, 9]

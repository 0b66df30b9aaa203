"""Sampling from the noise that a clip would have come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_calls import caller, clip
from torch import Tensor

from mmvideo.config import load_config
from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.editors.pia import PIA
from mmvideo.errors import InputError
from mmvideo.models.conditioning.text import encode_prompts
from mmvideo.registry import DATASETS, MODELS

SPRITES = Path(__file__).parents[2] / 'configs' / 'sprites' / 'animatediff_sprites.py'
FAST = dict(prompt='a car', video_length=4, num_inference_steps=5, guidance_scale=1.0, seed=3)
make = caller(**FAST)
LCM = dict(type='LCMScheduler', beta_start=0.00085, beta_end=0.012, beta_schedule='linear')


def own_latents(editor: Any, frames: Tensor, seed: int) -> Tensor:
    """What the clip becomes at the start: the noise is drawn first, then the latents' sample."""
    generator = torch.Generator().manual_seed(seed)
    cells = frames.shape[-1] // editor.vae_scale
    torch.randn(4, len(frames), cells, cells, generator=generator)
    with torch.no_grad():
        return editor.encode(frames * 2 - 1, generator).transpose(0, 1)[None]


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def test_sampling_gives_the_clip_again() -> None:
    """With a trained model, in 15 steps: within a fifth of the latents' size, and frames 3 dB
    farther from the clip than the VAE's own. From drawn noise the same call is far from both."""
    editor = MODELS.build(load_config(SPRITES).model).eval()
    item = DATASETS.build(dict(type='SpriteWorld', length=2, num_frames=4, size=64))[1]
    frames = item['video'].float() / 255
    call = dict(FAST, prompt=item['caption'], video=frames, num_inference_steps=15)
    expected = own_latents(editor, frames, FAST['seed'])
    found = editor.infer(**call, inversion='ddim', output_type='latent')['latents']
    drawn = editor.infer(**call, strength=1.0, output_type='latent')['latents']
    error, other = rms(found - expected), rms(drawn - expected)
    assert error <= 0.2 * rms(expected) and other > 3 * error, (error, other)
    target = frames.transpose(0, 1)[None]
    best, own, far = (
        -20 * math.log10(rms(editor.decode(x) - target)) for x in (expected, found, drawn)
    )
    assert own > best - 3 and far < best - 6, (best, own, far)


def test_its_prompt_counts_beside_embeddings(animatediff: Any) -> None:
    """A clip is brought back by the inversion's prompt and made again by the embeddings."""
    with torch.no_grad():
        embeds = encode_prompts(animatediff.tokenizer, animatediff.text_encoder, ['a car'])
    shared = dict(video=clip(), inversion=dict(prompt='a red fish'))
    found = make(animatediff, **shared, prompt=None, prompt_embeds=embeds)
    assert (found - make(animatediff, **shared)).abs().max() <= 1e-5
    other = make(animatediff, video=clip(), inversion='ddim')
    assert (found - other).abs().max() > 1e-4


def test_another_prompt_changes_the_clip(animatediff: Any) -> None:
    shared = dict(video=clip(), num_inference_steps=3)
    same = make(animatediff, **shared, inversion=dict(prompt='a car'))
    assert torch.equal(same, make(animatediff, **shared, inversion=True))
    other = make(animatediff, **shared, inversion=dict(prompt='a red fish'))
    assert not torch.allclose(same, other, atol=1e-4)
    guided = make(animatediff, **shared, inversion='ddim', guidance_scale=3.0)
    assert not torch.allclose(same, guided, atol=1e-4)


def test_the_way_back_ends_where_sampling_begins(animatediff: Any) -> None:
    """Whatever the numbers of steps; the denoiser sees no guidance on it."""
    for settings, strength, expected in (
        (dict(), 1.0, [1, 201, 401, 601, 801]),
        (dict(num_inference_steps=4), 1.0, [1, 251, 501, 751, 801]),
        (dict(num_inference_steps=10), 0.6, [1, 101, 201, 301, 401]),
    ):
        calls: list[tuple] = []

        def spy(_: Any, inputs: tuple, calls: list = calls) -> None:
            calls.append((len(inputs[0]), int(inputs[1])))

        hook = animatediff.unet.register_forward_pre_hook(spy)
        taken: list[tuple] = []
        make(animatediff, video=clip(), inversion=settings, strength=strength, guidance_scale=3.0,
             deep_cache=2, callback=lambda *s, taken=taken: taken.append(s[:2]))  # fmt: skip
        hook.remove()
        assert calls[: len(expected)] == [(1, timestep) for timestep in expected]
        rest = calls[len(expected) :]
        assert rest[0] == (2, expected[-1]) and len(rest) == int(5 * strength)
        assert taken == [(i + 1, len(calls)) for i in range(len(calls))]


def test_samples_windows_and_the_picture(animatediff: Any, pia: Any) -> None:
    together = make(animatediff, prompt=['a car', 'a fish'], video=clip(), inversion='ddim')
    alone = make(animatediff, prompt='a fish', video=clip(), inversion='ddim', seed=4)
    assert float((together[1:] - alone).abs().max()) <= 1e-4
    long = make(animatediff, video=clip(count=6), video_length=6, windows=4, inversion='ddim')
    assert long.shape[2] == 6 and long.isfinite().all()
    found = make(pia, video=clip(), motion_scale=2, inversion=dict(prompt=''))
    plain = make(pia, video=clip(), motion_scale=2)
    assert found.isfinite().all() and not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize(
    ('wrong', 'expected'),
    [
        (dict(inversion='dimm'), r"inversion\.type='dimm'.*Did you mean 'ddim'"),
        (dict(inversion=dict(steps=5)), "takes no 'steps'; it takes type, num_inference_steps"),
        (dict(inversion=3), 'expected a dict of settings'),
        (dict(video=None), 'inversion without a video'),
        (dict(eta=0.5), 'eta=0.5 with inversion'),
        (dict(free_init=True), 'free_init with inversion'),
        (dict(inversion=dict(num_inference_steps=0)), 'expected an integer from 1 to 1000'),
        (dict(inversion=dict(num_inference_steps=1001)), 'expected an integer from 1 to 1000'),
        (dict(inversion=dict(prompt=7)), r'inversion\.prompt'),
        (dict(inversion=dict(prompt={0: 'a car', 9: 'a fish'})), r'inversion\.prompt'),
    ],
)
def test_mistakes(tiny_config: Callable, animatediff: Any, wrong: dict, expected: str) -> None:
    arguments = {**FAST, 'video': clip(), 'inversion': 'ddim', **wrong}
    with pytest.raises(InputError, match=expected):
        AnimateDiff.check(tiny_config('AnimateDiff'), arguments)
    with pytest.raises(InputError, match=expected):
        make(animatediff, **arguments)
    with pytest.raises(InputError, match=expected):
        PIA.check(tiny_config('PIA'), {**arguments, 'image': clip()[0]})


def test_samplers_that_cannot_be_followed_backwards(tiny_config: Callable) -> None:
    arguments = {**FAST, 'video': clip(), 'inversion': 'ddim'}
    for scheduler, expected in (
        (LCM, "type='LCMScheduler' cannot be followed backwards; use 'DDIMScheduler'"),
        (dict(LCM, type='DDIMScheduler'), 'clip_sample=True'),
        (dict(LCM, type='EulerDiscreteScheduler'), 'EulerDiscreteScheduler'),
    ):
        with pytest.raises(InputError, match=expected):
            AnimateDiff.check(tiny_config('AnimateDiff', scheduler=scheduler), arguments)
    AnimateDiff.check(tiny_config('AnimateDiff'), arguments)

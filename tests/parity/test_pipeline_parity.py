"""Editors end to end against diffusers' pipelines: the same folders, prompts, noise and frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from two_pipelines import (
    BETAS,
    CELLS,
    FRAMES,
    NEGATIVE,
    PROMPTS,
    SAMPLERS,
    SIZE,
    Pair,
    compare,
    editor_config,
    eight_bit,
    noise,
    picture,
)

from mmvideo.registry import MODELS, SCHEDULERS


@pytest.mark.parametrize('guidance', [1.0, 7.5])
@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('family', ['v1', 'v2'])
def test_animatediff(pairs: Callable, family: str, sampler: str, guidance: float) -> None:
    pair = pairs(family)
    editor = pair.use(sampler)
    latents = noise(2)
    shared = dict(
        prompt=PROMPTS,
        negative_prompt=[NEGATIVE, ''],
        latents=latents,
        guidance_scale=guidance,
        height=SIZE,
        width=SIZE,
    )
    compare(
        editor,
        pair.pipeline,
        dict(shared, video_length=FRAMES),
        dict(shared, num_frames=FRAMES),
    )


def test_noise_drawn_from_generators(pairs: Callable) -> None:
    """Seeds and not latents: each sample's own generator draws what diffusers' list draws."""
    pair = pairs('v2')
    editor = pair.use('DDIMScheduler')
    generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
    shared = dict(prompt=PROMPTS, guidance_scale=3.0)
    compare(
        editor,
        pair.pipeline,
        dict(shared, seed=11, video_length=FRAMES),
        dict(shared, generator=generators, num_frames=FRAMES),
    )


def test_ddim_with_eta(pairs: Callable) -> None:
    pair = pairs('v1')
    editor = pair.use('DDIMScheduler')
    shared = dict(prompt=PROMPTS[0], guidance_scale=2.0, eta=0.7)
    compare(
        editor,
        pair.pipeline,
        dict(shared, generator=torch.Generator().manual_seed(4), video_length=FRAMES),
        dict(shared, generator=torch.Generator().manual_seed(4), num_frames=FRAMES),
    )


@pytest.mark.parametrize('motion_scale', [0, 4, 8])
@pytest.mark.parametrize('sampler', SAMPLERS)
def test_pia(pairs: Callable, sampler: str, motion_scale: int) -> None:
    pair = pairs('pia')
    editor = pair.use(sampler)
    image = eight_bit(picture(2))
    shared = dict(
        prompt=PROMPTS,
        negative_prompt=NEGATIVE if motion_scale else None,
        latents=noise(2, 16),
        guidance_scale=7.5 if motion_scale else 1.0,
        motion_scale=motion_scale,
        height=SIZE,
        width=SIZE,
    )
    if shared['negative_prompt']:
        shared['negative_prompt'] = [NEGATIVE] * 2
    seeds = [21, 22]
    compare(
        editor,
        pair.pipeline,
        dict(shared, image=list(image), seed=seeds, video_length=16),
        dict(
            shared,
            image=image,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_frames=16,
        ),
        steps=2,
    )


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_pia_from_the_noised_picture(pairs: Callable, sampler: str) -> None:
    """strength=0.6 with one sample, the only case that diffusers computes rightly.

    diffusers draws the picture's latent first and the noise second; the editor, as the official
    code, the other way round. So the editor gets the noise, and a generator for the rest.
    """
    pair = pairs('pia')
    editor = pair.use(sampler)
    image = eight_bit(picture())
    generator = torch.Generator().manual_seed(31)
    torch.randn(1, 4, CELLS, CELLS, generator=generator)
    latents = torch.randn(1, 4, FRAMES, CELLS, CELLS, generator=generator)
    shared = dict(prompt=PROMPTS[0], strength=0.6, guidance_scale=4.0, motion_scale=1)
    compare(
        editor,
        pair.pipeline,
        dict(
            shared,
            image=image[0],
            height=SIZE,
            width=SIZE,
            latents=latents,
            generator=torch.Generator().manual_seed(31),
            video_length=FRAMES,
        ),
        dict(
            shared,
            image=image,
            latents=torch.zeros(1, 4, FRAMES, CELLS, CELLS),  # diffusers drops them
            generator=torch.Generator().manual_seed(31),
            num_frames=FRAMES,
        ),
        steps=5,
    )


def random_clips(count: int) -> Tensor:
    return torch.randn(count, 4, FRAMES, CELLS, CELLS, generator=torch.Generator().manual_seed(9))


def assert_gradients_agree(editor: Any, reference: nn.Module) -> None:
    theirs = dict(reference.named_parameters())
    compared = 0
    for name, parameter in editor.unet.named_parameters():
        if parameter.requires_grad:
            scale = float(theirs[name].grad.abs().max().clamp(min=1e-3))
            error = float((parameter.grad - theirs[name].grad).abs().max())
            assert error <= 1e-4 * scale, name
            compared += 1
    assert compared > 20


@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
def test_training_gradients_of_animatediff(pairs: Callable, prediction: str) -> None:
    pair = pairs('v2')
    schedule = dict(BETAS, prediction_type=prediction)
    config = editor_config(pair.folder)
    config.update(
        scheduler=dict(type='DDIMScheduler', **schedule), trainable=['motion_modules', '^unet.conv']
    )
    editor = MODELS.build(config).train()
    clean, reference = random_clips(2), pair.pipeline.unet
    torch.manual_seed(5)
    loss = editor.loss(clean, dict(caption=PROMPTS))['loss']
    loss.backward()
    torch.manual_seed(5)
    noise_, timesteps = torch.randn_like(clean), torch.randint(1000, (2,))
    scheduler = diffusers.DDPMScheduler(
        **{k: v for k, v in schedule.items() if k != 'steps_offset'}
    )
    target = noise_
    if prediction == 'v_prediction':
        target = scheduler.get_velocity(clean, noise_, timesteps)
    noisy = scheduler.add_noise(clean, noise_, timesteps)
    reference.zero_grad()
    expected = nn.functional.mse_loss(predict(pair, noisy, timesteps), target)
    expected.backward()
    assert abs(float(loss.detach()) - float(expected.detach())) <= 1e-5
    assert_gradients_agree(editor, reference)


def test_training_gradients_of_pia(pairs: Callable) -> None:
    pair = pairs('pia')
    config = editor_config(pair.folder, pia=True)
    config['trainable'] = ['motion_modules', '^unet.conv_in']
    editor = MODELS.build(config).train()
    clean, reference = random_clips(2), pair.pipeline.unet
    scores = torch.rand(2, FRAMES, FRAMES, generator=torch.Generator().manual_seed(2)) * 20
    scores = scores + scores.transpose(1, 2)
    torch.manual_seed(6)
    loss = editor.loss(clean, dict(caption=PROMPTS, affinity_scores=scores))['loss']
    loss.backward()
    torch.manual_seed(6)
    chosen = torch.randint(FRAMES, (2,))
    noise_, timesteps = torch.randn_like(clean), torch.randint(1000, (2,))
    scheduler = SCHEDULERS.build(dict(type='DDIMScheduler', **SAMPLERS['DDIMScheduler']))
    mask = official_affinity(scores, chosen)[:, None, :, None, None].expand(
        -1, -1, -1, CELLS, CELLS
    )
    condition = clean[torch.arange(2), :, chosen].unsqueeze(2).expand_as(clean)
    noisy = torch.cat([scheduler.add_noise(clean, noise_, timesteps), mask, condition], 1)
    reference.zero_grad()
    expected = nn.functional.mse_loss(predict(pair, noisy, timesteps), noise_)
    expected.backward()
    assert abs(float(loss.detach()) - float(expected.detach())) <= 1e-5
    assert_gradients_agree(editor, reference)


def official_affinity(scores: Tensor, chosen: Tensor) -> Tensor:
    """Frame by frame, from the statistics of WebVid's first offsets."""
    low = [0, 0.3535855, 0.91609545, 1.41165152, 1.56943881]
    high = [0, 24.23687346, 30.65091947, 34.40093286, 36.99639585]
    affinity = torch.ones(len(scores), FRAMES)
    for clip, frame in enumerate(chosen.tolist()):
        for other in range(FRAMES):
            offset = abs(frame - other)
            score = float(scores[clip, frame, other])
            if offset:
                score = 0.95 * high[offset] if score > high[offset] else max(score, low[offset])
                affinity[clip, other] = 1 - 0.8 * score / high[offset]
    return affinity


def predict(pair: Pair, sample: Tensor, timesteps: Tensor) -> Tensor:
    """diffusers' prediction for the captions of ``PROMPTS``."""
    pipeline = pair.pipeline
    text, _ = pipeline.encode_prompt(PROMPTS, 'cpu', 1, False)
    text = text.detach().repeat_interleave(FRAMES, 0)
    return pipeline.unet(sample, timesteps, text).sample

"""AnimateDiffPipeline beside diffusers': the same folder, prompt and generator, within 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pairs_of_pipelines import call, parts, seeded

from mmvideo.errors import InputError
from mmvideo.models.borrowed.schedulers import SCHEDULER_NAMES

PROMPTS, NEGATIVE = parts.PROMPTS, parts.NEGATIVE
# Every one that is offered, those that draw noise in a step and those of order 2 among them.
SAMPLERS = {
    **dict.fromkeys(SCHEDULER_NAMES, parts.BETAS),
    **parts.SAMPLERS,
    'PNDMScheduler': dict(parts.BETAS, skip_prk_steps=True),
}


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_schedulers_made_from_the_config(make: Callable, sampler: str) -> None:
    pair = make('v2')
    for pipeline in pair:
        kind = getattr(diffusers, sampler)
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **SAMPLERS[sampler])
    pair.compare(**call(steps=3))


def test_several_prompts_without_guidance(make: Callable) -> None:
    pair = make('v1')
    pair.compare(**call(prompt=PROMPTS, negative_prompt=None, guidance_scale=1.0, eta=0.5))


def test_latents_of_the_caller(make: Callable) -> None:
    pair = make('v2')
    pair.compare(**call(frames=5, latents=parts.noise(1)))


def test_free_u(make: Callable) -> None:
    pair = make('v2')
    plain = pair.ours(**call(), generator=seeded(11), output_type='pt').frames
    for pipeline in pair:
        pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    try:
        changed = pair.compare(**call())
    finally:
        for pipeline in pair:
            pipeline.disable_freeu()
    assert (changed - plain).abs().max() > 1e-3
    assert torch.equal(pair.ours(**call(), generator=seeded(11), output_type='pt').frames, plain)


def test_free_init(make: Callable) -> None:
    pair = make('v2')
    for pipeline in pair:
        pipeline.enable_free_init(num_iters=2, use_fast_sampling=True, method='gaussian')
        assert pipeline.free_init_enabled
    try:
        pair.compare(**call())
    finally:
        for pipeline in pair:
            pipeline.disable_free_init()


def test_free_noise_and_a_prompt_that_changes(make: Callable) -> None:
    pair = make('v2')
    for pipeline in pair:
        pipeline.enable_free_noise(context_length=4, context_stride=2)
    try:
        # diffusers takes a text, or keyframes, for the negative prompt too
        pair.compare(**call(frames=8, prompt={0: PROMPTS[0], 5: PROMPTS[1]}))
    finally:
        for pipeline in pair:
            pipeline.disable_free_noise()


def test_prompts_as_embeddings(make: Callable) -> None:
    pair = make('v2')
    theirs, ours = (p.encode_prompt(PROMPTS[1], 'cpu', 1, True, NEGATIVE) for p in pair)
    for expected, found in zip(theirs, ours, strict=True):
        assert (expected - found).abs().max() <= 1e-5
    shown, avoided = (value.detach() for value in theirs)
    given = dict(prompt_embeds=shown, negative_prompt_embeds=avoided)
    embedded = pair.compare(**call(prompt=None, negative_prompt=None, **given))
    told = pair.ours(**call(prompt=PROMPTS[1]), generator=seeded(11), output_type='pt').frames
    assert (embedded - told).abs().max() <= 1e-5


def test_a_long_prompt_is_not_cut_off(make: Callable) -> None:
    """diffusers drops what stands behind the 18 words that this text encoder sees."""
    pair = make('v2')
    long = ' '.join([PROMPTS[0]] * 4) + ' blue car'
    theirs, ours = (p.encode_prompt(long, 'cpu', 1, True, NEGATIVE) for p in pair)
    assert theirs[0].shape[1] == 20 and ours[0].shape[1] == ours[1].shape[1] == 40
    for name in ('prompt', 'negative_prompt'):
        found = [
            pair.ours(**call(steps=1, **{name: text}), generator=seeded(1), output_type='pt').frames
            for text in (long, ' '.join(long.split()[:18]))
        ]
        assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.fixture
def clip_skip_works(make: Callable) -> Any:
    """diffusers asks the text encoder for a level that transformers 5 has dropped."""
    encoder = make('v2').theirs.text_encoder
    if not hasattr(encoder, 'text_model'):
        encoder.__dict__['text_model'] = encoder
        yield
        del encoder.__dict__['text_model']
    else:
        yield


def test_clip_skip_means_what_it_means_there(make: Callable, clip_skip_works: None) -> None:
    pair = make('v2')
    skipped = pair.compare(**call(clip_skip=1))
    plain = pair.ours(**call(), generator=seeded(11), output_type='pt').frames
    assert (skipped - plain).abs().max() > 1e-3


def test_a_callback_changes_latents_and_ends_guidance(make: Callable) -> None:
    pair = make('v2')
    names = ['latents', 'prompt_embeds', 'negative_prompt_embeds']
    seen: dict[Any, list] = {}

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        shapes = {name: tuple(tensors[name].shape) for name in names}
        seen.setdefault(pipe, []).append((index, int(timestep), pipe.num_timesteps, shapes))
        tensors['latents'] = tensors['latents'] * 0.9
        if index == 1:
            tensors['prompt_embeds'] = tensors['prompt_embeds'].chunk(2)[-1] * 1.1
            pipe._guidance_scale = 0.0
        return tensors

    pair.compare(
        **call(
            steps=4,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=names,
        )
    )
    assert seen[pair.ours] == seen[pair.theirs] and len(seen[pair.ours]) == 4
    assert not pair.ours.do_classifier_free_guidance


def test_a_callback_interrupts(make: Callable) -> None:
    pair = make('v2')

    def stop(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipe._interrupt = index == 1
        return tensors

    pair.compare(**call(steps=4, callback_on_step_end=stop))
    assert pair.ours.interrupt


def test_a_callback_that_makes_a_mistake(make: Callable) -> None:
    ours = make('v2').ours
    short = dict(call(steps=1), output_type='latent')
    with pytest.raises(InputError, match="'latent' is none of .*Did you mean 'latents'"):
        ours(**short, callback_on_step_end_tensor_inputs=['latent'])
    for name in ('callback_on_step_end', 'callback'):
        with pytest.raises(InputError, match=f'{name}=3: expected a function or None'):
            ours(**short, **{name: 3})
    with pytest.raises(InputError, match='callback_steps=0: expected an integer >= 1'):
        ours(**short, callback=print, callback_steps=0)
    with pytest.raises(InputError, match='returned a int: expected a dict'):
        ours(**short, callback_on_step_end=lambda *_: 3)
    with pytest.raises(InputError, match=r'latents of the shape \[1\], expected \[1, 4'):
        ours(**short, callback_on_step_end=lambda *_: {'latents': torch.zeros(1)})


def test_the_older_callback(make: Callable) -> None:
    seen: list[int] = []
    ours = make('v2').ours
    ours(
        **call(steps=4, frames=2),
        output_type='latent',
        callback=lambda index, timestep, latents: seen.append(index),
        callback_steps=2,
    )
    assert seen == [0, 2]


def test_several_videos_of_a_prompt(make: Callable) -> None:
    """diffusers takes the argument and ignores it."""
    ours = make('v2').ours
    several = ours(**call(steps=1), num_videos_per_prompt=2, generator=seeded(1), output_type='pt')
    assert several.frames.shape == (2, 4, 3, parts.SIZE, parts.SIZE)
    assert (several.frames[0] - several.frames[1]).abs().max() > 1e-2
    generators = [seeded(5), seeded(6)]
    each = ours(
        **call(steps=1), num_videos_per_prompt=2, generator=generators, output_type='pt'
    ).frames
    alone = ours(**call(steps=1), generator=seeded(6), output_type='pt').frames
    assert (each[1] - alone[0]).abs().max() <= 1e-5


def test_generators_of_numpy(make: Callable) -> None:
    ours = make('v2').ours

    def latents(generator: Any) -> torch.Tensor:
        return ours(**call(steps=1), generator=generator, output_type='latent').frames

    once, again = (latents(np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, latents(np.random.default_rng(4)))
    with pytest.raises(InputError, match='generator is a int: expected a torch.Generator'):
        latents(3)


@pytest.mark.parametrize('form', ['pil', 'np', 'pt', 'latent'])
def test_forms_of_the_result(make: Callable, form: str) -> None:
    pair = make('v2')
    short = call(frames=2, steps=1)
    outputs = [p(**short, generator=seeded(2), output_type=form) for p in pair]
    frames = [output.frames for output in outputs]
    if form == 'pil':
        assert [len(frames[1]), len(frames[1][0])] == [1, 2]
        frames = [np.stack([np.asarray(f, dtype=np.float64) / 255 for f in x[0]]) for x in frames]
    limit = 1e-2 if form == 'pil' else 1e-4  # a step of 8 bit
    assert np.abs(np.asarray(frames[0]) - np.asarray(frames[1])).max() <= limit
    assert outputs[1]['frames'] is outputs[1][0] is outputs[1].frames
    (bare,) = pair.ours(**short, generator=seeded(2), output_type=form, return_dict=False)
    assert type(bare) is type(outputs[1].frames)


def test_steps_of_the_caller(make: Callable) -> None:
    ours = make('v2').ours
    with pytest.raises(InputError, match='timesteps: a DDIMScheduler chooses its own'):
        ours(**call(), timesteps=[900, 100])
    ours.scheduler = diffusers.EulerDiscreteScheduler(**parts.BETAS)
    seen: list[int] = []

    def note(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        seen.append(int(timestep))
        return tensors

    ours(**call(frames=2), timesteps=[900, 500, 100], callback_on_step_end=note)
    assert seen == [900, 500, 100]
    with pytest.raises(InputError, match='timesteps and sigmas: give one of them'):
        ours(**call(), timesteps=[3, 2], sigmas=[1.0, 0.0])


def test_what_a_call_does_not_take(make: Callable) -> None:
    ours = make('v2').ours
    with pytest.raises(InputError, match="takes no 'guidance'.*Did you mean 'guidance_scale'"):
        ours(prompt='a', guidance=3)
    with pytest.raises(InputError, match='prompt and prompt_embeds: give one of them'):
        ours(prompt='a', prompt_embeds=torch.zeros(1, 20, 16))
    with pytest.raises(InputError, match='prompt_embeds are 8 wide: the denoiser takes 16'):
        ours(prompt_embeds=torch.zeros(1, 20, 8), height=32, width=32)
    with pytest.raises(InputError, match='num_frames=33: the motion modules have positions for 32'):
        ours(prompt='a', num_frames=33)
    with pytest.raises(InputError, match='progress_bar: give an iterable or total'):
        ours.progress_bar()
    with pytest.raises(InputError, match="'delayed_reverse_sawtooth': expected one of 'flat'"):
        ours.enable_free_noise(weighting_scheme='delayed_reverse_sawtooth')
    with pytest.raises(InputError, match="free_init.method='butterwort'.*Did you mean"):
        ours.enable_free_init(method='butterwort')


def test_windows_through_the_surface(make: Callable) -> None:
    """What diffusers cannot do stands behind the same call."""
    ours = make('v2').ours
    frames = ours(**call(frames=6, steps=1), windows=dict(length=4), output_type='pt').frames
    assert frames.shape[1] == 6


def test_guidance_over_the_steps(make: Callable) -> None:
    ours, seen = make('v2').ours, []

    def note(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        seen.append(pipe.guidance_scale)
        return tensors

    scale = {'steps': {0.0: 4.0, 0.5: 1.0, 'interpolation': 'step'}}
    settings = call(guidance_scale=scale, callback_on_step_end=note)
    changed = ours(**settings, generator=seeded(11), output_type='pt').frames
    plain = ours(**call(), generator=seeded(11), output_type='pt').frames
    assert seen == [4.0, 4.0] and (changed - plain).abs().max() > 1e-3

"""Embeddings in place of prompts, steps of a caller's choice, and changes between steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmvideo.editors.course import Step
from mmvideo.errors import InputError
from mmvideo.models.conditioning.text import encode_prompts

CALL = dict(video_length=3, num_inference_steps=2, guidance_scale=3.0, seed=5, output_type='latent')


def latents(editor: Any, **changes: Any) -> Tensor:
    found = editor.infer(**{**CALL, **changes})
    return found['latents'] if 'latents' in found else found['samples']


def embeds(editor: Any, *texts: str, skip: int | None = None) -> Tensor:
    with torch.no_grad():
        return encode_prompts(editor.tokenizer, editor.text_encoder, texts, 1, skip)


def same(found: Tensor, expected: Tensor) -> bool:
    """Equal but for sums in another order."""
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-5)


def test_embeddings_are_prompts(animatediff: Any) -> None:
    both = latents(animatediff, prompt=['a red fish', 'a blue car'], negative_prompt='a car')
    given = embeds(animatediff, 'a red fish', 'a blue car')
    avoided = embeds(animatediff, 'a car', 'a car')
    assert same(latents(animatediff, prompt_embeds=given, negative_prompt='a car'), both)
    told = dict(prompt_embeds=given, negative_prompt_embeds=avoided)
    assert same(latents(animatediff, **told), both)
    unguided = latents(animatediff, prompt_embeds=given, guidance_scale=1.0)
    assert same(
        unguided, latents(animatediff, prompt=['a red fish', 'a blue car'], guidance_scale=1.0)
    )


def test_embeddings_of_each_frame(animatediff: Any) -> None:
    first, last = embeds(animatediff, 'a red fish', 'a blue car')
    each = torch.stack([first, (first + last) / 2, last])[None]
    found = latents(animatediff, prompt_embeds=each)
    expected = latents(animatediff, prompt={0: 'a red fish', 2: 'a blue car'})
    assert (found - expected).abs().max() <= 1e-5
    windowed = latents(animatediff, prompt_embeds=each, windows=dict(length=2, overlap=1))
    assert (windowed - found).abs().max() > 1e-4


def test_embeddings_for_several_videos(animatediff: Any) -> None:
    given = embeds(animatediff, 'a red fish', 'a blue car')
    found = latents(animatediff, prompt_embeds=given, num_videos_per_prompt=2)
    expected = latents(animatediff, prompt=['a red fish', 'a blue car'], num_videos_per_prompt=2)
    assert same(found, expected) and len(found) == 4


def test_negative_prompts_with_all_layers(build: Callable) -> None:
    layers = dict(num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12)
    sizes = dict(vocab_size=1000, hidden_size=16, intermediate_size=32)
    animatediff = build('AnimateDiff', text_encoder=dict(type='CLIPTextModel', **sizes, **layers))
    texts = dict(prompt='a red fish', negative_prompt='a car', clip_skip=1)
    alike, unlike = (
        latents(animatediff, **texts),
        latents(animatediff, **texts, negative_clip_skip=0),
    )
    assert (alike - unlike).abs().max() > 1e-5
    expected = latents(
        animatediff,
        prompt_embeds=embeds(animatediff, 'a red fish', skip=1),
        negative_prompt_embeds=embeds(animatediff, 'a car'),
    )
    assert (unlike - expected).abs().max() <= 1e-6


def test_embeddings_that_cannot_be(animatediff: Any) -> None:
    given = embeds(animatediff, 'a red fish')
    length, width = given.shape[1:]
    for arguments, message in (
        (dict(prompt='a', prompt_embeds=given), 'prompt and prompt_embeds: give one of them'),
        (dict(prompt_embeds=given[0]), r'prompt_embeds is \[.*expected a tensor \[N, L, D\]'),
        (dict(prompt_embeds=given[..., 1:]), f'are {width - 1} wide: the denoiser takes {width}'),
        (dict(prompt_embeds=given[:, 1:]), f'have {length - 1} tokens, the texts beside them'),
        (
            dict(prompt_embeds=given[:, 1:], negative_prompt_embeds=given),
            f'has {length - 1} tokens, negative_prompt_embeds {length}',
        ),
        (dict(prompt_embeds=given[:, None].expand(-1, 2, -1, -1)), 'for 2 frames, the clip has 3'),
        (dict(prompt_embeds=given, negative_prompt='a', negative_prompt_embeds=given), 'one of th'),
    ):
        with pytest.raises(InputError, match=message):
            latents(animatediff, **arguments)


def test_a_step_is_seen_and_changed(animatediff: Any) -> None:
    seen: list[tuple[int, int, int]] = []

    def note(step: Step) -> None:
        seen.append((step.index, step.count, int(step.timestep)))

    plain = latents(animatediff, prompt='a red fish', num_inference_steps=3)
    assert torch.equal(
        latents(animatediff, prompt='a red fish', num_inference_steps=3, on_step=note), plain
    )
    assert [entry[:2] for entry in seen] == [(0, 3), (1, 3), (2, 3)]
    assert seen[0][2] > seen[1][2] > seen[2][2]

    def stop(step: Step) -> None:
        step.stop = step.index == 1

    def scale(step: Step) -> None:
        step.latents = step.latents * 2

    stopped = latents(animatediff, prompt='a red fish', num_inference_steps=3, on_step=stop)
    states: list[Tensor] = []
    latents(
        animatediff,
        prompt='a red fish',
        num_inference_steps=3,
        callback=lambda done, total, state: states.append(state),
    )
    assert torch.equal(stopped, states[1])
    assert not torch.equal(latents(animatediff, prompt='a red fish', on_step=scale), plain)


def test_text_and_guidance_change_between_steps(animatediff: Any) -> None:
    """From a step on as if the call had begun so."""
    other = embeds(animatediff, '', 'a blue car')

    def retell(step: Step) -> None:
        step.embeds = other

    def release(step: Step) -> None:
        step.guided, step.embeds = False, step.embeds[-1:]

    states: dict[str, list[Tensor]] = {}
    for name, function in (('plain', None), ('retold', retell), ('released', release)):
        states[name] = []
        latents(
            animatediff,
            prompt='a red fish',
            on_step=function,
            callback=lambda done, total, state, name=name: states[name].append(state),
        )
    for name in ('retold', 'released'):
        assert torch.equal(states['plain'][0], states[name][0])
        assert (states['plain'][1] - states[name][1]).abs().max() > 1e-5


def test_changes_that_cannot_be(animatediff: Any) -> None:
    def cut(step: Step) -> None:
        step.latents = step.latents[:, :2]

    def forget(step: Step) -> None:
        step.embeds = step.embeds[-1:]

    with pytest.raises(InputError, match=r'on_step: latents of the shape .*expected \[1, 4, 3'):
        latents(animatediff, prompt='a', on_step=cut)
    with pytest.raises(InputError, match='embeddings of 1 rows for 1 samples with guidance'):
        latents(animatediff, prompt='a', on_step=forget)
    with pytest.raises(InputError, match='on_step=3: expected a function of a Step'):
        latents(animatediff, prompt='a', on_step=3)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(timesteps=[100, 900]), r'timesteps=\[100, 900\]: expected falling numbers'),
        (dict(timesteps=[]), 'expected falling numbers, such as'),
        (dict(sigmas=[3.0, 1.0]), 'expected noise levels that fall to a last 0'),
        (dict(timesteps=[9, 3], sigmas=[1.0, 0.0]), 'timesteps and sigmas: give one of them'),
        (dict(timesteps=[900, 100]), 'a DDIMScheduler chooses its own'),
        (dict(draws='diffuser'), "draws='diffuser'.*Did you mean 'diffusers'"),
    ],
)
def test_steps_that_cannot_be(animatediff: Any, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        latents(animatediff, prompt='a', **arguments)


def test_steps_of_the_caller(build: Callable) -> None:
    """Those that the scheduler would choose give the same; FreeInit's short rounds have none."""
    scheduler = dict(type='EulerDiscreteScheduler', beta_schedule='linear')
    editor = build('AnimateDiff', scheduler=scheduler)
    editor.scheduler.set_timesteps(3)
    chosen = [float(t) for t in editor.scheduler.timesteps]
    found = latents(editor, prompt='a red fish', timesteps=chosen)
    expected = latents(editor, prompt='a red fish', num_inference_steps=3)
    assert (found - expected).abs().max() <= 1e-4 * float(expected.abs().max())
    levels = [float(s) for s in editor.scheduler.sigmas]
    found = latents(editor, prompt='a red fish', sigmas=levels)
    assert (found - expected).abs().max() <= 1e-4 * float(expected.abs().max())
    fast = dict(num_iters=2, use_fast_sampling=True)
    with pytest.raises(InputError, match='use_fast_sampling=True chooses steps of its own'):
        latents(editor, prompt='a', timesteps=[900, 100], free_init=fast)


def test_other_editors_take_the_same(build: Callable, pia: Any) -> None:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    given = embeds(pia, 'a red fish')
    assert same(
        latents(pia, image=picture, prompt_embeds=given),
        latents(pia, image=picture, prompt='a red fish'),
    )
    drawing = build('TextToImage')
    seen: list[Step] = []
    shared = dict(num_inference_steps=2, guidance_scale=3.0, seed=5)
    told = drawing.infer(prompt='a red fish', **shared)['samples']
    found = drawing.infer(
        prompt_embeds=embeds(drawing, 'a red fish'), on_step=seen.append, **shared
    )['samples']
    assert same(told, found) and len(seen) == 2

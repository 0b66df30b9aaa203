"""PIAPipeline beside diffusers', within 1e-4; and what goes wrong there and not here."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import pytest
import torch
from pairs_of_pipelines import call, parts, seeded

from mmvideo.errors import InputError
from mmvideo.pipelines import AnimateDiffPipeline, MotionAdapter, PIAPipeline


def picture(count: int = 1) -> torch.Tensor:
    return parts.eight_bit(parts.picture(count))


@pytest.mark.parametrize(('motion_scale', 'strength'), [(0, 1.0), (4, 0.6), (8, 1.0)])
def test_a_picture(make: Callable, motion_scale: int, strength: float) -> None:
    """With a strength below 1 too the random numbers are those of the same generator."""
    settings = dict(image=picture(), motion_scale=motion_scale, strength=strength)
    make('pia').compare(**call(steps=4, **settings))


@pytest.mark.parametrize('sampler', ['HeunDiscreteScheduler', 'EulerAncestralDiscreteScheduler'])
def test_a_strength_with_other_samplers(make: Callable, sampler: str) -> None:
    """Of order 2, and one that draws noise in each step."""
    pair = make('pia')
    for pipeline in pair:
        pipeline.scheduler = getattr(diffusers, sampler)(**parts.BETAS)
    pair.compare(**call(steps=4, image=picture(), motion_scale=2, strength=0.6))


def test_noise_of_the_caller_with_a_strength(make: Callable) -> None:
    """diffusers draws other noise there."""
    pair = make('pia')
    settings = call(5, 4, image=picture(), strength=0.6)

    def change(pipeline: object) -> float:
        found = [
            pipeline(  # type: ignore[operator]
                **settings, latents=parts.noise(1) * sign, generator=seeded(1), output_type='pt'
            ).frames
            for sign in (1, -1)
        ]
        return float((found[0] - found[1]).abs().max())

    assert change(pair.ours) > 1e-3 and change(pair.theirs) == 0


def test_free_init_keeps_the_strength(make: Callable) -> None:
    """diffusers goes back to all timesteps there."""
    ours = make('pia').ours
    seen: list[int] = []
    ours.enable_free_init(num_iters=2)
    try:
        ours(
            **call(frames=2, steps=4, image=picture(), strength=0.5),
            callback_on_step_end=lambda pipe, i, t, tensors: seen.append(int(t)) or tensors,
        )
    finally:
        ours.disable_free_init()
    assert len(seen) == 4 and seen[:2] == seen[2:]


def test_several_pictures_start_from_their_own(make: Callable) -> None:
    """diffusers fails for a strength below 1, and for one picture with a list of generators."""
    ours = make('pia').ours
    shared = dict(call(steps=2, frames=2), strength=0.5, output_type='pt')
    both = ours(
        **dict(shared, prompt=parts.PROMPTS, negative_prompt=None),
        image=picture(2),
        generator=[seeded(1), seeded(2)],
    ).frames
    alone = ours(
        **dict(shared, prompt=parts.PROMPTS[1], negative_prompt=None),
        image=picture(2)[1],
        generator=seeded(2),
    ).frames
    assert (both[1] - alone[0]).abs().max() <= 1e-5
    one = ours(
        **dict(shared, prompt=parts.PROMPTS),
        image=picture(),
        generator=[seeded(1), seeded(2)],
    ).frames
    assert one.shape[0] == 2


def test_amounts_of_motion_that_there_are_not(make: Callable) -> None:
    ours = make('pia').ours
    for amount in (-1, 9):
        with pytest.raises(InputError, match=f'motion_scale={amount}'):
            ours(**call(image=picture(), motion_scale=amount))


def test_a_pipeline_without_the_condition_becomes_no_pia(make: Callable) -> None:
    plain, pia = make('v2').ours, make('pia')
    with pytest.raises(InputError, match="no weights for PIA's condition: give motion_adapter"):
        PIAPipeline.from_pipe(plain)
    with pytest.raises(InputError, match='the unet takes 9 channels.*use PIAPipeline'):
        AnimateDiffPipeline.from_pipe(pia.ours)
    adapter = MotionAdapter.from_pretrained(pia.folder.parent / 'parts' / 'motion_adapter')
    with pytest.raises(InputError, match='which only PIAPipeline uses'):
        AnimateDiffPipeline.from_pipe(plain, motion_adapter=adapter)
    made = PIAPipeline.from_pipe(plain, motion_adapter=adapter)
    assert made.unet.in_channels == 9 and made.vae is plain.vae
    first = made.unet.conv_in.weight[:, :4]
    assert torch.equal(first, plain.unet.conv_in.weight) and plain.unet.in_channels == 4
    assert (
        made(**call(steps=1, frames=2, image=picture()), output_type='pt').frames.isfinite().all()
    )


def test_official_norms_are_another_network(make: Callable) -> None:
    """Statistics over the clip in the resnets and by frame in motion modules, as in PIA's code."""
    pia = make('pia')
    official = PIAPipeline.from_pretrained(pia.folder, numerics='official')
    scopes = official.unet.settings
    assert scopes['resnet_norm_scope'] == 'clip'
    assert scopes['motion_module']['norm_scope'] == 'frame'
    shared = dict(call(steps=1, image=picture()), output_type='pt')
    frames = [p(**shared, generator=seeded(3)).frames for p in (pia.ours, official)]
    assert (frames[0] - frames[1]).abs().max() > 1e-3
    with pytest.raises(InputError, match="numerics='offical'.*Did you mean 'official'"):
        PIAPipeline.from_pretrained(pia.folder, numerics='offical')

"""What video to video starts from: clips in every form, several of them, or latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pairs_of_pipelines import Both, call, parts, seeded
from test_controls import FRAMES, clip_call, controls, family, video

from mmvideo.errors import InputError
from mmvideo.pipelines import export_to_video

NAME = 'AnimateDiffVideoToVideoPipeline'


@pytest.fixture(scope='module')
def restyle(make: Callable, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return family(make, tmp_path_factory.mktemp('clips'), NAME)


def latents(seed: int, count: int = 1) -> torch.Tensor:
    shape = (count, 4, FRAMES, parts.CELLS, parts.CELLS)
    return torch.randn(shape, generator=seeded(seed))


def test_forms_of_a_clip(restyle: Both) -> None:
    pictures = video(5)
    arrays = controls.clip(5, FRAMES)
    settings = dict(clip_call(strength=0.3), output_type='latent')
    forms = [pictures, [pictures], arrays, arrays[None], tuple(pictures)]
    found = [restyle.ours(video=f, **settings, generator=seeded(2)).frames for f in forms]
    assert all(torch.equal(found[0], other) for other in found[1:])
    with pytest.raises(InputError, match='video is missing'):
        restyle.ours(**settings)
    with pytest.raises(InputError, match='video is a int: expected a path'):
        restyle.ours(**settings, video=3)


def test_files_and_parts_of_files(restyle: Both, tmp_path: Path) -> None:
    path = export_to_video(video(5, 6), tmp_path / 'a.mp4')
    settings = dict(clip_call(strength=0.3), output_type='latent')

    def made(clip: Any) -> torch.Tensor:
        return restyle.ours(video=clip, **settings, generator=seeded(2)).frames

    whole = made(path)
    assert whole.shape[2] == 6 and torch.equal(made(Path(path)), whole)
    assert made(dict(clip=path, start=2, stride=2)).shape[2] == 2
    with pytest.raises(InputError, match="video takes no 'begin'"):
        made(dict(clip=path, begin=1))


@pytest.mark.parametrize('several', [False, True], ids=['one generator', 'one each'])
def test_several_clips(restyle: Both, several: bool) -> None:
    shared = clip_call(video=[video(5), video(6)], strength=0.5, output_type='pt')
    shared |= dict(prompt=parts.PROMPTS, negative_prompt=[parts.NEGATIVE] * 2)
    found = []
    for pipeline in restyle:
        generator = [seeded(3), seeded(4)] if several else seeded(3)
        found.append(pipeline(**shared, generator=generator).frames)
    assert found[0].shape[0] == 2 and (found[0] - found[1]).abs().max() <= 1e-4
    if several:
        alone = dict(shared, video=video(6), prompt=parts.PROMPTS[1], negative_prompt='blurry')
        one = restyle.ours(**alone, generator=seeded(4)).frames
        assert (one[0] - found[1][1]).abs().max() <= 1e-5
    with pytest.raises(InputError, match='2 videos for 1 samples'):
        restyle.ours(**dict(shared, prompt='a', negative_prompt=None))


@pytest.mark.parametrize('enforced', [False, True], ids=['noised', 'clean'])
def test_latents_in_place_of_clips(restyle: Both, enforced: bool) -> None:
    given = latents(7, 2)
    shared = clip_call(latents=given, strength=0.5, enforce_inference_steps=enforced)
    shared |= dict(prompt=parts.PROMPTS, negative_prompt=[parts.NEGATIVE] * 2)
    changed = restyle.compare(**shared)
    other = restyle.ours(**shared, generator=seeded(12), output_type='pt').frames
    assert ((other - changed).abs().max() > 1e-3) == enforced  # whether noise is drawn
    again = restyle.ours(**clip_call(video=video(5)), generator=seeded(1), output_type='pt').frames
    assert again.shape[0] == 1  # nothing of the latents is left


def test_latents_that_are_none(restyle: Both) -> None:
    ours = restyle.ours
    with pytest.raises(InputError, match='video and latents: give one of them'):
        ours(**clip_call(video=video(5), latents=latents(1)))
    with pytest.raises(InputError, match=r'latents is a tensor \[4, 4\]: expected'):
        ours(**clip_call(latents=torch.zeros(4, 4)))
    with pytest.raises(InputError, match=r'latents has the shape \[1, 4, 4, 3, 3\]'):
        ours(**clip_call(latents=torch.zeros(1, 4, FRAMES, 3, 3)))
    with pytest.raises(InputError, match='2 items for 1 samples'):
        ours(**clip_call(latents=latents(1, 2)))
    ours.enable_free_init(num_iters=2)
    try:
        with pytest.raises(InputError, match='free_init with latents: it noises a clip anew'):
            ours(**clip_call(latents=latents(1)))
    finally:
        ours.disable_free_init()


@pytest.mark.parametrize('steps', [50, 2])
def test_all_steps_of_the_callers_timesteps(restyle: Both, steps: int) -> None:
    """All of them are taken, or the last of as many as are asked for."""
    seen: dict[Any, list[int]] = {pipeline: [] for pipeline in restyle}

    def note(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        seen[pipe].append(int(timestep))
        return tensors

    before = [pipeline.scheduler for pipeline in restyle]
    for pipeline in restyle:
        pipeline.scheduler = diffusers.EulerDiscreteScheduler(**parts.BETAS)
    chosen = dict(timesteps=[900, 700, 400, 100], enforce_inference_steps=True)
    chosen |= dict(num_inference_steps=steps, strength=0.6, callback_on_step_end=note)
    try:
        restyle.compare(**(clip_call(video=video(5)) | chosen))
    finally:
        restyle.theirs.scheduler, restyle.ours.scheduler = before
    assert seen[restyle.ours] == seen[restyle.theirs] == [900, 700, 400, 100][-steps:]


@pytest.mark.parametrize('wrong', [
    dict(num_inference_steps=0), dict(num_inference_steps=2.5), dict(strength=0),
    dict(strength='all'), dict(timesteps=3),
])  # fmt: skip
def test_steps_that_there_are_not(restyle: Both, wrong: dict) -> None:
    settings = clip_call(video=video(5), enforce_inference_steps=True) | wrong
    with pytest.raises(InputError, match=f'{next(iter(wrong))}='):
        restyle.ours(**settings)


def test_frames_of_sparse_pictures(make: Callable, tmp_path: Path) -> None:
    ours = family(make, tmp_path, 'AnimateDiffSparseControlNetPipeline', 'rgb').ours
    settings = dict(call(FRAMES, 1, conditioning_frames=video(1, 1)), output_type='latent')
    first, listed = (
        ours(**settings, controlnet_frame_indices=where, generator=seeded(1)).frames
        for where in (2, [2])
    )
    assert torch.equal(first, listed)
    with pytest.raises(InputError, match='controlnet_frame_indices=None: expected a frame or a'):
        ours(**settings, controlnet_frame_indices=None)

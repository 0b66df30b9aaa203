"""Video to video, ControlNet and SparseCtrl beside diffusers' pipelines, within 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import test_control_parity as controls
import torch
from pairs_of_pipelines import Both, both_of, call, parts, seeded

import mmvideo.pipelines
from mmvideo.errors import InputError

FRAMES = 4


def family(make: Callable, folder: Path, name: str, *nets: str) -> Both:
    """Both pipelines of a name over the weights of AnimateDiff, saved and read anew."""
    plain = make('v2')
    components = {n: c for n, c in plain.theirs.components.items() if c is not None}
    if nets:
        found = [controls.write_net(folder, net) for net in nets]
        components['controlnet'] = found if len(nets) > 1 else found[0]
    theirs = getattr(diffusers, name)(**components)
    if not nets:
        return both_of(folder / 'whole', theirs)
    kind = 'SparseControlNetModel' if nets[0] in ('rgb', 'scribble') else 'ControlNetModel'
    read = [getattr(mmvideo.pipelines, kind).from_pretrained(folder / net) for net in nets]
    plain.theirs.save_pretrained(folder / 'whole')
    ours = getattr(mmvideo.pipelines, name).from_pretrained(
        folder / 'whole', controlnet=read if len(nets) > 1 else read[0]
    )
    return Both(folder, theirs, ours)


@pytest.fixture(scope='module')
def restyle(make: Callable, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp('v2v')
    return family(make, folder, 'AnimateDiffVideoToVideoPipeline')


@pytest.fixture(scope='module')
def led(make: Callable, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp('led')
    return family(make, folder, 'AnimateDiffControlNetPipeline', 'first', 'second')


def video(seed: int, count: int = FRAMES) -> list[Any]:
    return controls.pictures(controls.clip(seed, count))


def clip_call(**changes: Any) -> dict[str, Any]:
    settings = call(steps=4, **changes)
    del settings['num_frames']
    return settings


def test_video_to_video(restyle: Both) -> None:
    restyle.compare(**clip_call(video=video(5), strength=0.5))


def test_every_asked_step_is_taken(restyle: Both) -> None:
    restyle.compare(**clip_call(video=video(5), strength=0.6, enforce_inference_steps=True))


def test_timesteps_of_the_caller(restyle: Both) -> None:
    before = [pipeline.scheduler for pipeline in restyle]
    for pipeline in restyle:
        pipeline.scheduler = diffusers.EulerDiscreteScheduler(**parts.BETAS)
    chosen = dict(timesteps=[900, 700, 400, 100], strength=0.75)
    restyle.compare(**clip_call(video=video(5), **chosen))
    restyle.theirs.scheduler, restyle.ours.scheduler = before


def test_free_init_keeps_the_strength_of_a_clip(restyle: Both) -> None:
    """diffusers takes the strength again in every round, until no step is left."""
    seen: list[int] = []
    restyle.ours.enable_free_init(num_iters=2)
    try:
        restyle.ours(
            **clip_call(video=video(5), strength=0.5),
            callback_on_step_end=lambda pipe, i, t, tensors: seen.append(int(t)) or tensors,
        )
    finally:
        restyle.ours.disable_free_init()
    assert len(seen) == 4 and seen[:2] == seen[2:]


def test_several_control_nets(led: Both) -> None:
    led.compare(
        **call(
            FRAMES,
            3,
            conditioning_frames=[video(1), video(2)],
            controlnet_conditioning_scale=[0.7, 1.2],
            control_guidance_start=[0.0, 0.4],
            control_guidance_end=[0.5, 1.0],
        )
    )


def test_a_clip_with_control_nets(led: Both, restyle: Both) -> None:
    name = 'AnimateDiffVideoToVideoControlNetPipeline'
    theirs = getattr(diffusers, name)(**{n: c for n, c in led.theirs.components.items() if c})
    ours = getattr(mmvideo.pipelines, name).from_pipe(led.ours)
    assert ours.unet is led.ours.unet
    Both(led.folder, theirs, ours).compare(
        **clip_call(video=video(5), strength=0.5, conditioning_frames=[video(1), video(2)])
    )


def test_objects_of_diffusers_as_controls(led: Both) -> None:
    components = {n: c for n, c in led.theirs.components.items() if c is not None}
    ours = mmvideo.pipelines.AnimateDiffControlNetPipeline(**components)
    shared = call(FRAMES, 1, conditioning_frames=[video(1), video(2)], output_type='latent')
    frames = [p(**shared, generator=seeded(1)).frames for p in (led.ours, ours)]
    assert (frames[0] - frames[1]).abs().max() <= 1e-5
    with pytest.raises(InputError, match='needs controlnet: give a ControlNetModel'):
        mmvideo.pipelines.AnimateDiffControlNetPipeline(
            **{n: c for n, c in components.items() if n != 'controlnet'}
        )


@pytest.mark.parametrize('restyles', [False, True], ids=['text', 'clip'])
def test_a_saved_control_pipeline(make: Callable, tmp_path: Path, restyles: bool) -> None:
    """diffusers' pipeline for text needs the motion adapter's folder, the others none."""
    ours = family(make, tmp_path, 'AnimateDiffControlNetPipeline', 'first').ours
    name = f'AnimateDiff{"VideoToVideo" if restyles else ""}ControlNetPipeline'
    made = getattr(mmvideo.pipelines, name).from_pipe(ours)
    made.save_pretrained(tmp_path / 'saved')
    assert (tmp_path / 'saved' / 'motion_adapter').exists() != restyles
    theirs = getattr(diffusers, name).from_pretrained(tmp_path / 'saved')
    state, expected = theirs.unet.state_dict(), ours.unet.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
    again = getattr(mmvideo.pipelines, name).from_pretrained(
        tmp_path / 'saved',
        controlnet=mmvideo.pipelines.ControlNetModel.from_pretrained(tmp_path / 'first'),
    )
    assert again.unet.state_dict().keys() == expected.keys()


@pytest.mark.parametrize('kind', ['rgb', 'scribble'])
def test_sparse_ctrl(make: Callable, tmp_path: Path, kind: str) -> None:
    """diffusers draws the pictures' latents from torch's global generator: here without spread."""
    pair = family(make, tmp_path, 'AnimateDiffSparseControlNetPipeline', kind)
    weights = [pipeline.vae.quant_conv for pipeline in pair]
    before = [{k: v.clone() for k, v in conv.state_dict().items()} for conv in weights]
    for pipeline in pair:
        controls.without_spread(pipeline.vae)
    pair.compare(
        **call(
            FRAMES,
            2,
            conditioning_frames=video(1, 2),
            controlnet_frame_indices=[0, 3],
            controlnet_conditioning_scale=0.8,
        )
    )
    for conv, state in zip(weights, before, strict=True):
        conv.load_state_dict(state)

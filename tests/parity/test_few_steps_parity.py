"""Samplers of few steps end to end against diffusers' AnimateDiff pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import two_pipelines as parts
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel

from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.errors import InputError
from mmvideo.registry import MODELS

PROMPTS, FRAMES = parts.PROMPTS, parts.FRAMES
LINEAR = {key: value for key, value in parts.BETAS.items() if key != 'steps_offset'}
TRAILING = {**LINEAR, 'timestep_spacing': 'trailing'}
FEW = {
    'LCMScheduler': LINEAR,
    'TCDScheduler': LINEAR,
    'EulerDiscreteScheduler': TRAILING,
    'DDIMScheduler': {**TRAILING, 'clip_sample': False, 'set_alpha_to_one': False},
}


@pytest.mark.parametrize('guidance', [1.0, 2.0])
@pytest.mark.parametrize('sampler', FEW)
def test_few_steps(pairs: Callable, sampler: str, guidance: float) -> None:
    """The consistency samplers draw noise in each step, from each sample's own generator."""
    pair = pairs('v2')
    editor = pair.use(sampler, FEW[sampler])
    shared = dict(prompt=PROMPTS, guidance_scale=guidance)
    shared['eta'] = 0.3 if sampler == 'TCDScheduler' else 0.0
    generators = [[torch.Generator().manual_seed(seed) for seed in (4, 5)] for _ in range(2)]
    parts.compare(
        editor,
        pair.pipeline,
        dict(shared, generator=generators[0], video_length=FRAMES),
        dict(shared, generator=generators[1], num_frames=FRAMES),
        steps=4,
    )


def test_trailing_steps_begin_at_the_end_of_training(pairs: Callable) -> None:
    for sampler in ('EulerDiscreteScheduler', 'DDIMScheduler'):
        editor = pairs('v2').use(sampler, FEW[sampler])
        editor.scheduler.set_timesteps(4)
        assert [int(t) for t in editor.scheduler.timesteps] == [999, 749, 499, 249]


@pytest.fixture(scope='module')
def told(pairs: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict]:
    """A denoiser that is told of its guidance, in diffusers' pipeline and as an editor's config."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        block_out_channels=parts.WIDTHS,
        layers_per_block=2,
        sample_size=parts.CELLS,
        down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
        cross_attention_dim=parts.TEXT,
        attention_head_dim=2,
        norm_num_groups=parts.GROUPS,
        time_cond_proj_dim=6,
    )
    parts.disturb(unet)
    folder = tmp_path_factory.mktemp('told')
    unet.eval().save_pretrained(folder / 'unet')
    pair = pairs('v2')
    shared = {n: getattr(pair.pipeline, n) for n in ('vae', 'text_encoder', 'tokenizer')}
    pipeline = LatentConsistencyModelPipeline(
        **shared,
        unet=unet,
        scheduler=LCMScheduler(**LINEAR),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    config = parts.editor_config(pair.folder, 'LCMScheduler', settings=LINEAR)
    config['unet'] = dict(config['unet'], from_pretrained=str(folder))
    return pipeline, config


@pytest.mark.parametrize('guidance', [1.0, 8.5])
def test_a_denoiser_that_is_told_of_its_guidance(told: tuple, guidance: float) -> None:
    """Each picture is denoised once a step, whatever the scale."""
    pipeline, config = told
    config = {k: v for k, v in config.items() if k != 'motion_module'} | dict(type='TextToImage')
    editor = MODELS.build(config).eval()
    rows: list[int] = []
    editor.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    generators = [[torch.Generator().manual_seed(seed) for seed in (4, 5)] for _ in range(2)]
    call = dict(prompt=PROMPTS, guidance_scale=guidance, num_inference_steps=3)
    ours = editor.infer(**call, generator=generators[0])['samples'][:, :, 0]
    theirs = pipeline(**call, generator=generators[1], output_type='pt').images
    assert float((ours - theirs).abs().max()) <= 1e-4 and float(theirs.std()) > 0.02
    assert rows == [2] * 3


def test_with_motion_modules_and_what_it_cannot_do(told: tuple) -> None:
    _, config = told
    call = dict(prompt=PROMPTS[0], video_length=FRAMES, num_inference_steps=2, seed=0)
    editor = MODELS.build(config).eval()
    strong, weak = (editor.infer(**call, guidance_scale=g)['samples'] for g in (8.0, 2.0))
    assert not torch.allclose(strong, weak, atol=1e-3)
    for wrong, expected in (
        (dict(guidance_scale={0: 1.0, 4: 3.0}), 'told of one scale'),
        (dict(guidance_interval=[0, 0.5]), 'guidance in itself'),
    ):
        with pytest.raises(InputError, match=expected):
            AnimateDiff.check(config, {**call, **wrong})
        with pytest.raises(InputError, match=expected):
            editor.infer(**{**call, **wrong})

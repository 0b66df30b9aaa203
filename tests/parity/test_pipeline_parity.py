"""Editors end to end against diffusers' pipelines: the same folders, prompts, noise and frames.

The weights are random and tiny; diffusers writes them with ``save_pretrained`` and the editors
read them, so loading, prompts, scheduler, guidance, denoiser and decoder are all compared at once.
diffusers' norm scopes are asked for: resnets per frame, motion modules over the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    MotionAdapter,
    PIAPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel
from two_models import disturb

from mmvideo.registry import MODELS, SCHEDULERS, TOKENIZERS

WIDTHS, GROUPS, TEXT = (8, 16), 4, 16
FRAMES, SIZE, CELLS = 5, 32, 16  # frames; pixels and latent cells along a side
PROMPTS = ['a red fish moving left', 'a blue car in the city']
NEGATIVE = 'blurry'
# family: frame positions, a motion module in the middle, input channels of PIA's convolution
FAMILIES = {'v1': (24, False, None), 'v2': (32, True, None), 'pia': (32, False, 9)}
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'linear', 'steps_offset': 1}
SAMPLERS = {
    'DDIMScheduler': {**BETAS, 'clip_sample': False},
    'EulerDiscreteScheduler': {**BETAS, 'timestep_spacing': 'leading'},
    'DPMSolverMultistepScheduler': BETAS,
}


@dataclass
class Pair:
    """One family: diffusers' pipeline and a builder of our editor from the folders it wrote."""

    folder: Path
    pipeline: Any

    def use(self, sampler: str) -> Any:
        """The pipeline and an editor with this sampler."""
        self.pipeline.scheduler = getattr(diffusers, sampler)(**SAMPLERS[sampler])
        return MODELS.build(editor_config(self.folder, sampler, pia=self.is_pia))

    @property
    def is_pia(self) -> bool:
        return isinstance(self.pipeline, PIAPipeline)


def editor_config(folder: Path, sampler: str = 'DDIMScheduler', pia: bool = False) -> dict:
    def part(kind: str, name: str, **more: Any) -> dict:
        return dict(type=kind, from_pretrained=str(folder), subfolder=name, **more)

    config = dict(
        type='AnimateDiff',
        vae=part('AutoencoderKL', 'vae'),
        text_encoder=part('CLIPTextModel', 'text_encoder'),
        tokenizer=part('CLIPTokenizer', 'tokenizer'),
        scheduler=dict(type=sampler, **SAMPLERS[sampler]),
        unet=part('VideoUNet', 'unet', resnet_norm_scope='frame'),
        motion_module=part('MotionModule', 'motion_adapter', norm_scope='clip'),
        caption_dropout=0.0,
    )
    if pia:
        condition = dict(type='PIACondition', condition_dropout=0.0, statistics='webvid')
        config.update(type='PIA', condition_module=condition)
    return config


def write_folders(folder: Path, family: str) -> dict[str, Any]:
    """Random components as diffusers writes them; what a pipeline is made of."""
    torch.manual_seed(0)
    positions, mid, condition = FAMILIES[family]
    tokenizer = TOKENIZERS.build(
        dict(type='CLIPTokenizer', vocab=sorted({*' '.join(PROMPTS).split(), NEGATIVE}),
             model_max_length=20)
    )  # fmt: skip
    parts = dict(
        vae=AutoencoderKL(
            block_out_channels=WIDTHS,
            down_block_types=['DownEncoderBlock2D'] * 2,
            up_block_types=['UpDecoderBlock2D'] * 2,
            latent_channels=4,
            norm_num_groups=GROUPS,
            sample_size=SIZE,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=TEXT,
                intermediate_size=24,
                num_attention_heads=4,
                num_hidden_layers=2,
                max_position_embeddings=20,
                vocab_size=1000,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
        unet=UNet2DConditionModel(
            block_out_channels=WIDTHS,
            layers_per_block=2,
            sample_size=CELLS,
            down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
            cross_attention_dim=TEXT,
            attention_head_dim=2,
            norm_num_groups=GROUPS,
        ),
        motion_adapter=MotionAdapter(
            block_out_channels=WIDTHS,
            motion_layers_per_block=2,
            motion_norm_num_groups=GROUPS,
            motion_num_attention_heads=2,
            motion_max_seq_length=positions,
            use_motion_mid_block=mid,
            conv_in_channels=condition,
        ),
    )
    for name, module in parts.items():
        disturb(module)
        module.eval().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / 'tokenizer')
    return dict(parts, tokenizer=tokenizer)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    known: dict[str, Pair] = {}

    def make(family: str) -> Pair:
        if family not in known:
            folder = tmp_path_factory.mktemp(family)
            parts = write_folders(folder, family)
            kind = PIAPipeline if family == 'pia' else AnimateDiffPipeline
            pipeline = kind(**parts, scheduler=diffusers.DDIMScheduler())
            pipeline.set_progress_bar_config(disable=True)
            known[family] = Pair(folder, pipeline)
        return known[family]

    return make


def noise(count: int, frames: int = FRAMES) -> Tensor:
    return torch.randn(count, 4, frames, CELLS, CELLS, generator=torch.Generator().manual_seed(7))


def picture(count: int = 1) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def eight_bit(image: Tensor) -> Tensor:
    """Values that survive the way over 8-bit pixels, so that both sides see the same picture."""
    return (image * 255).round() / 255


def compare(
    editor: Any, pipeline: Any, ours: dict[str, Any], theirs: dict[str, Any], steps: int = 3
) -> None:
    """Frames and final latents within 1e-4; and the frames are pictures, not a constant."""
    last: list[Tensor] = []
    result = editor.infer(
        num_inference_steps=steps, callback=lambda *state: last.append(state[2]), **ours
    )['samples']
    seen: list[Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        seen.append(tensors['latents'])
        return {}

    expected = pipeline(
        num_inference_steps=steps, output_type='pt', callback_on_step_end=keep, **theirs
    ).frames.transpose(1, 2)
    assert result.shape == expected.shape
    assert len(last) == len(seen)
    scale = float(seen[-1].abs().max())
    assert float((last[-1] - seen[-1]).abs().max()) <= 1e-4 * max(scale, 1)
    assert float((result - expected).abs().max()) <= 1e-4
    assert float(expected.std()) > 0.02
    assert float(expected.diff(dim=2).abs().max()) > 1e-3


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

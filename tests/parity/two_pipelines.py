"""diffusers' pipelines with tiny random weights, our editors of the same folders, and how the tests
of this folder compare them.

diffusers writes the weights with ``save_pretrained`` and the editors read them, so loading,
prompts, scheduler, guidance, denoiser and decoder are all compared at once. diffusers' norm scopes
are asked for: resnets per frame, motion modules over the clip.
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
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel
from two_models import disturb

from mmvideo.registry import MODELS, TOKENIZERS

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

    def use(self, sampler: str, settings: dict[str, Any] | None = None) -> Any:
        """An editor with this sampler, which the pipeline has then too."""
        settings = settings or SAMPLERS[sampler]
        self.pipeline.scheduler = getattr(diffusers, sampler)(**settings)
        return MODELS.build(editor_config(self.folder, sampler, self.is_pia, settings))

    @property
    def is_pia(self) -> bool:
        return isinstance(self.pipeline, PIAPipeline)


def editor_config(
    folder: Path,
    sampler: str = 'DDIMScheduler',
    pia: bool = False,
    settings: dict[str, Any] | None = None,
) -> dict:
    """``cfg.model`` of the folders' parts; ``settings`` of the sampler are else the usual ones."""

    def part(kind: str, name: str, **more: Any) -> dict:
        return dict(type=kind, from_pretrained=str(folder), subfolder=name, **more)

    config = dict(
        type='AnimateDiff',
        vae=part('AutoencoderKL', 'vae'),
        text_encoder=part('CLIPTextModel', 'text_encoder'),
        tokenizer=part('CLIPTokenizer', 'tokenizer'),
        scheduler=dict(type=sampler, **(settings or SAMPLERS[sampler])),
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

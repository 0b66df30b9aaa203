"""A kilobyte's I2VGen-XL as diffusers writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, I2VGenXLPipeline, I2VGenXLUNet
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from mmvideo.registry import TOKENIZERS

PROMPTS = ['a red fish moving left', 'a blue car in the city']
NEGATIVE = 'blurry'
WIDTH = 16  # of text and image embeddings
SEEN = 24  # pixels along a side of what CLIP sees
SCHEDULE = dict(
    beta_schedule='squaredcos_cap_v2',
    prediction_type='v_prediction',
    rescale_betas_zero_snr=True,
    set_alpha_to_one=True,
    clip_sample=False,
    steps_offset=1,
    timestep_spacing='leading',
)


def disturb(module: nn.Module) -> None:
    """Biases and norms start at 0 and 1, where a mistake with them would not show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def write_pipeline(folder: Path) -> I2VGenXLPipeline:
    """Write the folders of a pipeline with random weights."""
    torch.manual_seed(0)
    words = sorted({*' '.join(PROMPTS).split(), NEGATIVE})
    tokenizer = TOKENIZERS.build(dict(type='CLIPTokenizer', vocab=words, model_max_length=20))
    parts = modules(tokenizer)
    for name, module in parts.items():
        disturb(module)
        module.eval().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / 'tokenizer')
    seen = CLIPImageProcessor(size={'shortest_edge': SEEN}, crop_size=SEEN)
    seen.save_pretrained(folder / 'feature_extractor')
    pipeline = I2VGenXLPipeline(
        **parts,
        tokenizer=tokenizer,
        feature_extractor=seen,
        scheduler=diffusers.DDIMScheduler(**SCHEDULE),
    )
    pipeline.set_progress_bar_config(disable=True)
    text = pipeline.text_encoder
    if not hasattr(text, 'text_model'):  # diffusers asks for it with clip_skip
        text.__dict__['text_model'] = text
    return pipeline


def modules(tokenizer: Any) -> dict[str, nn.Module]:
    """The parts that have weights."""
    return dict(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=['DownEncoderBlock2D'] * 2,
            up_block_types=['UpDecoderBlock2D'] * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=WIDTH,
                intermediate_size=24,
                num_attention_heads=4,
                num_hidden_layers=3,
                max_position_embeddings=20,
                vocab_size=1000,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
        image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=8,
                intermediate_size=12,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=SEEN,
                patch_size=8,
                projection_dim=WIDTH,
            )
        ),
        unet=I2VGenXLUNet(
            down_block_types=('CrossAttnDownBlock3D', 'DownBlock3D'),
            up_block_types=('UpBlock3D', 'CrossAttnUpBlock3D'),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
    )


def editor_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """``cfg.model`` over the folders of ``write_pipeline``."""

    def part(kind: str, name: str) -> dict:
        return dict(type=kind, from_pretrained=str(folder), subfolder=name)

    return dict(
        type='I2VGenXL',
        vae=part('AutoencoderKL', 'vae'),
        text_encoder=part('CLIPTextModel', 'text_encoder'),
        tokenizer=part('CLIPTokenizer', 'tokenizer'),
        image_encoder=part('CLIPVisionModelWithProjection', 'image_encoder'),
        feature_extractor=part('CLIPImageProcessor', 'feature_extractor'),
        unet=part('VideoUNet', 'unet'),
        scheduler=dict(type='DDIMScheduler', **SCHEDULE),
    ) | dict(changes)

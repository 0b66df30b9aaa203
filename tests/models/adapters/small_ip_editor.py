"""A small AnimateDiff with IP-Adapters, as diffusers' pipeline and as our editor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_ip_adapters as small
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
)
from PIL import Image
from small_ip_adapters import FRAMES, TEXT
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel
from transformers import CLIPVisionModelWithProjection as VisionModel

from mmvideo.registry import MODELS, TOKENIZERS

SIZE, CELLS = 16, 8
LAYERS = [8] * 2 + [8] * 3 + [16]  # widths of the cross-attention layers: down, up, middle
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'linear'}
FILES = {'plain': 'ip-adapter-plain-0.safetensors', 'plus': 'ip-adapter-plus-1.safetensors'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, IP-Adapters and their image encoder, written by diffusers and by us."""
    folder = tmp_path_factory.mktemp('model')
    torch.manual_seed(0)
    for name, module in components().items():
        small.disturb(module)
        module.eval().save_pretrained(folder / name)
    tokenizer().save_pretrained(folder / 'tokenizer')
    small.write_adapter(folder / 'ip', 'plain', 0, layers=LAYERS)
    small.write_adapter(folder / 'ip', 'plus', 1, layers=LAYERS)
    small.write_encoder(folder / 'ip')
    return folder


def tokenizer() -> Any:
    return TOKENIZERS.build(
        dict(type='CLIPTokenizer', vocab=['a', 'red', 'fish'], model_max_length=10)
    )


def components() -> dict[str, Any]:
    widths, groups = (8, 16), 4
    text = CLIPTextConfig(
        **dict(hidden_size=TEXT, intermediate_size=16, num_attention_heads=2),
        **dict(num_hidden_layers=1, max_position_embeddings=10, vocab_size=1000),
        **dict(bos_token_id=tokenizer().bos_token_id, eos_token_id=tokenizer().eos_token_id),
    )
    return dict(
        vae=AutoencoderKL(
            block_out_channels=widths,
            down_block_types=['DownEncoderBlock2D'] * 2,
            up_block_types=['UpDecoderBlock2D'] * 2,
            norm_num_groups=groups,
            sample_size=SIZE,
        ),
        text_encoder=CLIPTextModel(text),
        unet=UNet2DConditionModel(
            block_out_channels=widths,
            sample_size=CELLS,
            down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
            cross_attention_dim=TEXT,
            attention_head_dim=2,
            norm_num_groups=groups,
        ),
        motion_adapter=MotionAdapter(
            block_out_channels=widths, motion_norm_num_groups=groups, motion_num_attention_heads=2
        ),
    )


def adapter(folder: Path, kind: str = 'plain', **keys: Any) -> dict:
    source = str(folder / 'ip')
    return dict(
        type='IPAdapter', from_pretrained=source, weight_name=FILES[kind], name=kind, **keys
    )


def config(folder: Path, *adapters: dict, **changes: Any) -> dict:
    def part(kind: str, name: str, **more: Any) -> dict:
        return dict(type=kind, from_pretrained=str(folder), subfolder=name, **more)

    return (
        dict(
            type='AnimateDiff',
            vae=part('AutoencoderKL', 'vae'),
            text_encoder=part('CLIPTextModel', 'text_encoder'),
            tokenizer=part('CLIPTokenizer', 'tokenizer'),
            scheduler=dict(type='DDIMScheduler', clip_sample=False, **BETAS),
            unet=part('VideoUNet', 'unet', resnet_norm_scope='frame'),
            motion_module=part('MotionModule', 'motion_adapter', norm_scope='clip'),
            adapters=list(adapters),
        )
        | changes
    )


@pytest.fixture(scope='module')
def build(folder: Path) -> Callable[..., Any]:
    """An editor with adapters of these kinds."""
    known: dict[Any, Any] = {}

    def make(*kinds: str, **keys: Any) -> Any:
        key = (kinds, str(keys))
        if key not in known:
            adapters = [adapter(folder, kind, **keys) for kind in kinds]
            known[key] = MODELS.build(config(folder, *adapters)).eval()
        return known[key]

    return make


def pipeline(folder: Path, kinds: list[str], scale: Any) -> AnimateDiffPipeline:
    parts = {name: type(part).from_pretrained(folder / name) for name, part in components().items()}
    made = AnimateDiffPipeline(
        **parts,
        tokenizer=tokenizer(),
        scheduler=DDIMScheduler(clip_sample=False, **BETAS),
        feature_extractor=CLIPImageProcessor(size={'shortest_edge': 16}, crop_size=16),
        image_encoder=VisionModel.from_pretrained(folder / 'ip' / 'image_encoder'),
    )
    made.set_progress_bar_config(disable=True)
    made.load_ip_adapter(
        str(folder),
        subfolder='ip',
        weight_name=[FILES[kind] for kind in kinds],
        low_cpu_mem_usage=False,
    )
    made.set_ip_adapter_scale(scale)
    return made


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def noise(count: int = 1) -> Tensor:
    return torch.randn(count, 4, FRAMES, CELLS, CELLS, generator=torch.Generator().manual_seed(7))


def infer(editor: Any, steps: int = 1, guidance: float = 7.5, count: int = 1, **images: Any) -> Any:
    return editor.infer(
        prompt=['a red fish', 'a fish'][:count],
        negative_prompt='red',
        latents=noise(count),
        guidance_scale=guidance,
        num_inference_steps=steps,
        video_length=FRAMES,
        **images,
    )['samples']


def reference(
    pipe: Any, guidance: float = 7.5, count: int = 1, masks: Any = None, **images: Any
) -> Tensor:
    return pipe(
        prompt=['a red fish', 'a fish'][:count],
        negative_prompt=['red'] * count,
        latents=noise(count),
        guidance_scale=guidance,
        num_inference_steps=2,
        num_frames=FRAMES,
        output_type='pt',
        cross_attention_kwargs=None if masks is None else {'ip_adapter_masks': masks},
        **images,
    ).frames.transpose(1, 2)


def assert_close(ours: Tensor, theirs: Tensor, atol: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= atol
    assert float(theirs.std()) > 0.02

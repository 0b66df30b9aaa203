"""ControlNet and SparseCtrl end to end against diffusers' pipelines, within 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import two_pipelines as parts
from control_nets import CONTROL, SCRIBBLE, SPARSE
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffSparseControlNetPipeline,
    ControlNetModel,
    SparseControlNetModel,
)
from PIL import Image
from torch import Tensor, nn
from two_models import disturb

from mmvideo.registry import MODELS

FRAMES, SIZE = parts.FRAMES, parts.SIZE
NETS = {
    'first': (ControlNetModel, dict(CONTROL, cross_attention_dim=parts.TEXT)),
    'second': (ControlNetModel, dict(CONTROL, cross_attention_dim=parts.TEXT)),
    'rgb': (SparseControlNetModel, dict(SPARSE, cross_attention_dim=parts.TEXT)),
    'scribble': (SparseControlNetModel, dict(SCRIBBLE, cross_attention_dim=parts.TEXT)),
}


def write_net(folder: Path, name: str) -> nn.Module:
    """A random net whose residuals matter, in a folder as diffusers writes it."""
    kind, settings = NETS[name]
    torch.manual_seed(sorted(NETS).index(name))
    net = disturb(kind(**settings)).eval()
    if not (folder / name).exists():
        net.save_pretrained(folder / name)
    return net


def clip(seed: int, count: int = FRAMES) -> Tensor:
    """[T, 3, H, W] in [0, 1], of 8 bit."""
    values = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return parts.eight_bit(values)


def arrays(frames: Tensor) -> list[Any]:
    return [frame.permute(1, 2, 0).numpy() for frame in frames]


def pictures(frames: Tensor) -> list[Image.Image]:
    return [Image.fromarray((array * 255).round().astype('uint8')) for array in arrays(frames)]


def setup(pair: Any, sampler: str, kind: Any, names: list[str]) -> tuple[Any, Any]:
    """Our editor with these controls, and diffusers' pipeline."""
    pair.use(sampler)  # the pipeline's scheduler
    nets = [write_net(pair.folder, name) for name in names]
    config = parts.editor_config(pair.folder, sampler)
    config['controls'] = [
        dict(
            type='SparseCtrl' if name in ('rgb', 'scribble') else 'ControlNet',
            from_pretrained=str(pair.folder / name),
            **(dict(norm_scope='clip') if name in ('rgb', 'scribble') else {}),
        )
        for name in names
    ]
    components = {n: c for n, c in pair.pipeline.components.items() if c is not None}
    if kind is AnimateDiffSparseControlNetPipeline:
        components.pop('image_encoder', None)
    pipeline = kind(**components, controlnet=nets if len(nets) > 1 else nets[0])
    pipeline.set_progress_bar_config(disable=True)
    return MODELS.build(config).eval(), pipeline


@pytest.mark.parametrize('guidance', [1.0, 4.0])
@pytest.mark.parametrize('sampler', ['DDIMScheduler', 'EulerDiscreteScheduler'])
def test_one_control_net(pairs: Callable, sampler: str, guidance: float) -> None:
    editor, pipeline = setup(pairs('v2'), sampler, AnimateDiffControlNetPipeline, ['first'])
    shared = dict(
        prompt=parts.PROMPTS[0],
        latents=parts.noise(1),
        guidance_scale=guidance,
        guess_mode=guidance == 1.0,  # with guidance diffusers cannot add up the halves
    )
    parts.compare(
        editor,
        pipeline,
        dict(shared, video_length=FRAMES, control_videos=[clip(1)], control_scale=0.7),
        dict(
            shared,
            num_frames=FRAMES,
            conditioning_frames=arrays(clip(1)),
            controlnet_conditioning_scale=0.7,
        ),
    )


def test_several_control_nets_for_parts_of_the_sampling(pairs: Callable) -> None:
    editor, pipeline = setup(
        pairs('v2'), 'DDIMScheduler', AnimateDiffControlNetPipeline, ['first', 'second']
    )
    shared = dict(prompt=parts.PROMPTS[0], latents=parts.noise(1), guidance_scale=4.0)
    parts.compare(
        editor,
        pipeline,
        dict(
            shared,
            video_length=FRAMES,
            control_videos=[clip(1), clip(2)],
            control_scale=[0.7, 1.2],
            control_start=[0.0, 0.4],
            control_end=[0.5, 1.0],
        ),
        dict(
            shared,
            num_frames=FRAMES,
            conditioning_frames=[arrays(clip(1)), arrays(clip(2))],
            controlnet_conditioning_scale=[0.7, 1.2],
            control_guidance_start=[0.0, 0.4],
            control_guidance_end=[0.5, 1.0],
        ),
        steps=4,
    )


def without_spread(vae: nn.Module) -> None:
    """Latents that are drawn as their mean: the pipeline draws them from the global generator."""
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -30


@pytest.mark.parametrize('kind', ['rgb', 'scribble'])
@pytest.mark.parametrize('sampler', ['DDIMScheduler', 'EulerDiscreteScheduler'])
def test_sparse_ctrl(pairs: Callable, sampler: str, kind: str) -> None:
    editor, pipeline = setup(pairs('v2'), sampler, AnimateDiffSparseControlNetPipeline, [kind])
    for vae in (editor.vae, pipeline.vae):
        without_spread(vae)
    shared = dict(prompt=parts.PROMPTS[0], latents=parts.noise(1), guidance_scale=4.0)
    frames = [0, 3]
    parts.compare(
        editor,
        pipeline,
        dict(
            shared,
            video_length=FRAMES,
            control_videos=[clip(1, 2)],
            control_frames=[frames],
            control_scale=0.8,
        ),
        dict(
            shared,
            num_frames=FRAMES,
            conditioning_frames=pictures(clip(1, 2)),
            controlnet_frame_indices=frames,
            controlnet_conditioning_scale=0.8,
        ),
    )

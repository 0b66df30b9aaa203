"""IP-Adapter files of a few kilobytes, as the public ones are laid out, and denoisers for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from diffusers.loaders.ip_adapter import IPAdapterMixin
from torch import Tensor, nn

from mmvideo.checkpoints.files import write_tensors
from mmvideo.checkpoints.save import save_part
from mmvideo.models.borrowed import build_image_encoder
from mmvideo.models.unet import VideoUNet, unet_arguments

TEXT, WORDS = 12, 5  # width and number of the prompt's tokens
PROJECTED, HIDDEN, SEEN = 10, 16, 5  # the image encoder: embedding, width, tokens
WIDTHS, LAYERS = (16, 32, 32), 2
FRAMES = 3
KINDS = ('plain', 'plus', 'full')
_DOWN = ('CrossAttnDownBlock{}', 'CrossAttnDownBlock{}', 'DownBlock{}')
_UP = ('UpBlock{}', 'CrossAttnUpBlock{}', 'CrossAttnUpBlock{}')
_SHARED = dict(
    block_out_channels=WIDTHS, layers_per_block=LAYERS, cross_attention_dim=TEXT, norm_num_groups=4
)


def adapter_tensors(
    kind: str, seed: int = 0, layers: Sequence[int] | None = None, text: int = TEXT
) -> dict[str, Tensor]:
    """Random tensors of a file; ``layers`` are the widths of the cross-attention layers."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    shapes: dict[str, tuple[int, ...]] = {}
    if kind == 'plain':
        shapes |= {'proj.weight': (4 * text, PROJECTED), 'proj.bias': (4 * text,)}
        shapes |= {'norm.weight': (text,), 'norm.bias': (text,)}
    elif kind == 'full':
        shapes |= {'proj.0.weight': (HIDDEN, HIDDEN), 'proj.0.bias': (HIDDEN,)}
        shapes |= {'proj.2.weight': (text, HIDDEN), 'proj.2.bias': (text,)}
        shapes |= {'proj.3.weight': (text,), 'proj.3.bias': (text,)}
    else:
        shapes = _resampler(text)
    tensors = {f'image_proj.{key}': drawn(*shape) for key, shape in shapes.items()}
    for index, channels in enumerate(layers or unet_widths()):
        for name in ('to_k_ip', 'to_v_ip'):
            tensors[f'ip_adapter.{2 * index + 1}.{name}.weight'] = drawn(channels, text)
    return tensors


def _resampler(text: int) -> dict[str, tuple[int, ...]]:
    inner, heads, queries = 24, 2, 6
    shapes: dict[str, tuple[int, ...]] = {
        'latents': (1, queries, inner),
        'proj_in.weight': (inner, HIDDEN),
        'proj_in.bias': (inner,),
        'proj_out.weight': (text, inner),
        'proj_out.bias': (text,),
        'norm_out.weight': (text,),
        'norm_out.bias': (text,),
    }
    for layer in range(4):
        for norm in ('0.norm1', '0.norm2', '1.0'):
            shapes |= {f'layers.{layer}.{norm}.{kind}': (inner,) for kind in ('weight', 'bias')}
        shapes |= {
            f'layers.{layer}.0.to_q.weight': (64 * heads, inner),
            f'layers.{layer}.0.to_kv.weight': (128 * heads, inner),
            f'layers.{layer}.0.to_out.weight': (inner, 64 * heads),
            f'layers.{layer}.1.1.weight': (4 * inner, inner),
            f'layers.{layer}.1.3.weight': (inner, 4 * inner),
        }
    return shapes


def unet_widths() -> list[int]:
    """Channels of the cross-attention layers of ``motion_pair``: down, up, middle."""
    return [16] * 2 + [32] * 2 + [32] * 3 + [16] * 3 + [32]


def write_adapter(folder: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    """A file of ``adapter_tensors``."""
    path = folder / f'ip-adapter-{kind}-{seed}.safetensors'
    return write_tensors(path, adapter_tensors(kind, seed, **changes))


def nested(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As the .bin files have them."""
    groups: dict[str, dict[str, Tensor]] = {'image_proj': {}, 'ip_adapter': {}}
    for key, value in tensors.items():
        group, _, rest = key.partition('.')
        groups[group][rest] = value
    return groups


def motion_pair() -> tuple[UNetMotionModel, VideoUNet]:
    """A denoiser of diffusers and ours with the same weights."""
    torch.manual_seed(0)
    reference = UNetMotionModel(
        down_block_types=[name.format('Motion') for name in _DOWN],
        up_block_types=[name.format('Motion') for name in _UP],
        num_attention_heads=2,
        motion_num_attention_heads=4,
        **_SHARED,
    ).eval()
    arguments = unet_arguments(dict(reference.config))
    arguments['motion_module']['norm_scope'] = 'clip'
    return reference, _ours(reference, arguments)


def image_pair() -> tuple[UNet2DConditionModel, VideoUNet]:
    """Likewise without motion modules."""
    torch.manual_seed(0)
    reference = UNet2DConditionModel(
        down_block_types=[name.format('2D') for name in _DOWN],
        up_block_types=[name.format('2D') for name in _UP],
        attention_head_dim=2,
        **_SHARED,
    ).eval()
    return reference, _ours(reference, unet_arguments(dict(reference.config)))


def _ours(reference: nn.Module, arguments: dict[str, Any]) -> VideoUNet:
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model = VideoUNet(**arguments).eval()
    model.load_state_dict(reference.state_dict())
    return model


def give_reference(reference: Any, adapters: Sequence[dict[str, Tensor]], scale: Any) -> None:
    """Let diffusers load the adapters and set their scales."""
    states = [nested(tensors) for tensors in adapters]
    reference._load_ip_adapter_weights(states, low_cpu_mem_usage=False)
    reference.eval()
    pipeline = SimpleNamespace(unet=reference, unet_name='unet')
    IPAdapterMixin.set_ip_adapter_scale(pipeline, scale)


def features(kind: str, pictures: int, frames: int = 1, seed: int = 5, halves: int = 2) -> Tensor:
    """What the image encoder gives, [R, F, I, E] or [R, F, I, S, E]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (PROJECTED,) if kind == 'plain' else (SEEN, HIDDEN)
    return torch.randn(halves, frames, pictures, *shape, generator=generator)


def write_encoder(folder: Path, name: str = 'image_encoder', **changes: Any) -> Path:
    """A CLIP image encoder for pictures of 16 x 16 px, in the hub's layout."""
    torch.manual_seed(3)
    encoder = build_image_encoder(
        **{
            **dict(hidden_size=HIDDEN, projection_dim=PROJECTED, intermediate_size=24),
            **dict(num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8),
            **changes,
        }
    )
    disturb(encoder)
    return save_part(folder / name, encoder.config.to_dict(), encoder)


def disturb(module: nn.Module) -> None:
    """Biases and norms start at 0 and 1, where a mistake with them would not show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)

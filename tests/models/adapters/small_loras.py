"""Small denoisers and text encoders, and LoRA files for them in every public layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from mmvideo.models.unet import VideoUNet, unet_arguments

WIDTHS, GROUPS, TEXT = (8, 16), 4, 16
FRAMES, CELLS, LENGTH = 3, 8, 5


def disturb(module: nn.Module) -> None:
    """Biases and norms start at 0 and 1, where a mistake with them would not show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def unet_pair(motion: bool, channels: int = 4, text: int = TEXT) -> tuple[Any, VideoUNet]:
    """A tiny UNet of diffusers and ours with its weights."""
    torch.manual_seed(0)
    kind = 'Motion' if motion else '2D'
    reference: Any = (UNetMotionModel if motion else UNet2DConditionModel)(
        in_channels=channels,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=(f'CrossAttnDownBlock{kind}', f'DownBlock{kind}'),
        up_block_types=(f'UpBlock{kind}', f'CrossAttnUpBlock{kind}'),
        cross_attention_dim=text,
        norm_num_groups=GROUPS,
        **(dict(num_attention_heads=2, motion_num_attention_heads=2) if motion else {}),
        **({} if motion else dict(attention_head_dim=2)),
    )
    disturb(reference)
    arguments = unet_arguments(dict(reference.config))
    if motion:
        arguments['motion_module']['norm_scope'] = 'clip'
    model = VideoUNet(**arguments).eval().requires_grad_(False)
    model.load_state_dict(reference.state_dict())
    return reference.eval(), model


def text_encoder() -> CLIPTextModel:
    """A tiny text encoder, the same at each call."""
    torch.manual_seed(1)
    config = CLIPTextConfig(
        hidden_size=TEXT,
        intermediate_size=24,
        num_attention_heads=2,
        num_hidden_layers=3,
        max_position_embeddings=16,
        vocab_size=1000,
        bos_token_id=998,
        eos_token_id=999,
        pad_token_id=999,
    )
    encoder = CLIPTextModel(config).eval().requires_grad_(False)
    disturb(encoder)
    return encoder


def editor(unet: nn.Module, encoder: nn.Module | None = None) -> SimpleNamespace:
    """What an adapter sees of an editor."""
    return SimpleNamespace(unet=unet, text_encoder=encoder or text_encoder())


def weights(*modules: nn.Module) -> list[Tensor]:
    """Copies of everything that a checkpoint would hold."""
    return [value.clone() for module in modules for value in module.state_dict().values()]


def unchanged(before: list[Tensor], *modules: nn.Module) -> bool:
    """Whether every bit is as it was, under the same names and in the same number."""
    now = [value for module in modules for value in module.state_dict().values()]
    return len(now) == len(before) and all(map(torch.equal, before, now))


def layers_of(model: nn.Module, wanted: Callable[[str], bool]) -> dict[str, nn.Module]:
    """Linear and convolutional layers by name."""
    named = model.named_modules()
    return {n: m for n, m in named if isinstance(m, (nn.Linear, nn.Conv2d)) and wanted(n)}


def random_pair(layer: nn.Module, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """down and up of a layer, as kohya shapes them."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear):
        return draw(rank, weight.shape[1]), draw(weight.shape[0], rank)
    return draw(rank, *weight.shape[1:]), draw(weight.shape[0], rank, 1, 1)


def kohya(
    layers: dict[str, nn.Module],
    prefix: str,
    rank: int = 3,
    alpha: float | None = 2.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A LoRA under kohya's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in layers.items():
        stem = prefix + name.replace('.', '_')
        down, up = random_pair(layer, rank, generator)
        tensors |= {f'{stem}.lora_down.weight': down, f'{stem}.lora_up.weight': up}
        if alpha is not None:
            tensors[f'{stem}.alpha'] = torch.tensor(alpha)
    return tensors


def peft(
    layers: dict[str, nn.Module], prefix: str, rank: int = 3, seed: int = 0
) -> dict[str, Tensor]:
    """A LoRA under the names of PEFT and today's diffusers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in layers.items():
        down, up = random_pair(layer, rank, generator)
        tensors |= {f'{prefix}{name}.lora_A.weight': down, f'{prefix}{name}.lora_B.weight': up}
    return tensors


def motion_lora(layers: dict[str, nn.Module], rank: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """A MotionLoRA under the names of the official files."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in layers.items():
        module, _, inner = name.partition('.transformer_blocks.0.')
        attention, projection = inner.split('.')[:2]
        stem = f'{module}.temporal_transformer.transformer_blocks.0.attention_blocks.'
        stem += f'{int(attention[-1]) - 1}.processor.{projection}_lora.'
        down, up = random_pair(layer, rank, generator)
        tensors |= {f'{stem}down.weight': down, f'{stem}up.weight': up}
    return tensors


def write(path: Path, *groups: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """All groups in one safetensors file."""
    together: dict[str, Tensor] = {}
    for group in groups:
        together |= group
    save_file(together, path, metadata=metadata)
    return path


def is_attention(name: str) -> bool:
    """Projections of the image layers' attention."""
    return '.attentions.' in name and ('.attn1.' in name or '.attn2.' in name)


def is_motion(name: str) -> bool:
    """Projections of the motion modules' attention."""
    return '.motion_modules.' in name and '.attn' in name


def is_text(name: str) -> bool:
    """Layers of the text encoder that LoRAs change."""
    return '.self_attn.' in name or '.mlp.' in name

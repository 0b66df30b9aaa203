"""Files as they were published: every key and shape, written from the authors' own naming.

Nothing here uses mmvideo's tables, so a wrong row cannot hide. Widths are the four levels of the
image model; small ones make small files, the real ones go on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SD = (320, 640, 1280, 1280)
TINY = (8, 16, 16, 16)
Shapes = dict[str, tuple[int, ...]]


def filled(shapes: Shapes, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random values; the two copies of an encoding agree, as published ones do."""
    generator = torch.Generator().manual_seed(seed)
    tensors, encodings = {}, {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=generator).to(dtype)
        if key.endswith('pos_encoder.pe'):
            value = encodings.setdefault(key.split('.attention_blocks.')[0], value).clone()
        tensors[key] = value
    return tensors


def empty(shapes: Shapes, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The same without memory."""
    return {k: torch.empty(shape, dtype=dtype, device='meta') for k, shape in shapes.items()}


def modules(widths: tuple[int, ...], mid: bool = False) -> Iterator[tuple[str, int]]:
    """Names and channels of the motion modules: two a down stage, three an up stage."""
    for level, width in enumerate(widths):
        for item in range(2):
            yield f'down_blocks.{level}.motion_modules.{item}', width
    if mid:
        yield 'mid_block.motion_modules.0', widths[-1]
    for level, width in enumerate(reversed(widths)):
        for item in range(3):
            yield f'up_blocks.{level}.motion_modules.{item}', width


def motion(
    widths: tuple[int, ...] = TINY,
    positions: int | None = 32,
    mid: bool = False,
    pia: bool = False,
    attentions: int = 2,
) -> Shapes:
    """guoyww/AnimateDiff's motion modules; with PIA's convolution."""
    shapes: Shapes = {}
    for name, c in modules(widths, mid):
        shapes |= motion_module(name, c, positions, attentions)
    if pia:
        shapes |= {'conv_in.weight': (widths[0], 9, 3, 3), 'conv_in.bias': (widths[0],)}
    return shapes


def motion_module(name: str, c: int, positions: int | None, attentions: int = 2) -> Shapes:
    stem = f'{name}.temporal_transformer.'
    block = stem + 'transformer_blocks.0.'
    shapes: Shapes = {}
    for layer in ('norm', 'proj_in', 'proj_out'):
        shapes[f'{stem}{layer}.weight'] = (c,) if layer == 'norm' else (c, c)
        shapes[f'{stem}{layer}.bias'] = (c,)
    for i in range(attentions):
        for linear in ('to_q', 'to_k', 'to_v', 'to_out.0'):
            shapes[f'{block}attention_blocks.{i}.{linear}.weight'] = (c, c)
        shapes[f'{block}attention_blocks.{i}.to_out.0.bias'] = (c,)
        if positions:
            shapes[f'{block}attention_blocks.{i}.pos_encoder.pe'] = (1, positions, c)
        shapes[f'{block}norms.{i}.weight'] = shapes[f'{block}norms.{i}.bias'] = (c,)
    shapes |= {
        f'{block}ff.net.0.proj.weight': (8 * c, c),
        f'{block}ff.net.0.proj.bias': (8 * c,),
        f'{block}ff.net.2.weight': (c, 4 * c),
        f'{block}ff.net.2.bias': (c,),
        f'{block}ff_norm.weight': (c,),
        f'{block}ff_norm.bias': (c,),
    }
    return shapes


def as_adapter(shapes: Shapes) -> Shapes:
    """The same modules as diffusers' MotionAdapter names them."""
    renamed = {}
    for key, shape in shapes.items():
        for old, new in (
            ('.temporal_transformer', ''), ('.ff_norm', '.norm3'),
            ('.attention_blocks.0', '.attn1'), ('.attention_blocks.1', '.attn2'),
            ('.norms.0', '.norm1'), ('.norms.1', '.norm2'),
            ('.attn1.pos_encoder', '.pos_embed'),
        ):  # fmt: skip
            key = key.replace(old, new)
        if '.attn2.pos_encoder' not in key:
            renamed[key] = shape
    return renamed


def processors(stem: str, inner: str, outer: int, rank: int, context: int) -> Shapes:
    """One attention's LoRA in the processors' names; ``context`` is the width of k and v."""
    shapes: Shapes = {}
    for name in ('to_q', 'to_k', 'to_v', 'to_out'):
        width = context if name in ('to_k', 'to_v') else outer
        shapes[f'{stem}.{inner}.processor.{name}_lora.down.weight'] = (rank, width)
        shapes[f'{stem}.{inner}.processor.{name}_lora.up.weight'] = (outer, rank)
    return shapes


def motion_lora(widths: tuple[int, ...] = TINY, rank: int = 4) -> Shapes:
    shapes: Shapes = {}
    for name, c in modules(widths, mid=True):
        for i in range(2):
            block = f'{name}.temporal_transformer.transformer_blocks.0.attention_blocks'
            shapes |= processors(block, str(i), c, rank, c)
    return shapes


def transformers(widths: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """The image model's sixteen: none at the coarsest level."""
    for level in range(3):
        for item in range(2):
            yield f'down_blocks.{level}.attentions.{item}', widths[level]
    yield 'mid_block.attentions.0', widths[-1]
    for level in range(1, 4):
        for item in range(3):
            yield f'up_blocks.{level}.attentions.{item}', widths[3 - level]


def domain_adapter(widths: tuple[int, ...] = TINY, rank: int = 4, context: int = 768) -> Shapes:
    shapes: Shapes = {}
    for name, c in transformers(widths):
        for inner, width in (('attn1', c), ('attn2', context)):
            shapes |= processors(f'{name}.transformer_blocks.0', inner, c, rank, width)
    return shapes


def lora_layers(widths: tuple[int, ...], context: int = 768) -> Iterator[tuple[str, int, int]]:
    """Names, inputs and outputs of the layers that a usual LoRA of the UNet changes."""
    for name, c in transformers(widths):
        yield f'{name}.proj_in', c, c
        block = f'{name}.transformer_blocks.0'
        for attn, width in (('attn1', c), ('attn2', context)):
            for linear in ('to_q', 'to_k', 'to_v', 'to_out.0'):
                yield f'{block}.{attn}.{linear}', width if linear in ('to_k', 'to_v') else c, c
        yield f'{block}.ff.net.0.proj', c, 8 * c
        yield f'{block}.ff.net.2', 4 * c, c
        yield f'{name}.proj_out', c, c


def text_layers(width: int, count: int = 2) -> Iterator[tuple[str, int, int]]:
    for i in range(count):
        stem = f'text_model.encoder.layers.{i}'
        for side in 'qkv':
            yield f'{stem}.self_attn.{side}_proj', width, width
        yield f'{stem}.self_attn.out_proj', width, width
        yield f'{stem}.mlp.fc1', width, 4 * width
        yield f'{stem}.mlp.fc2', 4 * width, width


def kohya(
    widths: tuple[int, ...] = TINY,
    rank: int = 4,
    context: int = 768,
    locon: bool = False,
    text: str = 'lora_te_',
) -> Shapes:
    """kohya-ss/sd-scripts; with LyCORIS' convolutions of the resnets."""
    shapes: Shapes = {}
    for prefix, layers in (
        ('lora_unet_', lora_layers(widths, context)), (text, text_layers(context)),
    ):  # fmt: skip
        for path, fan_in, fan_out in layers:
            key = prefix + path.replace('.', '_')
            projection = path.endswith(('proj_in', 'proj_out'))  # 1x1 convolutions
            tail = (1, 1) if projection else ()
            shapes[f'{key}.lora_down.weight'] = (rank, fan_in, *tail)
            shapes[f'{key}.lora_up.weight'] = (fan_out, rank, *tail)
            shapes[f'{key}.alpha'] = ()
    if locon:
        for name in ('down_blocks_0_resnets_0_conv1', 'mid_block_resnets_1_conv2'):
            c = widths[0] if name.startswith('down') else widths[-1]
            shapes[f'lora_unet_{name}.lora_down.weight'] = (rank, c, 3, 3)
            shapes[f'lora_unet_{name}.lora_up.weight'] = (c, rank, 1, 1)
            shapes[f'lora_unet_{name}.alpha'] = ()
    return shapes


def diffusers_lora(
    widths: tuple[int, ...] = TINY, rank: int = 4, context: int = 768, peft: bool = False
) -> Shapes:
    """What diffusers' training scripts save, today and with PEFT's names."""
    shapes: Shapes = {}
    for part, layers, name in (
        ('unet', lora_layers(widths, context), 'lora'),
        ('text_encoder', text_layers(context), 'lora_linear_layer'),
    ):
        down, up = ('lora_A', 'lora_B') if peft else (f'{name}.down', f'{name}.up')
        for path, fan_in, fan_out in layers:
            shapes[f'{part}.{path}.{down}.weight'] = (rank, fan_in)
            shapes[f'{part}.{path}.{up}.weight'] = (fan_out, rank)
    return shapes


def ip_adapter(kind: str = 'plain', widths: tuple[int, ...] = SD, context: int = 768) -> Shapes:
    """tencent-ailab/IP-Adapter, both halves joined by a dot."""
    p = 'image_proj.'
    shapes: Shapes = {}

    def layer(name: str, out: int, fan_in: int | None = None) -> None:
        shapes[f'{p}{name}.weight'] = (out,) if fan_in is None else (out, fan_in)
        shapes[f'{p}{name}.bias'] = (out,)

    if kind == 'plain':
        layer('proj', 4 * context, 1024)
        layer('norm', context)
    elif kind == 'full':
        layer('proj.0', 1280, 1280)
        layer('proj.2', context, 1280)
        layer('proj.3', context)
    else:
        shapes[p + 'latents'] = (1, 16, 768)
        layer('proj_in', 768, 1280)
        layer('proj_out', context, 768)
        layer('norm_out', context)
        for i in range(4):
            layer(f'layers.{i}.0.norm1', 768)
            layer(f'layers.{i}.0.norm2', 768)
            layer(f'layers.{i}.1.0', 768)
            for name, size in (
                ('0.to_q', (768, 768)), ('0.to_kv', (1536, 768)), ('0.to_out', (768, 768)),
                ('1.1', (3072, 768)), ('1.3', (768, 3072)),
            ):  # fmt: skip
                shapes[f'{p}layers.{i}.{name}.weight'] = size
    order = [c for name, c in transformers(widths) if not name.startswith('mid')] + [widths[-1]]
    for i, c in enumerate(order):
        for side in 'kv':
            shapes[f'ip_adapter.{2 * i + 1}.to_{side}_ip.weight'] = (c, context)
    return shapes

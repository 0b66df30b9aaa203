"""Stable Diffusion 1.x in one file: the names of the original latent-diffusion code.

A file joins a UNet (``model.diffusion_model.``), a VAE (``first_stage_model.``, or without that
prefix when it stands alone) and CLIP's text half (``cond_stage_model.transformer.``). Training
files add an EMA copy of the UNet, whose names have lost their dots, and what no model needs.

Source of the names: CompVis/latent-diffusion ldm/modules/diffusionmodules/{openaimodel,model}.py,
ldm/modules/ema.py, ldm/models/{autoencoder,diffusion/ddpm}.py; transformers' CLIPTextModel.

Legend: L level or layer, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mmvideo.checkpoints.layouts.table import Change, Layout, Row
from mmvideo.checkpoints.parts import clip_text_tensors, vae_tensors
from mmvideo.errors import WeightsError

PARTS = ('unet', 'vae', 'text_encoder')
PREFIXES = {
    'unet': 'model.diffusion_model.',
    'vae': 'first_stage_model.',
    'text_encoder': 'cond_stage_model.transformer.',
}
_EMA = 'model_ema.diffusion_model'
_TEXT_LEVEL = 'text_model.'
_LEVELS = 4
_KINDS = ('weight', 'bias')
_CONTEXT = 'input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight'
_PROJECTION = 'input_blocks.1.1.proj_in.weight'
_FIRST = 'input_blocks.0.0.weight'

# A module's inner names, theirs and ours.
_UNET_RESNET = {
    'in_layers.0': 'norm1',
    'in_layers.2': 'conv1',
    'emb_layers.1': 'time_emb_proj',
    'out_layers.0': 'norm2',
    'out_layers.3': 'conv2',
}
_UNET_SHORTCUT = {'skip_connection': 'conv_shortcut'}
_VAE_RESNET = {name: name for name in ('norm1', 'conv1', 'norm2', 'conv2')}
_VAE_SHORTCUT = {'nin_shortcut': 'conv_shortcut'}
_VAE_ATTENTION = {'q': 'to_q', 'k': 'to_k', 'v': 'to_v', 'proj_out': 'to_out.0'}
# Inside a transformer both sides agree.
_BLOCK = 'transformer_blocks.0.'
_TRANSFORMER = (
    'norm', 'proj_in', 'proj_out',
    *(_BLOCK + name for name in ('norm1', 'norm2', 'norm3', 'ff.net.0.proj', 'ff.net.2')),
    *(_BLOCK + f'attn{i}.to_out.0' for i in (1, 2)),
)  # fmt: skip
_WITHOUT_BIAS = tuple(_BLOCK + f'attn{i}.to_{name}' for i in (1, 2) for name in 'qkv')


def _module(theirs: str, ours: str, inner: Mapping[str, str] | None = None) -> Iterator[Row]:
    """Weight and bias of each layer of a module, or of the layer that ``theirs`` is."""
    for their_name, our_name in (inner or {'': ''}).items():
        left, right = (f'{a}.{b}'.rstrip('.') for a, b in ((theirs, their_name), (ours, our_name)))
        yield from (Row(f'{left}.{kind}', f'{right}.{kind}') for kind in _KINDS)


def _unet_resnet(theirs: str, ours: str, shortcut: bool) -> Iterator[Row]:
    yield from _module(theirs, ours, _UNET_RESNET | (_UNET_SHORTCUT if shortcut else {}))


def _transformer(theirs: str, ours: str) -> Iterator[Row]:
    yield from _module(theirs, ours, {name: name for name in _TRANSFORMER})
    yield from (Row(f'{theirs}.{n}.weight', f'{ours}.{n}.weight') for n in _WITHOUT_BIAS)


def encoder_rows() -> Iterator[Row]:
    """The UNet's way down and its middle: 2 layers a level, and a downsampler but for the last."""
    yield from _module('time_embed.0', 'time_embedding.linear_1')
    yield from _module('time_embed.2', 'time_embedding.linear_2')
    yield from _module('input_blocks.0.0', 'conv_in')
    for level in range(_LEVELS):
        for layer in range(2):
            theirs, ours = f'input_blocks.{3 * level + layer + 1}', f'down_blocks.{level}'
            # The width grows in the first layer of the two levels in the middle.
            yield from _unet_resnet(
                f'{theirs}.0', f'{ours}.resnets.{layer}', layer == 0 and level in (1, 2)
            )
            if level < _LEVELS - 1:
                yield from _transformer(f'{theirs}.1', f'{ours}.attentions.{layer}')
        if level < _LEVELS - 1:
            down = f'input_blocks.{3 * level + 3}.0.op'
            yield from _module(down, f'down_blocks.{level}.downsamplers.0.conv')
    yield from _unet_resnet('middle_block.0', 'mid_block.resnets.0', False)
    yield from _transformer('middle_block.1', 'mid_block.attentions.0')
    yield from _unet_resnet('middle_block.2', 'mid_block.resnets.1', False)


def _unet_rows() -> Iterator[Row]:
    """686 keys. On the way up 3 layers a level, and an upsampler but for the last."""
    yield from encoder_rows()
    for level in range(_LEVELS):
        for layer in range(3):
            theirs, ours = f'output_blocks.{3 * level + layer}', f'up_blocks.{level}'
            yield from _unet_resnet(f'{theirs}.0', f'{ours}.resnets.{layer}', True)
            if level > 0:
                yield from _transformer(f'{theirs}.1', f'{ours}.attentions.{layer}')
        if level < _LEVELS - 1:
            # It comes after the transformer, which the first level lacks.
            up = f'output_blocks.{3 * level + 2}.{2 if level else 1}.conv'
            yield from _module(up, f'up_blocks.{level}.upsamplers.0.conv')
    yield from _module('out.0', 'conv_norm_out')
    yield from _module('out.2', 'conv_out')


_LINEAR = Change(
    # Some tools save the attention's 1x1 convolutions as the linear layers that they are.
    to_ours=lambda value: value[:, :, 0, 0] if value.ndim == 4 else value,
    to_theirs=lambda value: value[:, :, None, None] if value.ndim == 2 else value,
)


def _vae_rows() -> Iterator[Row]:
    """248 keys. The decoder counts its levels from the finest, diffusers from the coarsest."""
    for side, way, count in (('encoder', 'down', 2), ('decoder', 'up', 3)):
        for name in ('conv_in', 'conv_out'):
            yield from _module(f'{side}.{name}', f'{side}.{name}')
        yield from _module(f'{side}.norm_out', f'{side}.conv_norm_out')
        for i in range(2):
            block, ours = f'{side}.mid.block_{i + 1}', f'{side}.mid_block.resnets.{i}'
            yield from _module(block, ours, _VAE_RESNET)
        yield from _vae_attention(f'{side}.mid.attn_1', f'{side}.mid_block.attentions.0')
        for level in range(_LEVELS):
            yield from _vae_level(side, way, level, count)
    yield from _module('quant_conv', 'quant_conv')
    yield from _module('post_quant_conv', 'post_quant_conv')


def _vae_level(side: str, way: str, level: int, count: int) -> Iterator[Row]:
    """``count`` layers of a level, counted as the file does, and the step to the next."""
    ours_level = level if way == 'down' else _LEVELS - 1 - level
    theirs, ours = f'{side}.{way}.{level}', f'{side}.{way}_blocks.{ours_level}'
    # Widths C, 2C, 4C, 4C from the finest: the encoder grows in 1 and 2, the decoder shrinks in
    # 1 and 0.
    changes = level in ((1, 2) if way == 'down' else (0, 1))
    for layer in range(count):
        inner = _VAE_RESNET | (_VAE_SHORTCUT if changes and layer == 0 else {})
        yield from _module(f'{theirs}.block.{layer}', f'{ours}.resnets.{layer}', inner)
    if ours_level < _LEVELS - 1:
        yield from _module(f'{theirs}.{way}sample.conv', f'{ours}.{way}samplers.0.conv')


def _vae_attention(theirs: str, ours: str) -> Iterator[Row]:
    yield from _module(f'{theirs}.norm', f'{ours}.group_norm')
    for their_name, our_name in _VAE_ATTENTION.items():
        stems = f'{theirs}.{their_name}', f'{ours}.{our_name}'
        yield Row(f'{stems[0]}.weight', f'{stems[1]}.weight', change=_LINEAR)
        yield Row(f'{stems[0]}.bias', f'{stems[1]}.bias')


def _text_rows() -> Iterator[Row]:
    """12 layers of 16 keys and 5 more; both sides agree."""
    layer = 'encoder.layers.{layer}.'
    names = [
        'embeddings.token_embedding.weight', 'embeddings.position_embedding.weight',
        'embeddings.position_ids', 'final_layer_norm.{kind}', layer + 'layer_norm1.{kind}',
        layer + 'layer_norm2.{kind}', layer + 'mlp.fc1.{kind}', layer + 'mlp.fc2.{kind}',
        *(layer + f'self_attn.{name}_proj.{{kind}}' for name in ('q', 'k', 'v', 'out')),
    ]  # fmt: skip
    yield from (Row(_TEXT_LEVEL + name, _TEXT_LEVEL + name) for name in names)


UNET = Layout('the UNet of Stable Diffusion 1.x (model.diffusion_model)', tuple(_unet_rows()))
VAE = Layout('the VAE of Stable Diffusion 1.x (first_stage_model)', tuple(_vae_rows()))
TEXT_ENCODER = Layout(
    'the CLIP text encoder of Stable Diffusion 1.x (cond_stage_model)', tuple(_text_rows())
)
LAYOUTS = {'unet': UNET, 'vae': VAE, 'text_encoder': TEXT_ENCODER}
# LitEma keeps its copies as buffers, whose names may hold no dots.
_EMA_NAMES = {row.theirs.replace('.', ''): row.theirs for row in UNET.rows}

_SCHEDULE = (
    r'(?:(?:sqrt_(?:one_minus_|recipm?1?_)?|log_one_minus_)?alphas_cumprod(?:_prev)?|betas|'
    r'posterior_(?:variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor)'
)
# What trainers leave in a file and no part needs.
LEFTOVERS = {
    'the noise schedule, which a config states': _SCHEDULE,
    'counters of the EMA': r'(?:first_stage_model\.)?model_ema\.(?:decay|num_updates)',
    'the EMA copy of the VAE': r'(?:first_stage_model\.)?model_ema\.(?!diffusion_model).+',
    "the loss of the VAE's training": r'(?:first_stage_model\.)?loss\..+',
    "CLIP's image half and projections": (
        r'cond_stage_model\.(?:transformer\.)?(?:logit_scale|text_projection(?:\.weight)?|'
        r'visual_projection\.weight|vision_model\..+)'
    ),
    'a table of textual inversion': r'embedding_manager\..+',
}
_LEFTOVERS = {reason: re.compile(pattern) for reason, pattern in LEFTOVERS.items()}
_UNET_EMA = 'the EMA copy of the UNet'

# Other models in files of the same kind. The first sign that a key has counts.
_FOREIGN = {
    'Stable Video Diffusion': r'model\.diffusion_model\..+\.time_(?:stack|mixer)\..+',
    'Stable Diffusion XL': r'conditioner\.embedders\..+|model\.diffusion_model\.label_emb\..+',
    'Stable Diffusion 2': r'cond_stage_model\.model\..+',
    'Stable Diffusion 3': r'model\.diffusion_model\.joint_blocks\..+',
    'Flux': r'model\.diffusion_model\.double_blocks\..+',
    'a ControlNet': r'control_model\..+',
}
_FOREIGN_SIGNS = {title: re.compile(pattern) for title, pattern in _FOREIGN.items()}
_WIDER_INPUT = {
    5: "a depth model's",
    7: "an upscaler's",
    8: "InstructPix2Pix's",
    9: "an inpainting model's",
}
_EXPECTED = (
    'expected Stable Diffusion 1.x: model.diffusion_model with 4 input channels and transformers '
    'that project by 1x1 convolutions, first_stage_model, cond_stage_model.transformer'
)
_SHOWN = 5


@dataclass(frozen=True)
class LdmFile:
    """What a file of the original layout holds, sorted and not yet renamed.

    Attributes:
        source: For messages.
        parts: Tensors by part, a key of ``LAYOUTS``, without the part's prefix.
        ema: The EMA copy of the UNet, under the names of the UNet.
        leftovers: Why no part needs them, to the keys.
    """

    source: str
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    leftovers: dict[str, list[str]] = field(default_factory=dict)

    def part(self, name: str, ema: bool = False) -> dict[str, Tensor]:
        """One part in diffusers' or transformers' names (those with the ``text_model.`` level).

        Args:
            name: 'unet', 'vae' or 'text_encoder'.
            ema: The EMA copy of the UNet instead of its plain weights.

        Raises:
            WeightsError: The file has no such part, or another architecture's.
        """
        tensors = self._unet(ema) if name == 'unet' else self.parts.get(name)
        if not tensors:
            there = ', '.join(self.parts) or 'the EMA copy of a UNet alone'
            raise WeightsError(
                f'{self.source} holds no {name} ({PREFIXES[name]}*), only {there}{_INSTEAD[name]}'
            )
        return LAYOUTS[name].to_ours(tensors)

    def _unet(self, ema: bool) -> dict[str, Tensor] | None:
        tensors = self.ema if ema else self.parts.get('unet')
        if ema and not tensors:
            raise WeightsError(
                f'{self.source} holds no EMA weights (model_ema.*): leave ema=True out'
            )
        if not tensors and self.ema:
            raise WeightsError(f'{self.source} holds the EMA copy of a UNet alone: say ema=True')
        if tensors:
            _check_unet(tensors, self.source)
        return tensors


_INSTEAD = {
    'unet': '. Name a file or folder with a UNet',
    'vae': (
        '. Name a VAE beside it, such as vae=dict(from_pretrained='
        "'stable-diffusion-v1-5/stable-diffusion-v1-5', subfolder='vae') or a VAE's own file"
    ),
    'text_encoder': (
        '. Name a text encoder beside it, such as text_encoder=dict(from_pretrained='
        "'stable-diffusion-v1-5/stable-diffusion-v1-5', subfolder='text_encoder')"
    ),
}


def is_ldm(tensors: Mapping[str, Tensor]) -> bool:
    """Whether names are of the original layout: a whole file, or a VAE by itself."""
    starts = (*PREFIXES.values(), _EMA, 'cond_stage_model.', 'conditioner.embedders.')
    return any(k.startswith(starts) or k.startswith('encoder.down.0.block.') for k in tensors)


def sort_ldm(tensors: Mapping[str, Tensor], source: str = 'this file') -> LdmFile:
    """Sort the tensors of a file in the original layout by part. No value is touched.

    Raises:
        WeightsError: Another model (its name and sign are in the message), or keys of no known use.
    """
    _refuse_foreign(tensors, source)
    file = LdmFile(source)
    unknown = []
    for key, value in tensors.items():
        reason = next((r for r, sign in _LEFTOVERS.items() if sign.fullmatch(key)), None)
        part, name = _place(key)
        if reason is not None:
            file.leftovers.setdefault(reason, []).append(key)
        elif part == 'ema' and name in _EMA_NAMES:
            file.ema[_EMA_NAMES[name]] = value
        elif part in PARTS:
            file.parts.setdefault(part, {})[name] = value
        else:
            unknown.append(key)
    if unknown:
        raise WeightsError(
            f'{source}: {len(unknown)} tensors are of no known use: {", ".join(unknown[:_SHOWN])}; '
            + _EXPECTED
        )
    return file


def ldm_to_diffusers(
    tensors: Mapping[str, Tensor], ema: bool = False, source: str = 'this file'
) -> dict[str, dict[str, Tensor]]:
    """Every part that a file of the original layout holds, in diffusers' names.

    Args:
        tensors: As ``read_tensors`` gives them.
        ema: The EMA copy of the UNet instead of its plain weights.
        source: For messages.

    Returns:
        'unet', 'vae', 'text_encoder' to tensors, those that are there. Types stay; values are the
        file's own. ``sort_ldm`` tells what is left over.
    """
    file = sort_ldm(tensors, source)
    found = [name for name in PARTS if name in file.parts or (name == 'unet' and file.ema)]
    return {name: file.part(name, ema and name == 'unet') for name in found}


def diffusers_to_ldm(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The exact inverse of ``ldm_to_diffusers``.

    Args:
        parts: Some of 'unet', 'vae', 'text_encoder'. A text encoder may lack the ``text_model.``
            level, a VAE may have the attention names of diffusers before 0.18.
    """
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if name not in PARTS:
            raise WeightsError(f'{name!r} is no part of Stable Diffusion 1.x, expected {PARTS}')
        if name == 'vae':
            part = vae_tensors(part)
        elif name == 'text_encoder':
            ids = {k: v for k, v in part.items() if k.endswith('position_ids')}
            named = clip_text_tensors(part, [_TEXT_LEVEL])
            part = named | {_text_name(key): value for key, value in ids.items()}
        found = LAYOUTS[name].to_theirs(part)
        tensors |= {PREFIXES[name] + key: value for key, value in found.items()}
    return tensors


def _place(key: str) -> tuple[str | None, str]:
    """The part of a key and its name inside; a VAE may stand without its prefix."""
    for part, prefix in PREFIXES.items():
        if key.startswith(prefix):
            name = key[len(prefix) :]
            return part, _text_name(name) if part == 'text_encoder' else name
    if key.startswith(_EMA):
        return 'ema', key[len(_EMA) :]
    return ('vae' if VAE.knows(key) else None), key


def _text_name(name: str) -> str:
    """Early files lack the level that CLIPTextModel later had."""
    return _TEXT_LEVEL + name.removeprefix(_TEXT_LEVEL)


def _refuse_foreign(tensors: Mapping[str, Tensor], source: str) -> None:
    for title, sign in _FOREIGN_SIGNS.items():
        found = next((key for key in tensors if sign.fullmatch(key)), None)
        if found is not None:
            raise WeightsError(f'{source} is {title} (it has {found}), {_EXPECTED}')


def _check_unet(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse UNets of the same names and another architecture."""
    projection, context = tensors.get(_PROJECTION), tensors.get(_CONTEXT)
    if projection is not None and projection.ndim == 2:
        width = '' if context is None else f' and context {context.shape[1]} wide'
        raise WeightsError(
            f'{source} is Stable Diffusion 2 (linear projections{width}), {_EXPECTED}'
        )
    first = tensors.get(_FIRST)
    if first is not None and first.shape[1] != 4:
        whose = _WIDER_INPUT.get(first.shape[1], 'of no model known here,')
        raise WeightsError(
            f'{source}: {_FIRST} is {list(first.shape)}, {whose} {first.shape[1]} input channels; '
            + _EXPECTED
        )

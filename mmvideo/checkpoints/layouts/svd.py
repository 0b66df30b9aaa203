"""Stable Video Diffusion in one file: the names of Stability AI's generative-models.

The UNet (``model.diffusion_model.``) and the decoder (``first_stage_model.decoder.``) are those of
Stable Diffusion with temporal layers beside the spatial ones, so their tables follow from its. The
picture is encoded by an autoencoder of its own, ``conditioner.embedders.3``, and by OpenCLIP,
``conditioner.embedders.0``.

Source of the names: generative-models sgm/modules/diffusionmodules/{video_model,openaimodel}.py,
sgm/modules/{video_attention,autoencoding/temporal_ae,encoders/modules}.py; open_clip's
VisionTransformer; transformers' CLIPVisionModelWithProjection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmvideo.checkpoints.layouts import ldm
from mmvideo.checkpoints.layouts.table import Change, Layout, Row
from mmvideo.errors import WeightsError

_KINDS = ('weight', 'bias')
_SHOWN = 5
_ENCODER = 'conditioner.embedders.3.encoder.'
_DECODER = 'first_stage_model.'
_VISUAL = 'conditioner.embedders.0.open_clip.model.visual.'


def resnets(layout: Layout) -> dict[str, str]:
    """The resnets of a table of Stable Diffusion's, their module's name to ours."""
    first = re.compile(r'(.+)\.(?:in_layers\.0|norm1)\.weight')
    rows = (
        row for row in layout.rows if re.fullmatch(r'.+\.resnets\.\d+\.norm1\.weight', row.ours)
    )
    return {first.sub(r'\1', row.theirs): row.ours.removesuffix('.norm1.weight') for row in rows}


def transformers(layout: Layout) -> dict[str, str]:
    """Its transformers."""
    rows = (row for row in layout.rows if row.ours.endswith('.proj_in.weight'))
    end = '.proj_in.weight'
    return {row.theirs.removesuffix(end): row.ours.removesuffix(end) for row in rows}


def inside(layout: Layout, theirs: str) -> dict[str, str]:
    """The names inside one of its modules, theirs to ours."""
    rows = [row for row in layout.rows if row.theirs.startswith(f'{theirs}.')]
    modules = resnets(layout) | transformers(layout)
    return {
        row.theirs[len(theirs) + 1 :]: row.ours.removeprefix(f'{modules[theirs]}.') for row in rows
    }


# What a resnet and a transformer block of Stable Diffusion's UNet are made of.
RESNET = inside(ldm.UNET, 'middle_block.0')
TRANSFORMER = inside(ldm.UNET, 'middle_block.1')
_BLOCK = 'transformer_blocks.0.'
_TIME_BLOCK = (
    *(name.removeprefix(_BLOCK) for name in TRANSFORMER if name.startswith(_BLOCK)),
    *(f'{name}.{kind}' for name in ('norm_in', 'ff_in.net.0.proj', 'ff_in.net.2')
      for kind in _KINDS),
)  # fmt: skip


def _unet_rows() -> Iterator[Row]:
    spatial, mixed = resnets(ldm.UNET), transformers(ldm.UNET)
    for row in ldm.UNET.rows:
        yield Row(row.theirs, _beside_time(row.ours), change=row.change)
    for theirs, ours in spatial.items():
        for their_name, our_name in RESNET.items():
            yield Row(f'{theirs}.time_stack.{their_name}', f'{ours}.temporal_res_block.{our_name}')
        yield Row(f'{theirs}.time_mixer.mix_factor', f'{ours}.time_mixer.mix_factor')
    for theirs, ours in mixed.items():
        for name in _TIME_BLOCK:
            yield Row(
                f'{theirs}.time_stack.0.{name}', f'{ours}.temporal_transformer_blocks.0.{name}'
            )
        yield from _mlp(f'{theirs}.time_pos_embed', f'{ours}.time_pos_embed')
        yield Row(f'{theirs}.time_mixer.mix_factor', f'{ours}.time_mixer.mix_factor')
    yield from _mlp('label_emb.0', 'add_embedding')


def _mlp(theirs: str, ours: str) -> Iterator[Row]:
    """Two layers with an activation between."""
    for index, name in ((0, 'linear_1'), (2, 'linear_2')):
        yield from (Row(f'{theirs}.{index}.{kind}', f'{ours}.{name}.{kind}') for kind in _KINDS)


def _beside_time(name: str) -> str:
    """A resnet's layer is the spatial half of a mixed one."""
    return re.sub(r'(\.resnets\.\d+)\.', r'\1.spatial_res_block.', name)


def _vae_rows() -> Iterator[Row]:
    decoder = {t: o for t, o in resnets(ldm.VAE).items() if t.startswith('decoder.')}
    for row in ldm.VAE.rows:
        if row.ours.startswith('decoder.'):
            yield Row(f'{_DECODER}{row.theirs}', _beside_time(row.ours), change=row.change)
        elif not row.ours.startswith('post_quant_conv.'):
            yield Row(f'{_ENCODER}{row.theirs}', row.ours, change=row.change)
    without_time = {t: o for t, o in RESNET.items() if not o.startswith('time_emb_proj.')}
    for theirs, ours in decoder.items():
        for their_name, our_name in without_time.items():
            stack = f'{_DECODER}{theirs}.time_stack.{their_name}'
            yield Row(stack, f'{ours}.temporal_res_block.{our_name}')
        yield Row(f'{_DECODER}{theirs}.mix_factor', f'{ours}.time_mixer.mix_factor')
    last = f'{_DECODER}decoder.conv_out.time_mix_conv'
    yield from (Row(f'{last}.{kind}', f'decoder.time_conv_out.{kind}') for kind in _KINDS)


_TRANSPOSED = Change(lambda value: value.t().contiguous(), lambda value: value.t().contiguous())


def _image_rows() -> Iterator[Row]:
    """OpenCLIP's image half."""
    ours = 'vision_model.embeddings.'
    yield Row('class_embedding', f'{ours}class_embedding')
    yield Row('positional_embedding', f'{ours}position_embedding.weight')
    yield Row('conv1.weight', f'{ours}patch_embedding.weight')
    yield Row('ln_pre.{kind}', 'vision_model.pre_layrnorm.{kind}')  # transformers' spelling
    yield Row('ln_post.{kind}', 'vision_model.post_layernorm.{kind}')
    yield Row('proj', 'visual_projection.weight', change=_TRANSPOSED)
    block, layer = 'transformer.resblocks.{layer}.', 'vision_model.encoder.layers.{layer}.'
    for kind in _KINDS:
        joined, each = f'{block}attn.in_proj_{kind}', f'{layer}self_attn.{{part}}.{kind}'
        yield Row(joined, each, parts=('q_proj', 'k_proj', 'v_proj'))
    for theirs, name in (
        ('ln_1', 'layer_norm1'),
        ('ln_2', 'layer_norm2'),
        ('attn.out_proj', 'self_attn.out_proj'),
        ('mlp.c_fc', 'mlp.fc1'),
        ('mlp.c_proj', 'mlp.fc2'),
    ):
        yield Row(f'{block}{theirs}.{{kind}}', f'{layer}{name}.{{kind}}')


UNET = Layout("SVD's UNet (model.diffusion_model)", tuple(_unet_rows()))
# Its keys are of two places in a file, so they stand whole in the table.
VAE = Layout(f"SVD's VAE ({_ENCODER}*, {_DECODER}decoder)", tuple(_vae_rows()))
IMAGE_ENCODER = Layout(f"SVD's image encoder ({_VISUAL}*)", tuple(_image_rows()))
LAYOUTS = {'unet': UNET, 'vae': VAE, 'image_encoder': IMAGE_ENCODER}
PREFIXES = {'unet': 'model.diffusion_model.', 'vae': '', 'image_encoder': _VISUAL}

# What a file holds and no part needs.
LEFTOVERS = {
    "the decoder's own encoder, which nothing uses": r'first_stage_model\.encoder\..+',
    'the decoder of pictures beside the encoder': (
        r'conditioner\.embedders\.3\.encoder\.(?:decoder|post_quant_conv)\..+'
    ),
    "OpenCLIP's text half": (
        r'conditioner\.embedders\.0\.open_clip\.model\.(?:token_embedding\.weight|'
        r'positional_embedding|text_projection|logit_scale|ln_final\.(?:weight|bias)|attn_mask)'
    ),
}
_LEFTOVERS = {reason: re.compile(pattern) for reason, pattern in LEFTOVERS.items()}
_SIGN = re.compile(r'model\.diffusion_model\..+\.time_(?:stack|mixer)\..+')


def is_svd(tensors: Mapping[str, Tensor]) -> bool:
    """Whether names are those of Stable Video Diffusion's original file."""
    return any(_SIGN.fullmatch(key) for key in tensors)


def sort_svd(
    tensors: Mapping[str, Tensor], source: str = 'this file'
) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[str]]]:
    """Sort a file by part, without the parts' prefixes, and what no part needs by its reason.

    Raises:
        WeightsError: Keys of no known use.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    leftovers: dict[str, list[str]] = {}
    unknown = []
    for key, value in tensors.items():
        reason = next((r for r, sign in _LEFTOVERS.items() if sign.fullmatch(key)), None)
        part = _part_of(key)
        if reason is not None:
            leftovers.setdefault(reason, []).append(key)
        elif part is not None:
            parts.setdefault(part, {})[key.removeprefix(PREFIXES[part])] = value
        else:
            unknown.append(key)
    if unknown:
        raise WeightsError(
            f'{source}: {len(unknown)} tensors are of no known use in Stable Video Diffusion: '
            + ', '.join(unknown[:_SHOWN])
        )
    return parts, leftovers


def _part_of(key: str) -> str | None:
    for part in ('unet', 'image_encoder'):
        if key.startswith(PREFIXES[part]):
            return part
    return 'vae' if VAE.knows(key) else None


def svd_to_diffusers(
    tensors: Mapping[str, Tensor], source: str = 'this file'
) -> dict[str, dict[str, Tensor]]:
    """'unet', 'vae' and 'image_encoder', those that are there, in diffusers' names.

    Types stay; values are the file's own. ``sort_svd`` tells what is left over.
    """
    parts, _ = sort_svd(tensors, source)
    return {name: LAYOUTS[name].to_ours(found) for name, found in parts.items()}


def diffusers_to_svd(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The exact inverse of ``svd_to_diffusers``; the leftovers of the original are not made up."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if name not in LAYOUTS:
            raise WeightsError(f'{name!r} is no part of Stable Video Diffusion: {list(LAYOUTS)}')
        found = LAYOUTS[name].to_theirs(part)
        tensors |= {PREFIXES[name] + key: value for key, value in found.items()}
    return tensors


def describe_svd(part: str, tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The ``config.json`` that a part's tensors in our names imply, completed by SVD's own.

    Raises:
        WeightsError: A tensor that tells a width is missing.
    """
    return _DESCRIBERS[part](_Shape(part, tensors, source))


@dataclass(frozen=True)
class _Shape:
    """The shape of a tensor by its name."""

    part: str
    tensors: Mapping[str, Tensor]
    source: str

    def __call__(self, name: str) -> tuple[int, ...]:
        if name not in self.tensors:
            raise WeightsError(
                f'{self.source}: the {self.part} has no {name}; the file is not complete'
            )
        return tuple(self.tensors[name].shape)

    def count(self, start: str) -> int:
        """How many numbers follow ``start`` in the names."""
        names = (name for name in self.tensors if name.startswith(start))
        return len({name[len(start) :].split('.')[0] for name in names})


def _widths(shape: _Shape, template: str) -> list[int]:
    return [shape(template.format(level))[0] for level in range(4)]


def _describe_unet(shape: _Shape) -> dict[str, Any]:
    widths = _widths(shape, 'down_blocks.{}.resnets.0.spatial_res_block.conv1.weight')
    block = 'down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight'
    return dict(
        _class_name='UNetSpatioTemporalConditionModel',
        sample_size=96,
        in_channels=shape('conv_in.weight')[1],
        out_channels=shape('conv_out.weight')[0],
        down_block_types=['CrossAttnDownBlockSpatioTemporal'] * 3 + ['DownBlockSpatioTemporal'],
        up_block_types=['UpBlockSpatioTemporal'] + ['CrossAttnUpBlockSpatioTemporal'] * 3,
        block_out_channels=widths,
        layers_per_block=2,
        cross_attention_dim=shape(block)[1],
        num_attention_heads=[max(width // 64, 1) for width in widths],
        addition_time_embed_dim=shape('add_embedding.linear_1.weight')[1] // 3,
        projection_class_embeddings_input_dim=shape('add_embedding.linear_1.weight')[1],
        num_frames=25,
    )


def _describe_vae(shape: _Shape) -> dict[str, Any]:
    return dict(
        _class_name='AutoencoderKLTemporalDecoder',
        sample_size=768,
        in_channels=shape('encoder.conv_in.weight')[1],
        out_channels=shape('decoder.conv_out.weight')[0],
        latent_channels=shape('decoder.conv_in.weight')[1],
        down_block_types=['DownEncoderBlock2D'] * 4,
        block_out_channels=_widths(shape, 'encoder.down_blocks.{}.resnets.0.conv1.weight'),
        layers_per_block=2,
        scaling_factor=0.18215,
        force_upcast=True,
    )


def _describe_image_encoder(shape: _Shape) -> dict[str, Any]:
    """OpenCLIP ViT-H/14; its activation is the exact GELU."""
    start = 'vision_model.encoder.layers.'
    width, _, patch, _ = shape('vision_model.embeddings.patch_embedding.weight')
    places = shape('vision_model.embeddings.position_embedding.weight')[0] - 1
    return dict(
        model_type='clip_vision_model',
        hidden_size=width,
        intermediate_size=shape(f'{start}0.mlp.fc1.weight')[0],
        num_hidden_layers=shape.count(start),
        num_attention_heads=max(width // 80, 1),
        hidden_act='gelu',
        layer_norm_eps=1e-5,
        patch_size=patch,
        image_size=patch * round(places**0.5),
        projection_dim=shape('visual_projection.weight')[0],
    )


_DESCRIBERS: dict[str, Callable[[_Shape], dict[str, Any]]] = {
    'unet': _describe_unet,
    'vae': _describe_vae,
    'image_encoder': _describe_image_encoder,
}

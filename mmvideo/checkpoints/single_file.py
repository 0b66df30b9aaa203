"""One part of a model, out of a folder or out of a file that holds one part or several.

A file tells its widths by the shapes of its tensors. What no tensor tells (heads, groups, the
scale of the latents) is Stable Diffusion 1.5's, and stands here; a config's own keys go before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmvideo.checkpoints.files import read_json, read_tensors
from mmvideo.checkpoints.layouts import FAMILIES, recognise
from mmvideo.checkpoints.layouts.ldm import is_ldm, sort_ldm
from mmvideo.checkpoints.load import read_part
from mmvideo.checkpoints.sources import WEIGHT_FILES, weight_file
from mmvideo.checkpoints.video_file import video_part
from mmvideo.errors import WeightsError

_LOG = logging.getLogger(__name__)
# The config.json of Stable Diffusion 1.5's parts, without the widths.
UNET = dict(
    _class_name='UNet2DConditionModel',
    sample_size=64,
    down_block_types=['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
    up_block_types=['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3,
    layers_per_block=2,
    attention_head_dim=8,
    norm_num_groups=32,
    norm_eps=1e-5,
)
VAE = dict(
    _class_name='AutoencoderKL',
    sample_size=512,
    down_block_types=['DownEncoderBlock2D'] * 4,
    up_block_types=['UpDecoderBlock2D'] * 4,
    layers_per_block=2,
    norm_num_groups=32,
    act_fn='silu',
    scaling_factor=0.18215,
)
TEXT_ENCODER = dict(
    model_type='clip_text_model',
    num_attention_heads=12,
    hidden_act='quick_gelu',
    layer_norm_eps=1e-5,
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=1,
)
# What a file is that names the tensors of a part as diffusers and transformers do.
_PART_FAMILIES = {
    'unet': ('unet',),
    'vae': ('vae',),
    'text_encoder': ('clip_text', 'clip'),
    'image_encoder': ('clip_image', 'clip'),
}
_TITLES = {
    'unet': 'an image UNet',
    'vae': 'an AutoencoderKL',
    'text_encoder': 'a CLIP text encoder',
    'image_encoder': 'a CLIP image encoder',
}


def read_model_part(
    source: str,
    part: str,
    subfolder: str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    weights: tuple[str, ...] = WEIGHT_FILES,
    ema: bool = False,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``read_part``, also for a source that is one file.

    Args:
        source: Folder, hub id, ``package://NAME``, or a file, here or on the hub
            (``owner/name/model.safetensors``).
        part: 'unet', 'vae', 'text_encoder' or 'image_encoder'.
        subfolder: Folder of the part inside the source; means nothing for a file.
        variant: Which files of a folder, such as 'fp16'.
        revision: Branch, tag or commit on the hub.
        weights: File names to look for in a folder.
        ema: The EMA copy of the UNet, of a file that has both.

    Returns:
        The content of ``config.json``, or what takes its place, and the tensors in diffusers' or
        transformers' names.
    """
    path = weight_file(source, revision)
    if path is not None:
        return read_single_file(path, part, ema)
    if ema:
        raise WeightsError(
            f'ema=True is for one file with both copies of a UNet; {source} is a folder, which '
            'tells them apart by variant'
        )
    return read_part(source, subfolder, variant=variant, revision=revision, weights=weights)


def read_single_file(
    path: str | Path, part: str, ema: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One part out of a weight file; other parts of the file are not read.

    Args:
        path: In the original layout of Stable Diffusion 1.x, Stable Video Diffusion or I2VGen-XL,
            or one part in the names of diffusers or transformers. Beside the latter a
            ``config.json`` is heeded.
        part: 'unet', 'vae', 'text_encoder' or 'image_encoder'.
        ema: The EMA copy of the UNet.

    Returns:
        As ``read_part``. Tensors are mapped, not in memory.

    Raises:
        WeightsError: The file holds something else, or the part is not in it.
    """
    path = Path(path)
    tensors = read_tensors(path)
    beside = path.parent / 'config.json'
    video = None if ema else video_part(tensors, part, str(path))
    if video is not None:
        return (read_json(beside) if beside.is_file() else video[0]), video[1]
    if is_ldm(tensors):
        file = sort_ldm(tensors, str(path))
        for reason, keys in file.leftovers.items():
            _LOG.info('%s: %d tensors left out: %s', path, len(keys), reason)
        found = file.part(part, ema)
        return describe_part(part, found, str(path)), found
    if ema:
        raise WeightsError(f'{path} holds no EMA weights (model_ema.*): leave ema=True out')
    _check_family(path, recognise(tensors), part)
    if part == 'image_encoder' and not beside.is_file():
        raise WeightsError(
            f'{path}: no tensor tells how many heads an image encoder has; keep its config.json '
            'beside it'
        )
    config = read_json(beside) if beside.is_file() else describe_part(part, tensors, str(path))
    return config, tensors


def describe_part(part: str, tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The ``config.json`` that tensors in our names imply, completed by Stable Diffusion 1.5's.

    Raises:
        WeightsError: A tensor that tells a width is missing.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise WeightsError(f'{source}: the {part} has no {name}; the file is not complete')
        return tuple(tensors[name].shape)

    return _DESCRIBERS[part](shape, tensors)


_Shape = Callable[[str], tuple[int, ...]]


def _describe_unet(shape: _Shape, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    context = 'down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight'
    widths = [shape(f'down_blocks.{i}.resnets.0.conv1.weight')[0] for i in range(4)]
    return dict(
        UNET,
        in_channels=shape('conv_in.weight')[1],
        out_channels=shape('conv_out.weight')[0],
        block_out_channels=widths,
        cross_attention_dim=shape(context)[1],
    )


def _describe_vae(shape: _Shape, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    widths = [shape(f'encoder.down_blocks.{i}.resnets.0.conv1.weight')[0] for i in range(4)]
    return dict(
        VAE,
        in_channels=shape('encoder.conv_in.weight')[1],
        out_channels=shape('decoder.conv_out.weight')[0],
        latent_channels=shape('decoder.conv_in.weight')[1],
        block_out_channels=widths,
    )


def _describe_text(shape: _Shape, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = {key.split('encoder.layers.')[0] for key in tensors if 'encoder.layers.' in key}
    level = min(levels, default='text_model.')
    start = f'{level}encoder.layers.'
    layers = {key[len(start) :].split('.')[0] for key in tensors if key.startswith(start)}
    vocabulary, width = shape(f'{level}embeddings.token_embedding.weight')
    return dict(
        TEXT_ENCODER,
        vocab_size=vocabulary,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=shape(f'{start}0.mlp.fc1.weight')[0],
        num_hidden_layers=len(layers),
        max_position_embeddings=shape(f'{level}embeddings.position_embedding.weight')[0],
    )


_DESCRIBERS: dict[str, Callable[[_Shape, Mapping[str, Tensor]], dict[str, Any]]] = {
    'unet': _describe_unet,
    'vae': _describe_vae,
    'text_encoder': _describe_text,
}


def _check_family(path: Path, family: str, part: str) -> None:
    if family not in _PART_FAMILIES[part]:
        raise WeightsError(f'{path} is {FAMILIES[family].title}, expected {_TITLES[part]}')

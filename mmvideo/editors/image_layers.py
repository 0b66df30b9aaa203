"""A video denoiser that begins as an image denoiser: its image layers from weights, the rest new.

The names of image layers agree but for two settings of the trunk, and so does their meaning:
resnets that are mixed with ones over time stand one level lower, and a linear projection of tokens
is a 1x1 convolution of their picture. What sees time begins as nothing (Blattmann et al. 2023,
"Align your Latents", section 3.1), so a clip is denoised frame by frame as pictures are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmvideo.checkpoints.load import load_into, verify
from mmvideo.checkpoints.single_file import read_model_part
from mmvideo.checkpoints.sources import DIFFUSERS_FILES
from mmvideo.errors import ConfigError, WeightsError, nearest
from mmvideo.models.unet import VideoUNet, unet_arguments

_LOG = logging.getLogger(__name__)
_KEYS = ('from_pretrained', 'subfolder', 'variant', 'revision', 'leave')
_RESNET = re.compile(r'(\.resnets\.\d+)\.')
# The last layers of what sees time or is told of the clip, each added to what there is.
_ENDS = re.compile(
    r'\.(temporal_res_block\.conv2|time_pos_embed\.linear_2|temp_attentions\.\d+\.proj_out'
    r'|temporal_transformer_blocks\.\d+\.(ff_in\.net\.2|ff\.net\.2|attn[12]\.to_out\.0))\.'
    r'|^(transformer_in\.proj_out|add_embedding\.linear_2|fps_embedding\.2)\.'
)


@torch.no_grad()
def begin_with_pictures(unet: VideoUNet, image_weights: Mapping[str, Any]) -> None:
    """Give a new denoiser the layers of an image U-Net, all of them, or say what does not fit.

    Channels of the first convolution that the pictures have not begin at zero.

    Args:
        unet: built, with ``settings``.
        image_weights: ``from_pretrained`` and the like of the image U-Net, and ``leave``: regular
            expressions of its parameters that are not taken, such as ``^time_embedding`` where
            time is told in another way.

    Raises:
        ConfigError: an unknown key, a pattern that matches nothing, no ``from_pretrained``.
        WeightsError: naming what differs in names, shapes, heads or groups.
    """
    where = _source(image_weights)
    source = where.pop('from_pretrained')
    config, tensors = read_model_part(source, 'unet', weights=DIFFUSERS_FILES, **where)
    _check_settings(unet_arguments(config), unet.settings, source)
    taken = _without(tensors, image_weights.get('leave') or ())
    own = unet.state_dict()
    mixed = unet.settings.get('temporal_mixing') is not None
    named = {
        _RESNET.sub(r'\1.spatial_res_block.', key) if mixed else key: value
        for key, value in taken.items()
    }
    named = {key: _fitted(value, own.get(key)) for key, value in named.items()}
    verify({key: own.get(key, value) for key, value in named.items()}, named, f'unet ({source})')
    absent = [key for key in named if key not in own]
    if absent:
        raise WeightsError(f'model.unet has no {", ".join(absent[:5])}, which {source} has.')
    ends = {key: torch.zeros_like(value) for key, value in own.items() if _ENDS.search(key)}
    load_into(unet, own | ends | named, 'unet')
    _LOG.info('%d of %d tensors of the denoiser are those of %s', len(named), len(own), source)


def _source(image_weights: Mapping[str, Any]) -> dict[str, Any]:
    for key in image_weights:
        if key not in _KEYS:
            raise ConfigError(f'model.unet.image_weights takes no {key!r}.{nearest(key, _KEYS)}')
    if not image_weights.get('from_pretrained'):
        raise ConfigError('model.unet.image_weights needs from_pretrained.')
    return {k: v for k, v in image_weights.items() if k != 'leave' and v is not None}


def _without(tensors: Mapping[str, Tensor], patterns: Any) -> dict[str, Tensor]:
    for pattern in patterns:
        if not any(re.search(pattern, key) for key in tensors):
            raise ConfigError(f'model.unet.image_weights.leave: {pattern!r} matches no parameter.')
    return {k: v for k, v in tensors.items() if not any(re.search(p, k) for p in patterns)}


def _fitted(value: Tensor, like: Tensor | None) -> Tensor:
    """A tensor in the shape of the one that it replaces, where both mean the same."""
    if like is None or value.shape == like.shape:
        return value
    if value.dim() == 4 and like.dim() == 2 and value.shape[2:] == (1, 1):
        return value[:, :, 0, 0]
    if value.dim() == 4 == like.dim() and value.shape[1] < like.shape[1]:
        more = value.new_zeros(value.shape[0], like.shape[1] - value.shape[1], *value.shape[2:])
        return torch.cat([value, more], dim=1)
    return value


def _check_settings(pictures: Mapping[str, Any], video: Mapping[str, Any], source: str) -> None:
    """What no shape shows: how channels are divided among heads and groups."""
    kinds = video.get('down_block_types', ('CrossAttn',) * 4)
    # those with attention; the middle has it and is the coarsest level's
    seen = [i for i, kind in enumerate(kinds) if 'CrossAttn' in kind or i == len(kinds) - 1]
    for key, default in (('attention_head_dim', 8), ('norm_num_groups', 32)):
        a, b = (_each(settings.get(key, default), seen) for settings in (pictures, video))
        if a != b:
            raise WeightsError(f'model.unet: {key}={b}, but {source} has {a}.')


def _each(value: Any, levels: list[int]) -> list[int]:
    return [value if isinstance(value, int) else value[level] for level in levels]

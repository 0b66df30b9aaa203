"""The denoiser of an editor: an image UNet, motion modules, and PIA's condition, from a config."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmvideo.checkpoints.layouts import FAMILIES, Betas
from mmvideo.checkpoints.load import load_into, without_weights
from mmvideo.checkpoints.motion import MotionWeights, describe, merge_conv_in, read_motion
from mmvideo.checkpoints.single_file import read_model_part
from mmvideo.checkpoints.sources import DIFFUSERS_FILES, local_root, resolve_weights
from mmvideo.editors.image_layers import begin_with_pictures
from mmvideo.errors import ConfigError
from mmvideo.models.borrowed import has_distribution
from mmvideo.models.unet import VideoUNet, motion_arguments, unet_arguments, video_config
from mmvideo.registry import MODELS

_LOG = logging.getLogger(__name__)
SOURCE_KEYS = ('from_pretrained', 'subfolder', 'variant', 'revision', 'dtype')
_MOTION = '.motion_modules.'
# Of a denoiser's settings, what diffusers' image U-Net does not have.
_OURS = ('motion_module', 'motion_mid_block', 'resnet_norm_scope', 'gradient_checkpointing')


@dataclass
class Blueprint:
    """A denoiser before it is built: arguments of ``VideoUNet`` and the weights known for it, or
    where those of its image layers are."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    dtype: str = 'float32'
    betas: Betas | None = None
    image_weights: dict[str, Any] | None = None


def build_part(registry: Any, part: Any) -> Any:
    """A part of an editor from its config; one that is built already, as it is."""
    return registry.build(part) if isinstance(part, Mapping) else part


def build_unet(
    unet: Mapping[str, Any] | VideoUNet,
    motion_module: Mapping[str, Any] | None = None,
    in_channels: int | None = None,
    first_channels: Literal['base', 'pia'] = 'base',
) -> VideoUNet:
    """Build the denoiser and fill it with every weight that the config names.

    Args:
        unet: config of ``VideoUNet``: ``from_pretrained`` or its architecture. ``ema=True`` takes
            the EMA copy of a single file that has both. A new one may have ``image_weights``, see
            ``begin_with_pictures``. Or the denoiser itself.
        motion_module: config of ``MotionModule``: likewise; None for pictures.
        in_channels: channels of the input when a condition joins the latents. Those that no
            weight file has start at zero.
        first_channels: ``'base'`` or ``'pia'``, see ``merge_conv_in``.

    Raises:
        ConfigError, WeightsError: naming the part.
    """
    if isinstance(unet, VideoUNet):
        return _built(unet, motion_module, in_channels)
    plan = image_blueprint(unet)
    motion = None
    if motion_module is not None:
        motion = _add_motion(plan, motion_module)
    if motion is not None and motion.conv_in is not None and in_channels is None:
        raise ConfigError(
            f'model.motion_module: {motion.paths[0]} is '
            f"{FAMILIES[motion.family].title}, whose convolution only model.type='PIA' uses."
        )
    if in_channels is not None:
        widen(plan, in_channels, motion, first_channels)
    return realise(plan, fresh_motion=motion_module is not None and motion is None)


def _built(
    unet: VideoUNet, motion_module: Mapping[str, Any] | None, in_channels: int | None
) -> VideoUNet:
    """A denoiser that was built before, checked against what the editor needs."""
    if motion_module is not None:
        raise ConfigError('model.motion_module: model.unet is built already, with its own.')
    if in_channels is not None and unet.in_channels != in_channels:
        raise ConfigError(
            f'model.unet takes {unet.in_channels} channels: this editor needs {in_channels}.'
        )
    return unet


def image_blueprint(unet: Mapping[str, Any]) -> Blueprint:
    """Arguments and weights of the image UNet that a config describes."""
    where, keys = split_source(unet)
    if keys.pop('type', 'VideoUNet') != 'VideoUNet':
        raise ConfigError(f"model.unet: type {unet['type']!r} is no denoiser; use 'VideoUNet'.")
    dtype, ema = where.pop('dtype', 'float32'), keys.pop('ema', False)
    image_weights = keys.pop('image_weights', None)
    if 'from_pretrained' not in where:
        if ema:
            raise ConfigError('model.unet: ema=True needs a from_pretrained that has EMA weights.')
        return Blueprint(keys, dtype=dtype, image_weights=image_weights)
    if image_weights is not None:
        raise ConfigError('model.unet takes from_pretrained or image_weights, not both.')
    source = where.pop('from_pretrained')
    config, tensors = read_model_part(source, 'unet', weights=DIFFUSERS_FILES, ema=ema, **where)
    return Blueprint({**unet_arguments(config), **keys}, tensors, dtype)


def split_source(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A part's config as (where its weights are, everything else)."""
    where = {k: config[k] for k in SOURCE_KEYS if config.get(k) is not None}
    return where, {k: v for k, v in config.items() if k not in SOURCE_KEYS}


def _add_motion(plan: Blueprint, motion_module: Mapping[str, Any]) -> MotionWeights | None:
    """Put motion modules into the plan; what the config says goes before the file's family."""
    where, keys = split_source(motion_module)
    where.pop('dtype', None)
    if 'from_pretrained' not in where:
        plan.settings['motion_module'] = keys
        return None
    source = where.pop('from_pretrained')
    weights = read_motion(source, max_positions=keys.get('max_positions'), **where)
    asked = plan.settings.get('motion_mid_block')
    if asked not in (None, weights.mid_block):
        raise ConfigError(
            f'model.unet: motion_mid_block={asked}, but {source} is '
            f'{FAMILIES[weights.family].title} with motion_mid_block={weights.mid_block}.'
        )
    join_motion(plan, weights, keys)
    return weights


def join_motion(plan: Blueprint, weights: MotionWeights, keys: Mapping[str, Any]) -> None:
    """Put motion modules that are read into the plan.

    Args:
        keys: settings of the modules; they go before what the weights' family has.
    """
    found = motion_arguments(weights.config, plan.settings)
    plan.betas = weights.betas
    scopes = weights.norm_scopes
    if 'motion_norm_scope' in scopes:
        found['motion_module'].setdefault('norm_scope', scopes['motion_norm_scope'])
    found['motion_module'].update(keys)
    plan.settings.setdefault('resnet_norm_scope', scopes.get('resnet_norm_scope', 'frame'))
    plan.settings.update({k: v for k, v in found.items() if k != 'in_channels'})
    plan.tensors.update(weights.tensors)


def widen(
    plan: Blueprint,
    in_channels: int,
    motion: MotionWeights | None,
    first_channels: Literal['base', 'pia'],
) -> None:
    """Give the first convolution the condition's channels: from the adapter's file, or zero."""
    plan.settings['in_channels'] = in_channels
    weight, bias = plan.tensors.get('conv_in.weight'), plan.tensors.get('conv_in.bias')
    if weight is None or bias is None or weight.shape[1] == in_channels:
        return
    if motion is not None and motion.conv_in is not None:
        weight, bias = merge_conv_in(weight, bias, *motion.conv_in, first_channels)
    else:
        extra = weight.new_zeros(weight.shape[0], in_channels - weight.shape[1], *weight.shape[2:])
        weight = torch.cat([weight, extra], dim=1)
    plan.tensors.update({'conv_in.weight': weight, 'conv_in.bias': bias})


def realise(plan: Blueprint, fresh_motion: bool = False) -> VideoUNet:
    """The denoiser of a plan; without weights for its motion modules they stay as they are made."""
    config = dict(plan.settings, type='VideoUNet')
    if not plan.tensors:
        model = MODELS.build(config)
    elif fresh_motion:
        model = MODELS.build(config)
        own = {k: v for k, v in model.state_dict().items() if _MOTION in k}
        load_into(model, {**plan.tensors, **own}, 'unet', plan.dtype)
    else:
        with without_weights():
            model = MODELS.build(config)
        load_into(model, plan.tensors, 'unet', plan.dtype)
    model.settings = plan.settings
    if plan.image_weights is not None:
        begin_with_pictures(model, plan.image_weights)
    model.trained_betas = plan.betas
    return model


def with_trained_betas(scheduler: Any, config: Mapping[str, Any], unet: VideoUNet) -> Any:
    """The scheduler with the betas that the motion modules were trained with, if it names none.

    What the config names goes before that, as with norm scopes; a difference is logged, because
    nothing else shows it but poor videos.

    Args:
        scheduler: built from ``config``.
        config: of the scheduler.
        unet: from ``build_unet``.
    """
    built = not isinstance(config, Mapping)
    if built or unet.trained_betas is None or scheduler.config.get('trained_betas') is not None:
        return scheduler
    trained = asdict(unet.trained_betas)
    if not {'from_pretrained', *trained} & set(config):
        return type(scheduler).from_config(scheduler.config, **trained)
    differ = [f'{k}={scheduler.config[k]}' for k, v in trained.items() if scheduler.config[k] != v]
    if differ:
        _LOG.warning(
            'the scheduler has %s; the motion modules were trained with %s',
            ', '.join(differ),
            ', '.join(f'{key}={value}' for key, value in trained.items()),
        )
    return scheduler


def check_trained_vae(vae: Mapping[str, Any] | None) -> None:
    """Refuse a VAE that training cannot draw latents from.

    Raises:
        ConfigError: naming the one to take.
    """
    if not has_distribution(vae or {}):
        raise ConfigError(
            "model.vae: an AutoencoderTiny's latents are no distribution and only near to those of "
            "the VAE that it stands for; train with type='AutoencoderKL' and use this one to "
            'make videos.'
        )


def check_clip_vae(vae: Mapping[str, Any] | None) -> None:
    """Refuse a VAE whose decoder does not see time.

    Raises:
        ConfigError: naming the one to take.
    """
    found, needed = (vae or {}).get('type'), 'AutoencoderKLTemporalDecoder'
    if found not in (None, needed):
        raise ConfigError(
            f'model.vae: {found} decodes each frame by itself, and Stable Video Diffusion decodes '
            f"clips; take type='{needed}'. It reads image_weights of an AutoencoderKL."
        )


def export_unet_config(unet: VideoUNet) -> dict[str, Any]:
    """``config.json`` of the denoiser under diffusers' names."""
    video = video_config(unet.settings)
    if video is not None:
        return video
    settings = _image_settings(unet)
    motion = unet.settings.get('motion_module')
    if not motion:
        return settings
    heads = settings.pop('attention_head_dim', 8)  # a number of heads, by diffusers' other name
    for key in ('down_block_types', 'up_block_types'):
        if key in settings:
            settings[key] = [name.replace('Block2D', 'BlockMotion') for name in settings[key]]
    return settings | dict(
        _class_name='UNetMotionModel',
        num_attention_heads=heads,
        use_motion_mid_block=unet.settings.get('motion_mid_block', False),
        motion_num_attention_heads=motion.get('num_attention_heads', 8),
        motion_max_seq_length=motion.get('max_positions', 32),
        temporal_transformer_layers_per_block=motion.get('num_layers', 1),
        temporal_transformer_layers_per_mid_block=motion.get('num_layers', 1),
    )


def export_image_unet(unet: VideoUNet) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and tensors of the image layers of a denoiser with motion modules.

    Input channels that the motion adapter brings along, such as PIA's, are not among them.
    """
    state = {k: v for k, v in unet.state_dict().items() if _MOTION not in k}
    state['conv_in.weight'] = state['conv_in.weight'][:, : unet.out_channels].clone()
    return _image_settings(unet) | dict(in_channels=unet.out_channels), state


def _image_settings(unet: VideoUNet) -> dict[str, Any]:
    settings = {k: v for k, v in unet.settings.items() if k not in _OURS}
    return dict(settings, _class_name='UNet2DConditionModel')


def export_motion_adapter(unet: VideoUNet) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and tensors of the motion modules, as diffusers' MotionAdapter has them."""
    state = unet.state_dict()
    tensors = {k: v for k, v in state.items() if _MOTION in k}
    conv = None
    if unet.in_channels != unet.out_channels:
        conv = (state['conv_in.weight'], state['conv_in.bias'])
        tensors |= {'conv_in.weight': conv[0], 'conv_in.bias': conv[1]}
    motion, groups = unet.settings['motion_module'], unet.settings.get('norm_num_groups', 32)
    config = describe(
        {k: v for k, v in tensors.items() if _MOTION in k}, conv, motion.get('max_positions', 32)
    )
    config.update(
        motion_num_attention_heads=motion.get('num_attention_heads', 8),
        motion_norm_num_groups=motion.get('norm_num_groups', groups),
    )
    return config, tensors


def weight_files(parts: Mapping[str, Any]) -> list[Path]:
    """The weight files that a model config's parts are read from, in the order of the config."""
    found: list[Path] = []
    for part in parts.values():
        where = split_source(part)[0] if isinstance(part, Mapping) else {}
        source = where.pop('from_pretrained', None)
        where.pop('dtype', None)
        if source is None or part.get('type') == 'CLIPTokenizer':
            continue
        root = local_root(source)
        if root is not None and root.is_file():
            found.append(root)
        else:
            found += resolve_weights(source, **where)
    return list(dict.fromkeys(found))


__all__ = [
    'Blueprint',
    'build_part',
    'build_unet',
    'check_trained_vae',
    'export_image_unet',
    'export_motion_adapter',
    'export_unet_config',
    'image_blueprint',
    'join_motion',
    'realise',
    'split_source',
    'weight_files',
    'widen',
    'with_trained_betas',
]

"""VideoUNet's arguments from the ``config.json`` of diffusers' models.

Every setting is taken, checked to be the one way this trunk has, or known not to matter; one that
is none of these is an error, because ignoring it would give wrong pictures without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any

from mmvideo.errors import WeightsError, nearest
from mmvideo.registry import MODELS

CLASSES = (
    'UNet2DConditionModel',
    'UNetMotionModel',
    'UNetSpatioTemporalConditionModel',
    'I2VGenXLUNet',
    'VideoUNet',
)
_TAKEN = {
    'sample_size',
    'in_channels',
    'out_channels',
    'down_block_types',
    'up_block_types',
    'block_out_channels',
    'layers_per_block',
    'cross_attention_dim',
    'transformer_layers_per_block',
    'use_linear_projection',
    'norm_num_groups',
    'norm_eps',
    'time_cond_proj_dim',
}
_HEADS = {'attention_head_dim', 'num_attention_heads'}

# What this trunk does, by setting: any other value is another network.
_FIXED: dict[str, tuple[Any, ...]] = {
    'act_fn': ('silu', 'swish'),
    'addition_embed_type': (None,),
    'attention_type': ('default',),
    'center_input_sample': (False,),
    'class_embed_type': (None,),
    'class_embeddings_concat': (False,),
    'conv_in_kernel': (3,),
    'conv_out_kernel': (3,),
    'cross_attention_norm': (None,),
    'downsample_padding': (1,),
    'dropout': (0,),
    'dual_cross_attention': (False,),
    'encoder_hid_dim': (None,),
    'encoder_hid_dim_type': (None,),
    'flip_sin_to_cos': (True,),
    'freq_shift': (0,),
    'mid_block_layers': (1,),
    'mid_block_only_cross_attention': (None, False),
    'mid_block_scale_factor': (1,),
    'mid_block_type': ('UNetMidBlock2DCrossAttn',),
    'num_class_embeds': (None,),
    'only_cross_attention': (False,),
    'resnet_out_scale_factor': (1,),
    'resnet_skip_time_act': (False,),
    'resnet_time_scale_shift': ('default',),
    'reverse_motion_num_attention_heads': (None,),
    'reverse_temporal_transformer_layers_per_block': (None,),
    'reverse_transformer_layers_per_block': (None,),
    'time_embedding_act_fn': (None,),
    'time_embedding_dim': (None,),
    'time_embedding_type': ('positional',),
    'timestep_post_act': (None,),
}
# Without effect here: parameters of what _FIXED excludes, and a precision that fused attention
# has anyway.
_IRRELEVANT = {
    'addition_embed_type_num_heads',
    'addition_time_embed_dim',
    'projection_class_embeddings_input_dim',
    'upcast_attention',
}
_SVD = {
    'sample_size',
    'in_channels',
    'out_channels',
    'down_block_types',
    'up_block_types',
    'block_out_channels',
    'layers_per_block',
    'cross_attention_dim',
    'transformer_layers_per_block',
    'num_frames',
}
_TIME_IDS = {'addition_time_embed_dim', 'projection_class_embeddings_input_dim'}
_I2VGEN = _SVD - {'transformer_layers_per_block', 'num_frames'} | {'norm_num_groups'}
_MOTION = {
    'motion_max_seq_length',
    'motion_num_attention_heads',
    'temporal_transformer_layers_per_block',
    'temporal_transformer_layers_per_mid_block',
    'transformer_layers_per_mid_block',
    'use_motion_mid_block',
}
_ADAPTER = {
    'block_out_channels',
    'conv_in_channels',
    'motion_layers_per_block',
    'motion_max_seq_length',
    'motion_mid_block_layers_per_block',
    'motion_norm_num_groups',
    'motion_num_attention_heads',
    'motion_transformer_layers_per_block',
    'motion_transformer_layers_per_mid_block',
    'use_motion_mid_block',
}


def unet_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of VideoUNet for the ``config.json`` of one of the classes in ``CLASSES``.

    Motion modules come without a ``norm_scope``: which one is right depends on where the weights
    come from, not on this file. Where diffusers' network differs from the official one, the
    arguments are those of the official: see ``diffusers_norm_eps`` and ``ImageLatentsOverTime``.

    Raises:
        WeightsError: naming a setting that this trunk does not have, or the wrong class.
    """
    kind = _class_of(config)
    if kind == 'UNetSpatioTemporalConditionModel':
        return _svd_arguments(config)
    if kind == 'I2VGenXLUNet':
        return _i2vgen_arguments(config)
    if kind == 'VideoUNet':  # our own class, for a network that diffusers has not
        _check_known(config, signature(MODELS.get(kind)).parameters, 'UNet')
        return {key: value for key, value in config.items() if not key.startswith('_')}
    motion = kind == 'UNetMotionModel'
    known = _TAKEN | _HEADS | _IRRELEVANT | set(_FIXED) | (_MOTION if motion else set())
    _check_known(config, known, 'UNet')
    for key, allowed in _FIXED.items():
        if key in config and _same(config[key]) not in allowed:
            raise WeightsError(
                f'UNet config: {key}={config[key]!r} is not supported, expected '
                f'{" or ".join(map(repr, allowed))}'
            )
    arguments = {key: config[key] for key in sorted(_TAKEN) if key in config}
    if arguments.get('time_cond_proj_dim') is None:
        arguments.pop('time_cond_proj_dim', None)
    # diffusers' default, not ours
    arguments.setdefault('cross_attention_dim', 1280)
    _check_whole(arguments['cross_attention_dim'], 'UNet', 'cross_attention_dim')
    _check_depths(config)
    heads = config.get('num_attention_heads') or config.get('attention_head_dim', 8)
    arguments['attention_head_dim'] = heads
    if motion:
        arguments |= _motion_model_arguments(config)
    return arguments


def motion_arguments(
    config: Mapping[str, Any], unet: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a MotionAdapter's ``config.json`` changes in the arguments of VideoUNet.

    Args:
        config: the adapter's.
        unet: the arguments of the image U-Net it shall join, to check that it fits.

    Returns:
        ``motion_module``, ``motion_mid_block`` and, for PIA, ``in_channels``.

    Raises:
        WeightsError: naming a setting that this trunk does not have, or that does not fit.
    """
    if config.get('_class_name', 'MotionAdapter') != 'MotionAdapter':
        raise WeightsError(f'config of a {config["_class_name"]!r}: expected a MotionAdapter')
    _check_known(config, _ADAPTER, 'motion adapter')
    _check_single(config, 'motion_mid_block_layers_per_block')
    widths = list(config.get('block_out_channels', (320, 640, 1280, 1280)))
    layers = _levels(config.get('motion_layers_per_block', 2), len(widths))
    if unet is not None:
        _check_fits(widths, layers, unet)
    arguments: dict[str, Any] = {
        'motion_module': {
            'type': 'MotionModule',
            'num_attention_heads': _uniform(config, 'motion_num_attention_heads', 8),
            'num_layers': _motion_depth(config, 'motion_transformer_layers_per'),
            'max_positions': config.get('motion_max_seq_length', 32),
            'norm_num_groups': config.get('motion_norm_num_groups', 32),
        },
        'motion_mid_block': config.get('use_motion_mid_block', True),
    }
    if config.get('conv_in_channels'):
        arguments['in_channels'] = config['conv_in_channels']
    return arguments


def _motion_model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        'motion_module': {
            'type': 'MotionModule',
            'num_attention_heads': _uniform(config, 'motion_num_attention_heads', 8),
            'num_layers': _motion_depth(config, 'temporal_transformer_layers_per'),
            'max_positions': config.get('motion_max_seq_length', 32),
        },
        'motion_mid_block': config.get('use_motion_mid_block', True),
    }


def diffusers_norm_eps(arguments: Mapping[str, Any]) -> list[float]:
    """``norm_eps`` with which diffusers runs SVD: 1e-6 in stages with transformers and going up.

    The official code has 1e-5 everywhere, as ``unet_arguments`` has.
    """
    down = [1e-6 if 'CrossAttn' in name else 1e-5 for name in arguments['down_block_types']]
    return [*down, 1e-5, *[1e-6] * len(down), 1e-5]


def video_config(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """``config.json`` of SVD's or I2VGen-XL's network with these arguments; None for others.

    Where diffusers has no such network it names ours, so that nobody builds another one from it.
    """
    if settings.get('temporal_mixing') is not None:
        config = _svd_config(settings)
    elif settings.get('temporal_slots'):
        config = _i2vgen_config(settings)
    else:
        return None
    if not _same_network(settings, config):
        own = {key: value for key, value in settings.items() if key != 'gradient_checkpointing'}
        return {**own, '_class_name': 'VideoUNet'}
    return config


def _same_network(settings: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether diffusers' config, read back, gives the network with these settings."""
    try:
        again = unet_arguments(config)
    except WeightsError:
        return False
    levels = len(again.get('block_out_channels', (0, 0, 0, 0)))
    for key, default in (('norm_num_groups', 32), ('attention_head_dim', 8)):
        given, kept = settings.get(key, default), again.get(key, default)
        if _levels(given, levels) != _levels(kept, levels):
            return False
    keys = ('temporal_mixing', 'temporal_slots', 'transformer_in')
    return all(settings.get(key) in (None, again.get(key)) for key in keys)


def _svd_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    _check_known(config, _SVD | _TIME_IDS | {'num_attention_heads'}, 'UNet')
    _check_depths(config)
    arguments = {'in_channels': 8, 'cross_attention_dim': 1024, 'num_frames': 25}
    arguments |= {key: config[key] for key in sorted(_SVD) if key in config}
    arguments['cross_attention_dim'] = _same(arguments['cross_attention_dim'])
    _check_whole(arguments['cross_attention_dim'], 'UNet', 'cross_attention_dim')
    channels = config.get('addition_time_embed_dim', 256)
    width = config.get('projection_class_embeddings_input_dim', 768)
    if width % channels:
        raise WeightsError(
            f'UNet config: projection_class_embeddings_input_dim={width} is no multiple of '
            f'addition_time_embed_dim={channels}'
        )
    ids = {'type': 'TimeIdsEmbedding', 'channels': channels, 'count': width // channels}
    return arguments | {
        'attention_head_dim': config.get('num_attention_heads', (5, 10, 20, 20)),
        'use_linear_projection': True,
        'temporal_mixing': 'learned_with_images',
        'embeddings': {'add_embedding': ids},
    }


def _svd_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    ids = settings['embeddings']['add_embedding']
    channels = ids.get('channels', 256)
    return {
        **{key: settings[key] for key in sorted(_SVD) if key in settings},
        '_class_name': 'UNetSpatioTemporalConditionModel',
        'num_attention_heads': settings['attention_head_dim'],
        'addition_time_embed_dim': channels,
        'projection_class_embeddings_input_dim': channels * ids.get('count', 3),
    }


def _i2vgen_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    _check_known(config, _I2VGEN | _HEADS, 'UNet')
    arguments = {'cross_attention_dim': 1024}
    arguments |= {key: config[key] for key in sorted(_I2VGEN) if key in config}
    # diffusers never looks at num_attention_heads
    size = _same(config.get('attention_head_dim', 64))
    _check_whole(size, 'UNet', 'attention_head_dim')
    widths = config.get('block_out_channels', (320, 640, 1280, 1280))
    kinds = config.get('down_block_types', ('CrossAttn',) * len(widths))
    if any(width % size for width, kind in zip(widths, kinds, strict=False) if 'CrossAttn' in kind):
        raise WeightsError(
            f'UNet config: attention_head_dim={size} does not divide block_out_channels={widths}'
        )
    over_time = {'type': 'TemporalTransformer', 'head_channels': size}
    return arguments | {
        # a level without attention has no heads to count
        'attention_head_dim': [max(1, width // size) for width in widths],
        'use_linear_projection': True,
        'transformer_in': over_time | {'num_attention_heads': 8},
        'temporal_slots': {'temp_convs': {'type': 'TemporalConv'}, 'temp_attentions': over_time},
        'embeddings': {
            'fps_embedding': {'type': 'FpsEmbedding'},
            'image_latents_context_embedding': {'type': 'ImageLatentTokens'},
            'context_embedding': {'type': 'ImageTokens', 'tokens': arguments.get('in_channels', 4)},
            'image_latents_proj_in': {'type': 'ImageLatentChannels'},
            'image_latents_temporal_encoder': {'type': 'ImageLatentsOverTime'},
        },
    }


def _i2vgen_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{key: settings[key] for key in sorted(_I2VGEN) if key in settings},
        '_class_name': 'I2VGenXLUNet',
        'attention_head_dim': (settings.get('transformer_in') or {}).get('head_channels', 64),
    }


def _class_of(config: Mapping[str, Any]) -> str:
    """The class that a config names or, where it names none, that its settings show."""
    name = config.get('_class_name')
    if name is None:
        kinds = ' '.join(config.get('down_block_types', ()))
        if 'SpatioTemporal' in kinds or '3D' in kinds:
            return CLASSES[2] if 'SpatioTemporal' in kinds else CLASSES[3]
        return CLASSES['motion_max_seq_length' in config]
    if name not in CLASSES:
        raise WeightsError(
            f'config of a {name!r}: expected {" or ".join(CLASSES)}.{nearest(name, CLASSES)}'
        )
    return name


def _check_known(config: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    for key in config:
        if key not in known and not key.startswith('_'):
            raise WeightsError(
                f'{what} config: unknown setting {key!r} (= {config[key]!r}), which could change '
                f'the network.{nearest(key, known)}'
            )


def _check_depths(config: Mapping[str, Any]) -> None:
    """Spatial transformers: one depth a level, and the coarsest level's in the middle."""
    depths = config.get('transformer_layers_per_block', 1)
    each = list(depths) if isinstance(depths, (list, tuple)) else [depths]
    for depth in each:
        _check_whole(depth, 'UNet', 'transformer_layers_per_block')
    mid = config.get('transformer_layers_per_mid_block')
    if mid is not None and _same(mid) != each[-1]:
        raise WeightsError(
            f'UNet config: transformer_layers_per_mid_block={mid!r} is not supported, expected '
            f'{each[-1]}, as in the coarsest level'
        )


def _check_fits(widths: list[int], layers: list[Any], unet: Mapping[str, Any]) -> None:
    """An adapter has one motion module for each layer of its U-Net."""
    own_widths = list(unet.get('block_out_channels', (320, 640, 1280, 1280)))
    own_layers = _levels(unet.get('layers_per_block', 2), len(own_widths))
    if widths != own_widths or layers != own_layers:
        raise WeightsError(
            f'motion adapter for block_out_channels={widths}, {layers} layers a level does not '
            f'fit this UNet of block_out_channels={own_widths}, {own_layers} layers a level'
        )


def _check_whole(value: Any, what: str, key: str) -> None:
    if not isinstance(value, int):
        raise WeightsError(f'{what} config: {key}={value!r} is not supported, expected one number')


def _check_single(config: Mapping[str, Any], key: str) -> None:
    if config.get(key, 1) != 1:
        raise WeightsError(f'motion config: {key}={config[key]!r} is not supported, expected 1')


def _motion_depth(config: Mapping[str, Any], prefix: str) -> int:
    """The one depth of all motion modules; that of the middle counts where it has one."""
    depth = _uniform(config, f'{prefix}_block', 1)
    mid_key = f'{prefix}_mid_block'
    mid = _uniform(config, mid_key, 1)
    if config.get('use_motion_mid_block', True) and mid != depth:
        raise WeightsError(
            f'motion config: {mid_key}={mid} is not supported, expected {depth}, as elsewhere'
        )
    return depth


def _uniform(config: Mapping[str, Any], key: str, default: int) -> int:
    """A setting that diffusers allows to differ by level and that may not here."""
    value = _same(config.get(key, default))
    if not isinstance(value, int):
        raise WeightsError(
            f'motion config: {key}={config[key]!r} is not supported, expected one number'
        )
    return value


def _same(value: Any) -> Any:
    """The element that a list repeats; what is not such a list, as it is."""
    if isinstance(value, (list, tuple)) and value and all(v == value[0] for v in value):
        return _same(value[0])
    return tuple(value) if isinstance(value, list) else value


def _levels(value: Any, levels: int) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels

"""What a file is, from what is in it, never from its name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmvideo.checkpoints.layouts.lora import is_lora
from mmvideo.errors import WeightsError

_PE = re.compile(r'.*(?:pos_encoder|pos_embed)\.pe')
# Widths of the text encoders of Stable Diffusion 1, 2 and XL.
_TOKEN_WIDTHS = (768, 1024, 1280)


def recognise(tensors: Mapping[str, Tensor]) -> str:
    """The family of a file, a key of ``FAMILIES``, from its tensors.

    Args:
        tensors: As ``read_tensors`` gives them, in any layout.

    Raises:
        WeightsError: Nothing known; names the first keys.
    """
    for family, sign in _SIGNS:
        if any(sign.fullmatch(key) for key in tensors):
            return _REFINED[family](tensors) if family in _REFINED else family
    if is_lora(tensors):
        return _lora_family(tensors)
    if any('motion_modules.' in key for key in tensors):
        return _motion_family(tensors)
    if any('.resnets.' in key for key in tensors) and 'conv_in.weight' in tensors:
        return 'unet'
    if _is_textual_inversion(tensors):
        return 'textual_inversion'
    raise WeightsError(
        f'these {len(tensors)} tensors are of no known kind; the first are: '
        + ', '.join(list(tensors)[:5])
    )


def position_count(tensors: Mapping[str, Tensor]) -> int | None:
    """How many frame positions a file's encodings have; None where it has none."""
    return next((v.shape[1] for k, v in tensors.items() if _PE.fullmatch(k)), None)


def is_original(tensors: Mapping[str, Tensor]) -> bool:
    """Whether motion modules or an encoder with such have the names of the original code."""
    return any('.temporal_transformer.' in key for key in tensors)


# The first match wins: each sign would also fit a family further down.
_SIGNS = tuple(
    (family, re.compile(sign))
    for family, sign in (
        ('sparsectrl_rgb', r'controlnet_cond_embedding\.weight'),
        ('scribble', r'controlnet_cond_embedding\.conv_in\.weight'),
        ('controlnet_ldm', r'(?:control_model\.)?zero_convs\.0\.0\.weight'),
        ('ip_adapter', r'image_proj\..*|ip_adapter\.\d+\..*'),
        ('kohya_lora', r'lora_(?:unet|te|te1|te2)_.*'),
        ('svd', r'model\.diffusion_model\..*\.time_stack\..*'),
        ('svd_unet', r'.*\.temporal_res_block\..*'),
        ('i2vgen_xl_unet', r'image_latents_proj_in\..*'),
        ('i2vgen_xl', r'local_image_concat\..*'),
        # Also without a UNet, of a file whose parts were taken apart.
        (
            'ldm',
            r'(?:model\.diffusion_model|cond_stage_model|conditioner\.embedders|model_ema)\..*',
        ),
        ('hotshot_xl', r'.*temporal_attentions\.\d+\..*'),
        ('vae', r'(?:first_stage_model\.)?encoder\.conv_in\.weight'),
        ('clip', r'(?:.*\.)?(?:token|patch)_embedding\.weight'),
    )
)


def _scribble_or_controlnet(tensors: Mapping[str, Tensor]) -> str:
    motion = any('.motion_modules.' in key for key in tensors)
    return 'sparsectrl_scribble' if motion else 'controlnet'


def _temporal_or_image(tensors: Mapping[str, Tensor]) -> str:
    """SVD's autoencoder has the names of its UNet's resnets too."""
    return 'svd_vae' if 'decoder.time_conv_out.weight' in tensors else 'svd_unet'


def _ip_adapter(tensors: Mapping[str, Tensor]) -> str:
    if any('_lora.' in key or 'perceiver_resampler' in key for key in tensors):
        return 'ip_adapter_faceid'
    if 'image_proj.latents' in tensors:
        return 'ip_adapter_plus'
    return 'ip_adapter_full' if 'image_proj.proj.3.weight' in tensors else 'ip_adapter'


def _clip_halves(tensors: Mapping[str, Tensor]) -> str:
    text = any(key.endswith('token_embedding.weight') for key in tensors)
    image = any(key.endswith('patch_embedding.weight') for key in tensors)
    return 'clip' if text and image else 'clip_text' if text else 'clip_image'


_REFINED = {
    'scribble': _scribble_or_controlnet,
    'svd_unet': _temporal_or_image,
    'ip_adapter': _ip_adapter,
    'clip': _clip_halves,
}


def _lora_family(tensors: Mapping[str, Tensor]) -> str:
    """By the layers it changes: temporal ones only, or attention under the processors' names."""
    layers = [key for key in tensors if not key.endswith('.alpha')]
    if all('.motion_modules.' in key for key in layers):
        return 'motion_lora'
    if all('.attentions.' in key and '.processor.to_' in key for key in layers):
        return 'domain_adapter'
    return 'diffusers_lora'


def _motion_family(tensors: Mapping[str, Tensor]) -> str:
    conv = tensors.get('conv_in.weight')
    # PIA before v3, whose motion modules look the same: elsewhere the convolution gets lost.
    conditioned = conv is not None and conv.shape[1] == 9
    if any('.resnets.' in key for key in tensors):
        return 'pia_unet' if conditioned else 'unet_motion'
    if conditioned:
        return 'pia'
    positions = position_count(tensors)
    if any(key.startswith('mid_block.motion_modules.') for key in tensors):
        return 'animatelcm' if positions in (None, 64) else 'animatediff_v2'
    if any(key.startswith('down_blocks.3.motion_modules.') for key in tensors):
        return {24: 'animatediff_v1', 32: 'animatediff_v3'}.get(positions or 0, 'animatediff')
    widths = [v.shape[0] for k, v in tensors.items() if k.startswith('down_blocks.0.')]
    return 'animatediff_sdxl' if positions == 32 and widths and 320 in widths else 'animatediff'


def _is_textual_inversion(tensors: Mapping[str, Tensor]) -> bool:
    """Vectors of a text encoder's width by themselves, under a word or a trainer's name."""
    if len(tensors) > 2:
        return False
    for key, value in tensors.items():
        named = key in ('emb_params', 'string_to_param.*', 'clip_l', 'clip_g')
        word = re.fullmatch(r'<.+>', key) or value.shape[-1:] in [(w,) for w in _TOKEN_WIDTHS]
        if not (named or word) or value.ndim not in (1, 2) or key.endswith(('.weight', '.bias')):
            return False
    return True

"""The families of public files, and what a file of each is used with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Betas:
    """The noise schedule that a family was trained with, under diffusers' names."""

    beta_schedule: str
    beta_start: float
    beta_end: float


@dataclass(frozen=True)
class Family:
    """What a file is, and what it was trained with.

    Attributes:
        title: For messages.
        resnet_norm_scope: 'frame' or 'clip'; None where the family does not tell.
        motion_norm_scope: Likewise, of the motion modules.
        version: As its authors count, such as 'v2'; None where they do not.
        base: 'sd15', 'sd2', 'sdxl'; None where only a file's tensors tell it.
        betas: None where the family does not tell.
        first_channels: PIA's official choice for the first input channels and the bias, on an image
            model that is not personalised: 'pia', see ``merge_conv_in``.
        note: What else to know; empty where there is nothing.
    """

    title: str
    resnet_norm_scope: str | None = None
    motion_norm_scope: str | None = None
    version: str | None = None
    base: str | None = None
    betas: Betas | None = None
    first_channels: str | None = None
    note: str = ''

    @property
    def norm_scopes(self) -> dict[str, str]:
        """``resnet_norm_scope`` and ``motion_norm_scope``, where the family tells them."""
        scopes = {
            'resnet_norm_scope': self.resnet_norm_scope,
            'motion_norm_scope': self.motion_norm_scope,
        }
        return {name: scope for name, scope in scopes.items() if scope is not None}


_LINEAR = Betas('linear', 0.00085, 0.012)
_XL = Betas('scaled_linear', 0.00085, 0.020)


def _motion(title: str, scopes: tuple[str, str], version: str | None = None, **more: str) -> Family:
    return Family(title, *scopes, version, 'sd15', _LINEAR, **more)


_PIA_NOTE = "on a personalised image model use first_channels='base'"
FAMILIES = {
    'sparsectrl_scribble': _motion('a SparseCtrl encoder (scribble)', ('frame', 'frame'), 'v3'),
    'sparsectrl_rgb': _motion('a SparseCtrl encoder (rgb)', ('frame', 'frame'), 'v3'),
    'controlnet': Family('a ControlNet'),
    'controlnet_ldm': Family('a ControlNet in the original layout'),
    'motion_lora': Family('a MotionLoRA', note='for AnimateDiff v2; scale 1 is as trained'),
    'domain_adapter': Family(
        "AnimateDiff's domain adapter",
        note='for AnimateDiff v3, of rank 128; other ranks are LoRAs of the same names',
    ),
    'kohya_lora': Family('a LoRA of kohya'),
    'diffusers_lora': Family('a LoRA of diffusers or PEFT'),
    'textual_inversion': Family('a textual inversion'),
    'ip_adapter': Family('an IP-Adapter'),
    'ip_adapter_plus': Family('an IP-Adapter plus', note='plus-face has the same layout'),
    'ip_adapter_full': Family('an IP-Adapter with a full projection'),
    'ip_adapter_faceid': Family('an IP-Adapter FaceID'),
    'svd': Family('Stable Video Diffusion in the original layout', base='svd'),
    'svd_unet': Family('a UNet of Stable Video Diffusion', base='svd'),
    'svd_vae': Family('the VAE of Stable Video Diffusion', base='svd'),
    'i2vgen_xl': Family('I2VGen-XL in the original layout', base='i2vgen_xl'),
    'i2vgen_xl_unet': Family('a UNet of I2VGen-XL', base='i2vgen_xl'),
    'ldm': Family('a full checkpoint in the original Stable Diffusion layout'),
    'pia': _motion(
        'PIA condition and motion modules', ('clip', 'frame'), first_channels='pia', note=_PIA_NOTE
    ),
    'pia_unet': _motion(
        'a whole UNet of the PIA trainer', ('clip', 'frame'), first_channels='pia', note=_PIA_NOTE
    ),
    'unet_motion': Family('a whole UNet with motion modules'),
    'animatelcm': _motion(
        'AnimateLCM motion modules',
        ('frame', 'frame'),
        note='for an LCMScheduler with few steps and guidance 1 to 2',
    ),
    'animatediff_v1': _motion('AnimateDiff v1 motion modules', ('clip', 'frame'), 'v1'),
    'animatediff_v2': _motion(
        'AnimateDiff v2 motion modules',
        ('frame', 'frame'),
        'v2',
        note='AnimateDiff-Lightning has the same layout; it wants few steps without guidance',
    ),
    'animatediff_v3': _motion('AnimateDiff v3 motion modules', ('frame', 'frame'), 'v3'),
    'animatediff_sdxl': Family(
        'AnimateDiff SDXL motion modules', 'frame', 'clip', 'sdxl beta', 'sdxl', _XL
    ),
    'animatediff': Family('motion modules of no published size'),
    'hotshot_xl': Family('HotShot-XL motion modules', base='sdxl'),
    'vae': Family('an AutoencoderKL'),
    'unet': Family('an image UNet'),
    'clip': Family('a whole CLIP'),
    'clip_text': Family('a CLIP text encoder'),
    'clip_image': Family('a CLIP image encoder'),
}
MOTION_FAMILIES = (
    'pia', 'pia_unet', 'unet_motion', 'animatelcm', 'animatediff_v1', 'animatediff_v2',
    'animatediff_v3', 'animatediff_sdxl', 'animatediff',
)  # fmt: skip
# What motion modules of a base model were published for. Of modules of other widths the names tell
# how they are built, and nobody knows on which betas their owner trained them.
MOTION_WIDTHS = {'sd15': (320, 640, 1280, 1280), 'sdxl': (320, 640, 1280)}
LORA_FAMILIES = ('motion_lora', 'domain_adapter', 'kohya_lora', 'diffusers_lora')


def is_published(family: str, widths: Sequence[int]) -> bool:
    """Whether motion modules of these widths are the published ones of a family."""
    return tuple(widths) == MOTION_WIDTHS.get(FAMILIES[family].base or '')

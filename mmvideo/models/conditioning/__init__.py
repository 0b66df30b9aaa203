"""What a denoiser is told beside the noisy latents: prompts, pictures, motion."""

from mmvideo.models.conditioning.pia import PIACondition
from mmvideo.models.conditioning.text import encode_prompts

__all__ = ['PIACondition', 'encode_prompts']

"""Networks: the trunk, conditioning, and the parts borrowed from other libraries."""

from mmvideo.models import borrowed, conditioning, unet

__all__ = ['borrowed', 'conditioning', 'unet']

"""Networks: the trunk, conditioning, and the parts borrowed from other libraries."""

from mmvideo.models import adapters, borrowed, conditioning, unet

__all__ = ['adapters', 'borrowed', 'conditioning', 'unet']

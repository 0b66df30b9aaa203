"""mmvideo: image animation with video diffusion, on MMEngine."""

from mmvideo.version import __version__

__all__ = ['__version__']

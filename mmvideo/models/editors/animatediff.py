"""``mmagic.models.editors.animatediff`` under this project's name; the code lives elsewhere."""

from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.media.writers import save_videos_grid

__all__ = ['AnimateDiff', 'save_videos_grid']

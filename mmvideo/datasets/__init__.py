"""Clips and captions."""

from mmvideo.datasets.affinity import AddAffinity
from mmvideo.datasets.cached import CachedLatents
from mmvideo.datasets.first_items import FirstItems
from mmvideo.datasets.samplers import ResumableSampler
from mmvideo.datasets.sprites import SpriteWorld, TurningSprites
from mmvideo.datasets.video_text import VideoTextDataset

__all__ = [
    'AddAffinity',
    'CachedLatents',
    'FirstItems',
    'ResumableSampler',
    'SpriteWorld',
    'TurningSprites',
    'VideoTextDataset',
]

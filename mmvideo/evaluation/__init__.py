"""Metrics."""

from mmvideo.evaluation.sprite_tracking import Track, track
from mmvideo.evaluation.sprites import SpriteMetric

__all__ = ['SpriteMetric', 'Track', 'track']

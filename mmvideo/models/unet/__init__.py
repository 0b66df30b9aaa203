"""The trunk: one U-Net for pictures and clips, with slots for temporal modules."""

from __future__ import annotations

from mmvideo.models.unet.context import LayerContext
from mmvideo.models.unet.diffusers_config import (
    diffusers_norm_eps,
    motion_arguments,
    unet_arguments,
    video_config,
)
from mmvideo.models.unet.motion import MotionModule, TemporalTransformer
from mmvideo.models.unet.temporal_conv import TemporalConv
from mmvideo.models.unet.video_unet import VideoUNet

__all__ = [
    'LayerContext',
    'MotionModule',
    'TemporalConv',
    'TemporalTransformer',
    'VideoUNet',
    'diffusers_norm_eps',
    'motion_arguments',
    'unet_arguments',
    'video_config',
]

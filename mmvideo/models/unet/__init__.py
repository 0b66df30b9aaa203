"""The trunk: one U-Net for pictures and clips, with slots for temporal modules."""

from __future__ import annotations

from mmvideo.models.unet.context import LayerContext
from mmvideo.models.unet.diffusers_config import motion_arguments, unet_arguments
from mmvideo.models.unet.motion import MotionModule
from mmvideo.models.unet.video_unet import VideoUNet

__all__ = ['LayerContext', 'MotionModule', 'VideoUNet', 'motion_arguments', 'unet_arguments']

"""The things that a config names: each can ``infer`` and compute its training loss."""

from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.editors.autoencoder import Autoencoder
from mmvideo.editors.i2vgen_xl import I2VGenXL
from mmvideo.editors.pia import PIA
from mmvideo.editors.preprocessor import VideoPreprocessor
from mmvideo.editors.stable_video_diffusion import StableVideoDiffusion
from mmvideo.editors.text_to_image import TextToImage

__all__ = [
    'PIA',
    'AnimateDiff',
    'Autoencoder',
    'I2VGenXL',
    'StableVideoDiffusion',
    'TextToImage',
    'VideoPreprocessor',
]

"""Parts that mmvideo borrows: the VAE and the schedulers of diffusers, CLIP of transformers.

They are registered under their class names as builder functions, because importing the two
libraries takes seconds that a ``--help`` should not cost. What they build are the libraries' own
classes. ``builder.accepted()`` gives the config keys of a builder without building anything.
"""

from __future__ import annotations

from mmvideo.models.borrowed.autoencoder import (
    build_temporal_vae,
    build_tiny_vae,
    build_vae,
    has_distribution,
)
from mmvideo.models.borrowed.clip import build_text_encoder
from mmvideo.models.borrowed.clip_vision import build_image_encoder, build_image_processor
from mmvideo.models.borrowed.schedulers import SCHEDULER_NAMES
from mmvideo.models.borrowed.temporal_decoder import decode_clip
from mmvideo.models.borrowed.tokenizer import build_tokenizer, closed_vocabulary

__all__ = [
    'SCHEDULER_NAMES',
    'build_image_encoder',
    'build_image_processor',
    'build_temporal_vae',
    'build_text_encoder',
    'build_tiny_vae',
    'build_tokenizer',
    'build_vae',
    'closed_vocabulary',
    'decode_clip',
    'has_distribution',
]

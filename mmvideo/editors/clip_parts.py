"""The parts of Stable Video Diffusion: whether they fit together, and its VAE where float16 is not
enough."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from mmvideo.errors import ConfigError


def check_scheduler(config: Any) -> None:
    """Refuse a sampler of other noise levels or another prediction than the denoiser's.

    Raises:
        ConfigError: naming the setting.
    """
    wanted = dict(prediction_type='v_prediction', timestep_type='continuous')
    for key, value in wanted.items():
        if config.get(key) != value:
            raise ConfigError(
                f'model.scheduler: {key}={config.get(key)!r}, but Stable Video Diffusion needs '
                f'{value!r} (EulerDiscreteScheduler).'
            )


def check_parts(vae: Any, image_encoder: Any, unet: Any) -> None:
    """Refuse parts that do not fit together.

    Raises:
        ConfigError: naming the part.
    """
    channels = vae.config.latent_channels
    if 'add_embedding' not in unet.embedding_names or unet.in_channels != 2 * channels:
        raise ConfigError(
            f'model.unet: it takes {unet.in_channels} channels and the conditions '
            f'{list(unet.embedding_names)}: expected {2 * channels} channels and '
            "'add_embedding', a denoiser of Stable Video Diffusion."
        )
    width = image_encoder.config.projection_dim
    if width != unet.cross_attention_dim:
        raise ConfigError(
            f'model.image_encoder: projection_dim={width}, but model.unet has '
            f'cross_attention_dim={unet.cross_attention_dim}.'
        )


@contextlib.contextmanager
def upcast(vae: Any) -> Iterator[None]:
    """In float32 where the VAE says that float16 overflows its encoder."""
    needed = vae.dtype == torch.float16 and bool(vae.config.force_upcast)
    if needed:
        vae.float()
    try:
        yield
    finally:
        if needed:
            vae.half()

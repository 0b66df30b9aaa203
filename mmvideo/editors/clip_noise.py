"""The noise of Stable Video Diffusion: on its pictures, and in place of its clips.

N samples, P pictures, C channels, T frames, H W pixels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmvideo.editors.clip_request import ClipRequest
from mmvideo.editors.request import Sample


def picture_noise(request: ClipRequest) -> Tensor:
    """Noise for the picture of every sample, [N, 3, H, W].

    With ``draws='diffusers'`` the samples of a picture share theirs, and picture p has it from the
    generator that stands at p in the list of the samples' (diffusers' pipeline draws before it
    repeats).
    """
    generators = [item.generator for item in request.samples]
    shape = (3, request.height, request.width)
    if request.draws == 'official':
        return _drawn(generators, shape)
    repeats = request.num_videos_per_prompt
    return _drawn(generators[: len(generators) // repeats], shape).repeat_interleave(repeats, 0)


def clip_noise(samples: Sequence[Sample], shape: Sequence[int]) -> Tensor:
    """Noise [N, C, T, h, w] of unit variance, drawn frame by frame as in the official code.

    Args:
        samples: N, each with its generator.
        shape: (C, T, h, w).
    """
    channels, frames, *cells = shape
    noise = _drawn([item.generator for item in samples], (frames, channels, *cells))
    return noise.transpose(1, 2)


def _drawn(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """[N, *shape]: each from its generator; at once where all have the same, which rounds otherwise
    only for shapes that are no multiple of 16 numbers."""
    first = generators[0]
    if all(generator is first for generator in generators):
        return torch.randn(len(generators), *shape, generator=first)
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])

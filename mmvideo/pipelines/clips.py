"""What a video is made anew from: a clip for each prompt, or latents in place of clips.

N samples, C channels, T frames, H W pixels or latent cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.editors.checks import check_range, check_whole
from mmvideo.editors.course import check_course, step_count
from mmvideo.editors.denoising import Denoising
from mmvideo.editors.request import Request, Sample
from mmvideo.errors import InputError
from mmvideo.models.conditioning.clip import prepare_clip, read_clip


@dataclass(frozen=True)
class Start:
    """What a call starts from, beyond the one clip that ``infer`` takes.

    Attributes:
        clips: one for each prompt.
        strength: with latents of the caller, the share of the steps that is taken.
        noised: these are at the first step's level of noise already.
    """

    clips: Sequence[Any] = ()
    strength: float | None = None
    noised: bool = False


class Restyled(AnimateDiff):
    """AnimateDiff for calls that start from several clips, or from latents: see ``start``."""

    start = Start()

    def _request(
        self, call: Mapping[str, Any], samples: list[Sample], height: int, width: int, **more: Any
    ) -> Request:
        request = super()._request(call, samples, height, width, **more)
        if self.start.clips and len(samples) % len(self.start.clips):
            raise InputError(
                f'{len(self.start.clips)} videos for {len(samples)} samples: give one, or one for '
                'each prompt.'
            )
        if self.start.strength is None:
            return request
        if self.start.noised and request.options.free_init is not None:
            raise InputError(
                'free_init with latents: it noises a clip anew, so give clean latents and '
                'enforce_inference_steps=True, or the clip as video.'
            )
        return replace(request, strength=self.start.strength)

    def _draw(self, group: list[Sample], request: Request) -> Tensor:
        if self.start.strength is None:
            return super()._draw(group, request)
        return Denoising._draw(self, group, request)

    def _noise(self, item: Sample, request: Request) -> Tensor:
        clean = self._starts_from(item, request) if self.start.strength is not None else None
        return super()._noise(item, request) if clean is None else self._drawn(item, request)

    def _starts_from(self, item: Sample, request: Request) -> Tensor | None:
        if self.start.strength is None or self.start.noised or item.latents is None:
            return super()._starts_from(item, request)
        return item.latents.float()

    def _prepare(self, group: list[Sample], request: Request) -> None:
        clips = self.start.clips
        if not clips:
            super()._prepare(group, request)
            return
        size = (request.height, request.width)
        for item in group:
            clip = clips[item.index * len(clips) // len(request.samples)]
            video = prepare_clip(clip, request.num_frames, *size, self.vae_scale)
            super()._prepare([item], replace(request, video=video))

    def _noised(self, group: list[Sample], request: Request, *others: Any) -> Tensor:
        _, noise, *_ = others
        return noise if self.start.noised else super()._noised(group, request, *others)


def clips_of(video: Any) -> list[Any]:
    """The clips of a call, each the frames as a list, array or tensor.

    Raises:
        InputError: no clip, or no such thing.
    """
    if video is None:
        raise InputError('video is missing: give the clip to start from.')
    if isinstance(video, (str, Path, Mapping)):
        return [list(read_clip(video, None))]
    if not isinstance(video, (list, tuple, np.ndarray, Tensor)):
        raise InputError(
            f'video is a {type(video).__name__}: expected a path, a list of pictures, an array or '
            'a tensor.'
        )
    nested = isinstance(video, (list, tuple)) and len(video) > 0
    batch = nested and (isinstance(video[0], (list, tuple)) or getattr(video[0], 'ndim', 0) == 4)
    if batch or getattr(video, 'ndim', 0) == 5:
        return list(video)
    return [list(video) if isinstance(video, tuple) else video]


def check_latents(latents: Any) -> None:
    """Latents in place of a clip are a tensor [N, C, T, H, W]."""
    if not isinstance(latents, torch.Tensor) or latents.ndim != 5:
        found = getattr(latents, 'shape', None)
        shown = type(latents).__name__ if found is None else f'tensor {list(found)}'
        raise InputError(f'latents is a {shown}: expected a tensor [N, C, T, H, W].')


def all_steps(steps: Any, strength: Any, timesteps: Any, sigmas: Any) -> tuple[int, float]:
    """Steps of the whole schedule, and the share of it that takes as many as were asked for.

    Raises:
        InputError: a number of steps or a strength that there is not.
    """
    check_whole('num_inference_steps', steps, 1)
    check_range('strength', strength, 0, 1, open_low=True)
    check_course(timesteps, sigmas)
    whole = step_count(int(steps / strength), timesteps, sigmas)
    return whole, min(1.0, (min(steps, whole) + 0.5) / whole)

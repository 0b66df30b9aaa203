"""FreeNoise: noise that repeats with the window, and attention inside windows (Qiu et al. 2023).

A clip longer than a motion module was trained on stays coherent when its noise is that of one
window, shuffled anew from window to window (section 4.2), and when the temporal attention sees one
window at a time, the results averaged where windows overlap (section 4.1).

C channels, T frames, H W latent size, L frames of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmvideo.diffusion.windows import WindowPlan, Windows

NOISES = ('shuffle_context', 'repeat_context', 'random')


@dataclass(frozen=True)
class FreeNoise:
    """Noise and attention of a long clip.

    Attributes:
        context_length: L.
        context_stride: frames from one window to the next, and frames that are shuffled together.
        weighting_scheme: see ``Windows.fusion``.
        noise_type: ``'shuffle_context'``: the first window's noise, shuffled in groups.
            ``'repeat_context'``: the first window's noise again and again. ``'random'``: noise as
            usual.
    """

    context_length: int = 16
    context_stride: int = 4
    weighting_scheme: str = 'pyramid'
    noise_type: str = 'shuffle_context'

    def plan(self, num_frames: int) -> WindowPlan:
        """The windows that the temporal attention sees; the last one ends with the clip."""
        overlap = self.context_length - self.context_stride
        return Windows(self.context_length, 'static', overlap, fusion=self.weighting_scheme).plan(
            num_frames
        )

    def arranged(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Noise [C, T, H, W] with the frames of the first window again in those after it."""
        if self.noise_type == 'random':
            return noise
        frames = noise.shape[1]
        if self.noise_type == 'repeat_context':
            return noise[:, torch.arange(frames) % self.context_length]
        return noise[:, self._shuffled(frames, generator)]

    def _shuffled(self, frames: int, generator: torch.Generator) -> Tensor:
        """Which drawn frame each frame takes: groups of the frames one window before, shuffled."""
        order = torch.arange(frames)
        for start in range(self.context_length, frames, self.context_stride):
            before = start - self.context_length
            group = before + torch.randperm(self.context_stride, generator=generator)
            end = min(frames, start + self.context_stride)
            order[start:end] = order[group[: end - start]]
        return order

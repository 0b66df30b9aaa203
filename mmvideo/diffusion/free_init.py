"""FreeInit: start again from the low frequencies of a finished clip (Wu et al. 2023).

Noise that a clip was trained from still holds its low frequencies, pure noise does not. So a
finished clip is noised again, its high frequencies are replaced by fresh noise, and it is sampled
once more (section 4, equations 6 to 8).

N batch, C channels, T frames, H W latent size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

METHODS = ('butterworth', 'gaussian', 'ideal')
_AXES = (-3, -2, -1)


@dataclass(frozen=True)
class FreeInit:
    """How often a clip is sampled and what is kept in between.

    Attributes:
        num_iters: how often it is sampled; 1 is sampling as usual.
        method: shape of the filter: ``'butterworth'``, ``'gaussian'`` or ``'ideal'``.
        order: steepness of the Butterworth filter.
        spatial_stop_frequency: 0 to 1 of the highest frequency.
        temporal_stop_frequency: likewise.
        use_fast_sampling: round i of n takes ``i / n`` of the steps, the last one all.
    """

    num_iters: int = 3
    method: str = 'butterworth'
    order: float = 4
    spatial_stop_frequency: float = 0.25
    temporal_stop_frequency: float = 0.25
    use_fast_sampling: bool = False

    def steps(self, num_inference_steps: int) -> list[int]:
        """Steps of each round."""
        if not self.use_fast_sampling:
            return [num_inference_steps] * self.num_iters
        each = num_inference_steps / self.num_iters
        return [max(1, int(each * (i + 1))) for i in range(self.num_iters)]

    def low_pass(self, frames: int, height: int, width: int) -> Tensor:
        """The filter [T, H, W], zero frequency first as ``torch.fft`` has it.

        Distances are from the centre in the form that the released code has, so an odd size is
        filtered half a cell off the centre.
        """
        spatial, temporal = self.spatial_stop_frequency, self.temporal_stop_frequency
        if spatial == 0 or temporal == 0:
            return torch.zeros(frames, height, width)
        axes = [2 * torch.arange(size, dtype=torch.float64) / size - 1
                for size in (frames, height, width)]  # fmt: skip
        along, down, across = torch.meshgrid(*axes, indexing='ij')
        distance = (spatial / temporal * along) ** 2 + down**2 + across**2  # squared
        if self.method == 'butterworth':
            shape = 1 / (1 + (distance / spatial**2) ** self.order)
        elif self.method == 'gaussian':
            shape = torch.exp(-distance / (2 * spatial**2))
        else:
            shape = (distance <= 2 * spatial).double()
        return torch.fft.ifftshift(shape).float()


def replace_high_frequencies(kept: Tensor, fresh: Tensor, low_pass: Tensor) -> Tensor:
    """Low frequencies of ``kept``, high frequencies of ``fresh``; both [N, C, T, H, W].

    ``fresh + F^-1(low_pass * F(kept - fresh))``, one transform each way.
    """
    difference = torch.fft.fftn((kept - fresh).float(), dim=_AXES)
    low = torch.fft.ifftn(difference * low_pass.to(fresh.device), dim=_AXES).real
    assert math.prod(low.shape) == math.prod(fresh.shape)
    return fresh + low.to(fresh)

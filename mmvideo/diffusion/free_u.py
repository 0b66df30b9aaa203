"""FreeU: what a U-Net's backbone and skip connections weigh (Si et al. 2023).

In the two coarsest stages of the way up the first half of the backbone's channels is amplified, and
the lowest frequencies of the skip connections are damped (section 3.2, equations 3 to 5).

N batch, C channels, H W size of the stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FreeU:
    """Factors of the two coarsest stages; as defaults those published for Stable Diffusion 1.5.

    Attributes:
        s1: on the low frequencies of the coarsest stage's skip connections.
        s2: likewise, of the second stage.
        b1: on half the backbone's channels in the coarsest stage.
        b2: likewise, in the second stage.
    """

    s1: float = 0.9
    s2: float = 0.2
    b1: float = 1.5
    b2: float = 1.6

    def __call__(self, stage: int, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Backbone and skip connection, both [N, C, H, W], as ``stage`` should join them.

        Args:
            stage: of the way up, 0 is the coarsest; from 2 on nothing changes.
        """
        if stage > 1:
            return x, skip
        backbone, lows = ((self.b1, self.s1), (self.b2, self.s2))[stage]
        half = x.shape[1] // 2
        x = torch.cat([x[:, :half] * backbone, x[:, half:]], dim=1)
        return x, scale_lows(skip, lows)


def scale_lows(x: Tensor, scale: float) -> Tensor:
    """Multiply the frequencies 0 and -1 along both sides of [N, C, H, W] by ``scale``.

    These are the four cells that the published mask has around its centre. Their share of ``x`` is
    its projection on seven real waves, so no Fourier transform is needed, in any precision.
    """
    waves = _waves(x.shape[-2], x.shape[-1], x.device)  # K H*W
    flat = x.float().flatten(2)
    low = flat @ waves.T @ waves / waves.shape[1]
    return (flat + (scale - 1) * low).to(x.dtype).view_as(x)


def _waves(height: int, width: int, device: torch.device) -> Tensor:
    """Real waves [K, H*W] whose products sum to the mask's kernel.

    With the frequency -1 a wave is ``cos(a - a')`` for two places, which is ``cos cos + sin sin``.
    A side of one pixel has no frequency but 0.
    """
    down = 2 * math.pi * torch.arange(height, device=device) / height
    across = 2 * math.pi * torch.arange(width, device=device) / width
    angles = []
    if height > 1:
        angles.append(down[:, None].expand(height, width))
    if width > 1:
        angles.append(across[None, :].expand(height, width))
    if height > 1 and width > 1:
        angles.append(down[:, None] + across[None, :])
    waves = [torch.ones(height, width, device=device)]
    for angle in angles:
        waves += [angle.cos(), angle.sin()]
    return torch.stack(waves).flatten(1)

"""GroupNorm whose statistics cover one frame or a whole clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scoped_group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    frames_per_group: int = 1,
    silu: bool = False,
) -> Tensor:
    """GroupNorm over channels, height, width and ``frames_per_group`` consecutive frames.

    AnimateDiff v1 and PIA normalise their ResBlocks jointly over a clip; diffusers does so in its
    motion modules; everything else is per frame.

    Args:
        x: [N*T, C, H, W], frames of a clip adjacent; any memory format.
        groups: channel groups G, a divisor of C.
        weight: [C].
        bias: [C].
        eps: added to the variance.
        frames_per_group: 1 for statistics of each frame, T for those of each clip.
        silu: apply ``x * sigmoid(x)`` to the result.

    Returns:
        [N*T, C, H, W].
    """
    if frames_per_group == 1:
        y = F.group_norm(x, groups, weight, bias, eps)
    else:
        y = _clip_norm(x, groups, weight, bias, eps, frames_per_group)
    if not silu:
        return y
    # y is ours alone, but silu's backward reads its input: overwrite only when nothing is recorded
    return F.silu(y, inplace=not torch.is_grad_enabled())


def _clip_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, frames: int
) -> Tensor:
    """One read for the statistics, one read and write to apply them: no permuted copy."""
    clips = x.unflatten(0, (-1, frames))  # N T C H W
    wide = clips if x.dtype in (torch.float32, torch.float64) else clips.float()
    grouped = wide.unflatten(2, (groups, -1))  # N T G C/G H W
    var, mean = torch.var_mean(grouped, dim=(1, 3, 4, 5), correction=0)  # N G
    per_group = x.shape[1] // groups
    scale = torch.rsqrt(var + eps).repeat_interleave(per_group, 1) * weight  # N C
    shift = bias - mean.repeat_interleave(per_group, 1) * scale
    y = torch.addcmul(shift[:, None, :, None, None], wide, scale[:, None, :, None, None])
    return y.flatten(0, 1).to(x.dtype)

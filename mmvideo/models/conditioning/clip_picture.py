"""The picture of an image-to-video model: the size of its clip, and what a CLIP encoder sees.

N batch, C channels, H W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvideo.errors import InputError

# Of CLIP's own training, which its encoders are used with everywhere.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_size(
    picture: tuple[int, int],
    height: int | None,
    width: int | None,
    area: int,
    multiple: int,
) -> tuple[int, int]:
    """Height and width of a clip, where a call does not give both.

    With neither, the clip has the picture's shape and as many pixels as the model was trained on;
    with one, the other follows from the picture. An edge that follows is rounded to the nearest
    multiple; one that is given stays as it is.

    Args:
        picture: its height and width, px.
        height: px, or None.
        width: px, or None.
        area: pixels of a frame in training.
        multiple: px of one cell of the model's coarsest level.

    Raises:
        InputError: the picture is so narrow that an edge would be below ``multiple``.
    """
    if height is not None and width is not None:
        return height, width
    ratio = picture[1] / picture[0]
    if height is not None:
        edges = (height, _rounded(height * ratio, multiple))
    elif width is not None:
        edges = (_rounded(width / ratio, multiple), width)
    else:
        tall = math.sqrt(area / ratio)
        edges = (_rounded(tall, multiple), _rounded(tall * ratio, multiple))
    if min(edges) < multiple or max(edges) > area // multiple:
        raise InputError(
            f'image is {picture[1]}x{picture[0]} px, too narrow: its clip would have '
            f'{edges[1]}x{edges[0]} px. Crop it, or give height and width.'
        )
    return edges


def clip_input(pictures: Tensor, size: int) -> Tensor:
    """Pictures as SVD shows them to its CLIP encoder: blurred, resized whole, normalised.

    Nothing is cropped. The blur keeps the bicubic resizing from aliasing (Stability-AI
    generative-models, sgm/modules/encoders/modules.py, after kornia's resize with antialias).

    Args:
        pictures: [N, 3, H, W] in [-1, 1].
        size: px along both sides of the encoder's input.

    Returns:
        [N, 3, size, size].
    """
    x = pictures.float()
    for dim in (3, 2):
        x = _blurred(x, dim, x.shape[dim] / size)
    x = F.interpolate(x, (size, size), mode='bicubic', align_corners=True)
    mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return ((x + 1) / 2 - mean) / std


def _blurred(x: Tensor, dim: int, factor: float) -> Tensor:
    """Gaussian blur along one side, for shrinking it by ``factor``; mirrored at the edges."""
    sigma = max((factor - 1) / 2, 0.001)
    length = int(max(4 * sigma, 3)) | 1  # odd
    place = torch.arange(length, dtype=x.dtype, device=x.device) - length // 2
    kernel = (-place.square() / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    rows = x.movedim(dim, -1)
    flat = F.pad(rows.flatten(0, -2)[:, None], (length // 2,) * 2, mode='reflect')
    return F.conv1d(flat, kernel.view(1, 1, -1))[:, 0].view(rows.shape).movedim(-1, dim)


def _rounded(edge: float, multiple: int) -> int:
    return round(edge / multiple) * multiple

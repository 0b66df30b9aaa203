"""I2VGen-XL's three views of the picture: pixels for the VAE, pixels for CLIP, latents over time.

Source: ali-vilab/VGen, utils/transforms.py and tools/inferences/inference_i2vgen_entrance.py.

N batch, T frames, C channels, H W pixels, h w latent size, S side of what CLIP sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmvideo.models.conditioning.image import covering_size

if TYPE_CHECKING:
    from PIL import Image


def cover(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale a picture until it covers a size, then cut its middle out.

    Each new pixel is the mean of those that it stands for (BOX), and sizes are cut to whole
    numbers, as in the official code. Where rounding leaves that a pixel short, which the official
    code fills with black, it is scaled to the size.
    """
    from PIL import Image

    across, down = covering_size(picture.size, width, height)
    picture = picture.resize((across, down), Image.Resampling.BOX)
    left, top = (across - width) // 2, (down - height) // 2
    return picture.crop((left, top, left + width, top + height))


def frame_pixels(picture: Image.Image, height: int, width: int) -> Tensor:
    """An RGB picture as the VAE takes it, float32 [3, H, W] in [-1, 1]."""
    return _pixels(cover(picture, width, height)).div_(127.5).sub_(1.0)


def clip_pixels(picture: Image.Image, width: int, processor: Any) -> Tensor:
    """An RGB picture as CLIP takes it, float32 [3, S, S]: its middle square.

    Args:
        picture: of any size.
        width: of the video: the square is brought to this size first.
        processor: a ``CLIPImageProcessor``, for S, mean and deviation.
    """
    from PIL import Image

    size = (processor.crop_size['width'], processor.crop_size['height'])
    seen = cover(picture, width, width).resize(size, Image.Resampling.BILINEAR)
    mean, deviation = (
        torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std)
    )
    return (_pixels(seen).div_(255) - mean) / deviation


def picture_over_time(latent: Tensor, frames: int) -> Tensor:
    """The picture's latent as the first frame, then each frame's place in the clip.

    Args:
        latent: [N, C, h, w], scaled.
        frames: T.

    Returns:
        [N, C, T, h, w]: frame k > 0 is k / (T - 1) everywhere.
    """
    places = torch.linspace(0, 1, frames, device=latent.device, dtype=latent.dtype)[1:]
    later = places.view(1, 1, -1, 1, 1).expand(*latent.shape[:2], -1, *latent.shape[2:])
    return torch.cat([latent.unsqueeze(2), later], dim=2)


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()

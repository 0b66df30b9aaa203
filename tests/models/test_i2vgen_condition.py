"""I2VGen-XL's views of a picture: what is scaled, cut and normalised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmvideo.errors import InputError
from mmvideo.models.conditioning.i2vgen import (
    clip_pixels,
    cover,
    frame_pixels,
    picture_over_time,
)
from mmvideo.models.conditioning.image import check_cover
from mmvideo.registry import MODELS


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(1, 255, width)[None]
    pixels[..., 1] = np.linspace(1, 255, height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize('size', [(64, 32), (32, 64), (48, 48), (1, 1), (7, 5), (200, 20)])
@pytest.mark.parametrize('target', [(24, 16), (16, 24), (24, 24)])
def test_the_middle_is_kept_and_covers(size, target):
    pixels = np.asarray(cover(gradient(*size), *target)).astype(float)
    assert pixels.shape == (target[1], target[0], 3)
    assert pixels[..., :2].min() > 0  # no black line where the picture is a pixel short
    whole = np.asarray(gradient(*size)).astype(float)
    if min(size) > 1:
        for channel in (0, 1):
            middle = pixels[..., channel].mean()
            assert abs(middle - whole[..., channel].mean()) < 14


def test_a_picture_that_is_a_pixel_short_has_no_black_line():
    white = Image.new('RGB', (40, 20), 'white')
    assert 20 // (20 / 24) == 23  # what the official code scales its height to
    assert np.asarray(cover(white, 24, 24)).min() == 255


def test_pixels_of_frames():
    pixels = frame_pixels(Image.new('RGB', (10, 10), (0, 255, 51)), 16, 24)
    assert pixels.shape == (3, 16, 24) and pixels.dtype == torch.float32
    assert pixels[:, 3, 4].tolist() == pytest.approx([-1, 1, -0.6], abs=1e-6)


def test_pixels_for_clip():
    processor = MODELS.build(dict(type='CLIPImageProcessor', image_size=12))
    picture = gradient(60, 30)
    pixels = clip_pixels(picture, 24, processor)
    assert pixels.shape == (3, 12, 12)
    mean, deviation = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    shown = pixels * deviation.view(3, 1, 1) + mean.view(3, 1, 1)
    left, right = float(shown[0, :, 0].mean()), float(shown[0, :, -1].mean())
    assert abs(left - 0.25) < 0.06 and abs(right - 0.75) < 0.06  # the sides are cut off
    assert float(shown[1, 0].mean()) < 0.1 and float(shown[1, -1].mean()) > 0.9
    assert float(shown[2].abs().max()) < 1e-6


def test_a_hair_of_a_picture_is_refused():
    with pytest.raises(InputError, match=r'a\.png is 9000x3 px, too narrow: to cover 1280x704'):
        check_cover((9000, 3), 1280, 704, 'a.png')
    check_cover((1920, 1080), 1280, 704)
    check_cover((1, 1), 1280, 1280)


@pytest.mark.parametrize('frames', [1, 2, 5])
def test_places_in_the_clip(frames):
    latent = torch.randn(2, 4, 3, 5)
    over_time = picture_over_time(latent, frames)
    assert over_time.shape == (2, 4, frames, 3, 5)
    assert torch.equal(over_time[:, :, 0], latent)
    for k in range(1, frames):
        place = torch.full_like(latent, k / (frames - 1))
        assert torch.allclose(over_time[:, :, k], place, atol=1e-7)

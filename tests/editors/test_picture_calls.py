"""Pictures and numbers given to the models that animate a picture, asked of the config alone.

What can be animated is, whatever its kind; what cannot is refused with the argument's name, before
any weight is read: ``check`` sees a config and the arguments, and the parts have no weights here.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine import Config
from PIL import Image

from mmvideo.editors import I2VGenXL, StableVideoDiffusion
from mmvideo.errors import InputError

TESTS = Path(__file__).parents[1]
FAMILIES = {
    'svd': (StableVideoDiffusion, TESTS / 'apis' / 'tiny_svd.py', {}),
    'i2vgen': (I2VGenXL, TESTS / 'editors' / 'tiny_i2vgen.py', {'prompt': 'a red fish'}),
}
LIMIT = 5  # seconds


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def saved(folder: Path, picture: Image.Image) -> str:
    picture.save(folder / 'picture.png')
    return str(folder / 'picture.png')


def sixteen_bit() -> Image.Image:
    ramp = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(64, 48)
    return Image.fromarray(ramp)


def check(family: str, **arguments: Any) -> float:
    """Seconds of processor time that the check took."""
    kind, path, usual = FAMILIES[family]
    start = time.process_time()
    kind.check(Config.fromfile(path).model.to_dict(), {**usual, 'height': 32, 'width': 32,
                                                       'seed': 0, **arguments})  # fmt: skip
    return time.process_time() - start


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize(
    'picture',
    [
        pytest.param(Image.fromarray(pixels(40, 48, 4), 'RGBA'), id='alpha'),
        pytest.param(Image.fromarray(pixels(40, 48)).convert('P'), id='palette'),
        pytest.param(Image.fromarray(pixels(40, 48)).convert('L'), id='grey'),
        pytest.param(Image.fromarray(pixels(40, 48)).convert('LA'), id='grey-with-alpha'),
        pytest.param(sixteen_bit(), id='16-bit'),
        pytest.param(Image.fromarray(pixels(2000, 10000)), id='10000-px-wide'),
        pytest.param(Image.fromarray(pixels(10000, 40)), id='10000-px-tall-and-narrow'),
    ],
)
def test_pictures_of_every_kind_are_taken(
    family: str, picture: Image.Image, tmp_path: Path
) -> None:
    assert check(family, image=saved(tmp_path, picture)) < LIMIT


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize(
    ('size', 'message'),
    [((1, 1), 'is 1x1 px: expected at least 2x2'), ((10000, 1), 'is 10000x1 px'),
     ((10000, 5001), 'has 10000x5001 px, more than 50 megapixels')],
)  # fmt: skip
def test_pictures_that_cannot_be_animated_are_refused(
    family: str, size: tuple[int, int], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, Image.new('RGB', size))
    start = time.process_time()
    with pytest.raises(InputError, match=message):
        check(family, image=path)
    assert time.process_time() - start < LIMIT


# Of the published size, where nothing but numbers is read.
LEVELS = (8, 8, 8, 8)
FULL = {
    'svd': dict(
        vae=dict(type='AutoencoderKLTemporalDecoder', block_out_channels=LEVELS),
        unet=dict(type='VideoUNet', sample_size=96, block_out_channels=LEVELS, num_frames=14),
    ),
    'i2vgen': dict(
        vae=dict(type='AutoencoderKL', block_out_channels=LEVELS),
        unet=dict(type='VideoUNet', sample_size=32, block_out_channels=LEVELS),
    ),
}


@pytest.mark.parametrize('family', FULL)
@pytest.mark.parametrize('size', [(10000, 8), (8, 10000)])
def test_a_hair_is_not_made_huge_before_it_is_cut(family: str, size: tuple[int, int]) -> None:
    kind, _, usual = FAMILIES[family]
    hair, call = Image.new('RGB', size), {**usual, 'height': 576, 'width': 1024}
    start = time.process_time()
    message = f'image is {size[0]}x{size[1]} px, too narrow: to cover 1024x.* Crop it first'
    with pytest.raises(InputError, match=message):
        kind.check(FULL[family], dict(call, image=hair))
    assert time.process_time() - start < LIMIT
    kind.check(FULL[family], dict(call, image=Image.new('RGB', (1920, 1080))))


SVD = [
    (dict(video_length=0), 'num_frames=0'),
    (dict(decode_chunk_size=0), 'decode_chunk_size=0'),
    (dict(fps=0), 'fps=0: expected'),
    (dict(prompt='a fish'), 'takes no text'),
    (dict(negative_prompt='blurry'), 'takes no text'),
    (dict(motion_bucket_id=300), 'motion_bucket_id=300'),
    (dict(width=30.5), 'width=30.5'),
    (dict(num_videos_per_prompt=0), 'num_videos_per_prompt=0'),
]
I2VGEN = [
    (dict(video_length=0), 'num_frames=0'),
    (dict(decode_chunk_size=0), 'decode_chunk_size=0'),
    (dict(target_fps=0), 'target_fps=0'),
    (dict(target_fps=7.5), 'target_fps=7.5: expected an integer'),
    (dict(prompt=None), 'prompt'),
    (dict(clip_skip=9), 'clip_skip=9'),
    (dict(height=0), 'height=0'),
    (dict(num_videos_per_prompt=0), 'num_videos_per_prompt=0'),
]


@pytest.mark.parametrize(
    ('family', 'arguments', 'message'),
    [*(('svd', *case) for case in SVD), *(('i2vgen', *case) for case in I2VGEN)],
)
def test_numbers_that_cannot_be_are_refused(family: str, arguments: dict, message: str) -> None:
    picture = Image.fromarray(pixels(40, 48))
    with pytest.raises(InputError, match=message):
        check(family, image=picture, **arguments)


def test_clips_have_no_longest_length_here() -> None:
    """Neither family has positions that end: a clip of 1000 frames is a matter of memory."""
    picture = Image.fromarray(pixels(40, 48))
    check('svd', image=picture, video_length=1000)
    check('i2vgen', image=picture, video_length=1000)

"""Condition pictures: from what a user has to what an encoder takes.

C channels, H W pixels.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmvideo.errors import InputError, nearest_beside
from mmvideo.shipped import is_shipped, shipped_path

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF')
LONG_EDGE = 512
MAX_PIXELS = 50_000_000
# What Pillow's decoders and tag readers were seen to raise on damaged files.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error),
    *(TypeError, KeyError, IndexError),
)


def prepare_condition_image(
    image: str | Path | Image.Image | np.ndarray | Tensor,
    height: int | None = None,
    width: int | None = None,
    multiple: int = 8,
) -> Tensor:
    """A picture as PIA takes it, float32 [3, H, W] in [-1, 1].

    Without a size, as the official code does it (open-mmlab/PIA animatediff/utils/util.py): the
    long edge is brought down to 512 where it is longer, never up, then both edges are resized down
    to a multiple; both steps bicubic. With a size, the picture is scaled to cover it and cut at the
    centre, so nothing is distorted. With one edge, the other follows from the picture.

    A camera's orientation tag is applied. Transparent pictures lie on white; the first frame of
    animations and the first page of TIFFs is taken; 16 bit become 8.

    Args:
        image: path of a png, jpeg, webp, bmp, gif or tiff, or ``package://PATH``; PIL image; array
            [H, W] or [H, W, 1 | 3 | 4] of uint8, uint16 or float in [0, 1]; tensor
            [1 | 3 | 4, H, W] of the same.
        height: px, a multiple of ``multiple``.
        width: px, likewise.
        multiple: pixels of one latent.

    Raises:
        InputError: naming the picture and what is wrong with it.
    """
    for name, value in (('height', height), ('width', width)):
        _check_edge(name, value, multiple)
    name = str(image) if isinstance(image, (str, Path)) else 'image'
    picture = open_rgb(image, name)
    if min(picture.size) < multiple:
        raise InputError(
            f'{name} is {picture.width}x{picture.height} px: expected at least '
            f'{multiple}x{multiple}.'
        )
    if height is None and width is None:
        picture = _official_size(picture, multiple, name)
    else:
        edges = _both_edges(picture, height, width, multiple)
        check_cover(picture.size, *edges, name)
        picture = _covering(picture, *edges)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return pixels.float().div_(127.5).sub_(1.0)


def check_cover(size: tuple[int, int], width: int, height: int, name: str = 'image') -> None:
    """Refuse a picture so narrow that it would become huge before it is cut.

    Args:
        size: width and height of the picture.
        width: of what it shall cover, in pixels.
        height: likewise.
        name: of the picture, for the message.

    Raises:
        InputError: naming both sizes.
    """
    across, down = covering_size(size, width, height)
    if across * down > MAX_PIXELS:
        raise InputError(
            f'{name} is {size[0]}x{size[1]} px, too narrow: to cover {width}x{height} px it would '
            f'be scaled to {across}x{down}. Crop it first.'
        )


def covering_size(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture scaled until it covers ``width`` x ``height``, cut to whole
    numbers."""
    scale = min(size[0] / width, size[1] / height)
    return max(width, int(size[0] // scale)), max(height, int(size[1] // scale))


def open_rgb(
    image: str | Path | Image.Image | np.ndarray | Tensor, name: str = 'image'
) -> Image.Image:
    """What ``prepare_condition_image`` takes as an 8-bit RGB picture of its own size.

    Args:
        image: see there.
        name: what it is called in messages.

    Raises:
        InputError: naming the picture and what is wrong with it.
    """
    return to_rgb(_opened(image, name), name)


def to_rgb(image: Image.Image, name: str = 'image') -> Image.Image:
    """A picture of any mode as 8-bit RGB: alpha over white, 16-bit grey scaled to 8.

    Raises:
        InputError: the pixels are damaged, or of a kind that has no such meaning.
    """
    from PIL import Image

    image = _decoded(image, name)
    if image.mode.startswith('I'):
        image = _from_16_bit(np.asarray(image), name)
    elif image.mode == 'F':
        raise InputError(f'{name} holds floating-point pixels: save it with 8 bit.')
    try:
        if image.has_transparency_data:
            image = image.convert('RGBA')
            image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
        return image.convert('RGB')
    except ValueError as error:  # such as LAB
        raise InputError(f'{name} cannot become RGB ({error}): save it as RGB.') from error


def _decoded(image: Image.Image, name: str) -> Image.Image:
    """The first frame's pixels, turned as the camera was held."""
    from PIL import ImageOps

    try:
        image.seek(0)
        image.load()
        return ImageOps.exif_transpose(image)
    except _DAMAGE as error:
        raise InputError(f'{name} is damaged and cannot be decoded: {error}') from error


def _opened(image: Any, name: str) -> Image.Image:
    from PIL import Image

    if isinstance(image, (str, Path)):
        return _from_file(image)
    if isinstance(image, Tensor):
        return _from_array(_channels_last(image, name), name)
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    if not isinstance(image, Image.Image):
        raise InputError(
            f'image is a {type(image).__name__}: expected a path, PIL image, array or tensor.'
        )
    _check_pixels(image.size, name)
    # The caller's picture may be an open animation; its position stays as it is.
    return image.copy()


def _from_file(path: str | Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    text = str(path)
    path = shipped_path(text) if is_shipped(text) else Path(path).expanduser()
    if '://' in text and not is_shipped(text):
        raise InputError(f'{text} is no file: download the picture and give its path.')
    if not path.is_file():
        raise InputError(_absent(path))
    if path.stat().st_size == 0:
        raise InputError(f'{path} is empty (0 bytes).')
    known = ', '.join(name.lower() for name in FORMATS)
    try:
        image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise InputError(f'{path} is no picture of a known format ({known}).') from None
    except Image.DecompressionBombError as error:
        raise InputError(f'{path} is too large: {error}') from None
    except _DAMAGE as error:
        raise InputError(f'{path} cannot be read: {error}') from error
    _check_pixels(image.size, str(path))
    return image


def _absent(path: Path) -> str:
    if path.is_dir():
        return f'{path} is a folder: expected a picture.'
    return f'{path} does not exist.{nearest_beside(path)}'


def _check_pixels(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise InputError(
            f'{name} has {width}x{height} px, more than {MAX_PIXELS // 10**6} megapixels: '
            'scale it down first.'
        )


def _channels_last(image: Tensor, name: str) -> np.ndarray:
    if image.ndim == 3:
        image = image.permute(1, 2, 0)
    elif image.ndim != 2:
        raise InputError(f'{name} is a tensor {list(image.shape)}: expected [3, H, W].')
    image = image.detach().cpu()
    return (image.float() if image.is_floating_point() else image).numpy()


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    from PIL import Image

    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(
            f'{name} has the shape {list(array.shape)} (height, width, channels): expected 1, 3 or '
            '4 channels.'
        )
    if 0 in array.shape:
        raise InputError(f'{name} has no pixels: its shape is {list(array.shape)}.')
    _check_pixels((array.shape[1], array.shape[0]), name)
    return Image.fromarray(np.ascontiguousarray(_as_bytes(array, name)))


def _as_bytes(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return _halved(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f'{name} is of {array.dtype}: expected uint8, uint16 or float in [0, 1].')
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also where either is NaN
        raise InputError(f'{name} has values from {low:g} to {high:g}: expected floats in [0, 1].')
    return np.rint(array * 255).astype(np.uint8)


def _from_16_bit(array: np.ndarray, name: str) -> Image.Image:
    """Pillow's own conversion of 16-bit grey cuts at 255, which makes most pictures white."""
    from PIL import Image

    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise InputError(f'{name} has grey values from {low} to {high}: expected 16 bit at most.')
    return Image.fromarray(_halved(array))


def _halved(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _official_size(image: Image.Image, multiple: int, name: str) -> Image.Image:
    width, height = image.size
    # The product is cut, not rounded, as in the official code: 561 px become 511, then 504.
    scale = min(1.0, LONG_EDGE / max(width, height))
    width, height = int(width * scale), int(height * scale)
    if min(width, height) < multiple:
        raise InputError(
            f'{name} is too narrow: scaled to {width}x{height} px, an edge is below {multiple}. '
            'Crop it, or give height and width.'
        )
    image = _resized(image, width, height)
    return _resized(image, width // multiple * multiple, height // multiple * multiple)


def _covering(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = max(width / image.width, height / image.height)
    across, down = round(image.width * scale), round(image.height * scale)
    image = _resized(image, max(width, across), max(height, down))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _both_edges(
    image: Image.Image, height: int | None, width: int | None, multiple: int
) -> tuple[int, int]:
    if width is None:
        assert height is not None
        width = height * image.width // image.height
        width = max(multiple, width // multiple * multiple)
    if height is None:
        height = max(multiple, width * image.height // image.width // multiple * multiple)
    return width, height


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image

    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _check_edge(name: str, value: int | None, multiple: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f'{name}={value!r}: expected an integer, a multiple of {multiple}.')
    if value < multiple or value % multiple:
        near = max(multiple, round(value / multiple) * multiple)
        raise InputError(f'{name}={value}: expected a multiple of {multiple}, such as {near}.')

"""Pictures that a video was made from, inside its recipe.

A picture file of at most ``EMBED_LIMIT`` bytes is kept as it is; of a larger one the picture as it
was prepared for the model, which prepares to itself; and where that is too large as well, the
file's path and sha256.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mmvideo.errors import InputError
from mmvideo.shipped import is_shipped, shipped_path

EMBED_LIMIT = 2**20


def find_image(image: Any, folder: Path) -> Any:
    """``image`` with the path of a config made absolute: relative to its folder, or
    ``package://PATH`` among the weights that mmvideo ships; of a list each."""
    if isinstance(image, list | tuple):
        return [find_image(entry, folder) for entry in image]
    if not isinstance(image, str):
        return image
    if is_shipped(image):
        return str(shipped_path(image))
    path = Path(image).expanduser()
    return str(path if path.is_absolute() else folder / path)


def pack_images(image: Any, prepare: Callable[[Any], torch.Tensor]) -> Any:
    """A picture as an entry of a recipe, or those of a clip with several; see ``pack_image``."""
    if isinstance(image, list | tuple):
        return [pack_image(entry, prepare) for entry in image]
    return pack_image(image, prepare)


def pack_image(image: Any, prepare: Callable[[Any], torch.Tensor]) -> dict[str, Any]:
    """A picture as an entry of a recipe.

    Args:
        image: what the editor got: a path, or any picture that ``prepare`` takes.
        prepare: picture to float [3, H, W] in [-1, 1], multiples of 1/127.5.
    """
    if isinstance(image, dict):  # comes from a recipe already
        return image
    if isinstance(image, str | Path):
        content = Path(image).expanduser().read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entry = {'name': Path(image).name, 'sha256': digest}
        if len(content) <= EMBED_LIMIT:
            return {**entry, 'data': _base64(content)}
    else:
        entry = {'name': 'image.png'}
    prepared = _png(prepare(image))
    if len(prepared) <= EMBED_LIMIT:
        name = f'{Path(entry["name"]).stem}.png'
        return as_entry(name, prepared)
    if 'sha256' not in entry:
        raise InputError(
            f'image: as a picture file it has {len(prepared)} bytes, more than a recipe holds '
            f'({EMBED_LIMIT}); write it to a file and give its path.'
        )
    return {**entry, 'path': str(Path(image).expanduser().absolute())}


@contextlib.contextmanager
def unpacked(image: Any) -> Iterator[Any]:
    """``image`` for the editor: an entry of a recipe becomes the path of a file, of a list each.

    Raises:
        InputError: the entry is damaged, or the file that it names has changed.
    """
    if isinstance(image, list | tuple):
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(unpacked(entry)) for entry in image]
    elif not isinstance(image, dict):
        yield image
    elif 'data' in image:
        content = content_of(image)
        with tempfile.TemporaryDirectory(prefix='mmvideo-') as folder:
            path = Path(folder) / 'image'
            path.write_bytes(content)
            yield str(path)
    else:
        yield same_file(image)


def check_entry(image: Mapping[str, Any], where: str = 'recipe') -> None:
    """Raise InputError if an entry of a recipe is no picture of ``pack_image``."""
    kinds = {'name': str, 'sha256': str, 'data': str, 'path': str}
    known = all(isinstance(image[key], kinds[key]) for key in image if key in kinds)
    if not known or set(image) - set(kinds) or not {'name', 'sha256'} <= set(image):
        raise InputError(f'{where}: the picture in it is damaged.')
    if 'data' in image:
        content_of(image)


def as_entry(name: str, content: bytes) -> dict[str, Any]:
    """A file's content as an entry of a recipe."""
    digest = hashlib.sha256(content).hexdigest()
    return {'name': name, 'sha256': digest, 'data': _base64(content)}


def content_of(image: Mapping[str, Any]) -> bytes:
    """The file that an entry of a recipe holds.

    Raises:
        InputError: it is damaged.
    """
    try:
        content = base64.b64decode(image['data'], validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise InputError('the picture in the recipe is damaged: it is no base64.') from None
    if hashlib.sha256(content).hexdigest() != image['sha256']:
        raise InputError('the picture in the recipe is damaged: its sha256 differs.')
    return content


def same_file(image: Mapping[str, Any], flag: str = '--image') -> str:
    """The path of the file that an entry of a recipe only names.

    Raises:
        InputError: it is not there or has changed; ``flag`` gives another.
    """
    path = Path(image.get('path', ''))
    if not path.is_file():
        raise InputError(
            f'{path}: the picture of the recipe was too large to keep in it and is not there; '
            f'give it with {flag}.'
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != image['sha256']:
        raise InputError(f'{path} has changed since the recipe was made; give it with {flag}.')
    return str(path)


def _png(prepared: torch.Tensor) -> bytes:
    from PIL import Image

    pixels = prepared.detach().cpu().add(1).mul(127.5).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, format='PNG')
    return buffer.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode('ascii')

"""Pictures of IP-Adapters, and clips, on their way through recipes.

In a recipe each picture, mask or file of embeddings is an entry of ``mmvideo.apis.images``. What
stands there more than once (a picture of many frames) has its content once; later entries name its
sha256. Files beyond the room of a recipe are named by path and sha256.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvideo.apis.images import (
    EMBED_LIMIT,
    as_entry,
    check_entry,
    content_of,
    find_image,
    same_file,
)
from mmvideo.errors import InputError
from mmvideo.models.conditioning.clip import SUFFIXES, pictures_of
from mmvideo.models.conditioning.image import open_rgb
from mmvideo.models.conditioning.image_prompt import PER_FRAME

if TYPE_CHECKING:
    from PIL import Image

CLIPS = ('video', 'control_videos')
NAMES = ('ip_adapter_image', 'ip_adapter_masks', 'ip_adapter_image_embeds', *CLIPS)
_FLAGS = {'video': '--video', 'control_videos': '--control-video'}
ROOM = 4 * 2**20  # bytes of all pictures in a recipe


def find_prompts(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The arguments with paths of a config made absolute, see ``find_image``."""
    return _mapped(arguments, lambda _, value: find_image(value, folder))


def pack_prompts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with every picture as an entry of a recipe.

    Raises:
        InputError: a file that is not there, or what no recipe can hold.
    """
    seen: set[str] = set()
    room = ROOM

    def pack(name: str, value: Any) -> Any:
        nonlocal room
        if value is None or _is_entry(value):
            return value
        file = Path(value).expanduser() if isinstance(value, (str, Path)) else None
        if file is not None and name in CLIPS and file.is_dir():
            return [pack(name, picture) for picture in pictures_of(file)]
        content = _encoded(name, value) if file is None else _read(name, file)
        entry = as_entry('picture.png' if file is None else file.name, content)
        if entry['sha256'] in seen:
            return {key: entry[key] for key in ('name', 'sha256')}
        seen.add(entry['sha256'])
        if len(content) <= min(room, EMBED_LIMIT):
            room -= len(content)
            return entry
        if file is None:
            raise InputError(
                f'{name}: a picture has {len(content)} bytes as a file, more than a recipe has '
                f'room for ({min(room, EMBED_LIMIT)}); write it to a file and give its path.'
            )
        del entry['data']
        return {**entry, 'path': str(file.absolute())}

    return _mapped(_without_arrays(arguments), pack)


@contextlib.contextmanager
def unpacked_prompts(arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments for the editor: entries of a recipe become paths of files.

    Raises:
        InputError: an entry is damaged, or the file that it names has changed.
    """
    entries: dict[str, tuple[str, dict[str, Any]]] = {}

    def collect(name: str, value: Any) -> None:
        if _is_entry(value):
            check_entry(value, name)
            if set(value) & {'data', 'path'}:
                entries[value['sha256']] = (name, value)

    _mapped(arguments, collect)
    with tempfile.TemporaryDirectory(prefix='mmvideo-') as folder:
        files = {digest: _file_of(*entry, Path(folder)) for digest, entry in entries.items()}

        def unpack(name: str, value: Any) -> Any:
            if not _is_entry(value):
                return value
            if value['sha256'] not in files:
                raise InputError(f'{name}: the recipe lacks the picture {value["name"]!r}.')
            return files[value['sha256']]

        yield _mapped(arguments, unpack)


def _mapped(arguments: Mapping[str, Any], function: Callable[[str, Any], Any]) -> dict[str, Any]:
    """``function(argument, leaf)`` for every picture, in the same lists."""

    def walk(name: str, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [walk(name, entry) for entry in value]
        if isinstance(value, Mapping) and PER_FRAME in value:
            return {**value, PER_FRAME: walk(name, value[PER_FRAME])}
        if isinstance(value, Mapping) and name in CLIPS and 'clip' in value:
            return {**value, 'clip': walk(name, value['clip'])}
        return function(name, value)

    changed = {name: walk(name, arguments[name]) for name in NAMES if name in arguments}
    return {**arguments, **changed}


def _file_of(name: str, entry: Mapping[str, Any], folder: Path) -> str:
    if 'data' not in entry:
        return same_file(entry, _FLAGS.get(name, '--ip-adapter-image'))
    content = content_of(entry)
    # A clip is opened as what its name says it is.
    suffix = Path(entry['name']).suffix.lower()
    path = folder / f'{entry["sha256"]}{suffix if suffix in SUFFIXES else ""}'
    path.write_bytes(content)
    return str(path)


def _is_entry(value: Any) -> bool:
    return isinstance(value, Mapping) and 'sha256' in value


def _without_arrays(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Clips, and masks of several frames or pictures, in one array as lists of pictures."""

    def split(name: str, value: Any) -> Any:
        dims = getattr(value, 'ndim', 0)
        if name in CLIPS and dims == 4:
            return list(value)
        if name != 'ip_adapter_masks' or dims not in (3, 4):
            return value
        if dims == 4:
            return [split(name, mask) for mask in value[0]]
        return value[0] if len(value) == 1 else {PER_FRAME: list(value)}

    return _mapped(arguments, split)


def _read(name: str, file: Path) -> bytes:
    if not file.is_file():
        open_rgb(file, str(file))  # says what there is
        raise InputError(f'{name}: {file} is no file.')
    return file.read_bytes()


def _encoded(name: str, value: Any) -> bytes:
    """A picture in memory as the bytes of a png that gives back the same."""
    if name == 'ip_adapter_image_embeds':
        raise InputError(
            f'{name} is a {type(value).__name__}, which no recipe can hold; write it to a '
            'safetensors file and give its path.'
        )
    picture = _mask(value) if name == 'ip_adapter_masks' else open_rgb(value, name)
    buffer = io.BytesIO()
    picture.save(buffer, format='PNG')
    return buffer.getvalue()


def _mask(value: Any) -> Image.Image:
    from PIL import Image

    if not hasattr(value, 'ndim'):
        return open_rgb(value, 'ip_adapter_masks')
    values = np.asarray(value)
    grey = values if values.dtype == np.uint8 else np.asarray(values, np.float32) * 255
    if grey.ndim != 2 or not np.array_equal(grey, np.rint(grey)) or not _in_bytes(grey):
        raise InputError(
            'ip_adapter_masks: a mask that a recipe can hold has 256 levels of grey, [height, '
            'width] from 0 to 1; write others to a picture file and give its path.'
        )
    return Image.fromarray(grey.astype(np.uint8))


def _in_bytes(grey: np.ndarray) -> bool:
    return grey.size > 0 and float(grey.min()) >= 0 and float(grey.max()) <= 255

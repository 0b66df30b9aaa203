"""The recipe of a video: everything that is needed to make it again, inside the video itself.

A recipe is plain JSON data in the container comment of an mp4, the comment extension of a gif, the
EXIF UserComment of a webp or an iTXt chunk of a png. Reading one never runs code: it is parsed
with limits, its structure is checked here, and its config by ``mmvideo.config.recipe_to_config``.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmvideo.errors import InputError, WeightsError, nearest, nearest_beside
from mmvideo.media.encoders import PNG_KEY

FORMAT = 'mmvideo recipe 1'
SIZE_LIMIT = 8 * 2**20  # characters of JSON
DEPTH_LIMIT = 32
MEDIA = ('.mp4', '.gif', '.webp', '.png')
PACKAGES = ('mmvideo', 'torch', 'diffusers', 'transformers', 'numpy', 'av')
# What a recipe must have, and of which type.
SECTIONS: dict[str, type] = {
    'format': str,
    'name': str,
    'config': dict,
    'arguments': dict,
    'fps': (int, float),  # type: ignore[dict-item]
    'weights': list,
    'machine': dict,
    'versions': dict,
}


def make_recipe(
    name: str,
    config: Mapping[str, Any],
    arguments: Mapping[str, Any],
    fps: float,
    weights: Iterable[Mapping[str, Any]],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The recipe of one video, as plain data.

    Args:
        name: name of the config, of which default file names are made.
        config: the resolved config; only its ``model`` matters and is kept.
        arguments: every argument of the editor's ``infer``, images through ``pack_image``.
        weights: ``dict(name, size, sha256)`` of each weight file.
        machine: device, dtype and the number of threads.

    Raises:
        InputError: naming a value that JSON cannot hold.
    """
    return dict(
        format=FORMAT,
        name=name,
        config=plain({'model': config['model']}, 'config'),
        arguments=plain(arguments, 'arguments'),
        fps=fps,
        weights=plain(list(weights), 'weights'),
        machine=plain(machine, 'machine'),
        versions=versions(),
    )


def plain(value: Any, where: str) -> Any:
    """``value`` as JSON data: dicts, lists, strings, finite numbers, booleans, None.

    Raises:
        InputError: naming the place of anything else.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(entry, f'{where}.{key}') for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f'{where}[{index}]') for index, entry in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    raise InputError(
        f'{where} is {value!r:.60}, which no recipe can hold; expected text, finite numbers, '
        'lists and dicts.'
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that have a part in the result."""
    from importlib import metadata

    from mmvideo.version import __version__

    found = {'python': platform.python_version(), 'mmvideo': __version__}
    for package in PACKAGES[1:]:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = 'not installed'
    return found


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """``recipe`` as ASCII JSON: other characters are escaped, which every container survives.

    Raises:
        InputError: when it is longer than a reader would accept.
    """
    text = json.dumps(recipe, ensure_ascii=True, allow_nan=False, separators=(',', ':'))
    if len(text) > SIZE_LIMIT:
        raise InputError(
            f'the recipe has {len(text)} characters; at most {SIZE_LIMIT} fit into a file. '
            'Shorten the prompt or give a smaller image.'
        )
    return text


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe in a file that mmvideo wrote.

    Raises:
        InputError: no such file, not one of the formats, no recipe in it, or a damaged one.
    """
    path = Path(path)
    if path.suffix.lower() not in MEDIA:
        hint = nearest(path.suffix, MEDIA)
        raise InputError(f'{path}: a recipe lies in a file of {", ".join(MEDIA)}.{hint}')
    if not path.is_file():
        raise InputError(f'{path}: there is no such file.{nearest_beside(path)}')
    text = _mp4_text(path) if path.suffix.lower() == '.mp4' else _picture_text(path)
    if not text:
        raise InputError(
            f'{path} holds no recipe: it was not written by mmvideo, or another program '
            'rewrote it without its metadata.'
        )
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str) -> dict[str, Any]:
    """A checked recipe from its JSON.

    Raises:
        InputError: too long, not JSON, too deep, or not a recipe.
    """
    if len(text) > SIZE_LIMIT:
        raise InputError(f'{where}: a recipe of {len(text)} characters; at most {SIZE_LIMIT}.')
    try:
        recipe = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{where}: the recipe in it is damaged ({error}).') from None
    if not isinstance(recipe, dict) or recipe.get('format') != FORMAT:
        raise InputError(f'{where}: the text in it is no recipe; expected format {FORMAT!r}.')
    for key, kind in SECTIONS.items():
        if not isinstance(recipe.get(key), kind) or isinstance(recipe[key], bool):
            raise InputError(f'{where}: the recipe in it is damaged: {key!r} is missing or wrong.')
    _check_depth(recipe, where)
    _check_sections(recipe, where)
    return recipe


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is no number of JSON')


def _check_depth(value: Any, where: str) -> None:
    # Breadth first, so that depth costs no recursion.
    level = [value]
    for _ in range(DEPTH_LIMIT):
        level = [
            entry
            for parent in level
            for entry in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(entry, dict | list)
        ]
        if not level:
            return
    raise InputError(f'{where}: the recipe in it is nested deeper than {DEPTH_LIMIT} levels.')


def _check_sections(recipe: dict[str, Any], where: str) -> None:
    if set(recipe['config']) != {'model'} or not isinstance(recipe['config']['model'], dict):
        raise InputError(f'{where}: the config of a recipe has one section, model.')
    for entry in recipe['weights']:
        keys = {'name': str, 'size': int, 'sha256': str}
        if not isinstance(entry, dict) or any(
            not isinstance(entry.get(key), kind) for key, kind in keys.items()
        ):
            raise InputError(f'{where}: the recipe in it is damaged: a weight file is not named.')


# --- weights -------------------------------------------------------------------------------------


def weight_entries(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Name, size in bytes and sha256 of weight files.

    The name keeps two folders, which tell the part, and nothing else of the machine.
    """
    from mmvideo.checkpoints.files import sha256

    return [
        dict(name='/'.join(path.parts[-3:]), size=path.stat().st_size, sha256=sha256(path))
        for path in map(Path, paths)
    ]


def check_weights(
    expected: list[dict[str, Any]], found: list[dict[str, Any]], paths: Iterable[Path]
) -> None:
    """Compare the files that a recipe names with those that its config loads here.

    Raises:
        WeightsError: naming the file that differs.
    """
    recorded = [entry['sha256'] for entry in expected]
    for entry, path in zip(found, paths, strict=True):
        if entry['sha256'] not in recorded:
            names = {e['name']: e['sha256'] for e in expected}
            was = names.get(entry['name'], 'another file')
            raise WeightsError(
                f'{path} is not the weight file of this recipe: its sha256 is '
                f'{entry["sha256"][:16]}..., the recipe has {was[:16]}... '
                'Go on with --allow-other-weights; the frames will differ.'
            )
    if len(found) != len(expected):
        raise WeightsError(
            f'the recipe names {len(expected)} weight files, the config loads {len(found)}. '
            'Go on with --allow-other-weights; the frames may differ.'
        )


# --- containers ----------------------------------------------------------------------------------


def _mp4_text(path: Path) -> str:
    import av

    try:
        # The demuxer is named: a playlist that is called .mp4 opens nothing else.
        with av.open(str(path), format='mov') as container:
            return str(container.metadata.get('comment', ''))
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise InputError(f'{path} is no mp4 file or damaged ({error}).') from None


def _picture_text(path: Path) -> str:
    from PIL import Image

    formats = (path.suffix[1:].upper(),)
    try:
        with Image.open(path, formats=formats) as picture:
            return _picture_comment(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f'{path} is no {formats[0].lower()} file or damaged ({error}).') from None


def _picture_comment(picture: Any) -> str:
    from PIL import ExifTags

    if picture.format == 'PNG':
        return str(picture.info.get(PNG_KEY, ''))
    comment = picture.info.get('comment', b'')
    if picture.format == 'WEBP':
        exif = picture.getexif().get_ifd(ExifTags.IFD.Exif)
        comment = exif.get(ExifTags.Base.UserComment, b'')
        comment = comment[8:] if comment[:8] == b'ASCII\x00\x00\x00' else b''
    return bytes(comment).decode('ascii', 'replace')

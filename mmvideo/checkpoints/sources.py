"""Where weights come from: a folder, the package itself, or the Hugging Face Hub.

A source is looked for in this order: ``package://NAME`` is a folder shipped inside mmvideo;
``catalog://NAME`` is public weights on the hub, or one file of them (``catalog``); an existing
path is taken as it is; anything that can only be a path is an error naming its nearest neighbour;
the rest is a hub id, whose files are fetched once and then come from the local cache.
A path behind a hub id, ``owner/name/folder/model.safetensors``, is that one file of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmvideo.checkpoints.catalog import find_entry, is_listed
from mmvideo.checkpoints.files import SUFFIXES, missing, read_json
from mmvideo.errors import WeightsError, nearest
from mmvideo.shipped import is_shipped, shipped_names, shipped_path

DIFFUSERS_FILES = (
    'diffusion_pytorch_model.safetensors',
    'diffusion_pytorch_model.safetensors.index.json',
    'diffusion_pytorch_model.bin',
    'diffusion_pytorch_model.bin.index.json',
)
TRANSFORMERS_FILES = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
WEIGHT_FILES = DIFFUSERS_FILES + TRANSFORMERS_FILES
_INDEX = '.index.json'
_HUB_ID = re.compile(r'[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?')
_HUB_FILE = re.compile(r'([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/((?:\w[\w.() -]*/)*\w[\w.() -]*)')
PIPELINE = 'model_index.json'


@dataclass(frozen=True)
class PlannedFile:
    """A file that a model needs.

    Attributes:
        name: Path inside the source.
        size: Bytes, or None where nobody could be asked.
        present: Whether it is on this machine.
        path: Where it is, when present.
    """

    name: str
    size: int | None
    present: bool
    path: Path | None = None


def resolve(
    source: str | Path,
    subfolder: str | None = None,
    *,
    filenames: Sequence[str],
    variant: str | None = None,
    revision: str | None = None,
) -> Path:
    """The local path of the first of ``filenames`` that the source has.

    Args:
        source: Folder, ``package://NAME``, ``catalog://NAME`` or hub id. A weight file stands for
            itself.
        subfolder: Folder inside the source.
        filenames: Candidates, the best first.
        variant: Goes before the suffix: 'fp16' makes ``model.fp16.safetensors``.
        revision: Branch, tag or commit of a hub id.

    Raises:
        WeightsError: Naming what is there and what was looked for.
    """
    names = [with_variant(name, variant) for name in filenames]
    remote = hub_file(source)
    if remote is not None:
        return _from_hub(remote[0], None, [remote[1]], revision)
    local = local_root(source)
    if local is None:
        return _from_hub(str(source), subfolder, names, revision)
    if local.is_file():
        return local
    folder = local / subfolder if subfolder else local
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(_absent(folder, names) + _pipeline_hint(local, subfolder))


def weight_file(source: str | Path, revision: str | None = None) -> Path | None:
    """The local path of a source that is one weight file, fetched where it is the hub's.

    None for a folder, ``package://NAME`` or hub id.
    """
    if not is_weight_file(source):
        return None
    return resolve(source, filenames=(Path(str(source)).name,), revision=revision)


def is_weight_file(source: str | Path) -> bool:
    """Whether a source is one file, here or on the hub. Nothing is fetched."""
    if hub_file(source) is not None:
        return True
    local = local_root(source)
    return local is not None and local.is_file()


def hub_file(source: str | Path) -> tuple[str, str] | None:
    """(hub id, path inside) where a source names one file of a repository, else None.

    For ``catalog://NAME`` the name itself stands in place of the hub id.
    """
    text = str(source)
    if is_listed(source):
        entry = find_entry(text)
        return (text, entry.file) if entry.file else None
    found = _HUB_FILE.fullmatch(text)
    if found is None or isinstance(source, Path) or not text.endswith(SUFFIXES):
        return None
    # The first folder is here: then it can only be a path, which has its own message.
    return None if Path(text.split('/')[0]).exists() else (found[1], found[2])


def resolve_weights(
    source: str | Path,
    subfolder: str | None = None,
    *,
    filenames: Sequence[str] = WEIGHT_FILES,
    variant: str | None = None,
    revision: str | None = None,
) -> list[Path]:
    """The local paths of a part's weights: one file, or the shards that an index names."""
    first = resolve(source, subfolder, filenames=filenames, variant=variant, revision=revision)
    if first.suffix != '.json':
        return [first]
    return [
        resolve(source, subfolder, filenames=(name,), revision=revision) for name in shards(first)
    ]


def shards(index: Path) -> list[str]:
    """The file names that an index of shards names.

    Raises:
        WeightsError: The index has no ``weight_map``, or names a file outside its folder.
    """
    table = read_json(index).get('weight_map')
    if not isinstance(table, dict) or not table:
        raise WeightsError(f'{index} has no weight_map')
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name:
            raise WeightsError(f'{index} names {name!r}, expected a file in its own folder')
    return names


def with_variant(name: str, variant: str | None) -> str:
    """``model.safetensors`` and 'fp16' make ``model.fp16.safetensors``."""
    if not variant or not name.removesuffix(_INDEX).endswith(SUFFIXES):
        return name
    stem, suffix = name.removesuffix(_INDEX).rsplit('.', 1)
    tail = _INDEX if name.endswith(_INDEX) else ''
    return f'{stem}.{suffix}.index.{variant}.json' if tail else f'{stem}.{variant}.{suffix}'


def local_root(source: str | Path) -> Path | None:
    """The folder or file that ``source`` is on this machine, or None for a hub id.

    Raises:
        WeightsError: A path or package folder that does not exist.
    """
    text = str(source)
    if is_shipped(text):
        return _package_folder(text)
    if is_listed(text):
        find_entry(text)
        return None
    path = Path(text).expanduser()
    if path.exists():
        return path
    if isinstance(source, Path) or _only_a_path(text, path):
        raise WeightsError(missing(path))
    return None


def plan(
    source: str | Path,
    subfolder: str | None = None,
    *,
    filenames: Sequence[str] = WEIGHT_FILES,
    variant: str | None = None,
    revision: str | None = None,
) -> list[PlannedFile]:
    """What ``resolve_weights`` would read, without fetching any weights.

    The config and one of ``filenames`` (or its shards). Sizes of files that are not here come
    from the hub; offline they are None.
    """
    names = [with_variant(name, variant) for name in filenames]
    remote = hub_file(source)
    local = None if remote else local_root(source)
    if local is not None:
        return _plan_local(local, subfolder, names)
    from mmvideo.checkpoints import hub

    if remote is not None:
        return [f for f in hub.plan(remote[0], None, remote[1:], revision) if f.name == remote[1]]
    return hub.plan(str(source), subfolder, names, revision)


def _plan_local(local: Path, subfolder: str | None, names: list[str]) -> list[PlannedFile]:
    found = resolve_weights(local, subfolder, filenames=names)
    config = (local / subfolder if subfolder else local) / 'config.json'
    paths = [config, *found] if config.is_file() else found
    base = local if local.is_dir() else local.parent
    return [
        PlannedFile(path.relative_to(base).as_posix(), path.stat().st_size, True, path)
        for path in paths
    ]


def _package_folder(text: str) -> Path:
    folder = shipped_path(text)
    if not folder.exists():
        there = shipped_names()
        listed = ', '.join(there) or 'none'
        hint = nearest(folder.name, there)
        raise WeightsError(f'{text!r}: mmvideo ships no such weights.{hint} Shipped: {listed}')
    return folder


def _only_a_path(text: str, path: Path) -> bool:
    if not _HUB_ID.fullmatch(text) or text.endswith(SUFFIXES):
        return True
    return '/' in text and Path(path.parts[0]).is_dir()


def _absent(folder: Path, names: Sequence[str]) -> str:
    if not folder.is_dir():
        return missing(folder)
    there = sorted(entry.name for entry in folder.iterdir())
    shown = ', '.join(there[:12]) or 'nothing'
    wanted = names[0] if len(names) == 1 else 'one of ' + ', '.join(names)
    return f'{folder} has no {wanted}.{nearest(names[0], there)} It holds: {shown}'


def _pipeline_hint(root: Path, subfolder: str | None) -> str:
    """What ``model_index.json`` says of a folder in which a part was not found."""
    if not (root / PIPELINE).is_file():
        return ''
    return _parts_hint(read_json(root / PIPELINE), subfolder)


def _parts_hint(index: dict, subfolder: str | None) -> str:
    listed = sorted(k for k, v in index.items() if isinstance(v, list) and v and v[0] is not None)
    kind = f'a {index["_class_name"]}' if index.get('_class_name') else 'a whole pipeline'
    if subfolder is None:
        return f' {PIPELINE} says that it is {kind}: name a part as subfolder, of {listed}'
    if subfolder in listed:
        return f' {PIPELINE} lists {subfolder!r}, so the copy of this {kind[2:]} is not complete'
    return f' {PIPELINE} says that it is {kind} without {subfolder!r}; its parts: {listed}'


def _from_hub(
    source: str, subfolder: str | None, names: Sequence[str], revision: str | None
) -> Path:
    from mmvideo.checkpoints import hub  # the client library is slow to import

    try:
        return hub.fetch(source, subfolder, names, revision)
    except hub.AbsentError as error:
        index = hub.find(source, None, (PIPELINE,), revision, optional=True)
        if index is None or names == [PIPELINE]:
            raise
        raise hub.AbsentError(f'{error}.{_parts_hint(read_json(index), subfolder)}') from error

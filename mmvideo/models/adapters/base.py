"""What every adapter has in common: a name, where it comes from, attach and detach."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmvideo.checkpoints.sources import is_weight_file, resolve
from mmvideo.errors import ConfigError

_NAME = re.compile(r'[\w-]+')


class Adapter:
    """Something small that changes what a model makes, and can be taken off again.

    A subclass is registered in ``MODELS`` under the ``type`` that a config names. ``attach`` must
    leave every parameter of the editor as it is, so that ``detach`` gives back the same model.

    Args:
        from_pretrained: file, folder, hub id or ``package://NAME``.
        name: what the editor's methods call it; None takes the source's own name.
        subfolder: folder inside the source.
        weight_name: file inside the source, where it has several.
        revision: branch, tag or commit on the hub.
    """

    #: Files that a folder or a hub id is searched for, without ``weight_name``.
    filenames: ClassVar[tuple[str, ...]] = ()
    #: Whether ``set_scale`` means anything.
    has_scale: ClassVar[bool] = True

    def __init__(
        self,
        from_pretrained: str | Path,
        name: str | None = None,
        subfolder: str | None = None,
        weight_name: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.source = str(from_pretrained)
        self.name = adapter_name(from_pretrained, name, weight_name)
        self.path = find(from_pretrained, self.filenames, subfolder, weight_name, revision)
        self.scale: Any = 1.0
        self.config: dict[str, Any] = {}  # what it was built from, where an editor built it

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Refuse values of a config that cannot work, before any file is read.

        Raises:
            ConfigError: naming the key and the value.
        """

    @property
    def paths(self) -> list[Path]:
        """The weight files that the adapter was read from."""
        return [self.path]

    def attach(self, editor: Any) -> None:
        """Change what ``editor`` makes; its parameters stay as they are.

        Raises:
            WeightsError: the adapter does not fit; the editor is then unchanged.
        """
        raise NotImplementedError(type(self).__name__)

    def detach(self, editor: Any) -> None:
        """Take back ``attach``."""
        raise NotImplementedError(type(self).__name__)

    def set_scale(self, scale: Any) -> None:
        """How strongly it works: 1 as trained, 0 not at all."""
        raise NotImplementedError(type(self).__name__)


def is_timeline(scale: Any) -> bool:
    """Whether a scale changes over the frames or steps of a call.

    Its keys are then frames, in a recipe as digits, or ``'steps'``; other names are parts of the
    model. What the editor that runs the call reads, checks and resolves are timelines, here they
    pass as they are.
    """
    return isinstance(scale, Mapping) and any(
        not isinstance(key, str) or key.isdigit() or key == 'steps' for key in scale
    )


def adapter_name(
    source: str | Path, name: str | None = None, weight_name: str | None = None
) -> str:
    """The given name, or one made of the file's or repository's.

    Raises:
        ConfigError: a name with other characters than letters, digits, ``_`` and ``-``.
    """
    if name is None:
        last = re.split(r'[\\/]', str(weight_name or source).rstrip('\\/'))[-1]
        stem = re.sub(r'\.(safetensors|ckpt|pth|pt|bin)$', '', last)
        return re.sub(r'[^\w-]+', '_', stem) or 'adapter'
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f'name={name!r}: an adapter is named by letters, digits, underscores and hyphens'
        )
    return name


def find(
    source: str | Path,
    filenames: Sequence[str],
    subfolder: str | None = None,
    weight_name: str | None = None,
    revision: str | None = None,
) -> Path:
    """The weight file of an adapter: ``source`` itself, or the first of ``filenames`` in it.

    Raises:
        WeightsError: no such file, naming what is there.
    """
    names = (weight_name,) if weight_name else tuple(filenames)
    return resolve(source, subfolder, filenames=names, revision=revision)


def check_local(source: str | Path) -> None:
    """Raise WeightsError where ``source`` can only be a path and does not exist."""
    is_weight_file(source)

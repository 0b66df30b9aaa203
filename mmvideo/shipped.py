"""Names of what the package itself ships: ``package://sprites`` is ``mmvideo/weights/sprites``."""

from __future__ import annotations

from pathlib import Path

from mmvideo.errors import InputError

PREFIX = 'package://'
ROOT = Path(__file__).parent / 'weights'


def is_shipped(name: object) -> bool:
    """Whether a name means something inside the package."""
    return isinstance(name, str) and name.startswith(PREFIX)


def shipped_path(name: str) -> Path:
    """Where ``package://NAME`` is; it need not exist.

    Raises:
        InputError: the name is empty or leads out of the package.
    """
    inside = Path(name.removeprefix(PREFIX).strip('/'))
    if not inside.parts or '..' in inside.parts:
        raise InputError(f'{name!r}: expected {PREFIX}NAME, with a path inside the package.')
    return ROOT / inside


def shipped_names() -> list[str]:
    """What ``package://`` can be followed by."""
    return sorted(entry.name for entry in ROOT.iterdir()) if ROOT.is_dir() else []

"""What a user can get wrong, as errors that say so.

Every error that bad input can cause is a ``UserError``: the tools print its message without a
traceback and leave with exit code 2. Anything else is a defect of mmvideo and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Bad input: the message names it, what was expected, and the nearest valid one."""


class ConfigError(UserError):
    """A config key, type or value that cannot be right."""


class InputError(UserError):
    """A prompt, image, size, seed or path that cannot be used."""


class WeightsError(UserError):
    """A weight file that is missing, damaged, or not for this model."""


def nearest(name: object, valid: Iterable[str]) -> str:
    """A hint such as ``" Did you mean 'fish'?"``, or an empty string when nothing is near."""
    found = difflib.get_close_matches(str(name), [str(v) for v in valid], n=1, cutoff=0.5)
    return f' Did you mean {found[0]!r}?' if found else ''


def nearest_beside(path: Path) -> str:
    """Such a hint for a path that does not exist, of the names in its folder."""
    folder = path.parent
    return nearest(path.name, (entry.name for entry in folder.iterdir())) if folder.is_dir() else ''

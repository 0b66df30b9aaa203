"""What every borrowed part has in common: where it comes from, and which keys it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from mmvideo.errors import ConfigError, nearest

SOURCE_KEYS = ('from_pretrained', 'subfolder', 'variant', 'revision')
_NOT_KEYS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def keys_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The named parameters of a constructor."""
    found = inspect.signature(function).parameters.values()
    return tuple(p.name for p in found if p.kind not in _NOT_KEYS and p.name != 'self')


def check_keys(name: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Raise a ConfigError for the first key that the part does not take."""
    valid = sorted(valid)
    for key in given:
        if key not in valid:
            raise ConfigError(f'{name} takes no {key!r}.{nearest(key, valid)} Valid: {valid}')

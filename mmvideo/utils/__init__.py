"""Small things that programs around mmvideo need."""

from __future__ import annotations

import importlib
import warnings

# Importing these registers every component; ``apis`` has none.
_ROOMS = ('models', 'editors', 'datasets', 'engine', 'evaluation')


def register_all_modules(init_default_scope: bool = True) -> None:
    """Import everything that a config can name.

    Args:
        init_default_scope: also make ``mmvideo`` MMEngine's default scope, as a runner does, so
            that its own registries find these components.
    """
    for room in _ROOMS:
        importlib.import_module(f'mmvideo.{room}')
    if init_default_scope:
        set_default_scope()


def set_default_scope() -> None:
    """Make ``mmvideo`` MMEngine's default scope; warns where another library's was."""
    from mmengine.registry import DefaultScope, init_default_scope

    current = DefaultScope.get_current_instance()
    if current is None or current.scope_name != 'mmvideo':
        if current is not None:
            warnings.warn(
                f'the default scope was {current.scope_name!r} and becomes mmvideo', stacklevel=2
            )
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # MMEngine's words for the same
            init_default_scope('mmvideo')


__all__ = ['register_all_modules', 'set_default_scope']

"""Programs' way into mmvideo: make videos, write them, read their recipes."""

from __future__ import annotations

import importlib
from typing import Any

# Imported at first use: a tool that only writes a file should not wait for the models.
_HOMES = {
    'VideoInferencer': 'mmvideo.apis.inferencer',
    'read_recipe': 'mmvideo.media.recipe',
    'save_videos_grid': 'mmvideo.media.writers',
    'write_video': 'mmvideo.media.writers',
}

__all__ = ['VideoInferencer', 'read_recipe', 'save_videos_grid', 'write_video']


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_HOMES[name]), name)

"""Where files of the hub lie and who asks for them, said for one call of a loader."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import constants

from mmvideo.errors import InputError

_Load = TypeVar('_Load', bound=Callable[..., Any])
# huggingface_hub has one setting for a process, so calls that change it wait for each other.
_LOCK = threading.RLock()


def asks_hub(load: _Load) -> _Load:
    """A loader that takes diffusers' arguments about the hub too.

    They are ``cache_dir``, ``token`` (a text; False sends none, True that of ``hf auth login``;
    ``hf_token`` where ``token`` is something else) and ``local_files_only``, which touches no
    network; ``force_download=True`` is refused.
    """
    known = inspect.signature(load).parameters
    token_name = 'hf_token' if 'token' in known else 'token'

    @functools.wraps(load)
    def loader(
        *args: Any,
        cache_dir: str | Path | None = None,
        local_files_only: bool | None = None,
        force_download: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if force_download:
            raise InputError(
                'force_download=True: files of the hub are verified when they arrive and are not '
                'fetched again; `python tools/download.py` fetches one that has changed.'
            )
        token = kwargs.pop(token_name, None)
        with _hub(cache_dir, token, bool(local_files_only)):
            return load(*args, **kwargs)

    return cast(_Load, loader)


@contextlib.contextmanager
def _hub(cache_dir: str | Path | None, token: str | bool | None, offline: bool) -> Iterator[None]:
    """Have huggingface_hub's settings changed, and then as they were."""
    changed: dict[str, Any] = {}
    if cache_dir is not None:
        changed['HF_HUB_CACHE'] = str(Path(cache_dir).expanduser())
    if offline:
        changed['HF_HUB_OFFLINE'] = True
    if token is False:
        changed['HF_HUB_DISABLE_IMPLICIT_TOKEN'] = True
    if not changed and not isinstance(token, str):
        yield
        return
    with _LOCK:
        before = {name: getattr(constants, name) for name in changed}
        known = os.environ.get('HF_TOKEN')
        try:
            _set(changed, token if isinstance(token, str) else known)
            yield
        finally:
            _set(before, known)


def _set(values: dict[str, Any], token: str | None) -> None:
    for name, value in values.items():
        setattr(constants, name, value)
    if token is None:
        os.environ.pop('HF_TOKEN', None)
    else:
        os.environ['HF_TOKEN'] = token

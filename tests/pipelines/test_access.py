"""Arguments of loaders about the hub: its cache, its token, and no network."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from pairs_of_pipelines import image_folder

from mmvideo.errors import InputError, WeightsError
from mmvideo.pipelines import (
    AnimateDiffPipeline,
    ControlNetModel,
    MotionAdapter,
    PIAPipeline,
    StableVideoDiffusionPipeline,
)
from mmvideo.pipelines.access import asks_hub

COMMIT = 'a' * 40


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that were asked, with the hub's own offline mode off."""
    asked: list[Any] = []

    def refuse(self: Any, address: Any) -> None:
        asked.append(address)
        raise OSError('no network here')

    def unknown(host: Any, *others: Any, **more: Any) -> None:
        asked.append(host)
        raise OSError('no network here')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    return asked


def cached(cache: Path, repo: str, source: Path) -> None:
    """A folder as the hub's cache has a repository."""
    root = cache / f'models--{repo.replace("/", "--")}'
    shutil.copytree(source, root / 'snapshots' / COMMIT)
    (root / 'refs').mkdir()
    (root / 'refs' / 'main').write_text(COMMIT)


def test_files_of_a_cache_without_any_network(
    make: Callable, tmp_path: Path, no_network: list[Any]
) -> None:
    cache, before = tmp_path / 'cache', constants.HF_HUB_CACHE
    cached(cache, 'maker/model', image_folder(make, tmp_path / 'base'))
    cached(cache, 'maker/motion', make('v2').folder.parent / 'parts' / 'motion_adapter')
    where = dict(cache_dir=cache, local_files_only=True)
    adapter = MotionAdapter.from_pretrained('maker/motion', **where)
    made = AnimateDiffPipeline.from_pretrained(
        'maker/model', motion_adapter=adapter, token='hf_x', **where
    )
    assert made.unet.max_frames == 32 and not no_network
    assert before == constants.HF_HUB_CACHE and constants.HF_HUB_OFFLINE is False


def loaders(ours: AnimateDiffPipeline) -> dict[str, Callable]:
    return {
        'pipeline': PIAPipeline.from_pretrained,
        'svd': StableVideoDiffusionPipeline.from_pretrained,
        'file': lambda _, **where: AnimateDiffPipeline.from_single_file(
            'owner/absent/a.safetensors', tokenizer=ours.tokenizer, **where
        ),
        'motion': MotionAdapter.from_pretrained,
        'control': ControlNetModel.from_pretrained,
        'lora': ours.load_lora_weights,
        'word': ours.load_textual_inversion,
        'ip': ours.load_ip_adapter,
    }


@pytest.mark.parametrize('name', ['pipeline', 'svd', 'file', 'motion', 'control', 'lora', 'word',
                                  'ip'])  # fmt: skip
def test_local_files_only_touches_no_network(
    make: Callable, tmp_path: Path, no_network: list[Any], name: str
) -> None:
    load = loaders(make('v2').ours)[name]
    with pytest.raises(WeightsError, match='hub cannot be reached'):
        load('owner/absent', cache_dir=tmp_path, local_files_only=True)
    assert not no_network
    with pytest.raises(InputError, match='force_download=True: files of the hub are verified'):
        load('owner/absent', force_download=True)


def test_what_is_said_counts_for_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HF_TOKEN', 'usual')
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_IMPLICIT_TOKEN', False)

    def seen() -> tuple[Any, ...]:
        implicit = not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
        return os.environ.get('HF_TOKEN'), constants.HF_HUB_CACHE, implicit

    usual, load = seen(), asks_hub(seen)
    assert load(cache_dir=tmp_path, token='mine') == ('mine', str(tmp_path), True)
    assert load(token=False) == ('usual', usual[1], False)
    assert load(token=True, local_files_only=None, force_download=False) == usual == seen()

    @asks_hub
    def word(token: str) -> tuple[Any, ...]:
        return token, os.environ.get('HF_TOKEN')

    assert word(token='<cat>', hf_token='mine') == ('<cat>', 'mine')

    @asks_hub
    def fails() -> None:
        raise WeightsError('broken')

    with pytest.raises(WeightsError, match='broken'):
        fails(cache_dir=tmp_path, token='mine')
    assert seen() == usual

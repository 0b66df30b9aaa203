"""Every parameter of diffusers' pipelines is in ours, and in the table of docs/parameters.md."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import diffusers
import pytest

import mmvideo.pipelines

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / 'docs' / 'parameters.md').read_text(encoding='utf-8')
NAMES = [name for name in mmvideo.pipelines.__all__ if name.endswith('Pipeline')]
_ROW = re.compile(r'^\| `(\w+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$', re.MULTILINE)
_TEST = re.compile(r'`([\w/]+\.py)(?:::(\w+))?`')


def rows(name: str) -> dict[str, tuple[str, str, str]]:
    """State, words and tests of each parameter in a pipeline's table."""
    section = TEXT.split(f'## {name}\n')[1].split('\n## ')[0]
    return {found[1]: (found[2], found[3], found[4]) for found in _ROW.finditer(section)}


def parameters(pipeline: type) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(pipeline.__call__).parameters)
    return {name: value for name, value in found.items() if name != 'self'}


def plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize('name', NAMES)
def test_calls_are_those_of_diffusers(name: str) -> None:
    theirs = parameters(getattr(diffusers, name))
    ours = parameters(getattr(mmvideo.pipelines, name))
    absent = [key for key in theirs if key not in ours]
    assert not absent, absent
    assert [key for key in ours if key in theirs] == list(theirs), 'another order'
    for key, parameter in theirs.items():
        assert plain(ours[key].default) == plain(parameter.default), key


@pytest.mark.parametrize('name', NAMES)
def test_the_table_has_every_parameter(name: str) -> None:
    table = rows(name)
    theirs = parameters(getattr(diffusers, name))
    assert set(table) == set(theirs), set(table) ^ set(theirs)
    for key, (state, words, tests) in table.items():
        assert state in ('as there', 'different', '**works**'), key
        assert words or state == 'as there', key
        assert _TEST.search(tests), key


def test_the_tests_of_the_table_exist() -> None:
    named = set(_TEST.findall(TEXT))
    assert len(named) > 30
    for file, function in named:
        path = ROOT / (file if file.startswith('tests/') else f'tests/pipelines/{file}')
        text = path.read_text(encoding='utf-8')
        assert not function or f'def {function}(' in text, f'{file}::{function}'


def test_methods_of_diffusers_are_here() -> None:
    """What its mixins give its pipelines, but for what the page says is not here."""
    told = TEXT.split('Not here: ')[1].split('.\n')[0]
    known = set(re.findall(r'`(\w+)`', told))
    starts = ('enable_', 'disable_', 'load_', 'unload_', 'set_', 'fuse_', 'unfuse_', 'delete_')
    starts += ('save_', 'get_', 'from_', 'remove_', 'to', 'encode_')
    absent = set()
    for name in NAMES:
        theirs = {n for n in dir(getattr(diffusers, name)) if n.startswith(starts)}
        absent |= theirs - set(dir(getattr(mmvideo.pipelines, name)))
    assert absent == known

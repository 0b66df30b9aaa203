"""From flags of tools/infer.py to the arguments of a call."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmvideo.apis.flags import given_arguments, joined, word
from mmvideo.errors import InputError

TOOL = Path(__file__).parents[2] / 'tools' / 'infer.py'


@pytest.fixture(scope='module')
def tool() -> Any:
    spec = importlib.util.spec_from_file_location('infer_for_flags', TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def said(tool: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What a command line says of the arguments, beside those of a config."""

    def read(*flags: str, **before: Any) -> dict[str, Any]:
        monkeypatch.setattr('sys.argv', ['infer.py', 'config.py', *flags])
        return given_arguments(tool.parse_args(), before)

    return read


def test_nothing_said_is_nothing(said: Callable) -> None:
    assert said(windows=dict(length=8), free_u=True) == {}


SINGLE = [
    (['--free-u'], dict(free_u=True)),
    (['--free-u', '0.9', '0.2', '1.5', '1.6'], dict(free_u=dict(s1=0.9, s2=0.2, b1=1.5, b2=1.6))),
    (['--free-init'], dict(free_init=True)),
    (['--free-init', 'ideal'], dict(free_init=dict(method='ideal'))),
    (['--free-noise'], dict(free_noise=True)),
    (['--free-noise', 'random'], dict(free_noise=dict(noise_type='random'))),
    (['--eta', '0.5'], dict(eta=0.5)),
    (['--guess-mode'], dict(guess_mode=True)),
    (['--control-start', '0.1', '--control-end', '0.9'], dict(control_start=0.1, control_end=0.9)),
    (['--control-start', '0', '0.5'], dict(control_start=[0.0, 0.5])),
    (['--control-scale', '0.5', '1'], dict(control_scale=[0.5, 1.0])),
    (['--condition-rule', 'official'], dict(condition_rule='official')),
    (['--windows', '16'], dict(windows=dict(length=16))),
    (['--window-schedule', 'looped'], dict(windows=dict(schedule='looped'))),
    (['--window-overlap', '4', '--window-stride', '2'], dict(windows=dict(overlap=4, stride=2))),
    (
        ['--window-fusion', 'flat', '--window-noise', 'random'],
        dict(windows=dict(fusion='flat', noise='random')),
    ),
    (['--deep-cache', '3'], dict(deep_cache=dict(interval=3))),
    (['--annotator', 'canny'], dict(control_annotator='canny')),
    (['--annotator', 'none'], dict(control_annotator=None)),
    (
        ['--annotator', 'canny:50,150', 'openpose:maker/weights', 'none'],
        dict(
            control_annotator=[
                dict(type='canny', low=50, high=150),
                dict(type='openpose', from_pretrained='maker/weights'),
                None,
            ]
        ),
    ),
    (['--control-video', 'a', 'b', '--control-frames', '0', '7'],
     dict(control_videos=['a', 'b'], control_frames=[None, [0, 7]])),
]  # fmt: skip


@pytest.mark.parametrize(('flags', 'expected'), SINGLE, ids=[' '.join(f) for f, _ in SINGLE])
def test_flags_are_arguments(said: Callable, flags: list[str], expected: dict) -> None:
    assert said(*flags) == expected


def test_settings_join_those_of_the_config(said: Callable) -> None:
    closed = dict(length=16, schedule='looped', overlap=4)
    assert said('--windows', '8', windows=closed) == dict(windows=dict(closed, length=8))
    assert said('--window-overlap', '2', windows=16) == dict(windows=dict(length=16, overlap=2))
    often = dict(num_iters=5, method='ideal')
    assert said('--free-init', free_init=often) == dict(free_init=often)
    changed = said('--free-init', 'gaussian', free_init=often)
    assert changed == dict(free_init=dict(num_iters=5, method='gaussian'))
    assert said('--free-u', free_u=False) == dict(free_u=True)
    deep = said('--deep-cache', '2', deep_cache=dict(interval=5, depth=3))
    assert deep == dict(deep_cache=dict(interval=2, depth=3))
    back = said('--inversion-steps', '9', inversion='ddim')
    assert back == dict(inversion=dict(type='ddim', num_inference_steps=9))
    assert joined('windows', None, {}) is True


def test_words(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, source, token in (
        ('a.pt', 'a.pt', None),
        ('a.pt:<cat>', 'a.pt', '<cat>'),
        (r'C:\a.pt', r'C:\a.pt', None),
        (r'C:\a.pt:cat', r'C:\a.pt', 'cat'),
        ('catalog://a', 'catalog://a', None),
    ):
        expected = dict(type='TextualInversion', from_pretrained=source)
        assert word(text) == (expected if token is None else {**expected, 'token': token})
    flags = ['--textual-inversion', 'a.pt', '--textual-inversion', 'b.pt:b']
    monkeypatch.setattr('sys.argv', ['infer.py', 'config.py', *flags])
    assert [w.get('token') for w in tool.parse_args().textual_inversion] == [None, 'b']


def test_flags_that_do_not_go_together(said: Callable, tool: Any) -> None:
    with pytest.raises(InputError, match='expected S1 S2 B1 B2'):
        said('--free-u', '1')
    with pytest.raises(InputError, match='give it with --video'):
        said('--video-start', '3')
    with pytest.raises(argparse.ArgumentTypeError, match='canny:LOW,HIGH'):
        tool.annotator('canny:1')

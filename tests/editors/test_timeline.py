"""One syntax for what changes over the frames."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmvideo.editors.timeline import Timeline, number_timeline, text_timeline
from mmvideo.errors import InputError


@pytest.mark.parametrize(
    'value',
    [
        {0: 'spring', 8: 'summer'},
        {8: 'summer', 0: 'spring'},
        {'0': 'spring', '8': 'summer'},
        '0: spring\n8: summer',
        '\n  0 :spring  \n\n08: summer\n',
        Timeline((0, 8), ('spring', 'summer')),
    ],
)
def test_forms_of_a_prompt(value: Any) -> None:
    assert text_timeline(value, 'prompt') == Timeline((0, 8), ('spring', 'summer'))


def test_settings_in_data_and_in_lines() -> None:
    expected = Timeline((0, 8), ('spring', 'summer'), 'step', True)
    data = {0: 'spring', 8: 'summer', 'interpolation': 'step', 'loop': True}
    assert text_timeline(data, 'prompt') == expected
    lines = '0: spring\n8: summer\ninterpolation: step\nloop: true'
    assert text_timeline(lines, 'prompt') == expected
    assert text_timeline(json.loads(json.dumps(data)), 'prompt') == expected  # as in a recipe


def test_text_around_the_keys_is_for_all() -> None:
    lines = 'masterpiece, a meadow,\n0: spring\n8: summer, sun\n, golden light'
    assert text_timeline(lines, 'prompt').values == (
        'masterpiece, a meadow, spring, golden light',
        'masterpiece, a meadow, summer, sun, golden light',
    )


@pytest.mark.parametrize('text', ['a fish', '2001: an odyssey', '', 'a fish\nin the sea', 'a:b'])
def test_what_is_no_timeline_stays_as_it_is(text: str) -> None:
    assert text_timeline(text, 'prompt') == Timeline((0,), (text,))


def test_forms_of_a_number() -> None:
    assert number_timeline(7.5, 'x', 4).curve(4).tolist() == [7.5] * 4
    assert number_timeline([1, 2, 3, 5], 'x', 4).curve(4).tolist() == [1, 2, 3, 5]
    assert number_timeline({0: 1, 2: 2}, 'x', 4).curve(4).tolist() == [1, 1.5, 2, 2]
    again = number_timeline(number_timeline({0: 1, 2: 2, 'loop': True}, 'x', 4), 'x', 4)
    assert again.curve(4).tolist() == [1, 1.5, 2, 1.5]
    assert number_timeline({0: 7.3, 3: 7.3}, 'x', 4).constant


def test_steps() -> None:
    timeline = number_timeline({'steps': {0.0: 9, 0.5: 5}}, 'x', 4)
    assert [timeline.at_step(s) for s in (0, 0.25, 0.5, 1)] == [
        Timeline((0,), (value,)) for value in (9.0, 7.0, 5.0, 5.0)
    ]
    assert timeline == number_timeline({'steps': {'0.5': 5, '0.0': 9}}, 'x', None)  # as in a recipe
    assert timeline == number_timeline(timeline, 'x', 4)
    jump = number_timeline({'steps': {0.2: 9.0, 0.5: 5.0, 'interpolation': 'step'}}, 'x', 4)
    shares = (0, 0.49, 0.5, 1 - 0.5, 0.1 + 0.2 + 0.2)
    assert [jump.at_step(s).values[0] for s in shares] == [9.0, 9.0, 5.0, 5.0, 5.0]
    over_frames = number_timeline({0: 1, 2: 2}, 'x', 4)
    assert over_frames.at_step(0.5) is over_frames


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        ({'steps': {1.5: 1.0}}, r"x\['steps'\]: the key 1.5 is no share.*0 to 1.*The nearest is 1"),
        ({'steps': {-1: 1.0}}, 'The nearest is 0'),
        ({'steps': {float('nan'): 1.0}}, 'the key nan is no share of the steps'),
        ({'steps': {True: 1.0}}, 'the key True is no share of the steps'),
        ({'steps': {'late': 1.0}}, "the key 'late' is no share of the steps"),
        ({'steps': {0.0: 1.0, 'loop': True}}, "the key 'loop' is no share of the steps"),
        ({'steps': {0.0: 1.0, '0': 1.0}}, 'share of the steps 0.0 appears twice'),
        ({'steps': {0.0: 11}}, r"x\['steps'\]\[0.0\]=11: expected a number in \[0, 10\]"),
        ({'steps': {0.0: 1, 'interpolation': 'stepp'}}, "Did you mean 'step'"),
        ({'steps': {}}, 'no keyframes'),
        ({'steps': [1.0, 2.0]}, 'expected numbers by shares of the steps'),
        ({'steps': {0.0: 1.0}, 8: 1.0}, "the key 8 beside 'steps'"),
        ({'steps': {0.0: 1.0}, 'interpolation': 'step'}, 'whose settings stand inside'),
    ],
    ids=str,
)
def test_refused_steps(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        number_timeline(value, 'x', 4, 0, 10)
    with pytest.raises(InputError, match='x changes over frames, not over steps'):
        number_timeline(value, 'x', 4, 0, 10, steps=False)


REFUSED_NUMBERS = [
    ({0: 1.0, 4: 2.0}, 'the key 4 lies beyond the clip, whose 4 frames are 0 to 3'),
    ({-1: 1.0}, 'the key -1 is no frame'),
    ({0.5: 1.0}, 'the key 0.5 is no frame'),
    ({True: 1.0}, 'the key True is no frame'),
    ({0: 1.0, 'interpolaton': 'step'}, "Did you mean 'interpolation'"),
    ({0: 1.0, 'interpolation': 'liner'}, "interpolation='liner'.*Did you mean 'linear'"),
    ({0: 1.0, 'loop': 1}, 'loop=1, expected True or False'),
    ({0: 1.0, '0': 2.0}, 'frame 0 appears twice'),
    ({'loop': True}, 'no keyframes'),
    ({}, 'no keyframes'),
    ({0: 'a'}, r"x\[0\]='a': expected a number"),
    ({0: 11}, r'x\[0\]=11: expected a number in \[0, 10\]'),
    ([1.0, 2.0], '2 numbers for 4 frames'),
    ([1.0, 2.0, -1.0, 0.0], r'x\[2\]=-1.0'),
    (float('nan'), 'x=nan'),
    ('7', "x='7'"),
    (None, 'x=None'),
    (True, 'x=True'),
]


@pytest.mark.parametrize(('value', 'words'), REFUSED_NUMBERS, ids=str)
def test_refused_numbers(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        number_timeline(value, 'x', 4, 0, 10)


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        ({0: 3}, r'prompt\[0\] must be text'),
        (['a'], 'prompt must be text, got list'),
        ({'first': 'a'}, "the key 'first' is no frame"),
        ('0: a\n0: b', 'frame 0 appears twice'),
        ('0: a\n3: b\ninterpolation: cubic', "interpolation='cubic'"),
        (Timeline((0,), (1.0,)), 'must be text'),
    ],
)
def test_refused_prompts(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        text_timeline(value, 'prompt')


def test_a_key_beyond_the_clip() -> None:
    timeline = text_timeline({0: 'a', 16: 'b'}, 'prompt')
    timeline.check('prompt', 17)
    with pytest.raises(InputError, match='prompt: the key 16 lies beyond.*16 frames are 0 to 15'):
        timeline.check('prompt', 16)

"""What stands between keyframes."""

from __future__ import annotations

import pytest
import torch

from mmvideo.diffusion.curves import EASINGS, mixture


def curve(keys: list[int], values: list[float], frames: int, **settings: object) -> list[float]:
    rows = mixture(keys, frames, **settings) @ torch.tensor(values)
    return [round(value, 4) for value in rows.tolist()]


def test_linear_and_held_at_both_ends() -> None:
    assert curve([1, 5], [0.0, 1.0], 8) == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert curve([3], [2.0], 4) == [2, 2, 2, 2]


def test_step_holds_until_the_next_key() -> None:
    assert curve([0, 2, 3], [1.0, 2.0, 5.0], 5, easing='step') == [1, 1, 2, 5, 5]


def test_a_loop_returns_to_its_first_key() -> None:
    assert curve([0, 4], [0.0, 1.0], 8, loop=True) == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    assert curve([2, 6], [0.0, 1.0], 8, loop=True) == [0.5, 0.25, 0, 0.25, 0.5, 0.75, 1, 0.75]
    assert curve([3], [2.0], 4, loop=True) == [2, 2, 2, 2]


@pytest.mark.parametrize('easing', EASINGS)
@pytest.mark.parametrize('loop', [False, True])
def test_rows_sum_to_one_and_keys_are_exact(easing: str, loop: bool) -> None:
    keys = [0, 3, 4, 11]
    rows = mixture(keys, 16, easing, loop)
    assert torch.allclose(rows.sum(1), torch.ones(16)) and rows.min() >= 0
    assert torch.equal(rows[keys], torch.eye(4))


@pytest.mark.parametrize('easing', sorted(set(EASINGS) - {'step'}))
def test_easings_rise_from_0_to_1(easing: str) -> None:
    values = [EASINGS[easing](i / 20) for i in range(21)]
    assert values[0] == 0 and values[-1] == 1 and values == sorted(values)


def test_easings_differ_where_they_should() -> None:
    assert EASINGS['ease-in'](0.2) < EASINGS['linear'](0.2) < EASINGS['ease-out'](0.2)
    assert EASINGS['ease-in-out'](0.2) < 0.2 and EASINGS['ease-in-out'](0.8) > 0.8

"""Checks of single arguments; each says what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from mmvideo.errors import ConfigError, InputError, nearest


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """A whole number of at least ``low``, and at most ``high`` if given."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        limit = f'>= {low}' if high is None else f'from {low} to {high}'
        raise InputError(f'{name}={value!r}: expected an integer {limit}.')


def check_range(name: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    """A finite number inside a closed range (or one open below)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (low <= value <= high) or (open_low and value == low):
        bracket = '(' if open_low else '['
        raise InputError(f'{name}={value!r}: expected a number in {bracket}{low}, {high}].')


def check_choice(name: str, value: Any, valid: Sequence[Any]) -> None:
    """One of a few values."""
    if not any(value is known or (isinstance(known, str) and value == known) for known in valid):
        listed = ', '.join(repr(known) for known in valid)
        raise InputError(f'{name}={value!r}: expected one of {listed}.{nearest(value, valid)}')


def timestep_bounds(given: Any, scheduler: Any) -> tuple[int, int]:
    """``timestep_range`` of training as the first timestep and the one after the last."""
    count = scheduler.config.num_train_timesteps
    if given is None:
        return (0, count)
    pair = isinstance(given, (list, tuple)) and len(given) == 2
    if not pair or not all(type(bound) is int for bound in given):
        raise ConfigError(f'model.timestep_range={given!r}: expected two integers.')
    first, last = given
    if not 0 <= first < last <= count:
        raise ConfigError(f'model.timestep_range={given!r}: expected 0 <= first < last <= {count}.')
    return (first, last)


def check_loss_weight(weight: Any) -> None:
    """``condition_loss_weight``, what the picture's frame weighs in training."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < inf:
        raise ConfigError(f'model.condition_loss_weight={weight!r}: expected a number above 0.')

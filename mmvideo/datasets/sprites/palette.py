"""Colours of the sprites, and the inks with which each drawing style fills their parts."""

from __future__ import annotations

from functools import cache

import numpy as np

RGB = tuple[float, float, float]

COLOURS: dict[str, RGB] = {
    'red': (225, 28, 38),
    'orange': (255, 132, 0),
    'yellow': (255, 226, 30),
    'green': (24, 170, 56),
    'blue': (32, 78, 236),
    'purple': (138, 36, 196),
    'pink': (255, 108, 188),
    'white': (255, 255, 255),
}
STYLES = ('flat', 'sketch', 'neon')

WHITE: RGB = (255, 255, 255)
BLACK: RGB = (0, 0, 0)
INK: RGB = (34, 31, 47)
PAPER: RGB = (243, 237, 222)


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """Colour a with the given share of b in it."""
    return tuple((1 - share) * x + share * y for x, y in zip(a, b, strict=True))  # type: ignore


def _flat(colour: RGB) -> dict[str, RGB]:
    pale = mix(colour, WHITE, 0.5) if colour != WHITE else (214.0, 220.0, 234.0)
    return {
        'body': colour,
        'tint': pale,
        'shade': mix(colour, INK, 0.3),
        'light': (255, 252, 240),
        'dark': INK,
        'glass': (190, 230, 248),
        'fire': (255, 222, 110),
        'wood': (238, 210, 164),
        'outline': INK,
        'trail': (250, 252, 255),
    }


def _sketch(colour: RGB) -> dict[str, RGB]:
    graphite: RGB = (58, 52, 58)
    inks = _flat(colour)
    hatch = colour if colour != WHITE else (198.0, 200.0, 208.0)
    return {
        **inks,
        'body': mix(colour, WHITE, 0.4),
        'tint': mix(colour, WHITE, 0.7),
        'shade': mix(colour, WHITE, 0.15) if colour != WHITE else (222.0, 224.0, 230.0),
        'hatch': hatch,
        'dark': graphite,
        'outline': graphite,
        'trail': (150, 142, 140),
    }


def _neon(colour: RGB) -> dict[str, RGB]:
    return {
        'body': mix(colour, BLACK, 0.66),
        'tint': mix(colour, BLACK, 0.4),
        'shade': mix(colour, BLACK, 0.8),
        'light': (250, 250, 255),
        'dark': (8, 7, 16),
        'glass': mix(colour, WHITE, 0.6),
        'fire': mix(colour, WHITE, 0.4),
        'wood': mix(colour, BLACK, 0.84),
        'glow': colour,
        'rim': mix(colour, WHITE, 0.22),
        'trail': mix(colour, WHITE, 0.35),
    }


@cache
def inks(style: str, colour: str) -> dict[str, RGB]:
    """The fill of each role (body, tint, shade, light, ...) of a sprite, RGB in 0 to 255."""
    make = {'flat': _flat, 'sketch': _sketch, 'neon': _neon}[style]
    return make(COLOURS[colour])


def ink_matrix(style: str, colour: str, roles: tuple[str, ...]) -> np.ndarray:
    """The inks of the given roles as float32 [roles, 3]."""
    table = inks(style, colour)
    return np.asarray([table[role] for role in roles], dtype=np.float32)

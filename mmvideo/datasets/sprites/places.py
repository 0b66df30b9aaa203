"""Backgrounds: six places, drawn from a few smooth large features in each of the three styles.

Coordinates are units of which the frame has 64, so a place looks the same at every size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmvideo.datasets.sprites.palette import PAPER, RGB, mix
from mmvideo.datasets.sprites.sdf import Array, box, circle, ellipse, polygon, taper

Feature = tuple[Array, RGB]


@dataclass(frozen=True)
class Place:
    """A sky from top to bottom, features painted over it in order, and a hue for neon."""

    sky: tuple[RGB, RGB]
    hue: RGB
    features: Callable[[Array, Array], list[Feature]]


def _line(x: Array, y: Array, height: float, swing: float, waves: float, phase: float) -> Array:
    return height + swing * np.sin(x * (2 * np.pi * waves / 64) + phase) - y


def _field(x: Array, y: Array) -> list[Feature]:
    return [
        (circle(x, y, 49.0, 9.0, 5.0), (204, 206, 180)),
        (_line(x, y, 20.0, 3.0, 1.1, 0.4), (136, 162, 142)),
        (box(x, y, 12.0, 25.0, 1.3, 6.0), (122, 124, 100)),
        (circle(x, y, 12.0, 17.5, 6.0), (112, 142, 110)),
        (_line(x, y, 29.0, 2.0, 0.8, 2.2), (148, 170, 120)),
        (_line(x, y, 48.0, 3.5, 0.9, 4.6), (134, 158, 106)),
    ]


def _desert(x: Array, y: Array) -> list[Feature]:
    return [
        (circle(x, y, 15.0, 10.0, 6.0), (226, 214, 180)),
        (polygon(x, y, [(39, 27), (42, 13), (54, 13), (59, 27)]), (184, 150, 126)),
        (_line(x, y, 25.0, 3.5, 0.9, 3.4), (202, 176, 132)),
        (_line(x, y, 43.0, 5.0, 0.8, 0.3), (188, 160, 116)),
    ]


def _sea(x: Array, y: Array) -> list[Feature]:
    island = np.maximum(ellipse(x, y, 46.0, 20.0, 10.0, 6.0), y - 20)
    waves = [
        (np.abs(_line(x, y, h, 1.6, 1.5, h)) - 1.5, (118, 158, 170)) for h in (29.0, 42.0, 55.0)
    ]
    return [(island, (126, 146, 136)), (19.0 - y + 0 * x, (94, 138, 154)), *waves]


def _snow(x: Array, y: Array) -> list[Feature]:
    pines = [
        (polygon(x, y, [(cx - 5, 33), (cx, 33 - h), (cx + 5, 33)]), (112, 136, 142))
        for cx, h in ((53.0, 15.0), (44.5, 11.0))
    ]
    return [
        (polygon(x, y, [(-10, 30), (14, 6), (38, 30)]), (146, 158, 180)),
        (polygon(x, y, [(8, 12), (14, 6), (20, 12)]), (196, 204, 216)),
        (polygon(x, y, [(18, 30), (38, 13), (66, 30)]), (154, 166, 186)),
        *pines,
        (_line(x, y, 28.0, 1.6, 0.8, 1.2), (182, 194, 208)),
        (_line(x, y, 47.0, 3.0, 0.9, 3.6), (168, 182, 200)),
    ]


def _city(x: Array, y: Array) -> list[Feature]:
    far = [(6.0, 18.0, 5.0), (27.0, 11.0, 5.0), (48.0, 15.0, 6.0)]
    near = [(16.0, 23.0, 5.0), (37.0, 20.0, 4.5), (58.0, 25.0, 5.0)]
    towers = [(box(x, y, cx, top + 40, w, 40.0), (132, 124, 146)) for cx, top, w in far]
    blocks = [(box(x, y, cx, top + 40, w, 40.0), (112, 108, 128)) for cx, top, w in near]
    windows = [(box(x, y, cx, top + 5.5, 2.0, 2.0), (170, 156, 136)) for cx, top, _ in near]
    dashes = [
        (taper(x, y, (cx, 55.0), (cx + 7.0, 55.0), 1.1, 1.1), (142, 138, 138))
        for cx in (6.0, 28.0, 50.0)
    ]
    pavement, road = (44.0 - y + 0 * x, (128, 122, 130)), (47.5 - y + 0 * x, (98, 97, 110))
    return [*towers, *blocks, *windows, pavement, road, *dashes]


def _space(x: Array, y: Array) -> list[Feature]:
    spots = ((8, 9), (27, 6), (24, 25), (58, 40), (38, 56), (5, 30), (58, 58))
    stars = [(circle(x, y, cx, cy, 1.3), (150, 150, 174)) for cx, cy in spots]
    ring = np.abs(ellipse(x, y + 0.35 * (x - 48), 48.0, 16.0, 14.0, 3.4)) - 0.7
    return [
        (ellipse(x, y - 0.5 * x, 30.0, 18.0, 40.0, 9.0), (76, 68, 110)),
        *stars,
        (circle(x, y, 48.0, 16.0, 8.0), (112, 98, 134)),
        (np.maximum(ring, 14.6 - y - 0.35 * (x - 48)), (142, 130, 156)),
        (circle(x, y, 14.0, 50.0, 6.0), (96, 100, 126)),
        (circle(x, y, 12.0, 48.5, 1.8), (82, 86, 114)),
    ]


PLACES: dict[str, Place] = {
    'field': Place(((156, 182, 196), (188, 202, 200)), (70, 230, 120), _field),
    'desert': Place(((196, 186, 168), (218, 200, 164)), (255, 150, 50), _desert),
    'sea': Place(((162, 184, 198), (186, 202, 208)), (40, 190, 235), _sea),
    'snow': Place(((142, 152, 176), (176, 184, 200)), (170, 205, 255), _snow),
    'city': Place(((138, 128, 152), (178, 156, 156)), (255, 60, 170), _city),
    'space': Place(((50, 48, 82), (66, 60, 98)), (130, 90, 255), _space),
}


def _sky(place: Place, y: Array, width: int) -> Array:
    share = np.clip(y / 64, 0, 1)[..., None]
    top, bottom = (np.asarray(c, np.float32) for c in place.sky)
    return np.repeat(top + (bottom - top) * share, width, axis=1)


def _over(picture: Array, colour: RGB, alpha: Array) -> Array:
    return picture + (np.asarray(colour, np.float32) - picture) * alpha[..., None]


def _paint_flat(place: Place, x: Array, y: Array, scale: float) -> Array:
    picture = _sky(place, y, x.shape[1])
    for distance, colour in place.features(x, y):
        picture = _over(picture, colour, np.clip(0.5 - distance * scale, 0, 1))
    return picture


def _paint_sketch(place: Place, x: Array, y: Array, scale: float) -> Array:
    """Pale washes on paper, with a thin pencil line around each feature."""
    picture = np.asarray(PAPER, np.float32) * 0.86 + _sky(place, y, x.shape[1]) * 0.14
    for distance, colour in place.features(x, y):
        picture = _over(picture, mix(PAPER, colour, 0.26), np.clip(0.5 - distance * scale, 0, 1))
        line = np.clip(0.5 + (0.5 - np.abs(distance)) * scale, 0, 1)
        picture = _over(picture, mix(PAPER, (80, 74, 84), 0.5), 0.7 * line)
    return picture


def _paint_neon(place: Place, x: Array, y: Array, scale: float) -> Array:
    """Night in the place's hue, with dimly glowing edges."""
    night: RGB = (9, 8, 17)
    picture = _sky(place, y, x.shape[1]) * 0 + np.asarray(mix(night, place.hue, 0.05), np.float32)
    for index, (distance, _) in enumerate(place.features(x, y)):
        fill = mix(night, place.hue, 0.06 + 0.03 * (index % 3))
        picture = _over(picture, fill, np.clip(0.5 - distance * scale, 0, 1))
        glow = np.exp(-np.abs(distance) / 0.9)
        picture = _over(picture, mix(night, place.hue, 0.42), 0.8 * glow)
    return picture


PAINTERS = {'flat': _paint_flat, 'sketch': _paint_sketch, 'neon': _paint_neon}


@lru_cache(maxsize=256)
def background(place: str, style: str, size: int) -> np.ndarray:
    """The picture of a place without a sprite: read-only uint8 [size, size, 3]."""
    axis = ((np.arange(size) + 0.5) * (64 / size)).astype(np.float32)
    picture = PAINTERS[style](
        PLACES[place], axis[None, :] + 0 * axis[:, None], axis[:, None], size / 64
    )
    picture = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    picture.flags.writeable = False
    return picture

"""The eight kinds of sprite as signed distances in their own coordinates.

``u`` points where the sprite is heading and ``v`` to its side (down, for one that heads right), in
units of which a frame has 64. A shape is a list of ``(role, distance)`` from back to front; the
role says with which ink of the palette the part is filled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from mmvideo.datasets.sprites.sdf import Array, box, circle, ellipse, lens, polygon, taper

Parts = list[tuple[str, Array]]

# Streaks behind the sprite: half-spread to the sides, and length, by pace.
STREAKS = {
    'still': ((), 0.0),
    'slow': ((0.0,), 4.5),
    'steady': ((-4.0, 4.0), 6.0),
    'fast': ((-6.5, 0.0, 6.5), 7.5),
}
STREAK_GAP = 2.6


def _fish(u: Array, v: Array) -> Parts:
    side = np.abs(v)
    return [
        ('shade', polygon(u, side, [(-5.0, -1.0), (-12.5, 7.5), (-10.0, -1.0)])),
        ('shade', polygon(u, v, [(6.0, -4.0), (-2.5, -9.5), (-4.0, -4.0)])),
        ('body', ellipse(u, v, 2.3, 0.0, 10.0, 6.7)),
        ('tint', ellipse(u, v, 1.5, 3.2, 5.5, 1.9)),
        ('light', circle(u, v, 7.3, -1.4, 2.1)),
        ('dark', circle(u, v, 7.9, -1.4, 1.05)),
    ]


def _car(u: Array, v: Array) -> Parts:
    side = np.abs(v)
    return [
        ('dark', box(np.abs(u), side, 7.2, 6.6, 2.8, 2.0, 0.8)),
        ('body', box(u, v, 0.0, 0.0, 12.4, 6.6, 3.6)),
        ('glass', box(u, v, 1.9, 0.0, 2.2, 4.9, 1.3)),
        ('glass', box(u, v, -9.0, 0.0, 1.2, 4.2, 0.9)),
        ('tint', box(u, v, -4.1, 0.0, 2.8, 4.3, 1.0)),
        ('fire', circle(u, side, 10.2, 4.1, 1.9)),
    ]


def _arrow(u: Array, v: Array) -> Parts:
    side = np.abs(v)
    return [
        ('body', box(u, v, -4.5, 0.0, 8.0, 3.9, 0.8)),
        ('body', polygon(u, side, [(12.6, 0.0), (-0.6, 10.8), (-0.6, -1.0)])),
        ('tint', taper(u, v, (-9.2, 0.0), (5.0, 0.0), 1.1, 1.1)),
        ('tint', taper(u, side, (7.6, 0.0), (2.6, 4.4), 1.1, 1.1)),
    ]


def _comet(u: Array, v: Array) -> Parts:
    side = np.abs(v)
    return [
        ('tint', taper(u, side, (4.0, 4.2), (-8.0, 8.4), 3.2, 0.5)),
        ('tint', taper(u, v, (3.0, 0.0), (-12.4, 0.0), 5.5, 0.5)),
        ('body', circle(u, v, 5.2, 0.0, 7.4)),
        ('shade', circle(u, v, 2.2, 2.6, 1.7)),
        ('shade', circle(u, v, 7.0, 3.6, 1.2)),
        ('light', ellipse(u, v, 7.4, -2.6, 2.3, 1.9)),
    ]


def _rocket(u: Array, v: Array) -> Parts:
    side = np.abs(v)
    hull = lens(u, v, 0.4, 12.4, 5.4)
    return [
        ('fire', taper(u, v, (-8.0, 0.0), (-12.3, 0.0), 2.9, 0.9)),
        ('shade', polygon(u, side, [(-1.5, 2.5), (-6.5, 9.2), (-10.8, 9.2), (-8.0, 2.5)])),
        ('body', np.maximum(hull, -8.4 - u)),
        ('tint', np.maximum(hull, 6.4 - u)),
        ('dark', circle(u, v, 1.6, 0.0, 3.1)),
        ('glass', circle(u, v, 1.6, 0.0, 2.2)),
    ]


def _plane(u: Array, v: Array) -> Parts:
    side = np.abs(v)
    return [
        ('shade', polygon(u, side, [(-8.0, -1.0), (-10.6, 5.8), (-13.0, 5.8), (-12.2, -1.0)])),
        ('body', polygon(u, side, [(5.0, -1.0), (-2.4, 12.4), (-6.0, 12.4), (-3.0, -1.0)])),
        ('tint', taper(u, side, (1.8, 6.4), (-3.0, 6.4), 1.2, 1.0)),
        ('body', taper(u, v, (9.4, 0.0), (-11.4, 0.0), 3.2, 1.5)),
        ('glass', ellipse(u, v, 8.0, 0.0, 2.7, 1.7)),
    ]


def _beetle(u: Array, v: Array) -> Parts:
    side = np.abs(v)
    return [
        ('dark', taper(u, side, (3.5, 4.0), (6.8, 9.8), 0.9, 0.6)),
        ('dark', taper(u, side, (-2.0, 5.0), (-2.4, 11.2), 0.9, 0.6)),
        ('dark', taper(u, side, (-7.0, 4.0), (-11.0, 9.6), 0.9, 0.6)),
        ('dark', taper(u, side, (9.0, 1.4), (12.4, 4.6), 0.6, 0.6)),
        ('dark', circle(u, v, 7.0, 0.0, 4.2)),
        ('body', ellipse(u, v, -3.0, 0.0, 9.4, 7.8)),
        ('dark', box(u, v, -3.6, 0.0, 8.6, 0.55)),
        ('dark', circle(u, side, 0.4, 3.6, 1.5)),
        ('dark', circle(u, side, -6.4, 3.5, 1.5)),
        ('light', circle(u, side, 8.7, 2.3, 1.3)),
    ]


def _boat(u: Array, v: Array) -> Parts:
    side = np.abs(v)
    hull = np.maximum(lens(u, v, -4.0, 16.6, 6.6), -11.8 - u)
    return [
        ('wood', taper(u, side, (1.0, 4.0), (-3.6, 11.6), 0.8, 1.6)),
        ('body', hull),
        ('wood', np.maximum(hull + 2.5, np.abs(u + 3.6) - 6.0)),
        ('shade', box(u, v, -5.8, 0.0, 1.2, 3.6)),
        ('shade', box(u, v, -0.2, 0.0, 1.2, 3.2)),
        ('light', circle(u, v, 6.6, 0.0, 1.5)),
    ]


SHAPES: dict[str, Callable[[Array, Array], Parts]] = {
    'fish': _fish,
    'car': _car,
    'arrow': _arrow,
    'comet': _comet,
    'rocket': _rocket,
    'plane': _plane,
    'beetle': _beetle,
    'boat': _boat,
}
KINDS = tuple(SHAPES)


def silhouette(parts: Parts) -> Array:
    """The distance to the union of all parts."""
    outline = parts[0][1]
    for _, distance in parts[1:]:
        outline = np.minimum(outline, distance)
    return outline


@cache
def extent(kind: str) -> tuple[float, float, float]:
    """How far a body reaches from its centre: (front, back, side), in units of 1/64 frame."""
    axis = np.arange(-20, 20, 0.1, dtype=np.float32)
    inside = silhouette(SHAPES[kind](axis[None, :], axis[:, None])) < 0
    along, across = axis[inside.any(0)], axis[inside.any(1)]
    return float(along.max()), float(-along.min()), float(np.abs(across).max())


def streaks(kind: str, pace: str, u: Array, v: Array) -> Array | None:
    """The marks that a moving sprite leaves behind it, or None for one that stands still."""
    rows, length = STREAKS[pace]
    if not rows:
        return None
    near = -extent(kind)[1] - STREAK_GAP
    across = np.min([np.abs(v - row) for row in rows], axis=0)
    return taper(u, across, (near, 0.0), (near - length + 2.0, 0.0), 1.3, 0.8)

"""Signed distances of simple shapes: negative inside, in the units of their arguments.

``u`` and ``v`` are float arrays that broadcast against each other, so a distance that depends on
one axis only costs one row. Distances are exact or first order near the edge, where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def circle(u: Array, v: Array, cu: float, cv: float, radius: float) -> Array:
    """A disc around (cu, cv)."""
    return np.sqrt((u - cu) ** 2 + (v - cv) ** 2) - radius


def ellipse(u: Array, v: Array, cu: float, cv: float, a: float, b: float) -> Array:
    """An ellipse with half axes a (along u) and b, to first order."""
    pu, pv = (u - cu) / a, (v - cv) / b
    level = np.sqrt(pu * pu + pv * pv)
    slope = np.sqrt((pu / a) ** 2 + (pv / b) ** 2)
    return level * (level - 1) / np.maximum(slope, 1e-6)


def box(u: Array, v: Array, cu: float, cv: float, hu: float, hv: float, r: float = 0) -> Array:
    """A box with half sides hu and hv, corners rounded by r."""
    qu, qv = np.abs(u - cu) - (hu - r), np.abs(v - cv) - (hv - r)
    outside = np.sqrt(np.maximum(qu, 0) ** 2 + np.maximum(qv, 0) ** 2)
    return outside + np.minimum(np.maximum(qu, qv), 0) - r


def taper(
    u: Array, v: Array, a: tuple[float, float], b: tuple[float, float], ra: float, rb: float
) -> Array:
    """A stroke from a to b whose radius goes from ra to rb; a capsule where they are equal."""
    du, dv = b[0] - a[0], b[1] - a[1]
    along = np.clip(((u - a[0]) * du + (v - a[1]) * dv) / (du * du + dv * dv), 0, 1)
    gap = np.sqrt((u - a[0] - along * du) ** 2 + (v - a[1] - along * dv) ** 2)
    return gap - (ra + (rb - ra) * along)


def polygon(u: Array, v: Array, points: Sequence[tuple[float, float]]) -> Array:
    """A convex polygon; outlines around it are round at its corners."""
    middle = np.mean(points, axis=0)
    inside: Array | None = None
    outside: Array | None = None
    for (au, av), (bu, bv) in zip(points, [*points[1:], points[0]], strict=True):
        du, dv = bu - au, bv - av
        length = float(np.hypot(du, dv))
        sign = 1.0 if dv * (middle[0] - au) - du * (middle[1] - av) < 0 else -1.0
        pu, pv = u - au, v - av
        across = pu * (sign * dv / length) - pv * (sign * du / length)
        along = pu * (du / length) + pv * (dv / length)
        beyond = along - np.clip(along, 0, length)
        squared = across * across + beyond * beyond
        inside = across if inside is None else np.maximum(inside, across)
        outside = squared if outside is None else np.minimum(outside, squared)
    assert inside is not None and outside is not None
    return np.copysign(np.sqrt(outside), inside)


def lens(u: Array, v: Array, cu: float, half_length: float, half_width: float) -> Array:
    """Two arcs that meet in points at cu - half_length and cu + half_length."""
    radius = (half_length**2 + half_width**2) / (2 * half_width)
    return np.sqrt((u - cu) ** 2 + (np.abs(v) + radius - half_width) ** 2) - radius

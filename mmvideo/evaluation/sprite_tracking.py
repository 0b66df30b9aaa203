"""Find the sprite in a clip by drawing it again: no network judges what the models made.

The backgrounds are known, so place and style are those of the nearest one, and the sprite is what
differs from it. Kind, colour and heading are those of the rendered template that explains the
difference best, first on a coarse grid over all templates, then at full size and sub-pixel
positions. T frames, S frame size in pixels, K templates, G cells of the coarse grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from mmvideo.datasets.sprites.palette import COLOURS, STYLES, ink_matrix
from mmvideo.datasets.sprites.places import PLACES, background
from mmvideo.datasets.sprites.shapes import KINDS
from mmvideo.datasets.sprites.world import (
    FRAME,
    HEADINGS,
    MAX_SIZE,
    MIN_SIZE,
    PACES,
    Scene,
    render_at,
    sprite_weights,
)
from mmvideo.errors import InputError

GRID = 32  # cells of the coarse frame
CELL = FRAME / GRID
PATCH = 24  # cells of a coarse template, enough for a sprite and its streaks
SHIFTS, WIDE_SHIFTS = 2, 5  # cells around the blob's centre where templates are tried
COARSE_PACES = ('still', 'fast')
PROBES = 4  # frames that decide what the sprite is
CANDIDATES = 6  # templates that are compared at full size
FOREGROUND = 60.0  # summed RGB difference from which a pixel may be sprite
SMALLEST_BLOB = 50.0  # in 1/64 frames squared; the slimmest body covers about 150
DOUBTFUL_BELOW = 0.8  # the share explained below which templates are tried further off
KNOWN_FROM = 0.65  # share of the difference to the background that a clip's sprite must explain
LOST_BELOW = 0.5  # the same, of a single frame
PLACE_ERROR = 25.0  # mean error per channel beyond which a background is none of ours


@dataclass(frozen=True)
class Track:
    """What a clip shows.

    ``positions`` [T, 2] are the sprite's centres (x, y) in px, NaN where it is lost;
    ``explained`` [T] is the share of the difference to the background that the best template
    explains (1 is perfect), ``background_error`` the mean error per channel of the place found.
    Of a lost sprite kind, colour, heading and pace are None; of an unknown background the place
    and style are None.
    """

    positions: np.ndarray
    kind: str | None
    colour: str | None
    heading: str | None
    pace: str | None
    place: str | None
    style: str | None
    explained: np.ndarray
    background_error: float

    @property
    def lost_frames(self) -> np.ndarray:
        """Frames without a sprite: bool [T]."""
        return np.isnan(self.positions[:, 0])

    @property
    def lost(self) -> bool:
        """Whether no sprite was found."""
        return self.kind is None

    @property
    def confidence(self) -> float:
        """The mean share explained, 0 for a lost sprite."""
        return 0.0 if self.lost else float(self.explained[~self.lost_frames].mean())

    @property
    def displacement(self) -> np.ndarray:
        """Last position minus first, of the frames that show the sprite: [2] px, NaN when lost."""
        seen = self.positions[~self.lost_frames]
        return seen[-1] - seen[0] if len(seen) else np.full(2, np.nan)

    @property
    def excursion(self) -> float:
        """The largest distance from the first position, px; NaN when lost."""
        seen = self.positions[~self.lost_frames]
        return float(np.linalg.norm(seen - seen[0], axis=1).max()) if len(seen) else float('nan')


def track(video: np.ndarray, styles: Sequence[str] = STYLES) -> Track:
    """Find place, style and sprite of a clip.

    Args:
        video: uint8 [T, S, S, 3].
        styles: the drawing styles to consider.

    Raises:
        InputError: for another type or shape.
    """
    _check(video, styles)
    place, style, error = find_background(video, styles)
    picture = background(place, style, video.shape[1]).astype(np.float32)
    frames = video.astype(np.float32)
    centres, areas = _blobs(frames, picture)
    seen = np.flatnonzero(areas >= SMALLEST_BLOB)
    blank = Scene('fish', 'red', place, 'left', 'still', style)
    empty = _no_sprite(len(video), blank if error <= PLACE_ERROR else None, error)
    if not len(seen):
        return empty
    probes = seen[np.linspace(0, len(seen) - 1, min(PROBES, len(seen))).round().astype(int)]
    grid, behind = _coarse(frames), _coarse(picture)
    scene, offset, share = _identify(grid[probes], behind, centres[probes], blank, SHIFTS)
    if share < DOUBTFUL_BELOW:
        # A faint body with bright streaks has its blob's centre far behind its own.
        few = probes[::3]
        further = _identify(grid[few], behind, centres[few], blank, WIDE_SHIFTS)
        scene, offset, share = max((scene, offset, share), further, key=lambda found: found[2])
    centres, explained = _follow(grid, behind, centres + offset, scene)
    lost = (explained < LOST_BELOW) | (areas < SMALLEST_BLOB)
    if lost.mean() > 0.5 or explained[~lost].mean() < KNOWN_FROM:
        return replace(empty, explained=explained)
    named = {name: getattr(scene, name) for name in ('kind', 'colour', 'heading', 'pace')}
    positions = np.where(lost[:, None], np.nan, centres * (video.shape[1] / FRAME))
    return replace(empty, positions=positions, explained=explained, **named)


def _no_sprite(frames: int, background_of: Scene | None, error: float) -> Track:
    """A track that found no sprite, on a known background or none."""
    place, style = (background_of.place, background_of.style) if background_of else (None, None)
    nowhere, nothing = np.full((frames, 2), np.nan), np.zeros(frames)
    return Track(nowhere, None, None, None, None, place, style, nothing, error)


def _check(video: np.ndarray, styles: Sequence[str]) -> None:
    shape = video.shape
    if video.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise InputError(f'a sprite clip is uint8 [T, S, S, 3], got {video.dtype} {list(shape)}')
    if not shape[0] or not MIN_SIZE <= shape[1] <= MAX_SIZE:
        raise InputError(
            f'a sprite clip has frames of {MIN_SIZE} to {MAX_SIZE} px, got {list(shape)}'
        )
    if not styles or not set(styles) <= set(STYLES):
        raise InputError(f'styles are some of {", ".join(STYLES)}; got {list(styles)}')


def find_background(video: np.ndarray, styles: Sequence[str] = STYLES) -> tuple[str, str, float]:
    """The nearest background: (place, style, mean error per channel of its best 3/4 pixels)."""
    # Over time the median leaves out a sprite that moves, over space the trimming one that stands.
    usual = np.median(video, axis=0).astype(np.float32)
    keep = usual.shape[0] * usual.shape[1] * 3 // 4
    best = ('', '', np.inf)
    for style in styles:
        for place in PLACES:
            error = np.abs(usual - background(place, style, video.shape[1])).mean(axis=2).ravel()
            trimmed = float(np.partition(error, keep)[:keep].mean())
            best = min(best, (place, style, trimmed), key=lambda found: found[2])
    return best


def _box_sums(values: np.ndarray, reach: int) -> np.ndarray:
    """Sums over squares of 2 reach + 1 px around each pixel: [T, S, S]."""
    padded = np.pad(values, ((0, 0), (reach + 1, reach), (reach + 1, reach)))
    total = padded.cumsum(1).cumsum(2)
    side = 2 * reach + 1
    rows = total[:, side:] - total[:, :-side]
    return rows[:, :, side:] - rows[:, :, :-side]


def _blobs(frames: np.ndarray, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre [T, 2] and area [T] of the largest difference, both in units of 1/64 frame."""
    size = picture.shape[0]
    scale = size / FRAME
    difference = np.abs(frames - picture).sum(axis=3)
    # Clipped, so that bright streaks do not pull the centre away from the body.
    strength = np.clip(difference - FOREGROUND, 0, 2 * FOREGROUND)
    sums = _box_sums(strength, int(10 * scale)).reshape(len(frames), -1)
    y, x = np.divmod(sums.argmax(axis=1), size)
    centres = np.stack([x, y], axis=1) + 0.5
    axis = np.arange(size) + 0.5
    for reach in (16 * scale, 14 * scale, 14 * scale):
        near_x = np.abs(axis - centres[:, :1]) <= reach
        near_y = np.abs(axis - centres[:, 1:]) <= reach
        near = strength * near_x[:, None, :] * near_y[:, :, None]
        total = np.maximum(near.sum(axis=(1, 2)), 1e-6)
        middle = np.stack([near.sum(1) @ axis, near.sum(2) @ axis], axis=1) / total[:, None]
        centres = np.where(near.any(axis=(1, 2))[:, None], middle, centres)
    return centres / scale, (near > 0).sum(axis=(1, 2)) / scale**2


def _coarse(pictures: np.ndarray) -> np.ndarray:
    """Area-average [..., S, S, C] to the coarse grid [..., G, G, C]."""
    size = pictures.shape[-2]
    edges = np.arange(GRID + 1) * size / GRID
    pixels = np.arange(size)
    ends = np.minimum(pixels + 1, edges[1:, None])
    share = np.clip(ends - np.maximum(pixels, edges[:-1, None]), 0, None) * (GRID / size)
    share = share.astype(np.float32)
    rows = share @ pictures.reshape(*pictures.shape[:-3], size, -1)
    return share @ rows.reshape(*pictures.shape[:-3], GRID, size, -1)


@dataclass(frozen=True)
class _Templates:
    """Every sprite of one style on the coarse grid, centred in a patch."""

    shapes: tuple[tuple[str, str, str], ...]  # (kind, heading, pace)
    inks: np.ndarray  # [K, colours, PATCH * PATCH * 3], what the sprite adds
    inks_left: np.ndarray  # the same, times what it leaves of the background
    left: np.ndarray  # [K, PATCH * PATCH]
    energy: np.ndarray  # [K, colours]


@cache
def _templates(style: str) -> _Templates:
    shapes = tuple((k, h, p) for k in KINDS for h in HEADINGS for p in COARSE_PACES)
    drawn = [_coarse_template(style, *shape) for shape in shapes]
    inks = np.stack([ink for ink, _ in drawn])
    left = np.stack([rest for _, rest in drawn])
    spread = np.repeat(left, 3, axis=1)[:, None]
    return _Templates(shapes, inks, inks * spread, left, (inks**2).sum(axis=2))


def _coarse_template(
    style: str, kind: str, heading: str, pace: str
) -> tuple[np.ndarray, np.ndarray]:
    scene = Scene(kind, 'red', 'field', heading, pace, style)
    origin, roles, weights, left = sprite_weights(scene, np.full((1, 2), FRAME / 2), int(FRAME))
    (x, y), (height, width) = origin[0], left.shape[1:]
    canvas = np.zeros((int(FRAME), int(FRAME), len(roles) + 1), np.float32)
    canvas[..., -1] = 1
    canvas[y : y + height, x : x + width, :-1] = weights[0]
    canvas[y : y + height, x : x + width, -1] = left[0]
    margin = (GRID - PATCH) // 2
    cells = _coarse(canvas)[margin:-margin, margin:-margin].reshape(PATCH * PATCH, -1)
    inks = np.stack([ink_matrix(style, colour, roles) for colour in COLOURS])
    return (cells[:, :-1] @ inks).reshape(len(inks), -1), cells[:, -1].copy()


def _patches(coarse: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Cut a patch at every corner [T, shifts, 2] (x, y): [T, shifts, PATCH, PATCH, 3]."""
    pad = PATCH + 2
    padded = np.pad(coarse, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode='edge')
    span = np.arange(PATCH)
    rows = corners[..., 1, None] + pad + span
    columns = corners[..., 0, None] + pad + span
    frame = np.arange(len(coarse))[:, None, None, None]
    return padded[frame, rows[..., :, None], columns[..., None, :]]


def _coarse_errors(
    frames: np.ndarray, picture: np.ndarray, centres: np.ndarray, style: str, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Squared error of every template [K, colours, T], at its best cell [K, colours, T, 2].

    ``frames`` [T, G, G, 3] and ``picture`` [G, G, 3] are on the coarse grid, as from here on.
    """
    templates = _templates(style)
    shapes, colours, cells = templates.inks.shape
    cell = np.rint(centres / CELL).astype(int)
    tried = cell[:, None] + _shifts(reach)
    corners = tried - PATCH // 2
    seen = _patches(frames, corners)
    behind = _patches(np.repeat(picture[None], len(frames), axis=0), corners)
    p, b = seen.reshape(-1, cells).T, behind.reshape(-1, cells).T
    per_cell = {
        name: (x * y).sum(axis=-1).reshape(-1, PATCH * PATCH).T
        for name, x, y in (('bb', behind, behind), ('bp', behind, seen))
    }
    # |ink + left * b - p|^2, spelled out so that every template and shift is one product.
    flat = (shapes * colours, cells)
    cross = templates.inks_left.reshape(flat) @ b - templates.inks.reshape(flat) @ p
    rest = templates.left**2 @ per_cell['bb'] - 2 * templates.left @ per_cell['bp']
    error = 2 * cross.reshape(shapes, colours, -1) + rest[:, None] + (p * p).sum(axis=0)
    error = (error + templates.energy[..., None]).reshape(shapes, colours, len(frames), -1)
    return error.min(axis=3), tried[np.arange(len(frames)), error.argmin(axis=3)]


def _shifts(reach: int) -> np.ndarray:
    """Every whole shift of up to ``reach`` along x and y: [shifts, 2]."""
    span = np.arange(-reach, reach + 1)
    return np.stack(np.meshgrid(span, span), axis=-1).reshape(-1, 2)


def _identify(
    frames: np.ndarray, picture: np.ndarray, centres: np.ndarray, scene: Scene, reach: int
) -> tuple[Scene, np.ndarray, float]:
    """The scene that explains the frames best, its offset from the blobs' centres, its share."""
    errors, cells = _coarse_errors(frames, picture, centres, scene.style, reach)
    shapes, names = _templates(scene.style).shapes, tuple(COLOURS)
    tried: dict[tuple[str, str, str], tuple[float, Scene, np.ndarray]] = {}
    for choice in np.argsort(errors.sum(axis=2), axis=None):
        shape, colour = np.unravel_index(choice, errors.shape[:2])
        kind, heading, pace = shapes[shape]
        if (kind, heading, names[colour]) in tried:
            continue
        guess = replace(scene, kind=kind, heading=heading, pace=pace, colour=names[colour])
        at, explained = _refine(frames, picture, cells[shape, colour] * CELL, guess, rounds=2)
        tried[kind, heading, names[colour]] = (float(explained.mean()), guess, at)
        if len(tried) == CANDIDATES:
            break
    _, best, at = max(tried.values(), key=lambda fitted: fitted[0])
    paces = [replace(best, pace=pace) for pace in PACES]
    fits = [float(_refine(frames, picture, at, guess, 0)[1].mean()) for guess in paces]
    return paces[int(np.argmax(fits))], np.median(at - centres, axis=0), max(fits)


def _refine(
    frames: np.ndarray, picture: np.ndarray, centres: np.ndarray, scene: Scene, rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton on the positions: centres [T, 2], and the share explained there [T]."""
    step = 0.5
    moves = np.array([[0, 0], [step, 0], [-step, 0], [0, step], [0, -step]])
    for _ in range(rounds):
        drawn = _draw(scene, (centres + moves[:, None]).reshape(-1, 2))
        here, right, left, down, up = drawn.reshape(5, *frames.shape)
        slope = np.stack([right - left, down - up], axis=1) / (2 * step)
        slope = slope.reshape(len(frames), 2, -1)
        missing = (frames - here).reshape(len(frames), -1, 1)
        curvature = slope @ slope.transpose(0, 2, 1) + 1e-3 * np.eye(2)
        move = np.linalg.solve(curvature, slope @ missing)[..., 0]
        centres = np.clip(centres + np.clip(move, -2, 2), 0, FRAME)
        if np.abs(move).max() < 0.01:
            break
    near = _near(centres)
    error = (((frames - _draw(scene, centres)) ** 2).sum(axis=3) * near).sum(axis=(1, 2))
    empty = (((frames - picture) ** 2).sum(axis=3) * near).sum(axis=(1, 2))
    return centres, np.clip(1 - error / np.maximum(empty, 1e-6), 0, 1)


def _draw(scene: Scene, centres: np.ndarray) -> np.ndarray:
    """The scene with its sprite at every centre, on the coarse grid: [T, G, G, 3]."""
    return _coarse(render_at(scene, centres, int(FRAME)).astype(np.float32))


def _near(centres: np.ndarray, reach: float = 22.0) -> np.ndarray:
    """The square around each centre that can hold the sprite: bool [T, G, G]."""
    axis = (np.arange(GRID) + 0.5) * CELL
    inside = np.abs(axis - centres[..., None]) <= reach
    return inside[:, 0, None, :] & inside[:, 1, :, None]


def _follow(
    frames: np.ndarray, picture: np.ndarray, centres: np.ndarray, scene: Scene
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the sprite to every frame: centres [T, 2] and the share explained [T].

    Frames that go wrong start again from where the sprite is in the nearest good frame.
    """
    centres, explained = _refine(frames, picture, centres, scene, rounds=6)
    enough = max(LOST_BELOW, float(np.median(explained)) - 0.1)
    good, wrong = np.flatnonzero(explained >= enough), np.flatnonzero(explained < enough)
    if len(good) and len(wrong):
        times = np.stack([np.interp(wrong, good, centres[good, axis]) for axis in (0, 1)], axis=1)
        again, better = _refine(frames[wrong], picture, times, scene, rounds=6)
        gained = better > explained[wrong]
        centres[wrong[gained]], explained[wrong[gained]] = again[gained], better[gained]
    return centres, explained

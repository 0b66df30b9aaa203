"""The sprite world: one scene is one clip, drawn from signed distances, the same for one seed.

Positions are continuous and in units of which the frame has 64 (pixels, at the default size): the
frame is [0, 64] wide, and its first pixel has its centre at 0.5. T frames, S frame size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmvideo.datasets.sprites.palette import COLOURS, STYLES, ink_matrix
from mmvideo.datasets.sprites.places import PLACES, background
from mmvideo.datasets.sprites.shapes import KINDS, SHAPES, STREAKS, extent, silhouette, streaks
from mmvideo.errors import InputError, nearest

FRAME = 64.0
MIN_SIZE, MAX_SIZE = 32, 512
HEADINGS: dict[str, tuple[int, int]] = {
    'left': (-1, 0),
    'right': (1, 0),
    'up': (0, -1),
    'down': (0, 1),
}
# Displacement over the 15 intervals of a 16-frame clip.
PACES: dict[str, float] = {'still': 0.0, 'slow': 8.0, 'steady': 16.0, 'fast': 26.0}
CLIP_INTERVALS = 15
CLIP_FPS = 8.0
# What counts as the most motion, and as motion bucket 255, over as long a time.
MOST_TRAVEL = 32.0
PATHS = ('steady', 'loose', 'centred', 'free')
COURSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'straight': lambda s: s,
    'ease': lambda s: s * s * (3 - 2 * s),
    'return': lambda s: 0.5 - 0.5 * np.cos(2 * np.pi * s),
}
OUTLINE = {'flat': 1.2, 'sketch': 1.7, 'neon': 1.0}
GLOW = 7.0


@dataclass(frozen=True)
class Scene:
    """Everything that is needed to draw a clip again.

    ``start`` is the sprite's centre in the first frame, ``travel`` how far it gets along its
    heading at most, both in 1/64 of the frame; ``course`` is how it gets there.
    """

    kind: str
    colour: str
    place: str
    heading: str
    pace: str
    style: str = 'flat'
    start: tuple[float, float] = (32.0, 32.0)
    travel: float = 0.0
    course: str = 'straight'

    def __post_init__(self) -> None:
        for field, valid in ATTRIBUTES.items():
            if getattr(self, field) not in valid:
                raise InputError(_unknown(field, getattr(self, field), valid))


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    'kind': KINDS,
    'colour': tuple(COLOURS),
    'place': tuple(PLACES),
    'heading': tuple(HEADINGS),
    'pace': tuple(PACES),
    'style': STYLES,
    'course': tuple(COURSES),
}


def _unknown(field: str, value: object, valid: Sequence[str]) -> str:
    return f'unknown {field} {value!r}; one of {", ".join(valid)}.{nearest(value, valid)}'


def path(scene: Scene, frames: int) -> np.ndarray:
    """The sprite's centre in each of ``frames`` frames: float64 [T, 2] of (x, y)."""
    share = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    along = scene.travel * COURSES[scene.course](share)
    return np.asarray(scene.start) + along[:, None] * np.asarray(HEADINGS[scene.heading])


def reach(scene_kind: str, heading: str, style: str = 'flat') -> tuple[float, float, float, float]:
    """How far a body with its outline reaches (left, right, up, down) of its centre."""
    front, back, side = (r + OUTLINE[style] for r in extent(scene_kind))
    if heading in ('left', 'right'):
        ahead = (front, back) if heading == 'left' else (back, front)
        return (*ahead, side, side)
    ahead = (front, back) if heading == 'up' else (back, front)
    return (side, side, *ahead)


def _room(kind: str, heading: str, style: str) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest centre that keep the body inside the frame."""
    left, right, up, down = reach(kind, heading, style)
    return np.array([left, up]), np.array([FRAME - right, FRAME - down])


def place_start(
    share: Sequence[float] | np.ndarray,
    kind: str,
    heading: str,
    style: str,
    travel: float,
    tail: float = 0.0,
) -> tuple[tuple[float, float], float]:
    """A start from which the body stays inside, and the travel cut to what fits.

    ``share`` says where in the room that there is, 0 to 1 along x and along y. ``tail`` keeps so
    much more room behind the sprite, as far as there is any.
    """
    low, high = _room(kind, heading, style)
    step = np.asarray(HEADINGS[heading])
    axis = int(np.abs(step).argmax())
    travel = min(travel, float(high[axis] - low[axis]))
    tail = min(tail, float(high[axis] - low[axis]) - travel)
    low, high = low + np.maximum(-step, 0) * travel, high - np.maximum(step, 0) * travel
    low, high = low + np.maximum(step, 0) * tail, high - np.maximum(-step, 0) * tail
    start = low + np.asarray(share) * np.maximum(high - low, 0)
    return (float(start[0]), float(start[1])), travel


def intervals(frames: int, fps: float = CLIP_FPS) -> float:
    """How long a clip is, in frames at ``CLIP_FPS``; a single frame is a moment of a whole clip."""
    return (frames - 1 if frames > 1 else CLIP_INTERVALS) * CLIP_FPS / fps


def motion_bucket(travel: float, frames: int, fps: float) -> int:
    """How much moves in a given time, 0 to 255, however many frames show it."""
    speed = travel / intervals(frames, fps) * CLIP_INTERVALS
    return round(255 * min(speed / MOST_TRAVEL, 1.0))


def draw_motion(
    rng: np.random.Generator, pace: str, frames: int, paths: str, fps: float = CLIP_FPS
) -> tuple[float, str]:
    """Draw (travel, course): tied to the pace for 'steady' and 'centred' paths, else free of it."""
    share = intervals(frames, fps) / CLIP_INTERVALS
    if paths not in ('loose', 'free'):
        return PACES[pace] * rng.uniform(0.9, 1.1) * share, 'straight'
    course = 'straight'
    if paths == 'loose':
        course = str(rng.choice(['return', 'ease', 'straight'], p=[0.4, 0.2, 0.4]))
    return rng.uniform(0.0, MOST_TRAVEL) * share, course


def sample_scene(
    rng: np.random.Generator,
    style: str = 'flat',
    frames: int = 16,
    paths: str = 'steady',
    fps: float = CLIP_FPS,
    **fixed: str,
) -> Scene:
    """Draw a scene; keyword arguments fix some of its attributes.

    ``fps`` frames a second show less of a motion in one clip the more they are.

    Raises:
        InputError: for an unknown attribute, value or ``paths``.
    """
    if paths not in PATHS:
        raise InputError(_unknown('paths', paths, PATHS))
    for field in fixed:
        if field not in ('kind', 'colour', 'place', 'heading', 'pace'):
            raise InputError(_unknown('attribute', field, tuple(ATTRIBUTES)))
    drawn = {
        field: fixed.get(field) or ATTRIBUTES[field][rng.integers(len(ATTRIBUTES[field]))]
        for field in ('kind', 'colour', 'place', 'heading', 'pace')
    }
    scene = Scene(**drawn, style=style)  # type: ignore[arg-type]
    travel, course = draw_motion(rng, drawn['pace'], frames, paths, fps)
    # Half of the streaks at least must show in the first frame: nothing else tells the pace.
    tail = 0.0 if paths == 'centred' else STREAKS[drawn['pace']][1] * 0.5 + 1.0
    share = (0.5, 0.5) if paths == 'centred' else rng.random(2)
    start, travel = place_start(share, drawn['kind'], drawn['heading'], style, travel, tail)
    return replace(scene, start=start, travel=travel, course=course)


def _window(scene: Scene, scale: float) -> tuple[float, float, float, float]:
    """How far a picture of the sprite reaches (left, right, up, down), in pixels."""
    glow = GLOW if scene.style == 'neon' else 1.0
    tail = STREAKS[scene.pace][1] + 3.0 if scene.pace != 'still' else 0.0
    sides = dict(
        zip(
            ('left', 'right', 'up', 'down'),
            reach(scene.kind, scene.heading, scene.style),
            strict=True,
        )
    )
    behind = {'left': 'right', 'right': 'left', 'up': 'down', 'down': 'up'}[scene.heading]
    sides = {name: reached + glow for name, reached in sides.items()}
    sides[behind] += max(tail - glow, 0.0)
    return tuple(reached * scale for reached in sides.values())  # type: ignore[return-value]


def _cover(distance: np.ndarray, scale: float) -> np.ndarray:
    """How much of a pixel an edge at this distance covers."""
    return np.clip(0.5 - distance * scale, 0, 1)


def layers(
    scene: Scene, u: np.ndarray, v: np.ndarray, scale: float
) -> list[tuple[str, np.ndarray]]:
    """(role, alpha) of every layer of the sprite, from back to front, at local coordinates."""
    parts = SHAPES[scene.kind](u, v)
    shape = silhouette(parts)
    marks = streaks(scene.kind, scene.pace, u, v)
    stack = [] if marks is None else [('trail', 0.92 * _cover(marks, scale))]
    if scene.style == 'neon':
        glow = 0.6 * np.clip(1 - shape / GLOW, 0, 1) ** 3
        stack = [('glow', glow), *stack]
    else:
        stack.append(('outline', _cover(shape - OUTLINE[scene.style], scale)))
    stack += [(role, _cover(distance, scale)) for role, distance in parts]
    if scene.style == 'neon':
        stack.append(('rim', _cover(np.abs(shape + 0.2) - 1, scale)))
    if scene.style == 'sketch':
        stack = _hatch(stack, parts, u, v)
    return stack


def _hatch(stack: list, parts: list, u: np.ndarray, v: np.ndarray) -> list:
    """Hatching over the bodies, under everything that is drawn upon them."""
    last = max(i for i, (role, _) in enumerate(stack) if role == 'body')
    lines = 0.7 * np.clip(0.5 + 0.9 * np.sin((u + v) * (2 * np.pi / 4.5)), 0, 1)
    return [*stack[: last + 1], ('hatch', stack[last][1] * lines), *stack[last + 1 :]]


def blend(stack: list[tuple[str, np.ndarray]]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Roles, what each contributes to a pixel [..., roles], and what is left of the background."""
    left = np.ones(np.broadcast_shapes(*(a.shape for _, a in stack)), np.float32)
    weights = np.empty((*left.shape, len(stack)), np.float32)
    for index in range(len(stack) - 1, -1, -1):
        share = stack[index][1] * left
        weights[..., index] = share
        left = left - share
    return tuple(role for role, _ in stack), weights, left


def sprite_weights(
    scene: Scene, centres: np.ndarray, size: int
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, np.ndarray]:
    """The sprite alone, in a window around each centre.

    Args:
        centres: [T, 2] of (x, y) in 1/64 of the frame.

    Returns:
        The windows' first pixels [T, 2] (x, y), the layers' roles, their weights
        [T, h, w, roles] and the background's weight [T, h, w].
    """
    scale = size / FRAME
    left, right, up, down = _window(scene, scale)
    pixels = np.asarray(centres, np.float64) * scale
    origin = np.floor(pixels - (left, up)).astype(int)
    width, height = int(np.ceil(left + right)) + 1, int(np.ceil(up + down)) + 1
    first = ((origin + 0.5 - pixels) / scale).astype(np.float32)
    dx = first[:, 0, None, None] + np.arange(width, dtype=np.float32) / np.float32(scale)
    dy = first[:, 1, None, None] + np.arange(height, dtype=np.float32)[:, None] / np.float32(scale)
    # 'left' mirrors 'right'; 'up' and 'down' are mirror images too, each a turn of 'right'.
    u, v = {'right': (dx, dy), 'left': (-dx, dy), 'up': (-dy, dx), 'down': (dy, dx)}[scene.heading]
    return origin, *blend(layers(scene, u, v, scale))


def render_at(scene: Scene, centres: np.ndarray, size: int = 64) -> np.ndarray:
    """Draw the scene with its sprite at each of the centres [T, 2]: uint8 [T, S, S, 3]."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f'the size of a sprite clip is {MIN_SIZE} to {MAX_SIZE} px, got {size}')
    origin, roles, weights, left = sprite_weights(scene, centres, size)
    colours = weights @ ink_matrix(scene.style, scene.colour, roles) + 0.5
    picture = background(scene.place, scene.style, size)
    clip = np.repeat(picture[None], len(origin), axis=0)
    height, width = left.shape[1:]
    for frame, (x, y) in enumerate(origin):
        xs, ys = slice(max(x, 0), min(x + width, size)), slice(max(y, 0), min(y + height, size))
        inside = (slice(ys.start - y, ys.stop - y), slice(xs.start - x, xs.stop - x))
        part = left[frame][inside][..., None] * picture[ys, xs] + colours[frame][inside]
        clip[frame, ys, xs] = np.minimum(part, 255)
    return clip


def render(scene: Scene, frames: int = 16, size: int = 64) -> np.ndarray:
    """Draw a clip: uint8 [T, S, S, 3]. Its ``travel`` spans the frames, however many."""
    if frames < 1:
        raise InputError(f'a clip has at least one frame, got {frames}')
    return render_at(scene, path(scene, frames), size)


def render_frame(scene: Scene, position: Sequence[float], size: int = 64) -> np.ndarray:
    """Draw one picture with the sprite's centre at ``position`` (x, y): uint8 [S, S, 3]."""
    return render_at(scene, np.asarray([position], np.float64), size)[0]

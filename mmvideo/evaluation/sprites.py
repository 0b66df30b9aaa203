"""What the papers claim, measured on the sprite world by its tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from mmvideo.datasets.sprites.grammar import parse_caption
from mmvideo.datasets.sprites.palette import STYLES
from mmvideo.datasets.sprites.world import CLIP_INTERVALS, FRAME, HEADINGS, PACES
from mmvideo.errors import InputError, nearest
from mmvideo.evaluation.sprite_tracking import Track, track
from mmvideo.registry import METRICS

LAYOUTS = ('auto', 'TCHW', 'CTHW')
MOTIONS = ('caption', 'heading')
STANDS_BELOW = 2.0  # 1/64 frames: a sprite that moves less stands still
BEST_PSNR = 100.0  # dB, said of identical pictures


def to_frames(video: torch.Tensor | np.ndarray, layout: str = 'auto') -> np.ndarray:
    """A clip as uint8 [T, H, W, 3].

    Args:
        video: uint8, or float in [0, 1]; [T, 3, H, W] or [3, T, H, W].
        layout: 'TCHW', 'CTHW', or 'auto' to look for the 3.

    Raises:
        InputError: for another shape or range, or an 'auto' layout that could be both.
    """
    clip = torch.as_tensor(video).detach().cpu()
    if clip.ndim != 4:
        raise InputError(f'a clip has 4 axes, TCHW or CTHW; got shape {list(clip.shape)}')
    layout = _find_layout(clip) if layout == 'auto' else layout
    axis = layout.index('C')
    if clip.shape[axis] != 3:
        raise InputError(f'a {layout} clip has 3 channels in axis {axis}; got {list(clip.shape)}')
    clip = clip.movedim(axis, -1)
    if clip.dtype == torch.uint8:
        return clip.numpy()
    clip = clip.float()
    if not torch.isfinite(clip).all() or clip.min() < -0.01 or clip.max() > 1.01:
        raise InputError('a float clip has finite values in [0, 1]')
    return clip.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def _find_layout(clip: torch.Tensor) -> str:
    first, second = clip.shape[0] == 3, clip.shape[1] == 3
    if first and second:
        raise InputError('a clip of 3 frames: say layout="TCHW" or layout="CTHW"')
    return 'CTHW' if first else 'TCHW'


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 pictures of one shape, dB, at most 100."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(min(10 * np.log10(255**2 / error), BEST_PSNR)) if error else BEST_PSNR


def follows(found: Track, said: Mapping[str, str | None], size: int) -> bool | None:
    """Whether a sprite moves as its caption says; None where the caption leaves it open.

    A standing sprite stays within 2/64 of the frame. A moving one is displaced mainly along its
    heading, by a third at least of what its pace is for clips of this length.
    """
    frames, unit = len(found.positions), size / FRAME
    if said['pace'] is None or frames < 2 or (said['pace'] != 'still' and said['heading'] is None):
        return None
    if found.lost:
        return False
    if said['pace'] == 'still':
        return found.excursion < STANDS_BELOW * unit
    usual = PACES[said['pace']] * unit * (frames - 1) / CLIP_INTERVALS
    return goes(found, str(said['heading']), usual / 3)


def goes(found: Track, heading: str, least: float) -> bool:
    """Whether a sprite is displaced along a heading, by ``least`` px, and less to its sides."""
    if found.lost or len(found.positions) < 2:
        return False
    step = np.asarray(HEADINGS[heading])
    along = float(found.displacement @ step)
    across = float(np.abs(found.displacement @ step[::-1]))
    return along >= least and along > across


@METRICS.register_module()
class SpriteMetric(BaseMetric):
    """Percentages of clips that show what their captions say, found by the sprite tracker.

    Every data sample is a dict with ``video`` (uint8, or float in [0, 1]; [T, C, H, W] or
    [C, T, H, W]) and ``caption``, and may have ``image`` ([C, H, W], as the video) that frame
    ``condition_frame`` (0 unless given) of the video should show, ``style``, the one expected, and
    ``heading``, where the sprite of that picture faces.

    Reported, where any clip has it: ``object``, ``colour``, ``place``, ``all_three``, ``facing``
    (the sprite's own heading), ``direction`` (its motion), ``style``, ``lost``, all in percent of
    the clips that ask for it; ``condition_frame_psnr`` (mean, dB); ``median_displacement`` and
    ``median_excursion`` (in 1/64 of the frame); ``loop_closure`` (median of the distance between
    last and first position over the largest distance from the first; 0 closes). A lost sprite
    counts as wrong in everything that is said of it. The attribute ``clips`` has the same of each
    clip of the last evaluation, with its caption.

    Args:
        style: the style expected of clips that name none.
        layout: 'TCHW', 'CTHW', or 'auto'.
        styles: the styles that the tracker considers.
        motion: what ``direction`` is held against: 'caption', or 'heading' for a model that is told
            no text, whose sprite should go where it faces, by 2/64 of the frame at least.
    """

    default_prefix = 'sprites'

    def __init__(
        self,
        style: str | None = None,
        layout: str = 'auto',
        styles: Sequence[str] = STYLES,
        motion: str = 'caption',
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        for name, value, valid in (
            ('style', style, (None, *STYLES)),
            ('layout', layout, LAYOUTS),
            ('motion', motion, MOTIONS),
        ):
            if value not in valid:
                raise InputError(f'unknown {name} {value!r}.{nearest(value, map(str, valid))}')
        self.style, self.layout, self.styles = style, layout, tuple(styles)
        self.motion = motion
        self.clips: list[dict[str, Any]] = []

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Track every clip and note what is right about it."""
        for sample in data_samples:
            self.results.append({'caption': sample['caption'], **self._judge(sample)})

    def _judge(self, sample: Mapping[str, Any]) -> dict[str, float]:
        """The figures of one clip: 0 or 1 for what is right, only of what is asked."""
        frames = to_frames(sample['video'], self.layout)
        said = parse_caption(sample['caption'])
        found = track(frames, self.styles)
        right = _named(found, said)
        style = sample.get('style', self.style)
        if style is not None:
            right['style'] = float(found.style == style)
        moves = self._moves(found, said, sample, frames.shape[1])
        if moves is not None:
            right['direction'] = float(moves)
        if sample.get('image') is not None:
            shown = frames[int(sample.get('condition_frame') or 0)]
            picture = to_frames(torch.as_tensor(sample['image'])[None], 'TCHW')[0]
            right['condition_frame_psnr'] = psnr(shown, picture)
        return {**right, **_motion(found, frames.shape[1])}

    def _moves(
        self, found: Track, said: Mapping[str, str | None], sample: Mapping[str, Any], size: int
    ) -> bool | None:
        if self.motion == 'caption':
            return follows(found, said, size)
        if sample.get('heading') is None:
            raise InputError("motion='heading' needs a heading of every sample, and one has none.")
        return goes(found, sample['heading'], STANDS_BELOW * size / FRAME)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Percentages, means and medians over the clips that have the figure."""
        figures: dict[str, float] = {}
        self.clips = results
        for name in dict.fromkeys(key for result in results for key in result):
            if name == 'caption':
                continue
            values = [result[name] for result in results if name in result]
            if name.endswith('psnr'):
                figures[name] = float(np.mean(values))
            elif name in ('displacement', 'excursion'):
                figures[f'median_{name}'] = float(np.median(values))
            elif name == 'loop_closure':
                figures[name] = float(np.median(values))
            else:
                figures[name] = 100 * float(np.mean(values))
        return figures


def _named(found: Track, said: Mapping[str, str | None]) -> dict[str, float]:
    """Whether kind, colour, place and the sprite's own heading are those of the caption."""
    asked = {'object': 'kind', 'colour': 'colour', 'place': 'place', 'facing': 'heading'}
    right = {
        name: float(getattr(found, field) == said[field])
        for name, field in asked.items()
        if said[field] is not None
    }
    if 'place' in right:
        right['all_three'] = right['object'] * right['colour'] * right['place']
    return {**right, 'lost': float(found.lost)}


def _motion(found: Track, size: int) -> dict[str, float]:
    if found.lost or len(found.positions) < 2:
        return {}
    unit = size / FRAME
    moved, excursion = float(np.linalg.norm(found.displacement)) / unit, found.excursion / unit
    motion = {'displacement': moved, 'excursion': excursion}
    if excursion >= STANDS_BELOW:
        motion['loop_closure'] = moved / excursion
    return motion
